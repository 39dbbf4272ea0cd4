"""The letters: what a person reads of conditions, as mail and for programs. No I/O.

Names and messages come from anywhere: whatever does not print is escaped, here and nowhere else.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from hashlib import sha256
from typing import Any, NamedTuple

from mistamover import __version__
from mistamover.alert import Condition, Letter, News, Trouble, What
from mistamover.lines import duration, safe, shown
from mistamover.options import Email

WHOLE = 20
"""Conditions that a letter tells of in full; of the next ones it has a line each."""
IN_SHORT = 200
ROOTS = 10
"""Conditions whose thread a mail belongs to, at most."""

_TRIES, _UNITS = ("failed try", "failed tries"), ("unit", "units")
_COUNTED = {
    Trouble.TARGET: _TRIES,
    Trouble.REFUSED: _TRIES,
    Trouble.FULL: _TRIES,
    Trouble.UNITS: _UNITS,
    Trouble.QUARANTINE: _UNITS,
    Trouble.VERIFY: _UNITS,
    Trouble.STUCK: _UNITS,
    Trouble.RECEIPT: _UNITS,
    Trouble.LOG: ("message", "messages"),
}
"""What the count of a condition is of; of others it tells nothing."""


class Sender(NamedTuple):
    """Where the letters come from."""

    host: str
    """The name of this host."""
    user: str


def title(condition: Condition) -> str:
    """What is wrong, where: ``images: target unreachable``."""
    about = f" ({shown(condition.about)})" if condition.about else ""
    return safe(f"{condition.stream or 'service'}: {condition.trouble.value}{about}")


def subject(letter: Letter, email: Email, sender: Sender) -> str:
    """The subject of a mail: host, stream and condition, and how many more there are."""
    first, *more = letter.news
    also = f", and {len(more)} more" if more else ""
    start = f"{email.subject} {sender.host}: ".lstrip()
    return safe(f"{start}{title(first.condition)}{_state(first)}{also}")


def _state(news: News) -> str:
    condition = news.condition
    if news.what is What.ENDS:
        return f": over after {_lasted(condition)}"
    if news.what is What.PASSED:
        return "" if condition.trouble is Trouble.LOG else f": was so for {_lasted(condition)}"
    return f": still so, since {when(condition.since)}" if news.what is What.LASTS else ""


def _lasted(condition: Condition, now: float = 0.0) -> str:
    return duration(max(0.0, round((condition.ended or now) - condition.since)))


def text(letter: Letter, now: float) -> str:
    """The whole of what is told, in plain text."""
    parts = ["\n".join(_told(news, now)) for news in letter.news[:WHOLE]]
    if rest := letter.news[WHOLE:]:
        parts.append("\n".join(_in_short(rest)))
    if letter.held:
        many = "1 condition" if letter.held == 1 else f"{letter.held:,} conditions"
        parts.append(f"There were enough mails for one hour: news of {many} was held back until now.")
    return "\n\n".join(parts) + "\n"


def _in_short(rest: Sequence[News]) -> Iterator[str]:
    yield "And in short:"
    yield from (f"  {title(one.condition)}{_state(one)}" for one in rest[:IN_SHORT])
    if len(rest) > IN_SHORT:
        yield f"  and {len(rest) - IN_SHORT:,} more: mistamover alerts list"


def _told(news: News, now: float) -> Iterator[str]:
    condition = news.condition
    yield f"{title(condition)}{_state(news)}"
    yield ""
    yield from (_field(*field) for field in _fields(news, now))
    if condition.names:
        yield "  units"
        yield from (f"    {safe(shown(name))}" for name in condition.names)
        if condition.count > len(condition.names):
            yield f"    and {condition.count - len(condition.names):,} more"
    if condition.lines and news.what is not What.ENDS:
        yield "  the last lines of the log"
        yield from (f"    {safe(line)}" for line in condition.lines)


def _field(name: str, value: str) -> str:
    return f"  {name:<10} {value}"


def _fields(news: News, now: float) -> Iterator[tuple[str, str]]:
    condition = news.condition
    if condition.is_open:
        yield "since", f"{when(condition.since)}, for {_lasted(condition, now)} so far"
    else:
        yield "from", when(condition.since)
        yield "until", f"{when(condition.ended)}, for {_lasted(condition)}"
    if condition.last > condition.since:
        yield "last seen", when(condition.last)
    if condition.trouble in _COUNTED:
        one, many = _COUNTED[condition.trouble]
        yield "how many", f"{condition.count:,} {one if condition.count == 1 else many}"
    if news.begins:
        yield "before", f"it began and ended {news.begins:,} times more since it was last told of"
    if condition.reason:
        yield "reason", safe(condition.reason)
    if condition.is_open and condition.tried:
        yield "tried", safe(condition.tried)
    if condition.is_open and condition.mend:
        yield "to do", safe(condition.mend)


def when(moment: float) -> str:
    """A time for people who may be elsewhere; ``moment`` in seconds since the epoch."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(moment))
    except (OverflowError, OSError, ValueError):
        return "?"  # a year that nobody has a calendar for


