"""The supervisor: one forked worker for each stream file. No threads, nothing open that a fork would share.

Signals stay blocked and are taken one by one by the loop, which decides; nothing happens inside a handler.
"""

from __future__ import annotations

import mmap
import os
import shlex
import signal
import struct
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from logging import CRITICAL, ERROR, INFO, WARNING
from math import inf
from pathlib import Path
from typing import NamedTuple

from mistamover import __version__, config, heartbeat
from mistamover.aides import Aide, Aides, Known
from mistamover.alert import Trouble
from mistamover.board import ALERTS, OF_SERVICE, Board, withdraw
from mistamover.errors import ConfigError, Exit
from mistamover.heartbeat import Heartbeat, Service, Standing, State
from mistamover.lines import hide_secrets, redacted, shown
from mistamover.log import MainLog
from mistamover.options import ServiceSettings, Settings
from mistamover.processes import (
    Slot,
    die_with,
    how_it_ended,
    is_hung,
    last_sign,
    notify,
    now_usec,
    sign_of_life,
    watchdog_interval,
)
from mistamover.stream import have_one_spool

SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD})
FROZEN = 30.0
"""Seconds between two looks that no work of ours takes."""
TICK = 1.0
"""Seconds between two looks at the workers."""
FILES_EVERY = 5.0
"""Seconds between two looks at the stream files."""
WITHIN = 600.0
"""Seconds that a death counts."""
FIRST_DELAY, LONGEST_DELAY = 1.0, 60.0
"""Seconds until a worker that died is started again; doubles with each death."""
HELD_DELAY = 5.0
"""Seconds until a spool that another process holds is tried again; doubles with each try, up to LONGEST_DELAY."""
GRACE = 15.0
"""Seconds beyond the longest stop_timeout after which a worker that was told to end is killed."""
STALE = 120.0
"""Seconds after which what a worker has told is no news: it tells every half minute that it lives."""
COMPLETE = 64
"""How a worker ends whose stream is complete."""


class Life(Enum):
    """Where a stream is in the supervisor's hands."""

    DOWN = auto()
    """No worker, and one is due at ``next_start``."""
    UP = auto()
    ENDING = auto()
    """Its worker was told to end; what comes then, its file and its settings say."""
    KILLED = auto()
    """Its worker was killed, and has not ended yet."""
    RESTS = auto()
    """No worker, and none is due until its file changes or a reload."""


class Stamp(NamedTuple):
    """What tells one version of a file from another."""

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


@dataclass
class Child:
    """One stream file, and its worker if it has one."""

    path: Path
    stamp: Stamp | None = None
    settings: Settings | None = None
    """Those that its worker has, or the next one gets; None while the file could never be used."""
    coming: Settings | None = None
    """Those that the next worker gets, once this one has ended."""
    is_gone: bool = False
    """Whether its file is."""
    findings: tuple[str, ...] = ()
    life: Life = Life.DOWN
    state: State | None = State.STARTING
    since: float = field(default_factory=time.time)
    why: str = ""
    pid: int = 0
    slot: Slot | None = None
    started: float = 0.0
    """Monotonic, like all times here but ``since``."""
    next_start: float = 0.0
    ended_by: float = 0.0
    """When a worker that was told to end is killed; infinity where it may take its time."""
    deaths: deque[float] = field(default_factory=deque)
    refusals: int = 0
    """How often it was found held by another process, one after the other."""

    @property
    def name(self) -> str:
        """The stream's name; that of its file where that could never be read."""
        return self.settings.name if self.settings else self.path.stem.removeprefix("ds_")

    def stand(self, state: State | None, why: str = "") -> None:
        """Come into a state, for people, or stay in it for what may be another reason."""
        if state != self.state:
            self.since = time.time()
        self.state, self.why = state, why

    @property
    def is_decided(self) -> bool:
        """Whether its first worker is up, or it is known why there is none."""
        if self.life is Life.UP:
            return self.slot is not None and last_sign(self.slot) > 0
        return self.life is not Life.DOWN or bool(self.deaths) or self.state is State.HELD


