"""A spool, a target directory and a transport between them, and all that can happen to files on the way."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import socket
import stat
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import ClassVar

from mistamover.config import load
from mistamover.directories import DirectorySpool
from mistamover.errors import (
    SourceGone,
    SourceMoved,
    UnitError,
)
from mistamover.options import Settings
from mistamover.spool import Spool
from mistamover.testing.needs import find
from mistamover.transports import transport_class
from mistamover.transports.contract import Transport
from mistamover.unit import OWN_NAME, Directory, Ignored, Outcome, Unit, named

STREAM = "images"
BIG = 700_001
"""Bytes of a file that goes in several writes."""
HUGE = 12 * 2**20
"""Bytes of a file that no buffer on the way swallows whole."""
Tick = Callable[[int], None]
Tree = dict[str, bytes | str]


def noise(size: int, seed: object = 0) -> bytes:
    """Bytes that no compression and no luck can make from others."""
    return random.Random(f"{seed}/{size}").randbytes(size)


def tree(directory: Path) -> Tree:
    """All that is below a directory but for what is ours: contents of files, and what else there is."""
    found: Tree = {}
    for top, directories, names, fd in os.fwalk(directory):
        directories[:] = [name for name in directories if name != OWN_NAME]
        for name in (*directories, *names):
            found[os.path.relpath(os.path.join(top, name), directory)] = _what_is(name, fd)
    return found


def _what_is(name: str, dir_fd: int) -> bytes | str:
    mode = os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode
    if stat.S_ISLNK(mode):
        return f"a link to {os.readlink(name, dir_fd=dir_fd)}"
    if not stat.S_ISREG(mode):
        return f"kind {stat.S_IFMT(mode):o}"
    with open(os.open(name, os.O_RDONLY, dir_fd=dir_fd), "rb") as file:
        return file.read()


def files(directory: Path) -> dict[str, bytes]:
    """The regular files below a directory and their contents."""
    return {path: content for path, content in tree(directory).items() if isinstance(content, bytes)}


def by_path(outcomes: Iterable[Outcome]) -> dict[str, Outcome]:
    """The outcomes; each unit has one."""
    found: dict[str, Outcome] = {}
    for outcome in outcomes:
        assert outcome.unit.path not in found, f"two outcomes for {outcome.unit.path!r}"
        assert outcome.error is None or isinstance(outcome.error, UnitError)
        found[outcome.unit.path] = outcome
    return found


def errors(outcomes: Iterable[Outcome]) -> dict[str, type[UnitError]]:
    """The kinds of error of those units that have one."""
    return {path: type(error) for path, (_, error) in by_path(outcomes).items() if error is not None}


def good(outcomes: Iterable[Outcome]) -> list[Unit]:
    """The units of outcomes that must all be good."""
    found = by_path(outcomes)
    assert not [outcome for outcome in found.values() if outcome.error is not None]
    return [outcome.unit for outcome in found.values()]


class Rig:
    """A spool, a target directory, and streams from the one to the other."""

    def __init__(
        self,
        base: Path,
        options: Mapping[str, Mapping[str, str]],
        kind: type[Transport] | None = None,
        module: str = "",
        staged_name: Callable[[Unit], str] = lambda unit: unit.staged,
    ) -> None:
        """Make the directories.

        ``module`` comes before every target directory: what a daemon calls the root of its file system.
        ``staged_name`` is where in the staging directory a unit is staged.
        """
        self.base = base
        self._module = module
        self.staged_name = staged_name
        self.spool = base / "spool"
        self.target = base / "target"
        self.outside = base / "outside"
        self._options = options
        self._kind = kind
        self._opened = ExitStack()
        for directory in (self.spool, self.target, self.outside):
            directory.mkdir()

    def settings(self, name: str = STREAM, log_in: Mapping[str, str] | None = None, **outgoing: str) -> Settings:
        """The settings of a stream with these options besides its own; ``log_in`` is for its protocol."""
        far = {"target_dir": str(self.target), **self._options.get("outgoing", {}), **outgoing}
        protocol = far["transfer_protocol"]
        sections = {
            "data_stream": {"name": name, "directory": str(self.spool)},
            "outgoing": {**far, "target_dir": self._module + far["target_dir"]},
        }
        if protocol in self._options or log_in:
            sections[protocol] = {**self._options.get(protocol, {}), **(log_in or {})}
        lines = [
            line
            for title, options in sections.items()
            for line in (f"[{title}]", *map(" = ".join, options.items()))
        ]
        file = self.base / f"{name}.ini"
        file.touch(mode=0o600)
        file.write_text("\n".join(lines))
        return load(file, None, {"HOME": str(self.base)})

    def transport(
        self,
        tick: Tick = lambda _: None,
        *,
        name: str = STREAM,
        log_in: Mapping[str, str] | None = None,
        **outgoing: str,
    ) -> Transport:
        """A transport that is closed at the end of the test, and not yet open."""
        settings = self.settings(name, log_in, **outgoing)
        far = settings.outgoing
        spool = Spool(
            self.spool,
            mirror=True,
            algorithm=far.checksum,
            with_md5=far.target_uses_arrival_monitor,
        )
        self._opened.callback(spool.close)
        kind = self._kind or transport_class(settings.outgoing.transfer_protocol)
        transport = kind(settings, spool, tick)
        self._opened.callback(transport.close)
        return transport

    def open(
        self,
        tick: Tick = lambda _: None,
        *,
        name: str = STREAM,
        log_in: Mapping[str, str] | None = None,
        **outgoing: str,
    ) -> Transport:
        """An open transport."""
        return self.transport(tick, name=name, log_in=log_in, **outgoing).open()

    def close(self) -> None:
        self._opened.close()

    def put(self, path: str, data: bytes = b"what is moved\n") -> Path:
        """Put a file into the spool."""
        return write(self.spool / path, data)

    def crowd(self, number: int) -> None:
        """Put many small files into the spool: some transports treat them as a group."""
        for count in range(number):
            self.put(f"crowd/{count}", noise(count * 17, "crowd"))

    def units(self, transport: Transport, *paths: str) -> list[Unit]:
        """What is in the spool, with staged names: all, or those named, in the order of their paths."""
        spool = transport.spool
        found = sorted(spool.scan(Ignored(())), key=lambda unit: unit.path)
        wanted = [unit for unit in found if not paths or unit.path in paths]
        assert wanted
        return named(wanted, f"{transport.tag}5eed", 0)

    def directory(self, transport: Transport, name: str, number: int = 0) -> Directory:
        """A directory at the top of the spool as a unit, with staged names of its ``number``."""
        with closing(DirectorySpool(self.spool, mirror=True)) as spool:
            unit = next(unit for unit in spool.scan(Ignored(())) if unit.path == name)
            (unit,) = named([unit], f"{transport.tag}5eed", number)
            found = spool.look(unit)
        files = [file._replace(staged=f"{unit.staged}{count:06x}") for count, file in enumerate(found.files)]
        return found._replace(files=files)

    def staged(self, unit: Unit, name: str = STREAM) -> Path:
        """Where a staged file is."""
        place = self.target / OWN_NAME / name
        return place / self.staged_name(unit)

    def all_staged(self, name: str = STREAM) -> set[str]:
        """All files in the staging directory."""
        return set(files(self.target / OWN_NAME / name))


def write(path: Path, data: bytes) -> Path:
    """Write a file, and the directories that it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    return path


