"""``mistamover status``: what the service and each of its streams do."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from mistamover.cli.common import not_running, running_service_command, start_command
from mistamover.cli.help import Command
from mistamover.errors import Exit, Unknown

if TYPE_CHECKING:
    from mistamover.alert import Condition
    from mistamover.heartbeat import Disk, Heartbeat, Service, Standing, State
    from mistamover.options import ServiceSettings

EVERY = 2.0
"""Seconds between two pictures of ``--watch``."""
HEADS = ("  stream", "state", "since", "waiting", "today", "rate", "failed", "quarantine", "oldest", "next try")


ALWAYS = 5
"""How many of these are always shown; the others where they say something."""
_RIGHT = {3, 4, 5, 6, 7}


class Row(NamedTuple):
    """What is told of one stream."""

    name: str
    state: State
    since: float
    why: str
    told: Heartbeat
    standing: Standing
    conditions: tuple[Condition, ...] = ()
    """All that is wrong."""

    @property
    def needs_a_person(self) -> bool:
        """Whether it stands out."""
        from mistamover.heartbeat import NEEDS_A_PERSON

        return self.state in NEEDS_A_PERSON or bool(self.standing.findings or self.told.quarantined or self.alarms)

    @property
    def alarms(self) -> list[Condition]:
        """What is wrong that neither the state nor a column tells."""
        from mistamover.alert import NEED_A_PERSON

        return [one for one in self.conditions if one.trouble in NEED_A_PERSON]


@click.command(cls=Command, short_help="Show what the service and its streams do.")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--watch", is_flag=True, help="Show it again and again, until Ctrl-C.")
@running_service_command
def status(settings: ServiceSettings, *, name: str | None, as_json: bool, watch: bool) -> int:
    """Show what the service does, and each stream, or only the stream NAME.

    For example:

        mistamover status
        mistamover status images --json

    Below a stream stands why it is as it is. One that needs a person is marked with "!".

    Exit codes: 0 all is well; 1 some stream needs a person, a file system is low, or the
    service does not run; 2 usage, or no such stream.
    """
    if not watch:
        return _show(settings, name, as_json=as_json)
    while True:
        if sys.stdout.isatty() and not as_json:
            click.clear()
        _show(settings, name, as_json=as_json)
        sys.stdout.flush()
        time.sleep(EVERY)


def _show(settings: ServiceSettings, name: str | None, *, as_json: bool) -> int:
    from mistamover import heartbeat
    from mistamover.lines import shown
    from mistamover.service import is_running

    state_dir = settings.global_.state_dir
    service = heartbeat.read_service(state_dir)
    runs = is_running(state_dir)
    rows = [row for row in read(state_dir, service) if name in (None, row.name)]
    disks = [one for one in heartbeat.read_disks(state_dir) if runs and (name is None or name in one.streams)]
    if name is not None and not rows:
        there = ", ".join(map(shown, service.streams)) or "none"
        raise Unknown(f"the service has no stream {shown(name)}; it has {there}")
    if not as_json and not runs:
        click.echo(f"{not_running(settings)}; {start_command(settings)} starts it")
    for line in _json(service, rows, disks, runs=runs) if as_json else _lines(service, rows, disks, runs=runs):
        click.echo(line)
    marked = any(row.needs_a_person for row in rows) or any(one.needs_a_person for one in disks)
    is_well = runs and not service.findings and not marked
    return Exit.DONE if is_well else Exit.UNFINISHED


def read(state_dir: Path, service: Service) -> list[Row]:
    """What is known of each stream of the service, by name."""
    from mistamover.board import read_conditions
    from mistamover.heartbeat import read_heartbeat
    from mistamover.supervisor import state_of

    rows = []
    for name, standing in sorted(service.streams.items()):
        told = read_heartbeat(state_dir / name)
        conditions = read_conditions(state_dir / name)
        rows.append(Row(name, *state_of(standing, told, time.time()), told, standing, conditions))
    return rows


# -- for people --------------------------------------------------------------------------------------------


def _lines(service: Service, rows: Sequence[Row], disks: Sequence[Disk], *, runs: bool) -> Iterator[str]:
    from mistamover.lines import safe
    from mistamover.stream import when

    if runs:
        doing = "stops" if service.is_ending else "runs"
        yield f"the service {doing} since {when(service.since)} (process {service.pid}, version {service.version})"
    elif rows:
        yield "as it was left:"
    yield from map(safe, service.findings)
    if not rows:
        if runs:
            yield "it has no streams"
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    head, *table = table_of([_cells(row, time.time()) for row in rows], width)
    yield from head
    for row, (line, *more) in zip(rows, table, strict=True):
        yield click.style(line, fg="red", bold=True) if row.needs_a_person else line
        yield from (f"      {safe(text)}" for text in (*more, *_reasons(row)))
    yield from map(_disk_line, disks)


def table_of(rows: Sequence[tuple[str, ...]], width: int | None) -> list[list[str]]:
    """The heads and each row, as one line or, where that would be wider than ``width``, as two.

    What no row says anything about is left out.
    """
    used = [number for number in range(len(HEADS)) if number < ALWAYS or any(row[number] for row in rows)]
    lines = _in_columns(rows, used)
    if width is None or max(map(len, lines)) <= width:
        return [[line] for line in lines]
    rest = ["", *(_in_words(row, used[ALWAYS:]) for row in rows)]
    return [list(filter(None, both)) for both in zip(_in_columns(rows, used[:ALWAYS]), rest, strict=True)]


def _in_columns(rows: Sequence[tuple[str, ...]], numbers: Sequence[int]) -> list[str]:
    from mistamover.cli.history import aligned

    right = {place for place, number in enumerate(numbers) if number in _RIGHT}
    return list(aligned([tuple(row[number] for number in numbers) for row in (HEADS, *rows)], right=right))


def _in_words(row: tuple[str, ...], numbers: Sequence[int]) -> str:
    return ", ".join(f"{HEADS[number]} {row[number]}" for number in numbers if row[number])


def _disk_line(disk: Disk) -> str:
    from mistamover.lines import shown, size

    stopped = f"; stopped: {', '.join(map(shown, disk.stopped))}" if disk.stopped else ""
    more = "; mistamover disk shows more" if disk.needs_a_person else ""
    line = f"disk {shown(disk.mount)}: {disk.level}, {size(disk.free)} free{stopped}{more}"
    return click.style(f"! {line}", fg="red", bold=True) if disk.needs_a_person else f"  {line}"


def _cells(row: Row, now: float) -> tuple[str, ...]:
    from mistamover.lines import shown, size

    told = row.told
    waiting = f"{told.waiting:,}, {size(told.waiting_bytes)}" if told.waiting else "0"
    is_today = told.day == time.strftime("%Y-%m-%d", time.localtime(now))
    today = f"{told.delivered:,}, {size(told.delivered_bytes)}" if is_today and told.delivered else "0"
    return (
        f"{'! ' if row.needs_a_person else '  '}{shown(row.name)}",
        row.state.value,
        moment(row.since, now),
        waiting,
        today,
        f"{size(told.rate)}/s" if told.rate else "",
        f"{told.failed:,}" if told.failed else "",
        f"{told.quarantined:,}" if told.quarantined else "",
        moment(told.oldest, now),
        moment(told.next_try, now),
    )


def moment(when: float, now: float) -> str:
    """A time for a narrow column: that of the day where it is today's, else its date; empty for none."""
    if not when:
        return ""
    try:
        then, today = time.localtime(when), time.localtime(now)
    except (OverflowError, OSError, ValueError):
        return "?"  # a year that nobody has a calendar for
    return time.strftime("%H:%M:%S" if then[:3] == today[:3] else "%Y-%m-%d", then)


