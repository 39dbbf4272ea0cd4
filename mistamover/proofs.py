"""What proves the units of a spool before they are sent: sidecars, manifests, bags and ready markers.

A unit waits until a proof says of it what its digest has to be. That is compared when it is read to be sent, so
that a wrong one is never published. A proof is a unit itself, which follows what it names.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from math import inf
from typing import Protocol

from mistamover import foreign, fs
from mistamover.checksums import (
    BAG_MANIFESTS,
    DECLARATION,
    LARGEST_SIDECAR,
    MANIFESTS,
    MOST_BYTES,
    MOST_LINES,
    PAYLOAD,
    SIDECARS,
    parse_manifest,
    parse_sidecar,
)
from mistamover.foreign import Refused
from mistamover.ledger import View
from mistamover.options import Settings
from mistamover.spool import Spool
from mistamover.unit import State, Stated, Unit

BAG_PROOFS = (DECLARATION, *BAG_MANIFESTS)
MOST_HELD = 4 * MOST_LINES
"""Lines that are remembered during a pass."""


class NotYet(Exception):
    """What may be proven later, and what it waits for."""


# -- reading ------------------------------------------------------------------------------------------------


def read(name: str, dir_fd: int, most: int) -> tuple[bytes, os.stat_result]:
    """A proof of ``most`` bytes, whatever stands under its name.

    Raises :class:`Refused`, :class:`NotYet` while somebody writes it, and ``OSError``.
    """
    with foreign.opened(name, most, dir_fd) as (fd, found):
        if fs.is_being_written(fd):
            raise NotYet(f"{name} is being written")
        return foreign.content(fd, most), found


class Place:
    """The directory in which proofs are looked for, and what was read there in this pass."""

    def __init__(self, below: fs.Below) -> None:
        self._below = below
        self._manifests: dict[str, Mapping[str, str] | Refused | None] = {}
        self._lines = 0
        self._bags: dict[str, bool] = {}

    def turn(self) -> None:
        """What was read may be so no longer."""
        self._below.forget()
        self._manifests.clear()
        self._bags.clear()
        self._lines = 0

    def read(self, path: str, most: int) -> bytes | None:
        """A proof; None where there is none."""
        try:
            parent, name = self._below.parent(path)
            return read(name, parent, most)[0]
        except FileNotFoundError:
            return None
        except OSError as error:
            self._below.forget()
            raise Refused(f"it cannot be read: {error.strerror}") from error

    def manifest(self, path: str, algorithm: str, *, bag: bool) -> Mapping[str, str] | None:
        """What a manifest lists; None where there is none."""
        if path not in self._manifests:
            if self._lines > MOST_HELD:
                self.turn()
            self._manifests[path] = found = self._read_manifest(path, algorithm, bag=bag)
            self._lines += len(found) if isinstance(found, dict) else 1
        listed = self._manifests[path]
        if isinstance(listed, Refused):
            raise listed
        return listed

    def _read_manifest(self, path: str, algorithm: str, *, bag: bool) -> Mapping[str, str] | Refused | None:
        try:
            data = self.read(path, MOST_BYTES)
            return None if data is None else parse_manifest(data, algorithm, bag=bag)
        except Refused as why:
            return why

    def is_bag(self, directory: str) -> bool:
        """Whether a directory is a bag, or what is left of one."""
        if directory not in self._bags:
            self._bags[directory] = any(self.has(joined(directory, name)) for name in BAG_PROOFS)
        return self._bags[directory]

    def has(self, path: str) -> bool:
        """Whether there is a file of that name."""
        try:
            parent, name = self._below.parent(path)
            return stat.S_ISREG(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
        except OSError:
            self._below.forget()
            return False


def directories(path: str) -> list[str]:
    """The directories that hold ``path``, the nearest first; the last one is the empty path."""
    found = [path[:place] for place, char in enumerate(path) if char == "/"]
    return [*reversed(found), ""]


def joined(directory: str, name: str) -> str:
    """The path of something in a directory."""
    return f"{directory}/{name}" if directory else name


def marked(pattern: str) -> Callable[[str], str]:
    """What gives the name of the file that a ready marker of this name is for; empty where it is none."""
    before, _, behind = map(re.escape, pattern.partition("{name}"))
    match = re.compile(f"{before}(.+){behind}", re.DOTALL).fullmatch

    def name_of(marker: str) -> str:
        found = match(marker)
        return found[1] if found else ""

    return name_of


# -- kinds --------------------------------------------------------------------------------------------------


class _Kind(Protocol):
    """A kind of proof."""

    def named(self, path: str) -> Collection[str] | None:
        """The paths of what a proof is about, which it follows; None where ``path`` is none."""

    def stated(self, path: str) -> tuple[Stated, ...]:
        """What is said of a unit; raises :class:`NotYet`."""


class Sidecars:
    """One file with a digest beside each unit."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def named(self, path: str) -> Collection[str] | None:
        """The one unit that it lies beside."""
        for suffix in SIDECARS.values():
            about = path.removesuffix(suffix)
            if about != path and not about.endswith("/") and about:
                return (about,)
        return None

    def stated(self, path: str) -> tuple[Stated, ...]:
        """What those sidecars say that are there; one has to be."""
        found: list[Stated] = []
        name = path.rpartition("/")[2]
        for algorithm, suffix in SIDECARS.items():
            where = path + suffix
            with _about(where):
                data = self._place.read(where, LARGEST_SIDECAR)
                if data is not None:
                    found.append(Stated(algorithm, parse_sidecar(data, algorithm, name), where))
        if not found:
            raise NotYet(f"its proof is not there yet: {name}.sha256, .sha512 or .md5")
        return tuple(found)


