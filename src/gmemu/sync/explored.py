# SPDX-License-Identifier: GPL-2.0-or-later
"""The explored runtime: tasks are greenlets, and every lock taken, atomic and mark is a point where another may run.

A step is announced before it happens: the task says what it's about to do (`Step`) and stops; a `Schedule` chooses among
the tasks whose step can be taken now; the chosen one takes it and goes on to its next.  Everything between two steps is
private to the task, so choosing at steps is enough to see every order of what tasks can observe of each other.  Releasing a
lock needs no choice: whoever waits for it can be chosen at the releaser's next step.  It's recorded all the same.

Outside `run`, as in a scenario's set-up, steps are taken at once and nothing is recorded.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

from greenlet import getcurrent, greenlet

from .runtime import Atomic, Deadlock, Lock, Runtime, RWLock, Srcu, Task

_EVERYTHING = 1 << 64

_AGAINST: dict[str, frozenset[str]] = {
    "read": frozenset({"write"}),
    "write": frozenset({"read", "write"}),
    "acquire": frozenset({"acquire", "acquire-shared", "acquire-late"}),
    "acquire-late": frozenset({"acquire", "acquire-late"}),
    "acquire-shared": frozenset({"acquire", "queue"}),
    "queue": frozenset({"acquire-shared"}),
    "enter": frozenset({"sync"}),
    "sync": frozenset({"enter"}),
}
"""Kinds of steps on one thing whose order matters.  A writer that had to queue has met the readers as it did."""

_NONE: frozenset[str] = frozenset()

_RELEASES = frozenset({"release", "release-shared"})

_AFTER = {
    "acquire": _RELEASES,
    "acquire-late": _RELEASES,
    "acquire-shared": frozenset({"release"}),
    "sync": _RELEASES,
    "wait": _RELEASES,
}
"""Which releases a step comes after: what came before those came before it."""

_OF_ROLE = {
    role: (_AFTER.get(role), _AGAINST.get(role, _NONE), role == "write", role in _RELEASES)
    for role in (*_AGAINST, *_AFTER, *_RELEASES)
}
_OF_OTHERS = (None, _NONE, False, False)

_GUARDED = {"data": "all", "attribute": "writes", "memslots": "writes", "slot-file": "writes"}
"""Marked state that a lock must guard: every access, or writes alone where readers go without a lock and look again."""

__all__ = ["ExploredRuntime", "NotDeterministic", "Observer", "Schedule", "Step", "Taken", "Thread"]


class Step:
    """What a task is about to do, and to what.

    Kinds: begin, read, write, resched, retry; acquire, acquire-shared and queue for locks; enter, sync and wait for SRCU;
    and of what nobody chooses release, release-shared.  `what` is a lock, an atomic, or what kernel code marks: ``(kind,
    object, page)``, or ``(kind, object, first, end)`` for a range.  Where it takes effect is worked out once: pages `start`
    to `end` of `domain`, a number that is the same in each run that came the same way (-1: it touches nothing).  One that
    `decides` conflicts with every other in its place.  `after`: the kinds of releases that it comes after, if it waits for
    any; `releases`: it's one itself.  `marked`: it's an access that kernel code marks, no lock or atomic.
    """

    __slots__ = (
        "after",
        "against",
        "decides",
        "domain",
        "end",
        "guard",
        "kind",
        "marked",
        "releases",
        "role",
        "start",
        "what",
    )

    def __init__(
        self, kind: str, what: object, domain: int = -1, start: int = 0, end: int = _EVERYTHING, role: str = ""
    ) -> None:
        self.kind, self.what, self.domain, self.start, self.end = kind, what, domain, start, end
        self.role = role or kind
        self.after, self.against, self.decides, self.releases = _OF_ROLE.get(self.role, _OF_OTHERS)
        self.marked = isinstance(what, tuple)
        self.guard = _GUARDED.get(what[0], "") if isinstance(what, tuple) else ""

    def conflicts(self, other: Step) -> bool:
        """Whether the order of the two, taken by different tasks, can matter."""
        return (
            self.domain == other.domain and other.role in self.against and self.start < other.end and other.start < self.end
        )

    def same_as(self, other: Step) -> bool:
        """Whether it's the same step in another run."""
        return self.kind == other.kind and self.domain == other.domain and self.start == other.start

    def __repr__(self) -> str:
        return f"{self.kind} {self.what!r}"


class Taken(NamedTuple):
    """One line of a trace: which task did what.  Releases are in it although nobody chose them."""

    task: int
    step: Step


