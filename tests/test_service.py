"""The service as an administrator meets it: the real program, its processes, its signals."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from mistamover import fs, service
from mistamover.errors import Held
from mistamover.processes import Process, began_at
from tests.installed import Installed, until
from tests.program import ROOT, ended


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[Installed]:
    one = Installed(tmp_path)
    yield one
    one.close()


# -- start and stop ----------------------------------------------------------------------------------------


def test_a_day_of_the_service(installed: Installed) -> None:
    for name in ("a", "b"):
        installed.add(name)
        installed.put(name, "early")
    started = installed.start()
    assert (started.code, started.err) == (0, "")
    assert "2 of 2 streams up" in started.out
    installed.put("a", "deep/late")
    until(lambda: installed.arrived("a") == {"early", "deep/late"} and installed.arrived("b") == {"early"})
    until(lambda: installed.left("a") == set())
    until(lambda: installed.stream("a")["delivered"] == 2)
    status = installed.status()
    assert status["running"]
    assert {one["state"] for one in status["streams"].values()} == {"idle"}
    assert installed.run("status").code == 0
    stopped = installed.run("stop")
    assert (stopped.code, stopped.out, stopped.err) == (0, "stopped\n", "")
    assert installed.strays() == []
    assert not installed.pid_file.exists()
    assert "stream a: moved: early: bytes=10 " in installed.log
    again = installed.run("stop")
    assert (again.code, again.out) == (0, f"the service does not run (state directory {installed.state})\n")
    assert installed.run("status").code == 1


@pytest.mark.parametrize("command", ["status", "reload"])
def test_that_it_does_not_run_says_where_it_was_looked_for_and_how_to_start_it(
    installed: Installed, command: str
) -> None:
    assert installed.run(command).out == (
        f"the service does not run (state directory {installed.state}); "
        "mistamover start --config global.ini starts it\n"
    )


def test_it_is_named_in_the_process_list(installed: Installed) -> None:
    installed.add("radar")
    installed.start()
    names = {
        Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0") for pid in (installed.pid, *installed.workers())
    }
    assert names == {b"mistamover: service", b"mistamover: stream radar"}
    assert psutil.Process(installed.pid).num_threads() == 1, "what other threads hold, a fork holds for ever"


def test_it_writes_nothing_that_others_may_change(installed: Installed) -> None:
    installed.add("a")
    installed.start()
    installed.put("a", "file")
    until(lambda: installed.arrived("a") == {"file"})
    open_to_all = [path for path in installed.state.rglob("*") if path.lstat().st_mode & 0o022]
    assert open_to_all == []


def test_a_second_one_is_sent_away(installed: Installed) -> None:
    installed.add("a")
    installed.start()
    second = installed.run("start")
    assert second.code == 4
    assert second.err == (
        f"mistamover: the service runs already (process {installed.pid}); mistamover status shows what it does\n"
    )


def test_of_twenty_at_once_one_wins(installed: Installed) -> None:
    installed.add("a")
    results = [ended(one) for one in [installed.popen("start") for _ in range(20)]]
    installed.note()
    assert sorted(result.code for result in results) == [0] + 19 * [4]
    assert installed.stream("a")["pid"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            "hang_timeout = soon",
            "global.ini:5: [global] hang_timeout: 'soon' cannot be used; give a time in seconds",
        ),
        ("config_dir = /nowhere/at/all", "[global] config_dir: '/nowhere/at/all': No such file or directory"),
        ("[logging]\nbase_log_dir = /nowhere/at/all", "[logging] base_log_dir: '/nowhere/at/all' is no directory"),
    ],
)
def test_what_is_wrong_is_said_before_it_leaves_the_terminal(installed: Installed, more: str, said: str) -> None:
    installed.configure(more)
    result = installed.run("start")
    assert result.code == 2
    assert said in result.err
    assert result.err.count("\n") == 1
    assert installed.run("status", env={"CONFIG__global__hang_timeout": "1"}).code in (1, 2)


@pytest.mark.parametrize("option", ["state_dir", "pid_file"])
def test_a_place_that_cannot_be_made_is_said(installed: Installed, option: str) -> None:
    (installed.top / "file").touch()
    installed.ini.write_text(
        installed.ini.read_text().replace(f"{option} = {installed.top}", f"{option} = {installed.top}/file")
    )
    result = installed.run("start")
    assert result.code == 2
    assert f"[global] {option}: " in result.err
    assert result.err.count("\n") == 1


def test_without_a_global_file_it_says_so(tmp_path: Path, installed: Installed) -> None:
    installed.ini.unlink()
    result = installed.run("start")
    assert result.code == 2
    assert "global.ini" in result.err


def test_a_stream_that_cannot_start_holds_up_no_other(installed: Installed) -> None:
    installed.add("good")
    installed.add("bad", "lans = 3")
    result = installed.start()
    assert result.code == 1
    assert "bad.ini:" in result.out
    assert "[outgoing] lans: unknown option; did you mean lanes?" in result.out
    assert "1 of 2 streams up" in result.out
    installed.put("good", "file")
    until(lambda: installed.arrived("good") == {"file"})
    status = installed.run("status")
    assert status.code == 1
    assert "! bad" in status.out
    assert "did you mean lanes?" in status.out
    installed.add("bad")
    installed.put("bad", "file")
    assert installed.run("reload").code == 0
    until(lambda: installed.arrived("bad") == {"file"})


def test_reload_says_what_is_wrong(installed: Installed) -> None:
    installed.add("a")
    installed.start()
    assert installed.run("reload").out == "read again: 1 stream\n"
    installed.add("a", "lans = 3")
    result = installed.run("reload")
    assert result.code == 1
    assert "did you mean lanes?" in result.out
    installed.run("stop")
    assert installed.run("reload").code == 1


def test_restart(installed: Installed) -> None:
    installed.add("a")
    assert installed.run("restart").code == 0
    first = installed.pid
    installed.note()
    assert installed.run("restart").code == 0
    assert installed.pid not in (0, first)
    assert first not in installed.strays()


# -- PID files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["", "4194304\n", "no number", "{stranger}\n", "-1\n"])
def test_no_pid_file_blocks_a_start_nor_has_a_stranger_killed(installed: Installed, content: str) -> None:
    stranger = subprocess.Popen(["sleep", "100"])
    try:
        text = content.format(stranger=stranger.pid)
        installed.pid_file.write_text(text)
        assert installed.run("stop").out.startswith("the service does not run ")
        installed.pid_file.write_text(text)
        installed.add("a")
        assert installed.start().code == 0
        installed.pid_file.write_text(text)  # and one that somebody else spoilt meanwhile
        assert installed.run("stop").code == 0
        assert installed.strays() == []
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_number_that_another_process_has_by_now_is_no_service(installed: Installed) -> None:
    installed.state.mkdir()
    stranger = subprocess.Popen(["sleep", "100"])
    try:
        with pytest.raises(ProcessLookupError):
            Process(stranger.pid, began_at(stranger.pid) - 1)
        (installed.state / service.LOCK).write_text(f"{stranger.pid} {began_at(stranger.pid):.0f}\n")
        assert installed.run("stop").out.startswith("the service does not run ")
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.needs("root")
def test_the_user_of_the_service_cannot_have_root_end_another_process(
    installed: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever owns the lock may write any number into it, and hold it."""
    monkeypatch.setattr(service, "SIGNED_BY", 0.3)
    installed.state.mkdir()
    path = installed.state / service.LOCK
    path.touch()
    with path.open("rb") as lock:
        assert fs.lock(lock.fileno())
        for stdin in (subprocess.DEVNULL, lock):  # the second one has the lock open, as the service has
            victim = subprocess.Popen(["sleep", "100"], stdin=stdin)
            try:
                path.write_text(f"{victim.pid} {began_at(victim.pid):.0f}\n")
                os.chown(path, 65534, 65534)
                if stdin is lock:
                    with service._running(installed.state) as process:
                        assert process is not None
                else:
                    with (
                        pytest.raises(service.ServiceError, match="does not say"),
                        service._running(installed.state),
                    ):
                        pass
            finally:
                victim.kill()
                victim.wait()


