"""Power cuts: what had not been put on disk is gone, and still nothing is lost, halved, or doubled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

import pytest

from tests.faults import test_kill_directories
from tests.faults.disks import Disk, disk
from tests.faults.oracle import LossError
from tests.faults.rig import Rig, finished, strace, was_killed
from tests.faults.test_detectors import Change, spoilt
from tests.faults.test_kill import MANY, fill, most_calls, second_version, taken
from tests.sshd import Sshd, wait_for

pytestmark = pytest.mark.needs("root", "mount", "umount", "losetup", "mkfs.ext4", "strace")

PLACES = ["", "spool", "state", "target"]
"""Whose host loses its power: that of all of them, or only that of one."""


@contextmanager
def on_disk(base: Path, place: str) -> Iterator[tuple[Rig, Disk]]:
    """A stream, and the disk on which it is, or only its spool, record or target."""
    with ExitStack() as stack:
        one = None if place else stack.enter_context(disk(base))
        rig = Rig(base / "rig")
        yield rig, one or stack.enter_context(disk(getattr(rig, place)))


def cut_at(rig: Rig, one: Disk, call: str, number: int, log: Path, prepare: Callable[[Rig], None] = fill) -> bool:
    """Kill a run at its ``number``-th such call and cut the power; then a run that nobody disturbs.

    False where the run had ended before.
    """
    prepare(rig)
    one.flush()
    run = rig.run(under=strace(call, f"signal=SIGKILL:when={number}", log=log))
    come_back(rig, one)
    if rig.oracle.theirs:
        assert rig.run().code in (0, 1)  # what was set aside before is no news
        rig.oracle.check()
    elif not was_killed(run):
        # What had been replaced may lie staged again, until there is something to send.
        assert rig.run().code == 0
        rig.oracle.check()
    else:
        rig.run_clean()
    return was_killed(run)


def come_back(rig: Rig, one: Disk) -> None:
    one.cut()
    one.come_back()
    rig.oracle.check()


def delivered_and_cut(rig: Rig, one: Disk) -> None:
    fill(rig)
    one.flush()
    rig.run_clean()
    come_back(rig, one)
    rig.run_clean()


@pytest.mark.parametrize("place", PLACES)
def test_when_all_is_done(tmp_path: Path, place: str) -> None:
    with on_disk(tmp_path / "disk", place) as (rig, one):
        delivered_and_cut(rig, one)


@pytest.mark.needs("sshd", "ssh", "ssh-keygen")
def test_of_the_far_side(tmp_path: Path, sshd: Sshd) -> None:
    rig = Rig(tmp_path / "rig", sshd)
    with disk(rig.target) as one:
        delivered_and_cut(rig, one)


def test_one_that_comes_before_the_names_are_on_disk_is_seen(tmp_path: Path) -> None:
    """A test of these tests."""
    change = Change("transports/local.py", "fs.sync_directory(self._final.directory(directory))", "pass")
    rig = spoilt(tmp_path, change)
    with disk(rig.target) as one, pytest.raises(LossError, match="lost"):
        delivered_and_cut(rig, one)


@pytest.mark.parametrize(("call", "number"), [("renameat2", 5), ("fdatasync", 5), ("unlinkat", 3), ("fsync", 9)])
def test_in_the_middle(tmp_path: Path, call: str, number: int) -> None:
    with on_disk(tmp_path / "disk", "") as (rig, one):
        assert cut_at(rig, one, call, number, tmp_path / "log")


def cut_everywhere(base: Path, place: str, call: str, prepare: Callable[[Rig], None] = fill) -> None:
    log = base / "log"
    for number in count(1):
        assert number < MANY, "no run survives"
        with on_disk(base / str(number), place) as (rig, one):
            if not cut_at(rig, one, call, number, log, prepare):
                assert number > most_calls(log)
                break
    assert number > 1, f"no run makes the call {call}"


@pytest.mark.campaign
@pytest.mark.timeout(900)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("call", ["mkdirat", "renameat2", "fdatasync", "unlinkat", "fsync", "ftruncate"])
def test_at_each_step(tmp_path: Path, call: str, place: str) -> None:
    cut_everywhere(tmp_path, place, call)


@pytest.mark.campaign
@pytest.mark.timeout(900)
@pytest.mark.parametrize("place", ["", "spool", "target"])
@pytest.mark.parametrize(
    ("call", "prepare"),
    [
        ("renameat2", taken),
        ("fdatasync", taken),
        ("renameat", second_version),
        ("fsync", second_version),
        ("renameat2", test_kill_directories.fill),
        ("unlinkat", test_kill_directories.fill),
        ("fsync", test_kill_directories.fill),
        ("renameat2", test_kill_directories.second_version),
        ("fsync", test_kill_directories.second_version),
    ],
)
def test_at_each_step_of_what_is_rarer(
    tmp_path: Path, call: str, prepare: Callable[[Rig], None], place: str
) -> None:
    """Units that are set aside, new versions of a mirror, whole directories."""
    cut_everywhere(tmp_path, place, call, prepare)


# The call at which a run is held while the disk dies under it.
HELD = {"spool": ("renameat2", 1), "state": ("fdatasync", 5), "target": ("renameat2", 2)}


@pytest.mark.parametrize("place", HELD)
def test_a_disk_that_dies_under_a_run(tmp_path: Path, place: str) -> None:
    """From then on every call fails (EIO); the run ends by itself, says so, and takes nothing on faith."""
    with on_disk(tmp_path / "disk", place) as (rig, one):
        rig.write({"outgoing": {"retry_count": 0}})
        fill(rig)
        one.flush()
        call, number = HELD[place]
        log = rig.base / "strace.log"
        process = rig.start(under=strace(call, f"delay_enter=700000:when={number}", log=log))
        wait_for(lambda: log.exists() and log.read_text().count(f" {call}(") >= number, "the run to come so far")
        one.cut()
        run = finished(process)
        assert "DELAYED" in log.read_text()
        assert run.code in (1, 3), run.text
        assert "shows where" not in run.text
        assert not run.of("quarantined"), run.text
        one.come_back()
        rig.oracle.check()
        rig.run_clean()
