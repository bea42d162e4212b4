# SPDX-License-Identifier: GPL-2.0-or-later
"""Time, as kernel code sees it: locks, atomics, tasks, and marks on shared state.

Kernel code asks a `Runtime` for its locks and tells it of each access to shared state.  It never asks which runtime it is
in.  The *direct* one runs each call to its end.  The *explored* one may let another task run at every lock operation and
every mark.  Whatever kernel code does through this interface is therefore a step that an exploration can see.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

__all__ = ["Atomic", "Deadlock", "Lock", "RWLock", "Runtime", "Srcu", "Task"]


class Deadlock(RuntimeError):
    """A task waits for a lock that can't be released: the kernel would hang here."""


class Task:
    """A thread of a process (struct task_struct), or a device.  `current` is one of these.

    `thread` tells which thread of control enters the kernel as this task.  Another that comes by the same door is a
    thread of the process too, with a task of its own.
    """

    __slots__ = ("_siblings", "cpu", "mm", "name", "pending_signals", "process", "thread", "work")

    def __init__(self, name: str, process: Any = None, mm: Any = None, cpu: int = 0) -> None:
        self.name, self.process, self.mm, self.cpu = name, process, mm, cpu
        self.pending_signals = 0
        self.work: list[Callable[[], None]] = []
        """task work: what is done when the task leaves the kernel, as it then holds no lock (see `Runtime.leave`)"""
        self.thread: object = None
        self._siblings: dict[object, Task] = {}

    def of_thread(self, thread: object) -> Task:
        """The task as which `thread` enters: this one for the first that comes, a sibling for each other."""
        if self.thread is None:
            self.thread = thread
        if self.thread == thread:
            return self
        task = self._siblings.get(thread)
        if task is None:
            task = self._siblings[thread] = Task(f"{self.name}+{thread}", self.process, self.mm, self.cpu)
            task.thread = thread
        return task

    def __repr__(self) -> str:
        return f"<Task {self.name}>"


class Lock(AbstractContextManager[None]):
    """A mutex or spinlock.  Used as ``with vm.slots_lock:``."""

    name: str

    @abstractmethod
    def assert_held(self) -> None:
        """lockdep_assert_held(): a `Deadlock` of the caller's own making otherwise would go unseen."""


class RWLock(ABC):
    """A reader-writer lock (rwlock_t, rw_semaphore): ``with lock.shared:`` and ``with lock.exclusive:``."""

    name: str
    shared: AbstractContextManager[None]
    exclusive: AbstractContextManager[None]

    @abstractmethod
    def assert_held(self) -> None:
        """Held in either mode."""

    @abstractmethod
    def assert_exclusive(self) -> None:
        """Held for writing."""


class Srcu(ABC):
    """Sleepable RCU: readers never wait; `synchronize` waits for the readers that were there when it began."""

    name: str
    read: AbstractContextManager[None]

    @abstractmethod
    def synchronize(self) -> None:
        """synchronize_srcu()."""


class Atomic(ABC):
    """A shared integer whose every access is a step (atomic_t, READ_ONCE and WRITE_ONCE)."""

    name: str

    @abstractmethod
    def read(self) -> int:
        """atomic_read()."""

    @abstractmethod
    def set(self, value: int) -> None:
        """atomic_set()."""

    @abstractmethod
    def add(self, delta: int) -> int:
        """atomic_add_return(): the new value."""


class Runtime(ABC):
    """What the emulated kernel needs of time."""

    current: Task

    @abstractmethod
    def mutex(self, name: str) -> Lock:
        """A sleeping lock."""

    @abstractmethod
    def spinlock(self, name: str) -> Lock:
        """A lock under which nothing may sleep."""

    @abstractmethod
    def rwsem(self, name: str, *, fair: bool = True) -> RWLock:
        """A sleeping reader-writer lock.  A fair one keeps new readers out while a writer waits."""

    @abstractmethod
    def rwlock(self, name: str) -> RWLock:
        """A spinning reader-writer lock (KVM's mmu_lock on x86)."""

    @abstractmethod
    def srcu(self, name: str) -> Srcu:
        """A sleepable-RCU domain."""

    @abstractmethod
    def atomic(self, name: str, value: int = 0) -> Atomic:
        """A shared integer."""

    @abstractmethod
    def reads(self, what: object) -> None:
        """Mark a read of shared state; `what` names the object, such as ``("pte", mm, vpn)``."""

    @abstractmethod
    def writes(self, what: object) -> None:
        """Mark a write of shared state."""

    def reads_each(self, what: tuple[object, ...], start: int, end: int) -> None:
        """`reads` of ``(*what, i)`` for each i in [start, end)."""
        for i in range(start, end, max(self.batch(end - start), 1)):
            self.reads((*what, i))

    def writes_each(self, what: tuple[object, ...], start: int, end: int) -> None:
        """`writes` of ``(*what, i)`` for each i in [start, end)."""
        for i in range(start, end, max(self.batch(end - start), 1)):
            self.writes((*what, i))

    @abstractmethod
    def batch(self, count: int) -> int:
        """How many of `count` like steps may be done as one: all where nothing can run between them, else 1."""

    @abstractmethod
    def resched(self) -> None:
        """cond_resched(): a point where another task may run although nothing shared is touched."""

    def retry(self) -> None:
        """What was tried must be tried again (RET_PF_RETRY): it won't help before another task has done something."""
        self.resched()

    def wait_for_others(self, what: str) -> None:
        """Let other tasks do something, until which the current one can't go on: it waits for `what`, and will look again.

        Raises `Deadlock` where nobody is left who could.
        """
        self.retry()

    @abstractmethod
    def enter(self, task: Task) -> Task:
        """A system call begins for `task`.  Returns what `leave` must be given."""

    @abstractmethod
    def leave(self, previous: Task) -> None:
        """The system call ends, after the task's work (`task_work_run`)."""

    @abstractmethod
    def guest_mode(self) -> AbstractContextManager[None]:
        """The vCPU runs its guest, after its task's work: other tasks may enter the kernel until the guest exits."""

    def stop_guest(self, thread: int, stop: Callable[[], None]) -> None:
        """Have `stop` called, or the like done in `thread` (threading.get_ident()), which runs a guest."""
        stop()

    def set_signal_mask(self, mask: int | None) -> None:  # noqa: B027  of signals a machine in Python has none
        """sigset_t of signals that don't end the current task's KVM_RUN; None: those that it blocks anyway."""

    def task_work_run(self) -> None:
        """Do what the current task put off until it holds no lock."""
        work = self.current.work
        while work:
            work.pop(0)()
