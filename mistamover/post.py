"""The postman: reads what is wrong, has the gate decide what is told of it, and hands it over, now or later.

There is one for each state directory: who holds its lock. Workers and supervisor only write down what they know,
each in a file of its own; nobody ever waits for the postman. A letter lies in a spool until it was handed over,
refused to the end of its time, or too many others wait as well.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from hashlib import sha256
from logging import ERROR, INFO, WARNING
from pathlib import Path
from typing import Any, NamedTuple

from mistamover import board, couriers, foreign, fs, letter
from mistamover.aides import Known
from mistamover.alert import MINUTE, Acks, Condition, Letter, Memory, Rules, Told, gate
from mistamover.board import ALERTS
from mistamover.couriers import NotCarried
from mistamover.events import nothing
from mistamover.foreign import Refused
from mistamover.letter import Sender
from mistamover.log import BaseLog
from mistamover.options import Email

LOCK = "postman.lock"
MEMORY = "memory.json"
ACKS = "acks.json"
OUT = "out"
LOOK_EVERY = 5.0
"""Seconds between two looks at what is wrong."""
GATHER = MINUTE
"""Seconds for which news waits for more."""
FIRST_RETRY, LONGEST_RETRY = 60.0, 3600.0
"""Seconds until a letter that could not be handed over is tried again; doubles with each try."""
EXPIRES_AFTER = 3 * 86400.0
"""Seconds after which a letter that nobody takes is given up."""
MOST_WAITING = 200
"""Letters that wait; the oldest make room."""

Tell = Callable[[int, str], object]


class Item(NamedTuple):
    """A letter that waits to be handed over by one way."""

    path: Path
    channel: str
    email: Email
    load: str
    subject: str
    created: float
    tries: int = 0
    next_try: float = 0.0
    reason: str = ""
    """Why it could not be handed over yet."""


class Postman:
    """Tells people what is wrong, by what lies in a state directory."""

    def __init__(self, state_dir: Path, tell: Tell, now: Callable[[], float] = time.time) -> None:
        self._state_dir = state_dir
        self._directory = state_dir / ALERTS
        self._tell = tell
        self._now = now
        self._lock: int | None = None
        self._memories: dict[str, Memory] | None = None

    # -- being the one ---------------------------------------------------------------------------------------

    def takes_office(self) -> bool:
        """Whether we are the postman of this state directory, from now on or already."""
        if self._lock is not None:
            return True
        try:
            self._directory.mkdir(mode=0o750, parents=True, exist_ok=True)
            fd = os.open(self._directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        except OSError:
            return False
        if not fs.lock(fd):
            os.close(fd)
            return False
        self._lock = fd
        return True

    def leaves_office(self) -> None:
        """Let somebody else be it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock, self._memories = None, None

    # -- what is to be told ----------------------------------------------------------------------------------

    def look(self, gather: float | None = None) -> None:
        """Read what is wrong, and put letters about what is news into the spool."""
        now = self._now()
        if self._memories is None:
            self._memories = _read_memories(self._directory / MEMORY)
        acks = read_acks(self._state_dir)
        memories: dict[str, Memory] = {}
        for route, (email, conditions) in _by_route(self._state_dir).items():
            rules = Rules(email.alert_repeat, GATHER if gather is None else gather)
            found, memories[route] = gate(self._memories.get(route, Memory()), conditions, now, rules, acks)
            if found is not None:
                self._post(found, email, now)
        if memories != self._memories:
            self._memories = memories
            self._write_memories()

    def _post(self, found: Letter, email: Email, now: float) -> None:
        sender = here()
        subject = letter.subject(found, email, sender)
        self._tell(INFO, f"tells {', '.join(couriers.channels(email))}: {subject}")
        for item in made(found, email, sender, self._directory / OUT, now):
            if not _write(item):
                self._tell(ERROR, f"cannot be put into the spool of mails: {subject}")
        self._make_room()

    def _make_room(self) -> None:
        for item in waiting(self._state_dir)[:-MOST_WAITING]:
            self._give_up(item, "too many wait")

    def _write_memories(self) -> None:
        """Remember what was told, so that nobody is told again by the next one."""
        content = {route: _members(memory) for route, memory in (self._memories or {}).items()}
        if not _replace(self._directory / MEMORY, content):
            self._tell(ERROR, f"{self._directory / MEMORY} cannot be written: what was told may be told again")

    # -- and how ---------------------------------------------------------------------------------------------

    def hand_over(self, alive: Callable[[], None] = nothing) -> None:
        """Hand over what is due."""
        for item in waiting(self._state_dir):
            now = self._now()
            if now - item.created > EXPIRES_AFTER:
                self._give_up(item, item.reason)
            elif item.next_try <= now or item.next_try > now + LONGEST_RETRY:  # the clock was set back
                alive()
                self._try(item, now)

    def _try(self, item: Item, now: float) -> None:
        # Written down before: who is killed meanwhile does not try again at once.
        later = min(FIRST_RETRY * 2.0 ** min(item.tries, 20), LONGEST_RETRY)
        item = item._replace(tries=item.tries + 1, next_try=now + later)
        _write(item)
        try:
            answer = couriers.carry(item.channel, item.email, item.load)
        except NotCarried as error:
            if error.needs_a_person:
                item = item._replace(next_try=now + LONGEST_RETRY)
            if str(error) != item.reason:
                self._tell(WARNING, f"could not tell anybody by {item.channel}: {error}; trying again")
            _write(item._replace(reason=str(error)))
            return
        self._tell(INFO, f"told by {item.channel}: {item.subject}: {answer}")
        item.path.unlink(missing_ok=True)

    def _give_up(self, item: Item, reason: str) -> None:
        self._tell(ERROR, f"gives up to tell anybody by {item.channel}: {item.subject}: {reason}")
        item.path.unlink(missing_ok=True)


