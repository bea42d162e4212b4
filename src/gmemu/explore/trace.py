# SPDX-License-Identifier: GPL-2.0-or-later
"""A run, written down: each step with who holds what and in what state each page is, so that a person can see why.

`record(build, choices)` replays a schedule in a fresh world and returns a `Trace`::

    Trace
      scenario, variants, choices     what was run, and along which choices (see token.Token)
      tasks                           names; a task is its index in here
      kind, detail                    what went wrong (verdict.Kind, a sentence), or None and ""
      results                         task name -> what its body came to (an errno's rule, a value), as text
      before                          World: locks and pages before the first step
      steps                           Step by Step, in order:
        number, task                  position from 0, index of the task
        chosen                        True for a choice of the schedule; False for a release, which needs none
        kind                          begin read write acquire acquire-shared release release-shared resched
                                      enter sync wait
        domain, object                what it's done to: "pte", "pte mm 0x10"; a lock's domain is "lock"
        stack                         Frames from the task's body to the code that takes the step; `where` is the last
        rules                         ids of the rules that failed between this step and the next
        after                         World: locks and pages when the next step is about to be taken
      waiting                         Waiting: the steps that tasks who never ended were about to take

    World                             locks: Lock(name, holders [(task, "exclusive" | "shared")], waiters [task])
                                      pages: Page(name, pfn, attribute, ptes, sptes, tlbs, refs, holders, owner)

A lock stands in `locks` while somebody holds it or waits for it.  A page is named by file and index, ``gmem[0x1]``, by a
process's address if it's anonymous, ``mm 0x10``, or by its frame, ``pfn 0x22``, if it has left its file and is still held.
`Trace.before_step(n)` is the world that step n found.  All of it is plain data: `Trace.data()` gives what JSON can hold.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from greenlet import getcurrent

from ..rules import catalogue
from ..sync import Srcu
from ..sync.explored import ExploredRuntime, Taken
from ..sync.explored import Step as RawStep
from ..syscalls.recorded import Call
from .pages import Page, page_states
from .runs import World as Program
from .runs import replay
from .verdict import Kind, kind_of

__all__ = ["Frame", "Lock", "Page", "Step", "Trace", "Waiting", "World", "record"]

_SOURCE = Path(__file__).parents[1]
_SYNC = str(_SOURCE / "sync")
_KERNEL_NAME = re.compile(r"\b_*[a-z][a-z0-9_]*(?=\(\))")
_SHORT = {
    "AddressSpace": "mm",
    "GmemInode": "gmem",
    "VmAttributes": "vm attributes",
    "PageCache": "cache",
    "Memslot": "slot",
}


class Frame(NamedTuple):
    """A function of the emulation that was under way, and the kernel's that it mirrors, if its docstring names one."""

    function: str
    file: str
    """below src/gmemu, or as it was imported"""
    line: int
    kernel: str = ""

    def __str__(self) -> str:
        return f"{self.kernel or self.function} ({self.file}:{self.line})"


class Lock(NamedTuple):
    """A lock that is held or waited for."""

    name: str
    holders: tuple[tuple[int, str], ...] = ()
    waiters: tuple[int, ...] = ()


class World(NamedTuple):
    """What stands between two steps."""

    locks: tuple[Lock, ...] = ()
    pages: tuple[Page, ...] = ()


class Step(NamedTuple):
    """One step; the module's docstring says what the fields are."""

    number: int
    task: int
    chosen: bool
    kind: str
    domain: str
    object: str
    stack: tuple[Frame, ...]
    rules: tuple[str, ...]
    after: World

    @property
    def where(self) -> Frame | None:
        """The innermost function outside of `sync`."""
        return self.stack[-1] if self.stack else None


class Waiting(NamedTuple):
    """A step that was never taken."""

    task: int
    kind: str
    object: str
    stack: tuple[Frame, ...]


