"""The real service over real stream files in a temporary directory, for tests of what an administrator does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from mistamover.processes import began_at
from tests.program import Result, command, ended, environment
from tests.sshd import wait_for


class Installed:
    """A global file, a directory of stream files, and the service that runs them."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.ini = top / "global.ini"
        self.streams = top / "streams"
        self.state = top / "state"
        self.pid_file = top / "mistamover.pid"
        self.streams.mkdir()
        self.configure()
        self._seen: set[tuple[int, float]] = set()

    def configure(self, more: str = "", *, poll_interval: float = 0.1) -> None:
        self.ini.write_text(
            f"[global]\nstate_dir = {self.state}\npid_file = {self.pid_file}\n"
            f"general_poll_interval = {poll_interval}\n{more}\n"
        )

    # -- streams ---------------------------------------------------------------------------------------------

    def spool(self, name: str) -> Path:
        return self.top / "spool" / name

    def target(self, name: str) -> Path:
        return self.top / "target" / name

    def add(self, name: str, outgoing: str = "", more: str = "", data_stream: str = "") -> Path:
        """Make or change a stream, from this directory to another one unless ``outgoing`` says otherwise."""
        for directory in (self.spool(name), self.target(name)):
            directory.mkdir(parents=True, exist_ok=True)
        protocol = "" if "transfer_protocol" in outgoing else "transfer_protocol = local\n"
        target = "" if "target_dir" in outgoing else f"target_dir = {self.target(name)}\n"
        interval = "" if "retry_interval" in outgoing else "retry_interval = 0.2\n"
        new = self.top / f"{name}.new"
        new.touch(mode=0o600)
        new.write_text(
            f"[data_stream]\ndirectory = {self.spool(name)}\nsettle_time = 0\n{data_stream}\n"
            f"[outgoing]\n{interval}{protocol}{target}{outgoing}\n{more}\n"
        )
        return new.replace(self.streams / f"{name}.ini")

    def put(self, name: str, path: str, content: bytes = b"some bytes") -> Path:
        """A file appears in a spool, whole."""
        file, new = self.spool(name) / path, self.top / "new"
        new.write_bytes(content)
        while True:
            file.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # the directory was just emptied, and pruned
                return new.replace(file)

    def arrived(self, name: str) -> set[str]:
        return self._files(self.target(name))

    def left(self, name: str) -> set[str]:
        return self._files(self.spool(name))

    @staticmethod
    def _files(directory: Path) -> set[str]:
        # os.walk goes on where a directory is removed under its hands.
        found = (Path(top, name).relative_to(directory) for top, _, names in os.walk(directory) for name in names)
        return {str(path) for path in found if path.parts[0] != ".mistamover" and path.name != ".stop"}

    # -- commands --------------------------------------------------------------------------------------------

    def popen(self, *arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command(*arguments, "--config", str(self.ini)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.top,
            env=environment(self.top) | (env or {}),
        )

    def run(self, *arguments: str, env: dict[str, str] | None = None) -> Result:
        return ended(self.popen(*arguments, env=env))

    def start(self, *, env: dict[str, str] | None = None) -> Result:
        result = self.run("start", env=env)
        self.note()
        return result

    def status(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.run("status", "--json").out)
        return told

    def stream(self, name: str) -> dict[str, Any]:
        """What the files that status reads say, without the start of a program for each look."""
        from mistamover import heartbeat
        from mistamover.cli import status

        rows = status.read(self.state, heartbeat.read_service(self.state))
        return next((status._members(row) for row in rows if row.name == name), {})

    @property
    def pid(self) -> int:
        with suppress(OSError, ValueError):
            return int(self.pid_file.read_text())
        return 0

    def workers(self) -> list[int]:
        from mistamover import heartbeat

        return [one.pid for one in heartbeat.read_service(self.state).streams.values() if one.pid]

    def note(self) -> None:
        """Remember the processes of now, to see that they are gone in the end."""
        self._seen |= {(pid, began_at(pid)) for pid in (self.pid, *self.workers()) if pid}

    def strays(self) -> list[int]:
        return [pid for pid, began in self._seen if began and began_at(pid) == began and not _is_zombie(pid)]

    @property
    def log(self) -> str:
        return "".join(path.read_text() for path in sorted((self.state / "log").glob("*.log")))

    def close(self) -> None:
        self.note()
        for pid in self.strays():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def until(condition: Callable[[], bool], what: str = "the service", deadline: float = 30.0) -> None:
    wait_for(condition, what, deadline)
