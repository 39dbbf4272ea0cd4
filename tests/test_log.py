"""What is written down: one line each, readable, without secrets; and nothing that fails stops a stream."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistamover import config, log
from mistamover.log import Log, LogFile, duration, one_line, redacted, safe, shown, size
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
        written.unit("delivered: a")
        written.tell(logging.WARNING, "b")
        written.note(logging.WARNING, "c")
        written.tell(logging.ERROR, "d")
    lines = (tmp_path / "log" / "x.log").read_text().splitlines()
    assert [line.rpartition(" ")[2] for line in lines] == ["d"]


def test_units_go_to_the_file_alone_and_in_order(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    with Log(settings) as written:
        for number in range(3):
            written.unit(f"unit {number}")
        written.tell(logging.INFO, "end")
    text = (settings.logging.base_log_dir or Path()).joinpath("x.log").read_text()
    assert [line.partition(": ")[2] for line in text.splitlines()] == ["unit 0", "unit 1", "unit 2", "end"]
    assert "unit" not in capsys.readouterr().err


def test_units_are_written_before_too_many_are_held_back(settings: Settings) -> None:
    with Log(settings, logging.CRITICAL) as written:
        for number in range(log.HELD_BACK):
            written.unit(f"unit {number}")
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
        written.unit("one")
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
