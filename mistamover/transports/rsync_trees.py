"""Directories of our own that rsync reads from: links to what is sent, and stand-ins for what is published."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from inotify_simple import INotify

from mistamover.errors import NoRoomHere, SourceMoved, UnitError, UnitRefused
from mistamover.spool import Reader, Source
from mistamover.unit import Outcome, Unit

MEMORY = Path("/dev/shm")  # noqa: S108 - what is made there is private
"""Where a thousand links take milliseconds, which on a disk may take a second."""


_ITS_OWN = {errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.EFBIG, errno.EEXIST, errno.ENOTDIR}
"""What the name or the size of a file is to blame for, on any host."""
_CLOSED = 0x10
"""IN_CLOSE_NOWRITE of inotify(7)."""


class Ground:
    """The directory that trees stand in: in memory where the system has a place for that, else on disk."""

    def __init__(self, on_disk: str, memory: Path = MEMORY) -> None:
        self._on_disk = on_disk
        self._lock = -1
        try:
            self.path = self._in_memory(memory)
        except OSError:
            self.path = on_disk

    def _in_memory(self, memory: Path) -> str:
        """A new directory with a shared lock on it, by which others of ours see that somebody uses it."""
        begin = f"mistamover-{os.geteuid()}-"
        for left in memory.glob(f"{begin}*"):
            with suppress(OSError):
                _remove_if_unused(left)
        path = tempfile.mkdtemp(prefix=begin, dir=memory)
        self._lock = _open_directory(path)
        fcntl.flock(self._lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # refused where one of ours removes it just now
        os.stat(path)  # or did so before we had the lock
        return path

    def close(self) -> None:
        """Remove it; harmless when repeated."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
        if self.path != self._on_disk:
            shutil.rmtree(self.path, ignore_errors=True)


def _remove_if_unused(path: Path) -> None:
    """Remove what one of ours that was killed has left."""
    if path.lstat().st_uid != os.geteuid():
        return
    fd = _open_directory(path)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(fd)


def _open_directory(path: str | Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


@contextmanager
def _short_of_memory() -> Iterator[None]:
    """Have an error say of a place without room that this host lacks memory: no unit and no target is to blame."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(
                errno.ENOMEM, f"no room for what rsync reads: {error.strerror}", error.filename
            ) from error
        raise


class Tree:
    """A private directory that is gone at the end of the block."""

    def __init__(self, parent: str) -> None:
        with _short_of_memory():
            self.path = tempfile.mkdtemp(dir=parent)
        self._made = {""}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def name(self) -> str:
        """Its name in the directory that it stands in."""
        return self.path.rpartition("/")[2]

    def close(self) -> None:
        """Remove it."""
        shutil.rmtree(self.path, ignore_errors=True)

    def link(self, path: str, fd: int) -> None:
        """Have ``path`` lead to the very file that we hold open, whatever happens to its name."""
        try:
            os.symlink(f"/proc/{os.getpid()}/fd/{fd}", self._place(path))
        except (FileExistsError, NotADirectoryError) as error:
            raise SourceMoved("a file took a directory's place, or the reverse") from error
        except OSError as error:
            raise self.cannot_hold(error) from error

    def stand_in(self, path: str, size: int) -> None:
        """Have ``path`` be a file of this size that nobody may read: rsync can compare and link, but not send."""
        with _short_of_memory():
            fd = os.open(self._place(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0)
        try:
            os.ftruncate(fd, size)
        finally:
            os.close(fd)

    def cannot_hold(self, error: OSError) -> UnitError:
        """Why a unit could not be given a place here: by its own fault only where that is what it is called."""
        if error.errno in _ITS_OWN:
            return UnitRefused(f"rsync cannot be given a file of that name: {error.strerror}")
        return NoRoomHere(f"{self.path}: rsync cannot be shown it here: {error.strerror}; make room there")

    def write(self, path: str, data: bytes) -> None:
        """Have ``path`` be a file with these bytes."""
        with _short_of_memory():
            fd = os.open(self._place(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            with open(fd, "wb") as file:
                file.write(data)

    def directory(self, path: str) -> None:
        """Have ``path`` be a directory."""
        with _short_of_memory():
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
        self._shown: dict[str, str] = {}
        """Where in the tree they are, by staged names."""
        self._hashed: set[str] = set()

    def open(self, units: Sequence[Unit]) -> Iterator[Outcome]:
        """Open each unit and link it into the tree."""
        self._reader.forget()
        for unit in units:
            try:
                source = self._reader.open(unit)
                self._open[unit.staged] = source
                self.link(unit.final, source.fd)
                self._shown[unit.staged] = unit.final
            except UnitError as error:
                yield Outcome(unit, error)
            else:
                yield Outcome(unit)

    def __len__(self) -> int:
        """How many are open."""
        return len(self._open)

    def holds(self, units: Sequence[Unit]) -> bool:
        """Whether all of these are open, and in the tree."""
        return all(unit.staged in self._shown for unit in units)

    def hide(self, but: Iterable[Unit] = ()) -> None:
        """Have nobody who comes to the tree find any of them but these."""
        kept = {unit.staged for unit in but}
        for staged in self._shown.keys() - kept:
            os.unlink(f"{self.path}/{self._shown.pop(staged)}")

    def hash(self, units: Sequence[Unit], buffer: bytearray, tick: Callable[[int], None]) -> Iterator[Outcome]:
        """Read each unit while rsync does."""
        for unit in units:
            try:
                for chunk in self._open[unit.staged].chunks(buffer):
                    tick(len(chunk))
            except UnitError as error:
                yield Outcome(unit, error)
            else:
                self._hashed.add(unit.staged)
                yield Outcome(unit)

    def finish(self, unit: Unit) -> Unit:
        """The unit, with its digest if it was read; raises ``SourceMoved`` where it is not what was found."""
        source = self._open[unit.staged]
        if unit.staged in self._hashed:
            return source.finish()
        source.look()
        return unit

    def close(self) -> None:
        """Let go of all."""
        super().close()
        for source in self._open.values():
            source.close()


class Mark(Tree):
    """A file that tells when it was read: then all that rsync was given before it was read as well."""

    def __init__(self, parent: str, path: str) -> None:
        super().__init__(parent)
        self._path = path
        try:
            self.write(path, b".")
            self._notices = INotify(nonblocking=True)
            self._notices.add_watch(f"{self.path}/{path}", _CLOSED)
        except OSError:
            super().close()
            raise

    @property
    def fd(self) -> int:
        """There is something to be read from it when the file was."""
        return int(self._notices.fileno())

    def hide(self) -> None:
        """Have nobody find it any more."""
        os.unlink(f"{self.path}/{self._path}")

    def close(self) -> None:
        """Remove it."""
        self._notices.close()
        super().close()
