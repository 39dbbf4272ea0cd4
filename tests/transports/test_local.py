"""The local transport."""

from __future__ import annotations

import ctypes  # noqa: F401 - who has given up his rights may find no modules any more
import errno
import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import pytest

from mistamover.errors import NotTaken, TargetDown, TargetFull, TargetRefused, UnitError
from mistamover.testing.contract import TransportContract
from mistamover.testing.rig import (
    BIG,
    Rig,
    by_path,
    deliver,
    failed,
    files,
    good,
    noise,
    prove,
    remount,
    small_disk,
    tree,
)
from mistamover.transports.contract import Level, Proof
from mistamover.unit import OWN_NAME


class LocalContract(TransportContract):
    """The suite for a directory of this host."""

    strongest: ClassVar[Proof] = Proof.READBACK
    proofs: ClassVar[frozenset[Proof]] = frozenset({Proof.READBACK, Proof.SIZE, Proof.NONE})
    long_paths: ClassVar[bool] = True

    def options(self, request: pytest.FixtureRequest) -> Mapping[str, Mapping[str, str]]:
        return {"outgoing": {"transfer_protocol": "local"}}


class TestLocal(LocalContract):
    """All of it."""


@pytest.fixture
def nobody() -> Iterator[Path]:
    """A directory of a user without rights, as whom the test runs."""
    directory = Path(tempfile.mkdtemp())
    user = pwd.getpwnam("nobody").pw_uid
    os.chown(directory, user, -1)
    os.seteuid(user)
    try:
        yield directory
    finally:
        os.seteuid(0)
        shutil.rmtree(directory)


@pytest.mark.needs("root")
class TestUnprivileged:
    """What root would never see."""

    @pytest.fixture
    def rig(self, nobody: Path) -> Iterator[Rig]:
        rig = Rig(nobody, {"outgoing": {"transfer_protocol": "local"}})
        yield rig
        rig.close()

    def test_what_an_earlier_try_left_read_only_is_written_anew(self, rig: Rig) -> None:
        for name in "abc":
            rig.put(name, noise(BIG if name == "a" else 10)).chmod(0o400)
        transport = rig.open(preserve_mode="yes")
        units = rig.units(transport)
        good(transport.send(units))
        assert failed(deliver(transport, units)) == {}
        assert tree(rig.target) == tree(rig.spool)

    def test_a_file_that_it_may_not_read_fails_alone(self, rig: Rig) -> None:
        rig.put("closed").chmod(0o000)
        rig.put("open")
        transport = rig.open()
        assert failed(deliver(transport, rig.units(transport))) == {"closed": UnitError}
        assert files(rig.target).keys() == {"open"}

    def test_a_directory_that_it_may_not_write_waits_alone(self, rig: Rig) -> None:
        rig.put("closed/file")
        rig.put("closed/new/file")
        rig.put("open/file")
        (rig.target / "closed").mkdir(mode=0o555)
        transport = rig.open()
        problems = failed(deliver(transport, rig.units(transport)))
        assert problems == {"closed/file": NotTaken, "closed/new/file": NotTaken}
        assert files(rig.target).keys() == {"open/file"}

    @pytest.mark.parametrize(("mode", "what"), [(0o555, "{}/.mistamover/"), (0o000, "{}: ")])
    def test_a_target_that_it_may_not_write_is_refused(self, rig: Rig, mode: int, what: str) -> None:
        rig.target.chmod(mode)
        with pytest.raises(TargetRefused, match=f"^{what.format(rig.target)}.*Permission denied; "):
            rig.open()
        rig.target.chmod(0o755)


def test_times_are_exact(tmp_path: Path) -> None:
    rig = Rig(tmp_path, {"outgoing": {"transfer_protocol": "local"}})
    for mtime in (-1, 1, 2**32 * 10**9 + 1):
        os.utime(rig.put(str(mtime)), ns=(mtime, mtime))
    transport = rig.open()
    assert failed(deliver(transport, rig.units(transport))) == {}
    for path in rig.spool.iterdir():
        assert (rig.target / path.name).stat().st_mtime_ns == path.stat().st_mtime_ns
    rig.close()


@pytest.mark.needs("root", "mount", "umount")
def test_a_staging_directory_on_another_file_system_is_found(tmp_path: Path) -> None:
    rig = Rig(tmp_path, {"outgoing": {"transfer_protocol": "local"}})
    (rig.target / OWN_NAME).mkdir()
    with small_disk(rig.target / OWN_NAME, "size=1m"):
        rig.put("file")
        transport = rig.open()
        assert [finding.level for finding in transport.examine()].count(Level.FAIL) == 1
        assert failed(deliver(transport, rig.units(transport))) == {"file": NotTaken}
        rig.close()


@pytest.mark.needs("root", "mount", "umount")
def test_a_read_only_target_is_down(tmp_path: Path) -> None:
    rig = Rig(tmp_path, {"outgoing": {"transfer_protocol": "local"}})
    with small_disk(rig.target, "size=1m"):
        rig.put("file")
        transport = rig.open()
        units = prove(transport, rig.units(transport))
        remount(rig.target, "ro")
        with pytest.raises(TargetDown, match="Read-only"):
            list(transport.publish(units))
        with pytest.raises(TargetDown, match="Read-only"):
            list(transport.send(units))
        with pytest.raises(TargetDown, match="Read-only"):
            transport.sweep()
        rig.close()


@pytest.mark.parametrize(
    ("code", "error"), [(errno.EIO, NotTaken), (errno.ENOSPC, TargetFull), (errno.EDQUOT, TargetFull)]
)
def test_a_staged_file_that_cannot_be_closed_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, error: type[UnitError]
) -> None:
    """Where network file systems tell what they could not write."""
    rig = Rig(tmp_path, {"outgoing": {"transfer_protocol": "local"}})
    rig.put("bad", noise(10))
    transport = rig.open()
    close = os.close

    def fail(fd: int) -> None:
        is_staged = os.readlink(f"/proc/self/fd/{fd}").startswith(f"{transport.staging}/")
        close(fd)
        if is_staged:
            raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "close", fail)
        assert failed(by_path(transport.send(rig.units(transport)))) == {"bad": error}
    assert failed(deliver(transport, rig.units(transport))) == {}
    rig.close()


def test_a_target_that_another_directory_took_the_place_of_is_down(tmp_path: Path) -> None:
    rig = Rig(tmp_path, {"outgoing": {"transfer_protocol": "local"}})
    transport = rig.open()
    assert not transport.is_stopped()
    rig.target.rename(tmp_path / "old")
    with pytest.raises(TargetDown, match="No such file"):
        transport.is_stopped()
    rig.target.mkdir()
    with pytest.raises(TargetDown, match="took the place"):
        transport.is_stopped()
    rig.close()
