"""Two ways to reach a host over SSH: the installed OpenSSH, and paramiko. Both check host keys, always.

OpenSSH brings the user's ``~/.ssh/config``, agent, jump hosts and Kerberos, and is faster; paramiko serves
password log-ins and hosts that have no ``ssh``.
"""

from __future__ import annotations

import fcntl
import os
import re
import resource
import select
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar

from mistamover.errors import MistamoverError, TargetDown, TargetRefused
from mistamover.options import PasswordLogIn, Settings, SshLogIn
from mistamover.processes import guarded, surroundings
from mistamover.transports.contract import down

if TYPE_CHECKING:
    import paramiko

KEY_OF = re.compile(
    r"^(?:No \S+ host key is known|Host key) for "
    r"\[?(?P<host>[\w:][\w.:%-]*?)(?:\]:(?P<port>\d+))? (?:and you|has changed)",
    re.MULTILINE,
)
"""What ssh(1) says of a host whose key it does not accept, as known_hosts names it: ``host`` or ``[host]:port``."""
PIPE_SIZE = 2**20
MOST_BUFFERS = 512
"""Buffers of one write; writev(2) takes 1024 (IOV_MAX) on Linux."""
READ_SIZE = 2**18
MOST_SAID = 2**20
"""Bytes that a command has to say in answer to a short question."""
MOST_MESSAGES = 2**24
"""Bytes that ssh may write on its standard error, where the far side can write as well."""
CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
"""First choice: with the AES instructions of today's CPUs they cost a fraction of the others."""
KEEPALIVE = 15
TOO_MANY_FAILURES = "Too many authentication failures"
"""How OpenSSH's server ends a connection after ``MaxAuthTries`` refused log-ins."""
AT_ITS_END = re.compile(
    r"^(Your account has expired|WARNING: Your password has expired|You are required to change your password).*",
    re.MULTILINE,
)
"""What sshd and pam_unix say of an account that may not log in, although its key or password is right."""
LANES_PER_LOG_IN = 2
"""A log-in costs 0.2 s of a processor at both ends; a connection carries no more than one can encrypt."""


class Channel(ABC):
    """A stream of bytes to and from a program at the far side.

    Every method raises ``TargetDown`` where the far side went away or did not move for ``stall_timeout``.
    """

    patience: float
    """Seconds without any progress after which the far side counts as gone."""

    @abstractmethod
    def write(self, *buffers: bytes | memoryview) -> None:
        """Send all of the buffers, in order."""

    @abstractmethod
    def read(self) -> bytes:
        """Some bytes, at least one; empty where the program ended."""

    @abstractmethod
    def ended(self) -> MistamoverError:
        """The error to raise where :meth:`read` came to an end that was not due."""

    @abstractmethod
    def close(self) -> None:
        """End the program."""


class Connection(ABC):
    """A host that we are logged in to."""

    @abstractmethod
    def sftp(self) -> Channel:
        """Open the SFTP subsystem. Called first: it makes the connection."""

    @abstractmethod
    def command(self, line: str) -> Channel:
        """Run a command in the account's shell."""

    def keep_to_itself(self) -> None:  # noqa: B027 - nothing to do where none is shared
        """Have no other lane share this connection."""

    def sibling(self) -> Connection | None:
        """Another connection to the same place, which nobody shares; None where there should be no more."""
        return None

    @abstractmethod
    def abort(self) -> None:
        """Cut the connection, from another thread: whoever uses it right now gets ``TargetDown``."""

    @abstractmethod
    def close(self) -> None:
        """Log out."""


def connect(settings: Settings) -> Connection:
    """The connection that ``[sftp] connector`` asks for; ``auto`` takes OpenSSH unless there is a password."""
    sftp = settings.sftp
    connector = sftp.connector
    if connector == "auto":
        connector = "paramiko" if sftp.password or not shutil.which("ssh") else "openssh"
    return Paramiko(settings) if connector == "paramiko" else OpenSsh(settings)


