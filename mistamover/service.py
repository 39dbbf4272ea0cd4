"""The service: start, stop and reload of the supervisor, and the one process that it may be.

What guards it is a lock (flock(2)) on a file in the state directory, which goes with the process however that
ends. The file holds the number of the process and when it began, so that nothing that an earlier one left blocks
a start, and no signal goes to a stranger. The PID file is there for others to read.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from logging import ERROR, INFO
from pathlib import Path
from typing import IO, Any

from mistamover import foreign, fs, heartbeat, monitor, post
from mistamover.aides import Aide, Known
from mistamover.board import Board
from mistamover.concerns import Concerns
from mistamover.errors import ConfigError, Exit, Held, MistamoverError
from mistamover.events import Stop
from mistamover.heartbeat import Service
from mistamover.lines import shown
from mistamover.log import BaseLog, Log, MainLog
from mistamover.options import ServiceSettings, Settings
from mistamover.processes import Process, began_at
from mistamover.pulse import Pulse
from mistamover.stream import state_directory
from mistamover.supervisor import COMPLETE, SIGNALS, Supervisor
from mistamover.worker import Worker, stop_on_signals

LOCK = "service.lock"
LOGS = "log"
UMASK = 0o027
STEP = 0.05
"""Seconds between two looks at whether something has happened elsewhere."""
LOOKED_AT = 0.5
"""Seconds for which somebody may hold the lock who only looks whether the service runs."""
LONGEST_SIGNATURE = 64
SIGNED_BY = 10.0
"""Seconds until whoever holds the lock has said who that is."""
LAST_GRACE = 10.0
"""Seconds beyond what the service itself allows for its end, after which it is killed."""
TAKE_UP = 30.0
"""Seconds in which a running service takes up a reload."""

Say = Callable[[str], object]


class ServiceError(MistamoverError):
    """The service could not be started, or does not do what it was asked for."""


# -- the one that runs -------------------------------------------------------------------------------------


class Lock:
    """The lock of the service, held by this process and by what it is forked into."""

    def __init__(self, state_dir: Path) -> None:
        """Raises ``Held`` where the service runs, ``ConfigError`` where there is no place for the lock."""
        try:
            state_dir.mkdir(mode=0o750, parents=True, exist_ok=True)
            self.fd = os.open(state_dir / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        except OSError as error:
            raise ConfigError(
                [f"[global] state_dir: {shown(str(state_dir))}: {error.strerror}; give a directory of our own"]
            ) from error
        if not _becomes(lambda: fs.lock(self.fd), LOOKED_AT):
            os.close(self.fd)
            raise Held(f"the service runs already{_with_number(state_dir)}; mistamover status shows what it does")

    def clear(self) -> None:
        """Have it say nobody's name: who starts the service is not who runs it, and not to be signalled."""
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, b"\n", 0)

    def sign(self) -> None:
        """Say who holds it."""
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, f"{os.getpid()} {began_at(os.getpid()):.0f}\n".encode(), 0)

    def close(self) -> None:
        """Give it back, if no other process holds it as well."""
        os.close(self.fd)


def _with_number(state_dir: Path) -> str:
    pid, _ = _signature(state_dir)
    return f" (process {pid})" if pid else ""


def _signature(state_dir: Path) -> tuple[int, float]:
    """The number and the begin of the process that holds the lock; zeros where it has not signed yet."""
    with suppress(OSError, ValueError, foreign.Refused):
        signature, lock = foreign.read(state_dir / LOCK, LONGEST_SIGNATURE)
        pid, began = signature.split()
        if _may_hold(int(pid), lock):
            return int(pid), float(began)
    return 0, 0.0


