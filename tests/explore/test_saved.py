# SPDX-License-Identifier: GPL-2.0-or-later
"""A search that was stopped, written down and gone on with comes to what it would have come to."""

from __future__ import annotations

import json
from functools import partial

import pytest

from gmemu.explore import Kind, Options, Outcome, Result, Saved, Watch, explore
from gmemu.explore.parallel import explore_parallel
from gmemu.scenarios import CATALOGUE

from .programs import Body, Program, random_program


def written(left: Saved | None) -> Saved:
    """As it comes back from a file."""
    assert left is not None
    return Saved.of_data(json.loads(json.dumps(left.data())))


class Stop:
    """Stops a search after so many schedules, as Ctrl-C would."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def in_pieces(build: partial[Program], options: Options, size: int, jobs: int = 1) -> Result:
    begin: Saved | None = None
    while True:
        watch = Watch(stop=Stop(size))
        if jobs > 1:
            result = explore_parallel(build, jobs, options, begin=begin, watch=watch, alone=0)
        else:
            result = explore(build, options, begin=begin, watch=watch)
        if result.bound != "interrupted":
            return result
        assert result.outcome is Outcome.INCOMPLETE
        begin = written(result.left)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("size", [0, 3])
@pytest.mark.parametrize("reduce", [True, False])
def test_in_pieces(seed: int, size: int, reduce: bool) -> None:
    build = partial(random_program(seed))
    options = Options(reduce=reduce, stop_at_violation=False, max_schedules=150)
    whole, pieces = explore(build, options), in_pieces(build, options, size)
    assert pieces[:3] == whole[:3]
    assert (pieces.states, pieces.bound) == (whole.states, whole.bound)


def test_one_process_goes_on_where_two_were_stopped_and_the_other_way_round() -> None:
    build = partial(CATALOGUE["populate-abba"], ())
    whole = explore(build)
    first = explore_parallel(build, 2, watch=Watch(stop=Stop(3)), alone=0)
    second = explore(build, begin=written(first.left), watch=Watch(stop=Stop(20)))
    third = explore_parallel(build, 2, begin=written(second.left), alone=0)
    assert (first.bound, second.bound) == ("interrupted", "interrupted")
    assert first.schedules < second.schedules < third.schedules
    assert (third[:3], third.states) == (whole[:3], whole.states)


def test_lock_order_is_remembered() -> None:
    """Each half of the search has only one of the two orders."""

    def body(*locks: int) -> Body:
        def run(program: Program) -> None:
            if program.atomics[0].add(1) == 1:
                with program.locks[locks[0]], program.locks[locks[1]]:
                    pass

        return run

    build = partial(Program, body(0, 1), body(1, 0))
    assert in_pieces(build, Options(), 0).kind is Kind.LOCK_ORDER


def test_what_is_drawn_goes_on_where_it_was() -> None:
    options = Options(strategy="pct", seed=1, max_schedules=30, stop_at_violation=False)
    build = partial(random_program(4))
    assert in_pieces(build, options, 7)[:3] == explore(build, options)[:3]


@pytest.mark.parametrize("data", [{}, {"frontier": 3}, {**Saved().data(), "states": ["print(1)"]}])
def test_what_is_no_checkpoint(data: dict[str, object]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        Saved.of_data(data)
