# SPDX-License-Identifier: GPL-2.0-or-later
"""Dining philosophers as a model checker has them: four transitions round and round, each of them a step.

::

    do :: fork[i] == free -> fork[i] = i; fork[i+1] == free -> fork[i+1] = i; fork[i+1] = free; fork[i] = free od
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import partial

from gmemu.sync.explored import ExploredRuntime, Step

__all__ = ["Table"]


class Table:
    """`count` philosophers and their forks; all begin with the right one unless the last is left-handed."""

    def __init__(self, count: int, *, left_handed: bool = False) -> None:
        self.runtime = ExploredRuntime()
        self.at = [0] * count
        self.forks: list[int | None] = [None] * count
        domains = [self.runtime.new_domain() for _ in range(count)]
        self._take = [Step("acquire", self, domain) for domain in domains]
        self._put = [Step("write", self, domain) for domain in domains]
        for i in range(count):
            first, second = i, (i + 1) % count
            if left_handed and i == count - 1:
                first, second = second, first
            self.runtime.spawn(f"p{i}", partial(self._dine, i, first, second))

    def _dine(self, me: int, first: int, second: int) -> None:
        while True:
            for fork in (first, second):
                self.runtime.step(self._take[fork], partial(self._is_free, fork))
                self.forks[fork] = me
                self.at[me] += 1
            for fork in (second, first):
                self.runtime.step(self._put[fork])
                self.forks[fork] = None
                self.at[me] = (self.at[me] + 1) % 4

    def _is_free(self, fork: int) -> bool:
        return self.forks[fork] is None

    def key(self) -> Hashable:
        """Where each is, and who has each fork."""
        return bytes((*self.at, *(len(self.at) if who is None else who for who in self.forks)))

    def close(self) -> None:
        """Nothing to let go of."""
