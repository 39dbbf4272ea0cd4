"""``mistamover new``: the file of a stream, or the global file, from questions or from options."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mistamover.cli.common import file_command, shell_word
from mistamover.cli.help import Command
from mistamover.errors import ConfigError, Exit

if TYPE_CHECKING:
    from mistamover.ini import Finding, Key
    from mistamover.options import Settings

GLOBAL = "global"
_TYPES = {
    "local": "to another directory of this host",
    "sftp": "to a host with a log-in by SSH",
    "rsync_ssh": "the same by rsync, where both hosts have it",
    "rsync_native": "to an rsync daemon",
    "ftp": "to an FTP server, in the clear",
    "ftps": "to an FTP server, within TLS",
    "none": "only receives what others push to this host",
    GLOBAL: "what all streams of the service share",
}
"""What a file may be for: a stream, by its transport, or all of them."""
_OLD_TYPES = {"arrival_monitor": "none"}
"""As ``create_config.py`` of 0.1.0 called them."""


@click.command(cls=Command, short_help="Ask what a stream has to know, try it, and write its file.")
@click.argument("kind", metavar="[TYPE]", required=False)
@click.argument("name", metavar="[NAME]", required=False)
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="SECTION.OPTION=VALUE",
    help="Give an option instead of being asked for it; also one that nobody asks for.",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="The file to write, instead of NAME.ini here."
)
@click.option("--connect", is_flag=True, help="Log in and look at the target without asking whether to.")
@click.option("--batch", is_flag=True, help="Ask nothing; so it is too where standard input is no terminal.")
@file_command
def new(
    global_file: Path | None,
    *,
    kind: str | None,
    name: str | None,
    assignments: tuple[str, ...],
    output: Path | None,
    connect: bool,
    batch: bool,
) -> int:
    r"""Write the file of a stream that is called NAME, and try what it says.

    TYPE is how its target is reached: local, sftp, rsync_ssh, rsync_native, ftp or
    ftps; or it is global, for the file that all streams of the service share. What is
    not given is asked for:

        mistamover new
        mistamover new sftp images

    For scripts, which are asked nothing:

        mistamover new local images --set data_stream.directory=/data/outgoing \
            --set outgoing.target_dir=/data/incoming

    Directories of this host may be relative to where you are. No file is overwritten.

    Exit codes: 0 written; 1 not, for a fault on this host; 2 not, for what was given;
    3 not, for the target.
    """
    asks = not batch and sys.stdin.isatty()
    kind = _kind(kind, asks=asks)
    given = dict(map(_assignment, assignments))
    name = GLOBAL if kind == GLOBAL else _name(name, asks=asks)
    path = output or Path(f"{name}.ini")
    if os.path.lexists(path):
        raise ConfigError([f"{path}: exists already, and is left as it is; give another name, or -o FILE"])
    if not path.absolute().parent.is_dir():
        raise ConfigError(
            [f"{path}: there is no directory {path.absolute().parent}; make it, or give another file"]
        )
    draft = Draft(kind, name, path, global_file, given)
    is_tried = _interview(draft, connect=connect) if asks else _take(draft, connect=connect)
    _write(path, draft.text)
    click.echo(f"written: {shell_word(path)}")
    click.echo(f"next:    {draft.next_command(is_tried=is_tried)}")
    return Exit.DONE


# -- what is given -----------------------------------------------------------------------------------------


def _kind(kind: str | None, *, asks: bool) -> str:
    """The type, asked for where it is not given."""
    from mistamover.obsolete import RETIRED
    from mistamover.options import BUILT_IN

    known = [one for one in _TYPES if one in (*BUILT_IN, GLOBAL)]

    def judge(text: str) -> str:
        text = _OLD_TYPES.get(text, text)
        if text in RETIRED:
            raise click.UsageError(f"{text}: {RETIRED[text]}.")
        if text not in known:
            raise click.UsageError(f"{text!r} is no type; give one of {', '.join(known)}.")
        return text

    if kind is not None:
        return judge(kind)
    _refuse_to_ask(asks, "TYPE and NAME")
    for one in known:
        click.echo(f"    {one:<13} {_TYPES[one]}")
    return str(click.prompt("Type", value_proc=judge))


def _name(name: str | None, *, asks: bool) -> str:
    from mistamover.config import judge

    def judged(text: str) -> str:
        _, findings = judge(Path("new.ini"), f"[data_stream]\nname = {_one_line(text)}\n", None)
        _raise_about(("data_stream", "name"), findings)
        return text

    if name is not None:
        return judged(name)
    _refuse_to_ask(asks, "NAME")
    _explain(("data_stream", "name"))
    return str(click.prompt("Name", value_proc=judged))


def _refuse_to_ask(asks: bool, what: str) -> None:
    if not asks:
        raise click.UsageError(
            f"Nothing can be asked here (--batch, or standard input is no terminal); give {what}."
        )


def _assignment(text: str) -> tuple[Key, str]:
    from mistamover.obsolete import NOT_YET, OBSOLETE
    from mistamover.options import SECRETS

    name, equals, value = text.partition("=")
    section, _, option = (part.strip() for part in name.partition("."))
    if not (equals and section and option):
        raise click.UsageError(f"--set {name}: give SECTION.OPTION=VALUE, as in --set outgoing.lanes=8.")
    key = section, option.lower()
    if key in SECRETS:
        raise click.UsageError(
            f"--set {section}.{option}: others can read the arguments of a program; give {section}.password_file."
        )
    if key in OBSOLETE or key in NOT_YET:
        raise click.UsageError(f"--set {section}.{option}: {OBSOLETE.get(key, 'is not there yet')}.")
    return key, _one_line(value.strip())


def _one_line(text: str) -> str:
    from mistamover.ini import is_line

    if not is_line(text):
        raise click.UsageError("A value is one line of text, without control characters.")
    return text


# -- the file ----------------------------------------------------------------------------------------------


class Draft:
    """The file that is to be written: what it is to say, and what is wrong with that."""

    def __init__(self, kind: str, name: str, path: Path, global_file: Path | None, given: dict[Key, str]) -> None:
        from mistamover.config import find_global

        self.kind = kind
        self.path = path
        self._told_global = global_file
        self.global_file = None if kind == GLOBAL else find_global(global_file)
        self.texts: dict[Key, str] = {key: self.resolved(key, text) for key, text in given.items()}
        self.given = frozenset(given)
        if kind == "none":
            self.texts["incoming", "require_arrival_monitor"] = "yes"
        if kind != GLOBAL:
            self.texts["outgoing", "transfer_protocol"] = kind
            if path.stem.removeprefix("ds_") != name:
                self.texts["data_stream", "name"] = name

    @property
    def questions(self) -> list[Key]:
        """What a person has to say, or should have thought of, in order."""
        from mistamover.options import OPTIONS

        if self.kind == GLOBAL:
            return [("global", "state_dir"), ("global", "config_dir"), ("logging", "base_log_dir")]
        rest = [("incoming", "directory")]
        if self.kind != "none":
            rest = [("outgoing", "transfer_mode"), *self.far_questions]
        return [key for key in (("data_stream", "directory"), *rest) if key in OPTIONS and key not in self.given]

    @property
    def far_questions(self) -> list[Key]:
        """Those that a log-in may prove wrong."""
        from mistamover.options import OPTIONS

        log_in = "key_file" if (self.kind, "key_file") in OPTIONS else "password"
        host = [("outgoing", "target_host")] if (self.kind, "port") in OPTIONS else []
        wanted = [*host, ("outgoing", "target_dir"), (self.kind, "username"), (self.kind, log_in)]
        is_answered = (self.kind, "password_file") in self.given
        return [
            key
            for key in wanted
            if key in OPTIONS and key not in self.given and not (is_answered and key[1] == log_in)
        ]

    def is_near(self, key: Key) -> bool:
        """Whether an option names a directory of this host that has to be there."""
        near = {"data_stream.directory", "incoming.directory", "global.config_dir", "logging.base_log_dir"}
        return ".".join(key) in near or (self.kind == "local" and key == ("outgoing", "target_dir"))

    def resolved(self, key: Key, text: str) -> str:
        """A path on this host from the root on, as a file has to name it."""
        near = self.is_near(key) or key == ("global", "state_dir")
        return os.path.abspath(os.path.expanduser(text)) if near and text and not text.startswith("$(") else text

    @property
    def text(self) -> str:
        """What would be written now."""
        from mistamover.describe import commented

        return commented(self._head(), dict.fromkeys(self.questions, "") | self.texts)

    def _head(self) -> str:
        what = "what all streams of the service share" if self.kind == GLOBAL else "one stream"
        return (
            f'MiStaMover: {what}. Made by "mistamover new"; change it as you like.\n'
            "Comments stand on lines of their own. docs/configuration.rst has all options.\n"
        )

    def judge(self) -> tuple[Settings | None, list[Finding]]:
        """The settings as they are so far, of a stream, and what is wrong."""
        from mistamover import config

        text = ""
        for section, keys in groupby(sorted(key for key, text in self.texts.items() if text), key=itemgetter(0)):
            text += f"[{section}]\n" + "".join(f"{key[1]} = {self.texts[key]}\n" for key in keys)
        if self.kind == GLOBAL:
            return None, config.judge_service(self.path, text)[1]
        return config.judge(self.path, text, self.global_file)

    @property
    def streams(self) -> Path:
        """Where the service looks for stream files."""
        return Path(self.texts.get(("global", "config_dir")) or self.path.absolute().parent / "streams")

    def next_command(self, *, is_tried: bool) -> str:
        """What to type now."""
        file = shell_word(self.path)
        if self.kind == GLOBAL:
            return f"mistamover new -o {shell_word(self.streams)}/NAME.ini, then: mistamover start --config {file}"
        command = "run --once" if is_tried else "check --connect"
        config = f" --config {shell_word(self._told_global)}" if self._told_global else ""
        return f"mistamover {command}{config} {file}"


def _write(path: Path, text: str) -> None:
    """Make the file, for its owner alone; one that is there stays."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(fd)
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}; give another by -o FILE"]) from error


