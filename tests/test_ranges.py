"""A fault of our own in one of the threads that carry ranges is never taken for bytes that arrived."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from mistamover.errors import NotTaken, SourceMoved, TargetDown
from mistamover.events import nothing
from mistamover.testing.rig import STREAM, Rig, Tick, deliver, errors, failed, noise, tree
from mistamover.transports import ranges
from mistamover.transports.contract import Transport
from mistamover.transports.ranges import Siblings
from mistamover.transports.sftp_client import SftpClient
from mistamover.unit import OWN_NAME, named
from tests import picky_sftp
from tests.conftest import StartSshd
from tests.sshd import Sshd, is_gone, sftp_server
from tests.transports.sftp_contract import options

pytestmark = pytest.mark.needs("sshd", "ssh", "ssh-keygen")


def test_a_thread_that_fails_makes_the_file_fail(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where no proof is asked for that would notice a hole."""
    write = SftpClient.write_now
    failed = threading.Event()

    def fails_elsewhere(client: SftpClient, packet: bytes, data: memoryview) -> None:
        if threading.current_thread().name != "range_0":
            failed.set()
            raise RuntimeError("a fault of ours")
        assert failed.wait(30)
        write(client, packet, data)

    monkeypatch.setattr(ranges, "LONG", 0.0)
    monkeypatch.setattr(SftpClient, "write_now", fails_elsewhere)
    (tmp_path / "rig").mkdir()
    rig = Rig(tmp_path / "rig", options(sshd, "openssh"))
    rig.put("big", noise(ranges.RANGED))
    transport = rig.open(lanes="2", verify="none")
    try:
        with pytest.raises(RuntimeError, match="a fault of ours"):
            list(transport.send(rig.units(transport)))
    finally:
        rig.close()


