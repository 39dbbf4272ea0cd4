"""Servers whose listings do not end, or hold names that lead out of the directory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pyftpdlib.filesystems import AbstractedFS

from mistamover.errors import TargetRefused
from mistamover.handshake import LARGEST
from mistamover.testing.rig import Rig, write
from mistamover.transports.ftp import Ftp
from mistamover.transports.sftp import Sftp
from mistamover.transports.sftp_client import Packet, SftpClient, Status, string
from mistamover.unit import Identity, Unit
from tests.strange_ftpd import strange_server
from tests.test_sftp_client import Answering, framed, status
from tests.transports.test_ftp import strange

WAYS_OUT = ("/../../precious", "/precious", "x" * 250)
"""After our own tag; the last one is longer than any name."""


class Listing:
    """An SFTP server that lists what it is told to list, and notes what it is to remove."""

    def __init__(self, replies: Iterator[Sequence[bytes]]) -> None:
        self._replies = replies
        self.removed: list[bytes] = []

    def answer(self, kind: int, number: int, body: bytes) -> Iterator[bytes]:
        if kind == Packet.OPENDIR:
            yield framed(Packet.HANDLE, number, string(b"handle"))
        elif kind == Packet.READDIR and (names := next(self._replies, None)) is not None:
            entries = b"".join(string(name) + string(b"") + bytes(4) for name in names)
            yield framed(Packet.NAME, number, len(names).to_bytes(4, "big") + entries)
        elif kind == Packet.REMOVE:
            self.removed.append(body[4:])
            yield status(number)
        else:
            yield status(number, Status.EOF)


def over_sftp(rig: Rig, listing: Listing) -> Sftp:
    transport = cast("Sftp", rig.transport())
    transport._client = SftpClient(Answering(listing.answer))
    return transport


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path, {"outgoing": {"transfer_protocol": "sftp", "target_host": "archive.example.org"}})
    yield rig
    rig.close()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("names", [(), (b"foreign",), tuple(f"{number}".encode() for number in range(1000))])
def test_sftp_gives_up_a_listing_without_an_end(rig: Rig, names: Sequence[bytes]) -> None:
    """Also one whose answers hold no name at all."""
    listing = Listing(repeat(names))
    with pytest.raises(TargetRefused, match="does not end"):
        over_sftp(rig, listing).sweep()
    assert listing.removed == []


def deep(kind: int, number: int, _body: bytes) -> Iterator[bytes]:
    """Says that each directory holds another one."""
    if kind == Packet.OPENDIR:
        yield framed(Packet.HANDLE, number, string(b"handle"))
        listings.append(number)
    elif kind == Packet.READDIR and listings:
        listings.clear()
        yield framed(Packet.NAME, number, (1).to_bytes(4, "big") + string(b"n" * 100) + string(b"") + bytes(4))
    elif kind == Packet.LSTAT:
        yield framed(Packet.ATTRS, number, (4).to_bytes(4, "big") + (0o40755).to_bytes(4, "big"))
    else:
        yield status(number, Status.EOF)


listings: list[int] = []


@pytest.mark.timeout(60)
def test_sftp_gives_up_a_tree_without_an_end(rig: Rig) -> None:
    transport = cast("Sftp", rig.transport())
    transport._client = SftpClient(Answering(deep))
    with pytest.raises(TargetRefused, match="does not end"):
        transport.entries(Unit("tree", Identity(1, 1, 0, 0, 0)))


def notes(kind: int, number: int, body: bytes) -> Iterator[bytes]:
    """Says that a file is small, and gives more of it."""
    if kind == Packet.LSTAT:
        yield framed(Packet.ATTRS, number, (5).to_bytes(4, "big") + bytes(8) + (0o100644).to_bytes(4, "big"))
    elif kind == Packet.OPEN:
        yield framed(Packet.HANDLE, number, string(b"large" if b"large" in body else b"small"))
    elif kind == Packet.READ:
        yield framed(Packet.DATA, number, string(bytes(LARGEST + (b"large" in body))))
    else:
        yield status(number)


def test_sftp_takes_no_note_that_is_larger_than_it_may_be(rig: Rig) -> None:
    transport = cast("Sftp", rig.transport())
    transport._client, transport._is_far = SftpClient(Answering(notes)), False
    assert transport.fetch_notes(["small", "large"]) == {"small": bytes(LARGEST)}


def test_sftp_removes_nothing_outside_the_staging_directory(rig: Rig) -> None:
    tag = rig.transport().tag
    ours = f"{tag}0001".encode()
    names = [b".", b"..", b"", b"foreign", ours, *(f"{tag}{way}".encode() for way in WAYS_OUT)]
    listing = Listing(iter([names]))
    assert over_sftp(rig, listing).sweep() == 1
    assert listing.removed == [os.fsencode(f"{rig.target}/.mistamover/images/") + ours]


class Endless(AbstractedFS):  # type: ignore[misc] # it has no types
    """Lists one name over and over."""

    def format_mlsx(self, *_: Any, **__: Any) -> Iterator[bytes]:
        return repeat(b"type=file; " + b"n" * 1000 + b"\r\n")

    def format_list(self, *_: Any, **__: Any) -> Iterator[bytes]:
        return self.format_mlsx()


@pytest.mark.timeout(60)
def test_ftp_gives_up_a_listing_without_an_end(tmp_path: Path) -> None:
    with strange_server(abstracted_fs=Endless) as (port, _):
        rig = Rig(tmp_path, strange(port))
        transport = rig.open()
        with pytest.raises(TargetRefused, match="does not end"):
            transport.sweep()
        rig.close()


@pytest.mark.timeout(60)
def test_ftp_gives_up_a_tree_without_an_end() -> None:
    outgoing = SimpleNamespace(target_host="archive.example.org")
    deep = SimpleNamespace(
        _names=lambda _path, _most: [b"n" * 100], _directories=set, settings=SimpleNamespace(outgoing=outgoing)
    )
    with pytest.raises(TargetRefused, match="does not end"):
        list(Ftp._walk(cast("Ftp", deep), "/place"))


def test_ftp_removes_nothing_outside_the_staging_directory(tmp_path: Path) -> None:
    tags: list[str] = []

    class Lying(AbstractedFS):  # type: ignore[misc]
        """Says that there are names which lead elsewhere."""

        def format_mlsx(self, *_: Any, **__: Any) -> Iterator[bytes]:
            for way in ("0001", *WAYS_OUT):
                yield f"type=file; {tags[0]}{way}\r\n".encode()

    with strange_server(abstracted_fs=Lying) as (port, server):
        rig = Rig(tmp_path, strange(port))
        transport = rig.open()
        tags.append(transport.tag)
        precious = write(rig.target / "precious", b"precious")
        (rig.target / "staging/images" / transport.tag).mkdir()
        said = len(server.said)
        assert transport.sweep() == 1
        assert server.said[said:].count("DELE") == 1
        assert precious.exists()
        rig.close()
