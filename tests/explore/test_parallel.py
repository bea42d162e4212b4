# SPDX-License-Identifier: GPL-2.0-or-later
"""Several processes come to what one comes to, and survive the loss of one."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest

from gmemu.explore import explore
from gmemu.explore.parallel import Progress, explore_parallel
from gmemu.scenarios import CATALOGUE

from .programs import Program, philosophers, random_program


def writers(program: Program) -> None:
    for atomic in program.atomics:
        atomic.add(1)


@pytest.mark.parametrize("cut", [1, 4, 9])
@pytest.mark.parametrize("reduce", [True, False])
def test_the_same_counts(cut: int, reduce: bool) -> None:
    def build() -> Program:
        return Program(writers, writers, writers, atomics=2)

    one = explore(build, reduce=reduce)
    two = explore_parallel(build, 2, cut=cut, reduce=reduce)
    assert (two.outcome, two.schedules, two.states) == (one.outcome, one.schedules, one.states)


@pytest.mark.parametrize("seed", range(3))
def test_random_programs_agree(seed: int) -> None:
    build = random_program(seed)
    one = explore(build, stop_at_violation=False)
    two = explore_parallel(build, 2, stop_at_violation=False)
    assert (two.schedules, two.states) == (one.schedules, one.states)


def test_the_same_violation() -> None:
    one, two = explore(philosophers(3)), explore_parallel(philosophers(3), 2)
    assert (two.kind, two.detail, two.choices) == (one.kind, one.detail, one.choices)


def test_a_scenario_and_how_far_it_is() -> None:
    build = partial(CATALOGUE["populate-abba"], ())
    said: list[Progress] = []
    one, two = explore(build), explore_parallel(build, 2, progress=said.append)
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

    two = explore_parallel(build, 2, cut=2)
    assert once.exists()
    assert two.schedules == explore(lambda: Program(writers, writers, atomics=2)).schedules
