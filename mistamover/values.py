"""What the text of an option may be: its kinds, each with its words for people and the function that reads it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import SecretStr

from mistamover import ini, rsync_options
from mistamover.digest import ALGORITHMS
from mistamover.ini import Kind, from_text, shown
from mistamover.obsolete import RETIRED
from mistamover.unit import OWN_PLACES

BUILT_IN = ("local", "sftp", "rsync_ssh", "rsync_native", "ftp", "ftps", "none")
ENTRY_POINTS = "mistamover.transports"
SENDMAIL = "sendmail:"
OWN_LOGS = ("mistamover", "log", "postman", "disk-monitor")
OWN_FILES = (
    *("service.json", "service.json.new", "disks.json", "disks.json.new"),
    *("service.lock", "mistamover.pid", "alerts", "disk"),
)
"""The log of the service itself, and the directory of logs in state_dir, beside those of streams."""


def _transfer_protocol(text: str) -> str:
    if text in BUILT_IN:
        return text
    if text in RETIRED:
        raise ValueError(f"{shown(text)}: {RETIRED[text]}")
    from importlib.metadata import entry_points  # reads the metadata of every installed package

    known = [*BUILT_IN, *sorted(entry_points(group=ENTRY_POINTS).names)]
    if text not in known:
        raise ValueError(f"{shown(text)} is no transport here; give one of {', '.join(known)}")
    return text


def _log_level(text: str) -> str:
    return "WARNING" if text.upper() == "WARN" else text.upper()


def _checksum(text: str) -> str:
    from importlib.util import find_spec

    if text not in ALGORITHMS:
        raise ValueError
    if text == "xxh128" and find_spec("xxhash") is None:
        raise ValueError("'xxh128' needs the Python package xxhash; install it, or give sha256")
    return text


def _stream_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}", text):
        raise ValueError
    if text in (*OWN_PLACES, *OWN_LOGS, *OWN_FILES):
        raise ValueError(f"{shown(text)} is what mistamover calls a place of its own; give another name")
    return text


def _host(text: str) -> str:
    if "@" in text:  # not quoted: it may be USER:PASSWORD@HOST
        raise ValueError("holds a user; give the host alone and put the user in the protocol's section")
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if ":" in bare:
        return _ipv6(bare)
    if not re.fullmatch(r"\w[\w.-]{0,254}", bare):
        raise ValueError
    return bare


def _ipv6(text: str) -> str:
    from ipaddress import IPv6Address

    try:
        IPv6Address(text)
    except ValueError:
        wrong = f"{shown(text)} is no IPv6 address; give the host alone and put a port in the protocol's section"
        raise ValueError(wrong) from None
    return text


def _port(text: str) -> int:
    if not 1 <= (number := ini.count(text)) <= 65535:
        raise ValueError
    return number


def _user(text: str) -> str:
    if text.startswith("-") or not text.isprintable() or re.search(r"[\s/]", text):
        raise ValueError
    return text


def _target_path(text: str) -> Path:
    ini.absolute_path(f"/{text.removeprefix('/')}")
    return Path(text)


def _shell_words(text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise ValueError(f"{shown(text)} cannot be split into words: {error}") from None


def _rsync_command(text: str) -> tuple[str, ...]:
    rsync_options.read_command(words := _shell_words(text))
    return words


def _rsync_options(text: str) -> tuple[str, ...]:
    rsync_options.read_options(words := _shell_words(text))
    return words


def _patterns(text: str) -> tuple[str, ...]:
    patterns = ini.words(text)
    if "/" in text:
        raise ValueError(f"{shown(text)} holds a /; give patterns of names, not of paths")
    return patterns


def _addresses(text: str) -> tuple[str, ...]:
    addresses = ini.words(text)
    for address in addresses:
        _address(address)
    return addresses


def _address(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}(@[A-Za-z0-9][A-Za-z0-9.-]{0,253})?", text):
        raise ValueError(f"{shown(text)} is no address of mail; give NAME@DOMAIN, or the name of a user here")
    return text


def _sender(text: str) -> str:
    name, bracket, rest = text.partition("<")
    if not bracket:
        return _address(text)
    if not name.isascii() or not name.isprintable() or re.search(r'[@",;:]', name) or not rest.endswith(">"):
        raise ValueError
    _address(rest.removesuffix(">"))
    return text


def _smarthost(text: str) -> str:
    return text if text == SENDMAIL else _host(text)


class Quiet(NamedTuple):
    """For how long nothing may arrive, counted at these times only."""

    seconds: float
    days: tuple[int, ...]
    """0 is Monday."""
    begin: int
    end: int
    """Minutes of the day; an end that is not after the begin is of the next day."""


_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WEEK = {"daily": range(7), "weekdays": range(5), "weekends": range(5, 7)} | {
    name: (number,) for number, name in enumerate(_DAYS)
}
_QUIET = re.compile(r"(\S+)(?:\s+([a-z,-]+))?(?:\s+([0-9]{1,2}):([0-9]{2})-([0-9]{1,2}):([0-9]{2}))?")


def _quiet(text: str) -> Quiet:
    found = _QUIET.fullmatch(text.lower().strip())
    if not found:
        raise ValueError
    if not (seconds := ini.seconds(found[1])):
        raise ValueError("nothing ever arrives within 0 seconds; give a longer time")
    begin, end = 0, 24 * 60
    if found[3]:
        begin, end = _minute(found[3], found[4]), _minute(found[5], found[6])
    return Quiet(seconds, _days(found[2] or "daily"), begin, end)


def _minute(hours: str, minutes: str) -> int:
    if int(minutes) > 59 or int(hours) * 60 + int(minutes) > 24 * 60:
        raise ValueError
    return int(hours) * 60 + int(minutes)


def _days(text: str) -> tuple[int, ...]:
    days: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if part in _WEEK:
            days.update(_WEEK[part])
        elif dash and first in _DAYS and last in _DAYS:
            number, until = _DAYS.index(first), _DAYS.index(last)
            days.update((number + step) % 7 for step in range((until - number) % 7 + 1))
        else:
            raise ValueError
    return tuple(sorted(days))


Seconds = Annotated[
    float,
    Kind("seconds", "a time in seconds or with a unit (30s, 2m, 1h, 1d)"),
    from_text(ini.seconds),
]
Size = Annotated[
    int,
    Kind("bytes", "a number of bytes or with a suffix (10K, 64MiB, 2G: powers of 1024)"),
    from_text(ini.size),
]
Level = Annotated[
    ini.Limit,
    Kind("space", "a number of MB, a size with a suffix (500MB, 2GB), or a share (10%)"),
    from_text(ini.limit),
]
Count = Annotated[int, Kind("count", "a whole number"), from_text(ini.count)]
Port = Annotated[int, Kind("port", "a port number from 1 to 65535"), from_text(_port)]
Flag = Annotated[bool, Kind("yes or no", "yes or no"), from_text(ini.flag)]


def _marker(text: str) -> str:
    if text.count("{name}") != 1 or text == "{name}":
        raise ValueError
    return ini.file_name(text)


Marker = Annotated[
    str, Kind("pattern", "a file name with {name} in it once, such as {name}.done"), from_text(_marker)
]
Patterns = Annotated[
    tuple[str, ...],
    Kind("patterns", "patterns of names such as *.tmp, parted by blanks or commas"),
    from_text(_patterns),
]
RsyncCommand = Annotated[
    tuple[str, ...], Kind("command", "a program and its options, as in a shell"), from_text(_rsync_command)
]
RsyncOptions = Annotated[
    tuple[str, ...], Kind("options", "options of rsync, as in a shell"), from_text(_rsync_options)
]
TargetPath = Annotated[
    Path, Kind("path at the target", "an absolute path; for rsync_native MODULE/PATH"), from_text(_target_path)
]
AbsolutePath = Annotated[Path, Kind("absolute path", "an absolute path"), from_text(ini.absolute_path)]
HomePath = Annotated[Path, Kind("absolute path or ~/path", "an absolute path or ~/path"), from_text(ini.home_path)]
FileName = Annotated[str, Kind("file name", "a file name without /"), from_text(ini.file_name)]
PathBelow = Annotated[
    str, Kind("path in the spool", "a path below the spool, without dot-names"), from_text(ini.path_below)
]
Secret = Annotated[SecretStr, Kind("secret", "one line of UTF-8 text"), from_text(ini.line)]
Names = Annotated[tuple[str, ...], Kind("names", "names parted by blanks or commas"), from_text(ini.words)]
StreamName = Annotated[
    str,
    Kind("name", "at most 64 letters, digits and . _ -, not beginning with a dot"),
    from_text(_stream_name),
]
Host = Annotated[str, Kind("host", "the name or the address of a host"), from_text(_host)]
User = Annotated[str, Kind("user name", "the name of a user"), from_text(_user)]
Addresses = Annotated[
    tuple[str, ...],
    Kind("addresses", "addresses of mail, parted by blanks or commas"),
    from_text(_addresses),
]
Sender = Annotated[str, Kind("address", "an address of mail, or NAME <address>"), from_text(_sender)]
Smarthost = Annotated[str, Kind("host", f"the name or the address of a host, or {SENDMAIL}"), from_text(_smarthost)]
Line = Annotated[str, Kind("text", "one line of text"), from_text(ini.line)]
Command = Annotated[
    tuple[str, ...], Kind("command", "a program and its arguments, as in a shell"), from_text(_shell_words)
]
QuietTime = Annotated[
    Quiet,
    Kind("time and timetable", "a time, then days and hours if not all, such as 2h weekdays 06:00-20:00"),
    from_text(_quiet),
]
Protocol = Annotated[str, Kind("transport", "the name of a transport", BUILT_IN), from_text(_transfer_protocol)]
Mode = Annotated[Literal["move", "mirror"], Kind("one of", "one of move, mirror", ("move", "mirror"))]
Checksum = Annotated[
    str,
    Kind("one of", f"one of {', '.join(ALGORITHMS)}", tuple(ALGORITHMS)),
    from_text(_checksum),
]
LEVELS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}
_Level = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
LogLevel = Annotated[_Level, from_text(_log_level)]
Threshold = Annotated[_Level | None, Kind("one of", f"one of {', '.join(LEVELS)}"), from_text(_log_level)]