# -- without questions -------------------------------------------------------------------------------------


def _take(draft: Draft, *, connect: bool) -> bool:
    """Judge what was given; gives whether the target was tried. Raises ``ConfigError``, or ends."""
    settings, findings = draft.judge()
    if findings:
        why = [] if sys.stdin.isatty() else ["standard input is no terminal, and so nothing is asked"]
        raise ConfigError([*why, *dict.fromkeys(_without_place(findings))])
    if settings is None or not connect:
        return False
    code = _try(settings)
    if code is not Exit.DONE:
        click.echo("nothing was written")
        raise click.exceptions.Exit(code)
    return True


def _without_place(findings: Iterable[Finding]) -> Iterable[str]:
    """What is wrong, by option: the file, whose lines findings name, is not there."""
    for one in findings:
        text = one.text if isinstance(one.text, str) else one.text()
        yield f"--set {one.section}.{one.option}: {text}" if one.option else str(one)


def _try(settings: Settings) -> Exit:
    """Look at this host and at the target, as ``check --connect`` does."""
    from mistamover.cli.check import look_here, look_there, tell
    from mistamover.lines import hide_secrets

    hide_secrets(settings)
    near = tell(look_here(settings))
    far = tell(look_there(settings))
    return Exit.TARGET if far else Exit.UNFINISHED if near else Exit.DONE


