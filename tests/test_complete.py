"""Streams that have an end, and streams that are not to run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mistamover import config
from mistamover.errors import Exit
from mistamover.events import Event, Kind, Summary
from mistamover.log import Log
from mistamover.worker import Worker
from tests.program import Local
from tests.sshd import wait_for


@pytest.fixture
def local(tmp_path: Path) -> Local:
    it = Local(tmp_path)
    it.ini.write_text(it.ini.read_text().replace("[data_stream]\n", "[data_stream]\ncompletion_file = last\n"))
    return it


class Run:
    """A worker that makes passes in another thread."""

    def __init__(self, local: Local, hear: Callable[[Event], object] = lambda _: None) -> None:
        self.events: list[Event] = []
        self._hear = hear
        self.results: list[Summary] = []
        self._settings = config.load(local.ini, environ={})
        self._log = Log(self._settings)
        self.worker = Worker(self._settings, self._log, self.note)
        self.thread = threading.Thread(target=lambda: self.results.append(self.worker.run(once=False)))
        self.thread.start()

    def note(self, event: Event) -> None:
        self.events.append(event)
        self._hear(event)

    def end(self) -> Summary:
        """What it came to; a run that does not end by itself is ended."""
        self.thread.join(20)
        self.worker.stop.ask()
        self.thread.join()
        self._log.__exit__()
        return self.results[0]

    def saw(self, kind: Kind, path: str) -> bool:
        return any((event.kind, event.path) == (kind, path) for event in self.events)


def test_it_ends_when_the_last_unit_was_delivered(local: Local, capsys: pytest.CaptureFixture[str]) -> None:
    local.put("first")
    run = Run(local)
    wait_for(lambda: not local.names(local.spool), "the first unit")
    assert run.thread.is_alive()
    local.put("last")
    summary = run.end()
    assert summary.is_complete
    assert summary.exit is Exit.DONE
    assert summary.counts[Kind.DELIVERED] == 2
    assert "complete: last was delivered, and nothing is left" in capsys.readouterr().err


def test_it_does_not_end_while_something_is_left(local: Local) -> None:
    local.put("last")
    with local.put("open").open("ab"):
        run = Run(local)
        wait_for(lambda: run.saw(Kind.DELIVERED, "last"), "the last unit")
        wait_for(lambda: run.saw(Kind.CHANGED, "open"), "the one that is open")
        run.thread.join(0.5)
        assert run.thread.is_alive()
    summary = run.end()
    assert summary.is_complete
    assert local.names(local.target) == {"last", "open"}


def test_what_appears_behind_the_pass_that_delivers_the_last_unit_is_delivered(local: Local) -> None:
    local.put("last")
    run = Run(local, lambda event: event.kind is Kind.REMOVED and event.path == "last" and local.put("behind"))
    assert run.end().is_complete
    assert local.names(local.target) == {"last", "behind"}


def test_what_was_set_aside_before_does_not_keep_it_from_ending(local: Local) -> None:
    local.put("taken")
    local.put("taken", b"theirs", at=local.target)
    local.put("last")
    summary = Run(local).end()
    assert summary.counts[Kind.QUARANTINED] == 1
    assert summary.is_complete
    assert summary.exit is Exit.DONE


@pytest.mark.parametrize("mode", ["move", "mirror"])
def test_a_complete_stream_ends_again_at_its_next_start(local: Local, mode: str) -> None:
    local.ini.write_text(local.ini.read_text() + f"transfer_mode = {mode}\n")
    local.put("last")
    assert Run(local).end().is_complete
    summary = Run(local).end()
    assert summary.is_complete
    assert summary.counts[Kind.DELIVERED] == 0


def test_a_stop_is_no_completion(local: Local) -> None:
    run = Run(local)
    run.worker.stop.ask(is_regular=True)
    summary = run.end()
    assert not summary.is_complete
    assert summary.exit is Exit.DONE


def test_a_paused_stream_is_not_complete(local: Local) -> None:
    local.put("last")
    assert Run(local).end().is_complete
    (local.spool / ".stop").touch()
    run = Run(local)
    wait_for(lambda: run.saw(Kind.PAUSED, ""), "the pause")
    run.thread.join(0.5)
    assert run.thread.is_alive()
    (local.spool / ".stop").unlink()
    assert run.end().is_complete


def test_one_pass_does_not_wait_for_it(local: Local) -> None:
    local.put("first")
    assert local.once().code == 0


@pytest.mark.parametrize("name", ["/last", "../last", "a//last", ".last", "a/.last", "last/"])
def test_a_completion_file_lies_in_the_spool(local: Local, name: str) -> None:
    local.ini.write_text(local.ini.read_text().replace("completion_file = last", f"completion_file = {name}"))
    result = local.run("check", local.ini)
    assert result.code == 2
    assert "completion_file" in result.err


@pytest.mark.parametrize(
    ("text", "status"),
    [("running", "running"), ("RUNNING", "running"), ("STOPPED", "stopped"), ("Complete", "complete")],
)
@pytest.mark.parametrize("once", [True, False])
def test_what_is_not_to_run_says_so(local: Local, text: str, status: str, once: bool) -> None:
    if status == "running" and not once:
        return
    local.ini.write_text(local.ini.read_text().replace("completion_file = last", f"status = {text}"))
    local.put("first")
    result = local.run("run", *(["--once"] if once else []), local.ini)
    if status == "running":
        assert (result.code, local.names(local.target)) == (0, {"first"})
    else:
        assert result.code == 5
        assert (
            result.err
            == f"mistamover: {local.ini}: [data_stream] status = {status}; set it to running to start it\n"
        )
        assert local.names(local.spool) == {"first"}
