"""The benchmark's word: a move that did not do its job has no time."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from benchmarks import data
from benchmarks.bench import Result, page, table
from benchmarks.data import FileSet
from benchmarks.rig import Run, run

FILES = FileSet("tiny", 3, 10)


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    data.make(FILES, tmp_path / "spool")
    return tmp_path / "spool"


def test_a_set_is_the_same_each_time(spool: Path, tmp_path: Path) -> None:
    data.make(FILES, tmp_path / "again")
    assert data.manifest(spool) == data.manifest(tmp_path / "again")
    assert [size for size, _ in data.manifest(spool).values()] == [10, 10, 10]


@pytest.mark.parametrize(
    ("fault", "finding"),
    [
        (lambda spool, target: None, None),
        (lambda spool, target: (target / "000/0/000001.dat").unlink(), "1 of 3 files did not arrive"),
        (lambda spool, target: (target / "000/0/000001.dat").write_bytes(b"x" * 10), "other bytes"),
        (lambda spool, target: (target / "half").touch(), "never sent"),
        (lambda spool, target: (spool / "kept").touch(), "1 files still at the source"),
    ],
)
def test_a_move_is_looked_at(spool: Path, tmp_path: Path, fault: object, finding: str | None) -> None:
    expected = data.manifest(spool)
    target = tmp_path / "target"
    shutil.move(spool, target)
    spool.mkdir()
    assert callable(fault)
    fault(spool, target)
    wrong = data.what_is_wrong(expected, spool, target, emptied=True)
    assert wrong is None if finding is None else finding in (wrong or "")


def test_a_command_that_fails_says_why(tmp_path: Path) -> None:
    one = run(["sh", "-c", "echo no such host >&2; exit 7"], dict(os.environ), tmp_path / "output")
    assert one.failed == "exit 7 | no such host"


def test_a_failed_run_leaves_no_median() -> None:
    good, bad = Run(1.0, 10.0), Run(0.1, 10.0, "exit 1")
    ours = Result("sftp", "small", "mistamover", [good, bad, good])
    peer = Result("sftp", "small", "lftp", [good, good, Run(4.0, 10.0)])
    assert ours.median is None
    assert peer.median == 1.0
    assert table([ours, peer]).splitlines()[1].split() == ["5,000", "x", "10", "KiB", "FAILED", "1.00", "s", "-"]


def test_the_page_holds_a_table_for_each_course_and_the_machine() -> None:
    ours = Result("ftp", "small", "mistamover", [Run(1.0, 10.0)])
    text = page([ours, Result("ftp", "small", "lftp", [Run(2.0, 10.0)])], None, 1)
    lines = text.splitlines()
    assert lines[lines.index("ftp") + 1] == "---"
    rules = [line for line in lines if re.fullmatch("=+( =+)+", line)]
    assert len(set(rules)) == 1
    assert len(rules) == 3
    head, first = lines[lines.index(rules[0]) + 1], lines[lines.index(rules[0]) + 3]
    columns = [(found.start(), found.end()) for found in re.finditer("=+", rules[0])]
    cells = [[line[start:end].strip() for start, end in columns] for line in (head, first)]
    assert cells == [
        ["\\", "mistamover", "lftp", "ours ÷ lftp"],
        ["5,000 x 10 KiB", "1.00 s", "2.00 s", "0.50 ≤ 1.80"],
    ]
    assert "- kernel: " in text


def test_a_ratio_stands_beside_its_goal() -> None:
    def row(seconds: float) -> str:
        ours = Result("sftp", "small", "mistamover", [Run(seconds, 10.0)])
        return table([ours, Result("sftp", "small", "lftp", [Run(2.0, 10.0)])])

    assert row(1.0).endswith("0.50 ≤ 0.60")
    assert row(1.5).endswith("0.75 > 0.60 MISSED")
