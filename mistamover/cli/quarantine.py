"""``mistamover quarantine``: what was set aside, why, and how it gets back."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mistamover.cli.common import record_command, tell_error
from mistamover.cli.help import Command, Group
from mistamover.errors import Exit, UnitError, Unknown

if TYPE_CHECKING:
    from mistamover.arrivals import Aside
    from mistamover.ledger import Entry, Ledger
    from mistamover.options import Settings
    from mistamover.spool import Spool


@click.group(cls=Group, short_help="List, show and release units that were set aside.")
def quarantine() -> None:
    """Units that cannot be delivered are set aside in the spool, under .mistamover/quarantine.

    What is there, and why:

        mistamover quarantine list images.ini
        mistamover quarantine show images.ini 12

    Once the reason is gone, give it back to the stream:

        mistamover quarantine release images.ini 12

    What was set aside at its arrival has no number but the name of its directory; its
    sender sends it again.
    """


@quarantine.command("list", cls=Command, short_help="List what is in quarantine, and why.")
@record_command
def list_(settings: Settings) -> int:
    """List the units of STREAM.ini that are in quarantine: number, time, path and reason.

    For example:

        mistamover quarantine list images.ini
    """
    from mistamover.cli.history import tell_table
    from mistamover.lines import safe, shown
    from mistamover.stream import when

    rows = [
        (str(entry.id), when(entry.changed), shown(entry.path), safe(entry.reason)) for entry in _entries(settings)
    ]
    rows += [(one.number, when(one.since), shown(one.name), safe(one.reason)) for one in _arrivals(settings)]
    if not rows:
        click.echo("nothing is in quarantine")
    else:
        tell_table(_HEADS, rows, right="number")
    return Exit.DONE


_HEADS = ("number", "when", "path", "reason")


@quarantine.command(cls=Command, short_help="Show all that is known of a unit in quarantine.")
@record_command
@click.argument("paths", metavar="PATH…", nargs=-1, required=True)
def show(settings: Settings, *, paths: tuple[str, ...]) -> int:
    """Show all that is known of units in quarantine. PATH is a path in the spool, or the number of the list.

    For example:

        mistamover quarantine show images.ini 12
    """
    arrivals = {one.number: one for one in _arrivals(settings) if one.number in paths}
    wanted = _wanted(settings, [path for path in paths if path not in arrivals])
    blocks = [_description(settings, entry) for entry in wanted]
    blocks += [_description_of_arrival(settings, one) for one in arrivals.values()]
    for number, block in enumerate(blocks):
        if number:
            click.echo()
        for name, text in block:
            click.echo(f"{name + ':':<10} {text}")
    return Exit.DONE


def _description(settings: Settings, entry: Entry) -> list[tuple[str, str]]:
    from mistamover.lines import safe, shown, size
    from mistamover.stream import when

    place = _place(settings, entry)
    is_there = "" if os.path.lexists(place) else " (not there any more)"
    digest = f"{entry.algorithm}:{entry.digest}" if entry.digest else "none: it was not sent"
    return [
        ("number", str(entry.id)),
        ("path", shown(entry.path)),
        ("lies in", shown(str(place)) + is_there),
        ("target", shown(entry.target)),
        ("since", when(entry.changed)),
        ("size", size(entry.size) if entry.size < 1000 else f"{size(entry.size)} ({entry.size:,} bytes)"),
        ("digest", digest),
        ("attempts", str(entry.attempts)),
        ("reason", safe(entry.reason)),
    ]


def _description_of_arrival(settings: Settings, one: Aside) -> list[tuple[str, str]]:
    from mistamover.lines import safe, shown
    from mistamover.stream import when

    return [
        ("number", one.number),
        ("path", shown(one.name)),
        ("lies in", shown(str(_place_of_arrival(settings, one) / one.name))),
        ("since", when(one.since)),
        ("reason", safe(one.reason)),
    ]


@quarantine.command(cls=Command, short_help="Give units back to their stream.")
@click.option("--all", "is_all", is_flag=True, help="Release all that is in quarantine.")
@record_command
@click.argument("paths", metavar="[PATH]…", nargs=-1)
def release(settings: Settings, *, is_all: bool, paths: tuple[str, ...]) -> int:
    """Put units back into the spool, as if they had just appeared there. The stream must not run meanwhile.

    For example:

        mistamover quarantine release images.ini 12 north/radar.dat
        mistamover quarantine release images.ini --all

    Exit codes: 0 released; 1 some could not be put back; 2 usage, or no such unit
    in quarantine; 4 the stream runs: stop it first.
    """
    from mistamover.directories import spool_of
    from mistamover.ledger import Ledger
    from mistamover.stream import state_directory, target_name

    if is_all == bool(paths):
        raise click.UsageError("Give PATHs or numbers, or --all.")
    _refuse_arrivals(settings, paths)
    wanted = _entries(settings) if is_all else _wanted(settings, paths)
    if not wanted:
        click.echo("nothing is in quarantine that could be released")
        return Exit.DONE
    checksum, is_mirror = settings.outgoing.checksum, _is_mirror(settings)
    with (
        closing(Ledger(state_directory(settings), target_name(settings), checksum)) as ledger,
        closing(spool_of(settings, mirror=is_mirror)) as spool,
    ):
        spool.hold()
        codes = [_release(settings, ledger, spool, entry) for entry in wanted]
    return max(codes)


def _refuse_arrivals(settings: Settings, paths: Sequence[str]) -> None:
    """What was not proven at its arrival never becomes a unit."""
    from mistamover.lines import shown

    for one in _arrivals(settings):
        if one.number in paths:
            place = shown(str(_place_of_arrival(settings, one)))
            raise Unknown(f"{one.number}: was never proven; have its sender send it again, and remove {place}")


def _release(settings: Settings, ledger: Ledger, spool: Spool, entry: Entry) -> int:
    """Put one unit back, then forget that it was set aside.

    In this order: a crash in between leaves a file in the spool, which is sent like any other, and a row that
    a second release forgets. The other way round it would leave a file in quarantine that no list shows.
    """
    from mistamover.lines import shown

    place = _place(settings, entry)
    if os.path.lexists(place):
        try:
            spool.release(entry.path, entry.id)
        except UnitError as error:
            return tell_error(error)
        _sync(settings.data_stream.directory / entry.path)
        said = f"released: {shown(entry.path)}"
    else:
        said = f"forgotten: {shown(entry.path)} does not lie in quarantine any more"
    ledger.release(entry.id)
    click.echo(said)
    return Exit.DONE


def _sync(path: Path) -> None:
    """Have the unit's name on disk before the ledger forgets where else it was."""
    from mistamover import fs

    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fs.sync_directory(directory)
    finally:
        os.close(directory)


