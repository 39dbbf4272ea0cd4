"""``mistamover run``: move or mirror what is in a spool."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import click

from mistamover.cli.common import leave, say_last, shell_word, stream_command
from mistamover.cli.help import Command

if TYPE_CHECKING:
    from mistamover.concerns import Concerns
    from mistamover.events import Stop, Summary
    from mistamover.log import Log
    from mistamover.options import Settings
    from mistamover.worker import Worker

FINISH_WITHIN = 5.0
"""Seconds at most in which a single pass tells people what is wrong; what is left waits for the next one."""
REASONS = 3
"""For which things were skipped, named in the last line."""


@click.command(cls=Command, short_help="Move or mirror what is in a stream's spool.")
@click.option("--once", is_flag=True, help="One pass, then end; without it, passes until TERM or INT.")
@click.option("--now", is_flag=True, help="Try units that failed before at once, not when their time has come.")
@click.option("--dry-run", is_flag=True, help="Say what would be done and touch nothing.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each event, and one at the end.")
@click.option("-v", "--verbose", is_flag=True, help="Show every unit.")
@click.option("-q", "--quiet", is_flag=True, help="Show only what went wrong.")
@stream_command
def run(
    settings: Settings,
    *,
    once: bool,
    now: bool,
    dry_run: bool,
    as_json: bool,
    verbose: bool,
    quiet: bool,
    debug: bool,
) -> int:
    """Move or mirror what is in the spool of STREAM.ini.

    Each unit is sent, proven at the target, given its final name there, recorded,
    and only then removed from the spool:

        mistamover run --once images.ini

    Keep doing that, with a log for machines:

        mistamover run --json images.ini >images.jsonl

    TERM and INT let what is on its way end, or park it; a second one ends at once.

    Exit codes: 0 all done or nothing to do; 1 some unit failed, waits or was set
    aside; 2 usage or configuration; 3 the target cannot be reached or refuses us;
    4 somebody else holds the stream; 5 paused by a stop file, or not to run at all;
    130 interrupted.
    """
    if verbose and quiet:
        raise click.UsageError("-v and -q exclude each other.")
    if dry_run:
        from mistamover.cli.dry_run import tell_plan

        return tell_plan(settings, as_json=as_json, quiet=quiet)
    if settings.data_stream.status != "running":
        return _tell_stopped(settings)
    from mistamover.events import Stop
    from mistamover.log import Log
    from mistamover.worker import Worker, stop_on_signals

    stop = Stop()
    stop_on_signals(stop)
    with (
        Log(settings, _console_level(verbose=verbose, quiet=quiet), debug=debug) as log,
        _alerting(settings, log, once=once) as concerns,
    ):
        if as_json:
            summary = _with_json(settings, log, stop, concerns, once=once, now=now, verbose=verbose)
        else:
            worker = Worker(settings, log, stop=stop, now=now, concerns=concerns)
            summary = worker.run(once=once) if quiet else _with_display(worker, once=once)
            if not quiet:
                say_last(_last_line(worker))
    return leave(summary.exit)


def _tell_stopped(settings: Settings) -> int:
    from mistamover.errors import Exit
    from mistamover.lines import shown

    status, path = settings.data_stream.status, shown(str(settings.path))
    print(f"mistamover: {path}: [data_stream] status = {status}; set it to running to start it", file=sys.stderr)
    return Exit.PAUSED


def _console_level(*, verbose: bool, quiet: bool) -> int | None:
    import logging

    if verbose:
        return logging.DEBUG
    return logging.WARNING if quiet else None


@contextmanager
def _alerting(settings: Settings, log: Log, *, once: bool) -> Iterator[Concerns]:
    """Note what is wrong, and tell people of it where they want to know and no service does so."""
    from mistamover.board import Board
    from mistamover.concerns import Concerns
    from mistamover.stream import state_directory

    board = Board(state_directory(settings), settings.name, settings.email)
    log.listener = board.hear
    helper = None
    if settings.email.tells_somebody:
        from mistamover.post import Helper

        helper = Helper(settings.global_.state_dir, partial(log.tell, is_heard=False))
    try:
        yield Concerns(board, settings)
    finally:
        board.close()
        if helper is not None and once:
            helper.finish(FINISH_WITHIN)


def _with_json(
    settings: Settings, log: Log, stop: Stop, concerns: Concerns, *, once: bool, now: bool, verbose: bool
) -> Summary:
    from mistamover.cli.jsonl import Lines
    from mistamover.worker import Worker

    with Lines(settings, verbose=verbose) as lines:
        worker = Worker(settings, log, lines.event, stop, now=now, concerns=concerns)
        summary = worker.run(once=once)
        lines.summary(summary)
    return summary


def _with_display(worker: Worker, *, once: bool) -> Summary:
    if not sys.stderr.isatty():
        return worker.run(once=once)
    from mistamover.cli.display import Display

    with Display(worker):
        return worker.run(once=once)


def _last_line(worker: Worker) -> str:
    """What it all came to, and where to look."""
    parts = [worker.outcome(worker.total), _skipped(worker)]
    return "; ".join(filter(None, parts)) + _where_to_look(worker)


def _skipped(worker: Worker) -> str:
    reasons = worker.skipped.most_common(REASONS)
    total = worker.skipped.total()
    more = ", …" if len(worker.skipped) > REASONS else ""
    return (
        f"skipped {total:,} ({', '.join(f'{count:,} {reason}' for reason, count in reasons)}{more})"
        if total
        else ""
    )


def _where_to_look(worker: Worker) -> str:
    from mistamover.events import Kind

    path = shell_word(worker.settings.path)
    if worker.total.next_try:
        return f": mistamover history {path} --failed"
    return f": mistamover quarantine list {path}" if worker.total.counts[Kind.QUARANTINED] else ""
