"""Archives: a directory as one file, made beside the ledger and never in place of the source.

The same directory gives the same bytes each time: entries in the order of their paths, nobody's user and group, the
times of the files in UTC. So an archive that was delivered before a crash is known again.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from mistamover import digest, foreign, fs
from mistamover.directories import DirectorySpool, of_directory, spool_of
from mistamover.errors import NoRoomHere, SourceMoved, SpoolError, UnitError, UnitRefused
from mistamover.options import Settings
from mistamover.spool import Reader, Source, Spool
from mistamover.unit import OWN_NAME, Directory, Folder, Identity, Unit

if TYPE_CHECKING:
    from tarfile import TarInfo
    from zipfile import ZipInfo

FOLDER_MODE = stat.S_IFDIR | 0o755
OVERHEAD = 4096
"""Bytes of an archive for each entry, at most, besides those of the file; long paths need a few more."""

Tick = Callable[[int], None]


def place_of(settings: Settings) -> Path:
    """The directory in which the stream's archives are made."""
    if (work_dir := settings.outgoing.work_dir) is not None:
        return work_dir / OWN_NAME / settings.name
    return settings.global_.state_dir / settings.name / "packages"


def prepare_place(settings: Settings) -> None:
    """Make the place of archives, and remove what a crash has left in it. By who holds the stream.

    In ``work_dir`` others may write too: no link below it is followed.
    """
    if settings.outgoing.package == "none":
        return
    place = place_of(settings)
    top = settings.outgoing.work_dir or place.parent
    try:
        top.mkdir(parents=True, exist_ok=True)
        with _directory(top) as opened:
            _clear(opened, place.relative_to(top))
    except OSError as error:
        raise SpoolError(
            f"{place}: no place to make archives in: {error.strerror}; see [outgoing] work_dir"
        ) from error


