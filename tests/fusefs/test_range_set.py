"""Byte ranges against a model: a set of ints."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cloudai_fusefs.range_set import RangeSet

PLACES = st.integers(min_value=0, max_value=60)
RANGES = st.tuples(PLACES, PLACES).map(lambda pair: (min(pair), max(pair)))


class RangeSetAgainstModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.ranges = RangeSet()
        self.model: set[int] = set()

    @rule(place=RANGES)
    def add(self, place: tuple[int, int]) -> None:
        self.ranges.add(*place)
        self.model |= set(range(*place))

    @rule(start=PLACES)
    def remove_from(self, start: int) -> None:
        self.ranges.remove_from(start)
        self.model = {byte for byte in self.model if byte < start}

    @rule(place=RANGES)
    def covers_as_the_model_does(self, place: tuple[int, int]) -> None:
        assert self.ranges.covers(*place) == (set(range(*place)) <= self.model)

    @rule(place=RANGES)
    def has_any_as_the_model_does(self, place: tuple[int, int]) -> None:
        assert self.ranges.has_any_of(*place) == bool(set(range(*place)) & self.model)

    @rule(place=RANGES)
    def splits_as_the_model_does(self, place: tuple[int, int]) -> None:
        parts = self.ranges.split(*place)
        told = [(byte, present) for start, end, present in parts for byte in range(start, end)]
        assert told == [(byte, byte in self.model) for byte in range(*place)]
        assert all(start < end for start, end, _ in parts)
        assert all(before[2] != after[2] for before, after in pairwise(parts))

    @invariant()
    def holds_the_same_bytes_in_merged_ranges(self) -> None:
        assert {byte for start, end in self.ranges for byte in range(start, end)} == self.model
        assert self.ranges.size_bytes == len(self.model)
        edges = [edge for pair in self.ranges for edge in pair]
        assert edges == sorted(set(edges))


TestRangeSetAgainstModel = RangeSetAgainstModel.TestCase


def test_ranges_that_touch_become_one() -> None:
    ranges = RangeSet()
    ranges.add(0, 4)
    ranges.add(8, 12)
    ranges.add(4, 8)
    assert list(ranges) == [(0, 12)]


def test_split_tells_holes_and_data_in_order() -> None:
    ranges = RangeSet()
    ranges.add(10, 20)
    ranges.add(30, 40)
    assert ranges.split(5, 35) == [(5, 10, False), (10, 20, True), (20, 30, False), (30, 35, True)]


def test_truncation_cuts_the_range_it_falls_into() -> None:
    ranges = RangeSet()
    ranges.add(0, 10)
    ranges.add(20, 30)
    ranges.remove_from(5)
    assert list(ranges) == [(0, 5)]
    assert ranges.size_bytes == 5


def test_empty_range_is_covered_by_the_empty_set() -> None:
    assert RangeSet().covers(7, 7)


@given(steps=st.lists(st.integers(min_value=1, max_value=9), max_size=50))
def test_sequential_adds_stay_one_range(steps: list[int]) -> None:
    ranges = RangeSet()
    end = 0
    for step in steps:
        ranges.add(end, end + step)
        end += step
    assert list(ranges) == ([(0, end)] if steps else [])


@pytest.mark.parametrize(("start", "end"), [(-1, 3), (5, 4)])
def test_what_is_no_range_is_refused(start: int, end: int) -> None:
    with pytest.raises(ValueError, match="not a range"):
        RangeSet().add(start, end)