Schedule = Callable[[list["Thread"]], int]
"""Given the tasks that can go on (each with its step), in order: which of the list does."""

Observer = Callable[["ExploredRuntime", Taken | None, Any, bool], None]
"""Called with each step before it takes effect, the greenlet that stopped for it (None: the one that runs), and whether it
was chosen; with None for a step when no more will be taken."""


class NotDeterministic(RuntimeError):
    """The same schedule led elsewhere: a program under exploration may not depend on anything else."""


class _Abandoned(BaseException):
    """Raised in tasks that are still waiting when a run ends early."""


def _first(able: list[Thread]) -> int:
    return 0


class _Worker(greenlet):  # type: ignore[misc]
    """Runs one task's body after the other.  A greenlet that begins costs more than a short task does, so they're kept."""

    job: tuple[ExploredRuntime, Callable[[], object]] | None
    """What it does when it's switched to; then it goes to the runtime's hub."""

    def run(self) -> None:
        while True:
            assert self.job is not None
            (runtime, body), self.job = self.job, None
            try:
                body()
            except BaseException as error:
                runtime.raised = error
            hub = runtime.hub
            del runtime, body
            _workers().append(self)
            hub.switch()


def _workers() -> list[_Worker]:
    """Those with nothing to do.  Each thread of the interpreter has its own, as a greenlet never leaves it."""
    found: list[_Worker] = _local.__dict__.setdefault("workers", [])
    return found


_local = threading.local()
_NOT_BEGUN = greenlet()


class Thread:
    """One task of the run: where it stopped, the step it waits to take, and what `current` is for it.

    Tasks of one `group` are alike: exchanging them, and the `pages` that each works on, changes nothing but names.
    """

    __slots__ = ("begin", "body", "current", "group", "name", "number", "pages", "ready", "step", "where")

    def __init__(self, number: int, name: str, body: Callable[[], object], group: str, pages: tuple[int, ...] = ()) -> None:
        self.number, self.name, self.body, self.group, self.pages = number, name, body, group, pages
        self.step = self.begin = Step("begin", name)
        self.ready: Callable[[], bool] | None = None
        self.current: Any = None
        self.where: Any = _NOT_BEGUN


class _Mutex(Lock):
    def __init__(self, rt: ExploredRuntime, name: str) -> None:
        self._rt, self.name = rt, name
        self.owner: Task | None = None
        domain = rt.new_domain()
        self._acquire, self._release = Step("acquire", self, domain), Step("release", self, domain)
        self._acquire.decides = True

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
        self._acquire = Step("acquire-shared", lock, lock.domain)
        self._release = Step("release-shared", lock, lock.domain)

    def _free(self) -> bool:
        return self._lock.writer is None and not self._lock.queued

    def __enter__(self) -> None:
        self._lock.rt.step(self._acquire, self._free)
        self._lock.readers.append(self._lock.rt.current)

    def __exit__(self, *exc: object) -> None:
        self._lock.rt.record(self._release)
        self._lock.readers.remove(self._lock.rt.current)


class _Exclusive(AbstractContextManager[None]):
    def __init__(self, lock: _RWLock) -> None:
        self._lock = lock
        self._queue = Step("queue", lock, lock.domain)
        self._acquire = Step("acquire", lock, lock.domain)
        self._late = Step("acquire", lock, lock.domain, role="acquire-late")
        self._release = Step("release", lock, lock.domain)

    def _free(self) -> bool:
        return self._lock.writer is None and not self._lock.readers

    def __enter__(self) -> None:
        lock = self._lock
        if not lock.fair:
            lock.rt.step(self._acquire, self._free)
        else:
            lock.rt.step(self._acquire)
            if not self._free():
                self._wait()
        lock.writer = lock.rt.current

    def _wait(self) -> None:
        """Somebody has it: what was taken for the acquisition was the queueing."""
        lock = self._lock
        lock.rt.amend(self._queue)
        lock.queued += 1
        try:
            lock.rt.step(self._late, self._free)
        finally:
            lock.queued -= 1

    def __exit__(self, *exc: object) -> None:
        self._lock.rt.record(self._release)
        self._lock.writer = None


