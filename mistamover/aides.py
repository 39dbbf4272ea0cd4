"""Aides: processes that the supervisor keeps beside its workers, and that belong to no stream.

What an aide does, every stream can do without: one that dies or hangs is replaced, and nobody waits for it.
"""

from __future__ import annotations

import mmap
import os
import signal
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from logging import ERROR, WARNING
from math import inf
from typing import NamedTuple

from mistamover.log import MainLog
from mistamover.options import ServiceSettings, Settings
from mistamover.processes import Slot, die_with, how_it_ended, is_hung, last_sign, sign_of_life

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 300.0
"""Seconds until an aide that died is started again; doubles with each death."""
FORGIVEN_AFTER = 600.0
"""Seconds that an aide has to live for its earlier deaths to be forgotten."""
END_WITHIN = 5.0
"""Seconds after which an aide that was told to end is killed."""


class Known(NamedTuple):
    """What an aide is told when it is forked. When that has changed it is ended, and another one forked."""

    service: ServiceSettings
    streams: tuple[Settings, ...]
    """Of all streams whose files could be used, whether or not a worker runs."""


class Aide(NamedTuple):
    """What is done in a process of its own."""

    name: str
    work: Callable[[Known, Callable[[], None]], object]
    """Works until TERM ends the process, which it does at once unless the work catches it.

    The callable is its sign of life: an aide that gives none for ``hang_timeout`` is killed.
    """
    is_wanted: Callable[[Known], bool] = lambda _: True


def pause(deaths: int) -> float:
    """Seconds until the next start after so many deaths."""
    return float(min(FIRST_PAUSE * 2.0 ** min(deaths - 1, 40), LONGEST_PAUSE))


@dataclass
class Seat:
    """An aide, and its process if it has one. Times are monotonic."""

    aide: Aide
    known: Known | None = None
    """What its process was told."""
    pid: int = 0
    slot: Slot | None = None
    started: float = 0.0
    next_start: float = 0.0
    ended_by: float = inf
    """When a process that was told to end is killed; infinity where it was not told to."""
    deaths: int = 0


class Aides:
    """Keeps one process for each aide that is wanted. Its owner reaps."""

    def __init__(self, aides: Iterable[Aide], log: MainLog) -> None:
        self._seats = [Seat(aide) for aide in aides]
        self._log = log
        self._pid = os.getpid()

    @property
    def are_gone(self) -> bool:
        """Whether none of them has a process."""
        return not any(seat.pid for seat in self._seats)

    def manage(self, known: Known | None, now: float) -> None:
        """Do what is due for each; ``known`` None: all are to end."""
        for seat in self._seats:
            is_wanted = known is not None and seat.aide.is_wanted(known)
            if seat.pid:
                self._watch_over(seat, known if is_wanted else None, now)
            elif is_wanted and known is not None and now >= seat.next_start:
                self._start(seat, known, now)

    def forgive(self, now: float) -> None:
        """All processes may have stood still until now."""
        for seat in self._seats:
            seat.started = now

    def take(self, pid: int, code: int, now: float) -> bool:
        """Take note that a process has ended; whether it was one of ours."""
        seat = next((one for one in self._seats if one.pid == pid), None)
        if seat is None:
            return False
        was_told, seat.pid, seat.slot = seat.ended_by < inf, 0, None
        if not was_told:
            seat.deaths = 1 if now - seat.started > FORGIVEN_AFTER else seat.deaths + 1
            seat.next_start = now + pause(seat.deaths)
            again = f"started again in {pause(seat.deaths):.0f} s"
            self._log.tell(WARNING, f"the {seat.aide.name} {how_it_ended(code)}; {again}")
        return True

    def _watch_over(self, seat: Seat, known: Known | None, now: float) -> None:
        assert seat.slot is not None  # noqa: S101 - each process has one
        if seat.ended_by < inf:
            if now > seat.ended_by:
                os.kill(seat.pid, signal.SIGKILL)
        elif known is None or known != seat.known:
            seat.ended_by = now + END_WITHIN
            os.kill(seat.pid, signal.SIGTERM)  # it is our child and not reaped: the number is still its own
        elif is_hung(seat.started, last_sign(seat.slot), known.service.global_.hang_timeout, now):
            self._log.tell(ERROR, f"the {seat.aide.name} gave no sign of life; it is killed")
            os.kill(seat.pid, signal.SIGKILL)

    def _start(self, seat: Seat, known: Known, now: float) -> None:
        try:
            slot = mmap.mmap(-1, struct.calcsize("d"))
            pid = os.fork()
        except OSError as error:  # no memory, or too many processes
            seat.next_start = now + LONGEST_PAUSE
            self._log.tell(ERROR, f"the {seat.aide.name} cannot be started: {error.strerror}")
            return
        if pid == 0:
            self._be(seat.aide, known, slot)
        seat.pid, seat.slot, seat.started, seat.known, seat.ended_by = pid, slot, now, known, inf

    def _be(self, aide: Aide, known: Known, slot: Slot) -> None:
        """What the child of a fork does: its work, and then nothing else."""
        code = 1
        try:
            die_with(self._pid)
            aide.work(known, lambda: sign_of_life(slot))
            code = 0
        finally:
            os._exit(code)
