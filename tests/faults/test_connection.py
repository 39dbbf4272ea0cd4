"""Connections that end or stall at any byte, and far sides that die: nothing is lost, nothing seen half."""

from __future__ import annotations

import secrets
import socket
from itertools import count
from pathlib import Path

import pytest

from tests.conftest import StartSshd
from tests.faults.conftest import CONNECTORS
from tests.faults.faulty_server import FaultyServer
from tests.faults.oracle import Watcher
from tests.faults.relay import Cut, Fault, Relay
from tests.faults.rig import Options, Rig, Run, Server, finished
from tests.faults.test_kill import sweep
from tests.sshd import Sshd, wait_for

pytestmark = pytest.mark.needs("sshd", "ssh", "ssh-keygen")

BIG = 3 * 2**20
MANY = 100
IMPATIENT: Options = {"outgoing": {"retry_count": 0}, "sftp": {"stall_timeout": 1.2, "connect_timeout": 3}}
PATIENT: Options = {"outgoing": {"retry_count": 3}, "sftp": {"stall_timeout": 1.2, "connect_timeout": 3}}


@pytest.fixture(params=CONNECTORS)
def wired(request: pytest.FixtureRequest, tmp_path: Path, sshd: Sshd, relay: Relay) -> Rig:
    """A stream whose connections go through the relay."""
    return Rig(tmp_path / "rig", sshd, request.param, relay.own_port)


def fill(rig: Rig) -> None:
    rig.oracle.put("a/big", secrets.token_bytes(BIG))
    for number in range(5):
        rig.oracle.put(f"small-{number}", secrets.token_bytes(3000))


def watched(rig: Rig) -> Run:
    with Watcher(rig.oracle):
        run = rig.run()
    rig.oracle.check()
    return run


# Where the wire is cut: in the greeting, in the log-in, while files are opened, in the middle of the data, and
# shortly before the end of it, where all that is missing is answers.
CUTS = [
    Fault(Cut.RESET, there=20),
    Fault(Cut.CLOSE, there=1_000_000),
    Fault(Cut.RESET, back=7000),
    Fault(Cut.STALL, there=2100),
    Fault(Cut.STALL, there=1_000_000),
]
MORE_CUTS = [
    Fault(Cut.CLOSE, there=1800),
    Fault(Cut.RESET, there=7000),
    Fault(Cut.RESET, there=BIG + 20_000),
    Fault(Cut.CLOSE, back=2500),
    Fault(Cut.STALL, there=1400),
    Fault(Cut.STALL, back=5500),
]


@pytest.mark.parametrize(
    "fault", [*CUTS, *(pytest.param(cut, marks=pytest.mark.campaign) for cut in MORE_CUTS)], ids=str
)
def test_it_is_cut_for_good(wired: Rig, relay: Relay, fault: Fault) -> None:
    wired.write(IMPATIENT)
    fill(wired)
    relay.faults += [fault] * MANY
    run = watched(wired)
    assert run.code == 3, run.text
    (target,) = run.of("target")
    assert len(target["reason"]) > len("127.0.0.1: ")
    assert "refused" not in target["reason"]
    assert not wired.oracle.quarantined()
    relay.faults.clear()
    wired.write()
    wired.run_clean()


@pytest.mark.parametrize(
    "fault", [Fault(Cut.RESET, 100_000), Fault(Cut.STALL, 1_000_000), Fault(Cut.CLOSE, BIG)], ids=str
)
def test_it_is_cut_once(wired: Rig, relay: Relay, fault: Fault) -> None:
    wired.write(PATIENT)
    fill(wired)
    relay.faults.append(fault)
    run = watched(wired)
    assert run.code == 0, run.text
    assert relay.connections >= 2
    wired.oracle.check_delivered()