class _RWLock(RWLock):
    """A fair one, as rw_semaphore and qrwlock are, lets a writer that waits keep later readers out, even one who has it."""

    def __init__(self, rt: ExploredRuntime, name: str, fair: bool) -> None:
        self.rt, self.name, self.fair = rt, name, fair
        self.domain, self.queued = rt.new_domain(), 0
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
        self.domain = rt.new_domain()
        self.read = _SrcuRead(self)

    def synchronize(self) -> None:
        self.rt.step(Step("sync", self, self.domain))
        before = list(self.inside)
        if before:
            self.rt.step(Step("wait", self, self.domain), lambda: not any(reader in self.inside for reader in before))

    def holders(self) -> list[Task]:
        """Who is inside."""
        return [task for task, _ in self.inside]

    def __repr__(self) -> str:
        return self.name


class _SrcuRead(AbstractContextManager[None]):
    def __init__(self, srcu: _Srcu) -> None:
        self._srcu = srcu
        self._enter, self._release = Step("enter", srcu, srcu.domain), Step("release", srcu, srcu.domain)

    def __enter__(self) -> None:
        self._srcu.rt.step(self._enter)
        self._srcu.inside.append((self._srcu.rt.current, object()))

    def __exit__(self, *exc: object) -> None:
        srcu = self._srcu
        srcu.rt.record(self._release)
        mine = [entry for entry in srcu.inside if entry[0] is srcu.rt.current]
        srcu.inside.remove(mine[-1])


