"""What every transport does: the verbs, what may be repeated, and what raising means.

One transport object is one lane's connection and belongs to one thread. The verbs take a batch, or a part of
one, and yield one :class:`~mistamover.unit.Outcome` for each unit, in any order; one bad unit never ends the
batch. :class:`~mistamover.errors.TargetDown`, raised, says that nothing is known about the rest.
"""

from __future__ import annotations

import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import Enum
from hashlib import sha256
from typing import ClassVar, Self

from mistamover.disk import Space
from mistamover.errors import NameTaken, TargetDown, TargetRefused, UnitError
from mistamover.fs import LONGEST_NAME
from mistamover.options import Settings
from mistamover.spool import Spool
from mistamover.unit import BATCH_FILES, OWN_NAME, Directory, Outcome, Unit


class Proof(str, Enum):
    """How it is shown that the target holds the bytes that were read at the source, strongest first."""

    DIGEST = "digest"
    """A program at the far side read the staged file back and gave its digest."""
    READBACK = "readback"
    """The staged file was read back over the protocol and hashed here."""
    SIZE = "size"
    """Only its length was looked at. Chosen by ``verify = size``; no proof of the content."""
    NONE = "none"
    """Nothing was looked at. Chosen by ``verify = none``."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the far side can do, as found when the connection was made."""

    proofs: frozenset[Proof]
    sync: bool = False
    """It tells when bytes and names are on disk."""
    replace: bool = False
    """It puts a file in another's place in one rename."""
    directories: bool = False
    """It gives a directory, with all that is in it, its name in one rename."""


class Level(str, Enum):
    """How a look at the target turned out."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of ``mistamover check --connect``."""

    level: Level
    what: str
    remedy: str = ""


