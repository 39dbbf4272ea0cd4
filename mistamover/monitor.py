"""The disk space monitor: looks at every file system of the streams, stops and releases them, has units deleted.

What it decided before is in its stop files: another monitor, after a crash, goes on from these.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from logging import ERROR, INFO, WARNING
from pathlib import Path
from typing import NamedTuple

from mistamover import disk, heartbeat, stop_files
from mistamover.aides import Known
from mistamover.alert import Trouble
from mistamover.board import Board
from mistamover.disk import Deletable, Level, Need, Sample, Space, Stage, Trend
from mistamover.errors import Held, MistamoverError
from mistamover.events import nothing
from mistamover.lines import shown, size
from mistamover.log import BaseLog
from mistamover.options import DiskSpaceMonitor, Settings
from mistamover.reclaim import Asked, Reclaim, held
from mistamover.stop_files import StopFile

PATIENCE = 5.0
"""Seconds for which streams that were just stopped may still be at work before nothing is deleted from them."""
ALERTED = "disk"
"""The directory of state_dir with the conditions of file systems."""
STEP = 0.05
ROUNDS = 3
"""Times that one look deletes what is missing, should others fill the disk meanwhile."""
LONGEST_BREATH = 10.0
AGAIN = 5.0
"""Seconds at most until the next look while space is very low."""

Tell = Callable[[int, str], object]


class Place(NamedTuple):
    """Where the stop file of a stream is."""

    directory: Path
    name: str


def arrivals(settings: Settings) -> Path | None:
    """The directory that others push into, if an arrivals monitor looks after it."""
    return settings.incoming.directory if settings.incoming.require_arrival_monitor else None


def directories(settings: Settings) -> list[Path]:
    """The directories of this host that a stream fills or empties."""
    found = [settings.data_stream.directory, arrivals(settings)]
    if settings.outgoing.transfer_protocol == "local":
        found.append(settings.outgoing.target_dir)
    return [directory for directory in found if directory is not None]


def stop_places(settings: Settings, *, deletes: bool) -> list[Place]:
    """Where a stream is stopped: where others push to if they do, else in its spool.

    In both where it ``deletes``: nothing is deleted from under a stream that still moves.
    """
    pushed_to, name = arrivals(settings), settings.incoming.stop_file
    spool = [settings.data_stream.directory] if pushed_to is None or deletes else []
    return [Place(directory, name) for directory in (*filter(None, [pushed_to]), *spool)]


def overlap(settings: Settings, streams: Iterable[Settings]) -> Settings | None:
    """Another stream the spool of which is this one's, lies in it, or holds it: deleting here could be its loss."""
    own = Path(os.path.realpath(settings.data_stream.directory))
    for other in streams:
        theirs = Path(os.path.realpath(other.data_stream.directory))
        if other.name != settings.name and (own in (theirs, *theirs.parents) or theirs in own.parents):
            return other
    return None


@dataclass
class FileSystem:
    """One file system, and what is known of it."""

    mount: str
    device: int
    directory: Path
    """One on it."""
    space: Space
    streams: list[Settings] = field(default_factory=list)
    trend: Trend = field(default_factory=Trend)
    held: disk.Held | None = None
    """Which of its streams are stopped; None until the stop files were looked at."""
    level: Level = Level.GOOD
    since: float = 0.0
    """When it came to this level, in seconds since the epoch."""
    told: tuple[Level, tuple[str, ...]] | None = None
    """The level and the stopped streams that the log tells of."""


