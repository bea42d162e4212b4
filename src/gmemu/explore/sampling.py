# SPDX-License-Identifier: GPL-2.0-or-later
"""Random schedules for what is too large to be searched: each run is drawn anew, and a seed draws the same ones again.

A random walk favours schedules that switch at every step.  Probabilistic concurrency testing (Burckhardt, Kothari,
Musuvathi, Nagarakatte, ASPLOS 2010) runs by priorities that change at a few places, and finds a bug of depth d in one of
n k^(d-1) runs.  Partial-order sampling (Yuan, Yang, Gu, CAV 2018) gives each step a priority, which it draws again when it
lost a race.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod

from ..sync.explored import Thread

__all__ = ["STRATEGIES", "Pct", "Pos", "RandomWalk", "Sampler"]


class Sampler(ABC):
    """Draws schedules.  What the n-th is depends on the seed, on n and on the length of the first, so
    that they may be drawn in parts."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.steps = 1
        """choices in the run of number 0"""

    def begin(self, number: int, tasks: int) -> None:
        """Another run, the `number`-th, of so many tasks."""
        self.random.seed(f"{self.seed}/{number}")
        self.prepare(tasks)

    @abstractmethod
    def prepare(self, tasks: int) -> None:
        """What is drawn before a run."""

    @abstractmethod
    def pick(self, able: list[Thread]) -> int:
        """Which of those who can go on."""


class RandomWalk(Sampler):
    """At each step, whoever."""

    def prepare(self, tasks: int) -> None:
        pass

    def pick(self, able: list[Thread]) -> int:
        return self.random.randrange(len(able))


class Pct(Sampler):
    """Priorities, and `depth` - 1 places at which the task that runs gets the lowest."""

    def __init__(self, seed: int, depth: int = 3) -> None:
        super().__init__(seed)
        self.depth = depth

    def prepare(self, tasks: int) -> None:
        self._priority = [self.depth + rank for rank in self.random.sample(range(tasks), tasks)]
        self._changes = {self.random.randrange(self.steps): low for low in range(self.depth - 1)}
        self._at = 0

    def pick(self, able: list[Thread]) -> int:
        best = max(range(len(able)), key=lambda i: self._priority[able[i].number])
        low = self._changes.get(self._at)
        if low is not None or able[best].step.kind in ("retry", "resched"):
            self._priority[able[best].number] = low if low is not None else min(self._priority) - 1
            best = max(range(len(able)), key=lambda i: self._priority[able[i].number])
        self._at += 1
        return best


class Pos(Sampler):
    """Each step has a priority; the highest goes, and those that it conflicts with draw again."""

    def prepare(self, tasks: int) -> None:
        self._priority: dict[int, float] = {}

    def pick(self, able: list[Thread]) -> int:
        for thread in able:
            if thread.number not in self._priority:
                self._priority[thread.number] = self.random.random()
        best = max(range(len(able)), key=lambda i: self._priority[able[i].number])
        chosen = able[best]
        del self._priority[chosen.number]
        for thread in able:
            if thread is not chosen and thread.step.conflicts(chosen.step):
                self._priority.pop(thread.number, None)
        return best


STRATEGIES: dict[str, type[Sampler]] = {"random": RandomWalk, "pct": Pct, "pos": Pos}
