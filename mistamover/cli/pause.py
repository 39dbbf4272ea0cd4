"""``mistamover pause`` and ``resume``: the stop file in a stream's spool."""

from __future__ import annotations

import getpass
import os
import time
from pathlib import Path

import click

from mistamover.cli.common import free_command, load, load_service
from mistamover.cli.help import Command
from mistamover.errors import Exit, SpoolError


@click.command(cls=Command, short_help="Pause a stream.")
@click.argument("name")
@click.option("--reason", default="", help="Why: status shows it.")
@free_command
def pause(global_file: Path | None, *, name: str, reason: str) -> int:
    """Pause the stream NAME after the batch that is on its way, until it is resumed.

    For example:

        mistamover pause images --reason "the archive is moved to new disks"

    It writes the stop file into the stream's spool; NAME may be the path of a stream
    file too. Exit codes: 0 it is paused; 1 the stop file cannot be written; 2 no such
    stream.
    """
    from mistamover.lines import one_line, shown

    path = _stop_file(global_file, name)
    said = f"paused by {user()} at {time.strftime('%Y-%m-%d %H:%M:%S')}: {reason or 'no reason'}"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        already = "" if _take_over(path, one_line(said)) else " already"
        if not os.path.lexists(path):
            raise SpoolError(f"{path}: somebody has just removed it; pause the stream again") from None
        click.echo(f"paused{already}, by {shown(str(path))}")
        return Exit.DONE
    except OSError as error:
        raise SpoolError(f"{path}: {error.strerror}; the stream goes on") from error
    try:
        with os.fdopen(fd, "w") as file:
            file.write(f"{one_line(said)}\n")
    except OSError as error:
        click.echo(f"paused, by {shown(str(path))}; the reason could not be written: {error.strerror}")
    else:
        click.echo(f"paused, by {shown(str(path))}")
    return Exit.DONE


def _take_over(path: Path, said: str) -> bool:
    """Whether it was the disk space monitor that had paused the stream: from now on it is a person, too."""
    from mistamover import stop_files

    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return stop_files.take_over(directory, path.name, said)
    except OSError as error:
        raise SpoolError(f"{path}: {error.strerror}; the stream goes on when the disk has room") from error
    finally:
        os.close(directory)


def user() -> str:
    """Who is at the command line."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # containers know numbers that have no name
        return f"user {os.getuid()}"


@click.command(cls=Command, short_help="Have a paused stream go on.")
@click.argument("name")
@free_command
def resume(global_file: Path | None, *, name: str) -> int:
    """Have the stream NAME go on: remove the stop file from its spool.

    For example:

        mistamover resume images

    NAME may be the path of a stream file too. Exit codes: 0 it is not paused; 1 the stop
    file cannot be removed; 2 no such stream.
    """
    from mistamover.lines import shown

    path = _stop_file(global_file, name)
    try:
        path.unlink()
    except FileNotFoundError:
        click.echo("it was not paused")
    except OSError as error:
        raise SpoolError(f"{path}: {error.strerror}; the stream stays paused") from error
    else:
        click.echo(f"goes on: {shown(str(path))} is removed")
    return Exit.DONE


def _stop_file(global_file: Path | None, name: str) -> Path:
    """The stop file of a stream, by its name in the service, or by the path of its file, which needs no service."""
    from mistamover.cli.service import stream_path

    path = Path(name)
    if os.sep not in name and path.suffix != ".ini":
        service = load_service(global_file, only_place=True)
        path, global_file = stream_path(service, name), service.path
    stream = load(path, global_file, only_record=True)
    return stream.data_stream.directory / stream.incoming.stop_file
