"""What ``history`` and ``quarantine`` need, and what of the record still waits for a person."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from mistamover.ledger import Ledger
from mistamover.unit import Identity, Unit
from tests.program import Local


@pytest.fixture
def local(tmp_path: Path) -> Local:
    return Local(tmp_path)


# -- what they need ----------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(local: Local) -> Local:
    """A stream to another host with a unit in quarantine, which cannot log in any more."""
    local.configure()
    local.put("a", b"ours")
    local.put("a", b"theirs", at=local.target)
    assert local.once().code == 1
    ledger = local.state / "x/ledger.sqlite"
    assert ledger.exists()
    _retarget(ledger)
    local.ini.write_text(
        f"[global]\nstate_dir = {local.state}\n"
        f"[data_stream]\ndirectory = {local.spool}\n"
        f"[outgoing]\ntransfer_protocol = sftp\ntarget_host = archive.invalid\ntarget_dir = /data\n"
        f"[sftp]\nusername = mover\nkey_file = {local.top}/key\nknown_hosts = {local.top}/hosts\n"
        f"password_file = {local.top}/password\n[logging]\nbase_log_dir = {local.top}/log\n"
    )
    return local


def _retarget(ledger: Path) -> None:
    db = sqlite3.connect(ledger)
    with db:
        db.execute("UPDATE delivery SET target = 'sftp://mover@archive.invalid/data'")
    db.close()


def test_the_record_is_shown_without_what_a_log_in_needs(elsewhere: Local) -> None:
    refused = elsewhere.once()
    assert refused.code == 2
    assert all(what in refused.err for what in ("key_file", "known_hosts", "password_file", "base_log_dir"))
    shown = elsewhere.run("history", "--json", elsewhere.ini)
    assert (shown.code, shown.err) == (0, "")
    assert [json.loads(line)["state"] for line in shown.lines] == ["quarantined"]


def test_a_unit_is_released_without_what_a_log_in_needs(elsewhere: Local) -> None:
    listed = elsewhere.run("quarantine", "list", elsewhere.ini)
    assert (listed.code, len(listed.lines)) == (0, 2)
    assert elsewhere.run("quarantine", "show", elsewhere.ini, "a").code == 0
    released = elsewhere.run("quarantine", "release", elsewhere.ini, "a")
    assert (released.code, released.out) == (0, "released: a\n")


def test_what_names_the_record_has_to_be_right(elsewhere: Local) -> None:
    elsewhere.ini.write_text(elsewhere.ini.read_text().replace("target_host = archive.invalid\n", "lanse = 1\n"))
    for words in (["history"], ["quarantine", "list"]):
        result = elsewhere.run(*words, elsewhere.ini)
        assert result.code == 2
        assert "target_host: missing" in result.err
        assert "lanse: unknown option" in result.err


def test_a_password_is_blotted_out_of_the_record_too(elsewhere: Local) -> None:
    secret = elsewhere.put("password", b"xyzzy-plugh\n", at=elsewhere.top)
    secret.chmod(0o644)
    db = sqlite3.connect(elsewhere.state / "x/ledger.sqlite")
    with db:
        db.execute("UPDATE delivery SET reason = 'the server said xyzzy-plugh'")
    db.close()
    for words in (["history"], ["history", "--json"], ["quarantine", "list"]):
        result = elsewhere.run(*words, elsewhere.ini)
        assert result.code == 0
        assert "the server said" in result.out
        assert "xyzzy" not in result.out


# -- what waits for a person -------------------------------------------------------------------------------


@pytest.fixture
def mirror(local: Local) -> Local:
    """A mirror that could not deliver ``a``."""
    local.configure("transfer_mode = mirror")
    local.put("a", b"ours")
    (local.target / "a").mkdir()
    assert local.once().code == 1
    assert listed(local) == ["a"]
    return local


def listed(local: Local) -> list[str]:
    result = local.run("quarantine", "list", local.ini)
    assert result.code == 0
    return [line.split()[3] for line in result.lines[1:]]


def failed(local: Local) -> list[str]:
    return [json.loads(line)["state"] for line in local.run("history", "--failed", "--json", local.ini).lines]


def test_a_mirrored_unit_that_changed_or_was_delivered_waits_for_nobody(mirror: Local) -> None:
    mirror.put("a", b"a newer version")
    assert listed(mirror) == [], "the next pass takes it"
    (mirror.target / "a").rmdir()
    assert mirror.once().code == 0
    assert listed(mirror) == []
    assert failed(mirror) == []
    assert "quarantined" in mirror.run("history", mirror.ini).out, "it was so, and history tells"


def test_a_mirrored_unit_is_listed_as_it_failed_last(mirror: Local) -> None:
    mirror.put("a", b"a newer version, no better")
    assert mirror.once().code == 1
    assert listed(mirror) == ["a"]
    assert failed(mirror) == ["quarantined"]
    assert mirror.run("quarantine", "release", "--all", mirror.ini).out == "released: a\n"
    assert listed(mirror) == []
    (mirror.target / "a").rmdir()
    assert mirror.once().code == 0


def test_a_mirrored_unit_that_is_gone_waits_for_nobody(mirror: Local) -> None:
    (mirror.spool / "a").unlink()
    assert listed(mirror) == []


def test_what_a_move_set_aside_waits_though_its_name_was_delivered_since(local: Local) -> None:
    local.put("a", b"ours")
    theirs = local.put("a", b"theirs", at=local.target)
    assert local.once().code == 1
    theirs.unlink()
    local.put("a", b"the next of that name")
    assert local.once().code == 0
    assert listed(local) == ["a"]
    assert failed(local) == ["quarantined"]


# -- what waits for its next try ---------------------------------------------------------------------------


@pytest.fixture
def waiting(local: Local) -> Local:
    """A stream with two units that failed, and whose next try is not due yet."""
    with closing(Ledger(local.state / "x", f"local://{local.target}", "sha256")) as ledger:
        for path in ("a/x", "a/y"):
            unit = Unit(path, Identity.of(local.put(path).stat()))
            ledger.wait(unit, 1, time.time() + 3600, "not now", time.time())
    assert local.once().code == 1
    assert failed(local) == ["waiting", "waiting"]
    return local


def test_a_unit_that_is_gone_waits_for_nothing(waiting: Local) -> None:
    (waiting.spool / "a/x").unlink()
    assert "vanished: a/x" in waiting.once().err
    assert failed(waiting) == ["waiting"]
    (waiting.spool / "a/y").unlink()
    (waiting.spool / "a").rmdir()
    assert waiting.once().code == 0
    assert failed(waiting) == []


def test_a_unit_that_only_cannot_be_found_goes_on_waiting(waiting: Local) -> None:
    """Its attempts count on when it comes to light again."""
    (waiting.spool / "a").rename(waiting.top / "elsewhere")
    (waiting.spool / "a").symlink_to(waiting.top / "elsewhere")
    assert waiting.once().code == 0
    assert failed(waiting) == ["waiting", "waiting"]


# -- whose it is -------------------------------------------------------------------------------------------


def other(local: Local) -> Local:
    """A stream of the same name in another place, with the same records and the same target."""
    (local.top / "other").mkdir()
    other = Local(local.top / "other")
    other.state, other.target = local.state, local.target
    other.configure("transfer_mode = mirror")
    return other


def test_a_record_is_of_one_spool(local: Local) -> None:
    """A mirror replaces what it has delivered itself; by another's record it would replace what that one did."""
    local.configure("transfer_mode = mirror")
    local.put("a", b"of the first")
    assert local.once().code == 0
    second = other(local)
    second.put("a", b"of the second")
    refused = second.once()
    assert refused.code == 1
    assert f"x: is of a stream of that name with another spool, {local.spool}; " in refused.err
    assert (local.target / "a").read_bytes() == b"of the first"
    assert local.once().code == 0


def test_a_record_goes_with_its_spool(local: Local) -> None:
    """It may be renamed, or be made anew under its name."""
    local.put("a")
    assert local.once().code == 0
    local.spool = local.spool.rename(local.top / "renamed")
    local.configure()
    assert local.once().code == 0
    local.spool.rename(local.top / "old")
    local.spool.mkdir()
    assert local.once().code == 0


def test_a_record_is_given_to_another_spool_by_hand(local: Local) -> None:
    assert local.once().code == 0
    second = other(local)
    refused = second.once()
    named = refused.err.rstrip().rpartition("remove ")[2]
    Path(named).unlink()
    assert second.once().code == 0
    assert local.once().code == 1
