"""A client of FTP with many commands in flight, over a connection of ftplib's.

RFC 959 (the protocol), RFC 2428 (EPSV), RFC 3659 (MLST, SIZE), RFC 4217 (TLS).
"""

from __future__ import annotations

import ftplib
import os
import re
import select
import socket
import ssl
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from mistamover.errors import MistamoverError, TargetDown, TargetRefused, TooManyConnections
from mistamover.options import Ftp as FtpOptions
from mistamover.options import Ftps as FtpsOptions
from mistamover.options import Settings
from mistamover.transports.contract import down
from mistamover.transports.far_shell import SLOWEST_DISK

UNANSWERED = 1000
"""Bytes of commands that a server may be given before it answers them: so few that it reads all at once.

ProFTPD reads 1,024 bytes or more (Debian's 4,102), and where that cuts a line end in two it takes the next command
for a part of the one before: a file would get the name ``NAME\\r\\nRNFR NEXT``.
"""
TOGETHER = 8
"""Transfers that are asked for at once: so few that their commands are one segment of TCP."""
IN_FLIGHT = 128
"""Commands that a server may be given before it answers the first; so few that their replies fit every buffer."""
PIPELINING = re.compile("proftpd|vsftpd|pure-ftpd|pyftpdlib", re.IGNORECASE)
"""Servers known to take commands before they have answered earlier ones; RFC 959 promises that of none."""
QUEUEING = re.compile("proftpd|vsftpd", re.IGNORECASE)
"""Those that take the commands of several transfers too, if they have them all before the first begins."""
TOO_MANY = re.compile(
    r"(too many|maximum|limit)(?!.*(attempt|fail)).*(connect|client|user|session|host)", re.IGNORECASE
)
"""How servers say 530 to one connection too many."""
IMPLICIT_PORT = 990
GLANCE = 0.5
"""Seconds after which a handshake that goes on is worth a look at whether its command was refused."""
BUSY = 450
MOST_LINES = 2000
"""Lines of one reply: FEAT has a few dozen, and people's greetings are shorter."""
GOODBYES = 16
"""Packets that a server may send after QUIT."""
LAST_PORT = 65535


class Reply(NamedTuple):
    """What a server said to a command: three digits (RFC 959, 4.2), and lines for people."""

    code: int
    text: str

    @property
    def is_preliminary(self) -> bool:
        """Whether another reply to the same command follows."""
        return self.code < 200

    @property
    def is_ok(self) -> bool:
        """Whether all was done."""
        return 200 <= self.code < 300

    @property
    def message(self) -> str:
        """Its last line, without the digits."""
        return self.text.rpartition("\n")[2][4:].strip() or str(self.code)


def _reply(text: str) -> Reply:
    """What these lines say; raises ``ValueError`` where that is nothing."""
    if not re.match(r"[1-5][0-9]{2}(?![0-9])", text):
        raise ValueError(f"the server sends something that is no FTP: {text[:60]!r}")
    return Reply(int(text[:3]), text)


Then = Callable[[Reply], None]


def ignore(_reply: Reply) -> None:
    """Takes a reply that changes nothing."""


class Transfer:
    """One data connection: the answers to EPSV and to the command that uses it."""

    __slots__ = ("passive", "reply")

    def __init__(self) -> None:
        self.passive: Reply | None = None
        self.reply: Reply | None = None
        """The last one; None while the server has not said that it has everything, or nothing."""

    @property
    def is_late(self) -> bool:
        """Whether its commands reached the server during another transfer, and were refused for that."""
        return BUSY in {self.passive and self.passive.code, self.reply and self.reply.code}

    def opened(self, reply: Reply) -> None:
        """Take the answer to EPSV."""
        self.passive = reply

    def answered(self, reply: Reply) -> None:
        """Take an answer to the command."""
        if not reply.is_preliminary:
            self.reply = reply


