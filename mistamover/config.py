"""The configuration: every option declared once, INI files made settings, and what the options say.

The section classes are the declarations. Parsing, the samples in ``conf/`` and the page in ``docs/`` come
from them; ``python -m mistamover.config sample-global|sample-stream|reference`` prints the latter three.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
)

from mistamover import ini
from mistamover.digest import ALGORITHMS
from mistamover.errors import ConfigError
from mistamover.ini import Document, Entry, Finding, Key, Kind, Place, from_text, shown
from mistamover.unit import OWN_PLACES

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

BUILT_IN = ("local", "sftp")
ENTRY_POINTS = "mistamover.transports"
SYSTEM_GLOBAL = Path("/etc/mistamover/global.ini")
_ENVIRONMENT = "CONFIG__"


# What an option's text may be


def _transfer_protocol(text: str) -> str:
    if text in BUILT_IN:
        return text
    from importlib.metadata import entry_points  # reads the metadata of every installed package

    known = [*BUILT_IN, *sorted(entry_points(group=ENTRY_POINTS).names)]
    if text not in known:
        raise ValueError(f"{shown(text)} is no transport here; give one of {', '.join(known)}")
    return text


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
    if text in OWN_PLACES:
        raise ValueError(f"{shown(text)} is what mistamover calls a place of its own; give another name")
    return text


def _host(text: str) -> str:
    if "@" in text:  # not quoted: it may be USER:PASSWORD@HOST
        raise ValueError("holds a user; give the host alone and put the user in [sftp] username")
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
        wrong = f"{shown(text)} is no IPv6 address; give the host alone and put a port in [sftp] port"
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


def _patterns(text: str) -> tuple[str, ...]:
    patterns = ini.words(text)
    if "/" in text:
        raise ValueError(f"{shown(text)} holds a /; give patterns of names, not of paths")
    return patterns


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
Count = Annotated[int, Kind("count", "a whole number"), from_text(ini.count)]
Port = Annotated[int, Kind("port", "a port number from 1 to 65535"), from_text(_port)]
Flag = Annotated[bool, Kind("yes or no", "yes or no"), from_text(ini.flag)]
Patterns = Annotated[
    tuple[str, ...],
    Kind("patterns", "patterns of names such as *.tmp, parted by blanks or commas"),
    from_text(_patterns),
]
AbsolutePath = Annotated[Path, Kind("absolute path", "an absolute path"), from_text(ini.absolute_path)]
HomePath = Annotated[Path, Kind("absolute path or ~/path", "an absolute path or ~/path"), from_text(ini.home_path)]
FileName = Annotated[str, Kind("file name", "a file name without /"), from_text(ini.file_name)]
Secret = Annotated[SecretStr, Kind("secret", "one line of UTF-8 text"), from_text(ini.line)]
StreamName = Annotated[
    str,
    Kind("name", "at most 64 letters, digits and . _ -, not beginning with a dot"),
    from_text(_stream_name),
]
Host = Annotated[str, Kind("host", "the name or the address of a host"), from_text(_host)]
User = Annotated[str, Kind("user name", "the name of a user"), from_text(_user)]
Protocol = Annotated[str, Kind("transport", "the name of a transport", BUILT_IN), from_text(_transfer_protocol)]
Checksum = Annotated[
    str,
    Kind("one of", f"one of {', '.join(ALGORITHMS)}", tuple(ALGORITHMS)),
    from_text(_checksum),
]


# The options


_MODEL = ConfigDict(
    frozen=True,
    extra="forbid",
    hide_input_in_errors=True,  # they may be secrets
    defer_build=True,  # else each section would be built twice, once for itself and once for Settings
)


class Section(BaseModel):
    """One section of the configuration; its fields are its options."""

    model_config = _MODEL

    @field_validator("*", mode="wrap")
    @classmethod
    def _note(cls, value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        """Note each good value, so that the checks on several options can go on where another is bad."""
        result = handler(value)
        if info.context is not None:
            info.context[cls, info.field_name] = result
        return result


class Global(Section):
    """What all streams of this host share."""

    state_dir: AbsolutePath = Field(
        description="Where each stream keeps its ledger, in a directory of its name.",
        json_schema_extra={
            "derived": "/var/lib/mistamover for root, else $XDG_STATE_HOME/mistamover or ~/.local/state/mistamover"
        },
    )
    base_data_dir: AbsolutePath | None = Field(
        None, description="The directory in which streams without a directory of their own have their spools."
    )
    general_poll_interval: Seconds = Field(
        3.0, gt=0, description="How long run waits between two passes over a spool."
    )


class DataStream(Section):
    """What a stream moves."""

    name: StreamName = Field(
        description="The stream's name: in messages, and of its directories in state_dir and at the target.",
        json_schema_extra={"derived": "the stream file's name without .ini and without ds_ before it"},
    )
    directory: AbsolutePath = Field(
        description="The spool: the directory in which units appear.",
        examples=["/data/outgoing"],
        json_schema_extra={
            "derived": "$(global:base_data_dir)/$(data_stream:name) where that is set, else compulsory"
        },
    )
    settle_time: Seconds = Field(5.0, description="A unit is taken when it has not changed for this long.")
    ignore: Patterns = Field(
        ("*.tmp", "*.part", "*.partial", "*.filepart", "*.swp", "*~"),
        description="Files and directories of such names are no units; dot-names never are. A lone comma: none.",
    )
    order: Literal["oldest", "newest", "smallest", "largest"] = Field(
        "oldest", description="Which of the settled units go first."
    )


class Incoming(Section):
    """What may hold a stream on the near side."""

    stop_file: FileName = Field(
        ".stop", description="While a file of this name is in the spool, the stream is paused."
    )


class Outgoing(Section):
    """Where units go, how they are proven there, and what happens when that fails."""

    transfer_protocol: Protocol = Field(
        description="How the target is reached; packages that add transports add their names.",
        examples=["sftp"],
    )
    transfer_mode: Literal["move", "mirror"] = Field(
        "move",
        description="move removes a source after its delivery; mirror keeps it and sends what changed.",
    )
    target_host: Host | None = Field(
        None,
        description="The host that receives the units; compulsory for sftp.",
        examples=["archive.example.org"],
    )
    target_dir: AbsolutePath = Field(
        description="The directory at the target under which the units get their final names.",
        examples=["/data/incoming"],
    )
    create_target: Flag = Field(
        False,
        description="Make target_dir where it is missing. With no, an unmounted disk is not mistaken for it.",
    )
    retry_count: Count = Field(
        3, description="How often a unit may fail by its own fault until it is put in quarantine."
    )
    retry_interval: Seconds = Field(
        60.0, description="How long a failed unit waits for its next try; doubles with each failure."
    )
    existing: Literal["same-or-refuse", "replace"] = Field(
        "same-or-refuse",
        description="What to do with another file of the name at the target: keep it and refuse the unit, "
        "or replace it. Equal content counts as delivered. A mirror replaces what it delivered itself.",
    )
    verify: Literal["auto", "digest", "readback", "size", "none"] = Field(
        "auto",
        description="The proof that a unit arrived: digest is made at the far side, readback reads all bytes "
        "again; auto takes the stronger one there is, never less. size and none prove no content.",
    )
    checksum: Checksum = Field("sha256", description="The digest of the proof and of the ledger.")
    lanes: Count = Field(4, ge=1, le=32, description="How many connections to the target work at the same time.")
    preserve_mode: Flag = Field(False, description="Give files at the target the permissions of their sources.")
    stop_file: FileName = Field(
        ".stop", description="While a file of this name is in target_dir, the stream is paused."
    )
    stop_file_poll_interval: Seconds = Field(
        600.0, gt=0, description="How long a stream that the target paused waits until it looks again."
    )
    stop_timeout: Seconds = Field(30.0, description="How long a stop waits for units that are on their way.")


class Sftp(Section):
    """How to log in where transfer_protocol is sftp. Prefer keys to passwords."""

    connector: Literal["auto", "openssh", "paramiko"] = Field(
        "auto",
        description="What carries the connection: the installed ssh with its own configuration, or paramiko; "
        "auto takes ssh unless a password is set or there is no ssh.",
    )
    port: Port | None = Field(None, description="The port of the SSH server; without it, that of ssh.")
    username: User | None = Field(
        None, description="The user to log in as; without it, that of ssh's configuration or our own."
    )
    key_file: HomePath | None = Field(
        None, description="The private key to log in with; without it, the agent and ssh's usual keys."
    )
    known_hosts: HomePath | None = Field(
        None, description="The file of host keys that are trusted; without it, those of ssh."
    )
    password: Secret | None = Field(
        None, description="The password to log in with. The file must be readable by its owner only."
    )
    password_file: HomePath | None = Field(
        None, description="A file with the password in its first line, readable by its owner only."
    )
    connect_timeout: Seconds = Field(15.0, gt=0, description="How long a connection and log-in may take.")
    stall_timeout: Seconds = Field(
        60.0, gt=0, description="A connection on which nothing moves for this long is given up."
    )


class Logging(Section):
    """What is written down for people."""

    base_log_dir: AbsolutePath | None = Field(
        None, description="The directory for log files, which must exist; without it, none are written."
    )
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], from_text(str.upper)] = Field(
        "INFO", description="The least important messages that are written; in either case."
    )


class Settings(BaseModel):
    """All options of one stream, with their effective values."""

    model_config = _MODEL

    path: Path
    global_: Global = Field(alias="global")
    data_stream: DataStream
    incoming: Incoming
    outgoing: Outgoing
    sftp: Sftp
    logging: Logging

    @property
    def name(self) -> str:
        """The stream's name."""
        return self.data_stream.name


