"""The files of the handshake: byte for byte as since 0.1.0, and whatever else somebody may put in their place."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistamover.foreign import Refused
from mistamover.handshake import (
    LARGEST,
    Control,
    Extensions,
    Receipt,
    Status,
    control_name,
    control_text,
    flattened,
    judge,
    parse_control,
    parse_receipt,
    parse_thankyou,
    read,
    receipt_name,
    receipt_text,
    thankyou_name,
    thankyou_text,
    unflattened,
    why_unsayable,
    write,
)

EXTENSIONS = Extensions("stager-ctrl-bss", "stager-rcpt-bss", "stager-thanks-bss")
MD5 = "9e107d9d372bb6826bd81d3542a419d6"
RECEIPT = ".radar.dat.1466000000.25.stager-rcpt-bss"
THANKYOU = ".radar.dat.1466000003.50.stager-thanks-bss"
CONTROL_BYTES = f"""_start_stager_ctrl_data_
radar.dat
43
{MD5}
{RECEIPT}
_end_stager_ctrl_data_
""".encode()
RECEIPT_BYTES = f"""_start_stager_receipt_data_
radar.dat
0
43
{MD5}
{THANKYOU}
_end_stager_receipt_data_
""".encode()
BAD_RECEIPT_BYTES = f"""_start_stager_receipt_data_
radar.dat
4
-1

