# SPDX-License-Identifier: GPL-2.0-or-later
"""The host's own accesses to a guest_memfd mapping, and how they meet the guest's."""

from __future__ import annotations

from errno import EINVAL, ENODEV

import pytest

from gmemu import BusError, GuestMemfd, Mapping
from gmemu.mm.gup import get_user_pages_fast, put_pages
from gmemu.uapi.mman import (
    FOLL_LONGTERM,
    FOLL_PIN,
    FOLL_WRITE,
    MADV_COLLAPSE,
    MADV_DONTNEED,
    MADV_HUGEPAGE,
    MADV_HWPOISON,
    MAP_PRIVATE,
    MAP_SHARED_VALIDATE,
)

from ..world import BOTH, DEFAULT, MMAP, PAGE, World, errno_of, every_profile, fill, in_profiles, load, refusal, store

MAPPABLE = ("linux-6.18", "linux-7.3", "inplace-v13")


def mapped(world: World, pages: int = 4, flags: int = BOTH) -> tuple[GuestMemfd, Mapping]:
    """A guest_memfd of a default VM, and all of it mapped."""
    gmem = world.vm(DEFAULT).create_guest_memfd(pages * PAGE, flags)
    return gmem, gmem.mmap()


class TestMmap:
    @every_profile
    def test_needs_the_flag(self, world: World) -> None:
        gmem = world.vm().create_guest_memfd(PAGE)
        assert errno_of(gmem.mmap) == ENODEV
        expected = "gmem.mmap.flag" if world.profile.gmem_flags else "mm.mmap.unsupported"
        assert refusal(gmem.mmap) == expected
        assert refusal(lambda: gmem.mmap(flags=MAP_PRIVATE)) == expected

    @in_profiles(*MAPPABLE)
    def test_must_be_shared(self, world: World) -> None:
        gmem, _ = mapped(world)
        assert refusal(lambda: gmem.mmap(flags=MAP_PRIVATE)) == "gmem.mmap.private"
        assert errno_of(lambda: gmem.mmap(flags=MAP_PRIVATE)) == EINVAL
        gmem.mmap(flags=MAP_SHARED_VALIDATE)

    @in_profiles(*MAPPABLE)
    def test_may_be_larger_than_the_file(self, world: World) -> None:
        """What lies beyond is SIGBUS, and what lies below stays as it is."""
        gmem, _ = mapped(world, 2)
        mapping = gmem.mmap(8 * PAGE)
        mapping[: 2 * PAGE] = b"d" * 2 * PAGE
        with pytest.raises(BusError) as caught:
            mapping[2 * PAGE] = 1
        assert (caught.value.rule.id, caught.value.address) == ("gmem.fault.eof", mapping.address + 2 * PAGE)
        assert refusal(lambda: mapping[8 * PAGE - 1]) == "gmem.fault.eof"
        assert mapping[: 2 * PAGE] == b"d" * 2 * PAGE

    @in_profiles(*MAPPABLE)
    def test_from_the_middle(self, world: World) -> None:
        gmem, whole = mapped(world)
        fill(whole, b"0123")
        whole[2 * PAGE] = ord("X")
        part = gmem.mmap(PAGE, 2 * PAGE)
        assert part[:4] == b"X123"

    @in_profiles(*MAPPABLE)
    def test_keeps_the_file_and_its_memory(self, world: World) -> None:
        gmem, mapping = mapped(world)
        fill(mapping, b"keep")
        gmem.close()
        assert mapping[-4:] == b"keep"
        mapping.close()
        assert world.host.memmap.nr_allocated == 1 or world.host.lru.held()


@in_profiles(*MAPPABLE)
class TestFaults:
    def test_a_page_is_zero_at_first_and_stays_what_it_is(self, world: World) -> None:
        _, mapping = mapped(world)
        assert mapping[:] == bytes(4 * PAGE)
        mapping[PAGE + 3] = 7
        mapping.madvise(MADV_DONTNEED)
        assert mapping[PAGE + 3] == 7

    def test_a_file_that_starts_private(self, world: World) -> None:
        _, mapping = mapped(world, flags=MMAP)
        for access in (lambda: mapping[0], lambda: mapping.__setitem__(PAGE, 1)):
            with pytest.raises(BusError) as caught:
                access()
            assert caught.value.rule.id == "gmem.fault.private"
            assert "private" in caught.value.why

    def test_a_page_that_was_allocated_by_fallocate_is_zeroed_when_touched(self, world: World) -> None:
        """Allocation doesn't zero; the memory was somebody else's."""
        gmem, mapping = mapped(world, 1)
        memmap = world.host.memmap
        [(pfn, _)] = memmap.alloc(1)
        memmap.put(pfn)
        gmem.allocate(0, PAGE)
        world.host.memory.write(world.pfn(gmem, 0) * PAGE, b"left over")
        assert mapping[:9] == bytes(9)

    def test_guest_and_host_write_the_same_page(self, world: World) -> None:
        vm = world.vm(DEFAULT)
        gmem = vm.create_guest_memfd(2 * PAGE, BOTH)
        mapping = gmem.mmap()
        vm.set_user_memory_region2(0, 1 << 32, 2 * PAGE, gmem=gmem)
        vcpu = vm.create_vcpu()
        fill(mapping, b"\xaa")
        assert load(vcpu, 1 << 32, PAGE) == b"\xaa" * PAGE
        store(vcpu, (1 << 32) + PAGE, b"\xff" * PAGE)
        assert mapping[PAGE:] == b"\xff" * PAGE
        assert mapping[:PAGE] == b"\xaa" * PAGE

    def test_no_memory(self, world: World) -> None:
        _, mapping = mapped(world)
        memmap = world.host.memmap
        [(hog, count)] = memmap.alloc(memmap.nr_pages - memmap.nr_allocated - 1)
        assert refusal(lambda: mapping[0]) == "mm.fault.oom"
        memmap.put(hog, count)
        assert mapping[0] == 0

    def test_huge_pages_arent_made(self, world: World) -> None:
        _, mapping = mapped(world, 512)
        mapping.madvise(MADV_HUGEPAGE)
        assert refusal(lambda: mapping.madvise(MADV_COLLAPSE)) == "mm.madvise.collapse"

    def test_a_system_call_on_a_private_page_is_efault(self, world: World) -> None:
        vm = world.vm(DEFAULT)
        gmem = vm.create_guest_memfd(PAGE, MMAP)
        mapping = gmem.mmap()
        assert refusal(lambda: vm.ioctl(0x4020AED2, mapping.address)) == "mm.uaccess"


