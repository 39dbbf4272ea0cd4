"""Lanes: each one connection, which a thread uses while it carries a batch.

:func:`carry` is the lane function: of plain, picklable data, so that executors other than threads can run it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain
from math import inf
from typing import NamedTuple

from mistamover import digest
from mistamover.directories import DirectorySpool
from mistamover.disk import Space, fitting, takes
from mistamover.errors import (
    MistamoverError,
    NameTaken,
    NoRoom,
    Parked,
    TargetDown,
    TargetFull,
    TargetRefused,
    UnitError,
)
from mistamover.lines import shown, size
from mistamover.options import Settings
from mistamover.packages import readable
from mistamover.transports import transport_class
from mistamover.transports.contract import Transport
from mistamover.unit import ORDERS, Outcome, Unit, batches

PART_FILES = 256
PART_BYTES = 32 * 2**20
"""A batch is sent in parts: the far side proves one while the next is on its way."""


LOOK_EVERY = 1.0
"""Seconds for which a target without a stop file is taken to be so: a look costs a round trip, or a program."""
ASKING_TAKES = 20
"""Times as long as the target needed to tell its room that it is not asked again."""


class Answer(NamedTuple):
    """What a target said of its room, and when it is to be asked again."""

    room: Space | None = None
    sent: int = 0
    """What all lanes had sent by then."""
    until: float = -inf
    """On the monotonic clock."""


class Carried(NamedTuple):
    """What came of a batch."""

    outcomes: list[Outcome]
    """Of some or all of its units; about the others nothing is known."""
    error: MistamoverError | None = None
    """Why it ended early: the target is down or refuses us."""
    is_stopped: bool = False
    """It did not begin, since a stop file lies in the target directory."""


class Talk(NamedTuple):
    """What is to be said to an arrivals monitor, and what is to be looked for."""

    notes: Mapping[str, bytes]
    """Files to be put into the target directory, by their names."""
    wanted: Sequence[str] = ()
    """Names of files to be fetched from there."""
    units: Sequence[Unit] = ()
    """Units of which to see whether they still stand there."""


class Heard(NamedTuple):
    """What came of a talk; if it ended early, nothing is known."""

    carried: Carried
    refused: Mapping[str, UnitError] = {}
    """Why notes could not be put, by their names."""
    found: Mapping[str, bytes] = {}
    standing: frozenset[str] = frozenset()
    """The paths of the units that stand there."""


class Baton:
    """A lock that goes to those who want it in the order in which they came.

    Held while many short system calls are made: threads that make them at the same time hinder each other
    through the interpreter's lock, so that both take more than twice as long as one after the other.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._is_held = False
        self._queue: deque[threading.Lock] = deque()

    def __enter__(self) -> None:
        with self._mutex:
            if not self._is_held:
                self._is_held = True
                return
            turn = threading.Lock()
            turn.acquire()
            self._queue.append(turn)
        turn.acquire()

    def __exit__(self, *_: object) -> None:
        with self._mutex:
            if self._queue:
                self._queue.popleft().release()
            else:
                self._is_held = False


@dataclass
class Lane:
    """What one lane does right now. Written by the thread that uses it, read by displays."""

    stage: str = "idle"
    transport: Transport | None = None
    sent: int = 0
    """Bytes put on their way since the lane began, those of failed tries included."""
    moved: float = inf
    """When it last went on, on the monotonic clock; inf while nobody uses it."""
    goal: int = 0
    """What ``sent`` will be when its batch is staged: the difference is room that nobody else may have."""
    gives_up: bool = False
    """Whether its transport ends each wait by itself, however long that may rightly take."""

    def enter(self, stage: str) -> None:
        """Begin with the next thing."""
        self.stage = stage
        self.moved = time.monotonic()


