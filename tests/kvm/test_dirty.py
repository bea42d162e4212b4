# SPDX-License-Identifier: GPL-2.0-or-later
"""Dirty logs that user space clears by itself."""

from __future__ import annotations

from errno import EFAULT
from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from gmemu import Cap, Mapping, Vcpu, Vm
from gmemu.kvm.dirty import DirtyBitmap, _runs
from gmemu.uapi.kvm import (
    KVM_CLEAR_DIRTY_LOG,
    KVM_GET_DIRTY_LOG,
    KVM_MEM_LOG_DIRTY_PAGES,
    kvm_clear_dirty_log,
    kvm_dirty_log,
)

from .test_memslots import plain
from .world import PAGE, World, errno_of, refusal, store

NPAGES = 70


class Log:
    """A VM whose slot 0 of 70 pages is logged, with KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 set to `manual`."""

    def __init__(self, world: World, manual: int) -> None:
        self.vm: Vm
        self.vcpu: Vcpu
        self.vm, self.vcpu, self.memory = plain(world, NPAGES)
        self.vm.enable_cap(Cap.MANUAL_DIRTY_LOG_PROTECT2, manual)
        self.set_flags(KVM_MEM_LOG_DIRTY_PAGES)
        self.bitmap = Mapping(self.vm.door, self.vm.door.mmap(0, PAGE, 3, 0x22), PAGE)

    def set_flags(self, flags: int) -> None:
        self.vm.set_user_memory_region2(0, 0, NPAGES * PAGE, userspace_addr=self.memory.address, flags=flags)

    def get(self) -> set[int]:
        """KVM_GET_DIRTY_LOG."""
        self.vm.ioctl(KVM_GET_DIRTY_LOG, bytearray(kvm_dirty_log(dirty_bitmap=self.bitmap.address).pack()))
        bits = int.from_bytes(self.bitmap[:16], "little")
        return {i for i in range(128) if bits >> i & 1}

    def clear(self, pages: set[int], first: int = 0, count: int = NPAGES) -> None:
        """KVM_CLEAR_DIRTY_LOG."""
        self.bitmap[:16] = sum(1 << page - first for page in pages).to_bytes(16, "little")
        self.clear_by(self.bitmap.address, first, count)

    def clear_by(self, address: int, first: int, count: int) -> None:
        log = kvm_clear_dirty_log(num_pages=count, first_page=first, dirty_bitmap=address)
        self.vm.ioctl(KVM_CLEAR_DIRTY_LOG, bytearray(log.pack()))


def test_reading_clears_nothing(world: World) -> None:
    log = Log(world, 1)
    store(log.vcpu, 2 * PAGE, b"x")
    assert log.get() == log.get() == {2}


def test_only_what_is_named_is_cleared_and_seen_again(world: World) -> None:
    log = Log(world, 1)
    for page in (2, 3, 66):
        store(log.vcpu, page * PAGE, b"x")
    log.clear({2, 5})
    assert log.get() == {3, 66}
    log.clear({66}, first=64, count=6)
    assert log.get() == {3}
    store(log.vcpu, 2 * PAGE, b"y")
    store(log.vcpu, 3 * PAGE, b"y")
    assert log.get() == {2, 3}


def test_all_is_dirty_at_first(world: World) -> None:
    log = Log(world, 3)
    assert log.get() == set(range(NPAGES))
    store(log.vcpu, 0, b"x")
    log.clear(set(range(NPAGES)))
    assert log.get() == set()
    store(log.vcpu, 69 * PAGE, b"x")
    assert log.get() == {69}


def test_a_log_that_was_there_stays_as_it_is(world: World) -> None:
    log = Log(world, 1)
    store(log.vcpu, 0, b"x")
    log.vm.enable_cap(Cap.MANUAL_DIRTY_LOG_PROTECT2, 3)
    assert log.get() == {0}
    log.set_flags(0)
    log.set_flags(KVM_MEM_LOG_DIRTY_PAGES)
    assert log.get() == set(range(NPAGES))


def test_ranges_are_whole_longs(world: World) -> None:
    log = Log(world, 1)
    for first, count in ((1, 1), (0, 65), (0, 71), (64, 7), (128, 0)):
        assert refusal(partial(log.clear, set(), first, count)) == "kvm.dirty-log.clear-range"
    for first, count in ((0, 64), (64, 6), (0, 70), (0, 0), (64, 0)):
        log.clear(set(), first, count)


def test_a_bitmap_that_is_not_there(world: World) -> None:
    log = Log(world, 1)
    store(log.vcpu, 0, b"x")
    assert errno_of(lambda: log.clear_by(0x1000, 0, NPAGES)) == EFAULT
    assert log.get() == {0}


@given(st.sets(st.integers(0, 199)), st.sets(st.integers(0, 63)), st.integers(0, 1))
def test_a_bitmap_is_a_set(pages: set[int], mask: set[int], first_long: int) -> None:
    bitmap, first = DirtyBitmap(200), 64 * first_long
    for page in pages:
        bitmap.mark(page)
    assert {page for page in range(200) if page in bitmap} == pages
    assert [page for start, end in _runs(bytes(bitmap.bits)) for page in range(start, end)] == sorted(pages)
    cleared = bitmap.clear(first, sum(1 << bit for bit in mask).to_bytes(8, "little"))
    named = {first + bit for bit in mask}
    assert {first + bit for bit in range(64) if int.from_bytes(cleared, "little") >> bit & 1} == pages & named
    assert {page for page in range(200) if page in bitmap} == pages - named
