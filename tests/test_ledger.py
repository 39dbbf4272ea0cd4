"""The record of a stream: durable, one writer's, and never in the way of what it records."""

from __future__ import annotations

import os
import pwd
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mistamover import config
from mistamover.errors import Held, LedgerError
from mistamover.ledger import _SCHEMA, VERSION, Asked, Entry, Ledger, Stage, View, contents, entries
from mistamover.stream import Stream
from mistamover.testing.rig import small_disk
from mistamover.unit import Content, Identity, State, Unit

TARGET = "sftp://user@host/data"
NOW = 1_800_000_000.25
ODD = os.fsdecode(b"caf\xe9\n\xff/'; DROP TABLE delivery; --%s")


def unit(path: str = "a/file", number: int = 0, *, digest: str = "5ea1", proof: str = "digest") -> Unit:
    identity = Identity(7, number, 100 + number, 2**62 + number, -(2**62) - number)
    return Unit(path, identity, digest=digest, proof=proof)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "state" / "images"


@pytest.fixture
def ledger(directory: Path) -> Iterator[Ledger]:
    ledger = Ledger(directory, TARGET, "sha256")
    yield ledger
    ledger.close()


def rows(ledger: View) -> list[Entry]:
    return list(entries(ledger.path))


# -- what is recorded ----------------------------------------------------------------------------------


def test_nothing_is_known_of_what_is_new(ledger: Ledger) -> None:
    assert ledger.record("a/file") is None
    assert ledger.known(1) is None
    assert rows(ledger) == []


def test_a_delivery_is_recorded_with_its_proof(ledger: Ledger) -> None:
    sent = unit()
    (number,) = ledger.deliver([sent], NOW)
    record = ledger.record(sent.path)
    assert record is not None
    assert (record.id, record.identity, record.state) == (number, sent.identity, State.DELIVERED)
    assert ledger.known(number) == (sent.path, sent.identity, True)
    (entry,) = rows(ledger)
    assert entry == Entry(
        number, "a/file", TARGET, State.DELIVERED, 100, "sha256", "5ea1", "digest", 0, 0.0, "", NOW
    )


def test_what_was_moved_away_is_history(ledger: Ledger) -> None:
    first, second = ledger.deliver([unit("a"), unit("b")], NOW)
    ledger.removed([first], NOW + 1)
    assert ledger.record("a") is None
    assert ledger.record("b") is not None
    assert ledger.known(first) == ("a", unit("a").identity, True)
    assert {entry.path: entry.state for entry in rows(ledger)} == {"a": State.REMOVED, "b": State.DELIVERED}
    assert second > first


def test_a_failure_waits_for_its_time(ledger: Ledger) -> None:
    failed = unit(digest="", proof="")
    number = ledger.wait(failed, 2, NOW + 60, "the target did not take it", NOW)
    record = ledger.record(failed.path)
    assert record is not None
    assert record == (number, failed.identity, State.WAITING, 2, NOW + 60, "the target did not take it")
    assert ledger.known(number) == (failed.path, failed.identity, False)
    assert rows(ledger)[0].algorithm == ""


def test_a_later_failure_or_delivery_answers_an_earlier_failure(ledger: Ledger) -> None:
    ledger.wait(unit(), 1, NOW + 60, "once", NOW)
    ledger.wait(unit("another"), 1, NOW + 60, "another's", NOW)
    ledger.wait(unit(), 2, NOW + 120, "twice", NOW + 61)
    record = ledger.record("a/file")
    assert record is not None
    assert record.attempts == 2
    assert len(rows(ledger)) == 2
    ledger.deliver([unit()], NOW + 130)
    assert [(entry.path, entry.state) for entry in rows(ledger)] == [
        ("another", State.WAITING),
        ("a/file", State.DELIVERED),
    ]


