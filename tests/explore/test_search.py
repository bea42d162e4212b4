# SPDX-License-Identifier: GPL-2.0-or-later
"""The reduced search agrees with the unreduced one, and finds what is there."""

from __future__ import annotations

import random
from functools import partial

import pytest

from gmemu.explore import Kind, Outcome, explore, replay
from gmemu.sync import Deadlock
from gmemu.sync.explored import NotDeterministic

from .programs import Body, Program, philosophers, random_body, random_program


@pytest.mark.parametrize("seed", [*range(60), 1188, 1300, 1522])
def test_reduced_and_unreduced_reach_the_same_ends(seed: int) -> None:
    build = random_program(seed)
    reduced = explore(build, stop_at_violation=False)
    full = explore(build, reduce=False, stop_at_violation=False, max_schedules=60_000)
    assert full.outcome is Outcome.EXHAUSTED
    assert reduced.outcome is Outcome.EXHAUSTED
    assert reduced.states == full.states
    assert reduced.schedules <= full.schedules


def test_independent_tasks_need_one_schedule() -> None:
    def own(i: int) -> Body:
        def run(program: Program) -> None:
            program.atomics[i].add(1)
            program.atomics[i].add(1)

        return run

    result = explore(lambda: Program(own(0), own(1), own(2)))
    assert (result.outcome, result.schedules) == (Outcome.EXHAUSTED, 1)


def test_writers_of_one_variable_need_as_many_as_there_are_orders() -> None:
    def write(i: int) -> Body:
        return lambda program: program.atomics[0].set(i)

    result = explore(lambda: Program(write(1), write(2), write(3)))
    assert result.schedules == 6
    assert {state[0][0] for state in result.states} == {1, 2, 3}  # type: ignore[index]


def test_philosophers_deadlock_and_one_left_handed_saves_them() -> None:
    result = explore(philosophers(3))
    assert (result.outcome, result.kind) == (Outcome.VIOLATED, Kind.DEADLOCK)
    assert explore(philosophers(3, left_handed=True)).outcome is Outcome.EXHAUSTED


def test_a_violation_replays_along_its_choices() -> None:
    result = explore(philosophers(3))
    for _ in range(10):
        trace, error = replay(philosophers(3), result.choices)
        assert isinstance(error, Deadlock)
        assert [(t.task, t.step.kind) for t in trace] == [(t.task, t.step.kind) for t in result.trace]


def test_a_choice_that_can_not_be_followed_is_said_to_be_so() -> None:
    with pytest.raises(NotDeterministic, match="task 7"):
        replay(philosophers(2), (7,))


def test_a_program_that_depends_on_something_else_is_found_out() -> None:
    runs: list[int] = []

    def fickle(program: Program) -> None:
        runs.append(1)
        if len(runs) % 2:
            program.locks[0].__enter__()
        program.atomics[0].add(1)

    with pytest.raises(NotDeterministic):
        explore(lambda: Program(fickle, fickle, fickle), stop_at_violation=False)


def test_bounds_make_a_search_incomplete() -> None:
    def write(program: Program) -> None:
        for atomic in program.atomics:
            atomic.add(1)

    assert explore(lambda: Program(write, write, write), max_schedules=3).outcome is Outcome.INCOMPLETE


@pytest.mark.parametrize("seed", range(20))
def test_of_tasks_that_are_alike_one_order_is_enough(seed: int) -> None:
    def build(group: str) -> Program:
        program = Program(atomics=2, locks=2)
        for i in range(3):
            body = random_body(random.Random(seed), f"t{i}", 3)
            program.runtime.spawn(f"t{i}", partial(body, program), group)
        return program

    alike = explore(lambda: build("t"), stop_at_violation=False)
    apart = explore(lambda: build(""), stop_at_violation=False)
    assert alike.outcome is apart.outcome is Outcome.EXHAUSTED
    assert alike.schedules <= apart.schedules
    assert nameless(alike.states) == nameless(apart.states)


def nameless(states: frozenset[object]) -> set[object]:
    """The ends, with what each task saw but not which one saw it."""
    return {
        state if isinstance(state, str) else (state[0], tuple(sorted(seen for _, seen in state[1])))  # type: ignore[index]
        for state in states
    }
