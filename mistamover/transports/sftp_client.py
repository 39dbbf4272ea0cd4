"""A small SFTP client that keeps many requests in flight, also across files.

Version 3 of the protocol (draft-ietf-secsh-filexfer-02), and OpenSSH's extensions to it (PROTOCOL, section 4).
A request is posted with a function that takes its reply; nothing waits but :meth:`SftpClient.settle`. Writing
never waits for replies to be read as long as few enough are outstanding: their bytes fit into the SSH window.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

from mistamover.disk import Space
from mistamover.errors import TargetDown, TargetRefused
from mistamover.transports.ssh import MOST_BUFFERS, Channel

IN_FLIGHT = 512
"""Requests without a reply. More of them, where answers come soon, only make the two ends wait for each other."""
FAR_IN_FLIGHT = 4096
"""The same on a long line: as many as fill it with small ones; all their replies fit into a window."""
TOGETHER = 2**16
"""Bytes of requests that are sent at once: each write wakes two programs and makes a packet of its own."""
LONGEST_REPLY = 2**20
SAFE_LENGTH = 32768
"""Bytes of data in one READ or WRITE that every server takes (draft 02, section 3)."""

SAFE_HANDLES = 256
"""Files that may be open at the same time, where the server does not say."""

Then = Callable[[int, bytes], None]
"""Takes the type of a reply and its body, without the request's number."""

_HEAD = struct.Struct(">IBI")
_LENGTH = struct.Struct(">I")
_u32 = _LENGTH.pack
_u64 = struct.Struct(">Q").pack


class Packet(IntEnum):
    """Types of requests and replies."""

    INIT = 1
    VERSION = 2
    OPEN = 3
    CLOSE = 4
    READ = 5
    WRITE = 6
    LSTAT = 7
    SETSTAT = 9
    FSETSTAT = 10
    OPENDIR = 11
    READDIR = 12
    REMOVE = 13
    MKDIR = 14
    RMDIR = 15
    STAT = 17
    RENAME = 18
    STATUS = 101
    HANDLE = 102
    DATA = 103
    NAME = 104
    ATTRS = 105
    EXTENDED = 200
    EXTENDED_REPLY = 201


class Status(IntEnum):
    """What a STATUS reply says."""

    OK = 0
    EOF = 1
    NO_SUCH_FILE = 2
    PERMISSION_DENIED = 3
    FAILURE = 4
    BAD_MESSAGE = 5
    NO_CONNECTION = 6
    CONNECTION_LOST = 7
    OP_UNSUPPORTED = 8


class Refusal(NamedTuple):
    """A STATUS reply that is not OK."""

    code: int
    message: str


class Reply(NamedTuple):
    """A reply that was waited for."""

    kind: int
    body: bytes

    @property
    def refusal(self) -> Refusal | None:
        """What is wrong, or None."""
        return refusal(self.kind, self.body)


class Attributes(NamedTuple):
    """What LSTAT tells, as far as we use it."""

    size: int | None
    mode: int | None


READ = 0x01
WRITE = 0x02
CREATE = 0x08
WRITE_EXCLUSIVE = WRITE | CREATE | 0x20
"""Write, create, fail where anything is."""

NO_ATTRIBUTES = bytes(4)


def string(value: bytes) -> bytes:
    """A string of the protocol: its length, its bytes."""
    return _u32(len(value)) + value


_OK = bytes(4)
_STATUS = int(Packet.STATUS)


def is_ok(kind: int, body: bytes) -> bool:
    """Whether a reply is a STATUS that says OK."""
    return kind == _STATUS and body[:4] == _OK


def refusal(kind: int, body: bytes) -> Refusal | None:
    """The refusal that a reply is, or None; a STATUS that is OK is none."""
    if kind != _STATUS or body[:4] == _OK:
        return None
    code = int.from_bytes(body[:4], "big")
    length = int.from_bytes(body[4:8], "big")
    text = body[8 : 8 + length].decode("utf-8", "replace").strip()
    return Refusal(code, text or f"status {code}")


def said(kind: int, body: bytes) -> str:
    """What a reply says that is not the one hoped for."""
    refused = refusal(kind, body)
    return refused.message if refused else f"an unexpected answer of type {kind}"


def ignore(_kind: int, _body: bytes) -> None:
    """Takes a reply that changes nothing."""