@contextmanager
def _directory(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _clear(top: int, place: Path) -> None:
    """Have an empty directory ``place`` below the open directory ``top``, for us alone.

    Raises ``PermissionError`` where somebody else has made it, or what it lies in, and could put archives there.
    """
    below = fs.Below(top)
    try:
        parent = str(place.parent) if place.parent.name else ""
        opened = below.directory(parent, create=bool(parent))
        if parent:
            _require_ours(opened)
        fs.make_directory(place.name, opened, 0o700)
        fd = below.directory(str(place))
        if parent:
            _require_ours(fd)
        for left in os.listdir(fd):
            os.unlink(left, dir_fd=fd)
    finally:
        below.forget()


def _require_ours(directory: int) -> None:
    if not foreign.is_ours(os.fstat(directory)):
        raise PermissionError(errno.EPERM, f"its {OWN_NAME} is somebody else's, or everybody may write there")


def readable(settings: Settings) -> Spool:
    """What lanes send from: the spool, or the place of the archives that are sent instead."""
    if settings.outgoing.package == "none":
        return spool_of(settings, mirror=True, with_md5=settings.outgoing.target_uses_arrival_monitor)
    return Spool(place_of(settings), mirror=True, algorithm=settings.outgoing.checksum)


@contextmanager
def packaged(settings: Settings, unit: Unit, tick: Tick) -> Iterator[Unit]:
    """Make the archive of a directory: a unit in :func:`readable`, gone at the end of the block.

    Raises :class:`SourceMoved` where the directory is not, or not any more, what was found.
    """
    kind = settings.outgoing.package
    archive = place_of(settings) / f"{unit.path}.{kind}"
    if len(os.fsencode(archive.name)) > fs.LONGEST_NAME:
        raise UnitRefused(f"its name is too long for that of an archive, .{kind} included")
    with closing(spool_of(settings, mirror=True)) as spool:
        assert isinstance(spool, DirectorySpool)  # noqa: S101 - packages are of directories
        found = spool.look(unit)
        try:
            _make(archive, kind, found, spool.reader(), tick)
            if spool.identity(unit.path) != unit.identity:
                raise SourceMoved("something in it changed while it was packaged")
            yield unit._replace(path=archive.name, identity=Identity.of(archive.lstat()))
        finally:
            with suppress(FileNotFoundError):
                archive.unlink()


def _make(archive: Path, kind: str, found: Directory, reader: Reader, tick: Tick) -> None:
    """Write an archive; raises ``UnitError``."""
    needed = found.unit.size + OVERHEAD * (len(found.files) + len(found.folders))
    room = os.statvfs(archive.parent)
    if room.f_bavail * room.f_frsize < needed:
        raise _no_room(archive)
    try:
        with open(os.open(archive, fs.CREATE_NEW, 0o666), "wb") as file:
            (_tar if kind == "tar" else _zip)(file, found, reader, tick)
        os.utime(archive, ns=(found.unit.identity.mtime_ns, found.unit.identity.mtime_ns))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_room(archive) from error
        raise NoRoomHere(f"{archive.parent}: the archive cannot be written: {error.strerror}") from error
    finally:
        reader.forget()


def _no_room(archive: Path) -> NoRoomHere:
    return NoRoomHere(f"{archive.parent}: no room for the archive; make room there, or see [outgoing] work_dir")


def _entries(found: Directory) -> list[Folder | Unit]:
    """All that is in a directory, in the order of the bytes of the paths; each directory before what is in it."""
    return sorted([*found.folders, *found.files], key=lambda entry: os.fsencode(entry.path))


class _Reading:
    """A file of the directory as the archivers read files; one that shrinks is an error."""

    def __init__(self, source: Source, tick: Tick) -> None:
        self._source = source
        self._left = source.unit.size
        self._tick = tick

    def read(self, size: int = digest.CHUNK) -> bytes:
        try:
            data = os.read(self._source.fd, min(size, self._left))
        except OSError as error:
            raise UnitError(f"{self._source.unit.path}: cannot be read: {error.strerror}") from error
        if not data and self._left:
            raise SourceMoved("a file in it shrank while it was read")
        self._left -= len(data)
        self._tick(0)
        return data


@contextmanager
def _opened(unit: Unit, reader: Reader) -> Iterator[Source]:
    """A file of the directory; at the end of the block it has to be what it was."""
    try:
        source = reader.open(unit)
    except UnitError as error:
        raise of_directory(unit, error) from error
    try:
        yield source
        source.finish()
    finally:
        source.close()


def _tar(file: IO[bytes], found: Directory, reader: Reader, tick: Tick) -> None:
    """In the format of POSIX.1-2001 (pax), which knows names of any bytes, and exact times."""
    import tarfile  # here and below: few streams make archives, and it takes a while

    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for entry in _entries(found):
            if isinstance(entry, Folder):
                info = _tar_info(entry.path, entry.mtime_ns)
                info.type, info.mode = tarfile.DIRTYPE, stat.S_IMODE(FOLDER_MODE)
                archive.addfile(info)
                continue
            with _opened(entry, reader) as source:
                info = _tar_info(entry.path, entry.identity.mtime_ns)
                info.mode, info.size = source.mode, entry.size
                archive.addfile(info, _Reading(source, tick))


def _tar_info(path: str, mtime_ns: int) -> TarInfo:
    from tarfile import TarInfo

    info = TarInfo(path)
    seconds, rest = divmod(mtime_ns, 10**9)
    info.mtime = seconds
    if rest and seconds >= 0:
        info.pax_headers = {"mtime": f"{seconds}.{rest:09}"}
    return info


def _zip(file: IO[bytes], found: Directory, reader: Reader, tick: Tick) -> None:
    """Compressed; with large files as Zip64."""
    import zipfile

    with zipfile.ZipFile(file, "w") as archive:
        for entry in _entries(found):
            if isinstance(entry, Folder):
                archive.writestr(_zip_info(f"{entry.path}/", entry.mtime_ns, FOLDER_MODE), b"")
                continue
            with _opened(entry, reader) as source:
                info = _zip_info(entry.path, entry.identity.mtime_ns, stat.S_IFREG | source.mode)
                info.compress_type, info.file_size = zipfile.ZIP_DEFLATED, entry.size
                with archive.open(info, "w") as into:
                    shutil.copyfileobj(_Reading(source, tick), into, digest.CHUNK)


def _zip_info(path: str, mtime_ns: int, mode: int) -> ZipInfo:
    from zipfile import ZipInfo

    try:
        path.encode()
    except UnicodeEncodeError:
        raise UnitRefused("zip cannot hold a name that is no UTF-8; rename it, or set package = tar") from None
    seconds = mtime_ns // 10**9
    earliest, latest = 315532800, 4354819198  # 1980 and 2107: what the format can say, in steps of two seconds
    info = ZipInfo(path, time.gmtime(min(max(seconds, earliest), latest))[:6])
    info.create_system, info.external_attr = 3, mode << 16
    if 0 <= seconds < 2**31:
        # "Extended timestamp" (APPNOTE 4.5.2, 0x5455): else programs take the time above for a local one.
        info.extra = struct.pack("<HHBl", 0x5455, 5, 1, seconds)
    return info
