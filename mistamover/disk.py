"""Free space and inodes: reading them, levels with hysteresis, who is to be stopped, whose files go first.

Decisions are pure functions; what follows from them is the monitor's (``monitor.py``) and the lanes' (``lane.py``).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Sequence
from enum import Enum, IntEnum
from math import inf
from pathlib import Path
from typing import NamedTuple, Protocol

from mistamover.ini import Limit
from mistamover.unit import Unit

SMALL_SHARES = (15.0, 10.0, 5.0)
"""Percent that stand for levels in MB on a file system that is smaller than its ``level_good``."""
INODE_SHARES = (3.0, 2.0, 1.0)
"""Percent of the inodes that stand for levels in MB, which say nothing about them."""
RATE_OVER = 600.0
"""Seconds that the rate of change is of, at most."""
SOONEST = 1.0
"""Seconds at least between two looks at a file system."""


class Limits(Protocol):
    """The levels of ``[disk_space_monitor]``, falling."""

    @property
    def level_good(self) -> Limit:
        """All streams go on above this."""

    @property
    def level_low(self) -> Limit:
        """Streams up to ``base_priority`` are stopped below this."""

    @property
    def level_vlow(self) -> Limit:
        """Units are deleted and all streams stopped below this."""


# -- reading -----------------------------------------------------------------------------------------------


class Space(NamedTuple):
    """What a file system has, in bytes and inodes; ``inodes`` is None where it has no fixed number of them."""

    free: int
    """For others than root."""
    inodes: int | None = None
    """Free ones."""
    total: int = 0
    all_inodes: int = 0
    block: int = 1
    """What a file takes is a multiple of this."""


def space(place: Path | str | int) -> Space:
    """The space of the file system that a path or an open file is on (statvfs(3)); raises ``OSError``."""
    found = os.statvfs(place)
    block = found.f_frsize or found.f_bsize
    has_number = found.f_files > 0
    return Space(
        found.f_bavail * block,
        found.f_favail if has_number else None,
        found.f_blocks * block,
        found.f_files,
        max(block, 1),
    )


def room(found: Space) -> Space | None:
    """What a file system has, where it tells that at all: some in user space say zero to everything."""
    return found if found.total else None


def mount_point(path: Path) -> Path:
    """The directory at which the file system of ``path`` is mounted; raises ``OSError`` where there is no path."""
    place = Path(os.path.realpath(path))
    device = os.stat(place).st_dev
    while place != place.parent and os.stat(place.parent).st_dev == device and not os.path.ismount(place):
        place = place.parent
    return place


# -- levels ------------------------------------------------------------------------------------------------


class Level(IntEnum):
    """How much is free, the worse the higher."""

    GOOD = 0
    OKAY = 1
    """Between ``level_low`` and ``level_good``: nothing changes."""
    LOW = 2
    VLOW = 3


class Marks(NamedTuple):
    """The levels of one file system: of bytes, or of inodes."""

    good: float
    low: float
    vlow: float

    def level(self, free: float) -> Level:
        """Where so much is, among them."""
        return Level(sum(free < mark for mark in self))


def byte_marks(limits: Limits, space: Space) -> Marks:
    """The levels in bytes: none where the file system does not tell its size, as some in user space do not."""
    if not space.total:
        return Marks(0, 0, 0)
    given = limits.level_good, limits.level_low, limits.level_vlow
    if limits.level_good.is_share or space.total <= limits.level_good.amount:
        shares = [limit.amount for limit in given] if limits.level_good.is_share else SMALL_SHARES
        return Marks(*(share / 100 * space.total for share in shares))
    return Marks(*(limit.amount for limit in given))


def inode_marks(limits: Limits, space: Space) -> Marks:
    """The levels in inodes."""
    given = limits.level_good, limits.level_low, limits.level_vlow
    shares = [limit.amount for limit in given] if limits.level_good.is_share else INODE_SHARES
    return Marks(*(share / 100 * space.all_inodes for share in shares))


def level(limits: Limits, space: Space) -> Level:
    """The worse one of bytes and inodes."""
    by_bytes = byte_marks(limits, space).level(space.free)
    if space.inodes is None:
        return by_bytes
    return max(by_bytes, inode_marks(limits, space).level(space.inodes))


def runs_out_of_inodes(limits: Limits, space: Space) -> bool:
    """Whether inodes are why the level is what it is, rather than bytes."""
    return byte_marks(limits, space).level(space.free) < level(limits, space)


# -- who is to be stopped ----------------------------------------------------------------------------------


class Held(IntEnum):
    """Which streams of a file system are stopped, the more the higher."""

    NOBODY = 0
    LOWER = 1
    """Those with a priority up to ``base_priority``."""
    ALL = 2


def held(before: Held, now: Level) -> Held:
    """Which streams are to be stopped, given which were: what was stopped goes on at a higher level than it ended.

    Below ``level_low`` the lower ones are stopped, below ``level_vlow`` all. Above ``level_low`` again the upper
    ones go on, above ``level_good`` all.
    """
    if now is Level.GOOD:
        return Held.NOBODY
    if now is Level.OKAY:
        return min(before, Held.LOWER)
    return max(before, Held.LOWER) if now is Level.LOW else Held.ALL


def is_stopped(held: Held, priority: int, base_priority: int) -> bool:
    """Whether a stream of this priority is among them."""
    return held is Held.ALL or (held is Held.LOWER and priority <= base_priority)


# -- whose files go first ----------------------------------------------------------------------------------


class Stage(Enum):
    """What is deleted, one stage after the other: what exists nowhere else comes last."""

    DELIVERED = "delivered"
    """What the ledger says the target has; and the trash, which is of such units."""
    QUARANTINE = "quarantine"
    UNSENT = "unsent"

    @property
    def loses(self) -> bool:
        """Whether it is of units that exist nowhere else."""
        return self is not Stage.DELIVERED


class Deletable(NamedTuple):
    """A stream, as far as it matters for deleting."""

    name: str
    priority: int
    deletes: bool
    """``deletion_enabled``"""
    deletes_unsent: bool


def deletions(streams: Iterable[Deletable], base_priority: int) -> list[tuple[Stage, str]]:
    """What is to be deleted of which stream, in this order until there is room: the lowest priority first."""
    willing = sorted(
        (one for one in streams if one.deletes and one.priority <= base_priority),
        key=lambda one: (one.priority, one.name),
    )
    return [(stage, one.name) for stage in Stage for one in willing if one.deletes_unsent or not stage.loses]


class Need(NamedTuple):
    """What is missing up to ``level_vlow``, or what was freed."""

    bytes: float = 0
    inodes: float = 0

    @property
    def is_met(self) -> bool:
        """Whether nothing is missing."""
        return self.bytes <= 0 and self.inodes <= 0

    def less(self, gain: Need) -> Need:
        """What is missing after so much more was freed."""
        return Need(self.bytes - gain.bytes, self.inodes - gain.inodes)


def need(limits: Limits, space: Space) -> Need:
    """What is missing up to ``level_vlow``."""
    inodes = 0.0 if space.inodes is None else inode_marks(limits, space).vlow - space.inodes
    return Need(byte_marks(limits, space).vlow - space.free, inodes)


# -- how it changes ----------------------------------------------------------------------------------------


class Sample(NamedTuple):
    """What was free at a moment of the monotonic clock, in seconds."""

    moment: float
    free: int
    inodes: int | None = None


class Trend:
    """How free space changes, from samples of the last minutes."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque()

    def add(self, sample: Sample) -> None:
        """Take a sample, newer than all others."""
        self._samples.append(sample)
        while len(self._samples) > 2 and self._samples[1].moment <= sample.moment - RATE_OVER:
            self._samples.popleft()

    @property
    def rate(self) -> float | None:
        """Bytes a second by which free space grows; None where it is not known yet."""
        return self._slope([sample.free for sample in self._samples])

    @property
    def inode_rate(self) -> float | None:
        """Inodes a second by which the free ones grow."""
        counts = [sample.inodes for sample in self._samples if sample.inodes is not None]
        return self._slope(counts) if len(counts) == len(self._samples) else None

    def _slope(self, amounts: Sequence[int]) -> float | None:
        if len(amounts) < 2:
            return None
        seconds = self._samples[-1].moment - self._samples[0].moment
        return (amounts[-1] - amounts[0]) / seconds if seconds > 0 else None


