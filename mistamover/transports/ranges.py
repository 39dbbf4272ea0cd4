"""One large file in ranges: over several connections where the line is long, and resumed after an interruption.

An SSH connection carries at most one window (2 MiB in OpenSSH, ``channels.h``) in each round trip, however wide the
line is. The ranges of a file go to whichever connection is free; what was not confirmed to one that broke
is carried by the others. That the parts make the whole is proven like that of any file: by its digest.

Until it is whole, the file lies at the target under a name that says of which version of the source it is, and
beside it are notes of the ranges that arrived. So a later try sends only what is missing. A dead session may still
write what it was asked to, even once the file is published: those are bytes of the same version, or a note that is
true. Where nothing compares the bytes, and among processes, no two tries share a file.
"""

from __future__ import annotations

import os
import stat
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from hashlib import sha256
from typing import NamedTuple, Self

from mistamover.errors import MistamoverError, NotTaken, SourceMoved, UnitError
from mistamover.spool import Source
from mistamover.transports import sftp_client as wire
from mistamover.transports import ssh
from mistamover.transports.sftp_client import Packet, SftpClient, string
from mistamover.unit import Unit

LONG = 0.01
"""Seconds of a round trip from which on a line counts as long."""
RANGED = 2**25
"""Bytes from which on a file is worth more than one connection."""
RESUMED = 2**32
"""The same on a short line, where one connection is enough, but not for sending all of it twice."""
RANGE = 2**23
ON_THE_WAY = 2**22
"""Bytes over one connection that are not confirmed: two windows, so that one is always full."""

_EXISTING = wire.READ | wire.WRITE
"""Flags of an OPEN that does not truncate."""
_NEW = wire.READ | wire.WRITE_EXCLUSIVE
_SWEPT = b"~"
"""What the names of an unfinished file that a sweep has spared end with."""
_HERE = b"\1"


class Part(NamedTuple):
    """The paths of an unfinished file."""

    notes: bytes
    """One byte for each range, which is not zero when that has arrived."""
    file: bytes

    @classmethod
    def of(cls, unit: Unit, begin: bytes, whose: str) -> Self:
        """Of this very version of the unit; ``begin`` is the staging directory and the stream's tag.

        Only tries that say the same of ``whose`` it is write into one file, and one of them at a time.
        """
        version = sha256(f"{unit.path!r} {unit.identity!r} {RANGE} {whose!r}".encode()).hexdigest()[:32].encode()
        return cls(begin + b"notes-" + version, begin + b"part-" + version)

    @classmethod
    def is_one(cls, name: bytes, tag: bytes) -> bool:
        """Whether this is the name of an unfinished file, or of its notes."""
        return name.startswith((tag + b"notes-", tag + b"part-"))


def sweep(client: SftpClient, staging: bytes, names: Iterable[bytes]) -> None:
    """Have those that the sweep before has spared removed, and spare the others for the passes until the next."""
    for name in sorted(names, key=lambda name: not name.endswith(_SWEPT)):
        path = staging + name
        if name.endswith(_SWEPT):
            client.post(Packet.REMOVE, string(path), wire.ignore)
        else:
            client.write(client.renaming(path, path + _SWEPT, wire.ignore))


class _Handles(NamedTuple):
    notes: bytes
    file: bytes


class Siblings:
    """More connections to the same place, each made when first used, and kept until the end."""

    def __init__(self, connection: ssh.Connection, most: int) -> None:
        self._connection = connection
        self._made: dict[int, ssh.Connection] = {}
        self._clients: list[SftpClient | None] = [None] * most
        self.threads = ThreadPoolExecutor(1 + most, "range")
        """Of those who send, also over the first connection; kept as well, for a program ends with its thread."""

    def __len__(self) -> int:
        return len(self._clients)

    def client(self, number: int) -> SftpClient | None:
        """The session of one of them, for one thread; None where there are enough of them."""
        if self._clients[number] is None and (connection := self._connection.sibling()) is not None:
            self._made[number] = connection
            self._clients[number] = SftpClient(connection.sftp())
        return self._clients[number]

    def lose(self, number: int) -> None:
        """One broke, or could not be had: it is tried anew for the next file."""
        self._clients[number] = None
        if (connection := self._made.pop(number, None)) is not None:
            connection.close()

    def abort(self) -> None:
        """Cut all of them, from another thread."""
        for connection in list(self._made.values()):
            connection.abort()

    def close(self) -> None:
        """Log out of all, at the same time."""
        self.threads.map(ssh.Connection.close, self._made.values())
        self.threads.shutdown()
        self._made.clear()