@pytest.mark.needs("rsync")
@pytest.mark.parametrize("way", ["openssh", pytest.param("paramiko", marks=pytest.mark.campaign), "rsyncd"])
def test_a_bit_changes_on_the_way(request: pytest.FixtureRequest, tmp_path: Path, way: str) -> None:
    """SSH notices by itself. To an rsync daemon nothing but the digests does."""
    server: Server = request.getfixturevalue("rsyncd" if way == "rsyncd" else "sshd")
    flips = [Fault(Cut.FLIP, there=1_000_000)] * (1 if way in CONNECTORS else MANY)
    with Relay(server.port, flips) as relay:
        rig = Rig(tmp_path / "rig", server, way, relay.own_port)
        rig.write(PATIENT if way in CONNECTORS else {"outgoing": {"retry_count": 3}})
        rig.oracle.put("a/big", secrets.token_bytes(BIG))
        run = watched(rig)
        assert run.code in (0, 1), run.text
        assert relay.cuts
        relay.faults.clear()
        rig.run_clean()


def test_it_takes_no_more(tmp_path: Path, sshd: Sshd) -> None:
    """So soon that what we send is held up in the kernel, long before the server's window is full."""
    with Relay(sshd.port, [Fault(Cut.STALL, there=30_000)] * MANY, buffer=4096) as relay:
        rig = Rig(tmp_path / "rig", sshd, "paramiko", relay.own_port)
        rig.write(IMPATIENT)
        rig.oracle.put("a/big", secrets.token_bytes(BIG))
        run = watched(rig)
        assert run.code == 3, run.text
        relay.faults.clear()
        rig.run_clean()


def test_nobody_listens(wired: Rig, relay: Relay) -> None:
    wired.write(IMPATIENT)
    fill(wired)
    relay.port, port = 1, relay.port
    run = wired.run()
    assert run.code == 3, run.text
    relay.port = port
    wired.run_clean()


@pytest.mark.campaign
def test_a_slow_line_is_none_that_stalls(tmp_path: Path, sshd: Sshd) -> None:
    """The whole takes longer than anything may stand still."""
    with Relay(sshd.port, rate=BIG / 2) as relay:
        rig = Rig(tmp_path / "rig", sshd, "openssh", relay.own_port)
        rig.write(IMPATIENT)
        rig.oracle.put("a/big", secrets.token_bytes(BIG))
        rig.run_clean()


@pytest.mark.campaign
@pytest.mark.needs("root", "unshare", "mount", "rsync", "proftpd", "openssl")
@pytest.mark.parametrize("way", [*CONNECTORS, "rsync_ssh", "rsyncd", "proftpd"])
def test_a_name_server_that_never_answers(request: pytest.FixtureRequest, tmp_path: Path, way: str) -> None:
    server = request.getfixturevalue(way if way in {"rsyncd", "proftpd"} else "sshd")
    rig = Rig(tmp_path / "rig", server, way)
    rig.write({"outgoing": {"target_host": "archive.example.org", "retry_count": 0}})
    rig.oracle.put("file", b"data")
    resolver = tmp_path / "resolv.conf"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.53", 53))
        resolver.write_text("nameserver 127.0.0.53\noptions timeout:1 attempts:2\n")
        script = f'mount --bind {resolver} /etc/resolv.conf && exec "$@"'
        run = finished(rig.start(under=["unshare", "-m", "sh", "-c", script, "sh"]))
    assert run.code == 3, run.text
    (target,) = run.of("target")
    assert "archive.example.org" in target["reason"]
    assert "refused" not in target["reason"]
    rig.oracle.check()
    rig.write()
    rig.run_clean()


@pytest.mark.campaign
@pytest.mark.needs("root", "unshare", "mount", "rsync", "proftpd", "openssl")
@pytest.mark.parametrize("way", [*CONNECTORS, "rsync_ssh", "rsyncd", "proftpd"])
def test_a_name_whose_first_address_is_dead(request: pytest.FixtureRequest, tmp_path: Path, way: str) -> None:
    """As where IPv6 is announced, and works nowhere."""
    server = request.getfixturevalue(way if way in {"rsyncd", "proftpd"} else "sshd")
    rig = Rig(tmp_path / "rig", server, way)
    name = "two-addresses.example.org"
    log_in: Options = {}
    if isinstance(server, Sshd):
        known = tmp_path / "known_hosts"
        known.write_text(server.known_hosts.read_text().replace(server.host, name))
        log_in = {"rsync_ssh" if way == "rsync_ssh" else "sftp": {"known_hosts": known}}
    rig.write({"outgoing": {"target_host": name}, **log_in})
    rig.oracle.put("file", b"data")
    hosts = tmp_path / "hosts"
    hosts.write_text(f"::1 {name}\n127.0.0.1 {name}\n")
    script = f'mount --bind {hosts} /etc/hosts && exec "$@"'
    run = finished(rig.start(under=["unshare", "-m", "sh", "-c", script, "sh"]))
    assert run.code == 0, run.text
    rig.oracle.check_delivered()