def prove(transport: Transport, units: list[Unit]) -> list[Unit]:
    """Send and verify units with which nothing is wrong."""
    return good(transport.verify(good(transport.send(units))))


def place(transport: Transport, tree: Directory) -> Directory:
    """Send and verify the files of a directory with which nothing is wrong, and put them in their places."""
    return tree._replace(files=good(transport.place(tree.unit, prove(transport, list(tree.files)))))


def deliver(transport: Transport, units: list[Unit]) -> dict[str, Outcome]:
    """All three verbs, as a lane says them; the last outcome of each unit."""
    found: list[Outcome] = []
    for verb in (transport.send, transport.verify, transport.publish):
        outcomes = list(verb(units))
        assert sorted(unit.path for unit, _ in outcomes) == sorted(unit.path for unit in units)
        found += [outcome for outcome in outcomes if outcome.error is not None]
        units = [unit for unit, error in outcomes if error is None]
    return by_path([*found, *map(Outcome, units)])


def failed(delivered: Mapping[str, Outcome]) -> dict[str, type[UnitError]]:
    return errors(delivered.values())


def flip(path: Path, offset: int) -> None:
    """Flip one bit of a file that keeps its size and its times, as a failing disk does."""
    times = path.stat()
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def make_hole(path: Path) -> None:
    """What a lost write leaves: zeros in the middle."""
    with path.open("r+b") as file:
        file.seek(128 * 1024)
        file.write(bytes(32 * 1024))


