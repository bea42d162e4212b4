# SPDX-License-Identifier: GPL-2.0-or-later
"""Which steps depend on each other, what happened before what, and which pairs raced (for partial-order reduction).

Two steps are dependent if they touch the same thing and at least one may change what the other sees.  The things are
locks, atomics, and what kernel code marks: ``(kind, object, page)`` or ``(kind, object, first, end)`` for a range.
Happens-before is kept as vector clocks over positions in the trace.
"""

from __future__ import annotations

from typing import NamedTuple

from ..sync.explored import Step, Taken

__all__ = ["Race", "dependent", "races"]

_SHARED = frozenset({"read", "acquire-shared", "enter"})
"""Kinds of which two don't disturb each other."""

_ALONE = frozenset({"begin", "resched", "retry"})
"""Kinds that touch nothing."""

_RELEASES = frozenset({"release", "release-shared"})

_AFTER = {
    "acquire": _RELEASES,
    "acquire-shared": frozenset({"release"}),
    "sync": _RELEASES,
    "wait": _RELEASES,
}
"""Which releases a step waits for: what came before those came before it."""

Place = tuple[object, int, int]
"""A domain, and the part of it from here to there that is touched."""


def place(step: Step) -> Place | None:
    """Where a step takes effect; None for steps that touch nothing."""
    if step.kind in _ALONE:
        return None
    what = step.what
    if not isinstance(what, tuple):
        return id(what), 0, 1
    ints = [part for part in what if isinstance(part, int)]
    domain = tuple(part if isinstance(part, str) else id(part) for part in what if not isinstance(part, int))
    if not ints:
        return domain, 0, 1 << 64
    return domain, ints[0], ints[1] if len(ints) > 1 else ints[0] + 1


def dependent(a: Step, b: Step) -> bool:
    """Whether swapping the two, taken next to each other by different tasks, could matter."""
    if a.kind in _SHARED and b.kind in _SHARED:
        return False
    at, bt = place(a), place(b)
    return at is not None and bt is not None and at[0] == bt[0] and at[1] < bt[2] and bt[1] < at[2]


class Race(NamedTuple):
    """Step `first` of the trace could have come after one that `task` took later.

    `initials`: the tasks of which one must be tried in place of the first step's, for the reverse order to be seen.
    """

    first: int
    task: int
    initials: frozenset[int]


class _Event(NamedTuple):
    position: int
    task: int
    step: Step
    clock: list[int]


def races(trace: list[Taken], waiting: list[tuple[int, Step]], tasks: int) -> list[Race]:
    """Every race of a run.  Steps that tasks were waiting to take when it ended (in a deadlock) race too."""
    clocks = [[-1] * tasks for _ in range(tasks)]
    events: list[_Event] = []
    domains: dict[object, list[_Event]] = {}
    found: list[Race] = []
    for position, (task, step) in enumerate(trace):
        clock = clocks[task] = _advance(position, task, step, clocks[task], events, domains, found)
        event = _Event(position, task, step, clock)
        events.append(event)
        where = place(step)
        if where is not None:
            domains.setdefault(where[0], []).append(event)
    for task, step in waiting:
        _advance(len(trace), task, step, clocks[task], events, domains, found)
    return found


def _advance(
    position: int,
    task: int,
    step: Step,
    before: list[int],
    events: list[_Event],
    domains: dict[object, list[_Event]],
    found: list[Race],
) -> list[int]:
    """The clock after the step, and the races that it ends."""
    clock = list(before)
    where = place(step)
    if where is not None and step.kind not in _RELEASES:
        releases: list[_Event] = []
        for event in reversed(domains.get(where[0], ())):
            if event.task == task:
                continue
            if event.step.kind in _RELEASES:
                if event.step.kind in _AFTER.get(step.kind, ()):
                    releases.append(event)
            elif step.kind != "wait" and event.position > clock[event.task] and dependent(event.step, step):
                found.append(Race(event.position, task, _initials(event, task, step, before, events)))
                _join(clock, event.clock)
        for event in releases:
            _join(clock, event.clock)
    clock[task] = position
    return clock


def _join(clock: list[int], other: list[int]) -> None:
    for i, value in enumerate(other):
        if value > clock[i]:
            clock[i] = value


def _initials(first: _Event, task: int, step: Step, before: list[int], events: list[_Event]) -> frozenset[int]:
    """Source sets: of what came after `first` without depending on it, and then `step` of `task`: who can begin that?"""
    later = [
        e for e in events[first.position + 1 :] if e.clock[first.task] < first.position and e.step.kind not in _RELEASES
    ]
    begins: set[int] = set()
    seen: set[int] = set()
    for event in later:
        if event.task not in seen:
            seen.add(event.task)
            if not any(
                e.position < event.position and event.clock[e.task] >= e.position for e in later if e.task != event.task
            ):
                begins.add(event.task)
    if task not in seen and not any(before[e.task] >= e.position or dependent(e.step, step) for e in later):
        begins.add(task)
    return frozenset(begins or {task})
