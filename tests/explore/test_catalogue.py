# SPDX-License-Identifier: GPL-2.0-or-later
"""The catalogue: every default holds in every order, every variant is found out, and says why."""

from __future__ import annotations

import pytest

from gmemu.explore import Outcome, explore, replay
from gmemu.explore.variants import VARIANTS
from gmemu.explore.verdict import kind_of
from gmemu.scenarios import CATALOGUE

BROKEN = [(name, variant) for name, scenario in CATALOGUE.items() for variant in scenario.broken_by]


@pytest.mark.parametrize("name", CATALOGUE)
def test_default_holds_in_every_order(name: str) -> None:
    result = explore(CATALOGUE[name])
    assert (result.outcome, result.detail) == (Outcome.EXHAUSTED, "")


@pytest.mark.parametrize(("name", "variant"), BROKEN)
def test_variant_is_found_and_replays(name: str, variant: str) -> None:
    def build() -> object:
        return CATALOGUE[name]((variant,))

    result = explore(build)  # type: ignore[arg-type]
    assert (result.outcome, result.kind) == (Outcome.VIOLATED, CATALOGUE[name].broken_by[variant])
    for _ in range(3):
        trace, error = replay(build, result.choices)  # type: ignore[arg-type]
        assert error is not None
        assert kind_of(error) == result.kind
        assert [(t.task, t.step.kind) for t in trace] == [(t.task, t.step.kind) for t in result.trace]


def test_every_variant_breaks_something() -> None:
    used = {variant for _, variant in BROKEN}
    assert set(VARIANTS) - used == {"store-before-invalidate"}  # its harm is between two steps, not at the end


def test_lock_order_has_no_cycle_over_all_runs_of_a_scenario() -> None:
    for name in ("fault-in-flight", "source-converted"):
        cycles: set[str] = set()

        def build(name: str = name, cycles: set[str] = cycles) -> object:
            scenario = CATALOGUE[name]()
            close = scenario.close

            def closing() -> None:
                cycles.update(map(str, scenario.lockdep.cycles()))
                close()

            scenario.close = closing  # type: ignore[method-assign]
            return scenario

        explore(build)  # type: ignore[arg-type]
        assert cycles == set()
