"""The three small files by which a sender and an arrivals monitor agree on what has arrived.

They are those of MiStaMover 0.1.0, byte for byte (``docs/arrivals.rst``): text lines, the first and the last one
fixed. What is in them was written by somebody else, and is hostile until proven.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

from mistamover import foreign, fs
from mistamover.foreign import Refused
from mistamover.unit import OWN_NAME

LARGEST = 4096
"""Bytes of such a file: three names of 255 bytes, and a few short lines."""
YOUNG = 10.0
"""Seconds for which a file that cannot be read may still be arriving."""

_CONTROL = ("_start_stager_ctrl_data_", "_end_stager_ctrl_data_")
_RECEIPT = ("_start_stager_receipt_data_", "_end_stager_receipt_data_")
_THANKYOU = ("_start_stager_thankyou_", "_end_stager_thankyou_")
_SHA256 = re.compile(r"\.sha256-([0-9a-f]{64})\.")


class Status(IntEnum):
    """What a receiver says of a file."""

    SUCCESS = 0
    BAD_SIZE = 1
    BAD_CHECKSUM = 2
    IO_ERROR = 3
    NO_DATA = 4


class Extensions(NamedTuple):
    """How the names of the three files end."""

    control: str
    receipt: str
    thankyou: str


class Control(NamedTuple):
    """What the sender says of a data file."""

    name: str
    size: int
    md5: str
    receipt: str
    """The name of the receipt that it waits for."""

    @property
    def sha256(self) -> str:
        """The digest that a sender of ours may put into the receipt's name; empty where it did not.

        A receiver of 0.1.0 takes that for a part of a name, and is served all the same.
        """
        found = _SHA256.search(self.receipt)
        return found[1] if found else ""


class Receipt(NamedTuple):
    """What the receiver found."""

    name: str
    status: Status
    size: int
    """-1 where it is unknown."""
    md5: str
    """Empty where it is unknown."""
    thankyou: str
    """The name of the thank-you that it waits for."""


# -- names -------------------------------------------------------------------------------------------------


def control_name(data: str, extensions: Extensions) -> str:
    """The name of a data file's control file."""
    return f".{data}.{extensions.control}"


def receipt_name(data: str, moment: float, extensions: Extensions, sha256: str = "") -> str:
    """The name of a receipt to ask for: each attempt has its own. ``moment`` in seconds since the epoch."""
    digest = f".sha256-{sha256}" if sha256 else ""
    name = f".{data}.{moment:.2f}{digest}.{extensions.receipt}"
    return name if is_plain(name) or not sha256 else receipt_name(data, moment, extensions)


def thankyou_name(data: str, moment: float, extensions: Extensions) -> str:
    """The name of a thank-you to ask for."""
    return f".{data}.{moment:.2f}.{extensions.thankyou}"


def is_plain(name: str) -> bool:
    """Whether this is a name in one directory, that a line can hold, and not ours to keep things in."""
    return (
        name not in ("", ".", "..", OWN_NAME)
        and not re.search(r"[/\0\n\r]", name)
        and len(os.fsencode(name)) <= fs.LONGEST_NAME
    )


def is_note(name: str) -> bool:
    """Whether a receipt or a thank-you may have this name: a plain dot-name with something behind."""
    return is_plain(name) and name.startswith(".") and name.count(".") > 1


def why_unsayable(name: str, extensions: Extensions) -> str:
    """Why no handshake is possible about a data file of this name; empty where one is."""
    if "/" in name:
        return "the handshake of an arrivals monitor knows no directories; set [outgoing] flatten = yes"
    longest = max((control_name(name, extensions), thankyou_name(name, 1e10, extensions)), key=len)
    if not is_plain(name) or name.startswith("."):
        return "the handshake of an arrivals monitor cannot name such a file; rename it"
    if not is_plain(longest) or not is_plain(receipt_name(name, 1e10, extensions)):
        return "its name is too long for the files of the handshake; shorten it"
    return ""


# -- directories in names ----------------------------------------------------------------------------------


def flattened(path: str) -> str:
    """A path as one name: ``%`` and ``/`` are written as ``%25`` and ``%2F``."""
    return path.replace("%", "%25").replace("/", "%2F")


