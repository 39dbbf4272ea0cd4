"""The near side of a stream: find units, read them, remove them, set them aside.

Everything of ours lives in ``SPOOL/.mistamover/``, on the spool's own file system, so that every hand-over is
one rename. A mirrored spool is only read.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from mistamover import digest, fs
from mistamover.errors import Held, SourceGone, SourceMoved, SpoolError, UnitError, UnitRefused
from mistamover.processes import holder
from mistamover.unit import OWN_NAME, Identity, Stated, Unit

TRASH = f"{OWN_NAME}/trash"
QUARANTINE = f"{OWN_NAME}/quarantine"
REASON = ".reason"
PROVEN = "-proven"
"""How the names of directories in the trash end that were found to be what was sent: they go, whatever happens."""
LONGEST_LINE = 200
"""Bytes of what a stop file says that are shown."""
TWINS = 64
"""Files with several names that are held open at most while their names are removed."""
LONGEST_NUMBER = 19
"""Digits of what SQLite takes for a number."""

KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


class Skipped(NamedTuple):
    """Something in the spool that is no unit, and why."""

    path: str
    reason: str
    is_trouble: bool = False
    """Whether a person would miss what is in it."""


class _Twin(NamedTuple):
    """A file one name of which was removed while others are left."""

    fd: int
    """Open, with a lease that began before the file was last compared with what was sent."""
    sent: Identity
    left: Identity
    """What it is now that our own removal has moved its ctime."""


class Source:
    """One unit open for reading: hashed as it is read, and the very file that was found, or an error."""

    def __init__(self, fd: int, unit: Unit, algorithm: str, mode: int, others: Collection[str] = ()) -> None:
        self.fd = fd
        self.unit = unit
        self.mode = mode
        """Permission bits; never those that give a program its owner's rights, always that to read it back."""
        self._algorithm = algorithm
        self._hashers = {each: digest.ALGORITHMS[each]() for each in (algorithm, *others)}
        hashers = self._hashers.values()
        self._update = digest.together(*hashers) if others else self._hashers[algorithm].update

    def chunks(self, buffer: bytearray, hashing: Executor | None = None) -> Iterator[memoryview]:
        """Give the bytes, each time as a view of ``buffer`` that is good until the next one is asked for.

        They are hashed by ``hashing`` meanwhile, or here before.
        """
        view = memoryview(buffer)
        left = self.unit.size
        while left:
            try:
                got = os.readv(self.fd, [view[: min(left, len(buffer))]])
            except OSError as error:
                raise UnitError(f"cannot be read: {error.strerror}") from error
            if not got:
                raise SourceMoved("it shrank while it was read")
            if hashing is None:
                self._update(view[:got])
                yield view[:got]
            else:
                hashed = hashing.submit(self._update, view[:got])
                try:
                    yield view[:got]
                finally:
                    hashed.result()
            left -= got

    def take(self) -> tuple[Unit, bytes]:
        """All bytes of a small unit, and the unit as :meth:`finish` gives it."""
        try:
            data = os.read(self.fd, self.unit.size)
        except OSError as error:
            raise UnitError(f"cannot be read: {error.strerror}") from error
        if len(data) != self.unit.size:
            raise SourceMoved("it shrank while it was read")
        self._update(data)
        return self.finish(), data

    def finish(self) -> Unit:
        """The unit with the digest of what was read, provided that the file is still what was found.

        Raises ``UnitError`` where somebody states other digests.
        """
        self.look()
        digests = {algorithm: hasher.hexdigest() for algorithm, hasher in self._hashers.items()}
        _compare(digests, self.unit.stated)
        md5 = digests.get("md5", "") if self._algorithm != "md5" else ""
        return self.unit._replace(digest=digests[self._algorithm], md5=md5)

    def look(self) -> None:
        """Raise ``SourceMoved`` where the file is not what was found any more."""
        if Identity.of(_state_of(self.fd)) != self.unit.identity:
            raise SourceMoved("it changed while it was read")

    def close(self) -> None:
        """Let go of the file; harmless when repeated."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _state_of(fd: int) -> os.stat_result:
    try:
        return os.fstat(fd)
    except OSError as error:
        raise UnitError(f"cannot be read: {error.strerror}") from error


def _compare(digests: Mapping[str, str], stated: Iterable[Stated]) -> None:
    for each in stated:
        if digests[each.algorithm] != each.digest:
            wrong = f"its {each.algorithm} is {digests[each.algorithm]}, and {each.where} says {each.digest}"
            raise UnitError(wrong) if each.is_older else UnitRefused(wrong)


class Reader:
    """Opens the units of a spool, for one thread."""

    def __init__(self, root: int, algorithm: str, *, with_md5: bool = False) -> None:
        self._below = fs.Below(root)
        self._algorithm = algorithm
        self._others = {"md5"} - {algorithm} if with_md5 else set()
        self._writers: frozenset[tuple[int, int]] | None = None

    def open(self, unit: Unit) -> Source:
        """Open a unit; raises :class:`SourceMoved` where it is not, or not yet, what was found."""
        try:
            parent, name = self._below.parent(unit.path)
            fd = os.open(name, fs.FILE, dir_fd=parent)
        except OSError as error:
            self._below.forget()
            raise _cannot_open(error) from error
        try:
            found = _state_of(fd)
            if Identity.of(found) != unit.identity:
                raise SourceMoved("it changed since it was found")
            if self._is_being_written(fd, unit.identity):
                raise SourceMoved("a program has it open for writing")
        except BaseException:
            os.close(fd)
            raise
        return Source(fd, unit, self._algorithm, found.st_mode & 0o777 | 0o400, self._others_of(unit))

    def _others_of(self, unit: Unit) -> Collection[str]:
        """The algorithms whose digests are made of a unit besides the stream's own."""
        if not unit.stated:
            return self._others
        return self._others | {stated.algorithm for stated in unit.stated} - {self._algorithm}

    def _is_being_written(self, fd: int, identity: Identity) -> bool:
        if (answer := fs.is_being_written(fd)) is not None:
            return answer
        # Files of other owners: the kernel gives us no lease, /proc shows at least our own programs.
        if self._writers is None:
            self._writers = frozenset(_files_open_for_writing())
        return identity[:2] in self._writers

    def hash(self, unit: Unit, buffer: bytearray, tick: Callable[[int], None] = lambda _: None) -> Unit:
        """Read all of a unit without sending it; gives it with its digest. ``tick(0)`` follows each read."""
        source = self.open(unit)
        try:
            for _ in source.chunks(buffer):
                tick(0)
            return source.finish()
        finally:
            source.close()

    def forget(self) -> None:
        """Begin anew: what was learnt of directories and of writers may be so no longer."""
        self._below.forget()
        self._writers = None


