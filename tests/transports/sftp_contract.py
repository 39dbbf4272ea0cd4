"""The conformance suite over SFTP: on a server with a shell, or on one without."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import pytest

from mistamover.testing.contract import ConnectionContract, SendingContract, Server, TransportContract
from mistamover.transports.contract import Proof
from tests.sshd import Sshd

READBACK = frozenset({Proof.READBACK, Proof.SIZE, Proof.NONE})


def options(server: Sshd, connector: str) -> Mapping[str, Mapping[str, str]]:
    """The options that lead to a server."""
    return {
        "outgoing": {"transfer_protocol": "sftp", "target_host": server.host},
        "sftp": {
            "connector": connector,
            "port": str(server.port),
            "username": server.username,
            "key_file": str(server.key_file),
            "known_hosts": str(server.known_hosts),
        },
    }


class OverSftp(SendingContract):
    """A real sshd on loopback."""

    connector: ClassVar[str]
    server: ClassVar[str] = "sshd"
    strongest: ClassVar[Proof] = Proof.DIGEST
    proofs: ClassVar[frozenset[Proof]] = READBACK | {Proof.DIGEST}
    time_step: ClassVar[int] = 10**9

    def options(self, request: pytest.FixtureRequest) -> Mapping[str, Mapping[str, str]]:
        return options(request.getfixturevalue(self.server), self.connector)


class SftpContract(OverSftp, TransportContract):
    """The whole suite for a server with a shell."""


class WithoutShell(OverSftp):
    """What differs for a server that gives SFTP and no commands: what was staged is read back."""

    server: ClassVar[str] = "sshd_no_shell"
    crowds: ClassVar[tuple[int, ...]] = (40,)
    strongest: ClassVar[Proof] = Proof.READBACK
    proofs: ClassVar[frozenset[Proof]] = READBACK


class SftpConnectionContract(ConnectionContract):
    """What is to be said of connections."""

    connector: ClassVar[str]

    @pytest.fixture
    def server(self, sshd_to_hurt: Sshd) -> Server:
        return sshd_to_hurt

    def options_of(self, server: Server) -> Mapping[str, Mapping[str, str]]:
        assert isinstance(server, Sshd)
        return options(server, self.connector)
