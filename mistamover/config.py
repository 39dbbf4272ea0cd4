"""INI files made settings, with all that is wrong in them told at once."""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import SecretStr, ValidationError

from mistamover import ini, rsync_options
from mistamover.errors import ConfigError
from mistamover.ini import Document, Entry, Finding, Key, Place, shown
from mistamover.obsolete import OBSOLETE, OLD_SECRETS, OLD_SECTIONS, PLACEHOLDER
from mistamover.options import (
    OPTIONS,
    SECRETS,
    SECTIONS,
    PasswordLogIn,
    Section,
    ServiceSettings,
    Settings,
    as_text,
    has_default,
    kind,
)
from mistamover.processes import OPTION

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

SYSTEM_GLOBAL = Path("/etc/mistamover/global.ini")
_BASE = ("global", "base_data_dir")
_SPOOL = ("data_stream", "directory")
_BASE_INCOMING = ("global", "base_incoming_dir")
_ARRIVALS = ("incoming", "directory")
_PID_FILE = ("global", "pid_file")
_TOP = ("global", "top")
_LIST = ("global", "data_stream_list")
_MODE = ("outgoing", "transfer_mode")
_IGNORE = ("data_stream", "ignore")
_OLD_QUARANTINE = ("outgoing", "quarantine_dir")
_OLD_ZIP = ("outgoing", "always_zip")
PID_NAME = "mistamover.pid"
ROOTS_PID_FILE = f"/run/mistamover/{PID_NAME}"

_Model = TypeVar("_Model", Settings, ServiceSettings)


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


def load(
    stream_file: Path,
    global_file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    *,
    only_record: bool = False,
) -> Settings:
    """Return the settings of a stream; raise ConfigError with all that is wrong in both files.

    ``only_record``: for a command that only deals with the record; what a log-in or the log lacks is not told.
    """
    draft = Draft(stream_file, global_file, os.environ if environ is None else environ)
    settings = draft.settings(only_record=only_record)
    if settings is None or draft.findings:
        raise ConfigError(draft.lines())
    return settings


def load_service(
    global_file: Path, environ: Mapping[str, str] | None = None, *, only_place: bool = False
) -> ServiceSettings:
    """Return what the service needs of the global file; raise ConfigError with all that is wrong with that.

    What the file holds for streams is judged with each of them. ``only_place``: for a command that only has to find
    the service; what a start lacks is not told.
    """
    draft = Draft(global_file, None, os.environ if environ is None else environ)
    settings = draft.service(only_place=only_place)
    if settings is None or draft.findings:
        raise ConfigError(draft.lines())
    return settings


def judge(
    path: Path, text: str, global_file: Path | None, environ: Mapping[str, str] | None = None
) -> tuple[Settings | None, list[Finding]]:
    """Return the settings that a stream file with this text would have, and all that is wrong with it."""
    draft = Draft(path, global_file, os.environ if environ is None else environ, ini.read_as(path, text))
    return draft.settings(only_record=False), draft.findings


def judge_service(
    path: Path, text: str, environ: Mapping[str, str] | None = None
) -> tuple[ServiceSettings | None, list[Finding]]:
    """Return what the service would take of a global file with this text, and all that is wrong with it."""
    draft = Draft(path, None, os.environ if environ is None else environ, ini.read_as(path, text))
    return draft.service(only_place=False), draft.findings


def stream_files(settings: ServiceSettings) -> list[Path]:
    """Return the stream files of the service as they are now; raise ConfigError where they cannot be listed."""
    whole, listed = settings.global_.data_stream_config_dir, settings.global_.data_stream_list
    directory = whole or settings.global_.config_dir
    option = "data_stream_config_dir" if whole else "config_dir"
    what = f"{settings.path}: [global] {option}: {shown(str(directory))}"
    try:
        found = sorted(path for path in directory.iterdir() if _may_be_stream_file(path, settings.path))
        mode = stat.S_IMODE(os.stat(directory).st_mode)
    except OSError as error:
        raise ConfigError([f"{what}: {error.strerror}; make the directory, or give another"]) from error
    if mode & stat.S_IWOTH:
        wrong = f"anybody may put stream files there (mode {mode:04o})"
        raise ConfigError([f"{what}: {wrong}; {_chmod(directory, 'o-w')}"])
    if whole:
        return found
    if listed is None:
        return [path for path in found if path.suffix == ".ini"]
    return [_file_of(name, directory) for name in dict.fromkeys(listed)]


