# SPDX-License-Identifier: GPL-2.0-or-later
"""Lock order as it's recorded: edges, cycles, and what the report says."""

from __future__ import annotations

import pytest

from gmemu.sync import Deadlock, DirectRuntime, Lockdep


@pytest.fixture
def lockdep() -> Lockdep:
    return Lockdep()


@pytest.fixture
def rt(lockdep: Lockdep) -> DirectRuntime:
    return DirectRuntime(lockdep)


def test_nesting_makes_an_edge_from_every_lock_held(rt: DirectRuntime, lockdep: Lockdep) -> None:
    a, b, c = rt.mutex("a"), rt.rwsem("b"), rt.spinlock("c")
    with a, b.shared, c:
        pass
    assert set(lockdep.edges) == {("a", "b"), ("a", "c"), ("b", "c")}


def test_one_after_the_other_makes_none(rt: DirectRuntime, lockdep: Lockdep) -> None:
    a, b = rt.mutex("a"), rt.rwlock("b")
    with a:
        pass
    with b.exclusive:
        pass
    assert not lockdep.edges


def test_what_is_released_first_is_no_longer_held(rt: DirectRuntime, lockdep: Lockdep) -> None:
    a, b, c = rt.mutex("a"), rt.mutex("b"), rt.mutex("c")
    a.__enter__()
    with b:
        a.__exit__(None, None, None)
        with c:
            pass
    assert set(lockdep.edges) == {("a", "b"), ("b", "c")}


def test_opposite_orders_are_a_cycle(rt: DirectRuntime, lockdep: Lockdep) -> None:
    mmap_lock, invalidate_lock = rt.rwsem("mmap_lock"), rt.rwsem("invalidate_lock")
    with mmap_lock.shared, invalidate_lock.shared:
        pass
    assert lockdep.cycles() == []
    with invalidate_lock.exclusive, mmap_lock.shared:
        pass
    assert lockdep.cycles() == [["invalidate_lock", "mmap_lock"]]
    assert "possible circular locking dependency: invalidate_lock --> mmap_lock --> invalidate_lock" in lockdep.report()


def test_a_cycle_of_three_is_told_once(rt: DirectRuntime, lockdep: Lockdep) -> None:
    locks = {name: rt.mutex(name) for name in "abc"}
    for outer, inner in ("ab", "bc", "ca"):
        with locks[outer], locks[inner]:
            pass
    assert lockdep.cycles() == [["a", "b", "c"]]


def test_two_locks_of_one_name_may_nest(rt: DirectRuntime, lockdep: Lockdep) -> None:
    with rt.mutex("vcpu->mutex"), rt.mutex("vcpu->mutex"):
        pass
    assert lockdep.cycles() == []


def test_waiting_for_readers_is_an_edge_too(rt: DirectRuntime, lockdep: Lockdep) -> None:
    slots_lock, srcu = rt.mutex("slots_lock"), rt.srcu("kvm->srcu")
    with slots_lock:
        srcu.synchronize()
    assert set(lockdep.edges) == {("slots_lock", "kvm->srcu")}
    with srcu.read, slots_lock:
        pass
    assert lockdep.cycles() == [["kvm->srcu", "slots_lock"]]


def test_a_reader_waits_for_nobody(rt: DirectRuntime, lockdep: Lockdep) -> None:
    mmap_lock, srcu = rt.rwsem("mmap_lock"), rt.srcu("kvm->srcu")
    with mmap_lock.exclusive, srcu.read:
        pass
    with srcu.read, mmap_lock.shared:
        pass
    assert set(lockdep.edges) == {("kvm->srcu", "mmap_lock")}


def test_a_lock_that_wasnt_got_isnt_held(rt: DirectRuntime, lockdep: Lockdep) -> None:
    a, b = rt.mutex("a"), rt.mutex("b")
    with a:
        with pytest.raises(Deadlock), a:
            pass
        with b:
            pass
    with b:
        pass
    assert set(lockdep.edges) == {("a", "b")}


def test_watched_locks_still_assert(rt: DirectRuntime) -> None:
    mutex, rwsem = rt.mutex("a"), rt.rwsem("b")
    with pytest.raises(AssertionError):
        mutex.assert_held()
    with mutex, rwsem.exclusive:
        mutex.assert_held()
        rwsem.assert_held()
        rwsem.assert_exclusive()


def test_the_report_names_who_took_it(rt: DirectRuntime, lockdep: Lockdep) -> None:
    with rt.mutex("a"), rt.mutex("b"):
        pass
    assert lockdep.report() == "a -> b  (by swapper)"