def here() -> Sender:
    """Who writes the letters."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # containers know numbers that have no name
        user = "mistamover"
    return Sender("".join(char for char in socket.gethostname() if char.isalnum() or char in "-.") or "here", user)


def made(found: Letter, email: Email, sender: Sender, directory: Path, now: float) -> Iterator[Item]:
    """A letter, as each of the ways takes it by which somebody is to be told."""
    subject = letter.subject(found, email, sender)
    for channel in couriers.channels(email):
        unique = f"{now:017.6f}.{os.urandom(4).hex()}"
        if channel == "mail":
            load = letter.mail(found, email, sender, now, unique).as_string()
        elif channel == "command":
            load = letter.objects(found, sender)
        else:
            load = json.dumps({"title": subject, "body": letter.text(found, now)})
        yield Item(directory / f"{unique}.json", channel, email, load, subject, now)


# -- what lies on disk -------------------------------------------------------------------------------------


def _by_route(state_dir: Path) -> Mapping[str, tuple[Email, list[Condition]]]:
    """What is wrong, by who is to be told of it."""
    found: dict[str, tuple[Email, list[Condition]]] = {}
    for told in board.read_all(state_dir, only_ours=True):
        if told.email.tells_somebody:
            _, conditions = found.setdefault(_route(told.email), (told.email, []))
            conditions.extend(told.conditions)
    return found


def _route(email: Email) -> str:
    whom = (email.recipient, email.alert_command, str(email.alert_apprise))
    return sha256(json.dumps(whom).encode()).hexdigest()[:16]


def _members(memory: Memory) -> dict[str, Any]:
    told = {key: asdict(one) | {"condition": board.members(one.condition)} for key, one in memory.told.items()}
    return {"told": told, "sent": memory.sent, "held": memory.held}


def _read_memories(path: Path) -> dict[str, Memory]:
    """What was told to whom; nothing where that cannot be read: then it is told again."""
    try:
        return {route: _memory(members) for route, members in _members_of(path).items()}
    except (OSError, Refused, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _memory(members: dict[str, Any]) -> Memory:
    told = {}
    for key, one in members["told"].items():
        if (condition := board.condition(one["condition"])) is not None:
            told[key] = Told(condition, one["at"], one["edges"], one["reminders"])
    return Memory(told, tuple(members["sent"]), tuple(members["held"]))


class Ack(NamedTuple):
    """That a person wants to hear nothing of something for a while."""

    until: float
    reason: str
    by: str


def read_all_acks(state_dir: Path) -> dict[str, Ack]:
    """What people want to hear nothing of, by stream or by key."""
    try:
        content = _members_of(state_dir / ALERTS / ACKS)
        return {name: Ack(float(one["until"]), str(one["reason"]), str(one["by"])) for name, one in content.items()}
    except (OSError, Refused, ValueError, KeyError, TypeError, AttributeError):
        return {}


def read_acks(state_dir: Path) -> Acks:
    """The same, for the gate."""
    return Acks({name: one.until for name, one in read_all_acks(state_dir).items()})


def write_acks(state_dir: Path, acks: Mapping[str, Ack]) -> bool:
    """Put them in the place of those that were; whether that worked."""
    return _replace(state_dir / ALERTS / ACKS, {name: one._asdict() for name, one in acks.items()})


def waiting(state_dir: Path) -> Sequence[Item]:
    """The letters that wait to be handed over, oldest first."""
    found = []
    for path in sorted((state_dir / ALERTS / OUT).glob("*.json")):
        try:
            data, status = foreign.read(path, foreign.LARGEST_STATE)
            if not foreign.is_ours(status):
                continue  # it says which command is run
            members = foreign.members(data)
            email = Email.model_validate(members.pop("email"))
            found.append(Item(path=path, email=email, **members))
        except (OSError, Refused, ValueError, KeyError, TypeError):
            with suppress(OSError):
                path.rename(path.with_suffix(".bad"))
    return found


def _members_of(path: Path) -> dict[str, Any]:
    return foreign.members(foreign.read(path, foreign.LARGEST_STATE)[0])


def _write(item: Item) -> bool:
    """Put a letter into the spool, on disk when this returns; whether that worked."""
    members = item._asdict() | {"email": item.email.for_the_postman()}
    del members["path"]
    return _replace(item.path, members, is_lasting=True)


def _replace(path: Path, content: object, *, is_lasting: bool = False) -> bool:
    new = path.with_name(f"{path.name}.new")
    try:
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        with open(new, "w", opener=_private) as file:
            json.dump(content, file)
            if is_lasting:
                file.flush()
                os.fsync(file.fileno())
        os.replace(new, path)
    except OSError:
        return False
    return True


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)


# -- in the service, and without one -----------------------------------------------------------------------


def is_wanted(known: Known) -> bool:
    """Whether anybody is to be told of anything."""
    return known.service.email.tells_somebody or any(one.email.tells_somebody for one in known.streams)


def serve(known: Known, log: BaseLog, alive: Callable[[], None]) -> None:
    """Be the postman of the service."""
    postman = Postman(known.service.global_.state_dir, log.tell)
    while True:
        alive()
        if postman.takes_office():
            postman.look()
            postman.hand_over(alive)
        time.sleep(LOOK_EVERY)


class Helper:
    """The postman of a run without a service: a thread, and only where nobody else is it."""

    def __init__(self, state_dir: Path, tell: Tell) -> None:
        self._postman = Postman(state_dir, tell)
        self._done = threading.Event()
        self._is_last = False
        self._thread = threading.Thread(target=self._run, name="postman", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._done.is_set():
            self._work(None)
            self._done.wait(LOOK_EVERY)
        if self._is_last:
            self._work(0.0)
        self._postman.leaves_office()

    def _work(self, gather: float | None) -> None:
        if self._postman.takes_office():
            self._postman.look(gather)
            self._postman.hand_over()

    def finish(self, seconds: float) -> None:
        """Tell what there is, for so long at most; what is left waits for the next one."""
        self._is_last = True
        self._done.set()
        self._thread.join(seconds)
