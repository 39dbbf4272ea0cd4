"""What conf/ installs, each file tried by the program that it is for."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator
from configparser import RawConfigParser
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from click import Context

from mistamover import options
from mistamover.cli import _mistamover
from mistamover.ini import seconds
from mistamover.testing.needs import find
from tests.program import DEADLINE, ROOT, Local, Result, environment
from tests.sshd import Account, wait_for

CONF = ROOT / "conf"
UNIT = CONF / "mistamover.service"
INIT = CONF / "mistamover.init"
PROGRAM = "/opt/mistamover/bin/mistamover"
NOW = "-f"


def run(*command: str | Path, env: dict[str, str] | None = None) -> Result:
    """Run a program of the system, with English messages and no pager."""
    name, *rest = command
    done = subprocess.run(
        [find(str(name)) or name, *rest],
        env=(env or dict(os.environ)) | {"LC_ALL": "C.UTF-8", "SYSTEMD_PAGER": "", "SYSTEMD_COLORS": "0"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE,
    )
    return Result(done.returncode, done.stdout, done.stderr)


# -- systemd -----------------------------------------------------------------------------------------------


def unit() -> RawConfigParser:
    """The unit's settings; of one that stands more than once, the last."""
    parser = RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT)
    return parser


def installed(directory: Path, text: str | None = None) -> Path:
    """The unit with a program that is there."""
    copy = directory / UNIT.name
    copy.write_text((text or UNIT.read_text()).replace(PROGRAM, str(ROOT / "bin/mistamover")))
    return copy


@pytest.mark.needs("systemd-analyze")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    result = run("systemd-analyze", "verify", "--man=no", installed(tmp_path))
    assert (result.code, result.out + result.err) == (0, "")


@pytest.mark.needs("systemd-analyze")
@pytest.mark.parametrize("wrong", ["KillMode=gently", "ProtectHouse=yes", "SystemCallFilter=~@priviledged"])
def test_systemd_tells_what_is_wrong_with_a_unit(tmp_path: Path, wrong: str) -> None:
    text = UNIT.read_text().replace("[Install]", f"{wrong}\n[Install]")
    assert run("systemd-analyze", "verify", "--man=no", installed(tmp_path, text)).err


@pytest.mark.needs("systemd-analyze")
def test_the_exposure_is_what_the_documents_say(tmp_path: Path) -> None:
    told = run("systemd-analyze", "security", "--offline=yes", "--no-pager", installed(tmp_path)).out
    score = re.search(r"Overall exposure level for mistamover.service: ([\d.]+ \w+)", told)
    assert score, told
    assert f"``{score[1]}``" in (ROOT / "docs/service.rst").read_text()


def test_a_stop_may_take_longer_than_streams_need() -> None:
    stop_timeout = options.OPTIONS["outgoing", "stop_timeout"].default
    assert seconds(unit()["Service"]["TimeoutStopSec"]) >= stop_timeout + 30


def test_only_faults_that_pass_start_it_again() -> None:
    assert unit()["Service"]["RestartPreventExitStatus"].split() == ["2", "4"]


