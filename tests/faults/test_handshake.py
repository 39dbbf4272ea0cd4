"""Sender and receiver of a handshake, killed at every step of it; a chain of three hosts, killed at random."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path

import pytest

from mistamover import fs
from mistamover.arrivals import PLACE, Arrivals
from mistamover.config import load
from mistamover.events import Event
from mistamover.handshake import Status, parse_receipt
from mistamover.ledger import Ledger
from mistamover.options import Settings
from mistamover.stream import Stream, state_directory, target_name
from mistamover.testing.rig import files, noise
from tests import ftpd
from tests.faults import kills
from tests.ftpd import Proftpd
from tests.rsyncd import PASSWORD, USER, Rsyncd
from tests.sshd import Sshd
from tests.test_arrivals import RECEIPT, Sender
from tests.transports.test_rsync import over_ssh

DEADLINE = 60.0
MOST_STEPS = 400
KILLS = 8
_FILES = {"open", "os.rename", "os.remove", "os.mkdir", "os.link", "os.utime", "os.truncate"}


def killed_at(number: int, work: Callable[[], object]) -> bool:
    """Do the work in another process that is killed just before its so manyth step; whether it was.

    A step is what changes something on disk: by a system call that Python tells of, by a rename that replaces
    nothing, or by the ledger.
    """
    child = os.fork()
    if not child:
        _kill_at(number)
        work()
        os._exit(0)
    was_killed = _ended(child) == -signal.SIGKILL
    if was_killed:
        kills.note("steps of one process, without a protocol")
    return was_killed


def _ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _kill_at(number: int) -> None:
    left = [number]

    def step() -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        is_read = event == "open" and not (isinstance(arguments[2], int) and arguments[2] & os.O_CREAT)
        if event in _FILES and not is_read:
            step()

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            step()
            return function(*arguments, **options)

        return call

    sys.addaudithook(hook)
    fs.rename_new = counted(fs.rename_new)  # type: ignore[assignment]
    os.fsync = counted(os.fsync)  # type: ignore[assignment]
    for name in ("note", "deliver", "forget", "removed", "quarantine", "reserve", "listed"):
        setattr(Ledger, name, counted(getattr(Ledger, name)))


# -- the receiver ------------------------------------------------------------------------------------------


def pushed(top: Path) -> Sender:
    """Files of all fates: two good ones, a bad one, one that is there already, and one that is thanked for."""
    top.mkdir()
    sender = Sender(top)
    sender.push("thanked", b"thanked")
    sender.receive()
    thanks = parse_receipt(sender.receipt("thanked")).thankyou
    sender.push("good", b"good")
    sender.push("empty", b"")
    sender.push("bad", b"bad", md5="0" * 32)
    (sender.spool / "there").write_bytes(b"there")
    sender.push("there", b"there")
    sender.thank(thanks, RECEIPT.format("thanked"))
    return sender


def test_a_receiver_that_is_killed_at_any_step_goes_on(tmp_path: Path) -> None:
    expected = {"good": b"good", "empty": b"", "there": b"there", "thanked": b"thanked"}
    for number in count(1):
        assert number < MOST_STEPS
        sender = pushed(tmp_path / str(number))
        was_killed = killed_at(number, sender.receive)
        for name in ("good", "empty", "bad", "there"):
            assert is_somewhere(sender, name), (number, name)
        if number % 3 == 0:  # a crash may follow a crash
            killed_at(4, sender.receive)
        sender.receive()
        assert sender.arrived() == expected, number
        assert [*sender.aside()] == ["bad"], number
        assert {name: sender.status(name) for name in ("good", "empty", "bad", "there")} == {
            "good": Status.SUCCESS,
            "empty": Status.SUCCESS,
            "bad": Status.BAD_CHECKSUM,
            "there": Status.SUCCESS,
        }, number
        assert sender.left() == sorted(map(RECEIPT.format, ("good", "empty", "bad", "there"))), number
        for name in ("good", "empty", "bad", "there"):
            sender.thank(parse_receipt(sender.receipt(name)).thankyou, RECEIPT.format(name))
        sender.receive()
        assert sender.left() == []
        assert sender.place() == ["lock"], number
        if not was_killed:
            break
    assert number > 40, "the steps were counted"


def is_somewhere(sender: Sender, name: str) -> bool:
    data = b"" if name == "empty" else name.encode()
    places = [sender.incoming, sender.spool]
    return any(path.read_bytes() == data for place in places for path in place.rglob("*") if path.is_file())


# -- both, over each protocol ------------------------------------------------------------------------------


@dataclass
class Pair:
    """A sender, and a receiver that only takes what comes."""

    top: Path
    far: Mapping[str, Mapping[str, str]] = field(
        default_factory=lambda: {"outgoing": {"transfer_protocol": "local"}}
    )
    contents: dict[str, bytes] = field(default_factory=lambda: {"a": b"a" * 3000, "b": b"", "c": noise(100_000)})

    def __post_init__(self) -> None:
        self.top.mkdir(exist_ok=True)
        for name in ("spool", "incoming", "kept"):
            (self.top / name).mkdir()
        for name, data in self.contents.items():
            (self.top / "spool" / name).write_bytes(data)
        self.sender = self._settings("sender", "spool", {
            **self.far,
            "outgoing": {
                "target_dir": str(self.top / "incoming"),
                "target_uses_arrival_monitor": "yes",
                "receipt_file_poll_interval": "0.02",
                "receipt_file_poll_count": "10000",
                "lanes": "1",
                **self.far["outgoing"],
            },
        })  # fmt: skip
        self.receiver = self._settings("receiver", "kept", {
            "incoming": {"require_arrival_monitor": "yes", "directory": str(self.top / "incoming")},
            "outgoing": {"transfer_protocol": "none"},
        })  # fmt: skip

    def _settings(self, name: str, spool: str, sections: Mapping[str, Mapping[str, str]]) -> Settings:
        every = {
            "global": {"state_dir": str(self.top / "state")},
            "data_stream": {"directory": str(self.top / spool), "settle_time": "0"},
            **sections,
        }
        file = self.top / f"{name}.ini"
        file.touch(mode=0o600)
        lines = [f"[{title}]\n" + "\n".join(map(" = ".join, options.items())) for title, options in every.items()]
        file.write_text("\n".join(lines))
        return load(file, None, {})

    def send(self) -> None:
        """One patient pass of the sender."""
        with Stream(self.sender) as stream:
            summary = stream.run_pass(patient=True)
        assert summary.exit == 0, (summary, summary.error)

    def send_and_receive(self, number: int = 0, until: Callable[[], bool] = lambda: False) -> bool:
        """The sender in another process, the receiver here; whether that was killed, at a step or ``until``."""
        child = os.fork()
        if not child:
            try:
                _kill_at(number)
                self.send()
                os._exit(0)
            except BaseException:  # noqa: BLE001 - told of by the parent
                (self.top / "failed").write_text(traceback.format_exc())
            os._exit(1)
        deadline = time.monotonic() + DEADLINE
        with Arrivals(self.receiver, lambda _: None) as arrivals:
            while True:
                pid, status = os.waitpid(child, os.WNOHANG)
                if pid:
                    arrivals.run_pass()
                    code = os.waitstatus_to_exitcode(status)
                    assert code in (0, -signal.SIGKILL), (self.top / "failed").read_text()
                    return code != 0
                assert time.monotonic() < deadline
                if until():
                    os.kill(child, signal.SIGKILL)
                    until = bool
                arrivals.run_pass()

    def check(self) -> None:
        """Raise unless all has arrived, once, and nothing is left over but ledgers."""
        top = self.top
        assert files(top / "kept") == self.contents
        assert files(top / "spool") == {}
        assert [path for path in (top / "incoming").rglob("*") if not path.is_dir()] == []
        assert os.listdir(top / "kept" / PLACE) == ["lock"]
        assert open_handshakes(self.sender) == []


def open_handshakes(settings: Settings) -> list[object]:
    with closing(Ledger(state_directory(settings), target_name(settings), "sha256")) as ledger:
        return list(ledger.handshakes())


def test_a_sender_that_is_killed_at_any_step_goes_on(tmp_path: Path) -> None:
    for number in count(1):
        assert number < MOST_STEPS
        pair = Pair(tmp_path / str(number), contents={"a": b"a", "b": b"bb"})
        was_killed = pair.send_and_receive(number)
        pair.send_and_receive()
        pair.check()
        if not was_killed:
            break
    assert number > 30, "the steps were counted"


PROTOCOLS = ("local", "sftp", "rsync_ssh", "rsync_native", "ftp", "ftps")


@pytest.fixture(params=PROTOCOLS)
def far(request: pytest.FixtureRequest) -> Iterator[Mapping[str, Mapping[str, str]]]:
    """The options that lead to each kind of server."""
    protocol: str = request.param
    if protocol == "local":
        yield {"outgoing": {"transfer_protocol": "local"}}
    elif protocol in ("sftp", "rsync_ssh"):
        options = over_ssh(request.getfixturevalue("sshd"))
        yield {
            "outgoing": {**options["outgoing"], "transfer_protocol": protocol},
            protocol: options["rsync_ssh"],
        }
    elif protocol == "rsync_native":
        server: Rsyncd = request.getfixturevalue("rsyncd")
        yield {
            "outgoing": {"transfer_protocol": protocol, "target_host": server.host},
            protocol: {"port": str(server.port), "username": USER, "password": PASSWORD},
        }
    elif protocol == "ftp":
        yield ftpd.to(request.getfixturevalue("proftpd"))
    else:
        yield request.getfixturevalue("vsftpd")


@pytest.mark.needs("root", "sshd", "ssh", "rsync", "setpriv", "proftpd", "openssl", "vsftpd")
def test_over_each_protocol_whatever_stage_the_sender_is_killed_at(
    tmp_path: Path, far: Mapping[str, Mapping[str, str]]
) -> None:
    def any_of(pair: Pair, end: str) -> Callable[[], bool]:
        return lambda: any(name.endswith(end) for name in os.listdir(pair.top / "incoming"))

    for end in ("never", "ctrl-bss", "rcpt-bss", "thanks-bss"):
        pair = Pair(tmp_path / end, far)
        pair.send_and_receive(until=any_of(pair, end))
        pair.send_and_receive()
        pair.check()


def test_a_stop_file_of_the_receiver_holds_both_ends(tmp_path: Path) -> None:
    """The sender sees it before it sends; what is on its way waits, and nothing is lost."""
    pair = Pair(tmp_path / "pair")
    stop = pair.top / "incoming/.stop"
    told: list[Event] = []
    with Arrivals(pair.receiver, told.append) as arrivals, Stream(pair.sender) as stream:
        summary = stream.run_pass(patient=False)
        assert summary.awaited == 3
        stop.touch()
        arrivals.run_pass()
        assert stream.run_pass(patient=True).is_paused
        assert files(pair.top / "kept") == {}
        assert files(pair.top / "spool") == pair.contents
        stop.unlink()
        arrivals.run_pass()
        assert stream.run_pass(patient=True).exit == 0
        arrivals.run_pass()
    pair.check()


# -- three hosts -------------------------------------------------------------------------------------------


@pytest.mark.needs("root", "sshd", "ssh", "proftpd", "openssl")
def test_a_chain_of_three_hosts_survives_random_kills(tmp_path: Path, sshd: Sshd, proftpd: Proftpd) -> None:
    """A to B by SFTP, to an arrivals monitor that also sends on; B to C by FTP."""
    rng = random.Random(6)
    contents = {f"{number:04}": noise(rng.randrange(5000), str(number)) for number in range(1000)}
    chain = Chain(tmp_path, sshd, proftpd)
    running = {name: chain.start(name) for name in ("a", "b")}
    try:
        for kill in range(KILLS):
            for name in islice(contents, kill, None, KILLS):  # so much at a time that there is work at each
                chain.put(name, contents[name])
            time.sleep(rng.uniform(0.4, 0.9))  # no condition: the moment is what is tried
            name = rng.choice("ab")
            running[name].kill()
            running[name].wait()
            running[name] = chain.start(name)
        deadline = time.monotonic() + DEADLINE
        while not chain.is_done(contents):
            assert time.monotonic() < deadline, chain.state()
            time.sleep(0.1)
    finally:
        for process in running.values():
            process.terminate()
            process.wait()
    assert files(chain.c) == contents
    chain.check_nothing_left()


class Chain:
    """Three hosts as three directories: A's spool, B's arrivals and spool, and C."""

    def __init__(self, top: Path, sshd: Sshd, proftpd: Proftpd) -> None:
        self.top = top
        self.a, self.incoming, self.b, self.c = (top / name for name in ("a", "incoming", "b", "c"))
        for directory in (self.a, self.incoming, self.b, self.c):
            directory.mkdir()
        to_b = {
            "outgoing": {
                "transfer_protocol": "sftp",
                "target_host": sshd.host,
                "target_dir": str(self.incoming),
                "target_uses_arrival_monitor": "yes",
                "receipt_file_poll_interval": "0.5",
            },
            "sftp": over_ssh(sshd)["rsync_ssh"],
        }
        to_c = ftpd.to(proftpd)
        receiving = {"require_arrival_monitor": "yes", "directory": str(self.incoming)}
        self._write("a", to_b)
        self._write("b", {
            "incoming": receiving,
            "outgoing": {"target_dir": str(self.c), **to_c["outgoing"]},
            "ftp": to_c["ftp"],
        })  # fmt: skip

    def _write(self, name: str, sections: Mapping[str, Mapping[str, str]]) -> None:
        every = {
            "global": {"state_dir": str(self.top / "state"), "general_poll_interval": "0.2"},
            "data_stream": {"directory": str(self.top / name), "settle_time": "0"},
            **sections,
        }
        file = self.top / f"{name}.ini"
        file.touch(mode=0o600)
        lines = [f"[{title}]\n" + "\n".join(map(" = ".join, options.items())) for title, options in every.items()]
        file.write_text("\n".join(lines))

    def put(self, name: str, data: bytes) -> None:
        """Have a file appear at A, complete, as programs should that fill a spool."""
        draft = self.a / f".{name}"
        draft.write_bytes(data)
        draft.rename(self.a / name)

    def start(self, name: str) -> subprocess.Popen[bytes]:
        with (self.top / f"{name}.log").open("ab") as log:
            argv = [sys.executable, "-m", "mistamover", "run", "--now", str(self.top / f"{name}.ini")]
            return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def is_done(self, contents: Mapping[str, bytes]) -> bool:
        """Whether all is at C, and nothing waits at A and B."""
        waits = any(
            name != ".mistamover" for place in (self.a, self.incoming, self.b) for name in os.listdir(place)
        )
        return not waits and len(os.listdir(self.c)) >= len(contents) and self._is_answered()

    def _is_answered(self) -> bool:
        return os.listdir(self.b / PLACE) == ["lock"]

    def state(self) -> str:
        """How far it has come, for the message of a failure."""
        counts = {path.name: len(os.listdir(path)) for path in (self.a, self.incoming, self.b, self.c)}
        logs = "".join((self.top / f"{name}.log").read_text()[-2000:] for name in "ab")
        return f"{counts}\n{logs}"

    def check_nothing_left(self) -> None:
        allowed = {self.b / PLACE / "lock", self.a / ".mistamover/lock", self.b / ".mistamover/lock"}
        left = [path for place in (self.a, self.incoming, self.b) for path in place.rglob("*") if path.is_file()]
        assert set(left) == allowed
        assert open_handshakes(load(self.top / "a.ini", None, {})) == []
        staged = [path for path in (self.c / ".mistamover").rglob("*") if path.is_file()]
        assert staged == []
