"""A target without room: what fits is delivered, the rest waits at the source, and nothing is ever set aside."""

from __future__ import annotations

import secrets
import subprocess
from pathlib import Path

import pytest

from mistamover.testing.needs import find
from tests.faults.conftest import MakeDisk
from tests.faults.disks import Disk, disk, must
from tests.faults.disks import run as command
from tests.faults.oracle import Watcher
from tests.faults.rig import Options, Rig, Run, finished, told
from tests.sshd import Sshd, wait_for

pytestmark = pytest.mark.needs("root", "mount")

FULL = "size=256k,mode=755"
NO_INODES = "size=4m,nr_inodes=9,mode=755"
ROUNDS = 2
IMPATIENT: Options = {"outgoing": {"retry_count": 0}}
"""A unit that fails by its own fault is set aside at once."""


def make_room(disk: Path) -> None:
    argv = [find("mount") or "mount", "-o", "remount,size=8m,nr_inodes=1000", str(disk)]
    subprocess.run(argv, check=True)


def check_waits(rig: Rig, run: Run) -> None:
    assert run.code != 0, run.text
    assert "full" in f"{run.reasons('waiting')}{run.reasons('target')}", run.text
    rig.oracle.check()
    assert not rig.oracle.quarantined()
    assert not run.of("quarantined"), run.text


@pytest.mark.parametrize("options", [FULL, NO_INODES])
def test_what_fits_is_delivered(either: Rig, small_disk: MakeDisk, options: str) -> None:
    disk = small_disk(either.target, options)
    either.write(IMPATIENT)
    # The large ones are the oldest, and go first.
    sizes = [70_000] * 8 if options == FULL else [1000] * 12
    for number, size in enumerate(sizes):
        either.oracle.put(f"file-{number}", secrets.token_bytes(size))
    with Watcher(either.oracle):
        for _ in range(ROUNDS):
            check_waits(either, either.run())
    # A hard link takes an inode on tmpfs, and OpenSSH's server renames by one: there, none is left to publish by.
    assert len(either.oracle.delivered()) >= 2 or (options == NO_INODES and either.server)
    make_room(disk)
    either.run_clean()


def test_one_that_is_too_large_does_not_hold_up_the_others(rig: Rig, small_disk: MakeDisk) -> None:
    disk = small_disk(rig.target, FULL)
    rig.write({"data_stream": {"order": "largest"}, **IMPATIENT})
    rig.oracle.put("too-large", secrets.token_bytes(600_000))
    for number in range(3):
        rig.oracle.put(f"fits-{number}", secrets.token_bytes(20_000))
    check_waits(rig, rig.run())
    assert rig.oracle.delivered() == {"fits-0", "fits-1", "fits-2"}
    assert not rig.oracle.staged()
    make_room(disk)
    rig.run_clean()


def test_many_small_ones(either: Rig, small_disk: MakeDisk) -> None:
    # Enough to go as one archive, where the far side has a shell.
    disk = small_disk(either.target, FULL)
    either.write(IMPATIENT)
    for number in range(60):
        either.oracle.put(f"file-{number}", secrets.token_bytes(8_000))
    check_waits(either, either.run())
    assert len(either.oracle.delivered()) >= 10
    make_room(disk)
    either.run_clean()


def test_a_target_that_becomes_read_only(either: Rig, small_disk: MakeDisk) -> None:
    disk = small_disk(either.target, "size=4m,mode=755")
    either.write(IMPATIENT)
    either.oracle.put("before", b"before")
    either.run_clean()
    either.oracle.put("after", b"after")
    either.oracle.put("new/after", b"after that")
    subprocess.run([find("mount") or "mount", "-o", "remount,ro", str(disk)], check=True)
    for _ in range(ROUNDS):
        run = either.run()
        assert run.code != 0, run.text
        assert not either.oracle.quarantined()
        either.oracle.check()
    subprocess.run([find("mount") or "mount", "-o", "remount,rw", str(disk)], check=True)
    either.run_clean()


def test_a_target_that_is_not_mounted(either: Rig, small_disk: MakeDisk) -> None:
    # What lies below the mount point must not be filled: there, target_dir does not exist.
    disk = small_disk(
        either.server.root / either.base.parent.name if isinstance(either.server, Sshd) else either.base / "disk",
        FULL,
    )
    either.write({"outgoing": {"target_dir": disk / "target"}})
    either.oracle.target = disk / "target"
    either.oracle.put("one", b"one")
    run = either.run()
    assert run.code == 3, run.text
    assert list(disk.iterdir()) == []
    either.oracle.check()
    (disk / "target").mkdir()
    either.run_clean()


@pytest.mark.needs("umount", "mkfs.btrfs", "btrfs")
def test_a_quota(either: Rig) -> None:
    """The target says that there is room, and does not give it."""
    with disk(either.target, "btrfs"):
        must("btrfs", "quota", "enable", either.target)
        must("btrfs", "qgroup", "limit", "512K", either.target)
        either.write(IMPATIENT)
        for number in range(4):
            either.oracle.put(f"file-{number}", secrets.token_bytes(300_000))
        with Watcher(either.oracle):
            for _ in range(ROUNDS):
                run = either.run()
                assert run.code != 0, run.text
                # SFTP has no word for a quota: there the target "could not write it".
                assert run.of("waiting") or run.of("target"), run.text
                assert "full" in run.text or (either.server and either.connector == "openssh"), run.text
                assert not run.of("quarantined"), run.text
        assert either.oracle.delivered()
        must("btrfs", "qgroup", "limit", "none", either.target)
        either.run_clean()


@pytest.mark.needs("umount", "mkfs.ext4", "losetup")
def test_a_target_that_is_unmounted_under_a_stream_that_polls(local: Rig) -> None:
    # Where the mount point itself is the target, a stop file below it tells it from the disk.
    local.write({"global": {"general_poll_interval": "0.1"}})
    stop = local.target / ".stop"
    stop.touch()
    with disk(local.target) as one:
        local.oracle.put("before", b"before")
        process = local.start(once=False)
        wait_for(lambda: local.oracle.delivered() == {"before"}, "the first file")
        must("umount", "--lazy", local.target)
        local.oracle.put("after", b"after")
        wait_for(lambda: not attached(one), "the stream to let go of the disk")
        wait_for(lambda: "paused by" in told(process, local.base / "errors"), "the pause")
        assert [path for path in local.target.rglob("*") if path.is_file()] == [stop]
        process.terminate()
        finished(process)
        one.mount()
        local.run_clean()


def attached(one: Disk) -> str:
    return command("losetup", "-j", one.image).stdout
