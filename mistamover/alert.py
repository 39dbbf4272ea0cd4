"""When to tell a person: conditions, and the gate that lets news of them through. No I/O; time is an argument.

A condition is something that is wrong for a while: it begins, and it ends. The gate decides what is told of it, so
that nobody is flooded and nothing is kept silent: however often something fails and recovers, the letters are few,
and the last one tells how it stands. All times are in seconds since the epoch: they outlive processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from math import inf
from typing import NamedTuple

MINUTE, HOUR = 60.0, 3600.0
GROWTH = 900.0
"""Seconds until it is told that there is more of something; doubles each time."""
MOST_AN_HOUR = 6
"""Letters to the same people."""
MOST_NAMES = 20
"""Units that a condition names."""
MOST_LINES = 10
"""Of the log, that a condition shows."""
REMEMBERED = 2 * 86400.0
"""Seconds for which it is known what was told of a condition that has ended."""


class Trouble(Enum):
    """What can be wrong, in the words that people read."""

    TARGET = "target unreachable"
    REFUSED = "target refuses us"
    FULL = "target full"
    UNITS = "units failing"
    QUARANTINE = "quarantine grew"
    VERIFY = "verification failed"
    STUCK = "spool stuck"
    QUIET = "nothing arrived"
    RECEIPT = "receipt missing"
    NEAR = "spool or record unusable"
    HUNG = "worker hung"
    FATAL = "worker fatal"
    CONFIG = "configuration broken"
    DISK = "disk low"
    LOG = "message in the log"
    TEST = "test"

    @property
    def word(self) -> str:
        """The word by which it is acknowledged."""
        return self.name.lower()


GROWING = frozenset({Trouble.QUARANTINE, Trouble.VERIFY, Trouble.LOG, Trouble.HUNG})
"""Of which it is news when there is more."""
PASSING = frozenset({Trouble.LOG, Trouble.HUNG, Trouble.TEST})
"""Which only happen: that it happens no more is no news."""


NEED_A_PERSON = frozenset({Trouble.VERIFY, Trouble.STUCK, Trouble.QUIET, Trouble.RECEIPT})
"""Which make a stream stand out, though its worker is well."""


@dataclass(frozen=True, slots=True)
class Condition:
    """Something that is or was wrong."""

    trouble: Trouble
    stream: str = ""
    """Empty where it is the host's."""
    about: str = ""
    """Tells conditions of the same trouble apart: a directory, a file."""
    since: float = 0.0
    last: float = 0.0
    """When it was last noticed."""
    ended: float = 0.0
    """0 while it lasts."""
    begun: int = 1
    """How often it began, as far as its owner remembers."""
    count: int = 1
    """How many units, tries or lines it is about."""
    names: tuple[str, ...] = ()
    """The first units that it is about, as they are; at most MOST_NAMES."""
    reason: str = ""
    tried: str = ""
    """What was done about it so far."""
    mend: str = ""
    """The command that shows more, or mends it."""
    lines: tuple[str, ...] = ()
    """The last lines of the log."""

    @property
    def key(self) -> str:
        """By what it is told from all others: ``images/target``, ``service/disk:/data``."""
        return f"{self.stream or 'service'}/{self.trouble.word}{f':{self.about}' if self.about else ''}"

    @property
    def is_open(self) -> bool:
        """Whether it lasts."""
        return not self.ended

    @property
    def edge(self) -> float:
        """When it last began or ended."""
        return self.ended or self.since


class What(Enum):
    """What there is to tell of a condition."""

    BEGINS = "begins"
    LASTS = "still so"
    ENDS = "is over"
    PASSED = "was so for a while"


class News(NamedTuple):
    """What a letter tells of one condition."""

    condition: Condition
    what: What
    begins: int = 0
    """How often it began since it was last told of, this time not counted."""


class Letter(NamedTuple):
    """What is to be told at once to the same people."""

    news: tuple[News, ...]
    held: int = 0
    """Conditions of which news had to wait, for there were enough letters within the hour."""


@dataclass(frozen=True, slots=True)
class Told:
    """What was last told of a condition."""

    condition: Condition
    """As it was, without names and lines."""
    at: float
    edges: int = 0
    """Letters in a row that told of a change."""
    reminders: int = 0


@dataclass(frozen=True, slots=True)
class Memory:
    """What was told to the same people."""

    told: Mapping[str, Told] = field(default_factory=dict)
    sent: tuple[float, ...] = ()
    """When letters went out, within the last hour."""
    held: tuple[str, ...] = ()
    """Conditions of which news waits because of the limit."""


class Rules(NamedTuple):
    """How the gate is set."""

    repeat: float = 12 * HOUR
    """Seconds until what still lasts is told again; doubles each time."""
    gather: float = MINUTE
    """Seconds for which news waits for more, so that it becomes one letter."""
    an_hour: int = MOST_AN_HOUR


class Acks(NamedTuple):
    """Which conditions a person wants to hear nothing of until when; by stream or by key."""

    until: Mapping[str, float]

    def of(self, condition: Condition) -> float:
        """Until when nothing is to be told of it; 0 where nobody said so."""
        key = condition.key
        return max(self.until.get(key, 0.0), self.until.get(key.partition("/")[0], 0.0))


NO_ACKS = Acks({})


