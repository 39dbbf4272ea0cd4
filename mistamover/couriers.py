"""Who carries letters: SMTP, the program sendmail, a command, Apprise; in a bounded time, and with an answer."""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
import signal
import smtplib
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from email import message_from_string
from email.policy import SMTP
from pathlib import Path

from mistamover import ini
from mistamover.lines import hide, safe
from mistamover.options import Email
from mistamover.processes import surroundings
from mistamover.values import SENDMAIL

SENDMAIL_PLACES = "/usr/sbin:/usr/lib"
"""Where the program sendmail is, though not in the PATH of everybody."""
LONGEST_ANSWER = 300
LONGEST_OUTPUT = 2**16
"""Bytes of a program's output that are looked at."""


class NotCarried(Exception):
    """A letter that could not be handed over: why, and what to do about it."""

    def __init__(self, reason: str, *, needs_a_person: bool = False) -> None:
        """``needs_a_person``: another try soon makes no sense."""
        super().__init__(safe(reason))
        self.needs_a_person = needs_a_person


def carry(channel: str, email: Email, load: str) -> str:
    """Hand over what was made for this channel; gives what was answered, raises ``NotCarried``."""
    return {"mail": _mail, "command": _command, "apprise": _apprise}[channel](email, load)


def channels(email: Email) -> list[str]:
    """The ways by which somebody is to be told."""
    ways = (("mail", email.recipient), ("command", email.alert_command), ("apprise", email.alert_apprise))
    return [channel for channel, is_wanted in ways if is_wanted]


# -- mail --------------------------------------------------------------------------------------------------


def _mail(email: Email, load: str) -> str:
    if email.smarthost == SENDMAIL:
        return _by_sendmail(email, load)
    try:
        return _by_smtp(email, load)
    except (OSError, smtplib.SMTPException, ValueError) as error:
        raise explained(error, email) from None


def _by_smtp(email: Email, load: str) -> str:
    password = _password(email)
    context = ssl.create_default_context(cafile=email.ca_file)
    client = _connected(email, context)
    try:
        client.ehlo_or_helo_if_needed()
        if _wants_starttls(email, offers=client.has_extn("starttls")):
            client.starttls(context=context)
            client.ehlo()
        if email.username is not None:
            _log_in(client, email.username, password)
        answer = _handed_over(client, email, load)
        with suppress(OSError, smtplib.SMTPException):  # it has the mail: no matter how we part
            client.quit()
        return answer
    finally:
        client.close()


def _log_in(client: smtplib.SMTP, username: str, password: str) -> None:
    """Log in by one mechanism: ``login`` of the library tries a refused password by each, which locks accounts."""
    client.user, client.password = username, password
    offered = client.esmtp_features.get("auth", "").upper().split()
    for mechanism, answer in (
        ("PLAIN", client.auth_plain),
        ("LOGIN", client.auth_login),
        ("CRAM-MD5", client.auth_cram_md5),
    ):
        if mechanism in offered:
            client.auth(mechanism, answer)
            return
    raise smtplib.SMTPNotSupportedError("AUTH")


def _password(email: Email) -> str:
    if email.password_file is None:
        return ""
    try:
        password, mode = ini.first_line(email.password_file)
    except ini.UnusableError as error:
        raise NotCarried(f"[email] password_file: {email.password_file} {error}", needs_a_person=True) from None
    if mode & 0o077:
        what = f"[email] password_file: group or others may use {email.password_file} (mode {mode:04o})"
        raise NotCarried(f"{what}; chmod 600 {email.password_file}", needs_a_person=True)
    hide(password)
    return password


def port(email: Email) -> int:
    """The port of the smarthost, by default that of RFC 8314 or of RFC 5321."""
    return email.port or (465 if email.tls == "implicit" else 587 if email.username else 25)


def _connected(email: Email, context: ssl.SSLContext) -> smtplib.SMTP:
    us = socket.gethostname()  # not the whole name: the name server may be what is down
    if email.tls == "implicit":
        return smtplib.SMTP_SSL(email.smarthost, port(email), us, timeout=email.timeout, context=context)
    return smtplib.SMTP(email.smarthost, port(email), us, timeout=email.timeout)


def _wants_starttls(email: Email, *, offers: bool) -> bool:
    if email.tls == "auto":
        return not _is_here(email.smarthost) and (offers or email.username is not None)
    return email.tls == "starttls"


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _handed_over(client: smtplib.SMTP, email: Email, load: str) -> str:
    """Give it the mail; somebody at least has to be accepted as its recipient."""
    sender = message_from_string(load, policy=SMTP)["From"].addresses[0].addr_spec
    code, answer = client.mail(sender)
    if code != 250:
        raise smtplib.SMTPSenderRefused(code, answer, sender)
    answers = {address: client.rcpt(address) for address in email.recipient}
    refused = {address: answer for address, answer in answers.items() if answer[0] not in (250, 251)}
    if len(refused) == len(answers):
        raise smtplib.SMTPRecipientsRefused(refused)
    code, answer = client.data(load)
    if code != 250:
        raise smtplib.SMTPDataError(code, answer)
    but = f"; but not for {_refusals(refused)}" if refused else ""
    return safe(f"{email.smarthost} took it: {code} {_readable(answer)}{but}")


def _by_sendmail(email: Email, load: str) -> str:
    program = shutil.which("sendmail") or shutil.which("sendmail", path=SENDMAIL_PLACES)
    if program is None:
        raise NotCarried("there is no program sendmail; install a mail server, or give a smarthost")
    _run([program, "-i", "--", *email.recipient], load.replace("\r\n", "\n"), email.timeout)
    return f"{program} took it"


