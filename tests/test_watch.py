"""What the kernel tells of a spool shortens a wait, and nothing depends on it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from pathlib import Path

import inotify_simple
import pytest

from mistamover import config, watch, worker
from mistamover.errors import SourceMoved
from mistamover.events import Kind, Summary
from mistamover.log import Log
from mistamover.spool import Spool
from mistamover.unit import Ignored, Unit
from mistamover.watch import Watch
from mistamover.worker import Worker
from tests.program import Local, command, ended, environment, tree
from tests.sshd import wait_for

SETTLE = 5.0


class Watched:
    """A directory that a scan went through, and what is told of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.complaints: list[str] = []
        self.watch = Watch(Ignored(["*.tmp"]), ".stop", self.complaints.append)
        self.spool = Spool(directory, mirror=True)

    def scan(self) -> None:
        self.watch.begin()
        list(self.spool.scan(Ignored(["*.tmp"]), enter=self.watch.enter))
        self.watch.end()

    def due(self) -> float:
        return self.watch.due(100.0, SETTLE)


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    spool = tmp_path / "spool"
    (spool / "below").mkdir(parents=True)
    (spool / ".stop").touch()
    (spool / "there").touch()
    (spool / "old.tmp").touch()
    it = Watched(spool)
    it.scan()
    yield it
    it.watch.__exit__()
    it.spool.close()


NOW, SETTLED = 100.0, 105.0


@pytest.mark.parametrize(
    ("happens", "due"),
    [
        (lambda spool: (spool / "new").write_bytes(b"x"), SETTLED),
        (lambda spool: (spool / "below/new").write_bytes(b"x"), SETTLED),
        (lambda spool: (spool / "there").write_bytes(b"x"), SETTLED),
        (lambda spool: (spool / "old.tmp").rename(spool / "new"), SETTLED),
        (lambda spool: (spool / "there").rename(spool / "below/new"), SETTLED),
        (lambda spool: (spool / "more").mkdir(), NOW),
        (lambda spool: (spool / "below").rename(spool / "renamed"), NOW),
        (lambda spool: (spool / ".stop").unlink(), NOW),
        (lambda spool: (spool / "other.tmp").write_bytes(b"x"), inf),
        (lambda spool: (spool / ".hidden").write_bytes(b"x"), inf),
        (lambda spool: (spool / ".mistamover/trash").mkdir(parents=True), inf),
        (lambda spool: (spool / "there").read_bytes(), inf),
        (lambda spool: (spool / "there").unlink(), inf),
        (lambda spool: (spool / "below").rmdir(), inf),
        (lambda spool: (spool / "there").chmod(0o600), inf),
        (lambda spool: None, inf),
    ],
)
def test_what_is_a_reason_to_look(watched: Watched, happens: Callable[[Path], object], due: float) -> None:
    happens(watched.directory)
    assert watched.due() == due
    assert watched.due() == inf, "it was told"


def test_what_happened_before_a_pass_is_seen_by_that(watched: Watched) -> None:
    (watched.directory / "new").write_bytes(b"x")
    watched.watch.begin()
    assert watched.due() == inf


def test_our_own_renames_are_no_news(watched: Watched) -> None:
    (watched.directory / "there").rename(watched.directory / "there.tmp")
    watched.watch.expect("there")
    (watched.directory / "there.tmp").rename(watched.directory / "there")
    assert watched.due() == inf
    (watched.directory / "there").write_bytes(b"x")
    assert watched.due() == SETTLED, "somebody else's writing is"


def test_an_overflow_is_a_reason_to_look(watched: Watched) -> None:
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    for number in range(most + 10):
        os.close(os.open(watched.directory / f"{number % 2}.tmp", os.O_WRONLY | os.O_CREAT))
    assert watched.due() == NOW


def test_directories_that_were_renamed_or_removed_are_followed(watched: Watched) -> None:
    below = watched.directory / "below"
    below.rename(watched.directory / "renamed")
    watched.scan()
    (watched.directory / "renamed/new").write_bytes(b"x")
    assert watched.due() == SETTLED
    (watched.directory / "renamed").rename(watched.directory.parent / "outside")
    watched.scan()
    (watched.directory.parent / "outside/more").write_bytes(b"x")
    assert watched.due() == inf
    assert len(watched.watch._paths) == 1


