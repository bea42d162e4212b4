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

_TOUCHED = "touched"
"""Where a state has the pages of some task's own that others have touched."""
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
    """Numbers for what is observed in the runs of one search.

    `groups` and `pages` are the tasks' (see `ExploredRuntime.spawn`): those who are alike begin alike, and what one does to
    a page of its own is for another the same thing done to the page that it has in that place.
    """

    def __init__(self, groups: Sequence[str], pages: Sequence[tuple[int, ...]]) -> None:
        self._groups, self._pages = groups, pages
        self._owned = {page for its in pages for page in its}
        self._numbers: dict[Hashable, int] = {}
        self._bits: dict[int, int] = {}

    def begin(self) -> State:
        """Before the first choice."""
        first = tuple(self._number(("task", group or n)) for n, group in enumerate(self._groups))
        return State(first, (0,) * len(first), {}, {})

    def likeness(self, state: State, task: int) -> Hashable:
        """Equal for tasks that are alike, and still are: who have seen the same, and whose pages nobody else has touched.

        `None` if the task is like no other.
        """
        touched: Any = state.shared.get(_TOUCHED, ())
        if not self._groups[task] or any(page in touched for page in self._pages[task]):
            return None
        return self._groups[task], state.observed[task], state.before[task]

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
                saw = after.see(task, step, name, seen)
                if isinstance(step.what, tuple):
                    saw = self._by_owner(after, task, step), saw
                after.observed[task] = self._number((after.observed[task], step.kind, name, saw))
                after.leave(task, step, name)
                if step.guard:
                    after.before[task] |= self._bit(after.observed[task])
        return State(tuple(after.observed), tuple(after.before), after.shared, after.behind)

    def _by_owner(self, after: _Builder, task: int, step: Step) -> Hashable:
        """Which pages a step is done to: the task's own by their place.  Others' are noted as touched."""
        mine = self._pages[task]
        if step.end - step.start == 1 and step.start in mine:
            return "own", mine.index(step.start)
        met = {page for page in self._owned if step.start <= page < step.end}
        if met:
            touched: Any = after.shared.get(_TOUCHED, frozenset())
            after.shared[_TOUCHED] = touched | met
        return step.start, step.end

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
        return tuple(n for start, end, n in writes if start < step.end and step.start < end)

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
