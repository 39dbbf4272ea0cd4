"""Tests of the tests: with a fault planted in a copy of the package, the oracle must go red.

Each fault is a text of the package, replaced by another. Where the text is not there any more, the test fails and
says so: it has to follow the package, or it would prove nothing.
"""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.faults import test_order, test_races, test_writes
from tests.faults.faulty_server import FaultyServer
from tests.faults.oracle import LossError, Oracle, Watcher
from tests.faults.rig import PACKAGE, Rig, strace, was_killed
from tests.sshd import wait_for

pytestmark = pytest.mark.needs("strace")


class Change(NamedTuple):
    file: str
    old: str
    new: str


def planted(directory: Path, *changes: Change) -> Path:
    """A directory with a copy of the package in which these texts are replaced."""
    package = directory / "package"
    shutil.copytree(PACKAGE, package / "mistamover", ignore=shutil.ignore_patterns("__pycache__"))
    for file, old, new in changes:
        path = package / "mistamover" / file
        text = path.read_text()
        assert old in text, f"{file} does not hold this any more, adapt this test to what it holds instead: {old}"
        path.write_text(text.replace(old, new))
    return package


def spoilt(tmp_path: Path, *changes: Change, server: FaultyServer | None = None) -> Rig:
    return Rig(tmp_path / "rig", server.sshd if server else None, package=planted(tmp_path, *changes))


# -- the proof -----------------------------------------------------------------------------------------------


def test_a_digest_that_is_not_compared(tmp_path: Path) -> None:
    change = Change(
        "transports/local.py", "if proof is Proof.READBACK and self._digest(fd) != unit.digest:", "if False:"
    )
    with pytest.raises(LossError, match="no version"):
        test_writes.test_staged_bytes_change_here(spoilt(tmp_path, change), "flip")


@pytest.mark.needs("sshd", "ssh", "ssh-keygen")
def test_a_digest_of_the_far_side_that_is_not_compared(tmp_path: Path, faulty: FaultyServer) -> None:
    change = Change("transports/sftp.py", "if digests.get(unit.staged) == unit.digest:", "if True:")
    with pytest.raises(LossError, match="no version"):
        test_writes.test_staged_bytes_change(spoilt(tmp_path, change, server=faulty), faulty, "flip")


@pytest.mark.needs("sshd", "ssh", "ssh-keygen")
def test_a_failed_write_that_is_not_noticed(tmp_path: Path, faulty: FaultyServer) -> None:
    rig = spoilt(
        tmp_path,
        Change("transports/sftp.py", "if not wire.is_ok(kind, body) and self.error is None:", "if False:"),
        Change("transports/sftp.py", "if digests.get(unit.staged) == unit.digest:", "if True:"),
        server=faulty,
    )
    with pytest.raises(LossError, match="no version"):
        test_writes.test_one_write_in_the_middle_fails(rig, faulty)


# -- the order -----------------------------------------------------------------------------------------------


def test_a_source_that_is_removed_before_the_record(tmp_path: Path) -> None:
    rig = spoilt(
        tmp_path,
        Change(
            "stream.py",
            "records = self._ledger.deliver(delivered, time.time(), answered)",
            "[os.unlink(self.settings.data_stream.directory / unit.path) for unit in delivered];"
            " records = self._ledger.deliver(delivered, time.time(), answered)",
        ),
    )
    rig.run_clean()
    rig.oracle.put("file", b"file")
    assert was_killed(rig.run(under=strace("fdatasync", "signal=SIGKILL:when=1")))
    with pytest.raises(LossError, match="ledger does not say"):
        rig.run_clean()


def test_bytes_that_are_not_put_on_disk(tmp_path: Path) -> None:
    change = Change("transports/local.py", "os.fsync(staged)", "pass")
    with pytest.raises(LossError, match="bytes are put on disk"):
        test_order.check_here(spoilt(tmp_path, change), 3)


