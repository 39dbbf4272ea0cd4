"""What is written down for people about one stream: on the console, and in a file.

Names and messages come from anywhere. What is written is one line each, without control characters and
without secrets. That a line cannot be written never stops a transfer.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from mistamover.options import Settings

FORMAT = "%(asctime)s %(levelname)s %(message)s"
DATES = "%Y-%m-%d %H:%M:%S"
HELD_BACK = 500
"""Lines about units that wait at most for :meth:`Log.flush`: a write for each would cost more than its unit."""
SHORTEST_SECRET = 4
"""A shorter one is part of many words: to blot it out of all of them would tell it."""

_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None] | None

_secrets: list[str] = []


# -- one line, printable, without secrets ------------------------------------------------------------------


def shown(path: str) -> str:
    r"""A name for people and for one line: readable, and no two names look the same.

    Bytes that are no UTF-8 come as ``\xff``, control and other unprintable characters as ``\n``, ``\x1b``
    or ``\u202e``, and a backslash as two.
    """
    if path.isprintable() and "\\" not in path:
        return path
    return "".join(map(_escaped, path.replace("\\", "\\\\")))


def one_line(text: str) -> str:
    """A message with everything escaped that does not print; names in it are :func:`shown` already."""
    return text if text.isprintable() else "".join(map(_escaped, text))


def _escaped(char: str) -> str:
    if char.isprintable():
        return char
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # os.fsdecode's stand-in for one byte
        return f"\\x{code - 0xDC00:02x}"
    if 0x80 <= code <= 0xFF:  # \x.. is a byte, and this is none
        return f"\\u{code:04x}"
    return ascii(char)[1:-1]


def hide(secret: str) -> None:
    """Never write this text down, from now on."""
    forms = {secret, one_line(secret), repr(secret)[1:-1], ascii(secret)[1:-1]}
    _secrets.extend(form for form in forms if len(form) >= SHORTEST_SECRET and form not in _secrets)
    _secrets.sort(key=len, reverse=True)


def redacted(text: str) -> str:
    """The text with the secrets blotted out."""
    for secret in _secrets:
        text = text.replace(secret, "***")
    return text


def safe(text: str) -> str:
    """The text as one line that may be shown to anybody."""
    return one_line(redacted(text))


class Formatter(logging.Formatter):
    """Makes each record one line; a traceback's lines are indented below it."""

    def __init__(self) -> None:
        super().__init__(FORMAT, DATES)

    def format(self, record: logging.LogRecord) -> str:
        """The record as :func:`safe` lines."""
        first, *more = super().format(record).splitlines() if record.exc_info else [super().format(record)]
        return "\n  ".join(map(safe, (first, *more)))


# -- words for people --------------------------------------------------------------------------------------

_SIZES = ("bytes", "KiB", "MiB", "GiB", "TiB")


def files(count: int) -> str:
    """A number of files, for people."""
    return "1 file" if count == 1 else f"{count:,} files"


def size(amount: float) -> str:
    """A number of bytes, for people: three digits or so."""
    power = 0
    while amount >= 1000 and power < len(_SIZES) - 1:
        amount /= 1024
        power += 1
    if amount == 1 and not power:
        return "1 byte"
    return f"{amount:.0f} {_SIZES[power]}" if not power or amount >= 100 else f"{amount:.3g} {_SIZES[power]}"


def duration(seconds: float) -> str:
    """A time span, for people."""
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"


# -- where lines go ----------------------------------------------------------------------------------------


class Console(logging.Handler):
    """Writes to standard error, or to whatever a display puts in its place while it is on the screen."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(Formatter())
        self.write: Callable[[str], object] = _to_stderr

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line; one that nobody can read is dropped."""
        try:
            self.write(self.format(record))
        except (OSError, ValueError):  # closed, or its reader is gone
            return


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


