"""The file of a log: rotated, renamed or truncated at any time, on a disk that may be full.

That a line cannot be written never stops a transfer.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mistamover.lines import Form, Text, shown

COMPLAIN_AFTER = 60.0
"""Seconds that a trouble has to be over until it is told again: a full disk comes and goes with each line."""
LATEST_SECONDS = 5.0
LATEST_BYTES = 2**20
"""How much is kept for a log that is truncated. logrotate has the copy on disk first: until then, more comes."""
NEWLINE = b"\n"


class LogFile(logging.Handler):
    """Appends to a file that may be renamed, removed or truncated at any time, and begins a new one itself.

    One write(2) for each call, without a buffer that could hold what failed. Lines that cannot be written
    are dropped and counted; ``complain`` is told so once, and the file as soon as it can be written again.
    At ``max_size`` bytes it becomes ``NAME.1``, that ``NAME.2``, and so on up to ``max_files``; 0 is never.
    """

    def __init__(
        self,
        path: Path,
        complain: Callable[[str], object],
        form: Form | None = None,
        *,
        max_size: int = 0,
        max_files: int = 1,
    ) -> None:
        super().__init__()
        self.form = form or Text()
        self._path = path
        self._complain = complain
        self._complained: dict[str, float] = {}
        self._max_size = max_size
        self._max_files = max_files
        self._fd: int | None = None
        self._file: tuple[int, int] | None = None
        self._is_regular = False
        self._end = 0
        """Bytes that the file has, as far as we know."""
        self._limit = 0
        """Bytes that it may have."""
        self._latest = Latest()
        self._lost = 0
        self._trouble = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Append a library's line."""
        self.append(self.form.foreign(record))

    def append(self, lines: str) -> None:
        """Append lines; the last one's end is added."""
        data = f"{lines}\n".encode("utf-8", "backslashreplace")
        self.acquire()
        try:
            if self._lost:
                data = self._own_line(f"{_lost_lines(self._lost)} lost here: {self._trouble}") + data
            self._put(data)
        finally:
            self.release()

    def _put(self, data: bytes) -> None:
        rest = data
        try:
            self._turn_to_current()
            while rest:
                rest = rest[self._write(self._fitting(rest)) :]
        except _Unwritten as error:
            self._drop(rest[error.written :], error, is_all=not error.written and rest is data)
        except OSError as error:
            self._drop(rest, error, is_all=rest is data)
        else:
            self._lost = 0
            self._forget_complaints()

    def _drop(self, lines: bytes, error: OSError, *, is_all: bool) -> None:
        """Count what is lost; where that is all of it, the line that told of earlier ones was among it."""
        told = self._lost - 1 if self._lost and is_all else 0
        self._lost = told + lines.count(b"\n")
        self._trouble = f"the log could not be written: {error.strerror}"
        self._complain_once(f"the log cannot be written: {error.strerror}")

    def _complain_once(self, what: str) -> None:
        if what not in self._complained:
            self._complain(f"{shown(str(self._path))}: {what}")
        self._complained[what] = time.monotonic()

    def _forget_complaints(self) -> None:
        """It can be written. Of trouble that was long ago, the next is told again."""
        if self._complained:
            since = time.monotonic() - COMPLAIN_AFTER
            self._complained = {what: last for what, last in self._complained.items() if last > since}

    def _own_line(self, text: str) -> bytes:
        return f"{self.form.line(logging.WARNING, text)}\n".encode("utf-8", "backslashreplace")

    # -- the file that has the name ----------------------------------------------------------------------

    def _turn_to_current(self) -> None:
        """Have the file open that has the name now, and know its size."""
        found = _stat(self._path)
        if self._fd is None or found is None or self._file != (found.st_dev, found.st_ino):
            self._open()
        elif self._is_regular and found.st_size < self._end:
            self._end = found.st_size
            self._append_latest()
        else:
            self._end = found.st_size

    def _open(self) -> None:
        self._leave()
        # A FIFO without a reader fails instead of holding up everything.
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
        self._fd = os.open(self._path, flags, 0o640)
        found = os.fstat(self._fd)
        self._file = found.st_dev, found.st_ino
        self._is_regular = stat.S_ISREG(found.st_mode)
        self._end = found.st_size if self._is_regular else 0
        self._limit = self._max_size
        if self._end and os.pread(self._fd, 1, self._end - 1) != b"\n":
            self._write(b"\n")  # a process was killed while it wrote: its line is torn, ours is not

    def _leave(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
        self._fd = self._file = None
        self._latest.clear()

    def close(self) -> None:
        """Let go of the file."""
        self._leave()
        super().close()

    # -- writing -----------------------------------------------------------------------------------------

    def _write(self, data: bytes) -> int:
        """Write all of it; where only some fits, whole lines of it. Gives the number of bytes."""
        assert self._fd is not None  # noqa: S101 - it is open since _turn_to_current
        done = 0
        try:
            while done < len(data):
                done += os.write(self._fd, data[done:])
        except OSError as error:
            whole = data.rfind(b"\n", 0, done) + 1
            self._cut_back(done, whole)
            self._note_written(data[:whole])
            raise _Unwritten(error, whole) from None
        self._note_written(data)
        return done

    def _cut_back(self, done: int, whole: int) -> None:
        """Take the torn line away again that a full disk left at the end."""
        assert self._fd is not None  # noqa: S101 - somebody has written to it
        with suppress(OSError):
            if done != whole and os.fstat(self._fd).st_size == self._end + done:
                os.ftruncate(self._fd, self._end + whole)

    def _note_written(self, data: bytes) -> None:
        if self._is_regular:
            self._end += len(data)
            self._latest.add(data, time.monotonic())

    def _append_latest(self) -> None:
        """Somebody truncated the file, after copying it as they may think: write again what the copy may lack."""
        if again := self._latest.taken(self._end, time.monotonic()):
            what = f"the log was truncated: lines after this one ({again.count(NEWLINE):,}) may be in its copy, too"
            with suppress(OSError):  # the lines to come have the same trouble, and tell of it
                self._write(self._own_line(what) + again)

    def look(self) -> None:
        """See whether the file was truncated, while there is something that could be lost by that."""
        self.acquire()
        try:
            if self._latest.since >= time.monotonic() - LATEST_SECONDS:
                with suppress(OSError):  # the next line has the same trouble, and tells of it
                    self._turn_to_current()
            else:
                self._latest.clear()
        finally:
            self.release()

    # -- rotation ----------------------------------------------------------------------------------------

    def _fitting(self, data: bytes) -> bytes:
        """The lines that belong into this file; a full one is put aside first. A line alone may be too large."""
        if not self._limit or not self._is_regular or self._end + len(data) <= self._limit:
            return data
        if cut := data.rfind(b"\n", 0, max(self._limit - self._end, 0)) + 1:
            return data[:cut]
        if self._end and self._rotate():
            return self._fitting(data)
        return data[: data.index(b"\n") + 1]

    def _rotate(self) -> bool:
        try:
            self._put_aside()
        except OSError as error:
            # What cannot be rotated grows on, and is tried again when it has grown by as much.
            self._limit = self._end + self._max_size
            self._complain_once(f"the log cannot be rotated: {error.strerror}")
            return False
        self._open()
        return True

    def _put_aside(self) -> None:
        found = os.lstat(self._path)
        if (found.st_dev, found.st_ino) != self._file:
            if stat.S_ISLNK(found.st_mode):
                raise OSError(errno.ELOOP, "it is a symbolic link")
            return  # somebody else has just renamed it
        older = [f"{self._path}.{number}" for number in range(1, self._max_files + 1)]
        last = next((place for place, path in enumerate(older) if not os.path.lexists(path)), len(older) - 1)
        for place in range(last, 0, -1):
            os.rename(older[place - 1], older[place])
        os.rename(self._path, older[0])
        self._remove_surplus()

    def _remove_surplus(self) -> None:
        """Fewer are to be kept than before."""
        number = self._max_files + 1
        with suppress(OSError):
            while True:
                os.unlink(f"{self._path}.{number}")
                number += 1


class Latest:
    """What was written in the last seconds: who copies a log and then truncates it may have missed that."""

    def __init__(self) -> None:
        self._pieces: deque[tuple[float, bytes]] = deque()
        self._size = 0

    @property
    def since(self) -> float:
        """When the last of it was written, by the monotonic clock."""
        return self._pieces[-1][0] if self._pieces else -LATEST_SECONDS

    def add(self, lines: bytes, now: float) -> None:
        """Keep these too, and let go of what is too old or too much."""
        self._pieces.append((now, lines))
        self._size += len(lines)
        while self._size > LATEST_BYTES or self._pieces[0][0] < now - LATEST_SECONDS:
            self._size -= len(self._pieces.popleft()[1])
            if not self._pieces:
                return

    def taken(self, in_file: int, now: float) -> bytes:
        """All but the last ``in_file`` bytes, which were written after the truncation; nothing is kept then."""
        again: list[bytes] = []
        for written, lines in reversed(self._pieces):
            if in_file >= len(lines):
                in_file -= len(lines)
            elif written >= now - LATEST_SECONDS:
                again.append(lines)
        self.clear()
        return b"".join(reversed(again))

    def clear(self) -> None:
        """Keep nothing."""
        self._pieces.clear()
        self._size = 0


def _lost_lines(number: int) -> str:
    return "1 line was" if number == 1 else f"{number:,} lines were"


class _Unwritten(OSError):
    """A write failed after so many bytes of whole lines."""

    def __init__(self, error: OSError, written: int) -> None:
        super().__init__(error.errno, error.strerror)
        self.written = written


def _stat(path: Path) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        return None
