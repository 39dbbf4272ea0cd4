"""The disk space monitor on real small file systems: what it stops, lets go on, deletes, and leaves alone."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from mistamover import board, config, fs, stop_files
from mistamover.disk import Level, Need
from mistamover.heartbeat import read_disks
from mistamover.ledger import entries
from mistamover.monitor import Monitor, Place, directories, overlap, stop_places
from mistamover.options import Settings
from mistamover.reclaim import Asked, Reclaim
from mistamover.stop_files import StopFile
from mistamover.stream import Stream
from mistamover.unit import State
from tests.installed import Installed, until

TOTAL = 4000
"""Blocks of 1 KiB."""
LEVELS = "[disk_space_monitor]\nlevel_good = 2400K\nlevel_low = 1600K\nlevel_vlow = 800K\npoll_interval = 0.1\n"
GOOD, OKAY, LOW, VLOW = 3000, 2000, 1200, 400
"""Blocks that are free at each level."""


class Disk:
    """A small file system with an amount of free space that the test sets."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._ballast = directory / "ballast"

    def leave(self, kib: int) -> None:
        """Have so much free."""
        self._ballast.unlink(missing_ok=True)
        found = os.statvfs(self.directory)
        with self._ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, found.f_bavail * found.f_frsize - kib * 1024)

    def leave_inodes(self, count: int) -> None:
        while (left := os.statvfs(self.directory).f_favail) > count:
            (self.directory / f"inode-{left}").touch()

    def free_inodes(self) -> None:
        for path in self.directory.glob("inode-*"):
            path.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    directory = tmp_path / "spool"
    directory.mkdir()
    options = f"size={TOTAL}k,nr_inodes=1000,mode=755"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", directory], check=True)
    yield Disk(directory)
    subprocess.run(["umount", "--lazy", directory], check=True)


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[Installed]:
    one = Installed(tmp_path)
    one.configure(LEVELS)
    yield one
    one.close()


@pytest.fixture
def three(installed: Installed, disk: Disk) -> Installed:
    """Streams of different priority, of which the spools are on the small file system."""
    for name, priority in {"lesser": 50, "usual": 100, "greater": 150}.items():
        installed.add(name, data_stream=f"priority = {priority}")
    return installed


class Watched:
    """A monitor over streams, and what it says."""

    def __init__(self, installed: Installed) -> None:
        self.installed = installed
        self.said: list[str] = []
        service = config.load_service(installed.ini)
        installed.state.mkdir(exist_ok=True)
        self.monitor = Monitor(installed.state, service.disk_space_monitor, lambda _, line: self.said.append(line))
        self.streams: list[Settings] = [
            config.load(path, installed.ini) for path in sorted(installed.streams.glob("*.ini"))
        ]

    def look(self) -> set[str]:
        """The streams that are stopped after a look."""
        self.monitor.look(self.streams, time.monotonic())
        return self.stopped()

    def stopped(self) -> set[str]:
        return {one.name for one in self.streams if (one.data_stream.directory / ".stop").exists()}


LOWER, ALL = {"lesser", "usual"}, {"lesser", "usual", "greater"}

needs_mount = pytest.mark.needs("root", "mount", "umount")


# -- levels ------------------------------------------------------------------------------------------------


@needs_mount
def test_levels_crossed_down_and_up(three: Installed, disk: Disk) -> None:
    watched = Watched(three)
    way = [
        (GOOD, set()), (OKAY, set()), (LOW, LOWER), (OKAY, LOWER), (LOW, LOWER), (VLOW, ALL), (LOW, ALL),
        (VLOW, ALL), (OKAY, LOWER), (GOOD, set()), (OKAY, set()), (VLOW, ALL), (GOOD, set()),
    ]  # fmt: skip
    for free, stopped in way:
        disk.leave(free)
        assert watched.look() == stopped, (free, watched.said)
    assert len(watched.said) == 12  # as often as level or stops have changed
    assert watched.said[1] == f"{disk.directory} has 1.17 MiB free (low); stopped: lesser, usual"
    assert watched.said[-1].endswith("free (good); no stream is stopped")


