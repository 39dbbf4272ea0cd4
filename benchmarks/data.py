"""What is moved: the sets of files, and the proof that all of a set arrived."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
PER_DIRECTORY = 100
OWN_NAME = ".mistamover"
"""Ours at both ends: the trash and the quarantine of a spool, the staging place of a target."""


@dataclass(frozen=True)
class FileSet:
    """So many files of one size, in nested directories of a hundred."""

    name: str
    count: int
    size: int

    def __str__(self) -> str:
        unit, letters = max((unit, letters) for unit, letters in UNITS if unit <= max(self.size, 1))
        return f"{self.count:,} x {self.size // unit} {letters}"


UNITS = ((1, "B"), (KIB, "KiB"), (MIB, "MiB"), (GIB, "GiB"))
SETS = {
    "small": FileSet("small", 5000, 10 * KIB),
    "medium": FileSet("medium", 100, 4 * MIB),
    "large": FileSet("large", 1, GIB),
    "thousand": FileSet("thousand", 1000, 10 * KIB),
    "quarter": FileSet("quarter", 1, GIB // 4),
}
EMPTY = FileSet("empty", 100_000, 0)

Manifest = dict[str, tuple[int, str]]
"""Size and digest of each file, by its path below the spool."""


def make(files: FileSet, root: Path) -> None:
    """Write a set below a directory; the content is random, and the same each time."""
    source = random.Random(files.name)
    for number in range(files.count):
        path = root / _name(number)
        if number % PER_DIRECTORY == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as out:
            for size in _blocks(files.size):
                out.write(source.randbytes(size))


def _name(number: int) -> str:
    directory = number // PER_DIRECTORY
    return f"{directory // 10:03}/{directory % 10}/{number:06}.dat"


def _blocks(size: int) -> Iterator[int]:
    for start in range(0, size, MIB):
        yield min(MIB, size - start)


def walk(root: Path) -> Iterator[os.DirEntry[str]]:
    """All files below a directory but for those in our own."""
    with os.scandir(root) as entries:
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                yield entry
            elif entry.name != OWN_NAME:
                yield from walk(Path(entry.path))


def manifest(root: Path) -> Manifest:
    """Read all files below a directory."""
    return {os.path.relpath(entry.path, root): (entry.stat().st_size, _digest(entry.path)) for entry in walk(root)}


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def newest_change(root: Path) -> float:
    """When the last of all files below a directory was changed, by wall clock."""
    return max((entry.stat().st_ctime for entry in walk(root)), default=0.0)


def what_is_wrong(expected: Manifest, spool: Path, target: Path, emptied: bool) -> str | None:
    """Say why a move counts as failed; None when all arrived intact and nothing was left behind."""
    arrived = manifest(target)
    if missing := expected.keys() - arrived.keys():
        return f"{len(missing)} of {len(expected)} files did not arrive"
    if extra := arrived.keys() - expected.keys():
        return f"{len(extra)} files at the target that were never sent, such as {min(extra)}"
    if wrong := [name for name in expected if expected[name] != arrived[name]]:
        return f"{len(wrong)} files arrived with other bytes, such as {wrong[0]}"
    left = sum(1 for _ in walk(spool))
    return f"{left} files still at the source" if emptied and left else None
