"""FTP, plain and within TLS."""

from __future__ import annotations

import ftplib
import re
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import pytest

from mistamover import stream as stream_module
from mistamover.config import load
from mistamover.stream import Event, Kind, Report, Stream
from mistamover.transports import ftp
from mistamover.transports.contract import Proof
from mistamover.unit import BATCH_FILES
from tests.daemon import Daemon, running
from tests.ftpd import PASSWORD, USER, Certificate, Proftpd, Vsftpd
from tests.needs import require
from tests.sshd import temporary_account
from tests.transports.contract import ConnectionContract, SendingContract, Server, TransportContract
from tests.transports.rig import Rig, deliver, failed, files, tree, write

pytestmark = pytest.mark.needs("root", "proftpd", "openssl")

Options = Mapping[str, Mapping[str, str]]


def to(server: Daemon, username: str = USER, password: str = PASSWORD) -> Options:
    """The options that lead to a server."""
    return {
        "outgoing": {"transfer_protocol": "ftp", "target_host": server.host},
        "ftp": {"port": str(server.port), "username": username, "password": password},
    }


def within_tls(server: Daemon, certificate: Certificate, *log_in: str) -> Options:
    """The options that lead to a server within TLS."""
    plain = to(server, *log_in)
    return {
        "outgoing": {**plain["outgoing"], "transfer_protocol": "ftps"},
        "ftps": {**plain["ftp"], "ca_file": str(certificate.file)},
    }


class ByFtp(SendingContract):
    """What FTP can and cannot do."""

    proofs: ClassVar[frozenset[Proof]] = frozenset(Proof)
    syncs: ClassVar[bool] = False
    time_step: ClassVar[int] = 10**9
    crowds: ClassVar[tuple[int, ...]] = (40,)
    unsayable: ClassVar[re.Pattern[str]] = re.compile(r"[\r\n\udcff]")


class TestProftpd(ByFtp, TransportContract):
    """A server that gives digests."""

    strongest: ClassVar[Proof] = Proof.DIGEST
    unsayable: ClassVar[re.Pattern[str]] = re.compile(r"[\r\n\udcff]|\*/")  # it makes no directory with a star

    def options(self, request: pytest.FixtureRequest) -> Options:
        return to(request.getfixturevalue("proftpd"))


@pytest.fixture(scope="module")
def vsftpd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Options]:
    """The options that lead to a server within TLS."""
    require("root", "vsftpd", "useradd", "chpasswd")
    certificate = Certificate.make(tmp_path_factory.mktemp("certificate"))
    with temporary_account(secrets.token_urlsafe(12)) as account:
        server = Vsftpd(tmp_path_factory.mktemp("vsftpd"), certificate=certificate)
        with running(server):
            yield within_tls(server, certificate, account.name, account.password or "")


class TestVsftpdWithinTls(ByFtp):
    """A server that gives no digests, and demands one TLS session for all connections."""

    strongest: ClassVar[Proof] = Proof.READBACK
    proofs: ClassVar[frozenset[Proof]] = frozenset(Proof) - {Proof.DIGEST}

    def options(self, request: pytest.FixtureRequest) -> Options:
        options: Options = request.getfixturevalue("vsftpd")
        return options


class TestConnection(ConnectionContract):
    """When the far side goes away."""

    @pytest.fixture
    def server(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
        with running(Proftpd(tmp_path_factory.mktemp("proftpd-to-hurt"))) as server:
            yield server

    def options_of(self, server: Server) -> Options:
        assert isinstance(server, Daemon)
        return to(server)


def stream_to(server: Daemon, tmp_path: Path, files: int, report: Report) -> Stream:
    """A stream of so many files to a server."""
    spool = tmp_path / "spool"
    (tmp_path / "target").mkdir()
    for number in range(files):
        write(spool / f"{number % 10}/{number}", b"")
    sections = {
        "global": {"state_dir": f"{tmp_path}/state"},
        "data_stream": {"name": "small", "directory": str(spool), "settle_time": "0"},
        **to(server),
    }
    sections["outgoing"] = {**sections["outgoing"], "target_dir": f"{tmp_path}/target", "lanes": "4"}
    file = tmp_path / "small.ini"
    file.touch(mode=0o600)
    lines = [f"[{title}]\n" + "\n".join(map(" = ".join, options.items())) for title, options in sections.items()]
    file.write_text("\n".join(lines))
    return Stream(load(file, None, {}), report)


@pytest.mark.parametrize("is_let_go", [False, True])
def test_a_server_that_takes_few_connections_gets_all_over_those(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_let_go: bool
) -> None:
    """And is asked for more from time to time: somebody else may have left."""
    events: list[Event] = []
    connected: set[int] = set()
    (tmp_path / "server").mkdir()
    monkeypatch.setattr(stream_module, "ASK_AGAIN_AFTER", 0.2)
    monkeypatch.setattr(ftp, "MOST_ASKED", 1500)
    with running(Proftpd(tmp_path / "server", extra=["MaxClients 2"])) as server, ftplib.FTP() as other:
        other.connect(server.host, server.port)
        other.login(USER, PASSWORD)

        def report(event: Event) -> None:
            events.append(event)
            connected.add(stream.crew.connected)
            if event.kind is Kind.TARGET and is_let_go:
                other.close()

        with stream_to(server, tmp_path, 3 * BATCH_FILES, report) as stream:
            summary = stream.run_pass(patient=True)
    assert summary.error is None
    assert summary.counts[Kind.DELIVERED] == summary.counts[Kind.REMOVED] == 3 * BATCH_FILES
    assert len(files(tmp_path / "target")) == 3 * BATCH_FILES
    assert max(connected) == (2 if is_let_go else 1)
    said = {event.reason for event in events if event.kind is Kind.TARGET}
    assert [reason for reason in said if reason.endswith("; going on over 1 of 4 lanes")]
    assert all("maximum number of allowed clients" in reason for reason in said)


def test_where_the_server_gives_no_more_digests_the_rest_is_read_back(tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    with running(Proftpd(tmp_path / "server", extra=["DigestCache size 100"])) as server:
        rig = Rig(tmp_path, to(server))
        rig.crowd(80)
        transport = rig.open()
        delivered = deliver(transport, rig.units(transport))
        assert failed(delivered) == {}
        assert {outcome.unit.proof for outcome in delivered.values()} == {Proof.DIGEST.value, Proof.READBACK.value}
        assert tree(rig.target) == tree(rig.spool)
        rig.close()
