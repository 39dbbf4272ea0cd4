"""``mistamover history``: what the ledger of a stream says."""

from __future__ import annotations

import re
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mistamover.cli.common import record_command
from mistamover.cli.help import Command
from mistamover.errors import Exit

if TYPE_CHECKING:
    from mistamover.ledger import Entry
    from mistamover.options import Settings

LIMIT = 1000
"""Rows of the table where no other limit is given: more than anybody reads, and soon drawn."""
DIGITS = 12
"""Of a digest, in the table."""
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


class Since(click.ParamType[float]):
    """A time span before now, or a local date and time; as seconds since the epoch."""

    name = "when"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read ``2h``, ``3d``, ``2026-11-23`` or ``2026-11-23T10:00``."""
        if isinstance(value, float):
            return value
        if span := re.fullmatch(r"(\d+)([smhdw])", value):
            return time.time() - int(span[1]) * _UNITS[span[2]]
        from datetime import datetime

        try:
            return datetime.fromisoformat(value).timestamp()
        except (ValueError, OverflowError, OSError):
            self.fail("give a span (30m, 2h, 3d) or a date (2026-11-23, 2026-11-23T10:00)", param, ctx)


@click.command(cls=Command, short_help="Show what was delivered, and what waits or failed.")
@click.option("--failed", is_flag=True, help="Only units that wait for another try or are in quarantine.")
@click.option(
    "--since", type=Since(), default=0.0, metavar="WHEN", help="Only what changed since: 2h, 3d, 2026-11-23."
)
@click.option(
    "--limit",
    type=click.IntRange(0),
    metavar="N",
    help=f"Only the last N; 0: all. [default: {LIMIT}; of --json: all]",
)
@click.option("--files", "with_files", is_flag=True, help="Below each directory that was delivered, its files.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each row.")
@click.option("-v", "--verbose", is_flag=True, help="Whole digests.")
@record_command
def history(
    settings: Settings,
    *,
    failed: bool,
    since: float,
    limit: int | None,
    with_files: bool,
    as_json: bool,
    verbose: bool,
) -> int:
    """Show the record of STREAM.ini, oldest first. It may be read while the stream runs.

    What failed since yesterday, and why:

        mistamover history images.ini --failed --since 1d

    Everything, for machines:

        mistamover history images.ini --json
    """
    from mistamover.ledger import entries
    from mistamover.stream import state_directory
    from mistamover.unit import State

    path = state_directory(settings) / "ledger.sqlite"
    if not path.exists():
        return _say_nothing(f"no record yet: nothing was delivered, and nothing failed ({path})", as_json=as_json)
    states = (State.WAITING, State.QUARANTINED) if failed else ()
    is_mirror = settings.outgoing.transfer_mode == "mirror"
    found: Iterable[Entry] = entries(path, states=states, since=since, unanswered=failed and is_mirror)
    if with_files:
        found = _with_files(path, found)
    if as_json:
        return _tell_lines(_last(found, limit or 0))
    most = LIMIT if limit is None else limit
    rows = _last(found, most + 1 if most else 0)
    if most and len(rows) > most:
        del rows[0]
        click.echo(f"only the last {most:,}; --limit 0 shows all", err=True)
    if not rows:
        return _say_nothing(_why_nothing(settings, failed=failed, since=since), as_json=False)
    _tell_people(rows, verbose=verbose)
    return Exit.DONE


def _with_files(path: Path, found: Iterable[Entry]) -> Iterator[Entry]:
    """The rows, and after that of a directory one for each file that was in it."""
    from mistamover.ledger import contents

    for entry in found:
        yield entry
        for content in contents(path, entry.id):
            yield entry._replace(path=content.path, size=content.size, digest=content.digest)


def _why_nothing(settings: Settings, *, failed: bool, since: float) -> str:
    if failed:
        return "nothing waits or is in quarantine"
    if since:
        return "nothing in that time"
    arrivals = "; of what arrived the log tells" if settings.incoming.require_arrival_monitor else ""
    return f"nothing was delivered yet, and nothing failed{arrivals}"


def _last(found: Iterable[Entry], limit: int) -> list[Entry]:
    return list(deque(found, maxlen=limit or None))


def _say_nothing(text: str, *, as_json: bool) -> int:
    from mistamover.lines import safe

    click.echo(safe(text), err=as_json)
    return Exit.DONE


# -- for machines ------------------------------------------------------------------------------------------


def _tell_lines(rows: Iterable[Entry]) -> int:
    from mistamover.cli.jsonl import encode

    for entry in rows:
        sys.stdout.write(encode(_fields(entry)) + "\n")
    return Exit.DONE


def _fields(entry: Entry) -> dict[str, Any]:
    from mistamover.cli.jsonl import moment
    from mistamover.lines import redacted

    return {
        "id": entry.id,
        "state": entry.state.value,
        "path": entry.path,
        "target": entry.target,
        "bytes": entry.size,
        "digest": entry.digest,
        "algorithm": entry.algorithm,
        "proof": entry.proof,
        "attempts": entry.attempts,
        "next_try": moment(entry.next_try) if entry.next_try else "",
        "reason": redacted(entry.reason),
        "time": moment(entry.changed),
    }


# -- for people --------------------------------------------------------------------------------------------

_HEADS = ("when", "state", "size", "proof", "digest", "path", "reason")


def _tell_people(rows: Iterable[Entry], *, verbose: bool) -> None:
    tell_table(_HEADS, (_cells(entry, verbose=verbose) for entry in rows), right="size")


def tell_table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]], right: str = "") -> None:
    """Print a table, as wide as a terminal or as its cells; the column called ``right`` is flush with the right."""
    if sys.stdout.isatty():
        from mistamover.cli.display import show_table

        show_table(heads, rows, right=right)
    else:
        for line in aligned([heads, *rows], right={number for number, head in enumerate(heads) if head == right}):
            click.echo(line)


def _cells(entry: Entry, *, verbose: bool) -> tuple[str, ...]:
    from mistamover.lines import safe, shown, size
    from mistamover.stream import when

    digest = entry.digest if verbose else entry.digest[:DIGITS]
    again = f"; next try {when(entry.next_try)}" if entry.next_try else ""
    reason = safe(entry.reason) + again
    amount = size(entry.size)
    return when(entry.changed), entry.state.value, amount, entry.proof, digest, shown(entry.path), reason


def aligned(rows: list[tuple[str, ...]], right: set[int] | None = None) -> Iterator[str]:
    """Rows as lines with their columns below each other; the last one is not filled up."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.rjust(width) if right and number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