def attributes(body: bytes, at: int = 0) -> tuple[Attributes, int]:
    """The attributes that begin at ``at``, and where they end (draft 02, section 5)."""
    try:
        found, end = _attributes(body, at)
    except struct.error as error:
        raise _cut_short() from error
    if end > len(body):
        raise _cut_short()
    return found, end


def _attributes(body: bytes, at: int) -> tuple[Attributes, int]:
    (flags,) = _LENGTH.unpack_from(body, at)
    at += 4
    size = mode = None
    if flags & 0x1:
        size, at = int.from_bytes(body[at : at + 8], "big"), at + 8
    if flags & 0x2:
        at += 8
    if flags & 0x4:
        mode, at = int.from_bytes(body[at : at + 4], "big"), at + 4
    if flags & 0x8:
        at += 8
    if flags & 0x80000000:
        (count,) = _LENGTH.unpack_from(body, at)
        at += 4
        for _ in range(2 * count):
            (length,) = _LENGTH.unpack_from(body, at)
            at += 4 + length
    return Attributes(size, mode), at


def names(body: bytes) -> list[bytes]:
    """The file names in a NAME reply."""
    try:
        return _names(body)
    except struct.error as error:
        raise _cut_short() from error


def _names(body: bytes) -> list[bytes]:
    (count,) = _LENGTH.unpack_from(body, 0)
    at = 4
    found: list[bytes] = []
    for _ in range(count):
        (length,) = _LENGTH.unpack_from(body, at)
        found.append(body[at + 4 : at + 4 + length])
        at += 4 + length
        (length,) = _LENGTH.unpack_from(body, at)
        _, at = attributes(body, at + 4 + length)
    return found


