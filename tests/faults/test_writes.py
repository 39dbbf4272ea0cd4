"""Faults of the target's disk and of what it stores: nothing is published or removed on its word alone."""

from __future__ import annotations

import re
import secrets
from pathlib import Path

import pytest

from tests.faults.faulty_server import FaultyServer
from tests.faults.oracle import Watcher
from tests.faults.rig import Rig, Run, finished, strace
from tests.sshd import wait_for

pytestmark = pytest.mark.needs("strace")

BIG = 4 * 2**20


def refused(run: Run, rig: Rig, name: str) -> None:
    """The file waits for another try, for a reason of the target's, and all the others are delivered."""
    rig.oracle.check()
    assert run.code == 1, run.text
    assert run.paths("waiting") == {name}, run.text
    assert not (rig.target / name).exists()
    assert (rig.spool / name).exists()
    assert not rig.oracle.staged()
    assert not rig.oracle.quarantined()


def test_one_write_in_the_middle_fails(far_rig: Rig, faulty: FaultyServer) -> None:
    # The server seeks before each write; a failing seek is a failing WRITE to its client.
    far_rig.oracle.put("big", secrets.token_bytes(BIG))
    faulty.arm("lseek", "error=ENOSPC:when=15")
    with Watcher(far_rig.oracle):
        run = far_rig.run()
    assert "INJECTED" in faulty.seen
    refused(run, far_rig, "big")
    faulty.disarm()
    far_rig.run_clean()


@pytest.mark.parametrize("number", [6, 8])
def test_one_write_of_many_small_files_fails(far_rig: Rig, faulty: FaultyServer, number: int) -> None:
    for name in "abcdef":
        far_rig.oracle.put(name, secrets.token_bytes(5000))
    faulty.arm("lseek", f"error=EIO:when={number}")
    run = far_rig.run()
    assert "INJECTED" in faulty.seen
    (waiting,) = run.paths("waiting")
    assert far_rig.oracle.delivered() == set("abcdef") - {waiting}
    refused(run, far_rig, waiting)
    faulty.disarm()
    far_rig.run_clean()


def test_files_may_not_grow_beyond_a_limit(far_rig: Rig, faulty: FaultyServer) -> None:
    # A quota of one file: a real write of which only a part is taken, then a real refusal.
    far_rig.oracle.put("big", secrets.token_bytes(BIG))
    far_rig.oracle.put("small", b"small")
    faulty.arm_with(f"trap '' XFSZ; ulimit -f {BIG // 1024 - 1}")
    refused(far_rig.run(), far_rig, "big")
    assert far_rig.oracle.delivered() == {"small"}
    faulty.disarm()
    far_rig.run_clean()


def test_a_file_cannot_be_put_on_disk(far_rig: Rig, faulty: FaultyServer) -> None:
    far_rig.oracle.put("one", b"1" * 5000)
    far_rig.oracle.put("two", b"2" * 5000)
    faulty.arm("fsync", "error=EIO:when=1")
    run = far_rig.run()
    (waiting,) = run.paths("waiting")
    refused(run, far_rig, waiting)
    faulty.disarm()
    far_rig.run_clean()


def test_a_file_cannot_be_closed(far_rig: Rig, faulty: FaultyServer) -> None:
    # Where a quota of a network file system shows.
    faulty.arm("close")
    far_rig.oracle.put("before", b"")
    far_rig.run_clean()
    closes = re.findall(r"close\(\d+<([^>]*)>", faulty.seen)
    number = max(number for number, path in enumerate(closes, 1) if path.startswith(f"{far_rig.staging}/"))
    far_rig.oracle.put("one", b"1" * 5000)
    faulty.arm("close", f"error=ENOSPC:when={number}")
    run = far_rig.run()
    assert "INJECTED" in faulty.seen
    refused(run, far_rig, "one")
    faulty.disarm()
    far_rig.run_clean()


def test_names_cannot_be_put_on_disk(far_rig: Rig, faulty: FaultyServer) -> None:
    far_rig.write({"outgoing": {"retry_count": 0}})
    far_rig.oracle.put("one", b"1" * 5000)
    faulty.arm("fsync", "error=EIO", paths=(far_rig.target,))
    # The second time, the name is there: it is still not known to be on disk.
    for _ in range(2):
        run = far_rig.run()
        assert "INJECTED" in faulty.seen
        assert run.code == 3, run.text
        assert (far_rig.spool / "one").exists()
        far_rig.oracle.check()
    faulty.disarm()
    far_rig.run_clean()


@pytest.mark.parametrize("harm", ["flip", "shorten", "remove"])
def test_staged_bytes_change(far_rig: Rig, faulty: FaultyServer, harm: str) -> None:
    far_rig.oracle.put("big", secrets.token_bytes(BIG))
    faulty.arm("fsync", "delay_enter=600000:when=1")
    process = far_rig.start()
    wait_for(lambda: "fsync(" in faulty.seen, "the file to be staged")
    spoil(far_rig, harm)
    run = finished(process)
    far_rig.oracle.check()
    assert run.paths("waiting") == {"big"}, run.text
    assert not (far_rig.target / "big").exists()
    faulty.disarm()
    far_rig.run_clean()


