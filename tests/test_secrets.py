"""A password is in no argument, environment, log, traceback, ledger or file, while a run lasts and after it."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from mistamover import couriers
from mistamover.testing.needs import find
from mistamover.testing.rig import Rig, files, noise, write
from mistamover.transports import ssh
from mistamover.transports.rsync_run import Run as Started
from tests import ftpd, rsyncd
from tests.conftest import StartSshd
from tests.daemon import running
from tests.ftpd import Certificate, Options, Proftpd
from tests.program import DEADLINE, Local, Result, command, ended, environment
from tests.rsyncd import Rsyncd
from tests.sshd import Account, wait_for
from tests.transports.sftp_contract import options as to_sshd
from tests.transports.test_rsync import to_daemon

pytestmark = pytest.mark.needs("root", "sshd", "useradd", "rsync", "setpriv", "proftpd", "openssl", "strace")
PROTOCOLS = ("sftp", "rsync_native", "ftp", "ftps")
WRONG = "canary-of-a-wrong-password-77e1"


class Far:
    """A server of its own for each test, by its options; it counts log-ins."""

    def __init__(
        self, options: Options, log: Path, refusal: str, module: str = "", place: Path | None = None
    ) -> None:
        self.options = options
        self.protocol = options["outgoing"]["transfer_protocol"]
        self.password = options[self.protocol]["password"]
        self.module = module
        self.place = place
        self._log = log
        self._refusal = refusal

    @property
    def refusals(self) -> int:
        return self._log.read_text(errors="replace").count(self._refusal)


@pytest.fixture(params=PROTOCOLS)
def far(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Far]:
    directory = tmp_path / "server"
    directory.mkdir()
    if request.param == "sftp":
        start: StartSshd = request.getfixturevalue("start_sshd")
        account: Account = request.getfixturevalue("account")
        server = start(account=account, extra=("MaxAuthTries 6",))
        over = {**to_sshd(server, "paramiko")["sftp"], "password": account.password or ""}
        del over["key_file"]
        options: Options = {"outgoing": to_sshd(server, "paramiko")["outgoing"], "sftp": over}
        yield Far(options, server.log, "Failed password", place=server.root)
    elif request.param == "rsync_native":
        with running(Rsyncd(directory)) as daemon:
            yield Far(to_daemon(daemon), daemon.log, "auth failed", rsyncd.MODULE)
    else:
        certificate = Certificate.make(directory) if request.param == "ftps" else None
        with running(Proftpd(directory, certificate=certificate)) as server_:
            options = ftpd.within_tls(server_, certificate) if certificate else ftpd.to(server_)
            yield Far(options, server_.log, "Incorrect password")


class Looking:
    """Looks for a text in the arguments and the environment of a process and of all that it starts."""

    def __init__(self, process: subprocess.Popen[bytes], text: str) -> None:
        self._process = psutil.Process(process.pid)
        self._text = text
        self.seen: set[str] = set()
        """The names of the processes that were looked at."""
        self.found: list[str] = []
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        with suppress(psutil.NoSuchProcess):
            while self._process.status() != psutil.STATUS_ZOMBIE:
                for process in (self._process, *self._process.children(recursive=True)):
                    with suppress(psutil.Error):
                        self._look_at(process)

    def _look_at(self, process: psutil.Process) -> None:
        said = f"{process.cmdline()} {process.environ()}"
        self.seen.add(process.name())
        if self._text in said:
            self.found.append(said)

    def end(self) -> None:
        self._thread.join()


def traced(begun: Path) -> Sequence[str | bytes | Path]:
    """A command's beginning that writes down each program it begins, with all arguments and the whole environment.

    Looking at processes alone would miss those that end at once.
    """
    whole = str(1 << 20)
    return [find("strace") or "strace", "-f", "-qq", "-v", "-s", whole, "-e", "trace=execve", "-o", begun]


Run = Callable[[str], Result]


@pytest.fixture
def run(far: Far, tmp_path: Path) -> Run:
    """Move a tree with this password; nothing may show it."""
    target = far.place or tmp_path / "target"
    target.mkdir(exist_ok=True)
    for name in ("log", "temporary"):
        (tmp_path / name).mkdir()
    stream = tmp_path / "secret.ini"
    stream.touch(mode=0o600)

    def run(password: str) -> Result:
        for number in range(30):
            write(tmp_path / f"spool/{number}", noise(number))
        write(tmp_path / "spool/big", noise(5_000_000))
        sections = {
            "global": {"state_dir": f"{tmp_path}/state"},
            "logging": {"base_log_dir": f"{tmp_path}/log", "log_level": "debug"},
            "data_stream": {"directory": f"{tmp_path}/spool", "settle_time": "0"},
            **far.options,
            "outgoing": {**far.options["outgoing"], "target_dir": f"{far.module}{target}"},
            far.protocol: {**far.options[far.protocol], "password": password},
        }
        lines = [f"[{title}]\n" + "\n".join(map(" = ".join, one.items())) for title, one in sections.items()]
        stream.write_text("\n".join(lines))
        begun = tmp_path / "server/begun"
        arguments = [*traced(begun), *command("run", "--once", "--debug", "--verbose", stream)]
        surroundings = {**environment(tmp_path), "TMPDIR": f"{tmp_path}/temporary"}
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=surroundings)
        looking = Looking(process, password)
        result = ended(process)
        looking.end()
        assert looking.found == []
        assert looking.seen
        assert (b"rsync" in begun.read_bytes()) == (far.protocol == "rsync_native")
        assert password.encode() not in begun.read_bytes()
        assert password not in result.out + result.err
        ours = (path for path in tmp_path.rglob("*") if tmp_path / "server" not in path.parents)
        assert [path for path in ours if path.is_file() and password.encode() in path.read_bytes()] == [stream]
        assert files(tmp_path / "log")
        return result

    return run


def test_a_right_password_shows_nowhere(run: Run, far: Far, tmp_path: Path) -> None:
    result = run(far.password)
    assert result.code == 0, result
    assert files(tmp_path / "spool") == {}


def test_a_wrong_password_is_tried_once_and_shows_nowhere(run: Run, far: Far, tmp_path: Path) -> None:
    """Also where the stream has several lanes, and the program several tries."""
    result = run(WRONG)
    assert result.code == 3, result
    assert "log-in refused" in result.out + result.err
    assert far.refusals == 1
    assert len(files(tmp_path / "spool")) == 31


def test_a_crash_leaves_no_image_of_the_memory(tmp_path: Path) -> None:
    """Whatever the shell that starts us allows."""
    local = Local(tmp_path)
    allowed = ["sh", "-c", 'ulimit -c unlimited && exec "$@"', "sh"]
    argv = [*allowed, *command("run", local.ini)]
    process = subprocess.Popen(argv, cwd=tmp_path, env=environment(tmp_path), stderr=subprocess.DEVNULL)
    local.put("unit")
    wait_for(lambda: (local.target / "unit").exists(), "the stream to work")
    process.send_signal(signal.SIGQUIT)
    assert process.wait(DEADLINE) == -signal.SIGQUIT
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("core")]


def test_no_program_that_we_start_gets_our_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A password may come from our environment; rsync, ssh and the command of alerts have no use for it."""
    monkeypatch.setenv("CONFIG__rsync_native__password", WRONG)
    monkeypatch.setenv("KEPT", "yes")
    said = tmp_path / "said"
    writes = ["sh", "-c", f"env >{said}"]

    def by_channel() -> None:
        rig = Rig(tmp_path, {"outgoing": {"transfer_protocol": "sftp", "target_host": "archive.example.org"}})
        channel = ssh.PipeChannel(writes, rig.settings())
        assert channel.read() == b""
        channel.close()

    def by_rsync() -> None:
        with Started(writes) as started:
            started.wait(30.0)

    for start in (by_channel, by_rsync, lambda: ssh.said_by(writes, 30.0), lambda: couriers._run(writes, "", 30.0)):
        start()
        variables = said.read_text()
        assert "KEPT=yes" in variables
        assert WRONG not in variables
        said.unlink()
