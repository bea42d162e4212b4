# SPDX-License-Identifier: GPL-2.0-or-later
"""A search by several processes, which comes to the same verdict and the same counts as by one.

The coordinator has the upper end of the path; what hangs below it, and below what else is to be tried along it, is searched
in parts by workers (`parts`).  It takes their results in the order in which one process would have come by them, so who
finished first makes no difference; and as a part depends on nothing but the way there, that of a worker that died is done
again.  When there is too little to hand out the coordinator takes more of the path for itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Any

from .branch import Branch
from .engines import Engine, Processes
from .findings import reported
from .options import Options, Progress, Result, Watch
from .parts import Item, Part, Point, explore_part
from .runs import World
from .saved import Choice, Frontier, Orders, Saved
from .search import explore, share_done
from .snapshot import Worlds
from .verdict import Outcome

__all__ = ["explore_parallel"]

_TRIES = 3
"""How often workers may die before the search gives up."""
_AHEAD = 64
"""Parts a worker that may wait for their turn."""


class _Above(Branch):
    """A choice above the workers."""

    def __init__(self, point: Point) -> None:
        self.chosen, self.done, self.todo = point.chosen, list(point.done), list(point.todo)
        self.enabled, self.sleep = point.enabled, point.sleep
        self.preemptions, self.before = point.preemptions, point.before


class _Tree:
    """The upper end of the path, and the frontier below it of the part that is searched now."""

    def __init__(self, options: Options, begin: Saved) -> None:
        self.options = options
        self.path: list[_Above] = []
        self.inner: tuple[Point, ...] = ()
        self.begun: Frontier = begin.frontier
        self.bound = ""

    @property
    def frontier(self) -> Frontier:
        """Where the whole search is."""
        return (*(above.choice for above in self.path), *self._inner)

    @property
    def _inner(self) -> Frontier:
        return tuple(Choice(*point[:3]) for point in self.inner) or self.begun

    @property
    def item(self) -> Item:
        """What comes next."""
        return Item(tuple(Choice(above.chosen, tuple(above.done)) for above in self.path), self._inner)

    def take(self, part: Part) -> bool:
        """What came next came to this.  Whether anything is left."""
        for depth, task, initials in part.wanted:
            self.path[depth].reverse(task, initials)
        self.inner, self.begun = part.points, ()
        return not part.finished or self._backtrack()

    def after(self, item: Item, part: Part) -> Item | None:
        """What comes next below the way of an item that came to `part`."""
        return None if part.finished else Item(item.way, tuple(Choice(*point[:3]) for point in part.points))

    def split(self) -> None:
        """Take more of the path: as far as the next choice at which something is left to try."""
        for number, point in enumerate(self.inner):
            if point.todo:
                self.path += [_Above(taken) for taken in self.inner[: number + 1]]
                self.inner = self.inner[number + 1 :]
                return

    def ahead(self) -> list[Item]:
        """What is bound to come later, soonest first."""
        items: list[Item] = []
        way = self.item.way
        for depth in range(len(self.path) - 1, -1, -1):
            above = self.path[depth]
            done = [*above.done, above.chosen]
            for task in above.todo:
                if above.allows(task, self.options.max_preemptions):
                    items.append(Item((*way[:depth], Choice(task, tuple(done)))))
                    done.append(task)
        return items

    def _backtrack(self) -> bool:
        """As `Search.backtrack`."""
        self.inner = ()
        while self.path:
            found, left_out = self.path[-1].advance(self.options.max_preemptions)
            if left_out:
                self.bound = "preemptions"
            if found:
                return True
            self.path.pop()
        return False

    @property
    def share(self) -> float:
        """How much of the tree is done."""
        return share_done(self.frontier)


class _Draws:
    """Schedules that are drawn by number: any of them may be drawn ahead."""

    bound = ""
    frontier: Frontier = ()
    size = 50

    def __init__(self, options: Options, begin: Saved) -> None:
        self.item = Item(drawn=begin.schedules, limit=self.size)
        self.most = options.max_schedules
        self.ways = 0

    def take(self, part: Part) -> bool:
        """On to the next."""
        self.item = self.item._replace(drawn=self.item.drawn + part.schedules)
        return True

    def after(self, item: Item, part: Part) -> Item | None:
        """What follows is an item of its own."""
        return None

    def split(self) -> None:
        """There is always enough."""

    def ahead(self) -> list[Item]:
        """The next hundred."""
        numbers = (self.item.drawn + self.size * n for n in range(1, 100))
        return [self.item._replace(drawn=n) for n in numbers if self.most is None or n < self.most]

    @property
    def share(self) -> float:
        """Of the schedules that were asked for."""
        return min(self.item.drawn / self.most, 1.0) if self.most else 0.0


class _Job:
    """All parts of one way, one after the other: those that wait for their turn, and the one that is searched."""

    def __init__(self, item: Item) -> None:
        self.item: Item | None = item
        """the next; None when it's over"""
        self.parts: list[tuple[Item, Part]] = []
        self.ticket: int | None = None
        """while somebody is at it"""


