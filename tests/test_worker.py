"""The loop of one stream: when the next pass is, what is told once, and what it all adds up to."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mistamover import config, worker
from mistamover.errors import (
    Exit,
    Held,
    LedgerError,
    MistamoverError,
    SpoolError,
    TargetDown,
    TargetRefused,
    UnitError,
)
from mistamover.events import Event, Kind, Stop, Summary
from mistamover.lane import Lane
from mistamover.log import Log
from mistamover.options import Settings
from mistamover.stream import Stream
from mistamover.transports.local import Local as LocalTransport
from mistamover.unit import Unit
from mistamover.worker import LONGEST_WAIT, REFUSED_WAIT, News, Ticker, Worker
from tests.program import Local
from tests.sshd import wait_for


@pytest.fixture
def local(tmp_path: Path) -> Local:
    return Local(tmp_path)


def loaded(local: Local) -> Settings:
    return config.load(local.ini, environ={})


@contextmanager
def made(local: Local, events: list[Event] | None = None) -> Iterator[Worker]:
    with Log(loaded(local)) as log:
        yield Worker(loaded(local), log, None if events is None else events.append)


@contextmanager
def polling(local: Local, events: list[Event] | None = None) -> Iterator[Worker]:
    """A worker that makes passes in another thread."""
    with made(local, events) as it:
        failed: list[BaseException] = []

        def run() -> None:
            try:
                it.run(once=False)
            except BaseException as error:  # noqa: BLE001 - told by the test's own thread
                failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield it
        finally:
            it.stop.ask()
            thread.join()
        if failed:
            raise failed[0]


def passes(it: Worker, count: int) -> None:
    """Wait until so many more passes were made."""
    counted: list[Summary] = []
    original = it._tell_pass

    def tell(summary: Summary, *, patient: bool) -> None:
        original(summary, patient=patient)
        counted.append(summary)

    it._tell_pass = tell  # type: ignore[method-assign]
    wait_for(lambda: len(counted) >= count, f"{count} passes")


# -- passes ------------------------------------------------------------------------------------------------


def test_polling_finds_what_comes_and_adds_it_up(local: Local) -> None:
    with polling(local) as it:
        for name in ("a", "b", "c"):
            local.put(name)
            wait_for(lambda name=name: (local.target / name).exists(), name)  # type: ignore[misc]
        wait_for(lambda: not local.names(local.spool), "the last removal")
        passes(it, 2)
    assert it.total.counts[Kind.DELIVERED] == it.total.counts[Kind.REMOVED] == 3
    assert (it.total.delivered_bytes, it.total.proofs) == (30, {"readback": 3})
    assert it.total.exit is Exit.INTERRUPTED
    assert it.outcome(it.total).startswith("moved 3 files, 30 bytes in ")


def test_once_is_one_patient_pass(local: Local) -> None:
    local.configure(settle="0.5")
    local.put("a")
    with made(local) as it:
        assert it.run(once=True).exit is Exit.DONE
    assert local.names(local.target) == {"a"}


def test_the_rate_is_that_of_the_time_that_is_told(local: Local) -> None:
    """It is the time for which it worked: waiting for units to settle is told by a line of its own."""
    with made(local) as it:
        moved = Summary(Counter({Kind.DELIVERED: 2}), delivered_bytes=2**21, seconds=7.0, settling=5.0)
        assert it.outcome(moved).startswith("moved 2 files, 2 MiB in 2 s (1 MiB/s)")
        it.total = moved
        twice = it._added(moved)
    assert (twice.seconds, twice.settling) == (14.0, 10.0)


def test_units_in_quarantine_stay_counted(local: Local) -> None:
    local.put("a", b"ours")
    local.put("a", b"theirs", at=local.target)
    with polling(local) as it:
        passes(it, 3)
    assert it.total.counts[Kind.QUARANTINED] == 1
    assert it.outcome(it.total) == "1 in quarantine"


def test_a_mirrored_unit_in_quarantine_is_counted_once(local: Local) -> None:
    local.configure("transfer_mode = mirror")
    local.put("a")
    (local.target / "a").mkdir()
    with polling(local) as it:
        passes(it, 3)
    assert it.total.counts[Kind.QUARANTINED] == 1


def test_a_spool_that_is_gone_for_a_while(local: Local, capsys: pytest.CaptureFixture[str]) -> None:
    local.spool.rmdir()
    with polling(local) as it:
        wait_for(lambda: it._failures >= 3, "three tries")
        local.spool.mkdir()
        local.put("a")
        wait_for(lambda: (local.target / "a").exists(), "the unit")
    assert capsys.readouterr().err.count("the spool cannot be opened") == 1


@pytest.mark.parametrize("error", [SpoolError("no spool"), LedgerError("no ledger")])
def test_one_pass_without_spool_or_ledger_is_an_error(
    local: Local, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> Summary:
        raise error

    monkeypatch.setattr(Stream, "run_pass", fail)
    with made(local) as it, pytest.raises(type(error)):
        it.run(once=True)


def test_two_may_not_run_one_stream(local: Local) -> None:
    with polling(local) as first:
        passes(first, 1)
        with made(local) as second, pytest.raises(Held):
            second.run(once=False)


# -- waits -------------------------------------------------------------------------------------------------


def waits(local: Local, error: Exception | None, count: int = 1, **paused: bool) -> list[float]:
    with made(local) as it:
        summary = Summary(error=error, **paused)  # type: ignore[arg-type]
        return [it._time_to_next(summary) for _ in range(count)]


def test_the_wait_for_a_target_grows_to_its_limit(local: Local) -> None:
    found = waits(local, TargetDown("down"), 30)
    assert found[0] <= 0.05
    assert all(0.5 * 0.05 * 2**number <= wait for number, wait in enumerate(found[:10]))
    assert found[9] > 10 * found[4] > 0
    assert all(LONGEST_WAIT / 2 <= wait <= LONGEST_WAIT for wait in found[-5:])
    assert len(set(found[-5:])) == 5, "all streams would knock at once"


def test_a_target_that_refuses_is_asked_slowly(local: Local) -> None:
    found = waits(local, TargetRefused("no"), 30)
    assert found[0] == REFUSED_WAIT
    assert all(REFUSED_WAIT <= wait <= LONGEST_WAIT for wait in found)


def test_the_wait_starts_anew_after_a_good_pass(local: Local) -> None:
    with made(local) as it:
        for _ in range(10):
            it._time_to_next(Summary(error=TargetDown("down")))
        assert it._time_to_next(Summary()) == 0.05
        assert it._time_to_next(Summary(error=TargetDown("down"))) <= 0.05


def test_a_target_that_is_away_is_said_to_be_tried_again(local: Local, capsys: pytest.CaptureFixture[str]) -> None:
    local.put("a")
    local.target.rename(local.top / "elsewhere")
    said = ""

    def is_said() -> bool:
        nonlocal said
        said += capsys.readouterr().err
        return "tries again in " in said

    with polling(local):
        wait_for(is_said, "the time of the next try")
        (local.top / "elsewhere").rename(local.target)
    assert re.search(r"no such directory.*\n.*INFO.*tries again in \S+ (s|min), and then ever less often\n", said)


def test_a_pause_at_the_target_is_looked_at_seldom_and_one_here_often(local: Local) -> None:
    local.configure("stop_file_poll_interval = 77")
    assert waits(local, None, is_paused=True, is_held_by_target=True) == [77]
    assert waits(local, None, is_paused=True) == [0.05]


def test_a_stop_ends_any_wait(local: Local) -> None:
    local.configure("stop_file_poll_interval = 1h")
    (local.target / ".stop").touch()
    local.put("a")
    with polling(local) as it:
        wait_for(lambda: it.total.is_paused, "the pause")
    assert it.outcome(it.total) == "1 of 1 file not delivered"


@pytest.mark.parametrize(("after", "lanes"), [(0.0, 0), (3600.0, 1)])
def test_lanes_log_out_when_there_is_nothing_to_do(
    local: Local, monkeypatch: pytest.MonkeyPatch, after: float, lanes: int
) -> None:
    monkeypatch.setattr(worker, "REST_AFTER", after)
    local.configure("lanes = 1")
    local.put("a")
    with polling(local) as it:
        wait_for(lambda: bool(it.total.counts[Kind.REMOVED]), "the unit")
        passes(it, 2)
        assert it._stream is not None
        wait_for(lambda: it._stream is not None and len(it._stream.crew.lanes) == lanes, f"{lanes} lanes")
        local.put("b")
        wait_for(lambda: (local.target / "b").exists(), "the next unit")


# -- what is told ------------------------------------------------------------------------------------------


def test_what_holds_on_is_told_once(local: Local, capsys: pytest.CaptureFixture[str]) -> None:
    (local.spool / "link").symlink_to("nowhere")
    local.put("x.tmp")
    events: list[Event] = []
    with polling(local, events) as it:
        passes(it, 3)
        (local.spool / ".stop").touch()
        passes(it, 3)
        (local.spool / ".stop").unlink()
        passes(it, 3)
        (local.spool / ".stop").touch()
        passes(it, 3)
    kinds = [(event.kind, event.path) for event in events]
    assert kinds.count((Kind.SKIPPED, "link")) == 1
    assert kinds.count((Kind.SKIPPED, "x.tmp")) == 1
    assert kinds.count((Kind.PAUSED, "")) == 2, "it ended in between"
    err = capsys.readouterr().err
    assert err.count("skipped: link: is a symbolic link") == 1
    assert err.count("paused by") == 2
    assert ".tmp" not in err


def test_a_pause_that_ends_as_soon_as_it_was_seen_is_none_of_the_target(local: Local) -> None:
    """Which would be looked for again after stop_file_poll_interval only."""
    stop = local.spool / ".stop"

    class Ends(list[Event]):
        def append(self, event: Event) -> None:
            super().append(event)
            if event.kind is Kind.PAUSED:
                stop.unlink()

    stop.touch()
    local.put("a")
    events = Ends()
    with polling(local, events):
        wait_for(lambda: any(event.kind is Kind.DELIVERED for event in events), "the delivery")
    assert [event.kind for event in events].count(Kind.PAUSED) == 1


def test_news() -> None:
    news = News()
    down, link = Event(Kind.TARGET, reason="down"), Event(Kind.SKIPPED, "link", "is a link")

    def a_pass(*events: Event, is_whole: bool = True) -> list[Event]:
        new = [event for event in events if news.is_new(event)]
        news.turn(is_whole=is_whole)
        return new

    assert a_pass(link) == [link]
    assert a_pass(link) == []
    assert a_pass(down, is_whole=False) == [down]
    assert a_pass(down, is_whole=False) == []
    assert a_pass(link) == [], "a pass that saw nothing says nothing about it"
    assert a_pass(link, down, is_whole=False) == [down]
    assert a_pass() == []
    assert a_pass(link) == [link]


def test_news_that_are_forgotten_come_again() -> None:
    news = News()
    paused, link = Event(Kind.PAUSED, reason="paused"), Event(Kind.SKIPPED, "link", "is a link")
    assert news.is_new(paused)
    assert news.is_new(link)
    news.turn(is_whole=False)
    news.forget(Kind.PAUSED)
    assert news.is_new(paused)
    assert not news.is_new(link)


@pytest.mark.parametrize(
    ("error", "says"), [(None, ["goes on"]), (TargetDown("down"), []), (TargetRefused("no"), [])]
)
def test_that_it_goes_on_is_said_when_that_is_certain(
    local: Local, capsys: pytest.CaptureFixture[str], error: MistamoverError | None, says: list[str]
) -> None:
    with made(local) as it:
        it._note_pause(Summary(is_paused=True))
        it._note_pause(Summary(is_interrupted=True))
        it._note_pause(Summary(error=error))
        it._note_pause(Summary(error=error))
    assert [line.partition("stream x: ")[2] for line in capsys.readouterr().err.splitlines()] == says


@pytest.mark.parametrize(
    ("outgoing", "setup", "level"),
    [
        ("", lambda local: local.target.rmdir(), logging.ERROR),
        ("", lambda local: local.put("a", b"theirs", at=local.target), logging.WARNING),
        ("", lambda local: (local.spool / ".stop").touch(), logging.WARNING),
        ("", lambda local: (local.spool / "link").symlink_to("nowhere"), logging.INFO),
    ],
)
def test_how_important_it_is(
    local: Local,
    capsys: pytest.CaptureFixture[str],
    outgoing: str,
    setup: Callable[[Local], object],
    level: int,
) -> None:
    local.configure(outgoing)
    local.put("a")
    setup(local)
    with made(local) as it:
        it.run(once=True)
    levels = [line.split()[2] for line in capsys.readouterr().err.splitlines()]
    assert levels == ["INFO", logging.getLevelName(level)]


def test_progress_while_bytes_are_on_their_way(local: Local, capsys: pytest.CaptureFixture[str]) -> None:
    local.put("small")
    local.put("big", bytes(32 * 2**20))
    seen: list[worker.Progress] = []
    with made(local) as it:
        assert it.progress() is None

        def look(event: Event) -> None:
            if event.kind is Kind.DELIVERED:
                now = it.progress()
                assert now is not None
                seen.append(now)
                it._next_progress = 0
                it._tick()

        it._report = look
        it.run(once=True)
        assert it.progress() is None
    assert [now.all_files for now in seen] == [2, 2]
    assert all(now.bytes <= now.all_bytes == 10 + 32 * 2**20 for now in seen)
    assert seen[-1].bytes == seen[-1].all_bytes
    assert {stage for now in seen for stage in now.stages} <= {"idle", "sending", "verifying", "publishing"}


def test_progress_never_shows_more_than_there_is(local: Local) -> None:
    with made(local) as it, it._opened() as stream:
        it._stream, it._is_passing = stream, True
        stream.summary.found_bytes = 100
        stream.crew.lanes.append(Lane(sent=170))  # a unit was sent twice
        progress = it.progress()
        assert progress is not None
        assert progress.bytes == 100
        stream.crew.lanes.clear()


def test_a_delivery_tells_its_try_and_how_long_it_took(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    local.configure("retry_interval = 0")
    local.put("file")
    publish, failures = LocalTransport._publish, [TargetDown("down"), UnitError("no")]

    def fails(self: LocalTransport, unit: Unit) -> None:
        if failures:
            raise failures.pop()
        time.sleep(0.2)
        publish(self, unit)

    monkeypatch.setattr(LocalTransport, "_publish", fails)
    events: list[Event] = []
    with polling(local, events) as it:
        wait_for(lambda: bool(it.total.counts[Kind.REMOVED]), "the delivery")
    (delivered,) = [event for event in events if event.kind is Kind.DELIVERED]
    assert delivered.unit is not None
    assert delivered.unit.attempt == 3, "it failed once by its own fault and once by the target's"
    assert 0.2 <= delivered.seconds < 10


def test_a_ticker_ticks_once_more_at_the_end() -> None:
    ticks: list[int] = []
    with Ticker(lambda: ticks.append(1), every=0.01):
        wait_for(lambda: len(ticks) > 2, "ticks")
        count = len(ticks)
    assert len(ticks) > count


def test_a_stop_may_be_asked_for_before_the_start(local: Local) -> None:
    local.put("a")
    stop = Stop()
    stop.ask()
    with Log(loaded(local)) as log:
        assert worker.run(loaded(local), once=False, log=log, stop=stop).exit is Exit.INTERRUPTED
    assert local.names(local.target) == set()