def test_names_that_are_not_put_on_disk(tmp_path: Path) -> None:
    change = Change("transports/local.py", "fs.sync_directory(self._final.directory(directory))", "pass")
    with pytest.raises(LossError, match="name is put on disk"):
        test_order.check_here(spoilt(tmp_path, change), 3)


@pytest.mark.needs("sshd", "ssh", "ssh-keygen")
def test_names_that_the_far_side_does_not_put_on_disk(tmp_path: Path, faulty: FaultyServer) -> None:
    change = Change(
        "transports/sftp.py",
        "self._sync(changed | {directory(unit) for unit in ready if unit not in refused})",
        "",
    )
    with pytest.raises(LossError, match="name is put on disk"):
        test_order.check_far_away(spoilt(tmp_path, change, server=faulty), faulty)


def test_a_record_that_is_not_put_on_disk(tmp_path: Path) -> None:
    change = Change("ledger.py", "PRAGMA synchronous = FULL", "PRAGMA synchronous = OFF")
    with pytest.raises(LossError):
        test_order.check_here(spoilt(tmp_path, change), 3)


# -- the target ----------------------------------------------------------------------------------------------


def test_a_publication_that_replaces(tmp_path: Path) -> None:
    rig = spoilt(
        tmp_path,
        Change(
            "transports/local.py",
            "fs.rename_new(unit.staged, self._staging, name, parent)",
            "os.rename(unit.staged, name, src_dir_fd=self._staging, dst_dir_fd=parent)",
        ),
    )
    rig.oracle.put("name", b"ours")
    rig.oracle.put_at_target("name", b"theirs")
    rig.run()
    with pytest.raises(LossError, match="another program's"):
        rig.oracle.check()


TRUNCATING = "wire.WRITE | wire.CREATE | 0x10"
"""Flags of an OPEN that writes over what is there."""


@pytest.mark.needs("sshd", "ssh", "ssh-keygen")
def test_staged_names_that_are_used_again(tmp_path: Path, faulty: FaultyServer) -> None:
    rig = spoilt(
        tmp_path,
        Change(
            "unit.py",
            'unit._replace(staged=f"{first}{index:03x}")',
            "unit._replace(staged=f'{abs(hash(unit.path)):x}')",
        ),
        Change("transports/sftp.py", "_write_new = wire.WRITE_EXCLUSIVE", f"_write_new = ({TRUNCATING})"),
        server=faulty,
    )
    for name in "abcd":
        rig.oracle.put(name, secrets.token_bytes(1_500_000))
    # Between the link and the unlink that OpenSSH renames by: the first unlink is that of a file of the log-in.
    faulty.arm("unlink", "signal=SIGKILL:when=3", once=True)
    with pytest.raises(LossError, match="no version"), Watcher(rig.oracle):
        rig.run()


# -- the source ----------------------------------------------------------------------------------------------


def test_a_source_that_may_change_while_it_is_sent(tmp_path: Path) -> None:
    change = Change("spool.py", "if Identity.of(_state_of(self.fd)) != self.unit.identity:", "if False:")
    with pytest.raises(LossError, match="no version"):
        test_races.test_it_is_rewritten_in_place_with_its_old_times(spoilt(tmp_path, change))


def test_a_source_that_is_not_compared_after_it_was_taken_out(tmp_path: Path) -> None:
    change = Change("spool.py", "if _is_unchanged(aside, trash, unit.identity) and", "if True or")
    with pytest.raises(LossError, match="lost"):
        test_races.TestAfterSending().test_it_is_replaced(spoilt(tmp_path, change), test_races.CAPTURE)


def test_a_source_that_may_be_written_while_it_is_taken_out(tmp_path: Path) -> None:
    change = Change("spool.py", "is_leased = fs.lease(fd)", "is_leased = None")
    with pytest.raises(LossError, match="lost"):
        test_races.TestAfterSending().test_it_is_rewritten_in_place_with_its_old_times(
            spoilt(tmp_path, change), test_races.CAPTURE
        )


