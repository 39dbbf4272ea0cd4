"""The transport to a directory of this host, or of a file system that is mounted here."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import ClassVar, Self

from mistamover import digest, disk, foreign, fs, handshake
from mistamover.disk import Space
from mistamover.errors import (
    MistamoverError,
    NotTaken,
    NotVerified,
    TargetDown,
    TargetFull,
    TargetRefused,
    UnitError,
    UnitRefused,
)
from mistamover.transports.contract import Capabilities, Finding, Level, Proof, Transport, draft_name, space, taken
from mistamover.unit import OWN_NAME, Directory, Outcome, Unit

_CAPABILITIES = Capabilities(
    frozenset({Proof.READBACK, Proof.SIZE, Proof.NONE}), sync=True, replace=True, directories=True
)


SMALL = 2**20
SYNC_EVERY = 2**30
"""Bytes of a large file after which it is put on disk: what is left for the end takes a time that can be told."""
TOGETHER = 256
MANY = 16
"""Files of up to SMALL bytes are put on disk TOGETHER, if they are MANY."""


class Local(Transport):
    """Copies with fsync, reads back past the page cache where the kernel lets us, renames without replacing."""

    capabilities = _CAPABILITIES
    gives_up: ClassVar[bool] = False

    _root: int | None = None
    _staging: int = -1

    def open(self) -> Self:
        """Open the target directory and make the staging directory in it."""
        self._buffer = bytearray(digest.CHUNK)
        self._reader = self.spool.reader()
        try:
            if self.settings.outgoing.create_target:
                os.makedirs(self.target, exist_ok=True)
            self._root = os.open(self.target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise TargetRefused(
                f"{self.target}: no such directory; mount or make it, or set [outgoing] create_target = yes"
            ) from error
        except OSError as error:
            raise TargetRefused(f"{self.target}: {error.strerror}; look at [outgoing] target_dir") from error
        self._final = fs.Below(self._root)
        place = (f"{self.target}/{OWN_NAME}", self.staging)
        self.made = [path for path in place if not os.path.lexists(path)]
        try:
            self._staging = fs.open_directory(self._root, f"{OWN_NAME}/{self.settings.name}", create=True)
        except OSError as error:
            raise TargetRefused(_no_staging(self.staging, error)) from error
        return self

    def close(self) -> None:
        """Let go of the directories."""
        if self._root is not None:
            self._reader.forget()
            self._final.forget()
            os.close(self._root)
            self._root = None
        if self._staging >= 0:
            os.close(self._staging)
            self._staging = -1

    def remove_made(self) -> None:
        """Remove the staging place from within, through no link."""
        for path in reversed(self.made):
            with suppress(OSError):
                parent, name = self._final.parent(path.removeprefix(f"{self.target}/"))
                os.rmdir(name, dir_fd=parent)

    def is_stopped(self) -> bool:
        """Whether the stop file lies in the target directory."""
        self._look_at_place()
        try:
            os.stat(self.settings.outgoing.stop_file, dir_fd=self._root, follow_symlinks=False)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise TargetDown(f"{self.target}: cannot look for a stop file: {error.strerror}") from error
        return True

    def _look_at_place(self) -> None:
        """Go on with no directory that has lost its name: replaced, unmounted, or mounted over."""
        try:
            is_same = os.path.samestat(os.stat(self.target), os.fstat(self._root_fd))
        except OSError as error:
            raise TargetDown(f"{self.target}: {error.strerror}") from error
        if not is_same:
            raise TargetDown(f"{self.target}: another directory took the place of the target")

    def sweep(self) -> int:
        """Remove files of ours from the staging directory."""
        try:
            ours = [name for name in os.listdir(self._staging) if name.startswith(self.tag)]
            for name in ours:
                self._remove_staged(name)
        except OSError as error:
            raise TargetDown(f"{self.staging}: cannot be cleared: {error.strerror}") from error
        return len(ours)

    def room(self) -> Space | None:
        """By statvfs(3) of the staging place."""
        with suppress(OSError):
            return disk.room(disk.space(self._staging))
        return None

    def _remove_staged(self, name: str) -> None:
        try:
            os.unlink(name, dir_fd=self._staging)
        except IsADirectoryError:
            fs.remove_tree(name, self._staging)

    # -- the verbs -------------------------------------------------------------------------------------

    def send(self, units: Sequence[Unit]) -> Iterator[Outcome]:
        """Copy each unit into the staging directory, and have it on disk."""
        self._reader.forget()
        small = [unit for unit in units if unit.size <= SMALL]
        large = [unit for unit in units if unit.size > SMALL]
        for first in range(0, len(small), TOGETHER):
            yield from self._send_small(small[first : first + TOGETHER])
        for unit in large:
            yield self._outcome(self._send, unit)

    def _send_small(self, units: Sequence[Unit]) -> list[Outcome]:
        """One sync of the file system costs less than that of each of many files."""
        with self.baton:
            outcomes = [self._outcome(self._copy, unit) for unit in units]
        if len(units) >= MANY and self._sync_all():
            return outcomes
        return [self._synced(*outcome) for outcome in outcomes]

    def _sync_all(self) -> bool:
        try:
            return fs.sync_file_system(self._staging)
        except OSError as error:
            # Nobody can say which files are hit, and asking again would be told that all is well.
            raise TargetDown(f"{self.target}: cannot be put on disk: {error.strerror}") from error

    @staticmethod
    def _outcome(verb: Callable[[Unit], Unit], unit: Unit) -> Outcome:
        try:
            return Outcome(verb(unit))
        except UnitError as error:
            return Outcome(unit, error)

    def _synced(self, unit: Unit, error: UnitError | None) -> Outcome:
        return Outcome(unit, error) if error else self._outcome(self._sync, unit)

    def _send(self, unit: Unit) -> Unit:
        return self._sync(self._copy(unit))

    def _copy(self, unit: Unit) -> Unit:
        source = self._reader.open(unit)
        try:
            with _far_side():
                staged = self._create(unit, source.mode)
            try:
                unsynced = 0
                for chunk in source.chunks(self._buffer):
                    with _far_side():
                        _write(staged, chunk)
                        if (unsynced := unsynced + len(chunk)) > SYNC_EVERY:
                            os.fdatasync(staged)
                            unsynced = 0
                    self.tick(len(chunk))
                sent = source.finish()
                with _far_side():
                    if self.settings.outgoing.preserve_mode:
                        os.fchmod(staged, source.mode)
                    mtime = os.fstat(source.fd).st_mtime_ns
                    os.utime(staged, ns=(mtime, mtime))
            finally:
                with _far_side():
                    os.close(staged)
        finally:
            source.close()
        return sent

    def _create(self, unit: Unit, mode: int) -> int:
        try:
            return os.open(unit.staged, fs.CREATE_NEW, mode, dir_fd=self._staging)
        except FileExistsError:
            # Never written anew: where files are renamed by a link, it may have its final name too.
            os.unlink(unit.staged, dir_fd=self._staging)
            return os.open(unit.staged, fs.CREATE_NEW, mode, dir_fd=self._staging)

    def _sync(self, unit: Unit) -> Unit:
        with _far_side():
            staged = os.open(unit.staged, fs.FILE, dir_fd=self._staging)
            try:
                os.fsync(staged)
            finally:
                os.close(staged)
        return unit

    def verify(self, units: Sequence[Unit]) -> Iterator[Outcome]:
        """Read each staged file back."""
        proof = self.proof
        for unit in units:
            try:
                with _far_side():
                    self._verify(unit, proof)
            except UnitError as error:
                yield Outcome(unit, error)
            else:
                yield Outcome(unit._replace(proof=proof.value))

    def _verify(self, unit: Unit, proof: Proof) -> None:
        if proof is Proof.NONE:
            return
        fd = os.open(unit.staged, fs.FILE, dir_fd=self._staging)
        try:
            if os.fstat(fd).st_size != unit.size:
                raise NotVerified("the staged file has another size than the source")
            if proof is Proof.READBACK and self._digest(fd) != unit.digest:
                raise NotVerified("the staged file has another digest than the source")
        finally:
            os.close(fd)

    def _digest(self, fd: int) -> str:
        # What was just written would else come from memory, and say nothing about the disk.
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return digest.of_descriptor(self.settings.outgoing.checksum, fd, self._buffer, self.tick)[0]

    def publish(self, units: Sequence[Unit]) -> Iterator[Outcome]:
        """Rename into place, then have the names on disk."""
        self._final.forget()
        published: list[Unit] = []
        for unit in units:
            try:
                with _far_side():
                    self._publish(unit)
                published.append(unit)
            except UnitError as error:
                yield Outcome(unit, error)
        self._sync_names({unit.final.rpartition("/")[0] for unit in published})
        yield from map(Outcome, published)

    def _sync_names(self, directories: Iterable[str]) -> None:
        try:
            for directory in directories:
                fs.sync_directory(self._final.directory(directory))
        except OSError as error:
            raise TargetDown(f"{self.target}: cannot be put on disk: {error.strerror}") from error

    def _publish(self, unit: Unit) -> None:
        directory, _, name = unit.final.rpartition("/")
        parent = self._directory(directory)
        try:
            if self.may_replace(unit):
                os.rename(unit.staged, name, src_dir_fd=self._staging, dst_dir_fd=parent)
            else:
                fs.rename_new(unit.staged, self._staging, name, parent)
        except (FileExistsError, IsADirectoryError) as error:
            raise taken() from error
        except FileNotFoundError as error:
            if fs.is_there(name, parent):
                raise taken() from error  # it may well be ours: published before
            raise

    def _directory(self, path: str) -> int:
        """The descriptor of a directory in the target, made where it is missing."""
        try:
            try:
                return self._final.directory(path)
            except FileNotFoundError:
                return self._final.directory(path, create=True)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise UnitRefused(
                    "a link or a file stands at the target where one of its directories should be"
                ) from error
            raise

    def compare(self, units: Sequence[Unit]) -> Iterator[Outcome]:
        """Read what stands under each unit's name."""
        self._final.forget()
        for unit in units:
            try:
                with _far_side():
                    self._compare(unit)
            except UnitError as error:
                yield Outcome(unit, error)
            else:
                yield Outcome(unit._replace(proof=Proof.READBACK.value))

    def _compare(self, unit: Unit) -> None:
        parent, name = self._final.parent(unit.final)
        try:
            fd = os.open(name, fs.FILE, dir_fd=parent)
        except OSError as error:
            raise taken() from error
        try:
            found = os.fstat(fd)
            if (found.st_dev, found.st_ino) == unit.identity[:2]:
                raise UnitRefused("the target's file of that name is the very source; it was left as it is")
            is_same = stat.S_ISREG(found.st_mode) and found.st_size == unit.size
            if not is_same or self._digest(fd) != unit.digest:
                raise taken()
            # We may have crashed between its rename and this.
            os.fsync(fd)
            fs.sync_directory(parent)
        finally:
            os.close(fd)

    def resembling(self, units: Sequence[Unit]) -> list[Unit]:
        """By a look at the names, through no link."""
        self._final.forget()
        return [unit for unit in units if self._size(unit) == unit.size]

    def _size(self, unit: Unit) -> int | None:
        with suppress(OSError):
            parent, name = self._final.parent(unit.final)
            found = os.stat(name, dir_fd=parent, follow_symlinks=False)
            return found.st_size if stat.S_ISREG(found.st_mode) else None
        return None

    def discard(self, units: Iterable[Unit]) -> None:
        """Unlink what is staged."""
        for unit in units:
            try:
                os.unlink(unit.staged, dir_fd=self._staging)
            except OSError:
                continue  # never staged, or published; the next pass sweeps what could not be removed

    # -- whole directories -----------------------------------------------------------------------------

    def publish_directory(self, tree: Directory) -> None:
        """Rename the staged tree; where a directory is replaced, the two exchange their names."""
        unit = tree.unit
        with _far_side():
            self._complete(tree)
            if not (self.may_replace(unit) and self._take_place(unit)):
                try:
                    fs.rename_new(unit.staged, self._staging, unit.final, self._root_fd)
                except FileExistsError as error:
                    raise taken() from error
        self._sync_names([""])
        self.discard_directories([unit])

    def _complete(self, tree: Directory) -> None:
        """Make the directories of the staged tree that hold no file, and set the times of all."""
        staged = fs.Below(self._staging)
        try:
            for folder in tree.folders:
                staged.directory(f"{tree.unit.staged}/{tree.below(folder.path)}".rstrip("/"), create=True)
            for folder in reversed(tree.folders):
                fd = staged.directory(f"{tree.unit.staged}/{tree.below(folder.path)}".rstrip("/"))
                os.utime(fd, ns=(folder.mtime_ns, folder.mtime_ns))
                fs.sync_directory(fd)
        finally:
            staged.forget()

    def _take_place(self, unit: Unit) -> bool:
        """Put the staged tree in the place of a directory, which is staged instead; False where none stands."""
        root = self._root_fd
        try:
            if not stat.S_ISDIR(os.stat(unit.final, dir_fd=root, follow_symlinks=False).st_mode):
                raise taken()
        except FileNotFoundError:
            return False
        if not fs.exchange(unit.staged, self._staging, unit.final, root):
            # For an instant there is none of that name.
            old = f"{unit.staged}-old"
            os.rename(unit.final, old, src_dir_fd=root, dst_dir_fd=self._staging)
            os.rename(unit.staged, unit.final, src_dir_fd=self._staging, dst_dir_fd=root)
            os.rename(old, unit.staged, src_dir_fd=self._staging, dst_dir_fd=self._staging)
        return True

    @property
    def _root_fd(self) -> int:
        assert self._root is not None  # noqa: S101 - it is open
        return self._root

    def entries(self, directory: Unit) -> set[str]:
        """Walk through what stands there, by no link."""
        found: set[str] = set()
        try:
            for path, what in fs.walk(self._root_fd, directory.final):
                found.add(path[len(directory.final) + 1 :] + ("/" if stat.S_ISDIR(what.st_mode) else ""))
        except OSError as error:
            raise taken() from error
        return found - {"/"}

    def discard_directories(self, directories: Iterable[Unit]) -> None:
        """Remove the staged trees."""
        for unit in directories:
            with suppress(OSError):  # never staged, or published; the next pass sweeps what could not be removed
                fs.remove_tree(unit.staged, self._staging)

    def put_notes(self, notes: Mapping[str, bytes]) -> dict[str, UnitError]:
        """Write in the staging directory, and rename."""
        refused: dict[str, UnitError] = {}
        for name, data in notes.items():
            try:
                with _far_side():
                    self._put_note(name, data)
            except UnitError as error:
                refused[name] = error
        return refused

    def _put_note(self, name: str, data: bytes) -> None:
        draft = draft_name(self, "note")
        fd = fs.create(draft, self._staging)
        try:
            _write(fd, memoryview(data))
        finally:
            os.close(fd)
        os.rename(draft, name, src_dir_fd=self._staging, dst_dir_fd=self._root)

    def fetch_notes(self, names: Sequence[str]) -> dict[str, bytes]:
        """Read them, through no link."""
        assert self._root is not None  # noqa: S101 - it is open
        found: dict[str, bytes] = {}
        for name in names:
            with suppress(OSError, foreign.Refused):
                found[name] = handshake.read(name, self._root)[0]
        return found

    def examine(self) -> Iterator[Finding]:
        """Look at rights, space and the staging place."""
        yield Finding(Level.OK, f"{self.target} exists")
        if os.access(self.target, os.W_OK | os.X_OK):
            yield Finding(Level.OK, f"{self.target} is writable")
        else:
            yield Finding(Level.FAIL, f"{self.target} is not writable", "give this user the right to write")
        yield from space(self.room())
        if os.fstat(self._staging).st_dev == os.stat(self.target).st_dev:
            yield Finding(Level.OK, "staging and target are on one file system")
        else:
            yield Finding(
                Level.FAIL,
                f"{self.staging} is on another file system than the target",
                "unmount it: files are published by renaming",
            )


def _write(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data) :]


class _far_side:  # noqa: N801 - reads as the statement it is
    """Turns an error of the target's file system into whose fault it is."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _type: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, OSError):
            raise _explain(error) from error


_REMEDIES = {
    errno.EACCES: "; give this user the right to write in the target directory",
    errno.ENOTDIR: "; move away what stands in its place",
    errno.ENOSPC: "; make room there",
}


def _no_staging(place: str, error: OSError) -> str:
    return f"{place}: cannot be used: {error.strerror}{_REMEDIES.get(error.errno or 0, '')}"


def _explain(error: OSError) -> MistamoverError:
    text = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return TargetFull(f"the target is full ({text}); make room there")
    if error.errno in (errno.EROFS, errno.ENOTCONN, errno.ESTALE, errno.EHOSTDOWN):
        return TargetDown(f"the target's file system fails: {text}")
    if error.errno in (errno.EACCES, errno.EPERM):
        return NotTaken(f"the target allows no such file: {text}; give this user the right to write there")
    if error.errno in (errno.ENAMETOOLONG, errno.EILSEQ):
        return UnitRefused(f"the target cannot hold a file of that name: {text}")
    return NotTaken(f"the target cannot take it: {text}")
