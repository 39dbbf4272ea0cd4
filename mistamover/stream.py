"""One pass over a stream: scan, settle, batches, lanes, ledger, remove.

A pass tells what happens by events; it decides by the pure functions of :mod:`mistamover.unit`.
"""

from __future__ import annotations

import os
import random
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from dataclasses import dataclass, field
from itertools import count, islice
from math import inf
from pathlib import Path
from typing import Any, NamedTuple, Self

from mistamover import foreign, lane, whole
from mistamover.directories import spool_of
from mistamover.errors import (
    Fault,
    Held,
    MistamoverError,
    NameTaken,
    NoRoom,
    NotTaken,
    Parked,
    SourceGone,
    SourceMoved,
    SpoolError,
    TargetFull,
    TooManyConnections,
    UnitError,
    UnitRefused,
    is_shortage,
)
from mistamover.events import BREATH, Event, Kind, Report, Stop, Summary, nothing
from mistamover.exchange import Exchange
from mistamover.lane import Carried, Crew, Heard, Talk
from mistamover.ledger import Asked, Ledger
from mistamover.lines import files, shown
from mistamover.manifests import Manifests
from mistamover.options import Settings
from mistamover.origin import belong_to
from mistamover.packages import prepare_place
from mistamover.proofs import NotYet, Proofs
from mistamover.spool import Skipped, Spool
from mistamover.transports import transport_class
from mistamover.transports.contract import stream_tag
from mistamover.unit import (
    BATCH_DIRECTORIES,
    ORDERS,
    OWN_NAME,
    Identity,
    Ignored,
    Outcome,
    Record,
    Unit,
    Verdict,
    attempts_before,
    even_batches,
    judge,
    named,
    next_wait,
    settles_in,
)
from mistamover.watch import Watch

FIRST_LANES = 2
"""Lanes that begin: while one waits for the far side's proof, the other sends."""
NEW_LANE_EVERY = 2.0
"""Seconds of work after which one more lane joins: a log-in costs more than a short pass can win by it."""
ASK_AGAIN_AFTER = 30.0
"""Seconds after which a target that let in fewer lanes than we wanted is asked for one more."""
WINDOW = 100_000
"""Units that are collected, put in order and delivered before the scan goes on: the memory that a pass takes."""
WATCHED = 10_000
"""Units at most whose times lie in the future, so that we watch them ourselves; the next ones in later passes."""
REMOVED_TOGETHER = 64
REMOVED_AT_ONCE = 10_000
"""Sources that earlier passes had to leave, and that are removed before the scan goes on."""
PARKING_TIME = 2.0
"""Seconds after which a lane that did not leave its file is cut off: a slow line needs minutes for its buffers."""
FULL_WAIT = 600.0
"""Seconds at most until a unit is tried again that found no room: that is the target's affair, however often."""
GLANCE = 0.2
"""Seconds between two looks at whether we are to stop."""


class Begun(NamedTuple):
    """A batch on its way."""

    units: Sequence[Unit]
    since: float
    """On the monotonic clock."""


@dataclass
class Window:
    """What a pass has collected, and deals with before the scan goes on."""

    ready: list[Unit] = field(default_factory=list)
    young: list[Unit] = field(default_factory=list)
    """Those that a patient pass will wait for."""
    delivered: list[tuple[Unit, int]] = field(default_factory=list)
    """Those of which only the removal is missing, with the numbers of their records."""

    @property
    def is_full(self) -> bool:
        """Whether it takes no more."""
        return len(self.ready) + len(self.young) >= WINDOW


def state_directory(settings: Settings) -> Path:
    """Where the stream keeps its ledger."""
    return settings.global_.state_dir / settings.name


def have_one_spool(settings: Settings, other: Settings) -> bool:
    """Whether both move from the same spool, so that only one of them can run."""
    return all(map(_moves, (settings, other))) and os.path.realpath(settings.data_stream.directory) == (
        os.path.realpath(other.data_stream.directory)
    )


def _moves(settings: Settings) -> bool:
    """Whether a stream takes out of its spool what it has sent."""
    return settings.outgoing.transfer_mode == "move" and settings.outgoing.transfer_protocol != "none"


def target_name(settings: Settings) -> str:
    """The target as the ledger names it."""
    outgoing = settings.outgoing
    if outgoing.transfer_protocol == "none":
        return "none"
    if outgoing.target_host is None or outgoing.transfer_protocol == "local":
        return f"{outgoing.transfer_protocol}://{outgoing.target_dir}"
    log_in = settings.log_in
    user = f"{log_in.username}@" if log_in and log_in.username else ""
    directory = str(outgoing.target_dir).removeprefix("/")
    return f"{outgoing.transfer_protocol}://{user}{outgoing.target_host}/{directory}"


