"""What a worker notes of its stream while it works, for the heartbeat that people's ``status`` reads."""

from __future__ import annotations

import os
import time
from collections import deque
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from mistamover import heartbeat
from mistamover.errors import TargetDown, TargetFull
from mistamover.events import Event, Kind, Summary
from mistamover.heartbeat import Heartbeat, State
from mistamover.lines import redacted

AT_LEAST_EVERY = 30.0
"""Seconds after which a heartbeat is written though nothing has changed."""
RATE_OVER = 60.0
"""Seconds that the rate is of, at least."""


class Sample(NamedTuple):
    """How much had been delivered at a moment."""

    moment: float
    """Monotonic."""
    bytes: int


def condition(summary: Summary, *, is_passing: bool, is_working: bool, trouble: str = "") -> tuple[State, str]:
    """What a stream does and why, from how its last pass stands; ``is_working``: some lane does something."""
    if trouble:
        return State.TROUBLE, trouble
    if is_passing and is_working:
        return State.MOVING, ""
    if isinstance(summary.error, TargetDown | TargetFull):
        return State.WAITING, str(summary.error)
    if summary.error is not None:
        return State.TROUBLE, str(summary.error)
    if summary.is_paused:
        return State.PAUSED, summary.why_paused
    if summary.counts[Kind.SETTLING]:
        return State.SETTLING, ""
    return State.IDLE, ""


def rate(samples: deque[Sample]) -> float:
    """Bytes a second between the first sample and the last."""
    if len(samples) < 2:
        return 0.0
    first, last = samples[0], samples[-1]
    return max(0.0, (last.bytes - first.bytes) / max(last.moment - first.moment, 0.001))


class Pulse:
    """Writes the heartbeat of one stream."""

    def __init__(self, directory: Path) -> None:
        """``directory`` is the stream's own in the state directory."""
        self._directory = directory
        self._told = Heartbeat()
        earlier = heartbeat.read_heartbeat(directory)
        self._now = Heartbeat(
            pid=os.getpid(),
            since=time.time(),
            day=earlier.day,
            delivered=earlier.delivered,
            delivered_bytes=earlier.delivered_bytes,
            quarantined=earlier.quarantined,
            last_error=earlier.last_error,
        )
        self._samples: deque[Sample] = deque()
        self._bytes = 0
        self._files = 0
        self._last_error = earlier.last_error
        self._written = 0.0

    def hear(self, event: Event) -> None:
        """Take note of what happened. Comes for each unit, so it has to cost next to nothing."""
        if event.kind is Kind.DELIVERED:
            self._files += 1
            self._bytes += event.unit.size if event.unit else 0
        elif event.kind in (Kind.WAITING, Kind.QUARANTINED, Kind.TARGET, Kind.NOT_REMOVED):
            self._last_error = redacted(event.reason if not event.path else f"{event.path}: {event.reason}")

    def beat(self, state: State, why: str, summary: Summary, *, moved: int, quarantined: int) -> None:
        """Write how things stand, where that is news; ``moved`` are the bytes of this process so far."""
        moment, now, why = time.monotonic(), time.time(), redacted(why)
        self._sample(Sample(moment, moved))
        beat = replace(
            self._today(now),
            state=state,
            why=why,
            waiting=summary.waiting,
            waiting_bytes=summary.waiting_bytes,
            failed=summary.counts[Kind.WAITING],
            quarantined=quarantined,
            oldest=summary.oldest,
            next_try=summary.next_try,
            rate=round(rate(self._samples)),
            last_error=self._last_error,
        )
        if (state, why) != (self._now.state, self._now.why):
            beat = replace(beat, since=now)
        self._now = beat
        if beat != self._told or moment - self._written > AT_LEAST_EVERY:
            self._told, self._written = beat, moment
            with suppress(OSError):  # a full disk is told of by the ledger
                self._directory.mkdir(mode=0o750, parents=True, exist_ok=True)
            heartbeat.write(self._directory, heartbeat.HEARTBEAT, replace(beat, written=now))

    def _today(self, now: float) -> Heartbeat:
        """The last heartbeat with what was delivered since, of this day alone."""
        day = time.strftime("%Y-%m-%d", time.localtime(now))
        before = self._now if self._now.day == day else replace(self._now, day=day, delivered=0, delivered_bytes=0)
        files, self._files = self._files, 0
        amount, self._bytes = self._bytes, 0
        return replace(before, delivered=before.delivered + files, delivered_bytes=before.delivered_bytes + amount)

    def _sample(self, sample: Sample) -> None:
        self._samples.append(sample)
        while len(self._samples) > 2 and self._samples[1].moment < sample.moment - RATE_OVER:
            self._samples.popleft()