def unflattened(name: str) -> str:
    """The path that :func:`flattened` made this of; raises :class:`Refused` where it made it of none."""
    path = name.replace("%2F", "/").replace("%25", "%")
    if flattened(path) != name or not all(is_plain(part) and part[0] != "." for part in path.split("/")):
        raise Refused("its name stands for no path below a spool")
    return path


# -- texts -------------------------------------------------------------------------------------------------


def control_text(control: Control) -> bytes:
    """The bytes of a control file."""
    return _text(_CONTROL, control.name, str(control.size), control.md5, control.receipt)


def receipt_text(receipt: Receipt) -> bytes:
    """The bytes of a receipt."""
    lines = receipt.name, str(int(receipt.status)), str(receipt.size), receipt.md5, receipt.thankyou
    return _text(_RECEIPT, *lines)


def thankyou_text(receipt: str) -> bytes:
    """The bytes of a thank-you for the receipt of this name."""
    return _text(_THANKYOU, receipt)


def _text(ends: tuple[str, str], *lines: str) -> bytes:
    return b"".join(os.fsencode(line) + b"\n" for line in (ends[0], *lines, ends[1]))


def parse_control(data: bytes) -> Control:
    """What a control file says; raises :class:`Refused`."""
    name, size, md5, receipt = _lines(data, _CONTROL, 4, "control file")
    if not is_plain(name) or name.startswith("."):
        raise Refused("it names a data file that cannot be: a plain name without a dot in front is allowed")
    if not is_note(receipt):
        raise Refused("it asks for a receipt of a name that cannot be: a plain dot-name is allowed")
    return Control(name, _number(size, least=0), _md5(md5), receipt)


def parse_receipt(data: bytes) -> Receipt:
    """What a receipt says; raises :class:`Refused`."""
    name, status, size, md5, thankyou = _lines(data, _RECEIPT, 5, "receipt")
    if not is_note(thankyou):
        raise Refused("it asks for a thank-you of a name that cannot be: a plain dot-name is allowed")
    code = _number(status, least=0)
    if code not in {each.value for each in Status}:
        raise Refused(f"it has a status that nobody knows: {code}")
    return Receipt(name, Status(code), _number(size, least=-1), md5 and _md5(md5), thankyou)


def parse_thankyou(data: bytes) -> str:
    """The name of the receipt that a thank-you is for; raises :class:`Refused`."""
    (receipt,) = _lines(data, _THANKYOU, 1, "thank-you")
    if not is_note(receipt):
        raise Refused("it names a receipt that cannot be: a plain dot-name is allowed")
    return receipt


def _lines(data: bytes, ends: tuple[str, str], count: int, what: str) -> Sequence[str]:
    lines = os.fsdecode(data).removesuffix("\n").split("\n")
    if len(lines) != count + 2 or (lines[0], lines[-1]) != ends:
        raise Refused(f"it is no whole {what}")
    return lines[1:-1]


def _number(text: str, *, least: int) -> int:
    if not re.fullmatch(r"-?[0-9]{1,18}", text) or int(text) < least:
        raise Refused(f"it has no number where one of at least {least} belongs")
    return int(text)


def _md5(text: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{32}", text):
        raise Refused("its MD5 is not one of 32 hexadecimal digits")
    return text.lower()


# -- judgement ---------------------------------------------------------------------------------------------


def judge(control: Control, receipt: Receipt) -> None:
    """Raise :class:`Refused` where a receipt, found under the name that we asked for, is no answer to us.

    Success has to be told of this file, this size and this digest; nothing else counts.
    """
    if receipt.name != control.name:
        raise Refused("it is the receipt of another file")
    if receipt.status is Status.SUCCESS and (receipt.size, receipt.md5) != (control.size, control.md5):
        raise Refused("it tells success of another size or digest")


# -- files -------------------------------------------------------------------------------------------------


def read(name: str, dir_fd: int) -> tuple[bytes, os.stat_result]:
    """The bytes of such a file, whatever stands under its name; raises :class:`Refused`, and ``OSError``."""
    return foreign.read(name, LARGEST, dir_fd)


def write(name: str, data: bytes, dir_fd: int, draft: str) -> None:
    """Write such a file under the name ``draft``, and rename it: whoever sees it sees all of it.

    Raises ``FileExistsError`` where the name is taken.
    """
    with open(fs.create(draft, dir_fd), "wb") as file:
        file.write(data)
    fs.rename_new(draft, dir_fd, name, dir_fd)
