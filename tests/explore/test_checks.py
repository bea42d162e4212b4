# SPDX-License-Identifier: GPL-2.0-or-later
"""What every search looks for, each shown by the smallest program that has it, beside one that hasn't."""

from __future__ import annotations

from collections.abc import Callable

from gmemu.explore import Kind, Outcome, Result, explore, record, replay
from gmemu.explore.verdict import LockOrder

from .programs import Body, Program


def search(*bodies: Body) -> Result:
    return explore(lambda: Program(*bodies))


def in_order(*names: int) -> Body:
    """Take mutexes one in the other."""

    def run(program: Program) -> None:
        if names:
            with program.locks[names[0]]:
                in_order(*names[1:])(program)

    return run


def test_a_deadlock_names_the_circle_the_locks_and_their_holders() -> None:
    result = search(in_order(0, 1), in_order(1, 0))
    assert (result.outcome, result.kind) == (Outcome.VIOLATED, Kind.DEADLOCK)
    assert result.detail.splitlines() == [
        "deadlock: t0 -> t1 -> t0",
        "  t0 waits to acquire m1, held by t1",
        "  t1 waits to acquire m0, held by t0",
    ]


def test_a_task_that_takes_a_lock_twice_waits_for_itself() -> None:
    result = search(in_order(0, 0))
    assert result.kind is Kind.DEADLOCK
    assert "t0 waits for itself" in result.detail


def test_a_reader_behind_a_queued_writer_waits_though_it_reads_already() -> None:
    def reader(program: Program) -> None:
        with program.rw.shared, program.rw.shared:
            pass

    def writer(program: Program) -> None:
        with program.rw.exclusive:
            pass

    result = search(reader, writer)
    assert result.kind is Kind.DEADLOCK
    assert search(reader, reader).outcome is Outcome.EXHAUSTED


def test_abba_through_a_queued_writer() -> None:
    """Two readers of rw and a mutex in opposite orders only hang when a writer comes between."""

    def mutex_first(program: Program) -> None:
        with program.locks[0], program.rw.shared:
            pass

    def rw_first(program: Program) -> None:
        with program.rw.shared, program.locks[0]:
            pass

    def writer(program: Program) -> None:
        with program.rw.exclusive:
            pass

    assert search(mutex_first, rw_first).kind is Kind.LOCK_ORDER
    assert search(mutex_first, rw_first, writer).kind is Kind.DEADLOCK


def test_lock_order_is_found_where_nothing_ever_hung() -> None:
    """The second task starts when the first is through: no schedule hangs, and the order is wrong all the same."""

    def first(program: Program) -> None:
        in_order(0, 1)(program)
        program.atomics[0].set(1)

    def second(program: Program) -> None:
        if program.atomics[0].read():
            in_order(1, 0)(program)

    result = search(first, second)
    assert (result.outcome, result.kind) == (Outcome.VIOLATED, Kind.LOCK_ORDER)
    lines = result.detail.splitlines()
    assert lines[0] == "possible circular locking dependency"
    assert lines[1].startswith("t1 takes m0")
    assert [line[:6] for line in lines if line.startswith("->")] == ["-> #1 ", "-> #0 "]
    assert lines[-1] == "chain: m1 --> m0 --> m1"
    assert (result.preemptions, "another run" in result.detail) == (0, False)
    _, error = replay(lambda: Program(first, second), result.choices)
    assert (type(error), str(error)) == (LockOrder, result.detail)
    trace = record(lambda: Program(first, second), result.choices)
    assert trace.steps[int(lines[1].split("step ")[1].split(")")[0])].object == "m0"


