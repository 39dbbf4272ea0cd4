"""A record that cannot be written or read: then nothing is removed, and nothing is taken on faith."""

from __future__ import annotations

import os
import secrets
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mistamover.testing.needs import find
from tests.faults.conftest import MakeDisk
from tests.faults.rig import Rig, Run, finished, strace, told, was_killed
from tests.sshd import wait_for


def fill(rig: Rig, count: int = 5, size: int = 2000) -> None:
    for number in range(count):
        rig.oracle.put(f"file-{number}", secrets.token_bytes(size))


def refused(rig: Rig, run: Run) -> None:
    """Nothing was removed, and it is said why."""
    assert run.code != 0, run.text
    assert "ledger" in run.text, run.text
    assert "shows where" not in run.text
    assert all((rig.spool / name).exists() for name in rig.oracle.owed if name.startswith("file-"))
    rig.oracle.check()


@pytest.mark.needs("root", "mount")
def test_its_disk_is_full(either: Rig, small_disk: MakeDisk) -> None:
    disk = small_disk(either.state, "size=64k")
    fill(either)
    (disk / "filler").write_bytes(bytes(60 * 1024))
    refused(either, either.run())
    (disk / "filler").unlink()
    either.run_clean()


@pytest.mark.needs("root", "mount")
def test_its_disk_becomes_full_in_the_middle(either: Rig, small_disk: MakeDisk) -> None:
    # 400 records need more than what is left; all of a batch are recorded, or none.
    disk = small_disk(either.state, "size=512k")
    either.run_clean()
    fill(either, 400, 10)
    filler = disk / "filler"
    with filler.open("wb") as file:
        room = os.statvfs(disk)
        file.write(bytes(max(room.f_bavail * room.f_bsize - 24 * 1024, 0)))
    refused(either, either.run())
    filler.unlink()
    either.run_clean()


@pytest.mark.needs("root", "mount")
def test_its_disk_is_read_only(either: Rig, small_disk: MakeDisk) -> None:
    disk = small_disk(either.state, "size=1m")
    either.oracle.put("before", b"before")
    either.run_clean()
    fill(either)
    subprocess.run([find("mount") or "mount", "-o", "remount,ro", str(disk)], check=True)
    refused(either, either.run())
    subprocess.run([find("mount") or "mount", "-o", "remount,rw", str(disk)], check=True)
    either.run_clean()


@pytest.mark.needs("root", "mount")
def test_a_stream_that_polls_goes_on_when_there_is_room_again(local: Rig, small_disk: MakeDisk) -> None:
    disk = small_disk(local.state, "size=64k")
    local.write({"global": {"general_poll_interval": "0.1"}})
    fill(local)
    (disk / "filler").write_bytes(bytes(60 * 1024))
    process = local.start(once=False)
    errors = local.base / "errors"
    # It has tried more than once: the lock of its first try must not be in its way.
    wait_for(lambda: process.poll() is not None or waits(process, errors), "a second try", 10)
    assert process.poll() is None, finished(process).text
    (disk / "filler").unlink()
    wait_for(lambda: len(local.oracle.delivered()) == 5, "the files to be delivered")
    process.terminate()
    assert finished(process).code == 0
    local.oracle.check_delivered()


def waits(process: subprocess.Popen[bytes], errors: Path) -> bool:
    return "ledger" in told(process, errors)


@pytest.mark.needs("strace")
@pytest.mark.parametrize("error", ["EIO", pytest.param("ENOSPC", marks=pytest.mark.campaign)])
@pytest.mark.parametrize("number", [1, 3, 4])
def test_a_commit_fails(either: Rig, error: str, number: int) -> None:
    either.run_clean()
    fill(either)
    run = either.run(under=strace("fdatasync", f"error={error}:when={number}"))
    refused(either, run)
    either.run_clean()


@pytest.mark.needs("strace")
def test_only_the_last_commit_fails(either: Rig) -> None:
    # The one that says that the sources are gone.
    either.run_clean()
    fill(either)
    run = either.run(under=strace("fdatasync", "error=EIO:when=6+"))
    assert run.code != 0, run.text
    either.oracle.check()
    either.run_clean()


