"""``transfer_unit = directory``: a directory at the top of the spool is one unit, over each way to a target."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from hashlib import sha256
from pathlib import Path

import pytest

from mistamover import fs, whole
from mistamover.config import load
from mistamover.directories import spool_of
from mistamover.errors import NotVerified, SourceMoved
from mistamover.events import Event, Kind
from mistamover.lane import Lane
from mistamover.packages import prepare_place, readable
from mistamover.stream import Stream
from mistamover.testing.rig import flip, noise, small_disk, tree, write
from mistamover.transports.local import Local
from mistamover.unit import Ignored, Outcome, Unit, named
from tests.faults.oracle import digest_of
from tests.faults.rig import Options, Rig, strace, was_killed
from tests.program import command, environment

WAYS = ("local", "sftp", "ftp", "rsync_ssh", "rsync_native")
NO_RENAME = ("rsync_ssh", "rsync_native")
"""Those that rename no directories."""
pytestmark = pytest.mark.needs("root", "sshd", "rsync", "setpriv", "proftpd", "openssl")

WHOLE: Options = {"data_stream": {"transfer_unit": "directory"}}
MOMENT = 1_600_000_000

Tree = Mapping[str, bytes]
ONE: Tree = {
    "a": b"a",
    "empty file": b"",
    ".hidden": b"hidden",
    "sub/.zarray": b"{}",
    "sub/deep/big": noise(700_001),
    "sub/two words/*[x]": b"strange",
    "sub/back\\slash": b"stranger",
}


def make_rig(way: str, request: pytest.FixtureRequest, tmp_path: Path, options: Options = WHOLE) -> Rig:
    servers = {"sftp": "sshd", "ftp": "proftpd", "rsync_ssh": "sshd", "rsync_native": "rsyncd"}
    server = request.getfixturevalue(servers[way]) if way in servers else None
    rig = Rig(tmp_path / "rig", server, "rsync_ssh" if way == "rsync_ssh" else "openssh")
    rig.write(options)
    return rig


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def rig(request: pytest.FixtureRequest, tmp_path: Path, way: str) -> Rig:
    return make_rig(way, request, tmp_path)


def fill(top: Path, files: Tree = ONE, *empty: str) -> Path:
    """A directory with these files and empty directories, all of the same age."""
    for path, data in files.items():
        write(top / path, data)
    for path in empty:
        (top / path).mkdir(parents=True)
    for number, (directory, _, _) in enumerate(sorted(os.walk(top), reverse=True)):
        os.utime(directory, (MOMENT + number, MOMENT + number))
    return top


def times(top: Path) -> dict[str, int]:
    """When each directory was changed, in whole seconds."""
    return {os.path.relpath(path, top): int(os.stat(path).st_mtime) for path, _, _ in os.walk(top)}


def staged(rig: Rig) -> list[Path]:
    """What is left in the staging place; of rsync's directories for each batch nothing is."""
    return [path for path in rig.staging.rglob("*") if path.is_file() or not os.listdir(path)]


def in_spool(rig: Rig) -> list[str]:
    return sorted(set(os.listdir(rig.spool)) - {".mistamover"})


def test_directories_are_moved_as_a_whole(rig: Rig, way: str) -> None:
    more_than_a_batch = 1100 if way in {"local", "sftp"} else 100
    wanted = {
        "one": fill(rig.base / "keep/one", ONE, "nothing/in it"),
        "b *[a]\\": fill(rig.base / "keep/b *[a]\\", {"file": b"file"}),
        "many": fill(
            rig.base / "keep/many",
            {f"{number % 7}/{number}": b"%d" % number for number in range(more_than_a_batch)},
        ),
        "there": fill(rig.base / "keep/there", {"sub/same": b"same"}),
    }
    for name, source in wanted.items():
        shutil.copytree(source, rig.spool / name)
    shutil.copytree(wanted["there"], rig.target / "there")
    fill(rig.spool / "taken", {"ours": b"ours"})
    fill(rig.target / "taken", {"theirs": b"theirs"})
    fill(rig.spool / "longer", {"ours": b"ours"})
    fill(rig.target / "longer", {"ours": b"ours", "theirs": b"theirs"})
    run = rig.run()
    assert run.code == 1, run.text
    assert run.paths("delivered") == run.paths("removed") == wanted.keys()
    for name, source in wanted.items():
        assert tree(rig.target / name) == tree(source), name
        assert times(rig.target / name) == times(source) or name == "there"
    assert run.paths("quarantined") == {"taken", "longer"}
    assert tree(rig.target / "taken") == {"theirs": b"theirs"}
    assert tree(rig.target / "longer") == {"ours": b"ours", "theirs": b"theirs"}
    assert in_spool(rig) == []
    assert staged(rig) == []
    markers = {path.name for path in rig.target.glob("*.done")}
    assert markers == ({f"{name}.done" for name in wanted} if way in NO_RENAME else set())
    for marker in markers:
        assert subprocess.run(["sha256sum", "-c", "--quiet", marker], cwd=rig.target, check=False).returncode == 0
    assert not list(rig.oracle.ledger.parent.glob("*/trash/*"))


