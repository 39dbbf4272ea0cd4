"""Deleting for want of space: what goes, in which order, and all that must never go."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path

import pytest

from mistamover import config, fs
from mistamover.disk import Need, Stage
from mistamover.errors import Held, LedgerError, SpoolError
from mistamover.ledger import Entry, entries
from mistamover.options import Settings
from mistamover.reclaim import Asked, Reclaim, held
from mistamover.spool import Spool
from mistamover.stream import Stream
from mistamover.unit import State
from tests.program import Local
from tests.sshd import wait_for

ALL = Need(2**40, 2**40)
WHY = "/data has 3 MiB free (very low)"


class Streamlet(Local):
    """A stream from which units are deleted; ``said`` is what was told."""

    said: list[str]
    mode = "mirror"

    @property
    def settings(self) -> Settings:
        return config.load(self.ini)

    def write(self, mode: str = "mirror", more: str = "") -> None:
        self.mode, self.said = mode, []
        self.configure(f"transfer_mode = {mode}\nretry_count = 1")
        text = self.ini.read_text().replace("[data_stream]\n", f"[data_stream]\ndeletion_enabled = yes\n{more}\n")
        self.ini.write_text(text)

    def put_old(self, name: str, age: float, content: bytes = b"some bytes") -> Path:
        path = self.put(name, content)
        os.utime(path, (time.time() - age,) * 2)
        return path

    def deliver(self) -> None:
        with Stream(self.settings) as stream:
            summary = stream.run_pass(patient=False)
        assert summary.error is None

    def reclaim(self, stage: Stage, need: Need = ALL, measure: Callable[[], Need] = lambda: ALL) -> Need:
        settings = self.settings
        with held(settings) as (spool, ledger):
            work = Reclaim(settings, spool, ledger, measure, self.said.append, lambda: None)
            return work.run(Asked(stage, need, self.spool.stat().st_dev, WHY))

    def reclaim_all(self) -> None:
        for stage in Stage:
            self.reclaim(stage)

    def record(self) -> dict[tuple[str, State], Entry]:
        return {(entry.path, entry.state): entry for entry in entries(self.state / "x" / "ledger.sqlite")}


@pytest.fixture
def stream(tmp_path: Path) -> Streamlet:
    one = Streamlet(tmp_path)
    one.write()
    return one


def blocks(path: Path) -> int:
    return path.stat().st_blocks * 512


# -- what goes ---------------------------------------------------------------------------------------------


def test_what_the_target_has_goes_the_oldest_first_and_no_more_than_is_missing(stream: Streamlet) -> None:
    for number in range(4):
        stream.put_old(f"dir/{number}", 100 - number, bytes(10_000))
    stream.deliver()
    size = blocks(stream.spool / "dir/0")
    stream.put_old("new", 1000, bytes(10_000))
    # Measuring says that nothing was freed: some file systems need their time for that.
    left = stream.reclaim(Stage.DELIVERED, Need(size + 1, 0))
    assert left.is_met
    assert stream.names(stream.spool) == {"dir/2", "dir/3", "new"}
    assert stream.names(stream.target) == {f"dir/{number}" for number in range(4)}
    assert stream.record()["dir/0", State.DELIVERED].reason == WHY
    assert stream.said[0] == f"deleted: dir/0 (9.77 KiB), which the target has: {WHY}"
    assert len(stream.said) == 2


def test_a_directory_that_is_a_unit_goes_as_a_whole_or_stays_as_it_is(stream: Streamlet) -> None:
    stream.write(more="transfer_unit = directory")
    for name in ("whole", "changed", "unsent"):
        stream.put_old(f"{name}/a", 100, bytes(10_000))
        stream.put_old(f"{name}/below/b", 100, bytes(10_000))
        if name == "changed":
            wait_for(lambda: is_delivered(stream, "changed"), "both to be delivered")
    stream.put_old("changed/new", 50)
    left = stream.reclaim(Stage.DELIVERED, Need(2**40, 0))
    assert stream.names(stream.spool) >= {"changed/a", "changed/below/b", "changed/new", "unsent/a"}
    assert not (stream.spool / "whole").exists()
    assert left.bytes <= 2**40 - 20_000
    assert stream.record()["whole", State.DELIVERED].reason == WHY


def is_delivered(stream: Streamlet, name: str) -> bool:
    stream.deliver()
    return (stream.target / name).exists()


def test_half_of_a_directory_that_was_to_be_deleted_is_never_sent(
    stream: Streamlet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(name: str, trash: int, *_: object) -> bool:
        os.unlink(f"{name}/a", dir_fd=trash)
        raise KeyboardInterrupt

    stream.write("move", more="transfer_unit = directory\ndeletion_of_unsent = yes")
    for name in "abc":
        stream.put_old(f"one/{name}", 100)
    with monkeypatch.context() as patch:
        patch.setattr(fs, "remove_tree", crash)
        with pytest.raises(KeyboardInterrupt):
            stream.reclaim(Stage.UNSENT)
    for _ in range(2):
        stream.deliver()
        assert stream.names(stream.target) == stream.names(stream.spool) == set()
    assert os.listdir(stream.spool / ".mistamover/trash") == []


def test_it_ends_when_there_is_room(stream: Streamlet) -> None:
    for number in range(4):
        stream.put_old(str(number), 100 - number)
    stream.deliver()
    stream.reclaim(Stage.DELIVERED, measure=lambda: ALL if (stream.spool / "1").exists() else Need(0, 0))
    assert stream.names(stream.spool) == {"2", "3"}


def test_inodes_count_too(stream: Streamlet) -> None:
    for number in range(4):
        stream.put_old(str(number), 100 - number)
    stream.deliver()
    stream.reclaim(Stage.DELIVERED, Need(0, 2))
    assert stream.names(stream.spool) == {"2", "3"}


def test_a_mirror_goes_on_after_that(stream: Streamlet) -> None:
    stream.put_old("file", 100)
    stream.deliver()
    stream.reclaim(Stage.DELIVERED)
    assert stream.names(stream.spool) == set()
    stream.put("file", b"a new version")
    stream.deliver()
    assert (stream.target / "file").read_bytes() == b"a new version"


def test_what_exists_nowhere_else_goes_where_it_may(stream: Streamlet) -> None:
    stream.write("move")
    for number in range(3):
        stream.put_old(f"dir/{number}", 100 - number)
    stream.reclaim(Stage.DELIVERED)
    stream.reclaim(Stage.QUARANTINE)
    assert stream.names(stream.spool) == {"dir/0", "dir/1", "dir/2"}
    stream.reclaim(Stage.UNSENT, Need(1, 0))
    assert stream.names(stream.spool) == {"dir/1", "dir/2"}
    assert stream.record()["dir/0", State.DELETED].reason == WHY
    assert stream.said == [f"deleted: dir/0 (10 bytes), which was never delivered: {WHY}"]
    # Should it come back, it is a unit like any other.
    stream.put("dir/0", b"again")
    stream.deliver()
    assert stream.names(stream.target) == {"dir/0", "dir/1", "dir/2"}
    assert stream.names(stream.spool) == set()


def test_what_was_delivered_and_could_not_be_removed_goes_first(stream: Streamlet, tmp_path: Path) -> None:
    stream.write("move")
    file = stream.put_old("file", 100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stream, "_remove", lambda *_: None)
        stream.deliver()
    assert file.exists()
    stream.reclaim(Stage.DELIVERED)
    assert not file.exists()
    assert stream.record()["file", State.REMOVED].reason == WHY


def set_aside(stream: Streamlet) -> Path:
    stream.write("move")
    stream.put("taken", b"another", at=stream.target)
    stream.put_old("taken", 100)
    stream.deliver()
    (record,) = (entry.id for entry in stream.record().values() if entry.state is State.QUARANTINED)
    return stream.spool / ".mistamover/quarantine" / str(record) / "taken"


def test_quarantine_goes_as_what_exists_nowhere_else(stream: Streamlet) -> None:
    file = set_aside(stream)
    stream.reclaim(Stage.DELIVERED)
    assert file.exists()
    stream.reclaim(Stage.QUARANTINE)
    assert not file.parent.exists()
    (entry,) = stream.record().values()
    assert entry.state is State.DELETED
    assert entry.reason.startswith(f"{WHY}; it was in quarantine: the target holds another file of that name")


# -- what never goes ---------------------------------------------------------------------------------------


def test_nothing_goes_while_somebody_holds_the_stream(stream: Streamlet) -> None:
    file = stream.put_old("file", 100)
    stream.deliver()
    with Stream(stream.settings) as one:
        with pytest.raises(Held):
            stream.reclaim(Stage.DELIVERED)
        assert file.exists()
        one.lend()
        stream.reclaim(Stage.DELIVERED)
        assert one.take_back()
    assert not file.exists()


def test_nothing_goes_while_another_stream_moves_from_the_spool(stream: Streamlet) -> None:
    file = stream.put_old("file", 100)
    with closing(Spool(stream.spool, mirror=False)) as other:
        other.hold()
        with pytest.raises(Held):
            stream.reclaim(Stage.UNSENT)
    assert file.exists()


def test_what_was_delivered_is_no_unsent_unit(stream: Streamlet) -> None:
    file = stream.put_old("file", 100)
    stream.deliver()
    stream.reclaim(Stage.UNSENT)
    assert file.exists()


def test_a_new_version_of_what_was_delivered_stays(stream: Streamlet) -> None:
    file = stream.put_old("file", 100)
    stream.deliver()
    file.write_bytes(b"new bytes!")
    stream.reclaim(Stage.DELIVERED)
    assert file.read_bytes() == b"new bytes!"


def test_a_version_that_comes_at_the_last_moment_stays(stream: Streamlet, monkeypatch: pytest.MonkeyPatch) -> None:
    file = stream.put_old("file", 100)
    stream.deliver()
    remove = Spool.remove

    def slowly(self: Spool, *arguments: object) -> None:
        stream.put("other", b"new").replace(file)
        remove(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Spool, "remove", slowly)
    stream.reclaim(Stage.DELIVERED)
    assert file.read_bytes() == b"new"
    assert stream.record()["file", State.DELIVERED].reason == ""
    assert stream.said[0].startswith("not deleted: file: ")


@contextmanager
def open_for_writing(path: Path) -> Iterator[None]:
    with path.open("ab"):
        yield


@contextmanager
def hard_link(path: Path) -> Iterator[None]:
    # Its end would free nothing, however many were deleted.
    os.link(path, path.parents[1] / "link")
    yield


@pytest.mark.parametrize("how", [open_for_writing, hard_link])
@pytest.mark.parametrize("stage", [Stage.DELIVERED, Stage.UNSENT])
def test_what_is_in_use_stays(
    stream: Streamlet, stage: Stage, how: Callable[[Path], AbstractContextManager[None]]
) -> None:
    file = stream.put_old("file", 100)
    if stage is Stage.DELIVERED:
        stream.deliver()
    with how(file):
        stream.reclaim(stage)
        assert file.exists()
    assert ("file", State.DELETED) not in stream.record()


def test_what_still_settles_stays(stream: Streamlet) -> None:
    stream.ini.write_text(stream.ini.read_text().replace("settle_time = 0", "settle_time = 60"))
    fresh, future = stream.put("fresh"), stream.put_old("future", -10_000)
    stream.reclaim(Stage.UNSENT)
    assert fresh.exists()
    assert future.exists()


def test_what_is_no_unit_stays(stream: Streamlet, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    kept = [
        stream.put("precious", at=outside),
        stream.put("half.tmp"),
        stream.put(".hidden"),
        stream.put(".d/file"),
    ]
    (stream.spool / "link").symlink_to(outside / "precious")
    (stream.spool / "directory").symlink_to(outside)
    os.mkfifo(stream.spool / "fifo")
    stream.reclaim_all()
    assert all(path.exists() for path in kept)
    assert {path.name for path in stream.spool.iterdir()} >= {"link", "directory", "fifo"}


@pytest.mark.needs("root", "mount", "umount")
def test_what_is_on_another_file_system_stays(stream: Streamlet) -> None:
    inner = stream.spool / "mounted"
    inner.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", inner], check=True)
    try:
        file = stream.put_old("mounted/file", 100)
        stream.deliver()  # a mirror reads there too
        assert stream.names(stream.target) == {"mounted/file"}
        stream.reclaim_all()
        assert file.exists()
    finally:
        subprocess.run(["umount", "--lazy", inner], check=True)


def test_nothing_goes_from_another_disk_than_the_one_that_is_full(stream: Streamlet) -> None:
    file = stream.put_old("file", 100)
    settings = stream.settings
    with held(settings) as (spool, ledger):
        work = Reclaim(settings, spool, ledger, lambda: ALL, stream.said.append, lambda: None)
        assert work.run(Asked(Stage.UNSENT, ALL, spool.device + 1, WHY)) == ALL
    assert file.exists()


def test_nothing_goes_from_what_took_the_place_of_the_spool(stream: Streamlet) -> None:
    settings = stream.settings
    with held(settings) as (spool, ledger):
        stream.spool.rename(stream.top / "old")
        stream.spool.mkdir()
        file = stream.put_old("file", 100)
        work = Reclaim(settings, spool, ledger, lambda: ALL, stream.said.append, lambda: None)
        with pytest.raises(SpoolError):
            work.run(Asked(Stage.UNSENT, ALL, spool.device, WHY))
    assert file.exists()


@pytest.mark.parametrize("stage", Stage)
def test_nothing_goes_without_a_record(stream: Streamlet, stage: Stage) -> None:
    file = set_aside(stream) if stage is Stage.QUARANTINE else stream.put_old("file", 100)
    if stage is Stage.DELIVERED:
        stream.deliver()
    settings = stream.settings
    with held(settings) as (spool, ledger):
        ledger._db.execute("PRAGMA query_only = ON")
        work = Reclaim(settings, spool, ledger, lambda: ALL, stream.said.append, lambda: None)
        with pytest.raises(LedgerError):
            work.run(Asked(stage, ALL, spool.device, WHY))
    assert file.exists()


def test_what_was_changed_in_quarantine_stays(stream: Streamlet) -> None:
    file = set_aside(stream)
    file.write_bytes(b"mended by a person")
    stream.reclaim(Stage.QUARANTINE)
    assert file.read_bytes() == b"mended by a person"
    (entry,) = stream.record().values()
    assert entry.state is State.QUARANTINED
    assert entry.reason.startswith("the target holds another file")


# -- a crash -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["mirror", "move"])
@pytest.mark.parametrize("stage", [Stage.DELIVERED, Stage.UNSENT])
def test_a_crash_in_the_middle_loses_nothing(
    stream: Streamlet, mode: str, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream.write(mode)
    file = stream.put_old("file", 100)
    if stage is Stage.DELIVERED:
        monkeypatch.setattr(Stream, "_remove", lambda *_: None)
        stream.deliver()
    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr("mistamover.spool._is_unchanged", _crash)
        stream.reclaim(stage)
    monkeypatch.undo()
    assert not file.exists()  # it was captured, and no more
    with Stream(stream.settings):
        pass
    assert list((stream.spool / ".mistamover/trash").iterdir()) == []
    assert file.exists() == (stage is Stage.UNSENT)
    if stage is Stage.UNSENT:
        stream.deliver()
    assert stream.names(stream.target) == {"file"}


def _crash(*_: object) -> bool:
    raise KeyboardInterrupt


def crash_in_quarantine(stream: Streamlet, monkeypatch: pytest.MonkeyPatch, place: object, name: str) -> Entry:
    """A deletion from quarantine is cut off there; gives the record of the unit after the next start."""
    with monkeypatch.context() as patch:
        patch.setattr(place, name, _crash)
        with pytest.raises(KeyboardInterrupt):
            stream.reclaim(Stage.QUARANTINE)
    with Stream(stream.settings):
        pass
    trash = stream.spool / ".mistamover/trash"
    assert not trash.exists() or os.listdir(trash) == []
    (entry,) = stream.record().values()
    return entry


def test_a_crash_before_it_is_deleted_from_quarantine_leaves_it_there(
    stream: Streamlet, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = set_aside(stream)
    entry = crash_in_quarantine(stream, monkeypatch, Spool, "delete_aside")
    assert file.exists()
    assert entry.state is State.QUARANTINED
    assert entry.reason.startswith("the target holds another file")
    stream.reclaim(Stage.QUARANTINE)
    assert not file.parent.exists()


def test_a_crash_while_it_is_deleted_from_quarantine_leaves_nothing_of_it(
    stream: Streamlet, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = set_aside(stream)
    entry = crash_in_quarantine(stream, monkeypatch, Spool, "_delete")
    assert entry.state is State.DELETED
    assert not file.parent.exists()
    stream.deliver()
    assert stream.names(stream.spool) == set()
    assert stream.names(stream.target) == {"taken"}


def test_half_of_a_directory_is_never_left_in_quarantine(
    stream: Streamlet, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream.write("move", more="transfer_unit = directory")
    stream.put("one/other", b"another", at=stream.target)
    for name in "abc":
        stream.put_old(f"one/{name}", 100)
    stream.deliver()
    (record,) = (entry.id for entry in stream.record().values() if entry.state is State.QUARANTINED)

    def crash(name: str, dir_fd: int, *_: object) -> bool:
        os.unlink(f"{name}/a", dir_fd=dir_fd)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fs, "remove_tree", crash)
        with pytest.raises(KeyboardInterrupt):
            stream.reclaim(Stage.QUARANTINE)
    with Stream(stream.settings):
        pass
    assert not (stream.spool / ".mistamover/quarantine" / str(record)).exists()
    assert os.listdir(stream.spool / ".mistamover/trash") == []
    assert ("one", State.DELETED) in stream.record()


def test_a_file_in_the_place_of_what_was_deleted_from_quarantine_stops_nobody(
    stream: Streamlet, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = set_aside(stream)
    assert crash_in_quarantine(stream, monkeypatch, Spool, "_delete").state is State.DELETED
    file.parent.write_bytes(b"of the owner of the spool")
    with Stream(stream.settings):
        pass
    assert file.parent.is_file()
