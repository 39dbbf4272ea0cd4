"""What is said of a host that cannot be reached: what was tried, and what may be wrong."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from mistamover import config
from mistamover.errors import TargetDown
from mistamover.spool import Spool
from mistamover.transports import transport_class
from tests.sshd import free_port

LOG_INS = {
    "sftp": "connector = openssh",
    "sftp by paramiko": "connector = paramiko\nusername = mover",
    "rsync_ssh": "",
    "rsync_native": "username = mover",
    "ftp": "username = mover\npassword = secret",
    "ftps": "username = mover\npassword = secret",
}


def said_of(host: str, protocol: str, top: Path) -> str:
    """Why a host was not reached, as a stream tells it."""
    section = protocol.partition(" ")[0]
    (top / "spool").mkdir()
    stream = top / "x.ini"
    stream.touch(mode=0o600)
    stream.write_text(
        f"[global]\nstate_dir = {top}/state\n[data_stream]\ndirectory = {top}/spool\n"
        f"[outgoing]\ntransfer_protocol = {section}\ntarget_host = {host}\ntarget_dir = /module/data\n"
        f"[{section}]\n{LOG_INS[protocol]}\nport = {free_port()}\nconnect_timeout = 20\n"
    )
    settings = config.load(stream, environ={})
    with closing(Spool(top / "spool", mirror=True)) as spool:
        transport = transport_class(section)(settings, spool, lambda _: None)
        with closing(transport), pytest.raises(TargetDown) as caught:
            transport.open()
    return str(caught.value)


@pytest.mark.needs("ssh", "rsync")
@pytest.mark.parametrize("protocol", LOG_INS)
def test_nobody_listens(protocol: str, tmp_path: Path) -> None:
    said = said_of("127.0.0.1", protocol, tmp_path)
    assert said.startswith("127.0.0.1: ")
    assert said.endswith(f"; does a server run there, and is [{protocol.partition(' ')[0]}] port right?")


@pytest.mark.needs("ssh", "rsync")
@pytest.mark.parametrize("protocol", LOG_INS)
def test_nobody_has_that_name(protocol: str, tmp_path: Path) -> None:
    said = said_of("no-such-host.invalid", protocol, tmp_path)
    assert said.startswith("no-such-host.invalid: ")
    assert said.endswith("; look at [outgoing] target_host")
