"""Stops that are patient and stops that are not, and the sign of life while a stream works, waits or hangs."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Self

import pytest

from mistamover import config, stream
from mistamover.errors import UnitError
from mistamover.events import Kind, Stop, Summary, nothing
from mistamover.ledger import Ledger
from mistamover.log import Log
from mistamover.stream import Stream
from mistamover.transports.contract import Proof
from mistamover.transports.local import Local as LocalTransport
from mistamover.unit import Unit
from mistamover.worker import Worker, stop_on_signals
from tests.program import Local
from tests.sshd import wait_for


@pytest.fixture
def local(tmp_path: Path) -> Local:
    return Local(tmp_path)


class Gate:
    """Holds up whatever is verified at a local target, with or without moving."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, is_moving: bool) -> None:
        self.is_open = threading.Event()
        self.arrived = 0
        verify = LocalTransport._verify

        def held_up(transport: LocalTransport, unit: Unit, proof: Proof) -> None:
            self.arrived += 1
            while not self.is_open.wait(0.01):
                if is_moving:
                    transport.tick(0)
            verify(transport, unit, proof)

        monkeypatch.setattr(LocalTransport, "_verify", held_up)


def one_by_one(units: Sequence[Unit], *_: int) -> list[list[Unit]]:
    return [[unit] for unit in units]


class Pass:
    """A patient pass in a thread of its own."""

    def __init__(self, local: Local, stop: Stop, *, alive: Callable[[], None] = nothing) -> None:
        self._local, self._stop, self._alive = local, stop, alive
        self.results: list[Summary] = []
        self.streams: list[Stream] = []
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        settings = config.load(self._local.ini, environ={})
        with Stream(settings, stop=self._stop, alive=self._alive, hang_timeout=0.5) as it:
            self.streams.append(it)
            self.results.append(it.run_pass(patient=True))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()

    @property
    def result(self) -> Summary:
        return self.results[0]


# -- stops -------------------------------------------------------------------------------------------------


def test_a_patient_stop_lets_all_on_its_way_end_and_begins_nothing(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "even_batches", one_by_one)
    gate = Gate(monkeypatch, is_moving=True)
    local.configure("stop_timeout = 0")
    for number in range(6):
        local.put(f"file-{number}")
    stop = Stop()
    with Pass(local, stop) as it:
        wait_for(lambda: gate.arrived == 2, "two lanes to be at work")
        stop.ask(is_patient=True, is_regular=True)
        waited = time.monotonic() + 3 * stream.GLANCE
        wait_for(lambda: time.monotonic() > waited, "the stream to look at it")
        assert not it.results
        assert not it.streams[0].crew.parking
        gate.is_open.set()
    assert it.result.counts[Kind.DELIVERED] == 2
    assert it.result.counts[Kind.CHANGED] == 0
    assert len(local.names(local.spool)) == 4


def test_what_ends_during_a_patient_stop_is_recorded_at_once(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "even_batches", one_by_one)
    gate = Gate(monkeypatch, is_moving=True)
    local.put("slow")
    verify = LocalTransport._verify
    stop = Stop()

    def quick(transport: LocalTransport, unit: Unit, proof: Proof) -> None:
        if unit.path == "slow":
            verify(transport, unit, proof)
        else:
            wait_for(lambda: stop.is_asked, "the stop")

    monkeypatch.setattr(LocalTransport, "_verify", quick)
    local.put("quick")
    with Pass(local, stop) as it:
        wait_for(lambda: gate.arrived == 1 and len(it.streams[0].crew.lanes) == 2, "both to be on their way")
        stop.ask(is_patient=True)
        wait_for(lambda: not (local.spool / "quick").exists(), "the removal of the quick one")
        assert (local.spool / "slow").exists()
        gate.is_open.set()
    assert not local.names(local.spool)


def test_patience_ends_when_somebody_asks_again(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch, is_moving=True)
    local.configure("stop_timeout = 0")
    local.put("file")
    stop = Stop()
    with Pass(local, stop) as it:
        wait_for(lambda: gate.arrived == 1, "a lane to be at work")
        stop.ask(is_patient=True)
        stop.ask()
    assert it.result.counts[Kind.CHANGED] == 1, "it was parked"
    assert local.names(local.spool) == {"file"}


def test_a_patient_wish_does_not_soften_an_earlier_one() -> None:
    stop = Stop()
    stop.ask()
    stop.ask(is_patient=True)
    assert not stop.is_patient


def test_a_stop_wakes_a_sleeper_of_any_thread() -> None:
    stop = Stop()
    began = time.monotonic()
    timer = threading.Timer(0.1, stop.ask)
    timer.start()
    stop.wait(60)
    stop.wait(60)
    assert time.monotonic() - began < 10
    timer.join()


@pytest.fixture
def handlers() -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_hup_is_patient_only_where_told_so() -> None:
    default = signal.getsignal(signal.SIGHUP)
    stop_on_signals(Stop())
    assert signal.getsignal(signal.SIGHUP) is default
    stop = Stop()
    stop_on_signals(stop, is_patient_on_hup=True)
    signal.raise_signal(signal.SIGHUP)
    signal.raise_signal(signal.SIGHUP)
    assert (stop.is_asked, stop.is_patient, stop.is_regular) == (True, True, True)
    signal.raise_signal(signal.SIGTERM)
    assert (stop.is_asked, stop.is_patient, stop.is_regular) == (True, False, True)
    signal.raise_signal(signal.SIGHUP)
    assert not stop.is_patient


