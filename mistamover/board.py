"""The conditions that one process knows of, in a small file of its own, for the postman and for ``alerts list``.

Like a heartbeat it is written in one rename and never fsynced. That it cannot be written stops nobody, and nobody
who writes it waits for anything else.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from mistamover import foreign
from mistamover.alert import MOST_LINES, MOST_NAMES, PASSING, Condition, Trouble
from mistamover.lines import redacted
from mistamover.options import Email

FILE = "conditions.json"
OF_SERVICE = "conditions-of-service.json"
"""Where the supervisor writes what it knows of a stream."""
PATTERN = "conditions*.json"
ALERTS = "alerts"
"""The directory of state_dir that is the postman's, and the service's own conditions'."""
KEPT = 3600.0
"""Seconds for which a condition that has ended is kept, so that one that came and went is not missed."""
PASSES_AFTER = 600.0
"""Seconds after which what only happens counts as ended."""
EVERY = 5.0
"""Seconds between two writes at least, unless something begins or ends."""
LONGEST = 500
"""Characters of a line or a reason."""


class Board:
    """What is wrong, as one process sees it."""

    def __init__(
        self,
        directory: Path,
        stream: str,
        email: Email,
        now: Callable[[], float] = time.time,
        *,
        file: str = FILE,
    ) -> None:
        """``directory`` is the owner's own below the state directory; what it held before is taken over.

        ``stream`` is empty for what belongs to the host. ``email`` says who is told, and when.
        """
        self._path = directory / file
        self._stream = stream
        self.email = email
        self._now = now
        told = read(self._path)
        self._open = {one.key: one for one in told.conditions} if told else {}
        self.arrived = told.arrived if told and told.arrived else now()
        """When something last arrived."""
        self._lines: deque[str] = deque(maxlen=MOST_LINES)
        self._threshold = email.level
        self._written = 0.0
        self._is_changed = email.alert_quiet is not None or (
            told is not None and told.email.for_the_postman() != email.for_the_postman()
        )

    def tells(self, email: Email) -> None:
        """Who is told, and when, from now on."""
        self._is_changed = self._is_changed or self.email.for_the_postman() != email.for_the_postman()
        self.email = email

    def hold(
        self,
        trouble: Trouble,
        reason: str = "",
        *,
        about: str = "",
        count: int | None = None,
        names: Iterable[str] = (),
        tried: str = "",
        mend: str = "",
    ) -> None:
        """Something is wrong, or still so; may be said again and again.

        ``count`` is how many units it is about; None: how often it was said. ``about`` tells conditions of one
        trouble apart. Texts may hold names of files as they are.
        """
        now = self._now()
        one = Condition(trouble, self._stream, redacted(about))
        before = self._open.get(one.key)
        is_new = before is None or not before.is_open
        counted = 0 if before is None or is_new else before.count
        condition = replace(
            one,
            since=now if before is None or is_new else before.since,
            last=now,
            begun=1 if before is None else before.begun + is_new,
            count=counted + 1 if count is None else count,
            names=tuple(map(redacted, names))[:MOST_NAMES],
            reason=_short(reason),
            tried=_short(tried),
            mend=_short(mend),
            lines=tuple(self._lines),
        )
        self._open[one.key] = condition
        self._note_change(is_edge=is_new)

    def end(self, trouble: Trouble, *, about: str = "") -> None:
        """Something is well again, or was not wrong anyhow."""
        key = Condition(trouble, self._stream, about).key
        before = self._open.get(key)
        if before is not None and before.is_open:
            self._open[key] = replace(before, ended=max(self._now(), before.since))
            self._note_change(is_edge=True)

    @property
    def conditions(self) -> list[Condition]:
        """All that it knows, and those that have ended a while ago."""
        return list(self._open.values())

    def holds(self, trouble: Trouble, *, about: str = "") -> Condition | None:
        """The condition, if it lasts."""
        one = self._open.get(Condition(trouble, self._stream, about).key)
        return one if one is not None and one.is_open else None

    def abouts(self, trouble: Trouble) -> list[str]:
        """What the conditions of this trouble that last are about."""
        return [one.about for one in self._open.values() if one.is_open and one.trouble is trouble]

    def hear(self, level: int, text: str) -> None:
        """Take note of a line of the log: it may be one that people want to be told of."""
        line = _short(text)
        self._lines.append(f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(self._now()))} {line}")
        if self._threshold is None or level < self._threshold:
            return
        if not any(one.is_open and one.reason and one.reason in line for one in self._open.values()):
            before = self.holds(Trouble.LOG)
            self.hold(Trouble.LOG, line, count=before.count + 1 if before else 1)

    def note_arrival(self, moment: float) -> None:
        """Something arrived then."""
        if moment > self.arrived:
            self.arrived = moment
            self._is_changed = True

    def look(self) -> None:
        """Write what is due; costs nothing where nothing has changed."""
        now = self._now()
        for key, one in list(self._open.items()):
            if one.is_open and one.trouble in PASSING and not one.last > now - PASSES_AFTER:
                self._open[key] = replace(one, ended=max(one.last, one.since))
                self._is_changed = True
            elif one.ended and not now - KEPT < one.ended:
                del self._open[key]
                self._is_changed = True
        if self._is_changed and not 0 <= now - self._written < EVERY:
            self._write()

    def close(self) -> None:
        """Write what is not written yet."""
        if self._is_changed:
            self._write()

    def _note_change(self, *, is_edge: bool) -> None:
        self._is_changed = True
        if is_edge:
            self._write()
        else:
            self.look()

    def _write(self) -> None:
        import json  # only where something is wrong, or was

        self._written = self._now()
        new = self._path.with_name(f"{self._path.name}.new")
        told = {
            "email": self.email.for_the_postman(),
            "arrived": self.arrived,
            "conditions": [members(one) for one in self._open.values()],
        }
        with suppress(OSError):  # a full disk is told of by the ledger
            self._path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            new.write_text(json.dumps(told))
            os.replace(new, self._path)
            self._is_changed = False