class Transport(ABC):
    """Reaches the far side of a stream over one protocol.

    ``tick(bytes)`` is called as bytes are on their way, and may raise :class:`~mistamover.errors.Parked`.
    ``baton`` is to be held while many short system calls are made, and never while the far side is waited for
    (:class:`~mistamover.lane.Baton`).
    """

    batch_files: ClassVar[int] = BATCH_FILES
    """Files that a lane takes at once: few where each is waited for, so that all lanes have some; many where each
    batch takes its time to begin and to end."""

    proves_at_publishing: ClassVar[bool] = False
    """Whether :meth:`publish` takes units without a proof too, and proves them as it gives them their names."""

    gives_up: ClassVar[bool] = True
    """Whether each wait for the far side ends by itself (``stall_timeout``). Where it may not, as on a file system
    that hangs, ``tick`` has to be called again and again, or the worker is taken for hung."""

    def __init__(
        self,
        settings: Settings,
        spool: Spool,
        tick: Callable[[int], None] = lambda _: None,
        baton: AbstractContextManager[object] | None = None,
    ) -> None:
        self.settings = settings
        self.spool = spool
        self.tick = tick
        self.baton = nullcontext() if baton is None else baton
        self.replaces = settings.outgoing.existing == "replace"
        self.target = str(settings.outgoing.target_dir)
        self.staging = f"{self.target}/{OWN_NAME}/{settings.name}"
        self.tag = stream_tag(settings)
        self.made: list[str] = []
        """Directories of the staging place that :meth:`open` had to make, with their whole paths, parents first."""

    @abstractmethod
    def open(self) -> Self:
        """Connect and make the staging directory.

        Raises ``TargetDown`` where nobody answers, ``TargetRefused`` where a person has to act first: log-in,
        host key, a target directory that is missing and not to be created.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of everything; harmless when repeated or when :meth:`open` failed."""

    def abort(self) -> None:  # noqa: B027 - nothing to do where there is no connection
        """Cut the connection, called by another thread: a verb that waits for it raises ``TargetDown``."""

    def remove_made(self) -> None:  # noqa: B027 - a transport that makes no directories has nothing to do
        """Remove what is in ``made``, where it is empty: after a look that was to change nothing."""

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """What the far side can do; known once it is open."""

    def staging_here(self) -> list[str]:
        """Where the staging place lies on this host if the target is the spool, or a directory in it."""
        spool = str(self.settings.data_stream.directory)
        target = os.path.realpath(self.target) if os.path.isabs(self.target) else ""
        is_below = target.startswith(f"{os.path.realpath(spool)}/")
        return [home + self.staging.removeprefix(self.target) for home in (spool, *([target] if is_below else []))]

    def is_here(self, marker: str) -> bool:
        """Whether what was made in the staging place under this name shows in the spool."""
        return any(os.path.lexists(f"{place}/{marker}") for place in self.staging_here())

    def may_replace(self, unit: Unit) -> bool:
        """Whether another file under the unit's name is to be replaced."""
        return self.replaces or unit.is_update

    @property
    def proof(self) -> Proof:
        """The proof that this stream uses here; raises ``TargetRefused`` where it cannot be had."""
        return choose_proof(self.settings.outgoing.verify, self.capabilities.proofs)

    @abstractmethod
    def is_stopped(self) -> bool:
        """Whether a stop file lies in the target directory. Only "it is not there" counts as no."""

    def room(self) -> Space | None:
        """What is free where units are staged; None where the far side does not tell.

        Asked once in a while, and never relied on: a unit that finds no room after all is ``TargetFull``.
        """
        return None

    @abstractmethod
    def sweep(self) -> int:
        """Remove what earlier passes of this stream left staged, nothing else; gives how many files.

        Only while no lane of this stream has anything staged.
        """

    @abstractmethod
    def send(self, units: Sequence[Unit]) -> Iterator[Outcome]:
        """Stage each unit under ``unit.staged``, with its times, and hash the very bytes that are sent.

        Yields units with their digest. Sending again writes the staged file anew.
        """

    @abstractmethod
    def verify(self, units: Sequence[Unit]) -> Iterator[Outcome]:
        """Prove that the staged bytes have ``unit.digest``; yields units with the proof used.

        The far side may begin at once; the outcomes are taken later, and another batch may be sent in between.
        """

    @abstractmethod
    def publish(self, units: Sequence[Unit]) -> Iterator[Outcome]:
        """Give each staged file its final name, in one rename, and have it on disk where that can be asked for.

        Another file under that name is replaced where the stream says so; else the outcome is ``NameTaken``,
        the other file is as it was, and the staged one stays.
        """

    @abstractmethod
    def compare(self, units: Sequence[Unit]) -> Iterator[Outcome]:
        """After ``NameTaken``: a unit whose name holds a file of its size and digest comes back with a proof."""

    def resembling(self, units: Sequence[Unit]) -> list[Unit]:  # noqa: ARG002 - of the contract
        """Those whose name holds a file of their size, in directories that are none of somebody's links.

        :meth:`compare` is asked about these before they are sent; a transport that cannot tell says that none does.
        """
        return []

    @abstractmethod
    def discard(self, units: Iterable[Unit]) -> None:
        """Remove what was staged for these units, if anything was."""

    # -- whole directories: their files are sent and verified as any others ------------------------------------

    def place(self, directory: Unit, units: Sequence[Unit]) -> Iterator[Outcome]:
        """Give verified files of a directory their places in the tree that is staged for it."""
        tree = f"{self.staging.removeprefix(f'{self.target}/')}/{directory.staged}"
        below = len(directory.path)
        placed = [unit._replace(renamed=f"{tree}{unit.path[below:]}") for unit in units]
        yield from (Outcome(unit._replace(renamed=""), error) for unit, error in self.publish(placed))

    def publish_directory(self, tree: Directory) -> None:
        """Give a directory of which all files are placed its name, in one rename where that can be had.

        Its empty directories, and the times of all, are seen to before. Raises ``UnitError``: ``NameTaken`` where
        something stands there that is not to be replaced; then all is as it was, and the tree stays staged.
        """
        raise _without_directories(self, tree)

    def entries(self, directory: Unit) -> set[str]:
        """The paths of all that stands in the directory of that name, as ``Directory.entries`` gives them.

        Raises ``NameTaken`` where no directory stands there.
        """
        raise _without_directories(self, directory)

    def discard_directories(self, directories: Iterable[Unit]) -> None:
        """Remove the trees that were staged for these, if any were."""
        raise _without_directories(self, directories)

    def put_notes(self, notes: Mapping[str, bytes]) -> dict[str, UnitError]:
        """Write small files into the target directory by their names, in place of earlier ones of the same names.

        Whoever sees one sees all of it. Gives the errors of those that could not be written.
        """
        raise _without_notes(self, notes)

    def fetch_notes(self, names: Sequence[str]) -> dict[str, bytes]:
        """What the small files of these names in the target directory hold.

        What is not there, too large (:data:`~mistamover.handshake.LARGEST`) or no file is left out.
        """
        raise _without_notes(self, names)

    @abstractmethod
    def examine(self) -> Iterator[Finding]:
        """Look at the target for ``check --connect``: space, rights, the staging place. Changes nothing lasting."""


