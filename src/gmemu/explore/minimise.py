# SPDX-License-Identifier: GPL-2.0-or-later
"""From a schedule that goes wrong to the simplest that goes wrong in the same way.

Simplest is: fewest preemptions, then fewest tasks that took a step before it went wrong, then fewest steps.  Schedules are
tried by running them; one that can't be followed to the letter is followed as far as it goes and filled in by turns.
What comes of it is run ten times more: if they aren't all alike the program depends on something other than its schedule.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from ..sync.explored import Taken, Thread
from .runs import Turns, judge, run_once
from .verdict import Kind, kind_of

if TYPE_CHECKING:
    from .runs import Judge, World

__all__ = ["TIMES", "Attempt", "attempt", "confirm", "minimise"]

TIMES = 10
"""How often a violation is replayed before it's reported."""


class Attempt(NamedTuple):
    """A run: what went wrong (None: nothing), the choices that were made, and how simple that was."""

    kind: Kind | None
    detail: str
    choices: tuple[int, ...]
    trace: tuple[Taken, ...]
    preemptions: int

    @property
    def cost(self) -> tuple[int, int, int]:
        """Less is simpler: preemptions, tasks, steps."""
        return self.preemptions, len(set(self.choices)), len(self.choices)


def attempt(build: Callable[[], World], wanted: tuple[int, ...], judge: Judge = judge) -> Attempt:
    """Run along `wanted` (task numbers) as far as that can be done: a task that can't go on is passed over.

    A run that never ends is told by the choices that lead into its loop; what comes after is filled in by turns.
    """
    left = list(reversed(wanted))
    turns = Turns()
    made: list[int] = []
    preemptions, led, led_with = 0, 0, 0

    def choose(able: list[Thread]) -> int:
        nonlocal preemptions, led, led_with
        index = {thread.number: i for i, thread in enumerate(able)}
        at = -1
        while left and at < 0:
            at = index.get(left.pop(), -1)
        given = at >= 0
        if not given:
            at = turns.choose(able)
        else:
            turns.took(able[at])
        if made and made[-1] != able[at].number and made[-1] in index:
            preemptions += able[index[made[-1]]].step.kind not in ("retry", "resched")
        made.append(able[at].number)
        if given:
            led, led_with = len(made), preemptions
        return at

    world = build()
    error = run_once(world, choose, judge=judge)
    kind = kind_of(error) if error is not None else None
    if kind is Kind.LIVELOCK:
        del made[led:]
        preemptions = led_with
    return Attempt(kind, str(error) if error else "", tuple(made), tuple(world.runtime.trace), preemptions)


def minimise(build: Callable[[], World], found: Attempt, seconds: float = 1.0, judge: Judge = judge) -> Attempt:
    """The simplest run of the same kind that was come by in so many seconds."""
    until = time.monotonic() + seconds
    best = found
    if found.kind is Kind.LIVELOCK:
        best = _into_the_loop(build, found, judge)
    better = True
    while better:
        better = False
        for candidate in _simpler(best.choices):
            if time.monotonic() > until:
                return best
            tried = attempt(build, candidate, judge)
            if tried.kind is found.kind and tried.cost < best.cost:
                best, better = tried, True
                break
    return best


def _into_the_loop(build: Callable[[], World], found: Attempt, judge: Judge) -> Attempt:
    """The shortest beginning, by powers of two, after which turns go on for ever."""
    length = 0
    while length < len(found.choices):
        tried = attempt(build, found.choices[:length], judge)
        if tried.kind is found.kind:
            return tried
        length = 2 * length or 1
    return found


def _simpler(choices: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Schedules near `choices` that may be simpler: a task put last, two stretches of a task joined, a stretch cut short."""
    for task in sorted(set(choices)):
        yield tuple(c for c in choices if c != task)
    blocks = [(task, len(list(run))) for task, run in groupby(choices)]
    for i, (task, length) in enumerate(blocks):
        for j in range(i + 1, len(blocks)):
            if blocks[j][0] == task:
                later = [*blocks[:i], *blocks[i + 1 : j], (task, length + blocks[j][1]), *blocks[j + 1 :]]
                sooner = [*blocks[:i], (task, length + blocks[j][1]), *blocks[i + 1 : j], *blocks[j + 1 :]]
                yield _flat(later)
                yield _flat(sooner)
                break
    for i, (task, length) in enumerate(blocks):
        for shorter in {0, length // 2, length - 1} - {length}:
            yield _flat([*blocks[:i], (task, shorter), *blocks[i + 1 :]])


def _flat(blocks: list[tuple[int, int]]) -> tuple[int, ...]:
    return tuple(task for task, length in blocks for _ in range(length))


def confirm(build: Callable[[], World], found: Attempt, judge: Judge = judge) -> str:
    """Replay `found` ten times.  Empty if all were alike; else at which step one wasn't, in a sentence."""
    for number in range(1, TIMES + 1):
        again = attempt(build, found.choices, judge)
        for at, (was, now) in enumerate(zip(found.trace, again.trace, strict=False)):
            if was.task != now.task or not was.step.same_as(now.step):
                return f"not deterministic: replay {number} differs at step {at}: it was {was.step!r}, and is {now.step!r}"
        if len(found.trace) != len(again.trace) or found.kind is not again.kind:
            return (
                f"not deterministic: replay {number} ended after {len(again.trace)} steps with {again.kind or 'nothing'}, "
                f"before it was {len(found.trace)} with {found.kind}"
            )
    return ""
