# SPDX-License-Identifier: GPL-2.0-or-later
"""Lock order, recorded: which lock was taken while which other was held, by name, as lockdep does by class.

A cycle in that relation is a deadlock waiting for its schedule, whether or not one happened.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from .runtime import Lock, RWLock, Srcu

if TYPE_CHECKING:
    from .runtime import Runtime, Task

__all__ = ["Lockdep"]


class Lockdep:
    """Edges ``(held, taken) -> task``, over the life of a host."""

    def __init__(self) -> None:
        self.edges: dict[tuple[str, str], str] = {}
        self._held: dict[Task, list[str]] = {}

    def acquire(self, task: Task, name: str) -> None:
        """`task` takes lock `name`."""
        self.wait(task, name)
        self.hold(task, name)

    def hold(self, task: Task, name: str) -> None:
        """`task` holds `name`, for which it never had to wait (srcu_read_lock)."""
        self._held.setdefault(task, []).append(name)

    def wait(self, task: Task, name: str) -> None:
        """`task` waits for `name` and doesn't hold it afterwards (synchronize_srcu).

        Two locks of one name may nest: kernel code that takes several vCPUs' mutexes does so in a fixed order.
        """
        for outer in self._held.get(task, ()):
            if outer != name:
                self.edges.setdefault((outer, name), task.name)

    def release(self, task: Task, name: str) -> None:
        """`task` releases lock `name`."""
        held = self._held.get(task, [])
        if name in held:
            del held[len(held) - 1 - held[::-1].index(name)]

    def cycles(self) -> list[list[str]]:
        """Each circular chain of lock names, once, starting from its smallest name."""
        after: dict[str, list[str]] = {}
        for outer, inner in sorted(self.edges):
            after.setdefault(outer, []).append(inner)
        found: list[list[str]] = []

        def walk(path: list[str]) -> None:
            for name in after.get(path[-1], ()):
                if name == path[0]:
                    found.append(path)
                elif name > path[0] and name not in path:
                    walk([*path, name])

        for start in sorted(after):
            walk([start])
        return found

    def report(self) -> str:
        """The order seen, one `outer -> inner` to a line, then each circular chain in lockdep's shape."""
        lines = [f"{outer} -> {inner}  (by {task})" for (outer, inner), task in sorted(self.edges.items())]
        for cycle in self.cycles():
            lines.append("possible circular locking dependency: " + " --> ".join([*cycle, cycle[0]]))
        return "\n".join(lines)

    def watch(self, rt: Runtime, lock: Lock) -> Lock:
        """`lock`, with its taking and releasing recorded."""
        return _Watched(self, rt, lock)

    def watch_rw(self, rt: Runtime, lock: RWLock) -> RWLock:
        """`lock`, with its taking and releasing recorded in both modes."""
        lock.shared = _Side(self, rt, lock.name, lock.shared)
        lock.exclusive = _Side(self, rt, lock.name, lock.exclusive)
        return lock

    def watch_srcu(self, rt: Runtime, srcu: Srcu) -> Srcu:
        """`srcu`, with its readers recorded as holders, and with who waits for them."""
        return _WatchedSrcu(self, rt, srcu)


class _Side(AbstractContextManager[None]):
    def __init__(self, lockdep: Lockdep, rt: Runtime, name: str, inner: AbstractContextManager[None]) -> None:
        self._lockdep, self._rt, self.name, self._inner = lockdep, rt, name, inner

    def __enter__(self) -> None:
        task = self._rt.current
        self._lockdep.acquire(task, self.name)
        try:
            self._inner.__enter__()
        except BaseException:
            self._lockdep.release(task, self.name)
            raise

    def __exit__(self, *exc: object) -> None:
        self._inner.__exit__(None, None, None)
        self._lockdep.release(self._rt.current, self.name)


class _Watched(_Side, Lock):
    def __init__(self, lockdep: Lockdep, rt: Runtime, lock: Lock) -> None:
        super().__init__(lockdep, rt, lock.name, lock)
        self._lock = lock

    def assert_held(self) -> None:
        self._lock.assert_held()


class _SrcuRead(_Side):
    def __enter__(self) -> None:
        self._lockdep.hold(self._rt.current, self.name)
        self._inner.__enter__()


class _WatchedSrcu(Srcu):
    def __init__(self, lockdep: Lockdep, rt: Runtime, srcu: Srcu) -> None:
        self._lockdep, self._rt, self._srcu, self.name = lockdep, rt, srcu, srcu.name
        self.read = _SrcuRead(lockdep, rt, srcu.name, srcu.read)

    def synchronize(self) -> None:
        self._lockdep.wait(self._rt.current, self.name)
        self._srcu.synchronize()