class LogFile(logging.Handler):
    """Appends to a file that may be renamed or removed at any time, which begins a new one.

    One write(2) for each call, without a buffer that could hold what failed. Lines that cannot be written
    are dropped; ``complain`` is told so once, until writing succeeds again.
    """

    def __init__(self, path: Path, complain: Callable[[str], object]) -> None:
        super().__init__()
        self.setFormatter(Formatter())
        self._path = path
        self._complain = complain
        self._is_broken = False
        self._fd: int | None = None
        self._file: tuple[int, int] | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Append a line."""
        self.append(self.format(record))

    def append(self, lines: str) -> None:
        """Append lines; the last one's end is added."""
        self.acquire()
        try:
            os.write(self._current(), f"{lines}\n".encode("utf-8", "backslashreplace"))
            self._is_broken = False
        except OSError as error:
            self._note(error)
        finally:
            self.release()

    def _note(self, error: OSError) -> None:
        if not self._is_broken:
            self._is_broken = True
            self._complain(f"{shown(str(self._path))}: the log cannot be written: {error.strerror}")

    def _current(self) -> int:
        """The descriptor of the file that has the name now."""
        if self._fd is None or self._file != _identity(self._path):
            self._leave()
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY
            self._fd = os.open(self._path, flags, 0o640)
            self._file = _identity(self._path)
        return self._fd

    def _leave(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
        self._fd = self._file = None

    def close(self) -> None:
        """Let go of the file."""
        self._leave()
        super().close()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


# -- the log of a stream -----------------------------------------------------------------------------------


class Log:
    """The log of one stream: ``console`` and, where [logging] base_log_dir is set, a file of its name."""

    def __init__(self, settings: Settings, console: int | None = None, *, debug: bool = False) -> None:
        """``console`` is the least important level on the console; None takes that of the stream."""
        self.prefix = f"stream {settings.name}: "
        self.console = Console()
        level = logging.getLevelName(settings.logging.log_level)
        self.console.setLevel(level if console is None else console)
        self._logger = logging.Logger(settings.name)
        self._logger.addHandler(self.console)
        self._file = self._log_file(settings)
        if self._file is not None:
            self._file.setLevel(min(level, logging.DEBUG) if debug else level)
            self._logger.addHandler(self._file)
        self._tells_units = self._file is not None and self._file.level <= logging.INFO
        self._units: list[str] = []
        self._lock = threading.Lock()
        self._stamp = (0, "")
        self._hear_libraries(debug=debug)

    def _log_file(self, settings: Settings) -> LogFile | None:
        directory = settings.logging.base_log_dir
        if directory is None:
            return None
        return LogFile(directory / f"{settings.name}.log", self._complain)

    def _complain(self, text: str) -> None:
        self.console.handle(self._record(logging.ERROR, text))

    def _hear_libraries(self, *, debug: bool) -> None:
        """What a library logs is for those who look for faults; an error that counts comes as an exception."""
        self._libraries = logging.getLogger()
        self._others = list(self._logger.handlers) if debug else [logging.NullHandler()]
        for handler in self._others:
            self._libraries.addHandler(handler)
        self._their_level = self._libraries.level
        if debug:
            self._libraries.setLevel(logging.DEBUG)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()
        self._libraries.setLevel(self._their_level)
        for handler in self._others:
            self._libraries.removeHandler(handler)
        for handler in self._logger.handlers:
            handler.close()

    def tell(self, level: int, text: str) -> None:
        """Write a line of this importance."""
        self.flush()
        self._logger.handle(self._record(level, text))

    def note(self, level: int, text: str) -> None:
        """Write a line to the file alone: the person at the console is told in another way."""
        self.flush()
        self._to_file(level, text)

    def fault(self, text: str) -> None:
        """Write the exception that is being handled to the file, with its traceback."""
        self.flush()
        self._to_file(logging.ERROR, text, sys.exc_info())

    def _to_file(self, level: int, text: str, exc_info: _ExcInfo = None) -> None:
        if self._file is not None and level >= self._file.level:
            self._file.handle(self._record(level, text, exc_info))

    def _record(self, level: int, text: str, exc_info: _ExcInfo = None) -> logging.LogRecord:
        return self._logger.makeRecord("", level, "", 0, "%s%s", (self.prefix, one_line(text)), exc_info)

    @property
    def tells_units(self) -> bool:
        """Whether lines about single units are wanted anywhere."""
        return self._tells_units or self.console.level <= logging.DEBUG

    def unit(self, text: str) -> None:
        """Write a line about one unit: to the file soon, to the console where details are wanted."""
        if self.console.level <= logging.DEBUG:
            self.console.handle(self._record(logging.DEBUG, text))
        if self._tells_units:
            with self._lock:
                self._units.append(f"{self._now()} INFO {self.prefix}{text}")
            if len(self._units) >= HELD_BACK:
                self.flush()

    def _now(self) -> str:
        second = int(time.time())
        if second != self._stamp[0]:
            self._stamp = second, time.strftime(DATES, time.localtime(second))
        return self._stamp[1]

    def flush(self) -> None:
        """Write what was held back."""
        with self._lock:
            lines, self._units = self._units, []
            if lines and self._file is not None:
                self._file.append("\n".join(map(safe, lines)))