def test_a_source_that_is_still_being_written(tmp_path: Path) -> None:
    rig = spoilt(
        tmp_path,
        Change("spool.py", "if self._is_being_written(fd, unit.identity):", "if False:"),
        Change("spool.py", "is_leased = fs.lease(fd)", "is_leased = None"),
    )
    rig.oracle.put("log", b"")
    with test_races.Writer(rig.spool / "log") as writer:
        writer.open()
        rig.run()
        rig.oracle.expect("log", b"more")
        writer.write(b"more")
    with pytest.raises(LossError, match="lost"):
        rig.oracle.check()


def test_links_that_are_followed(tmp_path: Path) -> None:
    rig = spoilt(
        tmp_path,
        Change("spool.py", "follow_symlinks=False", "follow_symlinks=True"),
        Change("fs.py", "FILE = os.O_RDONLY | os.O_NOFOLLOW |", "FILE = os.O_RDONLY |"),
    )
    outside = tmp_path / "outside"
    outside.write_bytes(b"secret")
    (rig.spool / "link").symlink_to(outside)
    rig.run()
    with pytest.raises(LossError, match="nobody put"):
        rig.oracle.check()


# -- the oracle itself ---------------------------------------------------------------------------------------


@pytest.fixture
def oracle(tmp_path: Path) -> Oracle:
    for name in ("spool", "target"):
        (tmp_path / name).mkdir()
    return Oracle(tmp_path / "spool", tmp_path / "target", tmp_path / "ledger")


def test_the_oracle_sees_a_loss(oracle: Oracle) -> None:
    oracle.put("file", b"file")
    oracle.check()
    (oracle.spool / "file").unlink()
    with pytest.raises(LossError, match="lost"):
        oracle.check()


def test_the_oracle_sees_that_only_an_old_version_is_left(oracle: Oracle) -> None:
    (oracle.target / "file").write_bytes(b"old")
    oracle.put("file", b"old")
    oracle.replace("file", b"new")
    oracle.check()
    (oracle.spool / "file").unlink()
    with pytest.raises(LossError, match="lost"):
        oracle.check()


@pytest.mark.parametrize("place", [".mistamover/trash/1-x", ".mistamover/quarantine/1/file"])
def test_the_oracle_finds_what_is_set_aside(oracle: Oracle, place: str) -> None:
    file = oracle.put("file", b"file")
    (oracle.spool / place).parent.mkdir(parents=True)
    file.rename(oracle.spool / place)
    oracle.check()
    with pytest.raises(LossError, match="left in the spool's own"):
        oracle.check_delivered()


def test_the_oracle_sees_half_a_file(oracle: Oracle) -> None:
    oracle.put("file", b"file")
    (oracle.target / "file").write_bytes(b"fi")
    with pytest.raises(LossError, match="no version"):
        oracle.check()


def test_the_oracle_sees_a_double(oracle: Oracle) -> None:
    oracle.put("file", b"file")
    (oracle.target / "file").write_bytes(b"file")
    (oracle.target / "file.1").write_bytes(b"file")
    with pytest.raises(LossError, match="doubled"):
        oracle.check()


def test_the_oracle_sees_what_is_left_staged(oracle: Oracle) -> None:
    (oracle.target / ".mistamover/faults").mkdir(parents=True)
    (oracle.target / ".mistamover/faults/1234").write_bytes(b"")
    oracle.check()
    with pytest.raises(LossError, match="left staged"):
        oracle.check_delivered()


def test_the_watcher_sees_half_a_file(oracle: Oracle) -> None:
    oracle.put("file", b"file")
    watcher = Watcher(oracle)
    with pytest.raises(LossError, match="no version"), watcher:
        show_half_a_file(oracle, watcher)


def show_half_a_file(oracle: Oracle, watcher: Watcher) -> None:
    (oracle.target / "file").write_bytes(b"fi")
    wait_for(lambda: watcher.is_done, "the watcher to look")
    (oracle.target / "file").write_bytes(b"file")
