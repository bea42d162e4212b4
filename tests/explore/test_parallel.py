# SPDX-License-Identifier: GPL-2.0-or-later
"""Several processes come to what one comes to, and survive the loss of one."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest

from gmemu.explore import Options, Outcome, Progress, Watch, explore
from gmemu.explore.engines import Processes
from gmemu.explore.parallel import explore_parallel
from gmemu.explore.sampling import STRATEGIES
from gmemu.scenarios import CATALOGUE

from .programs import Program, philosophers, random_program
from .test_minimise import Lost


class Impatient(Processes):
    """Parts are as small as can be."""

    seconds = 0.0


def writers(program: Program) -> None:
    for atomic in program.atomics:
        atomic.add(1)


@pytest.mark.parametrize("reduce", [True, False])
def test_the_same_counts(reduce: bool) -> None:
    def build() -> Program:
        return Program(writers, writers, writers, atomics=2)

    one = explore(build, reduce=reduce)
    two = explore_parallel(build, 2, alone=0, engine=Impatient, reduce=reduce)
    assert (two.outcome, two.schedules, two.states) == (one.outcome, one.schedules, one.states)


@pytest.mark.parametrize("seed", range(3))
def test_random_programs_agree(seed: int) -> None:
    build = random_program(seed)
    one = explore(build, stop_at_violation=False)
    two = explore_parallel(build, 2, alone=0, engine=Impatient, stop_at_violation=False)
    assert (two.schedules, two.states) == (one.schedules, one.states)


def test_tasks_that_are_alike() -> None:
    build = partial(CATALOGUE["double-add"], ())
    one, two = explore(build), explore_parallel(build, 2, alone=0, engine=Impatient)
    assert (two[:3], two.states) == (one[:3], one.states)


def test_the_same_violation() -> None:
    one, two = explore(philosophers(3)), explore_parallel(philosophers(3), 2, alone=0, engine=Impatient)
    assert (two.kind, two.detail, two.choices) == (one.kind, one.detail, one.choices)


def test_a_scenario_and_how_far_it_is() -> None:
    build = partial(CATALOGUE["populate-abba"], ())
    said: list[Progress] = []
    one, two = explore(build), explore_parallel(build, 2, alone=0, engine=Impatient, watch=Watch(said.append, every=0))
    assert (two.outcome, two.schedules, two.states) == (one.outcome, one.schedules, one.states)
    assert all(0 <= progress.share <= 1 for progress in said)
    assert [p.schedules for p in said] == sorted(p.schedules for p in said)


def test_a_worker_that_dies_is_replaced_and_its_share_redone(tmp_path: Path) -> None:
    once, me = tmp_path / "died", os.getpid()

    def build() -> Program:
        if os.getpid() != me and not once.exists():
            once.touch()
            os._exit(9)
        return Program(writers, writers, atomics=2)

    two = explore_parallel(build, 2, alone=0, engine=Impatient)
    assert once.exists()
    assert two.schedules == explore(lambda: Program(writers, writers, atomics=2)).schedules


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("most", [1, 7, 40])
def test_a_bound_on_schedules_is_kept_to_the_letter(seed: int, most: int) -> None:
    build = random_program(seed)
    one = explore(build, reduce=False, stop_at_violation=False, max_schedules=most)
    two = explore_parallel(build, 2, alone=0, engine=Impatient, reduce=False, stop_at_violation=False, max_schedules=most)
    assert two[:3] == one[:3]
    assert (two.states, two.bound) == (one.states, one.bound)
    assert one.left is None or (two.left is not None and two.left.frontier == one.left.frontier)


def test_a_bound_on_seconds() -> None:
    two = explore_parallel(partial(CATALOGUE["guest-fault"], ()), 2, max_seconds=0.1)
    assert (two.outcome, two.bound) == (Outcome.INCOMPLETE, "seconds")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_schedules_are_drawn_by_number_whoever_draws_them(strategy: str) -> None:
    options = Options(strategy=strategy, seed=3, max_schedules=170, stop_at_violation=False)
    one = explore(random_program(2), options)
    two = explore_parallel(random_program(2), 2, options, alone=0)
    assert (two[:3], two.states) == (one[:3], one.states)
    asked = Options(strategy=strategy, seed=5, max_schedules=400)
    one, two = explore(Lost, asked), explore_parallel(Lost, 2, asked, alone=0)
    assert (one.kind, one.schedules, one.choices) == (two.kind, two.schedules, two.choices)


def test_workers_that_keep_dying_are_given_up() -> None:
    me = os.getpid()

    def build() -> Program:
        if os.getpid() != me:
            os._exit(9)
        return Program(writers, writers, atomics=2)

    with pytest.raises(RuntimeError, match="workers died 3 times"):
        explore_parallel(build, 2, alone=0)
