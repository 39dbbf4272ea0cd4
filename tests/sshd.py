"""A real OpenSSH server of our own on loopback: own keys, port and configuration, nothing of the system's.

It needs no root: then it lets in the user who runs it, and nobody else. ``Account`` (root only) is for
log-ins by password. Free of pytest, so that the benchmarks may use it too.
"""

from __future__ import annotations

import errno
import os
import pwd
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import psutil

from mistamover.testing.needs import find

DEADLINE = 15.0
SFTP_SERVERS = (
    "/usr/lib/openssh/sftp-server",
    "/usr/libexec/openssh/sftp-server",
    "/usr/lib/ssh/sftp-server",
)
PROGRAMS = ("sshd", "ssh", "ssh-keygen")
"""What must be installed for ``running_sshd``."""


class SshdError(Exception):
    """The server did not start; the message holds its log."""


@dataclass(frozen=True)
class Account:
    """A temporary user of this machine, with an empty home directory."""

    name: str
    home: Path
    password: str | None

    @property
    def uid(self) -> int:
        return pwd.getpwnam(self.name).pw_uid


@dataclass
class Sshd:
    """A running server, and what a client needs to log in to it."""

    port: int
    username: str
    password: str | None
    root: Path
    """An empty directory that the log-in user may write: the far side of a test."""
    directory: Path
    """Where the server's files are."""
    host: str = "127.0.0.1"
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def key_file(self) -> Path:
        return self.directory / "client_key"

    @property
    def host_key(self) -> Path:
        return self.directory / "host_key"

    @property
    def known_hosts(self) -> Path:
        return self.directory / "known_hosts"

    @property
    def log(self) -> Path:
        return self.directory / "sshd.log"

    @property
    def config(self) -> Path:
        return self.directory / "sshd_config"

    @property
    def ssh_options(self) -> list[str]:
        """Options for ``ssh`` and ``sftp`` that log in here and read nothing of the user's own files."""
        settings = {
            "Port": self.port,
            "User": self.username,
            "IdentityFile": self.key_file,
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "UserKnownHostsFile": self.known_hosts,
            "GlobalKnownHostsFile": os.devnull,
            "StrictHostKeyChecking": "yes",
            "BatchMode": "yes",
        }
        return ["-F", "none", *(f"-o{name}={value}" for name, value in settings.items())]

    def start(self) -> None:
        """Start the server, again if it was stopped: same port, same keys."""
        with self.log.open("ab") as log:
            seen = log.tell()
            # sshd insists on its own absolute path, since it executes itself for each connection.
            command = [find("sshd") or "/usr/sbin/sshd", "-D", "-e", "-f", str(self.config)]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            wait_for(lambda: self._listens(seen), "sshd to listen")
        except BaseException as error:
            self.stop()
            raise SshdError(f"{error}\n{self._said(seen)}") from error

    def stop(self) -> None:
        """End the server and all its sessions. Harmless when it has been stopped."""
        if self._process is None:
            return
        self.kill_sessions()
        self._process.kill()
        self._process.wait()
        self._process = None

    def sessions(self) -> list[psutil.Process]:
        """List the processes of all log-ins: sshd's own and what runs under them."""
        if self._process is None:
            return []
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self._process.pid).children(recursive=True)
        return []

    def kill_sessions(self) -> int:
        """Kill all log-ins with SIGKILL, as a crash of the far host would; return the number of processes."""
        return self._signal_sessions(signal.SIGKILL)

    def freeze_sessions(self) -> int:
        """Stop all log-ins with SIGSTOP: connections stay, but nothing answers. New log-ins work."""
        return self._signal_sessions(signal.SIGSTOP)

    def thaw_sessions(self) -> int:
        """Let frozen log-ins go on."""
        return self._signal_sessions(signal.SIGCONT)

    def change_host_key(self) -> None:
        """Give the server another host key and restart it; ``known_hosts`` keeps the old one."""
        self.stop()
        self.host_key.unlink()
        make_key(self.host_key)
        self.start()

    def write_known_hosts(self, *more_ports: int) -> None:
        """Have clients know the server, also where it is reached by other ports."""
        kind, key = Path(f"{self.host_key}.pub").read_text().split()[:2]
        lines = [f"[{self.host}]:{port} {kind} {key}\n" for port in (self.port, *more_ports)]
        self.known_hosts.write_text("".join(lines))

    def _listens(self, seen: int) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise SshdError(f"sshd ended with {self._process.returncode}")
        return f"Server listening on {self.host} port {self.port}" in self._said(seen)

    def _said(self, since: int) -> str:
        return self.log.read_bytes()[since:].decode(errors="replace")

    def _signal_sessions(self, number: signal.Signals) -> int:
        done: set[psutil.Process] = set()
        # Once more until nothing is new: a session may have started a process while we went through them.
        while new := set(self.sessions()) - done:
            for process in new:
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
            done |= new
        if number is signal.SIGKILL:
            wait_for(lambda: all(map(is_gone, done)), "killed sessions to be gone")
        return len(done)


