"""TERM and INT in the middle of work, stop files, and two that want the same spool."""

from __future__ import annotations

import secrets
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.faults.oracle import Watcher
from tests.faults.relay import Cut, Fault, Relay
from tests.faults.rig import Rig, finished, strace, was_killed
from tests.sshd import Sshd, wait_for

BIG = 4 * 2**20
A_PART = 60_000
"""Bytes: more than the log-in takes."""
SOON = 15.0
"""Seconds within which a run has to end that was told to."""


@pytest.fixture(params=["openssh", pytest.param("paramiko", marks=pytest.mark.campaign)])
def slow(request: pytest.FixtureRequest, tmp_path: Path, sshd: Sshd, relay: Relay) -> Rig:
    """A stream over a wire that would need a minute for what it is to carry."""
    relay.rate = BIG / 60
    return Rig(tmp_path / "rig", sshd, request.param, relay.own_port)


def programs_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def are_gone(programs: list[psutil.Process]) -> bool:
    return not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in programs)


@pytest.mark.needs("sshd", "ssh", "ssh-keygen")
@pytest.mark.parametrize(("number", "once"), [(signal.SIGTERM, True), (signal.SIGINT, False)])
def test_a_large_file_on_its_way_is_parked(slow: Rig, relay: Relay, number: signal.Signals, once: bool) -> None:
    slow.write({"outgoing": {"stop_timeout": 0.3}})
    slow.oracle.put("big", secrets.token_bytes(BIG))
    process = slow.start(once=once)
    with Watcher(slow.oracle):
        wait_for(lambda: relay.carried > A_PART, "a part to be sent")
        programs = programs_of(process)
        process.send_signal(number)
        run = finished(process, SOON)
    assert run.code == 130, run.text
    assert are_gone(programs)
    assert not slow.oracle.delivered()
    assert (slow.spool / "big").exists()
    slow.oracle.check()
    relay.rate = float("inf")
    slow.run_clean()


