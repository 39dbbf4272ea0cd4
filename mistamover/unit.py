"""Units and the decisions about them: pure functions of values, with time as an argument.

Paths are relative to the spool, ``/`` between the parts, decoded by ``os.fsdecode``: bytes that are no UTF-8
become lone surrogates and come back byte for byte by ``os.fsencode``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum
from fnmatch import translate
from math import ceil
from typing import NamedTuple
from zlib import crc32

from mistamover.errors import UnitError

BATCH_FILES = 1024
BATCH_BYTES = 256 * 2**20
BATCH_DIRECTORIES = 16
"""Directories that a lane takes at once: few, so that all lanes have some."""
LONGEST_WAIT = 6 * 3600.0
"""Seconds after which the doubling of a failing unit's wait stops."""

OWN_NAME = ".mistamover"
"""The one name that is ours in a spool and in a target directory."""
OWN_PLACES = ("lock", "trash", "quarantine")
"""What lies there in a spool; beside it, where others push into that spool, their staged files by stream."""


class State(str, Enum):
    """Where a unit is in its life (``docs/design.rst``, "The life of a file")."""

    FOUND = "found"
    WAITING = "waiting"
    DELIVERED = "delivered"
    REMOVED = "removed"
    QUARANTINED = "quarantined"
    DELETED = "deleted"
    """For want of space, and never delivered."""


_END = 2**63
"""What databases cannot hold any more: inodes of some file systems, and times after 2262 or before 1678."""


class Identity(NamedTuple):
    """What makes a file the very file that was found. Any change to it shows in at least one of these."""

    dev: int
    ino: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, stat: os.stat_result) -> Identity:
        """The identity of the file that ``stat`` describes."""
        ino, mtime_ns = stat.st_ino, stat.st_mtime_ns
        if ino >= _END or not -_END <= mtime_ns < _END:
            ino, mtime_ns = ino - 2 * _END if ino >= _END else ino, max(-_END, min(mtime_ns, _END - 1))
        return cls(stat.st_dev, ino, stat.st_size, mtime_ns, stat.st_ctime_ns)

    def is_same_but_for_ctime(self, other: Identity) -> bool:
        """Whether both are one unchanged file that may have been renamed: renaming moves the ctime."""
        return self[:4] == other[:4]


BATCH_DIGITS = 18
"""How many digits of a staged name say in which try of which batch it was given."""


class Content(NamedTuple):
    """One file of a directory that was delivered."""

    path: str
    """In the spool: it begins with the directory's name."""
    size: int
    digest: str


class Stated(NamedTuple):
    """What somebody else says of the bytes of a unit."""

    algorithm: str
    digest: str
    where: str
    """The path of the file that says so."""
    is_older: bool = False
    """Whether that file is older than the unit: it may be about an earlier version, and be about to change."""


class Unit(NamedTuple):
    """One file, or one whole directory, on its way. Values: every step makes a new one."""

    path: str
    identity: Identity
    staged: str = ""
    """Its name in the staging directory: hexadecimal, ours."""
    digest: str = ""
    """Of the bytes that were read at the source, hexadecimal; empty until it was sent."""
    proof: str = ""
    """How it was shown that the target holds these bytes; empty until it was verified."""
    is_update: bool = False
    """Whether the target's file of its name is an earlier delivery of this mirror, which it may replace."""
    may_be_there: bool = False
    """Whether the target is to be looked at before it is sent: a mirror has lost its ledger, or has a first one."""
    attempt: int = 1
    """Which try of this very file this is: those that failed, and those that a failing target cut off, count."""
    contents: tuple[Content, ...] = ()
    """Of a directory that was sent: its files."""
    md5: str = ""
    """Of the same bytes as ``digest``, where an arrivals monitor asks for it and ``digest`` is another one."""

    renamed: str = ""
    """Its path at the target, where that is another one than in the spool."""
    stated: tuple[Stated, ...] = ()
    """What its bytes have to be, all of it; compared when it is read."""

    @property
    def final(self) -> str:
        """Its path at the target."""
        return self.renamed or self.path

    @property
    def size(self) -> int:
        """Bytes when it was found."""
        return self.identity.size


class Folder(NamedTuple):
    """A directory within a directory that is a unit, or that one itself."""

    path: str
    """In the spool."""
    mtime_ns: int


class Directory(NamedTuple):
    """A directory that is a unit, and all that is in it."""

    unit: Unit
    files: Sequence[Unit]
    folders: Sequence[Folder]
    """The directory itself first, and each before those in it."""

    def below(self, path: str) -> str:
        """The path of something in it, from the directory on; empty for itself."""
        return path[len(self.unit.path) + 1 :]

    @property
    def entries(self) -> set[str]:
        """The paths of all that is in it, from the directory on; those of directories end in a slash."""
        folders = {f"{self.below(folder.path)}/" for folder in self.folders[1:]}
        return folders | {self.below(file.path) for file in self.files}


class Outcome(NamedTuple):
    """What came of one verb for one unit: the unit as it is now, or the unit with its error."""

    unit: Unit
    error: UnitError | None = None


class Record(NamedTuple):
    """What the ledger last knew of a path at the target."""

    id: int
    identity: Identity
    state: State
    attempts: int
    next_try: float
    """Seconds since the epoch; 0 where nothing waits."""
    reason: str


