"""``mistamover disk``: the file systems of the streams, and how the free space of any path changes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mistamover.cli.common import free_command, load_service
from mistamover.cli.help import Command
from mistamover.errors import ConfigError, Exit, Unknown

if TYPE_CHECKING:
    from mistamover.disk import Space, Trend
    from mistamover.heartbeat import Disk
    from mistamover.options import ServiceSettings, Settings

EVERY = 2.0
"""Seconds between two lines of ``--watch``."""
HEADS = ("  mount", "level", "free", "of", "inodes", "change", "full in", "streams")


@click.command(cls=Command, short_help="Show the file systems of the streams: what is free, and for how long.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object on each line.")
@click.option(
    "--watch",
    metavar="PATH",
    type=click.Path(exists=True, path_type=Path),
    help="Show how the free space of PATH changes, until Ctrl-C; needs no configuration.",
)
@free_command
def disk(global_file: Path | None, *, as_json: bool, watch: Path | None) -> int:
    """Show each file system that holds spools or local targets: its level, free bytes and inodes.

    For example:

        mistamover disk
        mistamover disk --watch /data

    While the service runs, its monitor says how fast free space changes, and when it
    will be used up at this rate. A stream in brackets is stopped by the monitor.

    Exit codes: 0 all is well; 1 some file system is low, or streams are stopped for it;
    2 usage or configuration.
    """
    if watch is not None:
        _watch(watch, as_json=as_json)
    disks = _disks(load_service(global_file, only_place=True))
    for line in map(_as_json, disks) if as_json else _lines(disks):
        click.echo(line)
    return Exit.UNFINISHED if any(one.needs_a_person for one in disks) else Exit.DONE


def _disks(settings: ServiceSettings) -> Sequence[Disk]:
    """What the monitor says, or what can be seen without it."""
    from mistamover import heartbeat
    from mistamover.monitor import Monitor
    from mistamover.service import is_running

    state_dir = settings.global_.state_dir
    told = heartbeat.read_disks(state_dir) if is_running(state_dir) else []
    return told or Monitor(state_dir, settings.disk_space_monitor, lambda _level, _line: None).picture(
        _streams(settings)
    )


def _streams(settings: ServiceSettings) -> Iterator[Settings]:
    """The streams whose files can be used; what is wrong with the others is said by ``check`` and ``status``."""
    from mistamover import config

    for path in config.stream_files(settings):
        try:
            yield config.load(path, settings.path, only_record=True)
        except ConfigError:
            continue


# -- for people --------------------------------------------------------------------------------------------


def _lines(disks: Sequence[Disk]) -> Iterator[str]:
    from mistamover.cli.history import aligned
    from mistamover.lines import safe

    if not disks:
        yield "no stream, and so no file system, is there"
        return
    head, *table = aligned([HEADS, *map(_cells, disks)], right={2, 3, 4, 5, 6})
    yield head
    for one, line in zip(disks, table, strict=True):
        yield click.style(line, fg="red", bold=True) if one.needs_a_person else line
        yield from (f"      {safe(text)}" for text in one.trouble)


def _cells(one: Disk) -> tuple[str, ...]:
    from mistamover.lines import duration, shown, size

    names = (f"[{shown(name)}]" if name in one.stopped else shown(name) for name in one.streams)
    return (
        f"{'! ' if one.needs_a_person else '  '}{shown(one.mount)}",
        one.level,
        size(one.free),
        size(one.total),
        "" if one.inodes is None else f"{one.inodes:,}",
        _change(one.rate),
        "" if one.full_in is None else duration(one.full_in),
        " ".join(names),
    )


def _change(rate: float | None) -> str:
    from mistamover.lines import size

    return "" if rate is None else f"{'-' if rate < 0 else '+'}{size(abs(rate))}/s"


def _as_json(one: Disk) -> str:
    from mistamover.cli.jsonl import encode

    return encode(asdict(one))


# -- watching ----------------------------------------------------------------------------------------------


def _watch(path: Path, *, as_json: bool) -> None:
    """Tell the free space again and again."""
    from mistamover import disk
    from mistamover.lines import shown

    trend = disk.Trend()
    while True:
        try:
            space = disk.space(path)
        except OSError as error:
            raise Unknown(f"{shown(str(path))}: {error.strerror}; give a path that is there") from error
        trend.add(disk.Sample(time.monotonic(), space.free, space.inodes))
        click.echo(_watched_json(space, trend) if as_json else _watched(space, trend))
        sys.stdout.flush()
        time.sleep(EVERY)


def _watched(space: Space, trend: Trend) -> str:
    from math import isfinite

    from mistamover import disk
    from mistamover.lines import duration, size

    left = disk.full_in(space, trend)
    inodes = "" if space.inodes is None else f"{space.inodes:,} inodes"
    until = f"full in {duration(left)}" if isfinite(left) else ""
    free = f"{size(space.free)} free"
    return f"{time.strftime('%H:%M:%S')}  {free:>14}  {_change(trend.rate):>12}  {inodes:>20}  {until}".rstrip()


def _watched_json(space: Space, trend: Trend) -> str:
    from math import isfinite

    from mistamover import disk
    from mistamover.cli.jsonl import encode, moment

    left = disk.full_in(space, trend)
    return encode(
        {
            "time": moment(time.time()),
            "free": space.free,
            "total": space.total,
            "inodes": space.inodes,
            "rate": trend.rate,
            "full_in": left if isfinite(left) else None,
        }
    )