def _cannot_open(error: OSError) -> UnitError:
    if isinstance(error, FileNotFoundError):
        return SourceGone("it is gone")
    if isinstance(error, PermissionError):
        return UnitError("no permission to read it; give the user that runs mistamover the right to")
    if error.errno in (errno.ENOTDIR, errno.ELOOP, errno.ENXIO):
        return SourceMoved("a directory, link or socket took its place")
    return UnitError(f"cannot be opened: {error.strerror}")


class Spool:
    """The directory in which the units of a stream appear.

    ``algorithm`` is that of the digests that are made while units are read, ``with_md5`` besides an MD5.
    """

    def __init__(self, directory: Path, *, mirror: bool, algorithm: str = "sha256", with_md5: bool = False) -> None:
        self.directory = directory
        self._mirror = mirror
        self._algorithm = algorithm
        self._with_md5 = with_md5
        self._lock: int | None = None
        self._mtimes: dict[str, float] = {}
        self._scanned = ""
        """The directory that the scan is in, or was in last."""
        self._trash: int | None = None
        self._twins: dict[tuple[int, ...], _Twin] = {}
        # A writer that opens a file while we hold a lease on it makes the kernel send SIGIO, which kills.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGIO, signal.SIG_IGN)
        try:
            self._root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._device = os.fstat(self._root).st_dev
        except OSError as error:
            raise SpoolError(f"{directory}: the spool cannot be opened: {error.strerror}") from error
        self._below = fs.Below(self._root)

    @property
    def device(self) -> int:
        """The number of the file system that it is on."""
        return self._device

    def close(self) -> None:
        """Give the lock back and let go of the directory."""
        self._below.forget()
        self.let_go_of_twins()
        for fd in (self._trash, self._lock, self._root):
            if fd is not None:
                os.close(fd)

    def hold(self) -> None:
        """Take the spool for this process; raises :class:`Held` where another moves from it already.

        A mirrored spool is not ours to write in, and several streams may read one.
        """
        if self._mirror:
            return
        try:
            own = self._below.directory(OWN_NAME, create=True)
            self._lock = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=own)
        except OSError as error:
            raise SpoolError(
                f"{self.directory}: no permission to move files out of here ({error.strerror}); "
                "run as its owner, or set transfer_mode = mirror"
            ) from error
        if not fs.lock(self._lock):
            by = holder(self._lock)
            self.give_back()
            who = f" ({by})" if by else ""
            raise Held(f"{self.directory}: another mistamover moves from this spool{who}; let it end, or stop it")

    def give_back(self) -> None:
        """Let another process hold the spool, until :meth:`hold`."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def look_at_place(self) -> None:
        """Raise :class:`SpoolError` where another directory has the name by now: replaced, or mounted over."""
        try:
            is_same = os.path.samestat(os.stat(self.directory), os.fstat(self._root))
        except OSError as error:
            raise SpoolError(f"{self.directory}: the spool cannot be opened: {error.strerror}") from error
        if not is_same:
            raise SpoolError(f"{self.directory}: another directory took the place of the spool")

    def has_stop_file(self, name: str) -> bool:
        """Whether somebody asked for a pause."""
        with self._explained():
            return fs.is_there(name, self._root)

    def first_line(self, name: str) -> str:
        """What a small file in the spool says, for people: where it cannot be read, nothing."""
        try:
            fd = os.open(name, fs.FILE, dir_fd=self._root)
        except OSError:
            return ""
        try:
            return os.read(fd, LONGEST_LINE).decode("utf-8", "replace").partition("\n")[0].strip()
        except OSError:
            return ""
        finally:
            os.close(fd)

    # -- find ------------------------------------------------------------------------------------------

    def scan(
        self,
        ignored: Callable[[str], bool],
        skip: Callable[[Skipped], None] = lambda _: None,
        enter: Callable[[str, int], None] = lambda _path, _fd: None,
    ) -> Iterator[Unit]:
        """Yield every file below the spool that is a unit; what else is there goes to ``skip``.

        ``enter`` is told of each directory before it is looked through, with a descriptor that is the scan's.
        Units may be removed while it goes on. What appears meanwhile may be yielded, or not.
        """
        self._mtimes.clear()
        directories = [""]
        below = fs.Below(self._root)
        try:
            while directories:
                path = directories.pop()
                try:
                    fd = below.directory(path)
                    if self._may_enter(fd, path, skip):
                        enter(path, fd)
                        yield from self._scan_directory(fd, path, ignored, skip, directories)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    if not path:
                        with self._explained():
                            raise
                    skip(Skipped(path, f"cannot be read: {error.strerror}", is_trouble=True))
        finally:
            below.forget()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SpoolError(f"{self.directory}: cannot be read: {error.strerror}") from error

    def _may_enter(self, fd: int, path: str, skip: Callable[[Skipped], None]) -> bool:
        found = os.fstat(fd)
        self._scanned = path
        self._mtimes[path] = found.st_mtime
        if found.st_dev != self._device and not self._mirror:
            skip(Skipped(path, "is on another file system; give it a stream of its own", is_trouble=True))
            return False
        return True

    def enter_top(self, enter: Callable[[str, int], None]) -> None:
        """Tell ``enter`` of the spool itself, as a scan would."""
        enter("", self._root)

    @staticmethod
    def _scan_directory(
        fd: int,
        path: str,
        ignored: Callable[[str], bool],
        skip: Callable[[Skipped], None],
        directories: list[str],
    ) -> Iterator[Unit]:
        prefix = f"{path}/" if path else ""
        with os.scandir(fd) as entries:
            for entry in entries:
                inner = prefix + entry.name
                if ignored(entry.name):
                    skip(Skipped(inner, "its name is ignored"))
                    continue
                try:
                    is_directory = entry.is_dir(follow_symlinks=False)
                    found = entry.stat(follow_symlinks=False) if entry.is_file(follow_symlinks=False) else None
                except FileNotFoundError:
                    continue
                except PermissionError:
                    raise  # it is the directory that lets nobody look at what is in it
                except OSError as error:
                    skip(Skipped(inner, f"cannot be looked at: {error.strerror}", is_trouble=True))
                    continue
                if found is not None:
                    yield Unit(inner, Identity.of(found))
                elif is_directory:
                    directories.append(inner)
                else:
                    skip(Skipped(inner, f"is {kind_of(entry)}"))

    def look_again(self, units: Iterable[Unit]) -> Iterator[Unit | None]:
        """Each unit as it is now; None for one that is gone."""
        for unit in units:
            identity = self.identity(unit.path)
            attempt = unit.attempt if identity == unit.identity else 1
            yield None if identity is None else unit._replace(identity=identity, attempt=attempt)

    def identity(self, path: str) -> Identity | None:
        """The identity of the regular file of that name; None where there is none."""
        try:
            parent, name = self._below.parent(path)
            found = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except OSError:
            self._below.forget()
            return None
        return Identity.of(found) if stat.S_ISREG(found.st_mode) else None

    def is_gone(self, path: str) -> bool:
        """Whether there is nothing of that name, for sure."""
        try:
            parent, name = self._below.parent(path)
            os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            self._below.forget()
            return True
        except OSError:
            self._below.forget()
        return False

    def gain(self, path: str) -> int:
        """Bytes that would be free without that file; 0 where it has other names, or is no regular one."""
        try:
            parent, name = self._below.parent(path)
            found = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except OSError:
            self._below.forget()
            return 0
        return found.st_blocks * 512 or 1 if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 else 0

    # -- read ------------------------------------------------------------------------------------------

    def below(self) -> fs.Below:
        """The spool as one thread walks it."""
        return fs.Below(self._root)

    def reader(self) -> Reader:
        """What one thread needs to open units."""
        return Reader(self._root, self._algorithm, with_md5=self._with_md5)

    # -- remove ----------------------------------------------------------------------------------------

    def remove(self, unit: Unit, record: int) -> None:
        """Remove a delivered unit's source, if it is still the very file that was sent.

        It is first renamed into the trash: what anyone puts under its name from then on is safe from us.
        """
        changed = SourceMoved("it changed after it was sent; the new version will be sent too")
        try:
            parent, name = self._below.parent(unit.path)
            fd = os.open(name, fs.FILE, dir_fd=parent)
        except OSError as error:
            self._below.forget()
            raise _cannot_open(error) from error
        try:
            # While we hold the lease nobody begins to write: renaming moves the ctime, so that from then on it
            # does not tell any more whether the content changed.
            is_leased = fs.lease(fd)
            if is_leased is False or not self._is_what_was_sent(Identity.of(os.fstat(fd)), unit.identity):
                raise changed
            trash = self._trash_directory()
            aside = captured(record, unit.path)
            fs.rename_aside(name, parent, aside, trash)
            if _is_unchanged(aside, trash, unit.identity) and (not is_leased or fs.has_lease(fd)):
                os.unlink(aside, dir_fd=trash)
            else:
                fs.rename_new(aside, trash, name, parent)
                raise changed
            if is_leased and self._keep_twin(fd, unit.identity):
                fd = -1
        except OSError as error:
            raise cannot_remove(error) from error
        finally:
            if fd >= 0:
                os.close(fd)

    def _is_what_was_sent(self, found: Identity, sent: Identity) -> bool:
        """Whether a file is the very one that was sent, or would be had we not removed another name of it."""
        if found == sent:
            return True
        twin = self._twins.get(sent[:2])
        return twin is not None and twin.sent == sent and twin.left == found and fs.has_lease(twin.fd)

    def _keep_twin(self, fd: int, sent: Identity) -> bool:
        """Keep the lease on a file that has more names: its ctime has moved, but nobody can have written.

        Until :meth:`let_go_of_twins`, which the caller owes.
        """
        found = os.fstat(fd)
        if not found.st_nlink or (len(self._twins) >= TWINS and sent[:2] not in self._twins):
            return False
        if (before := self._twins.pop(sent[:2], None)) is not None:
            os.close(before.fd)
        self._twins[sent[:2]] = _Twin(fd, sent, Identity.of(found))
        return True

    def let_go_of_twins(self) -> None:
        """The names that were to be removed together are: from now on a ctime that moved counts as a change."""
        for twin in self._twins.values():
            os.close(twin.fd)
        self._twins.clear()

    def _trash_directory(self) -> int:
        if self._trash is not None and not os.fstat(self._trash).st_nlink:
            os.close(self._trash)  # somebody has removed it
            self._trash = None
        if self._trash is None:
            self._trash = self._own(TRASH)
        return self._trash

    def _own(self, path: str) -> int:
        """A descriptor, the caller's to close, of a directory of ours, which is made when first needed."""
        return fs.open_directory(self._root, path, create=True)

    def recover(self, known: Callable[[int], tuple[str, Identity, bool] | None]) -> Iterator[tuple[str, str]]:
        """Finish what a crash left in the trash; yields path and what was done with it.

        ``known`` tells from a record's number its path, identity, and whether it was delivered. A delivered
        file is unlinked; one that changed since goes back to its name, or stays where it is if that is taken.
        """
        with self._explained():
            if self._mirror or not self._exists(TRASH):
                return
            trash = self._trash_directory()
            names = os.listdir(trash)
        for name in names:
            number = name.partition("-")[0]
            record = known(int(number)) if number.isdecimal() and len(number) < LONGEST_NUMBER else None
            if record is None or name.removesuffix(PROVEN) != captured(int(number), record[0]):
                yield (
                    f"{TRASH}/{name}",
                    "kept: the record of what was moved from where is lost; look where it belongs",
                )
            else:
                yield record[0], self._recover_one(trash, name, *record)

    def _recover_one(self, trash: int, name: str, path: str, identity: Identity, delivered: bool) -> str:
        try:
            if name.endswith(PROVEN):
                os.unlink(name, dir_fd=trash)
                return "removed: it was to be deleted"
            if delivered and _is_unchanged(name, trash, identity) and not fs.is_open_for_writing(name, trash):
                os.unlink(name, dir_fd=trash)
                return "removed: it had been delivered"
            directory, _, last = path.rpartition("/")
            fs.rename_new(name, trash, last, self._below.directory(directory, create=True))
        except OSError as error:
            return f"kept as {self.directory}/{TRASH}/{name}: {error.strerror}"
        return "put back"

    def _exists(self, path: str) -> bool:
        try:
            os.close(fs.open_directory(self._root, path))
        except FileNotFoundError:
            return False
        return True

    def prune(self, directories: Iterable[str], settle_time: float, now: float) -> set[str]:
        """Remove those of the directories that are empty, and their parents that thereby become so.

        Gives back those to look at again: a directory that was changed less than ``settle_time`` seconds
        before the scan may be about to be written in by its owner. ``now`` in seconds since the epoch.
        """
        again: set[str] = set()
        levels: defaultdict[int, set[str]] = defaultdict(set)
        for path in directories:
            levels[path.count("/")].add(path)
        for level in range(max(levels, default=-1), -1, -1):
            for path in levels.pop(level, ()):
                if self._mtimes.get(path, now) > now - settle_time:
                    again.add(path)
                elif self._prune_one(path) and (parent := path.rpartition("/")[0]):
                    levels[level - 1].add(parent)
        return again

    def forget_finished(self) -> None:
        """Forget the directories that the scan has gone through; only those that it is in can still be emptied."""
        path = self._scanned
        kept = {path} | {path[:end] for end, char in enumerate(path) if char == "/"}
        self._mtimes = {path: mtime for path, mtime in self._mtimes.items() if path in kept}

    def _prune_one(self, path: str) -> bool:
        try:
            parent, name = self._below.parent(path)
            os.rmdir(name, dir_fd=parent)
        except OSError:
            self._below.forget()
            return False
        return True

    # -- set aside ---------------------------------------------------------------------------------------

    def quarantine(self, unit: Unit, record: int, reason: str) -> None:
        """Set a unit aside, with the reason beside it, until :meth:`release`. A mirrored one stays in place.

        Raises :class:`SourceMoved` where another one, or another version, has taken its place.
        """
        if self._mirror:
            return
        try:
            aside = self._own(f"{QUARANTINE}/{record}")
        except OSError as error:
            raise cannot_remove(error) from error
        try:
            with open(fs.create(REASON, aside, 0o644), "wb") as file:
                file.write(os.fsencode(f"{unit.path}\n{reason}\n"))
            parent, name = self._below.parent(unit.path)
            fs.rename_aside(name, parent, name, aside)
            if not self._is_as_found(name, aside, unit.identity):
                with suppress(FileExistsError):  # then it stays here, as the record says
                    fs.rename_new(name, aside, name, parent)
                    raise SourceMoved("it changed before it was set aside")
        except OSError as error:
            raise cannot_remove(error) from error
        finally:
            self._leave_no_empty_place(record, aside)
            os.close(aside)

    def _leave_no_empty_place(self, record: int, aside: int) -> None:
        """Remove a place in quarantine that holds nothing but a reason."""
        with suppress(OSError):
            if set(os.listdir(aside)) <= {REASON}:
                with suppress(FileNotFoundError):
                    os.unlink(REASON, dir_fd=aside)
                os.rmdir(str(record), dir_fd=self._below.directory(QUARANTINE))

    def release(self, path: str, record: int) -> None:
        """Put a unit back from quarantine under its name; raises ``UnitError`` where that is taken."""
        if self._mirror:
            return
        directory, _, name = path.rpartition("/")
        try:
            aside = fs.open_directory(self._root, f"{QUARANTINE}/{record}")
        except OSError as error:
            raise UnitError(f"{path}: not in quarantine any more") from error
        try:
            fs.rename_new(name, aside, name, self._below.directory(directory, create=True))
            with suppress(FileNotFoundError):
                os.unlink(REASON, dir_fd=aside)
            os.rmdir(str(record), dir_fd=self._below.directory(QUARANTINE))
        except FileExistsError as error:
            raise UnitError(f"{path}: the spool holds another file of that name; move it first") from error
        except OSError as error:
            raise UnitError(f"{path}: cannot be put back: {error.strerror}") from error
        finally:
            os.close(aside)

    def delete_aside(self, path: str, record: int, identity: Identity) -> None:
        """Delete a unit that was set aside, if it is the very file; raises ``UnitError`` where it is not.

        It is first renamed into the trash, from where it goes whatever happens: never is a part of it left aside.
        """
        name = path.rpartition("/")[2]
        try:
            aside = fs.open_directory(self._root, f"{QUARANTINE}/{record}")
        except OSError as error:
            raise SourceGone("it is not in quarantine any more") from error
        try:
            if not self._is_still(name, aside, identity):
                raise SourceMoved("it changed since it was set aside")
            trash = self._trash_directory()
            proven = captured(record, path) + PROVEN
            fs.rename_aside(name, aside, proven, trash)
            fs.sync_directory(trash)
            self._delete(proven, trash)
        except OSError as error:
            raise cannot_remove(error) from error
        finally:
            os.close(aside)
        self.clear_aside(record)

    def aside(self) -> list[int]:
        """The numbers under which anything is set aside."""
        try:
            names = os.listdir(self._below.directory(QUARANTINE))
        except OSError:
            return []
        return [int(name) for name in names if name.isdecimal() and len(name) < LONGEST_NUMBER]

    def is_aside(self, path: str, record: int) -> bool:
        """Whether a unit is set aside under this number."""
        with self._explained():
            try:
                return fs.is_there(path.rpartition("/")[2], self._below.directory(f"{QUARANTINE}/{record}"))
            except (NotADirectoryError, FileNotFoundError):
                return False  # it is no directory of ours, but something of the spool's owner

    def clear_aside(self, record: int) -> None:
        """Remove what is left of the place of a unit that was set aside and is not any more."""
        with suppress(OSError):
            directory = f"{QUARANTINE}/{record}"
            with suppress(FileNotFoundError):
                os.unlink(REASON, dir_fd=self._below.directory(directory))
            os.rmdir(str(record), dir_fd=self._below.directory(QUARANTINE))

    def _is_as_found(self, name: str, dir_fd: int, identity: Identity) -> bool:
        """Whether what was just renamed is what was found."""
        return _is_unchanged(name, dir_fd, identity)

    def _is_still(self, name: str, dir_fd: int, identity: Identity) -> bool:
        """Whether what was set aside is what it was, and nobody writes to it."""
        return _is_unchanged(name, dir_fd, identity) and not fs.is_open_for_writing(name, dir_fd)

    @staticmethod
    def _delete(name: str, dir_fd: int) -> None:
        os.unlink(name, dir_fd=dir_fd)


