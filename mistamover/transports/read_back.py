"""Reads files back over SFTP: several at once, each hashed in order, with several READs in flight."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from mistamover import digest
from mistamover.errors import NotVerified, UnitError
from mistamover.transports import sftp_client as wire
from mistamover.transports.contract import Proof
from mistamover.transports.sftp_client import Packet, SftpClient, Status, string
from mistamover.unit import Outcome, Unit

READS_AHEAD = 32


class _Download:
    """One file that is being read back: hashed in order, with several READs in flight."""

    __slots__ = ("_hasher", "_parts", "asked", "at_end", "error", "handle", "hashed", "path", "reads", "size")

    def __init__(self, path: bytes, size: int, hasher: digest.Hasher) -> None:
        self.path = path
        self.size = size
        self.handle = b""
        self.error: UnitError | None = None
        self.asked = self.hashed = self.reads = 0
        self.at_end = False
        self._parts: dict[int, bytes] = {}
        self._hasher = hasher

    @property
    def is_hungry(self) -> bool:
        """Whether another READ is wanted; the last one, at the expected end, has to find nothing."""
        return bool(self.handle) and not self.at_end and not self.error and self.asked <= self.size

    @property
    def is_done(self) -> bool:
        return bool(self.error or self.at_end or self.hashed > self.size) and not self.reads

    def opened(self, kind: int, body: bytes) -> None:
        if kind == Packet.HANDLE:
            self.handle = body
        else:
            self.error = NotVerified(f"cannot be read back: {wire.said(kind, body)}")

    def got(self, offset: int, asked: int, kind: int, body: bytes) -> None:
        self.reads -= 1
        if kind == Packet.DATA and 4 < len(body) <= 4 + asked:
            self._parts[offset] = body[4:]
            self._hash()
        elif (refused := wire.refusal(kind, body)) and refused.code == Status.EOF:
            self.at_end = True
        else:
            self.error = NotVerified(f"cannot be read back: {wire.said(kind, body)}")

    def _hash(self) -> None:
        while (part := self._parts.pop(self.hashed, None)) is not None:
            self._hasher.update(part)
            self.hashed += len(part)

    def judge(self, unit: Unit) -> Outcome:
        error = self.error
        if error is None and (self.hashed != unit.size or self._hasher.hexdigest() != unit.digest):
            error = NotVerified("what was read back is not what was sent")
        return Outcome(unit, error) if error else Outcome(unit._replace(proof=Proof.READBACK.value))


def read_back(client: SftpClient, wanted: Iterable[tuple[Unit, bytes]], algorithm: str) -> Iterator[Outcome]:
    """Read the files at these paths, and compare their digests with those of the units."""
    waiting = deque(wanted)
    active: deque[tuple[Unit, _Download]] = deque()
    while waiting or active:
        while waiting and len(active) < READS_AHEAD:
            unit, path = waiting.popleft()
            active.append((unit, _begin(client, _Download(path, unit.size, digest.ALGORITHMS[algorithm]()))))
        _feed(client, [download for _, download in active])
        while active and active[0][1].is_done:
            unit, download = active.popleft()
            if download.handle:
                client.post(Packet.CLOSE, download.handle, wire.ignore)
            yield download.judge(unit)
        if active and client.outstanding:
            client.receive()
    client.settle()


def _begin(client: SftpClient, download: _Download) -> _Download:
    flags = wire.READ.to_bytes(4, "big")
    client.post(Packet.OPEN, string(download.path) + flags + wire.NO_ATTRIBUTES, download.opened)
    return download


def _feed(client: SftpClient, downloads: Iterable[_Download]) -> None:
    """Keep enough READs in flight, those of the first file first."""
    reads = client.outstanding
    for download in downloads:
        while reads < READS_AHEAD and download.is_hungry:
            _read_more(client, download)
            reads += 1


def _read_more(client: SftpClient, download: _Download) -> None:
    offset, asked = download.asked, min(client.read_length, max(download.size - download.asked, 1))
    download.asked += asked
    download.reads += 1

    def got(kind: int, body: bytes) -> None:
        download.got(offset, asked, kind, body)
        short = asked - (len(body) - 4)
        if kind == Packet.DATA and short > 0 and offset + asked <= download.size:
            download.asked = min(download.asked, offset + len(body) - 4)

    read = download.handle + offset.to_bytes(8, "big") + asked.to_bytes(4, "big")
    client.post(Packet.READ, read, got)