@pytest.mark.usefixtures("handlers")
def test_a_signal_wakes_the_main_thread() -> None:
    stop = Stop()
    stop_on_signals(stop, is_patient_on_hup=True)
    began = time.monotonic()
    timer = threading.Timer(0.1, lambda: signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGHUP))
    timer.start()
    stop.listen(60)
    assert time.monotonic() - began < 10
    timer.join()


# -- the sign of life --------------------------------------------------------------------------------------


class Pulse:
    """Notes when it was called."""

    def __init__(self) -> None:
        self.times = [time.monotonic()]

    def __call__(self) -> None:
        self.times.append(time.monotonic())

    def longest_gap(self) -> float:
        times = [*self.times, time.monotonic()]
        return max(after - before for before, after in pairwise(times))


def test_it_lives_while_units_settle(local: Local) -> None:
    local.configure(settle="2.5")
    local.put("file")
    pulse = Pulse()
    with Stream(config.load(local.ini, environ={}), alive=pulse) as it:
        assert it.run_pass(patient=True).counts[Kind.DELIVERED] == 1
    assert pulse.longest_gap() < 1.3


def test_it_lives_while_it_scans(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    local.configure("transfer_mode = mirror", settle="1h")
    for number in range(20):
        local.put(f"{number}.tmp")
        local.put(f"{number}")
    monkeypatch.setattr(stream, "BREATH", 0.0)
    pulse = Pulse()
    with Stream(config.load(local.ini, environ={}), alive=pulse) as it:
        it.run_pass(patient=False)
    assert len(pulse.times) > 40


def test_it_lives_while_it_records(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        local.put(f"file-{number}")

    def fails(*_: object) -> None:
        raise UnitError("no")

    wait = Ledger.wait

    def slow(self: Ledger, unit: Unit, attempts: int, next_try: float, reason: str, now: float) -> int:
        time.sleep(0.3)
        return wait(self, unit, attempts, next_try, reason, now)

    monkeypatch.setattr(LocalTransport, "_verify", fails)
    monkeypatch.setattr(Ledger, "wait", slow)
    pulse = Pulse()
    with Stream(config.load(local.ini, environ={}), alive=pulse) as it:
        assert it.run_pass(patient=False).counts[Kind.WAITING] == 5
    assert pulse.longest_gap() < 1.3


@pytest.mark.parametrize(
    ("is_moving", "gives_up", "lives"), [(True, False, True), (False, False, False), (False, True, True)]
)
def test_it_lives_while_its_lanes_move_or_give_up_by_themselves(
    local: Local, monkeypatch: pytest.MonkeyPatch, is_moving: bool, gives_up: bool, lives: bool
) -> None:
    monkeypatch.setattr(stream, "BREATH", 0.1)
    monkeypatch.setattr(LocalTransport, "gives_up", gives_up)
    gate = Gate(monkeypatch, is_moving=is_moving)
    local.put("file")
    pulse = Pulse()
    with Pass(local, Stop(), alive=pulse) as it:
        wait_for(lambda: gate.arrived == 1, "a lane to be at work")
        later = time.monotonic() + 1.5
        wait_for(lambda: time.monotonic() > later, "the limit to be over")
        assert (pulse.longest_gap() < 0.9) is lives
        gate.is_open.set()
    assert it.result.counts[Kind.DELIVERED] == 1


def test_idle_lanes_do_not_hang(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "BREATH", 0.1)
    local.put("file")
    pulse = Pulse()
    with Stream(config.load(local.ini, environ={}), alive=pulse, hang_timeout=0.2) as it:
        it.run_pass(patient=False)
        it._stop.wait(1.0, it.breathe)
    assert pulse.longest_gap() < 0.9


def test_reading_back_moves_a_lane(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    local.put("file", bytes(8 * 2**20))
    ticks: list[int] = []
    with Stream(config.load(local.ini, environ={})) as it:
        monkeypatch.setattr(it.crew, "tick", lambda _lane, size: ticks.append(size))
        it.run_pass(patient=False)
    assert ticks.count(0) >= 8


@pytest.mark.parametrize("is_there", [True, False])
def test_a_worker_lives_between_its_passes(local: Local, monkeypatch: pytest.MonkeyPatch, is_there: bool) -> None:
    local.ini.write_text(
        local.ini.read_text().replace("general_poll_interval = 0.05", "general_poll_interval = 1h")
    )
    if not is_there:
        local.spool.rmdir()
    settings = config.load(local.ini, environ={})
    pulse = Pulse()
    with Log(settings) as log:
        it = Worker(settings, log, alive=pulse, hang_timeout=2)
        timer = threading.Timer(2.5, it.stop.ask)
        timer.start()
        with suppress(UnitError):
            it.run(once=False)
    assert pulse.longest_gap() < 1.3
    assert len(pulse.times) > 3
