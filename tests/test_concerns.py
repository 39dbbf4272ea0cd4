"""What a worker notes of what is wrong: real streams, and the board that is left behind."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from mistamover import board, config
from mistamover.alert import Condition, Trouble
from mistamover.board import Board
from mistamover.concerns import Concerns, quiet_time
from mistamover.errors import NoReceipt, NotVerified, TargetDown, TargetFull, UnitError
from mistamover.events import Event, Kind, Summary
from mistamover.values import Quiet
from tests.program import Local


def at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


WORKING = Quiet(7200, (0, 1, 2, 3, 4), 6 * 60, 20 * 60)
NIGHT = Quiet(7200, tuple(range(7)), 22 * 60, 4 * 60)
ALWAYS = Quiet(7200, tuple(range(7)), 0, 24 * 60)


@pytest.mark.parametrize(
    ("quiet", "since", "now", "hours"),
    [
        (ALWAYS, "2026-11-23 10:00", "2026-11-25 10:30", 48.5),
        (WORKING, "2026-11-25 10:00", "2026-11-25 12:30", 2.5),  # a Wednesday
        (WORKING, "2026-11-25 19:00", "2026-11-26 07:00", 2),
        (WORKING, "2026-11-27 19:00", "2026-11-30 07:00", 2),  # over a week-end
        (WORKING, "2026-11-28 10:00", "2026-11-29 10:00", 0),
        (NIGHT, "2026-11-25 12:00", "2026-11-26 03:00", 5),
        (NIGHT, "2026-11-26 01:00", "2026-11-26 12:00", 3),
        (WORKING, "2026-11-26 01:00", "2026-11-25 12:00", 0),  # the clock was set back
        (ALWAYS, "1990-01-01 00:00", "2026-11-25 12:00", 400 * 24 + 12),  # looked back no further
    ],
)
def test_only_the_times_of_the_timetable_count(quiet: Quiet, since: str, now: str, hours: float) -> None:
    assert quiet_time(at(since), at(now), quiet) == hours * 3600


class Stream:
    """A stream of which a test says how its passes go."""

    def __init__(self, local: Local, email: str = "") -> None:
        local.configure(more=f"[email]\nrecipient = ops@example.org\n{email}\n")
        self.now = at("2026-11-25 12:00")
        self.settings = config.load(local.ini)
        self.directory = local.state / "x"
        self.concerns = self.begin()

    def begin(self) -> Concerns:
        board = Board(self.directory, "x", self.settings.email, lambda: self.now)
        return Concerns(board, self.settings, lambda: self.now)

    def turn(self, summary: Summary, quarantined: int = 0) -> list[Trouble]:
        self.concerns.turn(summary, quarantined)
        return self.open

    @property
    def open(self) -> list[Trouble]:
        self.concerns.board.close()
        return [one.trouble for one in board.read_conditions(self.directory)]

    def condition(self, trouble: Trouble) -> Condition:
        self.concerns.board.close()
        return next(one for one in board.read_conditions(self.directory) if one.trouble is trouble)


@pytest.fixture
def local(tmp_path: Path) -> Local:
    return Local(tmp_path)


def failed(**counts: int) -> Summary:
    summary = Summary()
    summary.counts.update({Kind[kind]: number for kind, number in counts.items()})
    return summary


def test_a_target_that_is_down_is_unreachable_until_a_pass_goes_through(local: Local) -> None:
    stream = Stream(local)
    down = Summary(error=TargetDown("Connection refused"))
    for _ in range(3):
        assert stream.turn(down) == [Trouble.TARGET]
        stream.now += 60
    one = stream.condition(Trouble.TARGET)
    assert (one.count, one.last - one.since, one.reason) == (3, 120, "Connection refused")
    assert stream.turn(Summary(is_paused=True)) == [Trouble.TARGET], "a pause says nothing of it"
    stream.concerns = stream.begin()
    assert stream.turn(down) == [Trouble.TARGET]
    assert stream.condition(Trouble.TARGET).since == one.since, "another worker goes on with it"
    assert stream.turn(Summary()) == []


def test_a_target_that_is_full_is_so_until_something_goes_through_and_no_unit_is_to_blame(local: Local) -> None:
    stream = Stream(local)
    full = failed(WAITING=3)
    full.error = TargetFull("No space left on device")
    full.waiting = 3
    assert stream.turn(full) == [Trouble.FULL]
    still = failed(WAITING=3)
    still.waiting = 3
    assert stream.turn(still) == [Trouble.FULL], "they waited for their time, and nothing was tried"
    moving = failed(DELIVERED=3)
    assert stream.turn(moving) == []


def test_units_that_fail_are_counted_and_the_first_are_named(local: Local) -> None:
    stream = Stream(local)
    for number in range(30):
        stream.concerns.hear(Event(Kind.WAITING, f"{number:02}", "no"))
    assert stream.turn(failed(WAITING=30)) == [Trouble.UNITS]
    one = stream.condition(Trouble.UNITS)
    assert one.count == 30
    assert one.names == tuple(f"{number:02}" for number in range(20))
    assert one.reason == "00: no"
    assert stream.turn(failed(WAITING=0)) == []


@pytest.mark.parametrize(
    ("error", "trouble"), [(NotVerified("differs"), Trouble.VERIFY), (NoReceipt("none came"), Trouble.RECEIPT)]
)
def test_what_is_worse_than_failing_is_told_of_until_nothing_fails(
    local: Local, error: UnitError, trouble: Trouble
) -> None:
    stream = Stream(local)
    stream.concerns.hear(Event(Kind.WAITING, "a", str(error), error=error))
    assert stream.turn(failed(WAITING=1)) == [trouble, Trouble.UNITS]
    assert stream.turn(failed(WAITING=1)) == [trouble, Trouble.UNITS]
    assert stream.condition(trouble).reason == str(error)
    assert stream.turn(failed(DELIVERED=1)) == []


def test_what_was_set_aside_is_told_of_until_it_is_gone(local: Local) -> None:
    stream = Stream(local)
    stream.concerns.hear(Event(Kind.QUARANTINED, "a", "taken"))
    assert stream.turn(failed(QUARANTINED=1), 1) == [Trouble.QUARANTINE]
    assert stream.turn(Summary(), 5) == [Trouble.QUARANTINE]
    assert stream.condition(Trouble.QUARANTINE).count == 5
    assert stream.condition(Trouble.QUARANTINE).names == ("a",)
    assert stream.turn(Summary(), 0) == []


def test_nothing_arrived_is_told_and_it_is_over_when_something_does(local: Local) -> None:
    stream = Stream(local, "alert_quiet = 2h weekdays 06:00-20:00")
    assert stream.turn(Summary()) == []
    stream.now += 1.9 * 3600
    assert stream.turn(Summary()) == []
    stream.concerns = stream.begin()
    stream.now += 0.2 * 3600
    stream.concerns.beat(Summary())
    assert stream.open == [Trouble.QUIET]
    arrived = Summary(newest=stream.now - 10)
    assert stream.turn(arrived) == []
    stream.now = at("2026-11-26 05:00")
    assert stream.turn(Summary()) == [Trouble.QUIET]


def test_a_unit_that_waits_too_long_is_told_of_whatever_its_own_time(local: Local) -> None:
    stream = Stream(local, "alert_oldest = 1h")
    young = Summary(waiting=1, oldest=1.0, waits_since=stream.now - 3000, waits_longest="a")
    assert stream.turn(young) == []
    stream.now += 1000
    assert stream.turn(young) == [Trouble.STUCK]
    assert stream.condition(Trouble.STUCK).names == ("a",)
    assert stream.turn(Summary(is_paused=True)) == [Trouble.STUCK], "nobody has looked"
    assert stream.turn(Summary()) == []


def test_messages_of_the_log_are_told_from_the_threshold_on_but_not_twice(local: Local) -> None:
    stream = Stream(local, "threshold = ERROR")
    hear = stream.concerns.board.hear
    hear(30, "a warning")
    assert stream.open == []
    stream.concerns.near("no spool")
    hear(40, "no spool; trying again")
    assert stream.open == [Trouble.NEAR]
    hear(40, "something else")
    hear(50, "and more")
    assert stream.open == [Trouble.NEAR, Trouble.LOG]
    one = stream.condition(Trouble.LOG)
    assert (one.count, one.reason) == (2, "and more")
    assert [line[20:] for line in one.lines] == [
        "a warning",
        "no spool; trying again",
        "something else",
        "and more",
    ]
    stream.now += board.PASSES_AFTER
    stream.concerns.board.look()
    assert stream.open == [Trouble.NEAR]


def test_a_board_that_cannot_be_written_stops_nothing_and_is_written_later(local: Local) -> None:
    stream = Stream(local)
    local.state.rmdir() if local.state.exists() else None
    local.state.write_text("in the way")
    stream.concerns.near("no spool")
    local.state.unlink()
    assert stream.open == [Trouble.NEAR]


@pytest.mark.parametrize("content", ["", "[]", "{", '{"email": {}, "arrived": "x", "conditions": []}', '{"a": 1}'])
def test_a_board_that_cannot_be_read_says_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / board.FILE).write_text(content)
    assert board.read(tmp_path / board.FILE) is None


# -- real runs ---------------------------------------------------------------------------------------------


def conditions(local: Local) -> dict[str, Condition]:
    return {one.trouble.name: one for one in board.read_conditions(local.state / "x")}


def break_target(local: Local) -> None:
    local.target.rename(local.top / "away")


def mend_target(local: Local) -> None:
    (local.top / "away").rename(local.target)


def break_spool(local: Local) -> None:
    local.spool.rename(local.top / "away")


def mend_spool(local: Local) -> None:
    (local.top / "away").rename(local.spool)


@pytest.mark.parametrize(
    ("breaks", "mends", "trouble"),
    [(break_target, mend_target, "REFUSED"), (break_spool, mend_spool, "NEAR")],
)
def test_what_keeps_a_run_from_moving_is_noted_until_it_is_over(
    local: Local, breaks: Callable[[Local], None], mends: Callable[[Local], None], trouble: str
) -> None:
    local.put("a")
    breaks(local)
    before = time.time()
    assert local.once().code != 0
    one = conditions(local)[trouble]
    assert before - 1 < one.since <= time.time()
    assert one.reason
    mends(local)
    assert local.once().code == 0
    assert conditions(local) == {}


def test_a_run_in_which_all_is_well_writes_no_board(local: Local) -> None:
    local.put("a")
    assert local.once().code == 0
    assert not list(local.state.rglob("conditions*"))
    assert not (local.state / "alerts").exists()


def test_old_times_of_units_are_no_reason_to_call(local: Local) -> None:
    local.configure(more="[email]\nalert_oldest = 1h")
    path = local.put("a")
    os.utime(path, (1, 1))
    local.put("a", b"other", at=local.target)
    local.put(".stop")
    assert local.once().code == 5
    (local.spool / ".stop").unlink()
    assert local.once().code == 1
    assert "STUCK" not in conditions(local)