# -- with questions ----------------------------------------------------------------------------------------


def _interview(draft: Draft, *, connect: bool) -> bool:
    """Ask for what was not given; gives whether the target was tried, and is ready."""
    _, findings = draft.judge()
    if wrong := [one for one in findings if (one.section, one.option) in draft.given]:
        raise ConfigError(list(_without_place(wrong)))
    for key in draft.questions:
        _ask(draft, key)
    click.echo()
    if draft.kind == GLOBAL:
        _see_directory(str(draft.streams))
    if draft.kind in (GLOBAL, "none"):
        return False
    if not connect and not click.confirm("Try it now, as mistamover check --connect does?", default=True):
        return False
    return _try_until_done(draft)


def _try_until_done(draft: Draft) -> bool:
    while True:
        settings, findings = draft.judge()
        if settings is None or findings:
            raise ConfigError(list(_without_place(findings)))
        if _try(settings) is Exit.DONE:
            return True
        click.echo(
            "\n    t  try again\n    a  answer the questions about the target again\n    w  write the file as it is"
        )
        choice = click.prompt("Not all is well; what now?", type=click.Choice(["t", "a", "w"]), default="t")
        if choice == "w":
            return False
        for key in draft.far_questions if choice == "a" else ():
            _ask(draft, key)


def _ask(draft: Draft, key: Key) -> None:
    """Ask for one option until the answer is right."""
    from mistamover.options import OPTIONS, SECRETS, as_text, has_default

    info = OPTIONS[key]
    usual = as_text(info.default) if has_default(info) else ""
    so_far = draft.texts.get(key) or usual
    is_secret = key in SECRETS
    _explain(key)
    answer = click.prompt(
        f"[{key[0]}] {key[1]}",
        default=so_far,
        show_default=bool(so_far) and not is_secret,
        hide_input=is_secret,
        value_proc=partial(_judged, draft, key),
    )
    draft.texts[key] = "" if answer == usual else str(answer)


def _explain(key: Key) -> None:
    """Print what an option is for, as its help says."""
    import textwrap

    from mistamover.describe import help_of

    click.echo()
    for line in textwrap.wrap(help_of(key), 90):
        click.echo(f"    {line}")


def _judged(draft: Draft, key: Key, text: str) -> str:
    """The answer, if it is right; else ``UsageError``, which has the question asked again."""
    from mistamover.options import SECRETS

    if key in SECRETS and text != text.strip():
        raise click.UsageError("Begins or ends with a blank, which is lost in a file; give password_file by --set.")
    text = draft.resolved(key, _one_line(text.strip()))
    before = draft.texts.get(key)
    draft.texts[key] = text
    try:
        if key == ("logging", "base_log_dir"):  # by which the configuration itself is judged
            _see_directory(text)
        _raise_about(key, draft.judge()[1])
        if draft.is_near(key):
            _see_directory(text)
    except click.UsageError:
        draft.texts[key] = before or ""
        raise
    return text


def _raise_about(key: Key, findings: Iterable[Finding]) -> None:
    for one in findings:
        if (one.section, one.option) == key:
            raise click.UsageError(one.text if isinstance(one.text, str) else one.text())


def _see_directory(text: str) -> None:
    """See that a directory of this host is there, or make it if that is wanted."""
    if not text or "$(" in text or os.path.isdir(text):
        return
    if not click.confirm(f"There is no directory {text}. Make it?", default=True):
        raise click.UsageError("Give one that is there.")
    try:
        os.makedirs(text)
    except OSError as error:
        raise click.UsageError(f"{text}: {error.strerror}.") from error
