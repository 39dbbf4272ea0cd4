"""Servers that hold few files open at the same time."""

from __future__ import annotations

from pathlib import Path

import pytest

from mistamover.testing.rig import Rig, deliver, files, noise
from tests.conftest import StartSshd
from tests.sshd import sftp_server
from tests.transports.sftp_contract import options

pytestmark = pytest.mark.needs("sshd", "ssh", "ssh-keygen")

FEW = 40
MANY = 300


def test_no_more_files_are_opened_than_the_server_holds(start_sshd: StartSshd, tmp_path: Path) -> None:
    wrapper = tmp_path / "sftp-server.sh"
    wrapper.write_text(f"#!/bin/sh\nulimit -n {FEW}\nexec {sftp_server()}\n")
    wrapper.chmod(0o755)
    (tmp_path / "rig").mkdir()
    rig = Rig(tmp_path / "rig", options(start_sshd(subsystem=str(wrapper)), "openssh"))
    for number in range(MANY):
        rig.put(f"{number}", noise(number))
    transport = rig.open()
    try:
        delivered = deliver(transport, rig.units(transport))
        assert not [outcome for outcome in delivered.values() if outcome.error]
        assert files(rig.target) == files(rig.spool)
    finally:
        rig.close()