class Monitor:
    """Watches over the file systems of a service's streams.

    ``tell`` takes the lines of the log; ``alive`` is called while it works.
    """

    def __init__(
        self,
        state_dir: Path,
        limits: DiskSpaceMonitor,
        tell: Tell,
        alive: Callable[[], object] = nothing,
        board: Board | None = None,
    ) -> None:
        self.limits = limits
        self._state_dir = state_dir
        self._tell = tell
        self._alive = alive
        self._board = board
        self._known: dict[int, FileSystem] = {}
        self._places: set[Place] = {
            Place(Path(where).parent, Path(where).name)
            for one in heartbeat.read_disks(state_dir)
            for where in one.stops
        }
        """Where our stop files may be."""
        self._mounts = {one.mount for one in heartbeat.read_disks(state_dir)}
        self._patient_until = 0.0
        self._trouble: dict[str, str] = {}
        """What could not be done, by what it was about; told once."""

    def look(self, streams: Sequence[Settings], now: float) -> float:
        """Look once, at ``now`` of the monotonic clock, and act; gives the seconds until the next look is due."""
        self._trouble_before, self._trouble = self._trouble, {}
        self._known = self._found(streams)
        for one in self._known.values():
            self._note_space(one, now)
            if one.held is None:
                one.held = self._held_before(one)
        wanted = [one for one in self._known.values() if one.level is Level.VLOW]
        for one in wanted:
            one.held = max(one.held or disk.Held.NOBODY, disk.Held.LOWER)
        if wanted:
            self._set_stops(streams)
        for one in wanted:
            self._make_room(one, streams)
        for one in self._known.values():
            one.held = disk.held(one.held or disk.Held.NOBODY, one.level)
        self._set_stops(streams)
        for one in self._known.values():
            self._tell_level(one)
        self.note_conditions(self._known.values())
        heartbeat.write_disks(self._state_dir, [self._told(one) for one in self._known.values()])
        return min(map(self._next_look, self._known.values()), default=self.limits.poll_interval)

    def picture(self, streams: Iterable[Settings]) -> list[heartbeat.Disk]:
        """How the file systems are right now, for people; changes nothing."""
        self._known = self._found(streams)
        for one in self._known.values():
            self._note_level(one)
            one.held = self._held_before(one)
        return [self._told(one) for one in self._known.values()]

    def _next_look(self, one: FileSystem) -> float:
        interval = self.limits.poll_interval
        interval = min(interval, AGAIN) if one.level is Level.VLOW else interval
        return disk.next_look(self.limits, one.space, one.trend, interval)

    # -- what there is ---------------------------------------------------------------------------------------

    def _found(self, streams: Iterable[Settings]) -> dict[int, FileSystem]:
        """The file systems of the streams, with what was known of them."""
        found: dict[int, FileSystem] = {}
        for settings in streams:
            for directory in directories(settings):
                with suppress(OSError):
                    one = self._file_system(directory, found)
                    if settings not in one.streams:
                        one.streams.append(settings)
        return found

    def _file_system(self, directory: Path, found: dict[int, FileSystem]) -> FileSystem:
        device = os.stat(directory).st_dev
        if device in found:
            return found[device]
        mount = str(disk.mount_point(directory))
        known = self._known.get(device)
        if known is None or known.mount != mount:
            known = FileSystem(mount, device, directory, disk.space(directory))
        known.streams, known.directory, known.space = [], directory, disk.space(directory)
        found[device] = known
        return known

    def _note_space(self, one: FileSystem, now: float) -> None:
        one.trend.add(Sample(now, one.space.free, one.space.inodes))
        self._note_level(one)

    def _note_level(self, one: FileSystem) -> None:
        level = disk.level(self.limits, one.space)
        if level is not one.level or not one.since:
            one.level, one.since = level, time.time()

    def _measure(self, one: FileSystem) -> Need:
        with suppress(OSError):
            one.space = disk.space(one.directory)
        return disk.need(self.limits, one.space)

    # -- stops -----------------------------------------------------------------------------------------------

    def _held_before(self, one: FileSystem) -> disk.Held:
        """Which streams were stopped for this file system, by the stop files that are there."""
        before = disk.Held.NOBODY
        for settings in one.streams:
            if any(self._is_stopped_for(one, place) for place in stop_places(settings, deletes=True)):
                is_lower = settings.priority <= self.limits.base_priority
                before = max(before, disk.Held.LOWER if is_lower else disk.Held.ALL)
        return before

    def _is_stopped_for(self, one: FileSystem, place: Place) -> bool:
        with suppress(OSError), _opened(place.directory) as fd:
            told = stop_files.read(fd, place.name)
            is_own = stop_files.is_own(told, str(self._state_dir))
            return is_own and told is not None and (one.mount in told.file_systems or not told.file_systems)
        return False

    def _stopped(self, one: FileSystem) -> list[Settings]:
        """The streams that are to be stopped for a file system."""
        base, state = self.limits.base_priority, one.held or disk.Held.NOBODY
        return [settings for settings in one.streams if disk.is_stopped(state, settings.priority, base)]

    def _set_stops(self, streams: Iterable[Settings]) -> None:
        """Have stop files where streams are to be stopped, and none of ours elsewhere."""
        wanted: dict[Place, list[FileSystem]] = {}
        for one in self._known.values():
            for settings in self._stopped(one):
                for place in stop_places(settings, deletes=self._may_delete(one, settings)):
                    wanted.setdefault(place, []).append(one)
        for place, reasons in wanted.items():
            self._put(place, reasons)
        every = {place for settings in streams for place in stop_places(settings, deletes=True)}
        for place in (every | self._places) - wanted.keys():
            self._remove(place)
        self._places = set(wanted)

    def _may_delete(self, one: FileSystem, settings: Settings) -> bool:
        is_willing = settings.data_stream.deletion_enabled and settings.priority <= self.limits.base_priority
        return is_willing and one.level is Level.VLOW

    def _put(self, place: Place, reasons: Sequence[FileSystem]) -> None:
        told = StopFile(str(self._state_dir), tuple(dict.fromkeys(one.mount for one in reasons)))
        why = "; ".join(dict.fromkeys(self._said(one) for one in reasons))
        try:
            with _opened(place.directory) as fd:
                stop_files.put(fd, place.name, why, told)
        except OSError as error:
            self._note_trouble(place, f"cannot be stopped: {error.strerror}")

    def _remove(self, place: Place) -> None:
        try:
            with _opened(place.directory) as fd:
                stop_files.remove(fd, place.name, str(self._state_dir))
        except FileNotFoundError:
            return  # not mounted, or gone: so is what lay there
        except OSError as error:
            self._note_trouble(place, f"cannot go on: {error.strerror}; remove {place.name} there")

    def _note_trouble(self, place: Place, what: str) -> None:
        about = str(place.directory)
        self._trouble[about] = what
        if self._trouble_before.get(about) != what:
            self._tell(ERROR, f"the stream in {shown(about)} {what}")

    # -- deletions -------------------------------------------------------------------------------------------

    def _make_room(self, one: FileSystem, streams: Sequence[Settings]) -> None:
        """Delete units of the streams that allow it, until ``level_vlow`` is passed."""
        willing = {
            settings.name: settings
            for settings in one.streams
            if settings.data_stream.deletion_enabled and not self._shares_its_spool(settings, streams)
        }
        self._patient_until = time.monotonic() + PATIENCE
        for _ in range(ROUNDS if willing else 0):
            missing, before = self._measure(one), one.space.free
            freed = missing.bytes - self._delete_once(one, willing, missing).bytes
            self._measure(one)
            if one.space.free - before < freed / 2 or not freed:
                break  # nothing more to be had; or it takes its time, and must not cost more than what is missing
        self._note_level(one)

    def _delete_once(self, one: FileSystem, willing: Mapping[str, Settings], missing: Need) -> Need:
        """Delete as much as is missing, where there is so much; gives what is missing still."""
        for stage, name in disk.deletions(map(_deletable, willing.values()), self.limits.base_priority):
            if missing.is_met or self._measure(one).is_met:
                break
            missing = self._delete(one, willing[name], stage, missing)
        return missing

    def _shares_its_spool(self, settings: Settings, streams: Sequence[Settings]) -> bool:
        if other := overlap(settings, streams):
            spool = settings.data_stream.directory
            self._note_trouble(
                Place(spool, ""), f"loses no units, since the spool of {shown(other.name)} is there too"
            )
        return other is not None

    def _delete(self, one: FileSystem, settings: Settings, stage: Stage, missing: Need) -> Need:
        """Delete from one stream; gives what is missing then."""
        name = shown(settings.name)
        tell = lambda line: self._tell(WARNING, f"{name}: {line}")  # noqa: E731
        asked = Asked(stage, missing, one.device, self._said(one))
        while True:
            try:
                with held(settings) as (spool, ledger):
                    work = Reclaim(settings, spool, ledger, partial(self._measure, one), tell, self._alive)
                    return work.run(asked)
            except Held:
                if time.monotonic() > self._patient_until:
                    return missing  # it still has a batch on its way: at the next look it may have ended
            except (MistamoverError, OSError) as error:
                self._note_trouble(Place(settings.data_stream.directory, ""), f"loses no units: {error}")
                return missing
            self._alive()
            time.sleep(STEP)

    # -- what is told ----------------------------------------------------------------------------------------

    def _said(self, one: FileSystem) -> str:
        """Why a stream is stopped, for people."""
        space = one.space
        if one.level in (Level.LOW, Level.VLOW) and disk.runs_out_of_inodes(self.limits, space):
            return f"{shown(one.mount)} has {space.inodes:,} inodes free ({_word(one.level)})"
        return f"{shown(one.mount)} has {size(space.free)} free ({_word(one.level)})"

    def _tell_level(self, one: FileSystem) -> None:
        stopped = tuple(settings.name for settings in self._stopped(one))
        told, one.told = one.told, (one.level, stopped)
        if one.told == told or (told is None and one.level is Level.GOOD and not stopped):
            return
        names = ", ".join(map(shown, stopped))
        level = WARNING if one.level >= Level.LOW else INFO
        self._tell(level, f"{self._said(one)}; {f'stopped: {names}' if names else 'no stream is stopped'}")

    def note_conditions(self, known: Iterable[FileSystem]) -> None:
        """Have people told while a file system is low, or streams are stopped for it."""
        if self._board is None:
            return
        every = {one.mount: one for one in known}
        low = {mount: one for mount, one in every.items() if one.level >= Level.LOW or self._stopped(one)}
        for mount in (self._mounts | every.keys()) - low.keys():
            self._board.end(Trouble.DISK, about=mount)
        self._mounts = set(low)
        for mount, one in low.items():
            stopped = [shown(settings.name) for settings in self._stopped(one)]
            tried = f"stopped: {', '.join(stopped)}" if stopped else "no stream is stopped"
            count, mend = len(stopped), "mistamover disk"
            self._board.hold(Trouble.DISK, self._said(one), about=mount, count=count, tried=tried, mend=mend)

    def _told(self, one: FileSystem) -> heartbeat.Disk:
        places = {place: None for settings in one.streams for place in stop_places(settings, deletes=True)}
        return heartbeat.Disk(
            mount=one.mount,
            level=_word(one.level),
            since=one.since,
            looked=time.time(),
            free=one.space.free,
            total=one.space.total,
            inodes=one.space.inodes,
            all_inodes=one.space.all_inodes,
            rate=one.trend.rate,
            full_in=_finite(disk.full_in(one.space, one.trend)),
            streams=tuple(settings.name for settings in one.streams),
            stopped=tuple(settings.name for settings in self._stopped(one)),
            stops=tuple(str(place.directory / place.name) for place in places if place in self._places),
            trouble=tuple(
                f"the stream in {shown(str(settings.data_stream.directory))} {what}"
                for settings in one.streams
                if (what := self._trouble.get(str(settings.data_stream.directory)))
            ),
        )


def _word(level: Level) -> str:
    return "very low" if level is Level.VLOW else level.name.lower()


def _finite(seconds: float) -> float | None:
    return seconds if seconds != float("inf") else None


def _deletable(settings: Settings) -> Deletable:
    data = settings.data_stream
    return Deletable(settings.name, settings.priority, data.deletion_enabled, data.deletion_of_unsent)


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


# -- in the service ----------------------------------------------------------------------------------------


def is_wanted(known: Known) -> bool:
    """Whether there is anything to watch over."""
    return bool(known.streams)


def serve(known: Known, log: BaseLog, alive: Callable[[], object]) -> None:
    """Look again and again, as an aide of the service."""
    settings = known.service
    state_dir = settings.global_.state_dir
    board = Board(state_dir / ALERTED, "", settings.email)
    monitor = Monitor(state_dir, settings.disk_space_monitor, log.tell, alive, board)
    beat = min(settings.global_.hang_timeout / 4, LONGEST_BREATH)
    while True:
        due = time.monotonic() + monitor.look(known.streams, time.monotonic())
        while (left := due - time.monotonic()) > 0:
            alive()
            board.look()
            time.sleep(min(left, beat))
