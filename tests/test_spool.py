"""The near side: what is found, what is read, and that nothing is removed but what was meant."""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from mistamover import fs
from mistamover.errors import Held, SourceGone, SourceMoved, SpoolError, UnitError
from mistamover.spool import QUARANTINE, TRASH, Skipped, Source, Spool
from mistamover.testing.needs import find
from mistamover.unit import OWN_NAME, Identity, Ignored, Unit

ODD = os.fsdecode(b"caf\xe9\n\xff $(touch x) %s")
NOTHING = Ignored([])
WRITES = "import sys; f = open(sys.argv[1], 'ab'); print('open', flush=True); sys.stdin.read()"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The spool's directory."""
    (tmp_path / "spool").mkdir()
    return tmp_path / "spool"


@pytest.fixture
def spool(directory: Path) -> Iterator[Spool]:
    spool = Spool(directory, mirror=False)
    spool.hold()
    yield spool
    spool.close()


@pytest.fixture
def nobody() -> Iterator[Path]:
    """A spool of a user without rights, as whom the test runs."""
    directory = Path(tempfile.mkdtemp())
    user = pwd.getpwnam("nobody").pw_uid
    os.chown(directory, user, -1)
    os.seteuid(user)
    try:
        yield directory
    finally:
        os.seteuid(0)
        shutil.rmtree(directory)


