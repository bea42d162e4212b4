# SPDX-License-Identifier: GPL-2.0-or-later
"""A search by several processes, which comes to the same verdict and the same counts as by one.

The tree of choices is cut at some depth.  What stands below a cut is explored by a worker, as a function of nothing but the
way there: for each choice on it which task was chosen, and which were tried before.  It returns its counts and what its
races ask to be tried further up.  The coordinator walks the tree above the cut in the order that one process would, and
takes each subtree's result as it comes to it; meanwhile workers explore what is bound to be asked for later.  So who
finished first makes no difference, and the work of a process that died is handed out again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, NamedTuple, Protocol

from .findings import Orders, reported
from .runs import World
from .search import Options, Result, Search, explore, result_of
from .snapshot import Worlds
from .verdict import Kind, Outcome

__all__ = ["Engine", "Progress", "explore_parallel"]

_Way = tuple[tuple[int, tuple[int, ...]], ...]
"""For each choice: the task, and those tried before it."""

_TRIES = 3
"""How often the workers may die before the search gives up."""


class _Point(NamedTuple):
    """A choice above the cut, as a worker came by it."""

    chosen: int
    enabled: tuple[int, ...]
    sleep: tuple[int, ...]
    preemptions: int
    before: int
    """the task that ran before, -1 at the beginning"""


class _Subtree(NamedTuple):
    """What became of what stands below a way."""

    points: tuple[_Point, ...]
    wanted: tuple[tuple[int, int, frozenset[int]], ...]
    """(depth, task, initials): what races ask to be tried above the cut"""
    schedules: int
    steps: int
    states: frozenset[object]
    bound: str
    orders: dict[tuple[str, str], tuple[tuple[int, int, int], tuple[int, ...]]]
    kind: Kind | None
    detail: str
    choices: tuple[int, ...]


class Progress(NamedTuple):
    """How far a search is: schedules run, seconds since it began, and the share of the tree that is known to be done."""

    schedules: int
    seconds: float
    depth: int
    share: float


class Engine(Protocol):
    """Where subtrees are explored."""

    def submit(self, work: Callable[..., Any], /, *args: Any) -> Future[Any]:
        """Begin `work`."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """No more."""


_worker: dict[str, Any] = {}


def _begin_worker(build: Callable[[], World], options: Options) -> None:
    _worker["build"], _worker["options"], _worker["worlds"] = build, options, Worlds(build, options.restore)


def _explore_here(way: _Way, cut: int) -> _Subtree:
    """In a worker process: one subtree."""
    return _explore_subtree(_worker["worlds"], _worker["options"], way, cut)


def _explore_subtree(worlds: Worlds[World], options: Options, way: _Way, cut: int) -> _Subtree:
    search = Search(worlds, options)
    search.forced = way
    search.base = cut
    error: Exception | None = None
    while True:
        error = search.run()
        if search.base > len(search.path):
            search.base = len(search.path)
        if error is not None and options.stop_at_violation:
            break
        error = None
        if not search.backtrack():
            break
    points = tuple(
        _Point(
            node.chosen if depth >= len(way) else way[depth][0],
            tuple(node.enabled),
            tuple(node.sleep),
            node.preemptions,
            search.path[depth - 1].chosen if depth else -1,
        )
        for depth, node in enumerate(search.path[: search.base])
    )
    result = result_of(search, error)
    orders = {pair: (at, search.order_at[pair]) for pair, at in search.analysis.order.items()}
    return _Subtree(
        points,
        tuple(search.wanted),
        search.schedules,
        search.steps,
        frozenset(search.states),
        search.bound,
        orders,
        result.kind,
        result.detail,
        result.choices,
    )


class _Above:
    """A choice above the cut: what was tried, and what is to be."""

    def __init__(self, point: _Point) -> None:
        self.point = point
        self.chosen = point.chosen
        self.done: list[int] = []
        self.todo: list[int] = []

    def reverse(self, task: int, initials: frozenset[int]) -> None:
        """As `Search.reverse`."""
        known = {self.chosen, *self.done, *self.todo}
        if known & initials:
            return
        enabled = self.point.enabled
        if task in initials and task in enabled:
            self.todo.append(task)
            return
        first = next((t for t in sorted(initials) if t in enabled), None)
        if first is not None:
            self.todo.append(first)
        else:
            self.todo += [t for t in enabled if t not in known]


class _Coordinator:
    def __init__(self, options: Options, cut: int) -> None:
        self.options, self.cut = options, cut
        self.path: list[_Above] = []
        self.schedules = self.steps = 0
        self.states: set[object] = set()
        self.bound = ""
        self.orders: dict[tuple[str, str], tuple[tuple[int, int, int], tuple[int, ...]]] = {}

    @property
    def way(self) -> _Way:
        return tuple((above.chosen, tuple(above.done)) for above in self.path)

    def take(self, found: _Subtree) -> None:
        """Count a subtree in, and note what it asks for."""
        for point in found.points[len(self.path) :]:
            above = _Above(point)
            if not self.options.reduce:
                above.todo = [task for task in point.enabled if task != point.chosen]
            self.path.append(above)
        for depth, task, initials in found.wanted:
            self.path[depth].reverse(task, initials)
        self.schedules += found.schedules
        self.steps += found.steps
        self.states |= found.states
        self.bound = self.bound or found.bound
        for pair, seen in found.orders.items():
            self.orders.setdefault(pair, seen)

    def _allowed(self, depth: int, task: int) -> bool:
        point, most = self.path[depth].point, self.options.max_preemptions
        if task in point.sleep:
            return False
        preempts = point.before >= 0 and point.before != task and point.before in point.enabled
        return most is None or point.preemptions + preempts <= most

    def backtrack(self) -> bool:
        """As `Search.backtrack`."""
        while self.path:
            above = self.path[-1]
            above.done.append(above.chosen)
            while above.todo:
                task = above.todo.pop(0)
                if self._allowed(len(self.path) - 1, task):
                    above.chosen = task
                    return True
                if task not in above.point.sleep:
                    self.bound = "preemptions"
            self.path.pop()
        return False

    def ahead(self) -> list[_Way]:
        """Ways that are bound to be asked for, soonest first."""
        ways: list[_Way] = []
        way = self.way
        for depth in range(len(self.path) - 1, -1, -1):
            above = self.path[depth]
            done = [*above.done, above.chosen]
            for task in above.todo:
                if self._allowed(depth, task):
                    ways.append((*way[:depth], (task, tuple(done))))
                    done.append(task)
        return ways

    @property
    def share(self) -> float:
        """How much of the tree, as far as it's known, is done."""
        done, weight = 0.0, 1.0
        for above in self.path:
            known = len(above.done) + 1 + len(above.todo)
            done += weight * len(above.done) / known
            weight /= known
        return done