SECTIONS: dict[str, type[Section]] = {
    info.alias or name: info.annotation
    for name, info in Settings.model_fields.items()
    if isinstance(info.annotation, type) and issubclass(info.annotation, Section)
}
OPTIONS: dict[Key, FieldInfo] = {
    (section, option): info for section, model in SECTIONS.items() for option, info in model.model_fields.items()
}


SECRETS = frozenset(key for key, info in OPTIONS.items() if "SecretStr" in repr(info.annotation))
_BASE = ("global", "base_data_dir")
_SPOOL = ("data_stream", "directory")
_BOUNDS = (("gt", "above %g"), ("ge", "from %g"), ("le", "to %g"))


def _kind(info: FieldInfo) -> Kind:
    """Return what an option's text may be, with the words or numbers it is bound to."""
    if get_origin(info.annotation) is Literal:
        choices = get_args(info.annotation)
        return Kind("one of", f"one of {', '.join(choices)}", choices)
    nested = [one for part in get_args(info.annotation) for one in getattr(part, "__metadata__", ())]
    kind = next(one for one in (*info.metadata, *nested) if isinstance(one, Kind))
    bounds = [text % getattr(one, name) for name, text in _BOUNDS for one in info.metadata if hasattr(one, name)]
    return Kind(kind.label, ", ".join(filter(None, [kind.right, " ".join(bounds)])), kind.choices)


