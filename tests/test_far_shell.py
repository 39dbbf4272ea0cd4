"""The program at the far side: what it cannot do any more is the target's fault, never the units'."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mistamover.config import load
from mistamover.errors import TargetDown
from mistamover.events import Kind
from mistamover.ledger import entries
from mistamover.stream import Stream, state_directory
from tests.conftest import StartSshd
from tests.sshd import Sshd

FAILS_ONCE_ASKED = """#!/bin/sh
case "$1" in --help) echo "-f, --file-system";; *) exit 1;; esac
"""


def _settings(tmp_path: Path, sshd: Sshd) -> Path:
    for name in ("spool", "target"):
        (tmp_path / name).mkdir()
    stream = tmp_path / "s.ini"
    stream.write_text(
        f"[global]\nstate_dir = {tmp_path}/state\n"
        f"[data_stream]\ndirectory = {tmp_path}/spool\nsettle_time = 0\n"
        f"[outgoing]\ntransfer_protocol = sftp\ntarget_host = {sshd.host}\ntarget_dir = {tmp_path}/target\n"
        "retry_count = 1\nlanes = 1\n"
        f"[sftp]\nport = {sshd.port}\nusername = {sshd.username}\nkey_file = {sshd.key_file}\n"
        f"known_hosts = {sshd.known_hosts}\n"
    )
    return stream


@pytest.mark.needs("sshd")
def test_a_far_disk_that_cannot_be_synced_makes_the_stream_wait(start_sshd: StartSshd, tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "sync").write_text(FAILS_ONCE_ASKED)
    (programs / "sync").chmod(0o755)
    sshd = start_sshd(environment={"PATH": f"{programs}:{os.environ['PATH']}"})
    settings = load(_settings(tmp_path, sshd), None, {})
    for number in range(40):
        (tmp_path / "spool" / f"{number}").write_text(f"unit {number}")
    with Stream(settings) as stream:
        summary = stream.run_pass(patient=True)
    assert isinstance(summary.error, TargetDown)
    assert summary.counts[Kind.QUARANTINED] == 0
    assert {path.name for path in (tmp_path / "spool").iterdir() if path.is_file()} == {str(n) for n in range(40)}
    assert [path.name for path in (tmp_path / "target").iterdir()] == [".mistamover"]
    assert list(entries(state_directory(settings) / "ledger.sqlite")) == []
