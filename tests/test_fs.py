"""Careful work with files: no link is followed, nothing is overwritten, writers are noticed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mistamover import fs

BLOCKS = "import os, sys; f = open(sys.argv[1], sys.argv[2]); print('open', flush=True); sys.stdin.read()"


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, fs.DIRECTORY)
    yield fd
    os.close(fd)


@pytest.fixture
def descriptors() -> Iterator[None]:
    """Fails the test if it leaves a descriptor open."""
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert set(os.listdir("/proc/self/fd")) == before


@contextmanager
def holding(path: Path, mode: str) -> Iterator[None]:
    """Another process has a file open."""
    argv = [sys.executable, "-S", "-c", BLOCKS, str(path), mode]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        yield
        process.kill()


def path_of(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}")


# -- renaming to a free name ---------------------------------------------------------------------------


def _fails_with(code: int) -> Callable[..., int]:
    def function(*_: object) -> int:
        import ctypes

        ctypes.set_errno(code)
        return -1

    return function


@pytest.fixture(params=["renameat2", "not in the C library", "EINVAL", "ENOSYS", "EOPNOTSUPP"])
def _renameat2(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way in which a system has renameat2(2), or has not."""
    if request.param == "not in the C library":
        monkeypatch.setattr(fs, "_libc_renameat2", lambda: None)
    elif request.param != "renameat2":
        code = getattr(errno, request.param)
        monkeypatch.setattr(fs, "_libc_renameat2", lambda: _fails_with(code))


def _other(path: Path) -> None:
    path.write_bytes(b"other")


TAKEN: dict[str, Callable[[Path], object]] = {
    "a file": _other,
    "a directory": lambda path: path.mkdir(),
    "a FIFO": os.mkfifo,
    "a dangling link": lambda path: path.symlink_to("nowhere"),
    "a link to a file": lambda path: path.symlink_to("precious"),
}


@pytest.mark.usefixtures("_renameat2", "descriptors")
class TestRenameNew:
    def test_a_free_name_is_taken(self, tmp_path: Path, root: int) -> None:
        (tmp_path / "from").write_bytes(b"content")
        fs.rename_new("from", root, "to", root)
        assert os.listdir(tmp_path) == ["to"]
        assert (tmp_path / "to").read_bytes() == b"content"
        assert (tmp_path / "to").stat().st_nlink == 1

    def test_between_directories(self, tmp_path: Path, root: int) -> None:
        (tmp_path / "below").mkdir()
        (tmp_path / "from").write_bytes(b"content")
        below = os.open(tmp_path / "below", fs.DIRECTORY)
        fs.rename_new("from", root, os.fsdecode(b"\xff\n"), below)
        os.close(below)
        assert os.listdir(os.fsencode(tmp_path / "below")) == [b"\xff\n"]
        assert not (tmp_path / "from").exists()

    @pytest.mark.parametrize("kind", TAKEN)
    def test_a_name_that_is_taken_stays_as_it_is(self, tmp_path: Path, root: int, kind: str) -> None:
        (tmp_path / "precious").write_bytes(b"precious")
        (tmp_path / "from").write_bytes(b"content")
        TAKEN[kind](tmp_path / "to")
        before = os.lstat(tmp_path / "to")
        with pytest.raises(FileExistsError):
            fs.rename_new("from", root, "to", root)
        after = os.lstat(tmp_path / "to")
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
        assert (tmp_path / "from").read_bytes() == b"content"
        assert (tmp_path / "precious").read_bytes() == b"precious"

    def test_a_directory_is_renamed_with_what_is_in_it(self, tmp_path: Path, root: int) -> None:
        (tmp_path / "from/below").mkdir(parents=True)
        fs.rename_new("from", root, "to", root)
        assert (tmp_path / "to/below").is_dir()
        (tmp_path / "from").mkdir()
        (tmp_path / "file").write_bytes(b"precious")
        for taken in ("to", "file"):
            with pytest.raises(FileExistsError):
                fs.rename_new("from", root, taken, root)
        assert (tmp_path / "to/below").is_dir()
        assert (tmp_path / "file").read_bytes() == b"precious"

    def test_two_directories_exchange_their_names_or_nothing_happens(self, tmp_path: Path, root: int) -> None:
        (tmp_path / "one/first").mkdir(parents=True)
        (tmp_path / "other").mkdir()
        is_done = fs.exchange("one", root, "other", root)
        assert (tmp_path / "other/first").is_dir() == is_done
        assert sorted(os.listdir(tmp_path)) == ["one", "other"]

    def test_a_link_is_renamed_itself(self, tmp_path: Path, root: int) -> None:
        (tmp_path / "from").symlink_to("precious")
        fs.rename_new("from", root, "to", root)
        assert os.readlink(tmp_path / "to") == "precious"

    def test_what_is_not_there_is_said(self, root: int) -> None:
        with pytest.raises(FileNotFoundError):
            fs.rename_new("from", root, "to", root)

    def test_a_name_that_is_too_long_is_said(self, tmp_path: Path, root: int) -> None:
        (tmp_path / "from").touch()
        with pytest.raises(OSError, match="too long"):
            fs.rename_new("from", root, "n" * 256, root)


