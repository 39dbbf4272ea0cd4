"""The stop files of the disk space monitor: each says whose it is, and no other is ever removed.

The first line is for people, the second for us. A disk may be too full for even that: such a file is empty, and
marked by a time of modification that no clock gives.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import NamedTuple

from mistamover import foreign, fs

SAYS = "stopped by the disk space monitor of mistamover"
"""How the first line begins."""
TEMPORARY = ".mistamover-stop"
LONGEST = 65536
"""Bytes of such a file, at most."""
WITHOUT_ROOM = 4_242_424_242
"""The time of modification of one that there was no room for, in nanoseconds since the epoch."""

_APPEND = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class StopFile(NamedTuple):
    """What a stop file of a monitor says."""

    monitor: str
    """The state directory of the service whose monitor made it; empty where there was no room to say so."""
    file_systems: tuple[str, ...] = ()
    """Where they are mounted; empty where that is not known."""


def read(directory: int, name: str) -> StopFile | None:
    """What the stop file in an open directory says; None where there is none, or it is somebody else's."""
    try:
        content, found = foreign.read(name, LONGEST, directory)
    except (OSError, foreign.Refused):
        return None
    if not content:
        return StopFile("") if found.st_mtime_ns == WITHOUT_ROOM else None
    return _parsed(content)


def _parsed(content: bytes) -> StopFile | None:
    """What it says, provided that it is just as we write it: a line more, and somebody has made it theirs."""
    try:
        first, second, rest = content.decode().split("\n")
        told = foreign.members(second.encode())
        if not first.startswith(SAYS) or rest:
            return None
        return StopFile(str(told["monitor"]), tuple(map(str, told["file_systems"])))
    except (foreign.Refused, ValueError, KeyError, TypeError):
        return None


def is_own(found: StopFile | None, monitor: str) -> bool:
    """Whether this monitor made it."""
    return found is not None and found.monitor in ("", monitor)


def put(directory: int, name: str, why: str, told: StopFile) -> bool:
    """Have a stop file there that says so; gives whether it is ours. ``OSError`` where it cannot be made."""
    content = f"{SAYS}: {why}\n{json.dumps(told._asdict())}\n".encode()
    found = read(directory, name)
    if is_own(found, told.monitor):
        if found != told:
            with suppress(OSError):  # no room for another file: the old one holds the stream as well
                _replace(directory, name, told.monitor, content)
        return True
    _draft(directory, content)
    try:
        fs.rename_new(TEMPORARY, directory, name, directory)
    except FileExistsError:
        os.unlink(TEMPORARY, dir_fd=directory)
        return False
    return True


def _draft(directory: int, content: bytes) -> None:
    fd = fs.create(TEMPORARY, directory, 0o644)
    try:
        _write(fd, content)
    finally:
        os.close(fd)


def _replace(directory: int, name: str, monitor: str, content: bytes) -> None:
    """Put a new file in the place of ours: what has the name may be another name of anybody's file by now.

    Where it is not ours any more when it is out of the way, it gets its name back.
    """
    _draft(directory, content)
    if not fs.exchange(TEMPORARY, directory, name, directory):
        os.rename(TEMPORARY, name, src_dir_fd=directory, dst_dir_fd=directory)
        return
    if not is_own(read(directory, TEMPORARY), monitor):
        fs.exchange(TEMPORARY, directory, name, directory)
    os.unlink(TEMPORARY, dir_fd=directory)


def _write(fd: int, content: bytes) -> None:
    """Write the content, or mark the file as ours where there is no room for it."""
    try:
        os.ftruncate(fd, 0)
        if os.write(fd, content) == len(content):
            return
    except OSError:
        pass
    os.ftruncate(fd, 0)
    os.utime(fd, ns=(WITHOUT_ROOM, WITHOUT_ROOM))


def take_over(directory: int, name: str, line: str) -> bool:
    """Make a monitor's stop file a person's by a line more; gives whether it is one now, and was a monitor's."""
    if read(directory, name) is None:
        return False
    try:
        fd = os.open(name, _APPEND, dir_fd=directory)
    except FileNotFoundError:
        return False
    try:
        _append(fd, f"{line}\n".encode())
        return os.path.samestat(os.fstat(fd), os.stat(name, dir_fd=directory, follow_symlinks=False))
    except FileNotFoundError:
        return False  # the monitor has removed it meanwhile
    finally:
        os.close(fd)


def _append(fd: int, content: bytes) -> None:
    """Add a line; without room for it, empty the file: with a time of today that is a person's."""
    try:
        if os.write(fd, content) == len(content):
            return
    except OSError:
        pass
    os.ftruncate(fd, 0)
    os.utime(fd)


def remove(directory: int, name: str, monitor: str) -> bool:
    """Remove the stop file if it is this monitor's; gives whether it was. ``OSError`` where it cannot be removed.

    It is first given another name, and looked at again: what anybody puts in its place meanwhile is safe.
    """
    if not is_own(read(directory, name), monitor):
        return False
    os.rename(name, TEMPORARY, src_dir_fd=directory, dst_dir_fd=directory)
    if is_own(read(directory, TEMPORARY), monitor):
        os.unlink(TEMPORARY, dir_fd=directory)
        return True
    with suppress(FileExistsError):
        fs.rename_new(TEMPORARY, directory, name, directory)
    return False
