"""Files that other programs write, replace and remove while they are sent: never removed unless they were sent.

The moments are made long by strace: it holds our process in front of a system call while the others act.
"""

from __future__ import annotations

import secrets
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.oracle import Watcher
from tests.faults.rig import Options, Rig, Run, finished, strace
from tests.sshd import wait_for

pytestmark = pytest.mark.needs("strace")

BIG = 2 * 2**20
LONG = 0.7
"""Seconds for which our process is held; others need milliseconds for what they do meanwhile."""
REPLACE: Options = {"outgoing": {"existing": "replace"}}


@dataclass(frozen=True)
class Moment:
    """In front of which system call our process is held: its ``number``-th on ``place`` below the rig."""

    call: str
    number: int = 1
    place: str = ""

    def under(self, rig: Rig, log: Path) -> list[str]:
        paths = [rig.base / self.place] if self.place else []
        delay = f"delay_enter={int(LONG * 1e6)}:when={self.number}"
        return strace(self.call, delay, paths=paths, log=log)


WHILE_SENT = Moment("readv", 3)
"""The third piece of a large file is about to be read."""
BEFORE_RECORD = Moment("fdatasync", 2, "state/faults")
"""It was published, and the ledger is about to be told so."""
CAPTURE = Moment("renameat2", place="spool/.mistamover/trash")
"""It was found to be the file that was sent, and is about to be taken out of the spool."""
UNLINK = Moment("unlinkat", place="spool/.mistamover/trash")
"""It was taken out of the spool."""


def while_held(rig: Rig, moment: Moment, act: Callable[[], object]) -> Run:
    """A run during which others act at this moment, and nobody ever sees half a file at the target."""
    (rig.spool / ".mistamover/trash").mkdir(parents=True, exist_ok=True)
    log = rig.base / "strace.log"
    log.unlink(missing_ok=True)
    process = rig.start(under=moment.under(rig, log))
    with Watcher(rig.oracle):
        wait_for(lambda: len(calls(log, moment)) >= moment.number, f"our process to come to {moment}")
        # In a thread: whoever opens a file that we are about to remove is held up by the kernel.
        with ThreadPoolExecutor(1) as others:
            done = others.submit(act)
            wait([done], LONG / 3)
            assert "DELAYED" not in log.read_text(), "the moment was too short for the others: a slow machine"
            run = finished(process)
            done.result(timeout=10)
    assert "DELAYED" in log.read_text()
    rig.oracle.check()
    return run


def calls(log: Path, moment: Moment) -> list[str]:
    return [line for line in log.read_text().splitlines() if f" {moment.call}(" in line] if log.exists() else []


def content(size: int = BIG) -> bytes:
    return secrets.token_bytes(size)


def put(rig: Rig, size: int = BIG) -> bytes:
    data = content(size)
    rig.oracle.put("file", data)
    return data


def append(rig: Rig, data: bytes, more: bytes) -> None:
    rig.oracle.expect("file", data + more)
    with (rig.spool / "file").open("ab") as file:
        file.write(more)


# -- while it is sent ----------------------------------------------------------------------------------------


def test_it_grows(rig: Rig) -> None:
    data = put(rig)
    run = while_held(rig, WHILE_SENT, lambda: append(rig, data, b"more"))
    assert run.code == 1, run.text
    assert run.paths("changed") == {"file"}
    assert not (rig.target / "file").exists()
    rig.run_clean()


def test_it_shrinks(either: Rig) -> None:
    put(either)
    run = while_held(either, WHILE_SENT, lambda: either.oracle.put("file", b"short"))
    assert run.paths("changed") == {"file"}, run.text
    either.run_clean()


def test_it_is_replaced(any_way: Rig) -> None:
    put(any_way)
    run = while_held(any_way, WHILE_SENT, lambda: any_way.oracle.replace("file", content()))
    assert run.paths("changed") == {"file"}, run.text
    any_way.run_clean()


def test_it_is_rewritten_in_place_with_its_old_times(rig: Rig) -> None:
    put(rig)
    run = while_held(rig, WHILE_SENT, lambda: rig.oracle.rewrite("file", content()))
    assert run.paths("changed") == {"file"}, run.text
    rig.run_clean()


def test_it_is_deleted(either: Rig) -> None:
    put(either)
    either.oracle.put("other", b"other")
    run = while_held(either, WHILE_SENT, lambda: either.oracle.delete("file"))
    assert run.paths("changed") | run.paths("vanished") == {"file"}, run.text
    either.run_clean()


