"""Room at the target: asked for before a batch begins, kept account of, and waited for."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pyftpdlib.handlers import FTPHandler

from mistamover import config
from mistamover.alert import Condition, Trouble
from mistamover.board import read_all
from mistamover.disk import Space
from mistamover.errors import NoRoom
from mistamover.events import Event, Kind
from mistamover.lane import Crew, Lane
from mistamover.ledger import entries
from mistamover.stream import Stream
from mistamover.testing.rig import Rig, small_disk
from mistamover.transports import far_space
from mistamover.transports.local import Local as LocalTransport
from mistamover.unit import Identity, State, Unit
from tests.faults.test_service import by_ssh
from tests.installed import Installed, until
from tests.program import Local
from tests.sshd import Sshd
from tests.strange_ftpd import PASSWORD, USER, strange_server
from tests.transports.sftp_contract import options as by_sftp
from tests.transports.test_rsync import over_ssh

# -- asked for ---------------------------------------------------------------------------------------------


def told(tmp_path: Path, options: Mapping[str, Mapping[str, str]]) -> Space | None:
    rig = Rig(tmp_path, options)
    try:
        return rig.open().room()
    finally:
        rig.close()


def is_true(found: Space | None, directory: Path) -> bool:
    now = os.statvfs(directory)
    assert found is not None
    is_near = abs(found.free - now.f_bavail * now.f_frsize) < 2**30
    return is_near and found.total == now.f_blocks * now.f_frsize and found.all_inodes == now.f_files


def test_a_directory_of_this_host_tells(tmp_path: Path) -> None:
    assert is_true(told(tmp_path, {"outgoing": {"transfer_protocol": "local"}}), tmp_path)


@pytest.mark.needs("sshd")
def test_sftp_tells(tmp_path: Path, sshd_no_shell: Sshd) -> None:
    assert is_true(told(tmp_path, by_sftp(sshd_no_shell, "openssh")), tmp_path)


@pytest.mark.needs("rsync", "sshd")
def test_a_shell_tells(tmp_path: Path, sshd: Sshd) -> None:
    assert is_true(told(tmp_path, over_ssh(sshd)), tmp_path)


def test_an_ftp_server_may_tell(tmp_path: Path) -> None:
    def ftp_avbl(self: Any, path: str) -> None:
        self.respond(f"213 {4321 if path else 0}")

    def ftp_feat(self: Any, line: str) -> None:
        self._extra_feats = ["AVBL"] if "AVBL" in self.proto_cmds else []
        FTPHandler.ftp_FEAT(self, line)

    commands = {"AVBL": {"perm": "l", "auth": True, "arg": True, "help": "Syntax: AVBL path"}}
    for known, expected in ((commands, Space(4321)), ({}, None)):
        (tmp_path / f"{len(known)}").mkdir()
        with strange_server(ftp_AVBL=ftp_avbl, ftp_FEAT=ftp_feat, more=known) as (port, _):
            log_in = {"port": str(port), "username": USER, "password": PASSWORD}
            outgoing = {"transfer_protocol": "ftp", "target_host": "127.0.0.1"}
            assert told(tmp_path / f"{len(known)}", {"outgoing": outgoing, "ftp": log_in}) == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (
            b"Filesystem  1024-blocks Used Available Capacity Mounted on\n/dev/a b 1000 900 100 90% /d e\n---\n"
            b"Filesystem Inodes IUsed IFree IUse% Mounted on\n/dev/a b 50 20 30 40% /d e\n",
            Space(102400, 30, 1024000, 50, 4096),
        ),
        (
            b"Filesystem 1024-blocks Used Available Capacity Mounted on\nfs 1000 1020 -20 100% /\n---\n"
            b"Filesystem Inodes IUsed IFree IUse% Mounted on\nfs - - - - /\n",
            Space(0, None, 1024000, 0, 4096),
        ),
        (
            b"Filesystem 1024-blocks Used Available Capacity Mounted on\nfs 1 0 1 0% /\n",
            Space(1024, None, 1024, 0, 4096),
        ),
        (b"This account is currently not available.\n", None),
        (b"", None),
        (b"Filesystem 512-blocks Used Available Capacity Mounted on\nfs 1000 0 1000 0% /\n", None),
    ],
)
def test_what_df_says(said: bytes, expected: Space | None) -> None:
    assert far_space.parsed(said) == expected


# -- kept account of ---------------------------------------------------------------------------------------


def unit(name: str, size: int, **more: Any) -> Unit:
    return Unit(name, Identity(1, 1, size, 0, 0), **more)


class Telling(LocalTransport):
    """Says what the test wants, and how often it was asked."""

    says: Space | None = None
    asked = 0

    def __init__(self) -> None:
        pass

    def room(self) -> Space | None:
        self.asked += 1
        return self.says


def test_what_others_are_about_to_send_is_taken() -> None:
    crew, target = Crew(lanes=[Lane(), Lane()]), Telling()
    first, second = crew.lanes
    target.says = Space(10_000)
    for _ in range(100):
        crew.ask(target)
    assert target.asked == 1
    assert crew.admit(first, [unit("a", 6000)]) == ([unit("a", 6000)], [])
    assert crew.admit(second, [unit("b", 6000), unit("c", 4000)]) == ([unit("c", 4000)], [unit("b", 6000)])
    # What was sent is gone, also when its batch has ended and nobody has asked again.
    first.sent, first.goal, second.goal = 6000, 0, 0
    assert crew.admit(second, [unit("b", 6000), unit("c", 4000)]) == ([unit("c", 4000)], [unit("b", 6000)])
    crew.disconnect()
    crew.lanes.append(first)
    assert crew.admit(first, [unit("d", 10**12)])[1] == []  # nobody knows
    first.goal = 0
    crew.ask(target)
    assert crew.admit(first, [unit("b", 6000)])[1] == []


def test_what_may_be_there_already_needs_no_room() -> None:
    crew, target = Crew(lanes=[Lane()]), Telling()
    target.says = Space(10)
    crew.ask(target)
    units = [unit("new", 11), unit("old", 10**9, may_be_there=True)]
    assert crew.admit(crew.lanes[0], units) == ([units[1]], [units[0]])


def test_it_costs_a_question_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[None] = []
    monkeypatch.setattr(LocalTransport, "room", lambda _: asked.append(None))
    local = Local(tmp_path)
    monkeypatch.setattr(LocalTransport, "batch_files", 20)
    for number in range(1000):
        local.put(str(number), b"")
    with Stream(config.load(local.ini)) as stream:
        summary = stream.run_pass(patient=False)
    assert summary.counts[Kind.DELIVERED] == 1000
    assert 1 <= len(asked) <= 2 + 2 * summary.seconds < 40


# -- waited for --------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    target = tmp_path / "target"
    target.mkdir()
    with small_disk(target, "size=512k,mode=755"):
        yield target


@pytest.mark.needs("root", "mount", "umount")
def test_what_does_not_fit_is_not_begun(tmp_path: Path, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = _local(tmp_path)
    for number in range(4):
        local.put(f"large-{number}", bytes(300_000))
        local.put(f"small-{number}", bytes(1000))
    sent: list[str] = []
    send = LocalTransport._copy

    def noted(self: LocalTransport, one: Unit) -> Unit:
        sent.append(one.path)
        return send(self, one)

    monkeypatch.setattr(LocalTransport, "_copy", noted)
    told: list[Event] = []
    with Stream(config.load(local.ini), told.append) as stream:
        for _ in range(3):
            summary = stream.run_pass(patient=False)
            assert isinstance(summary.error, NoRoom)
            assert summary.waiting == 3
    assert len([path for path in sent if path.startswith("large")]) == 1
    assert len([path for path in sent if path.startswith("small")]) == 4
    # It is the target's affair: no unit has failed.
    assert list(entries(local.state / "x/ledger.sqlite", states=[State.WAITING])) == []
    assert {event.reason for event in told if event.kind is Kind.TARGET} == {str(summary.error)}


def _local(tmp_path: Path) -> Local:
    """A stream the target of which is there already."""
    (tmp_path / "rest").mkdir()
    local = Local(tmp_path / "rest")
    local.target = tmp_path / "target"
    local.configure("lanes = 1")
    return local


def full(installed: Installed) -> list[Condition]:
    """What people are told of targets that are full."""
    told = (one for board in read_all(installed.state) for one in board.conditions)
    return [one for one in told if one.trouble is Trouble.FULL]


@pytest.mark.needs("root", "mount", "umount", "sshd")
def test_a_full_target_is_waited_for(tmp_path: Path, sshd: Sshd) -> None:
    installed = Installed(tmp_path)
    target = sshd.root / f"small-{secrets.token_hex(4)}"
    target.mkdir()
    ssh = by_ssh(sshd)
    try:
        with small_disk(target, "size=512k,mode=755"):
            (target / "ballast").write_bytes(bytes(420_000))
            installed.add("a", f"{ssh['outgoing']}\ntarget_dir = {target}", ssh["more"])
            names = {f"dir/{number}" for number in range(12)}
            for name in names:
                installed.put("a", name, secrets.token_bytes(40_000))
            installed.start()
            until(lambda: installed.stream("a")["state"] == "waiting for target")
            assert "the target is full: no room for dir/" in installed.stream("a")["why"]
            # What comes meanwhile and fits need not wait for the others.
            installed.put("a", "small", b"small")
            until(lambda: (target / "small").exists())
            waits = installed.log.count("the target is full")
            assert waits == 1
            assert [(one.begun, one.is_open) for one in full(installed)] == [(1, True)]
            assert installed.stream("a")["failed"] == 0
            subprocess.run(["mount", "-o", "remount,size=4m", target], check=True)
            until(lambda: installed.left("a") == set(), deadline=60)
            found = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
            assert found == names | {"small", "ballast"}
            assert installed.stream("a")["quarantined"] == 0
            until(lambda: [(one.begun, one.is_open) for one in full(installed)] == [(1, False)])
            installed.run("stop")
    finally:
        installed.close()