def test_failures_of_an_earlier_process_are_answered_too(directory: Path) -> None:
    for outcome in ("failure", "delivery"):
        ledger = Ledger(directory, TARGET, "sha256")
        if outcome == "failure":
            ledger.wait(unit(), 1, NOW + 60, "once", NOW)
        else:
            ledger.deliver([unit()], NOW)
        ledger.close()
    assert [entry.state for entry in entries(ledger.path)] == [State.DELIVERED]


def test_what_is_set_aside_can_be_released(ledger: Ledger) -> None:
    number = ledger.quarantine(unit(), 3, "name taken", NOW)
    record = ledger.record("a/file")
    assert record is not None
    assert (record.id, record.state, record.attempts, record.reason) == (number, State.QUARANTINED, 3, "name taken")
    ledger.release(number)
    assert ledger.record("a/file") is None
    (delivered,) = ledger.deliver([unit()], NOW)
    ledger.release(delivered)
    assert ledger.record("a/file") is not None, "only what is set aside can be released"


def test_numbers_are_not_used_again(ledger: Ledger) -> None:
    """A file in the trash or in quarantine is known by its record's number."""
    first = ledger.quarantine(unit(), 3, "name taken", NOW)
    ledger.release(first)
    assert ledger.quarantine(unit(), 3, "name taken", NOW) > first


def test_the_last_word_counts(ledger: Ledger) -> None:
    for number in range(5):
        ledger.deliver([unit(number=number)], NOW - number)
    record = ledger.record("a/file")
    assert record is not None
    assert record.identity == unit(number=4).identity
    assert len(rows(ledger)) == 5


def test_another_target_has_a_record_of_its_own(directory: Path) -> None:
    for target in (TARGET, "local:///elsewhere"):
        ledger = Ledger(directory, target, "sha256")
        assert ledger.record("a/file") is None
        ledger.deliver([unit()], NOW)
        ledger.wait(unit("b"), 1, NOW, "not there", NOW)
        ledger.close()
    view = View(directory, TARGET)
    waiting = view.record("b")
    view.close()
    assert waiting is not None, "the other target's wait does not answer for this one's"


@pytest.mark.parametrize("path", [ODD, "n" * 255, "/".join(["d" * 250] * 20), "caf\u00e9", "cafe\u0301", " ", "'"])
def test_paths_are_bytes(ledger: Ledger, path: str) -> None:
    ledger.deliver([unit(path)], NOW)
    record = ledger.record(path)
    assert record is not None
    assert ledger.known(record.id) == (path, unit(path).identity, True)
    assert [entry.path for entry in rows(ledger)] == [path]
    assert ledger.record(path + "x") is None


def test_reasons_may_say_anything(ledger: Ledger) -> None:
    for number, reason in enumerate((os.fsdecode(b"\xff"), "two\nlines", "\0", "'", "\u20ac" * 1000)):
        ledger.wait(unit(str(number)), 1, NOW, reason, NOW)
        record = ledger.record(str(number))
        assert record is not None
        assert record.reason == reason.encode("utf-8", "backslashreplace").decode()


numbers = st.integers(-(2**63), 2**63 - 1)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(st.binary(min_size=1, max_size=20), st.builds(Identity, numbers, numbers, numbers, numbers, numbers))
def test_whatever_goes_in_comes_out(ledger: Ledger, path: bytes, identity: Identity) -> None:
    sent = Unit(os.fsdecode(path), identity, digest="5ea1")
    (number,) = ledger.deliver([sent], NOW)
    record = ledger.record(sent.path)
    assert record is not None
    assert (record.id, record.identity) == (number, identity)
    assert ledger.known(number) == (sent.path, identity, True)


# -- what is durable -----------------------------------------------------------------------------------


def test_what_was_recorded_is_there_after_reopening(directory: Path) -> None:
    ledger = Ledger(directory, TARGET, "sha256")
    ledger.deliver([unit(str(number), number) for number in range(100)], NOW)
    ledger.close()
    ledger = Ledger(directory, TARGET, "sha256")
    assert all(ledger.record(str(number)) for number in range(100))
    assert ledger.record("100") is None
    ledger.close()