def test_it_is_deleted_just_as_it_is_set_aside(local: Rig) -> None:
    """Nothing says then that it were in quarantine."""
    put(local)
    local.oracle.put_at_target("file", b"theirs")
    aside = local.spool / ".mistamover/quarantine"
    (aside / "1").mkdir(parents=True)
    before_it = Moment("renameat2", place="spool/.mistamover/quarantine/1")
    run = while_held(local, before_it, lambda: local.oracle.delete("file"))
    assert run.paths("vanished") == {"file"}, run.text
    assert not run.of("quarantined")
    assert local.oracle.records("quarantined") == []
    assert list(aside.iterdir()) == []


def test_it_is_replaced_just_as_it_is_set_aside(local: Rig) -> None:
    """What took its place has failed in nothing."""
    put(local)
    theirs = local.oracle.put_at_target("file", b"theirs")
    aside = local.spool / ".mistamover/quarantine"
    (aside / "1").mkdir(parents=True)
    before_it = Moment("renameat2", place="spool/.mistamover/quarantine/1")
    run = while_held(local, before_it, lambda: local.oracle.replace("file", b"the next"))
    assert run.paths("changed") == {"file"}, run.text
    assert local.oracle.records("quarantined") == []
    assert list(aside.iterdir()) == []
    theirs.unlink()
    local.oracle.theirs.clear()
    local.run_clean()


def test_its_directory_is_renamed(any_way: Rig) -> None:
    data = content()
    any_way.oracle.put("old/file", data)

    def rename() -> None:
        any_way.oracle.expect("new/file", data)
        (any_way.spool / "old").rename(any_way.spool / "new")
        del any_way.oracle.owed["old/file"]

    while_held(any_way, WHILE_SENT, rename)
    any_way.run_clean()


# -- after it was sent ---------------------------------------------------------------------------------------


def later(rig: Rig, run: Run) -> None:
    """A version that came after the one that was delivered is sent, where it may take its place."""
    assert "file" in run.paths("changed"), run.text
    rig.write(REPLACE)
    rig.run_clean()


@pytest.mark.parametrize("moment", [BEFORE_RECORD, CAPTURE], ids=["recorded", "captured"])
class TestAfterSending:
    """Between the proof at the target and the removal at the source, at each step of the removal."""

    def test_it_is_replaced(self, any_way: Rig, moment: Moment) -> None:
        put(any_way, 5000)
        run = while_held(any_way, moment, lambda: any_way.oracle.replace("file", content(5000)))
        later(any_way, run)

    def test_it_is_rewritten_in_place_with_its_old_times(self, any_way: Rig, moment: Moment) -> None:
        put(any_way, 5000)
        later(any_way, while_held(any_way, moment, lambda: any_way.oracle.rewrite("file", content(5000))))

    def test_it_grows(self, any_way: Rig, moment: Moment) -> None:
        data = put(any_way, 5000)
        later(any_way, while_held(any_way, moment, lambda: append(any_way, data, b"more")))

    def test_it_is_deleted(self, any_way: Rig, moment: Moment) -> None:
        put(any_way, 5000)
        run = while_held(any_way, moment, (any_way.spool / "file").unlink)
        assert run.code == 0, run.text
        any_way.oracle.check_delivered()

    def test_a_program_opens_it_for_writing(self, any_way: Rig, moment: Moment) -> None:
        data = put(any_way, 5000)
        with Writer(any_way.spool / "file") as writer:
            run = while_held(any_way, moment, writer.open)
            assert "file" in run.paths("changed"), run.text
            assert (any_way.spool / "file").exists()
            any_way.oracle.expect("file", data + b"more")
            writer.write(b"more")
        any_way.oracle.check()
        any_way.write(REPLACE)
        any_way.run_clean()


def test_another_takes_its_name_when_it_was_taken_out(any_way: Rig) -> None:
    put(any_way, 5000)
    run = while_held(any_way, UNLINK, lambda: any_way.oracle.put("file", content(5000)))
    assert run.code == 0, run.text
    any_way.write(REPLACE)
    any_way.run_clean()


class Writer:
    """Another program that appends to a file, and keeps it open between its writes."""

    _PROGRAM = """
import sys
file = None
for line in sys.stdin:
    if file is None:
        file = open(sys.argv[1], "ab", buffering=0)
    file.write(bytes.fromhex(line))
    print(flush=True)
"""

    def __init__(self, path: Path) -> None:
        argv = [sys.executable, "-S", "-c", self._PROGRAM, str(path)]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def open(self) -> None:
        self.write(b"")

    def write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{data.hex()}\n")
        self._process.stdin.flush()
        self._process.stdout.readline()


