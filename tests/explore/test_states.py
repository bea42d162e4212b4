# SPDX-License-Identifier: GPL-2.0-or-later
"""Counting states: philosophers who dine for ever, against the counts that SPIN has for the same model."""

from __future__ import annotations

import pytest

from gmemu.explore.states import States, reach

from .forks import Table


@pytest.mark.parametrize(("philosophers", "states"), [(3, 35), (4, 118)])
def test_philosophers(philosophers: int, states: int) -> None:
    found = reach(lambda: Table(philosophers))
    assert (found.states, found.complete) == (states, True)
    assert found.deadlock == tuple(range(philosophers))  # a shortest way: each takes one fork


def test_one_who_takes_the_other_fork_first_saves_them() -> None:
    assert reach(lambda: Table(3, left_handed=True)).deadlock is None


def test_a_bound() -> None:
    assert reach(lambda: Table(4), most=50) == States(50, 98, False, (0, 1, 2, 3))
