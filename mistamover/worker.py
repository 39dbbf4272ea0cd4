"""The process of one stream: pass after pass until it is asked to stop, and what is told about them."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import islice
from logging import DEBUG, ERROR, INFO, WARNING
from math import inf
from types import FrameType
from typing import TYPE_CHECKING, NamedTuple, Self

from mistamover.errors import (
    Exit,
    LedgerError,
    MistamoverError,
    Shortage,
    SpoolError,
    TargetFull,
    TargetRefused,
    shortage_told,
)
from mistamover.events import BREATH, Event, Kind, Report, Stop, Summary, nothing
from mistamover.lines import duration, files, shown, size
from mistamover.log import Log
from mistamover.options import Settings
from mistamover.stream import Stream, target_name
from mistamover.unit import Ignored, Unit, next_wait, unit_id
from mistamover.watch import Watch

if TYPE_CHECKING:
    from mistamover.arrivals import Arrivals
    from mistamover.concerns import Concerns
    from mistamover.pulse import Pulse

REST_AFTER = 60.0
"""Seconds without work after which the lanes log out."""
LONGEST_WAIT = 600.0
"""Seconds after which the doubling of the wait for a target, a spool or a ledger stops."""
REFUSED_WAIT = 300.0
"""Seconds at least until a target that refused us is asked again: a person has to act first."""
FULL_WAIT = 60.0
"""Seconds at most until a target that has no room is asked again: to ask is cheap, and smaller units may fit."""
LENT_FOR = 60.0
"""Seconds for which somebody else may well want a stream that is lent."""
LENT_WAIT = 0.5
"""Seconds between two tries to get a stream back that somebody else holds."""
PAUSE = 0.2
"""Seconds at least between a pass and one that something in the spool causes, unless passes are wanted faster."""
GATHER = 0.02
"""Seconds in which events gather."""
REMEMBERED = 50_000
"""Events of one kind at most of which is known that they were told."""
LONGEST_BREATH = 10.0
TICK = 1.0
PROGRESS_EVERY = 10.0

_HAPPEN = (
    Kind.ARRIVED,
    Kind.REFUSED,
    Kind.DELIVERED,
    Kind.REMOVED,
    Kind.VANISHED,
    Kind.RECOVERED,
    Kind.QUARANTINED,
)
"""What is done once and for all; any other kind is how things are, and is counted anew by each pass."""

_LINES = {
    Kind.ARRIVED: (INFO, "arrived: "),
    Kind.REFUSED: (WARNING, "refused: "),
    Kind.NOT_REMOVED: (WARNING, "not removed: "),
    Kind.CHANGED: (INFO, "starts again: "),
    Kind.VANISHED: (INFO, "vanished: "),
    Kind.WAITING: (WARNING, "waits: "),
    Kind.QUARANTINED: (WARNING, "in quarantine: "),
    Kind.SKIPPED: (INFO, "skipped: "),
    Kind.RECOVERED: (INFO, "recovered: "),
    Kind.SETTLING: (DEBUG, "settles: "),
    Kind.PAUSED: (WARNING, ""),
}
"""How each kind of event is written down."""


class Progress(NamedTuple):
    """How far a pass is, for displays."""

    files: int
    all_files: int
    bytes: int
    all_bytes: int
    stages: list[str]
    """What each lane does."""


class Worker:
    """Runs one stream in this process."""

    def __init__(
        self,
        settings: Settings,
        log: Log,
        report: Report | None = None,
        stop: Stop | None = None,
        *,
        now: bool = False,
        alive: Callable[[], None] = nothing,
        hang_timeout: float = inf,
        pulse: Pulse | None = None,
        concerns: Concerns | None = None,
    ) -> None:
        """``alive`` and ``hang_timeout``: see :class:`~mistamover.stream.Stream`."""
        self.settings = settings
        self._alive = alive
        self._breath = max(BREATH, min(hang_timeout / 4, LONGEST_BREATH))
        """Seconds between two signs of life while nothing is to be done: each of them costs."""
        self._pulse = pulse
        self._concerns = concerns
        self._quarantined = -1
        """Units that are set aside; below 0 where nobody has counted."""
        self._hang_timeout = hang_timeout
        self._now = now
        self.log = log
        self.stop = stop or Stop()
        self.total = Summary()
        """Of all passes so far."""
        self.skipped: Counter[str] = Counter()
        """How much the last pass skipped, by reason."""
        self.tells_progress = True
        """Whether progress is written to the log; a display turns that off."""
        self._report = report
        self._stream: Stream | None = None
        self._arrivals: Arrivals | None = None
        self._received: Counter[Kind] = Counter()
        """What the arrivals monitor has told of in this pass."""
        self._is_passing = False
        self._is_paused = False
        """Whether the last pass was, and nothing has happened since."""
        self._news = News()
        self._crowded: set[Kind] = set()
        """Of which kinds the last pass had more events than can be told one by one."""
        self._tells_units = log.tells_units
        self._target = target_name(settings)
        self._is_mirror = settings.outgoing.transfer_mode == "mirror"
        self._is_ignored = Ignored(settings.data_stream.ignore)
        self._unit = settings.data_stream.transfer_unit
        self._last_unit = settings.data_stream.completion_file
        self._is_last_delivered: bool | None = None
        """Whether the unit that is to be the last was; None until the record was asked."""
        self._sent_before = 0
        self._failures = 0
        self._trouble = ""
        self._is_blind = False
        """Whether it was told that not all of the spool can be watched."""
        self._last_work = time.monotonic()
        self._next_progress = time.monotonic() + PROGRESS_EVERY

    def run(self, *, once: bool) -> Summary:
        """Make one patient pass, or passes until somebody asks us to stop."""
        self.log.tell(INFO, _intention(self.settings))
        if self.settings.obsolete:
            self.log.tell(INFO, "its files were made for 0.1.0: mistamover check tells what differs")
        try:
            self._news.is_endless = not once
            self._once() if once else self._poll()
        except MistamoverError as error:
            if self._concerns is not None and isinstance(error, SpoolError | LedgerError | Shortage):
                self._concerns.near(str(error))
            self.log.note(ERROR, str(error))
            raise
        except Exception:
            self.log.fault("ended by a fault of mistamover's own")
            raise
        self.log.note(INFO, self.outcome(self.total))
        return self.total

    def _once(self) -> None:
        with shortage_told(), self._opened() as stream, self._receiving():
            self.make_pass(stream, patient=True)

    # -- passes ------------------------------------------------------------------------------------------

    def _poll(self) -> None:
        while not self.stop.is_asked:
            try:
                with (
                    shortage_told(),
                    self._watching() as watch,
                    self._opened(watch) as stream,
                    self._receiving(),
                ):
                    if self._make_passes(stream, watch):
                        return
            except (SpoolError, LedgerError, Shortage) as error:
                # The disk may be full, or not mounted for now; nothing was moved without a record.
                self._tell_trouble(str(error))
                self.stop.wait(self._growing_wait(), self._breathe)
        self.total.is_interrupted, self.total.is_ended = True, self.stop.is_regular

    def _make_passes(self, stream: Stream, watch: Watch) -> bool:
        """Pass after pass until we are to stop, or the stream is complete; gives whether it is."""
        if self._is_last_delivered is None:
            self._is_last_delivered = stream.has_delivered_last()
        while not self.stop.is_asked:
            # What was put there before the last unit is found by a pass that begins after that was delivered.
            was_last_delivered = self._is_last_delivered
            began = time.monotonic()
            summary = self.make_pass(stream, patient=False)
            if was_last_delivered and summary.leaves_nothing:
                self.total.is_complete = True
                self.log.tell(INFO, f"complete: {shown(self._last_unit or '')} was delivered, and nothing is left")
                return True
            self._wait(stream, watch, summary, began)
        return False

    def _watching(self) -> Watch:
        return Watch(self._is_ignored, self.settings.incoming.stop_file, self._note_blindness)

    def _note_blindness(self, reason: str) -> None:
        """Not all of the spool can be watched: units are found later, and that is all."""
        if not self._is_blind:
            self._is_blind = True
            every = duration(self.settings.global_.general_poll_interval)
            self.log.tell(INFO, f"the spool is looked through every {every}; it cannot be watched: {reason}")

    def _opened(self, watch: Watch | None = None) -> Stream:
        stream = Stream(
            self.settings, self._hear, self.stop, alive=self._live, hang_timeout=self._hang_timeout, watch=watch
        )
        stream.tries_waiting, self._now = self._now, False
        return stream

    @contextmanager
    def _receiving(self) -> Iterator[None]:
        """Hold what arrives, if anything does."""
        if not self.settings.incoming.require_arrival_monitor:
            yield
            return
        from mistamover.arrivals import Arrivals  # few streams receive
        from mistamover.provers import prover

        proves, breathe = prover(self.settings), self._breathe_at_times
        with Arrivals(self.settings, self._hear_arrivals, proves, breathe=breathe) as self._arrivals:
            try:
                yield
            finally:
                self._arrivals = None

    def _hear_arrivals(self, event: Event) -> None:
        self._received[event.kind] += 1
        self._hear(event)

    def _breathe_at_times(self) -> None:
        if self._stream is not None:
            self._stream.breathe()

    def _receive(self, stream: Stream) -> None:
        """Take what has arrived, before the pass that may send it on."""
        self._received.clear()
        stream.summary = Summary()
        if self._arrivals is not None:
            self._arrivals.run_pass(lambda: self.stop.is_asked)

    def _add_received(self, summary: Summary) -> None:
        summary.counts += self._received
        if self._arrivals is not None and self.settings.outgoing.transfer_protocol == "none":
            summary.is_paused = bool(self._arrivals.why_paused)
            summary.why_paused = self._arrivals.why_paused

    def make_pass(self, stream: Stream, *, patient: bool) -> Summary:
        """One pass, added to the total."""
        self._stream = stream
        self._sent_before = _sent(stream)
        self.skipped.clear()
        self._is_passing = True
        try:
            self._receive(stream)
            summary = stream.run_pass(patient=patient)
        finally:
            self._is_passing = False
            self._add_received(stream.summary)
            self.total = self._added(stream.summary)
        self._tell_untold()
        self._news.turn(is_whole=summary.error is None and not summary.is_paused)
        self._note_pause(summary)
        self._tell_pass(summary, patient=patient)
        if self._pulse is not None or self._concerns is not None:
            self._trouble = ""
            if self._quarantined < 0 or summary.counts[Kind.QUARANTINED] or summary.counts[Kind.DELIVERED]:
                self._quarantined = stream.quarantined()
            self._beat()
        if self._concerns is not None:
            self._concerns.turn(summary, self._quarantined)
        return summary

    def _tell_untold(self) -> None:
        """Say of how many events no line tells, since they are too many, when that begins."""
        if self._news.is_endless:
            for kind in self._news.untold.keys() - self._crowded:
                level, what = _LINES.get(kind, (INFO, ""))
                self.log.tell(level, f"{what}{self._news.untold[kind]:,} more, too many for a line each")
        self._crowded = set(self._news.untold)

    def _note_pause(self, summary: Summary) -> None:
        if summary.is_paused:
            self._is_paused = True
        elif self._is_paused and summary.error is None and not summary.is_interrupted:
            self._go_on()

    def _go_on(self) -> None:
        self._is_paused = False
        self._news.forget(Kind.PAUSED)
        self.log.tell(INFO, "goes on")

    def _added(self, summary: Summary) -> Summary:
        """The total with one more pass: what was done is added up, how things stand is as the last one found it."""
        total = self.total
        # A mirrored unit in quarantine stays in the spool, where each pass finds it again.
        kinds = _HAPPEN[:-1] if self._is_mirror else _HAPPEN
        return replace(
            summary,
            counts=Counter({kind: total.counts[kind] for kind in kinds}) + summary.counts,
            proofs=total.proofs + summary.proofs,
            found=total.counts[Kind.DELIVERED] + summary.found,
            found_bytes=total.delivered_bytes + summary.found_bytes,
            delivered_bytes=total.delivered_bytes + summary.delivered_bytes,
            seconds=total.seconds + (summary.seconds if summary.counts[Kind.DELIVERED] else 0.0),
            settling=total.settling + (summary.settling if summary.counts[Kind.DELIVERED] else 0.0),
        )

    def _tell_pass(self, summary: Summary, *, patient: bool) -> None:
        if summary.counts[Kind.DELIVERED]:
            self._last_work = time.monotonic()
            if not patient:
                self.log.tell(INFO, self.outcome(summary))

    def _tell_trouble(self, text: str) -> None:
        if self._concerns is not None:
            self._concerns.near(text)
        if text != self._trouble:
            self._trouble = text
            self.log.tell(ERROR, f"{text}; trying again")
        self._beat()

    def _beat(self) -> None:
        """Have the heartbeat say how things stand, and look for what is wrong."""
        stream = self._stream
        if self._concerns is not None and stream is not None:
            self._concerns.beat(stream.summary)
        if self._pulse is None:
            return
        from mistamover.pulse import condition  # the service's alone

        summary = stream.summary if stream else Summary()
        stages = [lane.stage for lane in stream.crew.lanes] if stream else []
        is_working = any(stage != "idle" for stage in stages)
        state, why = condition(summary, is_passing=self._is_passing, is_working=is_working, trouble=self._trouble)
        moved = self.total.delivered_bytes + (summary.delivered_bytes if self._is_passing else 0)
        self._pulse.beat(state, why, summary, moved=moved, quarantined=max(0, self._quarantined))

    # -- waits between them ------------------------------------------------------------------------------

    def _time_to_next(self, summary: Summary) -> float:
        """Seconds until the next pass is due."""
        if summary.error is not None:
            wait = self._growing_wait()
            if isinstance(summary.error, TargetFull):
                return min(wait, FULL_WAIT)
            return max(wait, REFUSED_WAIT) if isinstance(summary.error, TargetRefused) else wait
        self._failures, self._trouble = 0, ""
        if summary.is_held_by_target:
            return self.settings.outgoing.stop_file_poll_interval
        return self.settings.global_.general_poll_interval

    def _growing_wait(self) -> float:
        self._failures += 1
        jitter = random.random()  # noqa: S311 - spreads load, no secret
        wait = next_wait(self._failures, self.settings.global_.general_poll_interval, jitter)
        return min(wait, LONGEST_WAIT * (0.5 + jitter / 2))

    def _wait(self, stream: Stream, watch: Watch, summary: Summary, began: float) -> None:
        """Wait for the next pass, after one that began at ``began`` (monotonic clock)."""
        seconds = self._time_to_next(summary)
        if summary.error is not None and self._failures == 1:
            self.log.tell(INFO, f"tries again in {duration(seconds)}, and then ever less often")
        if time.monotonic() - self._last_work + seconds >= REST_AFTER:
            stream.rest()
        is_held_up = summary.error is not None or summary.is_paused
        with self._lent(stream) if is_held_up else nullcontext():
            if isinstance(summary.error, TargetFull) or (summary.error is None and not summary.is_held_by_target):
                self._listen(stream, watch, summary, began, time.monotonic() + seconds)
            else:
                self.stop.wait(seconds, stream.breathe)

    @contextmanager
    def _lent(self, stream: Stream) -> Iterator[None]:
        """While nothing may be moved, others may have the stream."""
        stream.lend()
        yield
        until = time.monotonic() + LENT_FOR
        while not stream.take_back() and not self.stop.is_asked:
            if time.monotonic() > until:
                self._tell_trouble("another mistamover has taken the stream meanwhile; let it end, or stop it")
            self.stop.wait(LENT_WAIT, stream.breathe)

    def _listen(self, stream: Stream, watch: Watch, summary: Summary, began: float, until: float) -> None:
        """Sleep ``until`` then, or until units may have settled; but never shorter than it takes to look."""
        settle_time = inf if summary.is_paused else self.settings.data_stream.settle_time
        now = time.monotonic()
        soonest = now + max(PAUSE, summary.scanning)
        until = min(until, max(soonest, summary.settles_at + 0.01))
        since = began
        while not self.stop.is_asked:
            until = min(until, max(soonest, watch.due(since, settle_time)))
            if (now := time.monotonic()) >= until:
                return
            stream.breathe()
            is_told = self.stop.listen(min(self._breath, until - now), watch.fd if until > soonest else None)
            since = time.monotonic()
            if is_told:
                # Events that are no news must not keep us busy: they may gather for a moment.
                self.stop.listen(GATHER)

    # -- what is told ------------------------------------------------------------------------------------

    def _hear(self, event: Event) -> None:
        """Pass an event on. Comes twice for each unit, so what nobody wants has to cost nothing."""
        kind = event.kind
        if self._pulse is not None:
            self._pulse.hear(event)
        if kind is Kind.DELIVERED:
            if self._is_paused:
                self._go_on()
            if event.path == self._last_unit:
                self._is_last_delivered = True
            if self._tells_units:
                self._tell_delivery(event.unit, event.seconds)
        elif kind is not Kind.REMOVED and kind is not Kind.UNCHANGED and not self._write_down(event):
            return
        if self._report is not None:
            self._report(event)

    def _tell_delivery(self, unit: Unit | None, seconds: float) -> None:
        assert unit is not None  # noqa: S101 - a delivery is always a unit's
        algorithm = self.settings.outgoing.checksum
        self.log.unit(
            unit.path,
            unit.size,
            seconds,
            algorithm,
            unit.digest,
            unit.proof,
            self._target,
            unit.attempt,
            unit_id(unit),
        )

    def _write_down(self, event: Event) -> bool:
        """Log an event, unless it was told before and is still so."""
        if self._concerns is not None:
            self._concerns.hear(event)
        if event.kind is Kind.SKIPPED:
            if self._is_ignored(event.path.rpartition("/")[2]):
                self.skipped["ignored by name"] += 1  # as configured, and maybe many: counted, not listed
                return self._report is not None and self._news.is_new(event)
            self.skipped[event.reason] += 1
        if not self._news.is_new(event):
            return False
        level, what = self._line(event)
        name = f"{shown(event.path)}: " if event.path else ""
        self.log.tell(level, f"{what}{name}{event.reason}")
        return True

    def _line(self, event: Event) -> tuple[int, str]:
        if event.kind is Kind.TARGET:
            is_over = self._stream is not None and self._stream.summary.error is not None
            return (ERROR if is_over else WARNING), ""
        if event.kind is Kind.SETTLING and not event.path:
            return INFO, "waits for units to settle: "
        return _LINES[event.kind]

    def outcome(self, summary: Summary) -> str:
        """What it came to, in one line."""
        said = "; ".join(filter(None, [self._deliveries(summary), _unfinished(summary, self._unit)]))
        return said or ("paused" if summary.is_paused else "nothing to do")

    def _deliveries(self, summary: Summary) -> str:
        received = summary.counts[Kind.ARRIVED]
        parts = [f"received {files(received)}" if received else "", self._sent(summary)]
        return "; ".join(filter(None, parts))

    def _sent(self, summary: Summary) -> str:
        count, amount = summary.counts[Kind.DELIVERED], summary.delivered_bytes
        if not count:
            return ""
        verb = "mirrored" if self._is_mirror else "moved"
        worked = summary.seconds - summary.settling
        rate = f" ({size(amount / max(worked, 0.001))}/s)" if amount else ""
        span = f"{duration(worked)}{rate}"
        return f"{verb} {files(count, self._unit)}, {size(amount)} in {span}, {_proven(summary, count)}"

    def progress(self) -> Progress | None:
        """How far the pass that is under way has come; None where none is. For other threads."""
        stream = self._stream
        if stream is None or not self._is_passing:
            return None
        summary, lanes = stream.summary, list(stream.crew.lanes)
        on_their_way = sum(lane.sent for lane in lanes) - self._sent_before
        done = max(summary.delivered_bytes, min(on_their_way, summary.found_bytes))
        return Progress(
            summary.counts[Kind.DELIVERED], summary.found, done, summary.found_bytes, [lane.stage for lane in lanes]
        )

    def _live(self) -> None:
        self._tick()
        self._alive()

    def _breathe(self) -> float:
        self._live()
        return BREATH

    def _tick(self) -> None:
        self.log.flush()
        self._beat()
        if self.tells_progress and time.monotonic() >= self._next_progress:
            self._next_progress = time.monotonic() + PROGRESS_EVERY
            self._tell_progress()

    def _tell_progress(self) -> None:
        now = self.progress()
        if now is not None and any(stage != "idle" for stage in now.stages):
            units = files(now.all_files, self._unit)
            done = f"{now.files:,} of {units}, {size(now.bytes)} of {size(now.all_bytes)}"
            self.log.tell(INFO, f"so far {done}")


class News:
    """Which events are new: what holds on from pass to pass is told once, and again after it had ended.

    It remembers so many and no more, as hashes: what is beyond is told each time where there is one pass only
    (``is_endless`` false), and else never, but counted.
    """

    def __init__(self, *, is_endless: bool = True) -> None:
        self.untold: Counter[Kind] = Counter()
        """How many events of this pass were too many to be told."""
        self.is_endless = is_endless
        self._now: dict[Kind, set[int]] = {}
        self._before: dict[Kind, set[int]] = {}

    def is_new(self, event: Event) -> bool:
        """Whether this was told neither in this pass nor in the last whole one or since."""
        told = hash((event.path, event.reason))
        now = self._now.setdefault(event.kind, set())
        before = self._before.get(event.kind, set())
        is_new = told not in now and told not in before
        if is_new and max(len(now), len(before)) >= REMEMBERED:
            self.untold[event.kind] += 1
            return not self.is_endless
        now.add(told)
        return is_new

    def forget(self, kind: Kind) -> None:
        """What is of this kind has ended: should it come again, it is new."""
        self._now.pop(kind, None)
        self._before.pop(kind, None)

    def turn(self, *, is_whole: bool) -> None:
        """A pass has ended. What it did not find has ended too, if it saw the whole spool."""
        for kind, before in () if is_whole else self._before.items():
            now = self._now.setdefault(kind, set())
            now.update(islice(before, max(0, REMEMBERED - len(now))))
        self._before, self._now = self._now, {}
        self.untold.clear()


class Ticker:
    """Calls a function each second, from a thread of its own."""

    def __init__(self, tick: Callable[[], None], every: float = TICK) -> None:
        self._tick = tick
        self._every = every
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ticker", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._tick()

    def _run(self) -> None:
        while not self._done.wait(self._every):
            self._tick()


def run(
    settings: Settings, *, once: bool, log: Log, report: Report | None = None, stop: Stop | None = None
) -> Summary:
    """Run one stream in this process; see :class:`Worker`."""
    return Worker(settings, log, report, stop).run(once=once)


def stop_on_signals(stop: Stop, *, is_patient_on_hup: bool = False) -> None:
    """Have TERM and INT ask for a stop, and HUP for a patient one where told so. Main thread only.

    TERM is how service managers end what runs for ever: that is no interruption. A second signal ends at once;
    but TERM or INT after HUP only ends the patience.
    """

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if stop.is_asked and not stop.is_patient:
            # The second one means at once. Every step can be repeated after a crash, so nothing is lost:
            # the next pass finds what this one left, and what it left staged is swept away.
            os._exit(Exit.INTERRUPTED)
        stop.ask(is_regular=number == signal.SIGTERM)

    def on_hup(_number: int, _frame: FrameType | None) -> None:
        if not stop.is_asked:
            stop.ask(is_regular=True, is_patient=True)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    if is_patient_on_hup:
        signal.signal(signal.SIGHUP, on_hup)


def _sent(stream: Stream) -> int:
    return sum(lane.sent for lane in stream.crew.lanes)


# -- words -------------------------------------------------------------------------------------------------


def _intention(settings: Settings) -> str:
    spool = shown(str(settings.data_stream.directory))
    takes = f"takes what arrives in {shown(str(settings.incoming.directory))}"
    if settings.outgoing.transfer_protocol == "none":
        return f"{takes} to {spool}"
    also = f", and {takes}" if settings.incoming.require_arrival_monitor else ""
    verb = "mirrors" if settings.outgoing.transfer_mode == "mirror" else "moves"
    return f"{verb} {spool} to {shown(target_name(settings))}{also}"


_PROOFS = {
    "digest": "proven by digest",
    "readback": "proven by reading it back",
    "size": "of which only the size was compared",
    "none": "not verified, as configured",
    "receipt": "confirmed by a receipt",
}

_OPEN = (
    (Kind.WAITING, "{:,} waiting"),
    (Kind.QUARANTINED, "{:,} in quarantine"),
    (Kind.REFUSED, "{:,} refused at their arrival"),
    (Kind.NOT_REMOVED, "{:,} delivered but not removed"),
    (Kind.CHANGED, "{:,} changed on the way and start again"),
    (Kind.SETTLING, "{:,} still settling"),
)


def _proven(summary: Summary, count: int) -> str:
    if len(summary.proofs) == 1:
        proof = _PROOFS.get(next(iter(summary.proofs)), "")
        return proof if count == 1 else f"each {proof}"
    return ", ".join(f"{number:,} {_PROOFS.get(proof, proof)}" for proof, number in summary.proofs.items())


def _unfinished(summary: Summary, unit: str) -> str:
    left = summary.found - summary.counts[Kind.DELIVERED]
    if left and (summary.error or summary.is_paused or summary.is_interrupted):
        return f"{left:,} of {files(summary.found, unit)} not delivered"
    open_ = [text.format(summary.counts[kind]) for kind, text in _OPEN if summary.counts[kind]]
    awaited = [f"{summary.awaited:,} awaiting a receipt"] if summary.awaited else []
    return ", ".join([*open_, *awaited])
