# SPDX-License-Identifier: GPL-2.0-or-later
"""What a search says, and what can be wrong with a run."""

from __future__ import annotations

from enum import StrEnum

from ..invariants import InvariantViolation, Leak, StaleTlb, UseAfterFree
from ..sync import Deadlock
from ..sync.explored import NotDeterministic

__all__ = ["Kind", "Livelock", "LockOrder", "Outcome", "Race", "kind_of"]


class Outcome(StrEnum):
    """What a search says."""

    VIOLATED = "violated"
    EXHAUSTED = "exhausted"
    INCOMPLETE = "incomplete"


class Kind(StrEnum):
    """What is wrong with a run; as text it's what `--json`, scenarios' `broken_by` and traces have."""

    INVARIANT = "invariant"
    """something that must always hold (DESIGN.md, `check_host`) doesn't"""
    DEADLOCK = "deadlock"
    """tasks wait for each other, or one for itself"""
    LOCK_ORDER = "lock-order"
    """two runs took locks in orders that can't both be right"""
    LIVELOCK = "livelock"
    """tasks run, each gets its turn, and none comes to an end"""
    LEAK = "leak"
    """with everything closed, something is still held"""
    USE_AFTER_FREE = "use-after-free"
    RACE = "race"
    """two tasks touch state that a lock should guard, neither after the other"""
    STALE_TLB = "stale-tlb"
    """a processor used a translation whose page was given away"""
    ASSERTION = "assertion"
    """the scenario's own condition"""
    NOT_DETERMINISTIC = "not-deterministic"
    """the same schedule led elsewhere"""
    EXCEPTION = "exception"
    """a task ended with an exception that nobody expected"""


class Livelock(RuntimeError):
    """Tasks keep running, each gets its turn, and none comes to an end."""


class LockOrder(RuntimeError):
    """Locks are taken in a circle by different tasks: a deadlock that waits for its schedule."""


class Race(RuntimeError):
    """State that a lock should guard was touched by two tasks, of which neither came after the other."""


_KINDS: tuple[tuple[type[BaseException], Kind], ...] = (
    (Leak, Kind.LEAK),
    (UseAfterFree, Kind.USE_AFTER_FREE),
    (StaleTlb, Kind.STALE_TLB),
    (InvariantViolation, Kind.INVARIANT),
    (Deadlock, Kind.DEADLOCK),
    (LockOrder, Kind.LOCK_ORDER),
    (Livelock, Kind.LIVELOCK),
    (Race, Kind.RACE),
    (NotDeterministic, Kind.NOT_DETERMINISTIC),
    (AssertionError, Kind.ASSERTION),
)


def kind_of(error: BaseException) -> Kind:
    """What sort of violation an exception out of a run is."""
    return next((kind for cls, kind in _KINDS if isinstance(error, cls)), Kind.EXCEPTION)
