"""Names that mean something to shells, terminals, formats and file systems, and things that are no files."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from tests.faults.rig import Rig, finished
from tests.sshd import Sshd

NAMES = [
    "new\nline",
    "carriage\rreturn",
    "tab\tescape\x1b[31mbell\x07",
    "-rf",
    "--help",
    "'single' \"double\" `back`",
    "$(touch pwned)",
    "`touch pwned`",
    "; touch pwned",
    "| touch pwned",
    "%s%n%(name)s",
    "$(global:state_dir)",
    "{0}{name}",
    "back\\slash\\n",
    "*?[a-z]",
    " leading and trailing ",
    "trailing.",
    "caf\N{LATIN SMALL LETTER E WITH ACUTE}",
    "cafe\N{COMBINING ACUTE ACCENT}",
    "\N{RIGHT-TO-LEFT OVERRIDE}gnp.exe",
    os.fsdecode(b"invalid \xff\xfe utf-8"),
    "l" * 255,
    "\N{SNOWMAN}" * 85,
    "CON",
    "Case",
    "case",
    "a:b|c<d>e",
    "~root",
    "#hash#",
]
FEW = 10
"""Fewer than go together, where the far side does something for many at once."""


def fill(rig: Rig, names: list[str]) -> None:
    for name in names:
        data = os.fsencode(name)
        rig.oracle.put(name, data)
        if len(data) < 100:
            rig.oracle.put(f"{name}/{name}" if name not in names else f"in {name}/{name}", data * 2)


@pytest.mark.parametrize("count", [FEW, len(NAMES)])
def test_they_are_kept_byte_for_byte(rig: Rig, count: int) -> None:
    fill(rig, NAMES[-count:] if count == FEW else NAMES)
    run = rig.run_clean()
    assert len(run.of("delivered")) == len(rig.oracle.owed)
    assert rig.oracle.directories() == []
    check_nothing_ran(rig)


@pytest.mark.needs("sshd", "ssh", "ssh-keygen")
def test_they_are_kept_where_there_is_no_shell(tmp_path: Path, sshd_no_shell: Sshd) -> None:
    rig = Rig(tmp_path / "rig", sshd_no_shell)
    fill(rig, NAMES)
    run = rig.run_clean()
    assert {event["proof"] for event in run.of("delivered")} == {"readback"}
    check_nothing_ran(rig)


def test_they_come_back_from_quarantine_as_they_were(either: Rig) -> None:
    for name in NAMES:
        either.oracle.put(name, b"ours")
        either.oracle.put_at_target(name, b"theirs")
    run = either.run()
    assert run.code == 1
    assert run.paths("quarantined") == set(NAMES)
    either.oracle.check()
    assert either.oracle.quarantined() == sorted(NAMES)


def check_nothing_ran(rig: Rig) -> None:
    places = [rig.base, *([rig.server.root, rig.server.directory / "home"] if isinstance(rig.server, Sshd) else [])]
    assert not [path for place in places for path in place.rglob("pwned")]
    assert not (Path.home() / "pwned").exists()


def test_a_path_that_is_long_in_all(either: Rig) -> None:
    either.oracle.put("/".join(["d" * 200] * 15 + ["file"]), b"deep")
    either.run_clean()


def test_empty_files_and_directories(rig: Rig) -> None:
    rig.oracle.put("empty", b"")
    rig.oracle.put("directory/empty", b"")
    (rig.spool / "nothing/in/it").mkdir(parents=True)
    rig.run_clean()
    assert (rig.target / "empty").stat().st_size == 0


def put_with_a_hole(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.write(b"beginning")
        file.seek(size)
        file.write(b"end")


def test_a_file_with_a_hole_arrives_whole(either: Rig) -> None:
    """The hole is hashed and sent as the zeros that it is read as."""
    hole = 2**24
    either.oracle.expect("file", b"beginning" + bytes(hole - 9) + b"end")
    put_with_a_hole(either.spool / "file", hole)
    either.run_clean()


@pytest.mark.campaign
@pytest.mark.timeout(900)
def test_a_file_of_more_than_four_gibibytes(either: Rig) -> None:
    """More than 32 bits count."""
    put_with_a_hole(either.spool / "large", 2**32)
    put_with_a_hole(either.base / "same", 2**32)
    run = finished(either.start(), 600)
    assert run.code == 0, run.text
    subprocess.run(["cmp", either.base / "same", either.target / "large"], check=True)
    (either.target / "large").unlink()


@pytest.mark.needs("root", "chattr")
def test_a_source_that_nobody_may_remove_is_sent_once_and_told_of(local: Rig) -> None:
    unit = local.oracle.put("immutable", b"data")
    subprocess.run(["chattr", "+i", unit], check=True)
    try:
        run = local.run()
        assert run.paths("delivered") == {"immutable"}
        assert run.paths("not-removed") == {"immutable"}
        again = local.run()
        assert not again.paths("delivered"), "it is not sent again"
        assert again.paths("not-removed") == {"immutable"}
        local.oracle.check()
    finally:
        subprocess.run(["chattr", "-i", unit], check=True)
    local.run_clean()


# -- what is no file ---------------------------------------------------------------------------------------


def test_links_are_never_followed(rig: Rig, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    rig.oracle.put("directory/file", b"file")
    links = {
        "to-file": outside / "secret",
        "to-directory": outside,
        "to-itself": Path("to-itself"),
        "to-nothing": Path("nothing"),
        "directory/to-a-neighbour": Path("file"),
        "directory/up": Path(".."),
    }
    for name, aim in links.items():
        (rig.spool / name).symlink_to(aim)
    run = rig.run()
    assert run.code == 0, run.text
    assert run.paths("skipped") == set(links)
    assert "link" in run.reasons("skipped")
    assert rig.oracle.delivered() == {"directory/file"}
    assert all((rig.spool / name).is_symlink() for name in links)
    assert (outside / "secret").read_text() == "secret"
    rig.oracle.check()


def test_a_spool_that_is_a_link_itself(local: Rig, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(local.spool)
    local.write({"data_stream": {"directory": link}})
    local.oracle.put("file", b"file")
    local.run_clean()


def test_pipes_and_sockets_are_not_opened(rig: Rig) -> None:
    os.mkfifo(rig.spool / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(rig.spool, os.O_RDONLY)
        try:
            listener.bind(f"/proc/self/fd/{here}/socket")  # its own path may be longer than a socket's may be
        finally:
            os.close(here)
        rig.oracle.put("file", b"file")
        run = rig.run()
    assert run.code == 0, run.text
    assert run.paths("skipped") == {"pipe", "socket"}
    assert rig.oracle.delivered() == {"file"}
    rig.oracle.check()


@pytest.mark.needs("root")
def test_devices_are_not_opened(either: Rig) -> None:
    try:
        os.mknod(either.spool / "zero", stat.S_IFCHR | 0o600, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("this machine lets nobody make devices")
    either.oracle.put("file", b"file")
    run = either.run()
    assert run.code == 0, run.text
    assert run.paths("skipped") == {"zero"}
    assert either.oracle.delivered() == {"file"}


# -- what stands at the target -----------------------------------------------------------------------------


def test_another_file_of_the_name_is_left_as_it_was(rig: Rig) -> None:
    theirs = rig.oracle.put_at_target("a/taken", b"theirs")
    before = theirs.stat()
    rig.oracle.put("a/taken", b"ours")
    rig.oracle.put("a/free", b"free")
    run = rig.run()
    assert run.code == 1, run.text
    assert run.paths("quarantined") == {"a/taken"}
    assert "another file" in run.reasons("quarantined")
    assert rig.oracle.delivered() == {"a/free"}
    assert rig.oracle.quarantined() == ["taken"]
    assert (theirs.stat().st_ino, theirs.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert not rig.oracle.staged()
    rig.oracle.check()


def test_an_equal_file_counts_as_delivered(rig: Rig) -> None:
    data = b"equal" * 5000
    theirs = rig.oracle.put_at_target("equal", data)
    before = theirs.stat()
    rig.oracle.put("equal", data)
    rig.run_clean()
    assert theirs.stat().st_ino == before.st_ino


def test_it_is_replaced_where_the_stream_says_so(rig: Rig) -> None:
    rig.write({"outgoing": {"existing": "replace"}})
    rig.oracle.put("file", b"new")
    rig.oracle.put_at_target("file", b"old")
    del rig.oracle.theirs["file"]
    (rig.target / "link").symlink_to(rig.base / "outside")
    (rig.base / "outside").write_bytes(b"outside")
    rig.oracle.put("link", b"no link")
    rig.run_clean()
    assert (rig.base / "outside").read_bytes() == b"outside"


@pytest.mark.parametrize("existing", ["same-or-refuse", "replace"])
def test_a_directory_of_the_name_is_left_as_it_was(rig: Rig, existing: str) -> None:
    rig.write({"outgoing": {"existing": existing}})
    rig.oracle.put_at_target("name/file", b"theirs")
    rig.oracle.put("name", b"ours")
    run = rig.run()
    assert run.code == 1, run.text
    assert rig.oracle.quarantined() == ["name"]
    rig.oracle.check()


@pytest.mark.parametrize("aim", ["outside", "nothing"])
def test_a_link_of_the_name_is_not_followed(rig: Rig, aim: str) -> None:
    outside = rig.base / "outside"
    outside.write_bytes(b"same")
    (rig.target / "name").symlink_to(rig.base / aim)
    rig.oracle.put("name", b"same")
    run = rig.run()
    assert run.code == 1, run.text
    assert rig.oracle.quarantined() == ["name"]
    assert (rig.target / "name").is_symlink()
    assert outside.read_bytes() == b"same"
    assert not (rig.base / "nothing").exists()


def test_a_link_in_the_place_of_a_directory_is_not_followed(rig: Rig) -> None:
    outside = rig.base / "outside"
    outside.mkdir()
    (rig.target / "directory").symlink_to(outside)
    rig.oracle.put("directory/file", b"file")
    rig.oracle.put("directory/below/file", b"deeper")
    run = rig.run()
    assert run.code == 1, run.text
    assert list(outside.iterdir()) == []
    assert rig.oracle.quarantined() == ["file", "file"]
    rig.oracle.check()