def test_a_lock_order_that_no_single_run_shows_names_a_run_for_each_link() -> None:
    """Whoever comes first takes them in its own order, and then the other takes neither."""

    def only_once(*names: int) -> Body:
        def run(program: Program) -> None:
            if program.atomics[0].add(1) == 1:
                in_order(*names)(program)

        return run

    build = lambda: Program(only_once(0, 1), only_once(1, 0))  # noqa: E731
    result = explore(build)
    assert (result.outcome, result.kind) == (Outcome.VIOLATED, Kind.LOCK_ORDER)
    assert result.detail.count("in another run: ") == 1
    trace, error = replay(build, result.choices)
    assert error is None
    assert [t.step.kind for t in trace] == [t.step.kind for t in result.trace]


def test_three_locks_in_a_circle() -> None:
    def after(i: int, body: Body) -> Body:
        def run(program: Program) -> None:
            if i == 0 or program.atomics[i - 1].read():
                body(program)
            program.atomics[i].set(1)

        return run

    def build(*last: int) -> Program:
        return Program(after(0, in_order(0, 1)), after(1, in_order(1, 2)), after(2, in_order(*last)), locks=3)

    result = explore(lambda: build(2, 0))
    assert result.kind is Kind.LOCK_ORDER
    assert len([line for line in result.detail.splitlines() if line.startswith("->")]) == 3
    assert explore(lambda: build(0, 2)).outcome is Outcome.EXHAUSTED


def data(kind: str, lock: bool) -> Body:
    """One access to guarded state."""

    def run(program: Program) -> None:
        mark: Callable[[object], None] = getattr(program.runtime, kind)
        if lock:
            with program.locks[0]:
                mark(("data", program, 0))
        else:
            mark(("data", program, 0))

    return run


def test_data_that_a_lock_should_guard_and_does_not() -> None:
    assert search(data("writes", True), data("writes", True)).outcome is Outcome.EXHAUSTED
    assert search(data("reads", False), data("reads", False)).outcome is Outcome.EXHAUSTED
    result = search(data("writes", True), data("reads", False))
    assert (result.outcome, result.kind) == (Outcome.VIOLATED, Kind.RACE)
    assert result.detail == "t0 and t1 touch data Program 0x0 with no lock between them: write and read"
    trace = record(lambda: Program(data("writes", True), data("reads", False)), result.choices)
    assert (trace.kind, trace.detail, result.preemptions) == (Kind.RACE, result.detail, 0)


def test_a_flag_orders_what_it_announces() -> None:
    def producer(program: Program) -> None:
        program.runtime.writes(("data", program, 0))
        program.atomics[0].set(1)

    def consumer(program: Program) -> None:
        if program.atomics[0].read():
            program.runtime.reads(("data", program, 0))

    assert search(producer, consumer).outcome is Outcome.EXHAUSTED


def test_a_loop_that_waits_for_somebody_else_ends_and_one_that_never_ends_is_a_livelock() -> None:
    def polite(program: Program) -> None:
        while not program.atomics[0].read():
            program.runtime.resched()

    def rude(program: Program) -> None:
        while not program.atomics[0].read():
            pass

    def signal(program: Program) -> None:
        program.atomics[0].set(1)

    def never(program: Program) -> None:
        program.atomics[1].set(1)

    assert search(polite, signal).outcome is Outcome.EXHAUSTED
    result = search(polite, never)
    assert (result.outcome, result.kind) == (Outcome.VIOLATED, Kind.LIVELOCK)
    assert "t0 goes on to" in result.detail
    assert len(result.choices) < 10  # what leads into the loop; turns do the rest
    _, error = replay(lambda: Program(polite, never), result.choices)
    assert str(error) == result.detail
    unfair = search(rude, signal)  # it ends as soon as the other gets a turn: no livelock, but not all was seen
    assert (unfair.outcome, unfair.bound) == (Outcome.INCOMPLETE, "depth")


def test_two_tasks_that_keep_getting_in_each_others_way() -> None:
    def retry(me: int) -> Body:
        def run(program: Program) -> None:
            while True:
                program.atomics[me].set(1)
                if not program.atomics[1 - me].read():
                    return
                program.atomics[me].set(0)
                program.runtime.resched()

        return run

    assert search(retry(0), retry(1)).kind is Kind.LIVELOCK