# -- which -------------------------------------------------------------------------------------------------


def _is_mirror(settings: Settings) -> bool:
    return settings.outgoing.transfer_mode == "mirror"


def _place(settings: Settings, entry: Entry) -> Path:
    """Where a unit in quarantine lies. A mirrored spool is not ours to write in: there it stays where it was."""
    from mistamover.spool import QUARANTINE

    spool = settings.data_stream.directory
    if _is_mirror(settings):
        return spool / entry.path
    return spool / QUARANTINE / str(entry.id) / entry.path.rpartition("/")[2]


def _arrivals(settings: Settings) -> list[Aside]:
    """What was set aside at its arrival."""
    from mistamover.arrivals import set_aside

    return set_aside(settings.data_stream.directory) if settings.incoming.require_arrival_monitor else []


def _place_of_arrival(settings: Settings, one: Aside) -> Path:
    from mistamover.spool import QUARANTINE

    return settings.data_stream.directory / QUARANTINE / one.number


def _entries(settings: Settings) -> list[Entry]:
    from mistamover.ledger import entries
    from mistamover.stream import state_directory, target_name
    from mistamover.unit import State

    path, is_mirror = state_directory(settings) / "ledger.sqlite", _is_mirror(settings)
    target = target_name(settings)
    found = [
        entry for entry in entries(path, states=[State.QUARANTINED], unanswered=is_mirror) if entry.target == target
    ]
    return _unchanged(settings, found) if is_mirror and found else found


def _unchanged(settings: Settings, found: Iterable[Entry]) -> list[Entry]:
    """Those whose files are in the spool as they were: any other is sent, or gone, and waits for nobody."""
    from mistamover.directories import spool_of
    from mistamover.ledger import View
    from mistamover.stream import state_directory, target_name

    with (
        closing(View(state_directory(settings), target_name(settings))) as view,
        closing(spool_of(settings, mirror=True)) as spool,
    ):
        return [entry for entry in found if view.known(entry.id) == (entry.path, spool.identity(entry.path), False)]


def _wanted(settings: Settings, paths: Sequence[str]) -> list[Entry]:
    found = _entries(settings)
    picked = {entry.id: entry for path in paths for entry in _named(found, path)}
    return list(picked.values())


def _named(found: Sequence[Entry], path: str) -> list[Entry]:
    """Those of that path, as it is or as the list shows it, else the one of that number."""
    from mistamover.lines import shown

    named = [entry for entry in found if path in (entry.path, shown(entry.path))]
    named = named or [entry for entry in found if path == str(entry.id)]
    if not named:
        raise Unknown(f"{shown(path)} is not in quarantine; mistamover quarantine list shows what is")
    return named