class Verdict(str, Enum):
    """What a pass does with a unit that it found."""

    SEND = "send"
    REMOVE = "remove"
    """Delivered before, and still the same file: only its removal is missing."""
    WAIT = "wait"
    """Failed before; its time has not come."""
    HOLD = "hold"
    """In quarantine, until a person releases it or it changes."""
    KEEP = "keep"
    """Mirrored before, and unchanged since."""


def judge(unit: Unit, record: Record | None, *, mirror: bool, now: float) -> Verdict:
    """Decide about a unit from what the ledger knows of it; ``now`` in seconds since the epoch.

    A record of another version of the file says nothing about this one. A time of next try that lies too
    far ahead was written before the clock was set back, and binds nobody.
    """
    if record is None or record.identity != unit.identity:
        return Verdict.SEND
    if record.state is State.DELIVERED:
        return Verdict.KEEP if mirror else Verdict.REMOVE
    if record.state is State.QUARANTINED:
        return Verdict.HOLD
    if record.state is State.WAITING and now < record.next_try <= now + LONGEST_WAIT:
        return Verdict.WAIT
    return Verdict.SEND


def attempts_before(unit: Unit, record: Record | None) -> int:
    """How often this very file has failed, as far as the ledger knows."""
    return record.attempts if record is not None and record.identity == unit.identity else 0


def unit_id(unit: Unit) -> str:
    """What joins all that is told of one file: 8 hexadecimal digits, the same for every try of this very file."""
    text = f"{':'.join(map(str, unit.identity))}:{unit.path}"
    return f"{crc32(os.fsencode(text)):08x}"


def next_wait(attempts: int, interval: float, jitter: float) -> float:
    """Seconds until a unit that failed ``attempts`` times is tried again.

    ``interval`` doubles with each failure; ``jitter`` in 0..1 spreads the tries over the upper half.
    """
    wait = min(interval * 2.0 ** min(attempts - 1, 40), LONGEST_WAIT)
    return wait * (0.5 + jitter / 2)


def settles_in(identity: Identity, settle_time: float, now: float) -> float:
    """Seconds until a file found just now was left alone for ``settle_time``; ``now`` since the epoch.

    0 or less where it was. More than ``settle_time`` for times in the future: they prove nothing, so such a file
    has to be watched. The ctime is what no program can set back.
    """
    return max(identity.mtime_ns, identity.ctime_ns) / 1e9 + settle_time - now


def looks_settled(identity: Identity, settle_time: float, now: float) -> bool:
    """Whether a file found just now was left alone for ``settle_time`` seconds; ``now`` since the epoch."""
    return settles_in(identity, settle_time, now) <= 0


class Ignored:
    """Which names are no units: dot-names and those that match one of the patterns."""

    def __init__(self, patterns: Iterable[str]) -> None:
        import re

        self._match: Callable[[str], object] = re.compile(
            "|".join(translate(pattern) for pattern in patterns) or r"(?!)"
        ).match

    def __call__(self, name: str) -> bool:
        """Whether the file or directory called ``name`` is to be left alone."""
        return name[0] == "." or self._match(name) is not None


def named(batch: Sequence[Unit], begin: str, number: int) -> list[Unit]:
    """The units of a try with staged names of its own: what an earlier one was asked for may still be done later.

    ``begin`` is of the stream's run, 12 digits; ``number`` is of the try.
    """
    first = f"{begin}{number:06x}"[:BATCH_DIGITS]
    return [unit._replace(staged=f"{first}{index:03x}") for index, unit in enumerate(batch)]


ORDERS: dict[str, Callable[[Unit], int]] = {
    "oldest": lambda unit: unit.identity.mtime_ns,
    "newest": lambda unit: -unit.identity.mtime_ns,
    "smallest": lambda unit: unit.identity.size,
    "largest": lambda unit: -unit.identity.size,
}


def batches(units: Iterable[Unit], files: int = BATCH_FILES, size: int = BATCH_BYTES) -> Iterator[list[Unit]]:
    """Cut units into batches of up to ``files`` files and ``size`` bytes; a larger file is alone in its own."""
    batch: list[Unit] = []
    filled = 0
    for unit in units:
        if batch and filled + unit.size > size:
            yield batch
            batch, filled = [], 0
        batch.append(unit)
        filled += unit.size
        if len(batch) == files:
            yield batch
            batch, filled = [], 0
    if batch:
        yield batch


def even_batches(units: Sequence[Unit], lanes: int, files: int = BATCH_FILES) -> Iterator[list[Unit]]:
    """The same for ``lanes`` that work side by side, about as large for each.

    Else some lanes would wait at the end while one carries what was left over.
    """
    size = sum(unit.size for unit in units if unit.size <= BATCH_BYTES)
    few = min(files, BATCH_FILES)
    return batches(units, _even(len(units), few, files, lanes), _even(size, BATCH_BYTES, BATCH_BYTES, lanes))


def _even(amount: int, few: int, most: int, lanes: int) -> int:
    """How much of an amount each part takes, so that each lane has as many parts of up to ``most``.

    Up to ``few`` are not parted.
    """
    return most if amount <= few else ceil(amount / (ceil(amount / most / lanes) * lanes))