class Spoilt:
    """Units with which something happens between finding and sending them."""

    all: ClassVar[dict[str, type[UnitError]]] = {
        "gone": SourceGone,
        "grew": SourceMoved,
        "shrank": SourceMoved,
        "rewritten, times put back": SourceMoved,
        "replaced": SourceMoved,
        "a FIFO now": SourceMoved,
        "a link now": SourceMoved,
        "a link to the same bytes now": SourceMoved,
        "a directory now": SourceMoved,
        "a socket now": SourceMoved,
        "open for writing": SourceMoved,
        "its directory gone": SourceGone,
        "its directory a link now": SourceMoved,
        "its directory a file now": SourceMoved,
    }

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._stack = ExitStack()
        self._secret = write(rig.outside / "secret", b"secret")

    def spoil(self) -> ExitStack:
        """Do it; the end of the block closes what is held open."""
        for size in ("small", "big"):
            for kind in self.all:
                self._spoil(kind, self._rig.spool / f"{size} {kind}" / "file")
        return self._stack

    def _spoil(self, kind: str, path: Path) -> None:
        if kind == "grew":
            append(path)
        elif kind == "shrank":
            os.truncate(path, path.stat().st_size - 1)
        elif kind == "rewritten, times put back":
            flip(path, 3)
        elif kind == "replaced":
            os.replace(write(self._rig.outside / "new", path.read_bytes()), path)
        elif kind == "open for writing":
            self._stack.callback(os.close, os.open(path, os.O_WRONLY))
        elif kind.startswith("its directory"):
            self._take_away(kind, path.parent)
        else:
            self._take_place(kind, path)

    def _take_away(self, kind: str, directory: Path) -> None:
        aside = self._rig.outside / directory.name
        directory.rename(aside)
        if kind.endswith("a link now"):
            directory.symlink_to(aside)
        elif kind.endswith("a file now"):
            directory.write_bytes(b"a file")

    def _take_place(self, kind: str, path: Path) -> None:
        data = path.read_bytes()
        path.unlink()
        if kind == "a FIFO now":
            os.mkfifo(path)
        elif kind == "a link now":
            path.symlink_to(self._secret)
        elif kind == "a link to the same bytes now":
            path.symlink_to(write(self._rig.outside / "same" / path.parent.name, data))
        elif kind == "a directory now":
            path.mkdir()
        elif kind == "a socket now":
            here = self._stack.enter_context(socket.socket(socket.AF_UNIX))
            # Its name may have 108 bytes; by way of a directory descriptor it always does.
            fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            here.bind(f"/proc/self/fd/{fd}/{path.name}")
            os.close(fd)


class Taken:
    """Units whose names are taken at the target, by all that can take a name."""

    links = frozenset({"dangling link", "link to a file outside", "link to the same bytes", "link to a directory"})

    def __init__(self, rig: Rig, *, links: bool = True) -> None:
        """Take the names; by links too that can be seen only where the far side shows ``links``."""
        target, outside = rig.target, rig.outside
        self.kinds: dict[str, Callable[[Path], object]] = {
            "same size": lambda path: write(path, noise(1000, "other")),
            "same content": lambda path: write(path, noise(1000, "same content")),
            "longer": lambda path: write(path, noise(1001)),
            "empty": lambda path: write(path, b""),
            "big": lambda path: write(path, noise(BIG, "big")[:-1] + b"."),
            "directory": lambda path: write(path / "inside", b"inside"),
            "empty directory": lambda path: path.mkdir(),
            "FIFO": os.mkfifo,
            "dangling link": lambda path: path.symlink_to(outside / "made through a link"),
            "link to a file outside": lambda path: path.symlink_to(outside / "precious"),
            "link to the same bytes": lambda path: path.symlink_to(outside / "same"),
            "link to a directory": lambda path: path.symlink_to(outside / "directory"),
        }
        if not links:
            del self.kinds["dangling link"], self.kinds["link to the same bytes"]
        write(outside / "precious", b"precious")
        write(outside / "same", noise(1000, "link to the same bytes"))
        (outside / "directory").mkdir()
        for name, take in self.kinds.items():
            rig.put(name, noise(BIG if name == "big" else 1000, name))
            rig.put(f"{name}, its neighbour")
            take(target / name)
        self.before = tree(target)
        self.outside = tree(outside)


def put_far_down(top: Path, path: str) -> None:
    """Write a file whose path no single system call takes."""
    fd = os.open(top, os.O_RDONLY)
    for part in path.split("/"):
        os.mkdir(part, dir_fd=fd)
        fd = _step(fd, part)
    with open(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=fd), "wb") as file:
        file.write(b"far down")
    os.close(fd)


def far_down_is(top: Path, path: str, data: bytes) -> bool:
    fd = os.open(top, os.O_RDONLY)
    for part in path.split("/"):
        fd = _step(fd, part)
    with open(os.open("file", os.O_RDONLY, dir_fd=fd), "rb") as file:
        os.close(fd)
        return file.read() == data


def _step(fd: int, part: str) -> int:
    below = os.open(part, os.O_RDONLY, dir_fd=fd)
    os.close(fd)
    return below


@contextmanager
def small_disk(path: Path, option: str) -> Iterator[None]:
    """A file system of its own at ``path``."""
    subprocess.run([find("mount") or "", "-t", "tmpfs", "-o", option, "none", str(path)], check=True)
    try:
        yield
    finally:
        # Lazily: a test that failed may have left it open.
        subprocess.run([find("umount") or "", "-l", str(path)], check=True)


def remount(path: Path, option: str) -> None:
    """Change a file system of :func:`small_disk`."""
    subprocess.run([find("mount") or "", "-o", f"remount,{option}", str(path)], check=True)


class watching:  # noqa: N801 - reads as the statement it is
    """Reads a file over and over while the block runs; gives the digests of what it saw."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: set[str] = set()
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._ends.is_set():
            try:
                self._seen.add(hashlib.sha256(self._path.read_bytes()).hexdigest())
            except OSError as error:
                self._seen.add(errno.errorcode[error.errno or 0])

    def __enter__(self) -> set[str]:
        self._thread.start()
        return self._seen

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()
