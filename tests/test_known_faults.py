"""Far sides with known faults are told of."""

from __future__ import annotations

import sys

import pytest

from mistamover.transports.contract import Finding, Level
from mistamover.transports.known_faults import is_open_to_terrapin, of_daemon, of_receiver

STRICT = "debug3: kex_choose_conf: will use strict KEX ordering\n"


def agreed(cipher: str, mac: str = "<implicit>") -> str:
    return f"debug1: kex: client->server cipher: {cipher} MAC: {mac} compression: none\n"


@pytest.mark.parametrize(
    ("said", "is_open"),
    [
        ("", False),
        (agreed("aes128-gcm@openssh.com"), False),
        (agreed("chacha20-poly1305@openssh.com"), True),
        (STRICT + agreed("chacha20-poly1305@openssh.com"), False),
        (agreed("aes128-cbc", "hmac-sha2-256-etm@openssh.com"), True),
        (agreed("aes128-cbc", "hmac-sha2-256"), False),
        (agreed("aes128-ctr", "hmac-sha2-256-etm@openssh.com"), False),
    ],
)
def test_what_is_open_to_terrapin(said: str, is_open: bool) -> None:
    assert is_open_to_terrapin(said) == is_open


def receiver(version: str) -> list[Finding]:
    """What is said of a receiver that tells this version."""
    said = f"import sys; print('rsync  version {version}  protocol version 31') or sys.argv"
    return list(of_receiver([sys.executable, "-c", said], "rsync"))


@pytest.mark.parametrize("version", ["3.1.2", "3.2.7", "3.4.2"])
def test_an_old_receiver_is_warned_of(version: str) -> None:
    (finding,) = receiver(version)
    assert finding.level is Level.WARN
    assert version in finding.what


@pytest.mark.parametrize("version", ["3.4.3", "v3.5.0", "10.0.0", "restricted"])
def test_a_new_or_silent_one_is_not(version: str) -> None:
    assert receiver(version) == []


def test_a_daemon_that_cannot_be_asked_is_not_warned_of() -> None:
    assert list(of_daemon("127.0.0.1", 1)) == []