class _Atomic(Atomic):
    def __init__(self, rt: ExploredRuntime, name: str, value: int) -> None:
        self._rt, self.name, self.value = rt, name, value
        domain = rt.new_domain()
        self._read, self._write = Step("read", self, domain), Step("write", self, domain)

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

    `who` and `what` hold the steps of the last run (task by task number, step by step), `waiting` what the tasks that never
    ended were about to do.
    """

    def __init__(self) -> None:
        self.current = Task("set-up")
        self.who: list[int] = []
        self.what: list[Step] = []
        self.waiting: list[tuple[int, Step]] = []
        self._threads: list[Thread] = []
        self._left: list[Thread] = []
        self._running: Any = None
        self.hub: Any = None
        """where a run began, and where tasks that end go"""
        self.raised: BaseException | None = None
        """what a task ended with"""
        self._schedule: Schedule = _first
        self._stopped: BaseException | None = None
        self._abandoning = False
        self._observer: Observer | None = None
        self._given: Sequence[int] = ()
        self._expected: Sequence[Step] | None = None
        self._depth = self._known = 0
        self._domains = 0
        self._locks: list[_Mutex | _RWLock | _Srcu] = []
        self._names: dict[object, int] = {}
        self._reads: dict[object, Step] = {}
        self._writes: dict[object, Step] = {}

    # What kernel code sees

    def mutex(self, name: str) -> Lock:
        lock = _Mutex(self, name)
        self._locks.append(lock)
        return lock

    spinlock = mutex

    def rwsem(self, name: str, *, fair: bool = True) -> RWLock:
        lock = _RWLock(self, name, fair)
        self._locks.append(lock)
        return lock

    def rwlock(self, name: str) -> RWLock:
        return self.rwsem(name)

    def srcu(self, name: str) -> Srcu:
        srcu = _Srcu(self, name)
        self._locks.append(srcu)
        return srcu

    def atomic(self, name: str, value: int = 0) -> Atomic:
        return _Atomic(self, name, value)

    def reads(self, what: object) -> None:
        if self._running is not None:
            step = self._reads.get(what)
            if step is None:
                step = self._reads[what] = self._mark("read", what)
            self.step(step)

    def writes(self, what: object) -> None:
        if self._running is not None:
            step = self._writes.get(what)
            if step is None:
                step = self._writes[what] = self._mark("write", what)
            self.step(step)

    def reads_each(self, what: tuple[object, ...], start: int, end: int) -> None:
        if end > start:
            self.reads((*what, start, end) if end - start > 1 else (*what, start))

    def writes_each(self, what: tuple[object, ...], start: int, end: int) -> None:
        if end > start:
            self.writes((*what, start, end) if end - start > 1 else (*what, start))

    def batch(self, count: int) -> int:
        return count if self._running is None else 1

    def resched(self) -> None:
        if self._running is not None:
            self.step(_RESCHED)

    def retry(self) -> None:
        if self._running is not None:
            self.step(_RETRY)

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

    # What is touched

    def new_domain(self) -> int:
        """A number for something that steps can touch.  Objects come to be in the same order in each run that goes the same
        way, so they have the same numbers there."""
        self._domains += 1
        return self._domains

    def _mark(self, kind: str, what: object) -> Step:
        """The step for an access that kernel code marks.  Objects go by identity: the step keeps them for the run."""
        pages: list[int] = []
        named: list[object] = []
        for part in what if isinstance(what, tuple) else (what,):
            if isinstance(part, str):
                named.append(part)
            elif isinstance(part, int):
                pages.append(part)
            else:
                named.append(id(part))
        thing = tuple(named)
        domain = self._names.get(thing)
        if domain is None:
            domain = self._names[thing] = self.new_domain()
        if not pages:
            return Step(kind, what, domain)
        return Step(kind, what, domain, pages[0], pages[1] if len(pages) > 1 else pages[0] + 1)

    # What an exploration does

    def spawn(self, name: str, body: Callable[[], object], group: str = "", pages: Iterable[int] = ()) -> int:
        """Another task for the next `run`, like the others of its `group` if it names one.  Returns its number.

        Tasks are alike if exchanging them, together with what each may have for itself (a page, a descriptor), changes
        nothing but names, in the set-up as well as in what must hold.  `pages` are the numbers by which marks name the pages
        that a task has for itself (file page, user page, guest frame), in the same order for each.
        """
        taken = {thread.name for thread in self._threads}
        if name in taken:
            name = next(f"{name}#{n}" for n in range(2, len(taken) + 3) if f"{name}#{n}" not in taken)
        self._threads.append(Thread(len(self._threads), name, body, group, tuple(pages)))
        return len(self._threads) - 1

    @property
    def domains(self) -> int:
        """How many numbers for things that can be touched were given out: the last one."""
        return self._domains

    @property
    def running(self) -> int:
        """The number of the task that runs; -1 outside of `run`."""
        return -1 if self._running is None else self._running.number

    @property
    def names(self) -> list[str]:
        """The spawned tasks' names, by number."""
        return [thread.name for thread in self._threads]

    @property
    def groups(self) -> list[str]:
        """The spawned tasks' groups, by number."""
        return [thread.group for thread in self._threads]

    @property
    def pages(self) -> list[tuple[int, ...]]:
        """The pages that the spawned tasks have for themselves, by number."""
        return [thread.pages for thread in self._threads]

    @property
    def trace(self) -> list[Taken]:
        """The steps of the last run."""
        return [Taken(task, step) for task, step in zip(self.who, self.what, strict=True)]

    def held(self) -> list[tuple[str, list[Task]]]:
        """The locks that somebody holds or is inside of, each with who."""
        return [(lock.name, lock.holders()) for lock in self._locks if lock.holders()]

    def stopped_tasks(self) -> list[Thread]:
        """The tasks that haven't ended, for an observer to look at: where each stopped, and what for."""
        return list(self._left)

    def run(
        self,
        schedule: Schedule,
        observer: Observer | None = None,
        given: Sequence[int] = (),
        expected: Sequence[Step] | None = None,
    ) -> None:
        """Run the spawned tasks to their ends in the order that `schedule` chooses.

        The first choices are `given`, and have to be for the steps that are `expected` there (as `Step.same_as` goes).
        Raises what a task or the schedule raises, `Deadlock` when none of those left can go on, or `NotDeterministic`.
        """
        self.who, self.what, self.waiting, self.hub, self._schedule = [], [], [], getcurrent(), schedule
        outside, self._left, self._stopped = self.current, list(self._threads), None
        self._observer = observer
        self._given, self._expected, self._depth, self._known = given, expected, 0, len(given)
        if given and max(given) >= len(self._threads):
            raise NotDeterministic(f"task {max(given)} was to run, and there are {len(self._threads)}")
        self._names, self._reads, self._writes = {}, {}, {}
        for thread in self._left:
            thread.where, thread.ready = _NOT_BEGUN, None
            thread.step = thread.begin
            thread.current = Task(thread.name, outside.process, outside.mm, outside.cpu)
            thread.current.thread = thread.name
        try:
            while self._left:
                chosen = self._pick()
                if chosen is not None:
                    self._running, self.current = chosen, chosen.current
                    (chosen.where or self._begin(chosen)).switch()
                if self.raised is not None:
                    self._running.where = _NOT_BEGUN
                    raise self.raised
                if self._stopped is not None:
                    raise self._stopped
                self._left.remove(self._running)  # whoever ran last came back by ending
                self._running.step = _ENDED
        finally:
            self._running = None
            self.waiting = [(t.number, t.step) for t in self._left]
            self._observe(None, None, False)
            self._abandon(self._left)
            self.current, self.raised = outside, None

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
            self.hub.switch()
        else:
            self._running, self.current = chosen, chosen.current
            (chosen.where or self._begin(chosen)).switch()
        if self._abandoning:
            raise _Abandoned

    def _begin(self, thread: Thread) -> _Worker:
        """Something to run the task's body in."""
        idle = _workers()
        thread.where = worker = idle.pop() if idle else _Worker()
        worker.job = self, thread.body
        worker.gr_context = None
        if worker.parent is not self.hub:
            worker.parent = self.hub
        return worker

    def _pick(self) -> Thread | None:
        """Let the schedule choose, and note the step.  None: the run can't go on, `_stopped` says why."""
        depth = self._depth
        self._depth = depth + 1
        try:
            if depth < self._known:
                chosen = self._threads[self._given[depth]]
                step = chosen.step
                ready, expected = chosen.ready, self._expected
                if (ready is not None and not ready()) or (expected is not None and step is not expected[depth]):
                    self._check_given(depth, chosen)
            else:
                able = [t for t in self._left if t.ready is None or t.ready()]
                if not able:
                    raise Deadlock(describe_deadlock(self._left))
                chosen = able[self._schedule(able)]
                step = chosen.step
        except BaseException as stopped:
            self._stopped = stopped
            return None
        if self._observer is not None:
            self._observe(Taken(chosen.number, step), None if chosen is self._running else chosen.where, True)
        self.who.append(chosen.number)
        self.what.append(step)
        return chosen

    def _check_given(self, depth: int, thread: Thread) -> None:
        """Whether the task that was given is there, can go on, and does what is expected."""
        if thread not in self._left:
            raise NotDeterministic(f"choice {depth}: {thread.name} was to run next, and has ended")
        step = thread.step
        if thread.ready is not None and not thread.ready():
            raise NotDeterministic(f"choice {depth}: {thread.name} was to run next, and can't {step!r}")
        expected = self._expected[depth] if self._expected is not None else step
        if not step.same_as(expected):
            raise NotDeterministic(f"choice {depth}: {thread.name} is about to {step!r}, and was to {expected!r}")

    def record(self, step: Step) -> None:
        """A step that needs no choice: it's in the trace, and that's all."""
        if self._running is not None:
            if self._observer is not None:
                self._observe(Taken(self._running.number, step), None, False)
            self.who.append(self._running.number)
            self.what.append(step)

    def amend(self, step: Step) -> None:
        """The step that the running task has just taken turned out to be this one."""
        if self._running is not None:
            self.what[-1] = step

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

    def _abandon(self, left: list[Thread]) -> None:
        """Unwind tasks that never got to their end; their clean-up takes no steps.

        They find out when they are switched to: to throw an exception into a greenlet costs ten times as much.
        """
        self._abandoning = True
        try:
            for thread in left:
                if thread.where:
                    thread.where.switch()
        finally:
            self._abandoning = False


