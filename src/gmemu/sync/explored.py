# SPDX-License-Identifier: GPL-2.0-or-later
"""The explored runtime: tasks are greenlets, and every lock operation, atomic and mark is a point where another may run.

A step is announced before it happens: the task names what it's about to do (`Step`) and stops; a `Schedule` chooses among
the tasks whose step can be taken now; the chosen one takes it and goes on to its next.  Everything between two steps is
private to the task, so choosing at steps is enough to see every order of what tasks can observe of each other.

Outside `run`, as in a scenario's set-up, steps are taken at once and nothing is recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

from .runtime import Atomic, Deadlock, Lock, Runtime, RWLock, Srcu, Task

if TYPE_CHECKING:
    from greenlet import greenlet

    from .lockdep import Lockdep

__all__ = ["ExploredRuntime", "NotDeterministic", "Schedule", "Step"]


class Step(NamedTuple):
    """What a task is about to do: a kind (acquire, release, read, write, wait, begin), and to what."""

    kind: str
    what: object

    @property
    def writes(self) -> bool:
        """Whether the step may change what another task sees."""
        return self.kind != "read"


Schedule = Callable[[list[tuple[int, Step]]], int]
"""Given the tasks that can go on (by number, each with its step), in order: which of the list does."""


class NotDeterministic(RuntimeError):
    """The same schedule led elsewhere: a program under exploration may not depend on anything else."""


class _Abandoned(BaseException):
    """Thrown into tasks that are still waiting when a run ends early."""


class _Thread:
    """One task of the run: its greenlet, the step it waits to take, and what `current` is for it."""

    def __init__(self, number: int, name: str, body: Callable[[], object]) -> None:
        self.number, self.name, self.body = number, name, body
        self.step = Step("begin", name)
        self.ready: Callable[[], bool] = _always
        self.current: Task | None = None
        self.where: greenlet | None = None
        self.done = False


def _always() -> bool:
    return True


class _Mutex(Lock):
    def __init__(self, rt: ExploredRuntime, name: str) -> None:
        self._rt, self.name = rt, name
        self.owner: Task | None = None

    def __enter__(self) -> None:
        self._rt.step(Step("acquire", self), lambda: self.owner is None)
        self.owner = self._rt.current

    def __exit__(self, *exc: object) -> None:
        self._rt.step(Step("release", self))
        self.owner = None

    def assert_held(self) -> None:
        if self.owner is not self._rt.current:
            raise AssertionError(f"{self.name} must be held by {self._rt.current}, but {self.owner} holds it")

    def __repr__(self) -> str:
        return self.name


class _Side(AbstractContextManager[None]):
    """One mode of a reader-writer lock."""

    def __init__(self, lock: _RWLock, mode: str) -> None:
        self._lock, self._mode = lock, mode

    def __enter__(self) -> None:
        lock = self._lock
        if self._mode == "shared":
            lock.rt.step(Step("acquire-shared", lock), lambda: lock.writer is None)
            lock.readers.append(lock.rt.current)
        else:
            lock.rt.step(Step("acquire", lock), lambda: lock.writer is None and not lock.readers)
            lock.writer = lock.rt.current

    def __exit__(self, *exc: object) -> None:
        lock = self._lock
        lock.rt.step(Step("release", lock))
        if self._mode == "shared":
            lock.readers.remove(lock.rt.current)
        else:
            lock.writer = None


class _RWLock(RWLock):
    def __init__(self, rt: ExploredRuntime, name: str) -> None:
        self.rt, self.name = rt, name
        self.writer: Task | None = None
        self.readers: list[Task] = []
        self.shared, self.exclusive = _Side(self, "shared"), _Side(self, "exclusive")

    def assert_held(self) -> None:
        if self.writer is not self.rt.current and self.rt.current not in self.readers:
            raise AssertionError(f"{self.name} must be held by {self.rt.current}")

    def assert_exclusive(self) -> None:
        if self.writer is not self.rt.current:
            raise AssertionError(f"{self.name} must be held for writing by {self.rt.current}")

    def __repr__(self) -> str:
        return self.name


class _Srcu(Srcu):
    """Readers never wait; `synchronize` waits for those that were inside when it began, not for later ones."""

    def __init__(self, rt: ExploredRuntime, name: str) -> None:
        self._rt, self.name = rt, name
        self.readers: list[object] = []
        self.read = _SrcuRead(self)

    def synchronize(self) -> None:
        before = list(self.readers)
        self._rt.step(Step("wait", self), lambda: not any(reader in self.readers for reader in before))

    def __repr__(self) -> str:
        return self.name


class _SrcuRead(AbstractContextManager[None]):
    def __init__(self, srcu: _Srcu) -> None:
        self._srcu = srcu
        self._tokens: dict[Task, list[object]] = {}

    def __enter__(self) -> None:
        token = object()
        self._tokens.setdefault(self._srcu._rt.current, []).append(token)
        self._srcu.readers.append(token)

    def __exit__(self, *exc: object) -> None:
        self._srcu._rt.step(Step("release", self._srcu))
        self._srcu.readers.remove(self._tokens[self._srcu._rt.current].pop())


class _Atomic(Atomic):
    def __init__(self, rt: ExploredRuntime, name: str, value: int) -> None:
        self._rt, self.name, self.value = rt, name, value

    def read(self) -> int:
        self._rt.step(Step("read", self))
        return self.value

    def set(self, value: int) -> None:
        self._rt.step(Step("write", self))
        self.value = value

    def add(self, delta: int) -> int:
        self._rt.step(Step("write", self))
        self.value += delta
        return self.value

    def __repr__(self) -> str:
        return self.name


class ExploredRuntime(Runtime):
    """One world's time.  Build the world with it, `spawn` tasks, then `run` them under a schedule.

    Give a `Lockdep` to have the order of locks recorded.
    """

    def __init__(self, lockdep: Lockdep | None = None) -> None:
        self.current = Task("set-up")
        self.lockdep = lockdep
        self.trace: list[tuple[int, Step]] = []
        """The steps taken by the last run: task number and step."""
        self._threads: list[_Thread] = []
        self._running: _Thread | None = None
        self._hub: Any = None

    # What kernel code sees

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
        return _Atomic(self, name, value)

    def reads(self, what: object) -> None:
        if self._running is not None:
            self.step(Step("read", what))

    def writes(self, what: object) -> None:
        if self._running is not None:
            self.step(Step("write", what))

    def batch(self, count: int) -> int:
        return count if self._running is None else 1

    def resched(self) -> None:
        self.step(Step("resched", None))

    def enter(self, task: Task) -> Task:
        previous, self.current = self.current, task
        return previous

    def leave(self, previous: Task) -> None:
        self.task_work_run()
        self.current = previous

    def guest_mode(self) -> AbstractContextManager[None]:
        self.task_work_run()
        return nullcontext()

    # What an exploration does

    def spawn(self, name: str, body: Callable[[], object]) -> int:
        """Another task for the next `run`.  Returns its number."""
        self._threads.append(_Thread(len(self._threads), name, body))
        return len(self._threads) - 1

    def run(self, schedule: Schedule) -> list[tuple[int, Step]]:
        """Run the spawned tasks to their ends in the order that `schedule` chooses.  Returns the steps taken.

        Raises what a task raises, or `Deadlock` when none of those left can go on.
        """
        from greenlet import getcurrent, greenlet

        self.trace, self._hub = [], getcurrent()
        for thread in self._threads:
            thread.where, thread.current = greenlet(thread.body), self.current
        outside = self.current
        try:
            while any(not thread.done for thread in self._threads):
                able = [t for t in self._threads if not t.done and t.ready()]
                if not able:
                    raise Deadlock(self._deadlock())
                chosen = able[schedule([(t.number, t.step) for t in able])]
                self.trace.append((chosen.number, chosen.step))
                self._resume(chosen)
            return self.trace
        finally:
            self._abandon()
            self._running, self.current, self._threads = None, outside, []

    def step(self, step: Step, ready: Callable[[], bool] = _always) -> None:
        """Announce `step` and stop until it's chosen; it's chosen only when `ready`."""
        thread = self._running
        if thread is None:
            if not ready():
                raise Deadlock(f"{self.current} waits for {step.what!r}, and nothing else runs that could release it")
            return
        from greenlet import getcurrent

        thread.step, thread.ready, thread.current, thread.where = step, ready, self.current, getcurrent()
        self._running = None
        self._hub.switch()

    def _resume(self, thread: _Thread) -> None:
        assert thread.where is not None
        assert thread.current is not None
        self._running, self.current = thread, thread.current
        top = thread.where
        if not top:
            top.parent = self._hub
        top.switch()
        if self._running is thread:  # came back by ending, not by a step
            thread.done, self._running = True, None

    def _deadlock(self) -> str:
        waiting = []
        for thread in self._threads:
            if not thread.done:
                lock = thread.step.what
                holders = getattr(lock, "owner", None) or getattr(lock, "writer", None) or getattr(lock, "readers", None)
                waiting.append(f"{thread.name} waits to {thread.step.kind} {lock!r}, held by {holders!r}")
        return "deadlock: " + "; ".join(waiting)

    def _abandon(self) -> None:
        """Unwind tasks that never got to their end; their clean-up takes no steps."""
        self._running = None
        for thread in self._threads:
            where = thread.where
            if where is not None and where and not where.dead:
                from greenlet import getcurrent

                where.parent = getcurrent()
                try:
                    where.throw(_Abandoned)
                except (_Abandoned, Exception):
                    continue
