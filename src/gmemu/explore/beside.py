# SPDX-License-Identifier: GPL-2.0-or-later
"""The same order of events in another design: what to put beside a trace so that one sees where they part.

Choices by number don't carry over: another design takes a step more here, and one less there.  So the trace is a script of
who does what.  A task that is to run takes steps until it comes to the one in the script; a step in the script that the
task won't take any more is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..sync.explored import Step, Taken, Thread
from .runs import Turns, World, run_once

__all__ = ["follow"]

_Sign = tuple[str, str]
"""Kind of a step, and what sort of thing it's done to."""


def follow(build: Callable[[], World], script: Sequence[Taken]) -> tuple[int, ...]:
    """The choices (task numbers) by which a world of `build` comes closest to `script`, the trace of another."""
    world = build()
    follower = _Follower(script)
    run_once(world, follower.choose)  # what it comes to is for the replay to say
    return tuple(follower.choices)


class _Follower:
    def __init__(self, script: Sequence[Taken]) -> None:
        self._script = [(task, _sign(step)) for task, step in script if not step.kind.startswith("release")]
        self._at = 0
        self._turns = Turns()
        self.choices: list[int] = []

    def choose(self, able: list[Thread]) -> int:
        tasks = {thread.number: i for i, thread in enumerate(able)}
        while self._at < len(self._script):
            task, wanted = self._script[self._at]
            if task not in tasks:  # it has ended, or it waits where it didn't
                self._at += 1
                continue
            sign = _sign(able[tasks[task]].step)
            if sign != wanted and self._comes_later(task, sign):
                self._at += 1  # what the script has here isn't done in this design
                continue
            if sign != wanted and sign[0] == "retry":
                return self._take(able, self._turns.choose(able))  # it waits for something that another has to do
            self._at += sign == wanted
            return self._take(able, tasks[task])
        return self._take(able, self._turns.choose(able))

    def _comes_later(self, task: int, sign: _Sign) -> bool:
        """Whether the script has the task do this before anybody else runs."""
        for other, later in self._script[self._at + 1 :]:
            if other != task:
                return False
            if later == sign:
                return True
        return False

    def _take(self, able: list[Thread], i: int) -> int:
        self.choices.append(able[i].number)
        self._turns.took(able[i])
        return i


def _sign(step: Step) -> _Sign:
    what = step.what
    return step.kind, str(what[0]) if isinstance(what, tuple) else repr(what)
