"""A fault of our own in one of the threads that carry ranges is never taken for bytes that arrived."""

from __future__ import annotations

import threading
from pathlib import Path

import psutil
import pytest

from mistamover.testing.rig import Rig, errors, noise
from mistamover.transports import ranges
from mistamover.transports.sftp_client import SftpClient
from tests.sshd import Sshd, is_gone
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


def sessions() -> set[int]:
    """Our programs that hold a session of SFTP."""
    ours = [one for one in psutil.Process().children() if not is_gone(one)]
    return {one.pid for one in ours if one.cmdline()[-1:] == ["sftp"]}
