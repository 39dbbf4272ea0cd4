"""The arrivals monitor: what others push is proven, or set aside; everything that they may think of is survived."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from mistamover import fs, handshake
from mistamover.arrivals import ASIDE, PLACE, Arrivals, Claim, Job, Judgement, Stager, _receipt_record, set_aside
from mistamover.config import load
from mistamover.errors import Held, SpoolError
from mistamover.events import Event, Kind
from mistamover.handshake import LARGEST, Receipt, Status, parse_receipt, receipt_text
from mistamover.options import Settings
from mistamover.provers import NOBODY
from mistamover.spool import QUARANTINE, REASON
from mistamover.testing.needs import require
from mistamover.testing.rig import remount, small_disk
from mistamover.unit import Identity

RECEIPT = ".{}.1466000000.25.stager-rcpt-bss"


class Sender:
    """Pushes files as a sender does, and a receiver that takes them."""

    def __init__(self, top: Path) -> None:
        self.top, self.incoming, self.spool = top, top / "incoming", top / "spool"
        for directory in (self.incoming, self.spool):
            directory.mkdir()
        self.events: list[Event] = []
        self.options: dict[str, str] = {}

    def settings(self) -> Settings:
        lines = "\n".join(f"{option} = {value}" for option, value in self.options.items())
        file = self.top / "x.ini"
        file.write_text(
            f"[global]\nstate_dir = {self.top}/state\n[data_stream]\ndirectory = {self.spool}\n"
            f"[outgoing]\ntransfer_protocol = none\n[incoming]\nrequire_arrival_monitor = yes\n"
            f"directory = {self.incoming}\n{lines}\n"
        )
        return load(file, None, {})

    def receive(self, passes: int = 1) -> list[Event]:
        """What the receiver tells of so many passes of its own."""
        self.events = []
        with Arrivals(self.settings(), self.events.append) as arrivals:
            for _ in range(passes):
                arrivals.run_pass()
        return self.events

    def push(self, name: str, data: bytes, /, **claims: object) -> Path:
        """Push a file and its control file; some of its lines may be made up. Gives the latter."""
        (self.incoming / name).write_bytes(data)
        return self.claim(name, data, **claims)

    def claim(self, name: str, data: bytes, /, **claims: object) -> Path:
        lines = {
            "name": name,
            "size": len(data),
            "md5": hashlib.md5(data).hexdigest(),
            "receipt": RECEIPT.format(name),
            **claims,
        }
        text = "\n".join(map(str, lines.values()))
        control = self.incoming / f".{name}.stager-ctrl-bss"
        control.write_text(f"_start_stager_ctrl_data_\n{text}\n_end_stager_ctrl_data_\n")
        return control

    def thank(self, name: str, receipt: str) -> Path:
        path = self.incoming / name
        path.write_text(f"_start_stager_thankyou_\n{receipt}\n_end_stager_thankyou_\n")
        return path

    def receipt(self, name: str) -> bytes:
        return (self.incoming / RECEIPT.format(name)).read_bytes()

    def status(self, name: str) -> Status:
        return parse_receipt(self.receipt(name)).status

    def arrived(self) -> dict[str, bytes]:
        """What is in the spool for all to see."""
        return {
            str(path.relative_to(self.spool)): path.read_bytes()
            for path in sorted(self.spool.rglob("*"))
            if path.is_file() and ".mistamover" not in path.parts
        }

    def left(self) -> list[str]:
        """What lies among the arrivals."""
        return sorted(os.listdir(self.incoming))

    def aside(self) -> dict[str, str]:
        """What is in quarantine, by name, with the reasons."""
        places = (self.spool / ".mistamover/quarantine").glob("*")
        return {
            path.name: (place / ".reason").read_text().splitlines()[1]
            for place in places
            for path in place.iterdir()
            if path.name != ".reason"
        }

    def place(self) -> list[str]:
        return sorted(os.listdir(self.spool / PLACE))


@pytest.fixture
def sender(tmp_path: Path) -> Sender:
    return Sender(tmp_path)


def old(path: Path) -> Path:
    """Make a file look as if it had not been changed for a while."""
    then = time.time() - 11
    os.utime(path, (then, then), follow_symlinks=False)
    return path


# -- the way of a file -------------------------------------------------------------------------------------


def test_a_file_is_taken_answered_for_and_forgotten(sender: Sender) -> None:
    sender.push("radar.dat", b"echoes")
    events = sender.receive()
    assert sender.arrived() == {"radar.dat": b"echoes"}
    assert [(event.kind, event.path) for event in events] == [(Kind.ARRIVED, "radar.dat")]
    receipt = parse_receipt(sender.receipt("radar.dat"))
    assert receipt[:4] == ("radar.dat", Status.SUCCESS, 6, hashlib.md5(b"echoes").hexdigest())
    assert sender.left() == [RECEIPT.format("radar.dat")]
    sender.thank(receipt.thankyou, RECEIPT.format("radar.dat"))
    sender.receive()
    assert sender.left() == []
    assert sender.place() == ["lock"]
    assert sender.arrived() == {"radar.dat": b"echoes"}


def test_many_files_are_taken_in_one_pass(sender: Sender) -> None:
    contents = {f"{number:04}": str(number).encode() for number in range(600)}
    for name, data in contents.items():
        sender.push(name, data)
    began = time.monotonic()
    sender.receive()
    assert time.monotonic() - began < 60
    assert sender.arrived() == contents
    assert {sender.status(name) for name in contents} == {Status.SUCCESS}


@pytest.mark.parametrize("count", [1, 20])
def test_it_is_on_disk_before_anybody_is_told(sender: Sender, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """The file, its name, and the decision; one by one, or all of the file system at once."""
    on_disk: set[tuple[int, int]] = set()
    synced: list[int] = []
    untold: set[str] = set()
    fsync, sync_all, write = os.fsync, fs.sync_file_system, handshake.write

    def noted(fd: int) -> None:
        on_disk.add(Identity.of(os.fstat(fd))[:2])
        fsync(fd)

    def all_noted(fd: int) -> bool:
        synced.append(fd)
        return sync_all(fd)

    def told(name: str, data: bytes, dir_fd: int, draft: str) -> None:
        arrived = parse_receipt(data).name
        untold.remove(arrived)
        decisions = [path for path in (sender.spool / PLACE).glob("*.job") if arrived in path.read_text()]
        assert len(decisions) == 1
        for path in (sender.spool / arrived, *decisions):
            assert synced or Identity.of(path.stat())[:2] in on_disk
        assert Identity.of(sender.spool.stat())[:2] in on_disk
        write(name, data, dir_fd, draft)

    for number in range(count):
        untold.add(f"radar-{number:02}.dat")
        sender.push(f"radar-{number:02}.dat", b"echoes")
    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(fs, "sync_file_system", all_noted)
    monkeypatch.setattr(handshake, "write", told)
    sender.receive()
    assert not untold
    assert bool(synced) == (count > 1)


def test_the_control_file_of_the_next_attempt_is_not_taken_with_that_of_the_last(sender: Sender) -> None:
    class Overtaken(Stager):
        """A sender that does not wait asks anew when its first control file was just read."""

        def judge(self, names: Iterable[str], dir_fd: int, now: float) -> Iterator[Judgement]:
            for judgement in super().judge(names, dir_fd, now):
                sender.claim("radar.dat", b"echoes", receipt=".radar.dat.2.stager-rcpt-bss").rename(second)
                second.rename(first)
                yield judgement

    second = sender.incoming / "second"
    first = sender.push("radar.dat", b"echoes")
    with Arrivals(sender.settings(), sender.events.append, Overtaken(sender.settings())) as arrivals:
        arrivals.run_pass()
    assert sender.status("radar.dat") is Status.SUCCESS
    assert sender.left() == [RECEIPT.format("radar.dat"), first.name]
    sender.push("radar.dat", b"echoes", receipt=".radar.dat.2.stager-rcpt-bss")
    sender.receive()
    assert parse_receipt((sender.incoming / ".radar.dat.2.stager-rcpt-bss").read_bytes()).status is Status.SUCCESS


def test_times_and_empty_files_come_through(sender: Sender) -> None:
    sender.push("empty", b"")
    os.utime(sender.incoming / "empty", (1_000_000_000, 1_000_000_000))
    sender.receive()
    assert sender.arrived() == {"empty": b""}
    assert (sender.spool / "empty").stat().st_mtime == 1_000_000_000


@pytest.mark.parametrize(
    ("claims", "status", "reason"),
    [
        ({"size": 7}, Status.BAD_SIZE, "6 bytes, and 7 were claimed"),
        ({"md5": "0" * 32}, Status.BAD_CHECKSUM, f"md5 is {hashlib.md5(b'echoes').hexdigest()}, and {'0' * 32}"),
        (
            {"receipt": f".radar.dat.1.00.sha256-{'0' * 64}.stager-rcpt-bss"},
            Status.BAD_CHECKSUM,
            f"sha256 is {hashlib.sha256(b'echoes').hexdigest()}",
        ),
    ],
)
def test_a_bad_file_is_set_aside_and_told_of(
    sender: Sender, claims: dict[str, object], status: Status, reason: str
) -> None:
    sender.push("radar.dat", b"echoes", **claims)
    events = sender.receive(2)
    assert sender.arrived() == {}
    assert [event.kind for event in events] == [Kind.REFUSED]
    assert sender.aside().keys() == {"radar.dat"}
    assert reason in sender.aside()["radar.dat"]
    name = str(claims.get("receipt", RECEIPT.format("radar.dat")))
    receipt = parse_receipt((sender.incoming / name).read_bytes())
    assert (receipt.name, receipt.status) == ("radar.dat", status)
    assert sender.left() == [name]
    # It comes again, by another attempt, and is taken.
    sender.push("radar.dat", b"echoes", receipt=".radar.dat.2.00.stager-rcpt-bss")
    sender.receive()
    assert sender.arrived() == {"radar.dat": b"echoes"}


def test_a_file_that_never_comes_is_answered_for_once_its_control_file_is_old(sender: Sender) -> None:
    control = sender.claim("radar.dat", b"echoes")
    sender.receive()
    assert sender.left() == [control.name], "it may be arriving"
    old(control)
    sender.receive()
    receipt = parse_receipt(sender.receipt("radar.dat"))
    assert receipt[1:4] == (Status.NO_DATA, -1, "")


def test_a_file_that_is_being_written_waits(sender: Sender) -> None:
    sender.push("radar.dat", b"echoes")
    fd = os.open(sender.incoming / "radar.dat", os.O_WRONLY)
    sender.receive()
    assert sender.arrived() == {}
    os.close(fd)
    sender.receive()
    assert sender.arrived() == {"radar.dat": b"echoes"}


def test_a_stop_file_holds_everything(sender: Sender) -> None:
    sender.push("radar.dat", b"echoes")
    stop = sender.incoming / ".stop"
    stop.touch()
    before = sender.left()
    assert [event.kind for event in sender.receive()] == [Kind.PAUSED]
    assert sender.left() == before
    stop.unlink()
    sender.receive()
    assert sender.arrived() == {"radar.dat": b"echoes"}


def test_directories_come_back_out_of_names(sender: Sender) -> None:
    sender.options["flatten"] = "yes"
    sender.push("north%2Fradar%2F50%25.dat", b"echoes")
    sender.push("plain", b"plain")
    hostile = old(sender.push("a%2F..%2F..%2Fb", b"out"))
    sender.receive()
    assert sender.arrived() == {"north/radar/50%.dat": b"echoes", "plain": b"plain"}
    assert sender.aside().keys() == {hostile.name}
    assert not (sender.top / "b").exists()


# -- names that are taken ----------------------------------------------------------------------------------


def test_the_same_file_again_counts_as_arrived(sender: Sender) -> None:
    (sender.spool / "radar.dat").write_bytes(b"echoes")
    inode = (sender.spool / "radar.dat").stat().st_ino
    sender.push("radar.dat", b"echoes")
    sender.receive()
    assert sender.status("radar.dat") is Status.SUCCESS
    assert (sender.spool / "radar.dat").stat().st_ino == inode
    assert sender.left() == [RECEIPT.format("radar.dat")]


@pytest.mark.parametrize("other", [b"others", b"longer than that"])
def test_another_file_of_the_name_is_never_overwritten(sender: Sender, other: bytes) -> None:
    (sender.spool / "radar.dat").write_bytes(other)
    sender.push("radar.dat", b"echoes")
    events = sender.receive(3)
    assert {event.kind for event in events} == {Kind.WAITING}
    assert sender.arrived() == {"radar.dat": other}
    assert sender.left() == []
    (sender.spool / "radar.dat").unlink()
    sender.receive()
    assert sender.arrived() == {"radar.dat": b"echoes"}
    assert sender.status("radar.dat") is Status.SUCCESS


def test_another_file_is_replaced_where_that_is_wanted(sender: Sender) -> None:
    sender.options["existing"] = "replace"
    (sender.spool / "radar.dat").write_bytes(b"old")
    (sender.spool / "taken").mkdir()
    sender.push("radar.dat", b"echoes")
    sender.push("taken", b"no directory")
    events = sender.receive()
    assert sender.arrived() == {"radar.dat": b"echoes"}
    assert {event.path: event.kind for event in events} == {"radar.dat": Kind.ARRIVED, "taken": Kind.WAITING}


# -- hostile -----------------------------------------------------------------------------------------------


def test_control_files_of_all_kinds_are_refused_and_nothing_else_is_touched(sender: Sender) -> None:
    secret = sender.top / "secret"
    secret.write_bytes(b"secret")
    incoming = sender.incoming
    (incoming / "data").write_bytes(b"data")
    claims: dict[str, dict[str, object]] = {
        "passwd": {"name": "../../secret"},
        "absolute": {"name": secret},
        "other": {"name": "data", "size": 4},
        "nul": {"name": "a\0b"},
        "out": {"receipt": "../receipt"},
        "stop": {"receipt": ".stop"},
        "unit": {"receipt": "data"},
        "control": {"receipt": ".x.stager-ctrl-bss"},
        "thanks": {"receipt": ".x.stager-thanks-bss"},
    }
    kinds: dict[str, Callable[[Path], object]] = {
        "link": lambda path: path.symlink_to(secret),
        "dangling": lambda path: path.symlink_to(sender.top / "nowhere"),
        "fifo": os.mkfifo,
        "directory": Path.mkdir,
        "long": lambda path: path.write_bytes(bytes(LARGEST + 1)),
        "huge": huge,
        "empty": Path.touch,
        "binary": lambda path: path.write_bytes(os.urandom(LARGEST)),
    }
    for name, wrong in claims.items():
        sender.claim(name, b"x", **wrong)
    for name, make in kinds.items():
        make(incoming / f".{name}.stager-ctrl-bss")
    controls = [*claims, *kinds]
    before = sender.left()
    assert sender.receive() == []
    assert sender.left() == before, "young ones may still be arriving"
    for name in controls:
        old(incoming / f".{name}.stager-ctrl-bss")
    events = sender.receive(2)
    names = {f".{name}.stager-ctrl-bss" for name in controls}
    assert {event.path for event in events if event.kind is Kind.REFUSED} == names
    assert sender.aside().keys() == names
    assert sender.left() == ["data"]
    assert sender.arrived() == {}
    assert secret.read_bytes() == b"secret"
    assert {path.name for path in sender.top.iterdir()} == {"incoming", "spool", "secret", "x.ini"}


def huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**30)


def test_data_files_that_are_none_are_no_data(sender: Sender) -> None:
    secret = sender.top / "secret"
    secret.write_bytes(b"secret")
    makers: dict[str, Callable[[Path], object]] = {
        "link": lambda path: path.symlink_to(secret),
        "fifo": os.mkfifo,
        "directory": Path.mkdir,
    }
    for name, make in makers.items():
        make(sender.incoming / name)
        old(sender.claim(name, b"secret"))
    with socket.socket(socket.AF_UNIX) as here:
        here.bind(str(sender.incoming / "socket"))
        old(sender.claim("socket", b"secret"))
        sender.receive()
    for name in (*makers, "socket"):
        assert sender.status(name) is Status.NO_DATA
    assert sender.arrived() == {}
    assert secret.read_bytes() == b"secret"


STRANGER = 65534


def planted(sender: Sender, name: str, job: Job) -> Path:
    """What whoever owns the spool may put among our jobs."""
    path = sender.spool / PLACE / name
    path.write_bytes(job.text())
    os.chown(path, STRANGER, STRANGER)
    return path


@pytest.mark.needs("root")
def test_a_job_that_somebody_else_wrote_is_not_done(sender: Sender) -> None:
    """Its proof would be removed wherever that is, and its data be published out of the spool."""
    secret = sender.top / "secret"
    secret.write_bytes(b"secret")
    sender.receive()
    seen = Identity.of(secret.stat())
    claim = Claim("../out", 5, {}, "../secret", seen, RECEIPT.format("x"))
    found = Receipt("../out", Status.SUCCESS, 5, "", ".x.thanks")
    for job in (Job("0" * 16, claim), Job("1" * 16, claim, found)):
        planted(sender, job.file, job)
        (sender.spool / PLACE / job.data).write_bytes(b"12345")
    (sender.spool / PLACE / "link.job").symlink_to(secret)
    os.mkfifo(sender.spool / PLACE / "fifo.job")
    events = sender.receive()
    assert secret.read_bytes() == b"secret"
    assert {path.name for path in sender.top.iterdir()} == {"incoming", "spool", "secret", "x.ini"}
    assert sender.left() == []
    assert sender.place() == ["lock"]
    told = [event.path for event in events if "somebody else" in event.reason]
    assert sorted(told) == [f"{PLACE}/{number * 16}.job" for number in "01"]


@pytest.mark.needs("root")
def test_a_record_that_somebody_else_wrote_removes_nothing(sender: Sender) -> None:
    """A thank-you would remove whatever has the very bytes of a receipt."""
    sender.receive()
    receipt = Receipt("x", Status.SUCCESS, 5, "", ".x.1.stager-thanks-bss")
    name = RECEIPT.format("x")
    (sender.incoming / name).write_bytes(receipt_text(receipt))
    planted(sender, _receipt_record(name), Job("0" * 16, Claim("x", 5, {}, "", NOBODY, name), receipt))
    old(sender.thank(receipt.thankyou, name))
    sender.receive()
    assert sender.left() == [name]
    (sender.spool / PLACE / _receipt_record(name)).write_bytes(b"no job")
    os.chown(sender.spool / PLACE / _receipt_record(name), 0, 0)
    old(sender.thank(receipt.thankyou, name))
    sender.receive()
    assert sender.left() == [name]


def test_a_job_of_ours_counts_under_its_own_name_alone(sender: Sender) -> None:
    """One that was kept, and is put back after its end, must not end the file that came since."""
    with Arrivals(sender.settings(), sender.events.append) as arrivals:
        job = arrivals._take_up(Claim("x", 5, {}, "", NOBODY))
    here = sender.spool / PLACE
    os.rename(here / job.file, here / "0000.job")
    sender.receive()
    assert sender.place() == ["lock"]
    assert [event.path for event in sender.events] == [f"{PLACE}/0000.job"]


def test_reasons_that_are_none_are_not_shown(sender: Sender) -> None:
    quarantine = sender.spool / QUARANTINE
    makers: dict[str, Callable[[Path], object]] = {
        "fifo": os.mkfifo,
        "link": lambda path: path.symlink_to("/etc/passwd"),
        "outside": lambda path: path.write_text(f"{sender.top}\nwhat?\n"),
        "good": lambda path: path.write_text("x\nit is no regular file\n"),
    }
    for name, make in makers.items():
        (quarantine / f"{ASIDE}{name}").mkdir(parents=True)
        (quarantine / f"{ASIDE}{name}" / "x").touch()
        make(quarantine / f"{ASIDE}{name}" / REASON)
    assert [one.number for one in set_aside(sender.spool)] == [f"{ASIDE}good"]


def test_a_receipt_takes_nobody_s_name(sender: Sender) -> None:
    (sender.incoming / ".precious.note").write_bytes(b"precious")
    sender.push("radar.dat", b"echoes", receipt=".precious.note")
    events = sender.receive(2)
    assert (sender.incoming / ".precious.note").read_bytes() == b"precious"
    assert sender.left() == [".precious.note"]
    assert {event.kind for event in events} == {Kind.ARRIVED, Kind.REFUSED}


def test_a_thank_you_removes_a_receipt_of_ours_and_itself_and_nothing_else(sender: Sender) -> None:
    sender.push("radar.dat", b"echoes")
    (sender.incoming / "data.x.y").write_bytes(b"data")
    (sender.incoming / ".data.x.y").write_bytes(b"data")
    sender.receive()
    receipt = RECEIPT.format("radar.dat")
    right = parse_receipt(sender.receipt("radar.dat")).thankyou
    forged = {
        ".1.stager-thanks-bss": receipt,
        ".2.stager-thanks-bss": ".data.x.y",
        ".3.stager-thanks-bss": "data.x.y",
        ".4.stager-thanks-bss": "../spool/radar.dat",
        ".5.stager-thanks-bss": ".mistamover",
    }
    for name, what in forged.items():
        old(sender.thank(name, what))
    old_link = sender.incoming / ".6.stager-thanks-bss"
    old_link.symlink_to(sender.spool / "radar.dat")
    old(old_link)
    sender.thank(".7.stager-thanks-bss", ".gone.x.y")
    events = sender.receive()
    assert {event.path for event in events if event.kind is Kind.REFUSED} == {*forged, old_link.name}
    assert sender.left() == [".data.x.y", receipt, "data.x.y"]
    # Somebody wrote over the receipt: what is there now is not ours.
    (sender.incoming / receipt).write_bytes(b"something else")
    sender.thank(right, receipt)
    sender.receive()
    assert sender.left() == [".data.x.y", receipt, "data.x.y"]


# -- places ------------------------------------------------------------------------------------------------


def test_two_cannot_receive_into_one_spool(sender: Sender) -> None:
    with Arrivals(sender.settings(), sender.events.append), pytest.raises(Held):
        sender.receive()


def test_a_directory_that_is_missing_or_replaced_is_told_of(sender: Sender) -> None:
    with Arrivals(sender.settings(), sender.events.append) as arrivals:
        sender.incoming.rename(sender.top / "elsewhere")
        with pytest.raises(SpoolError):
            arrivals.run_pass()
        sender.incoming.mkdir()
        with pytest.raises(SpoolError, match="took the place"):
            arrivals.run_pass()
    sender.incoming.rmdir()
    with pytest.raises(SpoolError, match="cannot be opened"):
        sender.receive()


def test_an_older_file_that_had_to_wait_never_replaces_a_newer_one(
    sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender.options["existing"] = "replace"
    (sender.spool / "a").mkdir()
    for number in range(6):
        sender.push("a", bytes(number), receipt=f".a.{number}.stager-rcpt-bss")
        time.sleep(0.01)  # the clock of file systems has steps
        sender.receive()
    (sender.spool / "a").rmdir()
    sender.receive()
    assert sender.arrived() == {"a": bytes(5)}

    # The way is free just after the older one was tried.
    (sender.spool / "a").unlink()
    (sender.spool / "a").mkdir()
    sender.push("a", b"older")
    sender.receive()
    sender.push("a", b"newer", receipt=".a.7.stager-rcpt-bss")
    judge = Stager.judge

    def late(prover: Stager, names: Iterable[str], dir_fd: int, now: float) -> Iterator[Judgement]:
        (sender.spool / "a").rmdir()
        return judge(prover, names, dir_fd, now)

    with monkeypatch.context() as patch:
        patch.setattr(Stager, "judge", late)
        sender.receive()
    assert sender.arrived() == {}
    sender.receive()
    assert sender.arrived() == {"a": b"newer"}


@contextmanager
def disk(path: Path, option: str) -> Iterator[None]:
    require("root", "mount", "umount")
    with small_disk(path, option):
        yield


def test_arrivals_on_another_file_system_are_copied(sender: Sender) -> None:
    with disk(sender.incoming, "size=8m"):
        data = os.urandom(700_001)
        sender.push("radar.dat", data)
        os.utime(sender.incoming / "radar.dat", (1_000_000_000, 1_000_000_000))
        old(sender.push("bad", b"bad", md5="0" * 32))
        hostile = sender.incoming / ".x.stager-ctrl-bss"
        hostile.write_bytes(b"hostile")
        old(hostile)
        events = sender.receive(2)
        assert sender.arrived() == {"radar.dat": data}
        assert (sender.spool / "radar.dat").stat().st_mtime == 1_000_000_000
        assert sender.status("bad") is Status.BAD_CHECKSUM
        assert sender.aside().keys() == {"bad"}
        # Of the hostile one, which cannot be renamed there, nothing is left in quarantine at each look.
        assert len(os.listdir(sender.spool / ".mistamover/quarantine")) == 1
        assert sender.left() == [
            ".bad.1466000000.25.stager-rcpt-bss",
            ".radar.dat.1466000000.25.stager-rcpt-bss",
            hostile.name,
        ]
        assert [event.path for event in events].count(hostile.name) == 2, "told of each time, and left where it is"


def test_a_full_spool_is_no_reason_to_answer(sender: Sender) -> None:
    """What cannot be recorded is not answered for; once there is room, it goes on."""
    with disk(sender.spool, "size=64k,nr_inodes=12"):
        sender.receive()
        filler = sender.spool / "filler"
        for number in range(20):
            try:
                filler.with_name(f"filler{number}").touch()
            except OSError:
                break
        sender.push("radar.dat", b"echoes")
        with pytest.raises(SpoolError):
            sender.receive()
        assert RECEIPT.format("radar.dat") not in sender.left()
        remount(sender.spool, "size=64k,nr_inodes=40")
        sender.receive()
        assert sender.arrived()["radar.dat"] == b"echoes"
        assert sender.status("radar.dat") is Status.SUCCESS


@pytest.mark.parametrize("ends", ["ctrl-bss", ".data", "thanks-bss"])
def test_no_sender_is_to_blame_for_too_few_descriptors(
    sender: Sender, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    """Others may have used up what the whole system has between two steps of ours."""
    if ends == "thanks-bss":
        sender.push("radar.dat", b"echoes")
        sender.receive()
        sender.thank(parse_receipt(sender.receipt("radar.dat")).thankyou, RECEIPT.format("radar.dat"))
    else:
        sender.push("radar.dat", b"echoes")
    for path in sender.incoming.iterdir():
        old(path)
    opened, is_short = os.open, [True]

    def open_(path: str, *args: Any, **kwargs: Any) -> int:
        if str(path).endswith(ends) and is_short:
            is_short.clear()
            raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", open_)
    events: list[Event] = []
    with Arrivals(sender.settings(), events.append) as arrivals:
        for _ in range(3):
            with suppress(SpoolError):
                arrivals.run_pass()
    assert not is_short
    assert sender.arrived() == {"radar.dat": b"echoes"}
    assert {event.kind for event in events} <= {Kind.ARRIVED}
    assert sender.left() == ([] if ends == "thanks-bss" else [RECEIPT.format("radar.dat")])