@in_profiles(*MAPPABLE)
class TestPins:
    def test_a_longterm_pin_keeps_the_old_page_when_a_hole_is_punched(self, world: World) -> None:
        """The punch succeeds; the holder has the old page and its data, mapping and guest have a new one."""
        vm = world.vm(DEFAULT)
        gmem = vm.create_guest_memfd(PAGE, BOTH)
        mapping = gmem.mmap()
        vm.set_user_memory_region2(0, 0, PAGE, gmem=gmem)
        vcpu = vm.create_vcpu()
        mapping[:4] = b"data"
        mm, flags = world.host.init.mm, FOLL_PIN | FOLL_WRITE | FOLL_LONGTERM
        runs = get_user_pages_fast(mm, mapping.address, 1, flags)
        gmem.punch_hole(0, PAGE)
        assert world.host.memory.read(runs[0][0] * PAGE, 4) == b"data"
        assert mapping[:4] == bytes(4)
        assert load(vcpu, 0, 4) == bytes(4)
        put_pages(mm, runs, flags)

    def test_a_private_page_cant_be_pinned(self, world: World) -> None:
        _, mapping = mapped(world, flags=MMAP)
        assert refusal(lambda: get_user_pages_fast(world.host.init.mm, mapping.address, 1, FOLL_PIN)) == "mm.gup.fault"


@in_profiles(*MAPPABLE)
class TestMemoryFailure:
    def test_by_madvise(self, world: World) -> None:
        """SIGBUS to who wrote the page; else EBUSY, as guest_memfd answers MF_DELAYED.  Bad it is for host and guest."""
        vm = world.vm(DEFAULT)
        gmem = vm.create_guest_memfd(2 * PAGE, BOTH)
        mapping = gmem.mmap()
        vm.set_user_memory_region2(0, 0, 2 * PAGE, gmem=gmem)
        vcpu = vm.create_vcpu()
        fill(mapping, b"data")
        load(vcpu, 0)
        assert refusal(lambda: mapping.madvise(MADV_HWPOISON)) == "mm.fault.hwpoison"
        assert refusal(lambda: mapping[0]) == "mm.fault.hwpoison"
        assert refusal(lambda: gmem.mmap()[0]) == "mm.fault.hwpoison"
        assert mapping[PAGE : PAGE + 4] == b"data"  # the call stopped at the first page
        assert load(vcpu, PAGE, 4) == b"data"

    def test_a_new_page_in_the_old_place(self, world: World) -> None:
        """A hole brings a new page, for new mappings; the old one keeps its mark until it's given up."""
        gmem, mapping = mapped(world, 1)
        assert mapping[0] == 0
        assert refusal(lambda: mapping.madvise(MADV_HWPOISON)) == "mm.hwpoison.kept"
        gmem.punch_hole(0, PAGE)
        assert gmem.mmap()[:4] == bytes(4)
        assert refusal(lambda: mapping[0]) == "mm.fault.hwpoison"
        mapping.madvise(MADV_DONTNEED)
        assert mapping[:4] == bytes(4)

    def test_the_file_goes_and_the_page_stays_lost(self, world: World) -> None:
        gmem, mapping = mapped(world, 1)
        fill(mapping, b"data")
        pfn = world.pfn(gmem, 0)
        assert refusal(lambda: mapping.madvise(MADV_HWPOISON)) == "mm.fault.hwpoison"
        mapping.close()
        gmem.close()
        world.drain()
        assert world.host.memmap.refcount(pfn) == 1


@in_profiles(*MAPPABLE)
def test_which_locks_a_fault_takes(world: World) -> None:
    """Only where attributes can change does a fault need the invalidate lock; before, the folio's does for all."""
    _, mapping = mapped(world)
    mapping[0] = 1
    assert (("mmap_lock", "gmem:invalidate_lock") in world.lockdep.edges) == world.profile.in_place
    assert ("folio_lock", "page_table_lock") in world.lockdep.edges
    assert ("gmem:invalidate_lock", "page_table_lock") not in world.lockdep.edges


def test_fork_shares_the_mapping(world: World) -> None:
    _, mapping = mapped(world)
    fill(mapping, b"both")
    child = world.fork()
    assert child.load(mapping.address, 4) == b"both"
    child.store(mapping.address, b"kid!")
    assert mapping[:4] == b"kid!"
