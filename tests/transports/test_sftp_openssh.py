"""SFTP carried by the installed ssh."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar

import pytest

from mistamover.errors import NameTaken, NotTaken, TargetDown, TargetRefused
from mistamover.testing.needs import find
from mistamover.testing.rig import BIG, Rig, deliver, errors, failed, files, good, noise, prove, tree, write
from mistamover.transports.contract import Level
from tests.conftest import StartSshd
from tests.sshd import Account, Sshd, sftp_server
from tests.transports.sftp_contract import SftpConnectionContract, SftpContract, WithoutShell, options

pytestmark = pytest.mark.needs("sshd", "ssh")


class TestOpenSsh(SftpContract):
    """On a server with a shell."""

    connector: ClassVar[str] = "openssh"


class TestOpenSshWithoutShell(WithoutShell):
    """On a server that gives SFTP and nothing else."""

    connector: ClassVar[str] = "openssh"


class TestOpenSshConnection(SftpConnectionContract):
    """When the far side goes away."""

    connector: ClassVar[str] = "openssh"


@pytest.fixture
def make_rig(tmp_path: Path) -> Iterator[Callable[[Sshd], Rig]]:
    """Make a rig that leads to a server."""
    with ExitStack() as stack:

        def make(server: Sshd) -> Rig:
            rig = Rig(tmp_path, options(server, "openssh"))
            stack.callback(rig.close)
            return rig

        yield make


MakeRig = Callable[[Sshd], Rig]


@pytest.fixture
def plain(start_sshd: StartSshd, make_rig: MakeRig) -> Rig:
    """A server of SFTP version 3 and nothing else, as others than OpenSSH's are."""
    requests = subprocess.run([sftp_server(), "-Q", "requests"], capture_output=True, text=True, check=True).stdout
    extensions = requests.split()[requests.split().index("posix-rename") :]
    rig = make_rig(start_sshd(subsystem=f"{sftp_server()} -P {','.join(extensions)}"))
    rig.put("deep/big", noise(BIG))
    rig.put("taken")
    rig.put("directory")
    rig.crowd(40)
    write(rig.target / "taken", b"theirs")
    (rig.target / "directory").mkdir()
    return rig


@pytest.mark.parametrize("verify", ["digest", "readback"])
def test_a_server_without_extensions_serves(plain: Rig, verify: str) -> None:
    transport = plain.open(verify=verify)
    assert not transport.capabilities.sync
    assert not transport.capabilities.replace
    units = plain.units(transport)
    assert failed(deliver(transport, units)) == {"taken": NameTaken, "directory": NameTaken}
    assert errors(transport.publish(units)) == {unit.path: NameTaken for unit in units}
    assert files(plain.target) == _all_but_taken(plain)
    assert [finding for finding in transport.examine() if finding.level is Level.FAIL] == []


def _all_but_taken(rig: Rig) -> dict[str, bytes]:
    return {path: data for path, data in files(rig.spool).items() if path != "directory"} | {"taken": b"theirs"}


def test_a_server_without_extensions_replaces_nothing(plain: Rig) -> None:
    transport = plain.open(existing="replace")
    problems = failed(deliver(transport, plain.units(transport)))
    assert problems == {"taken": NotTaken, "directory": NameTaken}
    assert files(plain.target) == _all_but_taken(plain)


@pytest.mark.needs("strace")
@pytest.mark.parametrize("error", ["EINVAL", "ENOSYS", "EIO"])
def test_a_file_system_that_syncs_no_directories_is_taken_at_its_word(
    start_sshd: StartSshd, make_rig: MakeRig, tmp_path: Path, error: str
) -> None:
    fault = f"-P {tmp_path}/target -e trace=fsync -e inject=fsync:error={error}"
    rig = make_rig(start_sshd(subsystem=f"{find('strace')} -f -o /dev/null {fault} {sftp_server()}"))
    rig.put("file")
    transport = rig.open()
    units = prove(transport, rig.units(transport))
    if error == "EIO":
        with pytest.raises(TargetDown, match="on disk"):
            list(transport.publish(units))
    else:
        good(transport.publish(units))
        assert tree(rig.target) == tree(rig.spool)


def test_a_shell_start_up_that_prints_is_named(start_sshd: StartSshd, make_rig: MakeRig) -> None:
    rig = make_rig(start_sshd(subsystem=f"echo Welcome to this host; exec {sftp_server()}"))
    with pytest.raises(TargetRefused, match=r"Welcome.*start-up"):
        rig.open()


@pytest.mark.needs("root", "useradd")
class TestUnprivilegedAccount:
    """The far side is a user who may not write everywhere."""

    @pytest.fixture
    def rig(self, start_sshd: StartSshd, account: Account, make_rig: MakeRig) -> Rig:
        rig = make_rig(start_sshd(account=account))
        rig.target = account.home / "root"
        return rig

    def test_a_target_that_it_may_not_write_is_refused(self, rig: Rig) -> None:
        rig.target.chmod(0o555)
        os.chown(rig.target, 0, 0)
        with pytest.raises(TargetRefused, match="right to write"):
            rig.open()

    def test_a_target_that_it_may_not_see_is_refused(self, rig: Rig) -> None:
        closed = rig.target / "closed"
        closed.mkdir(mode=0o700)
        with pytest.raises(TargetRefused, match=r"[Pp]ermission"):
            rig.open(target_dir=str(closed / "inside"))

    def test_a_directory_that_it_may_not_write_waits_alone(self, rig: Rig) -> None:
        rig.put("closed/file")
        rig.put("closed/new/file")
        rig.put("open/file")
        (rig.target / "closed").mkdir()
        transport = rig.open()
        problems = failed(deliver(transport, rig.units(transport)))
        assert problems == {"closed/file": NotTaken, "closed/new/file": NotTaken}
        assert files(rig.target).keys() == {"open/file"}

    @pytest.mark.parametrize(
        ("preserve", "crowd", "verify"), [("yes", 0, "auto"), ("yes", 40, "readback"), ("no", 40, "auto")]
    )
    def test_files_that_nobody_may_write_or_read_arrive(
        self, rig: Rig, preserve: str, crowd: int, verify: str
    ) -> None:
        for mode in (0o000, 0o200, 0o400, 0o444):
            rig.put(f"{mode:o}", b"small").chmod(mode)
            rig.put(f"{mode:o} big", noise(BIG)).chmod(mode)
        rig.crowd(crowd)
        transport = rig.open(preserve_mode=preserve, verify=verify)
        units = rig.units(transport)
        good(transport.send(units))
        assert failed(deliver(transport, units)) == {}
        assert files(rig.target) == files(rig.spool)
        if preserve == "yes":
            assert stat.S_IMODE((rig.target / "400").stat().st_mode) == 0o400
