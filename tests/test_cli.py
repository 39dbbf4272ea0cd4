"""The program as a person meets it: real processes on real streams."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

import mistamover
from mistamover import config
from mistamover.cli import _mistamover
from mistamover.cli.check import _spool as look_at_spool
from mistamover.cli.display import show_table
from mistamover.cli.status import table_of
from mistamover.errors import Exit
from mistamover.transports.contract import Level
from tests import program
from tests.program import DEADLINE, Local, command, ended, environment, tree
from tests.sshd import Sshd, wait_for

HOSTILE = (b"new\nline", b"\x1b[31mred", b"latin1 \xe9", b"-rf", b"$(touch x)", b"%s", "Größe 数据".encode())
SHOWN = (r"new\nline", r"\x1b[31mred", r"latin1 \xe9", "-rf", "$(touch x)", "%s", "Größe 数据")
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (DEBUG|INFO|WARNING|ERROR) stream x: ")


@pytest.fixture
def local(tmp_path: Path) -> Local:
    return Local(tmp_path)


def objects(out: str) -> list[dict[str, Any]]:
    assert out.isascii()
    return [json.loads(line) for line in out.splitlines()]


# -- run ---------------------------------------------------------------------------------------------------


def test_a_move_delivers_and_removes(local: Local) -> None:
    local.put("a/b/one.dat", b"1" * 1000)
    local.put("two with a blank")
    local.put("empty", b"")
    result = local.once()
    assert (result.code, local.names(local.spool)) == (0, set())
    assert (local.target / "a/b/one.dat").read_bytes() == b"1" * 1000
    assert local.names(local.target) == {"a/b/one.dat", "two with a blank", "empty"}
    assert re.fullmatch(
        r"moved 3 files, 1010 bytes|moved 3 files, 0\.986 KiB in \S+ s \(.*/s\), each proven by reading it back\n",
        result.out,
    )
    assert all(LOG_LINE.match(line) for line in result.err.splitlines())
    assert local.once().out == "nothing to do\n"


def test_a_mirror_keeps_and_sends_what_changed(local: Local) -> None:
    local.configure("transfer_mode = mirror")
    local.put("a", b"old")
    local.put("b")
    assert local.once().out.startswith("mirrored 2 files, ")
    before = tree(local.spool)
    assert local.once().out == "nothing to do\n"
    assert tree(local.spool) == before
    local.put("a", b"newer")
    assert local.once().out.startswith("mirrored 1 file, 5 bytes in ")
    assert (local.target / "a").read_bytes() == b"newer"


@pytest.mark.parametrize("mode", ["move", "mirror"])
def test_a_dry_run_touches_nothing(local: Local, mode: str) -> None:
    local.configure(f"transfer_mode = {mode}")
    for name in HOSTILE:
        local.put(name, b"12345")
    (local.spool / "link").symlink_to("/etc/passwd")
    os.mkfifo(local.spool / "fifo")
    local.put("half.part")
    before = tree(local.top)
    result = local.once("--dry-run")
    assert tree(local.top) == before
    assert not local.state.exists()
    assert result.code == 0
    assert set(result.lines[:-1]) == {
        *(f"would send: {name}: 5 bytes" for name in SHOWN),
        "skipped: link: is a symbolic link",
        "skipped: fifo: is a FIFO",
        "skipped: half.part: its name is ignored",
    }
    assert result.lines[-1] == "would send 7 files, 35 bytes; 3 skipped"
    assert result.err == ""


def test_a_dry_run_tells_why_units_are_left(local: Local) -> None:
    local.configure("transfer_mode = mirror")
    local.put("same")
    local.once()
    local.configure("transfer_mode = mirror", settle="1h")
    local.put("young")
    (local.spool / ".stop").touch()
    before = tree(local.top)
    result = local.once("--dry-run")
    assert tree(local.top) == before
    assert result.lines[0].startswith("paused: paused by")
    assert "unchanged: same: 10 bytes: mirrored before, unchanged since" in result.lines
    assert any(line.startswith("would wait for: young: 10 bytes: ") for line in result.lines)


def test_a_dry_run_as_json(local: Local) -> None:
    local.put(b"a\xff")
    result = local.once("--dry-run", "--json")
    unit, summary = objects(result.out)
    assert (unit["event"], os.fsencode(unit["path"])) == ("would-send", b"a\xff")
    assert (summary["event"], summary["would-send"], summary["exit"]) == ("summary", 1, 0)
    assert local.names(local.target) == set()


def test_json_lines_add_up(local: Local) -> None:
    contents = {os.fsdecode(name): bytes([number]) * 100 * number for number, name in enumerate(HOSTILE)}
    for name, content in contents.items():
        local.put(name, content)
    local.put("taken", b"ours")
    local.put("taken", b"theirs", at=local.target)
    result = local.once("--json")
    *events, summary = objects(result.out)
    delivered = {event["path"]: event for event in events if event["event"] == "delivered"}
    assert delivered.keys() == contents.keys()
    for name, content in contents.items():
        assert delivered[name]["bytes"] == len(content)
        assert delivered[name]["digest"] == hashlib.sha256(content).hexdigest()
        assert (delivered[name]["algorithm"], delivered[name]["proof"]) == ("sha256", "readback")
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", delivered[name]["time"])
    quarantined = [event for event in events if event["event"] == "quarantined"]
    assert [event["path"] for event in quarantined] == ["taken"]
    assert "another file of that name" in quarantined[0]["reason"]
    assert summary["bytes"] == sum(map(len, contents.values()))
    assert summary["delivered"] == summary["removed"] == summary["proofs"]["readback"] == len(contents)
    assert (summary["quarantined"], summary["exit"], result.code) == (1, 1, 1)
    assert {frozenset(event) for event in events} == {
        frozenset({"event", "path", "bytes", "digest", "algorithm", "proof", "reason", "time"})
    }


def test_what_was_skipped_is_told_in_brief(local: Local) -> None:
    (local.spool / "link").symlink_to("nowhere")
    os.mkfifo(local.spool / "fifo")
    for number in range(5):
        local.put(f"{number}.tmp")
    local.put("a")
    for result in (local.once(), local.once()):  # by the second time there is a .mistamover as well
        line = result.lines[-1]
        assert "; skipped 7 (5 ignored by name, " in line
        assert "1 is a FIFO" in line
        assert "1 is a symbolic link" in line
        assert result.err.count("skipped: fifo: is a FIFO") == 1
        assert ".tmp" not in result.err
        assert ".mistamover" not in result.out + result.err


@pytest.mark.parametrize(("option", "lines"), [("-q", 0), ("-v", 2)])
def test_quiet_and_verbose(local: Local, option: str, lines: int) -> None:
    local.put("a")
    local.put("b")
    result = local.once(option)
    assert result.code == 0
    assert (
        len(
            re.findall(
                "moved: [ab]: bytes=10 .* digest=sha256:[0-9a-f]{64} proof=readback target=local:", result.err
            )
        )
        == lines
    )
    assert result.err.count(" INFO stream x: moved: ") == lines, "of the level that it has in the log"
    if option == "-q":
        assert result.out + result.err == ""


def test_a_failure_is_shown_even_if_quiet(local: Local) -> None:
    local.put("a", b"ours")
    local.put("a", b"theirs", at=local.target)
    result = local.once("-q")
    assert (result.code, result.out) == (1, "")
    assert re.fullmatch(LOG_LINE.pattern + r"in quarantine: a: the target holds another file .*\n", result.err)


def test_every_unit_is_in_the_log_file(local: Local) -> None:
    local.configure(more=f"[logging]\nbase_log_dir = {local.top}")
    for name in HOSTILE:
        local.put(name)
    assert local.once().code == 0
    lines = (local.top / "x.log").read_text().splitlines()
    assert all(LOG_LINE.match(line) for line in lines)
    delivered = {line.split("moved: ")[1].rpartition(": bytes=10 ")[0] for line in lines if "moved: " in line}
    assert delivered == set(SHOWN)
    assert lines[-1].endswith("each proven by reading it back")


def test_a_full_log_stops_nothing(local: Local) -> None:
    local.configure(more=f"[logging]\nbase_log_dir = {local.top}")
    (local.top / "x.log").symlink_to("/dev/full")
    for number in range(1200):
        local.put(f"{number}")
    result = local.once()
    assert (result.code, len(local.names(local.target))) == (0, 1200)
    assert result.err.count("the log cannot be written: No space left on device") == 1


@pytest.mark.parametrize("arguments", [[], ["--json"], ["-v"]])
def test_output_that_nobody_can_take_stops_nothing(local: Local, arguments: list[str]) -> None:
    for number in range(600):
        local.put(f"{number}")
    full = os.open("/dev/full", os.O_WRONLY)
    process = local.start("run", "--once", *arguments, local.ini, stdout=full, stderr=full)
    os.close(full)
    assert ended(process).code == 0
    assert len(local.names(local.target)) == 600


def test_closed_standard_streams_are_no_files_of_ours(local: Local) -> None:
    local.put("a")
    closing = f"exec 0<&- 1>&- 2>&-; exec {sys.executable} -P -m mistamover run --once -v {local.ini}"
    done = subprocess.run(["sh", "-c", closing], env=environment(local.top), check=False)
    assert done.returncode == 0
    assert (local.target / "a").read_bytes() == b"some bytes"


def test_a_reader_that_has_enough_is_no_error(local: Local) -> None:
    for number in range(3000):
        local.put(f"a-file-with-a-rather-long-name-so-that-a-pipe-fills-{number}", b"")
    local.once("-q")
    process = local.start("history", "--limit", "0", local.ini)
    assert process.stdout is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait(DEADLINE) == 0


@pytest.mark.parametrize("rows", [1, 300])
def test_output_that_cannot_be_written_is_said_in_one_line(local: Local, rows: int) -> None:
    for number in range(rows):
        local.put(f"a-file-with-a-rather-long-name-{number}", b"")
    local.once("-q")
    with open("/dev/full", "w") as full:
        result = ended(local.start("history", local.ini, stdout=full.fileno()))
    assert (result.code, result.err) == (1, "mistamover: cannot write the output: No space left on device\n")


# -- exit codes --------------------------------------------------------------------------------------------


def test_a_refused_unit_is_1_and_says_where_to_look(local: Local) -> None:
    local.put("a", b"ours")
    local.put("a", b"theirs", at=local.target)
    local.put("b")
    result = local.once()
    assert result.code == 1
    assert result.out.startswith("moved 1 file, ")
    assert result.out.endswith("; 1 in quarantine: mistamover quarantine list x.ini\n")
    assert (local.target / "a").read_bytes() == b"theirs"


def test_what_the_record_does_not_know_is_not_looked_for_there(local: Local) -> None:
    local.ini.write_text(local.ini.read_text().replace("settle_time", "transfer_unit = directory\nsettle_time"))
    local.put("a")
    result = local.once()
    assert (result.code, result.out) == (1, "1 waiting\n")
    assert "a: is a file, and units are directories" in result.err


@pytest.mark.parametrize(
    ("arguments", "finding"),
    [
        (["run", "none.ini"], "mistamover: none.ini:1: cannot be read"),
        (["check", "none.ini"], "mistamover: none.ini:1: cannot be read"),
        (["history", "none.ini"], "mistamover: none.ini:1: cannot be read"),
        (["quarantine", "list", "none.ini"], "mistamover: none.ini:1: cannot be read"),
        (["run", "--once", "--config", "none.ini", "x.ini"], "mistamover: none.ini:1: cannot be read"),
        (["run"], "mistamover: missing argument 'STREAM.ini'; mistamover run --help shows how"),
        (["run", "-v", "-q", "x.ini"], "mistamover: -v and -q exclude each other; mistamover run --help shows how"),
        (["run", "--faster", "x.ini"], "mistamover: no such option"),
        (["fly"], "mistamover: no such command 'fly'"),
        (["history", "--since", "soon", "x.ini"], "give a span"),
        (["quarantine", "release", "x.ini"], "mistamover: give PATHs or numbers, or --all"),
        (
            ["quarantine", "show", "x.ini", "a"],
            "mistamover: a is not in quarantine; mistamover quarantine list shows what is",
        ),
    ],
)
def test_usage_and_configuration_are_2(local: Local, arguments: list[str], finding: str) -> None:
    result = local.run(*arguments)
    assert result.code == 2
    assert finding in result.err
    assert result.err.count("\n") == 1


def test_all_findings_are_told_each_on_its_line(local: Local) -> None:
    local.ini.write_text("[outgoing]\nlans = 3\ntransfer_protocol = pigeon\n")
    result = local.once()
    lines = result.err.splitlines()
    assert result.code == 2
    assert len(lines) == 4
    assert all(re.match(r"mistamover: x\.ini:\d+: |mistamover: /.*x\.ini:\d+: ", line) for line in lines)
    assert not local.state.exists()


def test_a_missing_target_is_3(local: Local) -> None:
    local.put("a")
    local.target.rmdir()
    result = local.once()
    assert (result.code, local.names(local.spool)) == (3, {"a"})
    assert "no such directory; mount or make it" in result.err
    assert result.out == "1 of 1 file not delivered\n"
    assert not local.target.exists()


def test_a_spool_that_is_gone_is_1(local: Local) -> None:
    local.spool.rmdir()
    result = local.once()
    assert result.code == 1
    assert f"mistamover: {local.spool}: the spool cannot be opened: No such file or directory\n" in result.err


def test_a_stream_that_is_held_is_4(local: Local) -> None:
    local.put("a")
    polling = local.start("run", local.ini)
    try:
        wait_for(lambda: (local.target / "a").exists(), "the first unit")
        assert local.once().code == 4
        assert "another mistamover runs this stream" in local.once().err
    finally:
        polling.terminate()
        ended(polling)
    assert local.once().code == 0


def test_a_stop_file_is_5(local: Local) -> None:
    local.put("a")
    (local.spool / ".stop").touch()
    result = local.once()
    assert (result.code, local.names(local.target)) == (5, set())
    assert "; remove it to go on" in result.err
    (local.spool / ".stop").unlink()
    (local.target / ".stop").touch()
    assert local.once().code == 5
    (local.target / ".stop").unlink()
    assert local.once().code == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_polling_run_ends_by_a_signal(local: Local, number: int, code: int) -> None:
    polling = local.start("run", local.ini)
    for name in ("a", "b"):
        local.put(name)
        wait_for(lambda name=name: (local.target / name).exists(), "the unit")  # type: ignore[misc]
    wait_for(lambda: not local.names(local.spool), "the removal")
    polling.send_signal(number)
    result = ended(polling)
    assert result.code == code
    assert result.out.startswith("moved 2 files, 20 bytes in ")
    assert "Traceback" not in result.err


def test_term_ends_a_polling_run_with_the_code_of_how_things_stand(local: Local) -> None:
    local.put("a", b"ours")
    local.put("a", b"theirs", at=local.target)
    polling = local.start("run", "--json", local.ini)
    wait_for(lambda: not local.names(local.spool), "the unit to be set aside")
    local.put("b")
    wait_for(lambda: (local.target / "b").exists(), "another pass")
    polling.terminate()
    result = ended(polling)
    assert (result.code, objects(result.out)[-1]["exit"]) == (1, 1)


def test_term_parks_what_a_polling_run_has_on_its_way_and_that_is_no_fault(local: Local) -> None:
    local.configure("stop_timeout = 0")
    big, length = put_long(local)
    process = local.start("run", local.ini)
    wait_for(lambda: any(path.stat().st_size for path in staged(local)), "the first bytes")
    process.terminate()
    result = ended(process)
    assert (result.code, result.out) == (0, "1 of 1 file not delivered\n")
    assert big.stat().st_size == length
    assert (local.names(local.target), staged(local)) == (set(), [])


@pytest.mark.parametrize("at_target", [False, True], ids=["spool", "target"])
def test_a_polling_run_says_when_it_goes_on(local: Local, at_target: bool) -> None:
    local.configure("stop_file_poll_interval = 0.05")
    stop = (local.target if at_target else local.spool) / ".stop"
    stop.touch()
    local.put("a")
    with (local.top / "log").open("wb") as log:
        polling = local.start("run", local.ini, stderr=log.fileno())
    text = (local.top / "log").read_text
    for number in (1, 2):
        wait_for(lambda number=number: text().count("paused by") == number, "the pause")  # type: ignore[misc]
        stop.unlink()
        wait_for(lambda number=number: text().count(": goes on\n") == number, "the line")  # type: ignore[misc]
        wait_for(lambda number=number: text().count("moved 1 file, ") == number, "the unit")  # type: ignore[misc]
        stop.touch()
        local.put("b")
    polling.terminate()
    assert ended(polling).code in (0, 5)
    said = [line.partition("stream x: ")[2] for line in text().splitlines()]
    assert said[2] == "goes on", "it is said before what follows from it"
    assert said[3].startswith("moved 1 file, ")


def put_long(local: Local) -> tuple[Path, int]:
    """A sparse file that takes longer to copy than these tests take, for which the target has room; its bytes."""
    found = os.statvfs(local.target)
    length = min(64 * 2**30, found.f_bavail * found.f_frsize // 2)
    path = local.put("big", b"")
    os.truncate(path, length)
    return path, length


def staged(local: Local) -> list[Path]:
    return [path for path in (local.target / ".mistamover").rglob("*") if path.is_file()]


def test_a_stop_parks_what_takes_too_long(local: Local) -> None:
    local.configure("stop_timeout = 0")
    big, length = put_long(local)
    process = local.start("run", "--once", local.ini)
    wait_for(lambda: any(path.stat().st_size for path in staged(local)), "the first bytes")
    process.terminate()
    result = ended(process)
    assert result.code == 130
    assert big.stat().st_size == length
    assert (local.names(local.target), staged(local)) == (set(), [])
    assert result.out == "1 of 1 file not delivered\n"


def test_a_second_signal_ends_at_once(local: Local) -> None:
    big, length = put_long(local)
    process = local.start("run", "--once", local.ini)
    wait_for(lambda: any(path.stat().st_size for path in staged(local)), "the first bytes")
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    result = ended(process)
    assert result.code == 130
    assert staged(local), "it waited for the file to be parked"
    assert big.stat().st_size == length
    big.unlink()
    local.put("small")
    assert local.once().code == 0
    assert staged(local) == []


# -- names, secrets, faults --------------------------------------------------------------------------------


def test_hostile_names_are_shown_on_one_line_everywhere(local: Local) -> None:
    for name in HOSTILE:
        local.put(name, b"ours")
        local.put(name, b"theirs", at=local.target)
    run = local.once("-v")
    assert run.code == 1
    lists = [local.run("history", local.ini), local.run("quarantine", "list", local.ini)]
    show = local.run("quarantine", "show", local.ini, *HOSTILE[:3], "--debug", "--", HOSTILE[3])
    for result in (run, *lists, show):
        text = result.out + result.err
        assert all(line.isprintable() for line in text.splitlines())
        assert {name for name in SHOWN if name in text} == set(SHOWN[: 4 if result is show else None])
    for listed in lists:
        assert len(listed.lines) == 1 + len(HOSTILE)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


@pytest.mark.parametrize("connector", ["paramiko", "auto"])
def test_a_secret_is_shown_nowhere(local: Local, connector: str) -> None:
    secret = "canary-4711"
    local.ini.write_text(
        f"[global]\nstate_dir = {local.state}\n"
        f"[data_stream]\ndirectory = {local.spool}\nsettle_time = 0\n"
        f"[outgoing]\ntransfer_protocol = sftp\ntarget_host = 127.0.0.1\n"
        f"target_dir = {local.target}\nretry_count = 1\n"
        f"[sftp]\nport = {free_port()}\nusername = nobody\npassword = {secret}\nconnector = {connector}\n"
        f"[logging]\nbase_log_dir = {local.top}\nlog_level = DEBUG\n"
    )
    local.ini.chmod(0o600)
    local.put("a")
    results = [
        local.once("-v", "--debug"),
        local.once("--json", "-v", "--debug"),
        local.run("check", "--connect", "--debug", local.ini),
        local.run("history", "--json", "--debug", local.ini),
    ]
    assert [result.code for result in results] == [3, 3, 3, 0]
    local.ini.chmod(0o644)
    results.append(local.once("--debug"))
    assert results[-1].code == 2
    texts = [text for result in results for text in (result.out, result.err)]
    texts += [path.read_text(errors="replace") for path in (local.top, local.state) for path in path.rglob("*.log")]
    assert len(texts) == 11
    assert not [text for text in texts if secret in text]


BROKEN = """
import sys
from mistamover import stream
def run_pass(self, *, patient):
    raise KeyError(f"{self.settings.sftp.password.get_secret_value()} is our own fault")
