"""The command line. Commands are imported when they are used: telling the version needs none of them."""

from __future__ import annotations

import os
import sys
from importlib import import_module

import click

from mistamover import __version__
from mistamover.cli.common import tell_usage, unwritable
from mistamover.cli.help import Group
from mistamover.errors import Exit
from mistamover.processes import leave_no_core

_COMMANDS = {
    "new": ("new:new", "Ask what a stream has to know, try it, and write its file."),
    "run": ("run:run", "Move or mirror what is in a stream's spool."),
    "check": ("check:check", "Look for faults in a stream's configuration, and at its target."),
    "history": ("history:history", "Show what was delivered, and what waits or failed."),
    "quarantine": ("quarantine:quarantine", "List, show and release units that were set aside."),
    "start": ("service:start", "Start the service: a worker for each stream file."),
    "stop": ("service:stop", "Stop the service."),
    "restart": ("service:restart", "Stop the service, if it runs, and start it."),
    "reload": ("service:reload_", "Have the service read its configuration again."),
    "status": ("status:status", "Show what the service and its streams do."),
    "disk": ("disk:disk", "Show the file systems of the streams: what is free, and for how long."),
    "pause": ("pause:pause", "Pause a stream."),
    "resume": ("pause:resume", "Have a paused stream go on."),
    "alerts": ("alerts:alerts", "Show what is wrong and who is told; silence or drop it; test."),
    "completion": ("completion:completion", "Print the script that completes commands in a shell."),
}


class Commands(Group):
    """A group that knows its commands by name, and imports the one that is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's
        """The commands, in the order of a person's way."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's
        """Import a command."""
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(f"mistamover.cli.{module}"), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's
        """List the commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, what) for name, (_, what) in _COMMANDS.items()])


@click.command(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="mistamover", message="%(prog)s %(version)s")
def _mistamover() -> None:
    """Move, mirror and stage files, each one proven at the target before its source is removed.

    A stream is one INI file: what is moved from where to where, and how.

        mistamover check --connect images.ini
        mistamover run --once images.ini
        mistamover history images.ini --failed

    Exit codes:

        0    all done, or nothing to do
        1    some unit failed, waits or was set aside
        2    usage or configuration
        3    the target cannot be reached, or refuses us
        4    somebody else holds the stream
        5    paused by a stop file, or by its configuration
        130  interrupted
    """


def _prepare_standard_streams() -> None:
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # It was closed: without this, the next file we open would get its number, and what is printed.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a letter must not end a run.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def main() -> int:
    """Run the command line; gives the exit code."""
    _prepare_standard_streams()
    leave_no_core()
    try:
        code = int(_mistamover.main(prog_name="mistamover", standalone_mode=False) or Exit.DONE)
        sys.stdout.flush()
    except OSError as error:
        return unwritable(error)
    except click.ClickException as error:
        return tell_usage(error)
    except (click.Abort, KeyboardInterrupt):
        return Exit.INTERRUPTED
    return code