# -- what went wrong, for people ---------------------------------------------------------------------------


def explained(error: Exception, email: Email) -> NotCarried:
    """What it means that a mail could not be handed over, and what would help."""
    where = f"{email.smarthost}:{port(email)}"
    if isinstance(error, smtplib.SMTPException):
        return _refusal(error, email, where)
    if isinstance(error, ssl.SSLCertVerificationError):
        what = f"{where}: its certificate is not trusted: {error.verify_message}"
        help_ = "give [email] ca_file, or the name that the certificate is for as smarthost"
        return NotCarried(f"{what}; {help_}", needs_a_person=True)
    if isinstance(error, ssl.SSLError):
        help_ = "see [email] tls and port: 465 is for implicit, 25 and 587 are for starttls"
        return NotCarried(f"{where}: no TLS could be agreed on ({error.reason}); {help_}", needs_a_person=True)
    if isinstance(error, socket.gaierror):
        return NotCarried(f"{email.smarthost}: no such host ({error.strerror}); see [email] smarthost")
    if isinstance(error, TimeoutError):
        return NotCarried(f"{where}: no answer within {email.timeout:g} s; see [email] smarthost and port")
    if isinstance(error, ConnectionRefusedError):
        return NotCarried(f"{where}: nobody takes mail there (connection refused); see [email] smarthost and port")
    return NotCarried(f"{where}: {getattr(error, 'strerror', None) or error}")


def _refusal(error: smtplib.SMTPException, email: Email, where: str) -> NotCarried:
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        is_final = all(code >= 500 for code, _ in error.recipients.values())
        what = f"{where}: refuses every recipient: {_refusals(error.recipients)}"
        return NotCarried(f"{what}; see [email] recipient, and whether it relays for us", needs_a_person=is_final)
    if isinstance(error, smtplib.SMTPServerDisconnected) and isinstance(error.__context__, TimeoutError):
        return explained(error.__context__, email)
    if isinstance(error, smtplib.SMTPServerDisconnected):
        return NotCarried(f"{where}: ended the connection in the middle")
    if isinstance(error, smtplib.SMTPNotSupportedError):
        what = "log-in" if "AUTH" in str(error) else "STARTTLS"
        help_ = "see [email] username" if what == "log-in" else "see [email] tls and port"
        return NotCarried(f"{where}: offers no {what}; {help_}", needs_a_person=True)
    if not isinstance(error, smtplib.SMTPResponseException):
        return NotCarried(f"{where}: {error}")
    answer = f"{error.smtp_code} {_readable(error.smtp_error)}"
    is_final = error.smtp_code >= 500
    if isinstance(error, smtplib.SMTPAuthenticationError):
        what = f"refuses the log-in of {email.username}: {answer}; see [email] username and password_file"
    elif isinstance(error, smtplib.SMTPSenderRefused):
        what = f"refuses the sender {error.sender}: {answer}; see [email] from"
    else:
        what = f"refuses: {answer}"
    return NotCarried(f"{where}: {what}", needs_a_person=is_final)


def _refusals(recipients: dict[str, tuple[int, bytes]]) -> str:
    return ", ".join(f"{address} ({code} {_readable(text)})" for address, (code, text) in recipients.items())


def _readable(answer: bytes | str) -> str:
    text = answer.decode(errors="replace") if isinstance(answer, bytes) else answer
    return " ".join(text.split())[:LONGEST_ANSWER]


# -- programs ----------------------------------------------------------------------------------------------


def _command(email: Email, load: str) -> str:
    _run(email.alert_command, load, email.timeout)
    return f"{email.alert_command[0]} took it"


def _run(command: Sequence[str], load: str, timeout: float) -> None:
    """Run a program with this on its standard input; it and all of its group are ended after ``timeout``.

    Input and output are files: a program that it leaves behind may keep a pipe open for ever.
    """
    name = command[0]
    with tempfile.TemporaryFile() as told, tempfile.TemporaryFile() as said:
        told.write(load.encode())
        told.seek(0)
        try:
            process = subprocess.Popen(
                command,
                stdin=told,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=surroundings(),
            )
        except OSError as error:
            raise NotCarried(f"{name}: {error.strerror}", needs_a_person=True) from None
        _see_to(process, name, timeout)
        said.seek(0)
        answer = _readable(said.read(LONGEST_OUTPUT))
    if process.returncode:
        what = f"{name}: ended with code {process.returncode}"
        raise NotCarried(f"{what}: {answer}" if answer else what)


def _see_to(process: subprocess.Popen[bytes], name: str, timeout: float) -> None:
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise NotCarried(f"{name}: did not end within {timeout:g} s") from None


def _apprise(email: Email, load: str) -> str:
    """Tell all services that a file of Apprise names."""
    try:
        import apprise
    except ImportError:
        raise NotCarried("Apprise is not installed", needs_a_person=True) from None
    services = apprise.Apprise(asset=apprise.AppriseAsset(async_mode=False))
    config = apprise.AppriseConfig()
    config.add(str(Path(email.alert_apprise or "")))
    services.add(config)
    members = json.loads(load)
    if not services.notify(title=members["title"], body=members["body"], body_format=apprise.NotifyFormat.TEXT):
        raise NotCarried(f"Apprise could not tell all services of {email.alert_apprise}")
    return "Apprise told all services"
