"""A target that is the spool itself: each source would be taken for its own delivery, and removed."""

from __future__ import annotations

from pathlib import Path

import pytest

from mistamover.config import load
from mistamover.errors import Exit, TargetRefused
from mistamover.stream import Stream
from tests.sshd import Sshd


def _stream_file(path: Path, spool: Path, target: Path, sshd: Sshd) -> Path:
    path.write_text(
        f"[global]\nstate_dir = {path.parent}/state\n"
        f"[data_stream]\nname = same\ndirectory = {spool}\nsettle_time = 0\n"
        f"[outgoing]\ntransfer_protocol = sftp\ntarget_host = {sshd.host}\ntarget_dir = {target}\n"
        f"[sftp]\nport = {sshd.port}\nusername = {sshd.username}\nkey_file = {sshd.key_file}\n"
        f"known_hosts = {sshd.known_hosts}\n"
    )
    return path


@pytest.mark.needs("sshd")
@pytest.mark.parametrize("mode", ["move", "mirror"])
def test_the_spool_is_no_target_over_sftp_either(sshd: Sshd, tmp_path: Path, mode: str) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    (spool / "only copy").write_bytes(b"precious")
    detour = tmp_path / "detour"
    detour.symlink_to(spool)
    settings = load(
        _stream_file(tmp_path / "s.ini", spool, detour, sshd), None, {"CONFIG__outgoing__transfer_mode": mode}
    )
    with Stream(settings) as stream:
        summary = stream.run_pass(patient=True)
    assert (spool / "only copy").read_bytes() == b"precious"
    assert isinstance(summary.error, TargetRefused)
    assert "is the spool itself" in str(summary.error)
    assert summary.exit == Exit.TARGET
