"""The digest algorithms, and hashing what a file descriptor gives."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from typing import Protocol

CHUNK = 256 * 1024


class Hasher(Protocol):
    """What hashlib and xxhash objects have in common."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        """Take in more bytes."""

    def hexdigest(self) -> str:
        """The digest of all bytes so far, in lower-case hexadecimal."""


def _xxh128() -> Hasher:
    import xxhash  # an extra: only those who ask for it need it

    return xxhash.xxh3_128()


ALGORITHMS: dict[str, Callable[[], Hasher]] = {
    "sha256": hashlib.sha256,
    "sha512": hashlib.sha512,
    "md5": lambda: hashlib.md5(usedforsecurity=False),
    "blake2b": hashlib.blake2b,
    "xxh128": _xxh128,
}

COMMANDS: dict[str, tuple[str, ...]] = {
    "sha256": ("openssl dgst -sha256 -r", "sha256sum"),
    "sha512": ("openssl dgst -sha512 -r", "sha512sum"),
    "md5": ("openssl dgst -md5 -r", "md5sum"),
    "blake2b": ("openssl dgst -blake2b512 -r", "b2sum"),
    "xxh128": ("xxh128sum",),
}
"""Programs that print ``DIGEST FILE`` lines, the fastest first: OpenSSL uses the CPU's own instructions."""


def together(*hashers: Hasher) -> Callable[[bytes | bytearray | memoryview], None]:
    """What takes bytes in for several digests, so that a file is read but once."""

    def update(data: bytes | bytearray | memoryview) -> None:
        for hasher in hashers:
            hasher.update(data)

    return update


def of_bytes(algorithm: str, data: bytes) -> str:
    """The digest of ``data``."""
    hasher = ALGORITHMS[algorithm]()
    hasher.update(data)
    return hasher.hexdigest()


def of_descriptor(
    algorithm: str, fd: int, buffer: bytearray, tick: Callable[[int], None] = lambda _: None
) -> tuple[str, int]:
    """The digest of all that ``fd`` gives from its current place on, and how many bytes that was.

    ``buffer`` is the caller's to keep, so that many small files share one. ``tick(0)`` follows each read.
    """
    hasher = ALGORITHMS[algorithm]()
    total = read_into(hasher.update, fd, buffer, tick)
    return hasher.hexdigest(), total


def read_into(
    update: Callable[[memoryview], None], fd: int, buffer: bytearray, tick: Callable[[int], None] = lambda _: None
) -> int:
    """Give ``update`` all that ``fd`` gives from its current place on; as :func:`of_descriptor`."""
    total = 0
    view = memoryview(buffer)
    while got := os.readv(fd, [buffer]):
        update(view[:got])
        total += got
        tick(0)
    return total