# -- walking below a directory -------------------------------------------------------------------------


@pytest.mark.usefixtures("descriptors")
class TestBelow:
    @pytest.fixture
    def below(self, root: int) -> Iterator[fs.Below]:
        below = fs.Below(root)
        yield below
        below.forget()

    def test_it_walks(self, tmp_path: Path, root: int, below: fs.Below) -> None:
        (tmp_path / "a/b").mkdir(parents=True)
        assert below.directory("") == root
        assert path_of(below.directory("a/b")) == f"{tmp_path}/a/b"
        assert path_of(below.directory("a")) == f"{tmp_path}/a"
        fd, name = below.parent("a/b/file")
        assert (path_of(fd), name) == (f"{tmp_path}/a/b", "file")
        assert below.parent("file") == (root, "file")

    def test_it_keeps_the_last_directory(self, tmp_path: Path, below: fs.Below) -> None:
        (tmp_path / "a").mkdir()
        assert below.directory("a") == below.directory("a")
        (tmp_path / "a").rename(tmp_path / "b")
        assert path_of(below.directory("a")) == f"{tmp_path}/b"
        below.forget()
        with pytest.raises(FileNotFoundError):
            below.directory("a")

    def test_after_an_error_it_goes_on(self, tmp_path: Path, below: fs.Below) -> None:
        (tmp_path / "a").mkdir()
        below.directory("a")
        with pytest.raises(FileNotFoundError):
            below.directory("none/such")
        assert path_of(below.directory("a")) == f"{tmp_path}/a"

    @pytest.mark.parametrize("path", ["link", "link/inside", "good/link", "good/link/inside"])
    @pytest.mark.parametrize("create", [False, True])
    def test_it_follows_no_link(self, tmp_path: Path, below: fs.Below, path: str, create: bool) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (tmp_path / "good").mkdir()
        (tmp_path / "link").symlink_to(outside)
        (tmp_path / "good/link").symlink_to("../outside")
        with pytest.raises(NotADirectoryError):
            below.directory(path, create=create)
        assert os.listdir(outside) == []

    @pytest.mark.parametrize("create", [False, True])
    def test_a_file_is_no_directory(self, tmp_path: Path, below: fs.Below, create: bool) -> None:
        (tmp_path / "file").touch()
        os.mkfifo(tmp_path / "fifo")
        for path in ("file", "file/below", "fifo"):
            with pytest.raises(NotADirectoryError):
                below.directory(path, create=create)

    def test_it_makes_what_is_missing(self, tmp_path: Path, below: fs.Below) -> None:
        (tmp_path / "a").mkdir(mode=0o700)
        below.directory("a/b/c", create=True)
        below.directory("a/b/d", create=True)
        assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")} == {"a", "a/b", "a/b/c", "a/b/d"}
        assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700

    def test_a_path_may_be_longer_than_a_system_call_takes(self, below: fs.Below) -> None:
        path = "/".join(["d" * 250] * 40)
        assert len(path) > 2 * 4096
        made = os.fstat(below.directory(path, create=True))
        below.forget()
        assert os.path.samestat(os.fstat(below.directory(path)), made)

    def test_a_tree_may_be_deeper_than_the_interpreters_stack(self, tmp_path: Path, below: fs.Below) -> None:
        path = "/".join("d" * 1200)
        assert len(path.split("/")) > sys.getrecursionlimit()
        below.directory(path, create=True)
        below.forget()
        assert below.parent(f"{path}/file")[1] == "file"
        subprocess.run(["rm", "-r", str(tmp_path / "d")], check=True)  # pytest could not

    def test_a_root_that_was_renamed_stays_the_root(self, tmp_path: Path) -> None:
        (tmp_path / "root").mkdir()
        fd = os.open(tmp_path / "root", fs.DIRECTORY)
        below = fs.Below(fd)
        (tmp_path / "root").rename(tmp_path / "elsewhere")
        (tmp_path / "root").mkdir()
        below.directory("made", create=True)
        below.forget()
        os.close(fd)
        assert (tmp_path / "elsewhere/made").is_dir()
        assert os.listdir(tmp_path / "root") == []


# -- who writes ----------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A file and a descriptor to read it, in a process that a lease's end does not kill."""
    path = tmp_path / "file"
    path.write_bytes(b"content")
    fd = os.open(path, fs.FILE)
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    yield path, fd
    signal.signal(signal.SIGIO, before)
    os.close(fd)


@pytest.mark.parametrize("mode", ["r+b", "ab", "wb"])
def test_a_writer_in_another_process_is_noticed(file: tuple[Path, int], mode: str) -> None:
    path, fd = file
    with holding(path, mode):
        assert fs.is_being_written(fd) is True
    assert fs.is_being_written(fd) is False