@needs_mount
def test_flapping_around_a_limit(three: Installed, disk: Disk) -> None:
    watched = Watched(three)
    disk.leave(LOW)
    watched.look()
    inode = (three.spool("usual") / ".stop").stat().st_ino
    for turn in range(20):
        disk.leave(1600 + (-30 if turn % 2 else 30))
        assert watched.look() == LOWER
    assert (three.spool("usual") / ".stop").stat().st_ino == inode


@needs_mount
def test_inodes_run_out_before_bytes(three: Installed, disk: Disk) -> None:
    watched = Watched(three)
    disk.leave_inodes(19)
    assert watched.look() == LOWER
    disk.leave_inodes(9)
    assert watched.look() == ALL
    assert "inodes free (very low)" in watched.said[-1]
    disk.free_inodes()
    assert watched.look() == set()


@needs_mount
def test_another_monitor_goes_on_from_what_it_finds(three: Installed, disk: Disk) -> None:
    disk.leave(VLOW)
    assert Watched(three).look() == ALL
    disk.leave(OKAY)
    assert Watched(three).look() == LOWER
    # Without its memory it would not know that any stream was stopped.
    assert Watched(three).look() == LOWER
    disk.leave(GOOD)
    assert Watched(three).look() == set()


@needs_mount
def test_a_stream_that_is_gone_leaves_no_stop_file(three: Installed, disk: Disk) -> None:
    disk.leave(LOW)
    assert Watched(three).look() == LOWER
    (three.streams / "usual.ini").unlink()
    disk.leave(OKAY)
    assert Watched(three).look() == {"lesser"}
    assert not (three.spool("usual") / ".stop").exists()


@needs_mount
def test_a_disk_without_any_room_is_stopped_too(three: Installed, disk: Disk) -> None:
    watched = Watched(three)
    disk.leave(0)
    assert os.statvfs(disk.directory).f_bavail == 0
    assert watched.look() == ALL
    assert (three.spool("usual") / ".stop").stat().st_size == 0
    disk.leave(GOOD)
    assert Watched(three).look() == set()


@needs_mount
def test_a_local_target_counts(installed: Installed, disk: Disk) -> None:
    target, spool = disk.directory / "target", installed.top / "elsewhere"
    target.mkdir()
    spool.mkdir()
    installed.add("a", f"target_dir = {target}")
    ini = installed.streams / "a.ini"
    ini.write_text(ini.read_text().replace(f"directory = {installed.spool('a')}\n", f"directory = {spool}\n", 1))
    watched = Watched(installed)
    disk.leave(LOW)
    assert watched.look() == {"a"}
    assert (spool / ".stop").exists()


def test_a_stream_with_arrivals_is_stopped_where_others_push_to(installed: Installed) -> None:
    installed.add("a")
    settings = Watched(installed).streams[0]
    spool, pushed_to = settings.data_stream.directory, installed.top / "arrivals"
    assert stop_places(settings, deletes=False) == [Place(spool, ".stop")]
    incoming = SimpleNamespace(require_arrival_monitor=True, directory=pushed_to, stop_file=".halt")
    with_arrivals = settings.model_copy(update={"incoming": incoming})
    assert stop_places(with_arrivals, deletes=False) == [Place(pushed_to, ".halt")]
    assert stop_places(with_arrivals, deletes=True) == [Place(pushed_to, ".halt"), Place(spool, ".halt")]
    assert directories(with_arrivals) == [spool, pushed_to, installed.target("a")]


# -- stop files --------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "place").mkdir()
    fd = os.open(tmp_path / "place", os.O_RDONLY)
    yield fd
    os.close(fd)


OURS = StopFile("/state", ("/data",))


