# SPDX-License-Identifier: GPL-2.0-or-later
"""The explored runtime: tasks are greenlets, and every lock taken, atomic and mark is a point where another may run.

A step is announced before it happens: the task says what it's about to do (`Step`) and stops; a `Schedule` chooses among
the tasks whose step can be taken now; the chosen one takes it and goes on to its next.  Everything between two steps is
private to the task, so choosing at steps is enough to see every order of what tasks can observe of each other.  Releasing a
lock needs no choice: whoever waits for it can be chosen at the releaser's next step.  It's recorded all the same.

Outside `run`, as in a scenario's set-up, steps are taken at once and nothing is recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

from greenlet import getcurrent, greenlet

from .runtime import Atomic, Deadlock, Lock, Runtime, RWLock, Srcu, Task

if TYPE_CHECKING:
    from .lockdep import Lockdep

__all__ = ["ExploredRuntime", "NotDeterministic", "Observer", "Schedule", "Step", "Taken", "Thread"]


class Step(NamedTuple):
    """What a task is about to do, and to what.

    Kinds: begin, read, write, acquire, acquire-shared, resched, retry; enter, sync and wait for SRCU.
    """

    kind: str
    what: object


class Taken(NamedTuple):
    """One line of a trace: which task did what.  Releases are in it although nobody chose them."""

    task: int
    step: Step


Schedule = Callable[[list[tuple[int, Step]]], int]
"""Given the tasks that can go on (by number, each with its step), in order: which of the list does."""

Observer = Callable[["ExploredRuntime", Taken | None, Any, bool], None]
"""Called with each step before it takes effect, the greenlet that stopped for it (None: the one that runs), and whether it
was chosen; with None for a step when no more will be taken."""


class NotDeterministic(RuntimeError):
    """The same schedule led elsewhere: a program under exploration may not depend on anything else."""


class _Abandoned(BaseException):
    """Thrown into tasks that are still waiting when a run ends early."""


def _first(able: list[tuple[int, Step]]) -> int:
    return 0


class Thread:
    """One task of the run: where it stopped, the step it waits to take, and what `current` is for it."""

    __slots__ = ("body", "current", "name", "number", "ready", "step", "where")

    def __init__(self, number: int, name: str, body: Callable[[], object]) -> None:
        self.number, self.name, self.body = number, name, body
        self.step = Step("begin", name)
        self.ready: Callable[[], bool] | None = None
        self.current: Any = None
        self.where: Any = None


class _Mutex(Lock):
    def __init__(self, rt: ExploredRuntime, name: str) -> None:
        self._rt, self.name = rt, name
        self.owner: Task | None = None
        self._acquire, self._release = Step("acquire", self), Step("release", self)

    def _free(self) -> bool:
        return self.owner is None

    def __enter__(self) -> None:
        self._rt.step(self._acquire, self._free)
        self.owner = self._rt.current

    def __exit__(self, *exc: object) -> None:
        self._rt.record(self._release)
        self.owner = None

    def assert_held(self) -> None:
        if self.owner is not self._rt.current:
            raise AssertionError(f"{self.name} must be held by {self._rt.current}, but {self.owner} holds it")

    def holders(self) -> list[Task]:
        """Who holds it."""
        return [self.owner] if self.owner else []

    def __repr__(self) -> str:
        return self.name


class _Shared(AbstractContextManager[None]):
    def __init__(self, lock: _RWLock) -> None:
        self._lock = lock
        self._acquire, self._release = Step("acquire-shared", lock), Step("release-shared", lock)

    def _free(self) -> bool:
        return self._lock.writer is None

    def __enter__(self) -> None:
        self._lock.rt.step(self._acquire, self._free)
        self._lock.readers.append(self._lock.rt.current)

    def __exit__(self, *exc: object) -> None:
        self._lock.rt.record(self._release)
        self._lock.readers.remove(self._lock.rt.current)


class _Exclusive(AbstractContextManager[None]):
    def __init__(self, lock: _RWLock) -> None:
        self._lock = lock
        self._acquire, self._release = Step("acquire", lock), Step("release", lock)

    def _free(self) -> bool:
        return self._lock.writer is None and not self._lock.readers

    def __enter__(self) -> None:
        self._lock.rt.step(self._acquire, self._free)
        self._lock.writer = self._lock.rt.current

    def __exit__(self, *exc: object) -> None:
        self._lock.rt.record(self._release)
        self._lock.writer = None


class _RWLock(RWLock):
    def __init__(self, rt: ExploredRuntime, name: str) -> None:
        self.rt, self.name = rt, name
        self.writer: Task | None = None
        self.readers: list[Task] = []
        self.shared, self.exclusive = _Shared(self), _Exclusive(self)

    def assert_held(self) -> None:
        if self.writer is not self.rt.current and self.rt.current not in self.readers:
            raise AssertionError(f"{self.name} must be held by {self.rt.current}")

    def assert_exclusive(self) -> None:
        if self.writer is not self.rt.current:
            raise AssertionError(f"{self.name} must be held for writing by {self.rt.current}")

    def holders(self) -> list[Task]:
        """Who holds it, in either mode."""
        return [self.writer] if self.writer else list(self.readers)

    def __repr__(self) -> str:
        return self.name


class _Srcu(Srcu):
    """Readers never wait; `synchronize` waits for those that were inside when it began, not for later ones."""

    def __init__(self, rt: ExploredRuntime, name: str) -> None:
        self.rt, self.name = rt, name
        self.inside: list[tuple[Task, object]] = []
        self.read = _SrcuRead(self)

    def synchronize(self) -> None:
        self.rt.step(Step("sync", self))
        before = list(self.inside)
        if before:
            self.rt.step(Step("wait", self), lambda: not any(reader in self.inside for reader in before))

    def holders(self) -> list[Task]:
        """Who is inside."""
        return [task for task, _ in self.inside]

    def __repr__(self) -> str:
        return self.name


class _SrcuRead(AbstractContextManager[None]):
    def __init__(self, srcu: _Srcu) -> None:
        self._srcu = srcu

    def __enter__(self) -> None:
        self._srcu.rt.step(Step("enter", self._srcu))
        self._srcu.inside.append((self._srcu.rt.current, object()))

    def __exit__(self, *exc: object) -> None:
        srcu = self._srcu
        srcu.rt.record(Step("release", srcu))
        mine = [entry for entry in srcu.inside if entry[0] is srcu.rt.current]
        srcu.inside.remove(mine[-1])


class _Atomic(Atomic):
    def __init__(self, rt: ExploredRuntime, name: str, value: int) -> None:
        self._rt, self.name, self.value = rt, name, value
        self._read, self._write = Step("read", self), Step("write", self)

    def read(self) -> int:
        self._rt.step(self._read)
        return self.value

    def set(self, value: int) -> None:
        self._rt.step(self._write)
        self.value = value

    def add(self, delta: int) -> int:
        self._rt.step(self._write)
        self.value += delta
        return self.value

    def __repr__(self) -> str:
        return self.name


class ExploredRuntime(Runtime):
    """One world's time.  Build the world with it, `spawn` tasks, then `run` them under a schedule.

    Give a `Lockdep` to have the order of locks recorded.  `trace` holds the steps of the last run, `waiting` what the
    tasks that never ended were about to do.
    """

    def __init__(self, lockdep: Lockdep | None = None) -> None:
        self.current = Task("set-up")
        self.lockdep = lockdep
        self.trace: list[Taken] = []
        self.waiting: list[tuple[int, Step]] = []
        self._threads: list[Thread] = []
        self._left: list[Thread] = []
        self._running: Any = None
        self._hub: Any = None
        self._schedule: Schedule = _first
        self._stopped: BaseException | None = None
        self._observer: Observer | None = None

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
        if self._running is not None:
            self.step(Step("resched", None))

    def retry(self) -> None:
        if self._running is not None:
            self.step(Step("retry", None))

    def enter(self, task: Task) -> Task:
        if self._running is not None:
            task = task.of_thread(self._running.name)
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
        self._threads.append(Thread(len(self._threads), name, body))
        return len(self._threads) - 1

    @property
    def running(self) -> int:
        """The number of the task that runs; -1 outside of `run`."""
        return -1 if self._running is None else self._running.number

    @property
    def names(self) -> list[str]:
        """The spawned tasks' names, by number."""
        return [thread.name for thread in self._threads]

    def stopped_tasks(self) -> list[Thread]:
        """The tasks that haven't ended, for an observer to look at: where each stopped, and what for."""
        return list(self._left)

    def run(self, schedule: Schedule, observer: Observer | None = None) -> list[Taken]:
        """Run the spawned tasks to their ends in the order that `schedule` chooses.  Returns the steps taken.

        Raises what a task or the schedule raises, or `Deadlock` when none of those left can go on.
        """
        self.trace, self.waiting, self._hub, self._schedule = [], [], getcurrent(), schedule
        outside, self._left, self._stopped = self.current, list(self._threads), None
        self._observer = observer
        for thread in self._left:
            thread.where, thread.current = greenlet(thread.body), outside
        try:
            while self._left:
                chosen = self._pick()
                if chosen is not None:
                    self._running, self.current = chosen, chosen.current
                    chosen.where.switch()
                if self._stopped is not None:
                    raise self._stopped
                self._left.remove(self._running)  # whoever ran last came back by ending
            return self.trace
        finally:
            self._running = None
            self.waiting = [(t.number, t.step) for t in self._left]
            self._observe(None, None, False)
            self._abandon(self._left)
            self.current, self._threads = outside, []

    def step(self, step: Step, ready: Callable[[], bool] | None = None) -> None:
        """Announce `step` and stop until it's chosen; it's chosen only when `ready`.

        The choice is made here, in the task that stops: if it falls on itself it just goes on.
        """
        thread = self._running
        if thread is None:
            if ready is not None and not ready():
                raise Deadlock(f"{self.current} waits for {step.what!r}, and nothing else runs that could release it")
            return
        thread.step, thread.ready = step, ready
        chosen = self._pick()
        if chosen is thread:
            return
        thread.where, thread.current = getcurrent(), self.current
        if chosen is None:
            self._running = None
            self._hub.switch()
        else:
            self._running, self.current = chosen, chosen.current
            chosen.where.switch()

    def _pick(self) -> Thread | None:
        """Let the schedule choose, and note the step.  None: the run can't go on, `_stopped` says why."""
        able = [t for t in self._left if t.ready is None or t.ready()]
        try:
            if not able:
                raise Deadlock(self._deadlock(self._left))
            chosen = able[self._schedule([(t.number, t.step) for t in able])]
        except BaseException as stopped:
            self._stopped = stopped
            return None
        taken = Taken(chosen.number, chosen.step)
        if self._observer is not None:
            self._observe(taken, None if chosen is self._running else chosen.where, True)
        self.trace.append(taken)
        return chosen

    def record(self, step: Step) -> None:
        """A step that needs no choice: it's in the trace, and that's all."""
        if self._running is not None:
            taken = Taken(self._running.number, step)
            if self._observer is not None:
                self._observe(taken, None, False)
            self.trace.append(taken)

    def _observe(self, taken: Taken | None, where: Any, chosen: bool) -> None:
        """Show the observer what comes next.  Whatever it reads takes no steps."""
        observer, running = self._observer, self._running
        if observer is None:
            return
        self._observer, self._running = None, None
        try:
            observer(self, taken, where, chosen)
        finally:
            self._observer, self._running = observer, running

    def _deadlock(self, left: list[Thread]) -> str:
        waiting = []
        for thread in left:
            holders: Any = getattr(thread.step.what, "holders", list)()
            held = ", ".join(task.name for task in holders) or "nobody"
            waiting.append(f"{thread.name} waits to {thread.step.kind} {thread.step.what!r}, held by {held}")
        return "deadlock: " + "; ".join(waiting)

    def _abandon(self, left: list[Thread]) -> None:
        """Unwind tasks that never got to their end; their clean-up takes no steps."""
        for thread in left:
            if thread.where and not thread.where.dead:
                thread.where.parent = getcurrent()
                try:
                    thread.where.throw(_Abandoned)
                except (_Abandoned, Exception):
                    continue