def write(path: Path, data: bytes = b"what is moved\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def found(spool: Spool, *paths: str) -> list[Unit]:
    """All units, or those named, by path."""
    units = sorted(spool.scan(NOTHING), key=lambda unit: unit.path)
    return [unit for unit in units if not paths or unit.path in paths]


def the(spool: Spool, path: str) -> Unit:
    (unit,) = found(spool, path)
    return unit


def scanned(spool: Spool, ignored: Callable[[str], bool] = NOTHING) -> tuple[set[str], dict[str, str]]:
    """The paths of the units, and what was skipped and why."""
    skipped: list[Skipped] = []
    units = [unit.path for unit in spool.scan(ignored, skipped.append)]
    assert len(set(units)) == len(units)
    reasons = {one.path: one.reason for one in skipped}
    assert len(reasons) == len(skipped)
    reasons.pop(OWN_NAME, None)
    return set(units), reasons


def trash(directory: Path) -> list[Path]:
    """What was captured and not removed."""
    return list((directory / TRASH).glob("*"))


@contextmanager
def writer(path: Path) -> Iterator[None]:
    """Another process has a file open for writing."""
    argv = [sys.executable, "-S", "-c", WRITES, str(path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        yield
        process.kill()


def rewrite(path: Path) -> None:
    """Change the content and put size and times back."""
    before = path.stat()
    _let_the_clock_go_on(path)
    path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(path: Path, data: bytes = b"a newer version") -> None:
    os.replace(write(path.parent.parent / "newer", data), path)


def _let_the_clock_go_on(path: Path) -> None:
    """The clock of a file system is coarse: a change right after another may bear the same time."""
    clock = path.parent.parent / "clock"
    while True:
        clock.write_bytes(b"")
        if clock.stat().st_ctime_ns > path.stat().st_ctime_ns:
            return


# -- scanning ------------------------------------------------------------------------------------------


def test_files_are_found_wherever_they_are(directory: Path, spool: Spool) -> None:
    paths = {"top", "a/b/c", f"{ODD}/{ODD}", "empty", "a/-rf", "n" * 255}
    for path in paths:
        write(directory / path, os.fsencode(path) if path != "empty" else b"")
    (directory / "empty directory").mkdir()
    assert scanned(spool) == (paths, {})
    for unit in found(spool):
        assert unit.identity == Identity.of((directory / unit.path).stat())
        assert (unit.staged, unit.digest, unit.proof) == ("", "", "")


def test_names_that_are_ignored_are_no_units(directory: Path, spool: Spool) -> None:
    for path in ("a", "a.tmp", ".hidden", ".git/config", "half.part/inside", "b/.c", "b/d.tmp", "b/tmp"):
        write(directory / path)
    units, skipped = scanned(spool, Ignored(["*.tmp", "*.part"]))
    assert units == {"a", "b/tmp"}
    assert skipped.keys() == {"a.tmp", ".hidden", ".git", "half.part", "b/.c", "b/d.tmp"}
    assert set(skipped.values()) == {"its name is ignored"}


def test_what_is_no_file_is_skipped_and_named(directory: Path, spool: Spool, tmp_path: Path) -> None:
    write(tmp_path / "outside" / "secret")
    write(directory / "file")
    (directory / "link to a file").symlink_to("file")
    (directory / "link to a directory").symlink_to(tmp_path / "outside")
    (directory / "dangling").symlink_to("nowhere")
    (directory / "loop").symlink_to("loop")
    os.mkfifo(directory / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(directory)  # the address of a socket may have 108 bytes only
        try:
            server.bind("socket")
        finally:
            os.chdir("/")
        units, skipped = scanned(spool)
    assert units == {"file"}
    assert skipped == {
        **dict.fromkeys(("link to a file", "link to a directory", "dangling", "loop"), "is a symbolic link"),
        "fifo": "is a FIFO",
        "socket": "is a socket",
    }


@pytest.mark.needs("root")
def test_devices_are_skipped_and_never_opened(directory: Path, spool: Spool) -> None:
    os.mknod(directory / "tape", stat.S_IFCHR | 0o600, os.makedev(9, 0))
    os.mknod(directory / "disk", stat.S_IFBLK | 0o600, os.makedev(7, 250))
    assert scanned(spool) == (set(), {"tape": "is a character device", "disk": "is a block device"})


@pytest.mark.needs("root")
def test_a_directory_that_may_not_be_read_is_skipped_and_named(nobody: Path) -> None:
    write(nobody / "open/file")
    write(nobody / "closed/file")
    write(nobody / "no entry/file")
    (nobody / "closed").chmod(0o000)
    (nobody / "no entry").chmod(0o400)
    spool = Spool(nobody, mirror=True)
    units, skipped = scanned(spool)
    spool.close()
    for name in ("closed", "no entry"):
        (nobody / name).chmod(0o700)
    assert units == {"open/file"}
    assert skipped == dict.fromkeys(("closed", "no entry"), "cannot be read: Permission denied")


def test_a_tree_deeper_than_the_interpreters_stack(directory: Path, spool: Spool) -> None:
    depth = sys.getrecursionlimit() + 10
    fd = os.open(directory, fs.DIRECTORY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", fs.DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=fd))
    os.close(fd)
    try:
        (unit,) = found(spool)
        assert unit.path == "d/" * depth + "file"
        assert spool.identity(unit.path) == unit.identity
        spool.remove(unit, 1)
        assert spool.identity(unit.path) is None
    finally:
        subprocess.run(["rm", "-rf", str(directory / "d")], check=True)  # pytest could not


def test_a_directory_swapped_with_a_link_while_we_scan_leads_nowhere(
    directory: Path, spool: Spool, tmp_path: Path
) -> None:
    write(tmp_path / "outside" / "secret")
    for number in range(20):
        write(directory / f"{number}/file")
    units: list[str] = []
    skipped: list[Skipped] = []
    for unit in spool.scan(NOTHING, skipped.append):
        units.append(unit.path)
        if len(units) == 1:
            for number in range(20):
                (directory / str(number)).rename(tmp_path / f"moved {number}")
                (directory / str(number)).symlink_to(tmp_path / "outside")
    assert not [path for path in units if "secret" in path]
    assert len(units) == 1
    assert len(skipped) >= 19


def test_what_vanishes_while_we_scan_is_no_error(directory: Path, spool: Spool) -> None:
    for number in range(50):
        write(directory / f"{number}")
        write(directory / f"directory {number}/file")
    scan = spool.scan(NOTHING)
    first = next(scan)
    for entry in directory.iterdir():
        if entry.name != OWN_NAME:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    assert list(scan) == []
    assert spool.identity(first.path) is None
    assert list(spool.look_again([first])) == [None]


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A directory that costs little to fill."""
    shared = Path("/dev/shm")
    directory = Path(tempfile.mkdtemp(dir=shared if os.access(shared, os.W_OK) else tmp_path))
    yield directory
    shutil.rmtree(directory)


def test_a_hundred_thousand_files_take_no_memory(memory: Path) -> None:
    for part in range(10):
        (memory / str(part)).mkdir()
        fd = os.open(memory / str(part), fs.DIRECTORY)
        for number in range(10_000):
            os.mknod(f"{number:05}", dir_fd=fd)
        os.close(fd)
    spool = Spool(memory, mirror=True)
    tracemalloc.start()
    try:
        assert sum(1 for _ in spool.scan(NOTHING)) == 100_000
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
        spool.close()


@pytest.mark.needs("root", "mount", "umount")
@pytest.mark.parametrize("mirror", [False, True])
def test_another_file_system_is_mirrored_and_not_moved(directory: Path, mirror: bool) -> None:
    (directory / "mounted").mkdir()
    subprocess.run([find("mount") or "", "-t", "tmpfs", "none", str(directory / "mounted")], check=True)
    try:
        write(directory / "mounted" / "file")
        spool = Spool(directory, mirror=mirror)
        units, skipped = scanned(spool)
        spool.close()
    finally:
        subprocess.run([find("umount") or "", "-l", str(directory / "mounted")], check=True)
    assert units == ({"mounted/file"} if mirror else set())
    assert set(skipped) == (set() if mirror else {"mounted"})


@pytest.mark.parametrize("what", ["missing", "a file", "a dangling link"])
def test_a_spool_that_is_no_directory_is_said(tmp_path: Path, what: str) -> None:
    if what == "a file":
        write(tmp_path / "spool")
    elif what == "a dangling link":
        (tmp_path / "spool").symlink_to("nowhere")
    with pytest.raises(SpoolError, match=f"{tmp_path}/spool: the spool cannot be opened"):
        Spool(tmp_path / "spool", mirror=False)


def test_a_stop_file_is_seen(directory: Path, spool: Spool) -> None:
    assert not spool.has_stop_file(".stop")
    (directory / ".stop").touch()
    assert spool.has_stop_file(".stop")
    assert not spool.has_stop_file("HALT")
    (directory / ".stop").unlink()
    (directory / ".stop").symlink_to("nowhere")
    assert spool.has_stop_file(".stop")


def test_what_changed_is_seen_on_a_second_look(directory: Path, spool: Spool) -> None:
    for name in "abcd":
        write(directory / name)
    before = found(spool)
    (directory / "b").write_bytes(b"longer than before")
    (directory / "c").unlink()
    (directory / "d").unlink()
    (directory / "d").symlink_to("a")
    a, b, c, d = spool.look_again(before)
    assert a == before[0]
    assert b is not None
    assert b.size == 18
    assert c is None
    assert d is None


# -- reading -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 1000])
def test_a_unit_is_read_in_pieces_and_hashed(directory: Path, spool: Spool, size: int) -> None:
    from hashlib import sha256

    data = os.urandom(size)
    write(directory / "file", data).chmod(0o4750)
    unit = the(spool, "file")
    reader = spool.reader()
    source = reader.open(unit)
    pieces = [bytes(piece) for piece in source.chunks(bytearray(100))]
    assert b"".join(pieces) == data
    assert all(len(piece) == 100 for piece in pieces[:-1])
    expected = unit._replace(digest=sha256(data).hexdigest())
    assert source.finish() == expected
    source.close()
    source.close()
    source = reader.open(unit)
    assert source.take() == (expected, data)
    assert source.mode == 0o750
    source.close()
    reader.forget()


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


CHANGES: dict[str, Callable[[Path], None]] = {
    "it grows": _append,
    "it shrinks": lambda path: os.truncate(path, 50),
    "it is emptied": lambda path: os.truncate(path, 0),
    "it is rewritten": rewrite,
    "its mode changes": lambda path: path.chmod(0o600),
}


READS: dict[str, Callable[[Source], object]] = {
    "in pieces": lambda source: [*source.chunks(bytearray(30)), source.finish()],
    "at once": lambda source: source.take(),
}


@pytest.mark.parametrize("way", READS)
@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_while_it_is_read_is_noticed(directory: Path, spool: Spool, change: str, way: str) -> None:
    path = write(directory / "file", bytes(100))
    unit = the(spool, "file")
    source = spool.reader().open(unit)
    _let_the_clock_go_on(path)
    CHANGES[change](path)
    with pytest.raises(SourceMoved):
        READS[way](source)
    source.close()


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_before_it_is_read_is_not_opened(directory: Path, spool: Spool, change: str) -> None:
    path = write(directory / "file", bytes(100))
    unit = the(spool, "file")
    _let_the_clock_go_on(path)
    CHANGES[change](path)
    with pytest.raises(SourceMoved):
        spool.reader().open(unit)


def test_what_is_gone_is_said(directory: Path, spool: Spool) -> None:
    write(directory / "a/file")
    write(directory / "b/file")
    a, b = found(spool)
    (directory / "a/file").unlink()
    shutil.rmtree(directory / "b")
    for unit in (a, b):
        with pytest.raises(SourceGone):
            spool.reader().open(unit)


def test_what_is_being_written_is_not_opened(directory: Path, spool: Spool) -> None:
    path = write(directory / "file")
    unit = the(spool, "file")
    with writer(path), pytest.raises(SourceMoved, match="open for writing"):
        spool.reader().open(unit)
    spool.reader().open(unit).close()


def test_where_there_are_no_leases_our_own_programs_are_asked(
    directory: Path, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fs, "is_being_written", lambda _fd: None)
    path = write(directory / "file")
    unit = the(spool, "file")
    reader = spool.reader()
    with writer(path), pytest.raises(SourceMoved, match="open for writing"):
        reader.open(unit)
    reader.forget()
    reader.open(unit).close()


def test_a_refused_unit_leaves_no_descriptor(directory: Path, spool: Spool) -> None:
    path = write(directory / "file")
    unit = the(spool, "file")
    _append(path)
    reader = spool.reader()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(SourceMoved):
            reader.open(unit)
    reader.forget()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_directory_that_was_replaced_is_read_anew(directory: Path, spool: Spool, tmp_path: Path) -> None:
    write(directory / "a/file", b"old")
    reader = spool.reader()
    reader.open(the(spool, "a/file")).close()
    (directory / "a").rename(tmp_path / "old")
    write(directory / "a/file", b"new")
    reader.forget()
    source = reader.open(the(spool, "a/file"))
    assert source.take()[1] == b"new"
    source.close()
    reader.forget()


# -- removing ------------------------------------------------------------------------------------------


def test_the_very_file_is_removed(directory: Path, spool: Spool) -> None:
    for name in ("a", f"{ODD}/b", "a b/c"):
        write(directory / name)
    for number, unit in enumerate(found(spool)):
        spool.remove(unit, number)
    assert found(spool) == []
    assert trash(directory) == []


def test_another_name_of_it_stays(directory: Path, spool: Spool) -> None:
    path = write(directory / "file")
    os.link(path, directory / "other")
    spool.remove(the(spool, "file"), 1)
    assert os.listdir(directory / TRASH) == []
    assert (directory / "other").read_bytes() == b"what is moved\n"


def test_a_trash_that_somebody_has_removed_is_made_anew(directory: Path, spool: Spool) -> None:
    for name in "ab":
        write(directory / name)
    spool.remove(the(spool, "a"), 1)
    (directory / TRASH).rmdir()
    spool.remove(the(spool, "b"), 2)
    assert found(spool) == []
    assert os.listdir(directory / TRASH) == []


@pytest.mark.parametrize("verb", ["remove", "quarantine"])
def test_what_takes_its_name_at_the_last_moment_is_kept_on_any_file_system(
    directory: Path, spool: Spool, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    write(directory / "file")
    unit = the(spool, "file")

    def replaced(step: Callable[..., None], *arguments: object, **more: object) -> None:
        step(*arguments, **more)
        write(directory / "new", b"newer")
        (directory / "new").replace(directory / "file")

    monkeypatch.setattr(fs, "_renameat2", lambda *_: False)  # as on NFS
    for name in ("link", "rename"):
        monkeypatch.setattr(os, name, partial(replaced, getattr(os, name)))
    spool.remove(unit, 1) if verb == "remove" else spool.quarantine(unit, 1, "a reason")
    assert (directory / "file").read_bytes() == b"newer"


def test_all_names_of_it_are_removed_together(directory: Path, spool: Spool) -> None:
    path = write(directory / "a")
    for name in ("b", "c"):
        os.link(path, directory / name)
    units = [the(spool, name) for name in "abc"]
    before = len(os.listdir("/proc/self/fd"))
    for number, unit in enumerate(units):
        _let_the_clock_go_on(path if path.exists() else directory / "c")
        spool.remove(unit, number)
    spool.let_go_of_twins()
    assert found(spool) == []
    assert len(os.listdir("/proc/self/fd")) <= before + 1, "but for the trash"


def test_when_its_names_are_not_removed_together_a_moved_ctime_is_a_change(directory: Path, spool: Spool) -> None:
    os.link(write(directory / "a"), directory / "b")
    units = [the(spool, name) for name in "ab"]
    _let_the_clock_go_on(directory / "a")
    spool.remove(units[0], 1)
    spool.let_go_of_twins()
    with pytest.raises(SourceMoved):
        spool.remove(units[1], 2)


def _begin_to_write(path: Path) -> None:
    with pytest.raises(BlockingIOError):
        os.open(path, os.O_WRONLY | os.O_NONBLOCK)


def _set_its_time(path: Path) -> None:
    os.utime(path, (1, 1))


@pytest.mark.parametrize("change", [_begin_to_write, _set_its_time, replace], ids=lambda change: change.__name__)
def test_another_name_that_changed_in_between_survives(
    directory: Path, spool: Spool, change: Callable[[Path], None]
) -> None:
    os.link(write(directory / "a"), directory / "b")
    units = [the(spool, name) for name in "ab"]
    _let_the_clock_go_on(directory / "a")
    spool.remove(units[0], 1)
    change(directory / "b")
    with pytest.raises(SourceMoved):
        spool.remove(units[1], 2)
    spool.let_go_of_twins()
    assert (directory / "b").exists()


def test_another_name_that_was_rewritten_when_the_lease_had_ended_survives(directory: Path, spool: Spool) -> None:
    """The kernel ends a lease for a writer that has waited long enough."""
    path = directory / "b"
    os.link(write(directory / "a"), path)
    units = [the(spool, name) for name in "ab"]
    _let_the_clock_go_on(directory / "a")
    spool.remove(units[0], 1)
    (twin,) = spool._twins.values()
    fcntl.fcntl(twin.fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    rewrite(path)
    content = path.read_bytes()
    with pytest.raises(SourceMoved):
        spool.remove(units[1], 2)
    assert path.read_bytes() == content


def test_without_a_lease_another_name_of_it_stays_for_now(
    directory: Path, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fs, "lease", lambda fd: None)
    os.link(write(directory / "a"), directory / "b")
    units = [the(spool, name) for name in "ab"]
    _let_the_clock_go_on(directory / "a")
    spool.remove(units[0], 1)
    with pytest.raises(SourceMoved):
        spool.remove(units[1], 2)


@pytest.mark.parametrize("change", [_append, rewrite, replace], ids=lambda change: change.__name__)
def test_what_changed_after_it_was_sent_survives(
    directory: Path, spool: Spool, change: Callable[[Path], None]
) -> None:
    path = write(directory / "file")
    unit = the(spool, "file")
    _let_the_clock_go_on(path)
    change(path)
    content = path.read_bytes()
    with pytest.raises(SourceMoved):
        spool.remove(unit, 1)
    assert path.read_bytes() == content
    assert trash(directory) == []


def test_a_writer_that_has_it_open_keeps_it(directory: Path, spool: Spool) -> None:
    path = write(directory / "file")
    unit = the(spool, "file")
    with path.open("ab") as file:
        with pytest.raises(SourceMoved):
            spool.remove(unit, 1)
        file.write(b"and more")
    assert path.read_bytes() == b"what is moved\nand more"
    assert trash(directory) == []


def _at_the_last_moment(
    monkeypatch: pytest.MonkeyPatch, before: Callable[[], object], after: Callable[[], object] = lambda: None
) -> None:
    """Do something right before a file is captured, and right after."""
    rename = fs.rename_aside

    def late(source: str, source_fd: int, target: str, target_fd: int) -> None:
        monkeypatch.undo()
        before()
        rename(source, source_fd, target, target_fd)
        after()

    monkeypatch.setattr(fs, "rename_aside", late)


def test_what_is_replaced_at_the_last_moment_is_put_back(
    directory: Path, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(directory / "file")
    unit = the(spool, "file")
    _at_the_last_moment(monkeypatch, lambda: replace(path, b"at the last moment"))
    with pytest.raises(SourceMoved):
        spool.remove(unit, 1)
    assert path.read_bytes() == b"at the last moment"
    assert trash(directory) == []


def test_what_somebody_begins_to_write_at_the_last_moment_is_put_back(
    directory: Path, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(directory / "file")
    unit = the(spool, "file")

    def begin() -> None:
        with pytest.raises(BlockingIOError):
            os.open(path, os.O_WRONLY | os.O_NONBLOCK)

    _at_the_last_moment(monkeypatch, begin)
    with pytest.raises(SourceMoved):
        spool.remove(unit, 1)
    assert path.read_bytes() == b"what is moved\n"
    os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))


def test_two_versions_at_the_last_moment_both_survive(
    directory: Path, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(directory / "file")
    unit = the(spool, "file")
    _at_the_last_moment(monkeypatch, lambda: replace(path, b"the second"), lambda: path.write_bytes(b"the third"))
    with pytest.raises(UnitError):
        spool.remove(unit, 1)
    assert path.read_bytes() == b"the third"
    assert [kept.read_bytes() for kept in trash(directory)] == [b"the second"]


@pytest.mark.parametrize("what", ["file", "directory", "directory, and another in its place"])
def test_what_somebody_else_removed_is_gone(directory: Path, spool: Spool, what: str) -> None:
    for name in ("a", "b"):
        write(directory / "in" / name)
    units = found(spool)
    spool.remove(units[0], 1)
    if what == "file":
        (directory / "in/b").unlink()
    else:
        shutil.rmtree(directory / "in")
    if what.endswith("in its place"):
        (directory / "in").mkdir()
    with pytest.raises(SourceGone):
        spool.remove(units[1], 2)
    if what.endswith("in its place"):
        write(directory / "in/c")
        spool.remove(the(spool, "in/c"), 3)
        assert os.listdir(directory / "in") == []


@pytest.mark.needs("root")
def test_what_may_not_be_removed_stays_and_is_no_loss(nobody: Path) -> None:
    write(nobody / "closed/file")
    spool = Spool(nobody, mirror=False)
    spool.hold()
    unit = the(spool, "closed/file")
    for mode in (0o500, 0o000):
        (nobody / "closed").chmod(mode)
        spool._below.forget()
        with pytest.raises(UnitError, match=r"[Pp]ermission") as caught:
            spool.remove(unit, 1)
        assert not isinstance(caught.value, SourceMoved), "it did not change and is not gone"
    (nobody / "closed").chmod(0o700)
    assert (nobody / "closed/file").exists()
    spool.close()


# -- after a crash -------------------------------------------------------------------------------------


class CrashError(BaseException):
    """The process dies here."""


@pytest.fixture
def captured(directory: Path, spool: Spool, monkeypatch: pytest.MonkeyPatch) -> Unit:
    """A unit that a crash left in the trash under its record's number."""

    def crash(*_: object, **__: object) -> None:
        raise CrashError

    write(directory / "deep/down/file")
    unit = the(spool, "deep/down/file")
    monkeypatch.setattr(os, "unlink", crash)
    with pytest.raises(CrashError):
        spool.remove(unit, 7)
    monkeypatch.undo()
    assert found(spool) == []
    return unit


def recovered(spool: Spool, unit: Unit, *, delivered: bool) -> dict[str, str]:
    return dict(spool.recover({7: (unit.path, unit.identity, delivered)}.get))


def test_what_was_delivered_is_removed_after_a_crash(directory: Path, spool: Spool, captured: Unit) -> None:
    assert list(recovered(spool, captured, delivered=True)) == [captured.path]
    assert trash(directory) == []
    assert found(spool) == []


def test_what_was_not_delivered_is_put_back(directory: Path, spool: Spool, captured: Unit) -> None:
    assert recovered(spool, captured, delivered=False) == {captured.path: "put back"}
    assert trash(directory) == []
    assert the(spool, captured.path).identity.is_same_but_for_ctime(captured.identity)


def test_into_a_directory_that_is_gone_it_is_put_back_too(directory: Path, spool: Spool, captured: Unit) -> None:
    shutil.rmtree(directory / "deep")
    assert recovered(spool, captured, delivered=False) == {captured.path: "put back"}
    assert (directory / captured.path).read_bytes() == b"what is moved\n"


@pytest.mark.parametrize("change", [_append, replace], ids=lambda change: change.__name__)
def test_what_changed_in_the_trash_is_put_back(
    directory: Path, spool: Spool, captured: Unit, change: Callable[[Path], None]
) -> None:
    """A writer may have had it open when it was captured."""
    (path,) = trash(directory)
    change(path)
    content = path.read_bytes()
    assert recovered(spool, captured, delivered=True) == {captured.path: "put back"}
    assert (directory / captured.path).read_bytes() == content


def test_what_is_still_being_written_in_the_trash_is_put_back(
    directory: Path, spool: Spool, captured: Unit
) -> None:
    with writer(trash(directory)[0]):
        assert recovered(spool, captured, delivered=True) == {captured.path: "put back"}


@pytest.mark.parametrize("delivered", [True, False])
def test_where_its_name_is_taken_both_stay(directory: Path, spool: Spool, captured: Unit, delivered: bool) -> None:
    (path,) = trash(directory)
    _append(path)
    write(directory / captured.path, b"a newer version")
    said = recovered(spool, captured, delivered=delivered)
    assert str(path) in said[captured.path]
    assert path.read_bytes() == b"what is moved\nmore"
    assert (directory / captured.path).read_bytes() == b"a newer version"


def test_where_a_link_took_its_directorys_place_it_stays(
    directory: Path, spool: Spool, captured: Unit, tmp_path: Path
) -> None:
    (tmp_path / "outside").mkdir()
    shutil.rmtree(directory / "deep")
    (directory / "deep").symlink_to(tmp_path / "outside")
    said = recovered(spool, captured, delivered=False)
    assert str(trash(directory)[0]) in said[captured.path]
    assert os.listdir(tmp_path / "outside") == []


def test_a_record_of_another_file_says_nothing_about_this_one(
    directory: Path, spool: Spool, captured: Unit
) -> None:
    """It is of a ledger that was lost: numbers began anew."""
    other = captured._replace(path="another")
    recovered(spool, other, delivered=True)
    assert trash(directory)[0].read_bytes() == b"what is moved\n"
    assert not (directory / "another").exists()


@pytest.mark.parametrize("delivered", [True, False])
def test_strange_things_in_the_trash_are_left_alone(
    directory: Path, spool: Spool, captured: Unit, delivered: bool, tmp_path: Path
) -> None:
    (path,) = trash(directory)
    path.unlink()
    secret = write(tmp_path / "secret")
    ours = directory / TRASH
    for name in ("1", "x", "-1", "\u0661", "7x", "7-", "9" * 200, path.name + "0"):
        (ours / name).touch()
    path.symlink_to(secret)
    (ours / path.name.replace("7", "1", 1)).mkdir()
    os.mkfifo(ours / path.name.replace("7", "2", 1))
    record = (captured.path, captured.identity, delivered)
    before = len(trash(directory))
    said = list(spool.recover(dict.fromkeys(range(8), record).get))
    assert len(said) == before
    assert secret.read_bytes() == b"what is moved\n"
    # Whatever it is, it is in one of two places.
    assert len(trash(directory)) + os.path.lexists(directory / captured.path) == before


def test_what_nobody_knows_is_left_alone(directory: Path, spool: Spool, captured: Unit) -> None:
    ((path, said),) = spool.recover(lambda _: None)
    assert str(directory / path) == str(trash(directory)[0])
    assert said.startswith("kept")


def test_without_a_crash_there_is_nothing_to_recover(directory: Path, spool: Spool) -> None:
    write(directory / "file")
    assert list(spool.recover(lambda _: ("file", the(spool, "file").identity, True))) == []
    assert (directory / "file").exists()


# -- emptied directories -------------------------------------------------------------------------------

LATER = 3600.0


def test_emptied_directories_are_removed_with_their_parents(directory: Path, spool: Spool) -> None:
    for path in ("a/b/c", "a/d", "full/e"):
        (directory / path).mkdir(parents=True)
    write(directory / "full/file")
    found(spool)
    assert spool.prune(["a/b/c", "a/d", "full/e"], 5.0, time.time() + LATER) == set()
    assert sorted(os.listdir(directory)) == [OWN_NAME, "full"]
    assert os.listdir(directory / "full") == ["file"]


def test_what_is_not_empty_stays(directory: Path, spool: Spool) -> None:
    for path in ("a/.hidden", "b/file.tmp", "c/d/file"):
        write(directory / path)
    found(spool)
    spool.prune(["a", "b", "c"], 0.0, time.time() + LATER)
    assert (directory / "a/.hidden").exists()
    assert (directory / "b/file.tmp").exists()
    assert (directory / "c/d/file").exists()


def test_what_was_just_made_stays_for_a_while(directory: Path, spool: Spool) -> None:
    (directory / "new").mkdir()
    (directory / "old").mkdir()
    os.utime(directory / "old", (0, 0))
    found(spool)
    assert spool.prune(["new", "old"], 60.0, time.time()) == {"new"}
    assert sorted(os.listdir(directory)) == [OWN_NAME, "new"]
    assert spool.prune({"new"}, 60.0, time.time() + LATER) == set()
    assert os.listdir(directory) == [OWN_NAME]


def test_a_directory_that_no_scan_saw_waits_for_one(directory: Path, spool: Spool) -> None:
    found(spool)
    (directory / "new").mkdir()
    assert spool.prune(["new"], 5.0, time.time() + LATER) == {"new"}
    assert (directory / "new").exists()


def test_links_and_files_are_not_pruned(directory: Path, spool: Spool, tmp_path: Path) -> None:
    (tmp_path / "outside/empty").mkdir(parents=True)
    (directory / "link").mkdir()
    write(directory / "file")
    found(spool)
    (directory / "link").rmdir()
    (directory / "link").symlink_to(tmp_path / "outside")
    spool.prune(["link", "link/empty", "file", "gone"], 0.0, time.time() + LATER)
    assert (directory / "link").is_symlink()
    assert (tmp_path / "outside/empty").is_dir()
    assert (directory / "file").exists()


# -- setting aside -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["file", f"deep/{ODD}/{ODD}", "n" * 255])
def test_a_unit_is_set_aside_and_comes_back(directory: Path, spool: Spool, path: str) -> None:
    write(directory / path)
    unit = the(spool, path)
    spool.quarantine(unit, 12, "the target\nwill not \udcff have it")
    assert found(spool) == []
    aside = directory / QUARANTINE / "12"
    name = path.rpartition("/")[2]
    assert sorted(os.listdir(aside)) == sorted([".reason", name])
    reason = (aside / ".reason").read_bytes()
    assert reason.startswith(os.fsencode(path) + b"\n")
    assert b"will not" in reason
    shutil.rmtree(directory / "deep", ignore_errors=True)
    spool.release(path, 12)
    assert the(spool, path).identity.is_same_but_for_ctime(unit.identity)
    assert os.listdir(directory / QUARANTINE) == []


def test_setting_aside_may_be_repeated_after_a_crash(directory: Path, spool: Spool) -> None:
    write(directory / "file")
    unit = the(spool, "file")
    write(directory / QUARANTINE / "12" / ".reason", b"half a rea")
    spool.quarantine(unit, 12, "a reason")
    assert (directory / QUARANTINE / "12" / ".reason").read_bytes() == b"file\na reason\n"
    with pytest.raises(SourceGone):
        spool.quarantine(unit, 12, "a reason")
    assert (directory / QUARANTINE / "12" / "file").exists()


def test_what_was_set_aside_is_not_overwritten(directory: Path, spool: Spool) -> None:
    write(directory / "file", b"the first")
    spool.quarantine(the(spool, "file"), 12, "a reason")
    write(directory / "file", b"the second")
    with pytest.raises(UnitError):
        spool.quarantine(the(spool, "file"), 12, "a reason")
    assert (directory / QUARANTINE / "12" / "file").read_bytes() == b"the first"
    assert (directory / "file").read_bytes() == b"the second"


def test_where_its_name_is_taken_it_stays_aside(directory: Path, spool: Spool) -> None:
    write(directory / "file", b"the first")
    spool.quarantine(the(spool, "file"), 12, "a reason")
    write(directory / "file", b"the second")
    with pytest.raises(UnitError, match="another file of that name"):
        spool.release("file", 12)
    assert (directory / QUARANTINE / "12" / "file").read_bytes() == b"the first"
    assert (directory / "file").read_bytes() == b"the second"
    (directory / "file").unlink()
    spool.release("file", 12)
    assert (directory / "file").read_bytes() == b"the first"


def test_releasing_what_is_not_there_is_said(directory: Path, spool: Spool) -> None:
    with pytest.raises(UnitError, match="not in quarantine"):
        spool.release("file", 12)
    (directory / QUARANTINE / "12").mkdir(parents=True)
    with pytest.raises(UnitError):
        spool.release("file", 12)
    assert os.listdir(directory) == [OWN_NAME]


def test_releasing_goes_on_after_a_crash(directory: Path, spool: Spool) -> None:
    write(directory / "file")
    spool.quarantine(the(spool, "file"), 12, "a reason")
    (directory / QUARANTINE / "12" / ".reason").unlink()
    spool.release("file", 12)
    assert (directory / "file").exists()
    assert os.listdir(directory / QUARANTINE) == []


def test_what_is_gone_is_not_set_aside(directory: Path, spool: Spool) -> None:
    write(directory / "file")
    unit = the(spool, "file")
    (directory / "file").unlink()
    with pytest.raises(SourceGone):
        spool.quarantine(unit, 12, "a reason")


@pytest.mark.needs("root", "mount", "umount")
def test_without_room_nothing_is_lost(directory: Path) -> None:
    """A full spool has no room for our own directories and reasons."""
    subprocess.run(
        [find("mount") or "", "-t", "tmpfs", "-o", "nr_inodes=20,size=64k", "none", str(directory)], check=True
    )
    try:
        spool = Spool(directory, mirror=False)
        spool.hold()
        for number in range(100):
            try:
                write(directory / str(number))
            except OSError:
                break
        unit = found(spool)[0]
        for _ in range(2):
            with pytest.raises(UnitError, match="No space"):
                spool.quarantine(unit, 1, "a reason")
            with pytest.raises(UnitError, match="No space"):
                spool.remove(unit, 1)
        assert (directory / unit.path).exists()
        spool.close()
    finally:
        subprocess.run([find("umount") or "", "-l", str(directory)], check=True)


# -- holding -------------------------------------------------------------------------------------------


def test_a_spool_has_one_holder(directory: Path, spool: Spool) -> None:
    second = Spool(directory, mirror=False)
    with pytest.raises(Held, match=str(directory)):
        second.hold()
    spool_again = Spool(directory, mirror=True)
    spool_again.hold()
    spool_again.close()
    second.close()


def test_a_spool_that_was_let_go_may_be_held(directory: Path) -> None:
    for _ in range(2):
        spool = Spool(directory, mirror=False)
        spool.hold()
        spool.close()


def test_a_spool_goes_with_its_process(directory: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from mistamover.spool import Spool\n"
        "Spool(Path(sys.argv[1]), mirror=False).hold(); print('held', flush=True); sys.stdin.read()"
    )
    argv = [sys.executable, "-c", program, str(directory)]
    spool = Spool(directory, mirror=False)
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(Held):
            spool.hold()
        process.kill()
    spool.close()
    spool = Spool(directory, mirror=False)
    spool.hold()
    spool.close()


@pytest.mark.parametrize("name", [OWN_NAME, f"{OWN_NAME}/lock"])
def test_a_link_in_our_own_place_is_not_followed(directory: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "outside").mkdir()
    (directory / name).parent.mkdir(exist_ok=True)
    (directory / name).symlink_to(tmp_path / "outside" / ("" if name == OWN_NAME else "made"))
    spool = Spool(directory, mirror=False)
    with pytest.raises(SpoolError):
        spool.hold()
    spool.close()
    assert os.listdir(tmp_path / "outside") == []


@pytest.mark.needs("root")
def test_a_spool_that_may_not_be_written_is_said(nobody: Path) -> None:
    nobody.chmod(0o555)
    spool = Spool(nobody, mirror=False)
    with pytest.raises(SpoolError, match="transfer_mode = mirror"):
        spool.hold()
    spool.close()
    nobody.chmod(0o755)


def _everything(directory: Path) -> dict[str, tuple[int, ...]]:
    paths: Iterable[Path] = [directory, *directory.rglob("*")]
    stats = {str(path): path.lstat() for path in paths}
    return {path: (*Identity.of(found), found.st_mode, found.st_nlink) for path, found in stats.items()}


def test_a_mirrored_spool_is_only_read(directory: Path) -> None:
    for path in ("a", "deep/down/b", ".hidden", f"{OWN_NAME}/trash/7"):
        write(directory / path)
    (directory / "emptied").mkdir()
    (directory / "link").symlink_to("a")
    before = _everything(directory)
    spool = Spool(directory, mirror=True)
    spool.hold()
    units = found(spool)
    assert {unit.path for unit in units} == {"a", "deep/down/b"}
    reader = spool.reader()
    for unit in units:
        source = reader.open(unit)
        source.take()
        source.close()
        spool.quarantine(unit, 3, "a reason")
        spool.release(unit.path, 3)
    list(spool.look_again(units))
    assert list(spool.recover(lambda _: ("a", units[0].identity, True))) == []
    spool.has_stop_file(".stop")
    reader.forget()
    spool.close()
    assert _everything(directory) == before
