"""``mistamover start``, ``stop``, ``restart`` and ``reload``: the service."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mistamover.cli.common import (
    not_running,
    running_service_command,
    service_command,
    shell_word,
    start_command,
)
from mistamover.cli.help import Command
from mistamover.errors import Exit, Unknown

if TYPE_CHECKING:
    from mistamover.options import ServiceSettings

_FOREGROUND = click.option(
    "--foreground",
    is_flag=True,
    help="Stay in the foreground, for systemd and containers; log to standard error too.",
)


@click.command(cls=Command, short_help="Start the service: a worker for each stream file.")
@_FOREGROUND
@service_command
def start(settings: ServiceSettings, *, foreground: bool) -> int:
    """Start the service: one worker for each stream file of [global] config_dir.

    For example, with /etc/mistamover/global.ini, and with a file of your own:

        mistamover start
        mistamover start --config ~/mistamover/global.ini

    It returns when each worker is up, or it is known why not. Stream files that come,
    change or go later are followed without a restart.

    Exit codes: 0 all streams are up; 1 some are not, and the service runs with the
    others; 2 configuration; 4 the service runs already.
    """
    return _start(settings, foreground=foreground)


def _start(settings: ServiceSettings, *, foreground: bool) -> int:
    from mistamover import config, service

    config.stream_files(settings)  # raises where they cannot be listed
    places = service.prepare(settings)
    if settings.obsolete:
        path = shell_word(settings.path)
        click.echo(f"{path} was made for 0.1.0: mistamover check --config {path} tells what differs")
    run = service.run_in_foreground if foreground else service.run_in_background
    return run(settings, places, click.echo)


@click.command(cls=Command, short_help="Stop the service.")
@running_service_command
def stop(settings: ServiceSettings) -> int:
    """Stop the service: batches that are on their way end, or are parked within stop_timeout.

    It returns when all of the service is gone:

        mistamover stop

    Exit codes: 0 it has ended, or did not run.
    """
    from mistamover import service

    click.echo("stopped" if service.stop(settings) else not_running(settings))
    return Exit.DONE


@click.command(cls=Command, short_help="Stop the service, if it runs, and start it.")
@_FOREGROUND
@service_command
def restart(settings: ServiceSettings, *, foreground: bool) -> int:
    """Stop the service, if it runs, and start it. For changes of stream files, reload is enough.

    For example:

        mistamover restart

    Exit codes: as those of start.
    """
    from mistamover import service

    service.stop(settings)
    return _start(settings, foreground=foreground)


@click.command("reload", cls=Command, short_help="Have the service read its configuration again.")
@running_service_command
def reload_(settings: ServiceSettings) -> int:
    """Have the service read the global file and all stream files again, and try streams that rest.

    A stream whose settings changed takes them after its batch; the others go on:

        mistamover reload

    Exit codes: 0 taken up; 1 some file is wrong, and its earlier version goes on, or
    the service does not run; 2 the global file is wrong.
    """
    from mistamover import service
    from mistamover.lines import safe

    told = service.reload(settings.global_.state_dir)
    if told is None:
        click.echo(f"{not_running(settings)}; {start_command(settings)} starts it")
        return Exit.UNFINISHED
    findings = [*told.findings, *(line for one in told.streams.values() for line in one.findings)]
    for line in findings:
        click.echo(safe(line))
    count = len(told.streams)
    click.echo(f"read again: {count} {'stream' if count == 1 else 'streams'}")
    return Exit.UNFINISHED if findings else Exit.DONE


def stream_path(settings: ServiceSettings, name: str) -> Path:
    """The file of the stream that status calls so, or else of that name; ``Unknown`` where there is none."""
    from mistamover import config, heartbeat
    from mistamover.lines import shown

    known = {path.stem.removeprefix("ds_"): path for path in config.stream_files(settings)}
    running = heartbeat.read_service(settings.global_.state_dir).streams
    known |= {stream: Path(one.path) for stream, one in running.items() if Path(one.path) in known.values()}
    if name not in known:
        there = f"there are {', '.join(map(shown, known))}" if known else "there are none"
        raise Unknown(f"no stream is called {shown(name)}; {there}")
    return known[name]
