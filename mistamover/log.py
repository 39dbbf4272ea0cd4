"""What is written down for people: the log of each stream and that of the service, on the console and in files.

That a line cannot be written never stops a transfer.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

from mistamover.lines import FORMS, Form, Text, safe
from mistamover.log_file import LogFile
from mistamover.options import Logging, Settings

MAIN = "mistamover"
"""The name of the service's own log. No stream can have it."""
HELD_BACK = 500
"""Lines about units that wait at most for :meth:`Log.flush`: a write for each would cost more than its unit."""
SYSLOG = "/dev/log"
DAEMON_ERROR = 3 * 8 + 3
NEVER = logging.CRITICAL + 1
"""The level of a sink that nothing reaches."""


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


def _tell_syslog(text: str) -> None:
    """Where nobody sees a console. Nothing comes of it where there is no syslog.

    Not by SysLogHandler, which waits for ever for a syslog that hangs, as one with a full disk may.
    """
    import socket  # only in trouble

    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.setblocking(False)
        out.connect(SYSLOG)
        out.send(f"<{DAEMON_ERROR}>{MAIN}[{os.getpid()}]: {safe(text)}".encode())


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
        self.listener: Callable[[int, str], object] | None = None
        """Is told each line that is not about the delivery of a single unit, and its level."""
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

    def tell(self, level: int, text: str, *, is_heard: bool = True) -> None:
        """Write a line of this importance; where it is not to be heard, the listener is not told."""
        self.flush()
        if level >= self.console.level:
            self.console.say(self.console.form.line(level, text))
        if is_heard:
            self._note_down(level, text)
        else:
            self._to_file(level, text)

    def note(self, level: int, text: str) -> None:
        """Write a line to the file alone: the person at the console is told in another way."""
        self.flush()
        self._note_down(level, text)

    def fault(self, text: str) -> None:
        """Write the exception that is being handled to the file, with its traceback."""
        self.flush()
        self._note_down(logging.ERROR, text, traceback.format_exc())

    def _note_down(self, level: int, text: str, trace: str = "") -> None:
        if self.listener is not None:
            self.listener(level, text)
        self._to_file(level, text, trace)

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
            self.console.say(self.console.form.unit(logging.INFO, *delivery))
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
