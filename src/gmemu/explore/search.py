# SPDX-License-Identifier: GPL-2.0-or-later
"""Stateless search: run a program again and again from its beginning, each time in another order that matters.

Reduction is by source sets (Abdulla, Aronis, Jonsson, Sagonas, POPL 2014) and sleep sets (Godefroid): two orders that
differ only in independent steps are one.  `Options.reduce` switches it off, to check that nothing is lost by it.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterable
from typing import Any, NamedTuple

from ..sync.explored import ExploredRuntime, NotDeterministic, Step, Thread
from .branch import Branch
from .dependence import Analysis
from .findings import reported
from .hashing import Name, Namer, State, States, value_of
from .options import Options, Progress, Result, Watch
from .runs import World, livelock, race
from .sampling import STRATEGIES, Sampler
from .saved import Choice, Frontier, Orders, Saved
from .snapshot import Worlds
from .verdict import Outcome, kind_of

__all__ = ["Options", "Result", "Search", "explore", "result_of", "share_done"]


class _Pruned(Exception):
    """Everything that could be done from here was done from elsewhere."""


class Node(Branch):
    """A point of choice on the current path, with the step that each task would take there."""

    __slots__ = ("after", "key", "position", "seen", "state", "yields")

    enabled: dict[int, Step]
    sleep: dict[int, Step]

    def __init__(self, enabled: dict[int, Step], sleep: dict[int, Step], chosen: int, before: int = -1) -> None:
        self.enabled, self.sleep, self.chosen, self.before = enabled, sleep, chosen, before
        self.todo = []
        self.done = []
        self.position = 0
        self.preemptions = 0
        self.yields = 0
        """of the task that ran before, since it began to run"""
        self.state: State | None = None
        self.seen: Hashable = None
        """the value of the atomic that the chosen step is done to"""
        self.key: Hashable = None
        self.after: set[Later] = set()
        """the steps that were taken below it, or would have been next"""


class Later(NamedTuple):
    """A step that is taken at some time after a state: by which task, to what (`None`: something that came to be in the
    run), in which pages, and how."""

    task: int
    name: Name | None
    kind: str
    role: str
    start: int
    end: int


class Search:
    """The path being extended, and what is left to try along it."""

    def __init__(self, worlds: Worlds[World], options: Options) -> None:
        self.worlds, self.options = worlds, options
        self.path: list[Node] = []
        self.positions: list[int] = []
        self.steps = self.schedules = 0
        self.states: set[object] = set()
        self.bound = ""
        """what made it leave something out"""
        self.analysis = Analysis(0)
        self.order_at: dict[tuple[str, str], tuple[int, ...]] = {}
        """lock order -> the choices of a run that shows it"""
        self.beyond: list[int] = []
        """choices made in turns after the depth bound"""
        self.sampler: Sampler | None = None
        self.drawn = 0
        """schedules that the sampler has drawn, here or elsewhere"""
        if options.strategy != "exhaustive":
            self.sampler = STRATEGIES[options.strategy](options.seed)
        self.remembers = options.hashing and options.max_preemptions is None and self.sampler is None
        self.hashes: States | None = None
        """kept if states are remembered, or if there are tasks that are alike"""
        self.visited: dict[Hashable, list[tuple[frozenset[int], frozenset[Later]]]] = {}
        """state -> what slept there when all else was done from it, and the steps that were taken then"""
        self._later_here: frozenset[Later] = frozenset()
        """what was done from the state that this run came to, and that others had come to before"""
        self.matched = 0
        """how often a state turned up again"""
        self.namer = Namer((), 0)
        self.forced: Frontier = ()
        """how the first path begins"""
        self.base = 0
        """choices that this search doesn't go back on"""
        self.wanted: list[tuple[int, int, frozenset[int]]] = []
        """what it would have tried there (depth, task, initials)"""
        self.runtime: ExploredRuntime
        self._at = 0
        self._branch_position = 0
        self._grouped = False

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
        self._grouped = self.options.symmetry and any(runtime.groups)
        if self.hashes is None and self.sampler is None and (self.remembers or self._grouped):
            alike, tasks = self._grouped, len(runtime.names)
            self.hashes = States(runtime.groups if alike else [""] * tasks, runtime.pages if alike else [()] * tasks)
        if self.hashes is not None:
            self.namer = Namer(self.worlds.set_up, runtime.domains)
        known = self.path[:-1]
        self._at = len(known)
        if self.sampler is not None:
            self.path, self._at, known = [], 0, []
            self.sampler.begin(self.drawn, len(runtime.names))
        del self.positions[len(known) :]
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
        self.forced = ()
        if self.remembers and self.path:
            self.path[-1].after.update(self._later(task, step) for task, step in runtime.waiting)
        self.schedules += 1
        if self.sampler is not None and not self.drawn:
            self.sampler.steps = max(len(self.choices), 1)
        self.drawn += 1
        unguarded = self._learn()
        if error is None:
            error = unguarded
        if error is not None and not self.options.stop_at_violation:
            self.states.add(str(kind_of(error)))
        self.worlds.done(world, ended)
        return error

    def load(self, begin: Saved) -> None:
        """Before the first run: go on from there, but for the counts."""
        self.forced, self.drawn = begin.frontier, begin.schedules
        if self.sampler is not None and self.drawn:
            first = Search(self.worlds, self.options)
            first.run()
            assert first.sampler is not None
            self.sampler.steps = first.sampler.steps

    def choose(self, able: list[Thread]) -> int:
        """The schedule: what the path says; beyond it, the task that ran last if it can, unless that was tried.

        Schedules are fair: a task that tries something again, or that yielded (cond_resched) a second time, waits until
        another has taken a step, if one can.  To yield once isn't enough: the task may be on its way to something new
        (Musuvathi and Qadeer, "Fair stateless model checking", PLDI 2008).  So a loop that waits for somebody else ends, and
        one that goes on for ever nevertheless is a livelock.
        """
        depth = self._at
        self._at = depth + 1
        self.steps += depth >= len(self.forced) - 1  # those before were counted where they were chosen
        path = self.path
        if depth < len(path):
            node = path[depth]
            self._check_same(depth, node, able)
        elif depth >= self.options.max_depth:
            return self._take_turns(able)
        else:
            node = self._extend(able) if self.sampler is None else self._draw(self.sampler, able)
            path.append(node)
        node.position = position = len(self.runtime.who)
        self.positions.append(position)
        chosen = node.chosen
        for i, thread in enumerate(able):
            if thread.number == chosen:
                if self.hashes is not None:
                    node.seen = value_of(thread.step)
                return i
        raise NotDeterministic(f"choice {depth}: task {chosen} was to run next, and can't")

    def _enabled(self, able: list[Thread], state: State | None) -> dict[int, Step]:
        """Who may be chosen: all who can go on, but for one who has just yielded, and the later of those who are alike."""
        enabled = {thread.number: thread.step for thread in able}
        at = self._at - 2
        if len(enabled) > 1 and at >= 0:
            last = self.path[at]
            kind = last.enabled[last.chosen].kind
            if kind == "retry" or (kind == "resched" and self._yields(at) > 1):
                enabled.pop(last.chosen, None)
        if self._grouped:
            self._drop_likes(able, enabled, state)
        return enabled

    def _drop_likes(self, able: list[Thread], enabled: dict[int, Step], state: State | None) -> None:
        """Of tasks that are alike the next begins when the one before has done something, or can't; and of those who are
        where the others are, having seen what they have, the first is enough."""
        fresh: set[str] = set()
        for thread in able:
            if not thread.group:
                continue
            begins = thread.step.kind == "begin"
            if begins and thread.group in fresh:
                enabled.pop(thread.number, None)
            if begins or self.runtime.who.count(thread.number) == 1:
                fresh.add(thread.group)
        if state is not None and self.hashes is not None:
            met: set[Hashable] = set()
            for number in tuple(enabled):
                like = self.hashes.likeness(state, number)
                if like is not None and like in met:
                    del enabled[number]
                met.add(like)

    def _yields(self, depth: int) -> int:
        """How often the task chosen at `depth` has yielded since it began to run."""
        node = self.path[depth]
        before = node.yields if depth and self.path[depth - 1].chosen == node.chosen else 0
        return before + (node.enabled[node.chosen].kind == "resched")

    def _check_same(self, depth: int, node: Node, able: list[Thread]) -> None:
        enabled = self._enabled(able, node.state)
        if enabled.keys() != node.enabled.keys():
            raise NotDeterministic(f"choice {depth}: tasks {sorted(enabled)} can run, before {sorted(node.enabled)} could")
        for task, step in enabled.items():
            if not step.same_as(node.enabled[task]):
                raise NotDeterministic(
                    f"choice {depth}: task {task} is about to {step!r}, before it was to {node.enabled[task]!r}"
                )

    def _extend(self, able: list[Thread]) -> Node:
        depth = len(self.path)
        last = self.path[-1] if depth else None
        before = last.chosen if last is not None else -1
        state = self._state()
        enabled = self._enabled(able, state)
        sleep: dict[int, Step] = {}
        key: Hashable = None
        if last is not None and (last.sleep or last.done) and self.options.reduce:
            taken = last.enabled[before]
            for task in (*last.sleep, *last.done):
                step = last.enabled.get(task) or last.sleep.get(task)
                if step is not None and task != before and task in enabled and not step.conflicts(taken):
                    sleep[task] = step
        if self.remembers and state is not None:
            key = self._key(state, enabled)
            self._match(key, sleep)
        if depth < len(self.forced):
            chosen = self.forced[depth].chosen
        elif before in enabled and before not in sleep:
            chosen = before
        else:
            chosen = next((task for task in enabled if task not in sleep), -1)
            if chosen < 0:
                raise _Pruned
        node = Node(enabled, sleep, chosen, before)
        node.state, node.key = state, key
        if last is not None:
            node.preemptions = last.preemptions + last.preempts(before)
            if last.yields or last.enabled[before].kind == "resched":
                node.yields = self._yields(depth - 1)
        if depth < len(self.forced):
            node.done, node.todo = list(self.forced[depth].done), list(self.forced[depth].todo)
        elif not self.options.reduce:
            node.todo = [task for task in enabled if task != chosen]
        return node

    def _state(self) -> State | None:
        """Where the run is, if that's kept."""
        if self.hashes is None:
            return None
        if not self.path:
            return self.hashes.begin()
        last, runtime = self.path[-1], self.runtime
        assert last.state is not None
        return self.hashes.after(last.state, runtime.who, runtime.what, last.position, last.seen, self.namer)

    def _key(self, state: State, enabled: dict[int, Step]) -> Hashable:
        """What's equal wherever the run is in the same place.  Who has just yielded is part of that."""
        assert self.hashes is not None
        yields = self._yields(len(self.path) - 1) if self.path else 0
        return self.hashes.key(state, (tuple(enabled), (self.path[-1].chosen, yields) if yields else None))

    def _match(self, key: Hashable, sleep: dict[int, Step]) -> None:
        """Go no further if all that isn't asleep now was done from this state; what came of that may race with the path."""
        for slept, after in self.visited.get(key, ()):
            if slept <= sleep.keys():
                self.matched += 1
                self.path[-1].after |= after
                self._later_here = after
                raise _Pruned

    def _race_with(self, after: frozenset[Later]) -> None:
        """Wherever a step of the path races with one to come, try everybody: who would begin the reverse isn't known."""
        runtime = self.runtime
        for step in runtime.what:
            self.namer.name(step)
        for task, name, kind, role, start, end in after:
            for domain in self.namer.domains_of(name):
                for position in self.analysis.races_with(task, Step(kind, None, domain, start, end, role)):
                    depth = bisect_left(self.positions, position)
                    if depth < len(self.path) and self.positions[depth] == position:
                        self.reverse(depth, task, frozenset())

    def _later(self, task: int, step: Step) -> Later:
        return Later(task, self.namer.name(step), step.kind, step.role, step.start, step.end)

    def _draw(self, sampler: Sampler, able: list[Thread]) -> Node:
        """A point of choice at which nothing else is to be tried."""
        enabled = self._enabled(able, None)
        allowed = [thread for thread in able if thread.number in enabled]
        return Node(enabled, {}, allowed[sampler.pick(allowed)].number)

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
            if self._later_here:
                self._race_with(self._later_here)
        self._later_here = frozenset()
        return race(analysis, runtime.names)

    def reverse(self, depth: int, task: int, initials: frozenset[int]) -> None:
        """See that at `depth` one of `initials` is tried."""
        if depth < self.base:
            asked = depth, task, initials
            if asked not in self.wanted:
                self.wanted.append(asked)
            return
        self.path[depth].reverse(task, initials)

    def backtrack(self) -> bool:
        """Go to the deepest point with something left to try.  False: nothing is left anywhere."""
        path, most = self.path, self.options.max_preemptions
        if self.sampler is not None:
            return True
        while len(path) > self.base:
            node = path[-1]
            if self.remembers:
                node.after.add(self._later(node.chosen, node.enabled[node.chosen]))
            found, left_out = node.advance(most)
            if left_out:
                self.bound = "preemptions"
            if found:
                self._branch_position = node.position
                return True
            path.pop()
            if self.remembers:
                self._all_done(node)
        return False

    def _all_done(self, node: Node) -> None:
        after = frozenset(node.after)
        self.visited.setdefault(node.key, []).append((frozenset(node.sleep), after))
        if self.path:
            self.path[-1].after |= after

    @property
    def frontier(self) -> Frontier:
        """The path that is next."""
        return tuple(node.choice for node in self.path)

    @property
    def orders(self) -> Orders:
        """In what order locks were taken so far."""
        return Orders(self.analysis.order, self.order_at)

    def save(self, seconds: float) -> Saved:
        """Between two runs: what it takes to go on elsewhere."""
        frontier = self.frontier if self.sampler is None else ()
        return Saved(frontier, self.schedules, self.steps, seconds, frozenset(self.states), "", self.orders)


