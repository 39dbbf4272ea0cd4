"""What the commands share: their options, the settings, and how errors reach a person."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from mistamover.errors import ConfigError, Exit, MistamoverError

if TYPE_CHECKING:
    from mistamover.options import ServiceSettings, Settings

INDENT = " " * 4
WIDEST, NARROWEST = 94, 20
"""Columns of a paragraph."""
_Function = TypeVar("_Function", bound=Callable[..., Any])


def stream_command(function: Callable[..., int]) -> Callable[..., int]:
    """A command about one stream: STREAM.ini, --config and --debug, and its errors as lines for a person."""
    return _command(function, only_record=False)


def record_command(function: Callable[..., int]) -> Callable[..., int]:
    """The same, where it only deals with the stream's record: nothing that a log-in needs has to be there."""
    return _command(function, only_record=True)


def service_command(function: Callable[..., int]) -> Callable[..., int]:
    """A command about the service: --config and --debug, and its errors as lines for a person."""
    return _service_command(function, only_place=False)


def running_service_command(function: Callable[..., int]) -> Callable[..., int]:
    """The same, where it only has to find the service that runs: nothing that a start needs has to be there."""
    return _service_command(function, only_place=True)


def free_command(function: Callable[..., int]) -> Callable[..., int]:
    """A command that needs no configuration, or reads it by itself: --config and --debug, and errors as lines."""

    @wraps(function)
    def guarded(global_file: Path | None, *, debug: bool, **options: Any) -> int:
        return _guarded(lambda: function(global_file, **options), debug=debug)

    for option in (_CONFIG, _DEBUG):
        guarded = option(guarded)
    return guarded


def _service_command(function: Callable[..., int], *, only_place: bool) -> Callable[..., int]:
    @wraps(function)
    def guarded(global_file: Path | None, *, debug: bool, **options: Any) -> int:
        return _guarded(lambda: function(load_service(global_file, only_place=only_place), **options), debug=debug)

    for option in (_CONFIG, _DEBUG):
        guarded = option(guarded)
    return guarded


def _command(function: Callable[..., int], *, only_record: bool) -> Callable[..., int]:
    @wraps(function)
    def guarded(stream_file: Path, global_file: Path | None, *, debug: bool, **options: Any) -> int:
        if wants_debug:
            options["debug"] = debug
        return _guarded(
            lambda: function(load(stream_file, global_file, only_record=only_record), **options), debug=debug
        )

    wants_debug = "debug" in function.__annotations__
    for option in (_STREAM, _CONFIG, _DEBUG):
        guarded = option(guarded)
    return guarded


def file_command(function: Callable[..., int]) -> Callable[..., int]:
    """A command that reads its files itself: --config and --debug, and its errors as lines for a person."""

    @wraps(function)
    def guarded(*, debug: bool, **options: Any) -> int:
        return _guarded(lambda: function(**options), debug=debug)

    for option in (_CONFIG, _DEBUG):
        guarded = option(guarded)
    return guarded


def _guarded(command: Callable[[], int], *, debug: bool) -> int:
    """Run a command; what goes wrong becomes lines for a person, and its exit code."""
    try:
        return command()
    except MistamoverError as error:
        if debug:
            _tell_traceback()
        return tell_error(error)
    except OSError as error:
        return unwritable(error) if _is_output_stuck() else _tell_fault(error, debug=debug)
    except (KeyboardInterrupt, click.Abort, click.ClickException, click.exceptions.Exit):
        raise
    except Exception as error:  # noqa: BLE001 - a fault of ours: one line for it too
        return _tell_fault(error, debug=debug)


_STREAM = click.argument("stream_file", metavar="STREAM.ini", type=click.Path(path_type=Path))
_CONFIG = click.option(
    "--config",
    "global_file",
    metavar="GLOBAL.ini",
    type=click.Path(path_type=Path),
    help="The global file, instead of /etc/mistamover/global.ini.",
)
_DEBUG = click.option("--debug", is_flag=True, help="Show tracebacks, and what libraries log.")


