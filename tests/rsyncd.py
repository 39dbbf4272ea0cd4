"""A real rsync daemon on loopback whose one module is the whole file system."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.needs import find
from tests.sshd import free_port, is_gone, wait_for

MODULE = "all"
USER = "mover"
PASSWORD = "open-sesame-7f3a"


@dataclass
class Rsyncd:
    """A running daemon."""

    directory: Path
    port: int = 0
    host: str = "127.0.0.1"
    extra: Sequence[str] = ()
    """More lines of the module in rsyncd.conf(5)."""
    under: Sequence[str] = ()
    """A program and its arguments that runs it, such as strace."""
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def log(self) -> Path:
        return self.directory / "rsyncd.log"

    def start(self) -> None:
        """Serve, again if it was stopped: on the same port."""
        self.port = self.port or free_port()
        secrets = self.directory / "secrets"
        secrets.touch(mode=0o600)
        secrets.write_text(f"{USER}:{PASSWORD}\n")
        config = self.directory / "rsyncd.conf"
        me = ["uid = 0", "gid = 0"] if os.geteuid() == 0 else []
        lines = ["use chroot = no", *me, f"log file = {self.log}", f"[{MODULE}]", "path = /", "read only = no"]
        lines += [f"auth users = {USER}", f"secrets file = {secrets}", *self.extra]
        config.write_text("\n".join([*lines, ""]))
        command = [*self.under, find("rsync") or "rsync", "--daemon", "--no-detach", f"--config={config}"]
        command += [f"--port={self.port}", f"--address={self.host}"]
        self.log.touch()
        seen = self.log.stat().st_size
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        wait_for(lambda: b"starting" in self.log.read_bytes()[seen:], "the rsync daemon to serve")
        wait_for(self._answers, "the rsync daemon to answer")

    def _answers(self) -> bool:
        import socket

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
def running_rsyncd(directory: Path, extra: Sequence[str] = (), under: Sequence[str] = ()) -> Iterator[Rsyncd]:
    """Run a daemon until the end of the block."""
    server = Rsyncd(directory, extra=extra, under=under)
    server.start()
    try:
        yield server
    finally:
        server.stop()
