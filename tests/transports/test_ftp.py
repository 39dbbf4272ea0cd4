"""FTP, plain and within TLS."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping
from typing import ClassVar

import pytest

from mistamover.transports.contract import Proof
from tests.daemon import Daemon, running
from tests.ftpd import PASSWORD, USER, Certificate, Proftpd, Vsftpd
from tests.needs import require
from tests.sshd import temporary_account
from tests.transports.contract import ConnectionContract, SendingContract, Server, TransportContract

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