# -- OpenSSH -------------------------------------------------------------------------------------------


class _LogIn:
    """One log-in of ssh(1), shared by some lanes through a private control socket (ssh_config(5), ControlMaster).

    The program that was started first carries it, so that one is ended last.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.users = 1
        self.is_private = False
        """Whether it is for one lane alone: on a long line, each connection carries only so much."""
        self.directory = private_directory(settings)
        self.carrier: PipeChannel | None = None

    @property
    def _socket(self) -> Path:
        return Path(self.directory, "s")

    def options(self) -> list[str]:
        """Options of ssh(1) for what uses this log-in, or makes it."""
        master = "no" if self.carrier else "yes"
        return [*ssh_options(self.settings), f"-oControlMaster={master}", f"-oControlPath={_quoted(self._socket)}"]

    def start(self, flags: Sequence[str], what: str) -> PipeChannel:
        """Start a program at the far side."""
        argv = ["ssh", *self.options(), *flags, "--", str(self.settings.outgoing.target_host), what]
        channel = PipeChannel(argv, self.settings)
        self.carrier = self.carrier or channel
        return channel

    def hold(self, more: Sequence[str]) -> None:
        """Log in and start nothing there, until other programs do; ``more`` are options of ssh(1)."""
        if self.carrier is None:
            argv = ["ssh", *self.options(), *more, "-N", "--", str(self.settings.outgoing.target_host)]
            self.carrier = PipeChannel(argv, self.settings)
        timeout = ssh_log_in(self.settings).connect_timeout
        end = time.monotonic() + timeout
        while not self._socket.exists():
            if not self.carrier.is_running:
                raise self.carrier.ended()
            if time.monotonic() > end:
                raise TargetDown(f"{self.settings.outgoing.target_host}: no answer within {timeout:g} s")
            time.sleep(0.005)

    @property
    def is_alive(self) -> bool:
        """Whether others may use it."""
        return self.carrier is not None and self.carrier.is_running

    def close(self) -> None:
        """End the connection itself."""
        if self.carrier is not None:
            self.carrier.close()
        shutil.rmtree(self.directory, ignore_errors=True)


class OpenSsh(Connection):
    """The installed ``ssh``: each log-in serves some lanes, so that one works while the other waits."""

    _log_ins: ClassVar[list[_LogIn]] = []
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, settings: Settings, log_in: _LogIn | None = None) -> None:
        if not shutil.which("ssh"):
            raise TargetRefused("no ssh program is installed; install OpenSSH, or set [sftp] connector = paramiko")
        self._channels: list[PipeChannel] = []
        self._log_in = log_in or self._join(settings)

    def sibling(self) -> Connection | None:
        """A log-in of its own, while there are fewer of them than ``[outgoing] lanes``."""
        settings = self._log_in.settings
        with self._lock:
            if sum(one.settings is settings for one in self._log_ins) >= settings.outgoing.lanes:
                return None
            self._log_ins.append(log_in := _LogIn(settings))
            log_in.is_private = True
        return OpenSsh(settings, log_in)

    def keep_to_itself(self) -> None:
        """Have no other lane share this log-in."""
        self._log_in.is_private = True

    @classmethod
    def _join(cls, settings: Settings) -> _LogIn:
        with cls._lock:
            for one in cls._log_ins:
                may_join = one.users < LANES_PER_LOG_IN and not one.is_private
                if one.settings is settings and may_join and one.is_alive:
                    one.users += 1
                    return one
            cls._log_ins.append(_LogIn(settings))
            return cls._log_ins[-1]

    def sftp(self) -> Channel:
        """The SFTP subsystem; the first channel of a log-in makes it."""
        return self._start(["-s"], "sftp")

    def command(self, line: str) -> Channel:
        """Another channel of the same log-in."""
        return self._start([], line)

    def shared(self, more: Sequence[str]) -> list[str]:
        """Log in; gives the options by which the ssh of another program uses that. ``more`` are its own."""
        self._log_in.hold(more)
        # Where ours is gone, it is not to log in by itself: we would never hear of it.
        return ["-oProxyCommand=false", *self._log_in.options(), *more]

    @property
    def is_alive(self) -> bool:
        """Whether we are logged in."""
        return self._log_in.is_alive

    def ended(self) -> MistamoverError:
        """Why we are not logged in any more."""
        assert self._log_in.carrier is not None  # noqa: S101 - we were
        return self._log_in.carrier.ended()

    def _start(self, flags: Sequence[str], what: str) -> Channel:
        channel = self._log_in.start(flags, what)
        self._channels.append(channel)
        return channel

    def abort(self) -> None:
        """Kill our programs."""
        for channel in self._channels:
            channel.abort()
        if self._log_in.carrier is not None:
            self._log_in.carrier.abort()

    def close(self) -> None:
        """End our programs; the connection goes with the last lane that uses it."""
        for channel in reversed(self._channels):
            if channel is not self._log_in.carrier:
                channel.close()
        self._channels.clear()
        with self._lock:
            self._log_in.users -= 1
            if self._log_in.users:
                return
            self._log_ins.remove(self._log_in)
        self._log_in.close()


LONGEST_DIRECTORY = 60
"""Of what holds the directory of a control socket: an address takes 107 bytes (unix(7)), and ssh adds 19 to it."""
SOCKETS = "ssh-"


def private_directory(settings: Settings) -> str:
    """A directory for a control socket, in the stream's state directory if its path is short enough.

    What runs that were killed left there is removed.
    """
    state = settings.global_.state_dir / settings.name
    if not state.is_dir() or len(os.fsencode(state)) > LONGEST_DIRECTORY:
        is_short = len(os.fsencode(tempfile.gettempdir())) <= LONGEST_DIRECTORY
        return tempfile.mkdtemp(prefix="mistamover-", dir=None if is_short else "/tmp")  # noqa: S108 - it is private
    for left in state.glob(f"{SOCKETS}*"):
        if not _is_running(left.name.split("-")[1]):
            shutil.rmtree(left, ignore_errors=True)
    return tempfile.mkdtemp(prefix=f"{SOCKETS}{os.getpid()}-", dir=state)


def said_by(command: Sequence[str], patience: float, *, messages: bool = False) -> bytes:
    """What a command says within ``patience`` seconds, of which no more is read than it has to say.

    ``messages``: also on its standard error. Nothing where there is no such command.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if messages else subprocess.DEVNULL,
            start_new_session=True,
            env=surroundings(),
        )
    except OSError:
        return b""
    # Not yet reaped, so that the number of its group is nobody else's.
    end = partial(os.killpg, process.pid, signal.SIGKILL)
    timer = threading.Timer(patience, end)
    timer.start()
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    try:
        return process.stdout.read(MOST_SAID)
    finally:
        timer.cancel()
        timer.join()
        end()
        process.communicate()


