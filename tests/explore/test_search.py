# SPDX-License-Identifier: GPL-2.0-or-later
"""The reduced search agrees with the unreduced one, and finds what is there."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from gmemu.explore import Outcome, explore, replay
from gmemu.sync import Atomic, Lock, RWLock
from gmemu.sync.explored import ExploredRuntime, NotDeterministic

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


@pytest.mark.parametrize("seed", [*range(60), 1188, 1300, 1522])
def test_reduced_and_unreduced_reach_the_same_ends(seed: int) -> None:
    rng = random.Random(seed)
    tasks = rng.choice([2, 2, 3])
    bodies = [random_body(rng, f"t{i}", rng.randint(1, 3 if tasks == 3 else 4)) for i in range(tasks)]

    def build() -> Program:
        return Program(*bodies, atomics=2, locks=2)

    reduced = explore(build, stop_at_violation=False)
    full = explore(build, reduce=False, stop_at_violation=False, max_schedules=60_000)
    assert full.outcome is Outcome.EXHAUSTED
    assert reduced.outcome is Outcome.EXHAUSTED
    assert reduced.states == full.states
    assert reduced.schedules <= full.schedules


def test_independent_tasks_need_one_schedule() -> None:
    def own(i: int) -> Body:
        def run(program: Program) -> None:
            program.atomics[i].add(1)
            program.atomics[i].add(1)

        return run

    result = explore(lambda: Program(own(0), own(1), own(2)))
    assert (result.outcome, result.schedules) == (Outcome.EXHAUSTED, 1)


def test_writers_of_one_variable_need_as_many_as_there_are_orders() -> None:
    def write(i: int) -> Body:
        return lambda program: program.atomics[0].set(i)

    result = explore(lambda: Program(write(1), write(2), write(3)))
    assert result.schedules == 6
    assert {state[0][0] for state in result.states} == {1, 2, 3}  # type: ignore[index]


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


def test_philosophers_deadlock_and_one_left_handed_saves_them() -> None:
    result = explore(philosophers(3))
    assert (result.outcome, result.kind) == (Outcome.VIOLATED, "deadlock")
    assert explore(philosophers(3, left_handed=True)).outcome is Outcome.EXHAUSTED


def test_a_violation_replays_along_its_choices() -> None:
    result = explore(philosophers(3))
    for _ in range(10):
        trace, error = replay(philosophers(3), result.choices)
        assert type(error).__name__ == "Deadlock"
        assert [(t.task, t.step.kind) for t in trace] == [(t.task, t.step.kind) for t in result.trace]


def test_a_choice_that_can_not_be_followed_is_said_to_be_so() -> None:
    with pytest.raises(NotDeterministic, match="task 7"):
        replay(philosophers(2), (7,))


def test_a_program_that_depends_on_something_else_is_found_out() -> None:
    runs: list[int] = []

    def fickle(program: Program) -> None:
        runs.append(1)
        if len(runs) % 2:
            program.locks[0].__enter__()
        program.atomics[0].add(1)

    with pytest.raises(NotDeterministic):
        explore(lambda: Program(fickle, fickle, fickle), stop_at_violation=False)


def test_bounds_make_a_search_incomplete() -> None:
    def write(program: Program) -> None:
        for atomic in program.atomics:
            atomic.add(1)

    assert explore(lambda: Program(write, write, write), max_schedules=3).outcome is Outcome.INCOMPLETE
