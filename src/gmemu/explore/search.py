# SPDX-License-Identifier: GPL-2.0-or-later
"""Stateless search: run a program again and again from its beginning, each time in another order that matters.

Reduction is by source sets (Abdulla, Aronis, Jonsson, Sagonas, POPL 2014) and sleep sets (Godefroid): two orders that
differ only in independent steps are one.  `Options.reduce` switches it off, to check that nothing is lost by it.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..sync.explored import ExploredRuntime, NotDeterministic, Step, Taken, Thread
from .dependence import Analysis
from .findings import Orders, reported
from .runs import DEPTH, World, livelock, race
from .sampling import STRATEGIES, Sampler
from .snapshot import Worlds
from .verdict import Kind, Outcome, kind_of

__all__ = ["Options", "Result", "explore"]


class Options(NamedTuple):
    """How to search.

    Bounds: `max_schedules`, `max_seconds`, `max_preemptions` (how often a task that could go on is made to wait), and
    `max_depth` (choices in a run; beyond it tasks take turns, and if that takes as long again nobody ever comes to an end).
    `symmetry`: of tasks that are alike the next begins when the one before has done something.  `restore`: put the world
    back between runs where that can be done, instead of setting it up again.  With `stop_at_violation` off violations are
    passed over; what they were is in the result's `states`.

    `strategy` random, pct or pos draws schedules by `seed` instead of searching (see `sampling`); it needs a bound.
    `minimise`: a violation is made simpler, first by searching with few preemptions, and replayed ten times.
    """

    reduce: bool = True
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


class _Pruned(Exception):
    """Everything that could be done from here was done from elsewhere."""


class Node:
    """A point of choice on the current path: who could go on, who was tried, and what is left to try, in order."""

    __slots__ = ("chosen", "done", "enabled", "position", "preemptions", "sleep", "todo", "yields")

    def __init__(self, enabled: dict[int, Step], sleep: dict[int, Step], chosen: int) -> None:
        self.enabled, self.sleep, self.chosen = enabled, sleep, chosen
        self.todo: list[int] = []
        self.done: list[int] = []
        self.position = 0
        self.preemptions = 0
        self.yields = 0
        """of the task that ran before, since it began to run"""


class Search:
    """The path being extended, and what is left to try along it."""

    def __init__(self, worlds: Worlds[World], options: Options) -> None:
        self.worlds, self.options = worlds, options
        self.path: list[Node] = []
        self.positions: list[int] = []
        self.steps = self.schedules = 0
        self.states: set[object] = set()
        self.bound = ""
        self.analysis = Analysis(0)
        self.order_at: dict[tuple[str, str], tuple[int, ...]] = {}
        """lock order -> the choices of a run that shows it"""
        self.beyond: list[int] = []
        """choices made in turns after the depth bound"""
        self.sampler: Sampler | None = None
        self.forced: Sequence[tuple[int, tuple[int, ...]]] = ()
        """the beginning of every path: tasks, each with those that were tried before it there"""
        self.base = 0
        """choices that this search doesn't go back on"""
        self.wanted: list[tuple[int, int, frozenset[int]]] = []
        """what it would have tried there (depth, task, initials)"""
        self.runtime: ExploredRuntime
        self._at = 0
        self._longest = 0

    @property
    def choices(self) -> tuple[int, ...]:
        """Those of the current path."""
        return (*(node.chosen for node in self.path), *self.beyond)

    def run(self) -> Exception | None:
        """One execution: along the path to its end and then by default.  Returns what went wrong, if anything."""
        world = self.worlds.fresh()
        self.runtime = runtime = world.runtime
        if self.analysis.tasks != len(runtime.names):
            self.analysis = Analysis(len(runtime.names))
        self.beyond = []
        known = self.path[:-1]
        self._at = len(known)
        if self.sampler is not None:
            self._longest = max(self._longest, len(self.choices))
            self.path, self._at, known = [], 0, []
            self.sampler.begin(len(runtime.names), self._longest)
        error: Exception | None = None
        ended = False
        try:
            runtime.run(self.choose, None, [node.chosen for node in known], [node.enabled[node.chosen] for node in known])
            ended = True
            world.check()
            self.states.add(world.state())
        except _Pruned:
            pass
        except NotDeterministic:
            raise
        except Exception as violation:
            error = violation
        self.schedules += 1
        race = self._learn()
        if error is None and race is not None:
            error = race
        if error is not None and not self.options.stop_at_violation:
            self.states.add(str(kind_of(error)))
        self.worlds.done(world, ended)
        return error

    def choose(self, able: list[Thread]) -> int:
        """The schedule: what the path says; beyond it, the task that ran last if it can, unless that was tried.

        Schedules are fair: a task that tries something again, or that yielded (cond_resched) a second time, waits until
        another has taken a step, if one can.  To yield once isn't enough: the task may be on its way to something new
        (Musuvathi and Qadeer, "Fair stateless model checking", PLDI 2008).  So a loop that waits for somebody else ends, and
        one that goes on for ever nevertheless is a livelock.
        """
        depth = self._at
        self._at = depth + 1
        self.steps += 1
        path = self.path
        if depth < len(path):
            node = path[depth]
            self._check_same(depth, node, able)
        elif depth >= self.options.max_depth:
            return self._take_turns(able)
        else:
            node = self._extend(able) if self.sampler is None else self._draw(self.sampler, able)
            path.append(node)
        node.position = len(self.runtime.who)
        del self.positions[depth:]
        self.positions.append(node.position)
        chosen = node.chosen
        for i, thread in enumerate(able):
            if thread.number == chosen:
                return i
        raise NotDeterministic(f"choice {depth}: task {chosen} was to run next, and can't")

    def _enabled(self, able: list[Thread]) -> dict[int, Step]:
        """Who may be chosen: all who can go on, but for one who has just yielded, and the later of those who are alike."""
        enabled = {thread.number: thread.step for thread in able}
        if len(enabled) > 1:
            at = self._at - 2
            last = self.path[at] if at >= 0 else None
            if last is not None:
                kind = last.enabled[last.chosen].kind
                if kind == "retry" or (kind == "resched" and self._yields(at) > 1):
                    enabled.pop(last.chosen, None)
            if self.options.symmetry:
                self._drop_likes(able, enabled)
        return enabled

    def _drop_likes(self, able: list[Thread], enabled: dict[int, Step]) -> None:
        """Of tasks that are alike the next begins when the one before has done something, or can't."""
        fresh: set[str] = set()
        for thread in able:
            if not thread.group:
                continue
            begins = thread.step.kind == "begin"
            if begins and thread.group in fresh:
                enabled.pop(thread.number, None)
            if begins or self.runtime.who.count(thread.number) == 1:
                fresh.add(thread.group)

    def _yields(self, depth: int) -> int:
        """How often the task chosen at `depth` has yielded since it began to run."""
        node = self.path[depth]
        before = node.yields if depth and self.path[depth - 1].chosen == node.chosen else 0
        return before + (node.enabled[node.chosen].kind == "resched")

    def _check_same(self, depth: int, node: Node, able: list[Thread]) -> None:
        enabled = self._enabled(able)
        if enabled.keys() != node.enabled.keys():
            raise NotDeterministic(f"choice {depth}: tasks {sorted(enabled)} can run, before {sorted(node.enabled)} could")
        for task, step in enabled.items():
            if not step.same_as(node.enabled[task]):
                raise NotDeterministic(
                    f"choice {depth}: task {task} is about to {step!r}, before it was to {node.enabled[task]!r}"
                )

    def _extend(self, able: list[Thread]) -> Node:
        last = self.path[-1] if self.path else None
        enabled = self._enabled(able)
        sleep: dict[int, Step] = {}
        if last is not None and self.options.reduce:
            taken = last.enabled[last.chosen]
            for task in (*last.sleep, *last.done):
                step = last.enabled.get(task) or last.sleep.get(task)
                if step is not None and task != last.chosen and task in enabled and not step.conflicts(taken):
                    sleep[task] = step
        chosen = -1
        depth = len(self.path)
        if depth < len(self.forced):
            chosen = self.forced[depth][0]
        elif last is not None and last.chosen in enabled and last.chosen not in sleep:
            chosen = last.chosen
        else:
            for task in enabled:
                if task not in sleep:
                    chosen = task
                    break
            else:
                raise _Pruned
        node = Node(enabled, sleep, chosen)
        if last is not None:
            node.preemptions = last.preemptions + self._is_preemption(len(self.path) - 1, last.chosen)
            node.yields = self._yields(len(self.path) - 1)
        if depth < len(self.forced):
            node.done = list(self.forced[depth][1])
        elif not self.options.reduce:
            node.todo = [task for task in enabled if task != chosen]
        return node

    def _draw(self, sampler: Sampler, able: list[Thread]) -> Node:
        """A point of choice at which nothing else is to be tried."""
        enabled = self._enabled(able)
        allowed = [thread for thread in able if thread.number in enabled]
        return Node(enabled, {}, allowed[sampler.pick(allowed)].number)

    def _is_preemption(self, depth: int, task: int) -> bool:
        """Whether choosing `task` at `depth` makes one wait that could have gone on."""
        before = self.path[depth - 1] if depth else None
        return before is not None and before.chosen != task and before.chosen in self.path[depth].enabled

    def _take_turns(self, able: list[Thread]) -> int:
        """The run is too long: give everybody a turn.  If it ends then, somebody waited for a task that had none."""
        self.bound = "depth"
        if len(self.beyond) >= self.options.max_depth:
            raise livelock(self.runtime)
        last = self.beyond[-1] if self.beyond else self.path[-1].chosen
        index = next((i for i, thread in enumerate(able) if thread.number > last), 0)
        self.beyond.append(able[index].number)
        return index

    def _learn(self) -> Exception | None:
        """A run ended: from its races follows what else must be tried.  Returns a data race, if there was one."""
        analysis, runtime, path = self.analysis, self.runtime, self.path
        analysis.cut(0 if self.sampler is not None else self._branch_position)
        reversals = analysis.extend(runtime.who, runtime.what, runtime.waiting)
        for pair in analysis.new_order:
            self.order_at[pair] = self.choices
        analysis.new_order.clear()
        if self.options.reduce and self.sampler is None:
            for reversal in reversals:
                depth = bisect_left(self.positions, reversal.first)
                if depth < len(path) and self.positions[depth] == reversal.first:
                    self.reverse(depth, reversal.task, reversal.initials)
        return race(analysis, runtime.names)

    def reverse(self, depth: int, task: int, initials: frozenset[int]) -> None:
        """See that at `depth` one of `initials` is tried."""
        if depth < self.base:
            asked = depth, task, initials
            if asked not in self.wanted:
                self.wanted.append(asked)
            return
        node = self.path[depth]
        if node.chosen in initials or any(t in initials for t in node.done) or any(t in initials for t in node.todo):
            return
        if task in initials and task in node.enabled:
            node.todo.append(task)
            return
        first = next((t for t in sorted(initials) if t in node.enabled), None)
        if first is not None:
            node.todo.append(first)
        else:
            known = {node.chosen, *node.done, *node.todo}
            node.todo += [t for t in node.enabled if t not in known]

    def backtrack(self) -> bool:
        """Go to the deepest point with something left to try.  False: nothing is left anywhere."""
        path, most = self.path, self.options.max_preemptions
        if self.sampler is not None:
            return True
        while len(path) > self.base:
            node = path[-1]
            node.done.append(node.chosen)
            while node.todo:
                task = node.todo.pop(0)
                if task in node.sleep:
                    continue
                if most is not None and node.preemptions + self._is_preemption(len(path) - 1, task) > most:
                    self.bound = "preemptions"
                    continue
                node.chosen = task
                self._branch_position = node.position
                return True
            path.pop()
        return False

    _branch_position = 0


