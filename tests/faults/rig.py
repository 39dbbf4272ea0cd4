"""A stream with its spool, target and ledger, run by the real command line in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import psutil

import mistamover
from mistamover.testing.needs import find
from tests.faults import kills
from tests.faults.oracle import Oracle
from tests.faults.zygote import environment, zygote
from tests.ftpd import PASSWORD as FTP_PASSWORD
from tests.ftpd import USER as FTP_USER
from tests.ftpd import Proftpd
from tests.rsyncd import MODULE, PASSWORD, USER, Rsyncd
from tests.sshd import Sshd, wait_for

PACKAGE = Path(mistamover.__file__).parent
DEADLINE = 60.0
"""Seconds that a run may take; it takes less than one where nothing is wrong."""
NAME = "faults"

_number = count()

Options = Mapping[str, Mapping[str, object]]
Server = Sshd | Rsyncd | Proftpd


@dataclass(frozen=True)
class Run:
    """What came of a run."""

    code: int
    events: list[dict[str, Any]]
    text: str
    """All that it printed, for messages of failing tests and to look for words in."""

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == kind]

    def paths(self, kind: str) -> set[str]:
        return {event["path"] for event in self.of(kind)}

    def reasons(self, kind: str) -> str:
        return "\n".join(event["reason"] for event in self.of(kind))


@dataclass
class Rig:
    """Where a test moves files. ``server`` makes it a stream over SFTP, by rsync, or by FTP."""

    base: Path
    server: Server | None = None
    connector: str = "openssh"
    """Of SFTP; "rsync_ssh" for rsync over ssh."""
    port: int | None = None
    """Of a relay before the server."""
    package: Path = PACKAGE.parent
    """The directory that holds the package to run: ours, or a copy with a fault planted in it."""
    spool: Path = field(init=False)
    target: Path = field(init=False)
    state: Path = field(init=False)
    oracle: Oracle = field(init=False)

    def __post_init__(self) -> None:
        self.spool, self.state = self.base / "spool", self.base / "state"
        self.target = (
            self.server.root / f"target-{os.getpid()}-{next(_number)}"
            if isinstance(self.server, Sshd)
            else self.base / "target"
        )
        for directory in (self.spool, self.state, self.target):
            directory.mkdir(parents=True)
        self.oracle = Oracle(self.spool, self.target, self.state / NAME / "ledger.sqlite")
        self.write()

    @property
    def stream(self) -> Path:
        return self.base / f"{NAME}.ini"

    @property
    def staging(self) -> Path:
        return self.target / ".mistamover" / NAME

    def write(self, options: Options | None = None) -> None:
        """Write the stream file anew, with these options added to those that every test needs."""
        sections: dict[str, dict[str, object]] = {
            "global": {"state_dir": self.state},
            "data_stream": {"name": NAME, "directory": self.spool, "settle_time": 0},
            "outgoing": {"target_dir": self.target, "lanes": 1, "retry_interval": 0},
        }
        for section, values in (*self._far_side().items(), *(options or {}).items()):
            sections.setdefault(section, {}).update(values)
        self.oracle.mirror = sections["outgoing"].get("transfer_mode") == "mirror"
        self.stream.write_text("".join(_section(name, values) for name, values in sections.items() if values))

    def _far_side(self) -> Options:
        """The options that lead to the server."""
        if self.server is None:
            return {"outgoing": {"transfer_protocol": "local"}}
        port = self.port or self.server.port
        host = {"target_host": self.server.host}
        if isinstance(self.server, Rsyncd):
            self.stream.touch(mode=0o600)
            return {
                "outgoing": {"transfer_protocol": "rsync_native", "target_dir": f"{MODULE}{self.target}", **host},
                "rsync_native": {"port": port, "username": USER, "password": PASSWORD},
            }
        if isinstance(self.server, Proftpd):
            self.stream.touch(mode=0o600)
            return {
                "outgoing": {"transfer_protocol": "ftp", **host},
                "ftp": {"port": port, "username": FTP_USER, "password": FTP_PASSWORD},
            }
        protocol, more = (
            ("rsync_ssh", {}) if self.connector == "rsync_ssh" else ("sftp", {"connector": self.connector})
        )
        log_in = {
            "port": port,
            "username": self.server.username,
            "key_file": self.server.key_file,
            "known_hosts": self._known_hosts(self.server),
        }
        return {"outgoing": {"transfer_protocol": protocol, **host}, protocol: {**log_in, **more}}

    def _known_hosts(self, server: Sshd) -> Path:
        if self.port is None:
            return server.known_hosts
        key = " ".join(Path(f"{server.host_key}.pub").read_text().split()[:2])
        file = self.base / "known_hosts"
        file.write_text(f"[{server.host}]:{self.port} {key}\n")
        return file

    @property
    def protocol(self) -> str:
        return str(self._far_side()["outgoing"]["transfer_protocol"])

    # -- runs ----------------------------------------------------------------------------------------------

    def start(self, *, under: Sequence[str] = (), once: bool = True) -> subprocess.Popen[bytes]:
        """Begin a run; ``under`` is a program and its arguments that runs it, such as strace."""
        return subprocess.Popen(
            [*under, sys.executable, "-m", "mistamover", *self._arguments(once=once)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.base,
            env=environment(self.package),
        )

    def _arguments(self, *, once: bool) -> list[str]:
        return ["run", *(["--once"] if once else []), "--json", str(self.stream)]

    def run(self, *, under: Sequence[str] = ()) -> Run:
        """One pass, to its end."""
        if under or self.package != PACKAGE.parent:
            run = finished(self.start(under=under))
            if was_killed(run):
                kills.note(self.protocol)
            return run
        return _run(*zygote(self.package).run(self._arguments(once=True), self.base, DEADLINE))

    def run_clean(self) -> Run:
        """A run in which nothing is wrong: afterwards everything is delivered, and nothing left anywhere."""
        run = self.run()
        assert run.code == 0, run.text
        self.oracle.check_delivered()
        return run


def _section(name: str, values: Mapping[str, object]) -> str:
    return "\n".join([f"[{name}]", *(f"{option} = {value}" for option, value in values.items()), ""])


def finished(process: subprocess.Popen[bytes], deadline: float = DEADLINE) -> Run:
    """Wait for a run to end by itself."""
    try:
        out, err = process.communicate(timeout=deadline)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        text = (out + err).decode(errors="replace")
        raise TimeoutError(f"the run did not end within {deadline:g} s:\n{text}") from None
    return _run(process.returncode, out, err)


def told(process: subprocess.Popen[bytes], errors: Path) -> str:
    """What a run that goes on has said so far; kept in this file from one look to the next."""
    assert process.stderr is not None
    os.set_blocking(process.stderr.fileno(), False)
    with errors.open("ab") as file:
        file.write(process.stderr.read() or b"")
    return errors.read_text()


def _run(code: int, out: bytes, err: bytes) -> Run:
    # The last line of a killed run may be half a line.
    lines = [line for line in out.splitlines() if line.startswith(b"{") and line.endswith(b"}")]
    text = (out + err).decode(errors="replace")
    assert "--debug shows where" not in text, f"an error that nobody expected: {text}"
    return Run(code, [json.loads(line) for line in lines], text)


# -- strace ------------------------------------------------------------------------------------------------


def strace(calls: str, injection: str = "", *, paths: Sequence[Path] = (), log: Path | None = None) -> list[str]:
    """Run a program under strace, which does something at some of these system calls.

    Not in the programs that it starts: they are let go where they execute.
    """
    argv = [
        find("strace") or "strace",
        "-f",
        "-b",
        "execve",
        "-y",
        "-o",
        str(log or os.devnull),
        "-e",
        f"trace={calls}",
    ]
    if injection:
        argv += ["-e", f"inject={calls}:{injection}"]
    for path in paths:
        argv += ["-P", str(path)]
    return argv


def was_killed(run: Run) -> bool:
    return run.code in (-signal.SIGKILL, 128 + signal.SIGKILL)


def at_rest(server: Server | None) -> None:
    """Wait until nobody is logged in any more: the far side still works on what a killed run had sent."""
    if isinstance(server, Proftpd):
        # One that waits for a data connection of a client that is gone does so for minutes, and does nothing.
        wait_for(lambda: all(map(_sleeps, server.sessions())), "the sessions of a killed run to come to rest")
        server.kill_sessions()
    elif isinstance(server, Rsyncd):
        # Its own processes may wait for each other for ever once nobody is there any more; none of them is ours.
        with suppress(TimeoutError):
            wait_for(lambda: not server.sessions(), "the sessions of a killed run to end")
        server.kill_sessions()
    elif server is not None:
        wait_for(lambda: not server.sessions(), "the sessions of a killed run to end")


def _sleeps(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_SLEEPING
    except psutil.NoSuchProcess:
        return True
