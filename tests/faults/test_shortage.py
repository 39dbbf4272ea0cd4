"""A host that has no more descriptors, threads or processes: the stream waits, and no unit is to blame."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil
import pytest

from mistamover.errors import Exit
from mistamover.testing.rig import small_disk
from tests.faults.rig import Rig, Run, finished, strace
from tests.faults.test_detectors import Change, planted
from tests.rsyncd import Rsyncd
from tests.sshd import wait_for

UNITS = 12
SHORT = "this host has too little left"


def fill(rig: Rig) -> None:
    rig.write(
        {"global": {"general_poll_interval": 0.05}, "outgoing": {"lanes": 2, "retry_count": 0, "retry_interval": 0}}
    )
    for number in range(UNITS):
        rig.oracle.put(f"{number % 3}/{number}", b"data" * 1000)


def is_harmless(rig: Rig, run: Run) -> bool:
    """Whether nothing was blamed or lost, and nothing told to a person as a fault of the program's own."""
    rig.oracle.check()
    assert not rig.oracle.quarantined(), run.text
    assert not run.of("quarantined"), run.text
    assert "--debug shows where" not in run.text
    return run.code == Exit.DONE


@pytest.mark.needs("strace")
def test_no_unit_is_to_blame_for_too_few_descriptors(local: Rig) -> None:
    fill(local)
    run = local.run(under=strace("openat", "error=EMFILE", paths=[local.spool / "0"]))
    assert not is_harmless(local, run)
    assert run.paths("waiting") == {f"0/{number}" for number in range(0, UNITS, 3)}
    assert "Too many open files" in run.reasons("waiting")
    local.run_clean()


@pytest.mark.campaign
@pytest.mark.timeout(300)
def test_few_descriptors_are_waited_for(either: Rig) -> None:
    """From as few as the interpreter needs to start, up to as many as a run needs."""
    fill(either)
    for number in (*range(8, 20), *range(20, 60, 4)):
        run = finished(either.start(under=["sh", "-c", f'ulimit -n {number}; exec "$@"', "sh"]))
        assert run.code in (Exit.DONE, Exit.UNFINISHED, Exit.TARGET), run.text
        if is_harmless(either, run):
            break
    either.run_clean()


@pytest.mark.needs("strace")
def test_a_host_that_gives_no_thread_is_waited_for(local: Rig) -> None:
    """The process goes on by itself once it may have some again."""
    fill(local)
    # The first thread is none of the stream's.
    process = local.start(under=strace("clone,clone3,fork,vfork", "error=EAGAIN:when=2..4"), once=False)
    try:
        wait_for(lambda: len(local.oracle.delivered()) == UNITS, "all to be delivered")
    finally:
        for ours in psutil.Process(process.pid).children():  # strace itself keeps such signals off
            ours.send_signal(signal.SIGTERM)
        run = finished(process)
    is_harmless(local, run)
    assert SHORT in run.text
    local.run_clean()


@pytest.mark.needs("strace", "rsync")
def test_no_unit_is_to_blame_where_there_is_no_room_for_what_rsync_reads(tmp_path: Path, rsyncd: Rsyncd) -> None:
    """Links to what is sent, in memory or on a disk of this host."""
    rig = Rig(tmp_path / "rig", rsyncd)
    fill(rig)
    run = rig.run(under=strace("symlink", "error=ENOSPC"))
    assert not is_harmless(rig, run)
    assert "No space left on device" in run.reasons("waiting")
    rig.run_clean()


@pytest.mark.needs("root", "mount", "umount", "rsync")
def test_a_host_without_room_in_memory_is_waited_for(tmp_path: Path, rsyncd: Rsyncd) -> None:
    """From room for one thing there, and one thing after the other."""
    memory = tmp_path / "memory"
    memory.mkdir()
    change = Change("transports/rsync_trees.py", 'MEMORY = Path("/dev/shm")', f'MEMORY = Path("{memory}")')
    rig = Rig(tmp_path / "rig", rsyncd, package=planted(tmp_path, change))
    fill(rig)
    short = 0
    for inodes in range(2, 60):
        with small_disk(memory, f"nr_inodes={inodes}"):
            run = rig.run()
        if is_harmless(rig, run):
            break
        short += SHORT in run.text
    assert short
    rig.run_clean()