@pytest.mark.needs("sshd", "ssh", "ssh-keygen")
def test_small_files_on_their_way_are_parked_or_delivered(slow: Rig, relay: Relay) -> None:
    slow.write({"outgoing": {"stop_timeout": 0.3}})
    for number in range(60):
        slow.oracle.put(f"small-{number}", secrets.token_bytes(BIG // 60))
    process = slow.start()
    with Watcher(slow.oracle):
        wait_for(lambda: relay.carried > A_PART, "a part to be sent")
        process.terminate()
        run = finished(process, SOON)
    assert run.code == 130, run.text
    slow.oracle.check()
    assert not run.of("waiting"), run.text
    relay.rate = float("inf")
    slow.run_clean()


@pytest.mark.needs("sshd", "ssh", "ssh-keygen")
def test_what_is_on_its_way_may_end(slow: Rig, relay: Relay) -> None:
    slow.write({"outgoing": {"stop_timeout": 30}})
    slow.oracle.put("big", secrets.token_bytes(BIG))
    process = slow.start()
    wait_for(lambda: relay.carried > A_PART, "a part to be sent")
    process.terminate()
    relay.rate = float("inf")
    run = finished(process, SOON)
    assert run.code == 130, run.text
    slow.oracle.check_delivered()


@pytest.mark.needs("sshd", "ssh", "ssh-keygen")
def test_the_second_signal_ends_at_once(slow: Rig, relay: Relay) -> None:
    slow.write({"outgoing": {"stop_timeout": 60}})
    slow.oracle.put("big", secrets.token_bytes(BIG))
    process = slow.start()
    wait_for(lambda: relay.carried > A_PART, "a part to be sent")
    programs = programs_of(process)
    process.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.terminate()
    run = finished(process, 3)
    assert run.code == 130, run.text
    slow.oracle.check()
    relay.rate = float("inf")
    wait_for(lambda: are_gone(programs), "its ssh to end")
    slow.run_clean()


@pytest.mark.needs("sshd", "ssh", "ssh-keygen")
def test_a_killed_one_leaves_no_program_behind(slow: Rig, relay: Relay) -> None:
    slow.oracle.put("big", secrets.token_bytes(BIG))
    process = slow.start()
    wait_for(lambda: relay.carried > A_PART, "a part to be sent")
    programs = programs_of(process)
    process.kill()
    assert was_killed(finished(process))
    relay.rate = float("inf")
    wait_for(lambda: are_gone(programs), "its ssh to end")
    slow.oracle.check()
    slow.run_clean()


@pytest.mark.needs("sshd", "ssh", "ssh-keygen")
def test_a_stop_while_the_log_in_hangs(slow: Rig, relay: Relay) -> None:
    slow.write({"sftp": {"connect_timeout": 3, "stall_timeout": 3}})
    slow.oracle.put("file", b"file")
    relay.faults.append(Fault(Cut.STALL, there=30))
    process = slow.start()
    wait_for(lambda: relay.connections > 0, "a connection")
    process.terminate()
    run = finished(process, SOON)
    assert run.code == 130, run.text
    relay.rate = float("inf")
    slow.run_clean()


@pytest.mark.needs("strace")
def test_a_large_file_to_this_host_is_parked(local: Rig) -> None:
    local.write({"outgoing": {"stop_timeout": 0.1}})
    local.oracle.put("big", secrets.token_bytes(BIG))
    log = local.base / "strace.log"
    process = local.start(under=strace("readv", "delay_enter=200000", log=log))
    with Watcher(local.oracle):
        wait_for(lambda: log.exists() and log.read_text().count("readv(") > 2, "a part to be sent")
        # To the program that strace runs, as somebody would who finds it in a list.
        (program,) = psutil.Process(process.pid).children()
        program.terminate()
        run = finished(process, SOON)
    assert run.code == 130, run.text
    assert not local.oracle.delivered()
    local.oracle.check()
    local.run_clean()


# -- stop files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_target", [False, True], ids=["spool", "target"])
def test_a_stop_file_pauses(rig: Rig, at_target: bool) -> None:
    stop = (rig.target if at_target else rig.spool) / ".stop"
    stop.touch()
    rig.oracle.put("file", b"file")
    run = rig.run()
    assert run.code == 5, run.text
    assert not rig.oracle.delivered()
    assert not rig.oracle.staged()
    assert (rig.spool / "file").exists()
    stop.unlink()
    rig.run_clean()


def test_a_stop_file_that_cannot_be_looked_for_stops(local: Rig) -> None:
    # A link that leads nowhere, or one that loops, is there all the same.
    (local.target / ".stop").symlink_to(".stop")
    local.oracle.put("file", b"file")
    assert local.run().code == 5


@pytest.mark.needs("strace")
@pytest.mark.parametrize("at_target", [False, True], ids=["spool", "target"])
def test_a_stop_file_that_comes_in_the_middle(local: Rig, at_target: bool) -> None:
    # More than go in one batch: the first is on its way when the stop file comes, and still is when the target is
    # due to be looked at again (lane.LOOK_EVERY).
    for number in range(1100):
        local.oracle.put(f"file-{number}", b"%d" % number)
    log = local.base / "strace.log"
    process = local.start(under=strace("readv", "delay_enter=1500000:when=2", log=log))
    wait_for(lambda: log.exists() and log.read_text().count("readv(") > 1, "the first to be on its way")
    stop = (local.target if at_target else local.spool) / ".stop"
    stop.touch()
    run = finished(process)
    assert run.code == 5, run.text
    assert 0 < len(local.oracle.delivered()) < 1100
    local.oracle.check()
    stop.unlink()
    local.run_clean()


# -- two at once ---------------------------------------------------------------------------------------------


def test_the_second_of_two_is_sent_away(either: Rig, tmp_path: Path) -> None:
    for number in range(20):
        either.oracle.put(f"file-{number}", secrets.token_bytes(3000))
    first = either.start(once=False)
    lock = either.spool / ".mistamover/lock"
    wait_for(lock.exists, "the first to hold the spool")
    run = either.run()
    assert run.code == 4, run.text
    # Neither does another stream with a ledger of its own get the spool.
    state, either.state = either.state, tmp_path / "other-state"
    either.write()
    run = either.run()
    assert run.code == 4, run.text
    either.state = state
    either.write()
    wait_for(lambda: len(either.oracle.delivered()) == 20, "all to be delivered")
    first.terminate()
    assert finished(first, SOON).code == 0
    either.oracle.check_delivered()


def test_many_at_once(any_way: Rig) -> None:
    for number in range(200):
        any_way.oracle.put(f"{number % 7}/file-{number}", secrets.token_bytes(3000))
    with Watcher(any_way.oracle):
        runs = [finished(process) for process in [any_way.start() for _ in range(5)]]
    assert {run.code for run in runs} <= {0, 4}
    assert [run.code for run in runs].count(0) >= 1
    any_way.run_clean()


def test_two_streams_to_one_target(any_way: Rig, tmp_path: Path) -> None:
    other = Rig(tmp_path / "other", any_way.server)
    other.target = any_way.target
    other.oracle.target = any_way.target
    other.write()
    for number in range(50):
        any_way.oracle.put(f"ours-{number}", secrets.token_bytes(3000))
        other.oracle.put(f"theirs-{number}", secrets.token_bytes(3000))
    same = secrets.token_bytes(5000)
    any_way.oracle.put("same", same)
    other.oracle.put("same", same)
    runs = [finished(process) for process in [any_way.start(), other.start()]]
    assert [run.code for run in runs] == [0, 0], [run.text for run in runs]
    for ours, theirs in ((any_way.oracle, other.oracle), (other.oracle, any_way.oracle)):
        ours.theirs = {name: value for name, value in theirs.owed.items() if name != "same"}
        ours.check_delivered()
