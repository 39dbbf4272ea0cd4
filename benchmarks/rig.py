"""The place of a benchmark: two tmpfs, a temporary account, a server on loopback; all gone at the end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Timer
from time import monotonic

from benchmarks.data import MIB
from benchmarks.relay import line_to
from tests.daemon import running
from tests.ftpd import Proftpd
from tests.rsyncd import Rsyncd
from tests.sshd import Account, Sshd, running_sshd, temporary_account

FAR_HOST = "127.0.0.2"
"""Where the long line to the FTP server begins: each of its passive ports has to be the same at both ends."""
PASSIVE_PORTS = range(21000, 21100)
LONGEST = 900.0
"""Seconds after which a command counts as hung."""


@dataclass(frozen=True)
class Rig:
    """Where a run reads and writes, and whom it logs in to."""

    scratch: Path
    """On disk: configuration, state and the output of commands."""
    near: Path
    far: Path
    account: Account
    server: Sshd
    distant_server: Sshd
    """The same one, at the end of a long line."""
    daemon: Rsyncd
    ftp_server: Proftpd
    distant_ftp_server: Proftpd

    def at_a_distance(self) -> Rig:
        """The same place, reached through the long line."""
        return replace(self, server=self.distant_server, ftp_server=self.distant_ftp_server)

    @property
    def spool(self) -> Path:
        """Where each run finds its files."""
        return self.near / "spool"

    @property
    def target(self) -> Path:
        """Where each run puts them."""
        return self.far / "target"

    @property
    def state(self) -> Path:
        """Our ledger: on disk, since an fsync on tmpfs costs nothing."""
        return self.scratch / "state"

    def environment(self) -> dict[str, str]:
        """Return the surroundings of all commands: no settings of the person who runs this."""
        return {"PATH": os.environ["PATH"], "HOME": str(self.scratch / "home"), "LANG": "C.UTF-8"}

    def clear(self) -> None:
        """Forget the last run."""
        for path in (self.spool, self.target, self.state):
            shutil.rmtree(path, ignore_errors=True)
        self.spool.mkdir()
        self.target.mkdir()
        os.chown(self.target, self.account.uid, -1)

    def lay(self, master: Path) -> None:
        """Put a copy of a set into the spool, and nothing into the target."""
        self.clear()
        subprocess.run(["cp", "-a", f"{master}/.", str(self.spool)], check=True)


@contextmanager
def rig() -> Iterator[Rig]:
    """Set the place up, and take it down whatever happens (a second Ctrl-C does not stop that)."""
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mistamover-bench-")))
        scratch.chmod(0o755)  # the account has to pass through it
        (scratch / "home").mkdir()
        near = stack.enter_context(_tmpfs(scratch / "near"))
        far = stack.enter_context(_tmpfs(scratch / "far"))
        account = stack.enter_context(temporary_account())
        server = stack.enter_context(running_sshd(scratch / "sshd", account=account))
        distant = replace(server, port=stack.enter_context(line_to(server.port)))
        server.write_known_hosts(distant.port)
        stack.callback(signal.signal, signal.SIGINT, signal.SIG_IGN)
        (scratch / "rsyncd").mkdir()
        daemon = stack.enter_context(running(Rsyncd(scratch / "rsyncd")))
        ftp_server = stack.enter_context(_ftp_server(scratch / "proftpd"))
        few = f"PassivePorts {PASSIVE_PORTS[0]} {PASSIVE_PORTS[-1]}"
        behind = stack.enter_context(_ftp_server(scratch / "distant-proftpd", few))
        line = stack.enter_context(line_to(behind.port, host=FAR_HOST, besides=PASSIVE_PORTS))
        distant_ftp = replace(behind, host=FAR_HOST, port=line)
        yield Rig(scratch, near, far, account, server, distant, daemon, ftp_server, distant_ftp)


@contextmanager
def _ftp_server(directory: Path, *extra: str) -> Iterator[Proftpd]:
    directory.mkdir()
    as_root = ["<IfModule mod_cap.c>", "CapabilitiesEngine off", "</IfModule>"]
    with running(Proftpd(directory, extra=[*as_root, *extra])) as server:
        yield server


@contextmanager
def _tmpfs(path: Path) -> Iterator[Path]:
    path.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0755", "mistamover-bench", str(path)], check=True)
        yield path
    finally:
        # Lazily: what was killed a moment ago may still hold a file.
        subprocess.run(["umount", "--lazy", str(path)], check=False)


@dataclass(frozen=True)
class Run:
    """What one command cost."""

    seconds: float
    peak_mib: float
    """Of the largest of its processes."""
    failed: str | None = None


def run(command: Sequence[str], environment: Mapping[str, str], output: Path) -> Run:
    """Run a command to its end; its own fault, a signal or a hang is told in ``failed``."""
    with output.open("wb") as out:
        began = monotonic()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=environment,
            # A group of its own, to be ended as a whole.
            start_new_session=True,
        )
        status, peak = _wait(process)
        seconds = monotonic() - began
    return Run(seconds, peak / MIB, _verdict(status, output))


def _wait(process: subprocess.Popen[bytes]) -> tuple[int, int]:
    """Return a command's exit status, and its peak of memory in bytes."""
    limit = Timer(LONGEST, os.killpg, (process.pid, signal.SIGKILL))
    limit.start()
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    finally:
        limit.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss * 1024


def _verdict(status: int, output: Path) -> str | None:
    if not status:
        return None
    last = output.read_text(errors="replace").strip().splitlines()[-3:]
    return " | ".join([f"exit {status}", *last])
