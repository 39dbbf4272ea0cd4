"""SIGKILL at each system call on the way of whole directories, then a run that nobody disturbs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mistamover.testing.rig import Tree, tree, write
from tests.faults.oracle import OWN, LossError, Oracle
from tests.faults.rig import Options, Rig, strace, was_killed
from tests.faults.test_kill import kill_everywhere, sweep
from tests.rsyncd import Rsyncd
from tests.sshd import Sshd

pytestmark = pytest.mark.needs("strace")

WHOLE = {"transfer_unit": "directory"}
MOVE: Options = {"data_stream": WHOLE}
MIRROR: Options = {"data_stream": WHOLE, "outgoing": {"transfer_mode": "mirror"}}
FIRST = {"a": b"a", "sub/b": b"b" * 3000, "sub/deep/c": b"c"}
SECOND = {"a": b"2nd a", "sub/deep": b"a file now", "new": b"new"}


@dataclass
class Whole(Oracle):
    """Knows the versions of the directory ``one``: each is there as a whole, or not at all."""

    trees: list[Tree] = field(default_factory=list)
    shows_halves: bool = False
    """Whether the target shows a directory while it is filled, with a marker at the end."""

    def note(self) -> None:
        self.trees.append(tree(self.spool / "one"))

    def check(self) -> None:
        """Raise where a half shows, or the latest version is complete nowhere."""
        here, there = self.spool / "one", self.target / "one"
        shown = tree(there) if there.exists() else None
        is_complete = not self.shows_halves or (self.target / "one.done").exists()
        if shown is not None and is_complete and shown not in self.trees:
            raise LossError(f"the target shows {sorted(shown)}")
        places = [here, *(self.spool / OWN / "trash").glob("*")]
        if shown != self.trees[-1] and self.trees[-1] not in map(tree, places):
            raise LossError("the latest version is complete nowhere")

    def check_delivered(self) -> None:
        """Raise unless all is delivered and recorded, and nothing of it is left anywhere else."""
        self.check()
        assert tree(self.target / "one") == self.trees[-1]
        assert {entry.path for entry in self.records("delivered", "removed")} == {"one"}
        assert (self.spool / "one").exists() == self.mirror
        trash = self.spool / OWN / "trash"
        assert not trash.exists() or os.listdir(trash) == []
        left = (self.target / OWN / "faults").rglob("*")
        assert [path for path in left if path.is_file()] == []


def oracle(rig: Rig) -> Whole:
    assert isinstance(rig.oracle, Whole)
    return rig.oracle


def fill(rig: Rig) -> None:
    rig.oracle = Whole(rig.spool, rig.target, rig.oracle.ledger)
    rig.write(MOVE)
    for path, data in FIRST.items():
        write(rig.spool / "one" / path, data)
    (rig.spool / "one/nothing").mkdir()
    oracle(rig).note()


def second_version(rig: Rig) -> None:
    fill(rig)
    rig.write(MIRROR)
    rig.run_clean()
    shutil.rmtree(rig.spool / "one/sub/deep")
    for path, data in SECOND.items():
        write(rig.spool / "one" / path, data)
    oracle(rig).note()


def twice_killed(rig: Rig) -> None:
    """An earlier run was killed while it removed the source."""
    fill(rig)
    assert was_killed(rig.run(under=strace("unlinkat", "signal=SIGKILL:when=2")))
    assert list((rig.spool / OWN / "trash").glob("*-proven"))


def by_rsync(rig: Rig) -> None:
    fill(rig)
    oracle(rig).shows_halves = True


@pytest.mark.parametrize(
    ("call", "numbers"),
    sweep(
        ("mkdirat", (14,)),
        ("renameat2", (2,)),
        ("utimensat", (4,)),
        ("fsync", (12,)),
        ("unlinkat", (3,)),
        ("fdatasync", (9,)),
    ),
)
def test_local(tmp_path: Path, call: str, numbers: tuple[int, ...]) -> None:
    kill_everywhere(tmp_path, call, numbers, fill)


@pytest.mark.parametrize("numbers", sweep(((4,),)))
def test_recovery_itself(tmp_path: Path, numbers: tuple[int, ...]) -> None:
    kill_everywhere(tmp_path, "unlinkat", numbers, twice_killed)


@pytest.mark.parametrize(("call", "numbers"), sweep(("renameat2", (1,)), ("unlinkat", (3,))))
def test_mirror(tmp_path: Path, call: str, numbers: tuple[int, ...]) -> None:
    kill_everywhere(tmp_path, call, numbers, second_version)


@pytest.mark.needs("sshd", "ssh", "ssh-keygen")
@pytest.mark.parametrize(("prepare", "numbers"), sweep((fill, (23,)), (second_version, (40,))))
def test_sftp(tmp_path: Path, sshd: Sshd, prepare: Callable[[Rig], None], numbers: tuple[int, ...]) -> None:
    """Each request, or a few of them, leaves us by a writev."""
    kill_everywhere(tmp_path, "writev", numbers, prepare, server=sshd)


@pytest.mark.needs("rsync", "setpriv")
@pytest.mark.parametrize("numbers", sweep(((6,),)))
def test_rsync(tmp_path: Path, rsyncd: Rsyncd, numbers: tuple[int, ...]) -> None:
    """Each run of the program is waited for by its descriptor."""
    kill_everywhere(tmp_path, "pidfd_open", numbers, by_rsync, server=rsyncd)
