"""What the standard library lacks for careful work with files: all of it below a directory held open.

Paths are walked part by part from a directory descriptor and no symbolic link is followed on the way, so
that nobody who renames directories under our hands leads us out of the root (openat(2), O_NOFOLLOW).
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import stat
from collections import deque
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Callable, Iterator
    from pathlib import Path

LONGEST_NAME = 255
"""In bytes, on every file system that we know of."""
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""O_NONBLOCK: a FIFO that was put in a file's place must not make us wait for its writer."""
CREATE_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2
_NOT_SUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}


def may_open(wanted: int) -> int:
    """How many files this process may have open: ``wanted`` where the kernel gives us as many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return allowed


class Below:
    """A directory held open, and the last directory below it that was walked to.

    Not for use by two threads at once: each takes its own.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._path = ""
        self._fd = root

    def parent(self, path: str) -> tuple[int, str]:
        """The descriptor of the directory that holds ``path``, and the last part of it."""
        directory, _, name = path.rpartition("/")
        return self.directory(directory), name

    def directory(self, path: str, *, create: bool = False) -> int:
        """The descriptor of the directory ``path``, good until the next call; ``""`` is the root itself."""
        if path != self._path or create:
            self.forget()
            self._fd = open_directory(self._root, path, create=create)
            self._path = path
        return self._fd

    def forget(self) -> None:
        """Let go of the directory walked to: it may have been renamed or removed since."""
        if self._fd != self._root:
            os.close(self._fd)
        self._fd, self._path = self._root, ""


def open_directory(root: int, path: str, *, create: bool = False) -> int:
    """Open the directory ``path`` below ``root``; with ``create``, make what is missing of it."""
    if not path:
        return root
    fd = root
    try:
        for part in path.split("/"):
            if create:
                make_directory(part, fd)
            below = os.open(part, DIRECTORY, dir_fd=fd)
            if fd != root:
                os.close(fd)
            fd = below
    except OSError:
        if fd != root:
            os.close(fd)
        raise
    return fd


def make_directory(name: str, dir_fd: int, mode: int = 0o777) -> None:
    """Make a directory unless something of that name is there."""
    try:
        os.mkdir(name, mode, dir_fd=dir_fd)
    except FileExistsError:
        return
    os.fsync(dir_fd)


def create(name: str, dir_fd: int, mode: int = 0o666) -> int:
    """Open a new file of this name for writing; what had the name is unlinked, and never written into.

    It may be what a crash has left, or somebody's FIFO, or another name of a file that is not ours.
    """
    try:
        return os.open(name, CREATE_NEW, mode, dir_fd=dir_fd)
    except FileExistsError:
        os.unlink(name, dir_fd=dir_fd)
        return os.open(name, CREATE_NEW, mode, dir_fd=dir_fd)


def rename_new(source: str, source_fd: int, target: str, target_fd: int) -> None:
    """Rename a file or directory to a name that must be free; raises ``FileExistsError`` where it is not.

    renameat2(2) with RENAME_NOREPLACE; where the file system does not know it, link and unlink.
    """
    if _renameat2(source, source_fd, target, target_fd, _RENAME_NOREPLACE):
        return
    if stat.S_ISDIR(os.stat(source, dir_fd=source_fd, follow_symlinks=False).st_mode):
        _rename_directory(source, source_fd, target, target_fd)
        return
    os.link(source, target, src_dir_fd=source_fd, dst_dir_fd=target_fd, follow_symlinks=False)
    os.unlink(source, dir_fd=source_fd)


def rename_aside(source: str, source_fd: int, target: str, target_fd: int) -> None:
    """The same to a name in a directory in which nobody but we make names: always in one step.

    With a link and an unlink, what somebody else gives the old name in between would be unlinked.
    """
    if _renameat2(source, source_fd, target, target_fd, _RENAME_NOREPLACE):
        return
    try:
        os.stat(target, dir_fd=target_fd, follow_symlinks=False)
    except FileNotFoundError:
        os.rename(source, target, src_dir_fd=source_fd, dst_dir_fd=target_fd)
    else:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), source, None, target)


def _rename_directory(source: str, source_fd: int, target: str, target_fd: int) -> None:
    """rename(2) of a directory replaces nothing but an empty directory, which costs nobody anything."""
    try:
        os.rename(source, target, src_dir_fd=source_fd, dst_dir_fd=target_fd)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.ENOTDIR):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), source, None, target) from error
        raise


def exchange(one: str, one_fd: int, other: str, other_fd: int) -> bool:
    """Give two things each other's name in one step (RENAME_EXCHANGE); False where the file system cannot."""
    return _renameat2(one, one_fd, other, other_fd, _RENAME_EXCHANGE)


def _renameat2(source: str, source_fd: int, target: str, target_fd: int, flags: int) -> bool:
    import ctypes

    if (function := _libc_renameat2()) is None:
        return False
    if function(source_fd, os.fsencode(source), target_fd, os.fsencode(target), flags) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NOT_SUPPORTED:
        return False
    raise OSError(code, os.strerror(code), source, None, target)


