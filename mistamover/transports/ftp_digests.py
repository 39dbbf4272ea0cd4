"""The commands by which an FTP server gives the digest of a file, as far as FEAT offers them.

HASH is draft-bryan-ftpext-hash; the others have no standard, and several servers have them.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import NamedTuple

from mistamover import digest

HASHES = {"SHA-256": "sha256", "SHA-512": "sha512", "MD5": "md5", "CRC32": "crc32"}
QUICK = ("SHA-1", "SHA-256")
COMMANDS = {"XSHA256": "sha256", "XSHA512": "sha512", "XMD5": "md5", "MD5": "md5", "XCRC": "crc32"}
"""In the order in which they are taken, but for one that gives the stream's own digest."""


class Digests(NamedTuple):
    """How a server is asked for a digest."""

    command: str
    algorithm: str
    select: str = ""
    """What has to be said before."""
    aside: str = ""
    """What has to be said before files are sent.

    Servers remember the digest of what they receive and answer by that, without a look at the disk (ProFTPD,
    mod_digest: by path, time and algorithm). They remember none of the algorithm that is asked for if another
    one is selected meanwhile.
    """

    def confirms(self, answer: str, expected: str) -> bool:
        """Whether a reply holds the digest."""
        if self.algorithm == "crc32":
            return _number(expected) in {_number(word) for word in answer.split()}
        return expected in answer.lower().split()


def choose_digests(features: Mapping[str, str], checksum: str) -> Digests | None:
    """The best that a server offers; ``checksum`` is the stream's, which saves hashing twice.

    ``features`` are the words of FEAT (RFC 2389), in capitals, with what follows each.
    """
    offered = [name.strip("* ") for name in features.get("HASH", "").upper().split(";")]
    names = sorted((name for name in HASHES if name in offered), key=lambda name: HASHES[name] != checksum)
    others = sorted((name for name in offered if name and name not in names[:1]), key=_cost)
    if names and others:
        return Digests("HASH", HASHES[names[0]], f"OPTS HASH {names[0]}", f"OPTS HASH {others[0]}")
    if "HASH" in features:
        return None  # of the one algorithm that it has, it may remember what it received
    commands = sorted((name for name in COMMANDS if name in features), key=lambda name: COMMANDS[name] != checksum)
    return Digests(commands[0], COMMANDS[commands[0]]) if commands else None


def _cost(name: str) -> int:
    """The place of an algorithm among those that a server computes while it receives: processors help with some."""
    return QUICK.index(name) if name in QUICK else len(QUICK)


def hasher(algorithm: str) -> digest.Hasher:
    """An object that hashes as the server does."""
    return _Crc32() if algorithm == "crc32" else digest.ALGORITHMS[algorithm]()


class _Crc32:
    """CRC-32 with the face of a digest."""

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        self._value = zlib.crc32(data, self._value)

    def hexdigest(self) -> str:
        return f"{self._value:08x}"


def _number(word: str) -> int | None:
    """Servers leave leading zeros out, or not."""
    try:
        return int(word, 16) if len(word) <= 8 else None
    except ValueError:
        return None
