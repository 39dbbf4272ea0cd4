"""The supervisor, with real forked workers that do what a test wants of them."""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path

import pytest

from mistamover import aides, config, heartbeat, supervisor
from mistamover.aides import Aide, Known
from mistamover.heartbeat import Heartbeat, Service, Standing, State
from mistamover.log import MainLog
from mistamover.options import Settings
from mistamover.processes import is_hung
from mistamover.supervisor import COMPLETE, Changes, Child, Stamp, Supervisor, compare, delay, is_given_up
from tests.sshd import wait_for

Sign = Callable[[], None]
Work = Callable[[Settings, Sign], int]


# -- decisions ---------------------------------------------------------------------------------------------


def test_the_delay_doubles_and_stops_growing() -> None:
    assert [delay(deaths) for deaths in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert delay(10**6) == 60


@pytest.mark.parametrize(
    ("started", "sign", "now", "hung"),
    [
        (100, 0, 110, False),
        (100, 0, 110.5, True),
        (100, 105, 115, False),
        (100, 105, 115.5, True),
        (100, 50, 109, False),
    ],
)
def test_who_gives_no_sign_of_life_is_hung(started: float, sign: float, now: float, hung: bool) -> None:
    assert is_hung(started, sign, 10, now) is hung


def test_old_deaths_are_forgiven() -> None:
    now = 10_000.0
    assert is_given_up([now - 3, now - 2, now], 2, now)
    assert not is_given_up([now - supervisor.WITHIN - 1, now - 2, now], 2, now)
    assert is_given_up([now], 0, now)


def test_files_come_change_and_go() -> None:
    one, two = Stamp(1, 1, 1, 1), Stamp(1, 1, 1, 2)
    a, b, c = Path("a"), Path("b"), Path("c")
    assert compare({a: one, b: one}, {a: one, b: two, c: one}, again=False) == Changes([c], [b], [])
    assert compare({a: one, b: one}, {b: one}, again=True) == Changes([], [b], [a])


@pytest.mark.parametrize(
    ("standing", "told", "state"),
    [
        (Standing("p", State.FATAL, 5.0, "why", pid=0), Heartbeat(pid=7, state=State.MOVING), State.FATAL),
        (Standing("p", None, 5.0, pid=7), Heartbeat(pid=7, state=State.MOVING, written=50.0), State.MOVING),
        (Standing("p", None, 5.0, pid=7), Heartbeat(pid=7, state=State.IDLE, written=-50.0), State.TROUBLE),
        (Standing("p", None, 5.0, pid=8), Heartbeat(pid=7, state=State.MOVING), State.STARTING),
    ],
)
def test_the_supervisor_is_believed_before_the_worker(standing: Standing, told: Heartbeat, state: State) -> None:
    assert supervisor.state_of(standing, told, 100.0)[0] is state


def test_what_is_told_comes_back(tmp_path: Path) -> None:
    service = Service(7, 1.5, "1", "/g", streams={"a": Standing("/a", State.HUNG, 2.0, "why", 8, 1, ("x", "y"))})
    assert heartbeat.write(tmp_path, heartbeat.SERVICE, service)
    assert heartbeat.read_service(tmp_path) == service
    beat = Heartbeat(pid=3, state=State.PAUSED, waiting=5, why="\udcff")
    assert heartbeat.write(tmp_path, heartbeat.HEARTBEAT, beat)
    assert heartbeat.read_heartbeat(tmp_path) == beat


@pytest.mark.parametrize("content", ["", "[]", "{", '{"state": ["x"]}', '{"state": "dancing"}', '{"unknown": 1}'])
def test_what_cannot_be_read_tells_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / heartbeat.HEARTBEAT).write_text(content)
    assert heartbeat.read_heartbeat(tmp_path) == Heartbeat()


# -- the process -------------------------------------------------------------------------------------------


def until(condition: Callable[[], bool]) -> None:
    wait_for(condition, "the supervisor")