class Stream:
    """A stream that this process holds: its spool, its ledger, its lanes.

    ``watch``, if there is one, is shown the directories of the spool, and stays its owner's.

    ``alive`` is called by the thread that makes passes, about once a second while it works or waits. It is not
    called any more once a lane has not moved for ``hang_timeout`` seconds.
    """

    def __init__(
        self,
        settings: Settings,
        report: Report = lambda _: None,
        stop: Stop | None = None,
        *,
        alive: Callable[[], None] = nothing,
        hang_timeout: float = inf,
        watch: Watch | None = None,
    ) -> None:
        self.settings = settings
        self.summary = Summary()
        self.crew = Crew()
        self._let_in = settings.outgoing.lanes
        """Lanes that the target let in when it last refused one, and when that was."""
        self._let_in_since = 0.0
        self.tries_waiting = False
        """Whether the next pass tries units that failed before, without waiting for their time."""
        self._report = report
        self._stop = stop or Stop()
        self._watch = watch
        self._alive = alive
        self._hang_timeout = hang_timeout
        self._next_breath = 0.0
        self._sends = settings.outgoing.transfer_protocol != "none"
        self._mirror = not _moves(settings)
        self._ignored = Ignored(settings.data_stream.ignore)
        self._emptied: set[str] = set()
        self._watched: dict[tuple[str, Identity], float] = {}
        """Since when we see units unchanged whose times prove nothing."""
        self._still_watched: dict[tuple[str, Identity], float] = {}
        """Those of them that this pass has seen again, and new ones."""
        self._prepared: Future[Carried] | None = None
        self._begin = f"{stream_tag(settings)}{os.urandom(2).hex()}"
        self._tries = count()
        self._executor: ThreadPoolExecutor | None = None
        self._full: UnitError | None = None
        self._abandoned: list[Unit] = []
        self._spool = self._opened_spool(mirror=self._mirror)
        self._is_lent = False
        try:
            self._attach(self._opened_ledger())
        except BaseException:
            self._spool.close()
            raise
        self._talking: tuple[Talk, Future[Heard]] | None = None

    def _opened_spool(self, *, mirror: bool) -> Spool:
        return spool_of(self.settings, mirror=mirror)

    def _opened_ledger(self) -> Ledger:
        return Ledger(state_directory(self.settings), target_name(self.settings), self.settings.outgoing.checksum)

    def _attach(self, ledger: Ledger) -> None:
        """Go by this record, and by what is in it."""
        self._ledger = ledger
        asks = self.settings.outgoing.target_uses_arrival_monitor
        self._exchange = Exchange(self.settings, ledger) if asks else None
        self._manifests = Manifests.of(self.settings, ledger)
        self._proofs = Proofs.of(self.settings, self._spool, ledger)
        if self._proofs is not None:
            ledger.index_paths()

    def __enter__(self) -> Self:
        try:
            self._spool.hold()
            belong_to(state_directory(self.settings), self.settings.data_stream.directory)
            prepare_place(self.settings)
            self._recover()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end_lanes()
        if not self._is_lent:
            if self._proofs is not None:
                self._proofs.turn()
            self._ledger.close()
        self._spool.close()

    def _recover(self) -> None:
        """Finish or undo what a crash left half done."""
        if not self._mirror:
            for path, what in recovered(self._spool, self._ledger):
                self._report(Event(Kind.RECOVERED, path, what))
        elif self.settings.data_stream.deletion_enabled:
            # Into a mirrored spool nobody but the disk space monitor captures, where it is told to delete.
            with closing(self._opened_spool(mirror=False)) as spool, suppress(Held, SpoolError):
                spool.hold()
                for path, what in recovered(spool, self._ledger):
                    self._report(Event(Kind.RECOVERED, path, what))

    # -- others --------------------------------------------------------------------------------------------

    def lend(self) -> None:
        """Let others hold spool and record, between passes and until :meth:`take_back`.

        So the disk space monitor deletes what is in the way, and a person releases what was set aside.
        """
        self._spool.give_back()
        self._ledger.close()
        self._is_lent = True

    def take_back(self) -> bool:
        """Hold spool and record again; False where somebody else still does."""
        try:
            ledger = self._opened_ledger()
        except Held:
            return False
        try:
            self._spool.hold()
        except Held:
            ledger.close()
            return False
        except BaseException:
            ledger.close()
            raise
        self._attach(ledger)
        self._is_lent = False
        self._recover()
        return True

    def quarantined(self) -> int:
        """How many units are set aside."""
        return self._ledger.quarantined()

    def breathe(self) -> float:
        """Say that we are alive, unless a lane hangs; gives the seconds until that is due again.

        Costs next to nothing: it may be called for each unit.
        """
        now = time.monotonic()
        if now >= self._next_breath:
            if self.crew.hangs(now - self._hang_timeout):
                return GLANCE
            self._next_breath = now + BREATH
            self._alive()
        return self._next_breath - now

    # -- a pass ------------------------------------------------------------------------------------------

    def run_pass(self, *, patient: bool) -> Summary:
        """Take every unit that is there as far as it goes; ``patient`` waits for those that still settle."""
        began = time.monotonic()
        self.summary = Summary()
        self._full = None
        self._working = 0.0
        try:
            self._pass(patient)
        finally:
            self.tries_waiting = False
            self.summary.seconds = time.monotonic() - began
            self.summary.scanning = self.summary.seconds - self._working
            self.summary.is_interrupted = self._stop.is_asked
        return self.summary

    def _pass(self, patient: bool) -> None:
        self._spool.look_at_place()
        if not self._sends:
            return
        self._begin_to_watch()
        if self._is_paused():
            return
        window = Window()
        self._prepared = None
        self._still_watched = {}
        if self._exchange is not None:
            self._exchange.turn()
            if self._exchange.is_open:
                self._begin_log_in()
        wanted = self._wanted(window.delivered)
        for unit in wanted if self._proofs is None else self._proven(wanted, self._proofs):
            self._note_found(unit)
            self._collect(unit, window, patient=patient)
            if window.is_full:
                if not self._work_off(window, patient=patient):
                    break
                self._prune()
                self._spool.forget_finished()
        else:
            self._watched = self._still_watched
            if self._watch is not None:
                self._watch.end()
            self._work_off(window, patient=patient, is_last=True)
            self._forget_what_is_gone()
        self._prune()

    def _begin_to_watch(self) -> None:
        if self._watch is not None:
            self._watch.begin()
            self._spool.enter_top(self._watch.enter)

    def _note_found(self, unit: Unit) -> None:
        self.summary.found += 1
        self.summary.found_bytes += unit.size
        self.summary.note_waiting(unit)
        if self.summary.found == 1:
            self._begin_log_in()

    def _begin_log_in(self) -> None:
        """It goes on while we scan."""
        if self._prepared is None:
            self._prepared = self._lanes().submit(lane.prepare, self.settings)

    def _collect(self, unit: Unit, window: Window, *, patient: bool) -> None:
        if (left := self._settles_in(unit)) <= 0:
            window.ready.append(unit)
        elif patient:
            window.young.append(unit)
        else:
            self.summary.settles_at = min(self.summary.settles_at, time.monotonic() + left)
            self._tell_settling(unit)

    def _work_off(self, window: Window, *, patient: bool, is_last: bool = False) -> bool:
        """Deal with what was collected; gives whether the pass may go on."""
        began = time.monotonic()
        try:
            return self._deal_with(window, patient=patient, is_last=is_last)
        finally:
            self._working += time.monotonic() - began

    def _deal_with(self, window: Window, *, patient: bool, is_last: bool) -> bool:
        if window.delivered:
            self._remove(window.delivered)
            window.delivered.clear()
        if not self._may_begin():
            return False
        self._deliver(window.ready)
        window.ready.clear()
        if patient and (is_last or len(window.young) >= WINDOW // 2):
            self._wait_until_settled(window.young)
            window.young.clear()
        if is_last:
            self._hear_out(patient=patient)
        if self._proofs is not None:
            self._send_proofs(self._proofs, patient=patient, is_last=is_last)
        if self._manifests is not None and self._may_go_on():
            self._leave_manifests(self._manifests)
        return self._may_go_on()

    def _may_begin(self) -> bool:
        """Whether the target lets us, which is asked once in a pass."""
        if self._prepared is not None:
            while not self._have_ended([self._prepared], GLANCE):
                if self._stop.is_asked:
                    return False
            prepared, self._prepared = self._prepared, None
            self._note_target(prepared.result())
        return self.summary.error is None and not self.summary.is_paused

    def _note_target(self, carried: Carried) -> None:
        if carried.error is not None:
            self.summary.error = carried.error
            self._tell(Event(Kind.TARGET, reason=str(carried.error)))
        elif carried.is_stopped and not self.summary.is_paused:
            outgoing = self.settings.outgoing
            self._pause(f"{outgoing.target_dir}/{outgoing.stop_file} at the target")
            self.summary.is_held_by_target = True

    def _is_paused(self) -> bool:
        name = self.settings.incoming.stop_file
        if not self.summary.is_paused and self._spool.has_stop_file(name):
            said = self._spool.first_line(name)
            self._pause(f"{self.settings.data_stream.directory}/{name}", said and f' ("{shown(said)}")')
        return self.summary.is_paused

    def _pause(self, what: str, said: str = "") -> None:
        self.summary.is_paused = True
        self.summary.why_paused = f"paused by {what}{said}; remove it to go on"
        self._tell(Event(Kind.PAUSED, reason=self.summary.why_paused))

    def _tell(self, event: Event) -> None:
        self.summary.counts[event.kind] += 1
        self._report(event)

    # -- what is to be done ------------------------------------------------------------------------------

    def _wanted(self, delivered: list[tuple[Unit, int]]) -> Iterator[Unit]:
        """Scan; yield the units to be sent, note those whose removal is missing, and answer for all others."""
        now = time.time()
        may_be_there = self._mirror and self._ledger.is_empty
        enter = _unwatched if self._watch is None else self._watch.enter
        for unit in self._spool.scan(self._ignored, self._skip, enter):
            self.breathe()
            if self._exchange is not None and self._exchange.awaits(unit):
                self.summary.note_waiting(unit)
                continue
            record = self._ledger.record(unit.path)
            verdict = judge(unit, record, mirror=self._mirror, now=now)
            if record is None:
                yield unit._replace(may_be_there=True) if may_be_there else unit
            elif verdict is Verdict.SEND or (verdict is Verdict.WAIT and self.tries_waiting):
                is_update = self._mirror and self._ledger.has_delivered(unit.path)
                yield unit._replace(is_update=is_update, attempt=attempts_before(unit, record) + 1)
            elif verdict is Verdict.REMOVE:
                delivered.append((unit, record.id))
                if len(delivered) >= REMOVED_AT_ONCE:
                    self._remove(delivered)
                    delivered.clear()
            else:
                self._answer(verdict, unit, record)

    def _skip(self, skipped: Skipped) -> None:
        self.breathe()
        if skipped.path != OWN_NAME:
            self._tell(skipped_event(skipped))

    def _answer(self, verdict: Verdict, unit: Unit, record: Record) -> None:
        if verdict is Verdict.KEEP:
            self._tell(Event(Kind.UNCHANGED, unit.path, unit=unit))
        elif verdict is Verdict.WAIT:
            self.summary.note_waiting(unit)
            self.summary.note_next_try(record.next_try)
            reason = f"{record.reason}; next try {when(record.next_try)}"
            self._tell(Event(Kind.WAITING, unit.path, reason, unit))
        else:
            self._set_aside(unit, record.id, record.reason)

    # -- proofs ------------------------------------------------------------------------------------------

    def _proven(self, wanted: Iterator[Unit], proofs: Proofs) -> Iterator[Unit]:
        """The units that a file in the spool proves. Such files are units too, for later, or stay."""
        proofs.turn()
        for unit in wanted:
            if proofs.is_proof(unit):
                if not proofs.follows:
                    self._skip(Skipped(unit.path, "is a proof, and stays"))
                continue
            try:
                yield proofs.proven(unit)
            except NotYet as why:
                self._tell_unproven(unit, str(why))

    def _tell_unproven(self, unit: Unit, why: str) -> None:
        self.summary.note_waiting(unit)
        if (left := self._settles_in(unit)) > 0:  # its proof is given the time that it is given itself
            self.summary.settles_at = min(self.summary.settles_at, time.monotonic() + left)
            self._tell_settling(unit)
            return
        self._tell(Event(Kind.WAITING, unit.path, why, unit))

    def _send_proofs(self, proofs: Proofs, *, patient: bool, is_last: bool) -> None:
        """Send the proofs of what was delivered."""
        while proofs.follows and self._may_go_on() and (due := proofs.due()):
            window = Window()
            for unit in due:
                self._note_found(unit)
                self._collect(unit, window, patient=patient)
            self._deliver(window.ready)
            self._wait_until_settled(window.young)
            if is_last:
                self._hear_out(patient=patient)
        if is_last:
            for unit, why in proofs.waiting():
                self._tell_unproven(unit, why)

    def _leave_manifests(self, manifests: Manifests) -> None:
        """Have the target hold lists of all that was delivered."""
        if not (notes := manifests.notes()):
            return
        future = self._lanes().submit(lane.converse, self.settings, Talk(notes))
        self._have_ended([future], inf)
        heard = future.result()
        if heard.carried.error is not None or heard.carried.is_stopped:
            self._note_target(heard.carried)
        elif heard.refused:
            for name, error in heard.refused.items():
                self._tell(Event(Kind.WAITING, name, f"a manifest: {error}"))
        else:
            manifests.note_put()

    def _settles_in(self, unit: Unit) -> float:
        """Seconds until a unit was left alone long enough, by its times or before our own eyes; 0 if it was."""
        settle_time = self.settings.data_stream.settle_time
        left = settles_in(unit.identity, settle_time, time.time())
        if left <= 0:
            return 0.0
        now = time.monotonic()
        since = self._watched.get((unit.path, unit.identity))
        if since is None and left > settle_time:
            since = now
        if since is None:
            return left
        if (left := min(left, since + settle_time - now)) > 0:
            self._keep_watching(unit, since)
        return max(left, 0.0)

    def _keep_watching(self, unit: Unit, since: float) -> None:
        """Remember for the next pass since when a unit is unchanged, if there is room."""
        key = unit.path, unit.identity
        if key in self._watched or max(len(self._watched), len(self._still_watched)) < WATCHED:
            self._still_watched[key] = since

    def _wait_until_settled(self, young: Sequence[Unit]) -> None:
        """Wait for all of them at once, deliver those that settled."""
        if not young or not self._may_go_on():
            for unit in young:
                self._tell_settling(unit)
            return
        settle_time = self.settings.data_stream.settle_time
        number = files(len(young), self.settings.data_stream.transfer_unit)
        self._report(Event(Kind.SETTLING, reason=f"{number} changed within the last {settle_time:g} s"))
        began = time.monotonic()
        self._stop.wait(settle_time + 0.01, self.breathe)
        self.summary.settling += time.monotonic() - began
        settled: list[Unit] = []
        for before, now in zip(young, self._spool.look_again(young), strict=True):
            if now is None:
                self.summary.note_settled(before)
                self._tell(Event(Kind.VANISHED, before.path, "it is gone", before))
            elif now.identity == before.identity or self._settles_in(now) <= 0:
                settled.append(now)
            else:
                self._tell_settling(now)
        self._deliver(settled)

    def _tell_settling(self, unit: Unit) -> None:
        self._tell(Event(Kind.SETTLING, unit.path, "it still changes, or did until a moment ago", unit))

    # -- lanes -------------------------------------------------------------------------------------------

    def _lanes(self) -> ThreadPoolExecutor:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(
                self.settings.outgoing.lanes, "lane", initializer=lane.join, initargs=(self.crew,)
            )
        return self._executor

    def _end_lanes(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = None
            self._talking = None  # what was to be said is said again
        self.crew.disconnect()

    def has_delivered_last(self) -> bool:
        """Whether the unit that is to be the last of all was ever delivered."""
        last = self.settings.data_stream.completion_file
        return last is not None and self._ledger.has_ever_delivered(last)

    def rest(self) -> None:
        """Log out between passes that have nothing to do."""
        self._end_lanes()

    def _deliver(self, units: list[Unit]) -> None:
        """Hand batches to lanes until all are carried, the target fails, or somebody asks us to stop."""
        order = self.settings.data_stream.order
        units = sorted(self._with_names(units), key=ORDERS[order])
        lanes = min(FIRST_LANES, self.settings.outgoing.lanes)
        self._how, batch_files = _way(self.settings)
        waiting = deque(even_batches(units, lanes, batch_files))
        failures = 0
        while waiting and self._may_go_on():
            delivered = self.summary.counts[Kind.DELIVERED]
            error = self._carry_until_failure(waiting)
            if error is not None and not self._stop.is_asked:
                # All lanes have noticed by now: however many there were, it is one failure.
                failures = 1 if self.summary.counts[Kind.DELIVERED] > delivered else failures + 1
                self._wait_for_target(error, failures)
        if self._full is not None:
            self._note_target(Carried([], self._full))
        if self._abandoned and self.summary.error is None and not self._stop.is_asked:
            self._have_ended([self._lanes().submit(lane.discard, self.settings, self._abandoned)], inf)
            self._abandoned = []

    def _with_names(self, units: Iterable[Unit]) -> Iterator[Unit]:
        """The units with the names that they get at the target; those that can have none there are refused."""
        for unit in units:
            if self._exchange is None:
                yield unit
                continue
            try:
                yield self._exchange.named(unit)
            except foreign.Refused as why:
                self._fail(unit, UnitRefused(str(why)))

    def _carry_until_failure(self, waiting: deque[list[Unit]]) -> MistamoverError | None:
        """Carry batches until none waits, we are to stop, or the target fails; gives its error."""
        running: dict[Future[Carried], Begun] = {}
        began = time.monotonic()
        error: MistamoverError | None = None
        while running or (waiting and not error and self._may_go_on()):
            if not error:
                self._fill_lanes(waiting, running, began)
            done, _ = wait(running, GLANCE, FIRST_COMPLETED)
            self.breathe()
            self._talk_on()
            if self._stop.is_asked and not self._stop.is_patient:
                self._wind_up(running)
            for future in done:
                batch, carried = running.pop(future), future.result()
                if self._is_one_too_many(carried):
                    waiting.appendleft(list(batch.units))
                    continue
                error = error or carried.error
                if not error:
                    self._fill_lanes(waiting, running, began)  # none idles while we write the ledger
                self._take(carried, batch, waiting)
        return error

    def _fill_lanes(self, waiting: deque[list[Unit]], running: dict[Future[Carried], Begun], began: float) -> None:
        while waiting and len(running) < self._lanes_now(time.monotonic() - began) and self._may_go_on():
            self._submit(waiting.popleft(), running)

    def _submit(self, batch: Sequence[Unit], running: dict[Future[Carried], Begun]) -> None:
        units = named(batch, self._begin, next(self._tries))
        running[self._lanes().submit(lane.carry, self.settings, units, self._how)] = Begun(units, time.monotonic())

    def _may_go_on(self) -> bool:
        return self.summary.error is None and not self._stop.is_asked and not self._is_paused()

    def _lanes_now(self, working: float) -> int:
        """How many lanes to use after so many seconds of work."""
        let_in = self._let_in + int((time.monotonic() - self._let_in_since) / ASK_AGAIN_AFTER)
        return min(self.settings.outgoing.lanes, FIRST_LANES + int(working / NEW_LANE_EVERY), let_in)

    def _is_one_too_many(self, carried: Carried) -> bool:
        """Whether the target lets no more lanes in; those that it did let in go on."""
        connected = self.crew.connected
        if not (isinstance(carried.error, TooManyConnections) and connected):
            return False
        if self._let_in != connected:
            lanes = f"{connected} of {self.settings.outgoing.lanes} lanes"
            self._report(Event(Kind.TARGET, reason=f"{carried.error}; going on over {lanes}"))
        self._let_in, self._let_in_since = connected, time.monotonic()
        return True

    def _wind_up(self, running: dict[Future[Carried], Begun]) -> None:
        """We are to stop: let what is on its way end, for a while, then have it parked."""
        self._have_ended(running, self.settings.outgoing.stop_timeout)
        self.crew.parking = True
        if not self._have_ended(running, PARKING_TIME):
            self.crew.abort()
            self._have_ended(running, inf)
        self.crew.parking = False

    def _have_ended(self, running: Collection[Future[Any]], seconds: float) -> bool:
        """Whether all of these have, after so many seconds at most."""
        until = time.monotonic() + seconds
        while wait(running, max(0.0, min(GLANCE, until - time.monotonic()))).not_done:
            self.breathe()
            if time.monotonic() >= until:
                return False
        return True

    def _take(self, carried: Carried, batch: Begun, waiting: deque[list[Unit]]) -> None:
        """Record what came of a batch; what the target did not answer for has to be carried again."""
        self._record(carried.outcomes, batch.since)
        if full := [outcome for outcome in carried.outcomes if isinstance(outcome.error, TargetFull)]:
            self._full = full[0].error
            _keep_smaller(waiting, min(outcome.unit.size for outcome in full))
        if carried.error is None:
            self._note_target(carried)
            return
        answered = {outcome.unit.path for outcome in carried.outcomes}
        left = [unit for unit in batch.units if unit.path not in answered]
        self._abandoned += left
        waiting.appendleft([unit._replace(attempt=unit.attempt + 1) for unit in left])

    def _wait_for_target(self, error: MistamoverError, failures: int) -> None:
        """Wait until the next try, or note that there is none in this pass."""
        if not error.retry or failures > self.settings.outgoing.retry_count or self._stop.is_asked:
            self._note_target(Carried([], error))
            return
        pause = next_wait(failures, 1.0, random.random())  # noqa: S311 - spreads load, no secret
        self._report(Event(Kind.TARGET, reason=f"{error}; trying again in {pause:.1f} s"))
        self._stop.wait(pause, self.breathe)

    # -- receipts ----------------------------------------------------------------------------------------

    def _talk_on(self) -> None:
        """Take what the target's arrivals monitor has answered, and go on talking when that is due."""
        if self._exchange is None:
            return
        if self._talking is not None and self._talking[1].done():
            talk, future = self._talking
            self._talking = None
            self._hear(self._exchange, talk, future.result())
        if self._talking is None and self._may_go_on():
            talk_now = self._exchange.talk(time.time(), time.monotonic())
            if talk_now is not None:
                self._talking = talk_now, self._lanes().submit(lane.converse, self.settings, talk_now)

    def _hear(self, exchange: Exchange, talk: Talk, heard: Heard) -> None:
        if heard.carried.error is not None or heard.carried.is_stopped:
            self._note_target(heard.carried)
            return
        answers = exchange.hear(talk, heard, time.time())
        if answers.delivered or answers.answered:
            seconds = time.time() - min(asked.asked for asked in answers.answered)
            self._record_delivered(answers.delivered, answers.answered, seconds)
            exchange.thank(answers.answered)
        for unit, reason in answers.strange:
            self._tell(Event(Kind.WAITING, unit.path, reason, unit))
        for unit, error in answers.failed.items():
            self._fail(unit, error)

    def _hear_out(self, *, patient: bool) -> None:
        """Say what is to be said before a pass ends; ``patient`` waits for all receipts that may still come."""
        if (exchange := self._exchange) is None:
            return
        while self._talking is not None or self._may_go_on():
            self._talk_on()
            if self._talking is not None:
                self._wait_for_talk(self._talking[1])
            elif not (exchange.owes or (patient and exchange.hopeful)):
                break
            else:
                self._stop.wait(min(GLANCE, exchange.left(time.monotonic())), self.breathe)
        self.summary.awaited = exchange.hopeful
        self.summary.settles_at = min(self.summary.settles_at, time.monotonic() + exchange.left(time.monotonic()))

    def _wait_for_talk(self, future: Future[Heard]) -> None:
        if not self._stop.is_asked:
            self._have_ended([future], GLANCE)
        elif not self._have_ended([future], self.settings.outgoing.stop_timeout):
            self.crew.abort()
            self._have_ended([future], inf)

    # -- what came of it ---------------------------------------------------------------------------------

    def _record(self, outcomes: Sequence[Outcome], began: float) -> None:
        delivered = [outcome.unit for outcome in outcomes if outcome.error is None]
        if delivered and self._exchange is not None:
            self._exchange.begin(delivered, time.time())
        elif delivered:
            self._record_delivered(delivered, seconds=time.monotonic() - began)
        for unit, error in outcomes:
            if error is not None:
                self.breathe()
                self._fail(unit, error)

    def _record_delivered(
        self, delivered: Sequence[Unit], answered: Sequence[Asked] = (), seconds: float = 0.0
    ) -> None:
        with self.crew.baton:
            records = self._ledger.deliver(delivered, time.time(), answered)
            for unit in delivered:
                if self._exchange is None or unit.path in self._exchange.noted:
                    self.summary.note_settled(unit)
                self.summary.delivered_bytes += unit.size
                self.summary.proofs[unit.proof] += 1
                self._tell(Event(Kind.DELIVERED, unit.path, unit=unit, seconds=seconds))
        if delivered and not self._mirror:
            self._remove(list(zip(delivered, records, strict=True)))

    def _remove(self, delivered: Sequence[tuple[Unit, int]]) -> None:
        """Remove sources of which the ledger says, on disk, that they were delivered."""
        removed: list[int] = []
        for first in range(0, len(delivered), REMOVED_TOGETHER):
            self.breathe()
            with self.crew.baton:
                for unit, record in delivered[first : first + REMOVED_TOGETHER]:
                    if self._remove_one(unit, record):
                        removed.append(record)
        self._spool.let_go_of_twins()
        self._ledger.removed(removed, time.time())

    def _remove_one(self, unit: Unit, record: int) -> bool:
        """Whether the source is gone."""
        try:
            self._spool.remove(unit, record)
        except SourceGone:
            return True  # somebody else removed it; the target has it
        except SourceMoved as error:
            if self._watch is not None:
                self._watch.expect(unit.path)
            self._tell(Event(Kind.CHANGED, unit.path, str(error), unit))
            return False
        except UnitError as error:
            self._tell(Event(Kind.NOT_REMOVED, unit.path, f"delivered, but {error}", unit))
            return False
        self._emptied.add(unit.path.rpartition("/")[0])
        self._tell(Event(Kind.REMOVED, unit.path, unit=unit))
        return True

    def _fail(self, unit: Unit, error: UnitError) -> None:
        """A unit was not delivered: it starts again, waits, or is set aside."""
        if isinstance(error, SourceGone):
            self.summary.note_settled(unit)
            self._tell(Event(Kind.VANISHED, unit.path, str(error), unit))
            return
        if isinstance(error, SourceMoved | Parked):
            self._tell(Event(Kind.CHANGED, unit.path, str(error), unit))
            return
        if isinstance(error, NoRoom):
            return  # it was not begun, and is found again by the next pass
        if isinstance(error, NameTaken) and self._exchange is not None:
            error = NotTaken(f"{error}; it waits until the arrivals monitor has taken that")
        outgoing = self.settings.outgoing
        record = self._ledger.record(unit.path)
        attempts = attempts_before(unit, record) + 1
        is_spent = not error.retry or attempts >= outgoing.retry_count
        now = time.time()
        if error.fault is Fault.UNIT and is_spent and not is_shortage(error):
            self.summary.note_settled(unit)
            reason = str(error) if not error.retry else f"{error} (failed {attempts} times)"
            self._set_aside(unit, self._ledger.quarantine(unit, attempts, reason, now), reason, error)
            return
        wait = next_wait(attempts, outgoing.retry_interval, random.random())  # noqa: S311
        next_try = now + (min(wait, FULL_WAIT) if isinstance(error, TargetFull) else wait)
        self._ledger.wait(unit, attempts, next_try, str(error), now)
        self.summary.note_next_try(next_try)
        self._tell(Event(Kind.WAITING, unit.path, f"{error}; next try {when(next_try)}", unit, error=error))

    def _forget_what_is_gone(self) -> None:
        """Have no unit wait for its next try that somebody has taken away."""
        gone = {record: path for record, path in self._ledger.waiting() if self._spool.is_gone(path)}
        if gone:
            self._ledger.stop_waiting(gone)
        for path in gone.values():
            self._tell(Event(Kind.VANISHED, path, "it is gone, and waits for no other try"))

    def _set_aside(self, unit: Unit, record: int, reason: str, why: UnitError | None = None) -> None:
        try:
            self._spool.quarantine(unit, record, reason)
        except (SourceGone, SourceMoved) as error:
            self._ledger.release(record)
            kind = Kind.VANISHED if isinstance(error, SourceGone) else Kind.CHANGED
            self._tell(Event(kind, unit.path, str(error), unit))
            return
        except UnitError as error:
            reason = f"{reason}; and {error}"
        else:
            self._emptied.add(unit.path.rpartition("/")[0])
        self._tell(Event(Kind.QUARANTINED, unit.path, reason, unit, error=why))

    def _prune(self) -> None:
        if self._emptied and not self._mirror:
            settle_time = self.settings.data_stream.settle_time
            again = self._spool.prune(self._emptied - {""}, settle_time, time.time())
            self._emptied = set(islice(again, WINDOW))


def recovered(spool: Spool, ledger: Ledger) -> Iterator[tuple[str, str]]:
    """Finish or undo what a crash left half done in a spool that we hold; yields path and what was done."""
    yield from spool.recover(ledger.known)
    for record in spool.aside():
        if (path := ledger.deleted_aside(record)) is None:
            continue
        if spool.is_aside(path, record):
            ledger.set_aside_again(record)
            yield path, "still in quarantine: it was to be deleted"
        else:
            spool.clear_aside(record)


def _way(settings: Settings) -> tuple[lane.Deliver, int]:
    """How lanes deliver the stream's units, and how many a lane takes at once."""
    if settings.data_stream.transfer_unit == "directory":
        is_packaged = settings.outgoing.package != "none"
        return whole.deliver_packages if is_packaged else whole.deliver, BATCH_DIRECTORIES
    return lane.deliver, transport_class(settings.outgoing.transfer_protocol).batch_files


def _unwatched(_path: str, _fd: int) -> None:
    """Nobody watches a directory that the scan goes through."""


def _keep_smaller(waiting: deque[list[Unit]], size: int) -> None:
    """A unit of this size had no room: those that are not smaller need not be tried in this pass."""
    kept = [[unit for unit in batch if unit.size < size] for batch in waiting]
    waiting.clear()
    waiting.extend(filter(None, kept))


def when(moment: float) -> str:
    """A time of day for people, local, with its date; ``moment`` in seconds since the epoch."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))
    except (OverflowError, OSError, ValueError):
        return "?"  # a year that nobody has a calendar for


def skipped_event(skipped: Skipped) -> Event:
    """What to tell of something that is no unit."""
    return Event(Kind.WAITING if skipped.is_trouble else Kind.SKIPPED, skipped.path, skipped.reason)