def explore_parallel(
    build: Callable[[], World],
    jobs: int,
    options: Options | None = None,
    *,
    engine: Callable[[], Engine] | None = None,
    progress: Callable[[Progress], None] | None = None,
    cut: int | None = None,
    **more: Any,
) -> Result:
    """`search.explore` by `jobs` processes of this machine, or by the workers of an `engine`.

    `cut` is the depth (choices) at which subtrees are handed out: by default half of the first run's.  `progress` is told
    after each subtree.
    """
    options = (options or Options())._replace(**more)
    start = time.monotonic()
    worlds = Worlds(build, options.restore)
    if cut is None:
        first = Search(worlds, options)
        first.run()
        cut = max(len(first.path) // 2, 1)
    names = worlds.names
    worlds.close()

    def begin() -> Engine:
        if engine is not None:
            return engine()
        return ProcessPoolExecutor(jobs, get_context("fork"), _begin_worker, (build, options))

    coordinator = _Coordinator(options, cut)
    violation: dict[str, Any] = {}
    outcome = Outcome.EXHAUSTED
    running = begin()
    futures: dict[_Way, Future[_Subtree]] = {}
    tries = _TRIES
    try:
        while True:
            way = coordinator.way
            try:
                if way not in futures:
                    futures[way] = running.submit(_explore_here, way, cut)
                found = futures[way].result()
            except BrokenProcessPool:
                tries -= 1
                if not tries:
                    raise
                running.shutdown(wait=False)
                running = begin()
                futures = {w: f for w, f in futures.items() if f.done() and f.exception() is None}
                continue
            del futures[way]
            coordinator.take(found)
            if found.kind is not None:
                violation = {"kind": found.kind, "detail": found.detail, "choices": found.choices}
                outcome = Outcome.VIOLATED
                break
            if progress is not None:
                spent = time.monotonic() - start
                progress(Progress(coordinator.schedules, spent, len(coordinator.path), coordinator.share))
            if not coordinator.backtrack():
                outcome = Outcome.INCOMPLETE if coordinator.bound else Outcome.EXHAUSTED
                break
            if options.max_seconds is not None and time.monotonic() - start > options.max_seconds:
                coordinator.bound, outcome = "seconds", Outcome.INCOMPLETE
                break
            for soon in (coordinator.way, *coordinator.ahead()):
                if len(futures) >= 3 * jobs:
                    break
                if soon not in futures:
                    futures[soon] = running.submit(_explore_here, soon, cut)
    finally:
        running.shutdown(wait=False, cancel_futures=True)
    counts = Result(
        outcome,
        coordinator.schedules,
        coordinator.steps,
        time.monotonic() - start,
        frozenset(coordinator.states),
        bound=coordinator.bound,
        **violation,
    )
    orders = Orders(
        {pair: at for pair, (at, _) in coordinator.orders.items()},
        {pair: run for pair, (_, run) in coordinator.orders.items()},
    )
    return reported(build, options, counts, orders, names, lambda few: explore(build, few, minimise=False))