stream.Stream.run_pass = run_pass
from mistamover.cli import main
sys.exit(main())
"""


@pytest.mark.parametrize("debug", [False, True])
def test_a_fault_of_ours_is_one_line_without_debug(local: Local, debug: bool) -> None:
    local.configure(more=f"[logging]\nbase_log_dir = {local.top}\n[sftp]\npassword = canary-4711")
    local.ini.chmod(0o600)
    options = ["--debug"] if debug else []
    done = subprocess.run(
        [sys.executable, "-P", "-c", BROKEN, "run", "--once", "-q", *options, str(local.ini)],
        capture_output=True,
        text=True,
        check=False,
        env=environment(local.top),
    )
    assert done.returncode == 1
    assert ("Traceback" in done.stderr) == debug
    assert "canary" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("mistamover: KeyError: '*** is our own fault'")
    assert debug or len(done.stderr.splitlines()) == 1
    logged = (local.top / "x.log").read_text()
    assert "Traceback" in logged
    assert "canary" not in logged


def test_debug_adds_the_traceback_of_an_error(local: Local) -> None:
    local.spool.rmdir()
    assert "Traceback" not in local.once().err
    assert "Traceback" in local.once("--debug").err


# -- record and quarantine ---------------------------------------------------------------------------------


def test_the_record(local: Local) -> None:
    assert local.run("history", local.ini).out.startswith("no record yet: ")
    local.put("a", b"ours")
    local.put("a", b"theirs", at=local.target)
    local.put("b", b"12345")
    local.once()
    whole = local.run("history", local.ini)
    digest = hashlib.sha256(b"12345").hexdigest()
    assert whole.lines[0].split() == ["when", "state", "size", "proof", "digest", "path", "reason"]
    assert sorted(line.split()[2] for line in whole.lines[1:]) == ["quarantined", "removed"]
    assert f"5 bytes  readback  {digest[:12]}  b" in whole.out
    assert digest in local.run("history", "-v", local.ini).out
    failed = local.run("history", "--failed", local.ini)
    assert len(failed.lines) == 2
    assert "the target holds another file of that name" in failed.lines[1]
    one = local.run("history", "--limit", "1", local.ini)
    assert (len(one.lines), one.err) == (2, "only the last 1; --limit 0 shows all\n")


def test_the_record_as_json(local: Local) -> None:
    local.put(b"a\xff", b"12345")
    local.once()
    (row,) = objects(local.run("history", "--json", local.ini).out)
    assert os.fsencode(row["path"]) == b"a\xff"
    assert (row["state"], row["bytes"], row["proof"], row["algorithm"]) == ("removed", 5, "readback", "sha256")
    assert row["digest"] == hashlib.sha256(b"12345").hexdigest()
    assert row["target"] == f"local://{local.target}"


@pytest.mark.parametrize("width", [80, 40])
def test_a_narrow_terminal_shows_whole_paths_digests_and_reasons(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    heads = ("when", "state", "size", "proof", "digest", "path", "reason")
    path, digest, reason = "2026/weather-of-数据.txt", "5dd1" * 16, f"the target {'does not take it ' * 5}today"
    row = ("2026-11-23 21:51:04", "quarantined", "10 bytes", "readback", digest, path, reason)
    show_table(heads, [row, (*row[:4], digest[:12], path, "")], right="size")
    lines = capsys.readouterr().out.splitlines()
    assert all(cell_len(line) <= width for line in lines)
    assert [line.strip() for line in lines].count(path) == 2
    assert digest in "".join(map(str.strip, lines))
    assert reason in " ".join(map(str.strip, lines))
    assert sum(line.startswith("2026-11-23 21:51:04  quarantined") for line in lines) == 2


def test_a_table_that_a_terminal_has_room_for_is_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    show_table(("number", "path", "reason"), [("12", "north/a.dat", "it is too long")], right="number")
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        "number  path         reason",
        "    12  north/a.dat  it is too long",
    ]


def test_since(local: Local) -> None:
    local.put("a")
    local.once()
    tomorrow = time.strftime("%Y-%m-%dT%H:%M", time.localtime(time.time() + 86400))
    for when, rows in (("1h", 1), ("2d", 1), ("2020-01-31", 1), ("2020-01-31T10:00", 1), (tomorrow, 0), ("0s", 0)):
        assert len(local.run("history", "--json", "--since", when, local.ini).lines) == rows, when
    assert local.run("history", "--since", tomorrow, local.ini).out == "nothing in that time\n"
    assert local.run("history", "--failed", local.ini).out == "nothing waits or is in quarantine\n"


@pytest.fixture
def refused(local: Local) -> Local:
    """A stream with two units in quarantine, whose names at the target are other files'."""
    for name in ("north/a", "b"):
        local.put(name, b"ours")
        local.put(name, b"theirs", at=local.target)
    assert local.once().code == 1
    return local