def test_a_writer_in_this_process_is_noticed(file: tuple[Path, int]) -> None:
    path, fd = file
    with path.open("ab"):
        assert fs.is_being_written(fd) is True
    assert fs.is_being_written(fd) is False


def test_readers_are_no_writers(file: tuple[Path, int]) -> None:
    path, fd = file
    with holding(path, "rb"):
        assert fs.is_being_written(fd) is False


def test_a_writer_by_another_name_is_noticed(file: tuple[Path, int]) -> None:
    path, fd = file
    other = path.with_name("hard link")
    os.link(path, other)
    path.unlink()
    with holding(other, "ab"):
        assert fs.is_being_written(fd) is True


def test_asking_leaves_nothing_behind(file: tuple[Path, int]) -> None:
    """A lease that was kept would make every later writer wait."""
    path, fd = file
    assert fs.is_being_written(fd) is False
    os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))


@pytest.mark.needs("root")
def test_of_another_owners_file_nobody_can_say(file: tuple[Path, int]) -> None:
    path, fd = file
    os.chown(path, 12345, -1)
    try:
        os.seteuid(54321)
        assert fs.is_being_written(fd) is None
    finally:
        os.seteuid(0)
    assert fs.is_being_written(fd) is False


def test_where_there_are_no_leases_nobody_can_say() -> None:
    read, write = os.pipe()
    assert fs.is_being_written(read) is None
    os.close(read)
    os.close(write)


# -- locks and disks -----------------------------------------------------------------------------------


def test_a_lock_is_one_holders(tmp_path: Path) -> None:
    first = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    second = os.open(tmp_path / "lock", os.O_RDWR)
    assert fs.lock(first)
    assert not fs.lock(second)
    os.close(first)
    assert fs.lock(second)
    os.close(second)


def test_a_lock_goes_with_its_process(tmp_path: Path) -> None:
    program = (
        "import os, sys; from mistamover import fs\n"
        "assert fs.lock(os.open(sys.argv[1], os.O_RDWR | os.O_CREAT))\n"
        "print('locked', flush=True); sys.stdin.read()"
    )
    lock = tmp_path / "lock"
    argv = [sys.executable, "-c", program, str(lock)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        fd = os.open(lock, os.O_RDWR)
        assert not fs.lock(fd)
        process.kill()
    assert fs.lock(fd)
    os.close(fd)


def test_directories_and_file_systems_are_synced(tmp_path: Path, root: int) -> None:
    fs.sync_directory(root)
    (tmp_path / "file").touch()
    assert fs.sync_file_system(root)


def test_a_directory_that_cannot_be_synced_is_taken_at_its_word(monkeypatch: pytest.MonkeyPatch, root: int) -> None:
    codes = [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EIO, errno.ENOSPC, errno.EROFS]

    def refuse(_fd: int) -> None:
        raise OSError(codes.pop(0), "refused")

    monkeypatch.setattr(os, "fsync", refuse)
    for _ in range(3):
        fs.sync_directory(root)
    for _ in range(3):
        with pytest.raises(OSError, match="refused"):
            fs.sync_directory(root)


def test_an_error_of_the_file_system_is_told() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        fs.sync_file_system(-1)


def test_making_a_directory_that_is_there_is_no_error(tmp_path: Path, root: int) -> None:
    for _ in range(2):
        fs.make_directory("directory", root, 0o700)
    assert (tmp_path / "directory").stat().st_mode & 0o777 == 0o700
    (tmp_path / "link").symlink_to("nowhere")
    fs.make_directory("link", root)
    assert (tmp_path / "link").is_symlink()


def test_a_tree_is_removed_through_no_link_and_but_for_what_may_not_go(tmp_path: Path, root: int) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/precious").write_bytes(b"precious")
    for path in ("tree/deep/down", "tree/empty"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "tree/deep/large").write_bytes(bytes(100))
    (tmp_path / "tree/deep/down/small").write_bytes(b"1")
    (tmp_path / "tree/link").symlink_to("../outside")
    assert not fs.remove_tree("tree", root, lambda _name, _fd, found: found.st_size < 50)
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("tree/**/*"))] == [
        "tree/deep",
        "tree/deep/large",
    ]
    assert fs.remove_tree("tree", root)
    assert os.listdir(tmp_path) == ["outside"]
    assert (tmp_path / "outside/precious").read_bytes() == b"precious"


@pytest.mark.parametrize("make", [lambda path: os.link(path.parent / "victim", path), os.mkfifo, Path.touch])
def test_a_new_file_is_new_whatever_had_its_name(tmp_path: Path, root: int, make: Callable[[Path], None]) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"not ours")
    make(tmp_path / "draft")
    with open(fs.create("draft", root), "wb") as file:
        file.write(b"ours")
    assert victim.read_bytes() == b"not ours"
    assert (tmp_path / "draft").read_bytes() == b"ours"