def captured(record: int, path: str) -> str:
    """The name in the trash: its end says whether a record with that number means this file at all."""
    return f"{record}-{sha256(os.fsencode(path)).hexdigest()[:16]}"


def _is_unchanged(name: str, dir_fd: int, identity: Identity) -> bool:
    return Identity.of(os.stat(name, dir_fd=dir_fd, follow_symlinks=False)).is_same_but_for_ctime(identity)


def kind_of(entry: os.DirEntry[str]) -> str:
    """What to call something that is neither a file nor a directory."""
    try:
        return KINDS.get(stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode), "no regular file")
    except OSError:
        return "gone"


def cannot_remove(error: OSError) -> UnitError:
    """The error of a unit that cannot be taken out of the spool."""
    if isinstance(error, FileNotFoundError):
        return SourceGone("it is gone")
    return UnitError(f"cannot be taken out of the spool: {error.strerror}")


def _files_open_for_writing() -> Iterator[tuple[int, int]]:
    """(device, inode) of every file that a process whose descriptors we may see has open for writing."""
    import psutil

    for process in psutil.process_iter():
        try:
            files = process.open_files()
        except psutil.Error:
            continue
        for file in files:
            if file.mode != "r":
                try:
                    found = os.stat(file.path)
                except OSError:
                    continue
                yield Identity.of(found)[:2]
