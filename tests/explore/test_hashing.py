# SPDX-License-Identifier: GPL-2.0-or-later
"""Going on from a state but once loses nothing."""

from __future__ import annotations

from functools import partial

import pytest

from gmemu.explore import Kind, Outcome, explore
from gmemu.explore.parallel import explore_parallel
from gmemu.scenarios import CATALOGUE

from .programs import Body, Program, philosophers, random_program


@pytest.mark.parametrize("seed", range(200, 250))
def test_random_programs(seed: int) -> None:
    build = random_program(seed)
    plain = explore(build, stop_at_violation=False)
    reduced = explore(build, hashing=True, stop_at_violation=False)
    states_alone = explore(build, reduce=False, hashing=True, stop_at_violation=False)
    assert plain.outcome is reduced.outcome is states_alone.outcome is Outcome.EXHAUSTED
    assert plain.states == reduced.states == states_alone.states


def test_it_takes_fewer_runs_than_the_unreduced_search() -> None:
    def adds(program: Program) -> None:
        for _ in range(4):
            program.atomics[0].add(0)

    build = partial(Program, adds, adds)
    full, states = explore(build, reduce=False), explore(build, reduce=False, hashing=True)
    assert (full.schedules, states.schedules) == (252, 26)  # 10 over 5; one run to each point of a 6 x 6 grid but its edges


def test_a_race_is_found_though_the_flag_has_the_value_that_another_gave_it() -> None:
    """Who sees the flag set may have it from a task that came after the data was written, or from one that didn't."""

    def producer(program: Program) -> None:
        program.runtime.writes(("data", program, 0))
        program.atomics[0].set(1)

    def other(program: Program) -> None:
        program.atomics[0].set(1)

    def consumer(program: Program) -> None:
        if program.atomics[0].read():
            program.runtime.reads(("data", program, 0))

    for reduce in (True, False):
        assert explore(partial(Program, producer, consumer), reduce=reduce, hashing=True).outcome is Outcome.EXHAUSTED
        result = explore(partial(Program, producer, other, consumer), reduce=reduce, hashing=True)
        assert result.kind is Kind.RACE


def test_what_a_lock_guards_is_not_forgotten() -> None:
    """State that no mark names: a list that both change under the mutex."""

    class Listed(Program):
        def __init__(self) -> None:
            self.items: list[int] = []
            super().__init__(self.put(0), self.put(1), self.put(2))

        def put(self, item: int) -> Body:
            def run(program: Program) -> None:
                with program.locks[0]:
                    self.items.append(item)

            return run

        def state(self) -> object:
            return tuple(self.items)

    for reduce in (True, False):
        assert len(explore(Listed, reduce=reduce, hashing=True).states) == 6


@pytest.mark.parametrize("reduce", [True, False])
def test_deadlocks_lock_order_and_livelocks(reduce: bool) -> None:
    def polite(program: Program) -> None:
        while not program.atomics[0].read():
            program.runtime.resched()

    def in_order(*locks: int) -> Body:
        def run(program: Program) -> None:
            if program.atomics[0].add(1) == 1:
                with program.locks[locks[0]], program.locks[locks[1]]:
                    pass

        return run

    assert explore(philosophers(3), reduce=reduce, hashing=True).kind is Kind.DEADLOCK
    assert explore(philosophers(3, left_handed=True), reduce=reduce, hashing=True).outcome is Outcome.EXHAUSTED
    assert explore(partial(Program, in_order(0, 1), in_order(1, 0)), reduce=reduce, hashing=True).kind is Kind.LOCK_ORDER
    assert explore(partial(Program, polite, in_order(0, 1)), reduce=reduce, hashing=True).outcome is Outcome.EXHAUSTED
    assert explore(partial(Program, polite, polite), reduce=reduce, hashing=True).kind is Kind.LIVELOCK


BROKEN = [(name, variants) for name, scenario in CATALOGUE.items() for variants in scenario.broken_with()]


@pytest.mark.parametrize(("name", "variants"), BROKEN, ids=["+".join((name, *variants)) for name, variants in BROKEN])
def test_what_is_broken_is_found(name: str, variants: tuple[str, ...]) -> None:
    result = explore(partial(CATALOGUE[name], variants), hashing=True, minimise=False)
    assert result.kind in CATALOGUE[name].kinds_with(variants)


def test_one_process_remembers() -> None:
    with pytest.raises(ValueError, match="one process"):
        explore_parallel(Program, 2, hashing=True)
