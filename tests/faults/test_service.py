"""The service under attack while it works: processes killed at random, files changed, streams paused."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import psutil
import pytest

from tests.installed import Installed, until
from tests.sshd import Sshd

LONG = [pytest.mark.campaign, pytest.mark.timeout(600)]
STREAMS = 1000
MOST_OPEN = 40
"""Descriptors of one process."""


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[Installed]:
    one = Installed(tmp_path)
    yield one
    one.close()


def by_ssh(sshd: Sshd) -> dict[str, str]:
    """What leads a stream to the server."""
    return {
        "outgoing": f"transfer_protocol = sftp\ntarget_host = {sshd.host}",
        "more": f"[sftp]\nport = {sshd.port}\nusername = {sshd.username}\n"
        f"key_file = {sshd.key_file}\nknown_hosts = {sshd.known_hosts}",
    }


class Arrivals:
    """Files that appear in some spools, with the digest of each."""

    def __init__(self, installed: Installed, streams: list[str], seed: int) -> None:
        self.installed = installed
        self.streams = streams
        self.sent: dict[str, dict[str, str]] = {name: {} for name in streams}
        self._random = random.Random(seed)

    def put(self, count: int, largest: int = 200_000) -> None:
        """So many more, in all of them."""
        for _ in range(count):
            name = self._random.choice(self.streams)
            number = len(self.sent[name])
            content = self._random.randbytes(int(self._random.uniform(0, largest**0.5) ** 2))
            path = f"{number % 7}/{number}"
            self.installed.put(name, path, content)
            self.sent[name][path] = hashlib.sha256(content).hexdigest()

    def all_arrived(self) -> bool:
        return all(self.installed.arrived(name) == self.sent[name].keys() for name in self.streams)

    def check(self) -> None:
        """Each is at its target, byte for byte, nothing else is, and nothing is left in a spool or staged."""
        for name in self.streams:
            target = self.installed.target(name)
            found = {
                path: hashlib.sha256((target / path).read_bytes()).hexdigest()
                for path in self.installed.arrived(name)
            }
            assert found == self.sent[name]
            assert self.installed.left(name) == set()
            for own in (target, self.installed.spool(name)):
                left = [path for path in (own / ".mistamover").rglob("*") if path.is_file() and path.name != "lock"]
                assert left == []


def _is_held(installed: Installed, name: str) -> bool:
    return installed.stream(name)["state"] in ("paused", "starting", "ending", "restarting")


@contextmanager
def in_the_background(work: threading.Thread) -> Iterator[None]:
    work.start()
    try:
        yield
    finally:
        work.join()


@pytest.mark.parametrize("kills", [6, pytest.param(50, marks=LONG)])
def test_killed_at_random_during_work(installed: Installed, sshd: Sshd, kills: int) -> None:
    """Worker, supervisor or both: after a start all is delivered, no process strays, no lock needs a hand."""
    streams = ["a", "b"]
    for name in streams:
        installed.add(name, **by_ssh(sshd))
    arrivals = Arrivals(installed, streams, seed=11)
    choose = random.Random(5)
    arrivals.put(100)
    assert installed.start().code == 0
    for _ in range(kills):
        arrivals.put(choose.randrange(20))
        time.sleep(choose.uniform(0.0, 0.4))  # no condition: the moment is what is tried
        installed.note()
        workers, supervisor = installed.workers(), installed.pid
        victims = choose.choice([workers[:1], [supervisor], [*workers, supervisor]])
        for pid in victims:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if supervisor in victims:
            until(lambda: installed.strays() == [], "all processes to be gone")
            assert installed.start().code == 0
    until(arrivals.all_arrived, "all to arrive", 60)
    until(lambda: all(installed.left(name) == set() for name in streams), "the spools to be empty")
    assert installed.run("stop").code == 0
    assert installed.strays() == []
    arrivals.check()


@pytest.mark.parametrize("count", [2000, pytest.param(10_000, marks=LONG)])
def test_much_arrives_while_all_changes(installed: Installed, count: int) -> None:
    """Files in five streams during reloads, changed files, pauses and kills: all arrive, once, intact."""
    streams = ["a", "b", "c", "d", "e"]
    installed.configure("max_restarts = 1000")
    for name in streams:
        installed.add(name)
    arrivals = Arrivals(installed, streams, seed=3)
    assert installed.start().code == 0
    filling = threading.Thread(target=arrivals.put, args=(count, 20_000))
    choose = random.Random(9)
    with in_the_background(filling):
        while filling.is_alive():
            installed.note()
            name = choose.choice(streams)
            what = choose.randrange(4)
            if what == 0:
                os.kill(installed.pid, signal.SIGHUP)
            elif what == 1:
                installed.add(name, f"lanes = {choose.randrange(1, 5)}")
                os.kill(installed.pid, signal.SIGHUP)
            elif what == 2:
                (installed.spool(name) / ".stop").touch()
                until(partial(_is_held, installed, name), "the pause")
                (installed.spool(name) / ".stop").unlink()
            elif pid := installed.stream(name)["pid"]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(choose.uniform(0.0, 0.3))  # so many troubles in a second, no condition
    until(arrivals.all_arrived, "all to arrive", 60)
    until(lambda: all(installed.left(name) == set() for name in streams), "the spools to be empty")
    assert installed.run("stop").code == 0
    assert installed.strays() == []
    arrivals.check()


def swap(one: Path, other: Path) -> None:
    """Give two files each other's names."""
    aside = one.with_suffix(".aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


@pytest.mark.campaign
@pytest.mark.parametrize("way", ["local", "sftp"])
def test_two_stream_files_are_swapped_while_units_are_on_their_way(
    installed: Installed, request: pytest.FixtureRequest, way: str
) -> None:
    """Each file leads from one spool to one target, whatever it is called: nothing gets into the other one's."""
    streams = ["a", "b"]
    for name in streams:
        installed.add(name, **by_ssh(request.getfixturevalue("sshd")) if way == "sftp" else {})
    arrivals = Arrivals(installed, streams, seed=7)
    arrivals.put(400)
    assert installed.start().code == 0
    for share in (0.1, 0.5):
        until(lambda share=share: len(installed.arrived("a")) > share * len(arrivals.sent["a"]), "a part of it")  # type: ignore[misc]
        swap(*(installed.streams / f"{name}.ini" for name in streams))
        assert installed.run("reload").code == 0
        arrivals.put(100)
    until(arrivals.all_arrived, "all to arrive", 60)
    until(lambda: all(installed.left(name) == set() for name in streams), "the spools to be empty")
    assert installed.run("stop").code == 0
    arrivals.check()


@pytest.mark.campaign
@pytest.mark.timeout(900)
def test_a_thousand_streams(installed: Installed) -> None:
    """All are up and each moves; the supervisor, with one thread, has no more open for them than for one."""
    installed.configure(poll_interval=10)  # no processor makes ten thousand passes in a second
    names = [f"s{number}" for number in range(STREAMS)]
    for name in names:
        installed.add(name)
        installed.put(name, "early")
    assert installed.popen("start").wait(400) == 0, "it returns when all are up"
    until(lambda: all(installed.arrived(name) == {"early"} for name in names), "all to work", 300)
    for name in names:
        installed.put(name, "late")
    until(lambda: all(installed.arrived(name) == {"early", "late"} for name in names), "all to work on", 300)
    supervisor = psutil.Process(installed.pid)
    assert supervisor.num_fds() < MOST_OPEN
    assert supervisor.num_threads() == 1
    assert len(installed.workers()) == STREAMS
    assert max(psutil.Process(pid).num_fds() for pid in installed.workers()) < MOST_OPEN
    installed.note()
    assert installed.run("status").code == 0
    assert installed.popen("stop").wait(120) == 0
    assert installed.strays() == []