def _is_running(process: str) -> bool:
    return Path(f"/proc/{process}").exists()


def ssh_log_in(settings: Settings) -> SshLogIn:
    """How the stream logs in over SSH."""
    section = settings.log_in
    if not isinstance(section, SshLogIn):
        raise TypeError(f"{settings.outgoing.transfer_protocol} does not use SSH")
    return section


def ssh_options(settings: Settings) -> list[str]:
    """Options of ssh(1) for this stream. Nothing secret is among them."""
    log_in = ssh_log_in(settings)
    options = [
        "-a", "-x", "-T",
        "-oBatchMode=yes",
        "-oStrictHostKeyChecking=yes",
        "-oControlPersist=no",
        "-oClearAllForwardings=yes",
        "-oPermitLocalCommand=no",
        "-oEscapeChar=none",
        "-oLogLevel=INFO",  # below that it keeps what the server says of an account to itself
        f"-oConnectTimeout={max(1, round(log_in.connect_timeout))}",
        f"-oServerAliveInterval={KEEPALIVE}",
        f"-oCiphers=^{','.join(CIPHERS)}",
    ]  # fmt: skip
    if log_in.port is not None:
        options.append(f"-p{log_in.port}")
    if log_in.username:
        options.append(f"-l{log_in.username}")
    if log_in.key_file:
        options += [f"-oIdentityFile={_quoted(log_in.key_file)}", "-oIdentitiesOnly=yes"]
    if log_in.known_hosts:
        options.append(f"-oUserKnownHostsFile={_quoted(log_in.known_hosts)}")
    return options


