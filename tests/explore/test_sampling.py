# SPDX-License-Identifier: GPL-2.0-or-later
"""Random schedules: they find what is there, and a seed finds it again."""

from __future__ import annotations

import pytest

from gmemu.explore import Kind, Outcome, explore
from gmemu.explore.sampling import STRATEGIES

from .programs import Program, philosophers, random_program
from .test_minimise import Lost


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_lost_update_is_drawn_before_long(strategy: str) -> None:
    result = explore(Lost, strategy=strategy, seed=7, max_schedules=500)
    assert (result.outcome, result.kind, result.preemptions) == (Outcome.VIOLATED, Kind.ASSERTION, 1)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_same_seed_draws_the_same(strategy: str) -> None:
    first, second = (explore(Lost, strategy=strategy, seed=3, max_schedules=500, minimise=False) for _ in range(2))
    assert (first.choices, first.schedules) == (second.choices, second.schedules)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nothing_found_is_not_exhausted(strategy: str) -> None:
    result = explore(philosophers(3, left_handed=True), strategy=strategy, max_schedules=40)
    assert (result.outcome, result.bound, result.schedules) == (Outcome.INCOMPLETE, "schedules", 40)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("seed", range(4))
def test_every_end_that_is_drawn_is_one_that_a_search_finds(strategy: str, seed: int) -> None:
    build = random_program(seed)
    all_ends = explore(build, stop_at_violation=False).states
    drawn = explore(build, stop_at_violation=False, strategy=strategy, max_schedules=60).states
    assert drawn <= all_ends


def test_a_strategy_needs_a_bound() -> None:
    with pytest.raises(ValueError, match="never ends by itself"):
        explore(lambda: Program(), strategy="pct")
