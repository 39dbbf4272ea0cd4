"""Small files that somebody else may have written, or put there: read with suspicion, or refused.

No link is followed, nobody's FIFO is waited for, and no more is read than such a file may have.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mistamover import fs

LARGEST_STATE = 64 * 2**20
"""Bytes of a file in the state directory: a thousand streams take less than one MiB."""


class Refused(Exception):
    """What somebody else wrote that cannot be what it should be, and why."""


@contextmanager
def opened(
    name: str | os.PathLike[str], most: int, dir_fd: int | None = None
) -> Iterator[tuple[int, os.stat_result]]:
    """The descriptor of a regular file of at most ``most`` bytes; raises :class:`Refused`, and ``OSError``."""
    try:
        fd = os.open(name, fs.FILE, dir_fd=dir_fd)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise Refused("it is a link or a socket") from error
        raise
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise Refused("it is no regular file")
        if found.st_size > most:
            raise Refused(f"it has {found.st_size:,} bytes, and may have {most:,}")
        yield fd, found
    finally:
        os.close(fd)


def content(fd: int, most: int) -> bytes:
    """What an open file holds; of one that grows meanwhile, no more than ``most`` bytes."""
    with open(fd, "rb", closefd=False) as file:
        return file.read(most)


def read(name: str | os.PathLike[str], most: int, dir_fd: int | None = None) -> tuple[bytes, os.stat_result]:
    """The bytes of such a file, and what it is; raises :class:`Refused`, and ``OSError``."""
    with opened(name, most, dir_fd) as (fd, found):
        return content(fd, most), found


def is_ours(found: os.stat_result) -> bool:
    """Whether we, or root, made a file that not everybody may write: only then is believed what it says."""
    return found.st_uid in (0, os.geteuid()) and not found.st_mode & stat.S_IWOTH


def members(data: bytes) -> dict[str, Any]:
    """The members of an object in JSON; raises :class:`Refused`."""
    import json  # here: most runs read none, and start sooner

    try:
        said = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Refused("it is no JSON") from error
    if not isinstance(said, dict):
        raise Refused("it is no object of JSON")
    return said
