# SPDX-License-Identifier: GPL-2.0-or-later
"""What is reported is simple, and was replayed."""

from __future__ import annotations

from functools import partial

import pytest

from gmemu.explore import Kind, explore
from gmemu.explore.minimise import Attempt, attempt, confirm, minimise
from gmemu.scenarios import CATALOGUE

from .programs import Program


class Lost(Program):
    """Two increments that aren't atomic, and steps around them that have nothing to do with it."""

    def __init__(self) -> None:
        super().__init__(self.increment, self.increment, self.idle, atomics=4)

    def increment(self, program: Program) -> None:
        for _ in range(3):
            self.atomics[1].add(1)
        self.atomics[0].set(self.atomics[0].read() + 1)
        for _ in range(3):
            self.atomics[2].add(1)

    def idle(self, program: Program) -> None:
        for _ in range(4):
            self.atomics[3].add(1)

    def check(self) -> None:
        assert self.atomics[0].read() == 2, "an increment was lost"


def test_a_schedule_with_many_switches_becomes_one_with_one() -> None:
    turns = tuple(task for _ in range(20) for task in (0, 1, 2))
    found = attempt(Lost, turns)
    assert (found.kind, found.preemptions > 10) == (Kind.ASSERTION, True)
    simple = minimise(Lost, found, seconds=20)
    assert (simple.kind, simple.preemptions) == (Kind.ASSERTION, 1)
    assert simple.cost < found.cost
    assert confirm(Lost, simple) == ""


def test_a_search_reports_the_simplest() -> None:
    result = explore(Lost)
    assert (result.kind, result.preemptions) == (Kind.ASSERTION, 1)
    assert attempt(Lost, result.choices).choices == result.choices


def test_two_preemptions_where_it_takes_two() -> None:
    result = explore(partial(CATALOGUE["guest-fault"], ("store-after-invalidate",)))
    assert (result.kind, result.preemptions) == (Kind.INVARIANT, 1)


def test_a_program_that_changes_its_mind_is_not_deterministic() -> None:
    runs: list[int] = []

    class Fickle(Program):
        def check(self) -> None:
            runs.append(1)
            assert len(runs) != 4, "the fourth run"

    found = attempt(partial(Fickle, lambda program: None), ())
    assert found.kind is None
    said = confirm(partial(Fickle, lambda program: None), found)
    assert said.startswith("not deterministic: replay 3 ended")
    steps: list[int] = []

    def other_step(program: Program) -> None:
        steps.append(1)
        program.atomics[len(steps) > 5].add(1)

    found = attempt(partial(Program, other_step), ())
    assert "differs at step 1" in confirm(partial(Program, other_step), found)


def test_what_fails_once_is_reported_as_that() -> None:
    runs: list[int] = []

    class Once(Program):
        def check(self) -> None:
            runs.append(1)
            assert len(runs) != 3, "once"

    result = explore(partial(Once, *[lambda program: program.atomics[0].add(1)] * 3))
    assert result.kind is Kind.NOT_DETERMINISTIC
    assert "it was found as assertion: once" in result.detail


@pytest.mark.parametrize("kind", [Kind.ASSERTION, None])
def test_cost_goes_by_preemptions_first(kind: Kind | None) -> None:
    few = Attempt(kind, "", (0, 0, 0, 1, 1, 1, 2), (), 0)
    short = Attempt(kind, "", (0, 1, 0), (), 1)
    assert few.cost < short.cost