def test_a_program_that_keeps_it_open(any_way: Rig) -> None:
    any_way.oracle.put("other", b"other")
    with Writer(any_way.spool / "log") as writer:
        written = b""
        for _ in range(2):
            written += b"line\n"
            any_way.oracle.expect("log", written)
            writer.write(b"line\n")
            run = any_way.run()
            assert run.code == 1, run.text
            assert run.paths("changed") == {"log"}
            assert any_way.oracle.delivered() == {"other"}
            any_way.oracle.check()
    any_way.run_clean()


def test_a_writer_of_whom_nothing_is_seen_but_sizes_and_times(local: Rig) -> None:
    """As on another host, by NFS: no open file tells of it."""
    local.write({"data_stream": {"settle_time": 1}})
    data = content(7 * 1000)
    local.oracle.expect("file", data)
    program = """
import sys, time
for piece in sys.stdin.readline().split():
    with open(sys.argv[1], "ab") as file:
        file.write(bytes.fromhex(piece))
    time.sleep(0.4)
"""
    argv = [sys.executable, "-S", "-c", program, str(local.spool / "file")]
    with Watcher(local.oracle), subprocess.Popen(argv, stdin=subprocess.PIPE) as writer:
        assert writer.stdin is not None
        writer.stdin.write(" ".join(data[n : n + 1000].hex() for n in range(0, len(data), 1000)).encode() + b"\n")
        writer.stdin.flush()
        wait_for((local.spool / "file").exists, "the writer to begin")
        run = local.run()
        assert "file" in run.paths("settling"), run.text
        assert writer.poll() is None, "the writer was too quick"
    local.run_clean()


def test_a_program_that_maps_it(local: Rig) -> None:
    data = content(8192)
    path = local.oracle.put("mapped", data)
    program = (
        "import mmap, os, sys; fd = os.open(sys.argv[1], os.O_RDWR); memory = mmap.mmap(fd, 0); os.close(fd);"
        "print(flush=True); sys.stdin.readline(); memory[0:4] = b'late'"
    )
    argv = [sys.executable, "-S", "-c", program, str(path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        run = local.run()
        assert run.paths("changed") == {"mapped"}, run.text
        local.oracle.expect("mapped", b"late" + data[4:])
        process.communicate(b"\n")
    local.run_clean()


# -- what stands beside it -----------------------------------------------------------------------------------


def test_a_directory_becomes_a_link_to_another_place(any_way: Rig, tmp_path: Path) -> None:
    # The very same file is found at the end of the link, and must not be removed there.
    outside = tmp_path / "outside"
    any_way.oracle.put("file", b"first")
    any_way.oracle.put("directory/precious", b"precious")

    def lead_out() -> None:
        (any_way.spool / "directory").rename(outside)
        (any_way.spool / "directory").symlink_to(outside)
        del any_way.oracle.owed["directory/precious"]

    while_held(any_way, BEFORE_RECORD, lead_out)
    assert (outside / "precious").read_bytes() == b"precious"


def test_a_file_appears_in_a_directory_that_is_emptied(local: Rig) -> None:
    local.oracle.put("directory/file", b"file")
    late = Moment("unlinkat", 2)
    run = while_held(local, late, lambda: local.oracle.put("directory/late", b"late"))
    assert run.code == 0, run.text
    local.run_clean()
    assert local.oracle.directories() == []


def test_the_names_are_used_again_and_again(any_way: Rig) -> None:
    # A writer that replaces three files all the time, and never the same content twice.
    any_way.write({"outgoing": {"existing": "replace", "retry_interval": 0}})
    program = """
import os, sys, itertools
from hashlib import sha256
for number in itertools.count():
    for name in "abc":
        new = os.path.join(sys.argv[1], f".new-{name}")
        with open(new, "wb") as file:
            file.write(b"%d-%s" % (number, name.encode()) * 1000)
        os.rename(new, os.path.join(sys.argv[1], name))
    print(number, flush=True)
"""
    argv = [sys.executable, "-S", "-c", program, str(any_way.spool)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        for _ in range(4):
            any_way.run()
        writer.terminate()
        last = [line for line in writer.stdout if line.endswith("\n")][-1]
    # It may have been stopped anywhere in its next round.
    for name in "abc":
        for number in range(int(last) + 2):
            any_way.oracle.expect(name, b"%d-%s" % (number, name.encode()) * 1000)
        any_way.oracle.versions[name].add(any_way.oracle.owed.pop(name))
    any_way.oracle.check()
    assert any_way.run().code == 0
    any_way.oracle.check()