{THANKYOU}
_end_stager_receipt_data_
""".encode()
THANKYOU_BYTES = f"""_start_stager_thankyou_
{RECEIPT}
_end_stager_thankyou_
""".encode()
CONTROL = Control("radar.dat", 43, MD5, RECEIPT)
ANSWER = Receipt("radar.dat", Status.SUCCESS, 43, MD5, THANKYOU)
NO_DATA = Receipt("radar.dat", Status.NO_DATA, -1, "", THANKYOU)


def test_the_three_files_are_written_as_ever() -> None:
    assert control_text(CONTROL) == CONTROL_BYTES
    assert receipt_text(ANSWER) == RECEIPT_BYTES
    assert receipt_text(NO_DATA) == BAD_RECEIPT_BYTES
    assert thankyou_text(RECEIPT) == THANKYOU_BYTES


def test_the_three_files_are_read_as_ever() -> None:
    assert parse_control(CONTROL_BYTES) == CONTROL
    assert parse_receipt(RECEIPT_BYTES) == ANSWER
    assert parse_receipt(BAD_RECEIPT_BYTES) == NO_DATA
    assert parse_thankyou(THANKYOU_BYTES) == RECEIPT
    assert parse_control(CONTROL_BYTES.replace(MD5.encode(), MD5.upper().encode()).rstrip()) == CONTROL


def test_their_names_are_as_ever() -> None:
    assert control_name("radar.dat", EXTENSIONS) == ".radar.dat.stager-ctrl-bss"
    assert receipt_name("radar.dat", 1466000000.254, EXTENSIONS) == RECEIPT
    assert thankyou_name("radar.dat", 1466000003.5, EXTENSIONS) == THANKYOU


def test_a_stronger_digest_hides_in_a_name() -> None:
    sha256 = "ab" * 32
    name = receipt_name("radar.dat", 1.0, EXTENSIONS, sha256)
    assert CONTROL._replace(receipt=name).sha256 == sha256
    assert parse_control(control_text(CONTROL._replace(receipt=name))).receipt == name
    assert CONTROL.sha256 == ""
    long = "n" * 180
    assert receipt_name(long, 1.0, EXTENSIONS, sha256) == receipt_name(long, 1.0, EXTENSIONS), "there is no room"


NAMES = ("../../etc/passwd", "/etc/passwd", "a/b", "", ".", "..", ".mistamover", "nul\0", "cr\r", "n" * 256)


@pytest.mark.parametrize("name", [*NAMES, ".stop", ".hidden"])
def test_a_control_file_may_name_no_other_file(name: str) -> None:
    with pytest.raises(Refused):
        parse_control(CONTROL_BYTES.replace(b"radar.dat", os.fsencode(name), 1))


@pytest.mark.parametrize("name", [*NAMES, ".stop", "radar.dat"])
def test_nobody_may_ask_for_a_note_of_any_name(name: str) -> None:
    for parse, text, asked in (
        (parse_control, CONTROL_BYTES, RECEIPT),
        (parse_receipt, RECEIPT_BYTES, THANKYOU),
        (parse_thankyou, THANKYOU_BYTES, RECEIPT),
    ):
        with pytest.raises(Refused):
            parse(text.replace(asked.encode(), os.fsencode(name)))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[:-9],
        lambda text: text[5:],
        lambda text: text + b"more\n",
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: b"",
        lambda text: text.replace(b"43", b"-2"),
        lambda text: text.replace(b"43", b"4.3"),
        lambda text: text.replace(b"43", b"9" * 30),
        lambda text: text.replace(b"43", "\u0664\u0663".encode()),
        lambda text: text.replace(MD5.encode(), MD5[:-1].encode()),
        lambda text: text.replace(MD5.encode(), b"../" + MD5[3:].encode()),
    ],
)
def test_what_is_damaged_is_refused(spoil: Callable[[bytes], bytes]) -> None:
    for parse, text in ((parse_control, CONTROL_BYTES), (parse_receipt, RECEIPT_BYTES)):
        with pytest.raises(Refused):
            parse(spoil(text))


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for parse in (parse_control, parse_receipt, parse_thankyou):
        for text in (data, CONTROL_BYTES.replace(b"radar", data), RECEIPT_BYTES.replace(b"43", data)):
            try:
                parse(text)
            except Refused:
                continue


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "other.dat"},
        {"name": "other.dat", "status": Status.BAD_SIZE},
        {"size": 42},
        {"size": -1},
        {"md5": "0" * 32},
        {"md5": ""},
    ],
)
def test_only_success_of_this_very_file_counts(wrong: dict[str, object]) -> None:
    judge(CONTROL, ANSWER)
    judge(CONTROL, NO_DATA)
    with pytest.raises(Refused):
        judge(CONTROL, ANSWER._replace(**wrong))  # type: ignore[arg-type]


def test_a_status_that_nobody_knows_is_no_answer() -> None:
    with pytest.raises(Refused):
        parse_receipt(RECEIPT_BYTES.replace(b"\n0\n", b"\n5\n"))


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=60))
def test_directories_come_back_out_of_names(path: str) -> None:
    name = flattened(path)
    assert "/" not in name
    try:
        assert unflattened(name) == path
    except Refused:
        assert any(part in ("", ".") or part[0] == "." or set(part) & set("\r\n") for part in path.split("/"))


@pytest.mark.parametrize("name", ["..%2Fetc", "%2Fetc", "a%2F%2Fb", "a%2F", "a%2F.mistamover%2Fb", "100%", "a%2fb"])
def test_names_that_stand_for_no_path_below_a_spool(name: str) -> None:
    with pytest.raises(Refused):
        unflattened(name)


def test_what_no_handshake_is_possible_about() -> None:
    assert why_unsayable("radar.dat", EXTENSIONS) == ""
    assert why_unsayable("n" * 220, EXTENSIONS) == ""
    assert "flatten" in why_unsayable("north/radar.dat", EXTENSIONS)
    assert "too long" in why_unsayable("n" * 236, EXTENSIONS)
    assert "rename" in why_unsayable("line\nend", EXTENSIONS)


@pytest.fixture
def directory(tmp_path: Path) -> int:
    return os.open(tmp_path, os.O_RDONLY)


def test_files_are_written_in_one_step_and_replace_nothing(tmp_path: Path, directory: int) -> None:
    write(".note", b"first", directory, ".draft")
    assert read(".note", directory)[0] == b"first"
    with pytest.raises(FileExistsError):
        write(".note", b"second", directory, ".draft")
    assert (tmp_path / ".note").read_bytes() == b"first"


def test_whatever_stands_in_a_file_s_place_is_refused_at_once(
    tmp_path: Path, directory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_bytes(CONTROL_BYTES)
    (tmp_path / "link").symlink_to("secret")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "directory").mkdir()
    (tmp_path / "long").write_bytes(bytes(LARGEST + 1))
    os.truncate(tmp_path / "long", 2**30)
    with socket.socket(socket.AF_UNIX) as here:
        here.bind("socket")
        for name in ("link", "fifo", "directory", "long", "socket"):
            with pytest.raises(Refused):
                read(name, directory)
