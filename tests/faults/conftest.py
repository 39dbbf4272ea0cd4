"""Streams to be harmed, over each way to a target."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.relay import line_to
from mistamover.testing.needs import find, require
from mistamover.transports import ranges
from tests.faults import kills
from tests.faults.faulty_server import FaultyServer, write_wrapper
from tests.faults.relay import Relay
from tests.faults.rig import Rig
from tests.faults.smaller import SMALLER
from tests.faults.test_detectors import planted
from tests.sshd import PROGRAMS, Sshd, running_sshd

CONNECTORS = ("openssh", "paramiko")


@pytest.fixture
def local(tmp_path: Path) -> Rig:
    return Rig(tmp_path / "rig")


@pytest.fixture(params=["local", *CONNECTORS, "rsync_ssh"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Rig:
    """A stream to a directory of this host, and over SSH in all ways."""
    if request.param == "local":
        return Rig(tmp_path / "rig")
    server: Sshd = request.getfixturevalue("sshd")
    return Rig(tmp_path / "rig", server, request.param)


@pytest.fixture(params=["local", "openssh", "rsync_ssh"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Rig:
    """A stream to a directory of this host, over SFTP, and by rsync: where the connector makes no difference."""
    if request.param == "local":
        return Rig(tmp_path / "rig")
    return Rig(tmp_path / "rig", request.getfixturevalue("sshd"), request.param)


LONG = pytest.mark.campaign


@pytest.fixture(params=["local", pytest.param("openssh", marks=LONG), pytest.param("rsync_ssh", marks=LONG)])
def any_way(request: pytest.FixtureRequest, tmp_path: Path) -> Rig:
    """The same where the way makes no difference, so that the others are tried where there is time."""
    if request.param == "local":
        return Rig(tmp_path / "rig")
    return Rig(tmp_path / "rig", request.getfixturevalue("sshd"), request.param)


@pytest.fixture(scope="session")
def faulty_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyServer]:
    require("strace", *PROGRAMS)
    directory = tmp_path_factory.mktemp("faulty-server")
    with running_sshd(directory / "sshd", subsystem=str(write_wrapper(directory))) as server:
        yield FaultyServer(server, directory)


@pytest.fixture
def faulty(faulty_server: FaultyServer) -> Iterator[FaultyServer]:
    """A server for faults of the far side; disarmed at the end of the test."""
    yield faulty_server
    faulty_server.disarm()
    faulty_server.sshd.kill_sessions()


@pytest.fixture(params=CONNECTORS)
def far_rig(request: pytest.FixtureRequest, tmp_path: Path, faulty: FaultyServer) -> Rig:
    """A stream to the server for faults, by either connector."""
    return Rig(tmp_path / "rig", faulty.sshd, request.param)


@pytest.fixture
def relay(sshd: Sshd) -> Iterator[Relay]:
    """A wire to the shared server that can be cut."""
    with Relay(sshd.port) as wire:
        yield wire


@pytest.fixture
def long_wire(sshd: Sshd) -> Iterator[Relay]:
    """The same, and so long that large files go in ranges over several connections."""
    with line_to(sshd.port, ranges.LONG) as port, Relay(port) as wire:
        yield wire


@pytest.fixture(scope="session")
def smaller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program with smaller ranges."""
    return planted(tmp_path_factory.mktemp("smaller"), *SMALLER)


@pytest.hookimpl(tryfirst=True)  # before the report is made, which takes them along
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    if call.when == "call":
        item.user_properties += kills.taken()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for every in terminalreporter.stats.values() for report in every]
    called = [report for report in reports if getattr(report, "when", "") == "call"]
    if hit := kills.of_all(each for report in called for each in report.user_properties):
        terminalreporter.section("kill points")
        for protocol, count in sorted(hit.items()):
            terminalreporter.write_line(f"{protocol}: {count:,}")


MakeDisk = Callable[..., Path]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[MakeDisk]:
    """Mount file systems of a given size, gone at the end."""
    require("root", "mount", "umount")
    mounted: list[Path] = []

    def mount(path: Path, options: str) -> Path:
        path.mkdir(parents=True, exist_ok=True)
        argv = [find("mount") or "mount", "-t", "tmpfs", "-o", options, "mistamover-test", str(path)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"this machine lets nobody mount: {done.stderr.strip()}")
        mounted.append(path)
        return path

    yield mount
    for path in reversed(mounted):
        subprocess.run([find("umount") or "umount", "-l", str(path)], check=True)
