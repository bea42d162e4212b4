# SPDX-License-Identifier: GPL-2.0-or-later
"""Search by states instead of orders, breadth first: for programs that can name their whole state.

Where `search` asks which orders differ, this asks which states can be reached, and goes on from each but once.  A program
that loops for ever has no end to its orders, but may have few states.  The first way found to a state is a shortest one.
Nothing is reduced: the counts are those of any explicit-state model checker on the same model (SPIN's, without its
partial-order reduction).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import NamedTuple, Protocol

from ..sync import Deadlock
from ..sync.explored import ExploredRuntime, Thread
from .snapshot import Worlds

__all__ = ["Named", "States", "reach"]


class Named(Protocol):
    """A world that names its state: where each task is, what it knows, and all that is shared."""

    runtime: ExploredRuntime

    def key(self) -> Hashable:
        """The whole state, when each task is about to take a step.  Equal keys must have equal futures.

        It's asked for when the run was stopped there, so tasks may not change it while they unwind.
        """

    def close(self) -> None:
        """Let go of what the world took."""


class States(NamedTuple):
    """How many states were reached, by how many transitions; `complete` unless the bound was hit; and the choices of a
    shortest way to a deadlock, if there is one."""

    states: int
    transitions: int
    complete: bool
    deadlock: tuple[int, ...] | None


class _There(Exception):
    """The run came to the state that was asked for."""


class _Arrival:
    """A schedule that goes no further, and says who could."""

    def __init__(self) -> None:
        self.able: list[int] = []

    def choose(self, able: list[Thread]) -> int:
        self.able = [thread.number for thread in able]
        raise _There


def reach(build: Callable[[], Named], most: int = 1_000_000) -> States:
    """Every state that the program can come to, or the first `most`."""
    worlds = Worlds(build)
    try:
        return _reach(worlds, most)
    finally:
        worlds.close()


def _reach(worlds: Worlds[Named], most: int) -> States:
    key, able = _go(worlds, ())
    seen = {key}
    todo: deque[tuple[tuple[int, ...], list[int]]] = deque([((), able)])
    transitions, deadlock = 0, None
    while todo:
        choices, able = todo.popleft()
        for task in able:
            transitions += 1
            way = (*choices, task)
            key, after = _go(worlds, way)
            if key in seen:
                continue
            if len(seen) >= most:
                return States(len(seen), transitions, False, deadlock)
            seen.add(key)
            todo.append((way, after))
            if not after and deadlock is None:
                deadlock = way
    return States(len(seen), transitions, True, deadlock)


def _go(worlds: Worlds[Named], choices: tuple[int, ...]) -> tuple[Hashable, list[int]]:
    """The state at the end of `choices`, and who can go on from it: nobody, in a deadlock or when all ended."""
    world = worlds.fresh()
    arrival = _Arrival()
    begins = range(len(world.runtime.names))
    with suppress(_There, Deadlock):
        world.runtime.run(arrival.choose, None, (*begins, *choices))
    key = world.key()
    worlds.done(world, True)
    return key, arrival.able
