"""One large file over several connections at once, where the line is long.

An SSH connection carries at most one window (2 MiB in OpenSSH, ``channels.h``) in each round trip, however wide the
line is. The ranges of a file go to whichever connection is free; what was not confirmed to one that broke
is carried by the others. That the parts make the whole is proven like that of any file: by its digest.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from mistamover.errors import MistamoverError, NotTaken, SourceMoved, TargetDown, UnitError
from mistamover.spool import Source
from mistamover.transports import sftp_client as wire
from mistamover.transports import ssh
from mistamover.transports.sftp_client import Packet, SftpClient, string

LONG = 0.01
"""Seconds of a round trip from which on a line counts as long."""
RANGED = 2**25
"""Bytes from which on a file is worth more than one connection."""
RANGE = 2**23

_WRITE_EXISTING = 0x02.to_bytes(4, "big") + bytes(4)
"""Flags of an OPEN that neither creates nor truncates, and no attributes."""


class Siblings:
    """More connections to the same place, each made when first used, and kept until the end."""

    def __init__(self, connection: ssh.Connection, most: int) -> None:
        self._connection = connection
        self._made: dict[int, ssh.Connection] = {}
        self._clients: list[SftpClient | None] = [None] * most

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
        if self._made:
            with ThreadPoolExecutor(len(self._made)) as threads:
                threads.map(ssh.Connection.close, self._made.values())
        self._made.clear()


class _Range:
    """A part of the file, and how many of its bytes the server has not confirmed."""

    def __init__(self, begin: int, end: int) -> None:
        self.begin = begin
        self.end = end
        self.unconfirmed = end - begin


class RangedFile:
    """One file on its way in ranges."""

    def __init__(self, source: Source, path: bytes, tick: Callable[[int], None]) -> None:
        self._source = source
        self._path = path
        self._tick = tick
        size = source.unit.size
        self._waiting = deque(_Range(begin, min(begin + RANGE, size)) for begin in range(0, size, RANGE))
        self._stopped = threading.Event()
        self.error: UnitError | None = None
        """What is wrong with the unit, or with the target's way of taking it."""

    def send(self, client: SftpClient, handle: bytes, siblings: Siblings) -> None:
        """Send all ranges, the first connection's thread among those that do; hashes the source meanwhile.

        Raises ``TargetDown`` where the first connection breaks.
        """
        with ThreadPoolExecutor(1 + len(siblings), "range") as threads:
            first = threads.submit(self._carry, client, handle)
            others = [threads.submit(self._carry_by, siblings, number) for number in range(len(siblings))]
            self._hash()
        for one in (first, *others):
            one.result()  # a fault of our own is not to pass for bytes that arrived
        self._carry(client, handle)  # what broken connections left

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
        self.error = self.error or error
        self._stopped.set()

    def _carry_by(self, siblings: Siblings, number: int) -> None:
        """Carry ranges over another connection; where it breaks, give back what is not confirmed."""
        mine: list[_Range] = []
        try:
            if (client := siblings.client(number)) is not None:
                handle = self._opened(client)
                self._carry(client, handle, mine)
                client.call(Packet.CLOSE, handle)
        except MistamoverError:  # the connections that we have will do
            siblings.lose(number)
            self._waiting.extend(_Range(one.begin, one.end) for one in mine if one.unconfirmed)

    def _opened(self, client: SftpClient) -> bytes:
        reply = client.call(Packet.OPEN, string(self._path) + _WRITE_EXISTING)
        if reply.kind != Packet.HANDLE:
            raise TargetDown("the staged file cannot be opened again")
        return reply.body

    def _carry(self, client: SftpClient, handle: bytes, mine: list[_Range] | None = None) -> None:
        """Send ranges until none waits; each is noted in ``mine``."""
        try:
            while (one := self._next()) is not None:
                if mine is not None:
                    mine.append(one)
                self._send(one, client, handle)
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

    def _send(self, one: _Range, client: SftpClient, handle: bytes) -> None:
        for begin in range(one.begin, one.end, client.write_length):
            if self._stopped.is_set():
                return
            data = self._read(begin, min(client.write_length, one.end - begin))
            write = handle + begin.to_bytes(8, "big") + len(data).to_bytes(4, "big")
            packet = client.packet(Packet.WRITE, write, self._confirming(one, len(data)), len(data))
            client.write_now(packet, memoryview(data))
            self._tick(len(data))

    def _read(self, begin: int, length: int) -> bytes:
        try:
            data = os.pread(self._source.fd, length, begin)
        except OSError as error:
            raise UnitError(f"cannot be read: {error.strerror}") from error
        if len(data) != length:
            raise SourceMoved("it shrank while it was read")
        return data

    def _confirming(self, one: _Range, length: int) -> wire.Then:
        def then(kind: int, body: bytes) -> None:
            if wire.is_ok(kind, body):
                one.unconfirmed -= length
            else:
                self._fail(NotTaken(f"the target could not write it: {wire.said(kind, body)}"))

        return then