def load(stream_file: Path, global_file: Path | None, *, only_record: bool) -> Settings:
    """The settings of a stream; from here on its secrets are shown nowhere."""
    from mistamover import config, lines

    settings = config.load(stream_file, config.find_global(global_file), only_record=only_record)
    lines.hide_secrets(settings)
    return settings


def load_service(global_file: Path | None, *, only_place: bool) -> ServiceSettings:
    """The settings of the service; raises ``ConfigError`` where there is no global file."""
    from mistamover import config

    found = config.find_global(global_file)
    if found is None:
        raise ConfigError(
            [f"the service needs a global file; write {config.SYSTEM_GLOBAL}, or give --config GLOBAL.ini"]
        )
    return config.load_service(found, only_place=only_place)


def not_running(settings: ServiceSettings) -> str:
    """That the service does not run, and where that was looked for: another user may mean another place."""
    from mistamover.lines import shown

    return f"the service does not run (state directory {shown(str(settings.global_.state_dir))})"


def start_command(settings: ServiceSettings) -> str:
    """What to type to have it run."""
    from mistamover import config

    given = "" if settings.path == config.SYSTEM_GLOBAL else f" --config {shell_word(settings.path)}"
    return f"mistamover start{given}"


def tell_error(error: MistamoverError) -> int:
    """Say what is wrong, one line for each thing; gives the exit code."""
    from mistamover.lines import safe

    for line in str(error).splitlines():
        print(f"mistamover: {safe(line)}", file=sys.stderr)
    return error.exit


def tell_usage(error: click.ClickException) -> int:
    """Say what is wrong with a command line, and where to see how it should be."""
    from mistamover.lines import safe

    context = error.ctx if isinstance(error, click.UsageError) else None
    if context and error.format_message() == context.get_help():  # nothing was given where something has to be
        error.show()
        return Exit.USAGE
    what = " ".join(error.format_message().split()).removesuffix(".")
    hint = f"{'' if what.endswith('?') else ';'} {context.command_path} --help shows how" if context else ""
    print(f"mistamover: {safe(what[:1].lower() + what[1:])}{hint}", file=sys.stderr)
    return Exit.USAGE


def _tell_fault(error: Exception, *, debug: bool) -> int:
    from mistamover.lines import safe

    if debug:
        _tell_traceback()
    hint = "" if debug else "; --debug shows where"
    print(f"mistamover: {safe(f'{type(error).__name__}: {error}')}{hint}", file=sys.stderr)
    return Exit.UNFINISHED


def _tell_traceback() -> None:
    import traceback

    from mistamover.lines import safe

    for line in traceback.format_exc().splitlines():
        print(safe(line), file=sys.stderr)


def _is_output_stuck() -> bool:
    """Whether what was printed cannot be written: then that is what an ``OSError`` is about."""
    try:
        sys.stdout.flush()
    except OSError:
        return True
    return False


def unwritable(error: OSError) -> int:
    """Standard output cannot be written. That whoever read it has enough is no fault, and not worth a word."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python would complain when it flushes at its end
    if isinstance(error, BrokenPipeError):
        return Exit.DONE
    print(f"mistamover: cannot write the output: {error.strerror}", file=sys.stderr)
    return Exit.UNFINISHED


def say_last(line: str) -> None:
    """Print the last line of a run. That nobody can read it changes nothing about what was moved."""
    with suppress(OSError):
        click.echo(line)


def leave(code: int) -> NoReturn:
    """End the process at once: to take all modules down in order takes longer than to move some small files."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)


def paragraph(text: str, first: str = INDENT) -> list[str]:
    """A text as indented lines that a terminal need not break; elsewhere it is one."""
    import shutil
    import textwrap

    if not sys.stdout.isatty():
        return [first + text]
    width = min(shutil.get_terminal_size().columns, WIDEST)
    return textwrap.wrap(
        text,
        max(width, NARROWEST),
        initial_indent=first,
        subsequent_indent=INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )


def shell_word(path: Path) -> str:
    """A path as a person would type it here."""
    import shlex

    from mistamover.lines import shown

    near = os.path.relpath(path)
    return shlex.quote(shown(str(path) if near.startswith("..") else near))
