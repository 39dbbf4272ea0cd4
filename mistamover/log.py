"""What is written down for people: the log of each stream and that of the service, on the console and in files.

Names and messages come from anywhere. What is written is one line each, without control characters and
without secrets. That a line cannot be written never stops a transfer.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, Self

from mistamover.options import SECRETS, Logging, Settings

MAIN = "mistamover"
"""The name of the service's own log. No stream can have it."""
HELD_BACK = 500
"""Lines about units that wait at most for :meth:`Log.flush`: a write for each would cost more than its unit."""
SHORTEST_SECRET = 4
"""A shorter one is part of many words: to blot it out of all of them would tell it."""
COMPLAIN_AFTER = 60.0
"""Seconds that a trouble has to be over until it is told again: a full disk comes and goes with each line."""
LATEST_SECONDS = 5.0
LATEST_BYTES = 2**20
"""How much is kept for a log that is truncated. logrotate has the copy on disk first: until then, more comes."""
NEWLINE = b"\n"
SYSLOG = "/dev/log"
DAEMON_ERROR = 3 * 8 + 3
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


def hide_secrets(settings: Settings) -> None:
    """Never write down the secrets of a configuration, from now on."""
    for section, option in SECRETS:
        if (secret := getattr(getattr(settings, section), option)) is not None:
            hide(secret.get_secret_value())


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


def _tell_syslog(text: str) -> None:
    """Where nobody sees a console. Nothing comes of it where there is no syslog.

    Not by SysLogHandler, which waits for ever for a syslog that hangs, as one with a full disk may.
    """
    import socket  # only in trouble

    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.setblocking(False)
        out.connect(SYSLOG)
        out.send(f"<{DAEMON_ERROR}>{MAIN}[{os.getpid()}]: {safe(text)}".encode())


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
            self._file = LogFile(
                place / f"{name}.log",
                self._complain,
                FORMS[section.format](stream),
                max_size=section.max_size,
                max_files=section.max_files,
            )
            self._file.setLevel(min(level, logging.DEBUG) if debug else level)
        self._hear_libraries(debug=debug)

    def _complain(self, text: str) -> None:
        if self._detached:
            _tell_syslog(text)
        elif self.console.level <= logging.ERROR:
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
            if self._file is None:
                return
            if lines:
                self._file.append("\n".join(lines))
            else:
                self._file.look()
