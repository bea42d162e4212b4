# SPDX-License-Identifier: GPL-2.0-or-later
"""Scenarios: small programs on an emulated host, with what must hold whatever the order.

A scenario reads like a litmus test: a set-up, two to four tasks, a condition; and the variants that break it, each with the
kind of violation that it must give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import ClassVar, Self

from ..api import Kvm
from ..check import check_host
from ..kvm.design import Design
from ..kvm.host import Host
from ..profiles import get
from ..rules import BusError, KernelError
from ..sync.explored import ExploredRuntime
from ..syscalls.emulated import EmulatedDoor
from ..syscalls.recorded import Call, RecordedDoor
from .leaks import check_locks, close_and_check
from .user_space import UserSpace
from .variants import apply, apply_to_user_space
from .verdict import Kind

__all__ = ["PAGE", "Scenario"]

PAGE = 4096


class Scenario:
    """One world of a scenario; a new one is built for each execution.  Subclasses give the class attributes, `set_up`, and
    `holds`; tasks are added with `task`."""

    number: ClassVar[int]
    name: ClassVar[str]
    question: ClassVar[str]
    """What is asked, in a sentence."""
    source: ClassVar[str]
    broken_by: ClassVar[dict[str, Kind]] = {}
    """variant, or several joined by "+" -> the kind of violation that must be found with it"""
    holds_with: ClassVar[tuple[str, ...]] = ()
    """variants (as above) with which it must hold all the same"""
    profile: ClassVar[str] = "inplace-v13"
    platform: ClassVar[str] = "amd"
    door: ClassVar[type[EmulatedDoor]] = EmulatedDoor
    """How the first process makes its calls; see `recorded`."""

    @classmethod
    def broken_with(cls) -> list[tuple[str, ...]]:
        """The sets of variants that break it."""
        return [tuple(names.split("+")) for names in cls.broken_by]

    @classmethod
    def stated(cls) -> list[tuple[str, ...]]:
        """The sets of variants of which the scenario says what comes of them."""
        return [tuple(names.split("+")) for names in (*cls.holds_with, *cls.broken_by)]

    @classmethod
    def kinds_with(cls, variants: tuple[str, ...]) -> set[Kind]:
        """The kinds of violation that may be found with these variants; none if it must hold."""
        if any(set(names.split("+")) == set(variants) for names in cls.holds_with):
            return set()
        return {kind for names, kind in cls.broken_by.items() if set(names.split("+")) <= set(variants)}

    def __init__(self, variants: tuple[str, ...] = ()) -> None:
        self.runtime = ExploredRuntime()
        design = apply(Design.of(get(self.profile)), variants)
        self.user_space = apply_to_user_space(UserSpace(), variants)
        self.host = Host(self.profile, memory=1 << 24, runtime=self.runtime, design=design, platform=self.platform)
        self.kvm = Kvm(self.door(self.host))
        self.seen: dict[str, object] = {}
        self.set_up()

    def set_up(self) -> None:
        """Make the VM, its memory and what else there is; `task` adds the tasks."""
        raise NotImplementedError

    def holds(self) -> None:
        """After every task ended: assert what must be so.  `seen` has each task's result by name."""

    def release(self) -> None:
        """At the very end: give back what the scenario itself still holds, as a device that's unplugged does."""

    def task(self, name: str, body: Callable[[], object], *, group: str = "", pages: Iterable[int] = ()) -> None:
        """A task whose result (or errno rule, or SIGBUS) is kept in `seen`.  Tasks of one `group` are alike, but for the
        `pages` that each has for itself (`ExploredRuntime.spawn`)."""

        def run() -> None:
            try:
                self.seen[name] = body()
            except KernelError as error:
                self.seen[name] = error.rule.id
            except BusError as fault:
                self.seen[name] = fault.rule.id

        self.runtime.spawn(name, run, group, pages)

    def check(self) -> None:
        """No lock held, every invariant, the scenario's own condition; then every process exits, and nothing may be left."""
        check_locks(self.runtime)
        check_host(self.host)
        try:
            self.holds()
        except AssertionError as broken:
            if broken.args:
                raise
            results = ", ".join(f"{name}: {value}" for name, value in self.seen.items())
            raise AssertionError(f"no outcome that may be: {results}") from None
        self.release()
        close_and_check(self.host)

    def state(self) -> object:
        """Each task's result."""
        return tuple(sorted((name, repr(value)) for name, value in self.seen.items()))

    @classmethod
    def recorded(cls) -> type[Self]:
        """The same scenario, which keeps its system calls."""
        return type(cls.__name__, (cls,), {"door": RecordedDoor})

    @property
    def calls(self) -> tuple[Call, ...]:
        """The system calls so far, if they are kept."""
        return tuple(self.kvm.door.calls) if isinstance(self.kvm.door, RecordedDoor) else ()

    def close(self) -> None:
        """The world is over."""
        self.host.close()