@pytest.mark.parametrize("harm", ["flip", "shorten", "lengthen"])
def test_staged_bytes_change_here(local: Rig, harm: str) -> None:
    local.oracle.put("big", secrets.token_bytes(BIG))
    log = local.base / "strace.log"
    process = local.start(under=strace("fsync", "delay_enter=600000:when=3", log=log))
    wait_for(lambda: log.exists() and "fsync(" in log.read_text() and bool(local.oracle.staged()), "staging")
    wait_for(lambda: bool(re.search(rf"fsync\(\d+<{re.escape(str(local.staging))}/", log.read_text())), "staging")
    spoil(local, harm)
    run = finished(process)
    local.oracle.check()
    assert run.paths("waiting") == {"big"}, run.text
    assert not (local.target / "big").exists()
    local.run_clean()


def spoil(rig: Rig, harm: str) -> None:
    """Do something to the file that is staged."""
    (staged,) = rig.oracle.staged()
    assert staged.stat().st_size == BIG
    with staged.open("r+b") as file:
        if harm == "flip":
            file.seek(BIG // 2)
            byte = file.read(1)
            file.seek(BIG // 2)
            file.write(bytes([byte[0] ^ 1]))
        elif harm == "shorten":
            file.truncate(BIG - 1)
        elif harm == "lengthen":
            file.truncate(BIG + 1)
        else:
            staged.unlink()


@pytest.mark.parametrize("number", [3, 4, 5, 6])
def test_a_sync_here_fails(local: Rig, number: int) -> None:
    # After that of the spool's own directory and those of the staging one: each file's.
    names = "abcd"
    for name in names:
        local.oracle.put(name, secrets.token_bytes(5000))
    run = local.run(under=strace("fsync", f"error=EIO:when={number}"))
    assert run.code == 1, run.text
    (waiting,) = run.paths("waiting")
    assert local.oracle.delivered() == set(names) - {waiting}
    local.oracle.check()
    local.run_clean()


def test_many_small_files_here_cannot_be_put_on_disk(local: Rig) -> None:
    """Nobody can say which of them are hit: asked for each, the kernel says that all is well."""
    local.write({"outgoing": {"retry_count": 0}})
    for number in range(20):
        local.oracle.put(f"{number}", b"%d" % number)
    run = local.run(under=strace("syncfs", "error=EIO"))
    assert run.code == 3, run.text
    assert local.oracle.delivered() == set()
    local.oracle.check()
    local.run_clean()


def test_names_here_cannot_be_put_on_disk(local: Rig) -> None:
    local.write({"outgoing": {"retry_count": 0}})
    local.run_clean()
    local.oracle.put("one", b"1" * 5000)
    for _ in range(2):
        run = local.run(under=strace("fsync", "error=EIO", paths=[local.target]))
        assert run.code != 0, run.text
        assert (local.spool / "one").exists()
        local.oracle.check()
    local.run_clean()


def test_the_source_cannot_be_read(local: Rig) -> None:
    local.oracle.put("bad", secrets.token_bytes(BIG))
    local.oracle.put("good", b"good")
    run = local.run(under=strace("readv", "error=EIO", paths=[local.spool / "bad"]))
    assert local.oracle.delivered() == {"good"}
    refused(run, local, "bad")
    local.run_clean()


def test_a_source_that_can_never_be_read_is_set_aside(local: Rig) -> None:
    local.write({"outgoing": {"retry_count": 2}})
    local.oracle.put("bad", secrets.token_bytes(BIG))
    for _ in range(2):
        run = local.run(under=strace("readv", "error=EIO", paths=[local.spool / "bad"]))
        assert run.code == 1, run.text
        local.oracle.check()
    assert "cannot be read: Input/output error (failed 2 times)" in run.reasons("quarantined")
    assert local.oracle.quarantined() == ["bad"]


def test_every_name_is_put_on_disk_where_few_files_may_be_open(tmp_path: Path, faulty: FaultyServer) -> None:
    far_rig = Rig(tmp_path / "rig", faulty.sshd)
    names = [f"{number}/file" for number in range(150)]
    for name in names:
        far_rig.oracle.put(name, name.encode())
    faulty.arm("fsync", limit="ulimit -n 128")
    far_rig.run_clean()
    synced = set(re.findall(r"fsync\(\d+<([^>]*)>\) += 0", faulty.seen))
    assert {str((far_rig.target / name).parent) for name in names} <= synced


def test_one_that_cannot_be_looked_at_does_not_hold_up_the_others(local: Rig) -> None:
    for name in ("a", "bad", "c", "sub/bad", "sub/d"):
        local.oracle.put(name, name.encode())
    run = local.run(under=strace("newfstatat", "error=EIO", paths=[Path("bad")]))
    assert run.code == 1, run.text
    assert run.paths("waiting") == {"bad", "sub/bad"}
    assert local.oracle.delivered() == {"a", "c", "sub/d"}
    local.oracle.check()
    local.run_clean()


@pytest.mark.parametrize("kind", ["file", "directory"])
@pytest.mark.parametrize("call", ["getdents64", "openat"])
def test_a_spool_that_cannot_be_read_is_said(local: Rig, kind: str, call: str) -> None:
    local.write({"data_stream": {"transfer_unit": kind}})
    local.oracle.put("one/file", b"file")
    paths = [local.spool] if call == "getdents64" else [Path("one")]
    run = local.run(under=strace(call, "error=EIO", paths=paths))
    assert run.code == 1, run.text
    assert "cannot be read: Input/output error" in run.text
    assert "shows where" not in run.text
    local.oracle.check()