# -- decisions ---------------------------------------------------------------------------------------------


def delay(deaths: int) -> float:
    """Seconds until the next start after so many deaths."""
    return float(min(FIRST_DELAY * 2.0 ** min(deaths - 1, 40), LONGEST_DELAY))


def is_given_up(deaths: Iterable[float], max_restarts: int, now: float) -> bool:
    """Whether a worker died so often within the last minutes that it rests."""
    return sum(death > now - WITHIN for death in deaths) > max_restarts


class Changes(NamedTuple):
    """How the stream files differ from what is known of them."""

    new: list[Path]
    changed: list[Path]
    gone: list[Path]


def compare(known: Mapping[Path, Stamp | None], found: Mapping[Path, Stamp | None], *, again: bool) -> Changes:
    """What came, changed and went; ``again``: all of it counts as changed."""
    return Changes(
        [path for path in found if path not in known],
        [path for path, stamp in found.items() if path in known and (again or known[path] != stamp)],
        [path for path in known if path not in found],
    )


def stamp(path: Path) -> Stamp | None:
    """The stamp of a file; None where it cannot be had."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return Stamp(found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


# -- the supervisor ----------------------------------------------------------------------------------------

Work = Callable[[Settings, Callable[[], None]], int]
"""What a worker does in its process; the callable is its sign of life, and it gives its exit code."""


class Supervisor:
    """Keeps one worker running for each stream file, and its aides."""

    def __init__(
        self,
        settings: ServiceSettings,
        log: MainLog,
        work: Work,
        aides: Iterable[Aide] = (),
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.settings = settings
        self.children: dict[Path, Child] = {}
        self._aides = Aides(aides, log)
        self._board = Board(settings.global_.state_dir / ALERTS, "", settings.email, now)
        self._now = now
        self._boards: dict[Path, Board] = {}
        """Of what we know of single streams, by their files."""
        self._log = log
        log.listener = self._board.hear
        self._work = work
        self._pid = os.getpid()
        self._since = time.time()
        self._is_ending = False
        self._reloads = 0
        self._findings: tuple[str, ...] = ()
        self._is_without_files = False
        """Whether the findings are that there is no directory of stream files."""
        self._next_look = 0.0
        self._told: Service | None = None
        self._watchdog = watchdog_interval()
        self._tick = min(TICK, self._watchdog / 3) if self._watchdog else TICK

    def run(self, ready: Callable[[], object]) -> None:
        """Run until we are asked to stop and all workers have ended; ``ready`` is called when each is decided."""
        # Ignored, as whoever started us may have left it, no child could be waited for.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        is_ready = False
        last = time.monotonic()
        while not self._is_ending or self.children or not self._aides.are_gone:
            now = time.monotonic()
            self._forgive(now, now - last)
            last = now
            self._reap(now)
            if now >= self._next_look and not self._is_ending:
                self._look_at_files(now)
            for child in list(self.children.values()):
                self._manage(child, now)
            if not is_ready and all(child.is_decided for child in self.children.values()):
                is_ready = True
                self._tell()
                ready()
                notify("READY=1")
            if is_ready or self._is_ending:
                self._aides.manage(self._known(), now)
            self._tell()
            self._wait(self._tick if is_ready else 0.05)

    def _known(self) -> Known | None:
        """What aides are to know; None where they are to end."""
        if self._is_ending:
            return None
        found = (child.coming or child.settings for child in self.children.values() if not child.is_gone)
        return Known(self.settings, tuple(filter(None, found)))

    def _forgive(self, now: float, seconds: float) -> None:
        """Where we ourselves stood still for so long, as in a frozen container, workers may have done so too."""
        if seconds > FROZEN:
            for child in self.children.values():
                child.started = now
            self._aides.forgive(now)

    def _wait(self, seconds: float) -> None:
        """Wait for a signal, or for the next tick; of several signals each gets its turn."""
        while (caught := signal.sigtimedwait(SIGNALS, seconds)) is not None:
            number = caught.si_signo
            if number in (signal.SIGTERM, signal.SIGINT):
                self._end()
            elif number == signal.SIGHUP and not self._is_ending:
                self._reload()
            seconds = 0.0

    # -- what is wanted --------------------------------------------------------------------------------------

    def _reload(self) -> None:
        """Read everything again, and give streams that rest another chance."""
        notify("RELOADING=1", f"MONOTONIC_USEC={now_usec()}")
        self._log.tell(INFO, "reloads")
        self._findings = ()
        try:
            new = config.load_service(self.settings.path)
            state_dir = self.settings.global_.state_dir
            if new.global_.state_dir != state_dir:
                what = f"{new.path}: [global] state_dir: cannot change from {state_dir} while it runs"
                raise ConfigError([f"{what}; mistamover restart"])
            self.settings = new
        except ConfigError as error:
            self._note_findings(error)
        self._board.tells(self.settings.email)
        for child in self.children.values():
            child.deaths.clear()
            if child.life in (Life.RESTS, Life.DOWN):
                self._start_soon(child)
        self._look_at_files(time.monotonic(), again=True)
        self._reloads += 1
        self._tell()
        notify("READY=1")

    def _note_findings(self, error: ConfigError) -> None:
        if error.findings != self._findings:
            self._findings = error.findings
            for line in error.findings:
                self._log.tell(CRITICAL, f"{line}; the earlier configuration goes on")

    def _end(self) -> None:
        if not self._is_ending:
            self._is_ending = True
            notify("STOPPING=1")
            self._log.tell(INFO, "stops")
        for child in self.children.values():
            self._ask_to_end(child, signal.SIGTERM)

    def _look_at_files(self, now: float, *, again: bool = False) -> None:
        """Follow the directory of stream files: what came, changed and went."""
        self._next_look = now + FILES_EVERY
        try:
            found = {path: stamp(path) for path in config.stream_files(self.settings)}
        except ConfigError as error:
            self._note_findings(error)  # it may be back in a moment: streams go on
            self._is_without_files = True
            return
        if self._is_without_files:
            self._findings, self._is_without_files = (), False
        # What was wrong may have been mended elsewhere: a key that was missing, another stream of that name.
        known = {
            path: None if child.findings else child.stamp
            for path, child in self.children.items()
            if not child.is_gone
        }
        changes = compare(known, found, again=again)
        for path in changes.gone:
            self._let_go(self.children[path])
        for path in changes.new:
            child = self.children.setdefault(path, Child(path))
            child.is_gone = False
            self._take(child, found[path])
        for path in changes.changed:
            self._take(self.children[path], found[path])

    def _take(self, child: Child, now: Stamp | None) -> None:
        """Read a stream file that is new or has changed."""
        child.stamp = now
        try:
            settings = config.load(child.path, self.settings.path)
            self._refuse_namesake(child, settings)
        except ConfigError as error:
            self._refuse(child, error)
            return
        child.findings = ()
        hide_secrets(settings)
        current = child.coming or child.settings
        if settings == current and child.life is not Life.RESTS:
            return
        if child.pid:
            child.coming = settings
            self._log.tell(INFO, f"{shown(child.name)}: takes its new configuration after its batch")
            self._ask_to_end(child, signal.SIGHUP)
        else:
            child.settings = settings
            child.deaths.clear()
            self._start_soon(child)

    def _refuse_namesake(self, child: Child, settings: Settings) -> None:
        for other in self.children.values():
            is_other = other is not child and not other.is_gone
            theirs = other.coming or other.settings
            if is_other and theirs and theirs.name == settings.name:
                what = f"{child.path}: {other.path} is a stream of that name too"
                raise ConfigError([f"{what}; give it another [data_stream] name"])

    def _refuse(self, child: Child, error: ConfigError) -> None:
        """A file that cannot be used changes nothing but what is told of it."""
        if error.findings != child.findings:
            child.findings = error.findings
            earlier = "; its earlier configuration goes on" if child.settings else "; it is not started"
            for line in error.findings:
                self._log.tell(CRITICAL, f"{line}{earlier}")
        if child.settings is None:
            child.life = Life.RESTS
            child.stand(State.BROKEN, error.findings[0])

    def _start_soon(self, child: Child) -> None:
        if child.settings is not None:
            child.life = Life.DOWN
            child.next_start = 0.0
            child.stand(State.STARTING)

    def _let_go(self, child: Child) -> None:
        """Its file is gone: its worker finishes the batch, and ends."""
        child.is_gone = True
        if child.pid:
            self._log.tell(INFO, f"{shown(child.name)}: its file is gone; ends after its batch")
            self._ask_to_end(child, signal.SIGHUP)
        else:
            self._forget(child)

    def _forget(self, child: Child) -> None:
        del self.children[child.path]
        self._boards.pop(child.path, None)
        if child.is_gone and not any(other.name == child.name for other in self.children.values()):
            withdraw(self.settings.global_.state_dir / child.name)

    # -- workers ---------------------------------------------------------------------------------------------

    def _manage(self, child: Child, now: float) -> None:
        """Do what is due for one stream."""
        if child.pid:
            self._watch_over(child, now)
        elif self._is_ending or child.is_gone:
            self._forget(child)
        elif child.life is Life.DOWN and now >= child.next_start:
            self._start(child, now)

    def _watch_over(self, child: Child, now: float) -> None:
        """See that a worker lives, or ends as it was told to."""
        assert child.slot is not None  # noqa: S101 - each worker has one
        sign = last_sign(child.slot)
        if child.life is Life.KILLED:
            return  # the kernel has to let go of it
        if child.life is Life.ENDING and now > child.ended_by:
            self._kill(child, f"did not end within {child.ended_by - child.started:.0f} s")
        elif is_hung(child.started, sign, self.settings.global_.hang_timeout, now):
            self._kill(child, "gave no sign of life", State.HUNG)
        elif child.life is Life.UP and sign:
            child.refusals = 0
            child.stand(None)

    def _start(self, child: Child, now: float) -> None:
        """Fork a worker, unless the stream's file holds it back."""
        settings = child.settings
        assert settings is not None  # noqa: S101 - what has none rests
        if settings.data_stream.status != "running":
            child.life = Life.RESTS
            child.stand(State.STOPPED, "its file says so: [data_stream] status")
            return
        try:
            slot = mmap.mmap(-1, struct.calcsize("d"))
            pid = os.fork()
        except OSError as error:  # no memory, or too many processes: nobody's fault, and over some time
            child.next_start = now + LONGEST_DELAY
            child.stand(State.RESTARTING, f"its worker cannot be started: {error.strerror}")
            self._log.tell(ERROR, f"{shown(child.name)}: {child.why}")
            return
        if pid == 0:
            self._be_worker(settings, slot)
        child.pid, child.slot, child.started = pid, slot, now
        child.life = Life.UP
        if not child.refusals:
            child.stand(State.STARTING)

    def _be_worker(self, settings: Settings, slot: Slot) -> None:
        """What the child of a fork does: its work, and then nothing else."""
        code = 1
        try:
            die_with(self._pid)
            code = self._work(settings, lambda: sign_of_life(slot))
        finally:
            os._exit(code)

    def _ask_to_end(self, child: Child, number: signal.Signals) -> None:
        """Tell a worker to end: TERM within stop_timeout, HUP after its batch. A second TERM would cut it short."""
        if not child.pid or child.life is Life.KILLED or (child.life is Life.ENDING and child.ended_by < inf):
            return
        within = inf
        if number == signal.SIGTERM:
            within = time.monotonic() + self._stop_timeout(child) + GRACE
        child.ended_by = within
        child.life = Life.ENDING
        child.stand(State.ENDING)
        os.kill(child.pid, number)  # it is our child and not reaped: the number is still its own

    @staticmethod
    def _stop_timeout(child: Child) -> float:
        return child.settings.outgoing.stop_timeout if child.settings else 0.0

    def _kill(self, child: Child, why: str, state: State = State.ENDING) -> None:
        self._log.tell(ERROR, f"{shown(child.name)}: its worker {why}; it is killed")
        child.life = Life.KILLED
        child.stand(state, f"its worker {why}")
        if state is State.HUNG:
            self.note_hung(child)
        os.kill(child.pid, signal.SIGKILL)

    def _reap(self, now: float) -> None:
        """Take note of workers and aides that have ended."""
        by_pid = {child.pid: child for child in self.children.values() if child.pid}
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            code = os.waitstatus_to_exitcode(status)
            if child := by_pid.get(pid):
                self._ended(child, code, now)
            else:
                self._aides.take(pid, code, now)

    def _ended(self, child: Child, code: int, now: float) -> None:
        """What comes after a worker's end."""
        life, child.pid, child.slot = child.life, 0, None
        if child.coming is not None:
            child.settings, child.coming = child.coming, None
            child.deaths.clear()
        if self._is_ending or child.is_gone:
            child.life = Life.DOWN  # and goes at once
        elif life is Life.ENDING or (life is Life.KILLED and child.state is not State.HUNG):
            self._start_soon(child)
        elif code == COMPLETE:
            child.life = Life.RESTS
            child.stand(State.COMPLETE, "its completion file was delivered")
            self._log.tell(INFO, f"{shown(child.name)}: complete")
        elif code == Exit.HELD:
            child.refusals += 1
            pause = min(HELD_DELAY * 2.0 ** min(child.refusals - 1, 10), LONGEST_DELAY)
            child.life, child.next_start = Life.DOWN, now + pause
            child.stand(State.HELD, self._who_holds(child))
        elif life is Life.KILLED:
            self._died(child, "gave no sign of life", now)
        else:
            self._died(child, how_it_ended(code), now)

    def _who_holds(self, child: Child) -> str:
        """Who moves from the spool of a stream, and what to do about it."""
        others = (other.settings for other in self.children.values() if other is not child and other.pid)
        for theirs in filter(None, others):
            if child.settings and have_one_spool(theirs, child.settings):
                return f"the stream {shown(theirs.name)} moves from its spool; give each a spool of its own"
        return "another mistamover moves from its spool; let it end, or stop it"

    def _died(self, child: Child, why: str, now: float) -> None:
        self._note_death(child, now)
        if is_given_up(child.deaths, self.settings.global_.max_restarts, now):
            child.life = Life.RESTS
            child.stand(State.FATAL, f"{why}, {len(child.deaths)} times; mend it, then: mistamover reload")
            self._log.tell(CRITICAL, f"{shown(child.name)}: {child.why}")
            return
        pause = delay(len(child.deaths))
        child.life, child.next_start = Life.DOWN, now + pause
        child.stand(State.RESTARTING, why)
        self._log.tell(WARNING, f"{shown(child.name)}: its worker {why}; started again in {pause:.0f} s")

    @staticmethod
    def _note_death(child: Child, now: float) -> None:
        child.deaths.append(now)
        while child.deaths[0] <= now - WITHIN:
            child.deaths.popleft()

    # -- what is told ----------------------------------------------------------------------------------------

    def _tell(self) -> None:
        """Write down how things stand, where that has changed, and give the service manager a sign of life."""
        if self._watchdog:
            notify("WATCHDOG=1")
        for board in self.boards:
            board.look()
        told = self._service()
        if told != self._told:
            self.note_conditions()
        if told != self._told and heartbeat.write(self.settings.global_.state_dir, heartbeat.SERVICE, told):
            self._told = told
            notify(f"STATUS={_in_a_word(told)}")

    @property
    def boards(self) -> list[Board]:
        """All that we note conditions on."""
        return [self._board, *self._boards.values()]

    def note_hung(self, child: Child) -> None:
        """Have people told that a worker hung."""
        if board := self._board_of(child):
            board.hold(Trouble.HUNG, child.why, tried="it is killed, and another one started")

    def note_conditions(self) -> None:
        """Have people told of what is wrong, and that it is well again."""
        broken = {str(one.path): one.findings for one in self.children.values() if one.findings and not one.is_gone}
        if self._findings:
            broken[str(self.settings.path)] = self._findings
        for about in self._board.abouts(Trouble.CONFIG):
            if about not in broken:
                self._board.end(Trouble.CONFIG, about=about)
        for about, findings in broken.items():
            more = f", and {len(findings) - 1:,} more" if len(findings) > 1 else ""
            tried = "the earlier configuration goes on, where there was one"
            mend = (
                f"mistamover check {shlex.quote(about)}"
                if about != str(self.settings.path)
                else "mistamover reload"
            )
            self._board.hold(Trouble.CONFIG, f"{findings[0]}{more}", about=about, count=1, tried=tried, mend=mend)
        for child in self.children.values():
            self._note_fatal(child)

    def _note_fatal(self, child: Child) -> None:
        if child.state not in (State.FATAL, None) or (board := self._board_of(child)) is None:
            return
        if child.state is None:
            board.end(Trouble.FATAL)
        else:
            reason, _, mend = child.why.partition("; ")
            tried = "it was started again and again, and is given up"
            board.hold(Trouble.FATAL, reason, count=len(child.deaths), tried=tried, mend=mend)

    def _board_of(self, child: Child) -> Board | None:
        """Where we note what is wrong with a stream; None where its file could never be read."""
        if child.settings is None:
            return None
        known, email = self._boards.get(child.path), child.settings.email
        if known is None or known.email != email:
            place = self.settings.global_.state_dir / child.settings.name
            known = self._boards[child.path] = Board(place, child.settings.name, email, self._now, file=OF_SERVICE)
        return known

    def _service(self) -> Service:
        longest = max(map(self._stop_timeout, self.children.values()), default=0.0)
        names = Counter(child.name for child in self.children.values())
        return Service(
            pid=self._pid,
            since=self._since,
            version=__version__,
            config=str(self.settings.path),
            reloads=self._reloads,
            is_ending=self._is_ending,
            findings=self._findings,
            stop_within=longest + GRACE,
            streams={_label(child, names[child.name]): _standing(child) for child in self.children.values()},
        )


