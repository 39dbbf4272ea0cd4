"""SFTP carried by paramiko."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

from mistamover.testing.rig import BIG, Rig, deliver, failed, noise, tree
from mistamover.transports.contract import Proof
from tests.sshd import Sshd
from tests.transports.sftp_contract import READBACK, SftpConnectionContract, SftpContract, options

pytestmark = pytest.mark.needs("sshd")


class TestParamiko(SftpContract):
    """On a server with a shell."""

    connector: ClassVar[str] = "paramiko"
    crowds: ClassVar[tuple[int, ...]] = (40,)


class TestParamikoConnection(SftpConnectionContract):
    """When the far side goes away."""

    connector: ClassVar[str] = "paramiko"


def test_a_server_without_a_shell_serves_by_readback(sshd_no_shell: Sshd, tmp_path: Path) -> None:
    rig = Rig(tmp_path, options(sshd_no_shell, "paramiko"))
    try:
        rig.put("deep/big", noise(BIG))
        rig.put("empty", b"")
        rig.crowd(40)
        transport = rig.open()
        assert transport.capabilities.proofs == READBACK
        delivered = deliver(transport, rig.units(transport))
        assert failed(delivered) == {}
        assert {outcome.unit.proof for outcome in delivered.values()} == {Proof.READBACK.value}
        assert tree(rig.target) == tree(rig.spool)
    finally:
        rig.close()
