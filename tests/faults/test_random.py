"""Everything at once, at random: files come and change while lines, servers, disks and processes fail.

``FAULTS_SEED=NUMBER`` replays what a seed did, ``FAULTS_HOURS=NUMBER`` says for how long a campaign goes on.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import ClassVar

import psutil
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from mistamover.testing.needs import find
from tests import ftpd, rsyncd, smtpd
from tests.daemon import Daemon, running
from tests.faults.oracle import LossError, Oracle, digest_of, files
from tests.faults.relay import Cut, Relay
from tests.ftpd import Proftpd
from tests.installed import Installed, until
from tests.rsyncd import Rsyncd
from tests.smtpd import Smtpd
from tests.sshd import Sshd, is_gone, running_sshd

pytestmark = pytest.mark.needs("root", "sshd", "ssh", "rsync", "setpriv", "proftpd", "openssl", "mount", "umount")

HOURS = float(os.environ.get("FAULTS_HOURS", "0.05"))
SEED = os.environ.get("FAULTS_SEED", "")
FAR = ("sftp", "rsync", "ftp")
"""The streams that go over a line."""
STREAMS = ("local", "mirror", *FAR)
SIZES = (0, 1, 3_000, 150_000, 1_500_000)
AT_A_SERVER = ("stop", "start", "kill_sessions", "freeze_sessions", "thaw_sessions")
DISK = "128m"
"""How large the file system is on which all targets are."""
SOON, LATER = 15.0, 120.0
"""Seconds until what is to end at once has ended, and until all is delivered that can be."""
MAILS = 6
"""Never more within an hour."""
SECRETS = (rsyncd.PASSWORD, ftpd.PASSWORD)

streams = st.sampled_from(STREAMS)
lines = st.sampled_from(FAR)
numbers = st.integers(0, 30)
paths = st.builds("{}/{}".format, st.sampled_from("abc"), st.integers(0, 5))


@dataclass
class Servers:
    """The far sides, and the line to each."""

    sftp: Sshd
    rsync: Rsyncd
    ftp: Proftpd
    lines: dict[str, Relay]

    def of(self, stream: str) -> Sshd | Daemon:
        servers: dict[str, Sshd | Daemon] = {"sftp": self.sftp, "rsync": self.rsync, "ftp": self.ftp}
        return servers[stream]


@pytest.fixture
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with ExitStack() as stack:
        sshd = stack.enter_context(running_sshd(tmp_path_factory.mktemp("sshd")))
        daemon = stack.enter_context(running(Rsyncd(tmp_path_factory.mktemp("rsyncd"))))
        proftpd = stack.enter_context(running(Proftpd(tmp_path_factory.mktemp("proftpd"))))
        ports = zip(FAR, (sshd.port, daemon.port, proftpd.port), strict=True)
        yield Servers(sshd, daemon, proftpd, {name: stack.enter_context(Relay(port)) for name, port in ports})


class Ledgers(Oracle):
    """What is owed to one stream; a version that is complete anywhere is not lost."""

    def _lost(self) -> Iterator[str]:
        # What moves on while we look is found where it has come to; only what is never found is lost.
        missing = self.owed
        for _ in range(5):
            there = set(self._everywhere())
            missing = {name: value for name, value in missing.items() if value not in there}
            if not missing:
                return
        for name in missing:
            yield f"{name!r}: lost: neither in the spool, its trash or quarantine, nor at the target"

    def _everywhere(self) -> Iterator[str]:
        places = [path for root in (self.spool, self.target) for _, path in files(root)]
        for path in [*places, *self.set_aside()]:
            with suppress(FileNotFoundError):
                yield digest_of(path)

    def has_delivered(self, name: str) -> bool:
        """Whether what is owed under a name is there."""
        with suppress(FileNotFoundError):
            return digest_of(self.target / name) == self.owed[name]
        return False

    def unfinished(self) -> list[str]:
        """What has not come to its end: delivered or in quarantine, and recorded."""
        aside = {digest_of(path) for path in self.set_aside()}
        there = {digest_of(path) for _, path in files(self.target)}
        wrong = [f"{name!r}: not delivered" for name, value in self.owed.items() if value not in aside | there]
        if not self.mirror:
            wrong += [f"{name!r}: still in the spool" for name in self._in_spool()]
        # A mirror's sources stay: only its ledger shows that it has looked at what a crash had left published.
        return [*wrong, *self.unrecorded()]

    def unrecorded(self) -> list[str]:
        """What was delivered without a word in the ledger.

        A version may lie at the target that its owner replaced after a crash and before it was recorded.
        """
        recorded = {entry.digest for entry in self.records("delivered", "removed")}
        there = (name for name, value in self.owed.items() if value not in recorded and self.has_delivered(name))
        return [f"{name!r}: the ledger does not know" for name in there]


@dataclass
class Watcher:
    """Readers at all targets, who look at them all the time."""

    oracles: list[Ledgers]
    wrong: list[str] = field(default_factory=list)

    def __enter__(self) -> Watcher:
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(0.1) and not self.wrong:
            self.wrong += [line for oracle in self.oracles for line in oracle.wrong_at_target()]


@contextmanager
def small_disk(path: Path) -> Iterator[None]:
    path.mkdir(parents=True)
    mount = [find("mount") or "mount", "-t", "tmpfs", "-o", f"size={DISK}", "mistamover-test", str(path)]
    subprocess.run(mount, check=True)
    try:
        yield
    finally:
        subprocess.run([find("umount") or "umount", "-l", str(path)], check=True)


class World:
    """A service with streams of all kinds, the far sides, and what harms them."""

    def __init__(self, top: Path, servers: Servers) -> None:
        self.top, self.servers = top, servers
        self.steps: list[str] = []
        self._began = time.monotonic()
        self._number = 0
        self._random = random.Random(top.name)
        self._stack = ExitStack()
        top.mkdir()
        try:
            self._make()
        except BaseException:
            self._stack.close()
            raise

    def _make(self) -> None:
        self._stack.enter_context(small_disk(self.top / "target"))
        self.smtpd = self._stack.enter_context(smtpd.running(Smtpd()))
        self.installed = Installed(self.top)
        self.installed.configure(
            "max_restarts = 1000\n"
            "[disk_space_monitor]\nlevel_good = 3K\nlevel_low = 2K\nlevel_vlow = 1K\n"
            f"[email]\nrecipient = ops@example.org\nsmarthost = {smtpd.HOST}\nport = {self.smtpd.port}\n"
        )
        self._stack.callback(self.installed.close)
        for name in STREAMS:
            self.configure(name, lanes=2)
        self.oracles = {
            name: Ledgers(
                self.installed.spool(name),
                self.installed.target(name),
                self.installed.state / name / "ledger.sqlite",
                mirror=name == "mirror",
            )
            for name in STREAMS
        }
        self.watcher = self._stack.enter_context(Watcher(list(self.oracles.values())))
        self.start()

    def configure(self, stream: str, lanes: int) -> None:
        """Write a stream's file, again or anew."""
        outgoing, more = self._way(stream)
        usual = f"lanes = {lanes}\nretry_interval = 0\nstop_timeout = 1\n"
        self.installed.add(stream, outgoing + usual, more)

    def _way(self, stream: str) -> tuple[str, str]:
        """What leads a stream to its target."""
        if stream not in FAR:
            return ("transfer_mode = mirror\n" if stream == "mirror" else ""), ""
        server, line = self.servers.of(stream), self.servers.lines[stream]
        host = f"target_host = {server.host}\n"
        patience = f"port = {line.own_port}\nconnect_timeout = 5\nstall_timeout = 3\n"
        if stream == "sftp":
            assert isinstance(server, Sshd)
            key = " ".join(Path(f"{server.host_key}.pub").read_text().split()[:2])
            known = self.top / "known_hosts"
            known.write_text(f"[{server.host}]:{line.own_port} {key}\n")
            log_in = f"username = {server.username}\nkey_file = {server.key_file}\nknown_hosts = {known}\n"
            return (
                f"transfer_protocol = sftp\nexisting = replace\n{host}",
                f"[sftp]\nconnector = openssh\n{patience}{log_in}",
            )
        if stream == "rsync":
            place = f"target_dir = {rsyncd.MODULE}{self.installed.target(stream)}\n"
            log_in = f"username = {rsyncd.USER}\npassword = {rsyncd.PASSWORD}\n"
            return f"transfer_protocol = rsync_native\n{place}{host}", f"[rsync_native]\n{patience}{log_in}"
        log_in = f"username = {ftpd.USER}\npassword = {ftpd.PASSWORD}\n"
        return f"transfer_protocol = ftp\nexisting = replace\n{host}", f"[ftp]\n{patience}{log_in}"

    def note(self, step: str) -> None:
        self.steps.append(f"{time.monotonic() - self._began:6.2f} {step}")

    # -- writers -----------------------------------------------------------------------------------------------

    def _content(self, size: int) -> bytes:
        """Bytes that never were before; the smallest have to be alike."""
        self._number += 1
        return random.Random(f"{self.top.name}-{self._number}").randbytes(size)

    def put(self, stream: str, path: str, size: int) -> None:
        """A file appears, or takes the place of another, in one rename."""
        content = self._content(size)
        self.oracles[stream].expect(path, content)
        self.installed.put(stream, path, content)

    def go_on(self) -> None:
        """Time goes by, and files appear, here and there."""
        time.sleep(self._random.uniform(0, 0.3))  # no condition: any moment may be the wrong one
        for _ in range(self._random.randrange(12)):
            path = f"{self._random.choice('abc')}/{self._random.randrange(9)}"
            self.put(self._random.choice(STREAMS), path, self._random.choice(SIZES[:-1]))

    def pick(self, stream: str, number: int) -> str | None:
        """A file that is in the spool just now."""
        there = sorted(self.installed.left(stream))
        return there[number % len(there)] if there else None

    def write_into(self, stream: str, path: str, change: Callable[[int, bytes], bytes]) -> None:
        """Have a file changed in place, by a function that gives the new bytes and writes them.

        Whoever writes into a file that was just taken away writes to nobody; nor do we into one of several names.
        """
        try:
            fd = os.open(self.installed.spool(stream) / path, os.O_RDWR | os.O_NOFOLLOW)
        except FileNotFoundError:
            return
        try:
            found = os.fstat(fd)
            if found.st_nlink != 1:
                return
            new = change(fd, os.pread(fd, found.st_size, 0))
            if os.fstat(fd).st_nlink:
                self.oracles[stream].owed[path] = sha256(new).hexdigest()
        finally:
            os.close(fd)

    def _allow(self, stream: str, path: str, content: bytes) -> bytes:
        self.oracles[stream].versions.setdefault(path, set()).add(sha256(content).hexdigest())
        return content

    def grow(self, stream: str, path: str) -> None:
        def append(fd: int, content: bytes) -> bytes:
            new = self._allow(stream, path, content + self._content(2_000))
            os.pwrite(fd, new[len(content) :], len(content))
            return new

        self.write_into(stream, path, append)

    def rewrite(self, stream: str, path: str) -> None:
        """Other bytes, of the same size and with the same times."""

        def change(fd: int, content: bytes) -> bytes:
            found = os.fstat(fd)
            new = self._allow(stream, path, self._content(len(content)))
            os.pwrite(fd, new, 0)
            os.utime(fd, ns=(found.st_atime_ns, found.st_mtime_ns))
            return new

        self.write_into(stream, path, change)

    def delete(self, stream: str, path: str) -> None:
        with suppress(FileNotFoundError):
            (self.installed.spool(stream) / path).unlink()
            self.oracles[stream].owed.pop(path, None)

    def link(self, stream: str, path: str, new: str) -> None:
        spool = self.installed.spool(stream)
        with suppress(FileNotFoundError, FileExistsError):
            content = self._allow(stream, new, (spool / path).read_bytes())
            os.link(spool / path, spool / new)
            self.oracles[stream].owed[new] = sha256(content).hexdigest()

    def rename_directory(self, stream: str, old: str) -> None:
        """What is in it has other names from now on; what was in it keeps those that it has at the target."""
        oracle = self.oracles[stream]
        self._number += 1
        new = f"{old}-{self._number}"
        below = [path for path in oracle.versions if path.startswith(f"{old}/")]
        for path in below:
            oracle.versions.setdefault(new + path[len(old) :], set()).update(oracle.versions[path])
        with suppress(FileNotFoundError):
            (self.installed.spool(stream) / old).rename(self.installed.spool(stream) / new)
            for path in below:
                if path in oracle.owed and not oracle.has_delivered(path):
                    oracle.owed[new + path[len(old) :]] = oracle.owed.pop(path)

    # -- faults ------------------------------------------------------------------------------------------------

    @property
    def ballast(self) -> Path:
        return self.top / "target/ballast"

    def fill_disk(self) -> None:
        with self.ballast.open("ab", buffering=0) as file:
            for piece in (bytes(2**20), bytes(2**12)):
                with suppress(OSError):
                    while file.write(piece):
                        pass

    def stop_file(self, stream: str) -> Path:
        return self.installed.spool(stream) / ".stop"

    def end_faults(self) -> None:
        for relay in self.servers.lines.values():
            relay.now, relay.rate, relay.flips = None, float("inf"), 0
        for name in FAR:
            server = self.servers.of(name)
            server.thaw_sessions()
            if server._process is None:
                server.start()
        with suppress(FileNotFoundError):
            self.ballast.unlink()
        for name in STREAMS:
            self.stop_file(name).unlink(missing_ok=True)

    # -- processes ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        result = self.installed.start()
        assert result.code == 0, result

    def worker(self, stream: str) -> int:
        self.installed.note()
        return int(self.installed.stream(stream).get("pid") or 0)

    def kill(self, *pids: int) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def kill_worker(self, stream: str) -> None:
        """Its programs end with it."""
        if pid := self.worker(stream):
            started = children(pid)
            self.kill(pid)
            until(lambda: all(map(is_gone, started)), f"the programs of {stream} to end with its worker", SOON)

    def kill_program(self, stream: str, number: int) -> None:
        if (pid := self.worker(stream)) and (started := children(pid)):
            self.kill(started[number % len(started)].pid)

    def kill_service(self, *, also_workers: bool) -> None:
        self.installed.note()
        workers = self.installed.workers() if also_workers else []
        self.kill(*workers, self.installed.pid)
        until(lambda: not self.strays(), "all processes to end with the service", SOON)
        self.start()

    def strays(self) -> list[str]:
        """The processes of the service that there are: those that have its files open, or were started by it."""
        ours = {process.pid for process in psutil.Process().children(recursive=True)} | {os.getpid()}
        return [
            f"{process.pid} {' '.join(process.cmdline())}"
            for process in psutil.process_iter()
            if process.pid not in ours and not is_gone(process) and self._belongs(process)
        ]

    def _belongs(self, process: psutil.Process) -> bool:
        with suppress(psutil.Error, OSError):
            if process.environ().get("HOME") == str(self.top):
                return True
            return any(
                os.readlink(link).startswith(f"{self.top}/") for link in Path(f"/proc/{process.pid}/fd").iterdir()
            )
        return False

    # -- what must hold ------------------------------------------------------------------------------------------

    def check(self) -> None:
        if self.watcher.wrong:
            raise LossError("\n".join(self.watcher.wrong))
        for oracle in self.oracles.values():
            oracle.check()

    def unfinished(self) -> list[str]:
        with suppress(FileNotFoundError):
            return [f"{name}: {what}" for name, one in self.oracles.items() for what in one.unfinished()]
        return ["something moves"]

    def finish(self) -> None:
        """Faults end; then all comes to its end, and nothing of it is left."""
        self.end_faults()
        self.note("faults end")
        assert self.installed.run("restart").code == 0
        self._await_end(self.unfinished)
        # What a session has staged that was held up, and has come back since, goes when there is something to send.
        for name in STREAMS:
            self.put(name, "last", SIZES[1])
        self._await_end(lambda: [*self.unfinished(), *self.staged()])
        self.installed.note()
        assert self.installed.run("stop").code == 0
        self.note("stopped")
        until(lambda: not self.strays(), "all processes to end with the service", SOON)
        assert self.installed.strays() == []
        self.check()
        assert len(self.smtpd.mails) <= MAILS
        assert list(self._told_secrets()) == []

    def _await_end(self, unfinished: Callable[[], list[str]]) -> None:
        try:
            until(lambda: not unfinished(), "all to come to its end", LATER)
        except TimeoutError:
            raise AssertionError("not at its end:\n" + "\n".join(unfinished())) from None

    def staged(self) -> list[str]:
        """What is left of no use at the targets."""
        with suppress(FileNotFoundError):
            return [f"{path}: left staged" for one in self.oracles.values() for path in one.staged()]
        return ["something moves"]

    def _told_secrets(self) -> Iterator[str]:
        for _, path in files(self.installed.state):
            if any(secret.encode() in path.read_bytes() for secret in SECRETS):
                yield str(path)
        for mail in self.smtpd.mails:
            if any(secret in mail.as_string() for secret in SECRETS):
                yield str(mail["Subject"])

    def close(self) -> None:
        self.end_faults()
        self._stack.close()

    def story(self) -> str:
        log = sorted(line[:200] for line in self.installed.log.splitlines() if " moved: " not in line)
        return "\n".join([*self.steps, "", *log[-100:]])


