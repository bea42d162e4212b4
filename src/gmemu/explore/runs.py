# SPDX-License-Identifier: GPL-2.0-or-later
"""What is run, and running it once along given choices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from ..sync.explored import ExploredRuntime, NotDeterministic, Observer, Schedule, Taken, Thread
from .verdict import Livelock

__all__ = ["DEPTH", "Turns", "World", "replay", "run_once"]

DEPTH = 1000
"""Choices in a run after which tasks take turns; after as many again it's a livelock."""


class World(Protocol):
    """A program to explore, freshly set up: its tasks are spawned on `runtime` but haven't run."""

    runtime: ExploredRuntime

    def check(self) -> None:
        """After a run that ended: raise `AssertionError` if something that must hold doesn't."""

    def state(self) -> object:
        """What the run came to, to be compared between searches.  Must be hashable."""

    def close(self) -> None:
        """Let go of what the world took."""


class Turns:
    """What is done where nobody says what: the task that ran goes on, but after it yielded another has its turn."""

    def __init__(self, most: int = 2 * DEPTH) -> None:
        self._left = most
        self._last = -1

    def took(self, thread: Thread) -> None:
        """This task was chosen otherwise."""
        self._last = thread.number

    def choose(self, able: list[Thread]) -> int:
        """Which of the list goes on.  Raises `Livelock` when it has been asked too often."""
        self._left -= 1
        if self._left < 0:
            raise Livelock("no task came to an end")
        index = next((i for i, thread in enumerate(able) if thread.number == self._last), -1)
        if index < 0 or able[index].step.kind in ("retry", "resched"):
            index = next((i for i, thread in enumerate(able) if thread.number > self._last), 0)
        self._last = able[index].number
        return index


def run_once(world: World, choose: Schedule, observer: Observer | None = None) -> Exception | None:
    """Run the world's tasks and check what must hold; the world is closed.  Returns the violation, if there was one.

    Raises `NotDeterministic`.
    """
    try:
        world.runtime.run(choose, observer)
        world.check()
    except NotDeterministic:
        raise
    except Exception as violation:
        return violation
    finally:
        world.close()
    return None


def replay(
    build: Callable[[], World], choices: tuple[int, ...], observer: Observer | None = None
) -> tuple[list[Taken], BaseException | None]:
    """Run once along `choices` (task numbers).  Returns the trace, and the violation if there was one.

    Raises `NotDeterministic` where a choice can't be followed.
    """
    world = build()
    left: Iterator[int] = iter(choices)
    turns = Turns(max(0, 2 * DEPTH - len(choices)))

    def choose(able: list[Thread]) -> int:
        wanted = next(left, None)
        if wanted is None:
            return turns.choose(able)
        for i, thread in enumerate(able):
            if thread.number == wanted:
                turns.took(thread)
                return i
        raise NotDeterministic(f"task {wanted} was to run next, but only {[thread.number for thread in able]} can")

    error = run_once(world, choose, observer)
    return world.runtime.trace, error
