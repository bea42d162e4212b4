# SPDX-License-Identifier: GPL-2.0-or-later
"""The same order of events in another design."""

from __future__ import annotations

from functools import partial

import pytest

from gmemu.explore import explore, replay
from gmemu.explore.beside import follow
from gmemu.scenarios import CATALOGUE

FOUND = [(name, variants) for name, scenario in CATALOGUE.items() for variants in scenario.broken_with()]


@pytest.mark.parametrize(("name", "variants"), FOUND)
def test_the_default_holds_where_the_variant_does_not(name: str, variants: tuple[str, ...]) -> None:
    """Every violation has a default run beside it, which can be replayed and in which nothing is violated."""
    scenario = CATALOGUE[name]
    found = explore(partial(scenario, variants))
    choices = follow(scenario, found.trace)
    _, error = replay(scenario, choices)
    assert error is None


def test_the_same_design_is_followed_to_the_step() -> None:
    build = partial(CATALOGUE["pin"], ("check-before-unmap",))
    found = explore(build)
    trace, _ = replay(build, found.choices)
    again, _ = replay(build, follow(build, trace))
    assert [(t.task, t.step.kind) for t in again] == [(t.task, t.step.kind) for t in trace]