class FtpClient:
    """Sends commands and hands each reply to its taker, in order. For one thread."""

    def __init__(self, ftp: ftplib.FTP, connect_timeout: float, patience: float) -> None:
        assert ftp.sock is not None  # noqa: S101 - it is connected
        self._ftp = ftp
        self._sock = ftp.sock
        self._peer: str = ftp.sock.getpeername()[0]
        self._data: socket.socket | None = None
        self._connect_timeout = connect_timeout
        self._waiting: deque[tuple[Then, int]] = deque()
        """Who takes the next replies, and the bytes of the commands."""
        self._unanswered = 0
        self._unsent: list[bytes] = []
        self._passive = "EPSV"
        self.patience = patience
        """Seconds without a byte after which the server is given up."""
        greeting = ftp.getwelcome() or ""
        self.in_flight = IN_FLIGHT if PIPELINING.search(greeting) else 1
        self.together = TOGETHER if QUEUEING.search(greeting) else 1
        """Transfers that may be asked for at once, while none is under way."""
        self._sock.settimeout(patience)
        _keep_alive(self._sock)

    # -- commands --------------------------------------------------------------------------------------------

    def post(self, command: str, then: Then = ignore) -> None:
        """Send a command, soon; ``then`` takes its replies, preliminary ones too."""
        line = os.fsencode(command) + b"\r\n"
        while self._waiting and not self._has_room(line):
            self.receive()
        self._unsent.append(line)
        self._waiting.append((then, len(line)))
        self._unanswered += len(line)

    def _has_room(self, line: bytes) -> bool:
        return len(self._waiting) < self.in_flight and self._unanswered + len(line) <= UNANSWERED

    def call(self, command: str) -> Reply:
        """Send a command and wait for its last reply."""
        last: dict[str, Reply] = {}
        self.post(command, lambda reply: last.update({command: reply}))
        self.settle()
        return last[command]

    def settle(self) -> None:
        """Wait until every command has its reply."""
        while self._waiting:
            self.receive()

    def receive(self) -> None:
        """Send what is unsent and take one reply; raises ``TargetDown`` where none comes."""
        self._flush()
        try:
            reply = _reply(self._ftp.getmultiline())
        except (OSError, EOFError, ValueError, ftplib.Error) as error:
            raise self.down(error) from error
        if reply.code == 421 or not self._waiting:
            raise TargetDown(f"{self._ftp.host}: the server ends the session: {reply.message}")
        then, size = self._waiting[0]
        if not reply.is_preliminary:
            self._waiting.popleft()
            self._unanswered -= size
        then(reply)

    def _flush(self) -> None:
        commands, self._unsent = self._unsent, []
        try:
            if commands:
                self._sock.sendall(b"".join(commands))
        except OSError as error:
            raise self.down(error) from error

    def down(self, error: Exception) -> TargetDown:
        """The error of a connection that broke."""
        if isinstance(error, TimeoutError):
            return TargetDown(f"{self._ftp.host}: nothing moved for {self._sock.gettimeout():g} s")
        if isinstance(error, EOFError):
            return TargetDown(f"{self._ftp.host}: the server closed the connection")
        return TargetDown(f"{self._ftp.host}: {error}")

    @contextmanager
    def patient(self, size: int) -> Iterator[None]:
        """Wait longer while the server reads or writes ``size`` bytes before it answers."""
        self._sock.settimeout(self.patience + size / SLOWEST_DISK)
        try:
            yield
        finally:
            self._sock.settimeout(self.patience)

    def abort(self) -> None:
        """Cut both connections, called by another thread."""
        for sock in (self._data, self._sock):
            if sock is not None:
                with suppress(OSError):
                    # Not the method of SSLSocket, which would take its state from under the other thread.
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def leave(self) -> None:
        """Say goodbye, and wait until the server has gone: it may count connections."""
        with suppress(TargetDown, OSError):
            self.call("QUIT")
            for _ in range(GOODBYES):
                if not self._sock.recv(4096):
                    break
        self._ftp.close()

    def close(self) -> None:
        """Say goodbye, and do not wait for an answer."""
        with suppress(OSError):
            self._sock.settimeout(0)
            self._sock.sendall(b"QUIT\r\n")
        self._ftp.close()

    # -- data connections ------------------------------------------------------------------------------------

    def choose_passive(self) -> None:
        """Find out whether the server knows EPSV; of what PASV answers the address is not used (CVE-2021-4189)."""
        if not self.call("EPSV").is_ok:
            self._passive = "PASV"

    def asked_together(self, commands: Iterable[str]) -> int:
        """How many transfers by such commands may be asked for at once."""
        longest = max(map(len, map(os.fsencode, commands)), default=0)
        return max(1, min(self.together, UNANSWERED // (longest + len(f"{self._passive}\r\n\r\n"))))

    def transfer(self, command: str) -> Transfer:
        """Ask for a data connection and for what uses it."""
        transfer = Transfer()
        self.post(self._passive, transfer.opened)
        self.post(command, transfer.answered)
        return transfer

    def wait_for(self, transfer: Transfer) -> Reply:
        """The last reply to the command of a transfer."""
        while transfer.reply is None:
            self.receive()
        return transfer.reply

    @contextmanager
    def data(self, transfer: Transfer) -> Iterator[socket.socket | None]:
        """The data connection of a transfer whose turn it is; None where the server refuses the command.

        A connection that breaks inside the block ends it: the reply to the command says why.
        """
        data = self._data = self._connect(transfer)
        try:
            yield data
            if data is not None:
                self._end(data)
        except TimeoutError as error:
            raise self.down(error) from error
        except OSError as error:
            if self.wait_for(transfer).is_ok:
                transfer.reply = Reply(426, f"426 the data connection broke: {error}")
        finally:
            self._data = None
            if data is not None:
                data.close()

    def _connect(self, transfer: Transfer) -> socket.socket | None:
        while transfer.passive is None:
            self.receive()
        self._flush()
        if not transfer.passive.is_ok:
            return None
        port = self._port(transfer.passive)
        data = None
        try:
            data = socket.create_connection((self._peer, port), self._connect_timeout)
            secured = self._secured(data, transfer)
            secured.settimeout(self.patience)
            return secured
        except OSError as error:
            if data is not None:
                data.close()
            is_dropped = isinstance(error, TimeoutError) and data is None
            if not is_dropped and self._is_refused(transfer):
                return None
            raise TargetDown(
                f"{self._ftp.host}: no data connection to port {port}: {error}; "
                "let the passive ports of the server through the firewall"
            ) from error

    def _port(self, passive: Reply) -> int:
        try:
            if self._passive == "EPSV":
                _, port = ftplib.parse229(passive.text, (self._peer, 0))  # noqa: S321 - it only reads
            else:
                _, port = ftplib.parse227(passive.text)  # noqa: S321
        except (ValueError, ftplib.Error) as error:
            raise self.down(error) from error
        if not 0 < port <= LAST_PORT:
            raise TargetDown(f"{self._ftp.host}: there is no port {port}")
        return port

    def _is_refused(self, transfer: Transfer) -> bool:
        """Whether there is no data connection because the command was refused."""
        self._sock.settimeout(self._connect_timeout)
        try:
            return not self.wait_for(transfer).is_ok
        except TargetDown:
            return False
        finally:
            self._sock.settimeout(self.patience)

    def _secured(self, data: socket.socket, transfer: Transfer) -> socket.socket:
        """The data connection in the TLS session of the control connection, as servers may demand."""
        if not isinstance(self._ftp, ftplib.FTP_TLS):
            return data
        data.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # its last record is short, and waited for
        assert isinstance(self._sock, ssl.SSLSocket)  # noqa: S101 - it was, when we logged in
        secured = self._ftp.context.wrap_socket(
            data, server_hostname=self._ftp.host, session=self._sock.session, do_handshake_on_connect=False
        )
        secured.settimeout(GLANCE)
        try:
            secured.do_handshake()
        except TimeoutError:
            while transfer.reply is None and self._has_answer():
                self.receive()
            if transfer.reply is not None:
                raise  # vsftpd refuses some commands without a look at the connection: nobody shakes hands
            secured.settimeout(self._connect_timeout)
            secured.do_handshake()
        return secured

    def _has_answer(self) -> bool:
        """Whether the server has said something that we have not read yet."""
        has_rest = isinstance(self._sock, ssl.SSLSocket) and self._sock.pending() > 0
        return has_rest or bool(select.select([self._sock], [], [], 0)[0])

    def _end(self, data: socket.socket) -> None:
        """Have the server know that nothing was cut off; some do not answer that, and need not."""
        if isinstance(data, ssl.SSLSocket):
            data.settimeout(self._connect_timeout)
            with suppress(OSError):
                data.unwrap()


# -- log-in --------------------------------------------------------------------------------------------------


class _Bounded(ftplib.FTP):
    """Takes no reply without an end."""

    def getmultiline(self) -> str:
        """The lines of a reply (RFC 959, 4.2)."""
        lines = [self.getline()]
        if lines[0][3:4] == "-":
            while len(lines) == 1 or lines[-1][:3] != lines[0][:3] or lines[-1][3:4] == "-":
                if len(lines) >= MOST_LINES:
                    raise ValueError("a reply of the server does not end")
                lines.append(self.getline())
        return "\n".join(lines)


class _Tls(_Bounded, ftplib.FTP_TLS):
    """TLS once it is asked for."""


class _Implicit(_Tls):
    """TLS from the first byte."""

    def connect(  # type: ignore[override] # no source address is ever given
        self, host: str, port: int, timeout: float
    ) -> str:
        """Connect, shake hands, and take the greeting."""
        self.host, self.port, self.timeout = host, port, timeout
        plain = socket.create_connection((host, port), timeout)
        self.af = plain.family
        try:
            self.sock = self.context.wrap_socket(plain, server_hostname=host)
        except BaseException:
            plain.close()
            raise
        self.file = self.sock.makefile("r", encoding=self.encoding)
        self.welcome = self.getresp()
        return self.welcome


def log_in(settings: Settings) -> FtpClient:
    """Connect and log in, within TLS where the protocol is ftps.

    Raises ``TooManyConnections``, ``TargetDown`` and ``TargetRefused``.
    """
    options = _options(settings)
    host = settings.outgoing.target_host or ""
    ftp = _ftp(options)
    try:
        _connect_and_log_in(ftp, host, options)
    except BaseException as error:
        ftp.close()
        if isinstance(error, (OSError, EOFError, ValueError, ftplib.Error)):
            raise _explain(error, settings) from error
        raise
    return FtpClient(ftp, options.connect_timeout, options.stall_timeout)


def _options(settings: Settings) -> FtpOptions:
    options = settings.log_in
    assert isinstance(options, FtpOptions)  # noqa: S101 - the section that the protocol names
    return options


def _ftp(options: FtpOptions) -> ftplib.FTP:
    # Names are bytes: by this encoding what is not text comes through as well.
    if not isinstance(options, FtpsOptions):
        return _Bounded(encoding="latin-1")
    context = ssl.create_default_context(cafile=options.ca_file)
    kind = _Implicit if options.implicit else _Tls
    return kind(context=context, encoding="latin-1")


def _connect_and_log_in(ftp: ftplib.FTP, host: str, options: FtpOptions) -> None:
    port = options.port or (IMPLICIT_PORT if isinstance(ftp, _Implicit) else ftplib.FTP_PORT)
    ftp.connect(host, port, options.connect_timeout)
    password = options.password.get_secret_value() if options.password else ""
    if isinstance(ftp, ftplib.FTP_TLS):
        if not isinstance(ftp.sock, ssl.SSLSocket):
            ftp.auth()
        ftp.login(options.username or "", password, secure=False)
        ftp.prot_p()
    else:
        ftp.login(options.username or "", password)


def _explain(error: Exception, settings: Settings) -> MistamoverError:
    host, section, said = settings.outgoing.target_host, settings.outgoing.transfer_protocol, str(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        return TargetRefused(
            f"{host}: its certificate is not accepted: {error.verify_message}; "
            f"give its authority in [{section}] ca_file, and in target_host the name that the certificate has"
        )
    if isinstance(error, ftplib.error_temp) or (said.startswith("530") and TOO_MANY.search(said)):
        return TooManyConnections(f"{host}: {said[4:].strip()}")
    if said.startswith("530"):
        return TargetRefused(
            f"{host}: log-in refused; check [{section}] username and password ({said[4:].strip()})"
        )
    if isinstance(error, ftplib.Error):
        hint = "; it offers no TLS: is there another port for that ([ftps] implicit)?" if "AUTH" in said else ""
        return TargetRefused(f"{host}: {said}{hint}")
    if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
        return TargetRefused(f"{host}: no TLS: {error.reason or said}; look at port and [{section}] implicit")
    return down(settings, said or "the server closed the connection")


def _keep_alive(sock: socket.socket) -> None:
    """Have the kernel probe an idle control connection: firewalls forget it during long transfers."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 30)):
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    # Commands are short: none is to wait until the last one was acknowledged.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