def test_so_many_directories_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "MOST_DIRECTORIES", 3)
    for number in range(9):
        (tmp_path / str(number)).mkdir()
    it = Watched(tmp_path)
    for _ in range(3):
        it.scan()
        assert len(it.watch._paths) == 3
    (tmp_path / "new").write_bytes(b"x")
    assert it.due() == SETTLED
    assert not it.complaints
    it.watch.__exit__()
    it.spool.close()


def _none_left(*_: object, **__: object) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("what", ["__init__", "add_watch"])
def test_where_none_can_be_had_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.setattr(inotify_simple.INotify, what, _none_left)
    for number in range(9):
        (tmp_path / str(number)).mkdir()
    it = Watched(tmp_path)
    it.scan()
    it.scan()
    (tmp_path / "new").write_bytes(b"x")
    assert it.due() == inf
    assert it.complaints == ["No space left on device"]
    it.watch.__exit__()
    it.spool.close()


# -- in a worker -------------------------------------------------------------------------------------------


@pytest.fixture
def local(tmp_path: Path) -> Local:
    it = Local(tmp_path)
    patiently(it)
    return it


def patiently(local: Local, outgoing: str = "", settle: str = "0", poll: str = "1h") -> None:
    local.configure(outgoing, settle=settle)
    text = local.ini.read_text()
    local.ini.write_text(text.replace("general_poll_interval = 0.05", f"general_poll_interval = {poll}"))


class Passes:
    """A worker in another thread, and when its passes ended."""

    def __init__(self, local: Local) -> None:
        self.ended: list[float] = []
        self.summaries: list[Summary] = []
        self._settings = config.load(local.ini, environ={})

    @contextmanager
    def running(self) -> Iterator[Worker]:
        with Log(self._settings) as log:
            it = Worker(self._settings, log)
            tell = it._tell_pass

            def told(summary: Summary, *, patient: bool) -> None:
                tell(summary, patient=patient)
                self.ended.append(time.monotonic())
                self.summaries.append(summary)

            it._tell_pass = told  # type: ignore[method-assign]
            thread = threading.Thread(target=it.run, kwargs={"once": False})
            thread.start()
            try:
                wait_for(lambda: bool(self.ended), "the first pass")
                yield it
            finally:
                it.stop.ask()
                thread.join()

    def quiet(self, seconds: float = 1.0) -> int:
        """How many passes are made within so many seconds."""
        before, until = len(self.ended), time.monotonic() + seconds
        wait_for(lambda: time.monotonic() > until, "some time")
        return len(self.ended) - before


def seconds_until(done: Callable[[], bool], what: str) -> float:
    began = time.monotonic()
    wait_for(done, what)
    return time.monotonic() - began


@pytest.mark.parametrize("settle", [0.0, 1.0])
@pytest.mark.parametrize("mode", ["move", "mirror"])
def test_a_unit_starts_as_soon_as_it_has_settled(local: Local, settle: float, mode: str) -> None:
    patiently(local, f"transfer_mode = {mode}", settle=f"{settle}")
    (local.spool / "below").mkdir()
    passes = Passes(local)
    with passes.running():
        for name in ("top", "below/file", "new/directory/file"):
            local.put(name)
            took = seconds_until(lambda name=name: (local.target / name).exists(), name)  # type: ignore[misc]
            assert settle <= took + 0.1 < settle + 1.5
        passes.quiet()
        renamed = local.put("part.tmp")
        assert passes.quiet() == 0, "neither its own doing nor an ignored name is a reason to look"
        renamed.rename(local.spool / "renamed")
        took = seconds_until(lambda: (local.target / "renamed").exists(), "the renamed one")
        assert took < settle + 1.5


def test_what_settled_is_found_where_nothing_is_watched(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inotify_simple.INotify, "__init__", _none_left)
    patiently(local, settle="1")
    local.put("first")
    with Passes(local).running():
        assert seconds_until(lambda: (local.target / "first").exists(), "it") < 2.5


