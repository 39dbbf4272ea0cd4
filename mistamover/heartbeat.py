"""What each stream, and the service, says of itself: small JSON files in the state directory, for ``status``.

They are written in one rename and never fsynced: after a crash the processes that they tell of are gone anyhow.
That one cannot be written stops nobody; whether a worker lives, the supervisor knows by other means.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from mistamover import foreign

HEARTBEAT = "heartbeat.json"
SERVICE = "service.json"
DISKS = "disks.json"

_Told = TypeVar("_Told")


class State(str, Enum):
    """What a stream does, in the word that people see."""

    STARTING = "starting"
    IDLE = "idle"
    SETTLING = "settling"
    MOVING = "moving"
    WAITING = "waiting for target"
    TROUBLE = "in trouble"
    """Its spool or its ledger cannot be used, or its target refuses it."""
    PAUSED = "paused"
    ENDING = "ending"
    STOPPED = "stopped"
    """Its file says ``status = stopped``."""
    COMPLETE = "complete"
    RESTARTING = "restarting"
    HELD = "held by another process"
    HUNG = "hung"
    FATAL = "fatal"
    BROKEN = "broken configuration"


NEEDS_A_PERSON = frozenset({State.TROUBLE, State.HELD, State.HUNG, State.FATAL, State.BROKEN})


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What the worker of a stream says; times in seconds since the epoch, sizes in bytes."""

    pid: int = 0
    state: State = State.STARTING
    since: float = 0.0
    """When it came into this state."""
    why: str = ""
    written: float = 0.0
    waiting: int = 0
    """Units that were found and are not delivered: on their way, settling, waiting after a failure."""
    waiting_bytes: int = 0
    failed: int = 0
    """Of these, units that wait for another try."""
    quarantined: int = 0
    oldest: float = 0.0
    """The time of the oldest waiting unit; 0 where none waits."""
    next_try: float = 0.0
    day: str = ""
    """The day, local, that the next two are of."""
    delivered: int = 0
    delivered_bytes: int = 0
    rate: float = 0.0
    """Bytes a second, of the last minute or so."""
    last_error: str = ""


@dataclass(frozen=True, slots=True)
class Standing:
    """What the supervisor says of a stream."""

    path: str = ""
    state: State | None = None
    """None: as its worker says."""
    since: float = 0.0
    why: str = ""
    pid: int = 0
    deaths: int = 0
    """Of its workers, within the last minutes."""
    findings: tuple[str, ...] = ()
    """What is wrong with its file as it is now; an earlier one goes on meanwhile, if there was one."""


@dataclass(frozen=True, slots=True)
class Service:
    """What the supervisor says of itself."""

    pid: int = 0
    since: float = 0.0
    version: str = ""
    config: str = ""
    reloads: int = 0
    is_ending: bool = False
    findings: tuple[str, ...] = ()
    """What is wrong with the global file, or with the list of stream files, since the last reload."""
    stop_within: float = 0.0
    """Seconds in which a stop ends at the latest."""
    streams: Mapping[str, Standing] = field(default_factory=dict)
    """By the names of the streams; those whose files could never be read go by the files' names."""


@dataclass(frozen=True, slots=True)
class Disk:
    """What the disk space monitor says of a file system; sizes in bytes, times in seconds since the epoch."""

    mount: str = ""
    level: str = ""
    since: float = 0.0
    """When it came to this level."""
    looked: float = 0.0
    free: int = 0
    total: int = 0
    inodes: int | None = None
    """Free ones; None where they have no fixed number."""
    all_inodes: int = 0
    rate: float | None = None
    """Bytes a second by which free space grows; None where it is not known yet."""
    full_in: float | None = None
    """Seconds until bytes or inodes are used up at this rate; None where they are not."""
    streams: tuple[str, ...] = ()
    stopped: tuple[str, ...] = ()
    """Those of the streams that are stopped for it."""
    stops: tuple[str, ...] = ()
    """The stop files of these."""
    trouble: tuple[str, ...] = ()

    @property
    def needs_a_person(self) -> bool:
        """Whether somebody has to make room."""
        return self.level in ("low", "very low") or bool(self.stopped or self.trouble)


def write(directory: Path, name: str, told: Heartbeat | Service) -> bool:
    """Put what is told in its place; whether that worked."""
    return _put(directory, name, asdict(told))


def write_disks(state_dir: Path, told: Iterable[Disk]) -> bool:
    """The same for all file systems together."""
    return _put(state_dir, DISKS, {"disks": [asdict(one) for one in told]})


def _put(directory: Path, name: str, content: dict[str, Any]) -> bool:
    path, new = directory / name, directory / f"{name}.new"
    with suppress(OSError):
        new.write_text(json.dumps(content))
        os.replace(new, path)
        return True
    return False


def read_heartbeat(directory: Path) -> Heartbeat:
    """What the last worker of the stream with this state directory said; nothing where there was none."""
    return _made(Heartbeat, _content(directory / HEARTBEAT))


def read_service(state_dir: Path) -> Service:
    """What the supervisor said last."""
    content = _content(state_dir / SERVICE)
    told = content.pop("streams", None)
    streams = {name: _made(Standing, each) for name, each in told.items()} if isinstance(told, dict) else {}
    return _made(Service, content | {"streams": streams})


def read_disks(state_dir: Path) -> list[Disk]:
    """What the disk space monitor said last, of each file system."""
    told = _content(state_dir / DISKS).get("disks")
    return [_made(Disk, one) for one in told if isinstance(one, dict)] if isinstance(told, list) else []


def _content(path: Path) -> dict[str, Any]:
    try:
        return foreign.members(foreign.read(path, foreign.LARGEST_STATE)[0])
    except (OSError, foreign.Refused):
        return {}


def _made(kind: type[_Told], content: object) -> _Told:
    """A dataclass of what is there; members and words that another version wrote are left out."""
    content = content if isinstance(content, dict) else {}
    known = {one.name for one in fields(kind)}  # type: ignore[arg-type]
    members = {name: value for name, value in content.items() if name in known}
    if members.get("state") is not None:
        members["state"] = _STATES.get(str(members["state"]), State.STARTING)
    for name in ("findings", "streams", "stopped", "stops", "trouble"):
        if isinstance(members.get(name), list):
            members[name] = tuple(map(str, members[name]))
    return kind(**members)


_STATES = {state.value: state for state in State}