def children(pid: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


class Campaign(RuleBasedStateMachine):
    """What may happen, in any order."""

    servers: ClassVar[Servers]
    top: ClassVar[Path]
    number: ClassVar[int]
    """The seed."""
    _examples: ClassVar[int] = 0
    _last: ClassVar[World | None] = None
    _failure: ClassVar[Exception | None] = None
    """The first of this seed: hypothesis tries again, and processes do nothing the same way twice."""

    def __init__(self) -> None:
        super().__init__()
        self._world: World | None = None

    @property
    def world(self) -> World:
        """Made when first needed: hypothesis begins with a machine that does nothing."""
        if self._failure is not None:
            raise self._failure
        if self._world is None:
            Campaign._examples += 1
            self._world = Campaign._last = World(self.top / f"{self.number}-{Campaign._examples}", self.servers)
        return self._world

    @contextmanager
    def step(self, what: str) -> Iterator[World]:
        try:
            world = self.world
            world.note(what)
            world.go_on()
            yield world
            world.check()
        except Exception as error:
            if self._failure is None and self._world is not None:
                error.add_note(self._world.story())
            Campaign._failure = self._failure or error
            raise

    # -- files -------------------------------------------------------------------------------------------------

    @rule(stream=streams, path=paths, sizes=st.lists(st.sampled_from(SIZES), min_size=1, max_size=6))
    def appear(self, stream: str, path: str, sizes: list[int]) -> None:
        with self.step(f"{len(sizes)} files appear: {stream} {path}") as world:
            for number, size in enumerate(sizes):
                world.put(stream, path if not number else f"{path}-{number}", size)

    @rule(stream=streams, number=numbers, how=st.sampled_from(["grow", "rewrite", "delete"]))
    def change(self, stream: str, number: int, how: str) -> None:
        with self.step(f"{how} {stream} {number}") as world:
            if path := world.pick(stream, number):
                getattr(world, how)(stream, path)

    @rule(stream=streams, number=numbers, size=st.sampled_from(SIZES))
    def replace(self, stream: str, number: int, size: int) -> None:
        with self.step(f"replace {stream} {number}") as world:
            if path := world.pick(stream, number):
                world.put(stream, path, size)

    @rule(stream=streams, number=numbers, new=paths)
    def link(self, stream: str, number: int, new: str) -> None:
        with self.step(f"link {stream} {number} as {new}") as world:
            if path := world.pick(stream, number):
                world.link(stream, path, new)

    @rule(stream=streams, old=st.sampled_from("abc"))
    def rename_directory(self, stream: str, old: str) -> None:
        with self.step(f"rename directory {stream} {old}") as world:
            world.rename_directory(stream, old)

    @rule()
    def a_moment(self) -> None:
        """Nothing happens. Hypothesis tries first what is nothing but this, and that needs no world."""
        if self._world is not None:
            with self.step("nothing"):
                pass

    # -- lines and servers ---------------------------------------------------------------------------------------

    @rule(stream=lines, cut=st.sampled_from([*Cut, None]))
    def line(self, stream: str, cut: Cut | None) -> None:
        with self.step(f"line of {stream}: {cut}") as world:
            world.servers.lines[stream].now = cut

    @rule(stream=lines, rate=st.sampled_from([2_000, 200_000, float("inf")]))
    def slow(self, stream: str, rate: float) -> None:
        with self.step(f"line of {stream}: {rate} bytes/s") as world:
            world.servers.lines[stream].rate = rate

    @rule(flips=st.integers(1, 3))
    def flip(self, flips: int) -> None:
        """Over ssh only: the others' lines carry no proof of their own, and TCP has one."""
        with self.step("a bit flips") as world:
            world.servers.lines["sftp"].flips = flips

    @rule(stream=lines, what=st.sampled_from(AT_A_SERVER))
    def server(self, stream: str, what: str) -> None:
        with self.step(f"server of {stream}: {what}") as world:
            server = world.servers.of(stream)
            if what != "start" or server._process is None:
                getattr(server, what)()

    @rule(is_full=st.booleans())
    def disk(self, is_full: bool) -> None:
        with self.step(f"disk is full: {is_full}") as world:
            world.fill_disk() if is_full else world.ballast.unlink(missing_ok=True)

    # -- processes and people --------------------------------------------------------------------------------------

    @rule(stream=streams)
    def kill_worker(self, stream: str) -> None:
        with self.step(f"kill worker {stream}") as world:
            world.kill_worker(stream)

    @rule(stream=lines, number=numbers)
    def kill_program(self, stream: str, number: int) -> None:
        with self.step(f"kill program {stream} {number}") as world:
            world.kill_program(stream, number)

    @rule(also_workers=st.booleans())
    def kill_service(self, also_workers: bool) -> None:
        with self.step(f"kill service, workers: {also_workers}") as world:
            world.kill_service(also_workers=also_workers)

    @rule()
    def restart(self) -> None:
        with self.step("restart") as world:
            world.installed.note()
            assert world.installed.run("restart").code == 0

    @rule(stream=streams, lanes=st.integers(1, 4))
    def reload(self, stream: str, lanes: int) -> None:
        with self.step(f"reload {stream} {lanes}") as world:
            world.configure(stream, lanes)
            os.kill(world.installed.pid, signal.SIGHUP)

    @rule(stream=streams, is_paused=st.booleans())
    def pause(self, stream: str, is_paused: bool) -> None:
        with self.step(f"pause {stream}: {is_paused}") as world:
            stop_file = world.stop_file(stream)
            stop_file.touch() if is_paused else stop_file.unlink(missing_ok=True)

    @rule(stream=streams, command=st.sampled_from(["pause", "resume"]))
    def command(self, stream: str, command: str) -> None:
        with self.step(f"{command} {stream}") as world:
            assert world.installed.run(command, stream).code == 0

    def teardown(self) -> None:
        if self._world is None:
            return
        if self._failure is not None:
            self._world.close()
            return
        try:
            with self.step("end") as world:
                world.finish()
        finally:
            self._world.close()


def campaign(top: Path, servers: Servers, number: int, *, steps: int, examples: int) -> None:
    """What a seed does: some examples of so many steps."""
    Campaign.top, Campaign.servers, Campaign.number = top, servers, number
    Campaign._examples, Campaign._failure, Campaign._last = 0, None, None
    chosen = settings(
        max_examples=examples + 1,
        stateful_step_count=steps,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    try:
        run_state_machine_as_test(seed(number)(type("Seeded", (Campaign,), {})), settings=chosen)
    except Exception as error:  # noqa: BLE001 - that of hypothesis, or the one that it is about
        failure = Campaign._failure or error
        failure.add_note(f'to do it again: make faults FAULTS_SEED={number} ARGS="-k test_campaign"')
        raise failure from None
    finally:
        if Campaign._last is not None:
            Campaign._last.close()  # also where somebody interrupts us


@pytest.mark.timeout(300)
def test_a_little(tmp_path: Path, servers: Servers) -> None:
    """The same each time."""
    campaign(tmp_path, servers, 1, steps=12, examples=1)


@pytest.mark.campaign
@pytest.mark.timeout(HOURS * 3600 + 900)
def test_campaign(tmp_path: Path, servers: Servers, capsys: pytest.CaptureFixture[str]) -> None:
    """For some time, by one seed after the other; or what one seed did."""
    number = int(SEED) if SEED else random.SystemRandom().randrange(10**6)
    until_then = time.monotonic() + HOURS * 3600
    while True:
        with capsys.disabled():
            print(f"\nFAULTS_SEED={number}", flush=True)
        campaign(tmp_path, servers, number, steps=40, examples=1)
        if SEED or time.monotonic() > until_then:
            return
        number += 1