def test_a_stop_file_says_whose_it_is(tmp_path: Path, place: int) -> None:
    assert stop_files.put(place, ".stop", "/data has 3 MiB free (low)", OURS)
    first, second = (tmp_path / "place/.stop").read_text().splitlines()
    assert first == "stopped by the disk space monitor of mistamover: /data has 3 MiB free (low)"
    assert json.loads(second) == {"monitor": "/state", "file_systems": ["/data"]}
    assert stop_files.read(place, ".stop") == OURS
    both = OURS._replace(file_systems=("/data", "/more"))
    assert stop_files.put(place, ".stop", "", both)
    assert stop_files.read(place, ".stop") == both
    assert stop_files.remove(place, ".stop", "/state")
    assert os.listdir(place) == []
    assert not stop_files.remove(place, ".stop", "/state")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "paused by anna",
        "stopped by the disk space monitor of mistamover: but I wrote it\n",
        'stopped by the disk space monitor of mistamover: x\n{"monitor": "/other", "file_systems": ["/data"]}\n',
        'stopped by the disk space monitor of mistamover: x\n{"monitor": "/state", "file_systems": ["/data"]}\nI\n',
        'stopped by the disk space monitor of mistamover: x\n{"monitor": "/state", "file_systems": ["/data"]}\nI',
        'paused\n{"monitor": "/state", "file_systems": ["/data"]}\n',
        "stopped by the disk space monitor of mistamover: x\n[]\n",
        f"stopped by the disk space monitor of mistamover: x\n{'[' * 60_000}\n",
    ],
)
def test_that_of_a_person_is_left_alone(tmp_path: Path, place: int, content: str) -> None:
    file = tmp_path / "place/.stop"
    file.write_text(content)
    before = file.stat()
    assert not stop_files.put(place, ".stop", "full", OURS)
    assert not stop_files.remove(place, ".stop", "/state")
    assert file.read_text() == content
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    assert os.listdir(place) == [".stop"]