def numbers(local: Local) -> dict[str, str]:
    rows = [line.split() for line in local.run("quarantine", "list", local.ini).lines[1:]]
    return {row[3]: row[0] for row in rows}


def test_quarantine_is_listed_and_shown(refused: Local) -> None:
    assert numbers(refused).keys() == {"north/a", "b"}
    shown = refused.run("quarantine", "show", refused.ini, "north/a")
    fields = dict(line.split(":", 1) for line in shown.lines)
    place = Path(fields["lies in"].strip())
    assert place == refused.spool / ".mistamover/quarantine" / numbers(refused)["north/a"] / "a"
    assert place.read_bytes() == b"ours"
    assert fields["digest"].strip() == f"sha256:{hashlib.sha256(b'ours').hexdigest()}"
    assert fields["attempts"].strip() == "1"
    assert fields["reason"].strip().startswith("the target holds another file")
    assert refused.run("quarantine", "show", refused.ini, numbers(refused)["north/a"]).out == shown.out


def test_a_released_unit_is_delivered(refused: Local) -> None:
    (refused.target / "north/a").unlink()
    released = refused.run("quarantine", "release", refused.ini, numbers(refused)["north/a"])
    assert (released.code, released.out) == (0, "released: north/a\n")
    assert (refused.spool / "north/a").read_bytes() == b"ours"
    assert numbers(refused).keys() == {"b"}
    assert refused.once().code == 0
    assert (refused.target / "north/a").read_bytes() == b"ours"