class Trace(NamedTuple):
    """One run."""

    scenario: str
    variants: tuple[str, ...]
    choices: tuple[int, ...]
    tasks: tuple[str, ...]
    kind: Kind | None
    detail: str
    results: dict[str, str]
    before: World
    steps: tuple[Step, ...]
    waiting: tuple[Waiting, ...]
    calls: tuple[Call, ...] = ()

    def before_step(self, number: int) -> World:
        """The world as step `number` found it."""
        return self.steps[number - 1].after if number else self.before

    @property
    def preemptions(self) -> int:
        """How often a task that could have gone on had to give way to another."""
        chosen = [step.task for step in self.steps if step.chosen]
        last = {task: i for i, task in enumerate(chosen)}
        blocked = {waiting.task for waiting in self.waiting}
        switches = [(i, a) for i, (a, b) in enumerate(pairwise(chosen)) if a != b]
        return sum(1 for i, task in switches if i < last[task] or task in blocked)

    def data(self) -> dict[str, Any]:
        """For JSON: names instead of positions."""
        return {**_plain(self._replace(calls=())), "simulated": True}


def _plain(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        return {name: _plain(part) for name, part in value._asdict().items()}
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return value


def record(
    build: Callable[[], Program], choices: Iterable[int], *, scenario: str = "", variants: tuple[str, ...] = ()
) -> Trace:
    """Replay `choices` (task numbers; by default what is left open) and write the run down.

    Raises `NotDeterministic` where a choice can't be followed.
    """
    choices = tuple(choices)
    recorder = _Recorder(build)
    taken, error = replay(recorder.build, choices, recorder.observe)
    worlds = recorder.worlds
    names = _Names([taken.step for taken in taken] + [step for _, step, _ in recorder.waiting])
    steps = tuple(
        Step(
            number,
            task,
            recorder.chosen[number],
            raw.kind,
            *names.of(raw),
            recorder.stacks[number],
            recorder.rules[number + 1],
            World(names.locks(worlds[number + 1][0]), worlds[number + 1][1]),
        )
        for number, (task, raw) in enumerate(taken)
    )
    return Trace(
        scenario=scenario,
        variants=variants,
        choices=choices,
        tasks=tuple(recorder.tasks),
        kind=kind_of(error) if error else None,
        detail=str(error) if error else "",
        results={name: str(value) for name, value in getattr(recorder.world, "seen", {}).items()},
        before=World((), worlds[0][1]),
        steps=steps,
        waiting=tuple(Waiting(task, step.kind, names.of(step)[1], stack) for task, step, stack in recorder.waiting),
        calls=recorder.calls,
    )


class _LockState(NamedTuple):
    lock: object
    holders: tuple[tuple[int, str], ...]
    waiters: tuple[int, ...]


class _Recorder:
    """Looks at the world before each step, and once after the last."""

    def __init__(self, build: Callable[[], Program]) -> None:
        self._build = build
        self.world: Program
        self.tasks: list[str] = []
        self.worlds: list[tuple[tuple[_LockState, ...], tuple[Page, ...]]] = []
        self.rules: list[tuple[str, ...]] = []
        self.stacks: list[tuple[Frame, ...]] = []
        self.chosen: list[bool] = []
        self.waiting: list[tuple[int, RawStep, tuple[Frame, ...]]] = []
        self.calls: tuple[Call, ...] = ()
        self._catalogue = list(catalogue().values())
        self._hits: list[int] = []
        self._held: dict[int, tuple[object, list[tuple[int, str]]]] = {}
        self._seen_pages: dict[int, str] = {}

    def build(self) -> Program:
        self.world = self._build()
        self.tasks = self.world.runtime.names
        self._hits = [rule.hits for rule in self._catalogue]
        return self.world

    def observe(self, runtime: ExploredRuntime, taken: Taken | None, where: Any, chosen: bool) -> None:
        """Before `taken` takes effect; None at the end of the run."""
        self._after(Taken(runtime.who[-1], runtime.what[-1]) if runtime.who else None)
        hits = [rule.hits for rule in self._catalogue]
        self.rules.append(tuple(r.id for r, a, b in zip(self._catalogue, self._hits, hits, strict=True) if a != b))
        self._hits = hits
        host = getattr(self.world, "host", None)
        pages = page_states(host, self._seen_pages) if host is not None else ()
        left = runtime.stopped_tasks()
        waiting = [t for t in left if t.ready is not None and not t.ready()]
        locks = {id(lock): (lock, holders) for lock, holders in self._held.values() if holders}
        for thread in waiting:
            locks.setdefault(id(thread.step.what), (thread.step.what, []))
        self.worlds.append(
            (
                tuple(
                    _LockState(lock, tuple(holders), tuple(t.number for t in waiting if t.step.what is lock))
                    for lock, holders in locks.values()
                ),
                pages,
            )
        )
        if taken is None:
            self.waiting = [(t.number, t.step, _stack(t.where)) for t in left if t.where]
            self.calls = getattr(self.world, "calls", ())
            return
        self.stacks.append(_stack(where))
        self.chosen.append(chosen)

    def _after(self, taken: Taken | None) -> None:
        """Who holds what, after the step."""
        if taken is None:
            return
        task, kind, what = taken.task, taken.step.kind, taken.step.what
        _, holders = self._held.setdefault(id(what), (what, []))
        if kind in ("acquire", "acquire-shared", "enter"):
            holders.append((task, "exclusive" if kind == "acquire" else "shared"))
        elif kind in ("release", "release-shared"):
            mine = [i for i, (holder, _) in enumerate(holders) if holder == task]
            if mine:
                del holders[mine[-1]]


def _stack(where: Any) -> tuple[Frame, ...]:
    """The frames of a stopped greenlet (None: the running one) and of those that wait for it, outermost first."""
    frames: list[Frame] = []
    running = where is None
    if where is None:
        where = getcurrent()
    while where is not None:
        frame: FrameType | None = sys._getframe() if running else where.gr_frame
        part = []
        while frame is not None:
            part.append(frame)
            frame = frame.f_back
        inside = [f for f in part if not f.f_code.co_filename.startswith(_SYNC)]
        if where.parent is None:
            break  # the hub: who explores, not who is explored
        frames += [_frame(f) for f in inside if f.f_code.co_filename != __file__]
        where, running = where.parent, False
    return tuple(reversed([f for f in frames if f.file not in ("explore/scenario.py", "explore/search.py")]))


def _frame(frame: FrameType) -> Frame:
    code = frame.f_code
    path = Path(code.co_filename)
    file = str(path.relative_to(_SOURCE)) if path.is_relative_to(_SOURCE) else path.name
    doc = code.co_consts[0] if code.co_consts and isinstance(code.co_consts[0], str) else ""
    named = _KERNEL_NAME.search(doc.split("\n")[0]) if file.startswith(("kvm/", "mm/", "syscalls/")) else None
    return Frame(code.co_qualname, file, frame.f_lineno, named[0] if named else "")


class _Names:
    """Short names for the things that a run touches; numbered, in order of appearance, where there are several of a kind."""

    def __init__(self, steps: Iterable[RawStep]) -> None:
        self._by_id: dict[int, str] = {}
        kinds: dict[str, list[object]] = {}
        for step in steps:
            for part in step.what if isinstance(step.what, tuple) else (step.what,):
                if part is None or isinstance(part, int | str) or id(part) in self._by_id:
                    continue
                name = repr(part) if part is step.what else _SHORT.get(type(part).__name__, type(part).__name__.lower())
                self._by_id[id(part)] = name
                kinds.setdefault(name, []).append(part)
        for name, parts in kinds.items():
            for number, part in enumerate(parts) if len(parts) > 1 else ():
                self._by_id[id(part)] = f"{name}#{number}"

    def of(self, step: RawStep) -> tuple[str, str]:
        """(domain, name) of what the step is done to."""
        what = step.what
        if isinstance(what, tuple):
            parts = [p if isinstance(p, str) else f"{p:#x}" if isinstance(p, int) else self._by_id[id(p)] for p in what]
            if len(what) > 1 and isinstance(what[-1], int) and isinstance(what[-2], int):
                parts[-2:] = [f"{what[-2]:#x}-{what[-1]:#x}"]
            return str(what[0]), " ".join(parts)
        if what is None or step.kind in ("begin", "resched", "retry"):
            return "", ""
        domain = "srcu" if isinstance(what, Srcu) else "atomic" if step.kind in ("read", "write") else "lock"
        return domain, self._by_id[id(what)]

    def locks(self, states: tuple[_LockState, ...]) -> tuple[Lock, ...]:
        """The locks of one moment, by name."""
        return tuple(Lock(self._by_id.get(id(s.lock), repr(s.lock)), s.holders, s.waiters) for s in states)
