"""A mirror whose ledger is empty looks at the target before it sends."""

from __future__ import annotations

import shutil
from pathlib import Path

from mistamover.config import load
from mistamover.events import Event, Kind
from mistamover.stream import Stream


def run(top: Path) -> tuple[list[Event], int]:
    """One pass: what happened, and how many bytes were sent."""
    file = top / "s.ini"
    file.write_text(
        f"[global]\nstate_dir = {top}/state\n[data_stream]\ndirectory = {top}/spool\nsettle_time = 0\n"
        f"[outgoing]\ntransfer_protocol = local\ntarget_dir = {top}/target\ntransfer_mode = mirror\n"
    )
    events: list[Event] = []
    sent: set[int] = set()

    def report(event: Event) -> None:
        events.append(event)
        sent.add(sum(lane.sent for lane in stream.crew.lanes))

    with Stream(load(file, None, {}), report) as stream:
        stream.run_pass(patient=True)
    return events, max(sent)


def test_what_is_there_is_not_sent_again(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "spool/deep").mkdir(parents=True)
    same = {"one": b"1" * 1000, "deep/two": b"2" * 2000, "empty": b""}
    for name, content in same.items():
        (tmp_path / "spool" / name).write_bytes(content)
    assert run(tmp_path)[1] == 3000
    shutil.rmtree(tmp_path / "state")
    (tmp_path / "spool/new").write_bytes(b"n" * 10)
    (tmp_path / "spool/other").write_bytes(b"ours")
    (tmp_path / "target/other").write_bytes(b"more")
    before = {name: (tmp_path / "target" / name).stat().st_ino for name in same}
    events, sent = run(tmp_path)
    assert sent == len(b"n" * 10 + b"ours")
    assert {event.path for event in events if event.kind is Kind.DELIVERED} == {*same, "new"}
    assert {event.path for event in events if event.kind is Kind.QUARANTINED} == {"other"}
    assert before == {name: (tmp_path / "target" / name).stat().st_ino for name in same}
    assert (tmp_path / "target/other").read_bytes() == b"more"
    events, sent = run(tmp_path)
    assert sent == 0
    assert {event.path for event in events if event.kind is Kind.UNCHANGED} == {*same, "new"}
