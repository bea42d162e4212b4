# SPDX-License-Identifier: GPL-2.0-or-later
"""`RangeMap` against a plain dict."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from gmemu import rangemap
from gmemu.rangemap import RangeMap


@pytest.fixture(scope="module", autouse=True, params=[(4096, 2048), (8, 3)], ids=["small", "wide"])
def limits(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test twice: as maps are, and with limits so low that all but the smallest are wide."""
    before = rangemap._LIMIT, rangemap._PART
    rangemap._LIMIT, rangemap._PART = request.param
    yield
    rangemap._LIMIT, rangemap._PART = before


END = 40
TOP = 1 << 64

index = st.integers(0, END)
value = st.sampled_from([None, 0, 1, 2, "a"])
operation = st.tuples(index, index, value)


def apply(operations: list[tuple[int, int, object]]) -> tuple[RangeMap[object], dict[int, object]]:
    """The map and its model after the same operations."""
    ranges: RangeMap[object] = RangeMap()
    model: dict[int, object] = {}
    for start, end, new in operations:
        ranges.set(start, end, new)
        for i in range(start, end):
            if new is None:
                model.pop(i, None)
            else:
                model[i] = new
    return ranges, model


@given(st.lists(operation, max_size=12))
def test_every_index_holds_what_the_model_holds(operations: list[tuple[int, int, object]]) -> None:
    ranges, model = apply(operations)
    assert [ranges[i] for i in range(END + 1)] == [model.get(i) for i in range(END + 1)]


@given(st.lists(operation, max_size=12))
def test_runs_are_merged_and_cover_the_model(operations: list[tuple[int, int, object]]) -> None:
    ranges, model = apply(operations)
    runs = list(ranges.runs())
    assert {i: v for s, e, v in runs for i in range(s, e)} == model
    assert len(runs) == len(ranges)
    for (_, before, left), (after, _, right) in pairwise(runs):
        assert before < after or left != right


@given(st.lists(operation, max_size=12), index, index)
def test_runs_and_spans_of_a_part_are_clipped(operations: list[tuple[int, int, object]], start: int, end: int) -> None:
    ranges, model = apply(operations)
    spans = list(ranges.spans(start, end))
    assert [(i, v) for s, e, v in spans for i in range(s, e)] == [(i, model.get(i)) for i in range(start, end)]
    assert list(ranges.runs(start, end)) == [span for span in spans if span[2] is not None]


@given(st.lists(operation, max_size=12), index, index, value)
def test_covers_and_empty(operations: list[tuple[int, int, object]], start: int, end: int, wanted: object) -> None:
    ranges, model = apply(operations)
    if start < end:
        held = [model.get(i) for i in range(start, end)]
        assert ranges.covers(start, end, wanted) == all(v == wanted for v in held)
        assert ranges.empty(start, end) == all(v is None for v in held)


@given(st.lists(operation, max_size=12), index)
def test_run_is_the_whole_run(operations: list[tuple[int, int, object]], at: int) -> None:
    ranges, _ = apply(operations)
    start, end, held = ranges.run(at)
    assert start <= at < end
    assert ranges.covers(start, end, held)
    assert start == 0 or ranges[start - 1] != held
    assert end == TOP or ranges[end] != held


@given(st.lists(operation, max_size=12), st.lists(operation, max_size=12))
def test_equal_maps_are_those_with_equal_contents(
    first: list[tuple[int, int, object]], second: list[tuple[int, int, object]]
) -> None:
    left, left_model = apply(first)
    right, right_model = apply(second)
    assert (left == right) == (left_model == right_model)
    assert left == left.copy()


@given(st.lists(operation, max_size=12), operation)
def test_a_copy_is_independent(operations: list[tuple[int, int, object]], change: tuple[int, int, object]) -> None:
    ranges, model = apply(operations)
    copy = ranges.copy()
    copy.set(*change)
    assert [ranges[i] for i in range(END + 1)] == [model.get(i) for i in range(END + 1)]


def test_the_ends_of_the_range() -> None:
    ranges: RangeMap[int] = RangeMap()
    ranges.set(TOP - 2, TOP, 1)
    assert list(ranges.runs(0, TOP)) == [(TOP - 2, TOP, 1)]
    assert ranges[TOP - 1] == 1
    ranges.set(0, TOP, 2)
    assert ranges.run(12345) == (0, TOP, 2)
    ranges.clear(0, TOP)
    assert len(ranges) == 0
    assert ranges == RangeMap()


def test_an_empty_range_changes_nothing() -> None:
    ranges: RangeMap[int] = RangeMap()
    ranges.set(5, 5, 1)
    ranges.set(6, 2, 1)
    assert ranges == RangeMap()
    assert list(ranges.spans(3, 3)) == []


def test_spans_see_the_map_as_it_was() -> None:
    ranges: RangeMap[int] = RangeMap()
    ranges.set(0, 4, 1)
    ranges.set(4, 8, 2)
    seen = []
    for start, end, held in ranges.spans(0, 8):
        ranges.set(0, 8, None)
        seen.append((start, end, held))
    assert seen == [(0, 4, 1), (4, 8, 2)]


def test_it_says_what_it_holds() -> None:
    ranges: RangeMap[int] = RangeMap()
    ranges.set(0x10, 0x20, 7)
    assert repr(ranges) == "RangeMap([0x10, 0x20) 7)"


def test_a_map_grows_wide_and_small_again() -> None:
    """What is scattered over a large range is held in parts of bounded size; one run is one part again."""
    ranges: RangeMap[int] = RangeMap()
    pages = list(range(0, 20_000, 2))
    Random(1).shuffle(pages)
    for page in pages:
        ranges.set(page, page + 1, 1)
    assert len(ranges) == len(pages)
    assert type(ranges) is not RangeMap
    assert max(len(part._keys) for part in ranges._values) <= rangemap._PART + 2  # type: ignore[union-attr]
    assert list(ranges.runs(0, 20_000)) == [(page, page + 1, 1) for page in sorted(pages)]
    assert ranges.run(3) == (3, 4, None)
    assert ranges.run(30_000) == (19_999, TOP, None)
    ranges.set(0, 20_000, 1)
    assert (ranges.run(777), len(ranges)) == ((0, 20_000, 1), 1)
    ranges.set(0, TOP, None)
    assert ranges == RangeMap()


class Edits(RuleBasedStateMachine):
    """Long sequences of changes keep the runs merged."""

    marks = Bundle("marks")

    def __init__(self) -> None:
        super().__init__()
        self.ranges: RangeMap[object] = RangeMap()
        self.model: dict[int, object] = {}

    @rule(target=marks, at=index)
    def mark(self, at: int) -> int:
        return at

    @rule(start=marks, end=marks, new=value)
    def set(self, start: int, end: int, new: object) -> None:
        self.ranges.set(start, end, new)
        for i in range(start, end):
            self.model[i] = new

    @rule(start=marks, end=marks)
    def clear(self, start: int, end: int) -> None:
        self.ranges.clear(start, end)
        for i in range(start, end):
            self.model[i] = None

    @invariant()
    def neighbours_differ(self) -> None:
        spans = list(self.ranges.spans(0, END + 1))
        assert all(left[2] != right[2] for left, right in pairwise(spans))
        assert [v for s, e, v in spans for _ in range(s, e)] == [self.model.get(i) for i in range(END + 1)]


def test_edits() -> None:
    run_state_machine_as_test(Edits)