def test_a_directory_is_mirrored_and_its_new_version_replaces_the_old(rig: Rig, way: str) -> None:
    rig.write({**WHOLE, "outgoing": {"transfer_mode": "mirror"}})
    fill(rig.spool / "one", ONE, "nothing")
    fill(rig.spool / "other", {"file": b"file"})
    before = tree(rig.spool)

    def one_pass(delivered: set[str]) -> None:
        run = rig.run()
        assert run.code == 0, run.text
        assert run.paths("delivered") == delivered
        for name in ("one", "other"):
            assert tree(rig.target / name) == tree(rig.spool / name)
            assert times(rig.target / name) == times(rig.spool / name)
        assert staged(rig) == []

    one_pass({"one", "other"})
    one_pass(set())
    inode = (rig.target / "one/a").stat().st_ino
    rig.oracle.ledger.unlink()
    one_pass({"one", "other"})
    assert (rig.target / "one/a").stat().st_ino == inode, "what is there is not sent again"
    assert tree(rig.spool) == before
    shutil.rmtree(rig.spool / "one/sub/deep")
    (rig.spool / "one/.hidden").unlink()
    (rig.spool / "one/nothing").rmdir()
    fill(rig.spool / "one", {"a": b"second version", "sub/deep": b"a file now", ".hidden/new": b"", "z": b"z"})
    one_pass({"one"})
    (rig.target / "one/foreign").write_bytes(b"foreign")
    fill(rig.spool / "one", {"a": b"third version"})
    one_pass({"one"})
    if way in NO_RENAME:
        marker = (rig.target / "one.done").read_text()
        assert len(marker.splitlines()) == len([path for path in (rig.spool / "one").rglob("*") if path.is_file()])


@pytest.fixture
def local(tmp_path: Path) -> Rig:
    rig = Rig(tmp_path / "rig")
    rig.write(WHOLE)
    return rig


def test_what_is_no_unit_stays_and_is_told(local: Rig) -> None:
    fill(local.spool / "good")
    write(local.spool / "file", b"file")
    fill(local.spool / ".hidden")
    fill(local.spool / "name.part")
    (local.spool / "nothing/in it").mkdir(parents=True)
    (fill(local.spool / "link") / "sub/to").symlink_to("/etc/passwd")
    os.mkfifo(fill(local.spool / "fifo") / "pipe")
    fill(local.spool / "unfinished", {"sub/data.part": b"half"})
    (local.spool / "elsewhere").symlink_to(local.spool / "good")
    before = tree(local.spool)
    run = local.run()
    assert run.code == 1, run.text
    assert run.paths("delivered") == {"good"}
    assert run.paths("skipped") == {".hidden", "name.part", "nothing", "elsewhere"}
    waiting = {event["path"]: event["reason"] for event in run.of("waiting")}
    said = {
        "file": "units are directories",
        "link": "a symbolic link",
        "fifo": "a FIFO",
        "unfinished": "is ignored",
    }
    assert waiting.keys() == said.keys()
    assert all(words in waiting[path] for path, words in said.items()), waiting
    left = {path: what for path, what in before.items() if path.split("/")[0] != "good"}
    assert tree(local.spool) == left
    assert sorted(os.listdir(local.target)) == [".mistamover", "good"]


