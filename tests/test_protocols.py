"""One stream file, of which nothing but the line ``transfer_protocol`` changes."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from mistamover import digest
from mistamover.checksums import checksum_line, parse_manifest
from mistamover.config import load
from mistamover.events import Event, Kind
from mistamover.ledger import entries
from mistamover.stream import Stream
from mistamover.testing.rig import files, noise, write
from tests import ftpd
from tests.ftpd import Proftpd
from tests.program import command, ended, environment, tree
from tests.rsyncd import PASSWORD, USER, Rsyncd
from tests.sshd import Sshd
from tests.transports.test_rsync import over_ssh

PROOFS = {
    "local": "readback",
    "sftp": "digest",
    "rsync_ssh": "digest",
    "rsync_native": "digest",
    "ftp": "digest",
    "ftps": "readback",
}
"""The six, and the strongest proof that each server of ours gives."""
pytestmark = [
    pytest.mark.needs("root", "sshd", "rsync", "setpriv", "proftpd", "openssl", "vsftpd"),
    pytest.mark.parametrize("protocol", PROOFS),
]
TREE = {
    "empty": b"",
    "two words": b"small",
    "deep/down/caf\u00e9": noise(700_001),
    "-deep/*.[a-z]": b"$(touch x)",
    **{f"many/{number}": noise(number, "many") for number in range(40)},
}


Configure = Callable[..., Path]


@pytest.fixture
def configure(
    tmp_path: Path, protocol: str, sshd: Sshd, rsyncd: Rsyncd, proftpd: Proftpd, vsftpd: ftpd.Options
) -> Configure:
    """Write the stream file, and its directories; gives it."""
    (tmp_path / "target").mkdir()
    for name, content in TREE.items():
        write(tmp_path / "spool" / name, content)
    ssh = over_ssh(sshd)["rsync_ssh"]
    native = {"port": str(rsyncd.port), "username": USER, "password": PASSWORD}

    def configure(mode: str = "move", near: Mapping[str, str] = {}, far: Mapping[str, str] = {}) -> Path:
        sections: Mapping[str, Mapping[str, str]] = {
            "global": {"state_dir": f"{tmp_path}/state"},
            "data_stream": {"directory": f"{tmp_path}/spool", "settle_time": "0", **near},
            "outgoing": {
                "target_host": "127.0.0.1",
                "target_dir": f"{tmp_path}/target",
                "transfer_mode": mode,
                "transfer_protocol": protocol,
                **far,
            },
            "sftp": ssh,
            "rsync_ssh": ssh,
            "rsync_native": native,
            "ftp": ftpd.to(proftpd)["ftp"],
            "ftps": vsftpd["ftps"],
        }
        file = tmp_path / "all.ini"
        file.touch(mode=0o600)
        lines = [
            f"[{title}]\n" + "\n".join(map(" = ".join, options.items())) for title, options in sections.items()
        ]
        file.write_text("\n".join(lines))
        return file

    return configure


def proofs(top: Path) -> dict[str, str]:
    return {entry.path: entry.proof for entry in entries(top / "state/all/ledger.sqlite")}


def test_a_tree_is_moved(configure: Configure, tmp_path: Path, protocol: str) -> None:
    times = {name: int((tmp_path / "spool" / name).stat().st_mtime) for name in TREE}
    started = subprocess.Popen(
        command("run", "--once", configure()),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(tmp_path),
    )
    result = ended(started)
    assert result.code == 0, result
    assert files(tmp_path / "target") == TREE
    assert files(tmp_path / "spool") == {}
    assert times == {name: int((tmp_path / "target" / name).stat().st_mtime) for name in TREE}
    assert proofs(tmp_path) == dict.fromkeys(TREE, PROOFS[protocol])
    assert not [path for path in (tmp_path / "target/.mistamover").rglob("*") if not path.is_dir()]


def test_a_tree_is_mirrored(configure: Configure, tmp_path: Path, protocol: str) -> None:
    spool, target = tmp_path / "spool", tmp_path / "target"
    stream = configure("mirror")

    def one_pass(expected: Kind, sent: int) -> None:
        """All units come to this, so many bytes are sent, and the spool stays as it is."""
        before = tree(spool)
        events, found = run_pass(stream)
        assert {event.path for event in events if event.kind is expected} == TREE.keys()
        assert found == sent
        assert tree(spool) == before
        assert files(target) == files(spool)
        assert set(proofs(tmp_path).values()) <= {PROOFS[protocol], "readback"}

    size = sum(map(len, TREE.values()))
    one_pass(Kind.DELIVERED, size)
    inodes = {path: path.stat().st_ino for path in target.rglob("*")}
    one_pass(Kind.UNCHANGED, 0)
    shutil.rmtree(tmp_path / "state")
    one_pass(Kind.DELIVERED, 0)
    one_pass(Kind.UNCHANGED, 0)
    assert inodes == {path: path.stat().st_ino for path in target.rglob("*")}
    changed = write(spool / "many/7", b"a version that came later")
    os.utime(changed)
    before = tree(spool)
    events, sent = run_pass(stream)
    assert sent == changed.stat().st_size
    assert {event.path for event in events if event.kind is Kind.DELIVERED} == {"many/7"}
    assert files(target) == files(spool) == {**TREE, "many/7": b"a version that came later"}
    assert tree(spool) == before


def test_a_tree_is_proven_before_it_is_sent_and_listed_when_it_was(configure: Configure, tmp_path: Path) -> None:
    spool, target = tmp_path / "spool", tmp_path / "target"
    lines = [checksum_line(digest.of_bytes("sha256", data), name) for name, data in TREE.items()]
    write(spool / "wrong", b"wrong")
    write(spool / "SHA256SUMS", b"".join([*lines, checksum_line("0" * 64, "wrong")]))
    stream = configure("mirror", {"control": "manifest"}, {"write_manifest": "sha256"})
    events, _ = run_pass(stream)
    assert {event.path for event in events if event.kind is Kind.QUARANTINED} == {"wrong"}
    assert {event.path for event in events if event.kind is Kind.WAITING} == {"SHA256SUMS"}
    (manifest,) = target.glob("SHA256SUMS.all.*")
    subprocess.run(["sha256sum", "--strict", "-c", manifest.name], cwd=target, check=True, capture_output=True)
    assert parse_manifest(manifest.read_bytes(), "sha256").keys() == TREE.keys()
    assert files(target).keys() == {*TREE, manifest.name}


def run_pass(file: Path) -> tuple[list[Event], int]:
    """What happens in one pass, and how many bytes are sent."""
    events: list[Event] = []
    sent: set[int] = {0}

    def report(event: Event) -> None:
        events.append(event)
        sent.add(sum(lane.sent for lane in stream.crew.lanes))

    with Stream(load(file, None, {}), report) as stream:
        summary = stream.run_pass(patient=True)
    assert summary.error is None
    return events, max(sent)
