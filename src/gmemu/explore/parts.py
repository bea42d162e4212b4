# SPDX-License-Identifier: GPL-2.0-or-later
"""A part of a search: what one worker does at a time, as a function of nothing but the way there.

A way is a choice after the other: which task was chosen, and which were tried before.  What hangs below it is searched for
some time; what comes back are the counts, where to go on (`saved.Frontier`), and what its races ask to be tried above.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from .options import Options
from .runs import World
from .saved import Frontier, Orders, Saved
from .search import Search, result_of
from .snapshot import Worlds
from .verdict import Kind

__all__ = ["Item", "Part", "Point", "explore_part"]


class Item(NamedTuple):
    """What to do: go on at `inner` below `way`, or draw schedules from number `drawn`, for so many `seconds` of CPU time or
    until `limit` schedules were run; one at least."""

    way: Frontier = ()
    inner: Frontier = ()
    drawn: int = 0
    limit: int | None = None
    seconds: float = float("inf")


class Point(NamedTuple):
    """A choice on the path that's next, and what a coordinator must know to choose otherwise there."""

    chosen: int
    done: tuple[int, ...]
    todo: tuple[int, ...]
    enabled: tuple[int, ...]
    sleep: tuple[int, ...]
    preemptions: int
    before: int
    """the task that ran before, -1 at the beginning"""


class Part(NamedTuple):
    """What became of it.  `points` is the path that's next, below the way; nothing is left if it's `finished`."""

    finished: bool
    points: tuple[Point, ...]
    wanted: tuple[tuple[int, int, frozenset[int]], ...]
    """(depth, task, initials): what races ask to be tried above"""
    schedules: int
    steps: int
    states: frozenset[object]
    bound: str
    orders: Orders
    kind: Kind | None
    detail: str
    choices: tuple[int, ...]


def explore_part(worlds: Worlds[World], options: Options, item: Item) -> Part:
    """Carry `item` out."""
    until = time.process_time() + item.seconds
    search = Search(worlds, options)
    search.load(Saved(item.way + item.inner, item.drawn))
    search.base = len(item.way)
    finished = False
    while True:
        error = search.run()
        if error is not None and options.stop_at_violation:
            break
        error = None
        if not search.backtrack():
            finished = True
            break
        if time.process_time() > until or (item.limit is not None and search.schedules >= item.limit):
            break
    result = result_of(search, error)
    return Part(
        finished,
        _points(search),
        tuple(search.wanted),
        search.schedules,
        search.steps,
        result.states,
        search.bound,
        search.orders,
        result.kind,
        result.detail,
        result.choices,
    )


def _points(search: Search) -> tuple[Point, ...]:
    if search.sampler is not None:
        return ()
    return tuple(
        Point(
            node.chosen,
            tuple(node.done),
            tuple(node.todo),
            tuple(node.enabled),
            tuple(node.sleep),
            node.preemptions,
            node.before,
        )
        for node in search.path[search.base :]
    )
