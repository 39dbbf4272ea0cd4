"""What ``check --connect`` says of known faults: old receivers of rsync, and SSH open to the Terrapin attack."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator, Sequence

from mistamover.options import Settings
from mistamover.transports.contract import Finding, Level
from mistamover.transports.ssh import said_by, ssh_options

SAFE = (3, 4, 3)
"""The first rsync without the faults of January 2025 (CVE-2024-12084 to 12088, 12747) and May 2026."""
SAFE_PROTOCOL = 32
"""What rsync 3.4.0 and later speak."""
PATIENCE = 15.0
"""Seconds that such a look may take; it is left out where it takes longer."""


def of_receiver(ssh: Sequence[str], program: str) -> Iterator[Finding]:
    """Look at the version of rsync at the other end of an ssh command; nothing where it runs no such command."""
    found = re.search(r"version v?(\d+)\.(\d+)\.(\d+)", _said([*ssh, f"{program} --version"]))
    if found and (version := tuple(map(int, found.groups()))) < SAFE:
        yield _old(".".join(map(str, version)))


def of_daemon(host: str, port: int) -> Iterator[Finding]:
    """Look at the protocol of an rsync daemon, which does not tell its version."""
    try:
        with socket.create_connection((host, port), PATIENCE) as connection:
            greeting = connection.recv(256).decode("ascii", "replace")
    except OSError:
        return  # reached through a proxy: nobody can tell
    found = re.match(r"@RSYNCD: (\d+)", greeting)
    if found and int(found[1]) < SAFE_PROTOCOL:
        yield _old("before 3.4.0")


def _old(version: str) -> Finding:
    safe = ".".join(map(str, SAFE))
    return Finding(
        Level.WARN,
        f"the target's rsync ({version}) is older than {safe}, which mended faults that let a sender take it over",
        "update it there, unless your distribution has mended it",
    )


def of_ssh(settings: Settings, more: Sequence[str] = ()) -> Iterator[Finding]:
    """Look at what ssh and the server agree on before the log-in."""
    asked = ["ssh", "-vvv", "-oPreferredAuthentications=none", "-oControlPath=none", *ssh_options(settings), *more]
    if is_open_to_terrapin(_said([*asked, "--", str(settings.outgoing.target_host), "true"])):
        yield Finding(
            Level.WARN,
            "SSH is open to the Terrapin attack (CVE-2023-48795): somebody in between could drop messages",
            "update OpenSSH at both ends to 9.6, or have the server offer aes128-gcm@openssh.com",
        )


def is_open_to_terrapin(said: str) -> bool:
    """Whether a log of ``ssh -vvv`` shows a cipher that the attack works on, without the strict key exchange.

    ChaCha20-Poly1305, and CBC with encrypt-then-MAC (F. Bäumer, M. Brinkmann, J. Schwenk: Terrapin Attack, 2023).
    """
    ciphers = re.findall(r"kex: client->server cipher: (\S+) MAC: (\S+)", said)
    is_weak = any("chacha20" in cipher or ("cbc" in cipher and "etm" in mac) for cipher, mac in ciphers)
    return is_weak and "strict KEX" not in said


def _said(command: Sequence[str]) -> str:
    return said_by(command, PATIENCE, messages=True).decode("utf-8", "replace")
