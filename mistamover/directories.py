"""The near side of a stream whose units are directories: each directory at the top of the spool is one.

What is in it is settled, sent, removed and set aside together. All of it belongs to the unit: files whose names
begin with a dot, empty directories, the times of directories.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from typing import NamedTuple

from mistamover import digest, fs
from mistamover.errors import SourceGone, SourceMoved, UnitError
from mistamover.ini import shown
from mistamover.options import Settings
from mistamover.spool import KINDS, PROVEN, TRASH, Skipped, Spool, cannot_remove, captured, kind_of
from mistamover.unit import Content, Directory, Folder, Identity, Unit

_END = 2**63
_WRITTEN_IN = "somebody wrote in it while it was removed; look where what is left belongs"
_CHANGED = "it changed after it was sent; the new version will be sent too"


def spool_of(settings: Settings, *, mirror: bool, with_md5: bool = False) -> Spool:
    """The spool of a stream, by what its units are; ``mirror`` only reads."""
    kind = DirectorySpool if settings.data_stream.transfer_unit == "directory" else Spool
    directory, algorithm = settings.data_stream.directory, settings.outgoing.checksum
    return kind(directory, mirror=mirror, algorithm=algorithm, with_md5=with_md5)


def is_whole(settings: Settings) -> bool:
    """Whether directories are units, and are sent as they are."""
    return settings.data_stream.transfer_unit == "directory" and settings.outgoing.package == "none"


def manifest(contents: Iterable[Content]) -> str:
    """A line for each file, as sha256sum(1) and its like write and check them.

    Paths begin with the name of the directory; the files are in the order of the bytes of their paths.
    """
    return "".join(map(_line, sorted(contents, key=lambda content: os.fsencode(content.path))))


def _line(content: Content) -> str:
    escaped = content.path.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return f"{'' if escaped == content.path else chr(92)}{content.digest}  {escaped}\n"


def digest_of(contents: Iterable[Content], algorithm: str) -> str:
    """The digest of a directory: that of its manifest."""
    return digest.of_bytes(algorithm, os.fsencode(manifest(contents)))


class _Census(NamedTuple):
    """What a look through a directory comes to."""

    identity: Identity
    """Its device; a sum over everything in it in place of the inode; all bytes; the latest times."""
    has_files: bool
    obstacle: str
    """Why it is not, or not yet, a unit; empty where it is."""


class DirectorySpool(Spool):
    """A spool of directories."""

    # -- find ------------------------------------------------------------------------------------------

    def scan(
        self,
        ignored: Callable[[str], bool],
        skip: Callable[[Skipped], None] = lambda _: None,
        enter: Callable[[str, int], None] = lambda _path, _fd: None,
    ) -> Iterator[Unit]:
        """Yield every directory at the top that is a unit; what else is there goes to ``skip``."""
        enter("", self._root)
        with self._explained(), os.scandir(self._root) as entries:
            for entry in entries:
                if ignored(entry.name):
                    skip(Skipped(entry.name, "its name is ignored"))
                elif entry.is_dir(follow_symlinks=False):
                    yield from self._scan_unit(entry.name, ignored, skip, enter)
                else:
                    skip(self._no_directory(entry))

    @staticmethod
    def _no_directory(entry: os.DirEntry[str]) -> Skipped:
        if entry.is_file(follow_symlinks=False):
            remedy = "put it into one, or add its name to [data_stream] ignore"
            return Skipped(entry.name, f"is a file, and units are directories; {remedy}", is_trouble=True)
        return Skipped(entry.name, f"is {kind_of(entry)}")

    def _scan_unit(
        self,
        name: str,
        ignored: Callable[[str], bool],
        skip: Callable[[Skipped], None],
        enter: Callable[[str, int], None],
    ) -> Iterator[Unit]:
        try:
            census = self._take_census(self._root, name, ignored, enter)
        except (FileNotFoundError, NotADirectoryError):
            return  # it, or something in it, goes away just now
        except OSError as error:
            skip(Skipped(name, f"cannot be read: {error.strerror}", is_trouble=True))
            return
        if census.obstacle:
            skip(Skipped(name, census.obstacle, is_trouble=True))
        elif census.has_files:
            yield Unit(name, census.identity)
        else:
            skip(Skipped(name, "holds no file yet"))

    def _take_census(
        self,
        dir_fd: int,
        name: str,
        ignored: Callable[[str], bool] = lambda _: False,
        enter: Callable[[str, int], None] = lambda _path, _fd: None,
    ) -> _Census:
        """Look at everything in the directory ``name``; what it is called, and where it is, makes no difference."""
        total = size = 0
        mtime = ctime = -1
        has_files, obstacle = False, ""
        for path, found in fs.walk(dir_fd, name, enter):
            below = path[len(name) + 1 :]
            identity = Identity.of(found)
            # Renaming moves the directory's own ctime, which is to tell of nothing else.
            total += _weight(
                below, stat.S_IFMT(found.st_mode), identity if below else identity._replace(ctime_ns=0)
            )
            mtime, ctime = max(mtime, identity.mtime_ns), max(ctime, identity.ctime_ns)
            if stat.S_ISREG(found.st_mode):
                has_files, size = True, size + found.st_size
            obstacle = obstacle or self._obstacle(below, found, ignored)
        return _Census(Identity(self._device, total % _END, size, mtime, ctime), has_files, obstacle)

    def _obstacle(self, below: str, found: os.stat_result, ignored: Callable[[str], bool]) -> str:
        """Why a directory cannot be taken as it is, with this in it."""
        name = below.rpartition("/")[2]
        if found.st_dev != self._device and not self._mirror:
            return f"{_inside(below)} is on another file system; give it a stream of its own"
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
            kind = KINDS.get(stat.S_IFMT(found.st_mode), "no regular file")
            return f"{_inside(below)} is {kind}, which is never sent, and a directory is sent whole or not at all"
        if name and name[0] != "." and ignored(name):
            return f"{_inside(below)} has a name that is ignored: it is waited for until that is gone"
        return ""

    def look(self, unit: Unit) -> Directory:
        """All that is in a directory that was found; raises :class:`SourceMoved` where it is not that any more."""
        files: list[Unit] = []
        folders: list[Folder] = []
        try:
            for path, found in fs.walk(self._root, unit.path):
                identity = Identity.of(found)
                if stat.S_ISDIR(found.st_mode):
                    folders.append(Folder(path, identity.mtime_ns))
                else:
                    files.append(Unit(path, identity, is_update=unit.is_update))
        except OSError as error:
            raise self._gone_or_moved(unit.path, error) from error
        if self._identity(unit.path) != unit.identity:
            raise SourceMoved("something in it changed since it was found")
        files.sort(key=lambda file: file.path)
        return Directory(unit, files, folders)

    def identity(self, path: str) -> Identity | None:
        """The identity of the directory of that name; None where there is none, or nobody can say."""
        try:
            return self._identity(path)
        except UnitError:
            return None

    def _identity(self, name: str) -> Identity:
        try:
            return self._take_census(self._root, name).identity
        except OSError as error:
            raise self._gone_or_moved(name, error) from error

    def _gone_or_moved(self, name: str, error: OSError) -> UnitError:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return UnitError(f"cannot be read: {error.strerror}")
        try:
            found = os.stat(name, dir_fd=self._root, follow_symlinks=False)
        except FileNotFoundError:
            return SourceGone("it is gone")
        if stat.S_ISDIR(found.st_mode):
            return SourceMoved("something in it is gone since it was found")
        return SourceMoved("something else took its place")

    # -- remove ----------------------------------------------------------------------------------------

    def remove(self, unit: Unit, record: int) -> None:
        """Remove a delivered directory, if everything in it is still what was sent.

        It is first renamed into the trash, and there proven; only then anything is unlinked.
        """
        if self._identity(unit.path) != unit.identity:
            raise SourceMoved(_CHANGED)
        self._refuse_what_is_closed(unit.path)
        try:
            trash = self._trash_directory()
            aside = captured(record, unit.path)
            fs.rename_new(unit.path, self._root, aside, trash)
            if not self._is_as_sent(aside, trash, unit.identity):
                fs.rename_new(aside, trash, unit.path, self._root)
                raise SourceMoved(_CHANGED)
            proven = _note_proven(aside, trash)
            if not _remove_proven(proven, trash, unit.identity):
                raise UnitError(self._kept(proven, _WRITTEN_IN))
        except OSError as error:
            raise cannot_remove(error) from error

    def _refuse_what_is_closed(self, name: str) -> None:
        """Find the directories that we may not remove anything from, before anything is removed."""
        below = fs.Below(self._root)
        try:
            for path, found in fs.walk(self._root, name):
                if stat.S_ISDIR(found.st_mode) and not os.access(
                    ".", os.W_OK | os.X_OK, dir_fd=below.directory(path)
                ):
                    raise UnitError(f"cannot be removed: {_inside(path[len(name) + 1 :])} is not ours to write in")
        except OSError as error:
            raise cannot_remove(error) from error
        finally:
            below.forget()

    def _is_as_sent(self, name: str, dir_fd: int, sent: Identity) -> bool:
        """Whether a directory that may have been renamed is what was sent, and nobody has a file in it open."""
        below = fs.Below(dir_fd)
        try:
            for path, found in fs.walk(dir_fd, name):
                parent, last = below.parent(path)
                if stat.S_ISREG(found.st_mode) and fs.is_open_for_writing(last, parent):
                    return False
            return self._take_census(dir_fd, name).identity.is_same_but_for_ctime(sent)
        except FileNotFoundError:
            return False
        finally:
            below.forget()

    def _is_as_found(self, name: str, dir_fd: int, identity: Identity) -> bool:
        return self._take_census(dir_fd, name).identity.is_same_but_for_ctime(identity)

    def _is_still(self, name: str, dir_fd: int, identity: Identity) -> bool:
        return self._is_as_sent(name, dir_fd, identity)

    @staticmethod
    def _delete(name: str, dir_fd: int) -> None:
        fs.remove_tree(name, dir_fd)

    def gain(self, path: str) -> int:
        """Bytes that would be free without that directory, or file."""
        try:
            found = [found for _, found in fs.walk(self._root, path)]
        except NotADirectoryError:
            return super().gain(path)
        except OSError:
            return 0
        return sum(one.st_blocks * 512 for one in found if one.st_nlink == 1 and stat.S_ISREG(one.st_mode))

    def _recover_one(self, trash: int, name: str, path: str, identity: Identity, delivered: bool) -> str:
        try:
            if not stat.S_ISDIR(os.stat(name, dir_fd=trash, follow_symlinks=False).st_mode):
                return super()._recover_one(trash, name, path, identity, delivered)
            if delivered and not name.endswith(PROVEN) and self._is_as_sent(name, trash, identity):
                name = _note_proven(name, trash)
            if name.endswith(PROVEN):
                # Some of it may be gone: it must not come back under its name, and be taken for all of it.
                if not _remove_proven(name, trash, identity):
                    return self._kept(name, _WRITTEN_IN)
                return "removed: it had been delivered" if delivered else "removed: it was to be deleted"
            fs.rename_new(name, trash, path, self._root)
        except OSError as error:
            return self._kept(name, error.strerror)
        return "put back"

    def _kept(self, name: str, reason: str | None) -> str:
        return f"kept as {self.directory}/{TRASH}/{name}: {reason}"


def of_directory(file: Unit, error: UnitError) -> UnitError:
    """The error of a directory, one file of which cannot be delivered."""
    kind = SourceMoved if isinstance(error, SourceGone) else type(error)  # the directory is not gone
    return kind(f"{shown(file.path)}: {error}")


def _weight(below: str, kind: int, identity: Identity) -> int:
    """What one entry adds to the sum over a directory: any change to it makes another number."""
    text = f"{kind}:{':'.join(map(str, identity))}:{below}"
    return int.from_bytes(blake2b(os.fsencode(text), digest_size=8).digest(), "big")


def _inside(below: str) -> str:
    return shown(below) if below else "it"


def _note_proven(name: str, trash: int) -> str:
    """From here on a directory is removed whatever happens; the name says so, on disk. Gives the new name."""
    fs.rename_new(name, trash, name + PROVEN, trash)
    fs.sync_directory(trash)
    return name + PROVEN


def _remove_proven(name: str, trash: int, sent: Identity) -> bool:
    """Unlink everything but what somebody puts or writes after all who was in it; gives whether it is gone.

    That has a later ctime, however old it looks; so has a file of which we unlink another name.
    """
    unlinked: set[tuple[int, ...]] = set()

    def may_go(file: str, dir_fd: int, found: os.stat_result) -> bool:
        identity = Identity.of(found)
        is_late = identity.ctime_ns > sent.ctime_ns and identity[:2] not in unlinked
        if identity.mtime_ns > sent.mtime_ns or is_late or fs.is_open_for_writing(file, dir_fd):
            return False
        if found.st_nlink > 1:
            unlinked.add(identity[:2])
        return True

    try:
        return fs.remove_tree(name, trash, may_go)
    except FileNotFoundError:
        return False  # somebody else removes something in it, too