def test_the_lock_is_one_and_is_signed(tmp_path: Path) -> None:
    lock = service.Lock(tmp_path / "state")
    lock.sign()
    assert (tmp_path / "state" / service.LOCK).read_text().startswith(f"{os.getpid()} ")
    with pytest.raises(Held, match=f"process {os.getpid()}"):
        service.Lock(tmp_path / "state")
    lock.close()
    assert not service.is_running(tmp_path / "state")


def test_who_only_looks_hinders_no_start(installed: Installed) -> None:
    installed.add("a")
    installed.state.mkdir()
    (installed.state / service.LOCK).touch()
    looking = threading.Event()

    def look() -> None:
        while not looking.wait(0.001):
            assert not service.is_running(installed.state)

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            service.Lock(installed.state).close()
    finally:
        looking.set()
        for thread in threads:
            thread.join()


@pytest.mark.needs("root")
def test_who_may_not_look_is_told_so(tmp_path: Path) -> None:
    state = tmp_path / "state"
    service.Lock(state).close()
    tmp_path.chmod(0o700)
    os.seteuid(65534)
    try:
        with pytest.raises(
            service.ServiceError, match="Permission denied; ask as the user of the service, or as root"
        ):
            service.is_running(state)
    finally:
        os.seteuid(0)


# -- deaths ------------------------------------------------------------------------------------------------