def _without_directories(transport: Transport, _of: object) -> TargetRefused:
    protocol = transport.settings.outgoing.transfer_protocol
    return TargetRefused(f"{protocol} sends no directories as a whole; set [outgoing] package = tar")


def _without_notes(transport: Transport, _wanted: object) -> TargetRefused:
    protocol = transport.settings.outgoing.transfer_protocol
    return TargetRefused(f"{protocol} knows no arrivals monitor; set target_uses_arrival_monitor = no")


def choose_proof(wanted: str, possible: frozenset[Proof]) -> Proof:
    """The proof to use; ``auto`` is the strongest possible one, never weaker than reading back."""
    if wanted == "auto":
        for proof in (Proof.DIGEST, Proof.READBACK):
            if proof in possible:
                return proof
        raise TargetRefused("the target allows no proof; choose a weaker one with [outgoing] verify")
    proof = Proof(wanted)
    if proof not in possible:
        raise TargetRefused(
            f"verify = {wanted} is not possible at this target, which allows "
            f"{', '.join(proof.value for proof in Proof if proof in possible)}; set [outgoing] verify = auto"
        )
    return proof


def the_spool(settings: Settings) -> TargetRefused:
    """The error of a target that is the spool, by whatever detour: a source would prove its own delivery."""
    where = f"{settings.outgoing.target_host}:{settings.outgoing.target_dir}"
    return TargetRefused(f"{where}: is the spool itself, or lies in it; set another [outgoing] target_dir")


def down(settings: Settings, said: str) -> TargetDown:
    """The error of a host that was not reached, by what was said of it: wrong names and ports show there first."""
    hint = next((hint for text, hint in _HINTS.items() if text in said), "")
    return TargetDown(f"{settings.outgoing.target_host}: {said}{hint.format(settings.outgoing.transfer_protocol)}")


_HINTS = {
    "resolve hostname": "; look at [outgoing] target_host",
    "not known": "; look at [outgoing] target_host",
    "Connection refused": "; does a server run there, and is [{}] port right?",
    "Unable to connect": "; does a server run there, and is [{}] port right?",
    "timed out": "; is it up, is [{}] port right, and does no firewall keep us out?",
}


def stream_tag(settings: Settings) -> str:
    """What the staged names of this stream begin with, so that streams of other hosts know theirs from ours."""
    origin = f"{socket.gethostname()}\0{settings.data_stream.directory}\0{settings.name}"
    return sha256(origin.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def draft_name(transport: Transport, what: str) -> str:
    """The name under which what is no unit is written before it gets its own: never that of a staged unit.

    Nobody can know it beforehand: a link of that name would be followed by servers that make no new files.
    """
    return f"{transport.tag}{what}{os.urandom(8).hex()}"


def space(room: Space | None) -> Iterator[Finding]:
    """What to say about free bytes and inodes."""
    if room is None:
        yield Finding(Level.WARN, "the far side does not tell free space", "look at it there yourself")
        return
    yield _room(f"{room.free / 2**30:.1f} GiB free", room.free, 2**20, 2**30, "make room there")
    if room.inodes is not None:
        yield _room(f"{room.inodes:,} inodes free", room.inodes, 1, 10_000, "remove small files there")


def _room(what: str, amount: int, least: int, enough: int, remedy: str) -> Finding:
    if amount >= enough:
        return Finding(Level.OK, what)
    return Finding(Level.FAIL if amount < least else Level.WARN, what, remedy)


def taken() -> NameTaken:
    """The error of a unit whose name is another file's at the target."""
    return NameTaken("the target holds another file of that name; it was left as it is")


def is_file_name(name: bytes) -> bool:
    """Whether what a listing says is a name in that directory, and no way out of it."""
    return not {*b"/\0"} & {*name} and name not in (b"", b".", b"..") and len(name) <= LONGEST_NAME


def endless_listing(place: str) -> TargetRefused:
    """The error of a server that never comes to the end of a directory."""
    return TargetRefused(f"{place}: its listing does not end; look at what is in it, and at that server")