def test_a_directory_settles_as_a_whole(local: Rig) -> None:
    local.write({"data_stream": {"transfer_unit": "directory", "settle_time": 3600}})
    for name in ("old", "new file", "new below", "removed from"):
        fill(local.spool / name)
        for path in (local.spool / name).rglob("*"):
            os.utime(path, (MOMENT, MOMENT))
    local.write({"data_stream": {"transfer_unit": "directory", "settle_time": 0}})
    with open(local.spool / "new below/sub/deep/big", "r+b"):
        run = local.run()
    assert run.paths("delivered") == {"old", "new file", "removed from"}
    assert run.paths("changed") == {"new below"}
    assert "open for writing" in run.reasons("changed")
    assert tree(local.spool / "new below") == tree(local.target / "old")
    assert not (local.target / "new below").exists()


def test_quarantine_and_release_are_of_the_whole(local: Rig) -> None:
    source = fill(local.spool / "one", ONE, "nothing")
    before = tree(source)
    fill(local.target / "one", {"theirs": b"theirs"})
    assert local.run().paths("quarantined") == {"one"}
    assert in_spool(local) == []
    (aside,) = (local.spool / ".mistamover/quarantine").glob("*/one")
    assert tree(aside) == before
    shutil.rmtree(local.target / "one")
    released = cli(local, "quarantine", "release", str(local.stream), "--all")
    assert released.returncode == 0, released.stderr
    assert tree(source) == before
    run = local.run()
    assert run.paths("removed") == {"one"}
    assert tree(local.target / "one") == before
    rows = cli(local, "history", str(local.stream), "--files", "--json").stdout.splitlines()
    found = {row["path"]: row for row in map(json.loads, rows)}
    assert found.keys() == {"one", *(f"one/{path}" for path in ONE)}
    assert found["one"]["bytes"] == sum(map(len, ONE.values()))
    said = sha256sums(local.target, "one")
    assert all(f"{row['digest']}  " in said for path, row in found.items() if path != "one")
    assert found["one"]["digest"] == sha256(said.encode()).hexdigest()


def sha256sums(top: Path, name: str) -> str:
    """What sha256sum says of all files of a directory, in the order of their paths."""
    paths = sorted(str(path.relative_to(top)) for path in (top / name).rglob("*") if path.is_file())
    return subprocess.run(["sha256sum", "--", *paths], cwd=top, check=True, capture_output=True, text=True).stdout


def cli(rig: Rig, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), env=environment(rig.base), capture_output=True, text=True, check=False
    )


# -- what changes meanwhile ----------------------------------------------------------------------------------


def rewrite(directory: Path) -> None:
    """Other bytes of the same size, and the times put back."""
    before = (directory / "sub/deep/big").stat()
    with open(directory / "sub/deep/big", "r+b") as file:
        file.write(b"other")
    os.utime(directory / "sub/deep/big", ns=(before.st_atime_ns, before.st_mtime_ns))


def in_place_of_another(directory: Path) -> None:
    (directory / "sub/new").write_bytes(b"{}")
    os.rename(directory / "sub/new", directory / "sub/.zarray")


CHANGES: Mapping[str, Callable[[Path], object]] = {
    "rewritten": rewrite,
    "replaced": in_place_of_another,
    "a new file": lambda directory: (directory / "sub/new").write_bytes(b"new"),
    "a new directory": lambda directory: (directory / "nothing/new").mkdir(),
    "a file less": lambda directory: (directory / ".hidden").unlink(),
    "a directory less": lambda directory: (directory / "nothing").rmdir(),
    "renamed": lambda directory: (directory / "a").rename(directory / "b"),
    "open for writing": lambda directory: open(directory / "a", "ab"),  # noqa: SIM115 - it is to stay open
}


@pytest.mark.parametrize("package", ["none", "tar"])
def test_what_changes_while_it_is_sent_is_not_published(local: Rig, package: str) -> None:
    source = fill(local.spool / "one", ONE)
    local.write({**WHOLE, "outgoing": {"package": package}})
    settings = load(local.stream, None, {})
    how, published = (whole.deliver, "one") if package == "none" else (whole.deliver_packages, "one.tar")

    def tick(_size: int) -> None:
        if not (source / "late").exists():
            (source / "late").write_bytes(b"late")

    with ExitStack() as stack:
        prepare_place(settings)
        spool = stack.enter_context(closing(spool_of(settings, mirror=True)))
        packages = stack.enter_context(closing(readable(settings)))
        transport = stack.enter_context(closing(Local(settings, packages, tick))).open()
        for error, target in ((SourceMoved, []), (None, [published])):
            (unit,) = named(list(spool.scan(Ignored(()))), f"{transport.tag}5eed", 0)
            (outcome,) = how(transport, [unit], Lane())
            assert type(outcome.error) is (error or type(None))
            assert sorted(set(os.listdir(local.target)) - {".mistamover"}) == target
            assert os.listdir(local.staging) == []
    assert package != "none" or tree(local.target / "one") == tree(source)