# Loading


def find_global(explicit: Path | None) -> Path | None:
    """Return the global file to use: the given one, that of the system or of a checkout, or none."""
    if explicit is not None:
        try:
            ini.read_text(explicit)
        except ini.UnusableError as error:
            finding = Finding(Place(str(explicit), error.line), str(error))
            raise ConfigError([str(finding)]) from None
        return explicit
    top = Path(__file__).resolve().parent.parent
    checkout = top / "conf" / "global.ini"
    found = [SYSTEM_GLOBAL, checkout] if (top / "pyproject.toml").is_file() else [SYSTEM_GLOBAL]
    return next((path for path in found if os.path.exists(path)), None)


def load(stream_file: Path, global_file: Path | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Return the settings of a stream; raise ConfigError with all that is wrong in both files."""
    draft = Draft(stream_file, global_file, os.environ if environ is None else environ)
    settings = draft.settings()
    if settings is None or draft.findings:
        raise ConfigError(draft.lines())
    return settings


class Draft:
    """A configuration on its way from files to settings, with what was found to be wrong so far."""

    def __init__(self, stream_file: Path, global_file: Path | None, environ: Mapping[str, str]) -> None:
        self.stream_file = stream_file
        self.documents = [ini.read(path) for path in (stream_file, global_file) if path is not None]
        self.environ = environ
        self.readable = all(document.readable for document in self.documents)
        self.findings = [finding for document in self.documents for finding in document.findings]
        self.entries: dict[Key, Entry] = {}
        self.texts: dict[Key, str] = {}
        self.values: dict[Key, Any] = {}
        self._unusable: set[Key] = set()

    def report(self, key: Key, text: str) -> None:
        """Note that an option's effective value is wrong."""
        self.findings.append(Finding(self.place(key), text, *key))

    def wants(self, key: Key) -> bool:
        """Tell whether an option has no value, and no finding says so yet."""
        return self.values[key] is None and key not in self._unusable and key not in self.texts

    def place(self, key: Key) -> Place:
        """Return where an option was set, or where a person would set it."""
        if key in self.entries:
            return self.entries[key].place
        return Place(str(self.stream_file), self.documents[0].sections.get(key[0], 1))

    def lines(self) -> list[str]:
        """Return the findings as a person reads them: by file, then by line."""
        sources = [document.source for document in self.documents]
        ranks = {source: rank for rank, source in reversed(list(enumerate(sources)))}
        ordered = sorted(
            self.findings,
            key=lambda one: (ranks.get(one.place.source, len(ranks)), one.place.line, one.place.source),
        )
        return list(dict.fromkeys(str(finding) for finding in ordered))

    def settings(self) -> Settings | None:
        """Return the settings, or None where a finding says why there are none."""
        self._gather()
        if not self.readable:
            return None
        self._substitute()
        settings = self._validated()
        for check in CHECKS:
            check(self)
        if settings is None:
            return None
        sftp = settings.sftp.model_copy(update={"password": self.values["sftp", "password"]})
        return settings.model_copy(update={"sftp": sftp})

    def _gather(self) -> None:
        """Take the options of all sources, the strongest last."""
        for document in self.documents:
            self._note_unknown_sections(document)
        for document in reversed(self.documents):
            self._take(document.entries)
        self._take(self._from_environment())

    def _note_unknown_sections(self, document: Document) -> None:
        for section, line in document.sections.items():
            if section not in SECTIONS:
                place = Place(document.source, line)
                self.findings.append(Finding(place, _unknown_section(section), section))

    def _take(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            if entry.key in OPTIONS:
                self._take_known(entry)
            elif entry.section in SECTIONS:
                self.findings.append(entry.finding(_unknown_option(*entry.key)))
            elif not entry.place.line:
                self.findings.append(entry.finding(_unknown_section(entry.section)))

    def _take_known(self, entry: Entry) -> None:
        earlier = self.entries.get(entry.key)
        if earlier and not earlier.place.line:  # two variables whose names differ in case only
            self.findings.append(entry.finding(f"given twice, by {earlier.place} as well; keep one of them"))
        self.entries[entry.key] = entry

    def _from_environment(self) -> Iterator[Entry]:
        for variable, text in sorted(self.environ.items()):
            if variable.startswith(_ENVIRONMENT):
                section, _, option = variable.removeprefix(_ENVIRONMENT).partition("__")
                yield Entry(section, option.lower(), text, Place(variable))

    def _substitute(self) -> None:
        """Make the effective texts of all options that were set or have a derived value."""
        given = {key: entry.text for key, entry in self.entries.items()}
        for key in [key for key, text in given.items() if not text]:
            self._drop(key, "has no value; give one or remove it")
            del given[key]
        literal = {key: given.pop(key) for key in SECRETS & given.keys()}
        literal |= {key: text for key, text in self._derived().items() if key not in given}
        if _BASE in given:
            given.setdefault(_SPOOL, "$(global:base_data_dir)/$(data_stream:name)")
        defaults = {key: _as_text(info.default) for key, info in OPTIONS.items() if _has_default(info)}
        known = {key: text for key, text in (defaults | literal).items() if key not in given}
        self._expand(ini.Substitution(given, known, SECRETS, OPTIONS), [*given, *literal])

    def _derived(self) -> dict[Key, str]:
        name = self.stream_file.stem.removeprefix("ds_")
        return {("data_stream", "name"): name, ("global", "state_dir"): _state_dir(self.environ)}

    def _expand(self, substitution: ini.Substitution, keys: Iterable[Key]) -> None:
        for key in keys:
            text = substitution.value(key)
            if text is None:
                self._unusable.add(key)
            else:
                self.texts[key] = text
        for key, wrong in substitution.findings:
            self.report(key, wrong)

    def _drop(self, key: Key, text: str) -> None:
        self.report(key, text)
        self._unusable.add(key)

    def _validated(self) -> Settings | None:
        """Return the settings, or None after findings; either way the good values are in ``values``."""
        data: dict[str, Any] = {section: {} for section in SECTIONS} | {"path": self.stream_file.absolute()}
        for (section, option), text in self.texts.items():
            data[section][option] = text
        good: dict[tuple[type[Section], str], Any] = {}
        try:
            return Settings.model_validate(data, context=good)
        except ValidationError as error:
            self._report_errors(error.errors())
            return None
        finally:
            self._note_values(good)

    def _report_errors(self, errors: Iterable[ErrorDetails]) -> None:
        wrong = {(str(error["loc"][0]), str(error["loc"][1])): error for error in errors}
        if _BASE in wrong and _SPOOL not in self.entries:
            wrong.pop(_SPOOL, None)  # it is wrong only because its base is
        for key, error in wrong.items():
            if key not in self._unusable:
                self.report(key, _wrong(key, error, self.texts.get(key, "")))

    def _note_values(self, good: Mapping[tuple[type[Section], str], Any]) -> None:
        for (section, option), info in OPTIONS.items():
            value = good.get((SECTIONS[section], option))
            if value is None and (section, option) not in self.texts and not info.is_required():
                value = info.default
            self.values[section, option] = value


def _state_dir(environ: Mapping[str, str]) -> str:
    if os.geteuid() == 0:
        return "/var/lib/mistamover"
    base = environ.get("XDG_STATE_HOME", "")
    home = environ.get("HOME") or os.path.expanduser("~")
    return os.path.join(base if base.startswith("/") else f"{home}/.local/state", "mistamover")


def _has_default(info: FieldInfo) -> bool:
    return not info.is_required() and info.default is not None


def _as_text(default: object) -> str:
    """Return a default as a person would write it."""
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, float):
        return f"{default:g}"
    return " ".join(default) if isinstance(default, tuple) else str(default)


def _wrong(key: Key, error: ErrorDetails, text: str) -> str:
    kind = _kind(OPTIONS[key])
    if error["type"] == "missing":
        return f"missing, but compulsory; give {kind.right}"
    if said := str(error.get("ctx", {}).get("error", "")):
        return said
    what = "the value" if key in SECRETS else shown(text)
    hint = " (comments go on lines of their own)" if re.search(r"\s[#;]", text) else ""
    return f"{what} cannot be used; give {kind.right}{hint}"


def _unknown_section(section: str) -> str:
    near = ini.nearest(section, SECTIONS)
    return f"unknown section; {f'did you mean [{near}]?' if near else 'there are ' + ', '.join(SECTIONS)}"


def _unknown_option(section: str, option: str) -> str:
    if homes := [f"[{other}]" for other, name in OPTIONS if name == option]:
        return f"unknown option of this section; did you mean {' or '.join(homes)} {option}?"
    here = [name for other, name in OPTIONS if other == section]
    if near := ini.nearest(option, here):
        return f"unknown option; did you mean {near}?"
    if near := ini.nearest(option, [name for _, name in OPTIONS]):
        home = next(other for other, name in OPTIONS if name == near)
        return f"unknown option; did you mean [{home}] {near}?"
    return f"unknown option; this section has {', '.join(here)}"


# What no option shows alone


def _check_host(draft: Draft) -> None:
    key = "outgoing", "target_host"
    if _uses_sftp(draft) and draft.wants(key):
        draft.report(key, "missing, but compulsory for sftp; give the name or the address of a host")


def _check_places(draft: Draft) -> None:
    """Find directories that lie in each other, where what is written would be moved again."""
    spool = draft.values[_SPOOL]
    if spool is None:
        return
    for key in (("global", "state_dir"), ("logging", "base_log_dir")):
        if (path := draft.values[key]) and _lies_in(path, spool):
            draft.report(key, f"lies in the spool {shown(str(spool))}; give a directory outside of it")
    key = "outgoing", "target_dir"
    target = draft.values[key]
    if target is None or draft.values["outgoing", "transfer_protocol"] != "local":
        return
    if _lies_in(target, spool):
        same = _lies_in(spool, target)
        where = "is the spool" if same else "lies in the spool"
        draft.report(key, f"{where} {shown(str(spool))}; give a directory outside of it")
    elif _lies_in(spool, target):
        draft.report(key, f"holds the spool {shown(str(spool))}; give a directory that does not")


def _lies_in(inner: Path, outer: Path) -> bool:
    """Tell whether a directory is another one or below it, whatever links or bind mounts lead there."""
    inner, outer = Path(os.path.realpath(inner)), Path(os.path.realpath(outer))
    identity = _identity(outer)
    above = (inner, *inner.parents)
    return outer in above or (identity is not None and any(_identity(path) == identity for path in above))


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _check_log_dir(draft: Draft) -> None:
    key = "logging", "base_log_dir"
    path = draft.values[key]
    if path is not None and not os.path.isdir(path):
        draft.report(key, f"{shown(str(path))} is no directory; make it or give another")


def _check_modes(draft: Draft) -> None:
    for document in draft.documents:
        for entry in document.entries:
            if entry.key in SECRETS and document.mode & 0o077:
                draft.findings.append(entry.finding(_too_open(document.source, document.mode)))


def _too_open(path: object, mode: int) -> str:
    return f"group or others may use the file (mode {mode:04o}), which holds a secret; {_chmod(path)}"


def _chmod(path: object) -> str:
    return f"chmod 600 {ini.plain(shlex.quote(str(path)))}"


def _uses_sftp(draft: Draft) -> bool:
    return bool(draft.values["outgoing", "transfer_protocol"] == "sftp")


def _check_log_in(draft: Draft) -> None:
    """Find log-ins that exclude each other."""
    if not _uses_sftp(draft):
        return
    given = [name for name in ("password", "password_file") if draft.values["sftp", name] is not None]
    if len(given) == 2:
        draft.report(("sftp", "password_file"), "password is set as well; give one of them")
    if given and draft.values["sftp", "connector"] == "openssh":
        text = f"openssh takes no {given[0]}; give a key_file, or connector = auto or paramiko"
        draft.report(("sftp", "connector"), text)


def _check_key_files(draft: Draft) -> None:
    if not _uses_sftp(draft):
        return
    for option in ("key_file", "known_hosts"):
        path = draft.values["sftp", option]
        if path is not None and not os.path.isfile(path):
            draft.report(("sftp", option), f"there is no file {shown(str(path))}; give one that exists")
        elif path is not None and option == "key_file" and (mode := _mode(path)) & 0o077:
            draft.report(("sftp", option), _too_open(path, mode))


def _mode(path: Path) -> int:
    try:
        return stat.S_IMODE(os.stat(path).st_mode)
    except OSError:  # gone meanwhile: the log-in will say so
        return 0


def _check_password_file(draft: Draft) -> None:
    """Take the password from its file."""
    key = "sftp", "password_file"
    path = draft.values[key]
    if path is None or not _uses_sftp(draft):
        return
    try:
        text, mode = ini.read_text(path)
    except ini.UnusableError as error:
        draft.report(key, f"{shown(str(path))} {error}")
        return
    if mode & 0o077:
        draft.report(key, _too_open(path, mode))
    password = text.split("\n", 1)[0].removesuffix("\r")
    if not password:
        draft.report(key, f"{shown(str(path))} has an empty first line; write the password there")
    elif not ini.is_line(password):
        draft.report(key, f"{shown(str(path))} has a control character in its first line; remove it")
    draft.values["sftp", "password"] = SecretStr(password)


CHECKS: tuple[Callable[[Draft], None], ...] = (
    _check_host,
    _check_places,
    _check_log_dir,
    _check_modes,
    _check_log_in,
    _check_key_files,
    _check_password_file,
)


# What the options say of themselves


def sample_global() -> str:
    """Return a global file with every option it is meant for, all commented out."""
    return _sample(_GLOBAL_HEAD, ("global", "logging"))


def sample_stream() -> str:
    """Return a stream file with every option of a stream; what has to be edited is set."""
    return _sample(_STREAM_HEAD, ("data_stream", "incoming", "outgoing", "sftp"))


def _sample(head: str, sections: Iterable[str]) -> str:
    return "\n".join([head, *(_sample_section(section) for section in sections)])


def _sample_section(section: str) -> str:
    options = SECTIONS[section].model_fields.items()
    parts = [_comment(_doc(section)), f"[{section}]", ""]
    for option, info in options:
        parts += [
            _comment(info.description or ""),
            _comment(_range_and_default(info)),
            _line(option, info),
            "",
        ]
    return "\n".join(parts)


def _comment(text: str) -> str:
    return textwrap.fill(text, 100, initial_indent="# ", subsequent_indent="# ")


def _line(option: str, info: FieldInfo) -> str:
    if info.examples:
        return f"{option} = {info.examples[0]}"
    return f"#{option} = {_as_text(info.default) if _has_default(info) else ''}".rstrip()


def _range_and_default(info: FieldInfo) -> str:
    return f"{_allowed(info)}. {_default(info)}."


def _allowed(info: FieldInfo) -> str:
    right = _kind(info).right
    return right[0].upper() + right[1:]


def _default(info: FieldInfo, quote: str = "") -> str:
    """Say what holds where an option is not set."""
    extra = info.json_schema_extra
    if isinstance(extra, dict):
        derived = str(extra["derived"])
        return f"Default: {_rst(derived) if quote else derived}"
    if _has_default(info):
        return f"Default: {quote}{_as_text(info.default)}{quote}"
    return "Compulsory" if info.is_required() else "No default"


def _doc(section: str) -> str:
    return SECTIONS[section].__doc__ or ""


def reference() -> str:
    """Return the reference page of the configuration."""
    return "\n".join([_REFERENCE_HEAD, *(_reference_section(section) for section in SECTIONS)])


def _reference_section(section: str) -> str:
    title = f"[{section}]"
    parts = [title, "-" * len(title), "", _doc(section), ""]
    for option, info in SECTIONS[section].model_fields.items():
        help_text = textwrap.fill(info.description or "", 106, break_on_hyphens=False)
        text = f"{_rst(help_text)}\n\n{_rst(_allowed(info))}. {_default(info, '``')}."
        parts += [f"``{option}``", textwrap.indent(text, "    "), ""]
    return "\n".join(parts)


def _rst(text: str) -> str:
    return re.sub(r"([*`|_\\])", r"\\\1", text)


_GLOBAL_HEAD = """\
# MiStaMover: what all streams of this host share. Generated by "make docs".
#
# Install as /etc/mistamover/global.ini, or give it by --config. Any option of a stream file may stand here
# as well and then holds for every stream that does not set it. Comments stand on lines of their own.
# docs/configuration.rst says more.
"""

_STREAM_HEAD = """\
# MiStaMover: one stream, what it moves and where to. Generated by "make docs".
#
# Edit the lines that are not commented out, then try:
#     mistamover check THIS_FILE --connect
#     mistamover run --once THIS_FILE
# Comments stand on lines of their own. docs/configuration.rst says more.
"""

_REFERENCE_HEAD = """\
Configuration
=============

.. Generated by "make docs" from mistamover/config.py; edit there.

A stream is one INI file, and that file alone is enough::

    [data_stream]
    directory = /data/outgoing

    [outgoing]
    transfer_protocol = sftp
    target_host = archive.example.org
    target_dir = /data/incoming

    [sftp]
    username = mover
    key_file = ~/.ssh/mover

``mistamover run --once STREAM.ini`` moves what is in ``/data/outgoing``, and ``mistamover check
STREAM.ini`` says what is wrong with the file, if anything. ``conf/stream.ini`` and ``conf/global.ini``
are samples with every option.

Files
-----

What streams share may stand in a global file: the one given by ``--config``, else
``/etc/mistamover/global.ini``, else ``conf/global.ini`` of a checkout, else none. Both files know the
same sections and options.

An option's value is, the strongest first:

1. the environment variable ``CONFIG__section__option``, for instance ``CONFIG__outgoing__lanes=8``
2. the stream file's
3. the global file's
4. the default

The files are UTF-8 text of at most 1 MiB. An option is written ``option = value`` or ``option: value``;
the names of options may be in either case, those of sections are in lower case. Lines that begin with
``#`` or ``;`` are comments; behind a value these characters are part of it. A line that is indented
deeper than its option continues the value.

All that is wrong in both files is reported at once, nothing is started, and the exit code is 2::

    streams/ds_images.ini:9: [outgoing] lans: unknown option; did you mean lanes?

Substitution
------------

``$(section:option)`` in a value is replaced by the value that option has after all of the above::

    target_dir = /archive/$(data_stream:name)

Nothing else is replaced: ``50%off``, ``$HOME``, ``${HOME}`` and ``%(name)s`` are text. There is no way
to write a literal ``$(a:b)``, except in a password: secrets are taken as they stand, and may not be
copied into other options.

Secrets
-------

Prefer keys: let the target's ``authorized_keys`` hold a key that is used for nothing else, and give
``[sftp] key_file``, or nothing where an agent or ``~/.ssh/config`` knows the key. Where only a password
will do, write it into a file of its own and give ``[sftp] password_file``. A file that holds a password
or a private key must be closed to group and others (``chmod 600 FILE``), or nothing starts; that goes
for a stream or global file with ``[sftp] password`` in it as well. A password in the environment can be
read by root and by the user's own processes.

Units
-----

Times are in seconds, or have one of the suffixes ``s``, ``m``, ``h``, ``d``: ``90``, ``0.5``, ``2m``.
Yes and no may be written ``yes``, ``true``, ``on``, ``1`` and ``no``, ``false``, ``off``, ``0``. Lists
are parted by blanks or commas. Directories are absolute; only ``key_file``, ``known_hosts`` and
``password_file`` may begin with ``~/``.
"""

_PAGES = {"sample-global": sample_global, "sample-stream": sample_stream, "reference": reference}


def main() -> None:
    """Print the page that the first argument names."""
    sys.stdout.write(_PAGES[sys.argv[1]]())


if __name__ == "__main__":
    main()
