"""Decisions about units: pure functions, tried with all that may come."""

from __future__ import annotations

import os
from collections.abc import Callable
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from mistamover.unit import (
    LONGEST_WAIT,
    ORDERS,
    Identity,
    Ignored,
    Record,
    State,
    Unit,
    Verdict,
    attempts_before,
    batches,
    even_batches,
    judge,
    looks_settled,
    next_wait,
    unit_id,
)

calm = settings(max_examples=50, deadline=None)
"""A machine may be busy."""

NOW = 1_800_000_000.0
IDENTITY = Identity(1, 2, 3, 1_700_000_000_000_000_000, 1_700_000_000_000_000_001)
UNIT = Unit("path", IDENTITY)

numbers = st.integers(0, 2**63 - 1)
identities = st.builds(Identity, numbers, numbers, st.integers(0, 2**40), numbers, numbers)
units = st.builds(Unit, st.text(min_size=1, max_size=3), identities)


def record(state: State, *, next_try: float = 0.0, identity: Identity = IDENTITY) -> Record:
    return Record(7, identity, state, 1, next_try, "a reason")


# -- identity ------------------------------------------------------------------------------------------


def test_an_identity_is_what_the_file_says(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"four")
    found = (tmp_path / "file").stat()
    assert Identity.of(found) == (found.st_dev, found.st_ino, 4, found.st_mtime_ns, found.st_ctime_ns)


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def _rewrite(path: Path) -> None:
    before = path.stat()
    path.write_bytes(b"FOUR")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _replace(path: Path) -> None:
    before = path.stat()
    other = path.with_name("other")
    other.write_bytes(b"four")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(other, path)


def _tick(path: Path) -> None:
    """Let the file system's clock, which is coarse, go on."""
    began = path.stat().st_ctime_ns
    while path.stat().st_ctime_ns == began:
        path.with_name("clock").write_bytes(b"")
        if path.with_name("clock").stat().st_ctime_ns > began:
            return


@pytest.mark.parametrize("change", [_append, _rewrite, _replace, os.utime], ids=lambda change: change.__name__)
def test_every_change_shows(tmp_path: Path, change: Callable[[Path], None]) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"four")
    before = Identity.of(path.stat())
    _tick(path)
    change(path)
    assert Identity.of(path.stat()) != before


def test_renaming_is_no_change(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"four")
    before = Identity.of(path.stat())
    _tick(path)
    after = Identity.of(path.rename(tmp_path / "renamed").stat())
    assert after.is_same_but_for_ctime(before)


@calm
@given(identities, st.sampled_from(["dev", "ino", "size", "mtime_ns"]))
def test_same_but_for_ctime_means_all_else(identity: Identity, field: str) -> None:
    assert identity._replace(ctime_ns=identity.ctime_ns + 1).is_same_but_for_ctime(identity)
    changed = identity._replace(**{field: getattr(identity, field) + 1})
    assert not changed.is_same_but_for_ctime(identity)


@pytest.mark.parametrize(("ino", "mtime_ns"), [(2**64 - 1, 0), (2**63, 0), (2**63 - 1, 2**63), (5, 2**64)])
def test_an_identity_fits_into_a_database(ino: int, mtime_ns: int) -> None:
    """Some file systems have inodes above 2**63, and times after the year 2262."""
    times = {"st_mtime_ns": mtime_ns, "st_ctime_ns": 0}
    found = Identity.of(os.stat_result((0o100644, ino, 1, 1, 0, 0, 5, 0, 0, 0), times))
    other = Identity.of(os.stat_result((0o100644, ino - 1, 1, 1, 0, 0, 5, 0, 0, 0), times))
    assert all(-(2**63) <= value < 2**63 for value in found)
    assert found.ino != other.ino
    assert (found.mtime_ns > 0) == (mtime_ns > 0)


# -- verdicts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mirror", [False, True])
def test_what_nobody_knows_is_sent(mirror: bool) -> None:
    assert judge(UNIT, None, mirror=mirror, now=NOW) is Verdict.SEND


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("field", Identity._fields)
def test_what_changed_is_sent_whatever_became_of_its_last_version(state: State, mirror: bool, field: str) -> None:
    other = IDENTITY._replace(**{field: getattr(IDENTITY, field) + 1})
    known = record(state, next_try=NOW + 1, identity=other)
    assert judge(UNIT, known, mirror=mirror, now=NOW) is Verdict.SEND


def test_what_was_delivered_is_removed_and_a_mirrored_one_kept() -> None:
    assert judge(UNIT, record(State.DELIVERED), mirror=False, now=NOW) is Verdict.REMOVE
    assert judge(UNIT, record(State.DELIVERED), mirror=True, now=NOW) is Verdict.KEEP