@dataclass
class Crew:
    """The lanes of one stream in this process."""

    lanes: list[Lane] = field(default_factory=list)
    parking: bool = False
    """Set to make every lane leave the file that it is sending."""
    baton: Baton = field(default_factory=lambda: Baton())
    _answer: Answer = field(default_factory=lambda: Answer())
    _looked: float = -LOOK_EVERY
    """When the target was last seen to have no stop file, monotonic."""
    _free: list[Lane] = field(default_factory=list)
    _mutex: threading.Lock = field(default_factory=threading.Lock)

    @property
    def connected(self) -> int:
        """How many lanes the target has let in."""
        return sum(lane.transport is not None for lane in self.lanes)

    @contextmanager
    def lane(self) -> Iterator[Lane]:
        """A lane that nobody else uses meanwhile; one that is connected if there is one."""
        with self._mutex:
            if self._free:
                lane = next((lane for lane in self._free if lane.transport), self._free[0])
                self._free.remove(lane)
            else:
                self.lanes.append(lane := Lane())
            lane.moved = time.monotonic()
        try:
            yield lane
        finally:
            lane.stage, lane.moved, lane.goal = "idle", inf, 0
            with self._mutex:
                self._free.append(lane)

    def is_stopped(self, transport: Transport, *, since: float = LOOK_EVERY) -> bool:
        """Whether a stop file lies in the target directory, as seen ``since`` so many seconds at most."""
        now = time.monotonic()
        if now - self._looked < since:
            return False
        if transport.is_stopped():
            return True
        self._looked = now
        return False

    def ask(self, transport: Transport) -> None:
        """Ask the target for its room, unless that was done a moment ago; the longer that takes, the less often."""
        began = time.monotonic()
        if began < self._answer.until:
            return
        room, now = transport.room(), time.monotonic()
        self._answer = Answer(room, self._sent, now + max(LOOK_EVERY, ASKING_TAKES * (now - began)))

    def admit(self, lane: Lane, units: Sequence[Unit]) -> tuple[Sequence[Unit], list[Unit]]:
        """The units of a batch for which the target has room, and the others.

        In between two answers of the target we keep account: what was sent since is gone, and so is what other
        lanes are about to send. Units that may be there already take nothing.
        """
        with self._mutex:
            answer = self._answer
            if answer.room is None:
                return units, []
            promised = sum(max(0, one.goal - one.sent) for one in self.lanes)
            left = answer.room.free - max(0, self._sent - answer.sent) - promised
            fits, others = fitting(
                [unit for unit in units if not unit.may_be_there], answer.room._replace(free=left)
            )
            lane.goal = lane.sent + sum(takes(unit, answer.room.block) for unit in fits)
            refused = {unit.path for unit in others}
        return [unit for unit in units if unit.path not in refused], others

    @property
    def _sent(self) -> int:
        return sum(lane.sent for lane in self.lanes)

    def disconnect(self) -> None:
        """End all connections, while no lane is used."""
        for lane in self.lanes:
            disconnect(lane)
        self.lanes.clear()
        self._free.clear()
        self._answer = Answer()

    def hangs(self, since: float) -> bool:
        """Whether any lane that is used, and may not end by itself, has not moved since then (monotonic clock)."""
        return any(lane.moved < since and not lane.gives_up for lane in self.lanes)

    def tick(self, lane: Lane, size: int) -> None:
        """Note progress; ends the file on its way when the stream parks."""
        lane.sent += size
        lane.moved = time.monotonic()
        if self.parking:
            raise Parked("stopped before it was sent in full; it starts again next time")

    def abort(self) -> None:
        """Cut the connections of all lanes."""
        for lane in self.lanes:
            if (transport := lane.transport) is not None:
                transport.abort()


_here = threading.local()


def join(crew: Crew) -> None:
    """Have this thread work for ``crew``: the executor's initializer."""
    _here.crew = crew


def _crew() -> Crew:
    if not hasattr(_here, "crew"):
        join(Crew())
    crew: Crew = _here.crew
    return crew


def _connected(settings: Settings, crew: Crew, lane: Lane) -> Transport:
    if lane.transport is None:
        lane.enter("connecting")
        spool = readable(settings)
        transport = transport_class(settings.outgoing.transfer_protocol)(
            settings, spool, lambda size: crew.tick(lane, size), crew.baton
        )
        lane.gives_up = transport.gives_up
        try:
            transport.open()
        except BaseException:
            transport.close()
            spool.close()
            raise
        lane.transport = transport
    return lane.transport


def disconnect(lane: Lane) -> None:
    """End a lane's connection; the next batch makes a new one."""
    transport, lane.transport = lane.transport, None
    if transport is not None:
        transport.close()
        transport.spool.close()


def prepare(settings: Settings) -> Carried:
    """Connect, look for a stop file, and remove what earlier passes left staged. Before any other lane begins."""
    crew = _crew()
    with crew.lane() as lane:
        try:
            transport = _connected(settings, crew, lane)
            if crew.is_stopped(transport, since=0):
                return Carried([], is_stopped=True)
            transport.sweep()
            crew.ask(transport)
            transport.proof  # noqa: B018 - raises where the proof asked for cannot be had
        except (TargetDown, TargetRefused) as error:
            disconnect(lane)
            return Carried([], error)
        return Carried([])


def carry(settings: Settings, batch: Sequence[Unit], how: Deliver) -> Carried:
    """Deliver a batch: stage, verify and publish each unit. Repeating it is harmless."""
    crew = _crew()
    outcomes: list[Outcome] = []
    with crew.lane() as lane:
        try:
            transport = _connected(settings, crew, lane)
            if crew.is_stopped(transport):
                return Carried([], is_stopped=True)
            crew.ask(transport)
            fits, others = crew.admit(lane, batch)
            refused = (Outcome(unit, _no_room(unit)) for unit in others)
            for outcome in chain(refused, how(transport, fits, lane)):
                outcomes.append(outcome)  # noqa: PERF402 - those before an error are kept
        except (TargetDown, TargetRefused) as error:
            disconnect(lane)
            return Carried(outcomes, error)
        except BaseException:
            disconnect(lane)
            raise
        return Carried(outcomes)


def _no_room(unit: Unit) -> NoRoom:
    return NoRoom(f"the target is full: no room for {shown(unit.path)} of {size(unit.size)}; make room there")


