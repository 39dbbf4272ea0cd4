"""What is written down for people: the log of each stream and that of the service, on the console and in files.

Names and messages come from anywhere. What is written is one line each, without control characters and
without secrets. That a line cannot be written never stops a transfer.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, Self

from mistamover.options import Logging, Settings

MAIN = "mistamover"
"""The name of the service's own log. No stream can have it."""
HELD_BACK = 500
"""Lines about units that wait at most for :meth:`Log.flush`: a write for each would cost more than its unit."""
SHORTEST_SECRET = 4
"""A shorter one is part of many words: to blot it out of all of them would tell it."""
NEVER = logging.CRITICAL + 1
"""The level of a sink that nothing reaches."""

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
    forms = {secret, shown(secret), one_line(secret), repr(secret)[1:-1], ascii(secret)[1:-1]}
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


# -- a delivered unit --------------------------------------------------------------------------------------


def delivered(
    path: str,
    size: int,
    seconds: float,
    algorithm: str,
    digest: str,
    proof: str,
    target: str,
    attempt: int,
    unit: int | str | None = None,
) -> str:
    """What is said of a delivered unit: its name, then fields without blanks, always in this order.

    The fields are the last of the line, so no name can pretend to be one. ``-`` stands for what is not known, and
    the id of the unit is left out then. ``seconds`` 0 is an unknown time.
    """
    rate = _rate(size, seconds)
    return (
        f"moved: {shown(path)}: bytes={size} seconds={seconds:.3f} rate={'-' if rate is None else rate} "
        f"digest={f'{algorithm}:{digest}' if digest else '-'} proof={proof or '-'} "
        f"target={shown(target).replace(' ', BLANK)} attempt={attempt}{'' if unit is None else f' unit={unit}'}"
    )


def delivered_fields(
    path: str,
    size: int,
    seconds: float,
    algorithm: str,
    digest: str,
    proof: str,
    target: str,
    attempt: int,
    unit: int | str | None = None,
) -> dict[str, Any]:
    """The same as members of a JSON object, with null for what is not known; safe to be written."""
    return {
        "name": safe(shown(path)),
        "bytes": size,
        "seconds": round(seconds, 3),
        "rate": _rate(size, seconds),
        "digest": digest or None,
        "algorithm": algorithm if digest else None,
        "proof": safe(proof) or None,
        "target": safe(shown(target)),
        "attempt": attempt,
        "unit": safe(unit) if isinstance(unit, str) else unit,
    }


BLANK = "\\x20"


def _rate(size: int, seconds: float) -> int | None:
    """Bytes in a second."""
    return round(size / max(seconds, 1e-6)) if seconds > 0 else None


# -- what a line looks like --------------------------------------------------------------------------------


class Form(Protocol):
    """How lines are written: their time, level, stream and message."""

    def line(self, level: int, text: str, trace: str = "") -> str:
        """A line of ours, with those of a traceback below it or within."""

    def foreign(self, record: logging.LogRecord) -> str:
        """A line of a library."""

    def unit(self, level: int, *delivery: Any) -> str:
        """The line about a delivered unit, from the arguments of :func:`delivered`."""


class Text:
    """Lines for people; those of a traceback are indented below theirs."""

    def __init__(self, stream: str = "") -> None:
        self._prefix = f"stream {stream}: " if stream else ""
        self._clock = Clock(lambda now: time.strftime("%Y-%m-%d %H:%M:%S", now))

    def line(self, level: int, text: str, trace: str = "") -> str:
        """TIME LEVEL stream NAME: TEXT."""
        return self._made(level, f"{self._prefix}{text}", trace)

    def foreign(self, record: logging.LogRecord) -> str:
        """TIME LEVEL TEXT: a library knows no stream."""
        return self._made(record.levelno, record.getMessage(), _trace(record))

    def unit(self, level: int, *delivery: Any) -> str:
        """A line with the text of :func:`delivered`."""
        return safe(f"{self._clock.now()} {logging.getLevelName(level)} {self._prefix}{delivered(*delivery)}")

    def _made(self, level: int, text: str, trace: str) -> str:
        first = f"{self._clock.now()} {logging.getLevelName(level)} {text}"
        return "\n  ".join([safe(first), *_lines(trace)])


