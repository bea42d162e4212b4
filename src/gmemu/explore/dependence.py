# SPDX-License-Identifier: GPL-2.0-or-later
"""What happened before what along a path, and what follows from it: races to reverse, lock order, unguarded accesses.

Two relations are kept, both as vector clocks over positions in the trace.  By the *dependence* relation steps are ordered
that conflict: reversing those of its pairs that could be reversed is partial-order reduction.  By *synchronisation* only
locks, SRCU and atomics order: two accesses to guarded state that it leaves unordered are a data race, whatever came first.

A search goes back to some point and forward again, so `Analysis` keeps the events of the path and is cut back with it;
what was computed for a common beginning stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..sync.explored import Step

__all__ = ["Analysis", "Event", "Reversal", "Unguarded"]


class Event:
    """A step that was taken.  `clock` and `sync` have by task the last position that came before it (its own among them);
    `held` the acquisitions that its task holds afterwards."""

    __slots__ = ("clock", "held", "position", "step", "sync", "task")

    def __init__(
        self, position: int, task: int, step: Step, clock: list[int], sync: list[int], held: tuple[Event, ...]
    ) -> None:
        self.position, self.task, self.step = position, task, step
        self.clock, self.sync, self.held = clock, sync, held


class Reversal(NamedTuple):
    """Step `first` of the trace could have come after one that `task` took later.

    `initials`: the tasks of which one must be tried in place of the first step's, for the reverse order to be seen.
    """

    first: int
    task: int
    initials: frozenset[int]


class Unguarded(NamedTuple):
    """Two accesses to guarded state, neither after the other by any lock: positions in the trace, the second may be next."""

    first: Event
    task: int
    step: Step


class Analysis:
    """The events of a path."""

    def __init__(self, tasks: int) -> None:
        self.tasks = tasks
        self.events: list[Event] = []
        self.order: dict[tuple[str, str], tuple[int, int, int]] = {}
        """(lock held, lock taken) -> task, positions of both acquisitions in the run in which that was first seen"""
        self.new_order: list[tuple[str, str]] = []
        """what `order` got since it was last looked at"""
        self.unguarded: Unguarded | None = None
        self._domains: dict[int, list[Event]] = {}
        self._of_task: list[list[Event]] = [[] for _ in range(tasks)]
        self._start = [-1] * tasks

    def cut(self, length: int) -> None:
        """Forget all but the first `length` steps."""
        events, domains, of_task = self.events, self._domains, self._of_task
        while len(events) > length:
            event = events.pop()
            of_task[event.task].pop()
            if event.step.domain >= 0:
                domains[event.step.domain].pop()
        self.unguarded = None

    def extend(self, who: Sequence[int], what: Sequence[Step], waiting: Sequence[tuple[int, Step]]) -> list[Reversal]:
        """Add the steps of a trace beyond those known.  Returns the races that they end, and those that `waiting`, which
        tasks would have taken next when the run ended, would have ended."""
        found: list[Reversal] = []
        for position in range(len(self.events), len(who)):
            self._add(position, who[position], what[position], found)
        for task, step in waiting:
            self._races(task, step, self._clock(task), found)
        return found

    def _clock(self, task: int) -> list[int]:
        mine = self._of_task[task]
        return mine[-1].clock if mine else self._start

    def _add(self, position: int, task: int, step: Step, found: list[Reversal]) -> None:
        mine = self._of_task[task]
        if mine:
            last = mine[-1]
            clock, sync, held = last.clock, last.sync, last.held
        else:
            clock, sync, held = self._start, self._start, ()
        domain = step.domain
        if domain < 0:
            clock = clock.copy()
            clock[task] = position
            event = Event(position, task, step, clock, sync, held)
            self.events.append(event)
            mine.append(event)
            return
        there = self._domains.get(domain)
        if there is None:
            there = self._domains[domain] = []
        if step.releases:
            clock, sync = clock.copy(), sync.copy()
            sync[task] = position
            for i in range(len(held) - 1, -1, -1):
                if held[i].step.domain == domain:
                    held = held[:i] + held[i + 1 :]
                    break
        elif there:
            if step.after is not None or not step.marked:
                sync = self._synchronise(task, step, sync, there)
            if step.guard and self.unguarded is None:
                self._check_guard(task, step, sync)
            clock = self._races(task, step, clock, found)
        else:
            clock = clock.copy()
        clock[task] = position
        event = Event(position, task, step, clock, sync, held)
        kind = step.kind
        if kind == "acquire" or kind == "acquire-shared":
            if held:
                self._note_order(event)
            event.held = (*held, event)
        elif kind == "enter":
            event.held = (*held, event)  # a reader of SRCU never waits
        elif kind == "sync":
            self._note_order(event)
        self.events.append(event)
        mine.append(event)
        there.append(event)

    def _races(self, task: int, step: Step, before: list[int], found: list[Reversal]) -> list[int]:
        """The clock that `task` has when it takes `step`; `found` gets the races that this ends."""
        clock = before.copy()
        against, start, end, after = step.against, step.start, step.end, step.after
        releases: list[Event] = []
        for event in reversed(self._domains.get(step.domain, ())):
            other = event.step
            if event.task == task:
                if other.decides and other.start <= start and end <= other.end:
                    break  # what conflicts with this step and came earlier came before that one
                continue
            if other.role in against:
                if other.start < end and start < other.end:
                    if event.position > clock[event.task]:
                        found.append(Reversal(event.position, task, self._initials(event, task, step, before)))
                        _join(clock, event.clock)
                    if other.decides and other.start <= start and end <= other.end:
                        break
            elif after is not None and other.kind in after:
                releases.append(event)
        for event in releases:
            _join(clock, event.clock)
        return clock

    def races_with(self, task: int, step: Step) -> list[int]:
        """Positions of the steps that race with one that `task` is to take some time."""
        clock = self._clock(task).copy()
        found: list[int] = []
        for event in reversed(self._domains.get(step.domain, ())):
            other = event.step
            covers = other.decides and other.start <= step.start and step.end <= other.end
            if event.task != task:
                if other.role not in step.against or other.start >= step.end or step.start >= other.end:
                    continue
                if event.position > clock[event.task]:
                    found.append(event.position)
                    _join(clock, event.clock)
            if covers:
                break
        return found

    def _initials(self, first: Event, task: int, step: Step, before: list[int]) -> frozenset[int]:
        """Source sets: of what came after `first` without depending on it, and then `step` of `task`: who can begin that?"""
        begins: dict[int, Event] = {}
        at, by = first.position, first.task
        later = []
        for event in self.events[at + 1 :]:
            if event.clock[by] < at and not event.step.releases:
                later.append(event)
                begins.setdefault(event.task, event)
        found = {
            event.task
            for event in begins.values()
            if not any(
                o.position < event.position and event.clock[o.task] >= o.position for o in begins.values() if o is not event
            )
        }
        if task not in begins and not any(before[e.task] >= e.position or e.step.conflicts(step) for e in later):
            found.add(task)
        return frozenset(found or {task})

    def _synchronise(self, task: int, step: Step, sync: list[int], there: list[Event]) -> list[int]:
        """What comes before a step on a lock, SRCU or an atomic, of which `there` are the events so far, by those alone."""
        after = step.after
        all_before = step.kind in ("sync", "wait")  # readers of SRCU end one by one
        copied = False
        for event in reversed(there):
            if event.step.kind in after if after else event.step.kind == "write":
                if event.task != task:
                    if not copied:
                        sync, copied = sync.copy(), True
                    _join(sync, event.sync)
                    if event.position > sync[event.task]:
                        sync[event.task] = event.position
                if event.step.kind in ("write", "release") and not all_before:
                    break  # it came after those before it
        return sync

    def _check_guard(self, task: int, step: Step, sync: list[int]) -> None:
        every = step.guard == "all"
        if not every and step.kind != "write":
            return
        for event in self._domains.get(step.domain, ()):
            if event.task == task or event.position <= sync[event.task] or not (every or event.step.kind == "write"):
                continue
            if event.step.conflicts(step):
                self.unguarded = Unguarded(event, task, step)
                return

    def _note_order(self, event: Event) -> None:
        taken = str(event.step.what)
        for outer in event.held:
            pair = (str(outer.step.what), taken)
            if pair[0] != taken and pair not in self.order:
                self.order[pair] = (event.task, outer.position, event.position)
                self.new_order.append(pair)


def _join(clock: list[int], other: list[int]) -> None:
    for i, value in enumerate(other):
        if value > clock[i]:
            clock[i] = value
