# SPDX-License-Identifier: GPL-2.0-or-later
"""What is run, and running it once along given choices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from ..sync.explored import ExploredRuntime, NotDeterministic, Observer, Schedule, Taken, Thread
from .dependence import Analysis
from .locks import Edge, lock_order
from .verdict import Livelock, LockOrder, Race

__all__ = ["DEPTH", "Judge", "Turns", "World", "judge", "livelock", "race", "replay", "run_once", "shows"]

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

    def __init__(self, most: int = DEPTH) -> None:
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


Judge = Callable[[World, Exception | None], Exception | None]
"""What to think of a run: given what it raised, the violation."""


def judge(world: World, error: Exception | None) -> Exception | None:
    """What a run raised; else a data race, or locks taken in a circle, that its steps show though nothing came of it."""
    if error is not None:
        return error
    runtime = world.runtime
    analysis = Analysis(len(runtime.names))
    analysis.extend(runtime.who, runtime.what, ())
    found = race(analysis, runtime.names)
    if found is not None:
        return found
    circle = lock_order(dict.fromkeys(analysis.order, ()), analysis.order, runtime.names)
    return LockOrder(circle.text) if circle is not None else None


def shows(edge: Edge) -> Judge:
    """Whether a run takes the one lock while it holds the other, whatever else it does: a `LockOrder` that says so."""

    def look(world: World, error: Exception | None) -> Exception | None:
        runtime = world.runtime
        analysis = Analysis(len(runtime.names))
        analysis.extend(runtime.who, runtime.what, ())
        return LockOrder(str(analysis.order[edge])) if edge in analysis.order else error

    return look


def race(analysis: Analysis, names: list[str]) -> Race | None:
    """The data race that was found in a run, in a sentence."""
    if analysis.unguarded is None:
        return None
    first, task, step = analysis.unguarded
    return Race(
        f"{names[first.task]} and {names[task]} touch {_named(step.what)} with no lock between them: "
        f"{first.step.kind} and {step.kind}"
    )


def _named(what: object) -> str:
    """What a step is done to, in the same words in each run: an object by its type."""
    if not isinstance(what, tuple):
        return "" if what is None else repr(what)
    words = (p if isinstance(p, str) else f"{p:#x}" if isinstance(p, int) else type(p).__name__ for p in what)
    return " ".join(words)


def livelock(runtime: ExploredRuntime) -> Livelock:
    """What the tasks of a run that doesn't end go on to do."""
    recent = list(zip(runtime.who, runtime.what, strict=True))[-60:]
    loops = {task: step for task, step in recent if not step.kind.startswith("release")}
    turns = "; ".join(
        f"{runtime.names[task]} goes on to {step.kind} {_named(step.what)}" for task, step in sorted(loops.items())
    )
    return Livelock(f"each task has its turn, and none comes to an end: {turns}")


def run_once(world: World, choose: Schedule, observer: Observer | None = None, judge: Judge = judge) -> Exception | None:
    """Run the world's tasks and check what must hold; the world is closed.  Returns the violation, if there was one.

    Raises `NotDeterministic`.
    """
    error: Exception | None = None
    try:
        world.runtime.run(choose, observer)
        world.check()
    except NotDeterministic:
        raise
    except Livelock:
        error = livelock(world.runtime)
    except Exception as violation:
        error = violation
    finally:
        world.close()
    return judge(world, error)


def replay(
    build: Callable[[], World], choices: tuple[int, ...], observer: Observer | None = None
) -> tuple[list[Taken], BaseException | None]:
    """Run once along `choices` (task numbers).  Returns the trace, and the violation if there was one.

    Raises `NotDeterministic` where a choice can't be followed.
    """
    world = build()
    left: Iterator[int] = iter(choices)
    turns = Turns()

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