@pytest.mark.parametrize("mirror", [False, True])
def test_what_is_set_aside_is_held(mirror: bool) -> None:
    assert judge(UNIT, record(State.QUARANTINED), mirror=mirror, now=NOW) is Verdict.HOLD


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize(
    ("next_try", "verdict"),
    [
        (0.0, Verdict.SEND),
        (NOW - 1, Verdict.SEND),
        (NOW, Verdict.SEND),
        (NOW + 0.001, Verdict.WAIT),
        (NOW + LONGEST_WAIT, Verdict.WAIT),
        (NOW + LONGEST_WAIT + 1, Verdict.SEND),
        (float("inf"), Verdict.SEND),
    ],
)
def test_what_failed_waits_for_its_time(next_try: float, verdict: Verdict, mirror: bool) -> None:
    assert judge(UNIT, record(State.WAITING, next_try=next_try), mirror=mirror, now=NOW) is verdict


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("is_this_version", [False, True])
@pytest.mark.parametrize("state", State)
def test_removing_needs_a_delivery_of_this_very_version(state: State, is_this_version: bool, mirror: bool) -> None:
    known = record(state, identity=IDENTITY if is_this_version else IDENTITY._replace(ctime_ns=1))
    may_go = state is State.DELIVERED and is_this_version and not mirror
    assert (judge(UNIT, known, mirror=mirror, now=NOW) is Verdict.REMOVE) == may_go


@calm
@given(st.integers(1, 10**6), st.floats(0, 10**6), st.floats(0, 1))
@example(10**9, 10**9, 1.0)
def test_a_wait_written_now_binds(attempts: int, interval: float, jitter: float) -> None:
    """What next_wait gives, judge honours: it must not take it for a clock that was set back."""
    wait = next_wait(attempts, interval, jitter)
    assume(wait > 1)
    known = record(State.WAITING, next_try=NOW + wait)
    assert judge(UNIT, known, mirror=False, now=NOW) is Verdict.WAIT
    assert judge(UNIT, known, mirror=False, now=NOW + wait) is Verdict.SEND


# -- waiting and settling ------------------------------------------------------------------------------


@calm
@given(st.integers(1, 10**6), st.floats(0, 10**6), st.floats(0, 1))
def test_waits_grow_to_a_limit(attempts: int, interval: float, jitter: float) -> None:
    wait = next_wait(attempts, interval, jitter)
    assert 0 <= wait <= LONGEST_WAIT
    assert wait <= next_wait(attempts + 1, interval, jitter)
    assert wait >= next_wait(attempts, interval, 0.0) >= wait / 2


def test_waits_double() -> None:
    assert [next_wait(attempts, 60.0, 1.0) for attempts in (1, 2, 3, 4)] == [60.0, 120.0, 240.0, 480.0]
    assert next_wait(50, 60.0, 1.0) == LONGEST_WAIT


@pytest.mark.parametrize(
    ("mtime", "ctime", "is_settled"),
    [
        (-100.0, -100.0, True),
        (-5.0, -5.0, True),
        (-4.9, -100.0, False),
        (-100.0, -4.9, False),  # mv and cp -p bring old times along; when it came here shows in its ctime
        (+100.0, -100.0, False),
        (-100.0, +100.0, False),
        (-NOW, -100.0, True),  # 1970
        (-NOW - 100.0, -100.0, True),
    ],
)
def test_settled_is_what_neither_time_says_was_touched(mtime: float, ctime: float, is_settled: bool) -> None:
    identity = Identity(1, 2, 3, int((NOW + mtime) * 10**9), int((NOW + ctime) * 10**9))
    assert looks_settled(identity, 5.0, NOW) is is_settled


@calm
@given(identities, st.floats(0, 10**6), st.floats(0, 10**10), st.floats(0, 10**6))
def test_what_is_settled_stays_so(identity: Identity, settle_time: float, now: float, later: float) -> None:
    if looks_settled(identity, settle_time, now):
        assert looks_settled(identity, settle_time, now + later)
        assert looks_settled(identity, 0.0, now)


# -- names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["a.tmp", "b.part", ".tmp", ".hidden", ".stop", ".mistamover", "..", "x~", "new\nline.tmp"]
)
def test_these_are_no_units(name: str) -> None:
    assert Ignored(["*.tmp", "*.part", "*~"])(name)


@pytest.mark.parametrize("name", ["a.tmp.gz", "tmp", "a.TMP", "atmp", "x~y", "a.tmp\n", " .hidden", "\udcff"])
def test_these_are(name: str) -> None:
    assert not Ignored(["*.tmp", "*.part", "*~"])(name)


def test_without_patterns_only_dot_names_are_ignored() -> None:
    ignored = Ignored([])
    assert ignored(".x")
    assert not ignored("x.tmp")


