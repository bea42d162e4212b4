# SPDX-License-Identifier: GPL-2.0-or-later
"""Small programs of locks and atomics, chosen or random, for tests of the search."""

from __future__ import annotations

import random
from collections.abc import Callable

from gmemu.sync import Atomic, Lock, RWLock
from gmemu.sync.explored import ExploredRuntime

__all__ = ["Body", "Program", "philosophers", "random_program"]

Body = Callable[["Program"], None]


class Program:
    """A world of atomics and locks."""

    def __init__(self, *bodies: Body, atomics: int = 3, locks: int = 2) -> None:
        self.runtime = ExploredRuntime()
        self.atomics: list[Atomic] = [self.runtime.atomic(f"a{i}") for i in range(atomics)]
        self.locks: list[Lock] = [self.runtime.mutex(f"m{i}") for i in range(locks)]
        self.rw: RWLock = self.runtime.rwsem("rw")
        self.srcu = self.runtime.srcu("srcu")
        self.seen: dict[str, list[int]] = {}
        for i, body in enumerate(bodies):
            self.runtime.spawn(f"t{i}", lambda body=body: body(self))  # type: ignore[misc]

    def note(self, task: str, value: int) -> None:
        self.seen.setdefault(task, []).append(value)

    def check(self) -> None:
        pass

    def state(self) -> object:
        values = tuple(a.value for a in self.atomics)  # type: ignore[attr-defined]
        return values, tuple(sorted((t, tuple(v)) for t, v in self.seen.items()))

    def close(self) -> None:
        pass


def random_body(rng: random.Random, name: str, length: int) -> Body:
    """A straight-line task, with properly nested locks."""
    plan = [
        (rng.choice(["read", "add", "set", "mutex", "shared", "exclusive", "enter", "sync"]), rng.randrange(8))
        for _ in range(length)
    ]

    def run(program: Program, at: int = 0) -> None:
        while at < len(plan):
            kind, n = plan[at]
            atomic = program.atomics[n % len(program.atomics)]
            if kind == "read":
                program.note(name, atomic.read())
            elif kind == "add":
                atomic.add(1)
            elif kind == "set":
                atomic.set(n)
            elif kind == "sync":
                program.srcu.synchronize()
            else:
                guard = {
                    "mutex": program.locks[n % len(program.locks)],
                    "shared": program.rw.shared,
                    "exclusive": program.rw.exclusive,
                    "enter": program.srcu.read,
                }[kind]
                with guard:
                    run(program, at + 1)
                return
            at += 1

    return run


def random_program(seed: int) -> Callable[[], Program]:
    """Two or three tasks that share little enough to be searched without reduction."""
    rng = random.Random(seed)
    tasks = rng.choice([2, 2, 3])
    bodies = [random_body(rng, f"t{i}", rng.randint(1, 3 if tasks == 3 else 4)) for i in range(tasks)]
    return lambda: Program(*bodies, atomics=2, locks=2)


def philosophers(count: int, *, left_handed: bool = False) -> Callable[[], Program]:
    def dine(i: int) -> Body:
        first, second = i, (i + 1) % count
        if left_handed and i == count - 1:
            first, second = second, first

        def run(program: Program) -> None:
            with program.locks[first], program.locks[second]:
                pass

        return run

    return lambda: Program(*[dine(i) for i in range(count)], locks=count)