def _quoted(path: Path) -> str:
    """A file name as ssh_config(5) takes it: blanks would separate two, ``%`` begins a token."""
    text = str(path).replace("%", "%%").replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


class PipeChannel(Channel):
    """A program of this host whose standard input and output lead to the far side.

    It ends with the thread that started it, also while nothing comes over its line.
    """

    def __init__(self, argv: Sequence[str], settings: Settings) -> None:
        self._settings = settings
        self.patience = ssh_log_in(settings).stall_timeout
        self._messages: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the program
        # A session of its own: Ctrl-C at our terminal is for us to answer, not for ssh.
        self._process = subprocess.Popen(
            [*guarded(), *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._messages,
            start_new_session=True,
            env=surroundings(),
            bufsize=0,
        )
        with suppress(OSError):  # it has ended already
            resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (MOST_MESSAGES, MOST_MESSAGES))
        assert self._process.stdin is not None  # noqa: S101 - both are pipes
        assert self._process.stdout is not None  # noqa: S101
        self._in = self._process.stdin.fileno()
        self._out = self._process.stdout.fileno()
        for fd in (self._in, self._out):
            os.set_blocking(fd, False)
            with suppress(OSError):  # more than this user may have: a smaller pipe only costs speed
                fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_SIZE)

    def write(self, *buffers: bytes | memoryview) -> None:
        """Send all of the buffers."""
        left: list[bytes | memoryview] = list(buffers)
        while left:
            try:
                sent = os.writev(self._in, left)
            except BlockingIOError:
                self._wait(self._in, select.POLLOUT)
            except BrokenPipeError:
                raise self.ended() from None
            else:
                left = _rest(left, sent)

    def read(self) -> bytes:
        """Some bytes; empty at the end of the program."""
        while True:
            try:
                return os.read(self._out, READ_SIZE)
            except BlockingIOError:
                self._wait(self._out, select.POLLIN)

    def _wait(self, fd: int, event: int) -> None:
        poll = select.poll()
        poll.register(fd, event)
        if not poll.poll(self.patience * 1000):
            raise TargetDown(f"{self._settings.outgoing.target_host}: nothing moved for {self.patience:.0f} s")

    @property
    def is_running(self) -> bool:
        """Whether the program has not ended yet."""
        return self._process.poll() is None

    def ended(self) -> MistamoverError:
        """Why the program ended, by its messages."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._messages.seek(0)
        return explain_ssh(self._messages.read().decode("utf-8", "replace"), self._settings)

    def abort(self) -> None:
        """Kill the program."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """End the program: first by closing its input, as ssh expects, then by force."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self.abort()
            self._process.wait()
        self._messages.close()


def _rest(buffers: list[bytes | memoryview], sent: int) -> list[bytes | memoryview]:
    """What of the buffers is still to be sent after ``sent`` bytes were."""
    for number, buffer in enumerate(buffers):
        if sent < len(buffer):
            return [memoryview(buffer)[sent:], *buffers[number + 1 :]]
        sent -= len(buffer)
    return []