names = st.text(min_size=1, max_size=8).filter(lambda name: "/" not in name and "\0" not in name)
patterns = st.text(st.sampled_from("ab.*?[]!-|()\\^$+{}"), min_size=1, max_size=8)


@calm
@given(names, st.lists(patterns, max_size=4))
@example("a|b", ["a|b", "c"])
@example("x", ["(", "x"])
def test_patterns_are_those_of_the_shell_and_do_not_mix(name: str, wanted: list[str]) -> None:
    expected = name.startswith(".") or any(fnmatchcase(name, pattern) for pattern in wanted)
    assert Ignored(wanted)(name) is expected


# -- batches and orders --------------------------------------------------------------------------------

sizes = st.lists(st.integers(0, 50), max_size=60)


def of_sizes(numbers: list[int]) -> list[Unit]:
    return [Unit(str(count), Identity(0, count, size, 0, 0)) for count, size in enumerate(numbers)]


@pytest.mark.parametrize(
    ("count", "files", "expected"),
    [
        (1000, 1024, [1000]),
        (1000, 4096, [1000]),
        (3000, 1024, [750] * 4),
        (3000, 4096, [1500] * 2),
        (10_000, 4096, [2500] * 4),
        (300, 256, [150] * 2),
    ],
)
def test_more_than_one_lane_can_carry_soon_is_shared_out(count: int, files: int, expected: list[int]) -> None:
    assert [len(batch) for batch in even_batches(of_sizes([1] * count), 2, files)] == expected


@calm
@given(sizes, st.integers(1, 8), st.integers(1, 60))
def test_batches_hold_all_in_order_and_keep_to_their_limits(numbers: list[int], files: int, size: int) -> None:
    found = list(batches(of_sizes(numbers), files, size))
    assert [unit for batch in found for unit in batch] == of_sizes(numbers)
    for batch in found:
        assert 1 <= len(batch) <= files
        assert sum(unit.size for unit in batch) <= size or len(batch) == 1
    for batch, after in pairwise(found):
        fits = len(batch) < files and sum(unit.size for unit in batch) + after[0].size <= size
        assert not fits, "a batch was closed too early"


def test_a_batch_is_given_as_soon_as_it_is_full() -> None:
    taken = 0

    def counted() -> object:
        nonlocal taken
        for unit in of_sizes([1] * 100):
            taken += 1
            yield unit

    next(batches(counted(), files=10, size=100))  # type: ignore[arg-type]
    assert taken == 10


@pytest.mark.parametrize("order", ["oldest", "newest", "smallest", "largest"])
@calm
@given(st.lists(units, max_size=10))
def test_orders(order: str, found: list[Unit]) -> None:
    found.sort(key=ORDERS[order])
    field = "mtime_ns" if order in {"oldest", "newest"} else "size"
    values = [getattr(unit.identity, field) for unit in found]
    assert values == sorted(values, reverse=order in {"newest", "largest"})


def test_every_order_of_the_configuration_is_there() -> None:
    from typing import get_args

    from mistamover.options import DataStream

    assert set(get_args(DataStream.model_fields["order"].annotation)) == ORDERS.keys()


# -- what is told of a unit ----------------------------------------------------------------------------


def test_a_unit_id_is_of_the_very_file() -> None:
    first = unit_id(UNIT)
    assert len(first) == 8
    assert int(first, 16) >= 0
    later = UNIT._replace(staged="00", digest="ab", proof="digest", attempt=3, is_update=True)
    assert unit_id(later) == first
    others = [UNIT._replace(path="other"), *(UNIT._replace(identity=other) for other in _others())]
    assert len({first, *map(unit_id, others)}) == 7
    assert unit_id(UNIT._replace(path="\udcff")) != unit_id(UNIT._replace(path="\udcfe"))


def _others() -> list[Identity]:
    return [IDENTITY._replace(**{name: 9}) for name in Identity._fields]


@pytest.mark.parametrize(
    ("known", "attempts"),
    [(None, 0), (record(State.WAITING), 1), (record(State.WAITING, identity=IDENTITY._replace(ino=9)), 0)],
)
def test_failures_count_for_the_very_file(known: Record | None, attempts: int) -> None:
    assert attempts_before(UNIT, known) == attempts


@pytest.mark.parametrize("mtime_ns", [-(7 * 10**25), -(2**63) - 1, 2**63, 7 * 10**25])
def test_times_that_no_database_holds_are_cut_to_what_it_holds(mtime_ns: int) -> None:
    stat = SimpleNamespace(st_dev=1, st_ino=2, st_size=3, st_mtime_ns=mtime_ns, st_ctime_ns=4)
    found = Identity.of(cast(os.stat_result, stat))
    assert -(2**63) <= found.mtime_ns < 2**63
