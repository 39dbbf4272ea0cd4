"""Real SMTP servers on loopback: one that takes mail, within TLS and after a log-in, and some that misbehave."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from tests.ftpd import Certificate
from tests.sshd import free_port

HOST = "127.0.0.1"
USER, PASSWORD = "postman", "canary-of-the-mail-5d20"


@dataclass
class Smtpd:
    """Takes mail, or answers what it is told to."""

    certificate: Certificate | None = None
    implicit: bool = False
    log_in: bool = False
    answers: dict[str, str] = field(default_factory=dict)
    """By ``MAIL``, ``RCPT`` or ``DATA``, or by an address of a recipient."""
    mails: list[EmailMessage] = field(default_factory=list)
    recipients: list[list[str]] = field(default_factory=list)
    log_ins: list[str] = field(default_factory=list)
    was_within_tls: bool = False
    port: int = 0

    async def handle_MAIL(  # noqa: N802 - aiosmtpd's
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        envelope.mail_from = address
        return self.answers.get("MAIL", "250 OK")

    async def handle_RCPT(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        answer = self.answers.get(address) or self.answers.get("RCPT", "250 OK")
        if answer.startswith("250"):
            envelope.rcpt_tos.append(address)
        return answer

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        answer = self.answers.get("DATA", "250 queued as 4711")
        if answer.startswith("250"):
            content = envelope.content
            assert isinstance(content, bytes)
            message = message_from_bytes(content, policy=default)
            assert isinstance(message, EmailMessage)
            self.mails.append(message)
            self.recipients.append(envelope.rcpt_tos)
            self.was_within_tls = session.ssl is not None or self.implicit
        return answer

    def judge(self, server: SMTP, session: Session, envelope: Envelope, how: str, given: Any) -> AuthResult:
        assert isinstance(given, LoginPassword)
        self.log_ins.append(given.login.decode())
        is_right = (given.login, given.password) == (USER.encode(), PASSWORD.encode())
        return AuthResult(success=is_right, handled=False)


@contextmanager
def running(server: Smtpd) -> Iterator[Smtpd]:
    """Serve until the end of the block, on the same port if it did before."""
    server.port = server.port or free_port()
    context = None
    if server.certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(server.certificate.file, server.certificate.key)
    options: dict[str, Any] = {}
    if server.log_in:
        options |= {"authenticator": server.judge, "auth_required": True, "auth_require_tls": not server.implicit}
    if context and not server.implicit:
        options |= {"tls_context": context}
    over = context if server.implicit else None
    controller = Controller(server, HOST, server.port, ssl_context=over, **options)
    controller.start()
    try:
        yield server
    finally:
        controller.stop()


@contextmanager
def misbehaving(serve: Callable[[socket.socket], object]) -> Iterator[int]:
    """The port of a server that does this with each connection."""
    with socket.create_server((HOST, 0)) as listening:

        def accept() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=_served, args=(serve, connection), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield int(listening.getsockname()[1])
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def _served(serve: Callable[[socket.socket], object], connection: socket.socket) -> None:
    with connection, suppress(OSError):
        serve(connection)


def hangs(connection: socket.socket) -> None:
    """Says nothing, until the other end has enough."""
    connection.recv(1)


def drops_in_the_middle(connection: socket.socket) -> None:
    """Ends the connection when it has half of a mail."""
    connection.sendall(b"220 here\r\n")
    file = connection.makefile("rb")
    for line in file:
        if line.upper().startswith(b"DATA"):
            connection.sendall(b"354 go on\r\n")
            file.readline()
            return
        connection.sendall(b"250 OK\r\n")