def test_the_other_connections_are_kept_for_the_next_file(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program ends with the thread that started it, so that thread has to stay."""
    monkeypatch.setattr(ranges, "LONG", 0.0)
    (tmp_path / "rig").mkdir()
    rig = Rig(tmp_path / "rig", options(sshd, "openssh"))
    rig.put("a", noise(ranges.RANGED))
    rig.put("b", noise(ranges.RANGED + 1))
    transport = rig.open(lanes="2")
    try:
        over = []
        for unit in rig.units(transport):
            assert errors(transport.send([unit])) == {}
            over.append(sessions())
        assert len(over[0]) == 2
        assert over[0] == over[1]
    finally:
        rig.close()


@pytest.mark.parametrize("verify", ["size", "none"])
def test_no_connection_makes_a_file_anew_that_is_gone(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verify: str
) -> None:
    """The first one would go on with what has no name any more, and half of it would be published."""

    def removes_it() -> None:
        for path in unfinished(rig):
            path.unlink()

    monkeypatch.setattr(ranges, "LONG", 0.0)
    have_all_wait_for_the_second_connection(monkeypatch, before=removes_it)
    (tmp_path / "rig").mkdir()
    rig = Rig(tmp_path / "rig", options(sshd, "openssh"))
    rig.put("big", noise(ranges.RANGED))
    transport = rig.open(lanes="2", verify=verify)
    try:
        assert failed(deliver(transport, rig.units(transport))) == {"big": NotTaken}
        assert tree(rig.target) == {}
    finally:
        rig.close()


@pytest.mark.parametrize("verify", ["size", "none"])
def test_where_no_bytes_are_compared_no_two_tries_write_one_file(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verify: str
) -> None:
    """What an earlier session was asked for may be done late: just before a further connection joins in."""

    def opens_it_too() -> None:
        with pytest.raises(TargetDown):
            list(earlier.send(named(units, f"{earlier.tag}5eed", 1)))

    monkeypatch.setattr(ranges, "LONG", 0.0)
    have_all_wait_for_the_second_connection(monkeypatch, after=opens_it_too)
    (tmp_path / "rig").mkdir()
    rig = Rig(tmp_path / "rig", options(sshd, "openssh"))
    rig.put("big", noise(ranges.RANGED))
    earlier = rig.open(break_off, lanes="1", verify=verify)
    transport = rig.open(lanes="2", verify=verify)
    units = rig.units(transport)
    try:
        assert failed(deliver(transport, units)) == {}
        assert tree(rig.target) == tree(rig.spool)
    finally:
        rig.close()


def break_off(_size: int) -> None:
    raise TargetDown("it ends here")


def test_two_processes_never_write_one_file(sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that mirror one spool, for two users: each has its own state directory, so that neither waits."""
    may_go_on = threading.Event()
    is_on_its_way = threading.Event()

    def tick(_size: int) -> None:
        is_on_its_way.set()
        assert may_go_on.wait(30)

    monkeypatch.setattr(ranges, "LONG", 0.0)
    (tmp_path / "rig").mkdir()
    rig = Rig(tmp_path / "rig", options(sshd, "openssh"))
    before = noise(ranges.RANGED)
    source = rig.put("big", before)
    slow, fast = of_user(rig, "one", tick), of_user(rig, "other")
    units = rig.units(slow)
    with ThreadPoolExecutor(1) as executor:
        sent = executor.submit(lambda: list(slow.send(units)))
        try:
            assert is_on_its_way.wait(30)
            assert failed(deliver(fast, named(units, f"{fast.tag}5eed", 1))) == {}
            with source.open("r+b") as file:
                file.write(noise(ranges.RANGED, "later"))
        finally:
            may_go_on.set()
        assert errors(sent.result()) == {"big": SourceMoved}
    assert tree(rig.target) == {"big": before}
    rig.close()


def of_user(rig: Rig, user: str, tick: Tick = lambda _: None) -> Transport:
    """The transport of a stream that a user runs."""
    transport = rig.transport(tick, lanes="1")
    state = transport.settings.global_.model_copy(update={"state_dir": rig.base / user})
    transport.settings = transport.settings.model_copy(update={"global_": state})
    return transport.open()


def have_all_wait_for_the_second_connection(
    monkeypatch: pytest.MonkeyPatch, *, before: Callable[[], None] = nothing, after: Callable[[], None] = nothing
) -> None:
    """Have nobody write before it has joined; something else happens just before that, or just after."""
    client, write = Siblings.client, SftpClient.write_now
    has_joined = threading.Event()

    def joins(siblings: Siblings, number: int) -> SftpClient | None:
        found = client(siblings, number)
        before()
        has_joined.set()
        after()
        return found

    def writes_later(client: SftpClient, packet: bytes, data: memoryview) -> None:
        assert has_joined.wait(30)
        write(client, packet, data)

    monkeypatch.setattr(Siblings, "client", joins)
    monkeypatch.setattr(SftpClient, "write_now", writes_later)


def unfinished(rig: Rig) -> list[Path]:
    """What is there of a large file that is not whole, and its notes."""
    return [path for path in (rig.target / OWN_NAME / STREAM).iterdir() if "-" in path.name]


def sessions() -> set[int]:
    """Our programs that hold a session of SFTP."""
    ours = [one for one in psutil.Process().children() if not is_gone(one)]
    return {one.pid for one in ours if one.cmdline()[-1:] == ["sftp"]}


@pytest.mark.parametrize(("mode", "first"), [("write-only", {}), ("in-order", {"big": NotTaken})])
def test_a_server_that_takes_no_ranges_gets_files_in_order(
    start_sshd: StartSshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, first: dict[str, type]
) -> None:
    """At once where it says so at their beginning, else with the next try."""
    server = start_sshd(subsystem=f"{sys.executable} {picky_sftp.__file__} {mode} {sftp_server()}")
    monkeypatch.setattr(ranges, "LONG", 0.0)
    if mode == "in-order":
        have_all_wait_for_the_second_connection(monkeypatch)
    (tmp_path / "rig").mkdir()
    rig = Rig(tmp_path / "rig", options(server, "openssh"))
    for name in ("big", "bigger"):
        rig.put(name, noise(ranges.RANGED + len(name)))
    transport = rig.open(lanes="2")
    try:
        assert failed(deliver(transport, rig.units(transport, "big"))) == first
        if first:
            assert failed(deliver(transport, rig.units(transport, "big"))) == {}
        assert failed(deliver(transport, rig.units(transport, "bigger"))) == {}
        assert tree(rig.target) == tree(rig.spool)
        assert rig.all_staged() == set()
    finally:
        rig.close()