def share_done(choices: Iterable[Choice]) -> float:
    """How much of the tree along a path is done, if what hangs at each choice is of one size."""
    done, weight = 0.0, 1.0
    for choice in choices:
        known = len(choice.done) + 1 + len(choice.todo)
        done += weight * len(choice.done) / known
        weight /= known
    return done


def explore(
    build: Callable[[], World],
    options: Options | None = None,
    *,
    begin: Saved | None = None,
    watch: Watch | None = None,
    **more: Any,
) -> Result:
    """Run the program that `build` sets up in every order that matters.

    Options may be given as such or by name.  A violation is an exception out of a task or of `World.check`, a `Deadlock`
    among them; a data race; and, once all else is done, locks taken in a circle.  A search that was stopped goes on from
    `begin`, its result's `left`.
    """
    options = (options or Options())._replace(**more)
    start = time.monotonic()
    begin = begin or Saved()
    result, orders, names = _search(build, options, begin, watch or Watch())
    result = reported(build, options, result, orders, names, lambda few: _search(build, few, Saved(), Watch())[0])
    return result._replace(seconds=begin.seconds + time.monotonic() - start)


def _search(build: Callable[[], World], options: Options, begin: Saved, watch: Watch) -> tuple[Result, Orders, list[str]]:
    """One search, with what it found as it found it; in what order it saw locks taken; and the tasks' names."""
    start = time.monotonic() - begin.seconds
    worlds = Worlds(build, options.restore, at_once=options.hashing)
    search = Search(worlds, options)
    if search.sampler is not None and options.max_schedules is None and options.max_seconds is None:
        raise ValueError(f"the strategy {options.strategy} never ends by itself: give max_schedules or max_seconds")
    search.load(begin)
    search.schedules, search.steps, search.bound = begin.schedules, begin.steps, begin.bound
    search.states.update(begin.states)
    error: Exception | None = None
    stopped = ""
    report = start + begin.seconds + watch.every
    try:
        while not stopped:
            error = search.run()
            if error is not None and options.stop_at_violation:
                break
            error = None
            if not search.backtrack():
                break
            now = time.monotonic()
            if options.max_schedules is not None and search.schedules >= options.max_schedules:
                stopped = "schedules"
            elif options.max_seconds is not None and now - start > options.max_seconds:
                stopped = "seconds"
            elif watch.stop is not None and watch.stop():
                stopped = "interrupted"
            if watch.progress is not None and now >= report:
                report = now + watch.every
                watch.progress(Progress(search.schedules, now - start, len(search.path), _share(search)))
    finally:
        worlds.close()
    edges, runs = {**begin.orders.edges}, {**begin.orders.runs}
    for pair, at in search.analysis.order.items():
        edges.setdefault(pair, at)
        runs.setdefault(pair, search.order_at[pair])
    orders = Orders(edges, runs)
    result = result_of(search, error)
    if stopped:
        left = search.save(time.monotonic() - start)._replace(bound=search.bound, orders=orders)
        result = result._replace(outcome=Outcome.INCOMPLETE, bound=stopped, left=left)
    return result, orders, worlds.names


def _share(search: Search) -> float:
    """The share of the tree, or of the schedules or seconds that were allowed, that is done."""
    most = search.options.max_schedules
    if search.sampler is not None:
        return min(search.schedules / most, 1.0) if most else 0.0
    return share_done(search.frontier)


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