SPOILT: dict[str, Callable[[bytes], bytes]] = {
    "noise": lambda data: secrets.token_bytes(len(data)),
    "no header": lambda data: bytes(100) + data[100:],
    "half": lambda data: data[: len(data) // 2],
    "a hole": lambda data: data[:4096] + bytes(4096) + data[8192:],
    "text": lambda data: b"this is no ledger\n" * 100,
}


@pytest.mark.parametrize("how", SPOILT)
def test_it_is_spoilt(local: Rig, how: str) -> None:
    local.oracle.put("before", b"before")
    local.run_clean()
    ledger = local.oracle.ledger
    data = ledger.read_bytes()
    ledger.write_bytes(SPOILT[how](data))
    fill(local)
    run = local.run()
    assert "shows where" not in run.text
    local.oracle.check()
    if how != "a hole":  # not every hole is noticed; what matters is that nothing is lost
        refused(local, run)
    ledger.write_bytes(data)
    local.run()
    local.run_clean()


@pytest.mark.parametrize("either", ["local", "openssh"], indirect=True)
@pytest.mark.parametrize("left", ["nothing", "an empty file"])
def test_it_is_gone(either: Rig, left: str) -> None:
    # Delivered files of which nobody knows any more, and sources whose removal was interrupted.
    fill(either)
    killed = either.run(under=strace("unlinkat", "signal=SIGKILL:when=2")) if find("strace") else None
    assert killed is None or was_killed(killed)
    either.oracle.ledger.unlink()
    if left == "an empty file":
        either.oracle.ledger.touch()
    more = either.oracle.put("more", b"more")
    run = either.run()
    assert run.code == 0, run.text
    assert not more.exists()
    either.oracle.check()
    # What was in the trash stays there, since nobody can say where it belongs; that is told.
    assert "trash" in run.reasons("recovered") + "".join(run.paths("recovered")), run.text
    assert either.oracle.set_aside()
    fill(either)
    either.run()
    either.oracle.check()


def test_a_second_ledger_does_not_take_what_the_first_left_for_its_own(local: Rig) -> None:
    """Numbers of records begin anew; what the old ones left in the trash and in quarantine must stay."""
    local.oracle.put("one", b"one of the first ledger")
    local.oracle.put("taken", b"ours")
    local.oracle.put_at_target("taken", b"theirs")
    trash = local.spool / ".mistamover/trash"
    assert was_killed(local.run(under=strace("unlinkat", "signal=SIGKILL:when=1", paths=[trash])))
    (left,) = [path for path in local.oracle.set_aside() if path.parent.name == "trash"]
    local.run()
    assert local.oracle.quarantined() == ["taken"]
    # As if the first ledger's files had stayed: the same numbers, other files.
    kept = local.spool / ".mistamover/trash" / left.name
    kept.write_bytes(b"a file of the first ledger")
    local.oracle.expect("one of old", b"a file of the first ledger")
    local.oracle.ledger.unlink()
    local.oracle.put("taken", b"ours again")
    for number in range(5):
        local.oracle.put(f"new-{number}", b"%d" % number)
    del local.oracle.owed["taken"]
    before = {path: path.read_bytes() for path in local.oracle.set_aside()}
    local.run()
    local.oracle.check()
    for path, data in before.items():
        assert path.read_bytes() == data
    local.run()
    local.oracle.check()


def test_one_that_a_newer_release_wrote(local: Rig) -> None:
    local.oracle.put("before", b"before")
    local.run_clean()
    with sqlite3.connect(local.oracle.ledger) as database:
        database.execute("PRAGMA user_version = 1000")
    fill(local)
    refused(local, local.run())


def test_one_that_another_program_locks(local: Rig) -> None:
    local.oracle.put("before", b"before")
    local.run_clean()
    fill(local)
    database = sqlite3.connect(local.oracle.ledger, isolation_level=None)
    database.execute("BEGIN EXCLUSIVE")
    process = local.start()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    assert all((local.spool / f"file-{number}").exists() for number in range(5))
    database.execute("ROLLBACK")
    database.close()
    assert finished(process).code == 0
    local.oracle.check_delivered()
