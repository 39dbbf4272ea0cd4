"""A target that is the spool itself: each source would be taken for its own delivery, and removed."""

from __future__ import annotations

from pathlib import Path

import pytest

from mistamover.config import load
from mistamover.errors import Exit, TargetRefused
from mistamover.stream import Stream
from tests.faults.rig import NAME, Rig, Server
from tests.rsyncd import MODULE, Rsyncd
from tests.sshd import Sshd

WAYS = ["openssh", "rsync_ssh", "rsyncd", "proftpd"]


@pytest.fixture(params=WAYS)
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Rig:
    """A stream over this way, to a server of this host."""
    server: Server = request.getfixturevalue(request.param if request.param in {"rsyncd", "proftpd"} else "sshd")
    rig = Rig(tmp_path / "rig", server, request.param)
    rig.oracle.put("only copy", b"precious")
    return rig


def refused(rig: Rig, target: Path, mode: str = "move") -> str:
    """What is said where this is the target."""
    module = MODULE if isinstance(rig.server, Rsyncd) else ""
    rig.write({"outgoing": {"target_dir": f"{module}{target}", "transfer_mode": mode}})
    with Stream(load(rig.stream)) as stream:
        summary = stream.run_pass(patient=True)
    assert (rig.spool / "only copy").read_bytes() == b"precious"
    assert isinstance(summary.error, TargetRefused)
    assert summary.exit == Exit.TARGET
    return str(summary.error)


@pytest.mark.parametrize("mode", ["move", "mirror"])
def test_the_spool_is_no_target_over_the_network_either(rig: Rig, tmp_path: Path, mode: str) -> None:
    detour = tmp_path / "detour"
    detour.symlink_to(rig.spool)
    assert "is the spool itself" in refused(rig, detour, mode)
    assert not [*(rig.spool / ".mistamover" / NAME).iterdir()]


def test_a_directory_in_the_spool_is_no_target_either(tmp_path: Path, sshd: Sshd) -> None:
    """What is delivered there would be found again, and moved one directory deeper each time."""
    for way in ("openssh", "rsync_ssh"):
        rig = Rig(tmp_path / way, sshd, way)
        rig.oracle.put("only copy", b"precious")
        below = rig.spool / "below"
        below.mkdir()
        (tmp_path / f"to {way}").symlink_to(rig.spool)
        assert "lies in it" in refused(rig, tmp_path / f"to {way}" / "below")