class Installation:
    """A supervisor in a process of its own, over a directory of stream files."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.state = top / "state"
        self.ini = top / "global.ini"
        self.streams = top / "streams"
        self.streams.mkdir()
        self.pid = 0
        self.configure()

    def configure(self, more: str = "") -> None:
        self.ini.write_text(f"[global]\nstate_dir = {self.state}\n{more}\n")

    def add(self, name: str, more: str = "") -> Path:
        path = self.streams / f"{name}.ini"
        new = self.top / f"{name}.new"
        new.write_text(
            f"[data_stream]\ndirectory = {self.top}/spool\n"
            f"[outgoing]\ntransfer_protocol = local\ntarget_dir = {self.top}/target\n{more}\n"
        )
        new.replace(path)
        return path

    def start(self, work: Work, *helpers: Aide) -> None:
        self.state.mkdir(exist_ok=True)
        self.pid = os.fork()
        if not self.pid:
            code = 1
            try:
                supervisor.FILES_EVERY = supervisor.TICK = 0.05
                supervisor.FROZEN = 1.0
                supervisor.FIRST_DELAY = supervisor.HELD_DELAY = aides.FIRST_PAUSE = 0.05
                settings = config.load_service(self.ini)
                with MainLog(settings.logging, directory=self.top, detached=True) as log:
                    Supervisor(settings, log, work, helpers).run(lambda: (self.top / "ready").touch())
                code = 0
            finally:
                os._exit(code)

    def service(self) -> Service:
        return heartbeat.read_service(self.state)

    def stream(self, name: str) -> Standing:
        return self.service().streams.get(name, Standing(""))

    def is_up(self, name: str, but: int = 0) -> bool:
        one = self.stream(name)
        return one.state is None and one.pid not in (0, but)

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        end = time.monotonic() + 30
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        raise AssertionError("the supervisor does not end")

    def close(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    @property
    def log(self) -> str:
        return (self.top / "mistamover.log").read_text()


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    one = Installation(tmp_path)
    yield one
    one.close()


def lives(_settings: Settings, sign: Sign) -> int:
    """Ends by TERM or HUP, as soon as asked."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP})
    while not signal.sigpending() & {signal.SIGTERM, signal.SIGHUP}:
        sign()
        time.sleep(0.02)
    return 0


def dies(_settings: Settings, sign: Sign) -> int:
    sign()
    return 3


def hangs_in_a_file(settings: Settings, sign: Sign) -> int:
    """Hangs where the file ``hang`` is there, else lives."""
    sign()
    if (settings.path.parent.parent / "hang").exists():
        time.sleep(1000)
    return lives(settings, sign)


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "Z"


def test_each_file_has_its_worker_and_all_end(installation: Installation) -> None:
    installation.add("a")
    installation.add("ds_b")
    installation.start(lives)
    until(lambda: installation.is_up("a") and installation.is_up("b"))
    until(lambda: (installation.top / "ready").exists())
    workers = [one.pid for one in installation.service().streams.values()]
    installation.send(signal.SIGTERM)
    assert installation.wait() == 0
    assert all(map(is_gone, workers))


def test_files_are_followed_and_other_streams_are_left_alone(installation: Installation) -> None:
    installation.add("stays")
    installation.add("changes")
    installation.add("goes")
    installation.start(lives)
    until(lambda: all(installation.is_up(name) for name in ("stays", "changes", "goes")))
    before = {name: one.pid for name, one in installation.service().streams.items()}
    installation.add("comes")
    installation.add("changes", "[logging]\nlog_level = DEBUG")
    (installation.streams / "goes.ini").unlink()
    until(lambda: installation.is_up("comes") and installation.is_up("changes", but=before["changes"]))
    until(lambda: "goes" not in installation.service().streams)
    assert is_gone(before["goes"])
    assert installation.stream("stays").pid == before["stays"]


def test_a_file_that_is_only_touched_changes_nothing(installation: Installation) -> None:
    path = installation.add("a")
    installation.start(lives)
    until(lambda: installation.is_up("a"))
    pid = installation.stream("a").pid
    path.touch()
    installation.send(signal.SIGHUP)
    until(lambda: installation.service().reloads == 1)
    assert installation.stream("a").pid == pid


def test_a_broken_file_leaves_the_earlier_configuration_and_says_what_is_wrong(installation: Installation) -> None:
    installation.add("a")
    installation.start(lives)
    until(lambda: installation.is_up("a"))
    pid = installation.stream("a").pid
    installation.add("a", "lans = 3")
    until(lambda: installation.stream("a").findings != ())
    assert "a.ini:6: [outgoing] lans: unknown option; did you mean lanes?" in installation.stream("a").findings[0]
    assert installation.is_up("a")
    assert installation.stream("a").pid == pid
    assert installation.log.count("lans") == 1
    installation.add("a", "lanes = 3")
    until(lambda: installation.is_up("a", but=pid) and not installation.stream("a").findings)


def test_a_file_that_was_never_right_is_started_once_it_is(installation: Installation) -> None:
    installation.add("a", "lans = 3")
    installation.start(lives)
    until(lambda: installation.stream("a").state is State.BROKEN)
    assert (installation.top / "ready").exists()
    installation.add("a")
    until(lambda: installation.is_up("a"))


def test_two_streams_of_one_name_are_one_too_many(installation: Installation) -> None:
    installation.add("a")
    installation.add("ds_a")
    installation.start(lives)
    until(lambda: installation.is_up("a") and installation.stream("ds_a.ini").state is State.BROKEN)
    assert "a stream of that name too" in installation.stream("ds_a.ini").why


