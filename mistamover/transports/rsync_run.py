"""One run of the rsync program under our own watchdog, and what its output and its exit code say.

rsync's own time-out is none: the far side can switch it off. Input and output are files, so that no pipe has to
be served while it runs.
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, NamedTuple, Self

from mistamover.errors import TargetDown, TargetRefused, is_shortage
from mistamover.processes import guarded, surroundings

GLANCE = 0.2
"""Seconds between two looks at whether a run still moves, and whether we are to stop."""
PARTLY_DONE = (0, 23, 24)
"""Exit codes after which each unit is judged by itself: all done, some not, some sources gone."""
DOWN = (10, 11, 12, 14, 20, 22, 30, 35)
"""Exit codes of connections and far sides that fail: another try may succeed (rsync(1), EXIT VALUES)."""
MEANS = {
    10: "the connection failed",
    11: "it could not read or write a file; is the target full?",
    12: "the connection ended in the middle",
    30: "nothing was sent or received for too long",
    35: "the daemon did not answer in time",
}
"""What the most frequent ones say where rsync itself does not: its receiver's last words may not arrive."""
NOT_FOUND = 127
MOST_SAID = 2**26
"""Bytes that a run may say: a line for each name, also of a large directory that is listed."""
FULL = ("No space left on device", "Disk quota exceeded")

_ITEM = re.compile(rb"(\*deleting  |[<>ch.][fdLDS][ .+?a-zA-Z]{9}) (.+)")
_ESCAPED = re.compile(rb"\\#([0-7]{3})")


class Item(NamedTuple):
    """One line of ``--out-format='%i %n'``: what was done, or would be, and to what."""

    change: str
    name: str

    @property
    def is_same(self) -> bool:
        """Whether it is there, as it should be."""
        return self.change.startswith((".f", ".d"))

    @property
    def is_sent(self) -> bool:
        """Whether it was sent as a file."""
        return self.change.startswith("<f")

    @property
    def is_linked(self) -> bool:
        """Whether it was made a hard link."""
        return self.change.startswith("hf")

    @property
    def is_copied(self) -> bool:
        """Whether it was copied from another at the far side."""
        return self.change.startswith("cf")

    @property
    def is_named(self) -> bool:
        """Whether it got its name by one or the other."""
        return self.is_linked or self.is_copied


def items(output: bytes) -> Iterator[Item]:
    """What the itemized lines of an output say; names of directories without their slash."""
    for line in output.split(b"\n"):
        if found := _ITEM.fullmatch(line):
            name = _ESCAPED.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), found[2])
            if b"\0" in name:
                continue  # no file has such a name, and it would part what we give rsync to read
            yield Item(
                found[1].decode(), os.fsdecode(name.removesuffix(b"/") if found[1] != b"*deleting  " else name)
            )


class Result(NamedTuple):
    """What a run came to."""

    code: int
    items: dict[str, Item]
    messages: tuple[str, ...]
    """The lines of its standard error."""

    @property
    def is_full(self) -> bool:
        """Whether the target had no room."""
        return any(text in line for line in self.messages for text in FULL)

    def about(self, path: str) -> str:
        """The first message about this path, or the first of all."""
        name = path.rpartition("/")[2][:100]
        own = (line for line in self.messages if name in line and line.startswith("rsync: "))
        return _plain(next(own, self.reason))

    @property
    def reason(self) -> str:
        """What went wrong, in one line."""
        said = [line for line in self.messages if not line.startswith("rsync error: ")]
        means = MEANS.get(self.code)
        ended = f"rsync ended with code {self.code}" + (f": {means}" if means else "")
        return _plain(next(iter([*said, *self.messages]), ended))


def _plain(message: str) -> str:
    """A message without what only rsync's authors need."""
    return re.sub(r"^rsync: (\[\w+\] )?|^@ERROR: | \(\d+\)$| \(code \d+\) at .*$", "", message)


