"""A large file on a long line goes over several connections: some break, the source changes, we are to stop."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.relay import line_to
from mistamover.transports import ranges
from tests.faults.oracle import Watcher
from tests.faults.relay import Cut, Fault, Relay
from tests.faults.rig import PACKAGE, Rig, finished
from tests.faults.test_detectors import Change, planted
from tests.sshd import Sshd, wait_for

pytestmark = pytest.mark.needs("sshd", "ssh", "ssh-keygen")

RANGE, RANGED = 2**20, 2**22
SMALLER = (
    Change("transports/ranges.py", "RANGE = 2**23", f"RANGE = {RANGE}"),
    Change("transports/ranges.py", "RANGED = 2**25", f"RANGED = {RANGED}"),
    Change("transports/ranges.py", "ON_THE_WAY = 2**22", f"ON_THE_WAY = {RANGE // 2}"),
)
"""Eight times, so that a large file soon is on its way, and there."""
BIG = RANGED + RANGE + 12345
WHOLE = Fault(Cut.CLOSE)
"""None at all."""
LANES = 3
SOON = 20.0


@pytest.fixture
def wire(sshd: Sshd) -> Iterator[Relay]:
    """A wire to the shared server that is long and can be cut."""
    with line_to(sshd.port, ranges.LONG) as port, Relay(port) as wire:
        yield wire


@pytest.fixture(scope="module")
def smaller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted(tmp_path_factory.mktemp("smaller"), *SMALLER)


@pytest.fixture
def far(tmp_path: Path, sshd: Sshd, wire: Relay, smaller: Path) -> Rig:
    rig = Rig(tmp_path / "rig", sshd, port=wire.own_port, package=smaller)
    rig.write({"outgoing": {"lanes": LANES, "stop_timeout": 0.3}, "sftp": {"stall_timeout": 3}})
    rig.oracle.put("a/big", secrets.token_bytes(BIG))
    return rig


def test_it_goes_over_as_many_connections_as_there_are_lanes(far: Rig, wire: Relay) -> None:
    """One that is really large."""
    far.package = PACKAGE.parent
    far.oracle.put("a/big", secrets.token_bytes(ranges.RANGED + 12345))
    with Watcher(far.oracle):
        far.run_clean()
    assert wire.connections == LANES


@pytest.mark.parametrize("cut", [Cut.RESET, Cut.CLOSE, Cut.STALL])
def test_what_a_broken_connection_had_not_delivered_goes_over_the_others(far: Rig, wire: Relay, cut: Cut) -> None:
    wire.faults += [WHOLE, Fault(cut, there=RANGE // 2), Fault(cut, there=100_000)]
    wire.rate = BIG / 2
    with Watcher(far.oracle):
        run = far.run_clean()
    assert wire.cuts == 2
    assert wire.connections == LANES
    assert not run.of("target"), run.text


def test_the_first_connection_breaks(far: Rig, wire: Relay) -> None:
    wire.faults.append(Fault(Cut.RESET, there=RANGE))
    with Watcher(far.oracle):
        run = far.run_clean()
    assert run.of("target"), run.text


def test_a_source_that_changes_meanwhile_starts_again(far: Rig, wire: Relay) -> None:
    wire.rate = BIG
    process = far.start()
    with Watcher(far.oracle):
        wait_for(lambda: wire.carried > RANGE, "a part to be sent")
        far.oracle.put("a/big", secrets.token_bytes(BIG))
        wire.rate = float("inf")
        run = finished(process)
    assert run.code == 1, run.text
    assert run.of("changed")
    far.run_clean()


def test_it_is_parked(far: Rig, wire: Relay) -> None:
    wire.rate = BIG / 10
    process = far.start()
    with Watcher(far.oracle):
        wait_for(lambda: wire.carried > 200_000 and wire.connections == LANES, "a part to be sent")
        process.terminate()
        run = finished(process, SOON)
    assert run.code == 130, run.text
    assert not far.oracle.delivered()
    far.oracle.check()
    wire.rate = float("inf")
    far.run_clean()