def explain_ssh(messages: str, settings: Settings) -> MistamoverError:
    """Say what the messages of ssh(1) mean for the stream: wait, or ask a person."""
    host = str(settings.outgoing.target_host)
    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in messages:
        return TargetRefused(changed_key(settings, messages))
    if "Host key verification failed" in messages:
        return TargetRefused(unknown_key(settings, messages))
    if refused := account_at_its_end(messages, settings):
        return refused
    if "Permission denied (" in messages or TOO_MANY_FAILURES in messages:
        return TargetRefused(refused_login(settings))
    if "subsystem request failed" in messages:
        return TargetRefused(f"{host}: the server offers no SFTP; ask its administrator for the sftp subsystem")
    lines = [line.strip() for line in messages.splitlines() if line.strip()]
    return down(settings, lines[-1] if lines else "the connection was closed")


def account_at_its_end(messages: str, settings: Settings) -> TargetRefused | None:
    """The error of an account that has expired, or has to change its password, if that is what these say."""
    found = AT_ITS_END.search(messages)
    if found is None:
        return None
    host = settings.outgoing.target_host
    return TargetRefused(f"{host}: log-in refused: {found[0].strip()}; ask its administrator")


def _place(settings: Settings, messages: str) -> tuple[str, str]:
    """Host and port as ssh-keyscan takes them, and the host as known_hosts names it.

    ssh(1) says which these are by its configuration: target_host may be an alias, and have another port there.
    """
    host, port = str(settings.outgoing.target_host), str(ssh_log_in(settings).port or 22)
    if told := KEY_OF.search(messages):
        host, port = told["host"], told["port"] or "22"
    if port == "22":
        return shlex.quote(host), shlex.quote(host)
    return f"-p {port} {shlex.quote(host)}", shlex.quote(f"[{host}]:{port}")


def _known_hosts(settings: Settings) -> str:
    path = ssh_log_in(settings).known_hosts
    return shlex.quote(str(path)) if path else "~/.ssh/known_hosts"


def unknown_key(settings: Settings, messages: str = "") -> str:
    """What to say about a host whose key nobody has confirmed, by the messages of ssh(1) if there are any."""
    scan, _ = _place(settings, messages)
    return (
        f"{settings.outgoing.target_host}: its host key is not known; "
        f"get and show it: ssh-keyscan {scan} >new_key; ssh-keygen -lf new_key   "
        f"and if its administrator confirms it, add it: cat new_key >>{_known_hosts(settings)}"
    )


def changed_key(settings: Settings, messages: str = "") -> str:
    """What to say about a host that shows another key than the one that is known."""
    scan, name = _place(settings, messages)
    file = _known_hosts(settings)
    return (
        f"{settings.outgoing.target_host}: ITS HOST KEY HAS CHANGED, somebody may be in between; nothing was sent. "
        f"Get and show the new one: ssh-keyscan {scan} >new_key; ssh-keygen -lf new_key   "
        f"and only if its administrator confirms it: ssh-keygen -R {name} -f {file} && cat new_key >>{file}"
    )


def refused_login(settings: Settings) -> str:
    """What to say about a log-in that the host refused."""
    log_in = ssh_log_in(settings)
    user = f"{log_in.username}@" if log_in.username else ""
    key = f"-i {shlex.quote(str(log_in.key_file))} " if log_in.key_file else ""
    port = f"-p {log_in.port} " if log_in.port else ""
    host = settings.outgoing.target_host
    section = settings.outgoing.transfer_protocol
    has_password = isinstance(log_in, PasswordLogIn) and log_in.password
    options = "username, password and key_file" if has_password else "username and key_file"
    return (
        f"{host}: log-in refused; check [{section}] {options}, and that the key asks for no passphrase and is in "
        f"the account's authorized_keys: ssh {port}{key}{user}{host}"
    )


# -- paramiko ------------------------------------------------------------------------------------------