def explore(build: Callable[[], World], options: Options | None = None, **more: Any) -> Result:
    """Run the program that `build` sets up in every order that matters.

    Options may be given as such or by name.  A violation is an exception out of a task or of `World.check`, a `Deadlock`
    among them; a data race; and, once all else is done, locks taken in a circle.
    """
    options = (options or Options())._replace(**more)
    start = time.monotonic()
    result, orders, names = _search(build, options)
    result = reported(build, options, result, orders, names, lambda few: _search(build, few)[0])
    return result._replace(seconds=time.monotonic() - start)


def _search(build: Callable[[], World], options: Options) -> tuple[Result, Orders, list[str]]:
    """One search, with what it found as it found it; in what order it saw locks taken; and the tasks' names."""
    start = time.monotonic()
    worlds = Worlds(build, options.restore)
    search = Search(worlds, options)
    if options.strategy != "exhaustive":
        search.sampler = STRATEGIES[options.strategy](options.seed)
        if options.max_schedules is None and options.max_seconds is None:
            raise ValueError(f"the strategy {options.strategy} never ends by itself: give max_schedules or max_seconds")
    error: Exception | None = None
    try:
        while True:
            error = search.run()
            if error is not None and options.stop_at_violation:
                break
            error = None
            if not search.backtrack():
                break
            if options.max_schedules is not None and search.schedules >= options.max_schedules:
                search.bound = "schedules"
                break
            if options.max_seconds is not None and time.monotonic() - start > options.max_seconds:
                search.bound = "seconds"
                break
    finally:
        worlds.close()
    return result_of(search, error), Orders(search.analysis.order, search.order_at), worlds.names


def result_of(search: Search, error: Exception | None) -> Result:
    """The counts of a search, and what it stopped at."""
    outcome = Outcome.INCOMPLETE if search.bound else Outcome.EXHAUSTED
    counts = Result(outcome, search.schedules, search.steps, 0, frozenset(search.states), bound=search.bound)
    if error is None:
        return counts
    return counts._replace(
        outcome=Outcome.VIOLATED,
        kind=kind_of(error),
        detail=str(error),
        choices=search.choices,
        trace=tuple(search.runtime.trace),
    )
