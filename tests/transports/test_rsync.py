"""rsync over ssh, and to a daemon."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import psutil
import pytest

from mistamover import digest
from mistamover.errors import (
    NameTaken,
    NoRoomHere,
    NotVerified,
    Parked,
    SourceMoved,
    TargetDown,
    TargetRefused,
    UnitError,
    UnitRefused,
)
from mistamover.events import Kind
from mistamover.stream import Stream
from mistamover.testing.contract import (
    ConnectionContract,
    SendingContract,
    Server,
    TransportContract,
    stated_rightly,
)
from mistamover.testing.needs import find
from mistamover.testing.rig import (
    BIG,
    HUGE,
    Rig,
    Tick,
    deliver,
    errors,
    failed,
    files,
    flip,
    good,
    noise,
    prove,
    tree,
    write,
)
from mistamover.transports import rsync
from mistamover.transports.contract import Proof, Transport
from mistamover.transports.rsync import Rsync
from mistamover.transports.rsync_run import Item, Result, Run
from mistamover.transports.rsync_trees import Tree
from mistamover.unit import BATCH_DIGITS, BATCH_FILES, OWN_NAME, Stated, Unit
from tests.conftest import StartSshd
from tests.daemon import running
from tests.faults.rig import Rig as FaultRig
from tests.faults.rig import strace
from tests.rsyncd import MODULE, PASSWORD, USER, Rsyncd
from tests.sshd import Sshd, make_key, wait_for

pytestmark = pytest.mark.needs("rsync", "sshd", "setpriv")

Options = Mapping[str, Mapping[str, str]]


def over_ssh(server: Sshd) -> Options:
    """The options that lead to a server by ssh."""
    return {
        "outgoing": {"transfer_protocol": "rsync_ssh", "target_host": server.host},
        "rsync_ssh": {
            "port": str(server.port),
            "username": server.username,
            "key_file": str(server.key_file),
            "known_hosts": str(server.known_hosts),
        },
    }


def to_daemon(server: Rsyncd) -> Options:
    """The options that lead to a daemon."""
    return {
        "outgoing": {"transfer_protocol": "rsync_native", "target_host": server.host},
        "rsync_native": {"port": str(server.port), "username": USER, "password": PASSWORD},
    }


class ByRsync(SendingContract):
    """What rsync can and cannot do."""

    strongest: ClassVar[Proof] = Proof.DIGEST
    proofs: ClassVar[frozenset[Proof]] = frozenset({Proof.DIGEST, Proof.SIZE, Proof.NONE})
    compared: ClassVar[Proof] = Proof.DIGEST
    syncs: ClassVar[bool] = False
    replaces: ClassVar[bool] = False
    renames_directories: ClassVar[bool] = False
    crowds: ClassVar[tuple[int, ...]] = (40,)

    @staticmethod
    def staged_name(unit: Unit) -> str:
        return f"{unit.staged[:BATCH_DIGITS]}/{unit.final}"


class TestOverSsh(ByRsync):
    """Files on their way over ssh; the target is looked at in the same way as a daemon's."""

    def options(self, request: pytest.FixtureRequest) -> Options:
        return over_ssh(request.getfixturevalue("sshd"))


