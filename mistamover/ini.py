"""Reading INI: each option with the line it stands on, ``$(section:option)`` substituted, texts made values.

Nothing here knows a single option: ``config.py`` declares them.
"""

from __future__ import annotations

import configparser
import io
import os
import re
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from pydantic import BeforeValidator

Key = tuple[str, str]
"""A section and an option of it."""

LARGEST_FILE = 1 << 20
LONGEST_VALUE = 1 << 16
LONGEST_TIME = 3650 * 86400
_TOP = "\0top"
_OPTION = re.compile(r"\s*[^\s=:][^=:]*[=:]")
_REFERENCE = re.compile(r"\$\(([^():\n]*:[^()\n]*|)\)")


# What is wrong, and where


def plain(text: str) -> str:
    """Return a text for one line of a message: what does not print is escaped."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


LONGEST_SHOWN = 240
"""Characters of a value in a message; most paths are shorter."""


def shown(text: str) -> str:
    """Return a value as a message quotes it."""
    return repr(_short(text))


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that the given one was probably meant to be."""
    from difflib import get_close_matches  # only for those who mistyped

    return next(iter(get_close_matches(word[:80].lower(), list(known), 1)), None)


@dataclass(frozen=True)
class Place:
    """Where something was written: a line of a file, or (line 0) an environment variable."""

    source: str
    line: int = 0

    def __str__(self) -> str:
        return f"{plain(self.source)}:{self.line}" if self.line else plain(self.source)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, where it is, and what would be right.

    A text that takes long to find may be given as a function, which is called for those that are told.
    """

    place: Place
    text: str | Callable[[], str]
    section: str = ""
    option: str = ""

    def __str__(self) -> str:
        parts = [f"[{plain(_short(self.section))}]"] if self.section else []
        parts += [plain(_short(self.option))] if self.option else []
        subject = f"{' '.join(parts)}: " if parts else ""
        return f"{self.place}: {subject}{self.text if isinstance(self.text, str) else self.text()}"


MOST_FINDINGS = 100
"""Of each file, that are told: more than anybody mends before the next look."""


def told(findings: Iterable[Finding]) -> Iterator[str]:
    """Yield findings, which are in order, as lines: the first ones of each file, and how many more there are."""
    for source, group in groupby(findings, key=lambda one: one.place.source):
        lines = list(group)
        yield from map(str, lines[:MOST_FINDINGS])
        if len(lines) > MOST_FINDINGS:
            yield f"{plain(source)}: and {len(lines) - MOST_FINDINGS:,} more"


# Files


class UnusableError(Exception):
    """A file that cannot be taken in: why, and at which line of it."""

    def __init__(self, text: str, line: int = 1) -> None:
        super().__init__(text)
        self.line = line


def read_text(path: str | Path) -> tuple[str, os.stat_result]:
    """Return the text of a small file, and whose it was and under which permissions when it was read."""
    data, status = _read_bytes(path)
    if len(data) > LARGEST_FILE:
        raise UnusableError("is larger than 1 MiB; give a configuration file")
    data = data.removeprefix(b"\xef\xbb\xbf")
    if b"\0" in data:
        line = data.count(b"\n", 0, data.index(b"\0")) + 1
        raise UnusableError("holds a NUL byte; give a text file in UTF-8", line)
    try:
        return data.decode(), status
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        text = f"byte {error.start} (0x{data[error.start]:02x}) is not UTF-8; save the file as UTF-8"
    raise UnusableError(text, line)


def first_line(path: str | Path) -> tuple[str, int]:
    """Return the first line of a small file, as one with a password, and the permissions it was read under."""
    text, status = read_text(path)
    return text.split("\n", 1)[0].removesuffix("\r"), stat.S_IMODE(status.st_mode)


def _read_bytes(path: str | Path) -> tuple[bytes, os.stat_result]:
    try:
        # O_NONBLOCK: a FIFO must not make us wait for its writer
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UnusableError("is not a regular file; give the path of a file")
            return file.read(LARGEST_FILE + 4), status
    except OSError as error:
        reason = (error.strerror or "error").lower()
    except ValueError:
        reason = "no possible path"
    raise UnusableError(f"cannot be read ({reason}); give the path of a readable file")


@dataclass(frozen=True)
class Entry:
    """One option as it was written."""

    section: str
    option: str
    text: str
    place: Place

    @property
    def key(self) -> Key:
        """The option's section and name."""
        return self.section, self.option

    def finding(self, text: str | Callable[[], str]) -> Finding:
        """Return a finding about this option."""
        return Finding(self.place, text, self.section, self.option)


@dataclass
class Document:
    """An INI file: its options in order, the line on which each section begins, and what is wrong with it."""

    source: str
    status: os.stat_result | None = None
    """Of the file that was read; None where it is not there yet, and will be its owner's alone."""
    readable: bool = True
    entries: list[Entry] = field(default_factory=list)
    sections: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def mode(self) -> int:
        """The permissions of the file."""
        return stat.S_IMODE(self.status.st_mode) if self.status else 0o600

    def report(self, line: int, text: str, section: str = "") -> None:
        """Note something wrong that belongs to no option."""
        self.findings.append(Finding(Place(self.source, line), text, section))


