"""``mistamover run --dry-run``: what a pass would do. Reads only."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import click

from mistamover.errors import Exit
from mistamover.events import Event, Kind
from mistamover.lines import files, safe, shown, size
from mistamover.plan import plan

if TYPE_CHECKING:
    from mistamover.options import Settings

_WORDS = {
    Kind.WOULD_SEND: "would send",
    Kind.WOULD_REMOVE: "would remove",
    Kind.SETTLING: "would wait for",
    Kind.WAITING: "waits",
    Kind.QUARANTINED: "in quarantine",
    Kind.SKIPPED: "skipped",
    Kind.UNCHANGED: "unchanged",
    Kind.PAUSED: "paused",
}


def tell_plan(settings: Settings, *, as_json: bool, quiet: bool) -> int:
    """Say what a pass would do with each unit, and why it would skip what it would skip."""
    if as_json:
        _tell_lines(settings)
    else:
        _tell_people(settings, quiet=quiet)
    return Exit.DONE


def _tell_people(settings: Settings, *, quiet: bool) -> None:
    counts: Counter[Kind] = Counter()
    amount, unit = 0, settings.data_stream.transfer_unit
    for event in plan(settings):
        counts[event.kind] += 1
        if event.kind is Kind.WOULD_SEND and event.unit is not None:
            amount += event.unit.size
        if not quiet:
            click.echo(_line(event))
    rest = [f"{count:,} {_WORDS[kind]}" for kind, count in counts.items() if kind is not Kind.WOULD_SEND]
    click.echo("; ".join([f"would send {files(counts[Kind.WOULD_SEND], unit)}, {size(amount)}", *rest]))


def _line(event: Event) -> str:
    parts = [_WORDS[event.kind], shown(event.path)]
    if event.unit is not None:
        parts.append(size(event.unit.size))
    return safe(": ".join(filter(None, [*parts, event.reason])))


def _tell_lines(settings: Settings) -> None:
    from mistamover.cli.jsonl import Lines

    counts: Counter[str] = Counter()
    with Lines(settings, verbose=True) as lines:
        for event in plan(settings):
            counts[event.kind.value] += 1
            lines.event(event)
        lines.last({kind.value: counts[kind.value] for kind in _WORDS} | {"exit": int(Exit.DONE)})