# -- what its files come to ----------------------------------------------------------------------------------


class Damaging(Local):
    """Loses a bit of one file of each part before it is proven."""

    def verify(self, units: Sequence[Unit]) -> Iterator[Outcome]:
        flip(next(Path(self.staging, unit.staged) for unit in units if unit.size), 0)
        return super().verify(units)


class Doubting(Local):
    """Proves one file of each part by its size alone."""

    def verify(self, units: Sequence[Unit]) -> Iterator[Outcome]:
        for outcome in super().verify(units):
            is_last = outcome.unit.staged == units[-1].staged
            yield Outcome(outcome.unit._replace(proof="size")) if is_last else outcome


def delivered_by(kind: type[Local], local: Rig) -> Outcome:
    """What comes of the directory ``one`` by such a transport."""
    fill(local.spool / "one", ONE)
    local.write(WHOLE)
    settings = load(local.stream, None, {})
    with ExitStack() as stack:
        spool = stack.enter_context(closing(spool_of(settings, mirror=True)))
        transport = stack.enter_context(closing(kind(settings, spool))).open()
        (unit,) = named(list(spool.scan(Ignored(()))), f"{transport.tag}5eed", 0)
        (outcome,) = whole.deliver(transport, [unit], Lane())
    return outcome


def test_a_directory_with_a_damaged_file_is_not_published(local: Rig) -> None:
    outcome = delivered_by(Damaging, local)
    assert isinstance(outcome.error, NotVerified)
    assert os.listdir(local.target) == [".mistamover"]
    assert os.listdir(local.staging) == []


def test_the_proof_of_a_directory_is_the_weakest_of_its_files(local: Rig) -> None:
    outcome = delivered_by(Doubting, local)
    assert outcome.error is None
    assert outcome.unit.proof == "size"


@pytest.mark.parametrize("moment", ["delivered", "captured"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_after_it_was_sent_is_not_removed(
    local: Rig, monkeypatch: pytest.MonkeyPatch, change: str, moment: str
) -> None:
    source = fill(local.spool / "one", ONE, "nothing")
    changed: list[object] = []
    events: list[Event] = []

    def change_it(now: str, directory: Path) -> None:
        if now == moment and not changed:
            changed.extend((CHANGES[change](directory), tree(directory)))

    def report(event: Event) -> None:
        events.append(event)
        change_it(event.kind.value, source)

    def rename_new(name: str, name_fd: int, new: str, new_fd: int) -> None:
        rename(name, name_fd, new, new_fd)
        if name == "one":
            change_it("captured", local.spool / ".mistamover/trash" / new)

    rename = fs.rename_new
    monkeypatch.setattr(fs, "rename_new", rename_new)
    with Stream(load(local.stream, None, {}), report) as stream:
        stream.run_pass(patient=False)
    assert [event.path for event in events if event.kind is Kind.CHANGED] == ["one"]
    assert not [event for event in events if event.kind is Kind.REMOVED]
    assert tree(source) == changed[1]


def test_what_is_written_into_a_proven_directory_is_kept(local: Rig) -> None:
    """By somebody who was in it: a crash left it half removed, and nothing else of it is needed any more."""
    fill(local.spool / "one", ONE)
    assert was_killed(local.run(under=strace("unlinkat", "signal=SIGKILL:when=2")))
    (proven,) = (local.spool / ".mistamover/trash").glob("*-proven")
    write(proven / "sub/late", b"late")
    before = tree(local.target / "one")
    run = local.run()
    assert tree(local.target / "one") == before
    assert run.paths("recovered") == {"one"}
    assert [path.read_bytes() for path in local.spool.rglob("late")] == [b"late"]


def when_proven(monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], object], local: Rig) -> None:
    """Have somebody who is in it change a directory at the last moment before it is removed."""

    def rename_new(name: str, name_fd: int, new: str, new_fd: int) -> None:
        rename(name, name_fd, new, new_fd)
        if new.endswith("-proven"):
            change(local.spool / ".mistamover/trash" / new)

    rename = fs.rename_new
    monkeypatch.setattr(fs, "rename_new", rename_new)


