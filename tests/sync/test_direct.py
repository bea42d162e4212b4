# SPDX-License-Identifier: GPL-2.0-or-later
"""The direct runtime: who holds what, who waits, and what is a deadlock."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from gmemu.sync import Deadlock, DirectRuntime, Task, direct


@pytest.fixture
def rt() -> DirectRuntime:
    return DirectRuntime()


def call(rt: DirectRuntime, task: Task, body: Callable[[], object]) -> object:
    """One system call of `task`."""
    previous = rt.enter(task)
    try:
        return body()
    finally:
        rt.leave(previous)


class TestCurrent:
    def test_is_the_task_that_entered(self, rt: DirectRuntime) -> None:
        idle, outer, inner = rt.current, Task("outer"), Task("inner")

        def nested() -> None:
            assert rt.current is outer
            assert call(rt, inner, lambda: rt.current) is inner
            assert rt.current is outer

        call(rt, outer, nested)
        assert rt.current is idle

    def test_is_restored_when_the_call_raises(self, rt: DirectRuntime) -> None:
        idle = rt.current

        def fails() -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            call(rt, Task("a"), fails)
        assert rt.current is idle

    def test_in_guest_mode_is_nobody_who_made_a_call(self, rt: DirectRuntime) -> None:
        vcpu, idle = Task("vcpu"), rt.current

        def run() -> None:
            with rt.guest_mode():
                assert rt.current is idle
            assert rt.current is vcpu

        call(rt, vcpu, run)

    def test_is_restored_when_the_guest_raises(self, rt: DirectRuntime) -> None:
        vcpu, idle = Task("vcpu"), rt.current

        def run() -> None:
            with pytest.raises(KeyboardInterrupt), rt.guest_mode():
                raise KeyboardInterrupt
            assert rt.current is vcpu

        call(rt, vcpu, run)
        assert rt.current is idle

    def test_two_hosts_share_nothing(self, rt: DirectRuntime) -> None:
        assert rt.current is not DirectRuntime().current


class TestMutex:
    def test_asserts_that_the_current_task_holds_it(self, rt: DirectRuntime) -> None:
        lock = rt.mutex("slots_lock")
        with pytest.raises(AssertionError, match="slots_lock must be held by"):
            lock.assert_held()
        with lock:
            lock.assert_held()
            with pytest.raises(AssertionError, match="slots_lock"):
                call(rt, Task("other"), lock.assert_held)

    def test_taken_twice_is_a_deadlock(self, rt: DirectRuntime) -> None:
        lock = rt.mutex("slots_lock")
        with lock, pytest.raises(Deadlock, match="slots_lock"), lock:
            pass

    def test_left_held_by_a_task_that_is_gone_is_a_deadlock(self, rt: DirectRuntime) -> None:
        lock = rt.mutex("slots_lock")
        call(rt, Task("leaky"), lock.__enter__)

        def take() -> None:
            with lock:
                pass

        with pytest.raises(Deadlock, match=r"<Task b> waits for slots_lock, which <Task leaky> holds"):
            call(rt, Task("b"), take)

    def test_is_released_when_the_block_raises(self, rt: DirectRuntime) -> None:
        lock = rt.mutex("slots_lock")
        with pytest.raises(KeyboardInterrupt), lock:
            raise KeyboardInterrupt
        with lock:
            lock.assert_held()


class TestRWLock:
    def test_modes_are_told_apart(self, rt: DirectRuntime) -> None:
        lock = rt.rwsem("invalidate_lock")
        with lock.shared:
            lock.assert_held()
            with pytest.raises(AssertionError, match="for writing"):
                lock.assert_exclusive()
        with lock.exclusive:
            lock.assert_held()
            lock.assert_exclusive()
        with pytest.raises(AssertionError, match="invalidate_lock must be held"):
            lock.assert_held()

    def test_readers_share(self, rt: DirectRuntime) -> None:
        lock = rt.rwsem("invalidate_lock")
        call(rt, Task("a"), lock.shared.__enter__)
        call(rt, Task("b"), lock.shared.__enter__)

    def test_a_reader_that_wants_to_write_is_a_deadlock(self, rt: DirectRuntime) -> None:
        lock = rt.rwlock("mmu_lock")
        with lock.shared, pytest.raises(Deadlock, match="mmu_lock"), lock.exclusive:
            pass

    def test_a_writer_that_wants_to_read_is_a_deadlock(self, rt: DirectRuntime) -> None:
        lock = rt.rwsem("mmap_lock")
        with lock.exclusive, pytest.raises(Deadlock, match="mmap_lock"), lock.shared:
            pass


class TestSrcu:
    def test_synchronize_without_readers_returns(self, rt: DirectRuntime) -> None:
        srcu = rt.srcu("kvm->srcu")
        with srcu.read:
            pass
        srcu.synchronize()

    def test_synchronize_inside_a_reader_is_a_deadlock(self, rt: DirectRuntime) -> None:
        srcu = rt.srcu("kvm->srcu")
        with srcu.read, pytest.raises(Deadlock, match="kvm->srcu"):
            srcu.synchronize()


def test_an_atomic_counts(rt: DirectRuntime) -> None:
    counter = rt.atomic("seq", 5)
    assert (counter.read(), counter.add(2), counter.add(-3), counter.read()) == (5, 7, 4, 4)
    counter.set(9)
    assert counter.read() == 9


def test_marks_and_batches_cost_nothing(rt: DirectRuntime) -> None:
    rt.reads(("pte", 0))
    rt.writes(("pte", 0))
    rt.reads_each(("pte",), 0, 1 << 60)
    rt.writes_each(("pte",), 0, 1 << 60)
    rt.resched()
    assert rt.batch(1 << 40) == 1 << 40


class TestTaskWork:
    def test_is_done_when_the_task_leaves(self, rt: DirectRuntime) -> None:
        done: list[str] = []
        lock = rt.mutex("slots_lock")
        task = Task("a")

        def release() -> None:
            with lock:
                done.append(rt.current.name)

        def body() -> None:
            with lock:
                rt.current.work.append(release)
                assert done == []

        call(rt, task, body)
        assert done == ["a"]

    def test_is_done_before_the_guest_runs(self, rt: DirectRuntime) -> None:
        done: list[int] = []

        def body() -> None:
            rt.current.work.append(lambda: done.append(1))
            with rt.guest_mode():
                assert done == [1]

        call(rt, Task("vcpu"), body)

    def test_that_makes_more_work(self, rt: DirectRuntime) -> None:
        done: list[int] = []

        def first() -> None:
            done.append(1)
            rt.current.work.append(lambda: done.append(2))

        call(rt, Task("a"), lambda: rt.current.work.append(first))
        assert done == [1, 2]

    def test_that_fails_doesnt_keep_the_door_shut(self, rt: DirectRuntime) -> None:
        def fails() -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            call(rt, Task("a"), lambda: rt.current.work.append(fails))
        thread = threading.Thread(target=lambda: call(rt, Task("b"), lambda: None))
        thread.start()
        thread.join(10)
        assert not thread.is_alive()


class TestThreads:
    """Two Python threads; each waits for events of the other's, never for time."""

    def test_others_enter_while_a_guest_runs(self, rt: DirectRuntime) -> None:
        in_guest, seen = threading.Event(), threading.Event()

        def vcpu() -> None:
            with rt.guest_mode():
                in_guest.set()
                assert seen.wait(10)

        thread = threading.Thread(target=lambda: call(rt, Task("vcpu"), vcpu))
        thread.start()
        assert in_guest.wait(10)
        call(rt, Task("vmm"), seen.set)
        thread.join(10)
        assert not thread.is_alive()

    def test_a_lock_held_in_guest_mode_is_waited_for(self, rt: DirectRuntime) -> None:
        mutex = rt.mutex("vcpu->mutex")
        in_guest, waiting = threading.Event(), threading.Event()
        order: list[str] = []

        def vcpu() -> None:
            with mutex:
                with rt.guest_mode():
                    in_guest.set()
                    assert waiting.wait(10)
                order.append("vcpu")

        def vmm() -> None:
            waiting.set()
            with mutex:
                order.append("vmm")

        thread = threading.Thread(target=lambda: call(rt, Task("vcpu"), vcpu))
        thread.start()
        assert in_guest.wait(10)
        call(rt, Task("vmm"), vmm)
        thread.join(10)
        assert order == ["vcpu", "vmm"]

    def test_a_lock_held_by_a_guest_of_the_same_thread_is_a_deadlock(self, rt: DirectRuntime) -> None:
        mutex = rt.mutex("vcpu->mutex")

        def take() -> None:
            with mutex:
                pass

        def vcpu() -> None:
            with mutex, rt.guest_mode(), pytest.raises(Deadlock, match="vcpu->mutex"):
                call(rt, Task("vmm"), take)

        call(rt, Task("vcpu"), vcpu)

    def test_guests_nest_in_one_thread(self, rt: DirectRuntime) -> None:
        task = Task("thread")

        def inner() -> None:
            with rt.guest_mode():
                pass

        def outer() -> None:
            with rt.guest_mode():
                call(rt, task, inner)
            assert rt.current is task

        call(rt, task, outer)

    def test_waiting_in_a_circle_is_a_deadlock(self, rt: DirectRuntime) -> None:
        """Each vCPU's thread holds its own mutex and wants the other's; whoever comes second finds out."""
        locks = [rt.mutex("first"), rt.mutex("second")]
        both_in_guest = threading.Barrier(2, timeout=10)
        outcomes: list[str] = []

        def vcpu(own: int) -> None:
            with locks[own]:
                with rt.guest_mode():
                    both_in_guest.wait()
                try:
                    with locks[1 - own]:
                        outcomes.append("got it")
                except Deadlock:
                    outcomes.append("deadlock")

        def body(own: int) -> object:
            return call(rt, Task(f"vcpu{own}"), lambda: vcpu(own))

        threads = [threading.Thread(target=body, args=(own,)) for own in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert sorted(outcomes) == ["deadlock", "got it"]


class TestWaitingForOthers:
    """A task waits for something that no lock stands for, such as a reference to go."""

    def test_alone_it_would_wait_for_ever(self, rt: DirectRuntime) -> None:
        with pytest.raises(Deadlock, match="only> waits for the moon, and no other thread comes"):
            call(rt, Task("only"), lambda: rt.wait_for_others("the moon"))

    def test_another_thread_does_it(self, rt: DirectRuntime) -> None:
        lock, done, waiting = rt.mutex("lock"), threading.Event(), threading.Event()

        def other() -> None:
            waiting.wait()
            call(rt, Task("other"), done.set)

        def waiter() -> None:
            with lock:
                waiting.set()
                while not done.is_set():
                    rt.wait_for_others("other")
                assert rt.current is task

        task, thread = Task("waiter"), threading.Thread(target=other)
        thread.start()
        call(rt, task, waiter)
        thread.join()

    def test_nobody_comes(self, rt: DirectRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(direct, "PATIENCE", 0.0)
        stop = threading.Event()
        thread = threading.Thread(target=stop.wait)
        thread.start()
        try:
            with pytest.raises(Deadlock, match="no other thread comes"):
                call(rt, Task("waiter"), lambda: rt.wait_for_others("a reference"))
        finally:
            stop.set()
            thread.join()

    def test_who_needs_its_lock_waits_until_it_gives_up(self, rt: DirectRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(direct, "PATIENCE", 0.05)
        lock, holds = rt.mutex("lock"), threading.Event()
        got: list[str] = []

        def waiter() -> None:
            with lock:
                holds.set()
                while True:
                    rt.wait_for_others("the other")

        def take() -> None:
            with lock:
                got.append("the lock")

        def other() -> None:
            holds.wait()
            call(rt, Task("other"), take)

        thread = threading.Thread(target=other)
        thread.start()
        with pytest.raises(Deadlock):
            call(rt, Task("waiter"), waiter)
        thread.join()
        assert got == ["the lock"]