def test_that_of_a_person_who_comes_at_the_last_moment_is_left_alone(
    tmp_path: Path, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_files.put(place, ".stop", "full", OURS)
    rename = os.rename

    def slowly(source: str, target: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        (tmp_path / "place/.stop").unlink()
        (tmp_path / "place/.stop").write_text("paused by anna")
        rename(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr(os, "rename", slowly)
    assert not stop_files.remove(place, ".stop", "/state")
    assert (tmp_path / "place/.stop").read_text() == "paused by anna"


def test_what_has_the_name_is_never_written_into(tmp_path: Path, place: int) -> None:
    """Whoever owns the spool may make it another name of a file that is not ours."""
    stop_files.put(place, ".stop", "full", OURS)
    victim = tmp_path / "victim"
    os.link(tmp_path / "place/.stop", victim)
    content = victim.read_bytes()
    both = OURS._replace(file_systems=("/data", "/more"))
    assert stop_files.put(place, ".stop", "", both)
    assert stop_files.read(place, ".stop") == both
    assert victim.read_bytes() == content
    assert os.listdir(place) == [".stop"]


def test_that_of_a_person_who_comes_while_ours_is_replaced_gets_its_name_back(
    tmp_path: Path, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_files.put(place, ".stop", "full", OURS)
    exchange = fs.exchange

    def slowly(*names: Any) -> bool:
        monkeypatch.undo()
        (tmp_path / "place/.stop").unlink()
        (tmp_path / "place/.stop").write_text("paused by anna")
        return exchange(*names)

    monkeypatch.setattr(fs, "exchange", slowly)
    stop_files.put(place, ".stop", "", OURS._replace(file_systems=("/more",)))
    assert (tmp_path / "place/.stop").read_text() == "paused by anna"
    assert os.listdir(place) == [".stop"]


def test_links_lead_nowhere(tmp_path: Path, place: int) -> None:
    victim = tmp_path / "victim"
    stop_files.put(place, "real", "full", OURS)
    victim.write_bytes((tmp_path / "place/real").read_bytes())
    for name in (".stop", stop_files.TEMPORARY):
        (tmp_path / "place" / name).symlink_to(victim)
    content = victim.read_bytes()
    assert not stop_files.put(place, ".stop", "full", OURS._replace(file_systems=("/more",)))
    assert not stop_files.remove(place, ".stop", "/state")
    assert victim.read_bytes() == content
    assert (tmp_path / "place/.stop").is_symlink()


@needs_mount
def test_a_persons_pause_outlives_that_of_the_monitor(three: Installed, disk: Disk) -> None:
    watched = Watched(three)
    (three.spool("usual") / ".stop").write_text("paused by anna\n")
    disk.leave(LOW)
    assert watched.look() == LOWER
    disk.leave(GOOD)
    assert watched.look() == {"usual"}


@needs_mount
def test_who_pauses_a_stream_that_the_monitor_has_stopped_pauses_it(three: Installed, disk: Disk) -> None:
    watched = Watched(three)
    disk.leave(LOW)
    assert watched.look() == LOWER
    ini = str(three.streams / "usual.ini")
    assert three.run("pause", ini, "--reason", "new disks").out.startswith("paused, by")
    assert three.run("pause", ini).out.startswith("paused already")
    disk.leave(GOOD)
    assert watched.look() == {"usual"}
    assert (three.spool("usual") / ".stop").read_text().endswith(": new disks\n")
    assert three.run("resume", ini).code == 0
    assert watched.look() == set()


@pytest.mark.parametrize("room", ["none", "for the line of the monitor"])
def test_where_there_is_no_room_for_a_line_it_is_a_persons_all_the_same(
    tmp_path: Path, place: int, monkeypatch: pytest.MonkeyPatch, room: str
) -> None:
    def full(_fd: int, _data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if room == "none":
            patch.setattr(os, "write", full)
        stop_files.put(place, ".stop", "full", OURS)
        assert stop_files.is_own(stop_files.read(place, ".stop"), "/state")
        patch.setattr(os, "write", full)
        assert stop_files.take_over(place, ".stop", "paused by anna")
    assert not stop_files.remove(place, ".stop", "/state")
    assert os.listdir(place) == [".stop"]
    assert not stop_files.take_over(place, ".stop", "paused by anna")


# -- deletions ---------------------------------------------------------------------------------------------


DELETING = "transfer_mode = mirror"


def put_old(installed: Installed, name: str, path: str, age: float) -> None:
    file = installed.spool(name) / path
    file.write_bytes(bytes(100 * 1024))
    os.utime(file, (time.time() - age,) * 2)


def fill(installed: Installed, names: dict[str, str]) -> None:
    """Mirror streams with three files each, all of which were delivered; then one that was not."""
    for name, options in names.items():
        installed.add(name, DELETING, data_stream=options)
        for number in range(3):
            put_old(installed, name, str(number), 100 - number)
        with Stream(config.load(installed.streams / f"{name}.ini", installed.ini)) as stream:
            assert stream.run_pass(patient=False).leaves_nothing
        put_old(installed, name, "unsent", 1000)


@needs_mount
def test_below_the_last_level_the_lowest_priority_loses_first(installed: Installed, disk: Disk) -> None:
    on = "deletion_enabled = yes"
    fill(
        installed,
        {
            "lowest": f"priority = 1\n{on}",
            "low": f"priority = 2\n{on}",
            "off": "priority = 0",
            "greater": f"priority = 101\n{on}",
        },
    )
    watched = Watched(installed)
    disk.leave(450)  # 350 KiB are missing: all of the lowest, and one of the next
    assert watched.look() == {"lowest", "low", "off"}
    assert installed.left("lowest") == {"unsent"}
    assert installed.left("low") == {"1", "2", "unsent"}
    assert installed.left("off") == installed.left("greater") == {"0", "1", "2", "unsent"}
    assert [line for line in watched.said if line.startswith("low: deleted: 0 (100 KiB), which the target has")]
    # Nothing more is to be had from these: then all are stopped, and what was never delivered stays.
    disk.leave(100)
    assert watched.look() == {"lowest", "low", "off", "greater"}
    assert installed.left("lowest") == installed.left("low") == {"unsent"}
    assert installed.left("off") == installed.left("greater") == {"0", "1", "2", "unsent"}


@needs_mount
def test_what_exists_nowhere_else_goes_last_of_all_streams(installed: Installed, disk: Disk) -> None:
    on = "deletion_enabled = yes\ndeletion_of_unsent = yes"
    fill(installed, {"lowest": f"priority = 1\n{on}", "low": f"priority = 2\n{on}"})
    watched = Watched(installed)
    disk.leave(450)  # 350 KiB are missing
    watched.look()
    assert installed.left("lowest") == {"unsent"}
    assert installed.left("low") == {"1", "2", "unsent"}
    disk.leave(550)  # 250 KiB: what is left of what was delivered, and one that was not
    watched.look()
    assert installed.left("lowest") == set()
    assert installed.left("low") == {"unsent"}
    (entry,) = entries(installed.state / "lowest/ledger.sqlite", states=[State.DELETED])
    assert entry.path == "unsent"
    assert entry.reason.startswith(f"{disk.directory} has ")
    assert entry.reason.endswith(" free (very low)")


@needs_mount
def test_what_others_write_meanwhile_is_made_up_for(
    installed: Installed, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(installed, {"a": "deletion_enabled = yes", "greater": "priority = 101"})
    run = Reclaim.run

    def while_somebody_writes(self: Reclaim, asked: Asked) -> Need:
        left = run(self, asked)
        (disk.directory / "more").write_bytes(bytes(40 * 1024))
        return left

    monkeypatch.setattr(Reclaim, "run", while_somebody_writes)
    watched = Watched(installed)
    disk.leave(730)  # 70 KiB are missing, and then some again
    assert watched.look() == {"a"}
    assert installed.left("a") == {"2", "unsent"}


@needs_mount
def test_a_spool_that_two_streams_read_loses_nothing(installed: Installed, disk: Disk) -> None:
    fill(installed, {"a": "deletion_enabled = yes"})
    installed.add("b", DELETING)
    ini = installed.streams / "b.ini"
    ini.write_text(ini.read_text().replace(str(installed.spool("b")), f"{installed.spool('a')}/../a", 1))
    watched = Watched(installed)
    disk.leave(VLOW)
    watched.look()
    assert installed.left("a") == {"0", "1", "2", "unsent"}
    assert any("loses no units, since the spool of b is there too" in line for line in watched.said)


def test_spools_that_lie_in_each_other(installed: Installed) -> None:
    for name in ("a", "b", "ab"):
        installed.add(name)
    (installed.spool("a") / "inner").mkdir()
    ini = installed.streams / "b.ini"
    ini.write_text(ini.read_text().replace(str(installed.spool("b")), f"{installed.spool('a')}/inner", 1))
    streams = {one.name: one for one in Watched(installed).streams}
    found = {name: overlap(one, streams.values()) for name, one in streams.items()}
    assert {name: one.name if one else None for name, one in found.items()} == {"a": "b", "b": "a", "ab": None}


# -- in the service ----------------------------------------------------------------------------------------


def monitor_of(installed: Installed) -> psutil.Process | None:
    for process in psutil.Process(installed.pid).children():
        with suppress(psutil.Error):  # it was killed a moment ago
            if " ".join(process.cmdline()).strip() == "mistamover: disk-monitor":
                return process
    return None


def stops(installed: Installed, *names: str) -> set[str]:
    return {name for name in names if (installed.spool(name) / ".stop").exists()}


def alerted(installed: Installed) -> set[str]:
    """The file systems of which people are told."""
    return {one.about for told in board.read_all(installed.state) for one in told.conditions if one.is_open}


@needs_mount
def test_a_day_of_the_monitor(three: Installed, disk: Disk) -> None:
    fill(three, {"mirror": "deletion_enabled = yes"})
    names = ("lesser", "usual", "greater", "mirror")
    disk.leave(OKAY)
    three.start()
    until(lambda: (str(disk.directory), "okay") in {(one.mount, one.level) for one in read_disks(three.state)})
    until(lambda: three.arrived("mirror") == {"0", "1", "2", "unsent"})
    assert stops(three, *names) == set()
    disk.leave(LOW)
    until(lambda: stops(three, *names) == {"lesser", "usual", "mirror"})
    (three.spool("greater") / "urgent").touch()
    (three.spool("usual") / "later").touch()
    until(lambda: three.arrived("greater") == {"urgent"})
    until(lambda: three.stream("usual")["state"] == "paused")
    status = three.run("status")
    assert status.code == 1
    assert f"! disk {disk.directory}: low, " in status.out
    assert "free; stopped: lesser, mirror, usual; mistamover disk shows more" in status.out
    assert alerted(three) == {str(disk.directory)}
    assert "paused by " in three.stream("usual")["why"]
    assert "stopped by the disk space monitor of mistamover" in three.stream("usual")["why"]
    # It dies while streams are stopped by it: they stay so, and the next one lets them go on.
    killed = monitor_of(three)
    assert killed is not None
    killed.send_signal(signal.SIGKILL)
    until(lambda: (now := monitor_of(three)) is not None and now.pid != killed.pid)
    assert stops(three, *names) == {"lesser", "usual", "mirror"}
    assert three.arrived("usual") == set()
    # Its worker is alive, and paused: what was delivered goes.
    disk.leave(VLOW + 300)
    until(lambda: "unsent" not in three.left("mirror"))  # it is the oldest, and was sent by now
    assert three.left("mirror") >= {"1", "2"}
    assert three.arrived("mirror") == {"0", "1", "2", "unsent"}
    disk.leave(GOOD)
    until(lambda: stops(three, *names) == set())
    until(lambda: three.arrived("usual") == {"later"})
    until(lambda: three.run("status").code == 0)
    until(lambda: alerted(three) == set())
    told = json.loads(three.run("disk", "--json").out.splitlines()[0])
    assert (told["mount"], told["level"], told["stopped"]) == (str(disk.directory), Level.GOOD.name.lower(), [])
    assert three.run("stop").code == 0
    assert three.strays() == []


# -- what people see ---------------------------------------------------------------------------------------


@needs_mount
def test_what_disk_shows_without_a_service(three: Installed, disk: Disk) -> None:
    disk.leave(LOW)
    shown = three.run("disk")
    assert (shown.code, shown.err) == (1, "")
    head, *lines = shown.lines
    assert head.split()[:3] == ["mount", "level", "free"]
    (line,) = (line.split() for line in lines if str(disk.directory) in line)
    assert line[:6] == ["!", str(disk.directory), "low", "1.17", "MiB", "3.91"]
    assert line[-3:] == ["greater", "lesser", "usual"]
    assert Watched(three).look() == LOWER
    assert three.run("disk").out.count("[lesser]") == 1
    disk.leave(GOOD)
    told = next(one for one in map(json.loads, three.run("disk", "--json").lines) if one["mount"] == line[1])
    assert (told["level"], told["free"], told["rate"]) == ("good", GOOD * 1024, None)


def test_a_disk_is_watched(tmp_path: Path, installed: Installed) -> None:
    process = installed.popen("disk", "--json", "--watch", str(tmp_path))
    assert process.stdout is not None
    first, second = (json.loads(process.stdout.readline()) for _ in range(2))
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    process.communicate()
    assert first["rate"] is None
    assert isinstance(second["rate"], float)
    assert second["total"] == os.statvfs(tmp_path).f_blocks * os.statvfs(tmp_path).f_frsize
    missing = installed.run("disk", "--watch", str(tmp_path / "missing"))
    assert missing.code == 2
    assert "does not exist" in missing.err
