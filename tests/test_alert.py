"""The gate: what is told of conditions, and when. Time is simulated."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mistamover.alert import (
    HOUR,
    MINUTE,
    MOST_AN_HOUR,
    NO_ACKS,
    Acks,
    Condition,
    Letter,
    Memory,
    Rules,
    Trouble,
    What,
    gate,
)

START = 1_800_000_000.0
DAY = 24 * HOUR
STEP = 5.0


class Life:
    """A day or more of some conditions and of the gate in front of them."""

    def __init__(self) -> None:
        self.rules = Rules()
        self.now = START
        self.memory = Memory()
        self.conditions: dict[str, Condition] = {}
        self.acks = NO_ACKS
        self.letters: list[tuple[float, Letter]] = []

    def begin(self, trouble: Trouble = Trouble.TARGET, stream: str = "images") -> str:
        one = Condition(trouble, stream, since=self.now, last=self.now)
        before = self.conditions.get(one.key)
        self.conditions[one.key] = replace(one, begun=before.begun + 1 if before else 1)
        return one.key

    def grow(self, key: str, to: int) -> None:
        self.conditions[key] = replace(self.conditions[key], count=to, last=self.now)

    def end(self, key: str) -> None:
        self.conditions[key] = replace(self.conditions[key], ended=self.now)

    def look(self) -> Letter | None:
        letter, self.memory = gate(self.memory, self.conditions.values(), self.now, self.rules, self.acks)
        if letter is not None:
            self.letters.append((self.now, letter))
        return letter

    def go_on(self, seconds: float, each_step: Callable[[], object] = lambda: None) -> None:
        until = self.now + seconds
        while self.now < until:
            each_step()
            self.look()
            self.now += STEP

    @property
    def told(self) -> list[tuple[float, str, What]]:
        """When what was told, in minutes since the start."""
        return [
            (round((at - START) / MINUTE), one.condition.key, one.what)
            for at, letter in self.letters
            for one in letter.news
        ]


def test_one_letter_when_it_begins_and_one_when_it_ends() -> None:
    life = Life()
    key = life.begin()
    life.go_on(HOUR)
    assert life.told == [(1, key, What.BEGINS)]
    life.end(key)
    life.go_on(DAY)
    assert life.told[1:] == [(61, key, What.ENDS)]


def test_what_lasts_is_told_again_less_and_less_often() -> None:
    life = Life()
    life.begin()
    life.go_on(8 * DAY)
    assert [round(at / 60) for at, _, what in life.told if what is What.LASTS] == [12, 36, 84, 180]


def test_conditions_of_the_same_minute_are_told_together() -> None:
    life = Life()
    for stream in ("a", "b", "c"):
        life.begin(stream=stream)
        life.go_on(20)
    life.go_on(HOUR)
    assert [len(letter.news) for _, letter in life.letters] == [3]


def test_what_came_and_went_between_two_looks_is_told() -> None:
    life = Life()
    key = life.begin()
    life.end(key)
    life.go_on(HOUR)
    assert life.told == [(1, key, What.PASSED)]


@pytest.mark.parametrize("period", [60, 300, 1200, 3600, 7200])
def test_failing_and_recovering_for_a_day_is_bounded_and_the_last_letter_tells_how_it_is(period: float) -> None:
    for ends_open in (False, True):
        life = Life()
        key = ""
        for _ in range(round(DAY / period)):
            key = life.begin()
            life.go_on(period / 2)
            life.end(key)
            life.go_on(period / 2)
        if ends_open:
            key = life.begin()
        life.go_on(2 * HOUR)
        in_order = [letter for _, letter in life.letters]
        assert len(in_order) <= 26, "about one an hour at the most"
        (last,) = in_order[-1].news
        assert last.condition.is_open == ends_open
        assert last.what in ({What.BEGINS} if ends_open else {What.ENDS, What.PASSED})
        if not ends_open:
            news = [one for letter in in_order for one in letter.news]
            told_alone = len({one.condition.since for one in news})
            assert told_alone + sum(one.begins for one in news) == round(DAY / period), "each time is counted once"


def test_no_more_letters_than_the_limit_and_what_was_held_back_is_counted_and_told() -> None:
    life = Life()
    for number in range(40):
        life.begin(stream=f"s{number}")
        life.go_on(100)
    life.go_on(HOUR)
    times = [at for at, _ in life.letters]
    assert all(sum(1 for other in times if at <= other < at + HOUR) <= MOST_AN_HOUR for at in times)
    assert sorted(key for _, key, _ in life.told) == sorted(life.conditions)
    assert sum(letter.held for _, letter in life.letters) >= 30


def test_ten_thousand_units_that_fail_one_by_one_are_few_letters_with_the_right_count() -> None:
    life = Life()
    key = life.begin(Trouble.QUARANTINE)
    counted = count(1)
    life.go_on(HOUR, lambda: life.grow(key, next(counted) * 14))
    assert len(life.letters) <= 3
    life.go_on(2 * HOUR)
    (last,) = life.letters[-1][1].news
    assert last.condition.count == life.conditions[key].count == 720 * 14


def test_more_of_it_is_told_although_there_was_less_meanwhile() -> None:
    life = Life()
    key = life.begin(Trouble.QUARANTINE)
    for counted in (50, 10, 11):
        life.grow(key, counted)
        life.go_on(3 * HOUR)
    assert [one.condition.count for _, letter in life.letters for one in letter.news] == [50, 11]


def test_that_a_message_comes_no_more_is_no_news() -> None:
    life = Life()
    key = life.begin(Trouble.LOG)
    life.go_on(HOUR)
    life.end(key)
    life.go_on(DAY)
    assert [what for _, _, what in life.told] == [What.BEGINS]
    life.begin(Trouble.LOG)
    life.go_on(HOUR)
    assert [what for _, _, what in life.told] == [What.BEGINS, What.BEGINS]


def test_what_is_silenced_is_told_when_the_silence_ends_and_when_it_is_over() -> None:
    life = Life()
    key = life.begin()
    other = life.begin(stream="other")
    life.acks = Acks({"images": START + 20 * HOUR})
    life.go_on(19 * HOUR)
    assert [told for told in life.told if told[1] == key] == []
    assert [what for _, of, what in life.told if of == other] == [What.BEGINS, What.LASTS]
    life.go_on(2 * HOUR)
    assert [told for told in life.told if told[1] == key] == [(20 * 60, key, What.BEGINS)]
    life.acks = Acks({key: life.now + 3 * HOUR})
    life.go_on(HOUR)
    life.end(key)
    life.go_on(HOUR)
    assert [what for _, of, what in life.told if of == key] == [What.BEGINS, What.ENDS]


def test_what_is_still_wrong_after_a_silence_is_told_again() -> None:
    life = Life()
    key = life.begin()
    life.go_on(HOUR)
    life.acks = Acks({key: START + 3 * HOUR})
    life.go_on(3 * HOUR)
    assert life.told == [(1, key, What.BEGINS), (180, key, What.LASTS)]


def test_what_nobody_knows_any_more_has_ended() -> None:
    life = Life()
    key = life.begin()
    life.go_on(HOUR)
    life.conditions.clear()
    life.go_on(HOUR)
    assert life.told == [(1, key, What.BEGINS), (60, key, What.ENDS)]
    life.go_on(3 * DAY)
    assert life.memory.told == {}


@pytest.mark.parametrize("shift", [-10 * DAY, 10 * DAY])
def test_a_clock_that_is_set_keeps_nothing_silent(shift: float) -> None:
    life = Life()
    key = life.begin()
    life.now += shift
    life.go_on(HOUR)
    assert [what for _, _, what in life.told] == [What.BEGINS]
    life.now -= shift
    life.end(key)
    life.go_on(2 * HOUR)
    assert life.told[-1][2] is What.ENDS


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3000), st.sampled_from("abc"), st.booleans()), max_size=60))
def test_in_the_end_everything_is_told_as_it_is(happens: Iterable[tuple[int, str, bool]]) -> None:
    """Whatever begins and ends in whatever order, and never more letters than the limit."""
    life = Life()
    for seconds, stream, is_wrong in happens:
        key = f"{stream}/target"
        before = life.conditions.get(key)
        if is_wrong and (before is None or not before.is_open):
            life.begin(stream=stream)
        elif not is_wrong and before is not None and before.is_open:
            life.end(key)
        life.now += seconds
        life.look()
    life.go_on(3 * HOUR)
    last = {one.condition.key: one.condition for _, letter in life.letters for one in letter.news}
    assert {key: one.is_open for key, one in last.items()} == {
        key: one.is_open for key, one in life.conditions.items()
    }
    times = [at for at, _ in life.letters]
    assert all(sum(1 for other in times if at <= other < at + HOUR) <= MOST_AN_HOUR for at in times)