def test_what_was_recorded_is_there_after_a_crash(directory: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from mistamover.ledger import Ledger\n"
        "from tests.test_ledger import NOW, TARGET, unit\n"
        "ledger = Ledger(Path(sys.argv[1]), TARGET, 'sha256')\n"
        "ledger.deliver([unit('recorded')], NOW)\n"
        "ledger._db.execute('PRAGMA cache_size = 1')\n"
        "ledger._db.execute('BEGIN IMMEDIATE')\n"
        "for number in range(2000):\n"
        "    ledger._insert(ledger._db, unit(f'not recorded {number}'), 'delivered', NOW)\n"
        "os._exit(9)"
    )
    checkout = Path(__file__).parents[1]
    result = subprocess.run([sys.executable, "-c", program, str(directory)], check=False, cwd=checkout)
    assert result.returncode == 9
    assert (directory / "ledger.sqlite-journal").stat().st_size, "it crashed in the middle of a transaction"
    view = View(directory, TARGET)
    assert view.record("recorded") is not None
    assert view.record("not recorded 7") is None
    view.close()
    assert [entry.path for entry in entries(directory / "ledger.sqlite")] == ["recorded"]
    ledger = Ledger(directory, TARGET, "sha256")
    assert ledger.record("recorded") is not None
    assert ledger.record("not recorded 7") is None
    ledger.close()


def test_commits_are_on_disk_when_they_return(ledger: Ledger) -> None:
    (mode,) = ledger._db.execute("PRAGMA journal_mode").fetchone()
    (synchronous,) = ledger._db.execute("PRAGMA synchronous").fetchone()
    assert mode == "truncate"
    assert synchronous == 2, "FULL"


def test_a_batch_is_recorded_as_a_whole_or_not_at_all(ledger: Ledger) -> None:
    good, bad = unit("good"), unit("bad")._replace(digest=None)  # type: ignore[arg-type]
    with pytest.raises(LedgerError):
        ledger.deliver([good, bad], NOW)
    assert ledger.record("good") is None
    ledger.deliver([good], NOW)
    assert ledger.record("good") is not None


def test_a_full_disk_is_said_and_goes_by(ledger: Ledger) -> None:
    ledger.deliver([unit("before")], NOW)
    (pages,) = ledger._db.execute("PRAGMA page_count").fetchone()
    ledger._db.execute(f"PRAGMA max_page_count = {pages}")
    for _ in range(2):
        with pytest.raises(LedgerError, match="full"):
            ledger.deliver([unit(f"{number}/{'x' * 200}") for number in range(1000)], NOW)
    assert ledger.record("before") is not None
    ledger._db.execute("PRAGMA max_page_count = 100000")
    ledger.deliver([unit("after")], NOW)
    assert {entry.path for entry in rows(ledger)} == {"before", "after"}


@pytest.mark.needs("root", "mount", "umount")
def test_a_file_system_that_is_full_is_said_with_what_to_do(directory: Path) -> None:
    """Where SQLite itself has ended the transaction, there is nothing to be rolled back."""
    directory.mkdir(parents=True)
    many = [unit(f"{number}/{'x' * 200}") for number in range(20_000)]
    with small_disk(directory, "size=1m"), closing(Ledger(directory, TARGET, "sha256")) as ledger:
        ledger.deliver([unit("before")], NOW)
        for _ in range(2):
            with pytest.raises(LedgerError, match=r"full; .*; make room there"):
                ledger.deliver(many, NOW)
        assert [entry.path for entry in rows(ledger)] == ["before"]


# -- handshakes ----------------------------------------------------------------------------------------


