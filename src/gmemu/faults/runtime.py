# SPDX-License-Identifier: GPL-2.0-or-later
"""The direct runtime with something watching: every step is one at a time, counted, and may have something happen at it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..sync import DirectRuntime, Lockdep, Task

if TYPE_CHECKING:
    from .engine import Faults

__all__ = ["FaultyRuntime", "Hung"]


class Hung(BaseException):
    """The program made more steps than it was given.  Not an `Exception`: who goes on for ever mustn't catch it."""


class _Locks(Lockdep):
    """Records lock order, as always, and tells of each lock before it's taken."""

    def __init__(self, faults: Faults) -> None:
        super().__init__()
        self._faults = faults

    def acquire(self, task: Task, name: str) -> None:
        self._faults.at_lock(name)
        super().acquire(task, name)


class FaultyRuntime(DirectRuntime):
    """Like steps aren't done together, because something may happen between any two of them."""

    def __init__(self, faults: Faults) -> None:
        super().__init__(_Locks(faults))
        self._faults = faults

    def batch(self, count: int) -> int:
        return min(count, 1)

    def reads(self, what: object) -> None:
        self._faults.at_step(what)

    writes = reads

    def resched(self) -> None:
        self._faults.at_step(None)

    def reads_each(self, what: tuple[object, ...], start: int, end: int) -> None:
        self._faults.at_step(None)

    writes_each = reads_each
