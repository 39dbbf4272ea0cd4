"""Where the trees stand that rsync reads from."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from inotify_simple import INotify

from mistamover.transports import rsync_trees
from mistamover.transports.rsync_trees import Ground, Mark, Tree


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    directory = tmp_path / "shm"
    directory.mkdir()
    return directory


def test_it_is_private_and_gone_at_the_end(memory: Path, tmp_path: Path) -> None:
    ground = Ground(str(tmp_path), memory)
    assert Path(ground.path).parent == memory
    assert Path(ground.path).stat().st_mode & 0o077 == 0
    Tree(ground.path).directory("a/b")
    ground.close()
    ground.close()
    assert list(memory.iterdir()) == []


@pytest.mark.needs("root")  # who may write anywhere is the harder case
def test_what_is_used_is_kept_and_what_a_killed_one_left_is_removed(memory: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom mistamover.transports.rsync_trees import Ground, Tree\n"
        "ground = Ground('/nowhere', Path(sys.argv[1]))\nTree(ground.path).directory('a')\n"
        "print(ground.path, flush=True)\nsys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, memory], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    theirs = other.stdout.readline().strip()
    first = Ground(str(tmp_path), memory)
    assert Path(theirs, os.listdir(theirs)[0], "a").is_dir()
    other.send_signal(signal.SIGKILL)
    other.communicate()
    second = Ground(str(tmp_path), memory)
    assert {str(path) for path in memory.iterdir()} == {first.path, second.path}
    first.close()
    second.close()


def test_nothing_of_others_is_removed(memory: Path, tmp_path: Path) -> None:
    begin = f"mistamover-{os.geteuid()}-"
    (memory / f"{begin}link").symlink_to(tmp_path)
    (memory / f"{begin}file").touch()
    (memory / "somebody").mkdir()
    Ground(str(tmp_path), memory).close()
    assert {path.name for path in memory.iterdir()} == {f"{begin}link", f"{begin}file", "somebody"}


@pytest.mark.needs("root")
def test_what_another_user_calls_as_ours_is_not_removed(memory: Path, tmp_path: Path) -> None:
    theirs = memory / f"mistamover-{os.geteuid()}-theirs"
    theirs.mkdir()
    os.chown(theirs, 65534, 65534)
    Ground(str(tmp_path), memory).close()
    assert theirs.is_dir()


def test_where_there_is_no_such_place_the_disk_serves(tmp_path: Path) -> None:
    ground = Ground(str(tmp_path), tmp_path / "missing")
    assert ground.path == str(tmp_path)
    ground.close()
    assert tmp_path.is_dir()


@pytest.mark.parametrize("lacks", ["write", "add_watch"])
def test_a_mark_that_cannot_be_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacks: str
) -> None:
    """No room, or more watches than this user may have."""

    def none_left(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Tree if lacks == "write" else INotify, lacks, none_left)
    with pytest.raises(OSError, match="No space left"):
        Mark(str(tmp_path), "a/b")
    assert list(tmp_path.iterdir()) == []


def test_one_that_another_took_for_left_over_is_not_used(
    memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its making and its lock, another of ours may lock it, remove it, and be done."""
    opened = rsync_trees._open_directory

    def too_late(path: str | Path) -> int:
        fd = opened(path)
        os.rmdir(path)
        return fd

    monkeypatch.setattr(rsync_trees, "_open_directory", too_late)
    ground = Ground(str(tmp_path), memory)
    assert ground.path == str(tmp_path)
    ground.close()
