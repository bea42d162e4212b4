# SPDX-License-Identifier: GPL-2.0-or-later
"""The state of a run, kept step by step: what each task has observed, and what is shared.

A task is deterministic, so what it's about to do, and all that it knows, follows from what it observed.  It observes

- of a lock, what the task that released it last had observed: whatever the lock guards follows from that;
- of an atomic, its value;
- of what kernel code marks, what those who wrote it had observed; whoever writes observes that too.

So what was marked and what locks guard follows from what all tasks have observed; only the values of atomics stand beside
it.  Two runs that come to one state have one future, whichever way they came.

A data race is no matter of the state but of the way: whether a lock came between.  So that none is missed each task, lock
and atomic also has the set of accesses to guarded state that synchronisation puts before it.

Observations are numbered as they turn up, by equality, so two states are never taken for one.  To go by the *contents* of
page tables, reference counts and the like instead was tried: of the catalogue's states it finds hardly any more alike.
"""

from __future__ import annotations

from collections.abc import Container, Hashable, Sequence
from typing import Any, NamedTuple

from ..sync import Atomic, Srcu
from ..sync.explored import Step

__all__ = ["Name", "Namer", "State", "States", "value_of"]

Name = tuple[object, ...]
"""Of what a step is done to, the same in each run that touches it: it was there when the world was set up."""

_RELEASES = frozenset({"release", "release-shared"})


class Namer:
    """Names for what the steps of one run touch.  Things that came to be in the run itself have none."""

    def __init__(self, set_up: Container[int], domains: int) -> None:
        self._set_up, self._locks = set_up, domains
        self._names: dict[int, Name | None] = {}
        self.domains: dict[Name, int] = {}
        """by name, for what was touched so far"""

    def name(self, step: Step) -> Name | None:
        """Of a step's domain."""
        domain = step.domain
        if domain < 0:
            return ()
        try:
            return self._names[domain]
        except KeyError:
            found = self._names[domain] = self._find(step)
            if found is not None:
                self.domains[found] = domain
            return found

    def domains_of(self, name: Name | None) -> list[int]:
        """Those of the things of that name; of `None`, of whatever has no name."""
        if name is None:
            return [domain for domain, found in self._names.items() if found is None]
        return [self.domains[name]] if name in self.domains else []

    def _find(self, step: Step) -> Name | None:
        if step.domain <= self._locks:
            return (step.domain,)
        what = step.what if isinstance(step.what, tuple) else (step.what,)
        things = [part for part in what if not isinstance(part, int | str)]
        if any(id(thing) not in self._set_up for thing in things):
            return None
        return tuple(part if isinstance(part, str) else id(part) for part in what if not isinstance(part, int))


class State(NamedTuple):
    """At one choice.  Tuples are by task: the number of what it has observed, and the guarded accesses before it (bits)."""

    observed: tuple[int, ...]
    before: tuple[int, ...]
    shared: dict[Hashable, Hashable]
    """what was touched -> the value of an atomic, or the number of who released, wrote or synchronised it last"""
    behind: dict[Hashable, int]
    """(lock or atomic, whether for writers alone) -> guarded accesses before those who had it"""


class States:
    """Numbers for what is observed in the runs of one search."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}
        self._bits: dict[int, int] = {}

    def begin(self, tasks: int) -> State:
        """Before the first choice."""
        return State(tuple(self._number(("task", n)) for n in range(tasks)), (0,) * tasks, {}, {})

    def after(
        self, state: State, who: Sequence[int], what: Sequence[Step], start: int, seen: Hashable, namer: Namer
    ) -> State:
        """The state after the steps from position `start`: one that was chosen and observed `seen`, and releases."""
        after = _Builder(state)
        for position in range(start, len(who)):
            step, task = what[position], who[position]
            name = namer.name(step) or ("new", step.domain)
            if step.kind in _RELEASES:
                after.release(task, step, name)
            else:
                after.observed[task] = self._number(
                    (after.observed[task], step.kind, name, after.see(task, step, name, seen))
                )
                after.leave(task, step, name)
                if step.guard:
                    after.before[task] |= self._bit(after.observed[task])
        return State(tuple(after.observed), tuple(after.before), after.shared, after.behind)

    def key(self, state: State, more: Hashable) -> Hashable:
        """What is equal for equal states."""
        return state.observed, state.before, frozenset(state.shared.items()), frozenset(state.behind.items()), more

    def _number(self, seen: Hashable) -> int:
        return self._numbers.setdefault(seen, len(self._numbers))

    def _bit(self, number: int) -> int:
        return self._bits.setdefault(number, 1 << len(self._bits))


def value_of(step: Step) -> int | None:
    """The value of the atomic that a step is about to read or write; `None` for all else."""
    return getattr(step.what, "value", None) if isinstance(step.what, Atomic) else None


class _Builder:
    """A state that is being changed."""

    def __init__(self, state: State) -> None:
        self.observed, self.before = list(state.observed), list(state.before)
        self.shared, self.behind = state.shared.copy(), state.behind.copy()

    def release(self, task: int, step: Step, name: Name) -> None:
        exclusive = step.kind == "release" and not isinstance(step.what, Srcu)
        if exclusive:
            self.shared[name] = self.observed[task]
            self.behind[name, False] = self.before[task]
        else:
            self.behind[name, True] = self.behind.get((name, True), 0) | self.before[task]

    def see(self, task: int, step: Step, name: Name, seen: Hashable) -> Hashable:
        """What a step observes of what it's done to."""
        kind = step.kind
        if kind in ("acquire", "acquire-shared", "sync", "wait") or isinstance(step.what, Atomic):
            self.before[task] |= self.behind.get((name, False), 0)
            if kind not in ("acquire-shared", "read", "write"):
                self.before[task] |= self.behind.get((name, True), 0)
        if kind in ("acquire", "acquire-shared", "queue", "enter"):
            return self.shared.get(name)
        if kind not in ("read", "write"):
            return None
        if isinstance(step.what, Atomic):
            return seen
        writes: Any = self.shared.get(name, ())
        return step.start, step.end, tuple(n for start, end, n in writes if start < step.end and step.start < end)

    def leave(self, task: int, step: Step, name: Name) -> None:
        """What a step changes for those who come later."""
        kind, number = step.kind, self.observed[task]
        if kind == "sync":
            self.shared[name] = number
        if kind != "write":
            return
        if isinstance(step.what, Atomic):
            self.shared[name] = value_of(step)
            self.behind[name, False] = self.before[task]
        else:
            writes: Any = self.shared.get(name, ())
            left = [w for w in writes if not (step.start <= w[0] and w[1] <= step.end)]
            self.shared[name] = (*left, (step.start, step.end, number))
