"""A spool of any size takes the memory of a window: several of them deliver all that one would."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from mistamover import config, stream, worker
from mistamover.errors import NotVerified
from mistamover.events import Event, Kind
from mistamover.log import Log
from mistamover.stream import Stream
from mistamover.transports.contract import Proof
from mistamover.transports.local import Local as LocalTransport
from mistamover.unit import Unit
from mistamover.worker import News, Worker
from tests.program import ROOT, Local, environment
from tests.sshd import wait_for

modes = pytest.mark.parametrize("mode", ["move", "mirror"])


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Local:
    monkeypatch.setattr(stream, "WINDOW", 7)
    monkeypatch.setattr(stream, "REMOVED_AT_ONCE", 3)
    return Local(tmp_path)


@contextmanager
def opened(local: Local, events: list[Event]) -> Iterator[Stream]:
    with Stream(config.load(local.ini, environ={}), events.append) as it:
        yield it


def kinds(events: list[Event]) -> Counter[Kind]:
    return Counter(event.kind for event in events if event.path)


def settled(path: Path, settle_time: float) -> None:
    wait_for(lambda: time.time() - path.stat().st_ctime > settle_time, f"{path.name} to settle")


@modes
def test_several_windows_deliver_all(local: Local, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    local.configure(f"transfer_mode = {mode}", settle="0.4")
    for number in range(40):
        local.put(f"{number % 3}/file-{number}")
    local.put("1/taken")
    local.put("1/taken", b"theirs", at=local.target)
    settled(local.put("2/bad"), 0.4)
    fresh = {str(local.put(f"1/fresh-{number}").relative_to(local.spool)) for number in range(20)}
    verify = LocalTransport._verify

    def fails(self: LocalTransport, unit: Unit, proof: Proof) -> None:
        if unit.path == "2/bad":
            raise NotVerified("bad")
        verify(self, unit, proof)

    monkeypatch.setattr(LocalTransport, "_verify", fails)
    changing = local.spool / "1/fresh-3"
    events: list[Event] = []
    with opened(local, events) as it:
        # What settles in the middle of a window is written to again before we look at it for the second time.
        sleep = it._stop.wait

        def disturbed(seconds: float, breathe: Callable[[], float]) -> None:
            sleep(seconds, breathe)
            changing.write_bytes(b"more")

        monkeypatch.setattr(it._stop, "wait", disturbed)
        summary = it.run_pass(patient=True)
    wanted = {f"{number % 3}/file-{number}" for number in range(40)} | fresh - {"1/fresh-3"}
    assert local.names(local.target) == wanted | {"1/taken"}
    assert summary.found == 62
    assert summary.counts[Kind.DELIVERED] == len(wanted) == kinds(events)[Kind.DELIVERED]
    found = {event.kind: event.path for event in events if event.kind in {Kind.QUARANTINED, Kind.WAITING}}
    assert found == {Kind.QUARANTINED: "1/taken", Kind.WAITING: "2/bad"}
    assert [event.path for event in events if event.kind is Kind.SETTLING and event.path] == ["1/fresh-3"]
    left = {"1/fresh-3", "2/bad"} if mode == "move" else wanted | {"1/fresh-3", "2/bad", "1/taken"}
    assert local.names(local.spool) == left


@modes
def test_what_is_young_is_found_by_later_passes(local: Local, mode: str) -> None:
    local.configure(f"transfer_mode = {mode}", settle="0.3")
    names = {str(local.put(f"file-{number}").relative_to(local.spool)) for number in range(30)}
    events: list[Event] = []
    with opened(local, events) as it:
        began = time.monotonic()
        summary = it.run_pass(patient=False)
        assert summary.counts[Kind.SETTLING] == 30
        assert began < summary.settles_at <= time.monotonic() + 0.3
        wait_for(lambda: time.monotonic() > summary.settles_at + 0.1, "them to settle")
        assert it.run_pass(patient=False).counts[Kind.DELIVERED] == 30
    assert local.names(local.target) == names


def test_what_appears_behind_the_scan_is_found_by_the_next_pass(local: Local) -> None:
    for number in range(10):
        local.put(f"top-{number}")
        local.put(f"below/file-{number}")
    events: list[Event] = []

    def put_behind(event: Event) -> None:
        events.append(event)
        if event.path.startswith("below/") and event.kind is Kind.DELIVERED:
            local.put("late")

    with Stream(config.load(local.ini, environ={}), put_behind) as it:
        assert it.run_pass(patient=False).counts[Kind.DELIVERED] == 20
        assert local.names(local.spool) == {"late"}
        assert it.run_pass(patient=False).counts[Kind.DELIVERED] == 1
    assert not local.names(local.spool)


def test_times_in_the_future_are_watched_some_at_a_time(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "WATCHED", 4)
    local.configure(settle="0.05")
    for number in range(10):
        os.utime(local.put(f"file-{number}"), (4e9, 4e9))
    events: list[Event] = []
    with opened(local, events) as it:
        delivered = []
        for _ in range(6):
            summary = it.run_pass(patient=False)
            delivered.append(summary.counts[Kind.DELIVERED])
            settle = time.monotonic() + 0.06
            wait_for(lambda at=settle: time.monotonic() > at, "the time to settle")  # type: ignore[misc]
            assert len(it._watched) <= 8
    assert sum(delivered) == 10
    assert max(delivered) <= 4


def test_a_patient_pass_forgets_none_whose_times_lie_in_the_future(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "WATCHED", 1)
    local.configure(settle="0.05")
    for number in range(20):
        os.utime(local.put(f"file-{number}"), (4e9, 4e9))
    events: list[Event] = []
    with opened(local, events) as it:
        assert it.run_pass(patient=True).counts[Kind.DELIVERED] == 20


def test_removals_that_a_crash_left_are_done_while_it_scans(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        local.put(f"file-{number}")
    events: list[Event] = []
    with opened(local, events) as it:
        monkeypatch.setattr(it, "_remove", lambda delivered: None)
        it.run_pass(patient=False)
    assert len(local.names(local.spool)) == 20
    with opened(local, events) as it:
        assert it.run_pass(patient=False).counts[Kind.REMOVED] == 20
    assert not local.names(local.spool)


def test_the_target_is_swept_and_asked_once_in_a_pass(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(30):
        local.put(f"file-{number}")
    swept: list[int] = []

    def sweep(self: LocalTransport) -> int:
        swept.append(1)
        return 0

    monkeypatch.setattr(LocalTransport, "sweep", sweep)
    with opened(local, []) as it:
        assert it.run_pass(patient=False).counts[Kind.DELIVERED] == 30
    assert len(swept) == 1


def test_a_pause_between_two_windows(local: Local) -> None:
    for number in range(30):
        local.put(f"file-{number}")

    def pause(event: Event) -> None:
        if event.kind is Kind.DELIVERED:
            (local.spool / ".stop").touch()

    with Stream(config.load(local.ini, environ={}), pause) as it:
        summary = it.run_pass(patient=True)
        assert summary.is_paused
        assert summary.counts[Kind.DELIVERED] == 7
        (local.spool / ".stop").unlink()
    assert local.once().code == 0


def test_order_holds_within_a_window(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "WINDOW", 50)
    local.configure("lanes = 1")
    for number in range(50):
        os.utime(local.put(f"file-{(number * 7) % 50}"), (number, number))
    events: list[Event] = []
    with opened(local, events) as it:
        it.run_pass(patient=False)
    order = [event.path for event in events if event.kind is Kind.DELIVERED]
    assert order == [f"file-{(number * 7) % 50}" for number in range(50)]


def test_emptied_directories_are_removed_window_by_window(local: Local) -> None:
    for number in range(30):
        local.put(f"a/{number}/b/file")
    for directory in local.spool.rglob("*"):
        if directory.is_dir():
            os.utime(directory, (1e9, 1e9))
    with opened(local, []) as it:
        it.run_pass(patient=False)
        assert len(it._spool._mtimes) <= 30, "it forgot those that it had gone through"
    assert [path.name for path in local.spool.iterdir()] == [".mistamover"]


# -- odd units ---------------------------------------------------------------------------------------------


def test_two_names_of_one_file_are_moved_in_one_pass(local: Local) -> None:
    os.link(local.put("a"), local.spool / "b")
    settled(local.spool / "b", 0.1)
    with opened(local, []) as it:
        summary = it.run_pass(patient=False)
    assert (summary.counts[Kind.REMOVED], summary.counts[Kind.CHANGED]) == (2, 0)
    assert local.names(local.target) == {"a", "b"}


def test_a_directory_that_quarantine_empties_is_removed(local: Local) -> None:
    local.put("a/b/taken")
    local.put("a/b/taken", b"theirs", at=local.target)
    for directory in (local.spool / "a/b", local.spool / "a"):
        os.utime(directory, (1e9, 1e9))
    with opened(local, []) as it:
        assert it.run_pass(patient=False).counts[Kind.QUARANTINED] == 1
    assert not (local.spool / "a").exists()


# -- what is told ------------------------------------------------------------------------------------------


def test_news_of_any_number_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "REMEMBERED", 10)
    news = News()
    all_of_them = [Event(Kind.WAITING, str(number), "failed") for number in range(100)]
    for _ in range(3):
        new = [event for event in all_of_them if news.is_new(event)]
        assert news.untold == {Kind.WAITING: 90}
        news.turn(is_whole=True)
        for event in (Event(Kind.WAITING, f"more-{number}", "failed") for number in range(20)):
            assert not news.is_new(event), "there is no room"
        news.turn(is_whole=False)
        assert max(map(len, news._before.values())) <= 20
    assert new == []


def test_one_pass_tells_all_of_any_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "REMEMBERED", 10)
    news = News(is_endless=False)
    assert all(news.is_new(Event(Kind.WAITING, str(number), "failed")) for number in range(100))


def test_that_there_are_too_many_is_told_once(
    local: Local, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(worker, "REMEMBERED", 3)
    for number in range(5):
        (local.spool / f"link-{number}").symlink_to("nowhere")
    settings = config.load(local.ini, environ={})
    with Log(settings) as log:
        it = Worker(settings, log)
        with it._opened() as opened_stream:
            for _ in range(3):
                it.make_pass(opened_stream, patient=False)
    err = capsys.readouterr().err
    assert err.count("skipped: link-") == 3
    assert err.count("skipped: 2 more, too many for a line each") == 1


# -- how much it takes -------------------------------------------------------------------------------------

COUNT = 30_000
PROGRAM = """
import os, sys
from mistamover import stream
stream.WINDOW = int(sys.argv[2])
from mistamover.cli import main
sys.argv = ["mistamover", "run", "--once", "-q", sys.argv[1]]
leave = os._exit
def told(code):
    print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0], flush=True)
    leave(code)
os._exit = told
main()
"""


def peak(top: Path, window: int) -> int:
    """The most KiB that a run over many empty files ever had."""
    top.mkdir()
    here = Local(top)
    for number in range(COUNT):
        os.close(os.open(here.spool / f"{number:06}-{'x' * 100}", os.O_CREAT | os.O_WRONLY))
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, here.ini, str(window)],
        capture_output=True, text=True, env=environment(top), cwd=ROOT, timeout=100, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert not here.names(here.spool)
    return int(run.stdout.split()[-1])


def test_memory_goes_with_the_window_and_not_with_the_spool() -> None:
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("no place in memory for that many files")
    with TemporaryDirectory(dir="/dev/shm") as top:
        small, large = (peak(Path(top) / str(window), window) for window in (1000, COUNT))
    assert small < large - COUNT * 300 / 1024