def test_a_killed_service_leaves_no_process_and_needs_no_hand(installed: Installed) -> None:
    installed.add("a")
    installed.start()
    before = (installed.pid, *installed.workers())
    os.kill(installed.pid, signal.SIGKILL)
    until(lambda: not set(before) & set(installed.strays()))
    assert installed.run("status").code == 1
    installed.put("a", "file")
    assert installed.start().code == 0
    until(lambda: installed.arrived("a") == {"file"})


def test_a_killed_worker_costs_nobody_else_anything(installed: Installed) -> None:
    installed.add("a")
    installed.add("b")
    installed.start()
    pid, other = installed.stream("a")["pid"], installed.stream("b")["pid"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: installed.stream("a")["pid"] not in (0, pid) and installed.stream("a")["state"] == "idle")
    installed.put("a", "file")
    until(lambda: installed.arrived("a") == {"file"})
    assert installed.stream("b")["pid"] == other


def test_a_stopped_worker_is_replaced(installed: Installed) -> None:
    installed.configure("hang_timeout = 2")
    installed.add("a")
    installed.start()
    pid = installed.stream("a")["pid"]
    os.kill(pid, signal.SIGSTOP)
    installed.put("a", "file")
    until(lambda: installed.arrived("a") == {"file"})
    assert installed.stream("a")["pid"] != pid
    assert "gave no sign of life" in installed.log


def test_a_spool_that_is_missing_is_said_and_waited_for(installed: Installed) -> None:
    installed.add("a")
    installed.spool("a").rmdir()
    installed.start()
    until(lambda: installed.stream("a")["state"] == "in trouble")
    status = installed.run("status")
    assert status.code == 1
    assert "the spool cannot be opened: No such file or directory" in status.out
    installed.put("a", "file")
    until(lambda: installed.arrived("a") == {"file"})
    until(lambda: installed.stream("a")["state"] == "idle")


def test_a_target_that_is_missing_is_said(installed: Installed) -> None:
    installed.add("a")
    installed.target("a").rmdir()
    installed.put("a", "file")
    installed.start()
    until(lambda: installed.stream("a")["state"] == "in trouble")
    assert installed.stream("a")["waiting"] == 1
    assert "no such directory" in installed.run("status").out


def test_what_is_set_aside_needs_a_person(installed: Installed) -> None:
    installed.add("a")
    (installed.target("a") / "file").write_bytes(b"another")
    installed.put("a", "file")
    installed.start()
    until(lambda: installed.stream("a")["quarantined"] == 1)
    status = installed.run("status", "a")
    assert status.code == 1
    assert "the target holds another file of that name" in status.out
    assert "mistamover quarantine list streams/a.ini" in status.out