class _Range:
    """A part of the file, and how many of its bytes the server has not confirmed."""

    def __init__(self, number: int, size: int) -> None:
        self.number = number
        self.begin = number * RANGE
        self.end = min(self.begin + RANGE, size)
        self.unconfirmed = self.end - self.begin


class RangedFile:
    """One file on its way in ranges."""

    def __init__(self, source: Source, part: Part, tick: Callable[[int], None]) -> None:
        self._source = source
        self._part = part
        self._tick = tick
        self._size = source.unit.size
        self._handles = _Handles(b"", b"")
        self._waiting: deque[_Range] = deque()
        self._stopped = threading.Event()
        self._error: UnitError | None = None

    # -- beginning and end -------------------------------------------------------------------------------

    def open(self, client: SftpClient, *, resume: bool) -> bytes:
        """Open what an earlier try of this version has left, if that is to be used; gives the handle of the file.

        Else it is begun anew. What has its name then is removed, and never written into: it may be a link.
        Raises ``NotTaken`` where the server lets it neither be opened nor begun anew.
        """
        flags = _EXISTING if resume and self._is_left(client) else _NEW
        try:
            self._handles = self._opened(client, flags)
        except NotTaken:  # something is in the way, or it is one that cannot be opened again
            self._remove(client)
            self._handles = self._opened(client, _NEW)
        have = self._noted(client)
        numbers = range(-(-self._size // RANGE))
        self._waiting.extend(_Range(number, self._size) for number in numbers if number not in have)
        return self._handles.file

    def _is_left(self, client: SftpClient) -> bool:
        """Whether both the file and its notes are there, and are files."""
        found: list[bool] = []
        for path in self._part:
            client.write(client.renaming(path + _SWEPT, path, wire.ignore))
            client.post(Packet.LSTAT, string(path), lambda kind, body: found.append(_is_file(kind, body)))
        client.settle()
        return all(found)

    def _remove(self, client: SftpClient) -> None:
        for path in self._part:
            client.post(Packet.REMOVE, string(path), wire.ignore)

    def _opened(self, client: SftpClient, flags: int) -> _Handles:
        replies: list[wire.Reply] = []
        how = flags.to_bytes(4, "big") + b"\0\0\0\x04" + (self._source.mode | 0o600).to_bytes(4, "big")
        for path in self._part:
            client.post(
                Packet.OPEN,
                string(path) + how,
                lambda kind, body: replies.append(wire.Reply(kind, body)),
            )
        client.settle()
        for reply in replies:
            if reply.kind != Packet.HANDLE:
                raise NotTaken(f"the target takes no file in ranges: {wire.said(*reply)}")
        return _Handles(*(reply.body for reply in replies))

    def _noted(self, client: SftpClient) -> set[int]:
        """The numbers of the ranges that have arrived: of the first 256 GiB, where the server reads the least."""
        length = client.read_length.to_bytes(4, "big")
        reply = client.call(Packet.READ, self._handles.notes + bytes(8) + length)
        notes = reply.body[4:] if reply.kind == Packet.DATA else b""
        return {number for number, note in enumerate(notes) if note}

    def give_name(self, client: SftpClient, path: bytes, then: wire.Then) -> None:
        """All has arrived, and the file is closed. Without its notes first: they must not outlive it."""
        client.post(Packet.CLOSE, self._handles.notes, wire.ignore)
        client.post(Packet.REMOVE, string(self._part.notes), wire.ignore)
        client.write(client.renaming(self._part.file, path, then))

    def leave(self, client: SftpClient, then: wire.Then, *, resumable: bool) -> None:
        """It is not to be whole now, and perhaps never."""
        client.post(Packet.CLOSE, self._handles.notes, wire.ignore)
        if not resumable:
            self._remove(client)
        client.post(Packet.CLOSE, self._handles.file, then)

    # -- the ranges --------------------------------------------------------------------------------------

    def send(self, client: SftpClient, siblings: Siblings, *, over_all: bool) -> None:
        """Send what is missing, over the first connection or over all; hashes the source meanwhile.

        Raises ``UnitError`` where that is the unit's fault, or the target does not take it, and ``TargetDown``
        where the first connection breaks.
        """
        threads = siblings.threads
        carrying = [threads.submit(self._carry, client, self._handles)]
        others = range(len(siblings) if over_all else 0)
        carrying += [threads.submit(self._carry_by, siblings, number) for number in others]
        try:
            self._hash()
        finally:
            wait(carrying)
        for one in carrying:
            one.result()  # a fault of our own is not to pass for bytes that arrived
        self._carry(client, self._handles)  # what broken connections left
        if self._error:
            raise self._error

    def _hash(self) -> None:
        """Read the source for its digest; the pages are in memory for those who send them."""
        try:
            for _ in self._source.chunks(bytearray(2**18)):
                if self._stopped.is_set():
                    return
        except UnitError as error:
            self._fail(error)
        except BaseException:
            self._stopped.set()
            raise

    def _fail(self, error: UnitError) -> None:
        self._error = self._error or error
        self._stopped.set()

    def _carry_by(self, siblings: Siblings, number: int) -> None:
        """Carry ranges over another connection; where it breaks, give back what is not confirmed."""
        mine: list[_Range] = []
        try:
            if self._waiting and (client := siblings.client(number)) is not None:
                handles = self._opened(client, _EXISTING)  # if it is gone, never a second file of its name
                self._carry(client, handles, mine)
                for handle in handles:
                    client.post(Packet.CLOSE, handle, wire.ignore)
                client.settle()
        except MistamoverError:  # the connections that we have will do
            siblings.lose(number)
            self._waiting.extend(_Range(one.number, self._size) for one in mine if one.unconfirmed)

    def _carry(self, client: SftpClient, handles: _Handles, mine: list[_Range] | None = None) -> None:
        """Send ranges until none waits; each is noted in ``mine``."""
        try:
            while (one := self._next()) is not None:
                if mine is not None:
                    mine.append(one)
                self._send(one, client, handles)
            client.settle()
        except UnitError as error:
            self._fail(error)
            client.settle()
        except MistamoverError:
            if mine is None:
                self._stopped.set()
            raise
        except BaseException:
            self._stopped.set()
            raise

    def _next(self) -> _Range | None:
        with suppress(IndexError):
            return None if self._stopped.is_set() else self._waiting.popleft()
        return None

    def _send(self, one: _Range, client: SftpClient, handles: _Handles) -> None:
        for begin in range(one.begin, one.end, client.write_length):
            if self._stopped.is_set():
                return
            data = self._read(begin, min(client.write_length, one.end - begin))
            write = handles.file + begin.to_bytes(8, "big") + len(data).to_bytes(4, "big")
            confirming = self._confirming(one, len(data), client, handles)
            client.write_now(client.packet(Packet.WRITE, write, confirming, len(data)), memoryview(data))
            client.settle(ON_THE_WAY // client.write_length)
            self._tick(len(data))

    def _read(self, begin: int, length: int) -> bytes:
        try:
            data = os.pread(self._source.fd, length, begin)
        except OSError as error:
            raise UnitError(f"cannot be read: {error.strerror}") from error
        if len(data) != length:
            raise SourceMoved("it shrank while it was read")
        return data

    def _confirming(self, one: _Range, length: int, client: SftpClient, handles: _Handles) -> wire.Then:
        def then(kind: int, body: bytes) -> None:
            if not wire.is_ok(kind, body):
                self._fail(NotTaken(f"the target could not write it: {wire.said(kind, body)}"))
                return
            one.unconfirmed -= length
            if not one.unconfirmed:
                note = handles.notes + one.number.to_bytes(8, "big") + string(_HERE)
                client.write(client.packet(Packet.WRITE, note, wire.ignore))

        return then


def _is_file(kind: int, body: bytes) -> bool:
    """Whether an answer to LSTAT says that a regular file is there."""
    mode = wire.attributes(body)[0].mode if kind == Packet.ATTRS else None
    return mode is not None and stat.S_ISREG(mode)