class TestToDaemon(ByRsync, TransportContract):
    """All of it, to a daemon."""

    module: ClassVar[str] = MODULE

    def test_notes_are_put_whole_and_fetched(  # type: ignore[override] # a fixture more
        self, rig: Rig, rsyncd: Rsyncd
    ) -> None:
        """From a module that is not the whole file system: daemons of Debian 12 send nothing out of that."""
        (rig.base / "part").mkdir()
        part = Rig(rig.base / "part", to_daemon(rsyncd), staged_name=self.staged_name)
        super().test_notes_are_put_whole_and_fetched(part)
        part.close()

    def options(self, request: pytest.FixtureRequest) -> Options:
        return to_daemon(request.getfixturevalue("rsyncd"))

    def test_what_takes_a_name_after_we_looked_stays_as_it_is(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where files are named by a run of its own: what stood there was seen by the run before it."""
        look = Rsync._look

        def looked(self: Rsync, ours: Tree, place: str, names: Iterable[str]) -> dict[str, Item]:
            found = look(self, ours, place, names)
            write(rig.target / "file", b"came in between")
            return found

        rig.put("file", b"ours")
        transport = rig.open()
        units = prove(transport, rig.units(transport))
        monkeypatch.setattr(Rsync, "_look", looked)
        assert errors(transport.publish(units)).keys() == {"file"}
        assert files(rig.target) == {"file": b"came in between"}


class TestSshConnection(ConnectionContract):
    """When the far side goes away: all runs of a lane are over one connection."""

    @pytest.fixture
    def server(self, sshd_to_hurt: Sshd) -> Server:
        return sshd_to_hurt

    def options_of(self, server: Server) -> Options:
        assert isinstance(server, Sshd)
        return over_ssh(server)


class TestDaemonConnection:
    """When a daemon goes away: each run is a connection of its own."""

    @pytest.fixture
    def server(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rsyncd]:
        with running(Rsyncd(tmp_path_factory.mktemp("rsyncd-to-hurt"))) as server:
            yield server

    @pytest.fixture
    def rig(self, server: Rsyncd, tmp_path: Path) -> Iterator[Rig]:
        rig = Rig(tmp_path, to_daemon(server), module=MODULE)
        rig.put("big", noise(HUGE))
        rig.put("small")
        yield rig
        server.thaw_sessions()
        rig.close()

    @pytest.mark.parametrize("how", ["kill_sessions", "freeze_sessions"])
    def test_what_happens_to_it_in_mid_transfer_is_the_targets_fault(
        self, rig: Rig, server: Rsyncd, how: str
    ) -> None:
        hurt: list[Callable[[], int]] = [getattr(server, how)]

        def tick(size: int) -> None:
            if size > 1000 and hurt:
                wait_for(lambda: any(rig.target.rglob(".big.*")), "it to be on its way")
                hurt.pop()()

        # So slow that it is still on its way.
        transport = rig.open(tick, log_in={"stall_timeout": "1", "bandwidth_limit": "1M"})
        with pytest.raises(TargetDown, match=rf"^{server.host}: "):
            list(transport.send(rig.units(transport)))
        transport.close()
        server.thaw_sessions()
        assert files(rig.target) == {}
        again = rig.open()
        again.sweep()
        assert rig.all_staged() == set()
        assert failed(deliver(again, rig.units(again))) == {}
        assert tree(rig.target) == tree(rig.spool)

    def test_nobody_answers(self, rig: Rig, server: Rsyncd) -> None:
        server.stop()
        with pytest.raises(TargetDown, match=server.host):
            rig.open(log_in={"connect_timeout": "2"})

    def test_somebody_takes_the_connection_and_says_nothing(self, rig: Rig) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = str(silent.getsockname()[1])
            with pytest.raises(TargetDown):
                rig.open(log_in={"connect_timeout": "1", "stall_timeout": "1", "port": port})

    def test_a_wrong_password_is_tried_once_and_refused(self, rig: Rig, server: Rsyncd) -> None:
        with pytest.raises(TargetRefused, match=r"\[rsync_native\] username and password"):
            rig.open(log_in={"password": "wrong"})
        assert server.log.read_text().count("auth failed") == 1

    def test_a_password_is_asked_of_nobody(self, rig: Rig) -> None:
        with pytest.raises(TargetRefused, match=r"\[rsync_native\] username and password"):
            rig.open(log_in={"username": "nobody-we-know"})

    def test_a_daemon_that_cannot_send_is_told_of(self, rig: Rig) -> None:
        """Nobody could read receipts there: some daemons cannot send what a module holds whose path is "/"."""
        transport = rig.open()
        assert transport.put_notes({".note": b"note"}) == {}
        said = ""
        found = {".note": b"note"}
        try:
            found = transport.fetch_notes([".note"])
        except TargetRefused as error:
            said = str(error)
        assert found == {".note": b"note"}
        assert not said or "module whose path is /" in said

    def test_an_unknown_module_is_refused(self, rig: Rig, server: Rsyncd) -> None:
        (rig.base / "other").mkdir()
        other = Rig(rig.base / "other", to_daemon(server), module="other")
        with pytest.raises(TargetRefused, match=r"Unknown module 'other'; \[outgoing\] target_dir"):
            other.open()
        other.close()

    def test_a_module_that_may_only_be_read_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "daemon").mkdir()
        with running(Rsyncd(tmp_path / "daemon", extra=["read only = yes"])) as server:
            rig = Rig(tmp_path, to_daemon(server), module=MODULE)
            with pytest.raises(TargetRefused, match="read only"):
                rig.open()
            rig.close()

    def test_the_password_shows_nowhere(self, rig: Rig, server: Rsyncd) -> None:
        seen: list[str] = []

        def tick(_size: int) -> None:
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    seen.append(f"{process.cmdline()} {process.environ()}")

        transport = rig.open(tick)
        assert failed(deliver(transport, rig.units(transport))) == {}
        assert any("rsync" in line for line in seen)
        assert not [line for line in seen if PASSWORD in line]
        transport.close()
        left = [
            path
            for path in rig.base.rglob("*")
            if path.is_file() and PASSWORD in path.read_bytes().decode("latin-1")
        ]
        assert left == [rig.base / "images.ini"]


@pytest.mark.needs("strace")
def test_where_no_hard_links_can_be_made_the_far_side_copies(tmp_path: Path) -> None:
    (tmp_path / "daemon").mkdir()
    with running(Rsyncd(tmp_path / "daemon", under=strace("link,linkat", "error=EPERM"))) as server:
        rig = Rig(tmp_path, to_daemon(server), module=MODULE)
        rig.put("deep/big", noise(BIG))
        rig.put("small")
        transport = rig.open()
        assert [found for found in transport.examine() if "makes no hard links" in found.what]
        delivered = deliver(transport, rig.units(transport))
        assert failed(delivered) == {}
        assert tree(rig.target) == tree(rig.spool)
        assert {outcome.unit.proof for outcome in delivered.values()} == {Proof.DIGEST.value}
        assert rig.all_staged() == set()
        assert all(path.stat().st_nlink == 1 for path in rig.target.rglob("*") if path.is_file())
        rig.close()


@pytest.mark.needs("strace")
def test_what_root_may_not_read_is_never_sent_to_a_final_name(sshd: Sshd, tmp_path: Path) -> None:
    """A source that changes after its proof, and a staged file that is gone, must not be sent instead."""
    rig = Rig(tmp_path, over_ssh(sshd), staged_name=lambda unit: f"{unit.staged[:BATCH_DIGITS]}/{unit.path}")
    rig.put("file", noise(1000))
    transport = rig.open()
    units = prove(transport, rig.units(transport))
    flip(rig.spool / "file", 3)
    (rig.target / OWN_NAME / "images" / rig.staged_name(units[0])).unlink()
    ((_, error),) = transport.publish(units)
    assert isinstance(error, UnitError)
    assert "Permission denied" in str(error)
    assert tree(rig.target) == {}
    rig.close()


class TestWhatIsProvenAsItGetsItsName:
    """The way of a batch of files: one run compares checksums and links what is the same."""

    @pytest.fixture
    def rig(self, rsyncd: Rsyncd, tmp_path: Path) -> Iterator[Rig]:
        rig = Rig(tmp_path, to_daemon(rsyncd), module=MODULE, staged_name=ByRsync.staged_name)
        for name in ("file", "deep/file", "#odd\nname", "other"):
            rig.put(name, noise(1000, name))
        rig.put("empty", b"")
        yield rig
        rig.close()

    def sent(self, rig: Rig) -> tuple[Transport, list[Unit]]:
        transport = rig.open()
        return transport, good(transport.send(rig.units(transport)))

    def test_all_is_linked_and_nothing_is_sent_again(self, rig: Rig) -> None:
        transport, units = self.sent(rig)
        staged = {unit.path: self.staged(rig, unit).stat().st_ino for unit in units}
        published = good(transport.publish(units))
        assert {unit.proof for unit in published} == {Proof.DIGEST.value}
        assert tree(rig.target) == tree(rig.spool)
        assert {path: (rig.target / path).stat().st_ino for path in staged} == staged
        assert rig.all_staged() == set()

    def test_what_is_not_the_same_is_neither_linked_nor_sent(self, rig: Rig) -> None:
        """Whether it was the staged file that changed, or the source since it was staged."""
        transport, units = self.sent(rig)
        flip(rig.spool / "file", 3)
        flip(self.staged(rig, next(unit for unit in units if unit.path == "deep/file")), 3)
        self.staged(rig, next(unit for unit in units if unit.path == "other")).unlink()
        found = errors(transport.publish(units))
        assert found == {"file": SourceMoved, "deep/file": NotVerified, "other": NotVerified}
        assert files(rig.target) == {path: (rig.spool / path).read_bytes() for path in ("#odd\nname", "empty")}

    def test_names_that_are_taken_stay_as_they_are(self, rig: Rig) -> None:
        (rig.target / "file").write_bytes(b"of somebody")
        (rig.target / "other").symlink_to("nowhere")
        (rig.target / "empty").mkdir()
        (rig.target / "deep").symlink_to(rig.outside)
        before = tree(rig.target)
        transport, units = self.sent(rig)
        found = errors(transport.publish(units))
        assert found == {
            "file": NameTaken, "other": NameTaken, "empty": NameTaken, "deep/file": UnitRefused
        }  # fmt: skip
        assert tree(rig.target) == {**before, "#odd\nname": noise(1000, "#odd\nname")}
        assert tree(rig.outside) == {}

    def test_what_was_not_sent_in_full_is_not_published_with_the_others(self, rig: Rig) -> None:
        """It was staged beside them, and stays there until it is discarded."""
        transport, units = self.sent(rig)
        good(transport.publish([unit for unit in units if unit.path != "deep/file"]))
        assert tree(rig.target) == {path: data for path, data in tree(rig.spool).items() if "deep" not in path}

    def test_no_unit_is_to_blame_where_there_is_no_room_for_its_stand_in(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        write(rig.target / "file", b"an older one")
        transport = rig.open(existing="replace")
        units = good(transport.send(rig.units(transport, "file")))
        monkeypatch.setattr(Tree, "stand_in", full)
        assert errors(transport.publish(units)) == {"file": NoRoomHere}

    def staged(self, rig: Rig, unit: Unit) -> Path:
        return rig.target / OWN_NAME / "images" / rig.staged_name(unit)


@pytest.fixture
def large(sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """A stream with a file that is alone in its batch, which is hashed when it is proven."""
    monkeypatch.setattr(rsync, "BATCH_BYTES", BIG)
    rig = Rig(tmp_path, over_ssh(sshd))
    rig.put("large", noise(BIG + 1))
    yield rig
    rig.close()


@pytest.mark.parametrize("at_once", [True, False], ids=["with its name", "before"])
def test_a_large_file_has_its_digest_when_it_is_proven(large: Rig, *, at_once: bool) -> None:
    right = digest.of_bytes("sha256", noise(BIG + 1))
    transport = large.open()
    (unit,) = good(transport.send([stated_rightly(large, each) for each in large.units(transport)]))
    if not at_once:
        (unit,) = good(transport.verify([unit]))
        assert (unit.digest, unit.proof) == (right, "digest")
    (unit,) = good(transport.publish([unit]))
    assert (unit.digest, unit.proof) == (right, "digest")
    assert tree(large.target) == tree(large.spool)


def test_a_large_file_that_is_not_what_somebody_states_is_refused(large: Rig) -> None:
    transport = large.open()
    wrong = (Stated("md5", "0" * 32, "large.md5"),)
    units = good(transport.send([unit._replace(stated=wrong) for unit in large.units(transport)]))
    assert errors(transport.publish(units)) == {"large": UnitRefused}
    assert files(large.target) == {}


def test_a_large_file_that_changes_before_it_is_proven_starts_again(large: Rig) -> None:
    transport = large.open()
    units = good(transport.send(large.units(transport)))
    large.put("large", noise(BIG + 1, "another"))
    assert errors(transport.publish(units)) == {"large": SourceMoved}
    assert files(large.target) == {}


def test_a_large_file_is_parked_while_it_is_proven(large: Rig) -> None:
    transport = large.open()
    units = good(transport.send(large.units(transport)))

    def tick(_size: int) -> None:
        raise Parked("asked to stop")

    transport.tick = tick
    assert errors(transport.publish(units)) == {"large": Parked}
    assert files(large.target) == {}


def test_progress_is_that_of_rsync(large: Rig) -> None:
    """As much as it has read, and no more than there is."""
    told: list[int] = []
    transport = large.open()
    transport.tick = told.append
    good(transport.publish(good(transport.send(large.units(transport)))))
    assert sum(told) == BIG + 1


def test_no_link_is_followed_that_takes_a_directory_s_place_while_a_large_file_is_proven(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That takes minutes, at both ends; what stands above its name is looked at after it."""
    go_on, wait = Run.go_on, Run.wait
    rig = Rig(tmp_path, over_ssh(sshd), staged_name=ByRsync.staged_name)

    def plant() -> None:
        (rig.target / "deep").symlink_to(rig.outside)

    def goes_on(run: Run) -> None:
        if run._end is not None:  # it still waits for the end of its input
            plant()
        go_on(run)

    def waits(run: Run, patience: float, tick: Tick) -> Result:
        result = wait(run, patience, tick)
        if result.items.get("deep/large") and result.items["deep/large"].is_same:
            plant()
        return result

    monkeypatch.setattr(rsync, "BATCH_BYTES", BIG)
    rig.put("deep/large", noise(BIG + 1))
    transport = rig.open()
    units = good(transport.send(rig.units(transport)))
    monkeypatch.setattr(Run, "go_on", goes_on)
    monkeypatch.setattr(Run, "wait", waits)
    assert errors(transport.publish(units)) == {"deep/large": UnitRefused}
    assert (rig.target / "deep").is_symlink()
    assert tree(rig.outside) == {}
    rig.close()


def test_the_command_of_the_original_is_understood(sshd: Sshd, tmp_path: Path) -> None:
    """With its options of ssh inside, and options that say what is done anyhow."""
    more = {
        "cmd": f"/usr/bin/rsync -avz -e 'ssh -p {sshd.port} -i {sshd.key_file}'",
        "extra_options": "--chmod=F600",
    }
    options = {**over_ssh(sshd), "rsync_ssh": {"known_hosts": str(sshd.known_hosts), **more}}
    rig = Rig(tmp_path, options)
    rig.put("file").chmod(0o644)
    transport = rig.open()
    assert failed(deliver(transport, rig.units(transport))) == {}
    assert tree(rig.target) == tree(rig.spool)
    assert stat.S_IMODE((rig.target / "file").stat().st_mode) == 0o600
    rig.close()


def test_a_target_with_blanks_and_wildcards_is_one_path(sshd: Sshd, tmp_path: Path) -> None:
    rig = Rig(tmp_path, over_ssh(sshd))
    rig.put("file")
    odd = rig.target / "it's [a] *?$(touch x)"
    odd.mkdir()
    transport = rig.open(target_dir=str(odd))
    assert failed(deliver(transport, rig.units(transport))) == {}
    assert tree(odd) == tree(rig.spool)
    assert os.listdir(rig.target) == [odd.name]
    rig.close()


def test_a_wrong_key_is_tried_once_and_refused(start_sshd: StartSshd, tmp_path: Path) -> None:
    server = start_sshd()
    make_key(tmp_path / "stranger")
    rig = Rig(tmp_path, over_ssh(server))
    with pytest.raises(TargetRefused, match=r"log-in refused; check \[rsync_ssh\]"):
        rig.open(log_in={"key_file": str(tmp_path / "stranger")})
    assert server.log.read_text().count("Connection from") == 1
    rig.close()


def test_where_there_is_no_rsync_it_is_said(sshd: Sshd, tmp_path: Path) -> None:
    rig = Rig(tmp_path, over_ssh(sshd))
    with pytest.raises(TargetRefused, match="there is no rsync"):
        rig.open(log_in={"cmd": "rsync --rsync-path=/no/such/rsync"})
    with pytest.raises(TargetRefused, match="install rsync"):
        rig.open(log_in={"cmd": "/no/such/rsync"})
    rig.close()


def test_a_shell_that_speaks_for_itself_is_named(start_sshd: StartSshd, tmp_path: Path) -> None:
    server = start_sshd(extra=('ForceCommand echo Welcome; eval "$SSH_ORIGINAL_COMMAND"',))
    rig = Rig(tmp_path, over_ssh(server))
    with pytest.raises(TargetRefused, match=r"the account's shell there says something .*\.bashrc"):
        rig.open()
    rig.close()


@pytest.mark.needs("prlimit")
@pytest.mark.parametrize("limit", ["150:", "150:150"], ids=["unless asked for more", "at all"])
def test_no_more_sources_are_open_than_may_be(rsyncd: Rsyncd, tmp_path: Path, limit: str) -> None:
    rig = FaultRig(tmp_path / "rig", rsyncd)
    for number in range(200):
        rig.oracle.put(f"{number}", noise(10, number))
    run = rig.run(under=["prlimit", f"--nofile={limit}"])
    assert run.code == 0, run.text
    rig.oracle.check_delivered()


def test_an_account_for_rsync_alone_serves_even_one_run_at_a_time(start_sshd: StartSshd, tmp_path: Path) -> None:
    """A key that may run rrsync in the target directory and nothing else; it lets in one run after the other."""
    rrsync = find("rrsync")
    if rrsync is None:
        pytest.skip("this rsync has no rrsync")
    place = tmp_path / "target"
    server = start_sshd(extra=(f"ForceCommand {rrsync} {place}",))
    rig = Rig(tmp_path, over_ssh(server))
    for number in range(BATCH_FILES + 1):
        rig.put(f"deep/{number % 3}/{number}")
    expected = tree(rig.spool)
    settings = rig.settings(target_dir="/", transfer_mode="mirror")
    state = settings.global_.model_copy(update={"state_dir": tmp_path / "state"})
    settings = settings.model_copy(update={"global_": state})
    with Stream(settings) as stream:
        summary = stream.run_pass(patient=True)
    assert (summary.error, summary.counts[Kind.WAITING]) == (None, 0)
    assert summary.counts[Kind.DELIVERED] == BATCH_FILES + 1
    assert tree(rig.target) == expected
    assert rig.all_staged() == set()
    rig.close()
