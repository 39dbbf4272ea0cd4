"""``mistamover alerts``: what is wrong, who is told, and whether that works."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mistamover.cli.common import free_command, load, load_service, running_service_command
from mistamover.cli.help import Command, Group
from mistamover.cli.history import Since
from mistamover.errors import Exit, Unknown

if TYPE_CHECKING:
    from mistamover.alert import Condition
    from mistamover.options import Email, ServiceSettings
    from mistamover.post import Ack, Item

HEADS = ("condition", "since", "for", "how many", "reason")
_SPAN = re.compile(r"(\d+)([smhdw])")


class Until(Since):
    """A time span from now, or a local date and time; as seconds since the epoch."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read ``8h``, ``3d``, ``2026-11-23`` or ``2026-11-23T10:00``."""
        if not isinstance(value, float) and _SPAN.fullmatch(value):
            now = time.time()
            return 2 * now - super().convert(value, param, ctx)
        return super().convert(value, param, ctx)


@click.group(cls=Group, short_help="Show what is wrong and who is told; silence or drop it; test.")
def alerts() -> None:
    """Show what is wrong and who is told of it, silence or drop that, send a test mail.

    For example:

        mistamover alerts list
        mistamover alerts ack images --until 8h --reason "the archive is moved"
        mistamover alerts drop images
        mistamover alerts test
    """


# -- list --------------------------------------------------------------------------------------------------