class _Parser(configparser.RawConfigParser):
    """Names each option by its line as well, so that it neither hides another nor loses its place.

    It takes every line for an option: its own list of those that are none grows with the square of their number.
    """

    OPTCRE = re.compile(r"(?P<option>[^=:]+|[=:])(?P<vi>[=:]?)\s*(?P<value>.*)$")
    """Also without the doubled loop of configparser's own, which takes hours for a line of many blanks."""
    line = 0

    def __init__(self) -> None:
        super().__init__(strict=False, default_section="\0none", empty_lines_in_values=False)

    def optionxform(self, optionstr: str) -> str:
        """Return the name under which the option of the line that was just read is kept."""
        return f"{self.line} {optionstr.lower()}"

    def counted(self, text: str) -> Iterator[str]:
        """Yield the lines, below a section that takes in what stands above the first one."""
        yield f"[{_TOP}]\n"
        for self.line, line in enumerate(io.StringIO(text, newline=None), start=1):
            yield line


def read(path: Path) -> Document:
    """Read an INI file; what is wrong with it is found in the document."""
    document = Document(str(path))
    try:
        text, document.status = read_text(path)
    except UnusableError as error:
        document.readable = False
        document.report(error.line, str(error))
        return document
    _parse(document, text)
    return document


def read_as(path: Path, text: str) -> Document:
    """Read a text as that of an INI file which is not there yet, and will be its owner's alone."""
    document = Document(str(path))
    _parse(document, text)
    return document


def _parse(document: Document, text: str) -> None:
    parser = _Parser()
    parser.read_file(parser.counted(text))
    lines = list(io.StringIO(text, newline=None))
    _note_sections(document, lines, set(parser.sections()))
    for section in parser.sections():
        for tagged, value in parser.items(section, raw=True):
            number, _, option = tagged.partition(" ")
            if _OPTION.match(lines[int(number) - 1]):
                document.entries.append(Entry(section, option, value, Place(document.source, int(number))))
            else:
                document.report(int(number), "is no option; write option = value, [section] or # comment")
    _judge_entries(document)


def _note_sections(document: Document, lines: Iterable[str], known: Collection[str]) -> None:
    for number, line in enumerate(lines, start=1):
        header = _Parser.SECTCRE.match(line.strip())
        if not header or header["header"] not in known:
            continue
        section = header["header"]
        if line.strip()[header.end() :]:
            document.report(number, "text behind the section's name; begin a new line", section)
        first = document.sections.setdefault(section, number)
        if first != number:
            document.report(number, f"section given twice, first in line {first}; put both together", section)


def _judge_entries(document: Document) -> None:
    """Drop the options that cannot count, each with a finding."""
    first: dict[Key, Entry] = {}
    for entry in sorted(document.entries, key=lambda entry: entry.place.line):
        line = entry.place.line
        if entry.section == _TOP:
            document.report(line, "stands above the first section; put a [section] line above it")
        elif (earlier := first.setdefault(entry.key, entry)).text != entry.text:
            text = f"given twice, first in line {earlier.place.line}; keep one of them"
            document.findings.append(entry.finding(text))
    document.entries = list(first.values())


# $(section:option)


class Substitution:
    """Replaces ``$(section:option)`` by the effective text of that option; all other text is left alone.

    ``texts`` are substituted in, ``literal`` are the texts that are taken as they stand, ``secret`` those
    that may not be copied, ``known`` all options that there are.
    """

    def __init__(
        self,
        texts: Mapping[Key, str],
        literal: Mapping[Key, str],
        secret: Collection[Key],
        known: Collection[Key],
    ) -> None:
        self._texts = texts
        self._secret = secret
        self._known = known
        self._done: dict[Key, str | None] = dict(literal)
        self.findings: list[tuple[Key, str]] = []

    def value(self, key: Key, chain: tuple[Key, ...] = ()) -> str | None:
        """Return an option's text, or None where it has none or a finding says why it cannot be made."""
        if key not in self._done:
            self._done[key] = self._expanded((*chain, key)) if key in self._texts else None
        return self._done[key]

    def _expanded(self, chain: tuple[Key, ...]) -> str | None:
        pieces: list[str] = []
        left = LONGEST_VALUE
        for number, piece in enumerate(_REFERENCE.split(self._texts[chain[-1]])):
            text = self._referred(piece, chain) if number % 2 else piece
            if text is None:
                return None
            left -= len(text)
            if left < 0:
                self._blame(chain, "is longer than 64 KiB; give a shorter value")
                return None
            pieces.append(text)
        return "".join(pieces)

    def _referred(self, reference: str, chain: tuple[Key, ...]) -> str | None:
        section, _, option = (part.strip() for part in reference.partition(":"))
        key = section, option.lower()
        if wrong := self._misreferred(reference, key, chain):
            self._blame(chain, wrong)
            return None
        return self.value(key, chain)

    def _misreferred(self, reference: str, key: Key, chain: tuple[Key, ...]) -> str:
        if not all(key):
            return f"$({plain(reference)}) names nothing; write $(section:option)"
        if key in self._secret:
            return f"{_named(key)} is a secret; it may not be copied into another option"
        if key not in self._known:
            return f"{_named(key)} is no option; {self._advice(key)}"
        if key in chain:
            return _loop(chain[chain.index(key) :])
        if key not in self._texts and key not in self._done:
            return f"{_named(key)} has no value; set it"
        return ""

    def _advice(self, key: Key) -> str:
        same = [":".join(known) for known in self._known if known[1] == key[1]]
        near = [*same, nearest(":".join(key), [":".join(known) for known in self._known])][0]
        return f"did you mean $({near})?" if near else "name one that there is"

    def _blame(self, chain: tuple[Key, ...], text: str) -> None:
        self.findings.append((chain[-1], text))