def _label(child: Child, namesakes: int) -> str:
    """The stream's name, unless a file that cannot be used would take that of another."""
    return child.path.name if namesakes > 1 and child.settings is None else child.name


def _standing(child: Child) -> Standing:
    findings = tuple(map(redacted, child.findings))
    why = redacted(child.why)
    return Standing(str(child.path), child.state, child.since, why, child.pid, len(child.deaths), findings)


def _in_a_word(service: Service) -> str:
    """One line for ``systemctl status``."""
    wrong = [name for name, one in service.streams.items() if one.state in heartbeat.NEEDS_A_PERSON or one.findings]
    streams = f"{len(service.streams)} streams" if len(service.streams) != 1 else "1 stream"
    return f"{streams}; look at: {', '.join(map(shown, wrong))}" if wrong else streams


def state_of(standing: Standing, told: Heartbeat, now: float) -> tuple[State, float, str]:
    """What a stream does, since when and why: as the supervisor says, or else as its worker does.

    ``now`` in seconds since the epoch.
    """
    if standing.state is not None:
        return standing.state, standing.since, standing.why
    if told.pid != standing.pid:  # of an earlier worker
        return State.STARTING, standing.since, ""
    if now - told.written > STALE:
        return State.TROUBLE, told.written, "nothing was told since then; is there room in the state directory?"
    return told.state, told.since, told.why