@pytest.mark.needs("root", "systemd-sysusers", "systemd-tmpfiles")
def test_the_user_and_the_directories_are_made(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    made = run("systemd-sysusers", f"--root={tmp_path}", CONF / "mistamover.sysusers")
    assert made.code == 0, made
    name, _, uid, gid, _, home, shell = (tmp_path / "etc/passwd").read_text().strip().split(":")
    service = unit()["Service"]
    assert (name, home, shell) == (service["User"], "/var/lib/mistamover", "/usr/sbin/nologin")

    made = run("systemd-tmpfiles", "--create", f"--root={tmp_path}", CONF / "mistamover.tmpfiles")
    assert made.code == 0, made
    ours = (int(uid), int(gid))
    assert {path: of(tmp_path / path) for path in MODES} == {
        path: (mode, (0, 0) if path.startswith("etc") else ours) for path, mode in MODES.items()
    }
    for setting, path in PLACES.items():
        assert service[f"{setting}Directory"] == "mistamover"
        assert int(service.get(f"{setting}DirectoryMode", "0755"), 8) == MODES[path]


MODES = {
    "etc/mistamover": 0o755,
    "etc/mistamover/streams": 0o755,
    "var/lib/mistamover": 0o750,
    "var/lib/mistamover/.ssh": 0o700,
    "var/log/mistamover": 0o750,
    "run/mistamover": 0o755,
}
PLACES = {
    "Configuration": "etc/mistamover",
    "State": "var/lib/mistamover",
    "Logs": "var/log/mistamover",
    "Runtime": "run/mistamover",
}


def of(path: Path) -> tuple[int, tuple[int, int]]:
    found = path.stat()
    return stat.S_IMODE(found.st_mode), (found.st_uid, found.st_gid)


# -- logrotate ---------------------------------------------------------------------------------------------


@dataclass
class Logrotate:
    """The real logrotate on a directory of logs of our own."""

    top: Path

    def __post_init__(self) -> None:
        self.logs = self.top / "log"
        self.logs.mkdir(mode=0o750)
        self.conf = self.top / "mistamover.logrotate"
        us = f"{pwd.getpwuid(os.getuid()).pw_name} {os.getgid()}"
        text = (CONF / "mistamover.logrotate").read_text()
        self.conf.write_text(
            text.replace("/var/log/mistamover", str(self.logs)).replace("mistamover mistamover", us)
        )
        self.conf.chmod(0o644)

    def __call__(self, *how: str) -> Result:
        return run("logrotate", *how, "--state", self.top / "logrotate.state", self.conf)

    @property
    def names(self) -> list[str]:
        return sorted(os.listdir(self.logs))


@pytest.mark.needs("logrotate")
def test_logrotate_understands_its_configuration(tmp_path: Path) -> None:
    rotate = Logrotate(tmp_path)
    told = rotate("-d")
    assert told.code == 0
    assert "error" not in told.err
    (rotate.logs / "x.log").write_text("a line\n")
    assert "considering log" in rotate("-d").err
    assert rotate.names == ["x.log"]


@pytest.mark.needs("logrotate")
def test_logs_are_renamed_made_anew_and_packed_one_turn_later(tmp_path: Path) -> None:
    rotate = Logrotate(tmp_path)
    log = rotate.logs / "x.log"
    for line in ("first\n", "second\n"):
        log.write_text(line)
        assert rotate(NOW).code == 0
    assert rotate.names == ["x.log", "x.log.1", "x.log.2.gz"]
    assert (log.read_text(), (rotate.logs / "x.log.1").read_text()) == ("", "second\n")
    assert stat.S_IMODE(log.stat().st_mode) == 0o640


@pytest.mark.needs("logrotate")
def test_a_running_stream_goes_on_in_the_new_log(tmp_path: Path) -> None:
    rotate = Logrotate(tmp_path)
    here = Local(tmp_path)
    here.configure(more=f"[logging]\nbase_log_dir = {rotate.logs}")
    here.put("before.dat")
    process = here.start("run", here.ini)
    try:
        wait_for(lambda: tells(rotate.logs / "x.log", "before.dat"), "the first line")
        assert rotate(NOW).code == 0
        here.put("after.dat")
        wait_for(lambda: tells(rotate.logs / "x.log", "after.dat"), "a line in the new log")
    finally:
        process.terminate()
        process.communicate(timeout=DEADLINE)
    assert tells(rotate.logs / "x.log.1", "before.dat")
    assert not tells(rotate.logs / "x.log.1", "after.dat")


def tells(log: Path, what: str) -> bool:
    return log.exists() and what in log.read_text()


# -- the init script ---------------------------------------------------------------------------------------

RUNS, DEAD, STOPPED, UNKNOWN = 0, 1, 3, 4
"""What ``status`` answers."""
FAILED, USAGE, NOT_INSTALLED, NOT_CONFIGURED, NOT_RUNNING = 1, 2, 5, 6, 7
STAND_IN = r"""#!/bin/sh
# Stands in for the program: "start" answers what the file "answer" says.
top=$(dirname "$0")
case $1 in
    start)
        { id -un; pwd; umask; echo "$SHELL"; grep ^CapEff: /proc/self/status | cut -f2; } >"$top/as"
        read -r code <"$top/answer"
        case $code in 0 | 1)
            setsid "$0" hold >/dev/null 2>&1 </dev/null &
            while [ ! -s "$top/run/mistamover.pid" ]; do sleep 0.01; done ;;
        esac
        exit "$code" ;;
    stop)
        if [ -e "$top/run/mistamover.pid" ]; then
            kill "$(cat "$top/run/mistamover.pid")"
            rm "$top/run/mistamover.pid"
        fi ;;
    hold)
        echo $$ >"$top/run/mistamover.pid"
        while sleep 0.1; do :; done ;;
esac
"""


@dataclass
class Service:
    """The init script with all its paths in a directory of its own."""

    top: Path
    program: Path
    user: str = field(default_factory=lambda: pwd.getpwuid(os.getuid()).pw_name)
    script: Path = INIT

    def __post_init__(self) -> None:
        self.pid_file = self.top / "run/mistamover.pid"
        self.config = self.top / "global.ini"
        self.config.write_text(
            f"[global]\npid_file = {self.pid_file}\nstate_dir = {self.top / 'state'}\n"
            f"config_dir = {self.top / 'streams'}\ngeneral_poll_interval = 0.1\n"
        )
        self.defaults = self.top / "default"
        self.set(DAEMON=self.program, DAEMON_USER=self.user, CONFIG=self.config)

    def set(self, **settings: object) -> None:
        self.defaults.write_text("".join(f"{name}='{value}'\n" for name, value in settings.items()))

    def __call__(self, action: str) -> Result:
        env = environment(self.top) | {"MISTAMOVER_DEFAULTS": str(self.defaults)}
        return run("sh", self.script, action, env=env)

    def code(self, action: str) -> int:
        return self(action).code

    @property
    def pid(self) -> int:
        return int(self.pid_file.read_text())


def stand_in(top: Path, answer: int = 0) -> Path:
    program = top / "mistamover"
    program.write_text(STAND_IN)
    program.chmod(0o755)
    (top / "answer").write_text(f"{answer}\n")
    return program


@pytest.fixture(params=["with the functions of the LSB", "without"])
def service(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Service]:
    """The script on a stand-in for the program, which answers at once."""
    script = tmp_path / INIT.name
    text = INIT.read_text()
    script.write_text(text if "with the" in request.param else text.replace("/lib/lsb/", "/no/lsb/"))
    made = Service(tmp_path, stand_in(tmp_path), script=script)
    yield made
    assert made.code("stop") == 0


@pytest.mark.needs("shellcheck")
def test_the_init_script_has_no_faults_that_shellcheck_knows() -> None:
    result = run("shellcheck", "-x", INIT)
    assert (result.code, result.out) == (0, "")


def test_the_init_script_has_a_header() -> None:
    header = INIT.read_text().split("### BEGIN INIT INFO\n")[1].split("### END INIT INFO\n")[0]
    names = re.findall(r"^# ([\w-]+):\s+\S", header, re.MULTILINE)
    assert {"Provides", "Required-Start", "Required-Stop", "Default-Start", "Default-Stop"} <= {*names}
    assert {"Short-Description", "Description"} <= {*names}


def test_the_sample_of_defaults_changes_nothing() -> None:
    samples = dict(re.findall(r"^#(\w+)=(.*)", (CONF / "mistamover.default").read_text(), re.MULTILINE))
    script = INIT.read_text()
    assert set(samples) == {"DAEMON", "DAEMON_USER", "CONFIG", "PIDFILE"}
    assert all(f"{name}={value}\n" in script for name, value in samples.items())


def test_actions_give_the_codes_of_the_lsb(service: Service) -> None:
    assert [service.code(action) for action in ("status", "stop", "reload", "try-restart")] == [
        STOPPED, 0, NOT_RUNNING, 0,
    ]  # fmt: skip
    assert [service.code(action) for action in ("start", "status", "start", "reload")] == [0, RUNS, 0, 0]
    first = service.pid
    assert [service.code(action) for action in ("restart", "status", "try-restart", "force-reload")] == [0] * 4
    assert service.pid != first
    assert [service.code(action) for action in ("stop", "status")] == [0, STOPPED]
    assert service.code("dance") == USAGE


def test_a_process_that_takes_its_time_to_end_is_not_taken_for_a_running_service(service: Service) -> None:
    """``try-restart`` has looked at it before; what it found then must not count after the stop."""
    service.program.write_text(STAND_IN.replace("    hold)\n", "    hold)\n        trap 'sleep 1; exit' TERM\n"))
    service.code("start")
    first = service.pid
    assert service.code("try-restart") == 0
    assert (service.code("status"), service.pid == first) == (RUNS, False)


def test_a_pid_file_without_its_process_is_told(service: Service) -> None:
    service.pid_file.parent.mkdir()
    for left in ("", "no number", "999999999", f"{os.getppid()} 7"):
        service.pid_file.write_text(left)
        assert service.code("status") == DEAD, left
    service.pid_file.unlink()


def test_a_number_that_another_program_has_now_does_not_count(service: Service) -> None:
    service.pid_file.parent.mkdir()
    with subprocess.Popen(["sleep", "60"]) as stranger:
        service.pid_file.write_text(f"{stranger.pid}\n")
        answers = [service.code("status"), service.code("reload")]
        service.pid_file.unlink()
        stranger.kill()
    assert answers == [DEAD, NOT_RUNNING]


@pytest.mark.parametrize(
    ("answer", "code", "state"),
    [(0, 0, RUNS), (1, 0, RUNS), (2, NOT_CONFIGURED, STOPPED), (3, FAILED, STOPPED), (4, 0, STOPPED)],
)
def test_answers_of_the_program_become_those_of_the_lsb(
    service: Service, answer: int, code: int, state: int
) -> None:
    (service.top / "answer").write_text(f"{answer}\n")
    assert (service.code("start"), service.code("status")) == (code, state)


def test_a_pid_file_elsewhere_is_told(service: Service) -> None:
    elsewhere = service.top / "elsewhere/mistamover.pid"
    service.set(DAEMON=service.program, DAEMON_USER=service.user, CONFIG=service.config, PIDFILE=elsewhere)
    service.pid_file.parent.mkdir()
    result = service("start")
    assert result.code == FAILED
    assert "[global] pid_file" in result.out + result.err


@pytest.mark.parametrize(
    ("setting", "code"),
    [({"DAEMON": "/nowhere/mistamover"}, NOT_INSTALLED), ({"CONFIG": "/nowhere/global.ini"}, NOT_CONFIGURED)],
)
def test_what_is_missing_has_a_code(service: Service, setting: dict[str, str], code: int) -> None:
    right = {"DAEMON": service.program, "DAEMON_USER": service.user, "CONFIG": service.config}
    service.set(**right | setting, PIDFILE=service.pid_file)
    assert service.code("start") == code
    service.set(**right)


@pytest.mark.needs("setpriv", "usermod")
def test_root_starts_it_as_its_user_with_the_right_to_ask_for_leases(account: Account) -> None:
    place = account.home
    program = stand_in(place)
    subprocess.run(["usermod", "--shell", "/usr/sbin/nologin", account.name], check=True, timeout=DEADLINE)
    service = Service(place, program, user=account.name)
    shutil.chown(place / "answer", account.name)
    assert service.code("start") == 0
    user, directory, mask, shell, capabilities = (place / "as").read_text().splitlines()
    assert (user, directory, int(mask, 8), shell) == (account.name, "/", 0o027, "/bin/sh")
    assert int(capabilities, 16) in (1 << CAP_LEASE, 0)  # none in a container that has none to give
    assert service.pid_file.parent.stat().st_uid == account.uid
    assert [service.code(action) for action in ("status", "stop", "status")] == [RUNS, 0, STOPPED]


CAP_LEASE = 28


# -- the init script and the real program ------------------------------------------------------------------

is_built = pytest.mark.skipif(
    "start" not in _mistamover.list_commands(Context(_mistamover)), reason="there is no start yet"
)


@pytest.fixture
def real(tmp_path: Path) -> Iterator[Service]:
    """The script on the real program, with one stream."""
    program = tmp_path / "bin/mistamover"
    program.parent.mkdir()
    program.symlink_to(ROOT / "bin/mistamover")
    made = Service(tmp_path, program)
    (tmp_path / "streams").mkdir()
    here = Local(tmp_path)
    here.ini.rename(tmp_path / "streams/x.ini")
    yield made
    made("stop")


@is_built
def test_the_real_program_answers_as_the_lsb_wants(real: Service) -> None:
    assert [real.code(action) for action in ("status", "stop", "reload")] == [STOPPED, 0, NOT_RUNNING]
    assert [real.code(action) for action in ("start", "status", "start", "reload", "status")] == [0] * 5
    first = real.pid
    (real.top / "spool/a.dat").write_bytes(b"some bytes")
    wait_for(lambda: (real.top / "target/a.dat").exists(), "the delivery of a unit")
    assert [real.code(action) for action in ("restart", "status", "try-restart", "force-reload")] == [0] * 4
    assert real.pid != first
    assert [real.code(action) for action in ("stop", "status", "stop")] == [0, STOPPED, 0]


@is_built
def test_a_killed_service_is_dead_and_starts_again(real: Service) -> None:
    assert real.code("start") == 0
    killed = real.pid
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: real.code("status") == DEAD, "the death of the supervisor")
    assert [real.code(action) for action in ("reload", "start", "status")] == [NOT_RUNNING, 0, RUNS]
    os.kill(real.pid, signal.SIGKILL)
    wait_for(lambda: real.code("status") == DEAD, "the death of the supervisor")
    assert [real.code(action) for action in ("stop", "status")] == [0, STOPPED]


@is_built
def test_a_wrong_stream_does_not_keep_the_service_from_starting(real: Service) -> None:
    (real.top / "streams/wrong.ini").write_text("[data_stream]\ndirectory = nowhere\n")
    assert (real.code("start"), real.code("status")) == (0, RUNS)


@is_built
def test_a_wrong_global_file_is_told_before_anything_starts(real: Service) -> None:
    real.config.write_text(f"{real.config.read_text()}no_such_option = 1\n")
    result = real("start")
    assert (result.code, real.code("status")) == (NOT_CONFIGURED, STOPPED)
    assert "no_such_option" in result.out + result.err