def _reasons(row: Row) -> Iterator[str]:
    from mistamover.cli.common import shell_word

    if row.why:
        yield row.why
    elif row.told.last_error and (row.told.failed or row.told.quarantined):
        yield f"last: {row.told.last_error}"
    yield from row.standing.findings if row.why not in row.standing.findings else ()
    yield from (f"{one.trouble.value}: {one.reason}" for one in row.alarms)
    if row.told.quarantined:
        yield f"mistamover quarantine list {shell_word(Path(row.standing.path))}"


# -- for machines ------------------------------------------------------------------------------------------


def _json(service: Service, rows: Sequence[Row], disks: Sequence[Disk], *, runs: bool) -> Iterator[str]:
    from mistamover.lines import redacted

    told: dict[str, Any] = {
        "running": runs,
        "pid": service.pid,
        "since": service.since,
        "version": service.version,
        "config": service.config,
        "findings": service.findings,
        "streams": {row.name: _members(row) for row in rows},
        "disks": [asdict(one) for one in disks],
    }
    yield redacted(json.dumps(told))


def _members(row: Row) -> dict[str, Any]:
    told = asdict(row.told) | {"pid": row.standing.pid}
    return told | {
        "state": row.state.value,
        "since": row.since,
        "why": row.why,
        "needs_a_person": row.needs_a_person,
        "file": row.standing.path,
        "findings": row.standing.findings,
        "deaths": row.standing.deaths,
        "conditions": [one.trouble.word for one in row.conditions],
    }
