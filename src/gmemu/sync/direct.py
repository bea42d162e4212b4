# SPDX-License-Identifier: GPL-2.0-or-later
"""The direct runtime: each call runs to its end.

One lock, taken at the door, keeps Python threads that share a host from running kernel code at once, so the kernel's own
locks need only remember who holds them.  That costs next to nothing and still catches a task that takes a lock twice.
A lock can be found held by another task only when that one gave the door up holding it, which a vCPU does while its guest
runs, and a task that waits for a vCPU's lock.  Then the taker waits until somebody leaves the kernel, and looks again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from threading import get_ident
from types import TracebackType
from typing import TYPE_CHECKING

from .runtime import Atomic, Deadlock, Lock, Runtime, RWLock, Srcu, Task

if TYPE_CHECKING:
    from .lockdep import Lockdep

__all__ = ["DirectRuntime"]

PATIENCE = 10.0
"""How long (seconds) a thread waits for another to do something outside of any lock."""


class _Mutex(Lock):
    __slots__ = ("_rt", "name", "owner")

    def __init__(self, rt: DirectRuntime, name: str) -> None:
        self._rt, self.name = rt, name
        self.owner: Task | None = None

    def __enter__(self) -> None:
        if self.owner is not None:
            self._rt._wait(self, lambda: self.owner)
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
            lock._rt._wait(lock, lambda: lock.writer)
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
            lock._rt._wait(lock, lambda: lock.writer or (lock.readers[0] if lock.readers else None))
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
            self._rt._wait(self, lambda: self.readers[0] if self.readers else None)


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

    __slots__ = ("_outer", "_previous", "_rt")

    def __init__(self, rt: DirectRuntime) -> None:
        self._rt = rt

    def __enter__(self) -> None:
        rt = self._rt
        rt.task_work_run()
        self._previous = rt.current
        self._outer = rt._guests.get(rt.current)
        rt._guests[rt.current] = threading.get_ident()
        rt.current = rt._idle
        rt._let_go()

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        rt = self._rt
        rt._door.acquire()
        rt.current = self._previous
        if self._outer is None:
            del rt._guests[self._previous]
        else:
            rt._guests[self._previous] = self._outer


class DirectRuntime(Runtime):
    """Run to completion.  Give a `Lockdep` to have the order of locks recorded."""

    def __init__(self, lockdep: Lockdep | None = None) -> None:
        self._idle = self.current = Task("swapper")
        self.lockdep = lockdep
        self._door = threading.Condition(threading.RLock())
        self._enter = self._door.acquire
        self._guests: dict[Task, int] = {}
        """task that runs its guest -> thread"""
        self._others = Task("other threads")
        self._entered = 0
        """how often somebody has entered the kernel"""
        self._waits: dict[Task, Task] = {}
        """task that waits for a lock -> who holds it"""

    def mutex(self, name: str) -> Lock:
        lock = _Mutex(self, name)
        return self.lockdep.watch(self, lock) if self.lockdep else lock

    spinlock = mutex

    def rwsem(self, name: str, *, fair: bool = True) -> RWLock:
        lock = _RWLock(self, name)
        return self.lockdep.watch_rw(self, lock) if self.lockdep else lock

    def rwlock(self, name: str) -> RWLock:
        return self.rwsem(name)

    def srcu(self, name: str) -> Srcu:
        srcu = _Srcu(self, name)
        return self.lockdep.watch_srcu(self, srcu) if self.lockdep else srcu

    def atomic(self, name: str, value: int = 0) -> Atomic:
        return _Atomic(name, value)

    def reads(self, what: object) -> None:
        pass

    writes = reads

    def reads_each(self, what: tuple[object, ...], start: int, end: int) -> None:
        pass

    writes_each = reads_each

    def batch(self, count: int) -> int:
        return count

    def resched(self) -> None:
        pass

    def wait_for_others(self, what: str) -> None:
        """Give the door up, with all locks held, until another thread has left the kernel.  If there is none, or none comes
        for `PATIENCE` seconds, nobody ever will."""
        task, entered = self.current, self._entered
        if threading.active_count() > 1:
            self.current = self._idle
            self._waits[task] = self._others
            try:
                came = self._door.wait_for(lambda: self._entered != entered, PATIENCE)
            finally:
                del self._waits[task]
                self.current = task
            if came:
                return
        raise Deadlock(f"{task} waits for {what}, and no other thread comes that could do something about it")

    def enter(self, task: Task) -> Task:
        self._enter()
        self._entered += 1
        thread = get_ident()
        if task.thread != thread:
            task = task.of_thread(thread)
        previous, self.current = self.current, task
        return previous

    def leave(self, previous: Task) -> None:
        try:
            if self.current.work:
                self.task_work_run()
        finally:
            self.current = previous
            if self._waits:
                self._door.notify_all()
            self._door.release()

    def guest_mode(self) -> AbstractContextManager[None]:
        return _GuestMode(self)

    def _let_go(self) -> None:
        """Give the door up once, and let those who wait for a lock look again."""
        if self._waits:
            self._door.notify_all()
        self._door.release()

    def _wait(self, what: Lock | RWLock | Srcu, holder: Callable[[], Task | None]) -> None:
        """Something is held by `holder()`.  If that task can't go on until this one does, it's a deadlock; else wait."""
        task = self.current
        try:
            while (held_by := holder()) is not None:
                if not self._can_go_on(held_by, task):
                    raise Deadlock(f"{task} waits for {what.name}, which {held_by} holds and can't release")
                self._waits[task] = held_by
                self.current = self._idle
                self._door.wait()
                self.current = task
        finally:
            self.current = task
            self._waits.pop(task, None)

    def _can_go_on(self, holder: Task, task: Task) -> bool:
        """Whether `holder` may yet release its lock: its guest runs in another thread, or it waits for one who can go on."""
        while holder is not task and holder in self._waits:
            holder = self._waits[holder]
        if holder is self._others:
            return True  # or it gives up
        return holder is not task and self._guests.get(holder, threading.get_ident()) != threading.get_ident()
