"""What is on disk before what: a power cut at any instant would find a complete copy. Seen by strace."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.faulty_server import FaultyServer
from tests.faults.oracle import LossError
from tests.faults.rig import Rig, strace

pytestmark = pytest.mark.needs("strace")

CALLS = "fsync,fdatasync,syncfs,rename,renameat,renameat2,link,linkat,unlink,unlinkat"
_LINE = re.compile(r"^\d+ +(?P<time>[\d.]+) (?P<call>\w+)\((?P<arguments>.*)\) += 0")


@dataclass(frozen=True)
class Step:
    """A system call that went well."""

    time: float
    call: str
    arguments: str

    @property
    def paths(self) -> list[str]:
        """Files that it is about: descriptors as strace shows them, each with the name that follows it."""
        fds = re.findall(r'(?:\d+|AT_FDCWD)<([^>]*)>(?:, "([^"]*)")?', self.arguments)
        plain = re.findall(r'(?:^|, )"([^"]*)"', self.arguments) if not fds else []
        return [f"{directory}/{name}" if name else directory for directory, name in fds] + plain


def steps(log: Path) -> Iterator[Step]:
    for line in log.read_text(errors="replace").splitlines():
        if found := _LINE.match(line):
            yield Step(float(found["time"]), found["call"], found["arguments"])


def first(of: list[Step], what: str, after: float, *calls: str, path: str = "", below: str = "") -> Step:
    """The first such call after a time; raises where there is none."""
    for step in of:
        fits = any(one == path or (below and one.startswith(below)) for one in step.paths)
        if step.time > after and step.call in calls and (fits or step.call == "syncfs"):
            return step
    raise LossError(f"never happened, or too early: {what}")


def check_order(rig: Rig, near: list[Step], far: list[Step]) -> None:
    """Staged bytes, names, the record, the removal: each is on disk before the next begins."""
    published = {
        name: step
        for step in far
        if step.call in ("renameat2", "link", "rename", "renameat")
        for name in rig.oracle.owed
        if str(rig.target / name) in step.paths
    }
    assert set(published) == set(rig.oracle.owed)
    for name, publish in published.items():
        staged = next(path for path in publish.paths if path.startswith(f"{rig.staging}/"))
        synced = first(far, f"{name}: its bytes are put on disk", 0, "fsync", "syncfs", path=staged)
        if synced.time > publish.time:
            raise LossError(f"{name}: it was published before its bytes were on disk")
        directory = str((rig.target / name).parent)
        named = first(far, f"{name}: its name is put on disk", publish.time, "fsync", path=directory)
        record = first(near, "the record is put on disk", named.time, "fdatasync", "fsync", below=str(rig.state))
        removed = removal(near, rig, name).time
        commits = [step.time for step in near if is_commit(step, rig) and step.time < removed]
        if max(commits, default=0) < named.time or record.time > removed:
            raise LossError(f"{name}: its source was removed before the record of it was on disk")


def is_commit(step: Step, rig: Rig) -> bool:
    return step.call in ("fdatasync", "fsync") and str(rig.oracle.ledger) in step.paths


def removal(near: list[Step], rig: Rig, name: str) -> Step:
    trash = str(rig.spool / ".mistamover/trash")
    captured = first(
        near, f"{name}: taken out of the spool", 0, "renameat2", "renameat", path=str(rig.spool / name)
    )
    return first(near, f"{name}: removed", captured.time, "unlinkat", below=f"{trash}/")


@pytest.mark.parametrize("count", [3, 40], ids=["few", "many"])
def test_here(local: Rig, count: int) -> None:
    check_here(local, count)


def check_here(rig: Rig, count: int) -> None:
    rig.run_clean()
    fill(rig, count)
    log = rig.base / "strace.log"
    run = rig.run(under=[*strace(CALLS, log=log), "-ttt"])
    assert run.code == 0, run.text
    seen = list(steps(log))
    check_order(rig, seen, seen)


@pytest.mark.needs("sshd", "ssh", "ssh-keygen")
def test_far_away(tmp_path: Path, faulty: FaultyServer) -> None:
    check_far_away(Rig(tmp_path / "rig", faulty.sshd), faulty)


def check_far_away(rig: Rig, faulty: FaultyServer) -> None:
    fill(rig, 3)
    faulty.arm(CALLS, options=("-ttt",))
    log = rig.base / "strace.log"
    run = rig.run(under=[*strace(CALLS, log=log), "-ttt"])
    assert run.code == 0, run.text
    check_order(rig, list(steps(log)), list(steps(faulty.log)))


def fill(rig: Rig, count: int) -> None:
    for number in range(count):
        rig.oracle.put(f"{number % 3}/file-{number}", b"%d" % number * 100)
