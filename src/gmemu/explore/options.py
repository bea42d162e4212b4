# SPDX-License-Identifier: GPL-2.0-or-later
"""What a search is asked, what it says while it works, and what it comes to."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..sync.explored import Taken
from .runs import DEPTH
from .saved import Saved
from .verdict import Kind, Outcome

__all__ = ["Options", "Progress", "Result", "Watch"]


class Options(NamedTuple):
    """How to search.

    Bounds: `max_schedules`, `max_seconds`, `max_preemptions` (how often a task that could go on is made to wait), and
    `max_depth` (choices in a run; beyond it tasks take turns, and if that takes as long again nobody ever comes to an end).
    `reduce`: of orders that differ only in steps that don't touch the same thing one is enough.  `hashing`: what can be done
    from a state is done once (see `hashing`); not with a bound on preemptions, nor where schedules are drawn.  Where orders
    are reduced it finds little more and costs as much as a run, so it's off; without, it makes do with a fraction of them.
    `symmetry`: of tasks that are alike the next begins when the one before has done something.  `restore`: put the world
    back between runs where that can be done, instead of setting it up again.  With `stop_at_violation` off violations are
    passed over; what they were is in the result's `states`.

    `strategy` random, pct or pos draws schedules by `seed` instead of searching (see `sampling`); it needs a bound.
    `minimise`: a violation is made simpler, first by searching with few preemptions, and replayed ten times.
    """

    reduce: bool = True
    hashing: bool = False
    symmetry: bool = True
    restore: bool = True
    max_schedules: int | None = None
    max_seconds: float | None = None
    max_preemptions: int | None = None
    max_depth: int = DEPTH
    stop_at_violation: bool = True
    strategy: str = "exhaustive"
    seed: int = 0
    minimise: bool = True


class Result(NamedTuple):
    """A verdict with its counts.

    `schedules` were run, `steps` choices made in all; `bound` names what kept the search from being exhaustive.  For a
    violation: `kind`, `detail`, the `choices` (task numbers) that lead there and the `trace`.  `states` holds every state
    reached at an end.  `preemptions` are those of the simplest schedule that was found, -1 if none was looked for.
    `left` is where a search that a bound or the user stopped can be gone on with.
    """

    outcome: Outcome
    schedules: int
    steps: int
    seconds: float
    states: frozenset[object]
    kind: Kind | None = None
    detail: str = ""
    choices: tuple[int, ...] = ()
    trace: tuple[Taken, ...] = ()
    bound: str = ""
    preemptions: int = -1
    left: Saved | None = None


class Progress(NamedTuple):
    """How far a search is: schedules run, seconds spent, the length of the path that's next, and the share of the tree, as
    far as that is known, that is done.  Subtrees are taken to be of one size, so the share is a guess."""

    schedules: int
    seconds: float
    depth: int
    share: float

    @property
    def rate(self) -> float:
        """Schedules a second."""
        return self.schedules / self.seconds if self.seconds else 0.0


class Watch(NamedTuple):
    """Who looks on: is told how far the search is, now and then, and asked whether to stop."""

    progress: Callable[[Progress], None] | None = None
    stop: Callable[[], bool] | None = None
    every: float = 0.1
    """seconds between two reports"""
