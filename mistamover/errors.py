"""The error classes. Each answers its caller: whose fault, is it worth another try, which exit code?

A message is one line for a person: what is wrong, where, and what to do about it.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum


class Exit(int, Enum):
    """What the command line's exit status says (``docs/commands.rst``)."""

    DONE = 0
    UNFINISHED = 1
    USAGE = 2
    TARGET = 3
    HELD = 4
    PAUSED = 5
    INTERRUPTED = 130


class Fault(Enum):
    """Whose fault an error is: it decides who waits."""

    UNIT = "unit"
    TARGET = "target"
    CONFIGURATION = "configuration"
    NEAR = "near"


class MistamoverError(Exception):
    """Base of all errors that a person is meant to read."""

    fault = Fault.NEAR
    retry = False
    exit = Exit.UNFINISHED


class ConfigError(MistamoverError):
    """A configuration that cannot be used; ``findings`` holds one line for each thing that is wrong."""

    fault = Fault.CONFIGURATION
    exit = Exit.USAGE

    def __init__(self, findings: Sequence[str]) -> None:
        super().__init__("\n".join(findings))
        self.findings = tuple(findings)


class Unknown(MistamoverError):
    """What a person named on the command line is not there."""

    fault = Fault.CONFIGURATION
    exit = Exit.USAGE


class Held(MistamoverError):
    """Somebody else holds the stream: another process moves from the same spool or writes its ledger."""

    exit = Exit.HELD


class SpoolError(MistamoverError):
    """The spool cannot be used: missing, not a directory, or not ours to read."""

    exit = Exit.UNFINISHED


class LedgerError(MistamoverError):
    """The ledger cannot be read or written, so that nothing may be moved."""

    exit = Exit.UNFINISHED


class Shortage(MistamoverError):
    """This host has no more descriptors, processes, threads or memory for us, for now."""

    exit = Exit.UNFINISHED


class TargetDown(MistamoverError):
    """The target does not answer, or stopped answering. Nothing is known about units on their way."""

    fault = Fault.TARGET
    retry = True
    exit = Exit.TARGET


class TooManyConnections(TargetDown):
    """The target takes no more connections than it has."""


class TargetRefused(MistamoverError):
    """The target answers, and says no: host key, log-in, directory. A person has to act before a next try."""

    fault = Fault.TARGET
    exit = Exit.TARGET


class UnitError(MistamoverError):
    """This unit could not be delivered; the others go on. Another try may succeed."""

    fault = Fault.UNIT
    retry = True


class NotTaken(UnitError):
    """The target could not take this unit, for a reason of its own: the unit waits, and is never set aside."""

    fault = Fault.TARGET


class TargetFull(NotTaken):
    """The target has no room for this unit; it may have for a smaller one."""

    exit = Exit.TARGET


class NoRoom(TargetFull):
    """The target says that it has no room for this unit, which was not begun."""


class NoRoomHere(UnitError):
    """This host has no room for what has to be made of this unit: it waits, and is never set aside."""

    fault = Fault.NEAR


class UnitRefused(UnitError):
    """This unit can never be delivered as it is: it goes to quarantine at once."""

    retry = False


class NameTaken(UnitRefused):
    """The target holds another file under the unit's name, or something that is no file."""


class NotVerified(UnitError):
    """The staged bytes are not the bytes that were read at the source."""


class NoReceipt(NotTaken):
    """The target's arrivals monitor did not answer for this unit in time."""


class SourceMoved(UnitError):
    """The source is no longer what was found: it grew, was replaced, is being written or is gone.

    Nobody's failure: the unit starts again as *found* and no attempt is counted.
    """


class SourceGone(SourceMoved):
    """The source was removed or renamed by somebody else."""


class Parked(UnitError):
    """We were told to stop in the middle of this unit; its source is as it was."""


# -- what this host may lack -------------------------------------------------------------------------------

_SHORT = {errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM}
_NO_THREAD = "can't start new thread"
"""What Python says where a process may have no more; it has no class of its own for that."""


def is_shortage(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from, says that this host lacks something of that kind."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _SHORT:
            return True
        if isinstance(error, RuntimeError) and _NO_THREAD in str(error):
            return True
        error = error.__cause__
    return False


@contextmanager
def shortage_told() -> Iterator[None]:
    """Turns such an error, wherever it comes up, into ``Shortage``."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if not is_shortage(error):
            raise
        said = error.strerror if isinstance(error, OSError) else error
        raise Shortage(
            f"this host has too little left: {said}; see what uses it up, and ulimit -n and -u of this user"
        ) from error
