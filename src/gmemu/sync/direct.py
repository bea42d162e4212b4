# SPDX-License-Identifier: GPL-2.0-or-later
"""The direct runtime: each call runs to its end.

One lock, taken at the door, keeps Python threads that share a host from running kernel code at once, so the kernel's own
locks need only remember who holds them.  That costs next to nothing and still catches a task that takes a lock twice.
A lock can be found held by another task only when that one left the kernel holding it, which a vCPU does while its guest
runs; then the taker waits for the door's lock to be free and looks again.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING

from .runtime import Atomic, Deadlock, Lock, Runtime, RWLock, Srcu, Task

if TYPE_CHECKING:
    from .lockdep import Lockdep

__all__ = ["DirectRuntime"]

_BOOT = Task("swapper")


class _Mutex(Lock):
    __slots__ = ("_rt", "name", "owner")

    def __init__(self, rt: DirectRuntime, name: str) -> None:
        self._rt, self.name = rt, name
        self.owner: Task | None = None

    def __enter__(self) -> None:
        if self.owner is not None:
            self._rt._wait(self, lambda: self.owner is None, self.owner)
        self.owner = self._rt.current

    def __exit__(self, *exc: object) -> None:
        self.owner = None

    def assert_held(self) -> None:
        if self.owner is not self._rt.current:
            raise AssertionError(f"{self.name} must be held by {self._rt.current}, but {self.owner} holds it")


class _Shared(AbstractContextManager[None]):
    __slots__ = ("_lock",)

    def __init__(self, lock: _RWLock) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        lock = self._lock
        if lock.writer is not None:
            lock._rt._wait(lock, lambda: lock.writer is None, lock.writer)
        lock.readers.append(lock._rt.current)

    def __exit__(self, *exc: object) -> None:
        self._lock.readers.remove(self._lock._rt.current)


class _Exclusive(AbstractContextManager[None]):
    __slots__ = ("_lock",)

    def __init__(self, lock: _RWLock) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        lock = self._lock
        if lock.writer is not None or lock.readers:
            holder = lock.writer or lock.readers[0]
            lock._rt._wait(lock, lambda: lock.writer is None and not lock.readers, holder)
        lock.writer = lock._rt.current

    def __exit__(self, *exc: object) -> None:
        self._lock.writer = None


class _RWLock(RWLock):
    __slots__ = ("_rt", "exclusive", "name", "readers", "shared", "writer")

    def __init__(self, rt: DirectRuntime, name: str) -> None:
        self._rt, self.name = rt, name
        self.writer: Task | None = None
        self.readers: list[Task] = []
        self.shared, self.exclusive = _Shared(self), _Exclusive(self)

    def assert_held(self) -> None:
        if self.writer is not self._rt.current and self._rt.current not in self.readers:
            raise AssertionError(f"{self.name} must be held by {self._rt.current}")

    def assert_exclusive(self) -> None:
        if self.writer is not self._rt.current:
            raise AssertionError(f"{self.name} must be held for writing by {self._rt.current}")


class _SrcuRead(AbstractContextManager[None]):
    __slots__ = ("_srcu",)

    def __init__(self, srcu: _Srcu) -> None:
        self._srcu = srcu

    def __enter__(self) -> None:
        self._srcu.readers.append(self._srcu._rt.current)

    def __exit__(self, *exc: object) -> None:
        self._srcu.readers.remove(self._srcu._rt.current)


class _Srcu(Srcu):
    __slots__ = ("_rt", "name", "read", "readers")

    def __init__(self, rt: DirectRuntime, name: str) -> None:
        self._rt, self.name = rt, name
        self.readers: list[Task] = []
        self.read = _SrcuRead(self)

    def synchronize(self) -> None:
        if self.readers:
            self._rt._wait(self, lambda: not self.readers, self.readers[0])


class _Atomic(Atomic):
    __slots__ = ("name", "value")

    def __init__(self, name: str, value: int) -> None:
        self.name, self.value = name, value

    def read(self) -> int:
        return self.value

    def set(self, value: int) -> None:
        self.value = value

    def add(self, delta: int) -> int:
        self.value += delta
        return self.value


class _GuestMode(AbstractContextManager[None]):
    """Gives the door's lock up while the guest runs, however deep in the kernel the vCPU's thread took it."""

    __slots__ = ("_previous", "_rt")

    def __init__(self, rt: DirectRuntime) -> None:
        self._rt = rt

    def __enter__(self) -> None:
        self._previous = self._rt.current
        self._rt.current = _BOOT
        self._rt._door.notify_all()
        self._rt._door.release()

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._rt._door.acquire()
        self._rt.current = self._previous


class DirectRuntime(Runtime):
    """Run to completion.  Give a `Lockdep` to have the order of locks recorded."""

    def __init__(self, lockdep: Lockdep | None = None) -> None:
        self.current = _BOOT
        self.lockdep = lockdep
        self._door = threading.Condition(threading.RLock())
        self._enter, self._leave = self._door.acquire, self._door.release

    def mutex(self, name: str) -> Lock:
        lock = _Mutex(self, name)
        return self.lockdep.watch(self, lock) if self.lockdep else lock

    spinlock = mutex

    def rwsem(self, name: str) -> RWLock:
        lock = _RWLock(self, name)
        return self.lockdep.watch_rw(self, lock) if self.lockdep else lock

    rwlock = rwsem

    def srcu(self, name: str) -> Srcu:
        return _Srcu(self, name)

    def atomic(self, name: str, value: int = 0) -> Atomic:
        return _Atomic(name, value)

    def reads(self, what: object) -> None:
        pass

    writes = reads

    def batch(self, count: int) -> int:
        return count

    def resched(self) -> None:
        pass

    def enter(self, task: Task) -> Task:
        self._enter()
        previous, self.current = self.current, task
        return previous

    def leave(self, previous: Task) -> None:
        self.current = previous
        self._leave()

    def guest_mode(self) -> AbstractContextManager[None]:
        return _GuestMode(self)

    def _wait(self, what: Lock | RWLock | Srcu, free: object, holder: Task) -> None:
        """Something is held.  By this task, or with nobody to release it: a deadlock.  Else wait and look again."""
        task = self.current
        if holder is task or threading.active_count() == 1:
            raise Deadlock(f"{task} waits for {what.name}, which {holder} holds and can't release")
        assert callable(free)
        while not free():
            self.current = _BOOT
            self._door.wait()
            self.current = task
