"""What is written down: one line each, readable, without secrets; and nothing that fails stops a stream."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Self

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistamover import config, lines, log, log_file
from mistamover.lines import delivered, duration, one_line, redacted, safe, shown, size
from mistamover.log import Log, MainLog
from mistamover.log_file import LogFile
from mistamover.options import Settings
from mistamover.testing.needs import find
from mistamover.testing.rig import remount, small_disk
from tests.sshd import wait_for


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return made_settings(tmp_path)


def made_settings(top: Path, logging_: str = "") -> Settings:
    (top / "spool").mkdir(exist_ok=True)
    (top / "log").mkdir(exist_ok=True)
    (top / "x.ini").write_text(
        f"[global]\nstate_dir = {top}/state\n[data_stream]\ndirectory = {top}/spool\n"
        f"[outgoing]\ntransfer_protocol = local\ntarget_dir = {top}/target\n"
        f"[logging]\nbase_log_dir = {top}/log\n{logging_}\n"
    )
    return config.load(top / "x.ini", environ={})


def tell_unit(written: Log, path: str, **other: Any) -> None:
    written.unit(**UNIT | {"path": path} | other)


UNIT: dict[str, Any] = {
    "path": "north/a.dat",
    "size": 10240,
    "seconds": 0.5,
    "algorithm": "sha256",
    "digest": "5dd1",
    "proof": "digest",
    "target": "sftp://mover@archive.example.org/data/incoming",
    "attempt": 2,
    "unit": 4711,
}


@pytest.fixture
def secret() -> Iterator[str]:
    kept = list(lines._secrets)
    yield "open-sesame"
    lines._secrets[:] = kept


# -- names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"plain name.dat", "plain name.dat"),
        ("Größe/数据/ελ 🙂".encode(), "Größe/数据/ελ 🙂"),
        (b"a\nb", r"a\nb"),
        (b"a\\nb", r"a\\nb"),
        (b"\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        (b"\r\x00\x7f\t", r"\r\x00\x7f\t"),
        (b"latin1 \xe9", r"latin1 \xe9"),
        (b"half \xc3", r"half \xc3"),
        ("nbsp\u00a0".encode(), r"nbsp\u00a0"),
        ("csi\u009b".encode(), r"csi\u009b"),
        ("gpj.\u202etxt".encode(), r"gpj.\u202etxt"),
        ("line\u2028end".encode(), r"line\u2028end"),
    ],
)
def test_a_name_is_readable_and_on_one_line(name: bytes, text: str) -> None:
    assert shown(os.fsdecode(name)) == text


@given(st.binary(), st.binary())
def test_no_two_names_look_the_same_and_each_prints(one: bytes, other: bytes) -> None:
    names = [shown(os.fsdecode(name)) for name in (one, other)]
    assert (names[0] == names[1]) == (one == other)
    assert all(name.isprintable() for name in names)


@given(st.text())
def test_a_message_is_one_line_of_utf8(text: str) -> None:
    assert one_line(text).isprintable()
    assert len(one_line(text).encode().splitlines()) <= 1


# -- secrets -----------------------------------------------------------------------------------------------


def test_secrets_are_blotted_out(secret: str) -> None:
    lines.hide(secret)
    assert redacted(f"login {secret}: no") == "login ***: no"
    assert safe(f"a\n{secret}") == r"a\n***"


def test_a_secret_is_found_in_its_escaped_forms(secret: str) -> None:
    lines.hide(f"{secret}\\'é")
    for form in (f"{secret}\\'é", repr(f"{secret}\\'é"), ascii(f"{secret}\\'é")):
        assert secret not in redacted(form)


def test_the_longer_of_two_secrets_goes_whole(secret: str) -> None:
    lines.hide(secret)
    lines.hide(f"{secret}-2")
    assert redacted(f"{secret}-2") == "***"


def test_a_traceback_is_written_without_secrets_and_line_by_line(tmp_path: Path, secret: str) -> None:
    lines.hide(secret)
    with Log(made_settings(tmp_path), logging.CRITICAL) as written:
        try:
            raise ValueError(f"{secret}\n2026-11-23 20:49:19 INFO stream x: forged")
        except ValueError:
            written.fault("broke")
    text = (tmp_path / "log" / "x.log").read_text()
    assert secret not in text
    assert "ERROR stream x: broke" in text
    assert "ValueError: ***" in text
    assert not [line for line in text.splitlines()[1:] if not line.startswith("  ")], "a forged line"


NASTY = b'a\n2026-11-23 20:49:19 INFO stream x: moved: b\r\x1b[2K\xff\xc2\x9b "}'.decode("utf-8", "surrogateescape")
NASTY += "\u2028{\u202e\x00\x85"


@contextmanager
def unrecorded() -> Iterator[None]:
    """Keep pytest from recording log lines: it cannot hand on what is no UTF-8 to the process that reports."""
    root = logging.getLogger()
    theirs = [handler for handler in root.handlers if type(handler).__module__ == "_pytest.logging"]
    for handler in theirs:
        root.removeHandler(handler)
    yield
    for handler in theirs:
        root.addHandler(handler)


@pytest.mark.parametrize("format_", ["text", "json"])
def test_nothing_forges_a_line_and_nothing_tells_a_secret(
    tmp_path: Path, secret: str, format_: str, capsys: pytest.CaptureFixture[str]
) -> None:
    canary = f'{secret}\\"\u2028\x85é'
    lines.hide(canary)
    text = f"{NASTY} {canary}"
    settings = made_settings(tmp_path, f"format = {format_}")
    with unrecorded(), Log(settings, logging.DEBUG, debug=True) as written:
        written.tell(logging.INFO, text)
        tell_unit(written, text, target=text, proof=text, unit=text)
        logging.getLogger("paramiko").error(text)
        try:
            raise ValueError(text)
        except ValueError:
            written.fault(text)
            logging.getLogger("paramiko").exception(text)
    content = (tmp_path / "log" / "x.log").read_bytes().decode()
    for out in (content, capsys.readouterr().err):
        assert secret not in out
        assert "***" in out
        assert out.replace("\n", "").isprintable()
        starts = [line for line in out.split("\n")[:-1] if not line.startswith("  ")]
        assert len(starts) == (5 if out is content else 4)
        if format_ == "json":
            assert [json.loads(line)["stream"] for line in starts] == ["x"] * len(starts)
        else:
            assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [A-Z]+ ", line) for line in starts)


# -- numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (10 * 1024, "10 KiB"),
        (51_200_000, "48.8 MiB"),
        (3 * 2**40, "3 TiB"),
        (5e18, "4547474 TiB"),
    ],
)
def test_sizes(amount: float, text: str) -> None:
    assert size(amount) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0312, "0.031 s"), (1.14, "1.1 s"), (59.6, "60 s"), (185, "3:05 min"), (7384, "2:03:04 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# -- a delivered unit --------------------------------------------------------------------------------------


def test_what_is_said_of_a_delivered_unit() -> None:
    assert delivered(**UNIT) == (
        "moved: north/a.dat: bytes=10240 seconds=0.500 rate=20480 digest=sha256:5dd1 proof=digest "
        "target=sftp://mover@archive.example.org/data/incoming attempt=2 unit=4711"
    )


def test_what_is_not_known_of_it_is_no_lie() -> None:
    assert delivered("a", 0, 0.0, "sha256", "", "", "local:///a b", 1) == (
        r"moved: a: bytes=0 seconds=0.000 rate=- digest=- proof=- target=local:///a\x20b attempt=1"
    )


@given(st.binary(), st.binary(), st.integers(0), st.floats(0, 1e9))
def test_no_name_pretends_to_be_a_field(name: bytes, target: bytes, size: int, seconds: float) -> None:
    path = os.fsdecode(name + b": bytes=1 seconds=1.000 rate=1")
    line = delivered(path, size, seconds, "sha256", "5dd1", "digest", os.fsdecode(target), 1, 7)
    fields = r"bytes=(\d+) seconds=[\d.]+ rate=\S+ digest=\S+ proof=\S+ target=\S* attempt=1 unit=7"
    found = re.fullmatch(rf"moved: (.*): {fields}", line)
    assert found
    assert found.groups() == (shown(path), str(size))


# -- JSON --------------------------------------------------------------------------------------------------


def objects(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_of_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Log(made_settings(tmp_path, "format = json")) as written:
        written.tell(logging.WARNING, "Größe\n")
        tell_unit(written, "Größe\n")
        tell_unit(written, "b", seconds=0.0, digest="", unit=None)
        try:
            raise ValueError("broken")
        except ValueError:
            written.fault("broke")
    lines = objects(tmp_path / "log" / "x.log")
    for line in lines:
        moment = datetime.fromisoformat(line.pop("time"))
        assert moment.utcoffset() == datetime.now().astimezone().utcoffset()
        assert abs(moment - datetime.now().astimezone()) < timedelta(minutes=1)
    assert lines[0] == {"level": "WARNING", "stream": "x", "message": r"Größe\n"}
    known = {
        "level": "INFO",
        "stream": "x",
        "message": r"moved: Größe\n",
        "name": r"Größe\n",
        "bytes": 10240,
        "seconds": 0.5,
        "rate": 20480,
        "digest": "5dd1",
        "algorithm": "sha256",
        "proof": "digest",
        "target": "sftp://mover@archive.example.org/data/incoming",
        "attempt": 2,
        "unit": 4711,
    }
    assert lines[1] == known
    unknown = {"seconds": 0.0, "rate": None, "digest": None, "algorithm": None, "unit": None}
    assert lines[2] == known | {"message": "moved: b", "name": "b"} | unknown
    assert lines[3]["traceback"][-1] == "ValueError: broken"
    assert json.loads(capsys.readouterr().err)["message"] == r"Größe\n"
    assert "Größe" in (tmp_path / "log" / "x.log").read_text(), "nobody can search for it"


@pytest.mark.parametrize(("zone", "offset"), [("UTC", "+00:00"), ("XXX3:30", "-03:30"), ("XXX-5:45", "+05:45")])
def test_the_offset_of_local_time(monkeypatch: pytest.MonkeyPatch, zone: str, offset: str) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        text = lines.rfc3339(time.localtime(0))
    finally:
        monkeypatch.undo()
        time.tzset()
    assert text.endswith(offset)
    assert datetime.fromisoformat(text).timestamp() == 0


def test_a_terminal_gets_text(settings: Settings, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.stderr, "isatty", lambda: True)
        written = Log(made_settings(tmp_path, "format = json"))
    with written:
        written.tell(logging.INFO, "for a person")
    assert capsys.readouterr().err.endswith(" INFO stream x: for a person\n")


# -- which logs there are ----------------------------------------------------------------------------------


def test_the_log_of_the_service(settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with MainLog(settings.logging) as written:
        written.tell(logging.INFO, "all up")
    line = (tmp_path / "log" / "mistamover.log").read_text()
    assert line.endswith(" INFO all up\n")
    assert capsys.readouterr().err == line


def test_the_directory_where_none_is_set(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    unset = settings.logging.model_copy(update={"base_log_dir": None})
    with Log(settings.model_copy(update={"logging": unset}), directory=tmp_path / "other") as one:
        one.tell(logging.INFO, "one")
    with MainLog(unset, directory=tmp_path / "other") as main:
        main.tell(logging.INFO, "main")
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == ["mistamover.log", "x.log"]
    with Log(settings, directory=tmp_path / "other") as two:
        two.tell(logging.INFO, "two")
    assert "two" in (tmp_path / "log" / "x.log").read_text()


def test_a_detached_process_has_no_console(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    (settings.logging.base_log_dir or Path()).rmdir()
    with Log(settings, detached=True, debug=True) as written, MainLog(settings.logging, detached=True) as main:
        written.tell(logging.CRITICAL, "one")
        tell_unit(written, "two")
        logging.getLogger("paramiko").critical("three")
        main.tell(logging.CRITICAL, "four")
    assert capsys.readouterr() == ("", "")


def test_a_child_lets_go_of_its_parents_log(settings: Settings) -> None:
    before = list(logging.getLogger().handlers)
    written = MainLog(settings.logging, logging.CRITICAL, debug=True)
    written.tell(logging.INFO, "one")
    assert logging.getLogger().handlers != before
    written.close()
    assert logging.getLogger().handlers == before
    logging.getLogger("paramiko").error("not ours any more")
    assert (settings.logging.base_log_dir or Path()).joinpath("mistamover.log").read_text().count("\n") == 1


# -- where lines go ----------------------------------------------------------------------------------------


def test_lines_have_time_level_and_stream(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    with Log(settings) as written:
        written.tell(logging.INFO, "two\nlines")
    line = capsys.readouterr().err.rstrip("\n")
    stamp = time.strptime(line[:19], "%Y-%m-%d %H:%M:%S")
    assert abs(time.mktime(stamp) - time.time()) < 60
    assert line[19:] == r" INFO stream x: two\nlines"


def test_the_console_shows_what_was_asked_for(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    with Log(settings, logging.WARNING) as written:
        written.tell(logging.INFO, "unimportant")
        written.tell(logging.WARNING, "important")
    assert "important" in capsys.readouterr().err.replace("unimportant", "")
    assert "unimportant" in (settings.logging.base_log_dir or Path()).joinpath("x.log").read_text()


def test_the_file_keeps_to_its_level(tmp_path: Path) -> None:
    with Log(made_settings(tmp_path, "log_level = ERROR"), logging.CRITICAL) as written:
        tell_unit(written, "a")
        written.tell(logging.WARNING, "b")
        written.note(logging.WARNING, "c")
        written.tell(logging.ERROR, "d")
    lines = (tmp_path / "log" / "x.log").read_text().splitlines()
    assert [line.rpartition(" ")[2] for line in lines] == ["d"]


def test_units_go_to_the_file_alone_and_in_order(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    with Log(settings) as written:
        for number in range(3):
            tell_unit(written, f"unit {number}")
        written.tell(logging.INFO, "end")
    text = (settings.logging.base_log_dir or Path()).joinpath("x.log").read_text()
    assert [line.split(": ")[1:3] for line in text.splitlines()] == [
        ["moved", "unit 0"],
        ["moved", "unit 1"],
        ["moved", "unit 2"],
        ["end"],
    ]
    assert "unit" not in capsys.readouterr().err


def test_units_are_written_before_too_many_are_held_back(settings: Settings) -> None:
    with Log(settings, logging.CRITICAL) as written:
        for number in range(log.HELD_BACK):
            tell_unit(written, f"unit {number}")
        text = (settings.logging.base_log_dir or Path()).joinpath("x.log").read_text()
        assert len(text.splitlines()) == log.HELD_BACK


def test_a_renamed_file_is_left_and_a_new_one_begun(tmp_path: Path) -> None:
    complaints: list[str] = []
    file = LogFile(tmp_path / "a.log", complaints.append)
    file.append("one")
    (tmp_path / "a.log").rename(tmp_path / "a.log.1")
    file.append("two")
    (tmp_path / "a.log").unlink()
    file.append("three")
    file.close()
    assert (tmp_path / "a.log.1").read_text() == "one\n"
    assert (tmp_path / "a.log").read_text() == "three\n"
    assert complaints == []


def test_a_full_disk_is_told_once_and_again_after_it_had_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complaints: list[str] = []
    path = tmp_path / "a.log"
    path.symlink_to("/dev/full")
    file = LogFile(path, complaints.append)
    file.append("one")
    file.append("two")
    assert len(complaints) == 1
    assert "No space left on device" in complaints[0]
    path.unlink()
    file.append("three")
    path.unlink()
    path.symlink_to("/dev/full")
    file.append("four")
    assert len(complaints) == 1, "a disk that is full again and again is told again and again"
    monkeypatch.setattr(log_file, "COMPLAIN_AFTER", 0.0)
    file.append("five")
    assert len(complaints) == 1, "the same trouble still"
    path.unlink()
    file.append("six")
    path.unlink()
    path.symlink_to("/dev/full")
    file.append("seven")
    assert len(complaints) == 2
    file.close()


def test_a_log_directory_that_is_gone_stops_nobody(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    (settings.logging.base_log_dir or Path()).rmdir()
    with Log(settings) as written:
        tell_unit(written, "one")
        written.tell(logging.INFO, "two")
    assert "two" in capsys.readouterr().err


@pytest.mark.parametrize("broken", ["closed", "full"])
def test_a_console_that_cannot_be_written_stops_nobody(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    stream = open("/dev/full", "w")  # noqa: SIM115 - closed or not, that is the test
    if broken == "closed":
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    with Log(settings) as written:
        written.tell(logging.ERROR, "nobody hears")
    monkeypatch.undo()
    assert "nobody hears" in (settings.logging.base_log_dir or Path()).joinpath("x.log").read_text()


def test_libraries_are_heard_only_for_debugging(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    with Log(settings):
        logging.getLogger("paramiko").error("noise")
    assert capsys.readouterr().err == ""
    with Log(settings, debug=True):
        logging.getLogger("paramiko").error("noise\nand more")
    assert r"ERROR noise\nand more" in capsys.readouterr().err


# -- rotation by us ----------------------------------------------------------------------------------------


def all_lines(top: Path, count: int) -> list[str]:
    """Those of a.log and of the older ones, oldest first; ``count`` files in all."""
    paths = [top / "a.log", *(top / f"a.log.{number}" for number in range(1, count))]
    assert sorted(top.glob("a.log*")) == sorted(paths)
    texts = [path.read_text() for path in reversed(paths)]
    assert all(text.endswith("\n") for text in texts)
    return [line for text in texts for line in text.splitlines()]


def no_complaint(text: str) -> None:
    raise AssertionError(text)


@hypothesis.settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=9), max_size=20), st.integers(1, 60))
def test_rotation_tears_and_loses_nothing(
    tmp_path_factory: pytest.TempPathFactory, calls: list[list[int]], max_size: int
) -> None:
    top = tmp_path_factory.mktemp("rotated")
    file = LogFile(top / "a.log", no_complaint, max_size=max_size, max_files=1000)
    lines = [
        [f"{place}-{number}-{'x' * length}" for number, length in enumerate(one)] for place, one in enumerate(calls)
    ]
    for one in lines:
        file.append("\n".join(one))
    file.close()
    paths = list(top.iterdir())
    if calls:
        assert all_lines(top, len(paths)) == [line for one in lines for line in one]
    for path in paths:
        assert path.stat().st_size <= max_size or path.read_text().count("\n") == 1


def test_files_are_filled(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "a.log", no_complaint, max_size=7, max_files=9)
    file.append("\n".join("01234567"))
    file.close()
    assert [path.read_text().split() for path in sorted(tmp_path.iterdir())] == [["6", "7"], [*"345"], [*"012"]]


def test_only_so_many_older_ones_are_kept(tmp_path: Path) -> None:
    for max_files, kept in ((3, range(5, 9)), (1, range(7, 9))):
        file = LogFile(tmp_path / "a.log", no_complaint, max_size=1, max_files=max_files)
        for number in range(9):
            file.append(f"{number}")
        file.close()
        assert all_lines(tmp_path, max_files + 1) == list(map(str, kept))


def test_the_options_of_rotation(tmp_path: Path) -> None:
    with Log(made_settings(tmp_path, "max_size = 100\nmax_files = 2"), logging.CRITICAL) as written:
        for number in range(9):
            tell_unit(written, f"{number}")
    assert sorted(path.name for path in (tmp_path / "log").iterdir()) == ["x.log", "x.log.1", "x.log.2"]


def test_what_cannot_be_rotated_grows_on_and_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    complaints: list[str] = []
    tries: list[object] = []
    put_aside = LogFile._put_aside

    def counted(self: LogFile) -> None:
        tries.append(self)
        put_aside(self)

    monkeypatch.setattr(LogFile, "_put_aside", counted)
    (tmp_path / "a.log.1" / "in the way").mkdir(parents=True)
    file = LogFile(tmp_path / "a.log", complaints.append, max_size=50, max_files=1)
    for number in range(9):
        file.append(f"{number}\nand more")
    file.close()
    assert (tmp_path / "a.log").read_text().count("\n") == 18
    assert len(complaints) == 1
    assert "the log cannot be rotated" in complaints[0]
    assert len(tries) <= 2, "each line costs a try"


def test_a_link_is_not_rotated(tmp_path: Path) -> None:
    (tmp_path / "a.log").symlink_to(tmp_path / "elsewhere")
    file = LogFile(tmp_path / "a.log", lambda _: None, max_size=3, max_files=1)
    for number in range(9):
        file.append(f"{number}")
    file.close()
    assert (tmp_path / "elsewhere").read_text().split() == list("012345678")
    assert (tmp_path / "a.log").is_symlink()


def test_a_line_that_a_killed_process_tore_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("whole\ntor")
    file = LogFile(tmp_path / "a.log", no_complaint)
    file.append("ours")
    file.close()
    assert (tmp_path / "a.log").read_text() == "whole\ntor\nours\n"


# -- rotation by others (fault catalogue, 78) --------------------------------------------------------------


class Endless:
    """Appends numbered lines without a pause, from another thread."""

    def __init__(self, path: Path) -> None:
        self.file = LogFile(path, no_complaint)
        self.written = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._done.is_set():
            self.file.append("\n".join(f"line {self.written + number:08}." for number in range(3)))
            self.written += 3

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.file.close()


def check_numbers(top: Path, written: int, *, copied: bool) -> None:
    """Each line is there. A copy may end within a line, for a write shows page by page; it is repeated then."""
    found: Counter[int] = Counter()
    for path in top.iterdir():
        *lines, torn = path.read_text().split("\n")
        assert not torn or (copied and path.name != "a.log"), (path, torn)
        for line in lines:
            match = re.fullmatch(r"line (\d{8})\.", line)
            assert match or (copied and "WARNING the log was truncated: lines after" in line), (path, line)
            if match:
                found[int(match[1])] += 1
    assert sorted(found) == list(range(written)), "lines are lost"
    assert copied or set(found.values()) == {1}


@pytest.mark.needs("logrotate")
@pytest.mark.parametrize("way", ["create", "nocreate", "copytruncate"])
def test_logrotate_loses_no_line(tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_file, "LATEST_BYTES", 2**26)  # this writes far more in a second than any stream
    logs = tmp_path / "logs"
    logs.mkdir(mode=0o755)
    conf = tmp_path / "logrotate.conf"
    conf.write_text(f"{logs}/a.log {{\n{way}\nrotate 100\nsize 1\n}}\n")
    conf.chmod(0o644)
    argv = [find("logrotate") or "logrotate", "-f", "-s", str(tmp_path / "state"), str(conf)]
    with Endless(logs / "a.log") as endless:
        for _ in range(8):
            before = endless.written
            wait_for(lambda before=before: endless.written > before + 300, "more lines")  # type: ignore[misc]
            subprocess.run(argv, check=True, capture_output=True)
    assert len(list(logs.glob("a.log.*"))) >= 8
    check_numbers(logs, endless.written, copied=way == "copytruncate")


def test_a_copy_that_takes_its_time_loses_nothing(tmp_path: Path) -> None:
    """As logrotate with a slow disk: it waits for its copy before it truncates."""
    path = tmp_path / "a.log"
    file = LogFile(path, no_complaint)
    file.append("one")
    (tmp_path / "copy").write_bytes(path.read_bytes())
    file.append("two")
    os.truncate(path, 0)
    file.look()
    assert path.read_text().endswith("\none\ntwo\n"), "they are gone if nothing comes for a while"
    file.append("three")
    file.close()
    first, *lines = path.read_text().splitlines()
    assert first.endswith(" WARNING the log was truncated: lines after this one (2) may be in its copy, too")
    assert lines == ["one", "two", "three"]


def test_what_is_written_after_a_truncation_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.log"
    file = LogFile(path, no_complaint)
    file.append("one")
    write = os.write

    def truncate_first(fd: int, data: bytes) -> int:
        monkeypatch.undo()
        os.truncate(path, 0)
        return write(fd, data)

    monkeypatch.setattr(os, "write", truncate_first)
    file.append("two")
    file.append("three")
    file.close()
    lines = path.read_text().splitlines()
    assert [line for line in lines if "truncated" not in line] == ["two", "one", "three"]


def test_only_so_much_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_file, "LATEST_BYTES", 9)
    file = LogFile(tmp_path / "a.log", no_complaint)
    for line in ("one", "two", "three", "much too long", "four", "five"):
        file.append(line)
    os.truncate(tmp_path / "a.log", 0)
    file.append("six")
    file.close()
    assert (tmp_path / "a.log").read_text().splitlines()[1:] == ["five", "six"]


def test_old_lines_are_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.log"
    file = LogFile(path, no_complaint)
    file.append("one")
    monkeypatch.setattr(log_file, "LATEST_SECONDS", -1.0)
    os.truncate(path, 0)
    file.append("two")
    file.close()
    assert path.read_text() == "two\n"


# -- a log that cannot be written --------------------------------------------------------------------------


@pytest.mark.parametrize("format_", ["text", "json"])
@pytest.mark.needs("root", "mount")
def test_a_full_disk_loses_whole_lines_and_says_how_many(
    tmp_path: Path, format_: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = made_settings(tmp_path, f"format = {format_}")
    with small_disk(tmp_path / "log", "size=16k,mode=755"):
        with Log(settings, logging.ERROR) as written:
            for number in range(500):
                tell_unit(written, f"unit-{number:03}")
                if number % 7 == 0:
                    written.flush()
            remount(tmp_path / "log", "size=8m")
            written.tell(logging.INFO, "goes on")
            written.tell(logging.INFO, "and on")
        lines = (tmp_path / "log" / "x.log").read_text().splitlines()
    if format_ == "json":
        lines = [json.loads(line)["message"] for line in lines]
    lost = [int(match[1]) for line in lines if (match := re.search(r"(\d+) lines? (?:was|were) lost here: ", line))]
    units = [line for line in lines if "moved: unit-" in line]
    assert 20 < len(units) < 200
    assert len(units) + sum(lost) == 500
    assert len(lines) == len(units) + len(lost) + 2
    assert all("No space left on device" in line for line in lines if " lost here: " in line)
    told = capsys.readouterr().err
    assert told.count("the log cannot be written: No space left on device") == 1
    assert len(told.splitlines()) == 1


@pytest.mark.needs("root", "mount")
def test_a_read_only_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = made_settings(tmp_path)
    with small_disk(tmp_path / "log", "size=1m,mode=755"):
        remount(tmp_path / "log", "ro")
        with Log(settings, logging.ERROR) as written:
            for number in range(3):
                tell_unit(written, f"{number}")
                written.flush()
            remount(tmp_path / "log", "rw")
            written.tell(logging.INFO, "goes on")
        first, second = (tmp_path / "log" / "x.log").read_text().splitlines()
    assert first.endswith(" 3 lines were lost here: the log could not be written: Read-only file system")
    assert second.endswith(": goes on")
    assert capsys.readouterr().err.count("Read-only") == 1


def test_a_directory_that_vanishes_and_comes_back(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    directory = settings.logging.base_log_dir or Path()
    with Log(settings, logging.ERROR) as written:
        written.tell(logging.INFO, "one")
        shutil.rmtree(directory)
        written.tell(logging.INFO, "two")
        directory.mkdir()
        written.tell(logging.INFO, "three")
    first, second = (directory / "x.log").read_text().splitlines()
    assert " 1 line was lost here: " in first
    assert second.endswith(": three")
    assert capsys.readouterr().err.count("\n") == 1


def test_a_pipe_that_nobody_reads_holds_up_nothing(settings: Settings) -> None:
    path = (settings.logging.base_log_dir or Path()) / "x.log"
    os.mkfifo(path)
    with Log(settings, logging.CRITICAL) as written:
        for number in range(2000):
            tell_unit(written, f"{number}")


def test_a_detached_process_tells_syslog_once(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (settings.logging.base_log_dir or Path()).rmdir()
    monkeypatch.setattr(log, "SYSLOG", str(tmp_path / "syslog"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(tmp_path / "syslog"))
        heard.setblocking(False)
        with Log(settings, detached=True) as written:
            written.tell(logging.INFO, "one")
            written.tell(logging.INFO, "two")
        text = heard.recv(10_000).decode()
        assert re.match(
            rf"<27>mistamover\[{os.getpid()}\]: .*x\.log: the log cannot be written: No such file", text
        )
        with pytest.raises(BlockingIOError):
            heard.recv(1)


def test_a_syslog_that_hangs_holds_up_nothing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (settings.logging.base_log_dir or Path()).rmdir()
    monkeypatch.setattr(log, "SYSLOG", str(tmp_path / "syslog"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(tmp_path / "syslog"))
        for number in range(300):  # more than wait in its queue
            with Log(settings, detached=True) as written:
                written.tell(logging.INFO, f"{number}")