class SftpClient:
    """One SFTP session over a channel, for one thread."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._pending: dict[int, Then] = {}
        self._number = 0
        self._unsent: list[bytes | memoryview] = []
        self._unsent_size = 0
        self._received = b""
        self.in_flight = IN_FLIGHT
        self.extensions = self._greet()
        self.read_length, self.write_length, self.open_handles = self._limits()

    # -- requests ----------------------------------------------------------------------------------------

    def packet(self, kind: int, body: bytes, then: Then, data: int = 0) -> bytes:
        """A request, to be given to :meth:`write`; ``data`` bytes of it follow as a buffer of their own."""
        self._number = number = (self._number + 1) & 0xFFFFFFFF
        self._pending[number] = then
        return _HEAD.pack(5 + len(body) + data, kind, number) + body

    def write(self, *buffers: bytes) -> None:
        """Send what :meth:`packet` made, soon: small packets go out together."""
        self._unsent += buffers
        self._unsent_size += sum(map(len, buffers))
        if self._unsent_size >= TOGETHER:
            self.flush()

    def write_now(self, packet: bytes, data: memoryview) -> None:
        """Send a packet and the data that follows it; ``data`` is the caller's again when this returns."""
        self._unsent += (packet, data)
        self.flush()

    def flush(self) -> None:
        """Send what waits, and take replies if too many are outstanding."""
        unsent, self._unsent, self._unsent_size = self._unsent, [], 0
        for first in range(0, len(unsent), MOST_BUFFERS):
            self._channel.write(*unsent[first : first + MOST_BUFFERS])
        if len(self._pending) > self.in_flight:
            self.settle(self.in_flight // 2)

    def post(self, kind: int, body: bytes, then: Then) -> None:
        """Send a request; ``then`` takes its reply, some time."""
        self.write(self.packet(kind, body, then))

    def extended(self, name: str, body: bytes, then: Then) -> bytes:
        """A packet of an extension."""
        return self.packet(Packet.EXTENDED, string(name.encode()) + body, then)

    def renaming(self, path: bytes, new: bytes, then: Then) -> bytes:
        """A packet that renames a file of ours, by rename(2) where the server offers that."""
        names = string(path) + string(new)
        if "posix-rename@openssh.com" in self.extensions:
            return self.extended("posix-rename@openssh.com", names, then)
        return self.packet(Packet.RENAME, names, then)

    def call(self, kind: int, body: bytes) -> Reply:
        """Send a request and wait for its reply."""
        replies: list[Reply] = []
        self.post(kind, body, lambda kind, body: replies.append(Reply(kind, body)))
        while not replies:
            self.receive()
        return replies[0]

    # -- replies -----------------------------------------------------------------------------------------

    def settle(self, outstanding: int = 0) -> None:
        """Take replies until at most ``outstanding`` are missing."""
        while len(self._pending) > outstanding:
            self.receive()

    @property
    def outstanding(self) -> int:
        """How many replies are missing."""
        return len(self._pending)

    def allow(self, seconds: float) -> None:
        """Let the far side be silent for ``seconds`` more than usual: it has much to put on disk."""
        self._channel.patience = max(self._channel.patience, seconds)

    def receive(self) -> None:
        """Take the replies that are there; waits for at least some bytes."""
        if self._unsent:
            self.flush()
            if not self._pending:
                return
        for kind, number, body in self._packets(self._read()):
            then = self._pending.pop(number, None)
            if then is None:
                raise TargetDown(f"the server answered a question that was not asked (number {number})")
            then(kind, body)

    def _read(self) -> bytes:
        if data := self._channel.read():
            return data
        raise self._channel.ended()

    def _packets(self, data: bytes) -> list[tuple[int, int, bytes]]:
        if self._received:
            data = self._received + data
        packets: list[tuple[int, int, bytes]] = []
        at, end = 0, len(data)
        while end - at >= 9:
            length, kind, number = _HEAD.unpack_from(data, at)
            if not 5 <= length <= LONGEST_REPLY:
                raise _not_sftp(data[at:])
            if end - at < 4 + length:
                break
            packets.append((kind, number, data[at + 9 : at + 4 + length]))
            at += 4 + length
        self._received = data[at:]
        return packets

    # -- beginning ---------------------------------------------------------------------------------------

    def _greet(self) -> frozenset[str]:
        self._channel.write(_u32(5) + bytes([Packet.INIT]) + _u32(3))
        received = b""
        while len(received) < 4 or len(received) < 4 + int.from_bytes(received[:4], "big"):
            received += self._read()
            if int.from_bytes(received[:4], "big") > LONGEST_REPLY:
                raise _not_sftp(received)
        length = int.from_bytes(received[:4], "big")
        body = received[5 : 4 + length]
        if not length:
            raise _not_sftp(received)
        if received[4] != Packet.VERSION or int.from_bytes(body[:4], "big") < 3:
            raise TargetRefused("the server speaks an SFTP older than version 3")
        self._received = received[4 + length :]
        return frozenset(_extension_names(body[4:]))

    def round_trip(self) -> float:
        """Seconds that the server's answer to the least of questions takes."""
        began = time.monotonic()
        self.call(Packet.LSTAT, string(b"/"))
        return time.monotonic() - began

    def _limits(self) -> tuple[int, int, int]:
        """The longest READ and WRITE that the server takes, and its open handles (limits@openssh.com)."""
        usual = SAFE_LENGTH, SAFE_LENGTH, SAFE_HANDLES
        if "limits@openssh.com" not in self.extensions:
            return usual
        reply = self.call(Packet.EXTENDED, string(b"limits@openssh.com"))
        if reply.kind != Packet.EXTENDED_REPLY:
            return usual
        _, read, write, handles = _numbers(reply.body, 4)
        return min(read or SAFE_LENGTH, 2**18), min(write or SAFE_LENGTH, 2**18), handles or SAFE_HANDLES

    def space(self, path: bytes) -> Space | None:
        """Free space at ``path``; None where the server does not tell."""
        if "statvfs@openssh.com" not in self.extensions:
            return None
        reply = self.call(Packet.EXTENDED, string(b"statvfs@openssh.com") + string(path))
        if reply.kind != Packet.EXTENDED_REPLY:
            return None
        _, block, blocks, _, available, inodes, _, inodes_available, *_ = _numbers(reply.body, 11)
        is_numbered = inodes > 0
        return Space(
            block * available, inodes_available if is_numbered else None, block * blocks, inodes, max(block, 1)
        )


def _numbers(body: bytes, count: int) -> tuple[int, ...]:
    if len(body) < 8 * count:
        raise _cut_short()
    return struct.unpack_from(f">{count}Q", body)


def _cut_short() -> TargetDown:
    return TargetDown("the server's answer ends too early")


def _extension_names(body: bytes) -> list[str]:
    parts: list[bytes] = []
    at = 0
    while at + 4 <= len(body):
        (length,) = _LENGTH.unpack_from(body, at)
        parts.append(body[at + 4 : at + 4 + length])
        at += 4 + length
    return [name.decode("utf-8", "replace") for name in parts[::2]]


def _not_sftp(received: bytes) -> TargetRefused:
    text = received[:60].decode("utf-8", "replace").encode("unicode_escape").decode()
    return TargetRefused(
        f"the server sends something that is no SFTP ({text}); often the account's shell start-up prints text: "
        "let it print only in interactive shells"
    )