class Manifests:
    """One file with the digests of a directory, and of what is below it."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def named(self, path: str) -> Collection[str] | None:
        """What it lists."""
        directory, _, name = path.rpartition("/")
        if name not in MANIFESTS:
            return None
        with _about(path):
            listed = self._place.manifest(path, MANIFESTS[name], bag=False) or {}
        return [joined(directory, below) for below in listed]

    def stated(self, path: str) -> tuple[Stated, ...]:
        """What the nearest manifests say that list it."""
        for directory in directories(path):
            below = path[len(directory) + 1 :] if directory else path
            if found := stated_by(self._place, directory, below, MANIFESTS):
                return found
        raise NotYet("no manifest lists it yet")


class Bags:
    """Bags: directories with a declaration and manifests of all that is in them (RFC 8493)."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def _bag(self, path: str) -> tuple[str, str]:
        """The outermost bag that holds ``path``, and what comes below it; that is empty where there is none."""
        for directory in reversed(directories(path)[:-1]):
            if self._place.is_bag(directory):
                return directory, path[len(directory) + 1 :]
        return "", ""

    def named(self, path: str) -> Collection[str] | None:
        """For a manifest what it lists, and the declaration; for what no manifest lists the payload."""
        bag, below = self._bag(path)
        if below.startswith(PAYLOAD) or not below:
            return None
        if below in BAG_MANIFESTS:
            with _about(path):
                listed = self._place.manifest(path, BAG_MANIFESTS[below], bag=True) or {}
            return {joined(bag, name) for name in (*listed, DECLARATION) if name != below}
        if below != DECLARATION and stated_by(self._place, bag, below, BAG_MANIFESTS, bag=True):
            return None
        return self._payload(bag)

    def _payload(self, bag: str) -> Collection[str]:
        found: set[str] = set()
        for name, algorithm in BAG_MANIFESTS.items():
            with _about(joined(bag, name)):
                listed = self._place.manifest(joined(bag, name), algorithm, bag=True) or {}
            found.update(joined(bag, below) for below in listed if below.startswith(PAYLOAD))
        return found

    def stated(self, path: str) -> tuple[Stated, ...]:
        """What all manifests of its bag say."""
        bag, below = self._bag(path)
        if not below:
            raise NotYet(f"it is in no bag: no {DECLARATION} lies above it")
        if found := stated_by(self._place, bag, below, BAG_MANIFESTS, bag=True):
            return found
        raise NotYet(f"no manifest of the bag {bag} lists it yet")


class Markers:
    """One file beside each unit that says no more than that it is ready."""

    def __init__(self, place: Place, pattern: str) -> None:
        self._place = place
        self._pattern = pattern
        self._name_of = marked(pattern)

    def named(self, path: str) -> Collection[str] | None:
        """The one unit that it lies beside."""
        directory, _, name = path.rpartition("/")
        about = self._name_of(name)
        return (joined(directory, about),) if about else None

    def stated(self, path: str) -> tuple[Stated, ...]:
        """Nothing, but that it is there."""
        directory, _, name = path.rpartition("/")
        marker = self._pattern.replace("{name}", name)
        if not self._place.has(joined(directory, marker)):
            raise NotYet(f"its ready marker {marker} is not there yet")
        return ()


