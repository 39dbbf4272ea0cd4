"""What a stream tells of itself, what a pass comes to, and the wish to stop it."""

from __future__ import annotations

import os
import select
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from math import ceil, inf
from typing import NamedTuple
from weakref import finalize

from mistamover.errors import Exit, MistamoverError, UnitError
from mistamover.unit import Unit

BREATH = 0.8
"""Seconds between two signs that we are alive, or a moment more."""


class Kind(str, Enum):
    """What can happen to a unit, or to the stream."""

    ARRIVED = "arrived"
    REFUSED = "refused"
    """Set aside at its arrival."""
    DELIVERED = "delivered"
    REMOVED = "removed"
    NOT_REMOVED = "not-removed"
    CHANGED = "changed"
    VANISHED = "vanished"
    WAITING = "waiting"
    QUARANTINED = "quarantined"
    SKIPPED = "skipped"
    UNCHANGED = "unchanged"
    RECOVERED = "recovered"
    SETTLING = "settling"
    TARGET = "target"
    PAUSED = "paused"
    WOULD_SEND = "would-send"
    WOULD_REMOVE = "would-remove"


class Event(NamedTuple):
    """One thing that happened; ``path`` is empty where it is the stream's."""

    kind: Kind
    path: str = ""
    reason: str = ""
    unit: Unit | None = None
    seconds: float = 0.0
    """Of a delivery: since its batch was begun."""
    error: UnitError | None = None
    """What went wrong with the unit just now."""


Report = Callable[[Event], None]


@dataclass
class Summary:
    """What a pass came to. Read by displays while it runs."""

    counts: Counter[Kind] = field(default_factory=Counter)
    proofs: Counter[str] = field(default_factory=Counter)
    found: int = 0
    found_bytes: int = 0
    """Of the units that this pass is to send, as far as it has looked."""
    settles_at: float = inf
    """When the first of the units that still settle will have done so, on the monotonic clock."""
    waiting: int = 0
    waiting_bytes: int = 0
    """Of the units that are not delivered, as far as it has looked: on their way, settling, or failed before."""
    oldest: float = 0.0
    """The time of the oldest that this pass found of them, in seconds since the epoch; 0 where there is none."""
    waits_since: float = 0.0
    """When the one that waits longest came to be as it is, whatever its own time says; seconds since the epoch."""
    waits_longest: str = ""
    """Its path."""
    newest: float = 0.0
    """When the last of all units that it found came to be as it is."""
    next_try: float = 0.0
    """When the first unit that failed is tried again, in seconds since the epoch; 0 where none waits for that."""
    delivered_bytes: int = 0
    seconds: float = 0.0
    scanning: float = 0.0
    """Seconds of these in which it looked through the spool."""
    settling: float = 0.0
    """Seconds of these in which it only waited for units to settle."""
    error: MistamoverError | None = None
    """Why the target could not be used."""
    is_paused: bool = False
    why_paused: str = ""
    is_held_by_target: bool = False
    """Whether the stop file lies there, and not in the spool."""
    is_complete: bool = False
    """Whether the last unit of a stream that has an end was delivered, and nothing is left."""
    awaited: int = 0
    """Units that are at the target and whose receipts are waited for."""
    is_interrupted: bool = False
    is_ended: bool = False
    """Whether it is of a run that has no end of its own and was ended as such a run is meant to be."""

    def note_waiting(self, unit: Unit) -> None:
        """One more that is not delivered yet."""
        self.waiting += 1
        self.waiting_bytes += unit.size
        age = unit.identity.mtime_ns / 1e9
        self.oldest = min(self.oldest, age) if self.oldest else age
        since = unit.identity.ctime_ns / 1e9
        self.newest = max(self.newest, since)
        if not self.waits_since or since < self.waits_since:
            self.waits_since, self.waits_longest = since, unit.path

    def note_settled(self, unit: Unit) -> None:
        """One less: it was delivered, set aside, or is gone."""
        self.waiting -= 1
        self.waiting_bytes -= unit.size
        if not self.waiting:
            self.oldest = self.waits_since = 0.0

    def note_next_try(self, moment: float) -> None:
        """A unit waits for that."""
        self.next_try = min(self.next_try, moment) if self.next_try else moment

    @property
    def unfinished(self) -> int:
        """Units that failed, wait, or are set aside; and those that start again, unless the next run has them."""
        kinds = (Kind.WAITING, Kind.QUARANTINED, Kind.NOT_REMOVED, Kind.REFUSED)
        again = () if self.is_ended else (Kind.CHANGED, Kind.SETTLING)
        return self.awaited + sum(self.counts[kind] for kind in (*kinds, *again))

    @property
    def leaves_nothing(self) -> bool:
        """Whether a pass has seen the whole spool, and all that was in it is where it should be."""
        return self.error is None and not (self.is_paused or self.is_interrupted or self.unfinished)

    @property
    def exit(self) -> Exit:
        """What the command line answers."""
        if self.is_complete:
            return Exit.DONE
        if self.is_interrupted and not self.is_ended:
            return Exit.INTERRUPTED
        if self.error is not None:
            return self.error.exit
        if self.is_paused:
            return Exit.PAUSED
        return Exit.UNFINISHED if self.unfinished else Exit.DONE


def nothing() -> None:
    """Do nothing."""


class Stop:
    """The wish to stop. A signal handler may ask for it at any instant: it only sets and rings."""

    def __init__(self) -> None:
        self.is_asked = False
        self.is_regular = False
        """Whether that is how a run is ended that has no end of its own."""
        self.is_patient = False
        """Whether what is on its way may take the time that it needs."""
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        finalize(self, os.close, self._bell)

    def ask(self, *, is_regular: bool = False, is_patient: bool = False) -> None:
        """Have the stream begin nothing new, finish or park what is on its way, and end.

        ``is_patient`` lets all that is on its way end, until somebody asks again without it.
        """
        self.is_patient = is_patient and (self.is_patient or not self.is_asked)
        self.is_regular = is_regular
        self.is_asked = True
        os.eventfd_write(self._bell, 1)  # never taken back: once asked, nobody sleeps any more

    def wait(self, seconds: float, breathe: Callable[[], float] = lambda: BREATH) -> None:
        """Sleep, unless and until we are asked to stop.

        ``breathe`` is called meanwhile, each time after as many seconds as it gave.
        """
        until = time.monotonic() + seconds
        while not self.is_asked and (left := until - time.monotonic()) > 0:
            self.listen(min(left, breathe()))

    def listen(self, seconds: float, fd: int | None = None) -> bool:
        """Sleep until we are asked to stop, or there is something to read from ``fd``, which gives True."""
        poll = select.poll()
        for each in {self._bell, self._bell if fd is None else fd}:
            poll.register(each, select.POLLIN)
        return any(ready == fd for ready, _ in poll.poll(ceil(seconds * 1000)))
