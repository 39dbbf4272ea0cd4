"""What is written down: one line each, readable, without secrets; and nothing that fails stops a stream."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistamover import config, log
from mistamover.log import Log, LogFile, MainLog, delivered, duration, one_line, redacted, safe, shown, size
from mistamover.options import Settings


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
    kept = list(log._secrets)
    yield "open-sesame"
    log._secrets[:] = kept


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
    log.hide(secret)
    assert redacted(f"login {secret}: no") == "login ***: no"
    assert safe(f"a\n{secret}") == r"a\n***"


def test_a_secret_is_found_in_its_escaped_forms(secret: str) -> None:
    log.hide(f"{secret}\\'é")
    for form in (f"{secret}\\'é", repr(f"{secret}\\'é"), ascii(f"{secret}\\'é")):
        assert secret not in redacted(form)


def test_the_longer_of_two_secrets_goes_whole(secret: str) -> None:
    log.hide(secret)
    log.hide(f"{secret}-2")
    assert redacted(f"{secret}-2") == "***"


def test_a_traceback_is_written_without_secrets_and_line_by_line(tmp_path: Path, secret: str) -> None:
    log.hide(secret)
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


@pytest.mark.parametrize("format_", ["text", "json"])
def test_nothing_forges_a_line_and_nothing_tells_a_secret(
    tmp_path: Path, secret: str, format_: str, capsys: pytest.CaptureFixture[str]
) -> None:
    canary = f'{secret}\\"\u2028é'
    log.hide(canary)
    text = f"{NASTY} {canary}"
    with Log(made_settings(tmp_path, f"format = {format_}"), logging.DEBUG, debug=True) as written:
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
        text = log.rfc3339(time.localtime(0))
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


def test_a_full_disk_is_told_once_and_again_after_it_had_room(tmp_path: Path) -> None:
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
