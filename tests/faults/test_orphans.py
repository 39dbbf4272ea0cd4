"""What a run has started ends with it, at whatever moment it is killed."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from mistamover.testing.needs import find
from tests.faults.relay import Cut, Fault, Relay
from tests.faults.rig import Rig
from tests.program import ROOT
from tests.sshd import Sshd, is_gone, wait_for

# Kills who started it before the kernel could know that this is to be told of, and only then is setpriv.
LATE = """#!/bin/sh
parent=$PPID
kill -KILL $parent
while grep -q "^PPid:.$parent\\$" /proc/$$/status; do :; done
exec {setpriv} "$@"
"""
STARTS = """
import subprocess
from mistamover.processes import guarded
subprocess.run([*guarded(), "sh", "-c", "echo $$; exec sleep 600"], pass_fds=[{output}], stdout={output})
"""


@pytest.mark.needs("setpriv")
def test_who_died_before_the_program_began(tmp_path: Path) -> None:
    """The kernel tells of no death that is past: a program that comes too late does not begin at all."""
    late = tmp_path / "setpriv"
    late.write_text(LATE.format(setpriv=find("setpriv")))
    late.chmod(0o755)
    reading, writing = os.pipe()
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    starts = [sys.executable, "-c", STARTS.format(output=writing)]
    process = subprocess.Popen(starts, env=environment, pass_fds=[writing])
    os.close(writing)
    assert process.wait(30) == -signal.SIGKILL
    # The end of the pipe is the end of the last process that holds it.
    assert select.select([reading], [], [], 30)[0]
    number = os.read(reading, 20)
    os.close(reading)
    if number:
        os.kill(int(number), signal.SIGKILL)
    assert number == b""


@pytest.mark.needs("setpriv", "sshd", "ssh", "rsync")
@pytest.mark.parametrize("connector", ["openssh", "rsync_ssh"])
def test_a_program_that_waits_for_a_dead_line(tmp_path: Path, sshd: Sshd, connector: str) -> None:
    """Nothing comes from there that would end it."""
    with Relay(sshd.port, [Fault(Cut.STALL, there=40_000)] * 9) as relay:
        rig = Rig(tmp_path / "rig", sshd, connector, port=relay.own_port)
        rig.write()
        rig.oracle.put("file", os.urandom(2**20))
        process = rig.start()
        wait_for(lambda: relay.cuts > 0, "the line to be dead")
        started = psutil.Process(process.pid).children(recursive=True)
        assert started
        process.kill()
        process.communicate()
        wait_for(lambda: all(map(is_gone, started)), "all that it started to be gone", deadline=5)
