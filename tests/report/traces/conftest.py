# SPDX-License-Identifier: GPL-2.0-or-later
"""Traces to write out: a violated invariant with its default beside it, and a deadlock."""

from __future__ import annotations

from functools import partial

import pytest

from gmemu.explore import explore
from gmemu.explore.beside import follow
from gmemu.explore.trace import Trace, record
from gmemu.scenarios import CATALOGUE


def violation(scenario: str, variant: str) -> tuple[Trace, Trace]:
    """What the search finds, and the same order of events by default."""
    build = partial(CATALOGUE[scenario].recorded(), (variant,))
    found = explore(build, minimise=False)  # as it comes: these have something to show
    default = CATALOGUE[scenario].recorded()
    return (
        record(build, found.choices, scenario=scenario, variants=(variant,)),
        record(default, follow(default, found.trace), scenario=scenario),
    )


@pytest.fixture(scope="session")
def private_and_mapped() -> tuple[Trace, Trace]:
    return violation("fault-in-flight", "no-reference-check")


@pytest.fixture(scope="session")
def deadlock() -> tuple[Trace, Trace]:
    return violation("populate-abba", "populate-gup-under-lock")