@alerts.command("list", cls=Command, short_help="Show what is wrong now, and mails that wait.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@running_service_command
def list_(settings: ServiceSettings, *, as_json: bool) -> int:
    """Show what is wrong now and since when, what is silenced, and mails that nobody took yet.

    For example:

        mistamover alerts list

    Exit codes: 0 nothing is wrong; 1 something is.
    """
    from mistamover import board, post

    state_dir = settings.global_.state_dir
    told = list(board.read_all(state_dir))
    now = time.time()
    found = sorted((one for each in told for one in each.conditions if one.is_open), key=lambda one: one.key)
    acks = {name: ack for name, ack in post.read_all_acks(state_dir).items() if ack.until > now}
    waiting = post.waiting(state_dir)
    lines = _json(found, acks, waiting) if as_json else _lines(found, acks, waiting, now)
    for line in lines:
        click.echo(line)
    if not as_json and not any(one.email.tells_somebody for one in told) and not settings.email.tells_somebody:
        click.echo("nobody is told: there is no [email] recipient")
    return Exit.UNFINISHED if found else Exit.DONE


def _lines(found: Sequence[Condition], acks: dict[str, Ack], waiting: Sequence[Item], now: float) -> Iterator[str]:
    from mistamover.cli.history import aligned
    from mistamover.lines import safe
    from mistamover.stream import when

    if found:
        yield from aligned([HEADS, *(_cells(one, now) for one in found)], right={3})
    else:
        yield "nothing is wrong"
    for name, ack in sorted(acks.items()):
        why = f" ({safe(ack.reason)})" if ack.reason else ""
        yield f"silenced until {when(ack.until)} by {safe(ack.by)}: {safe(name)}{why}"
    for item in waiting:
        why = f": {item.reason}; next try {when(item.next_try)}" if item.reason else ""
        yield safe(f"waits to be told by {item.channel} since {when(item.created)}: {item.subject}{why}")


def _cells(one: Condition, now: float) -> tuple[str, ...]:
    from mistamover.lines import duration, safe, shown
    from mistamover.stream import when

    lasted = duration(max(0.0, round(now - one.since)))
    return safe(shown(one.key)), when(one.since), lasted, f"{one.count:,}", safe(one.reason)


def _json(found: Sequence[Condition], acks: dict[str, Ack], waiting: Sequence[Item]) -> Iterator[str]:
    from mistamover.board import members
    from mistamover.lines import redacted

    told = {
        "conditions": [members(one) | {"trouble": one.trouble.word, "key": one.key} for one in found],
        "silenced": {name: ack._asdict() for name, ack in acks.items()},
        "waiting": [
            {"channel": one.channel, "subject": one.subject, "created": one.created, "tries": one.tries}
            | {"next_try": one.next_try, "reason": one.reason}
            for one in waiting
        ],
    }
    yield redacted(json.dumps(told))


# -- ack ---------------------------------------------------------------------------------------------------


@alerts.command("ack", cls=Command, short_help="Hear nothing of a condition for a while.")
@click.argument("name")
@click.option("--until", type=Until(), required=True, metavar="WHEN", help="8h, 3d, 2026-11-23, 2026-11-23T10:00.")
@click.option("--reason", default="", help="Why: alerts list shows it.")
@running_service_command
def ack(settings: ServiceSettings, *, name: str, until: float, reason: str) -> int:
    """Hear nothing of NAME until then: a condition as alerts list shows it, or a stream and all its conditions.

    For example:

        mistamover alerts ack images/target --until 8h --reason "the archive is moved"

    That it is over is told nevertheless. What is still wrong then is told again; a time that is past, such as
    --until 0s, ends the silence.

    Exit codes: 0 silenced; 1 it cannot be written down; 2 nothing of that name.
    """
    from mistamover import post
    from mistamover.cli.pause import user
    from mistamover.errors import MistamoverError
    from mistamover.lines import one_line, shown
    from mistamover.stream import when

    state_dir = settings.global_.state_dir
    now = time.time()
    # One that is past is kept for a while: what is still wrong is then told again.
    acks = {known: one for known, one in post.read_all_acks(state_dir).items() if one.until > now - 86400}
    _refuse_unknown(state_dir, name, {*acks})
    acks[name] = post.Ack(until, one_line(reason), user())
    if not post.write_acks(state_dir, acks):
        raise MistamoverError(f"{state_dir}: cannot be written; ask as the user of the service, or as root")
    click.echo(f"silenced until {when(until)}: {shown(name)}" if until > now else f"not silenced: {shown(name)}")
    return Exit.DONE


def _refuse_unknown(state_dir: Path, name: str, known: set[str]) -> None:
    from mistamover import board, heartbeat
    from mistamover.lines import shown

    keys = {one.key for told in board.read_all(state_dir) for one in told.conditions}
    known |= (
        keys | {key.partition("/")[0] for key in keys} | {"service", *heartbeat.read_service(state_dir).streams}
    )
    if name not in known:
        there = ", ".join(map(shown, sorted(known)))
        raise Unknown(f"no stream or condition is called {shown(name)}; there are {there}")


# -- drop --------------------------------------------------------------------------------------------------


@alerts.command("drop", cls=Command, short_help="Forget what was wrong with a stream that nobody runs any more.")
@click.argument("name", metavar="STREAM")
@running_service_command
def drop(settings: ServiceSettings, *, name: str) -> int:
    """Forget what was wrong with the stream STREAM, which nobody runs any more: a trial, or one that was removed.

    For example:

        mistamover alerts drop images

    Its record stays. Whoever was told that something is wrong is told that it has ended.

    Exit codes: 0 forgotten; 1 it cannot be removed; 2 nothing is wrong with a stream of
    that name; 4 the stream is run.
    """
    from mistamover import board
    from mistamover.errors import MistamoverError
    from mistamover.lines import shown

    directory = _directory_of(settings.global_.state_dir, name)
    _refuse_one_that_is_run(settings.global_.state_dir, name)
    board.withdraw(directory)
    if any(directory.glob(board.PATTERN)):
        raise MistamoverError(f"{directory}: cannot be written; ask as the user of the service, or as root")
    click.echo(f"forgotten: what was wrong with {shown(name)}")
    return Exit.DONE


def _directory_of(state_dir: Path, name: str) -> Path:
    from mistamover import board
    from mistamover.lines import shown

    known = board.streams(state_dir)
    if name not in known:
        there = f"but with {', '.join(map(shown, sorted(known)))}" if known else "nor with any other"
        raise Unknown(f"nothing is wrong with a stream called {shown(name)}, {there}")
    return state_dir / name


def _refuse_one_that_is_run(state_dir: Path, name: str) -> None:
    """What is wrong with a stream ends by itself as long as somebody runs it, and would be noted again."""
    from mistamover import fs, heartbeat, ledger, service
    from mistamover.errors import Held, MistamoverError
    from mistamover.lines import shown

    if service.is_running(state_dir) and name in heartbeat.read_service(state_dir).streams:
        raise Held(f"{shown(name)}: the service runs it; what is wrong with it ends once that is mended")
    lock = state_dir / name / ledger.LOCK
    try:
        is_run = fs.is_locked(lock)
    except OSError as error:
        what = f"{shown(str(lock))}: {error.strerror}; ask as the user of the service, or as root"
        raise MistamoverError(what) from error
    if is_run:
        raise Held(f"{shown(name)}: somebody runs it; what is wrong with it ends once that is mended")


# -- test --------------------------------------------------------------------------------------------------


@alerts.command("test", cls=Command, short_help="Send a test mail, and say what the smarthost answers.")
@click.argument("stream_file", metavar="[STREAM.ini]", required=False, type=click.Path(path_type=Path))
@free_command
def test(global_file: Path | None, *, stream_file: Path | None) -> int:
    """Tell a test to those who are told of alerts: of the service, or of the stream STREAM.ini.

    It goes the same way as any alert, at once, and what the smarthost, a command or Apprise
    answers is shown:

        mistamover alerts test
        mistamover alerts test /etc/mistamover/streams/images.ini

    Exit codes: 0 all were told; 1 nobody is to be told; 2 configuration; 3 the smarthost
    cannot be reached or refuses it, or a command failed.
    """
    if stream_file is None:
        # Not only its place: what a start lacks is lacking here.
        return _try_ways(load_service(global_file, only_place=False).email, "")
    stream = load(stream_file, global_file, only_record=False)
    return _try_ways(stream.email, stream.name)


def _try_ways(email: Email, stream: str) -> int:
    from mistamover import couriers, post
    from mistamover.alert import Condition, Letter, News, Trouble, What

    if not email.tells_somebody:
        click.echo("nobody is to be told; give [email] recipient")
        return Exit.UNFINISHED
    now = time.time()
    condition = Condition(
        Trouble.TEST, stream, since=now, last=now, reason="somebody called: mistamover alerts test"
    )
    found = Letter((News(condition, What.BEGINS),))
    code = Exit.DONE
    for item in post.made(found, email, post.here(), Path(), now):
        try:
            click.echo(f"{_whom(item.channel, email)}: {couriers.carry(item.channel, item.email, item.load)}")
        except couriers.NotCarried as error:
            click.echo(f"{_whom(item.channel, email)}: {error}")
            code = Exit.TARGET
    return code


def _whom(channel: str, email: Email) -> str:
    return f"mail to {', '.join(email.recipient)}" if channel == "mail" else channel