def _may_be_stream_file(path: Path, global_file: Path) -> bool:
    """Whether it is no hidden file, no editor's copy, and not the global file."""
    return (
        not path.name.startswith(".")
        and not path.name.endswith("~")
        and path.is_file()
        and not (global_file.exists() and path.samefile(global_file))
    )


def _file_of(name: str, directory: Path) -> Path:
    """The file of a stream of that name, there or not."""
    given = [directory / f"ds_{name}.ini", directory / f"{name}.ini"]
    return next((path for path in given if path.exists()), given[1])


class Draft:
    """A configuration on its way from files to settings, with what was found to be wrong so far."""

    def __init__(
        self,
        stream_file: Path,
        global_file: Path | None,
        environ: Mapping[str, str],
        document: Document | None = None,
    ) -> None:
        """``document`` stands for the stream file where that is not written yet."""
        self.stream_file = stream_file
        self.documents = [document or ini.read(stream_file), *([ini.read(global_file)] if global_file else [])]
        self.environ = environ
        self.readable = all(document.readable for document in self.documents)
        self.findings = [finding for document in self.documents for finding in document.findings]
        self.entries: dict[Key, Entry] = {}
        self.obsolete: dict[Key, Entry] = {}
        """What was given of 0.1.0's options that do nothing."""
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
        return list(dict.fromkeys(ini.told(ordered)))

    def settings(self, *, only_record: bool) -> Settings | None:
        """Return the settings, or None where a finding says why there are none."""
        self._gather()
        if not self.readable:
            return None
        self._substitute(SECTIONS)
        self._read_as_before()
        settings = self._validated(Settings, SECTIONS)
        for check in CHECKS:
            check(self)
        needed = list(self.findings)
        for check in CHECKS_TO_RUN:  # made in any case: they take the password, which is to be shown nowhere
            check(self)
        if only_record:
            self.findings = needed
        if settings is None:
            return None
        settings = settings.model_copy(update={"obsolete": tuple(sorted(self.obsolete))})
        protocol = settings.outgoing.transfer_protocol
        if not isinstance(settings.log_in, PasswordLogIn):
            return settings
        log_in = settings.log_in.model_copy(update={"password": self.values[protocol, "password"]})
        return settings.model_copy(update={protocol: log_in})

    def service(self, *, only_place: bool) -> ServiceSettings | None:
        """Return the settings of the service, or None where a finding says why there are none."""
        self._gather()
        if not self.readable:
            return None
        sections = ("global", "logging", "email", "disk_space_monitor")
        self._substitute(sections)
        settings = self._validated(ServiceSettings, sections)
        for check in () if only_place else CHECKS_OF_SERVICE:
            check(self)
        return settings and settings.model_copy(update={"obsolete": tuple(sorted(self.obsolete))})

    def _gather(self) -> None:
        """Take the options of all sources, the strongest last."""
        for document in self.documents:
            self._note_unknown_sections(document)
        for document in reversed(self.documents):
            self._take(document.entries)
        self._take(self._from_environment())

    def _note_unknown_sections(self, document: Document) -> None:
        for section, line in document.sections.items():
            if section not in SECTIONS and section not in OLD_SECTIONS:
                place = Place(document.source, line)
                self.findings.append(Finding(place, partial(_unknown_section, section), section))

    def _take(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            if entry.key in OPTIONS:
                self._take_known(entry)
            elif entry.key in OBSOLETE:
                self.obsolete[entry.key] = entry
            elif entry.section in OLD_SECTIONS - SECTIONS.keys():
                self.findings.append(entry.finding("unknown option, in 0.1.0 as well; remove it"))
            elif entry.section in SECTIONS:
                self.findings.append(entry.finding(partial(_unknown_option, *entry.key)))
            elif not entry.place.line:
                self.findings.append(entry.finding(_unknown_section(entry.section)))

    def _take_known(self, entry: Entry) -> None:
        earlier = self.entries.get(entry.key)
        if earlier and not earlier.place.line:  # two variables whose names differ in case only
            self.findings.append(entry.finding(f"given twice, by {earlier.place} as well; keep one of them"))
        self.entries[entry.key] = entry

    def _from_environment(self) -> Iterator[Entry]:
        for variable, text in sorted(self.environ.items()):
            if variable.startswith(OPTION):
                section, _, option = variable.removeprefix(OPTION).partition("__")
                yield Entry(section, option.lower(), text, Place(variable))

    def _substitute(self, sections: Collection[str]) -> None:
        """Make the effective texts of all options of these sections that were set or have a derived value."""
        given = {key: entry.text for key, entry in self.entries.items() if self._has_value(key, entry.text)}
        literal = {key: given.pop(key) for key in SECRETS & given.keys()}
        literal |= {key: text for key, text in self._derived().items() if key not in given}
        if _TOP in given:
            given.setdefault(_BASE, "$(global:top)/data")
            given.setdefault(("logging", "base_log_dir"), "$(global:top)/log")
        if _BASE in given:
            given.setdefault(_SPOOL, "$(global:base_data_dir)/$(data_stream:name)")
        if _BASE_INCOMING in given:
            given.setdefault(_ARRIVALS, "$(global:base_incoming_dir)/$(data_stream:name)")
        given.setdefault(_PID_FILE, ROOTS_PID_FILE if os.geteuid() == 0 else f"$(global:state_dir)/{PID_NAME}")
        defaults = {key: as_text(info.default) for key, info in OPTIONS.items() if has_default(info)}
        known = {key: text for key, text in (defaults | literal).items() if key not in given}
        wanted = [key for key in (*given, *literal) if key[0] in sections]
        given |= {key: entry.text for key, entry in self.obsolete.items() if entry.text}
        wanted += {_OLD_QUARANTINE} & given.keys() if "outgoing" in sections else ()
        every = {*OPTIONS, *self.obsolete}
        self._expand(ini.Substitution(given, known, SECRETS | OLD_SECRETS, every), wanted)

    def _has_value(self, key: Key, text: str) -> bool:
        """Whether an option is given: one without a value is not, where nothing else would hold instead."""
        if text == PLACEHOLDER:
            self._drop(key, f"still says {PLACEHOLDER}; give {kind(OPTIONS[key]).right}")
        elif not text and has_default(OPTIONS[key]):
            self._drop(key, "has no value; give one or remove it")
        else:
            return bool(text)
        return False

    def _read_as_before(self) -> None:
        """Have what 0.1.0 wrote elsewhere, or knew by itself, mean here what it meant there."""
        # It looked into the protocol's section, and its samples set both. To keep the sources loses nothing.
        protocol = self.texts.get(("outgoing", "transfer_protocol"), "")
        if self.texts.get((protocol, "transfer_mode")) == "mirror":
            self.texts[_MODE] = "mirror"
        is_whole = self.texts.get(("data_stream", "transfer_unit")) == "directory"
        zips = self.obsolete.get(_OLD_ZIP)
        if is_whole and zips is not None and zips.text.lower() == "true":
            del self.obsolete[_OLD_ZIP]
            self.texts.setdefault(("outgoing", "package"), "zip")
        old_quarantine = self.texts.pop(_OLD_QUARANTINE, "")
        if self.obsolete and (spool := self.texts.get(_SPOOL)):
            self._ignore(old_quarantine or f"{spool}/quarantine", spool)

    def _ignore(self, directory: str, spool: str) -> None:
        """Have a directory of the spool hold no units: what 0.1.0 set aside there was bad."""
        above, name = os.path.split(os.path.normpath(directory))
        if above == os.path.normpath(spool):
            ignored = self.texts.get(_IGNORE, as_text(OPTIONS[_IGNORE].default))
            self.texts[_IGNORE] = f"{ignored} {re.sub(r'[][*?, ]', '?', name)}"

    def _name(self) -> str:
        """The stream's name where none is given: of a file that holds everything, the one name of its list."""
        entry = self.entries.get(_LIST)
        names = entry.text.split() if entry and entry.place.source == self.documents[0].source else []
        return names[0] if len(names) == 1 else self.stream_file.stem.removeprefix("ds_")

    def _derived(self) -> dict[Key, str]:
        return {
            ("data_stream", "name"): self._name(),
            ("global", "state_dir"): _state_dir(self.environ),
            ("global", "config_dir"): str(Path(self.documents[-1].source).absolute().parent / "streams"),
        }

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

    def _validated(self, model: type[_Model], sections: Iterable[str]) -> _Model | None:
        """Return the settings, or None after findings; either way the good values are in ``values``."""
        data: dict[str, Any] = {section: {} for section in sections} | {"path": self.stream_file.absolute()}
        for (section, option), text in self.texts.items():
            data[section][option] = text
        good: dict[tuple[type[Section], str], Any] = {}
        try:
            return model.model_validate(data, context=good)
        except ValidationError as error:
            self._report_errors(error.errors())
            return None
        finally:
            self._note_values(good)

    def _report_errors(self, errors: Iterable[ErrorDetails]) -> None:
        wrong = {(str(error["loc"][0]), str(error["loc"][1])): error for error in errors}
        for base, derived in ((_BASE, _SPOOL), (_BASE_INCOMING, _ARRIVALS)):
            if base in wrong and derived not in self.entries:
                wrong.pop(derived, None)  # it is wrong only because its base is
        for key, error in wrong.items():
            if key not in self._unusable:
                self.report(key, _wrong(key, error, self.texts.get(key, "")))

    def _note_values(self, good: Mapping[tuple[type[Section], str], Any]) -> None:
        fields = {(model, info.alias or name): name for model, name, info in _fields()}
        for (section, option), info in OPTIONS.items():
            model = SECTIONS[section]
            value = good.get((model, fields[model, option]))
            if value is None and (section, option) not in self.texts and not info.is_required():
                value = info.default
            self.values[section, option] = value


def _fields() -> Iterator[tuple[type[Section], str, FieldInfo]]:
    for model in SECTIONS.values():
        yield from ((model, name, info) for name, info in model.model_fields.items())


def _state_dir(environ: Mapping[str, str]) -> str:
    if os.geteuid() == 0:
        return "/var/lib/mistamover"
    base = environ.get("XDG_STATE_HOME", "")
    home = environ.get("HOME") or os.path.expanduser("~")
    return os.path.join(base if base.startswith("/") else f"{home}/.local/state", "mistamover")


def _wrong(key: Key, error: ErrorDetails, text: str) -> str:
    right = kind(OPTIONS[key]).right
    if error["type"] == "missing":
        return f"missing, but compulsory; give {right}"
    if said := str(error.get("ctx", {}).get("error", "")):
        return said
    what = "the value" if key in SECRETS else shown(text)
    hint = " (comments go on lines of their own)" if re.search(r"\s[#;]", text) else ""
    return f"{what} cannot be used; give {right}{hint}"


def _unknown_section(section: str) -> str:
    near = ini.nearest(section, SECTIONS)
    return f"unknown section; {f'did you mean [{near}]?' if near else 'there are ' + ', '.join(SECTIONS)}"


def _unknown_option(section: str, option: str) -> str:
    if homes := [f"[{other}]" for other, name in OPTIONS if name == option]:
        either = " or ".join(filter(None, [", ".join(homes[:-1]), homes[-1]]))
        return f"unknown option of this section; did you mean {either} {option}?"
    here = [name for other, name in OPTIONS if other == section]
    if near := ini.nearest(option, here):
        return f"unknown option; did you mean {near}?"
    if near := ini.nearest(option, [name for _, name in OPTIONS]):
        home = next(other for other, name in OPTIONS if name == near)
        return f"unknown option; did you mean [{home}] {near}?"
    return f"unknown option; this section has {', '.join(here)}"


# What no option shows alone


def _protocol(draft: Draft) -> str:
    """The transport's name; empty where that is wrong."""
    return str(draft.values["outgoing", "transfer_protocol"] or "")


def _has(draft: Draft, option: str) -> bool:
    """Whether the section of the stream's protocol knows this option."""
    return (_protocol(draft), option) in OPTIONS


def _check_host(draft: Draft) -> None:
    key = "outgoing", "target_host"
    if _has(draft, "port") and draft.wants(key):
        draft.report(key, f"missing, but compulsory for {_protocol(draft)}; give the name or the address of a host")


def _check_target_dir(draft: Draft) -> None:
    """Find relative paths where they would depend on where a log-in ends; a daemon's module begins one."""
    key = "outgoing", "target_dir"
    path = draft.values[key]
    if draft.wants(key) and _protocol(draft) != "none":
        wanted = "MODULE/PATH" if _protocol(draft) == "rsync_native" else "an absolute path"
        draft.report(key, f"missing, but compulsory; give {wanted}")
    if path is not None and not path.is_absolute() and _protocol(draft) != "rsync_native":
        draft.report(key, f"{shown(str(path))} is relative; give an absolute path, beginning with /")
        draft.values[key] = None


def _check_places(draft: Draft) -> None:
    """Find directories that lie in each other, where what is written would be moved again."""
    spool = draft.values[_SPOOL]
    if spool is None:
        return
    for key in (("global", "state_dir"), ("logging", "base_log_dir"), ("outgoing", "work_dir")):
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


def _check_package(draft: Draft) -> None:
    key = "outgoing", "package"
    if draft.values[key] not in (None, "none") and draft.values["data_stream", "transfer_unit"] == "file":
        draft.report(key, "packages directories; set [data_stream] transfer_unit = directory as well")


def _check_arrivals(draft: Draft) -> None:
    """Find what a stream that receives lacks, and arrivals that would be moved, or sent to where they came from."""
    required = "incoming", "require_arrival_monitor"
    if not draft.values[required]:
        if _protocol(draft) == "none":
            draft.report(required, "a stream with transfer_protocol = none only receives; set it to yes")
        return
    if draft.wants(_ARRIVALS):
        draft.report(_ARRIVALS, "missing, but compulsory with require_arrival_monitor; give an absolute path")
    arrivals, spool, target = (draft.values[key] for key in (_ARRIVALS, _SPOOL, ("outgoing", "target_dir")))
    if arrivals and spool and _lies_in(arrivals, spool):
        draft.report(_ARRIVALS, f"lies in the spool {shown(str(spool))}; give a directory outside of it")
    if arrivals and target and _protocol(draft) == "local" and _lies_in(target, arrivals):
        draft.report(_ARRIVALS, f"is where units are sent, {shown(str(target))}; give another directory")


def _check_handshake(draft: Draft) -> None:
    """Find names of the handshake's files that could not be told apart, and a digest that nobody has."""
    for section in ("incoming", "outgoing"):
        keys = [(section, f"{kind}_file_extension") for kind in ("control", "receipt", "thankyou")]
        values = [draft.values[key] for key in keys]
        for number, key in enumerate(keys):
            if values[number] in values[:number]:
                draft.report(key, "is that of other files of the handshake too; give each its own")
    key = "outgoing", "receipt_checksum"
    if draft.values[key] == "sha256" and draft.values["outgoing", "checksum"] not in ("sha256", None):
        draft.report(key, "sha256 needs [outgoing] checksum = sha256 as well")


def _check_proofs(draft: Draft) -> None:
    """Find proofs that exclude each other, a library that is missing, and digests that nobody has."""
    for section in ("data_stream", "incoming"):
        if draft.values[section, "ready_marker"] and draft.values[section, "control"] not in ("none", None):
            draft.report((section, "ready_marker"), f"is a proof of its own; set [{section}] control = none")
    control = "incoming", "control"
    if draft.values[control] == "bagit" and find_spec("bagit") is None:
        draft.report(control, "bagit needs the Python package bagit; install it (mistamover[bagit])")
    if draft.values["incoming", "flatten"] and draft.values[control] not in ("stager", None):
        draft.report(("incoming", "flatten"), "is of the handshake; set [incoming] control = stager")
    manifest = "outgoing", "write_manifest"
    wanted, checksum = draft.values[manifest], draft.values["outgoing", "checksum"]
    if wanted not in ("none", None) and wanted != checksum:
        draft.report(manifest, f"{wanted} needs [outgoing] checksum = {wanted} as well")
    if wanted not in ("none", None) and draft.values["outgoing", "target_uses_arrival_monitor"]:
        draft.report(manifest, "an arrivals monitor takes the files away; set one of both to none or no")


def _check_directories(draft: Draft) -> None:
    """Find what knows only files, where units are directories."""
    if draft.values["data_stream", "transfer_unit"] == "directory":
        for key in (("data_stream", "control"), ("data_stream", "ready_marker"), ("outgoing", "write_manifest")):
            if draft.values[key] not in ("none", None):
                draft.report(key, "is about files; set [data_stream] transfer_unit = file, or remove this")
        for key in (("incoming", "require_arrival_monitor"), ("outgoing", "target_uses_arrival_monitor")):
            if draft.values[key]:
                draft.report(key, "is for files; set [data_stream] transfer_unit = file, or this to no")


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


def _check_levels(draft: Draft) -> None:
    """Find levels of free space that do not fall, or cannot be compared."""
    keys = [("disk_space_monitor", f"level_{name}") for name in ("good", "low", "vlow")]
    levels = [draft.values[key] for key in keys]
    for (above, key), (upper, lower) in zip(pairwise(keys), pairwise(levels), strict=True):
        if upper is None or lower is None:
            continue
        if upper.is_share != lower.is_share:
            draft.report(key, f"{lower} cannot be compared with {above[1]} = {upper}; give all three as % or none")
        elif lower.amount > upper.amount:
            draft.report(key, f"{lower} is above {above[1]} = {upper}; give a lower level")


def _check_modes(draft: Draft) -> None:
    for document in draft.documents:
        for entry in document.entries:
            if entry.key in SECRETS and entry.text and document.mode & 0o077:
                draft.findings.append(entry.finding(_too_open(document.source, document.mode)))


def _check_owners(draft: Draft) -> None:
    """Find files of which somebody else may decide what they say: they name commands, which we run."""
    for document in draft.documents:
        if document.status is not None and (text := _why_not_trusted(document.source, document.status)):
            draft.findings.append(Finding(Place(document.source, 1), text))


def _why_not_trusted(path: str, status: os.stat_result) -> str:
    others = stat.S_IWOTH if status.st_gid == os.getegid() else stat.S_IWOTH | stat.S_IWGRP
    if status.st_mode & others:
        mode = stat.S_IMODE(status.st_mode)
        return f"others may write the file (mode {mode:04o}), which names commands; {_chmod(path, 'go-w')}"
    # Whoever owns the program itself decides anyhow, as in a checkout.
    if os.geteuid() == 0 and status.st_uid not in (0, os.stat(__file__).st_uid):
        return f"user {status.st_uid} owns the file, and root would do what it says; chown root {_quoted(path)}"
    return ""


def _too_open(path: object, mode: int) -> str:
    return f"group or others may use the file (mode {mode:04o}), which holds a secret; {_chmod(path)}"


def _chmod(path: object, mode: str = "600") -> str:
    return f"chmod {mode} {_quoted(path)}"


def _quoted(path: object) -> str:
    return ini.plain(shlex.quote(str(path)))


def _check_log_in(draft: Draft) -> None:
    """Find log-ins that exclude each other."""
    protocol = _protocol(draft)
    if not _has(draft, "password"):
        return
    given = [name for name in ("password", "password_file") if draft.values[protocol, name] is not None]
    if len(given) == 2:
        draft.report((protocol, "password_file"), "password is set as well; give one of them")
    if given and protocol == "sftp" and draft.values["sftp", "connector"] == "openssh":
        text = f"openssh takes no {given[0]}; give a key_file, or connector = auto or paramiko"
        draft.report(("sftp", "connector"), text)


def _check_rsync(draft: Draft) -> None:
    """Find options of ssh for a daemon, to whom no ssh leads."""
    for option in ("cmd", "extra_options"):
        words = draft.values["rsync_native", option] or ()
        options = words[1:] if option == "cmd" else words
        if _protocol(draft) == "rsync_native" and rsync_options.read_options(options).shell:
            draft.report(("rsync_native", option), "a daemon is not reached by ssh; take -e out, or use rsync_ssh")


def _check_files(draft: Draft) -> None:
    """Find files that are named but not there, and keys that others may read."""
    protocol = _protocol(draft)
    for option in ("key_file", "known_hosts", "ca_file"):
        path = draft.values[protocol, option] if _has(draft, option) else None
        if path is not None and not os.path.isfile(path):
            draft.report((protocol, option), f"there is no file {shown(str(path))}; give one that exists")
        elif path is not None and option == "key_file" and (mode := _mode(path)) & 0o077:
            draft.report((protocol, option), _too_open(path, mode))


def _mode(path: Path) -> int:
    try:
        return stat.S_IMODE(os.stat(path).st_mode)
    except OSError:  # gone meanwhile: the log-in will say so
        return 0


def _check_password_file(draft: Draft) -> None:
    """Take the password from its file."""
    key = _protocol(draft), "password_file"
    path = draft.values[key] if key in OPTIONS else None
    if path is not None and (password := _read_password(draft, key, path)) is not None:
        draft.values[key[0], "password"] = SecretStr(password)


def _read_password(draft: Draft, key: Key, path: Path) -> str | None:
    """The first line of a file that only its owner may read; None where that cannot be had."""
    try:
        password, mode = ini.first_line(path)
    except ini.UnusableError as error:
        draft.report(key, f"{shown(str(path))} {error}")
        return None
    if mode & 0o077:
        draft.report(key, _too_open(path, mode))
    if not password:
        draft.report(key, f"{shown(str(path))} has an empty first line; write the password there")
    elif not ini.is_line(password):
        draft.report(key, f"{shown(str(path))} has a control character in its first line; remove it")
    return password


def _check_email(draft: Draft) -> None:
    """Find what keeps mail from being handed over."""

    def value(option: str) -> Any:
        return draft.values["email", option]

    for option, other in (("username", "password_file"), ("password_file", "username")):
        if value(option) is not None and draft.wants(("email", other)):
            draft.report(("email", other), f"missing, but {option} is set; give both or none")
    if value("username") is not None and value("tls") == "none":
        draft.report(("email", "tls"), "none would send the password in the clear; give starttls or implicit")
    if (path := value("ca_file")) is not None and not os.path.isfile(path):
        draft.report(("email", "ca_file"), f"there is no file {shown(str(path))}; give one that exists")
    if value("password_file") is not None:
        _read_password(draft, ("email", "password_file"), value("password_file"))
    _check_apprise(draft, value("alert_apprise"))


def _check_apprise(draft: Draft, path: Path | None) -> None:
    if path is None:
        return
    from importlib.util import find_spec

    key = "email", "alert_apprise"
    if find_spec("apprise") is None:
        draft.report(key, "needs the Python package apprise; install it, or take the option out")
    elif not os.path.isfile(path):
        draft.report(key, f"there is no file {shown(str(path))}; give one that exists")
    elif (mode := _mode(path)) & 0o077:
        draft.report(key, _too_open(path, mode))


CHECKS: tuple[Callable[[Draft], None], ...] = (
    _check_target_dir,
    _check_host,
    _check_places,
    _check_levels,
    _check_package,
    _check_arrivals,
    _check_handshake,
    _check_proofs,
    _check_directories,
)
CHECKS_OF_SERVICE: tuple[Callable[[Draft], None], ...] = (
    _check_log_dir,
    _check_modes,
    _check_owners,
    _check_email,
    _check_levels,
)
CHECKS_TO_RUN: tuple[Callable[[Draft], None], ...] = (
    _check_log_dir,
    _check_modes,
    _check_owners,
    _check_log_in,
    _check_rsync,
    _check_files,
    _check_password_file,
    _check_email,
)