def test_what_is_moved_into_a_proven_directory_is_kept_however_old_it_looks(
    local: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = fill(local.spool / "one", ONE)
    os.link(source / "a", source / "sub/also a")  # of which the ctime moves when one name is unlinked
    old = write(local.base / "old", b"old")
    os.utime(old, (1, 1))
    when_proven(monkeypatch, lambda proven: old.rename(proven / "sub/old"), local)
    with Stream(load(local.stream, None, {})) as stream:
        stream.run_pass(patient=False)
    left = [path for path in (local.spool / ".mistamover/trash").rglob("*") if path.is_file()]
    assert [path.read_bytes() for path in left] == [b"old"]


def test_what_is_open_for_writing_in_a_proven_directory_is_kept(
    local: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(local.spool / "one", ONE)
    with ExitStack() as stack, Stream(load(local.stream, None, {})) as stream:
        when_proven(monkeypatch, lambda proven: stack.enter_context(open(proven / "a", "ab")), local)
        stream.run_pass(patient=False)
    left = [path for path in (local.spool / ".mistamover/trash").rglob("*") if path.is_file()]
    assert [path.read_bytes() for path in left] == [b"a"]


def test_what_is_left_of_a_proven_directory_never_replaces_all_of_it(
    local: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.write({**WHOLE, "outgoing": {"existing": "replace"}})
    before = tree(fill(local.spool / "one", ONE))
    when_proven(monkeypatch, lambda proven: (proven / "late").write_bytes(b"late"), local)
    events: list[Event] = []
    with Stream(load(local.stream, None, {}), events.append) as stream:
        stream.run_pass(patient=False)
    assert [event.path for event in events if event.kind is Kind.NOT_REMOVED] == ["one"]
    for _ in range(2):
        run = local.run()
        assert "somebody wrote in it" in run.reasons("recovered")
        assert not run.paths("delivered")
    assert tree(local.target / "one") == before
    assert [path.read_bytes() for path in local.spool.rglob("late")] == [b"late"]


# -- packages ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize("way", ["local", "ftp"])
def test_an_archive_is_sent_in_place_of_a_directory(
    request: pytest.FixtureRequest, tmp_path: Path, way: str, kind: str
) -> None:
    rig = make_rig(way, request, tmp_path, {**WHOLE, "outgoing": {"package": kind}})
    strange = {} if way == "ftp" or kind == "zip" else {os.fsdecode(b"\xff"): b"no UTF-8"}
    keep = fill(rig.base / "keep", {**ONE, **strange, "caf\u00e9": b"coffee"}, "nothing/in it")
    os.chmod(keep / "a", 0o4750)
    os.utime(keep / "a", ns=(0, MOMENT * 10**9 + 123456789))
    left = write(rig.state / "faults/packages/left.tar", b"of a crash")
    shutil.copytree(keep, rig.spool / "one")
    archive = rig.target / f"one.{kind}"
    for _ in range(2):
        run = rig.run()
        assert run.code == 0, run.text
        assert run.paths("delivered") == run.paths("removed") == {"one"}
        assert sorted(os.listdir(rig.target)) == [".mistamover", archive.name]
        assert os.listdir(left.parent) == []
        first = archive.stat()
        shutil.copytree(keep, rig.spool / "one")  # the same again makes the same bytes
    assert archive.stat().st_mtime_ns == first.st_mtime_ns
    assert {entry.digest for entry in rig.oracle.records("removed")} == {digest_of(archive)}
    names = tarfile.TarFile(archive).getnames() if kind == "tar" else zipfile.ZipFile(archive).namelist()
    assert {name.partition("/")[0] for name in names} == {"one"}
    out = rig.base / "out"
    program = ["tar", "-xf", str(archive), "-C", str(out)] if kind == "tar" else None
    out.mkdir()
    if program is not None:
        subprocess.run(program, check=True)
        assert times(out / "one") == times(keep)
        assert (out / "one/a").stat().st_mtime_ns == MOMENT * 10**9 + 123456789
        assert (out / "one/a").stat().st_mode & 0o7777 == 0o750
    else:
        zipfile.ZipFile(archive).extractall(out)
    assert tree(out / "one") == tree(keep)


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_name_that_is_too_long_for_that_of_an_archive_is_refused_at_once(local: Rig, kind: str) -> None:
    local.write({**WHOLE, "outgoing": {"package": kind}})
    fill(local.spool / ("n" * 252), {"file": b"file"})
    fill(local.spool / ("n" * 251), {"file": b"file"})
    run = local.run()
    assert run.code == 1, run.text
    assert run.paths("quarantined") == {"n" * 252}
    assert "too long for that of an archive" in run.reasons("quarantined")
    assert run.paths("delivered") == {"n" * 251}


def test_a_name_that_is_too_long_for_that_of_a_marker_is_refused_at_once(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    rig = make_rig("rsync_native", request, tmp_path)
    fill(rig.spool / ("n" * 251), {"file": b"file"})
    fill(rig.spool / ("n" * 250), {"file": b"file"})
    run = rig.run()
    assert run.code == 1, run.text
    assert run.paths("quarantined") == {"n" * 251}
    assert "too long for that of its marker" in run.reasons("quarantined")
    assert run.paths("delivered") == {"n" * 250}
    assert not (rig.target / ("n" * 251)).exists()


def test_a_directory_has_not_vanished_with_its_archive(local: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    source = fill(local.spool / "one")
    local.write({**WHOLE, "outgoing": {"package": "tar"}})
    send, removed = Local.send, list[Path]()

    def late(transport: Local, units: Sequence[Unit]) -> Iterator[Outcome]:
        if not removed:
            removed.append(local.state / "faults/packages/one.tar")
            removed[0].unlink()
        return send(transport, units)

    monkeypatch.setattr(Local, "send", late)
    events: list[Event] = []
    with Stream(load(local.stream, None, {}), events.append) as stream:
        stream.run_pass(patient=False)
        assert [(event.kind, event.path) for event in events] == [(Kind.CHANGED, "one")]
        assert source.is_dir()
        stream.run_pass(patient=False)
    assert events[-1].kind is Kind.REMOVED
    assert (local.target / "one.tar").is_file()


@pytest.mark.parametrize("link", [".mistamover", ".mistamover/faults"])
def test_no_link_leads_those_who_clear_the_place_of_archives_elsewhere(local: Rig, link: str) -> None:
    work, elsewhere = local.base / "work", local.base / "elsewhere"
    local.write({**WHOLE, "outgoing": {"package": "tar", "work_dir": work}})
    theirs = [write(elsewhere / path, b"theirs") for path in ("file", "faults/file")]
    (work / link).parent.mkdir(parents=True)
    (work / link).symlink_to(elsewhere)
    source = fill(local.spool / "one")
    run = local.run()
    assert run.code == 1, run.text
    assert f"{work}/.mistamover/faults: no place to make archives in" in run.text
    assert [path.read_bytes() for path in theirs] == [b"theirs"] * 2
    (work / link).unlink()
    assert local.run().paths("removed") == {source.name}
    assert (work / ".mistamover/faults").stat().st_mode & 0o777 == 0o700


@pytest.mark.needs("root")
@pytest.mark.parametrize("theirs", [".mistamover", ".mistamover/faults"])
def test_no_archive_is_made_where_somebody_else_could_put_another(local: Rig, theirs: str) -> None:
    work = local.base / "work"
    local.write({**WHOLE, "outgoing": {"package": "tar", "work_dir": work}})
    fill(local.spool / "one")
    (work / theirs).mkdir(parents=True)
    os.chown(work / theirs, 65534, 65534)
    run = local.run()
    assert run.code == 1, run.text
    assert "its .mistamover is somebody else's" in run.text
    assert os.listdir(local.target) == []
    os.chown(work / theirs, 0, 0)
    (work / theirs).chmod(0o777)
    assert local.run().code == 1
    (work / theirs).chmod(0o755)
    assert local.run().paths("removed") == {"one"}


@pytest.mark.needs("root", "mount", "umount")
def test_where_there_is_no_room_for_an_archive_the_directory_waits(local: Rig) -> None:
    work = local.base / "work"
    work.mkdir()
    local.write({**WHOLE, "outgoing": {"package": "tar", "work_dir": work, "retry_count": 1}})
    source = fill(local.spool / "one")
    before = tree(source)
    with small_disk(work, "size=256k"):
        run = local.run()
        assert run.code == 1, run.text
        assert "no room for the archive" in run.reasons("waiting")
    assert tree(source) == before
    assert sorted(os.listdir(local.target)) in ([], [".mistamover"])
    assert local.run().paths("removed") == {"one"}
    assert os.listdir(work / ".mistamover/faults") == []
