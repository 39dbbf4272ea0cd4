"""Whole bags (RFC 8493): whether one is complete, and whether it is what it says, by the bagit library.

The library follows links, and reads whatever it is shown. So what a bag consists of is looked at first, and its
bytes are hashed here.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from logging import getLogger
from typing import Any

from mistamover import digest, fs
from mistamover.checksums import BAG_MANIFESTS, DECLARATION, MOST_BYTES, MOST_LINES, parse_manifest
from mistamover.foreign import Refused
from mistamover.proofs import NotYet, read
from mistamover.unit import Identity

MOST_ENTRIES = 200_000
"""Files and directories in one bag."""
DEEPEST = 64
"""Directories within each other."""
LARGEST_TAGS = 2**20
"""Bytes of a file of tags, which the library reads whole."""
MOST_LISTED = 2 * MOST_BYTES
"""Bytes of all lists of one bag together."""
LONGEST_REASON = 300
_MANIFEST = re.compile(r"(?:tag)?manifest-[a-z0-9_]+\.txt")
_DECLARATION = re.compile(
    rb"(?:\xef\xbb\xbf)?BagIt-Version[ \t]*:[ \t]*[0-9.]+[ \t]*\r?\n"
    rb"Tag-File-Character-Encoding[ \t]*:[ \t]*([0-9A-Za-z_.:-]+)\s*"
)
"""RFC 8493, section 2.1.1."""
_TAGS = (DECLARATION, "bag-info.txt", "package-info.txt")


class _Changed(Refused):
    """It is not what it was a moment ago."""

    def __str__(self) -> str:
        return "somebody wrote into it while it was proven"


def survey(bag: int) -> dict[str, Identity]:
    """All that is in a bag, by its path; those of directories end in a slash. Raises :class:`Refused`."""
    found: dict[str, Identity] = {}
    todo = [""]
    while todo:
        path = todo.pop()
        for name, status in _entries(bag, path):
            if stat.S_ISDIR(status.st_mode):
                todo.append(f"{path}{name}/")
            elif not stat.S_ISREG(status.st_mode):
                raise Refused(f"{path}{name} is no regular file")
            found[f"{path}{name}" + "/" * stat.S_ISDIR(status.st_mode)] = Identity.of(status)
            if len(found) > MOST_ENTRIES:
                raise Refused(f"it holds more than {MOST_ENTRIES:,} files and directories")
        if path.count("/") > DEEPEST:
            raise Refused(f"its directories lie more than {DEEPEST} deep")
    return found


def _entries(bag: int, path: str) -> Iterator[tuple[str, os.stat_result]]:
    fd = fs.open_directory(bag, path.rstrip("/"))
    try:
        for name in os.listdir(fd):
            yield name, os.stat(name, dir_fd=fd, follow_symlinks=False)
    finally:
        if fd != bag:
            os.close(fd)


def look_for_parts(bag: int, found: Mapping[str, Identity]) -> None:
    """Raise :class:`NotYet` where files that a bag should have are not among those that were found in it.

    Raises :class:`Refused`, and ``OSError``.
    """
    if DECLARATION not in found:
        raise NotYet(f"it has no {DECLARATION} yet")
    if not any(path.startswith("manifest-") for path in found):
        raise NotYet("it has no manifest yet")
    there = {_normal(path) for path in found}
    for name, algorithm in BAG_MANIFESTS.items():
        if name in found:
            listed = parse_manifest(read(name, bag, MOST_BYTES)[0], algorithm, bag=True)
            if missing := [path for path in listed if _normal(path) not in there]:
                raise NotYet(f"{name} lists {len(missing):,} files that are not there yet, such as {missing[0]}")


def _normal(path: str) -> str:
    return unicodedata.normalize("NFC", path)


def prove(bag: int, buffer: bytearray, tick: Callable[[int], None]) -> tuple[int, str]:
    """How many bytes a bag has, and what is wrong with it; ``tick(0)`` follows each read."""
    size = -1
    try:
        found = survey(bag)
        size = sum(identity.size for path, identity in found.items() if not path.endswith("/"))
        for path, digests in _stated(bag, found).items():
            _compare(bag, path, found[path].size, digests, buffer, tick)
        if survey(bag) != found:
            raise _Changed
    except (Refused, NotYet) as why:
        return size, str(why)
    return size, ""


def _stated(bag: int, found: Mapping[str, Identity]) -> dict[str, dict[str, str]]:
    """What the library takes the digests of each file to be, in a bag that it finds whole."""
    _judge_lists(bag, found)
    _judge_encoding(read(DECLARATION, bag, LARGEST_TAGS)[0])
    bagit = _library()
    try:
        whole = bagit.Bag(f"/proc/self/fd/{bag}")
        whole.validate(completeness_only=True)
    except Exception as error:  # it may be anything, where bags are hostile
        raise Refused(_said(error)) from error
    names = {_normal(path): path for path in found}
    stated = {names.get(_normal(path), path): dict(digests) for path, digests in whole.entries.items()}
    if missing := stated.keys() - found.keys():
        raise Refused(f"{min(missing)} is not there")
    return stated


def _judge_lists(bag: int, found: Mapping[str, Identity]) -> None:
    """Raise :class:`Refused` where the library would read more than a bag needs: it holds all lists at once."""
    left = MOST_LISTED
    for path, identity in found.items():
        if path in _TAGS and identity.size > LARGEST_TAGS:
            raise Refused(f"{path} has {identity.size:,} bytes, and may have {LARGEST_TAGS:,}")
        if _MANIFEST.fullmatch(path) or path == "fetch.txt":
            left -= identity.size
            if left < 0:
                raise Refused(f"its lists have more than {MOST_LISTED:,} bytes together")
            if read(path, bag, MOST_BYTES)[0].count(b"\n") > MOST_LINES:
                raise Refused(f"{path} has more than {MOST_LINES:,} lines")


def _judge_encoding(declaration: bytes) -> None:
    """Raise :class:`Refused` where the lists are in what Python takes for an encoding, and others do not.

    zlib and bz2 are among these: by them a list of one MiB has a GiB.
    """
    said = _DECLARATION.fullmatch(declaration)
    try:
        io.TextIOWrapper(io.BytesIO(), said[1].decode("ascii") if said else "")
    except (LookupError, ValueError) as error:
        raise Refused(f"its {DECLARATION} does not say a version and an encoding in two lines") from error


def _library() -> Any:
    import bagit  # an extra

    getLogger("bagit").disabled = True  # it tells by errors as well
    return bagit


def _said(error: Exception) -> str:
    """What the library found, in one line."""
    details = getattr(error, "details", None) or [error]
    more = f", and {len(details) - 1:,} more" if len(details) > 1 else ""
    return " ".join(f"the bag is wrong: {details[0] or type(error).__name__}{more}".split())[:LONGEST_REASON]


def _compare(
    bag: int, path: str, size: int, digests: Mapping[str, str], buffer: bytearray, tick: Callable[[int], None]
) -> None:
    hashers = {algorithm: _hasher(algorithm) for algorithm in digests}
    update, left = digest.together(*hashers.values()), size

    def take(part: memoryview) -> None:
        nonlocal left
        left -= len(part)
        if left < 0:  # who appends as fast as we read must not keep us busy for ever
            raise _Changed
        update(part)

    fd = _open(bag, path)
    try:
        digest.read_into(take, fd, buffer, tick)
        if fs.is_being_written(fd):
            raise Refused(f"{path} is being written")
    finally:
        os.close(fd)
    for algorithm, expected in sorted(digests.items(), reverse=True):
        if (actual := hashers[algorithm].hexdigest()) != expected.lower():
            raise Refused(f"the {algorithm} of {path} is {actual}, and the bag says {expected.lower()}")


def _open(bag: int, path: str) -> int:
    directory, _, name = path.rpartition("/")
    parent = fs.open_directory(bag, directory)
    try:
        return os.open(name, fs.FILE, dir_fd=parent)
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror}") from error
    finally:
        if parent != bag:
            os.close(parent)


def _hasher(algorithm: str) -> digest.Hasher:
    if algorithm.startswith("shake"):
        raise Refused(f"it has a manifest of {algorithm}, which has no fixed digest")
    return hashlib.new(algorithm, usedforsecurity=False)
