"""TERM, INT and HUP at each system call that changes what is on disk; and our own programs killed meanwhile."""

from __future__ import annotations

import os
import secrets
import signal
from itertools import count
from pathlib import Path

import psutil
import pytest

from tests.faults.oracle import Watcher
from tests.faults.relay import Relay
from tests.faults.rig import Rig, finished, strace
from tests.faults.test_kill import MANY, fill, most_calls, sweep
from tests.sshd import Sshd, wait_for

BIG = 2**20
A_PART = 60_000
ENDS = {"SIGTERM": {0, 130}, "SIGINT": {0, 130}, "SIGHUP": {0, -signal.SIGHUP, 128 + signal.SIGHUP}}
"""Codes of a run that gets a signal; one that nobody handles ends it as a kill does."""


@pytest.mark.needs("strace")
@pytest.mark.parametrize(
    ("name", "call", "numbers"),
    sweep(
        ("SIGTERM", "fsync", (6,)),
        ("SIGTERM", "renameat2", (4,)),
        ("SIGINT", "fdatasync", (7,)),
        ("SIGINT", "unlinkat", (3,)),
        ("SIGHUP", "fdatasync", (9,)),
        ("SIGHUP", "renameat2", (2,)),
    ),
)
def test_a_signal_at_any_step(tmp_path: Path, name: str, call: str, numbers: tuple[int, ...]) -> None:
    for number in numbers or count(1):
        assert number < MANY
        rig = Rig(tmp_path / str(number))
        fill(rig)
        log = rig.base / "strace.log"
        with Watcher(rig.oracle):
            run = rig.run(under=strace(call, f"signal={name}:when={number}", log=log))
        was_hit = f"--- {name} " in log.read_text()
        assert run.code in (ENDS[name] if was_hit else {0}), run.text
        assert "shows where" not in run.text
        assert not run.of("waiting"), run.text
        rig.oracle.check()
        rig.run_clean()
        if not was_hit:
            assert not numbers
            assert number > most_calls(log)
            break


@pytest.mark.needs("sshd", "ssh", "ssh-keygen", "rsync")
@pytest.mark.parametrize("connector", ["openssh", "rsync_ssh"])
def test_a_program_of_ours_is_killed(tmp_path: Path, sshd: Sshd, relay: Relay, connector: str) -> None:
    """As by the kernel, where memory has run out."""
    relay.rate = BIG / 30
    rig = Rig(tmp_path / "rig", sshd, connector, relay.own_port)
    rig.write({"outgoing": {"retry_count": 3}})
    rig.oracle.put("big", secrets.token_bytes(BIG))
    process = rig.start()
    with Watcher(rig.oracle):
        wait_for(lambda: relay.carried > A_PART, "a part to be sent")
        programs = psutil.Process(process.pid).children(recursive=True)
        victim = next(one for one in programs if one.name() == ("rsync" if connector == "rsync_ssh" else "ssh"))
        os.kill(victim.pid, signal.SIGKILL)
        relay.rate = float("inf")
        run = finished(process)
    assert run.code == 0, run.text
    assert "trying again" in run.reasons("target"), run.text
    rig.oracle.check_delivered()
