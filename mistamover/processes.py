"""What the standard library lacks for processes that belong together (prctl(2), pidfd_open(2), sd_notify(3))."""

from __future__ import annotations

import mmap
import os
import resource
import select
import shutil
import signal
import socket
import struct
import time
from contextlib import suppress

OPTION = "CONFIG__"
"""What begins the names of environment variables that set options."""
_PR_SET_PDEATHSIG = 1
_LONGEST_CALL = 200
"""Bytes of a command line that a person wants to see."""

Slot = mmap.mmap
"""Eight bytes that a child shares with its parent: when it last gave a sign of life, on the monotonic clock."""


def sign_of_life(slot: Slot) -> None:
    """Say that this process is alive."""
    struct.pack_into("d", slot, 0, time.monotonic())


def last_sign(slot: Slot) -> float:
    """When it last said so; 0 where it did not yet."""
    return float(struct.unpack_from("d", slot, 0)[0])


def is_hung(started: float, sign: float, hang_timeout: float, now: float) -> bool:
    """Whether a process that was started then, and gave a sign of life then, gives none any more."""
    return now - max(started, sign) > hang_timeout


def how_it_ended(code: int) -> str:
    """What the exit code of a child says, as ``os.waitstatus_to_exitcode`` gives it."""
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with code {code}"


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, however it ends; at once where it has ended.

    Every step of a move may be repeated, so being killed costs no more than one batch sent twice.
    """
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def guarded() -> list[str]:
    """What a command begins with to end with the thread that started it, as when we are killed."""
    if not shutil.which("setpriv"):
        return []
    # The kernel tells of no death that is past: who has died by now is seen by the program's not being our child.
    is_ours = 'test "$PPID" = "$0" && exec "$@"'
    return ["setpriv", "--pdeathsig", "KILL", "sh", "-c", is_ours, str(os.getpid())]


def leave_no_core() -> None:
    """Have this process, and all that it starts, leave no image of its memory at a crash: it holds secrets."""
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    # One of 0 would not keep the kernel from handing it to a program (core(5), core_pattern); one of 1 does.
    limit = 1 if most == resource.RLIM_INFINITY else min(most, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))


class Process:
    """Another process, told from all that may get its number later."""

    def __init__(self, pid: int, began: float) -> None:
        """``began`` as :func:`began` gives it; raises ``ProcessLookupError`` where that process is gone."""
        self._fd = os.pidfd_open(pid)
        if began_at(pid) != began:
            self.close()
            raise ProcessLookupError(pid)

    def send(self, number: signal.Signals) -> None:
        """Send a signal; harmless where it has ended."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._fd, number)

    def has_ended(self) -> bool:
        """Whether it has, though its parent may not have taken note."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Let go of it."""
        os.close(self._fd)


def began_at(pid: int) -> float:
    """When a process began, in clock ticks since boot, which no setting of the clock moves; 0 where it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return float(file.read().rpartition(b")")[2].split()[19])  # proc(5): the 22nd field
    except (OSError, IndexError):
        return 0.0


def holder(fd: int) -> str:
    """Which process has the lock (flock(2)) of an open file, for people; empty where the kernel does not say."""
    found = os.fstat(fd)
    place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    with suppress(OSError), open("/proc/locks") as locks:  # proc(5): kind in the second column, then number, place
        pids = [words[4] for words in map(str.split, locks) if words[1] == "FLOCK" and words[5] == place]
        return f"process {pids[0]}{_called(pids[0])}" if pids else ""
    return ""


def _called(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(_LONGEST_CALL).rstrip(b"\0").split(b"\0")
    except OSError:
        return ""
    return f", {os.fsdecode(b' '.join(words))}"


def surroundings() -> dict[str, str]:
    """The environment for a program that we start: ours without options, of which some are secrets."""
    return {name: value for name, value in os.environ.items() if not name.startswith(OPTION)}


def notify(*states: str) -> None:
    """Tell the service manager, if one has started us (sd_notify(3)); it is nobody's fault if it cannot be told."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.connect(f"\0{address[1:]}" if address.startswith("@") else address)
        channel.sendall("\n".join(states).encode())


def now_usec() -> int:
    """The monotonic clock in microseconds, as RELOADING wants it."""
    return time.monotonic_ns() // 1000


def watchdog_interval() -> float | None:
    """Seconds between two signs of life that the service manager wants; None where it wants none."""
    usec, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not usec.isdecimal() or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 1e6