@pytest.mark.parametrize("how", ["made anew", "moved away"])
def test_a_spool_that_is_replaced_is_found_again(installed: Installed, how: str) -> None:
    installed.add("a")
    installed.start()
    installed.put("a", "before")
    until(lambda: installed.arrived("a") == {"before"} and installed.left("a") == set())
    spool = installed.spool("a")
    spool.rename(installed.top / "old")
    spool.mkdir()
    if how == "made anew":
        shutil.rmtree(installed.top / "old")
    installed.put("a", "after")
    until(lambda: installed.arrived("a") == {"before", "after"})


@pytest.mark.needs("root")
def test_a_disk_that_is_mounted_over_the_spool_is_seen(installed: Installed) -> None:
    installed.add("a")
    installed.start()
    until(lambda: installed.stream("a")["state"] == "idle")
    subprocess.run(["mount", "-t", "tmpfs", "none", installed.spool("a")], check=True)
    try:
        (installed.spool("a") / "file").write_bytes(b"on the disk")
        until(lambda: installed.arrived("a") == {"file"})
        installed.run("stop")
    finally:
        subprocess.run(["umount", "--lazy", installed.spool("a")], check=True)


def test_a_spool_that_somebody_else_holds_is_said_at_once(installed: Installed) -> None:
    ini = installed.add("a")
    installed.add("b")
    other = installed.popen("run", str(ini))
    until(lambda: (installed.state / "a" / "ledger.sqlite").exists())
    try:
        result = installed.start()
        assert result.code == 1
        assert "a: held by another process: another mistamover moves from its spool" in result.out
        assert "1 of 2 streams up" in result.out
    finally:
        other.terminate()
        ended(other)
    installed.put("a", "file")
    until(lambda: installed.arrived("a") == {"file"})


def test_two_streams_with_one_spool_are_told_of_and_by_name(installed: Installed) -> None:
    installed.add("a")
    for name, outgoing in (("b", ""), ("c", "transfer_mode = mirror")):
        ini = installed.add(name, outgoing)
        ini.write_text(ini.read_text().replace(str(installed.spool(name)), str(installed.spool("a"))))
    checked = installed.run("check")
    assert checked.code == 1
    assert [line for line in checked.lines if line.startswith("fail")] == [
        f"fail  spool {installed.spool('a')}: streams/a.ini and streams/b.ini both move from it; "
        "only one can run: give each a spool of its own"
    ]
    started = installed.start()
    assert started.code == 1
    held, other = ("b", "a") if "b: held" in started.out else ("a", "b")
    assert f"{held}: held by another process: the stream {other} moves from its spool; give each" in started.out
    until(
        lambda: f"(process {installed.stream(other)['pid']}, mistamover: stream {other}); let it" in installed.log
    )


def test_a_parent_that_ignored_the_ends_of_its_children_hurts_nobody(installed: Installed) -> None:
    installed.add("a")
    ignoring = "import os, signal, sys; signal.signal(17, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    start = [str(ROOT / "bin" / "mistamover"), "start", "--config", str(installed.ini)]
    subprocess.run([sys.executable, "-c", ignoring, *start], check=True, capture_output=True, timeout=30)
    installed.note()
    pid = installed.stream("a")["pid"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: installed.stream("a")["pid"] not in (0, pid))


def test_interrupts_of_the_terminal_are_the_supervisors_to_answer(installed: Installed) -> None:
    installed.add("a")
    installed.start()
    pid = installed.stream("a")["pid"]
    for _ in range(2):
        os.kill(pid, signal.SIGINT)
    installed.put("a", "file")
    until(lambda: installed.arrived("a") == {"file"})
    assert installed.stream("a")["pid"] == pid