def _named(key: Key) -> str:
    return plain(f"$({key[0]}:{key[1]})")


def _loop(keys: tuple[Key, ...]) -> str:
    chain = " -> ".join(_named(key) for key in (*keys, keys[0]))
    return f"the substitution loops ({chain}); give one of them a plain value"


# Texts to values


@dataclass(frozen=True)
class Kind:
    """What the text of an option may be, for people: a word with the unit, and what would be right."""

    label: str
    right: str
    choices: tuple[str, ...] = ()


def from_text(parse: Callable[[str], object]) -> BeforeValidator:
    """Let ``parse`` make a value of a text; what is no text is a value already.

    ``parse`` raises ValueError: with a text if it has something to say, else the option's kind says it.
    """
    return BeforeValidator(lambda value: parse(value) if isinstance(value, str) else value)


_FLAGS = {
    word: value for words, value in (("yes true on 1", True), ("no false off 0", False)) for word in words.split()
}
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def flag(text: str) -> bool:
    """Return what yes or no stands for."""
    if (value := _FLAGS.get(text.lower())) is None:
        raise ValueError
    return value


def count(text: str) -> int:
    """Return a whole number."""
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise ValueError
    return int(text)


def seconds(text: str) -> float:
    """Return a length of time in seconds."""
    match = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{0,12})?)\s*([smhd]?)", text)
    if not match:
        raise ValueError
    value = float(match[1]) * _SECONDS[match[2]]
    if value > LONGEST_TIME:
        raise ValueError(f"{shown(text)} is too long; give at most 3650d")
    return value


def size(text: str) -> int:
    """Return a number of bytes; each suffix is a power of 1024."""
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{0,9})?)\s*([KMGT]?)(?:i?B)?", text, re.IGNORECASE)
    if not match:
        raise ValueError
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))


@dataclass(frozen=True)
class Limit:
    """How much is to be free: bytes, or (``is_share``) percent of the whole."""

    amount: float
    is_share: bool = False

    def __str__(self) -> str:
        return f"{self.amount:g}%" if self.is_share else f"{self.amount / 2**20:g} MB"


def limit(text: str) -> Limit:
    """Return how much is to be free: a bare number is of MB, as in 0.1.0."""
    if share := re.fullmatch(r"([0-9]{1,2}(?:\.[0-9]{1,6})?)\s*%", text):
        return Limit(float(share[1]), is_share=True)
    return Limit(size(f"{text}M" if re.fullmatch(r"[0-9.]+", text) else text))


def words(text: str) -> tuple[str, ...]:
    """Return the words of a list parted by blanks or commas."""
    return tuple(re.findall(r"[^\s,]+", text))


def is_line(text: str) -> bool:
    """Tell whether a text holds no control characters, and nothing that was no UTF-8."""
    return not re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", text)


def line(text: str) -> str:
    """Return a text that is one line of UTF-8."""
    if not is_line(text):
        raise ValueError
    return text


def absolute_path(text: str) -> Path:
    """Return an absolute path."""
    if "\n" in text or "\0" in text:
        raise ValueError("holds a line break; give the path in one line, and begin other options without indent")
    if not text.startswith("/"):
        raise ValueError(f"{shown(text)} is relative; give an absolute path, beginning with /")
    return Path(text)


def home_path(text: str) -> Path:
    """Return an absolute path, which may be given from the home directory on."""
    return absolute_path(os.path.expanduser(text) if text.startswith("~/") else text)


def path_below(text: str) -> str:
    """Return the path of a file below some directory, which has no dot-names in it."""
    parts = text.split("/")
    if any(not part or part.startswith(".") for part in parts) or not text.isprintable():
        raise ValueError
    return text


def file_name(text: str) -> str:
    """Return the name of a file without any directory."""
    if "/" in text or text in {".", ".."} or not text.isprintable() or len(os.fsencode(text)) > 255:
        raise ValueError
    return text