def test_all_are_released(refused: Local) -> None:
    assert refused.run("quarantine", "release", "--all", refused.ini).code == 0
    assert refused.names(refused.spool) == {"north/a", "b"}
    assert refused.run("quarantine", "list", refused.ini).out == "nothing is in quarantine\n"


def test_what_was_set_aside_at_its_arrival_is_shown_and_not_released(local: Local) -> None:
    arrivals = local.top / "arrivals"
    arrivals.mkdir()
    local.configure(more=f"[incoming]\nrequire_arrival_monitor = yes\ndirectory = {arrivals}\n")
    place = local.spool / ".mistamover/quarantine/arrival-4f"
    local.put("radar.dat", b"echoes", at=place)
    local.put(".reason", b"radar.dat\nits digest is another", at=place)
    assert "arrival-4f" in local.run("quarantine", "list", local.ini).out
    shown = local.run("quarantine", "show", local.ini, "arrival-4f")
    assert (shown.code, shown.err) == (0, "")
    assert {f"lies in:   {place}/radar.dat", "reason:    its digest is another"} <= set(shown.lines)
    released = local.run("quarantine", "release", local.ini, "arrival-4f")
    assert released.code == 2
    assert released.err.startswith("mistamover: arrival-4f: was never proven; have its sender send it again, ")
    assert local.run("quarantine", "release", local.ini, "--all").out.endswith("that could be released\n")
    assert local.once().code == 0
    assert local.run("history", local.ini).out.endswith("; of what arrived the log tells\n")
    assert (place / "radar.dat").read_bytes() == b"echoes"


