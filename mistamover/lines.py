"""The text of lines that people and machines read: one line each, without control characters and without secrets.

Names and messages come from anywhere.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable
from typing import Any, Protocol

from mistamover.options import SECRETS, Settings

SHORTEST_SECRET = 4
"""A shorter one is part of many words: to blot it out of all of them would tell it."""

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


def files(count: int, unit: str = "file") -> str:
    """A number of files, or of what else a stream's units are (``file`` or ``directory``), for people."""
    if count == 1:
        return f"1 {unit}"
    return f"{count:,} {'directories' if unit == 'directory' else f'{unit}s'}"


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
