"""``mistamover new``: the file of a stream, or the global file, from questions or from options."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mistamover.cli.common import file_command, paragraph, shell_word
from mistamover.cli.help import Command
from mistamover.cli.new_file import GLOBAL, NewFile, write
from mistamover.errors import ConfigError, Exit

if TYPE_CHECKING:
    from mistamover.ini import Finding, Key
    from mistamover.options import Settings

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
_CHOICES = {
    "t": "try again",
    "a": "answer the questions about the target again",
    "w": "write the file as it is",
    "q": "leave, and write nothing",
}
"""What may be done where the target is not ready."""
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
    file = NewFile(kind, name, path, global_file, given)
    is_tried = _interview(file, connect=connect) if asks else _take(file, connect=connect)
    write(path, file.text)
    click.echo(f"written: {shell_word(path)}")
    click.echo(f"next:    {file.next_command(is_tried=is_tried)}")
    return Exit.DONE


# -- what is given -----------------------------------------------------------------------------------------


def _kind(kind: str | None, *, asks: bool) -> str:
    """The type, asked for where it is not given."""
    from mistamover.obsolete import RETIRED
    from mistamover.values import BUILT_IN

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
    from mistamover.obsolete import OBSOLETE
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
    if key in OBSOLETE:
        raise click.UsageError(f"--set {section}.{option}: {OBSOLETE[key]}.")
    return key, _one_line(value.strip())


def _one_line(text: str) -> str:
    from mistamover.ini import is_line

    if not is_line(text):
        raise click.UsageError("A value is one line of text, without control characters.")
    return text


# -- without questions -------------------------------------------------------------------------------------


def _take(file: NewFile, *, connect: bool) -> bool:
    """Judge what was given; gives whether the target was tried. Raises ``ConfigError``, or ends."""
    settings, findings = file.judge()
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


def _interview(file: NewFile, *, connect: bool) -> bool:
    """Ask for what was not given; gives whether the target was tried, and is ready."""
    _, findings = file.judge()
    if wrong := [one for one in findings if (one.section, one.option) in file.given]:
        raise ConfigError(list(_without_place(wrong)))
    for key in file.questions:
        _ask(file, key)
    click.echo()
    if file.kind == GLOBAL:
        _see_directory(str(file.streams))
    if file.kind in (GLOBAL, "none"):
        return False
    if not connect and not click.confirm("Try it now, as mistamover check --connect does?", default=True):
        return False
    return _try_until_done(file)


def _try_until_done(file: NewFile) -> bool:
    while True:
        settings, findings = file.judge()
        if settings is None or findings:
            raise ConfigError(list(_without_place(findings)))
        if _try(settings) is Exit.DONE:
            return True
        click.echo()
        for letter, what in _CHOICES.items():
            click.echo(f"    {letter}  {what}")
        choice = click.prompt("Not all is well; what now?", type=click.Choice([*_CHOICES]), default="t")
        if choice == "q":
            raise click.Abort
        if choice == "w":
            return False
        for key in file.far_questions if choice == "a" else ():
            _ask(file, key)


def _ask(file: NewFile, key: Key) -> None:
    """Ask for one option until the answer is right."""
    from mistamover.options import OPTIONS, SECRETS, as_text, has_default

    info = OPTIONS[key]
    usual = as_text(info.default) if has_default(info) else ""
    so_far = file.texts.get(key) or usual
    is_secret = key in SECRETS
    _explain(key)
    answer = click.prompt(
        f"[{key[0]}] {key[1]}",
        default=so_far,
        show_default=bool(so_far) and not is_secret,
        hide_input=is_secret,
        value_proc=partial(_judged, file, key),
    )
    file.texts[key] = "" if answer == usual else str(answer)


def _explain(key: Key) -> None:
    """Print what an option is for, as its help says."""
    from mistamover.describe import help_of

    click.echo()
    for line in paragraph(help_of(key)):
        click.echo(line)


def _judged(file: NewFile, key: Key, text: str) -> str:
    """The answer, if it is right; else ``UsageError``, which has the question asked again."""
    from mistamover.options import SECRETS

    if key in SECRETS and text != text.strip():
        raise click.UsageError("Begins or ends with a blank, which is lost in a file; give password_file by --set.")
    text = file.resolved(key, _one_line(text.strip()))
    before = file.texts.get(key)
    file.texts[key] = text
    try:
        if key == ("logging", "base_log_dir"):  # by which the configuration itself is judged
            _see_directory(text)
        _raise_about(key, file.judge()[1])
        if file.is_near(key):
            _see_directory(text)
    except click.UsageError:
        file.texts[key] = before or ""
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