@lru_cache
def _libc() -> ctypes.CDLL:
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


@lru_cache
def _libc_renameat2() -> Callable[[int, bytes, int, bytes, int], int] | None:
    import ctypes

    function: ctypes._NamedFuncPointer | None = getattr(_libc(), "renameat2", None)
    if function is None:
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    return function


def is_there(name: str, dir_fd: int) -> bool:
    """Whether anything stands under this name, a link that leads nowhere included."""
    try:
        os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def is_being_written(fd: int) -> bool | None:
    """Whether any process of this host has the file of ``fd`` open for writing; None where nobody can say."""
    if leased := lease(fd):
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return None if leased is None else not leased


def is_open_for_writing(name: str, dir_fd: int) -> bool:
    """Whether any process of this host is known to have the file open for writing."""
    fd = os.open(name, FILE, dir_fd=dir_fd)
    try:
        return bool(is_being_written(fd))
    finally:
        os.close(fd)


def lease(fd: int) -> bool | None:
    """Have the kernel hold up whoever opens the file of ``fd`` for writing, until ``fd`` is closed.

    A read lease (fcntl(2), F_SETLEASE), refused (False) while there is a writer; None where there are none: only
    the file's owner and root may ask. The caller's process must ignore SIGIO, which a writer that arrives causes.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def has_lease(fd: int) -> bool:
    """Whether nobody has tried to write since :func:`lease`."""
    return fcntl.fcntl(fd, fcntl.F_GETLEASE) == fcntl.F_RDLCK


def walk(
    root: int, top: str, enter: Callable[[str, int], None] = lambda _path, _fd: None
) -> Iterator[tuple[str, os.stat_result]]:
    """Everything from the directory ``top`` below ``root`` on, itself first, each directory before what is in it.

    No link is followed. ``enter`` is told of each directory, with a descriptor that is the walk's. Raises
    ``OSError`` where a directory cannot be read, or is gone by the time it is its turn.
    """
    below = Below(root)
    directories = deque([top])
    try:
        while directories:
            path = directories.popleft()
            fd = below.directory(path)
            enter(path, fd)
            yield path, os.fstat(fd)
            with os.scandir(fd) as entries:
                for entry in entries:
                    inner = f"{path}/{entry.name}"
                    if entry.is_dir(follow_symlinks=False):
                        directories.append(inner)
                    else:
                        yield inner, entry.stat(follow_symlinks=False)
    finally:
        below.forget()


def remove_tree(
    name: str, dir_fd: int, may_go: Callable[[str, int, os.stat_result], bool] = lambda _name, _fd, _found: True
) -> bool:
    """Remove a directory and what is in it, but for files that may not go; gives whether it is gone.

    No link is followed, and what is mounted in it is left alone. ``may_go`` is asked just before, by the file's
    name, the descriptor of its directory, and what was found there.
    """
    while _remove_some(name, dir_fd, may_go):
        # A file system may pass over entries of a directory from which others are removed meanwhile.
        try:
            os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        except FileNotFoundError:
            return True
    return False


def _remove_some(name: str, dir_fd: int, may_go: Callable[[str, int, os.stat_result], bool]) -> int:
    """Go once through a directory and remove what may go; gives how much that was."""
    directories: list[str] = []
    below = Below(dir_fd)
    device = os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_dev
    removed = 0
    try:
        for path, found in walk(dir_fd, name):
            parent, last = below.parent(path)
            if found.st_dev == device and stat.S_ISDIR(found.st_mode):
                directories.append(path)
            elif found.st_dev == device and may_go(last, parent, found):
                os.unlink(last, dir_fd=parent)
                removed += 1
        for path in reversed(directories):
            below.forget()
            parent, last = below.parent(path)
            removed += _remove_empty(last, parent)
    finally:
        below.forget()
    return removed


def _remove_empty(name: str, dir_fd: int) -> bool:
    try:
        os.rmdir(name, dir_fd=dir_fd)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY):
            raise
        return False
    return True


def sync_directory(fd: int) -> None:
    """Put the names in a directory on disk; file systems that cannot are taken at their word."""
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise


def sync_file_system(fd: int) -> bool:
    """Put all of the file system that ``fd`` is on, on disk (syncfs(2)); False where the system cannot.

    Raises ``OSError`` where anything was not written, since Linux 5.8.
    """
    import ctypes

    if (function := getattr(_libc(), "syncfs", None)) is None:
        return False
    if function(fd) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return True


def is_locked(path: Path) -> bool:
    """Whether any process has the lock that goes with a file; raises ``OSError`` where we may not look."""
    try:
        fd = os.open(path, FILE)
    except FileNotFoundError:
        return False
    try:
        return not lock(fd, shared=True)
    finally:
        os.close(fd)


def lock(fd: int, *, shared: bool = False) -> bool:
    """Take the lock (flock(2)) that goes with the open file ``fd``; False where another process has it.

    Several may have it ``shared`` at the same time, and then nobody can have it alone.
    """
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