def test_without_a_watch_polling_finds_all(
    local: Local, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(inotify_simple.INotify, "add_watch", _none_left)
    patiently(local, poll="0.1")
    with Passes(local).running() as it:
        for name in ("a", "b/c"):
            local.put(name)
            wait_for(lambda name=name: (local.target / name).exists(), name)  # type: ignore[misc]
        assert it.total.counts[Kind.WAITING] == 0
    assert capsys.readouterr().err.count("cannot be watched: No space left on device") == 1


@pytest.mark.needs("root", "unshare")
@pytest.mark.parametrize("limit", ["instances", "watches"])
def test_a_user_who_may_watch_nothing_polls(local: Local, limit: str) -> None:
    """As where other programs have used up what the kernel gives to a user (inotify(7), limits)."""
    patiently(local, poll="0.1")
    script = f'echo 0 >/proc/sys/user/max_inotify_{limit} && exec "$@"'
    argv = ["unshare", "-Ur", "sh", "-c", script, "sh", *command("run", local.ini)]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, cwd=local.top, env=environment(local.top))
    for name in ("a", "b/c"):
        local.put(name)
        wait_for(lambda name=name: (local.target / name).exists(), name)  # type: ignore[misc]
    process.terminate()
    result = ended(process)
    assert result.code == 0
    assert result.err.count("it cannot be watched") == 1


def test_the_end_of_a_pause_is_noticed(local: Local) -> None:
    stop = local.put(".stop")
    local.put("file")
    with Passes(local).running() as it:
        assert it.total.is_paused
        stop.unlink()
        assert seconds_until(lambda: (local.target / "file").exists(), "the file") < 1.5


def test_a_flood_leaves_a_pause_between_passes(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "PAUSE", 0.3)
    passes, is_over = Passes(local), threading.Event()

    def flood() -> None:
        number = 0
        while not is_over.is_set():
            number += 1
            local.put(f"file-{number % 50}", at=local.spool)

    with passes.running():
        writer = threading.Thread(target=flood)
        writer.start()
        try:
            wait_for(lambda: len(passes.ended) > 5, "some passes")
        finally:
            is_over.set()
            writer.join()
    begun = [end - summary.seconds for end, summary in zip(passes.ended, passes.summaries, strict=True)]
    gaps = [begin - end for end, begin in zip(passes.ended, begun[1:], strict=False)]
    assert min(gaps) >= 0.29, gaps


def test_a_long_scan_leaves_a_long_pause(local: Local) -> None:
    settings = config.load(local.ini, environ={})
    local.put("file")
    with Log(settings) as log:
        it = Worker(settings, log)
        with it._watching() as watching, it._opened(watching) as stream:
            summary = it.make_pass(stream, patient=False)
            assert 0 < summary.scanning < summary.seconds
            local.put("more")
            summary.scanning = 1.0
            began = time.monotonic()
            it._wait(stream, watching, summary, began)
            assert 0.95 < time.monotonic() - began < 3


def test_a_failing_target_is_not_asked_sooner(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    local.put("first")
    local.target.rmdir()
    passes = Passes(local)
    with passes.running():
        local.put("more")
        assert passes.quiet() == 0


def test_one_pass_watches_nothing(local: Local) -> None:
    local.put("file")
    program = (
        "import os, sys\n"
        "from mistamover.cli import main\n"
        f"sys.argv = ['mistamover', 'run', '--once', {str(local.ini)!r}]\n"
        "leave = os._exit\n"
        "os._exit = lambda code: (print('inotify_simple' in sys.modules, flush=True), leave(code))\n"
        "main()\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment(local.top), check=False
    )
    assert (run.returncode, run.stdout.splitlines()[-1]) == (0, "False"), run.stderr


def test_a_mirror_is_watched_without_a_trace(local: Local) -> None:
    patiently(local, "transfer_mode = mirror")
    local.put("below/file")
    before = tree(local.spool)
    with Passes(local).running():
        wait_for(lambda: (local.target / "below/file").exists(), "the file")
    assert tree(local.spool) == before


def test_nothing_is_left_open(local: Local) -> None:
    with Passes(local).running():
        pass
    before = os.listdir("/proc/self/fd")
    with Passes(local).running():
        pass
    assert len(os.listdir("/proc/self/fd")) <= len(before) + 1


def test_what_we_put_back_does_not_wake_us(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit that changed at the last moment is renamed to the trash and back."""

    def puts_back(self: Spool, unit: Unit, record: int) -> None:
        path = self.directory / unit.path
        path.rename(path.with_name("x.tmp")).rename(path)
        raise SourceMoved("it changed after it was sent")

    local.put("file")
    monkeypatch.setattr(Spool, "remove", puts_back)
    passes = Passes(local)
    with passes.running():
        assert passes.summaries[0].counts[Kind.CHANGED] == 1
        assert passes.quiet() == 0