def test_a_handshake_is_known_until_it_has_ended(directory: Path) -> None:
    sent = unit(ODD)._replace(md5="ad5", attempt=3)
    asked = Asked(sent._replace(proof=""), ODD + ".1.00.r", Stage.ASKED, NOW)
    other = asked._replace(receipt=".b.1.00.r", stage=Stage.STALE, asked=NOW + 1)
    with closing(Ledger(directory, TARGET, "sha256")) as ledger:
        ledger.note([other, asked])
        assert ledger.handshakes() == [asked, other]
    with closing(Ledger(directory, "elsewhere", "sha256")) as ledger:
        assert ledger.handshakes() == []
    with closing(Ledger(directory, TARGET, "sha256")) as ledger:
        answered = asked._replace(stage=Stage.ANSWERED, thankyou=".a.t")
        ledger.deliver([sent], NOW, [answered])
        assert ledger.handshakes() == [answered, other]
        ledger.forget([asked.receipt, other.receipt])
        assert ledger.handshakes() == []
        assert {entry.path for entry in rows(ledger)} == {sent.path}


def test_a_ledger_of_the_first_version_is_taken_over(directory: Path) -> None:
    with closing(Ledger(directory, TARGET, "sha256")) as ledger:
        ledger.deliver([unit("before")], NOW)
    db = sqlite3.connect(directory / "ledger.sqlite")
    db.executescript("DROP TABLE content; DROP TABLE handshake; PRAGMA user_version = 1;")
    db.close()
    with closing(View(directory, TARGET)) as view:
        assert view.record("before") is not None, "looking at it needs no newer version"
    for _ in range(2):
        with closing(Ledger(directory, TARGET, "sha256")) as ledger:
            assert ledger.record("before") is not None
            assert ledger.handshakes() == []
            ledger.note([])


# -- what cannot be used -------------------------------------------------------------------------------


def test_a_ledger_of_an_earlier_version_is_taken_over(directory: Path) -> None:
    directory.mkdir(parents=True)
    path = directory / "ledger.sqlite"
    with sqlite3.connect(path) as db:
        db.executescript(f"{_SCHEMA} PRAGMA user_version = 1;")
        db.execute(
            "INSERT INTO delivery (path, target, state, dev, ino, size, mtime_ns, ctime_ns, changed)"
            " VALUES (?, ?, 'delivered', 1, 2, 3, 4, 5, 6)",
            (b"old", TARGET),
        )
    db.close()
    assert contents(path, 1) == []
    ledger = Ledger(directory, TARGET, "sha256")
    assert ledger.has_delivered("old")
    files = (Content("new/\udce9", 2, "5ea1"), Content("new/b", 0, "5ea2"))
    (record,) = ledger.deliver([unit("new")._replace(contents=files)], NOW)
    assert contents(path, record) == [files[1], files[0]]
    ledger.close()


def test_a_ledger_of_a_newer_version_is_left_alone(directory: Path) -> None:
    Ledger(directory, TARGET, "sha256").close()
    db = sqlite3.connect(directory / "ledger.sqlite")
    db.execute(f"PRAGMA user_version = {VERSION + 1}")
    db.close()
    before = (directory / "ledger.sqlite").read_bytes()
    for _ in range(2):
        with pytest.raises(LedgerError, match=f"newer mistamover .format {VERSION + 1}.; upgrade"):
            Ledger(directory, TARGET, "sha256")
    assert (directory / "ledger.sqlite").read_bytes() == before


