"""What an interrupted try of a large file on a long line has brought to the target is not sent again."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from tests.faults.conftest import LONG
from tests.faults.oracle import Watcher
from tests.faults.relay import Cut, Fault, Relay
from tests.faults.rig import Rig, Run, finished
from tests.faults.smaller import RANGE, SMALLER
from tests.faults.test_detectors import Change, planted
from tests.sshd import Sshd, wait_for

pytestmark = pytest.mark.needs("sshd", "ssh", "ssh-keygen")

BIG = 5 * RANGE + 12345
MUCH = 4 * RANGE + RANGE // 8
"""Bytes on the line after which at least three of its ranges have arrived, and it is not yet whole."""
LITTLE = 3 * RANGE
"""More than what is missing then, and less than a whole file."""


@pytest.fixture
def far(tmp_path: Path, sshd: Sshd, long_wire: Relay, smaller: Path) -> Rig:
    rig = Rig(tmp_path / "rig", sshd, port=long_wire.own_port, package=smaller)
    rig.write({"outgoing": {"lanes": 1, "stop_timeout": 0.3}, "sftp": {"stall_timeout": 5}})
    rig.oracle.put("a/big", secrets.token_bytes(BIG))
    return rig


def interrupted(far: Rig, long_wire: Relay, *, by_force: bool = True) -> Run:
    """A run that ends when much of the file has arrived."""
    long_wire.rate = BIG
    process = far.start()
    wait_for(lambda: long_wire.carried > MUCH, "much of it to be sent")
    process.kill() if by_force else process.terminate()
    run = finished(process)
    far.oracle.check()
    long_wire.rate = float("inf")
    long_wire.carried = 0
    return run


def parts(far: Rig) -> list[Path]:
    """What stays of an interrupted try, the bytes themselves."""
    return sorted(path for path in far.staging.iterdir() if path.stat().st_size > RANGE)


def test_a_line_that_is_cut(far: Rig, long_wire: Relay) -> None:
    long_wire.faults.append(Fault(Cut.RESET, there=MUCH))
    with Watcher(far.oracle):
        run = far.run_clean()
    assert run.of("target"), run.text
    assert long_wire.carried < MUCH + LITTLE


def test_a_worker_that_is_killed(far: Rig, long_wire: Relay) -> None:
    interrupted(far, long_wire)
    with Watcher(far.oracle):
        far.run_clean()
    assert long_wire.carried < LITTLE
    assert list(far.staging.iterdir()) == []


def test_a_run_that_is_stopped(far: Rig, long_wire: Relay) -> None:
    assert interrupted(far, long_wire, by_force=False).code == 130
    far.run_clean()
    assert long_wire.carried < LITTLE


def test_over_several_connections(far: Rig, long_wire: Relay) -> None:
    far.write({"outgoing": {"lanes": 3}})
    interrupted(far, long_wire)
    with Watcher(far.oracle):
        far.run_clean()
    assert long_wire.carried < BIG - RANGE


def test_on_a_short_line(tmp_path: Path, sshd: Sshd) -> None:
    """There the very large ones alone; here for all."""
    large = Change("transports/ranges.py", "RESUMED = 2**32", "RESUMED = RANGED")
    with Relay(sshd.port) as long_wire:
        far = Rig(tmp_path / "rig", sshd, port=long_wire.own_port, package=planted(tmp_path, *SMALLER, large))
        far.oracle.put("a/big", secrets.token_bytes(BIG))
        interrupted(far, long_wire)
        with Watcher(far.oracle):
            far.run_clean()
        assert long_wire.connections == 2
        assert long_wire.carried < LITTLE


def test_another_version_has_nothing_of_the_first(far: Rig, long_wire: Relay) -> None:
    interrupted(far, long_wire)
    far.oracle.rewrite("a/big", secrets.token_bytes(BIG))
    with Watcher(far.oracle):
        assert far.run().code == 0
    far.oracle.check()
    assert long_wire.carried > BIG


def test_where_no_bytes_are_compared_nothing_is_resumed(far: Rig, long_wire: Relay) -> None:
    far.write({"outgoing": {"verify": "size"}})
    interrupted(far, long_wire)
    with Watcher(far.oracle):
        assert far.run().code == 0
    far.oracle.check()
    assert long_wire.carried > BIG


def test_what_was_spoilt_at_the_target_is_found_and_sent_again(far: Rig, long_wire: Relay) -> None:
    interrupted(far, long_wire)
    [part] = parts(far)
    with part.open("r+b") as file:
        first = file.read(1)
        file.seek(0)
        file.write(bytes([first[0] ^ 1]))
    with Watcher(far.oracle):
        run = far.run()
        assert "digest" in run.reasons("waiting"), run.text
        far.run_clean()


def test_what_nobody_needs_any_more_is_gone_after_two_passes(far: Rig, long_wire: Relay) -> None:
    interrupted(far, long_wire)
    far.oracle.delete("a/big")
    for number in range(2):
        assert parts(far)
        far.oracle.put(f"small-{number}", b"x")
        assert far.run().code == 0
    far.oracle.check_delivered()
    assert list(far.staging.iterdir()) == []


@pytest.mark.parametrize(
    ("which", "is_there"),
    [
        ("part", True),
        ("notes", False),
        pytest.param("part", False, marks=LONG),
        pytest.param("notes", True, marks=LONG),
    ],
)
def test_a_link_in_its_place_is_not_followed(far: Rig, long_wire: Relay, which: str, is_there: bool) -> None:
    interrupted(far, long_wire)
    outside = far.base / "outside"
    if is_there:
        outside.write_bytes(b"of somebody")
    [left] = [path for path in far.staging.iterdir() if f"{which}-" in path.name]
    left.unlink()
    left.symlink_to(outside)
    with Watcher(far.oracle):
        far.run_clean()
    assert outside.exists() == is_there
    assert not is_there or outside.read_bytes() == b"of somebody"
    assert list(far.staging.iterdir()) == []