_ENDED = Step("ended", None)
_RESCHED = Step("resched", None)
_RETRY = Step("retry", None)


def waits_for(left: list[Thread]) -> dict[int, list[Thread]]:
    """Of tasks that can't go on: by number, those that hold what each waits for."""
    by_name = {thread.name: thread for thread in left}
    found: dict[int, list[Thread]] = {}
    for thread in left:
        holders: Any = getattr(thread.step.what, "holders", list)()
        found[thread.number] = [by_name[task.thread] for task in holders if task.thread in by_name]
    return found


def describe_deadlock(left: list[Thread]) -> str:
    """Who waits for whom, and the circle in it: a line for each task with what it waits for and who holds that."""
    holders = waits_for(left)
    numbers = {thread.number: thread for thread in left}
    circle: list[int] = []
    for start in numbers:
        path, at = [start], start
        while (after := next((h.number for h in holders[at]), None)) is not None and after not in path:
            path.append(after)
            at = after
        if after is not None:
            circle = path[path.index(after) :]
            break
    names = [numbers[number].name for number in circle]
    head = f"{names[0]} waits for itself" if len(names) == 1 else " -> ".join([*names, *names[:1]])
    lines = [f"deadlock: {head if circle else 'nobody is left who could release what they wait for'}"]
    for thread in left:
        held = ", ".join(h.name for h in holders[thread.number]) or "nobody that is left"
        lines.append(f"  {thread.name} waits to {thread.step.kind} {thread.step.what!r}, held by {held}")
    return "\n".join(lines)