def _may_hold(pid: int, lock: os.stat_result) -> bool:
    """Whether a process is of the user who owns the lock, or has it open; raises ``OSError``.

    Else the user of the service could write any number into it, and root's stop would end that process.
    """
    process = f"/proc/{pid}"
    if os.stat(process).st_uid == lock.st_uid:
        return True
    descriptors = (f"{process}/fd/{fd}" for fd in os.listdir(f"{process}/fd"))
    return any(os.path.samestat(os.stat(path), lock) for path in descriptors)


def is_running(state_dir: Path) -> bool:
    """Whether any process holds the lock; raises ``ServiceError`` where we may not look."""
    try:
        return fs.is_locked(state_dir / LOCK)
    except OSError as error:
        path = shown(str(state_dir / LOCK))
        raise ServiceError(f"{path}: {error.strerror}; ask as the user of the service, or as root") from error


def _becomes(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait until something is so, for so long at most; whether it is."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(STEP)
    return True


@contextmanager
def _running(state_dir: Path) -> Iterator[Process | None]:
    """The process of the service, once it has signed; None where none runs."""
    process: Process | None = None

    def is_known() -> bool:
        nonlocal process
        pid, began = _signature(state_dir)
        with suppress(ProcessLookupError):
            process = Process(pid, began) if pid else None
        return process is not None or not is_running(state_dir)  # else it is just starting, or just ending

    if is_running(state_dir) and not _becomes(is_known, SIGNED_BY):
        raise ServiceError(f"{shown(str(state_dir / LOCK))}: held by a process that does not say which it is")
    try:
        yield process
    finally:
        if process is not None:
            process.close()


# -- start -------------------------------------------------------------------------------------------------


@dataclass
class Places:
    """Where the service writes, made before it leaves the terminal."""

    lock: Lock
    logs: Path
    report: int | None = None
    """Where the daemon says that it is ready: a pipe to the process that a person started."""

    @property
    def descriptors(self) -> list[int]:
        """What is the supervisor's alone."""
        return [self.lock.fd] + ([] if self.report is None else [self.report])

    def close(self) -> None:
        """Let go of these, as a worker does: the lock must be free when the supervisor has ended."""
        for fd in self.descriptors:
            os.close(fd)


def prepare(settings: ServiceSettings) -> Places:
    """Take the lock and make the directories; raises ``Held`` and ``ConfigError``."""
    state_dir, pid_file = settings.global_.state_dir, settings.global_.pid_file
    lock = Lock(state_dir)
    try:
        logs = settings.logging.base_log_dir or state_dir / LOGS
        for option, directory in (("pid_file", pid_file.parent), ("state_dir", logs)):
            _make_directory(option, directory)
        with suppress(FileNotFoundError):
            pid_file.unlink()  # we hold the lock: whoever wrote it has ended
        lock.clear()  # a disk that is full is to be told of here
    except OSError as error:
        lock.close()
        raise ConfigError([f"[global] pid_file: {shown(str(pid_file))}: {error.strerror}; give another"]) from error
    except ConfigError:
        lock.close()
        raise
    return Places(lock, logs)


def _make_directory(option: str, directory: Path) -> None:
    try:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        reason = "" if os.access(directory, os.W_OK | os.X_OK) else "Permission denied"
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        raise ConfigError([f"[global] {option}: {shown(str(directory))}: {reason}; give a directory of our own"])


def run_in_foreground(settings: ServiceSettings, places: Places, say: Say) -> int:
    """Run the service in this process until it is stopped."""
    with _context(settings, places, detach=False):
        _serve(settings, places, lambda: _tell_outcome(settings, say), to_console=True)
    return Exit.DONE


def run_in_background(settings: ServiceSettings, places: Places, say: Say) -> int:
    """Start the service as a daemon; returns when each of its workers is up, or it is known why not."""
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        places.lock.close()
        return _wait_for_daemon(settings, reading, say)
    os.close(reading)
    places.report = writing
    code = Exit.UNFINISHED
    try:
        with _context(settings, places, detach=True):
            _serve(settings, places, partial(_report_ready, places), to_console=False)
        code = Exit.DONE
    finally:
        os._exit(code)


def _wait_for_daemon(settings: ServiceSettings, reading: int, say: Say) -> int:
    """Wait until the daemon is ready or has ended."""
    is_ready = os.read(reading, 1)
    os.close(reading)
    if not is_ready:
        logs = settings.logging.base_log_dir or settings.global_.state_dir / LOGS
        raise ServiceError(f"the service ended before it was up; look into {logs}/mistamover.log")
    return _tell_outcome(settings, say)


def _report_ready(places: Places) -> None:
    if places.report is not None:
        with suppress(OSError):  # nobody waits any more
            os.write(places.report, b".")
        os.close(places.report)
        places.report = None


def _tell_outcome(settings: ServiceSettings, say: Say) -> int:
    """Say which streams are up and which are not; gives the exit code."""
    service = heartbeat.read_service(settings.global_.state_dir)
    troubles = {name: one for name, one in service.streams.items() if one.state in heartbeat.NEEDS_A_PERSON}
    for name, one in troubles.items():
        for line in one.findings or (one.why,):
            say(f"{shown(name)}: {one.state.value if one.state else ''}: {line}")
    count = len(service.streams)
    up = count - len(troubles)
    say(f"the service runs (process {service.pid}), {up} of {count} {'stream' if count == 1 else 'streams'} up")
    return Exit.UNFINISHED if troubles else Exit.DONE


@contextmanager
def _context(settings: ServiceSettings, places: Places, *, detach: bool) -> Iterator[None]:
    """The surroundings of a daemon: session, umask, directory, no open files but ours, a PID file."""
    from daemon import DaemonContext
    from daemon.pidfile import TimeoutPIDLockFile
    from lockfile import Error as LockError

    def stream(usual: IO[Any]) -> IO[Any] | None:
        return None if detach else usual

    context = DaemonContext(
        detach_process=detach,
        umask=UMASK,
        working_directory="/",
        pidfile=TimeoutPIDLockFile(str(settings.global_.pid_file), acquire_timeout=0),
        files_preserve=places.descriptors,
        stdin=None,
        stdout=stream(sys.stdout),
        stderr=stream(sys.stderr),
        signal_map={},  # the supervisor blocks signals and takes them one by one
    )
    # From here on signals wait for the supervisor.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    context.open()
    try:
        places.lock.sign()
        yield
    finally:
        with suppress(LockError):  # somebody else removed the PID file
            context.close()


def _serve(settings: ServiceSettings, places: Places, ready: Callable[[], object], *, to_console: bool) -> None:
    """Be the supervisor."""
    from setproctitle import setproctitle

    setproctitle("mistamover: service")
    with MainLog(settings.logging, directory=places.logs, detached=not to_console) as log:
        log.tell(INFO, f"starts (process {os.getpid()}), by {shown(str(settings.path))}")
        _load_ahead()
        try:
            aides = [
                Aide(name, partial(_assist, places, log, to_console, name, work), is_wanted)
                for name, (work, is_wanted) in AIDES.items()
            ]
            Supervisor(settings, log, partial(_work, places, log, to_console), aides).run(ready)
        except Exception:
            log.fault("ended by a fault of mistamover's own")
            raise
        log.tell(INFO, "stopped")


def _load_ahead() -> None:
    """Import here what all workers need, and have their copies of it stay one (fork(2), copy on write)."""
    import sqlite3  # noqa: F401
    from concurrent.futures import thread  # noqa: F401

    gc.collect()
    gc.freeze()


# -- workers and aides -------------------------------------------------------------------------------------

Assist = Callable[[Known, BaseLog, Callable[[], None]], object]
"""What an aide does until TERM ends its process; the callable is its sign of life."""
AIDES: dict[str, tuple[Assist, Callable[[Known], bool]]] = {
    "postman": (post.serve, post.is_wanted),
    "disk-monitor": (monitor.serve, monitor.is_wanted),
}
"""What the service does beside its streams, by names that are those of logs too, and whether it is wanted."""


def _assist(
    places: Places,
    main: MainLog,
    to_console: bool,
    name: str,
    work: Assist,
    known: Known,
    alive: Callable[[], None],
) -> None:
    """Be an aide, with a log of its own."""
    from setproctitle import setproctitle

    setproctitle(f"mistamover: {name}")
    # Ctrl-C reaches us as well as the supervisor, which ends us by TERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    places.close()
    main.close()
    with BaseLog(name, "", known.service.logging, directory=places.logs, detached=not to_console) as log:
        try:
            work(known, log, alive)
        except Exception:
            log.fault("ended by a fault of mistamover's own")
            raise


def _work(places: Places, main: MainLog, to_console: bool, settings: Settings, alive: Callable[[], None]) -> int:
    """What a worker does in its process; gives its exit code."""
    from setproctitle import setproctitle

    setproctitle(f"mistamover: stream {settings.name}")
    stop = Stop()
    stop_on_signals(stop, is_patient_on_hup=True)
    # Ctrl-C reaches us as well as the supervisor, which tells us what is to come of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    places.close()
    main.close()
    with Log(settings, directory=places.logs, detached=not to_console) as log:
        board = Board(state_directory(settings), settings.name, settings.email)
        log.listener = board.hear
        try:
            hang_timeout = settings.global_.hang_timeout
            pulse = Pulse(state_directory(settings))
            worker = Worker(
                settings,
                log,
                stop=stop,
                alive=alive,
                hang_timeout=hang_timeout,
                pulse=pulse,
                concerns=Concerns(board, settings),
            )
            summary = worker.run(once=False)
        except MistamoverError as error:
            log.tell(ERROR, str(error))
            return error.exit
        except Exception:  # noqa: BLE001 - the supervisor is told by the exit code
            log.fault("ended by a fault of mistamover's own")
            return Exit.UNFINISHED
        finally:
            board.close()
    return COMPLETE if summary.is_complete else Exit.DONE


# -- stop and reload ---------------------------------------------------------------------------------------


def stop(settings: ServiceSettings) -> bool:
    """End the service, at first gently; returns when all of it is gone, and whether it ran."""
    try:
        return _stop(settings.global_.state_dir)
    finally:
        _remove_pid_file(settings)


def _remove_pid_file(settings: ServiceSettings) -> None:
    """Remove what a service that was killed has left, unless one runs again."""
    if not (settings.global_.state_dir / LOCK).exists():
        return
    with suppress(MistamoverError, OSError):
        lock = Lock(settings.global_.state_dir)
        settings.global_.pid_file.unlink(missing_ok=True)
        lock.close()


def _stop(state_dir: Path) -> bool:
    with _running(state_dir) as process:
        if process is None:
            return False
        process.send(signal.SIGTERM)
        allowed = heartbeat.read_service(state_dir).stop_within + LAST_GRACE
        # Not until the lock is free: another service may have taken it by then.
        if not _becomes(process.has_ended, allowed):
            process.send(signal.SIGKILL)  # its workers die with it
            if not _becomes(process.has_ended, LAST_GRACE):
                raise ServiceError("the service cannot be ended: one of its processes hangs in the kernel")
    return True


def reload(state_dir: Path) -> Service | None:
    """Have the service read everything again; gives what it says then, None where it does not run."""
    before = heartbeat.read_service(state_dir)
    with _running(state_dir) as process:
        if process is None:
            return None
        process.send(signal.SIGHUP)

        def is_taken_up() -> bool:
            now = heartbeat.read_service(state_dir)
            return (now.pid, now.reloads) != (before.pid, before.reloads) or not is_running(state_dir)

        if _becomes(is_taken_up, TAKE_UP):
            return heartbeat.read_service(state_dir)
    raise ServiceError("the service does not take up the reload; mistamover status shows how it is")