class Paramiko(Connection):
    """SSH by paramiko, for password log-ins and hosts without OpenSSH. Does not read ``~/.ssh/config``."""

    def __init__(self, settings: Settings) -> None:
        import paramiko

        self._settings = settings
        self._client = paramiko.SSHClient()
        self._client.set_missing_host_key_policy(_refuse_unknown(settings))

    def sftp(self) -> Channel:
        """Log in and open the subsystem."""
        self._log_in()
        channel = self._open()
        self._ask(lambda: channel.invoke_subsystem("sftp"))
        return ParamikoChannel(channel, self._settings)

    def command(self, line: str) -> Channel:
        """Another channel of the same connection."""
        channel = self._open()
        self._ask(lambda: channel.exec_command(line))
        return ParamikoChannel(channel, self._settings)

    def _ask(self, request: Callable[[], object]) -> None:
        """Paramiko would wait for the answer for ever."""
        timer = threading.Timer(self._settings.sftp.connect_timeout, self._client.close)
        timer.daemon = True
        timer.start()
        try:
            with _Explained(self._settings):
                request()
        finally:
            timer.cancel()

    def _open(self) -> paramiko.Channel:
        with _Explained(self._settings):
            transport = self._client.get_transport()
            if transport is None:
                raise TargetDown(f"{self._settings.outgoing.target_host}: the connection was closed")
            return transport.open_session(timeout=self._settings.sftp.connect_timeout)

    def _log_in(self) -> None:
        sftp = self._settings.sftp
        self._look_at_key()
        with _Explained(self._settings), self._refused_by_farewell():
            self._load_known_hosts()
            self._client.connect(
                str(self._settings.outgoing.target_host),
                port=sftp.port or 22,
                username=sftp.username,
                password=sftp.password.get_secret_value() if sftp.password else None,
                key_filename=str(sftp.key_file) if sftp.key_file else None,
                timeout=sftp.connect_timeout,
                banner_timeout=sftp.connect_timeout,
                auth_timeout=sftp.connect_timeout,
                # A key or password that was named is the one to use: no other is shown to the host.
                allow_agent=not (sftp.key_file or sftp.password),
                look_for_keys=not (sftp.key_file or sftp.password),
                transport_factory=partial(_transport, sftp.stall_timeout),
            )
            transport = self._client.get_transport()
            if transport is not None:
                transport.set_keepalive(KEEPALIVE)

    @contextmanager
    def _refused_by_farewell(self) -> Iterator[None]:
        """Tell a host that refuses us, and ends the connection with that, from one that is down.

        Paramiko drops the last words of such a host: to it the connection just ended, or never was.
        """
        try:
            yield
        except Exception as error:
            transport = self._client.get_transport()
            if getattr(transport, "is_refused", False):
                raise TargetRefused(refused_login(self._settings)) from error
            banner = getattr(transport and transport.auth_handler, "banner", None) or b""
            if refused := account_at_its_end(banner.decode("utf-8", "replace"), self._settings):
                raise refused from error
            raise

    def _look_at_key(self) -> None:
        """Paramiko says of a bad key what it says of a bad connection."""
        import paramiko

        key = self._settings.sftp.key_file
        try:
            if key is not None:
                paramiko.PKey.from_path(key)
        except paramiko.PasswordRequiredException as error:
            raise TargetRefused(refused_login(self._settings)) from error
        except (OSError, ValueError, TypeError, paramiko.SSHException, paramiko.pkey.UnknownKeyType) as error:
            raise TargetRefused(f"[sftp] key_file {key}: cannot be used: {error}") from error

    def _load_known_hosts(self) -> None:
        named = self._settings.sftp.known_hosts
        if named is not None:
            if named.exists():
                self._client.load_host_keys(str(named))
            return
        for file in (Path("/etc/ssh/ssh_known_hosts"), Path("~/.ssh/known_hosts").expanduser()):
            if file.exists():
                self._client.load_system_host_keys(str(file))

    def abort(self) -> None:
        """Close the socket."""
        self._client.close()

    def close(self) -> None:
        """Log out."""
        self._client.close()


