"""Decisions about free space: pure functions, with their arguments made up."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import NamedTuple

import pytest

from mistamover import disk
from mistamover.disk import Deletable, Held, Level, Need, Sample, Space, Stage, Trend
from mistamover.ini import Limit, limit
from mistamover.unit import Identity, Unit

MB = 2**20


class Limits(NamedTuple):
    level_good: Limit = Limit(1500 * MB)
    level_low: Limit = Limit(1000 * MB)
    level_vlow: Limit = Limit(500 * MB)


SHARES = Limits(Limit(30, is_share=True), Limit(20, is_share=True), Limit(10, is_share=True))


def space(free: float, inodes: int | None = None, total: float = 100_000 * MB, all_inodes: int = 1000) -> Space:
    return Space(int(free), inodes, int(total), 0 if inodes is None else all_inodes, 4096)


@pytest.mark.parametrize(
    ("limits", "space", "level"),
    [
        (Limits(), space(1500 * MB), Level.GOOD),
        (Limits(), space(1500 * MB - 1), Level.OKAY),
        (Limits(), space(1000 * MB), Level.OKAY),
        (Limits(), space(1000 * MB - 1), Level.LOW),
        (Limits(), space(500 * MB - 1), Level.VLOW),
        (SHARES, space(19 * MB, total=100 * MB), Level.LOW),
        # Inodes run out before bytes do.
        (Limits(), space(9000 * MB, inodes=30), Level.GOOD),
        (Limits(), space(9000 * MB, inodes=29), Level.OKAY),
        (Limits(), space(9000 * MB, inodes=9), Level.VLOW),
        (SHARES, space(90 * MB, inodes=199, total=100 * MB), Level.LOW),
        (Limits(), space(9000 * MB, inodes=None), Level.GOOD),
        # A level that the whole of it could never reach says nothing: there are shares for that.
        (Limits(), space(900 * MB, total=1000 * MB), Level.GOOD),
        (Limits(), space(40 * MB, total=1000 * MB), Level.VLOW),
        # Some file systems in user space say zero to everything.
        (Limits(), space(0, total=0), Level.GOOD),
        (SHARES, space(0, total=0), Level.GOOD),
    ],
)
def test_levels(limits: Limits, space: Space, level: Level) -> None:
    assert disk.level(limits, space) is level


def test_who_is_stopped_on_the_way_down_and_up() -> None:
    way = [
        (Level.GOOD, Held.NOBODY),
        (Level.OKAY, Held.NOBODY),
        (Level.LOW, Held.LOWER),
        (Level.OKAY, Held.LOWER),
        (Level.LOW, Held.LOWER),
        (Level.VLOW, Held.ALL),
        (Level.LOW, Held.ALL),
        (Level.VLOW, Held.ALL),
        (Level.OKAY, Held.LOWER),
        (Level.GOOD, Held.NOBODY),
        (Level.OKAY, Held.NOBODY),
    ]
    state = Held.NOBODY
    for level, expected in way:
        state = disk.held(state, level)
        assert state is expected, level


@pytest.mark.parametrize(
    ("lower", "upper", "kept"),
    [
        (Level.OKAY, Level.GOOD, Held.NOBODY),
        (Level.LOW, Level.OKAY, Held.LOWER),
        (Level.VLOW, Level.LOW, Held.ALL),
    ],
)
def test_flapping_around_a_limit_changes_nothing(lower: Level, upper: Level, kept: Held) -> None:
    state = disk.held(disk.held(Held.LOWER, lower), upper)
    for _ in range(3):
        state = disk.held(state, lower)
        assert state is kept
        state = disk.held(state, upper)
        assert state is kept


def test_priorities() -> None:
    stopped = {held: [disk.is_stopped(held, priority, 100) for priority in (99, 100, 101)] for held in Held}
    assert stopped == {Held.NOBODY: [False] * 3, Held.LOWER: [True, True, False], Held.ALL: [True] * 3}


def test_what_exists_nowhere_else_is_deleted_last_and_only_where_allowed() -> None:
    streams = [
        Deletable("b", 50, deletes=True, deletes_unsent=True),
        Deletable("a", 10, deletes=True, deletes_unsent=False),
        Deletable("c", 10, deletes=True, deletes_unsent=True),
        Deletable("never", 1, deletes=False, deletes_unsent=True),
        Deletable("above", 101, deletes=True, deletes_unsent=True),
    ]
    assert disk.deletions(streams, 100) == [
        (Stage.DELIVERED, "a"),
        (Stage.DELIVERED, "c"),
        (Stage.DELIVERED, "b"),
        (Stage.QUARANTINE, "c"),
        (Stage.QUARANTINE, "b"),
        (Stage.UNSENT, "c"),
        (Stage.UNSENT, "b"),
    ]


def test_what_is_missing() -> None:
    assert disk.need(Limits(), space(400 * MB, inodes=4)) == Need(100 * MB, 6)
    assert not disk.need(Limits(), space(400 * MB)).is_met
    assert not Need(-1, 1).is_met
    assert Need(10, 1).less(Need(10, 1)).is_met


def test_the_rate_is_of_the_last_minutes() -> None:
    trend = Trend()
    assert trend.rate is None
    trend.add(Sample(0, 10_000_000, 50))
    assert trend.rate is None
    trend.add(Sample(1000, 1000, 40))
    trend.add(Sample(1500, 700, 30))
    trend.add(Sample(1700, 300, 20))
    assert trend.rate == pytest.approx(-1)
    assert trend.inode_rate == pytest.approx(-20 / 700)
    assert disk.full_in(Space(300, 20), trend) == pytest.approx(300)
    assert disk.full_in(Space(3000, 1), trend) == pytest.approx(35)
    assert disk.seconds_until(1, 0.0) == disk.seconds_until(1, None) == inf


def test_it_looks_sooner_where_a_level_is_about_to_be_passed() -> None:
    trend = Trend()
    trend.add(Sample(0, 2000 * MB))
    assert disk.next_look(Limits(), space(2000 * MB), trend, 60) == 60
    trend.add(Sample(10, 1700 * MB))
    assert disk.next_look(Limits(), space(1700 * MB), trend, 60) == pytest.approx(200 / 30 / 2)
    assert disk.next_look(Limits(), space(1500 * MB + 1), trend, 60) == disk.SOONEST
    assert disk.next_look(Limits(), space(10 * MB), trend, 60) == 60


def test_who_says_zero_to_everything_does_not_tell() -> None:
    assert disk.room(Space(0)) is None
    assert disk.room(Space(0, total=1)) == Space(0, total=1)


def unit(name: str, size: int) -> Unit:
    return Unit(name, Identity(1, 1, size, 0, 0))


def test_of_a_batch_that_does_not_fit_the_smallest_go() -> None:
    units = [unit("large", 9000), unit("a", 1), unit("b", 4097), unit("empty", 0)]
    assert disk.fitting(units, Space(24576, None, block=4096)) == (units, [])
    fits, others = disk.fitting(units, Space(12288, None, block=4096))
    assert [one.path for one in fits] == ["a", "b", "empty"]
    assert [one.path for one in others] == ["large"]
    fits, _ = disk.fitting(units, Space(10**6, 2, block=4096))
    assert [one.path for one in fits] == ["a", "empty"]
    assert disk.fitting(units, Space(-5, None))[0] == []


def test_a_mount_point_is_found(tmp_path: Path) -> None:
    mount = disk.mount_point(tmp_path)
    assert mount.stat().st_dev == tmp_path.stat().st_dev
    assert mount.is_mount()
    with pytest.raises(OSError, match="No such file"):
        disk.mount_point(tmp_path / "missing")


@pytest.mark.parametrize(
    ("text", "expected", "said"),
    [
        ("1500", Limit(1500 * MB), "1500 MB"),
        ("1500 MB", Limit(1500 * MB), "1500 MB"),
        ("1.5GB", Limit(1536 * MB), "1536 MB"),
        ("10%", Limit(10, is_share=True), "10%"),
        ("2.5 %", Limit(2.5, is_share=True), "2.5%"),
    ],
)
def test_a_level_as_text(text: str, expected: Limit, said: str) -> None:
    assert limit(text) == expected
    assert str(expected) == said
    assert limit(said) == expected


@pytest.mark.parametrize("text", ["", "100%", "-1", "much", "1500 MBit", "%"])
def test_what_is_no_level(text: str) -> None:
    with pytest.raises(ValueError, match=r"^$"):
        limit(text)