def gate(
    memory: Memory, conditions: Iterable[Condition], now: float, rules: Rules, acks: Acks = NO_ACKS
) -> tuple[Letter | None, Memory]:
    """Decide what is told now, and what is remembered then; ``conditions`` are all that are known.

    A condition that was told of and that nobody knows any more has ended.
    """
    current = {one.key: one for one in conditions}
    for key, told in memory.told.items():
        if key not in current and told.condition.is_open:
            current[key] = replace(told.condition, ended=now - rules.gather)
    told_of = {key: _as_of(told, current.get(key), now) for key, told in memory.told.items()}
    due = [one for key, one in current.items() if _due(one, told_of.get(key), now, rules, acks) <= now]
    sent = tuple(moment for moment in memory.sent if now - HOUR < moment <= now)
    if not due:
        return None, Memory(_kept(told_of, current, now), sent, memory.held)
    if len(sent) >= rules.an_hour:
        held = tuple(sorted({*memory.held, *(one.key for one in due)}))
        return None, Memory(_kept(told_of, current, now), sent, held)
    at_once = rules._replace(gather=0.0)
    ready = [one for key, one in current.items() if _due(one, told_of.get(key), now, at_once, acks) <= now]
    news = tuple(_news(one, told_of.get(one.key)) for one in sorted(ready, key=_rank))
    told_of |= {one.condition.key: _told(one, told_of.get(one.condition.key), now) for one in news}
    return Letter(news, len(memory.held)), Memory(_kept(told_of, current, now), (*sent, now))


def _as_of(told: Told, condition: Condition | None, now: float) -> Told:
    """What was told, with the clock as it is set now, and with no more than there is still."""
    before = told.condition
    if condition is not None and condition.since == before.since and condition.count < before.count:
        before = replace(before, count=condition.count)
    return replace(told, condition=before, at=min(told.at, now))


def _rank(condition: Condition) -> tuple[bool, str, float]:
    return not condition.is_open, condition.stream, condition.since


def _is_news(condition: Condition, told: Told | None) -> bool:
    """Whether there is a change to tell of."""
    if told is None or _has_grown(condition, told):
        return True
    is_again = condition.since > told.condition.since
    if condition.trouble in PASSING:
        return is_again
    return condition.is_open != told.condition.is_open or (is_again and not condition.is_open)


def _has_grown(condition: Condition, told: Told) -> bool:
    """Whether it is news that there is more of what was told before."""
    before = told.condition
    is_same = condition.is_open and condition.since == before.since
    return is_same and condition.trouble in GROWING and condition.count > before.count


def _due(condition: Condition, told: Told | None, now: float, rules: Rules, acks: Acks) -> float:
    """When something is to be told of it; infinity where there is nothing."""
    until = acks.of(condition)
    is_end = told is not None and told.condition.is_open and not condition.is_open
    if until > now and not is_end:
        return inf
    if told is None:
        return _past(condition.since, now) + rules.gather
    if _has_grown(condition, told):
        return told.at + min(GROWTH * _doubled(told.edges), rules.repeat)
    if _is_news(condition, told):
        edge = _past(condition.edge, now)
        return max(edge + rules.gather, _calm(edge, told, rules))
    if not condition.is_open or condition.trouble in PASSING:
        return inf
    again = told.at + rules.repeat * _doubled(told.reminders + 1)
    return min(again, until) if until > told.at else again


def _past(moment: float, now: float) -> float:
    """A moment that was; one that lies ahead was noted before the clock was set back, and is long enough ago."""
    return moment if moment <= now else -inf


def _doubled(times: int) -> float:
    return float(2.0 ** min(max(times - 1, 0), 30))


def _calm(edge: float, told: Told, rules: Rules) -> float:
    """When the next change may be told: after a pause that doubles with each, or as soon as it lasts."""
    edges = _edges(edge, told)
    pause = min(MINUTE * _doubled(edges), rules.repeat) if edges else 0.0
    return min(told.at + pause, edge + min(pause, HOUR))


def _edges(edge: float, told: Told) -> int:
    """Changes that were told in a row: a long time without any ends the row."""
    return 0 if edge - told.at > max(HOUR, 2 * MINUTE * _doubled(told.edges)) else told.edges


def _news(condition: Condition, told: Told | None) -> News:
    begins = _begins(condition, told)
    if told is not None and (not _is_news(condition, told) or _has_grown(condition, told)):
        return News(condition, What.LASTS, begins)
    if condition.is_open:
        return News(condition, What.BEGINS, begins)
    is_end = told is not None and told.condition.is_open and condition.trouble not in PASSING
    return News(condition, What.ENDS if is_end else What.PASSED, begins)


def _begins(condition: Condition, told: Told | None) -> int:
    """How often it began since it was told of, the last time not counted."""
    if told is None:
        return condition.begun - 1
    if condition.since == told.condition.since:
        return 0
    since = condition.begun - told.condition.begun
    return max(0, (since if since > 0 else condition.begun) - 1)


def _told(news: News, told: Told | None, now: float) -> Told:
    condition = replace(news.condition, names=(), lines=())
    if told is None:
        return Told(condition, now, edges=1)
    if not _is_news(news.condition, told):
        return Told(condition, now, told.edges, told.reminders + 1)
    if _has_grown(news.condition, told):
        return Told(condition, now, told.edges + 1)
    return Told(condition, now, _edges(min(news.condition.edge, now), told) + 1)


def _kept(told: Mapping[str, Told], current: Mapping[str, Condition], now: float) -> dict[str, Told]:
    return {
        key: one
        for key, one in told.items()
        if key in current or one.condition.is_open or now - one.at < REMEMBERED
    }