def _transport(stall_timeout: float, *args: Any, **kwargs: Any) -> paramiko.Transport:
    """A transport that offers no weak algorithm and the quickest cipher first, and ends where nothing is taken."""
    import paramiko

    class Transport(paramiko.Transport):
        is_refused = False

        def _parse_disconnect(self, m: paramiko.Message) -> None:
            """Take the last words of the far side: a number and a text (RFC 4253, 11.1)."""
            m.get_int()
            self.is_refused = TOO_MANY_FAILURES in m.get_text()

    transport = Transport(*args, **kwargs)
    # Else a small packet waits until the last one was acknowledged, which the far side delays by 40 ms.
    if isinstance(transport.sock, socket.socket):
        transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Where the far side takes nothing, paramiko would try for ever to send what the kernel has no place for.
        transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(stall_timeout * 1000))
    security = transport.get_security_options()
    offered = [c for c in security.ciphers if "cbc" not in c and "3des" not in c]
    security.ciphers = [c for c in CIPHERS if c in offered] + [c for c in offered if c not in CIPHERS]
    security.digests = [d for d in security.digests if "md5" not in d and not d.startswith("hmac-sha1")]
    return transport


def _refuse_unknown(settings: Settings) -> paramiko.MissingHostKeyPolicy:
    import paramiko

    class RefuseUnknown(paramiko.MissingHostKeyPolicy):
        def missing_host_key(self, *_: object) -> None:
            raise TargetRefused(unknown_key(settings))

    return RefuseUnknown()


_CUT_OFF = ("Authentication timeout", "Authentication failed: transport")
"""How paramiko says that nobody answered; it has no class of its own for that."""


class _Explained:
    """Turns paramiko's errors into ours."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __enter__(self) -> None:
        return None

    def __exit__(self, _type: object, error: BaseException | None, _trace: object) -> None:
        import paramiko

        host = self._settings.outgoing.target_host
        if error is None or isinstance(error, MistamoverError):
            return
        if isinstance(error, paramiko.BadHostKeyException):
            raise TargetRefused(changed_key(self._settings)) from error
        if isinstance(error, paramiko.hostkeys.InvalidHostKey):
            raise TargetRefused(f"{_known_hosts(self._settings)}: a line that paramiko cannot read") from error
        if isinstance(error, paramiko.AuthenticationException) and str(error).startswith(_CUT_OFF):
            raise TargetDown(f"{host}: the connection was lost at the log-in") from error
        if isinstance(error, paramiko.AuthenticationException | paramiko.PasswordRequiredException):
            raise TargetRefused(refused_login(self._settings)) from error
        if isinstance(error, OSError | EOFError | paramiko.SSHException):
            what = "no answer" if isinstance(error, TimeoutError) else str(error) or "the connection was closed"
            raise down(self._settings, what) from error


class ParamikoChannel(Channel):
    """A channel of a paramiko connection."""

    def __init__(self, channel: paramiko.Channel, settings: Settings) -> None:
        self._channel = channel
        self._settings = settings
        self.patience = settings.sftp.stall_timeout

    def write(self, *buffers: bytes | memoryview) -> None:
        """Send all of the buffers."""
        self._channel.settimeout(self.patience)
        with _Explained(self._settings):
            self._channel.sendall(b"".join(buffers))

    def read(self) -> bytes:
        """Some bytes; empty at the end of the program."""
        self._channel.settimeout(self.patience)
        with _Explained(self._settings):
            return self._channel.recv(READ_SIZE)

    def ended(self) -> MistamoverError:
        """All that paramiko knows."""
        return TargetDown(f"{self._settings.outgoing.target_host}: the connection was closed")

    def close(self) -> None:
        """End the program."""
        self._channel.close()
