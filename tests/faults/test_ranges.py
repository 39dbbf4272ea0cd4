"""A large file on a long line goes over several connections: some break, the source changes, we are to stop."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from mistamover.transports import ranges
from tests.faults.conftest import LONG
from tests.faults.oracle import Watcher
from tests.faults.relay import Cut, Fault, Relay
from tests.faults.rig import PACKAGE, Rig, finished
from tests.faults.smaller import RANGE, RANGED
from tests.sshd import Sshd, wait_for

pytestmark = pytest.mark.needs("sshd", "ssh", "ssh-keygen")

BIG = RANGED + RANGE + 12345
WHOLE = Fault(Cut.CLOSE)
"""None at all."""
LANES = 3
SOON = 20.0


@pytest.fixture
def far(tmp_path: Path, sshd: Sshd, long_wire: Relay, smaller: Path) -> Rig:
    rig = Rig(tmp_path / "rig", sshd, port=long_wire.own_port, package=smaller)
    rig.write({"outgoing": {"lanes": LANES, "stop_timeout": 0.3}, "sftp": {"stall_timeout": 3}})
    rig.oracle.put("a/big", secrets.token_bytes(BIG))
    return rig


def test_it_goes_over_as_many_connections_as_there_are_lanes(far: Rig, long_wire: Relay) -> None:
    """One that is really large."""
    far.package = PACKAGE.parent
    far.oracle.put("a/big", secrets.token_bytes(ranges.RANGED + 12345))
    with Watcher(far.oracle):
        far.run_clean()
    assert long_wire.connections == LANES


@pytest.mark.parametrize("cut", [Cut.RESET, pytest.param(Cut.CLOSE, marks=LONG), Cut.STALL])
def test_what_a_broken_connection_had_not_delivered_goes_over_others(far: Rig, long_wire: Relay, cut: Cut) -> None:
    long_wire.faults += [WHOLE, Fault(cut, there=RANGE // 2), Fault(cut, there=100_000)]
    long_wire.rate = BIG / 2
    with Watcher(far.oracle):
        run = far.run_clean()
    assert long_wire.cuts == 2
    assert long_wire.connections == LANES
    assert not run.of("target"), run.text


def test_the_first_connection_breaks(far: Rig, long_wire: Relay) -> None:
    long_wire.faults.append(Fault(Cut.RESET, there=RANGE))
    with Watcher(far.oracle):
        run = far.run_clean()
    assert run.of("target"), run.text


def test_a_source_that_changes_meanwhile_starts_again(far: Rig, long_wire: Relay) -> None:
    long_wire.rate = BIG
    process = far.start()
    with Watcher(far.oracle):
        wait_for(lambda: long_wire.carried > RANGE, "a part to be sent")
        far.oracle.put("a/big", secrets.token_bytes(BIG))
        long_wire.rate = float("inf")
        run = finished(process)
    assert run.code == 1, run.text
    assert run.of("changed")
    far.run_clean()


def test_it_is_parked(far: Rig, long_wire: Relay) -> None:
    long_wire.rate = BIG / 10
    process = far.start()
    with Watcher(far.oracle):
        wait_for(lambda: long_wire.carried > 200_000 and long_wire.connections == LANES, "a part to be sent")
        process.terminate()
        run = finished(process, SOON)
    assert run.code == 130, run.text
    assert not far.oracle.delivered()
    far.oracle.check()
    long_wire.rate = float("inf")
    far.run_clean()