# -- as mail -----------------------------------------------------------------------------------------------


def mail(letter: Letter, email: Email, sender: Sender, now: float, unique: str) -> EmailMessage:
    """A letter as a mail of RFC 5322; ``unique`` tells its Message-ID from all others of this host."""
    message = EmailMessage(policy=SMTP)
    message["From"] = email.from_ or f"{sender.user}@{sender.host}"
    message["To"] = ", ".join(email.recipient)
    message["Subject"] = subject(letter, email, sender)
    message["Date"] = format_datetime(_local(now))
    message["Message-ID"] = f"<mistamover.{unique}@{sender.host}>"
    conditions = [one.condition for one in letter.news]
    roots = " ".join(dict.fromkeys(_root(one, sender) for one in conditions[:ROOTS]))
    message["In-Reply-To"] = roots.split(" ")[-1]
    message["References"] = roots
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: nobody is to answer by a machine
    message["X-Mistamover-Host"] = sender.host
    message["X-Mistamover-Stream"] = _listed(one.stream or "service" for one in conditions)
    message["X-Mistamover-Condition"] = _listed(one.trouble.word for one in conditions)
    message["X-Mistamover-State"] = _listed(one.what.name.lower() for one in letter.news)
    message.set_content(text(letter, now) + _footer(conditions[0], sender))
    return message


def _local(now: float) -> Any:
    from datetime import datetime

    return datetime.fromtimestamp(round(now)).astimezone()


def _root(condition: Condition, sender: Sender) -> str:
    """The id of a mail that was never sent, under which mail readers gather all that are about a condition."""
    digest = sha256(f"{condition.key} {condition.since:.0f}".encode("utf-8", "surrogateescape")).hexdigest()
    return f"<mistamover.{digest[:16]}@{sender.host}>"


def _listed(words: Iterable[str]) -> str:
    return ", ".join(list(dict.fromkeys(map(safe, words)))[:IN_SHORT])


def _footer(condition: Condition, sender: Sender) -> str:
    silence = f"mistamover alerts ack {safe(shown(condition.key))} --until 8h"
    return (
        f"\nWhat is open now: mistamover alerts list\nTo hear nothing of this for a while: {silence}\n"
        f"\n-- \nmistamover {__version__} at {sender.host}\n"
    )


# -- for programs ------------------------------------------------------------------------------------------


def objects(letter: Letter, sender: Sender) -> str:
    """A letter for a program: a JSON object on each line, one for each condition."""
    return "".join(f"{json.dumps(_members(one, sender))}\n" for one in letter.news)


def _members(news: News, sender: Sender) -> dict[str, Any]:
    condition = news.condition
    return {
        "host": sender.host,
        "stream": condition.stream or None,
        "condition": condition.trouble.word,
        "state": news.what.name.lower(),
        "key": safe(shown(condition.key)),
        "title": title(condition) + _state(news),
        "about": safe(shown(condition.about)) or None,
        "since": condition.since,
        "last": condition.last,
        "ended": condition.ended or None,
        "count": condition.count,
        "units": [safe(shown(name)) for name in condition.names],
        "reason": safe(condition.reason),
        "tried": safe(condition.tried),
        "to_do": safe(condition.mend),
        "log": [safe(line) for line in condition.lines],
    }