class Run:
    """A program in a process group of its own; it ends with the thread that started it.

    One that is ``held`` is given its few lines, but not their end, which it waits for until :meth:`go_on`.
    """

    def __init__(self, argv: Sequence[str], lines: Iterable[str] = (), *, held: bool = False) -> None:
        given = b"".join(os.fsencode(line) + b"\0" for line in lines)
        self._input, self._end = _pipe(given) if held else (_file(given), None)
        self._output, self._messages = _file(), _file()
        self._process = subprocess.Popen(
            [*guarded(), *argv],
            stdin=self._input,
            stdout=self._output,
            stderr=self._messages,
            start_new_session=True,
            env=_environment(),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_running(self) -> bool:
        """Whether its end was not seen yet."""
        return self._process.returncode is None

    def close(self) -> None:
        """End it, and let go of what it was given and what it said."""
        self.kill()
        self.go_on()
        for file in (self._input, self._output, self._messages):
            file.close()

    def go_on(self) -> None:
        """Give one that is held the end of its input."""
        if self._end is not None:
            self._end.close()
            self._end = None

    def wait_until(self, fd: int, patience: float) -> None:
        """Wait until there is something to be read from ``fd``, or for its end; raises as :meth:`wait` does."""
        with self._ends() as ends:
            ends.register(fd, select.POLLIN)
            self._wait(ends, patience)

    def wait(self, patience: float, tick: Callable[[int], None] = lambda _: None) -> Result:
        """Wait for its end; raises ``TargetDown`` where nothing moved for ``patience`` seconds.

        ``tick`` is given the bytes that it has read since the last time.
        """
        with self._ends() as ends:
            self._wait(ends, patience, tick)
        code = self._process.wait()
        self._limit()
        return Result(code, {item.name: item for item in items(_content(self._output))}, self._said())

    def _limit(self) -> None:
        """Raise ``TargetDown`` where the far side has it say more than anybody needs to."""
        if any(os.fstat(file.fileno()).st_size > MOST_SAID for file in (self._output, self._messages)):
            raise TargetDown(f"the far side says something without an end: more than {MOST_SAID:,} bytes")

    def _wait(self, awaited: select.poll, patience: float, tick: Callable[[int], None] = lambda _: None) -> None:
        moved, since = self._moved(), time.monotonic()
        while not awaited.poll(GLANCE * 1000):
            before, moved = moved, self._moved()
            tick(max(0, _read(moved) - _read(before)))
            self._limit()
            if moved != before:
                since = time.monotonic()
            elif time.monotonic() - since > patience:
                raise TargetDown(f"nothing moved for {patience:.0f} s")

    def _ends(self) -> _Ends:
        return _Ends(self._process.pid)

    def _said(self) -> tuple[str, ...]:
        lines = _content(self._messages).decode("utf-8", "replace").splitlines()
        return tuple(line.strip() for line in lines if line.strip())

    def _moved(self) -> bytes:
        """What it has read and written so far: changes while anything moves (proc(5), /proc/PID/io)."""
        with suppress(OSError):
            return Path(f"/proc/{self._process.pid}/io").read_bytes()
        return b""

    def kill(self) -> None:
        """End it and all that it started; harmless when repeated."""
        if self.is_running:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def _read(moved: bytes) -> int:
    """The bytes that a process has read so far, by what the kernel says of it; 0 where it says nothing."""
    found = re.match(rb"rchar: (\d+)", moved)
    return int(found[1]) if found else 0


class _Ends:
    """Tells when a process has ended, without waiting longer than that."""

    def __init__(self, pid: int) -> None:
        self._fd = os.pidfd_open(pid)

    def __enter__(self) -> select.poll:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return poll

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _file(content: bytes = b"") -> IO[bytes]:
    file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the run
    file.write(content)
    file.seek(0)
    return file


def _pipe(content: bytes) -> tuple[IO[bytes], IO[bytes] | None]:
    """A pipe that holds this, and the end by which it gets its own; more than a pipe holds is not for it."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    os.write(writing, content)
    return os.fdopen(reading, "rb"), os.fdopen(writing, "wb")


def _content(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


def _environment() -> dict[str, str]:
    """Ours without what would change rsync's ways; messages in English, since some are understood."""
    kept = {name: value for name, value in surroundings().items() if not name.startswith(("RSYNC_", "LC_", "LANG"))}
    proxy = {name: os.environ[name] for name in ("RSYNC_PROXY", "RSYNC_CONNECT_PROG") if name in os.environ}
    return {**kept, **proxy, "LC_ALL": "C"}


@cache
def without_override(directory: str) -> tuple[str, ...]:
    """What a command begins with so that it cannot open a file of mode 0000, as root can by its capabilities.

    Raises ``TargetRefused`` where that cannot be had.
    """
    forbidden = Path(directory, "forbidden")
    forbidden.touch(mode=0)
    drop = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")
    try:
        for prefix in ((), drop):
            with suppress(FileNotFoundError):
                tried = subprocess.run([*prefix, "cat", str(forbidden)], capture_output=True, check=False)
                if tried.returncode and b"ermission denied" in tried.stderr:
                    return prefix
    finally:
        forbidden.unlink()
    raise TargetRefused(
        "rsync publishes safely only without root's right to read all: install setpriv (util-linux)"
    )


@cache
def version(program: str) -> tuple[int, ...]:
    """The version of an rsync program; raises ``TargetRefused`` where there is none."""
    try:
        said = subprocess.run([program, "--version"], capture_output=True, check=False, timeout=30).stdout
    except OSError as error:
        if is_shortage(error):
            raise
        raise TargetRefused(f"{program}: {error.strerror}; install rsync, or name it in cmd") from error
    found = re.search(rb"version v?(\d+)\.(\d+)\.(\d+)", said)
    if found is None:
        raise TargetRefused(f"{program} is no rsync; install rsync, or name it in cmd")
    return tuple(map(int, found.groups()))
