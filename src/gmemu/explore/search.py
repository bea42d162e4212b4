# SPDX-License-Identifier: GPL-2.0-or-later
"""Stateless search: run a program again and again from its beginning, each time in another order that matters.

Reduction is by source sets (Abdulla, Aronis, Jonsson, Sagonas, POPL 2014) and sleep sets (Godefroid): two orders that
differ only in independent steps are one.  `explore(reduce=False)` tries every order, to check that nothing was lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from ..sync.explored import ExploredRuntime, NotDeterministic, Observer, Step, Taken
from .dependence import dependent, races
from .verdict import Kind, Livelock, Outcome, kind_of

__all__ = ["Result", "World", "explore", "replay"]


class World(Protocol):
    """A program to explore, freshly set up: its tasks are spawned on `runtime` but haven't run."""

    runtime: ExploredRuntime

    def check(self) -> None:
        """After a run that ended: raise `AssertionError` if something that must hold doesn't."""

    def state(self) -> object:
        """What the run came to, to be compared between searches.  Must be hashable."""

    def close(self) -> None:
        """Let go of what the world took."""


class Result(NamedTuple):
    """A verdict with its counts.

    `schedules` were run, `steps` choices made in all.  For a violation: `kind`, `detail`, the
    `choices` (task numbers) that lead there and the `trace`.  `states` holds every state reached at an end.
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


class _Pruned(Exception):
    """Everything that could be done from here was done from elsewhere."""


class _Node:
    """A point of choice on the current path."""

    __slots__ = ("chosen", "done", "enabled", "sleep", "todo")

    def __init__(self, enabled: dict[int, Step], sleep: dict[int, Step], chosen: int) -> None:
        self.enabled, self.sleep, self.chosen = enabled, sleep, chosen
        self.todo = {chosen}
        self.done: set[int] = set()


class _Search:
    """The path being extended, and what is left to try along it."""

    def __init__(self, reduce: bool, max_depth: int) -> None:
        self.reduce, self.max_depth = reduce, max_depth
        self.path: list[_Node] = []
        self.depth = 0
        self.steps = 0
        self.positions: list[int] = []
        self.yielded = self.running = -1
        self.turns = 0
        self.runtime: ExploredRuntime

    def begin(self, runtime: ExploredRuntime) -> None:
        """Another run, along the path to its end and then by default."""
        self.runtime, self.depth, self.positions = runtime, 0, []
        self.yielded = self.running = -1

    def choose(self, able: list[tuple[int, Step]]) -> int:
        """The schedule: what the path says; beyond it, the task that ran last if it can, unless that was tried.

        Schedules are fair: a task that tries something again, or that yielded (cond_resched) a second time, waits until
        another has taken a step, if one can.  To yield once isn't enough: the task may be on its way to something new
        (Musuvathi and Qadeer, "Fair stateless model checking", PLDI 2008).  So a loop
        that waits for somebody else ends, and one that goes on for ever nevertheless is a livelock.
        """
        depth, self.depth = self.depth, self.depth + 1
        if depth >= self.max_depth:
            raise Livelock(f"no task came to an end within {depth} steps")
        self.steps += 1
        self.positions.append(len(self.runtime.trace))
        enabled = dict(able)
        if len(enabled) > 1:
            enabled.pop(self.yielded, None)
        if depth < len(self.path):
            node = self.path[depth]
            if enabled.keys() != node.enabled.keys():
                raise NotDeterministic(
                    f"at choice {depth} tasks {sorted(enabled)} can run, before {sorted(node.enabled)} could"
                )
            node.enabled = enabled
            node.sleep = {task: enabled[task] for task in node.sleep if task in enabled}
        else:
            node = self._extend(enabled)
            self.path.append(node)
        self.yielded = self._yields(node.chosen, enabled[node.chosen])
        return next(i for i, (task, _) in enumerate(able) if task == node.chosen)

    def _yields(self, task: int, step: Step) -> int:
        """The task, if it has to let another go first after this step; else -1."""
        if task != self.running:
            self.running, self.turns = task, 0
        self.turns += step.kind == "resched"
        return task if step.kind == "retry" or (step.kind == "resched" and self.turns > 1) else -1

    def _extend(self, enabled: dict[int, Step]) -> _Node:
        last = self.path[-1] if self.path else None
        sleep: dict[int, Step] = {}
        if last is not None and self.reduce:
            taken = last.enabled[last.chosen]
            asleep = last.sleep | {task: last.enabled[task] for task in last.done if task in last.enabled}
            sleep = {t: s for t, s in asleep.items() if t != last.chosen and t in enabled and not dependent(s, taken)}
        awake = [task for task in enabled if task not in sleep]
        if not awake:
            raise _Pruned
        preferred = last.chosen if last is not None and last.chosen in awake else awake[0]
        node = _Node(enabled, sleep, preferred)
        if not self.reduce:
            node.todo = set(enabled)
        return node

    def learn(self, tasks: int) -> None:
        """A run ended: from its races follows what else must be tried."""
        if not self.reduce:
            return
        depth_of = {position: depth for depth, position in enumerate(self.positions)}
        for race in races(self.runtime.trace, self.runtime.waiting, tasks):
            depth = depth_of.get(race.first)
            if depth is None or depth >= len(self.path):
                continue
            node = self.path[depth]
            if race.initials & (node.todo | node.done):
                continue
            candidates = [task for task in race.initials if task in node.enabled]
            node.todo.update([race.task] if race.task in candidates else candidates[:1] or node.enabled)

    def backtrack(self) -> bool:
        """Go to the deepest point with something left to try.  False: nothing is left anywhere."""
        while self.path:
            node = self.path[-1]
            node.done.add(node.chosen)
            left = [task for task in sorted(node.todo - node.done) if task not in node.sleep]
            if left:
                node.chosen = left[0]
                return True
            self.path.pop()
        return False


def explore(
    build: Callable[[], World],
    *,
    reduce: bool = True,
    max_schedules: int | None = None,
    max_seconds: float | None = None,
    max_depth: int = 5000,
    stop_at_violation: bool = True,
) -> Result:
    """Run the program that `build` sets up in every order that matters.

    A violation is an exception out of a task or of `World.check`, a `Deadlock` among them.  With `stop_at_violation` off
    all of them are passed over, and what they were is in `states`.
    """
    search, states, schedules, start = _Search(reduce, max_depth), set[object](), 0, time.monotonic()

    def result(outcome: Outcome, error: BaseException | None = None) -> Result:
        seconds = time.monotonic() - start
        counts = Result(outcome, schedules, search.steps, seconds, frozenset(states))
        if error is None:
            return counts
        choices = tuple(node.chosen for node in search.path)
        return counts._replace(kind=kind_of(error), detail=str(error), choices=choices, trace=tuple(search.runtime.trace))

    while True:
        world = build()
        search.begin(world.runtime)
        tasks = len(world.runtime.names)
        try:
            world.runtime.run(search.choose)
            world.check()
            states.add(world.state())
        except _Pruned:
            pass
        except NotDeterministic:
            raise
        except Exception as error:
            if stop_at_violation:
                schedules += 1
                return result(Outcome.VIOLATED, error)
            states.add(str(kind_of(error)))
        finally:
            world.close()
        schedules += 1
        search.learn(tasks)
        if not search.backtrack():
            return result(Outcome.EXHAUSTED)
        if max_schedules is not None and schedules >= max_schedules:
            return result(Outcome.INCOMPLETE)
        if max_seconds is not None and time.monotonic() - start > max_seconds:
            return result(Outcome.INCOMPLETE)


def replay(
    build: Callable[[], World], choices: tuple[int, ...], observer: Observer | None = None
) -> tuple[list[Taken], BaseException | None]:
    """Run once along `choices` (task numbers).  Returns the trace, and the violation if there was one.

    Raises `NotDeterministic` where a choice can't be followed.
    """
    world = build()
    left: Iterator[int] = iter(choices)

    def choose(able: list[tuple[int, Step]]) -> int:
        wanted = next(left, None)
        if wanted is None:
            return 0
        for i, (task, _) in enumerate(able):
            if task == wanted:
                return i
        raise NotDeterministic(f"task {wanted} was to run next, but only {[task for task, _ in able]} can")

    error: BaseException | None = None
    try:
        world.runtime.run(choose, observer)
        world.check()
    except NotDeterministic:
        raise
    except Exception as violation:
        error = violation
    finally:
        world.close()
    return world.runtime.trace, error
