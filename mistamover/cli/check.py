"""``mistamover check``: is a stream's configuration right, and its target ready?"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mistamover.cli.common import INDENT, file_command, load, load_service, paragraph, shell_word, tell_error
from mistamover.cli.help import Command
from mistamover.errors import ConfigError, Exit, MistamoverError

if TYPE_CHECKING:
    from mistamover.options import Outgoing, Settings
    from mistamover.transports.contract import Finding, Proof


@click.command(cls=Command, short_help="Look for faults in a stream's configuration, and at its target.")
@click.option("--connect", is_flag=True, help="Log in, and look at the target as well.")
@click.argument("stream_files", metavar="[STREAM.ini]...", nargs=-1, type=click.Path(path_type=Path))
@file_command
def check(global_file: Path | None, *, stream_files: tuple[Path, ...], connect: bool) -> int:
    """Look for faults in STREAM.ini, in its spool and, with --connect, at its target.

    For example; the second one looks at all streams of the service:

        mistamover check --connect images.ini
        mistamover check --config global.ini

    Each thing is ok, a warning, or a failure with its remedy. No unit is touched. Of
    files that were made for version 0.1.0, it tells what differs from there.

    Exit codes: 0 no failure; 1 a failure on this host; 2 usage or configuration;
    3 a failure at the target. Of several streams, the highest of these.
    """
    from mistamover import config

    if not stream_files and global_file is None and not config.SYSTEM_GLOBAL.exists():
        raise click.UsageError("Give STREAM.ini, or --config GLOBAL.ini for all streams of the service.")
    files = list(stream_files) or config.stream_files(load_service(global_file, only_place=True))
    seen: list[Settings] = []
    codes = [_check(path, global_file, seen, connect=connect, is_one_of_many=len(files) > 1) for path in files]
    return max(codes, default=Exit.DONE)


def _check(
    path: Path, global_file: Path | None, seen: list[Settings], *, connect: bool, is_one_of_many: bool
) -> int:
    """Look at one stream beside those ``seen``; what is wrong with its files is told, and hides no other stream."""
    if is_one_of_many:
        click.echo(f"\n{shell_word(path)}:")
    try:
        settings = load(path, global_file, only_record=False)
    except ConfigError as error:
        return tell_error(error)
    for number, sentence in enumerate(describe(settings)):
        for line in paragraph(sentence, INDENT if number else "ok: "):
            click.echo(line)
    _tell_differences(settings)
    near = tell(chain(look_here(settings), _look_beside(settings, seen)))
    seen.append(settings)
    if not connect or settings.outgoing.transfer_protocol == "none":
        return Exit.UNFINISHED if near else Exit.DONE
    far = tell(look_there(settings))
    return Exit.TARGET if far else Exit.UNFINISHED if near else Exit.DONE


def tell(findings: Iterator[Finding]) -> bool:
    """Print each finding; gives whether one is a failure."""
    from mistamover.lines import safe
    from mistamover.transports.contract import Level

    failed = False
    for finding in findings:
        remedy = f"; {finding.remedy}" if finding.remedy else ""
        click.echo(safe(f"{finding.level.value:<4}  {finding.what}{remedy}"))
        failed = failed or finding.level is Level.FAIL
    return failed


def _tell_differences(settings: Settings) -> None:
    """Print what is not as it was in 0.1.0, where that concerns the stream."""
    from mistamover.cli.history import tell_table
    from mistamover.differences import differences
    from mistamover.lines import safe

    rows = [tuple(map(safe, row)) for row in differences(settings)]
    if rows:
        click.echo("\nWhat differs from 0.1.0:\n")
        tell_table(("what", "in 0.1.0", "now"), rows)
        click.echo()


# -- what it does ------------------------------------------------------------------------------------------

_VERIFY = {
    "auto": "the strongest proof that the target allows",
    "digest": "a digest made at the target",
    "readback": "reading it back",
    "size": "its size alone, which proves no content",
}


_PACKAGED = {"none": "", "zip": "becomes a zip archive, ", "tar": "becomes a tar archive, "}


def describe(settings: Settings) -> list[str]:
    """What the stream does, in some sentences."""
    from mistamover.lines import safe

    return list(map(safe, _sentences(settings)))


def _sentences(settings: Settings) -> Iterator[str]:
    from mistamover.stream import target_name

    outgoing, source = settings.outgoing, settings.data_stream
    if outgoing.transfer_protocol == "none":
        yield f"stream {settings.name} {_receiving(settings)}."
        yield "It sends nothing."
        return
    is_mirror = outgoing.transfer_mode == "mirror"
    yield (
        f"stream {settings.name} {'mirrors' if is_mirror else 'moves'} {source.directory} to "
        f"{target_name(settings)}, {source.order} first, once a {source.transfer_unit} has not changed for "
        f"{source.settle_time:g} s."
    )
    yield (
        f"Each {_PACKAGED[outgoing.package]}is {_verified(outgoing)}, then published"
        f"{'' if is_mirror else ', then removed from the spool'}."
    )
    yield _existing(settings)
    if outgoing.target_uses_arrival_monitor:
        yield "It counts as delivered once the receipt of the target's arrivals monitor says so."
    if settings.incoming.require_arrival_monitor:
        yield f"It also {_receiving(settings)}."


def _verified(outgoing: Outgoing) -> str:
    if outgoing.verify == "none":
        return "sent and not verified"
    return f"proven at the target by {_VERIFY[outgoing.verify]} ({outgoing.checksum})"


def _receiving(settings: Settings) -> str:
    incoming = settings.incoming
    return (
        f"takes what arrives in {incoming.directory}, once its control file has proven it, "
        f"into {settings.data_stream.directory}"
    )


def _existing(settings: Settings) -> str:
    what = "replaced" if settings.outgoing.existing == "replace" else "kept, and the unit goes to quarantine"
    unit = "file" if settings.outgoing.package != "none" else settings.data_stream.transfer_unit
    return f"Another {unit} of its name there is {what}."


# -- this host ---------------------------------------------------------------------------------------------


def look_here(settings: Settings) -> Iterator[Finding]:
    """Look at the spool, and at the places of the ledger and the log."""
    from mistamover.packages import place_of
    from mistamover.stream import state_directory

    yield _spool(settings)
    if settings.incoming.require_arrival_monitor:
        yield from _arrivals(settings)
    yield from _pauses(settings)
    yield _writable("ledger", state_directory(settings))
    if settings.outgoing.package != "none":
        yield _writable("archives", place_of(settings))
    if settings.logging.base_log_dir is not None:
        yield _writable("log", settings.logging.base_log_dir)


def _look_beside(settings: Settings, others: Sequence[Settings]) -> Iterator[Finding]:
    """Whether a stream gets on with others."""
    from mistamover.lines import shown
    from mistamover.stream import have_one_spool
    from mistamover.transports.contract import Finding, Level

    for other in others:
        if other.path != settings.path and have_one_spool(settings, other):
            what = f"spool {shown(str(settings.data_stream.directory))}"
            both = f"{shell_word(other.path)} and {shell_word(settings.path)} both move from it"
            yield Finding(Level.FAIL, f"{what}: {both}", "only one can run: give each a spool of its own")


def _spool(settings: Settings) -> Finding:
    from mistamover.lines import shown
    from mistamover.transports.contract import Finding, Level

    directory = settings.data_stream.directory
    what = f"spool {shown(str(directory))}"
    if not directory.is_dir():
        return Finding(Level.FAIL, f"{what}: no such directory", "make or mount it")
    if not os.access(directory, os.R_OK | os.X_OK):
        return Finding(
            Level.FAIL, f"{what}: no permission to read it", "give the user that runs mistamover the right to"
        )
    if settings.outgoing.transfer_mode == "mirror":
        return Finding(Level.OK, f"{what} can be read")
    if not os.access(directory, os.W_OK):
        remedy = "run as its owner, or set transfer_mode = mirror"
        return Finding(Level.FAIL, f"{what}: no permission to move files out of it", remedy)
    if _keeps_what_others_own(directory.stat()):
        remedy = "let this user own it, or take the sticky bit away: chmod -t"
        return Finding(Level.WARN, f"{what} can be written, but nobody can move files of others out of it", remedy)
    return Finding(Level.OK, f"{what} can be read and written")


def _keeps_what_others_own(found: os.stat_result) -> bool:
    """Whether a directory has the sticky bit, and is neither ours nor are we root (rename(2), EPERM)."""
    return bool(found.st_mode & stat.S_ISVTX) and os.geteuid() not in (0, found.st_uid)


def _arrivals(settings: Settings) -> Iterator[Finding]:
    from mistamover.lines import shown
    from mistamover.transports.contract import Finding, Level

    directory, spool = settings.incoming.directory, settings.data_stream.directory
    what = f"arrivals {shown(str(directory))}"
    if directory is None or not directory.is_dir():
        yield Finding(Level.FAIL, f"{what}: no such directory", "make or mount it")
        return
    for place in (directory, spool):
        if not os.access(place, os.R_OK | os.W_OK | os.X_OK):
            remedy = f"give the user that runs mistamover the right to write in {shown(str(place))}"
            yield Finding(Level.FAIL, f"{what}: no permission to move files to {shown(str(spool))}", remedy)
            return
    yield Finding(Level.OK, f"{what} can be read and emptied")
    if spool.is_dir() and directory.stat().st_dev != spool.stat().st_dev:
        remedy = "have both on one file system"
        yield Finding(Level.WARN, f"{what}: on another file system than the spool: files are copied", remedy)


def _pauses(settings: Settings) -> Iterator[Finding]:
    from mistamover.lines import shown
    from mistamover.transports.contract import Finding, Level

    incoming = settings.incoming
    arrivals = [incoming.directory] if incoming.require_arrival_monitor and incoming.directory else []
    for directory in (settings.data_stream.directory, *arrivals):
        path = directory / incoming.stop_file
        if os.path.lexists(path):
            yield Finding(Level.WARN, f"paused by {shown(str(path))}", "remove it to go on")


def _writable(what: str, directory: Path) -> Finding:
    """Whether we may write in a directory, or make it where it is missing."""
    from mistamover.lines import shown
    from mistamover.transports.contract import Finding, Level

    there = next(path for path in (directory, *directory.parents) if path.exists())
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return Finding(Level.OK, f"{what} in {shown(str(directory))}")
    remedy = f"give the user that runs mistamover the right to write in {shown(str(there))}"
    return Finding(Level.FAIL, f"{what} in {shown(str(directory))}: no permission to write there", remedy)


# -- the target --------------------------------------------------------------------------------------------


def look_there(settings: Settings) -> Iterator[Finding]:
    """Log in and look at the target."""
    from mistamover.directories import is_whole, spool_of
    from mistamover.transports import transport_class
    from mistamover.transports.contract import Finding, Level

    if not settings.data_stream.directory.is_dir():
        return  # said already, and a transport needs it
    transport = transport_class(settings.outgoing.transfer_protocol)
    with (
        closing(spool_of(settings, mirror=True)) as spool,
        closing(transport(settings, spool, lambda _: None)) as opened,
    ):
        try:
            opened.open()
            yield from opened.examine()
            yield _proof(opened.proof)
            if is_whole(settings) and not opened.capabilities.directories:
                what = "directories get their files one by one here; NAME.done beside each says that it is complete"
                yield Finding(Level.WARN, what, "have readers wait for that, or set package = tar")
            if opened.is_stopped():
                name = settings.outgoing.stop_file
                yield Finding(Level.WARN, f"paused by {name} at the target", "remove it there to go on")
        except MistamoverError as error:
            yield Finding(Level.FAIL, str(error))
        finally:
            with suppress(MistamoverError):
                opened.remove_made()


def _proof(proof: Proof) -> Finding:
    from mistamover.transports.contract import Finding, Level, Proof

    if proof in (Proof.DIGEST, Proof.READBACK):
        return Finding(Level.OK, f"proof: {proof.value}")
    remedy = "set [outgoing] verify = auto, unless that is what you want"
    return Finding(Level.WARN, f"proof: {proof.value}: nobody looks at the bytes that arrived", remedy)