def _spoil(file: Path, how: str) -> None:
    data = file.read_bytes()
    if how == "not a database":
        file.write_bytes(b"something else" * 1000)
    elif how == "its head overwritten":
        file.write_bytes(bytes(200) + data[200:])
    elif how == "another database":
        file.unlink()
        db = sqlite3.connect(file)
        db.executescript(f"CREATE TABLE other (id); PRAGMA user_version = {VERSION};")
        db.close()
    elif how == "truncated":
        file.write_bytes(data[: len(data) // 2])
    elif how == "a directory":
        file.unlink()
        file.mkdir()


SPOILT = ["not a database", "its head overwritten", "another database", "truncated", "a directory"]


@pytest.mark.parametrize("how", SPOILT)
def test_with_a_spoilt_ledger_nothing_is_moved(tmp_path: Path, how: str) -> None:
    for name in ("spool", "target"):
        (tmp_path / name).mkdir()
    stream = tmp_path / "images.ini"
    stream.write_text(
        f"[global]\nstate_dir = {tmp_path}/state\n[data_stream]\ndirectory = {tmp_path}/spool\nsettle_time = 0\n"
        f"[outgoing]\ntransfer_protocol = local\ntarget_dir = {tmp_path}/target\n"
    )
    options = config.load(stream, None, {})
    (tmp_path / "spool" / "first").write_bytes(b"first")
    with Stream(options) as running:
        running.run_pass(patient=True)
    assert (tmp_path / "target" / "first").exists()
    (tmp_path / "spool" / "second").write_bytes(b"second")
    _spoil(tmp_path / "state" / "images" / "ledger.sqlite", how)
    for _ in range(2):
        with pytest.raises(LedgerError, match=r"ledger\.sqlite"), Stream(options) as running:
            running.run_pass(patient=True)
    assert (tmp_path / "spool" / "second").read_bytes() == b"second"
    assert sorted(os.listdir(tmp_path / "target")) == [".mistamover", "first"]


@pytest.mark.parametrize("how", SPOILT)
def test_reading_a_spoilt_ledger_says_so(ledger: Ledger, directory: Path, how: str) -> None:
    ledger.deliver([unit(str(number)) for number in range(500)], NOW)
    _spoil(ledger.path, how)
    with pytest.raises(LedgerError, match=str(ledger.path)):
        list(entries(ledger.path))
    with pytest.raises(LedgerError, match=str(ledger.path)):
        _read_all(directory)


def _read_all(directory: Path) -> None:
    view = View(directory, TARGET)
    try:
        for number in range(500):
            view.record(str(number))
    finally:
        view.close()


def test_a_ledger_that_was_only_begun_is_empty(directory: Path) -> None:
    """A crash between making the file and its tables."""
    directory.mkdir(parents=True)
    (directory / "ledger.sqlite").touch()
    assert list(entries(directory / "ledger.sqlite")) == []
    view = View(directory, TARGET)
    assert view.record("a/file") is None
    view.close()
    ledger = Ledger(directory, TARGET, "sha256")
    ledger.deliver([unit()], NOW)
    ledger.close()


@pytest.mark.parametrize("place", ["state", "state/images"])
def test_a_place_that_is_no_directory_is_said(directory: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).touch()
    with pytest.raises(LedgerError, match=str(directory)):
        Ledger(directory, TARGET, "sha256")


@pytest.mark.needs("root")
def test_a_directory_that_may_not_be_written_is_said() -> None:
    directory = Path(tempfile.mkdtemp())
    user = pwd.getpwnam("nobody").pw_uid
    try:
        os.chown(directory, user, -1)
        os.seteuid(user)
        Ledger(directory / "images", TARGET, "sha256").close()
        directory.chmod(0o555)
        with pytest.raises(LedgerError, match="no place for the ledger: Permission denied"):
            Ledger(directory / "other", TARGET, "sha256")
        (directory / "images" / "ledger.sqlite").chmod(0o444)
        (directory / "images").chmod(0o555)
        ledger = Ledger(directory / "images", TARGET, "sha256")
        with pytest.raises(LedgerError, match=r"ledger\.sqlite"):
            ledger.deliver([unit()], NOW)
        ledger.close()
        view = View(directory / "images", TARGET)
        assert view.record("a/file") is None
        view.close()
    finally:
        os.seteuid(0)
        shutil.rmtree(directory)


# -- who holds it --------------------------------------------------------------------------------------


def test_a_ledger_has_one_writer(directory: Path, ledger: Ledger) -> None:
    for _ in range(2):
        with pytest.raises(Held, match=str(directory)):
            Ledger(directory, TARGET, "sha256")
    ledger.deliver([unit()], NOW)


def test_a_failed_try_holds_nothing(directory: Path) -> None:
    directory.mkdir(parents=True)
    (directory / "ledger.sqlite").write_bytes(b"something else" * 1000)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(LedgerError):
            Ledger(directory, TARGET, "sha256")
    assert len(os.listdir("/proc/self/fd")) == before


def test_reading_does_not_hold_it(directory: Path, ledger: Ledger) -> None:
    ledger.deliver([unit()], NOW)
    view = View(directory, TARGET)
    assert view.record("a/file") is not None
    ledger.deliver([unit("b")], NOW)
    assert view.record("b") is not None
    first = next(iter(entries(ledger.path)))
    ledger.deliver([unit("c")], NOW)
    assert first.path == "a/file"
    view.close()


def test_looking_at_a_ledger_that_is_not_there_touches_nothing(directory: Path, tmp_path: Path) -> None:
    view = View(directory, TARGET)
    assert view.record("a/file") is None
    assert view.known(1) is None
    view.close()
    assert list(entries(directory / "ledger.sqlite")) == []
    assert os.listdir(tmp_path) == []


def test_looking_at_a_ledger_changes_nothing(directory: Path) -> None:
    ledger = Ledger(directory, TARGET, "sha256")
    ledger.deliver([unit()], NOW)
    ledger.close()
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in directory.iterdir()}
    view = View(directory, TARGET)
    assert view.record("a/file") is not None
    view.close()
    assert len(rows(ledger)) == 1
    assert {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in directory.iterdir()} == before


# -- how much work it is -------------------------------------------------------------------------------


def _steps(ledger: Ledger, path: str) -> int:
    """How many instructions SQLite's machine takes to find a record."""
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    ledger._db.set_progress_handler(count, 1)
    ledger.record(path)
    ledger._db.set_progress_handler(None, 1)
    return steps


@pytest.mark.parametrize("removed", [True, False], ids=["moved", "mirrored"])
def test_a_path_that_was_delivered_a_thousand_times_is_found_at_once(ledger: Ledger, removed: bool) -> None:
    ledger._db.execute("PRAGMA synchronous = OFF")  # a thousand commits would take a while
    ledger.deliver([unit(str(number)) for number in range(100)], NOW)
    before = _steps(ledger, "50")
    for number in range(1000):
        (record,) = ledger.deliver([unit("again", number)], NOW)
        if removed:
            ledger.removed([record], NOW)
    assert _steps(ledger, "again") <= 2 * before
    assert (ledger.record("again") is None) is removed


def test_finding_a_record_uses_the_index(ledger: Ledger) -> None:
    statements: list[str] = []
    ledger.deliver([unit()], NOW)
    ledger._db.set_trace_callback(statements.append)
    ledger.record("a/file")
    ledger.wait(unit(), 1, NOW, "a reason", NOW)
    ledger.deliver([unit()], NOW)
    ledger._db.set_trace_callback(None)
    searches = [text for text in statements if text.startswith(("SELECT", "DELETE"))]
    assert len(searches) >= 3
    for text in searches:
        plan = " ".join(row[3] for row in ledger._db.execute(f"EXPLAIN QUERY PLAN {text}"))
        assert "USING INDEX delivery_open (path=? AND target=?)" in plan, text
        assert "TEMP B-TREE" not in plan, text


# -- reading it ----------------------------------------------------------------------------------------


def test_entries_are_chosen_by_state_time_and_number(ledger: Ledger) -> None:
    ledger.deliver([unit("delivered")], NOW + 3)
    ledger.wait(unit("waiting"), 1, NOW, "a reason", NOW + 1)
    aside = ledger.quarantine(unit("aside"), 1, "a reason", NOW + 2)
    assert [entry.path for entry in rows(ledger)] == ["waiting", "aside", "delivered"]
    chosen = entries(ledger.path, states=[State.WAITING, State.QUARANTINED])
    assert [entry.path for entry in chosen] == ["waiting", "aside"]
    assert [entry.path for entry in entries(ledger.path, since=NOW + 2)] == ["aside", "delivered"]
    assert [entry.path for entry in entries(ledger.path, record=aside)] == ["aside"]
    assert list(entries(ledger.path, states=[State.WAITING], record=aside)) == []