@contextmanager
def running_sshd(
    directory: Path,
    *,
    shell: bool = True,
    subsystem: str | None = None,
    extra: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    account: Account | None = None,
) -> Iterator[Sshd]:
    """Run a server whose files are in ``directory`` until the end of the block.

    ``shell=False`` serves SFTP only (``ForceCommand internal-sftp``). ``subsystem`` replaces the command
    behind SFTP, for instance by a wrapper. ``extra`` are lines of sshd_config that win over ours (no
    ``Match``). ``environment`` is set for every session. With an ``account`` that user logs in, else the one
    who runs us.
    """
    directory.mkdir(parents=True, exist_ok=True)
    server = Sshd(
        port=0,
        username=account.name if account else pwd.getpwuid(os.geteuid()).pw_name,
        password=account.password if account else None,
        root=(account.home if account else directory) / "root",
        directory=directory,
    )
    _make_files(server, account)
    commands = _commands(shell, subsystem)
    session = {"HOME": str(directory / "home"), **(environment or {})}
    _start_onfree_port(server, [*extra, *_settings(server, account), *commands, _set_env(session)])
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def temporary_account(password: str | None = None) -> Iterator[Account]:
    """Make a user with an empty home directory and shell start-up, gone at the end; needs root."""
    name = f"mmtest-{secrets.token_hex(4)}"
    home = Path("/home") / name
    _retry_locked(["useradd", "--create-home", "--skel", os.devnull, "--home-dir", str(home), "-p", "*", name])
    try:
        if password is not None:
            _retry_locked(["chpasswd"], f"{name}:{password}\n")
        yield Account(name, home, password)
    finally:
        _remove_account(name)


def wait_for(condition: Callable[[], bool], what: str, deadline: float = DEADLINE) -> None:
    """Return as soon as the condition holds; raise TimeoutError after ``deadline`` seconds."""
    end = time.monotonic() + deadline
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {deadline:g} s for {what}")
        time.sleep(0.01)


def make_key(path: Path) -> None:
    command = [
        find("ssh-keygen") or "ssh-keygen",
        "-q",
        "-t",
        "ed25519",
        "-N",
        "",
        "-C",
        "test",
        "-f",
        str(path),
    ]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=DEADLINE)


def is_gone(process: psutil.Process) -> bool:
    # A zombie is dead, though in a container the first process may take its time to reap it.
    with suppress(psutil.NoSuchProcess):
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    return True


def _make_files(server: Sshd, account: Account | None) -> None:
    make_key(server.host_key)
    make_key(server.key_file)
    authorized = _authorized_keys(server, account)
    authorized.write_bytes(Path(f"{server.key_file}.pub").read_bytes())
    server.root.mkdir()
    (server.directory / "home").mkdir()
    if account:
        for path in (authorized, server.root):
            os.chown(path, account.uid, -1)