def test_a_file_that_gets_another_name_is_the_same_stream(installation: Installation) -> None:
    path = installation.add("a")
    installation.start(lives)
    until(lambda: installation.is_up("a"))
    pid = installation.stream("a").pid
    path.rename(path.with_name("ds_a.ini"))
    until(lambda: installation.is_up("a", but=pid))
    assert installation.stream("a").path.endswith("/ds_a.ini")
    assert installation.stream("a").findings == ()


def test_what_was_wrong_elsewhere_may_be_mended_there(installation: Installation) -> None:
    key = installation.top / "key"
    installation.add("a", f"target_host = h\n[sftp]\nkey_file = {key}")
    path = installation.streams / "a.ini"
    path.write_text(path.read_text().replace("= local", "= sftp"))
    installation.start(lives)
    until(lambda: installation.stream("a").state is State.BROKEN)
    key.touch(mode=0o600)
    until(lambda: installation.is_up("a"))


def test_a_directory_of_stream_files_that_is_away_for_a_moment_changes_nothing(installation: Installation) -> None:
    installation.add("a")
    installation.start(lives)
    until(lambda: installation.is_up("a"))
    pid = installation.stream("a").pid
    away = installation.streams.rename(installation.top / "away")
    until(lambda: installation.service().findings != ())
    assert "No such file or directory" in installation.service().findings[0]
    away.rename(installation.streams)
    until(lambda: installation.service().findings == ())
    assert installation.stream("a").pid == pid


def test_a_worker_that_dies_is_started_again_then_rests_until_a_reload(installation: Installation) -> None:
    installation.configure("max_restarts = 2")
    installation.add("a")
    installation.start(dies)
    until(lambda: installation.stream("a").state is State.FATAL)
    assert installation.stream("a").deaths == 3
    assert "ended with code 3, 3 times; mend it, then: mistamover reload" in installation.stream("a").why
    assert installation.log.count("CRITICAL") == 1
    installation.send(signal.SIGHUP)
    until(lambda: installation.service().reloads == 1 and installation.stream("a").state is State.FATAL)
    assert installation.log.count("CRITICAL") == 2
    installation.send(signal.SIGTERM)
    assert installation.wait() == 0


def test_a_killed_worker_is_replaced(installation: Installation) -> None:
    installation.add("a")
    installation.add("b")
    installation.start(lives)
    until(lambda: installation.is_up("a") and installation.is_up("b"))
    pid, other = installation.stream("a").pid, installation.stream("b").pid
    os.kill(pid, signal.SIGKILL)
    until(lambda: installation.is_up("a", but=pid))
    assert "was ended by SIGKILL" in installation.log
    assert installation.stream("b").pid == other


@pytest.mark.parametrize("how", ["stopped", "hanging"])
def test_a_worker_without_a_sign_of_life_is_replaced(installation: Installation, how: str) -> None:
    installation.configure("hang_timeout = 0.5")
    installation.add("a")
    if how == "hanging":
        (installation.top / "hang").touch()
    installation.start(hangs_in_a_file)
    until(lambda: installation.is_up("a"))
    pid = installation.stream("a").pid
    if how == "stopped":
        os.kill(pid, signal.SIGSTOP)
    (installation.top / "hang").unlink(missing_ok=True)
    until(lambda: installation.is_up("a", but=pid))
    assert is_gone(pid)
    assert "gave no sign of life" in installation.log
    assert installation.stream("a").deaths == 1


def test_who_was_frozen_along_with_the_supervisor_is_not_hung(installation: Installation) -> None:
    installation.configure("hang_timeout = 0.9")
    installation.add("a")
    installation.start(lives)
    until(lambda: installation.is_up("a"))
    pid = installation.stream("a").pid
    for one in (pid, installation.pid):
        os.kill(one, signal.SIGSTOP)
    time.sleep(2.5)  # no condition: that much time is what passes
    for one in (pid, installation.pid):
        os.kill(one, signal.SIGCONT)
    installation.send(signal.SIGHUP)
    until(lambda: installation.service().reloads == 1)
    assert installation.stream("a").pid == pid
    assert "gave no sign of life" not in installation.log


def test_workers_die_with_the_supervisor(installation: Installation) -> None:
    installation.add("a")
    installation.start(lives)
    until(lambda: installation.is_up("a"))
    pid = installation.stream("a").pid
    installation.close()
    installation.pid = 0
    until(lambda: is_gone(pid))


