"""What is wrong with one stream, from what its worker has at hand anyhow: it costs a transfer nothing."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from datetime import time as time_of_day

from mistamover.alert import MOST_NAMES, Trouble
from mistamover.board import Board
from mistamover.errors import NoReceipt, NotVerified, TargetDown, TargetFull, TargetRefused
from mistamover.events import Event, Kind, Summary
from mistamover.lines import duration, shown
from mistamover.options import Settings
from mistamover.stream import when
from mistamover.values import Quiet

LONGEST_LOOK = 400
"""Days that are looked back for times at which something should have arrived."""

_OF_UNITS = {
    NotVerified: (Trouble.VERIFY, "what was staged is thrown away, and the unit is sent again"),
    NoReceipt: (Trouble.RECEIPT, "nothing is removed; it is asked for again, or sent again where it is gone there"),
}
_OF_TARGET = {TargetDown: Trouble.TARGET, TargetRefused: Trouble.REFUSED, TargetFull: Trouble.FULL}


def quiet_time(since: float, now: float, quiet: Quiet) -> float:
    """Seconds between two moments, of those that the timetable counts, by the local clock."""
    return sum(max(0.0, min(end, now) - max(begin, since)) for begin, end in _windows(since, now, quiet))


def _windows(since: float, now: float, quiet: Quiet) -> Iterator[tuple[float, float]]:
    """The times that count, of the days that lie between; one may begin on the day before."""
    last = date.fromtimestamp(now)
    day = max(date.fromtimestamp(since) - timedelta(1), last - timedelta(LONGEST_LOOK))
    while day <= last:
        if day.weekday() in quiet.days:
            later = quiet.end if quiet.end > quiet.begin else quiet.end + 24 * 60
            yield _moment(day, quiet.begin), _moment(day, later)
        day += timedelta(1)


def _moment(day: date, minute: int) -> float:
    """The local time of a day, which may be so many minutes of the next one."""
    days, minute = divmod(minute, 24 * 60)
    return datetime.combine(day + timedelta(days), time_of_day(minute // 60, minute % 60)).timestamp()


class Concerns:
    """Notes on a board what is wrong with a stream."""

    def __init__(self, board: Board, settings: Settings, now: Callable[[], float] = time.time) -> None:
        self.board = board
        self._settings = settings
        self._email = settings.email
        self._now = now
        self._file = shlex.quote(shown(str(settings.path)))
        self._failing: dict[str, str] = {}
        """The first units that this pass found to fail, with their reasons."""
        self._set_aside: dict[str, str] = {}

    def hear(self, event: Event) -> None:
        """Take note of what went wrong. Comes for each unit that failed, in each pass."""
        if event.kind in (Kind.WAITING, Kind.NOT_REMOVED):
            _note(self._failing, event)
        elif event.kind is Kind.QUARANTINED:
            _note(self._set_aside, event)
        for kind, (trouble, tried) in _OF_UNITS.items():
            if isinstance(event.error, kind):
                self._tell_of_unit(trouble, event, tried)

    def _tell_of_unit(self, trouble: Trouble, event: Event, tried: str) -> None:
        held = self.board.holds(trouble)
        names = (*(held.names if held else ()), event.path)
        mend = f"mistamover history {self._file} --failed"
        self.board.hold(trouble, event.reason, names=dict.fromkeys(names), tried=tried, mend=mend)

    def near(self, text: str) -> None:
        """The spool or the record cannot be used."""
        tried = "nothing is moved without a record; it is tried again, each time after a longer wait"
        self.board.hold(Trouble.NEAR, text, tried=tried, mend=f"mistamover check {self._file}")

    def beat(self, summary: Summary) -> None:
        """While a pass lasts, and between passes: what is due to be told."""
        failing = _failing(summary)
        held = self.board.holds(Trouble.UNITS)
        if failing > (held.count if held else 0):
            self._tell_failing(failing)
        self._look_for_quiet(summary)
        self.board.look()

    def turn(self, summary: Summary, quarantined: int) -> None:
        """A pass has ended; ``quarantined`` units are set aside, below 0 where nobody has counted."""
        is_whole = summary.error is None and not (summary.is_paused or summary.is_interrupted)
        self.board.end(Trouble.NEAR)
        self._look_at_target(summary, is_whole=is_whole)
        self._look_at_units(summary, is_whole=is_whole)
        self._look_at_quarantine(quarantined)
        self._look_for_stuck(summary)
        self._look_for_quiet(summary)
        self._failing, self._set_aside = {}, {}
        self.board.look()

    # -- one by one ------------------------------------------------------------------------------------------

    def _look_at_target(self, summary: Summary, *, is_whole: bool) -> None:
        now_wrong = next((one for kind, one in _OF_TARGET.items() if isinstance(summary.error, kind)), None)
        for trouble in _OF_TARGET.values():
            if trouble is not now_wrong and (now_wrong or self._answers(trouble, summary, is_whole=is_whole)):
                self.board.end(trouble)
        if now_wrong is not None:
            tried = f"tried again, each time after a longer wait; {summary.waiting:,} units wait in the spool"
            self.board.hold(
                now_wrong, str(summary.error), tried=tried, mend=f"mistamover check {self._file} --connect"
            )

    @staticmethod
    def _answers(trouble: Trouble, summary: Summary, *, is_whole: bool) -> bool:
        """Whether a pass shows that the target is well: what waits for room may not have been tried."""
        is_moving = summary.counts[Kind.DELIVERED] > 0 or not summary.waiting
        return summary.is_held_by_target or (is_whole and (is_moving or trouble is not Trouble.FULL))

    def _look_at_units(self, summary: Summary, *, is_whole: bool) -> None:
        failing = _failing(summary)
        if is_whole and not failing:
            self.board.end(Trouble.UNITS)
            for trouble, _ in _OF_UNITS.values():
                self.board.end(trouble)
        elif failing and is_whole:
            self._tell_failing(failing)

    def _tell_failing(self, failing: int) -> None:
        if self.board.holds(Trouble.FULL):
            self.board.end(Trouble.UNITS)  # it is the target's fault, and not theirs
            return
        outgoing = self._settings.outgoing
        first = next(iter(self._failing.items()), ("", ""))
        self.board.hold(
            Trouble.UNITS,
            f"{shown(first[0])}: {first[1]}" if first[0] else first[1],
            count=failing,
            names=self._failing,
            tried=f"each is tried again, at first after {duration(outgoing.retry_interval)}, up to "
            f"{outgoing.retry_count} times if it is the unit's own fault",
            mend=f"mistamover history {self._file} --failed",
        )

    def _look_at_quarantine(self, quarantined: int) -> None:
        if quarantined == 0:
            self.board.end(Trouble.QUARANTINE)
        if quarantined <= 0:
            return
        held = self.board.holds(Trouble.QUARANTINE)
        if held is not None and quarantined == held.count:
            return
        names = dict.fromkeys((*self._set_aside, *(held.names if held else ())))
        reason = next(iter(self._set_aside.values()), held.reason if held else "set aside before")
        self.board.hold(
            Trouble.QUARANTINE,
            reason,
            count=quarantined,
            names=list(names)[: min(MOST_NAMES, quarantined)],
            tried="they are kept in the quarantine of the spool until a person releases them",
            mend=f"mistamover quarantine list {self._file}",
        )

    def _look_for_stuck(self, summary: Summary) -> None:
        limit, oldest = self._email.alert_oldest, summary.waits_since
        if summary.is_paused and not summary.found:
            return  # nobody has looked into the spool
        if limit is None or not oldest or self._now() - oldest <= limit:
            self.board.end(Trouble.STUCK)
            return
        self.board.hold(
            Trouble.STUCK,
            f"{shown(summary.waits_longest)} waits since {when(oldest)}",
            count=summary.waiting,
            names=[summary.waits_longest],
            mend=f"mistamover status {self._settings.name}",
        )

    def _look_for_quiet(self, summary: Summary) -> None:
        quiet, now = self._email.alert_quiet, self._now()
        if quiet is None:
            return
        self.board.note_arrival(min(summary.newest, now))
        if now - self.board.arrived <= quiet.seconds or quiet_time(self.board.arrived, now, quiet) <= quiet.seconds:
            self.board.end(Trouble.QUIET)
        elif not self.board.holds(Trouble.QUIET):
            self.board.hold(
                Trouble.QUIET,
                f"nothing since {when(self.board.arrived)}, where something is to come every "
                f"{duration(quiet.seconds)}",
                mend=f"look at what fills {shown(str(self._settings.data_stream.directory))}",
            )


def _note(noted: dict[str, str], event: Event) -> None:
    if len(noted) < MOST_NAMES:
        noted.setdefault(event.path, event.reason)


def _failing(summary: Summary) -> int:
    return summary.counts[Kind.WAITING] + summary.counts[Kind.NOT_REMOVED]