def converse(settings: Settings, talk: Talk) -> Heard:
    """Talk with an arrivals monitor through its directory. Repeating it is harmless."""
    crew = _crew()
    with crew.lane() as lane:
        try:
            transport = _connected(settings, crew, lane)
            if crew.is_stopped(transport):
                return Heard(Carried([], is_stopped=True))
            lane.enter("asking")
            refused = transport.put_notes(talk.notes)
            found = transport.fetch_notes(talk.wanted)
            standing = frozenset(unit.path for unit in transport.resembling(talk.units))
        except (TargetDown, TargetRefused) as error:
            disconnect(lane)
            return Heard(Carried([], error))
        except BaseException:
            disconnect(lane)
            raise
        return Heard(Carried([]), refused, found, standing)


def discard(settings: Settings, units: Sequence[Unit]) -> None:
    """Remove what tries that failed have left staged; what cannot be removed now is swept by the next pass."""
    crew = _crew()
    with crew.lane() as lane:
        try:
            transport = _connected(settings, crew, lane)
            if isinstance(transport.spool, DirectorySpool):
                transport.discard_directories(units)
            else:
                transport.discard(units)
        except (TargetDown, TargetRefused):
            disconnect(lane)


Deliver = Callable[[Transport, Sequence[Unit], Lane], Iterator[Outcome]]
"""How a batch is delivered, by what its units are: :func:`deliver` for files."""


def deliver(transport: Transport, batch: Sequence[Unit], lane: Lane) -> Iterator[Outcome]:
    """Send all of a batch; while the far side proves one part of it, the next is on its way."""
    if there := already_there(transport, [unit for unit in batch if unit.may_be_there], lane):
        yield from map(Outcome, there.values())
        batch = [unit for unit in batch if unit.path not in there]
    lane.enter("sending")
    failed: list[Outcome] = []
    prove = _later if transport.proves_at_publishing else transport.verify
    proven = stage(transport, batch, failed, prove)
    if len(full := [outcome.unit for outcome in failed if isinstance(outcome.error, TargetFull)]) > 1:
        # What large ones had taken is free again; smaller ones may fit.
        failed = [outcome for outcome in failed if not isinstance(outcome.error, TargetFull)]
        proven += stage(transport, sorted(full, key=ORDERS["smallest"]), failed, prove)
    yield from failed
    yield from _finish(transport, chain.from_iterable(proven), lane)


def already_there(transport: Transport, units: Sequence[Unit], lane: Lane) -> dict[str, Unit]:
    """The units that the target holds byte for byte under their names, with their proofs; none of them is sent."""
    if not units:
        return {}
    lane.enter("comparing")
    alike = transport.resembling(units)
    reader, buffer = transport.spool.reader(), bytearray(digest.CHUNK)
    hashed: list[Unit] = []
    for unit in alike:
        with suppress(UnitError):  # what is wrong with it is told when it is sent
            hashed.append(reader.hash(unit, buffer, transport.tick))
    reader.forget()
    return {unit.path: unit for unit, error in transport.compare(hashed) if error is None}


Prove = Callable[[Sequence[Unit]], Iterator[Outcome]]


def _later(units: Sequence[Unit]) -> Iterator[Outcome]:
    """They are proven when they are published."""
    return map(Outcome, units)


def stage(
    transport: Transport, batch: Sequence[Unit], failed: list[Outcome], prove: Prove | None = None
) -> list[Iterator[Outcome]]:
    """Send, begin to prove what was sent, and discard what was not, which goes to ``failed``."""
    prove = prove or transport.verify
    sent = _sent(transport.send(batch), failed)
    proven = [prove(part) for part in batches(sent, PART_FILES, PART_BYTES)]
    transport.discard(outcome.unit for outcome in failed)
    return proven


def _sent(outcomes: Iterable[Outcome], failed: list[Outcome]) -> Iterator[Unit]:
    """The units that were sent; the others go to ``failed``."""
    for outcome in outcomes:
        if outcome.error is None:
            yield outcome.unit
        else:
            failed.append(outcome)


def _finish(transport: Transport, proving: Iterator[Outcome], lane: Lane) -> Iterator[Outcome]:
    lane.enter("verifying")
    verified, unproven = _sorted(proving)
    lane.enter("publishing")
    published, refused = _sorted(transport.publish(verified))
    yield from map(Outcome, published)
    taken = [outcome.unit for outcome in refused if isinstance(outcome.error, NameTaken)]
    failed = [outcome for outcome in refused if not isinstance(outcome.error, NameTaken)]
    yield from transport.compare(taken)
    transport.discard([*taken, *(outcome.unit for outcome in (*failed, *unproven))])
    yield from (*failed, *unproven)


def _sorted(outcomes: Iterable[Outcome]) -> tuple[list[Unit], list[Outcome]]:
    """The units that came through, and the outcomes of those that did not."""
    good: list[Unit] = []
    bad: list[Outcome] = []
    for outcome in outcomes:
        if outcome.error is None:
            good.append(outcome.unit)
        else:
            bad.append(outcome)
    return good, bad