def test_a_worker_that_does_not_end_is_killed(installation: Installation) -> None:
    def clings(_settings: Settings, sign: Sign) -> int:
        while True:
            sign()
            time.sleep(0.05)

    supervisor_grace, supervisor.GRACE = supervisor.GRACE, 0.2
    try:
        installation.add("a", "stop_timeout = 0")
        installation.start(clings)
    finally:
        supervisor.GRACE = supervisor_grace
    until(lambda: installation.is_up("a"))
    pid = installation.stream("a").pid
    installation.send(signal.SIGTERM)
    assert installation.wait() == 0
    assert is_gone(pid)
    assert "did not end within" in installation.log


def test_a_complete_stream_rests_and_another_process_is_waited_for(installation: Installation) -> None:
    def work(settings: Settings, sign: Sign) -> int:
        if settings.name == "done":
            return COMPLETE
        with (settings.path.parent.parent / "tries").open("a") as file:
            file.write(".")
        return 4

    installation.add("done")
    installation.add("held")
    installation.start(work)
    until(lambda: installation.stream("done").state is State.COMPLETE)
    until(lambda: installation.stream("held").state is State.HELD)
    first = installation.stream("held")
    tries = installation.top / "tries"
    until(lambda: tries.exists() and len(tries.read_text()) > 3)
    again = installation.stream("held")
    assert (again.state, again.since, again.deaths) == (State.HELD, first.since, 0), "it stays so from try to try"


def test_a_stream_whose_file_holds_it_back_is_not_started(installation: Installation) -> None:
    path = installation.add("a")
    path.write_text(path.read_text().replace("[outgoing]", "status = stopped\n[outgoing]"))
    installation.start(lives)
    until(lambda: installation.stream("a").state is State.STOPPED)
    installation.add("a")
    until(lambda: installation.is_up("a"))


def test_a_global_file_that_is_broken_changes_nothing(installation: Installation) -> None:
    installation.add("a")
    installation.start(lives)
    until(lambda: installation.is_up("a"))
    pid = installation.stream("a").pid
    installation.configure("hang_timeout = long")
    installation.send(signal.SIGHUP)
    until(lambda: installation.service().reloads == 1)
    assert "hang_timeout" in installation.service().findings[0]
    assert installation.stream("a").pid == pid
    installation.configure()
    installation.send(signal.SIGHUP)
    until(lambda: installation.service().reloads == 2)
    assert installation.service().findings == ()


# -- aides -------------------------------------------------------------------------------------------------


def helper(top: Path, *, hangs: bool = False) -> Aide:
    """Writes down its process number and the streams that it was told of."""

    def work(known: Known, sign: Sign) -> None:
        (top / "aide.new").write_text(f"{os.getpid()} {' '.join(one.name for one in known.streams)}")
        (top / "aide.new").replace(top / "aide")
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        while True:
            if not hangs:
                sign()
            time.sleep(0.02)

    return Aide("helper", work, lambda known: bool(known.streams))


def aide_of(installation: Installation) -> tuple[int, list[str]]:
    try:
        pid, *streams = (installation.top / "aide").read_text().split()
    except OSError:
        return 0, []
    return int(pid), streams


def test_an_aide_is_replaced_when_it_dies_or_the_streams_change_and_ends_with_the_service(
    installation: Installation,
) -> None:
    installation.add("a")
    installation.start(lives, helper(installation.top))
    until(lambda: aide_of(installation)[1] == ["a"])
    first, _ = aide_of(installation)
    os.kill(first, signal.SIGKILL)
    until(lambda: aide_of(installation)[0] != first)
    assert "the helper was ended by SIGKILL; started again" in installation.log
    second, _ = aide_of(installation)
    installation.add("b")
    until(lambda: aide_of(installation)[1] == ["a", "b"])
    assert is_gone(second)
    assert installation.log.count("the helper") == 1, "that it was told to end is no news"
    worker = installation.stream("a").pid
    installation.send(signal.SIGTERM)
    assert installation.wait() == 0
    assert is_gone(aide_of(installation)[0])
    assert installation.stream("a").deaths == 0
    assert worker


def test_an_aide_that_nobody_wants_is_not_started_and_one_that_hangs_is_killed(installation: Installation) -> None:
    installation.configure("hang_timeout = 0.5")
    installation.start(lives, helper(installation.top, hangs=True))
    until(lambda: (installation.top / "ready").exists())
    assert aide_of(installation) == (0, [])
    installation.add("a")
    until(lambda: aide_of(installation)[0] > 0)
    first, _ = aide_of(installation)
    until(lambda: aide_of(installation)[0] != first)
    assert "the helper gave no sign of life; it is killed" in installation.log
    (installation.streams / "a.ini").unlink()
    until(lambda: is_gone(aide_of(installation)[0]))


def test_what_nobody_decided_yet_is_waited_for() -> None:
    child = Child(Path("x"))
    assert not child.is_decided
    child.deaths = deque([1.0])
    assert child.is_decided
    assert child.ended_by != inf