class Json:
    """Lines for machines: an object on each, in UTF-8. No string in it holds a character that does not print."""

    def __init__(self, stream: str = "") -> None:
        from json import JSONEncoder  # only where it is wanted: it takes a while

        self._encode = JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
        self._stream = stream or None
        self._clock = Clock(rfc3339)

    def line(self, level: int, text: str, trace: str = "") -> str:
        """The members time, level, stream, message; and traceback, a list of lines, where there is one."""
        more = {"traceback": _lines(trace)} if trace else {}
        return self._made(level, safe(text), more)

    def foreign(self, record: logging.LogRecord) -> str:
        """The same of a library's."""
        return self.line(record.levelno, record.getMessage(), _trace(record))

    def unit(self, level: int, *delivery: Any) -> str:
        """The same with :func:`delivered_fields`."""
        fields = delivered_fields(*delivery)
        return self._made(level, f"moved: {fields['name']}", fields)

    def _made(self, level: int, message: str, more: dict[str, Any]) -> str:
        return self._encode(
            {
                "time": self._clock.now(),
                "level": logging.getLevelName(level),
                "stream": self._stream,
                "message": message,
                **more,
            }
        )


FORMS: dict[str, Callable[[str], Form]] = {"text": Text, "json": Json}


class Clock:
    """The time of day as text, made once a second."""

    def __init__(self, form: Callable[[time.struct_time], str]) -> None:
        self._form = form
        self._last = (0, "")

    def now(self) -> str:
        """The second it is."""
        second = int(time.time())
        if second != self._last[0]:
            self._last = second, self._form(time.localtime(second))
        return self._last[1]


def rfc3339(moment: time.struct_time) -> str:
    """A local time with its offset from UTC."""
    minutes = moment.tm_gmtoff // 60
    sign = "-" if minutes < 0 else "+"
    hours, rest = divmod(abs(minutes), 60)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', moment)}{sign}{hours:02}:{rest:02}"


def _trace(record: logging.LogRecord) -> str:
    return "".join(traceback.format_exception(record.exc_info[1])) if record.exc_info else ""


def _lines(trace: str) -> list[str]:
    """The lines of a traceback. A secret may hold what ends one, so it goes first."""
    return list(map(safe, redacted(trace).splitlines()))


# -- where lines go ----------------------------------------------------------------------------------------


class Console(logging.Handler):
    """Writes to standard error, or to whatever a display puts in its place while it is on the screen."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form
        self.write: Callable[[str], object] = _to_stderr

    def emit(self, record: logging.LogRecord) -> None:
        """Write a library's line."""
        self.say(self.form.foreign(record))

    def say(self, line: str) -> None:
        """Write a line; one that nobody can read is dropped."""
        self.acquire()
        try:
            self.write(line)
        except (OSError, ValueError):  # closed, or its reader is gone
            return
        finally:
            self.release()


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _is_read_by_a_person() -> bool:
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):  # there is none, or it is closed
        return False


class LogFile(logging.Handler):
    """Appends to a file that may be renamed or removed at any time, which begins a new one.

    One write(2) for each call, without a buffer that could hold what failed. Lines that cannot be written
    are dropped; ``complain`` is told so once, until writing succeeds again.
    """

    def __init__(self, path: Path, complain: Callable[[str], object], form: Form | None = None) -> None:
        super().__init__()
        self.form = form or Text()
        self._path = path
        self._complain = complain
        self._is_broken = False
        self._fd: int | None = None
        self._file: tuple[int, int] | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Append a library's line."""
        self.append(self.form.foreign(record))

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


# -- the logs ----------------------------------------------------------------------------------------------