def seconds_until(amount: float, rate: float | None) -> float:
    """Seconds until so much is used up, at a rate by which it grows; infinite where it does not shrink."""
    return amount / -rate if rate is not None and rate < 0 else inf


def full_in(space: Space, trend: Trend) -> float:
    """Seconds until bytes or inodes are used up at this rate; infinite where neither shrinks."""
    by_inodes = inf if space.inodes is None else seconds_until(space.inodes, trend.inode_rate)
    return min(seconds_until(space.free, trend.rate), by_inodes)


def next_look(limits: Limits, space: Space, trend: Trend, interval: float) -> float:
    """Seconds until the next look: sooner than ``interval`` where a level would be passed before that."""
    ways = [(space.free, byte_marks(limits, space), trend.rate)]
    if space.inodes is not None:
        ways.append((space.inodes, inode_marks(limits, space), trend.inode_rate))
    passed = (seconds_until(free - mark, rate) for free, marks, rate in ways for mark in marks if mark < free)
    return max(min(interval, min(passed, default=inf) / 2), SOONEST)


# -- room for a batch --------------------------------------------------------------------------------------


def takes(unit: Unit, block: int) -> int:
    """Bytes that a unit takes at the target."""
    return -(-unit.size // block) * block


def fitting(units: Sequence[Unit], room: Space) -> tuple[list[Unit], list[Unit]]:
    """The units that find room, in their order, and the others: where not all do, the smallest ones."""
    inodes = inf if room.inodes is None else room.inodes
    if sum(takes(unit, room.block) for unit in units) <= room.free and len(units) <= inodes:
        return list(units), []
    left = room.free
    fits: set[str] = set()
    for unit in sorted(units, key=lambda unit: unit.size):
        left -= takes(unit, room.block)
        if left < 0 or len(fits) >= inodes:
            break
        fits.add(unit.path)
    return [unit for unit in units if unit.path in fits], [unit for unit in units if unit.path not in fits]