def test_a_taken_name_keeps_the_unit_in_quarantine(refused: Local) -> None:
    refused.put("b", b"a newer one")
    released = refused.run("quarantine", "release", "--all", refused.ini)
    assert released.code == 1
    assert "mistamover: b: the spool holds another file of that name; move it first\n" in released.err
    assert (refused.spool / "b").read_bytes() == b"a newer one"
    assert numbers(refused).keys() == {"b"}


def test_a_unit_that_was_taken_out_by_hand_is_forgotten(refused: Local) -> None:
    (refused.spool / ".mistamover/quarantine" / numbers(refused)["b"] / "b").unlink()
    assert "(not there any more)" in refused.run("quarantine", "show", refused.ini, "b").out
    released = refused.run("quarantine", "release", refused.ini, "b")
    assert (released.code, released.out) == (0, "forgotten: b does not lie in quarantine any more\n")
    assert numbers(refused).keys() == {"north/a"}


def test_nothing_is_released_while_the_stream_runs(refused: Local) -> None:
    polling = refused.start("run", refused.ini)
    try:
        refused.put("c")
        wait_for(lambda: (refused.target / "c").exists(), "a unit")
        released = refused.run("quarantine", "release", "--all", refused.ini)
    finally:
        polling.terminate()
        ended(polling)
    assert released.code == 4
    assert "let it end, or stop it" in released.err
    assert numbers(refused).keys() == {"north/a", "b"}