class BaseLog:
    """A log on the console and, where there is a directory for it, in a file of its name.

    Make it after the process was detached and after a fork, for it keeps a descriptor and listens to libraries.
    A child that was forked while it was open calls :meth:`close` first.
    """

    def __init__(
        self,
        name: str,
        stream: str,
        section: Logging,
        console: int | None = None,
        *,
        debug: bool = False,
        directory: Path | None = None,
        detached: bool = False,
    ) -> None:
        """See :class:`Log` and :class:`MainLog`."""
        level = logging.getLevelName(section.log_level)
        self.console = Console(Text(stream) if _is_read_by_a_person() else FORMS[section.format](stream))
        self.console.setLevel(NEVER if detached else level if console is None else console)
        self._detached = detached
        self._file: LogFile | None = None
        if (place := section.base_log_dir or directory) is not None:
            self._file = LogFile(place / f"{name}.log", self._complain, FORMS[section.format](stream))
            self._file.setLevel(min(level, logging.DEBUG) if debug else level)
        self._hear_libraries(debug=debug)

    def _complain(self, text: str) -> None:
        if self.console.level <= logging.ERROR:
            self.console.say(self.console.form.line(logging.ERROR, text))

    def _hear_libraries(self, *, debug: bool) -> None:
        """What a library logs is for those who look for faults; an error that counts comes as an exception."""
        self._libraries = logging.getLogger()
        sinks: list[logging.Handler] = [self.console] if self._file is None else [self.console, self._file]
        self._others = sinks if debug else [logging.NullHandler()]
        for handler in self._others:
            self._libraries.addHandler(handler)
        self._their_level = self._libraries.level
        if debug:
            self._libraries.setLevel(logging.DEBUG)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Write what was held back, and let go of the file and of the libraries."""
        self.flush()
        self._libraries.setLevel(self._their_level)
        for handler in self._others:
            self._libraries.removeHandler(handler)
        self.console.close()
        if self._file is not None:
            self._file.close()

    def flush(self) -> None:
        """Write what was held back."""

    def tell(self, level: int, text: str) -> None:
        """Write a line of this importance."""
        self.flush()
        if level >= self.console.level:
            self.console.say(self.console.form.line(level, text))
        self._to_file(level, text)

    def note(self, level: int, text: str) -> None:
        """Write a line to the file alone: the person at the console is told in another way."""
        self.flush()
        self._to_file(level, text)

    def fault(self, text: str) -> None:
        """Write the exception that is being handled to the file, with its traceback."""
        self.flush()
        self._to_file(logging.ERROR, text, traceback.format_exc())

    def _to_file(self, level: int, text: str, trace: str = "") -> None:
        if self._file is not None and level >= self._file.level:
            self._file.append(self._file.form.line(level, text, trace))


class MainLog(BaseLog):
    """The log of the service itself, by the [logging] of the global file."""

    def __init__(
        self,
        section: Logging,
        console: int | None = None,
        *,
        debug: bool = False,
        directory: Path | None = None,
        detached: bool = False,
    ) -> None:
        """The arguments are those of :class:`Log`."""
        super().__init__(MAIN, "", section, console, debug=debug, directory=directory, detached=detached)


class Log(BaseLog):
    """The log of one stream."""

    def __init__(
        self,
        settings: Settings,
        console: int | None = None,
        *,
        debug: bool = False,
        directory: Path | None = None,
        detached: bool = False,
    ) -> None:
        """``console`` is the least important level on the console; None takes that of the stream.

        ``directory`` is for the file where base_log_dir is not set. A ``detached`` process has no console.
        """
        name = settings.name
        super().__init__(name, name, settings.logging, console, debug=debug, directory=directory, detached=detached)
        self._tells_units = self._file is not None and self._file.level <= logging.INFO
        self._units: list[str] = []
        self._lock = threading.Lock()

    @property
    def tells_units(self) -> bool:
        """Whether lines about single units are wanted anywhere."""
        return self._tells_units or self.console.level <= logging.DEBUG

    def unit(
        self,
        path: str,
        size: int,
        seconds: float,
        algorithm: str,
        digest: str,
        proof: str,
        target: str,
        attempt: int,
        unit: int | str | None = None,
    ) -> None:
        """Write the line about a delivered unit: to the file soon, to the console where details are wanted.

        The arguments are those of :func:`delivered`.
        """
        delivery = path, size, seconds, algorithm, digest, proof, target, attempt, unit
        if self.console.level <= logging.DEBUG:
            self.console.say(self.console.form.unit(logging.DEBUG, *delivery))
        if self._tells_units and self._file is not None:
            with self._lock:
                self._units.append(self._file.form.unit(logging.INFO, *delivery))
            if len(self._units) >= HELD_BACK:
                self.flush()

    def flush(self) -> None:
        """Write what was held back."""
        with self._lock:
            lines, self._units = self._units, []
            if lines and self._file is not None:
                self._file.append("\n".join(lines))