# -- the far side --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("connector", CONNECTORS)
def test_the_server_is_stopped_and_started_again(tmp_path: Path, start_sshd: StartSshd, connector: str) -> None:
    server = start_sshd()
    with Relay(server.port, rate=2 * 2**20) as relay:
        rig = Rig(tmp_path / "rig", server, connector, relay.own_port)
        rig.write(IMPATIENT)
        fill(rig)
        process = rig.start()
        wait_for(lambda: relay.carried > BIG / 2, "half of the data to be sent")
        server.stop()
        run = finished(process)
        assert run.code == 3, run.text
        rig.oracle.check()
        assert rig.run().code == 3
        rig.oracle.check()
        server.start()
        relay.rate = float("inf")
        rig.run_clean()


@pytest.mark.needs("strace")
@pytest.mark.parametrize(
    ("call", "numbers"), sweep(("link", (2,)), ("unlink", (3,)), ("fsync", (4,)), ("lseek", (5,)))
)
def test_the_far_side_is_killed_at_each_step(
    tmp_path: Path, faulty: FaultyServer, call: str, numbers: tuple[int, ...]
) -> None:
    """SIGKILL of its sftp-server at those of these numbers, or at the first such call, the second and so on."""
    kills = 0
    for number in numbers or count(1):
        assert number < MANY, "no server survives"
        rig = Rig(tmp_path / str(number), faulty.sshd)
        rig.write(PATIENT)
        fill(rig)
        faulty.arm(call, f"signal=SIGKILL:when={number}", once=True)
        run = watched(rig)
        if "killed by SIGKILL" not in faulty.seen:
            assert not numbers
            break
        kills += 1
        if run.code == 3:  # it was killed before anything was on its way
            run = rig.run()
        assert run.code == 0, run.text
        rig.oracle.check_delivered()
    assert kills


@pytest.mark.needs("strace")
@pytest.mark.parametrize(
    ("frozen_at", "then_at"), [pytest.param("openat", "link", marks=pytest.mark.campaign), ("link", "lseek")]
)
def test_a_session_that_was_given_up_comes_back_to_life(
    tmp_path: Path, faulty: FaultyServer, frozen_at: str, then_at: str
) -> None:
    """What it had been asked for is done late, beside the session that came after it."""
    rig = Rig(tmp_path / "rig", faulty.sshd)
    rig.write({"sftp": {"stall_timeout": 1.5}})
    fill(rig)
    faulty.arm(frozen_at, "delay_enter=100000", once=True)
    first = faulty.log
    process = rig.start()
    with Watcher(rig.oracle):
        # The first file that is opened there only shows that files can be.
        number = 2 if frozen_at == "openat" else 1
        wait_for(
            lambda: is_about_staged(faulty.seen, frozen_at, rig, number), "the first session to come so far", 60
        )
        faulty.sshd.freeze_sessions()
        faulty.arm(then_at, f"delay_enter=1000000:when={1 if then_at == 'link' else 6}")
        wait_for(lambda: is_about_staged(faulty.seen, then_at, rig), "the second session to come so far", 60)
        faulty.sshd.thaw_sessions()
        wait_for(lambda: "+++" in first.read_text(), "the first session to end", 60)
        run = finished(process)
    assert run.code == 0, run.text
    rig.oracle.check()
    faulty.disarm()
    rig.oracle.put("later", b"later")
    rig.run_clean()


def is_about_staged(seen: str, call: str, rig: Rig, number: int = 1) -> bool:
    """Whether a session is in the middle of such a call on a staged file, its ``number``-th at least."""
    calls = [line for line in seen.splitlines() if f" {call}(" in line and f"{rig.staging}/" in line]
    return len(calls) >= number and " = " not in calls[-1]