def _authorized_keys(server: Sshd, account: Account | None) -> Path:
    # sshd reads this file with the rights of the user who logs in, whom pytest's directories keep out.
    return account.home / ".authorized_keys" if account else server.directory / "authorized_keys"


def _start_onfree_port(server: Sshd, lines: Sequence[str]) -> None:
    for attempts_left in reversed(range(5)):
        server.port = free_port()
        server.config.write_text("\n".join([f"Port {server.port}", *lines, ""]))
        server.write_known_hosts()
        try:
            return server.start()
        except SshdError as error:
            # Somebody else may have taken the port between our look and sshd's bind.
            if os.strerror(errno.EADDRINUSE) not in str(error) or not attempts_left:
                raise
    return None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _settings(server: Sshd, account: Account | None) -> list[str]:
    lines = [
        f"ListenAddress {server.host}",
        f'HostKey "{server.host_key}"',
        f'AuthorizedKeysFile "{_authorized_keys(server, account)}"',
        f"AllowUsers {server.username}",
        f"PasswordAuthentication {'yes' if server.password else 'no'}",
        f"UsePAM {'yes' if _needs_pam(server.username) else 'no'}",
        "KbdInteractiveAuthentication no",
        "PermitRootLogin yes",
        "PermitUserRC no",
        "StrictModes no",
        "PidFile none",
        "UseDNS no",
        "PrintMotd no",
        "LogLevel VERBOSE",
        "MaxStartups 100",
    ]
    if os.geteuid() == 0:
        # Where root's sshd locks itself in before the log-in; the system's own service makes it at its start.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    return lines + [line for line in ("PerSourcePenalties no",) if _is_known(line, server.host_key)]


def _needs_pam(username: str) -> bool:
    """Tell whether the account is locked: without PAM, sshd then refuses keys too."""
    if os.geteuid() != 0:
        return False  # only root may look, and sshd itself cannot see it either
    entries = (line.split(":") for line in Path("/etc/shadow").read_text().splitlines())
    return any(name == username and password.startswith("!") for name, password, *_ in entries)


@cache
def _is_known(line: str, host_key: Path) -> bool:
    """Tell whether the installed sshd has an option that not all releases have."""
    command = [find("sshd") or "/usr/sbin/sshd", "-t", "-f", os.devnull, "-h", str(host_key), "-o", line]
    return subprocess.run(command, capture_output=True, check=False, timeout=DEADLINE).returncode == 0


def _commands(shell: bool, subsystem: str | None) -> list[str]:
    if not shell:
        return ["ForceCommand internal-sftp", "Subsystem sftp internal-sftp"]
    return [f"Subsystem sftp {subsystem or sftp_server()}"]


def sftp_server() -> str:
    """Where OpenSSH's SFTP server program is; the one inside sshd where there is none."""
    return next(filter(os.path.exists, SFTP_SERVERS), "internal-sftp")


def _set_env(environment: Mapping[str, str]) -> str:
    # An empty home keeps the start-up files of the real one, which may be slow or print, out of the sessions.
    return "SetEnv " + " ".join(f'"{name}={value}"' for name, value in environment.items())


def _retry_locked(command: Sequence[str], text: str = "") -> None:
    """Run a command of the user database, which refuses while another holds its lock."""
    program = [find(command[0]) or command[0], *command[1:]]
    result = None

    def done() -> bool:
        nonlocal result
        result = subprocess.run(program, input=text, capture_output=True, text=True, check=False)
        if result.returncode and "lock" not in result.stderr:
            raise RuntimeError(f"{command[0]}: {result.stderr.strip()}")
        return result.returncode == 0

    wait_for(done, f"{command[0]} to get its lock")


def _remove_account(name: str) -> None:
    try:
        uid = pwd.getpwnam(name).pw_uid
    except KeyError:
        return  # interrupted before it was made
    left = [process for process in psutil.process_iter(["uids"]) if process.info["uids"].real == uid]
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    wait_for(lambda: all(map(is_gone, left)), f"processes of {name} to be gone")
    _retry_locked(["userdel", "--remove", "--force", name])
