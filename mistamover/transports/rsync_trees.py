"""Directories of our own that rsync reads from: links to what is sent, and stand-ins for what is published."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Self

from mistamover.errors import SourceMoved, UnitError, UnitRefused
from mistamover.spool import Reader, Source
from mistamover.unit import Outcome, Unit


class Tree:
    """A private directory that is gone at the end of the block."""

    def __init__(self, parent: str) -> None:
        self.path = tempfile.mkdtemp(dir=parent)
        self._made = {""}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove it."""
        shutil.rmtree(self.path, ignore_errors=True)

    def link(self, path: str, fd: int) -> None:
        """Have ``path`` lead to the very file that we hold open, whatever happens to its name."""
        try:
            os.symlink(f"/proc/{os.getpid()}/fd/{fd}", self._place(path))
        except OSError as error:
            raise _cannot_hold(error) from error

    def stand_in(self, path: str, size: int) -> None:
        """Have ``path`` be a file of this size that nobody may read: rsync can compare and link, but not send."""
        fd = os.open(self._place(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0)
        try:
            os.ftruncate(fd, size)
        finally:
            os.close(fd)

    def directory(self, path: str) -> None:
        """Have ``path`` be a directory."""
        self._place(f"{path}/")  # "." is there

    def _place(self, path: str) -> str:
        parent = path.rpartition("/")[0]
        if parent not in self._made:
            os.makedirs(f"{self.path}/{parent}", exist_ok=True)
            self._made.add(parent)
        return f"{self.path}/{path}"


class Sources(Tree):
    """The sources of some units, held open while rsync reads them: no other file can take their place."""

    def __init__(self, parent: str, reader: Reader) -> None:
        super().__init__(parent)
        self._reader = reader
        self._open: dict[str, Source] = {}

    def open(self, units: Sequence[Unit]) -> Iterator[Outcome]:
        """Open each unit and link it into the tree."""
        self._reader.forget()
        for unit in units:
            try:
                source = self._reader.open(unit)
                self._open[unit.staged] = source
                self.link(unit.path, source.fd)
            except UnitError as error:
                yield Outcome(unit, error)
            else:
                yield Outcome(unit)

    def holds(self, units: Sequence[Unit]) -> bool:
        """Whether all of these are open."""
        return all(unit.staged in self._open for unit in units)

    def hash(self, units: Sequence[Unit], buffer: bytearray, tick: Callable[[int], None]) -> Iterator[Outcome]:
        """Read each unit while rsync does."""
        for unit in units:
            try:
                for chunk in self._open[unit.staged].chunks(buffer):
                    tick(len(chunk))
            except UnitError as error:
                yield Outcome(unit, error)
            else:
                yield Outcome(unit)

    def finish(self, unit: Unit) -> Unit:
        """The unit with the digest of what was read, provided that its source is still what was found."""
        return self._open[unit.staged].finish()

    def close(self) -> None:
        """Let go of all."""
        super().close()
        for source in self._open.values():
            source.close()


def _cannot_hold(error: OSError) -> UnitError:
    if isinstance(error, FileExistsError | NotADirectoryError):
        return SourceMoved("a file took a directory's place, or the reverse")
    return UnitRefused(f"rsync cannot be given a file of that name: {error.strerror}")
