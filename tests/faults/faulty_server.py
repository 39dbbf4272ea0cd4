"""A real sshd whose sftp-server meets real faults: system calls that fail, files that may not grow."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from mistamover.testing.needs import find
from tests.sshd import Sshd, sftp_server


@dataclass
class FaultyServer:
    """Sessions that begin after :meth:`arm` meet the fault, until :meth:`disarm`."""

    sshd: Sshd
    directory: Path
    log: Path = Path(os.devnull)
    """What strace saw of the session that was armed last."""
    _numbers: count[int] = field(default_factory=count)

    def arm(
        self,
        calls: str,
        injection: str = "",
        *,
        paths: tuple[Path, ...] = (),
        limit: str = "true",
        options: tuple[str, ...] = (),
        once: bool = False,
    ) -> None:
        """Have strace do something at system calls of the sftp-server; ``once``: in the next session only."""
        self.log = self.directory / f"strace-{next(self._numbers)}.log"
        argv = [find("strace") or "strace", "-f", "-y", "-o", str(self.log), "-e", f"trace={calls}", *options]
        if injection:
            argv += ["-e", f"inject={calls}:{injection}"]
        for path in paths:
            argv += ["-P", str(path)]
        self.arm_with(f"{limit}; exec {shlex.join(argv)} {sftp_server()}", once=once)

    def arm_with(self, script: str, *, once: bool = False) -> None:
        """Have a session run these shell commands; if they do not exec, the sftp-server comes next."""
        disarm = f"rm -f {_fault(self.directory)};" if once else ""
        new = self.directory / "new"
        new.write_text(f"{disarm} {script}\n")
        os.rename(new, _fault(self.directory))

    def disarm(self) -> None:
        _fault(self.directory).unlink(missing_ok=True)

    @property
    def seen(self) -> str:
        """What is in the log so far. A call that is under way is there without its result."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def _fault(directory: Path) -> Path:
    return directory / "fault.sh"


def write_wrapper(directory: Path) -> Path:
    """The subsystem of the server."""
    wrapper = directory / "sftp-server.sh"
    wrapper.write_text(
        f"#!/bin/sh\nif [ -e {_fault(directory)} ]; then . {_fault(directory)}; fi\nexec {sftp_server()}\n"
    )
    wrapper.chmod(0o755)
    return wrapper