class _Coordinator:
    def __init__(self, build: Callable[[], World], options: Options, begin: Saved, watch: Watch) -> None:
        self.build, self.options, self.watch = build, options, watch
        self.start = time.monotonic() - begin.seconds
        self.plan: _Tree | _Draws = (_Tree if options.strategy == "exhaustive" else _Draws)(options, begin)
        self.schedules, self.steps, self.bound = begin.schedules, begin.steps, begin.bound
        self.states = set(begin.states)
        self.orders = Orders({**begin.orders.edges}, {**begin.orders.runs})
        self.worlds: Worlds[World] = Worlds(build, options.restore)
        self.jobs: dict[Hashable, _Job] = {}
        self.outcome: Outcome | None = None
        self.violation: dict[str, Any] = {}
        self.stopped = ""
        self._report = time.monotonic() + watch.every

    def run(self, alone: float, engine: Callable[[], Engine]) -> None:
        """Until there's an outcome."""
        first = self.plan.item._replace(seconds=self._seconds(alone))
        self.take(first, explore_part(self.worlds, self.options, first))
        if self.outcome is not None:
            return
        running = engine()
        try:
            tries = _TRIES
            while self.outcome is None:
                tries -= self._collect(running)
                if not tries:
                    raise RuntimeError(f"workers died {_TRIES} times: is there a run that takes its process down?")
        finally:
            running.close()

    def _collect(self, engine: Engine) -> bool:
        """Have everybody do something, and take what is ready.  Whether a worker was lost."""
        self._hand_out(engine)
        running = {job.ticket: job for job in self.jobs.values() if job.ticket is not None}
        lost = False
        for ticket, part, error in engine.wait(0.1):
            if error is not None:
                raise error
            job = running.get(ticket)
            if job is None or job.item is None:
                continue
            job.ticket = None
            if part is None:
                lost = True
                continue
            job.parts.append((job.item, part))
            job.item = None if part.kind is not None else self.plan.after(job.item, part)
        self._take_all(engine)
        self._look()
        return lost

    def _seconds(self, seconds: float) -> float:
        """Schedules that are drawn are handed out by number."""
        return float("inf") if isinstance(self.plan, _Draws) else seconds

    def _key(self, item: Item) -> Hashable:
        return item.drawn if isinstance(self.plan, _Draws) else item.way

    def _hand_out(self, engine: Engine) -> None:
        """Items to workers, those first that come first."""
        busy = sum(job.ticket is not None for job in self.jobs.values())
        waiting = sum(len(job.parts) for job in self.jobs.values())
        items = [self.plan.item]
        if waiting < _AHEAD * engine.workers:
            items += self.plan.ahead()
        for item in items:
            if busy >= 2 * engine.workers:
                break
            job = self.jobs.setdefault(self._key(item), _Job(item))
            if job.ticket is None and job.item is not None:
                job.ticket = engine.submit(job.item._replace(seconds=self._seconds(engine.seconds)))
                busy += 1

    def _take_all(self, engine: Engine) -> None:
        """Whatever has its turn."""
        while self.outcome is None:
            key = self._key(self.plan.item)
            job = self.jobs.get(key)
            if job is None or not job.parts:
                return
            item, part = job.parts.pop(0)
            left = None if self.options.max_schedules is None else self.options.max_schedules - self.schedules
            if left is not None and part.schedules > left:
                item = item._replace(limit=left)
                part = explore_part(self.worlds, self.options, item)
            self.take(item, part)
            if not job.parts and job.ticket is None and job.item is None:
                del self.jobs[key]
            elif not job.parts and job.ticket is None and self._is_scarce(engine):
                del self.jobs[key]
                self.plan.split()

    def _is_scarce(self, engine: Engine) -> bool:
        jobs = (self.jobs.get(self._key(item)) for item in self.plan.ahead())
        return sum(job is None or job.item is not None for job in jobs) < 2 * engine.workers

    def take(self, item: Item, part: Part) -> None:
        """Count a part in whose turn it is."""
        self.schedules += part.schedules
        self.steps += part.steps
        self.states |= part.states
        self.bound = self.bound or part.bound
        for pair, at in part.orders.edges.items():
            self.orders.edges.setdefault(pair, at)
            self.orders.runs.setdefault(pair, part.orders.runs[pair])
        if part.kind is not None:
            self.violation = {"kind": part.kind, "detail": part.detail, "choices": part.choices}
            self.outcome = Outcome.VIOLATED
            return
        if not self.plan.take(part):
            self.bound = self.bound or self.plan.bound
            self.outcome = Outcome.INCOMPLETE if self.bound else Outcome.EXHAUSTED
            return
        if self.options.max_schedules is not None and self.schedules >= self.options.max_schedules:
            self.stopped, self.outcome = "schedules", Outcome.INCOMPLETE
        self._look()

    def _look(self) -> None:
        """At the clock, and at whoever looks on."""
        now = time.monotonic()
        if self.outcome is None and self.options.max_seconds is not None and now - self.start > self.options.max_seconds:
            self.stopped, self.outcome = "seconds", Outcome.INCOMPLETE
        if self.outcome is None and self.watch.stop is not None and self.watch.stop():
            self.stopped, self.outcome = "interrupted", Outcome.INCOMPLETE
        if self.watch.progress is not None and now >= self._report:
            self._report = now + self.watch.every
            depth = len(self.plan.frontier)
            self.watch.progress(Progress(self.schedules, now - self.start, depth, self.plan.share))

    def result(self) -> Result:
        """The counts, and what it came to."""
        assert self.outcome is not None
        bound = self.bound or self.plan.bound
        left = None
        if self.stopped:
            spent = time.monotonic() - self.start
            counts = self.schedules, self.steps, spent, frozenset(self.states), bound, self.orders
            left = Saved(self.plan.frontier, *counts)
        return Result(
            self.outcome,
            self.schedules,
            self.steps,
            0,
            frozenset(self.states),
            bound=self.stopped or bound,
            left=left,
            **self.violation,
        )


def explore_parallel(
    build: Callable[[], World],
    jobs: int,
    options: Options | None = None,
    *,
    begin: Saved | None = None,
    watch: Watch | None = None,
    engine: Callable[[Callable[[], World], Options, int], Engine] = Processes,
    alone: float = 0.02,
    **more: Any,
) -> Result:
    """`search.explore` by `jobs` processes of this machine, or by the workers of another `engine`.

    For the first seconds the search goes on `alone`: most are done by then.
    """
    options = (options or Options())._replace(**more)
    if options.strategy != "exhaustive" and options.max_schedules is None and options.max_seconds is None:
        raise ValueError(f"the strategy {options.strategy} never ends by itself: give max_schedules or max_seconds")
    if options.hashing:
        raise ValueError("states are remembered by one process: leave out hashing, or search with one")
    begin = begin or Saved()
    coordinator = _Coordinator(build, options, begin, watch or Watch())
    try:
        coordinator.run(alone, lambda: engine(build, options, jobs))
    finally:
        coordinator.worlds.close()
    result, names = coordinator.result(), coordinator.worlds.names
    result = reported(build, options, result, coordinator.orders, names, lambda few: explore(build, few, minimise=False))
    return result._replace(seconds=time.monotonic() - coordinator.start)