def stated_by(
    place: Place, directory: str, below: str, names: Mapping[str, str], *, bag: bool = False
) -> tuple[Stated, ...]:
    """What the manifests of a directory say of a path below it."""
    found: list[Stated] = []
    for name, algorithm in names.items():
        where = joined(directory, name)
        with _about(where):
            listed = place.manifest(where, algorithm, bag=bag)
            if listed and below in listed:
                found.append(Stated(algorithm, listed[below], where))
    return tuple(found)


class _about:  # noqa: N801 - reads as the statement it is
    """Says which proof it was that was refused: what it should prove waits."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, _type: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, Refused):
            raise NotYet(f"{self._path} proves nothing: {error}") from error


def _kind(settings: Settings, place: Place) -> _Kind | None:
    near = settings.data_stream
    if near.ready_marker is not None:
        return Markers(place, near.ready_marker)
    kinds: dict[str, Callable[[Place], _Kind]] = {"sidecar": Sidecars, "manifest": Manifests, "bagit": Bags}
    return kinds[near.control](place) if near.control in kinds else None


# -- the proofs of a stream ---------------------------------------------------------------------------------


class Proofs:
    """What proves the units of a stream, and which proofs are to follow them."""

    def __init__(self, kind: _Kind, place: Place, spool: Spool, ledger: View, *, follow: bool) -> None:
        self._kind = kind
        self._place = place
        self._spool = spool
        self._ledger = ledger
        self.follows = follow
        self._proofs: dict[str, Unit] = {}
        """Those that were found in this pass, and not yet sent."""

    @classmethod
    def of(cls, settings: Settings, spool: Spool, ledger: View) -> Proofs | None:
        """Those of a stream; None where it asks for none."""
        place = Place(spool.below())
        kind = _kind(settings, place)
        if kind is None:
            return None
        return cls(kind, place, spool, ledger, follow=settings.data_stream.proof_files == "follow")

    def turn(self) -> None:
        """A pass begins."""
        self._place.turn()
        self._proofs.clear()

    def is_proof(self, unit: Unit) -> bool:
        """Whether a unit that was found is a proof; if proofs follow, it is kept until it is due."""
        try:
            if self._kind.named(unit.path) is None:
                return False
        except NotYet:
            pass  # told when it is due
        if self.follows:
            self._proofs[unit.path] = unit
        return True

    def proven(self, unit: Unit) -> Unit:
        """A unit with what is said of it; raises :class:`NotYet`."""
        stated = (each._replace(is_older=self._is_older(each.where, unit)) for each in self._kind.stated(unit.path))
        return unit._replace(stated=tuple(stated))

    def _is_older(self, proof: str, unit: Unit) -> bool:
        identity = self._spool.identity(proof)
        return identity is not None and identity.mtime_ns < unit.identity.mtime_ns

    def due(self) -> list[Unit]:
        """The proofs that are to be sent now."""
        self._place.turn()
        found = [unit for unit in self._proofs.values() if not self._why_not(unit)]
        for unit in found:
            del self._proofs[unit.path]
        return found

    def waiting(self) -> Iterator[tuple[Unit, str]]:
        """The proofs that wait, with the reasons."""
        for unit in self._proofs.values():
            if why := self._why_not(unit):
                yield unit, why

    def _why_not(self, proof: Unit) -> str:
        """Why a proof does not follow yet; empty where it does.

        It does once all that it names was delivered, the last of it after the proof came: else a proof that comes
        before its file, which is the second one of that name, would be gone when that arrives.
        """
        try:
            named = self._kind.named(proof.path)
        except NotYet as why:
            return str(why)
        last = -inf
        for path in named or ():
            moment = self._delivered(path)
            if moment is None:
                return f"a proof; it follows once {path} was delivered"
            last = max(last, moment)
        came = min(proof.identity.mtime_ns, proof.identity.ctime_ns) / 1e9
        return "" if last >= came else "a proof; nothing that it names was delivered since it came"

    def _delivered(self, path: str) -> float | None:
        """When a path was delivered, in seconds since the epoch; None where it was not, or not as it is now."""
        identity = self._spool.identity(path)
        if identity is None:
            return self._ledger.when_delivered(path)
        record = self._ledger.record(path)
        is_current = record is not None and record.state is State.DELIVERED and record.identity == identity
        return inf if is_current else None
