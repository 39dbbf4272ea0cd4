"""What the service costs: idle streams, starting very many, busy ones beside each other.

python -m benchmarks.service [idle] [many] [busy]
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from benchmarks.movers import program
from benchmarks.rig import Rig, rig

IDLE, PAUSED_FILES, WATCHED = 100, 100, 30.0
CPU_GOAL, PSS_GOAL_MB = 3.0, 12.0
MANY, START_GOAL, STATUS_GOAL = 1000, 60.0, 1.0
BUSY, BUSY_FILES, BUSY_BYTES = 8, 200, 4 * 2**20


class Installation:
    """A service in a directory."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.ini = top / "global.ini"
        (top / "streams").mkdir()
        self.ini.write_text(f"[global]\nstate_dir = {top}/state\npid_file = {top}/pid\n")

    def add(self, name: str, outgoing: str = "transfer_protocol = local", more: str = "") -> Path:
        """A stream of 3 s polls; gives its spool."""
        spool, target = self.top / "spool" / name, self.top / "target" / name
        for directory in (spool, target):
            directory.mkdir(parents=True, exist_ok=True)
        path = self.top / "streams" / f"{name}.ini"
        path.touch(mode=0o600)
        path.write_text(
            f"[data_stream]\ndirectory = {spool}\nsettle_time = 0\n"
            f"[outgoing]\n{outgoing}\ntarget_dir = {target}\n{more}\n"
        )
        return spool

    def run(self, *arguments: str) -> float:
        """Seconds that a command takes."""
        began = time.monotonic()
        done = subprocess.run(
            [program(), *arguments, "--config", str(self.ini)], stdout=subprocess.PIPE, check=False, text=True
        )
        if done.returncode > 1:
            sys.exit(f"{arguments[0]} ended with code {done.returncode}: {done.stdout}")
        return time.monotonic() - began

    def processes(self) -> list[psutil.Process]:
        """The supervisor and its workers."""
        supervisor = psutil.Process(int((self.top / "pid").read_text()))
        return [supervisor, *supervisor.children()]


@contextmanager
def installation() -> Iterator[Installation]:
    """A service that is stopped at the end."""
    with tempfile.TemporaryDirectory(prefix="mistamover-bench-") as top:
        one = Installation(Path(top))
        try:
            yield one
        finally:
            one.run("stop")


def idle() -> None:
    """Paused streams: all processor time, and the memory of each worker."""
    with installation() as one:
        for number in range(IDLE):
            spool = one.add(f"s{number}")
            for file in range(PAUSED_FILES):
                (spool / str(file)).touch()
            (spool / ".stop").touch()
        one.run("start")
        time.sleep(5)
        processes = one.processes()
        before = sum(sum(each.cpu_times()[:2]) for each in processes)
        time.sleep(WATCHED)
        used = sum(sum(each.cpu_times()[:2]) for each in processes) - before
        pss = [each.memory_full_info().pss / 1e6 for each in processes[1:]]
        print(f"{IDLE} paused streams: {100 * used / WATCHED:.2f} % of a core (goal {CPU_GOAL:g} %)")
        print(f"  PSS of a worker: {statistics.median(pss):.1f}, at most {max(pss):.1f} MB (goal {PSS_GOAL_MB:g})")


def many() -> None:
    """Very many stream files: until all are up, and until status has told of them."""
    with installation() as one:
        for number in range(MANY):
            one.add(f"s{number}")
        print(f"{MANY:,} streams: started in {one.run('start'):.1f} s (goal {START_GOAL:g} s)")
        told = statistics.median(one.run("status") for _ in range(3))
        print(f"  status over them: {told:.2f} s (goal {STATUS_GOAL:g} s)")
        print(f"  stopped in {one.run('stop'):.1f} s")


def busy() -> None:
    """Streams to one sshd: bytes a second of one alone, and of several together."""
    with rig() as place:
        alone = _rate(place, 1)
        together = _rate(place, BUSY)
        print(
            f"1 stream over SFTP: {alone:.0f} MB/s; {BUSY} together: {together:.0f}, {together / alone:.2f} of it"
        )


def _rate(place: Rig, streams: int) -> float:
    """Megabytes a second that so many streams move together, from the start of the service to the last file."""
    server = place.server
    with installation() as one:
        content = os.urandom(BUSY_BYTES)
        for number in range(streams):
            name = f"s{number}"
            target = place.target / name
            spool = one.add(
                name,
                f"transfer_protocol = sftp\ntarget_host = {server.host}",
                f"[sftp]\nport = {server.port}\nusername = {server.username}\n"
                f"key_file = {server.key_file}\nknown_hosts = {server.known_hosts}",
            )
            path = one.top / "streams" / f"{name}.ini"
            path.write_text(
                path.read_text().replace(f"target_dir = {one.top}/target/{name}", f"target_dir = {target}")
            )
            target.mkdir(parents=True)
            os.chown(target, place.account.uid, -1)
            for file in range(BUSY_FILES * BUSY // streams):
                (spool / str(file)).write_bytes(content)
        began = time.monotonic()
        one.run("start")
        while any(path.is_file() for path in one.top.glob("spool/*/*")):
            time.sleep(0.05)
        seconds = time.monotonic() - began
        for number in range(streams):
            subprocess.run(["rm", "-rf", str(place.target / f"s{number}")], check=True)
        return BUSY_FILES * BUSY * BUSY_BYTES / 1e6 / seconds


if __name__ == "__main__":
    for measure in sys.argv[1:] or ["idle", "many", "busy"]:
        {"idle": idle, "many": many, "busy": busy}[measure]()
