"""A daemon that a test starts, and whose sessions it may hurt."""

from __future__ import annotations

import signal
import socket
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import psutil

from tests.sshd import free_port, is_gone, wait_for

_Daemon = TypeVar("_Daemon", bound="Daemon")


@dataclass
class Daemon(ABC):
    """A server on loopback with a process for each session."""

    directory: Path
    """Where its files are."""
    port: int = 0
    host: str = "127.0.0.1"
    extra: Sequence[str] = ()
    """More lines of its configuration."""
    under: Sequence[str] = ()
    """A program and its arguments that runs it, such as strace."""
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def log(self) -> Path:
        return self.directory / "log"

    @property
    def config(self) -> Path:
        return self.directory / "config"

    @abstractmethod
    def prepare(self) -> Sequence[str]:
        """Write its files; gives the command that runs it in the foreground."""

    def start(self) -> None:
        """Serve, again if it was stopped: on the same port."""
        self.port = self.port or free_port()
        command = [*self.under, *self.prepare()]
        with (self.directory / "output").open("ab") as output:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            wait_for(self._answers, f"{command[0]} to answer")
        except BaseException:
            self.stop()
            raise

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection((self.host, self.port), 1):
            return True
        return False

    def stop(self) -> None:
        """End it and all that it serves."""
        if self._process is not None:
            self.kill_sessions()
            self._process.kill()
            self._process.wait()
            self._process = None

    def sessions(self) -> list[psutil.Process]:
        """The processes that serve somebody."""
        if self._process is None:
            return []
        children = psutil.Process(self._process.pid).children(recursive=True)
        return [process for process in children if not is_gone(process)]

    def kill_sessions(self) -> int:
        return self._signal(signal.SIGKILL)

    def freeze_sessions(self) -> int:
        return self._signal(signal.SIGSTOP)

    def thaw_sessions(self) -> int:
        return self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> int:
        processes = self.sessions()
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        if number is signal.SIGKILL:
            wait_for(lambda: all(map(is_gone, processes)), "killed sessions to be gone")
        return len(processes)


@contextmanager
def running(daemon: _Daemon) -> Iterator[_Daemon]:
    """Run it until the end of the block."""
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.stop()