def test_quarantine_of_a_mirror_lies_in_the_spool(local: Local) -> None:
    local.configure("transfer_mode = mirror")
    local.put("a", b"ours")
    (local.target / "a").mkdir()
    assert local.once().code == 1
    before = tree(local.spool)
    assert f"lies in:   {local.spool}/a\n" in local.run("quarantine", "show", local.ini, "a").out
    (local.target / "a").rmdir()
    assert local.once().code == 1, "it is held until it is released"
    assert local.run("quarantine", "release", local.ini, "a").code == 0
    assert tree(local.spool) == before
    assert local.once().code == 0
    assert (local.target / "a").read_bytes() == b"ours"


# -- check -------------------------------------------------------------------------------------------------


def test_check_says_what_a_stream_does(local: Local) -> None:
    before = tree(local.top)
    result = local.run("check", local.ini)
    assert result.code == 0
    assert result.lines[0].startswith(f"ok: stream x moves {local.spool} to local://{local.target}, oldest first")
    assert f"ok    spool {local.spool} can be read and written" in result.lines
    assert tree(local.top) == before


def test_check_connects(local: Local) -> None:
    before = tree(local.target).keys()
    result = local.run("check", "--connect", local.ini)
    assert tree(local.target).keys() == before, "a look leaves nothing"
    assert result.code == 0
    assert "ok    proof: readback" in result.lines
    assert f"ok    {local.target} is writable" in result.lines


@pytest.mark.parametrize(("verify", "said"), [("none", "sent and not verified"), ("size", "its size alone")])
def test_what_is_not_verified_is_warned_of(local: Local, verify: str, said: str) -> None:
    local.configure(f"verify = {verify}")
    result = local.run("check", "--connect", local.ini)
    assert result.code == Exit.DONE
    assert said in result.out
    assert f"\nwarn  proof: {verify}: nobody looks at the bytes" in result.out


def test_a_spool_that_keeps_what_others_own_is_warned_of(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config.load(local.ini, environ={})
    local.spool.chmod(0o1777)
    assert look_at_spool(settings).level is Level.OK
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 12345)
    assert look_at_spool(settings).level is Level.WARN
    local.spool.chmod(0o777)
    assert look_at_spool(settings).level is Level.OK


def test_check_finds_a_missing_target_and_does_not_make_it(local: Local) -> None:
    local.target.rmdir()
    assert local.run("check", local.ini).code == 0
    result = local.run("check", "--connect", local.ini)
    assert result.code == 3
    assert result.lines[-1].startswith(f"fail  {local.target}: no such directory; mount or make it")
    assert not local.target.exists()


def test_check_finds_a_missing_spool(local: Local) -> None:
    local.spool.rmdir()
    for options in ([], ["--connect"]):
        result = local.run("check", *options, local.ini)
        assert result.code == 1
        assert f"fail  spool {local.spool}: no such directory; make or mount it" in result.lines


