# SPDX-License-Identifier: GPL-2.0-or-later
"""The catalogue: every default holds in every order, every variant gives what the scenario says, and replays."""

from __future__ import annotations

from functools import partial

import pytest

from gmemu.explore import Outcome, explore, replay
from gmemu.explore.variants import VARIANTS
from gmemu.explore.verdict import kind_of
from gmemu.scenarios import CATALOGUE

STATED = [(name, variants) for name, scenario in CATALOGUE.items() for variants in ((), *scenario.stated())]


@pytest.mark.parametrize(("name", "variants"), STATED, ids=["+".join((name, *variants)) for name, variants in STATED])
def test_what_the_scenario_says(name: str, variants: tuple[str, ...]) -> None:
    build = partial(CATALOGUE[name], variants)
    kinds = CATALOGUE[name].kinds_with(variants)
    result = explore(build)
    if not kinds:
        assert (result.outcome, result.detail) == (Outcome.EXHAUSTED, "")
        return
    assert result.outcome is Outcome.VIOLATED
    assert result.kind in kinds
    trace, error = replay(build, result.choices)
    assert error is not None
    assert kind_of(error) is result.kind
    assert [(t.task, t.step.kind) for t in trace] == [(t.task, t.step.kind) for t in result.trace]


def test_every_variant_is_told_of() -> None:
    told = {variant for _, variants in STATED for variant in variants}
    assert told == set(VARIANTS)


def test_numbers_are_those_of_the_list() -> None:
    """What isn't there yet is named here."""
    assert set(range(1, 33)) <= {scenario.number for scenario in CATALOGUE.values()}
