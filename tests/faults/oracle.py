"""Knows every file that was ever put into a spool, and finds out whether one is lost, halved or doubled."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from mistamover.ledger import Entry, entries

OWN = ".mistamover"
STOP = ".stop"


class LossError(AssertionError):
    """A promise is broken; one line for each file that shows it."""


def digest_of(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def files(root: Path) -> Iterator[tuple[str, Path]]:
    """Every regular file below a directory but for our own and stop files, by its name relative to it."""
    for directory, below, names in os.walk(root):
        if Path(directory) == root and OWN in below:
            below.remove(OWN)
        for name in names:
            path = Path(directory, name)
            if name != STOP and path.is_file() and not path.is_symlink():
                yield os.path.relpath(path, root), path


@dataclass
class Oracle:
    """Each writes into the spool through this, so that it knows what is owed."""

    spool: Path
    target: Path
    ledger: Path
    versions: dict[str, set[str]] = field(default_factory=dict)
    """Digests of all versions that a name ever had, in the spool or at the target."""
    owed: dict[str, str] = field(default_factory=dict)
    """Digest of the version of each name that must not be lost: its latest."""
    theirs: dict[str, str] = field(default_factory=dict)
    """Digests of files that others put at the target, which must stay as they are."""
    mirror: bool = False

    # -- what programs beside us do ------------------------------------------------------------------------

    def put(self, name: str, data: bytes) -> Path:
        """Write a file, or a new version of it in place."""
        path = self.spool / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self.expect(name, data)
        path.write_bytes(data)
        return path

    def replace(self, name: str, data: bytes) -> Path:
        """Put a new file in the place of an old one, as ``mv new old`` does."""
        self.expect(name, data)
        path = self.spool / name
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".new-{len(self.versions[name])}")
        new.write_bytes(data)
        return new.rename(path)

    def rewrite(self, name: str, data: bytes) -> None:
        """Write other bytes of the same size in place, and set the times back as they were."""
        self.expect(name, data)
        path = self.spool / name
        before = path.stat()
        assert before.st_size == len(data)
        with path.open("r+b") as file:
            file.write(data)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    def delete(self, name: str) -> None:
        """Remove a file as its owner: nobody owes it any more."""
        (self.spool / name).unlink()
        self.owed.pop(name)

    def expect(self, name: str, data: bytes) -> None:
        """These are the bytes that are owed under this name from now on."""
        value = sha256(data).hexdigest()
        self.versions.setdefault(name, set()).add(value)
        self.owed[name] = value

    def put_at_target(self, name: str, data: bytes) -> Path:
        """Have another program's file stand at the target."""
        path = self.target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self.theirs[name] = digest_of(path)
        return path

    # -- what must hold at every instant -----------------------------------------------------------------

    def check(self) -> None:
        """Raise unless every file is complete somewhere, and no final name shows anything else."""
        if wrong := [*self.wrong_at_target(), *self._lost(), *self._overwritten()]:
            raise LossError("\n".join(wrong))

    def wrong_at_target(self) -> Iterator[str]:
        """What a reader at the target must never see, one line each."""
        for name, path in files(self.target):
            try:
                found = digest_of(path)
            except FileNotFoundError:
                continue
            if name not in self.versions and name not in self.theirs:
                yield f"{name!r}: nobody put a file of this name; {self._twin(found)}"
            elif found not in self.versions.get(name, set()) | {self.theirs.get(name)}:
                yield f"{name!r}: the target shows {path.stat().st_size} bytes that are no version of it"

    def _twin(self, found: str) -> str:
        twins = [name for name, known in self.versions.items() if found in known]
        return f"it is {twins[0]!r} doubled" if twins else "its bytes are unknown"

    def _lost(self) -> Iterator[str]:
        aside = {digest_of(path) for path in self.set_aside()}
        for name, value in self.owed.items():
            places = (self.spool / name, self.target / name)
            if value not in aside and not any(_holds(path, value) for path in places):
                yield f"{name!r}: lost: neither in the spool, its trash or quarantine, nor at the target"

    def _overwritten(self) -> Iterator[str]:
        for name, value in self.theirs.items():
            if not _holds(self.target / name, value):
                yield f"{name!r}: another program's file at the target is not as it was"

    # -- what must hold in the end -----------------------------------------------------------------------

    def check_delivered(self) -> None:
        """Raise unless all is delivered and recorded, and nothing of it is left anywhere else."""
        self.check()
        if wrong := [*self._undelivered(), *self._left(), *self._unrecorded()]:
            raise LossError("\n".join(wrong))

    def _undelivered(self) -> Iterator[str]:
        for name, value in self.owed.items():
            if not _holds(self.target / name, value):
                yield f"{name!r}: its latest version is not at the target"

    def _left(self) -> Iterator[str]:
        if not self.mirror:
            yield from (f"{name!r}: still in the spool" for name in self._in_spool())
        yield from (f"{path}: left in the spool's own directory" for path in self.set_aside())
        yield from (f"{path}: left staged" for path in self.staged())

    def _in_spool(self) -> list[str]:
        return [name for name, _ in files(self.spool)]

    def directories(self) -> list[str]:
        """What is left in the spool of the directories in which units were."""
        return [entry.name for entry in self.spool.iterdir() if entry.name != OWN and entry.is_dir()]

    def _unrecorded(self) -> Iterator[str]:
        recorded = {(entry.path, entry.digest) for entry in self.records("delivered", "removed")}
        for name, value in self.owed.items():
            if (name, value) not in recorded:
                yield f"{name!r}: the ledger does not say that this version was delivered"

    # -- looks ---------------------------------------------------------------------------------------------

    def set_aside(self) -> list[Path]:
        """Files in the trash and in quarantine."""
        places = (self.spool / OWN / "trash", self.spool / OWN / "quarantine")
        return [path for place in places for _, path in files(place) if path.name != ".reason"]

    def quarantined(self) -> list[str]:
        return sorted(path.name for _, path in files(self.spool / OWN / "quarantine") if path.name != ".reason")

    def staged(self) -> list[Path]:
        return [path for _, path in files(self.target / OWN)]

    def delivered(self) -> set[str]:
        return {name for name, _ in files(self.target)} - set(self.theirs)

    def records(self, *states: str) -> list[Entry]:
        return [entry for entry in entries(self.ledger) if not states or entry.state.value in states]


def _holds(path: Path, value: str) -> bool:
    try:
        return path.is_file() and not path.is_symlink() and digest_of(path) == value
    except FileNotFoundError:
        return False


class Watcher:
    """A reader at the target who looks all the time while the block runs, and never may see half a file."""

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle
        self._done = threading.Event()
        self._wrong: list[str] = []
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._done.set()
        self._thread.join()
        if self._wrong and kind is None:
            raise LossError("\n".join(self._wrong))

    @property
    def is_done(self) -> bool:
        """Whether it saw enough: what is wrong does not go away."""
        return bool(self._wrong)

    def _look(self) -> None:
        while not self._done.wait(0.005) and not self._wrong:
            # The versions may grow while we look: a file is entered before it is written.
            self._wrong = list(self._oracle.wrong_at_target())