def test_check_warns_of_stop_files(local: Local) -> None:
    (local.spool / ".stop").touch()
    (local.target / ".stop").touch()
    result = local.run("check", "--connect", local.ini)
    assert result.code == 0
    assert len([line for line in result.lines if line.startswith("warn  paused by")]) == 2


@pytest.fixture
def no_global_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the program is installed and no service is: a checkout has a sample of one."""
    monkeypatch.setattr(config, "find_global", lambda explicit: explicit)


@pytest.mark.usefixtures("no_global_file")
def test_a_stream_that_no_service_runs_is_paused_by_its_file(local: Local) -> None:
    for what, is_paused in (("pause", True), ("resume", False)):
        assert _mistamover.main([what, str(local.ini)], standalone_mode=False) == 0
        assert (local.spool / ".stop").exists() == is_paused


@pytest.mark.usefixtures("no_global_file")
def test_the_alerts_of_a_stream_that_no_service_runs_are_tried_by_its_file(
    local: Local, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _mistamover.main(["alerts", "test", str(local.ini)], standalone_mode=False) == 1
    assert capsys.readouterr().out == "nobody is to be told; give [email] recipient\n"


def over_ssh(local: Local, sshd: Sshd, far: Path) -> None:
    local.ini.write_text(
        f"[global]\nstate_dir = {local.state}\n"
        f"[data_stream]\ndirectory = {local.spool}\nsettle_time = 0\n"
        f"[outgoing]\ntransfer_protocol = sftp\ntarget_host = {sshd.host}\ntarget_dir = {far}\n"
        f"[sftp]\nport = {sshd.port}\nusername = {sshd.username}\nkey_file = {sshd.key_file}\n"
        f"known_hosts = {sshd.known_hosts}\n"
    )


def test_another_host(local: Local, sshd: Sshd, far: Path) -> None:
    over_ssh(local, sshd, far)
    local.put("north/a", b"12345")
    checked = local.run("check", "--connect", local.ini)
    assert checked.code == 0, checked
    assert "ok    proof: digest" in checked.lines
    result = local.once()
    assert result.code == 0, result
    assert re.fullmatch(r"moved 1 file, 5 bytes in \S+ s \(.*/s\), proven by digest\n", result.out)
    assert (far / "north/a").read_bytes() == b"12345"


def test_another_host_without_the_directory(local: Local, sshd: Sshd, far: Path) -> None:
    over_ssh(local, sshd, far / "none")
    local.put("a")
    for result in (local.once(), local.run("check", "--connect", local.ini)):
        assert result.code == 3
        assert str(far / "none") in result.out + result.err
    assert local.names(local.spool) == {"a"}
    assert not (far / "none").exists()


# -- on a terminal -----------------------------------------------------------------------------------------


def on_a_terminal(local: Local, *arguments: str | Path) -> tuple[int, str]:
    """Run the program with a terminal for all of its streams; gives its exit code and what it drew."""
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(local.top)
        os.execve(sys.executable, [os.fspath(word) for word in command(*arguments)], environment(local.top))
    drawn = b""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                more = os.read(terminal, 65536)
            except OSError:  # the other side is closed
                break
            drawn += more
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), drawn.decode()


def test_a_terminal_shows_progress_with_failures_above(local: Local) -> None:
    local.configure(settle="4")
    local.put("a", b"1" * 1000)
    local.put("taken", b"ours")
    local.put("taken", b"theirs", at=local.target)
    code, drawn = on_a_terminal(local, "run", "--once", local.ini)
    assert code == 1
    for part in ("0 bytes of 0.98 KiB", "0 of 2 files", "lanes: ", "idle"):
        assert part in drawn
    failure = f"{LOG_LINE.pattern}in quarantine: taken: the target holds another file"
    assert re.search(rf"(\n|\r|\x1b\[\d*[A-Z]){failure}", drawn), "not on a line of its own"
    last = drawn.splitlines()[-1]
    assert "moved 1 file, 0.977 KiB in " in last
    assert drawn.endswith("\r\n")


def test_a_terminal_with_quiet_or_json_shows_no_progress(local: Local) -> None:
    for option in ("-q", "--json"):
        local.configure(settle="1")
        local.put("a")
        code, drawn = on_a_terminal(local, "run", "--once", option, local.ini)
        assert code == 0
        assert "lanes:" not in drawn


def test_a_terminal_shows_the_record_as_a_table(local: Local) -> None:
    local.put("[bold]a")
    local.once()
    code, drawn = on_a_terminal(local, "history", local.ini)
    assert code == 0
    assert "[bold]a" in drawn, "a name is no markup"
    assert "removed" in drawn


def test_a_terminal_of_80_columns_has_room_for_what_a_stream_does(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    piped = local.run("check", local.ini).lines
    spool, target = f"stream x moves {local.spool} to", f"local://{local.target}, oldest first,"
    assert piped[0].startswith(f"ok: {spool} {target} once a file")
    assert [line.split()[0] for line in piped] == ["ok:", "Each", "Another", "ok", "ok"]
    monkeypatch.setattr(program, "COLUMNS", 80)
    code, drawn = on_a_terminal(local, "check", local.ini)
    told, _, _ = drawn.partition("\r\nok    ")
    assert code == 0
    assert all(len(line) <= 80 or " " not in line.strip() for line in told.splitlines())
    assert " ".join(told.split()) == " ".join(" ".join(piped[:3]).split())


def test_the_status_leaves_out_what_says_nothing_and_fits_on_a_terminal() -> None:
    short = ("  images", "idle", "22:51:30", "0", "0", "", "", "", "", "")
    long = ("! radar", "broken configuration", "2026-11-23", "812, 3 GiB", "12,031, 4 GiB", "31 MiB/s", "3")
    assert table_of([short], 80) == [
        ["  stream  state  since     waiting  today"],
        ["  images  idle   22:51:30        0      0"],
    ]
    rows = [short, (*long, "12", "2026-11-23", "")]
    (head,), (first,), (second, more) = table_of(rows, 80)
    assert max(map(len, (head, first, second))) <= 80
    assert more == "rate 31 MiB/s, failed 3, quarantine 12, oldest 2026-11-23"
    assert [len(lines) for lines in table_of(rows, None)] == [1, 1, 1]
    assert "next try" not in table_of(rows, None)[0][0]


# -- the program itself ------------------------------------------------------------------------------------

COMMANDS = (
    ["run"],
    ["check"],
    ["history"],
    ["quarantine"],
    ["quarantine", "list"],
    ["quarantine", "show"],
    ["quarantine", "release"],
    ["completion"],
)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_shows_an_example_as_it_was_written(local: Local, words: list[str]) -> None:
    result = local.run(*words, "--help")
    assert result.code == 0
    assert re.search(rf"\n\n      (.*: +)?.*mistamover {' '.join(words)} ", result.out)
    assert local.run(*words, "-h").out == result.out


def test_help_lists_commands_and_exit_codes(local: Local) -> None:
    result = local.run("--help")
    assert all(f"\n  {words[0]} " in result.out for words in COMMANDS)
    codes = [int(code) for code in re.findall(r"^ {6}(\d+) ", result.out, re.MULTILINE)]
    assert codes == [0, 1, 2, 3, 4, 5, 130]


def imported(local: Local, *arguments: str | Path) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-P", "-X", "importtime", "-m", "mistamover", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment(local.top),
    )
    assert done.returncode == 0
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}


def test_only_what_is_needed_is_imported(local: Local) -> None:
    assert local.run("--version").out == f"mistamover {mistamover.__version__}\n"
    for option in ("--version", "--help"):
        modules = imported(local, option)
        assert "mistamover.cli" in modules
        assert not modules & {"rich", "paramiko", "pydantic", "logging", "mistamover.cli.run", "mistamover.config"}
    local.configure(settle="1")  # long enough for a display, if there were one
    local.put("a")
    modules = imported(local, "run", "--once", local.ini)
    assert "mistamover.stream" in modules
    assert not modules & {"rich", "paramiko", "psutil", "json", "asyncio", "logging.config", "logging.handlers"}


def test_shells_complete(local: Local) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "_MISTAMOVER_COMPLETE" in local.run("completion", shell).out
    done = subprocess.run(
        command(),
        capture_output=True,
        text=True,
        check=False,
        env=environment(local.top)
        | {"_MISTAMOVER_COMPLETE": "bash_complete", "COMP_WORDS": "mistamover quarantine rel", "COMP_CWORD": "2"},
    )
    assert done.stdout == "plain,release\n"


# -- mirrors and other people's files ----------------------------------------------------------------------


def test_a_mirror_replaces_what_it_delivered_and_nothing_else(local: Local) -> None:
    local.configure("transfer_mode = mirror")
    local.put("ours", b"first version")
    assert local.once().code == Exit.DONE
    local.put("ours", b"second version")
    local.put("theirs", b"of the mirror")
    local.put("theirs", b"of somebody else", at=local.target)
    result = local.once()
    assert result.code == Exit.UNFINISHED
    assert (local.target / "ours").read_bytes() == b"second version"
    assert (local.target / "theirs").read_bytes() == b"of somebody else"
    local.put("theirs", b"of the mirror, changed after it was refused")
    assert local.once().code == Exit.UNFINISHED
    assert (local.target / "theirs").read_bytes() == b"of somebody else"
    local.configure("transfer_mode = mirror\nexisting = replace")
    local.put("theirs", b"of the mirror, again")
    assert local.once().code == Exit.DONE
    assert (local.target / "theirs").read_bytes() == b"of the mirror, again"


def test_a_mirror_replaces_its_delivery_after_a_failure_too(local: Local) -> None:
    local.configure("transfer_mode = mirror\nretry_count = 9")
    local.put("ours", b"first version")
    assert local.once().code == Exit.DONE
    local.put("ours", b"second version").chmod(0o644)
    held = local.target / ".mistamover" / "x"
    held.rename(local.target / ".mistamover" / "aside")
    held.symlink_to("nowhere")
    assert local.once().code == Exit.TARGET
    held.unlink()
    assert local.run("run", "--once", "--now", local.ini).code == Exit.DONE
    assert (local.target / "ours").read_bytes() == b"second version"


@pytest.mark.needs("root")
def test_now_tries_what_waits_at_once(local: Local) -> None:
    local.configure("retry_interval = 1h")
    unit = local.put("unit")
    (local.spool / "sub").mkdir()
    nobody = local.target / "sub"
    nobody.mkdir()
    local.put("sub/unit")
    subprocess.run(["chattr", "+i", nobody], check=True)
    try:
        assert local.once().code == Exit.UNFINISHED
    finally:
        subprocess.run(["chattr", "-i", nobody], check=True)
    assert not unit.exists()
    assert local.once().code == Exit.UNFINISHED
    assert local.names(local.spool) == {"sub/unit"}
    assert local.run("run", "--once", "--now", local.ini).code == Exit.DONE
    assert local.names(local.target) == {"unit", "sub/unit"}