def withdraw(directory: Path) -> None:
    """Nobody has anything to do any more with what was wrong there."""
    for path in directory.glob(PATTERN):
        with suppress(OSError):
            path.unlink()


def streams(state_dir: Path) -> set[str]:
    """The names of those streams with which something is wrong, and of which somebody may know no more."""
    boards = ((path.parent.name, read(path)) for path in state_dir.glob(f"*/{PATTERN}"))
    return {name for name, told in boards if told and any(one.stream and one.is_open for one in told.conditions)}


class Told(NamedTuple):
    """What a board says."""

    email: Email
    arrived: float
    conditions: tuple[Condition, ...]


def read(path: Path, *, only_ours: bool = False) -> Told | None:
    """What a board says; None where there is none, or nobody can read it.

    ``only_ours``: nor where another user wrote it, but for root. It says which commands are run.
    """
    try:
        data, found = foreign.read(path, foreign.LARGEST_STATE)
        if only_ours and not foreign.is_ours(found):
            return None
        content = foreign.members(data)
        conditions = tuple(filter(None, map(condition, content["conditions"])))
        return Told(Email.model_validate(content["email"]), float(content["arrived"]), conditions)
    except (OSError, foreign.Refused, ValueError, KeyError, TypeError, AttributeError):
        return None


def read_conditions(directory: Path) -> tuple[Condition, ...]:
    """What lasts, by the boards in the directory of a stream."""
    found = map(read, (directory / FILE, directory / OF_SERVICE))
    return tuple(one for told in found if told for one in told.conditions if one.is_open)


def read_all(state_dir: Path, *, only_ours: bool = False) -> Iterator[Told]:
    """What all boards of a state directory say; ``only_ours``: as in :func:`read`."""
    for path in sorted(state_dir.glob(f"*/{PATTERN}")):
        if (told := read(path, only_ours=only_ours)) is not None:
            yield told


def members(condition: Condition) -> dict[str, Any]:
    """A condition as members of a JSON object."""
    return asdict(condition) | {"trouble": condition.trouble.name}


def condition(written: dict[str, Any]) -> Condition | None:
    """A condition as it was written; None where another version wrote of a trouble that is unknown here."""
    trouble = Trouble.__members__.get(str(written.get("trouble")))
    if trouble is None:
        return None
    known = {one.name for one in fields(Condition)} - {"trouble"}
    values = {name: value for name, value in written.items() if name in known}
    lists = {name: tuple(map(str, value)) for name, value in values.items() if isinstance(value, list)}
    return Condition(trouble, **values | lists)


def _short(text: str) -> str:
    text = redacted(text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
