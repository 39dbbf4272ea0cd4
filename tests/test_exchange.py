"""A sender and an arrivals monitor: what counts as delivered, what is sent again, what waits; also with 0.1.0."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from mistamover.config import load
from mistamover.exchange import Exchange
from mistamover.handshake import LARGEST
from mistamover.ledger import Ledger, entries
from mistamover.unit import Identity, Unit
from tests.old_partner import OldReceiver, OldSender
from tests.program import Local, Result, ended
from tests.sshd import wait_for

SEND = (
    "target_uses_arrival_monitor = yes\nreceipt_file_poll_interval = 0.1\nreceipt_file_poll_count = 5\n"
    "retry_interval = 0\n"
)


@pytest.fixture
def local(tmp_path: Path) -> Local:
    """A sender to a directory of arrivals."""
    local = Local(tmp_path)
    local.configure(SEND)
    (tmp_path / "kept").mkdir()
    return local


@pytest.fixture
def old(local: Local) -> OldReceiver:
    return OldReceiver(local.target, local.top / "kept")


def left(local: Local) -> set[str]:
    """What lies among the arrivals, but for the staging place."""
    return set(os.listdir(local.target)) - {".mistamover"}


def events(result: Result) -> list[dict[str, str]]:
    return [json.loads(line) for line in result.lines]


def proofs(local: Local) -> dict[str, str]:
    return {entry.path: entry.proof for entry in entries(local.state / "x/ledger.sqlite")}


# -- with 0.1.0 at the other end ---------------------------------------------------------------------------


def test_a_sender_serves_a_receiver_of_0_1_0_step_by_step(local: Local, old: OldReceiver) -> None:
    for name in ("a.dat", "empty", "caf\u00e9 -x"):
        local.put(name, name.encode() if name != "empty" else b"")
    running = local.start("run", "--once", local.ini)
    controls = [f".{name}.stager-ctrl-bss" for name in ("a.dat", "empty", "caf\u00e9 -x")]
    wait_for(lambda: set(controls) <= left(local), "the control files")
    # The data are there with them, and the sources too, as long as nobody answers.
    assert (local.target / "a.dat").read_bytes() == b"a.dat"
    assert len(local.names(local.spool)) == 3
    text = (local.target / controls[0]).read_text().split("\n")
    assert text[:4] == ["_start_stager_ctrl_data_", "a.dat", "5", hashlib.md5(b"a.dat").hexdigest()]
    old.step()
    wait_for(lambda: any(name.endswith("thanks-bss") for name in left(local)), "a thank-you")
    wait_for(lambda: not local.names(local.spool), "the sources to be removed")
    assert ended(running).code == 0
    old.step()
    assert left(local) == set()
    assert local.names(local.top / "kept") == {"a.dat", "empty", "caf\u00e9 -x"}
    assert proofs(local) == dict.fromkeys(("a.dat", "empty", "caf\u00e9 -x"), "receipt")
    assert [entry.partition(" ")[0] for entry in old.diary] == ["control", "receipt"] * 3 + ["thanked"] * 3


def test_a_receiver_serves_a_sender_of_0_1_0_step_by_step(local: Local) -> None:
    incoming = local.top / "incoming"
    incoming.mkdir()
    local.configure(more=f"[incoming]\nrequire_arrival_monitor = yes\ndirectory = {incoming}\n")
    source = local.put("radar.dat", b"echoes", at=local.top / "elsewhere")
    partner = OldSender(incoming)
    running = local.start("run", local.ini)
    receipt = partner.push(source)
    wait_for(lambda: partner.read(receipt) is not None, "a receipt")
    answer = partner.read(receipt)
    assert answer is not None
    assert answer[0] == 0
    assert set(os.listdir(incoming)) == {receipt}
    partner.thank(receipt, answer[1])
    wait_for(lambda: not os.listdir(incoming), "receipt and thank-you to be removed")
    wait_for(lambda: local.names(local.target) == {"radar.dat"}, "the file to be sent on")
    wait_for(lambda: local.names(local.spool) == set(), "the spool to be empty")
    running.terminate()
    assert ended(running).code == 0
    assert (local.target / "radar.dat").read_bytes() == b"echoes"


def test_many_files_cost_one_wait(local: Local, old: OldReceiver) -> None:
    for number in range(1000):
        local.put(f"{number}", b"x" * number)
    old.every = 1.0
    local.configure(SEND.replace("count = 5", "count = 100"))
    began = time.monotonic()
    with old:
        assert local.once().code == 0
    assert time.monotonic() - began < 60
    assert len(local.names(local.top / "kept")) == 1000
    assert left(local) == set()
    assert local.names(local.spool) == set()


# -- what counts -------------------------------------------------------------------------------------------

Made = tuple[object, ...] | None
WRONG: dict[str, Callable[[str, int, int, str], Made]] = {
    "of another file": lambda name, status, size, md5: ("other", status, size, md5),
    "of another size": lambda name, status, size, md5: (name, status, size + 1, md5),
    "of an unknown size": lambda name, status, size, md5: (name, status, -1, ""),
    "of another digest": lambda name, status, size, md5: (name, status, size, "0" * 32),
    "of a status that is none": lambda name, status, size, md5: (name, 17, size, md5),
    "without a status": lambda name, status, size, md5: (name, "", size, md5),
    "not there": lambda name, status, size, md5: None,
}


def test_no_other_receipt_counts(local: Local, old: OldReceiver) -> None:
    for kind in WRONG:
        local.put(kind, b"echoes")
    old.answer = lambda name, *found: WRONG[name](name, *found)
    with old:
        result = local.once("--json")
    assert result.code == 1, result
    assert local.names(local.spool) == WRONG.keys()
    waiting = [(event["path"], event["reason"]) for event in events(result) if event["event"] == "waiting"]
    assert {path for path, reason in waiting if "no receipt came" in reason} == WRONG.keys()
    assert {path for path, reason in waiting if "does not count" in reason} == WRONG.keys() - {"not there"}
    # They are sent again, with receipts of their own, and what the first attempts have got counts for nothing.
    old.answer = None
    with old:
        assert local.once().code == 0
    assert local.names(local.spool) == set()
    assert local.names(local.top / "kept") == WRONG.keys()


def test_what_is_no_receipt_counts_for_nothing(local: Local) -> None:
    kinds = ("link", "fifo", "directory", "huge", "older attempt")
    for kind in kinds:
        local.put(kind, b"echoes")
    running = local.start("run", "--once", local.ini)
    wait_for(lambda: all(f".{kind}.stager-ctrl-bss" in left(local) for kind in kinds), "the control files")
    for kind in kinds:
        receipt = local.target / (local.target / f".{kind}.stager-ctrl-bss").read_text().split("\n")[4]
        lines = ["_start_stager_receipt_data_", kind, "0", "6", hashlib.md5(b"echoes").hexdigest()]
        text = "\n".join([*lines, f".{kind}.1.00.stager-thanks-bss", "_end_stager_receipt_data_", ""])
        if kind == "link":
            (local.top / "true").write_text(text)
            receipt.symlink_to(local.top / "true")
        elif kind == "fifo":
            os.mkfifo(receipt)
        elif kind == "directory":
            receipt.mkdir()
        elif kind == "huge":
            receipt.write_bytes(bytes(LARGEST + 1))
        else:
            receipt.with_name(f".{kind}.1466000000.25.stager-rcpt-bss").write_text(text)
    assert ended(running).code == 1
    assert local.names(local.spool) == set(kinds)


def test_a_thank_you_that_cannot_be_put_is_put_later(local: Local, old: OldReceiver) -> None:
    """And nobody is asked for one under a name that means something else."""
    local.put("radar.dat", b"echoes")
    old.thanks = lambda name: f".{name}.stager-ctrl-bss"
    with old:
        assert local.once().code == 1
    assert local.names(local.spool) == {"radar.dat"}
    (local.target / ".taken.x").mkdir()
    old.thanks = lambda name: ".taken.x"
    with old:
        assert local.once().code == 0
    assert local.names(local.spool) == set()
    (local.target / ".taken.x").rmdir()
    assert local.once().code == 0
    assert (local.target / ".taken.x").read_text().startswith("_start_stager_thankyou_\n.radar.dat.")


def test_a_bad_file_is_sent_again_and_then_set_aside(local: Local, old: OldReceiver) -> None:
    local.put("radar.dat", b"echoes")
    local.put("good", b"good")
    old.answer = lambda name, status, size, md5: (name, 2 if name == "radar.dat" else status, size, md5)
    with old:
        codes = [local.once().code for _ in range(3)]
        assert codes == [1, 1, 1]
    assert old.diary.count("receipt radar.dat 2") == 3
    assert local.names(local.spool) == set()
    listed = local.run("quarantine", "list", local.ini)
    assert "another digest" in listed.out
    assert (local.spool / ".mistamover/quarantine/4/radar.dat").exists() or "radar.dat" in listed.out
    assert left(local) == set(), "bad receipts are thanked for, too"
    assert proofs(local)["good"] == "receipt"


def test_a_receiver_in_trouble_never_sets_a_unit_aside(local: Local, old: OldReceiver) -> None:
    statuses = {"io error": 3, "no data": 4}
    for name in statuses:
        local.put(name, b"echoes")
    old.answer = lambda name, _status, size, md5: (name, statuses[name], -1, "")
    with old:
        for _ in range(4):
            assert local.once().code == 1
    assert local.names(local.spool) == statuses.keys()
    old.answer = None
    with old:
        assert local.once().code == 0
    assert left(local) == set()


# -- waiting -----------------------------------------------------------------------------------------------


def test_nothing_is_sent_again_while_a_receipt_may_come(local: Local, old: OldReceiver) -> None:
    """The receiver is down: the unit waits, and is neither sent again nor removed. Then it comes."""
    local.put("radar.dat", b"echoes")
    assert local.once().code == 1
    inode = (local.target / "radar.dat").stat().st_ino
    assert local.once().code == 1
    assert (local.target / "radar.dat").stat().st_ino == inode
    assert "no receipt came" in local.run("history", "--failed", local.ini).out
    with old:
        assert local.once().code == 0
    assert old.diary.count("control radar.dat") == 1
    assert local.names(local.spool) == set()
    assert left(local) == set()
    assert "nothing waits" in local.run("history", "--failed", local.ini).out


def test_what_an_earlier_run_asked_is_heard_and_nothing_is_sent_again(local: Local, old: OldReceiver) -> None:
    local.configure(SEND.replace("count = 5", "count = 1000"))
    local.put("radar.dat", b"echoes")
    running = local.start("run", "--once", local.ini)
    wait_for(lambda: ".radar.dat.stager-ctrl-bss" in left(local), "the control file")
    running.kill()
    running.wait()
    old.step()
    assert local.names(local.spool) == {"radar.dat"}
    assert local.once().code == 0
    old.step()
    assert (old.diary.count("control radar.dat"), len(old.data_seen)) == (1, 1)
    assert local.names(local.spool) == set()
    assert left(local) == set()


def test_a_control_file_that_a_crash_swallowed_is_put_again(local: Local, old: OldReceiver) -> None:
    local.configure(SEND.replace("count = 5", "count = 1000"))
    local.put("radar.dat", b"echoes")
    running = local.start("run", "--once", local.ini)
    wait_for(lambda: ".radar.dat.stager-ctrl-bss" in left(local), "the control file")
    running.kill()
    running.wait()
    (local.target / ".radar.dat.stager-ctrl-bss").unlink()
    with old:
        assert local.once().code == 0
    assert len(old.data_seen) == 1
    assert left(local) == set()


def test_a_file_that_is_gone_without_a_receipt_is_sent_again_and_all_receipts_are_thanked_for(
    local: Local, old: OldReceiver
) -> None:
    local.put("radar.dat", b"echoes")
    running = local.start("run", "--once", local.ini)
    wait_for(lambda: ".radar.dat.stager-ctrl-bss" in left(local), "the control file")
    late = (local.target / ".radar.dat.stager-ctrl-bss").read_text().split("\n")[4]
    (local.target / ".radar.dat.stager-ctrl-bss").unlink()
    (local.target / "radar.dat").unlink()
    assert ended(running).code == 1
    # The receipt of the first attempt comes after all: it does not count any more.
    lines = ["_start_stager_receipt_data_", "radar.dat", "0", "6", hashlib.md5(b"echoes").hexdigest()]
    (local.target / late).write_text(
        "\n".join([*lines, ".radar.dat.1.00.stager-thanks-bss", "_end_stager_receipt_data_", ""])
    )
    with old:
        assert local.once().code == 0
    assert local.names(local.top / "kept") == {"radar.dat"}
    assert f"thanked {late}" in old.diary
    assert left(local) == set()


def test_a_source_that_changes_meanwhile_is_sent_again(local: Local, old: OldReceiver) -> None:
    local.configure(SEND.replace("count = 5", "count = 1000"))
    local.put("radar.dat", b"first")
    running = local.start("run", "--once", local.ini)
    wait_for(lambda: ".radar.dat.stager-ctrl-bss" in left(local), "the control file")
    running.kill()
    running.wait()
    local.put("radar.dat", b"second")
    with old:
        assert local.once().code == 0
    assert old.data_seen[-1] == b"second"
    assert (local.top / "kept/radar.dat").read_bytes() == b"second"
    assert local.names(local.spool) == set()
    assert left(local) == set()


def test_each_attempt_asks_for_a_receipt_of_its_own(local: Local) -> None:
    """However soon one follows the other: what the first is answered says nothing about the second."""
    with closing(Ledger(local.state / "x", "there", "sha256")) as ledger:
        exchange = Exchange(load(local.ini, None, {}), ledger)
        for size in (1, 2, 3):
            exchange.begin([Unit("radar.dat", Identity(1, 2, size, 4, 5), md5="0" * 32)], 1466000000.25)
        asked = {asked.unit.size: asked.receipt for asked in ledger.handshakes()}
    assert asked.keys() == {1, 2, 3}
    assert len(set(asked.values())) == 3


def test_a_name_that_is_taken_there_waits(local: Local, old: OldReceiver) -> None:
    (local.target / "radar.dat").write_bytes(b"a stranger's")
    local.put("radar.dat", b"echoes")
    for _ in range(4):
        assert local.once().code == 1
    assert local.names(local.spool) == {"radar.dat"}
    assert (local.target / "radar.dat").read_bytes() == b"a stranger's"
    (local.target / "radar.dat").unlink()
    with old:
        assert local.once().code == 0


def test_a_stop_file_there_holds_the_sender(local: Local, old: OldReceiver) -> None:
    local.put("radar.dat", b"echoes")
    (local.target / ".stop").touch()
    assert local.once().code == 5
    assert left(local) == {".stop"}
    (local.target / ".stop").unlink()
    with old:
        assert local.once().code == 0


def test_a_mirror_sends_what_has_changed_and_keeps_the_source(local: Local, old: OldReceiver) -> None:
    local.configure(SEND + "transfer_mode = mirror\n")
    with old:
        for content in (b"first", b"second"):
            local.put("radar.dat", content)
            assert local.once().code == 0
            assert (local.top / "kept/radar.dat").read_bytes() == content
        assert local.once().code == 0
    assert old.data_seen == [b"first", b"second"]
    assert local.names(local.spool) == {"radar.dat"}


# -- names, digests ----------------------------------------------------------------------------------------


def test_directories_are_refused_or_written_into_names(local: Local, old: OldReceiver) -> None:
    local.put("north/radar.dat", b"echoes")
    with old:
        assert local.once().code == 1
        assert "set [outgoing] flatten = yes" in local.run("quarantine", "list", local.ini).out
        assert old.diary == []
        local.configure(SEND + "flatten = yes\n")
        assert local.run("quarantine", "release", "--all", local.ini).code == 0
        local.put("50%", b"per cent")
        assert local.once().code == 0
    assert local.names(local.top / "kept") == {"north%2Fradar.dat", "50%25"}
    assert local.names(local.spool) == set()
    assert proofs(local) == {"north/radar.dat": "receipt", "50%": "receipt"}


@pytest.mark.parametrize("checksum", ["md5", "blake2b", "sha256"])
def test_the_control_file_has_an_md5_whatever_the_stream_s_digest_is(
    local: Local, old: OldReceiver, checksum: str
) -> None:
    more = "receipt_checksum = sha256\n" if checksum == "sha256" else ""
    local.configure(f"{SEND}checksum = {checksum}\n{more}")
    local.put("radar.dat", b"echoes")
    with old:
        assert local.once().code == 0
    has_digest = any(f".sha256-{hashlib.sha256(b'echoes').hexdigest()}." in entry for entry in old.diary)
    assert has_digest is (checksum == "sha256")


def test_what_is_told_of_a_stream_that_only_receives(local: Local) -> None:
    receiver, spool = local.top / "receiver.ini", local.top / "kept"
    receiver.write_text(
        f"[global]\nstate_dir = {local.state}\n[data_stream]\ndirectory = {spool}\n"
        f"[incoming]\nrequire_arrival_monitor = yes\ndirectory = {local.target}\n"
        "[outgoing]\ntransfer_protocol = none\n"
    )
    checked = local.run("check", "--connect", receiver)
    assert checked.code == 0, checked
    assert "It sends nothing." in checked.out
    assert "can be read and emptied" in checked.out
    assert local.run("run", "--once", "--dry-run", receiver).code == 0
    control = local.target / ".bad.stager-ctrl-bss"
    control.write_bytes(b"not one")
    os.utime(control, (0, 0))
    result = local.run("run", "--once", "--json", receiver)
    assert result.code == 1
    assert [event["event"] for event in events(result)] == ["refused", "summary"]
    assert "it is no whole control file" in local.run("quarantine", "list", receiver).out
    (local.target / ".stop").touch()
    result = local.run("run", "--once", receiver)
    assert (result.code, "paused by" in result.err) == (5, True)


def test_two_of_ours_prove_sha256(local: Local) -> None:
    """The receiver is ours: damage that leaves the MD5 as it was does not exist, so the claim is damaged."""
    kept, receiver = local.top / "kept", local.top / "receiver.ini"
    receiver.write_text(
        f"[global]\nstate_dir = {local.state}\ngeneral_poll_interval = 0.1\n[data_stream]\ndirectory = {kept}\n"
        f"[incoming]\nrequire_arrival_monitor = yes\ndirectory = {local.target}\n"
        "[outgoing]\ntransfer_protocol = none\n"
    )
    local.configure(SEND + "receipt_checksum = sha256\n")
    local.put("radar.dat", b"echoes")
    running = local.start("run", receiver)
    try:
        assert local.once().code == 0
        wait_for(lambda: left(local) == set(), "all to be thanked for")
    finally:
        running.terminate()
        result = ended(running)
    assert result.code == 0
    assert "received 1 file" in result.out
    assert local.names(kept) == {"radar.dat"}