@pytest.mark.parametrize("closed", ["<&-", "<&- >&- 2>&-"])
def test_it_starts_where_standard_streams_are_closed(installed: Installed, closed: str) -> None:
    installed.add("a")
    start = f"{ROOT}/bin/mistamover start --config {installed.ini} {closed}"
    assert subprocess.run(["sh", "-c", start], timeout=30, check=False).returncode == 0
    installed.note()
    assert installed.run("stop").out == "stopped\n"


def test_what_a_worker_says_holds_no_secret(installed: Installed, tmp_path: Path) -> None:
    """A server that repeats the password in its refusal."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def serve() -> None:
            with suppress(OSError):
                while True:
                    peer, _ = server.accept()
                    with peer, peer.makefile("rwb") as file:
                        file.write(b"220 hello\r\n")
                        file.flush()
                        for line in file:
                            known = line.startswith(b"PASS")
                            file.write(b"530 no, not " + line[5:] if known else b"331 and?\r\n")
                            file.flush()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        installed.add(
            "a",
            "transfer_protocol = ftp\ntarget_host = 127.0.0.1",
            f"[ftp]\nport = {port}\nusername = u\npassword = xyzzy-canary",
        )
        installed.put("a", "file")
        installed.start()
        until(lambda: installed.stream("a")["state"] == "in trouble")
        assert "not ***" in installed.stream("a")["why"]
        told = [path.read_text() for path in installed.state.rglob("*.json")]
        assert "xyzzy-canary" not in "".join([*told, installed.run("status").out, installed.log])
        installed.run("stop")
        server.close()


def test_what_a_start_needs_is_not_needed_to_look_or_to_stop(installed: Installed) -> None:
    logs = installed.top / "logs"
    logs.mkdir()
    installed.configure(f"[logging]\nbase_log_dir = {logs}")
    installed.add("a")
    installed.start()
    shutil.rmtree(logs)
    assert installed.run("status").code == 0
    assert installed.run("stop").out == "stopped\n"
    assert installed.run("start").code == 2


def test_three_restarts_at_once_leave_one_service(installed: Installed) -> None:
    """Each may stop what another has just started, or find it running; none waits for the wrong one to end."""
    installed.add("a")
    installed.start()
    results = [ended(one) for one in [installed.popen("restart") for _ in range(3)]]
    installed.note()
    said = "".join(result.err for result in results)
    assert {result.code for result in results} <= {0, 1, 4}, said
    assert "cannot be ended" not in said
    assert installed.status()["running"]


# -- held, paused, ended -----------------------------------------------------------------------------------


def test_a_stream_is_held_by_its_file(installed: Installed) -> None:
    installed.add("a", data_stream="status = STOPPED")
    installed.put("a", "file")
    assert installed.start().code == 0
    assert installed.stream("a")["state"] == "stopped"
    assert installed.left("a") == {"file"}
    installed.add("a")
    assert installed.run("reload").code == 0
    until(lambda: installed.arrived("a") == {"file"})


def test_a_stream_ends_with_its_last_file(installed: Installed) -> None:
    installed.add("a", data_stream="completion_file = last")
    installed.start()
    installed.put("a", "first")
    installed.put("a", "last")
    until(lambda: installed.stream("a")["state"] == "complete")
    assert installed.arrived("a") == {"first", "last"}
    assert installed.run("status").code == 0


def test_pause_and_resume(installed: Installed) -> None:
    installed.add("a")
    installed.start()
    paused = installed.run("pause", "a", "--reason", "new disks")
    assert (paused.code, paused.out) == (0, f"paused, by {installed.spool('a')}/.stop\n")
    until(lambda: installed.stream("a")["state"] == "paused")
    installed.put("a", "file")
    status = installed.run("status")
    assert status.code == 0
    assert "new disks" in status.out
    assert installed.run("pause", "a").out.startswith("paused already")
    assert installed.arrived("a") == set()
    assert installed.run("resume", "a").code == 0
    until(lambda: installed.arrived("a") == {"file"})
    assert installed.run("resume", "a").out == "it was not paused\n"
    unknown = installed.run("pause", "b")
    assert unknown.code == 2
    assert "there are a" in unknown.err


def test_a_stream_is_paused_by_the_name_that_status_shows(installed: Installed) -> None:
    installed.add("file", data_stream="name = images")
    installed.start()
    assert installed.run("pause", "images").code == 0
    assert (installed.spool("file") / ".stop").exists()


@pytest.mark.needs("root")
def test_a_pause_on_a_full_disk_is_one(installed: Installed) -> None:
    ini = installed.add("a")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", installed.spool("a")], check=True)
    try:
        with suppress(OSError), (installed.spool("a") / "all").open("wb") as file:
            file.write(bytes(2**20))
        result = installed.run("pause", str(ini), "--reason", "x" * 5000)
        assert result.code == 0
        assert "paused, by " in result.out
    finally:
        subprocess.run(["umount", "--lazy", installed.spool("a")], check=True)


# -- in the foreground -------------------------------------------------------------------------------------


def test_it_tells_systemd_how_it_is(installed: Installed, tmp_path: Path) -> None:
    installed.add("a")
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(20)

        def told(what: str) -> str:
            while not (message := manager.recv(4096).decode()).startswith(what):
                continue
            return message

        process = installed.popen(
            "start", "--foreground", env={"NOTIFY_SOCKET": str(address), "WATCHDOG_USEC": "600000"}
        )
        assert told("STATUS=") == "STATUS=1 stream"
        told("READY=1")
        installed.note()
        told("WATCHDOG=1")
        process.send_signal(signal.SIGHUP)
        assert "MONOTONIC_USEC=" in told("RELOADING=1")
        told("READY=1")
        process.send_signal(signal.SIGTERM)
        told("STOPPING=1")
    result = ended(process)
    assert result.code == 0
    assert "1 of 1 streams up" in result.out.replace("stream up", "streams up")
    assert "INFO stops" in result.err
    assert "INFO stream a: moves" in result.err
    assert installed.strays() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_in_the_middle_of_a_start(installed: Installed, number: signal.Signals) -> None:
    """Whatever comes whenever: no process stays that nobody knows, and the next start needs no hand."""
    for name in "abcdefgh":
        installed.add(name)
        installed.put(name, "file")
    choose = random.Random(7)
    for _ in range(6):
        process = installed.popen("start", "--foreground")
        time.sleep(choose.uniform(0.0, 0.9))  # no condition: the moment is what is tried
        installed.note()
        process.send_signal(number)
        time.sleep(choose.uniform(0.0, 0.1))
        process.send_signal(signal.SIGTERM)
        ended(process)
        until(lambda: installed.strays() == [])
    assert installed.start().code == 0
    until(lambda: all(installed.arrived(name) == {"file"} for name in "abcdefgh"))
    assert installed.run("stop").code == 0


# -- clocks ------------------------------------------------------------------------------------------------


@pytest.mark.needs("faketime")
@pytest.mark.parametrize("jump", ["+1y", "-1y"])
def test_a_clock_that_is_set_by_a_year(installed: Installed, jump: str) -> None:
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    clock = installed.top / "clock"
    clock.write_text("+0")
    env = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    installed.add("a")
    (installed.target("a") / "refused").write_bytes(b"another")
    assert installed.start(env=env).code == 0
    installed.put("a", "before")
    until(lambda: installed.arrived("a") == {"before", "refused"})
    pid = installed.stream("a")["pid"]
    clock.write_text(jump)
    installed.put("a", "after")
    until(lambda: installed.arrived("a") == {"before", "after", "refused"})
    until(lambda: installed.left("a") == set())
    assert installed.stream("a")["pid"] == pid
    assert installed.log.count("moved: before") == 1
    stopped = installed.run("stop")
    assert stopped.code == 0


def test_the_launcher_of_a_checkout_starts_it(installed: Installed) -> None:
    installed.add("a")
    launcher = [str(ROOT / "bin" / "mistamover"), "start", "--config", str(installed.ini)]
    done = subprocess.run(launcher, capture_output=True, timeout=30, check=False)
    installed.note()
    assert done.returncode == 0, done.stderr
    assert installed.run("stop").out == "stopped\n"
