"""Each call on our directories fails once, the first, the second and so on: all is explained, nothing is lost."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from tests.faults import test_kill_directories
from tests.faults.rig import NAME, Rig, strace
from tests.faults.test_kill import MANY, fill, second_version, sweep

pytestmark = pytest.mark.needs("strace")

SPOOL = (
    "spool",
    "spool/a",
    "spool/a/b",
    "spool/.mistamover",
    "spool/.mistamover/trash",
    "spool/one",
    "spool/one/sub",
)
FILE = ("spool/two",)
TARGET = ("target", "target/a", "target/a/b", "target/.mistamover", f"target/.mistamover/{NAME}")


def fail_everywhere(
    base: Path, places: tuple[str, ...], call: str, prepare: Callable[[Rig], None], numbers: tuple[int, ...]
) -> None:
    for number in numbers or count(1):
        assert number < MANY, "no run is without an error"
        rig = Rig(base / str(number))
        rig.write({"outgoing": {"retry_count": 3}})
        prepare(rig)
        log = rig.base / "strace.log"
        paths = [rig.base / place for place in places]
        run = rig.run(under=strace(call, f"error=EIO:when={number}", paths=paths, log=log))
        rig.oracle.check()
        assert not run.of("quarantined"), run.text
        was_hit = "INJECTED" in log.read_text()
        assert run.code in ((0, 1, 3) if was_hit else (0,)), run.text
        rig.run_clean()
        if not was_hit:
            assert not numbers
            break


@pytest.mark.parametrize(
    ("call", "places", "prepare", "numbers"),
    sweep(
        ("openat", SPOOL, fill, (5,)),
        ("openat", TARGET, fill, (6,)),
        ("newfstatat", SPOOL, fill, (1,)),
        ("newfstatat", TARGET, fill, (4,)),
        ("newfstatat", FILE, fill, (1, 2)),
        ("mkdirat", SPOOL, fill, (2,)),
        ("mkdirat", TARGET, fill, (3,)),
        ("getdents64", SPOOL, fill, (2,)),
        ("renameat2", SPOOL, fill, (4,)),
        ("renameat2", TARGET, fill, (3,)),
        ("unlinkat", SPOOL, fill, (3,)),
        ("fsync", TARGET, second_version, (2,)),
        ("openat", SPOOL, test_kill_directories.fill, (7,)),
        ("getdents64", SPOOL, test_kill_directories.fill, (4,)),
        ("renameat2", SPOOL, test_kill_directories.fill, (2,)),
        ("unlinkat", SPOOL, test_kill_directories.fill, (1,)),
        ("openat", TARGET, test_kill_directories.fill, (5,)),
    ),
)
def test_one_call_fails(
    tmp_path: Path, call: str, places: tuple[str, ...], prepare: Callable[[Rig], None], numbers: tuple[int, ...]
) -> None:
    fail_everywhere(tmp_path, places, call, prepare, numbers)
