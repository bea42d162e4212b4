# SPDX-License-Identifier: GPL-2.0-or-later
"""Mappings and page tables: placement, splitting, protection, faults, copy on write."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from gmemu.hw.memory import PAGE_SHIFT
from gmemu.mm.address_space import AddressSpace
from gmemu.rules import BusError, SegmentationFault
from gmemu.uapi.mman import PROT_NONE, PROT_READ, PROT_WRITE

from .machine import PAGE, RW, Machine, address, refusal


class TestPlacement:
    def test_mappings_go_downward_and_fill_gaps(self, machine: Machine) -> None:
        process = machine.process()
        first, second, third = (machine.map(process, 4, prot=prot) for prot in (RW, PROT_NONE, RW))
        assert first.start == second.start + 4 == third.start + 8
        machine.unmap(process, second.start, second.end)
        assert machine.map(process, 8, prot=PROT_READ).end == third.start
        assert machine.map(process, 4, prot=PROT_READ).start == second.start

    def test_find_vma_and_overlapping(self, machine: Machine) -> None:
        mm = machine.process().mm
        a = mm.map_region(100, 4, RW, False, None, 0)
        b = mm.map_region(110, 2, RW, False, None, 0)
        assert [mm.find_vma(vpn) for vpn in (99, 100, 103, 104, 110, 112)] == [None, a, a, None, b, None]
        assert mm.overlapping(103, 111) == [a, b]
        assert mm.overlapping(104, 110) == []

    def test_a_full_address_space(self, machine: Machine) -> None:
        mm = machine.process().mm
        assert refusal(lambda: mm.get_unmapped_area(1 << 36)) == "mm.mmap.space"

    def test_a_new_mapping_replaces_what_was_there(self, machine: Machine) -> None:
        process = machine.process()
        vma = machine.map(process, 4)
        process.mm.write(address(vma), b"old" * PAGE)
        start = vma.start + 1
        process.mm.map_region(start, 2, PROT_READ, False, None, 0)
        assert len(process.mm.vmas) == 3
        assert process.mm.read(start << PAGE_SHIFT, 3) == bytes(3)
        process.mm.map_region(start, 2, RW, False, None, 0)
        assert len(process.mm.vmas) == 1


class TestSplitting:
    @pytest.mark.parametrize(
        ("start", "end", "left"),
        [
            (0, 8, []),
            (0, 3, [(3, 8)]),
            (5, 8, [(0, 5)]),
            (2, 6, [(0, 2), (6, 8)]),
            (-2, 3, [(3, 8)]),
            (7, 20, [(0, 7)]),
        ],
    )
    def test_unmapping_keeps_the_rest(self, machine: Machine, start: int, end: int, left: list[tuple[int, int]]) -> None:
        process, mm = (p := machine.process()), p.mm
        base = machine.map(process, 8).start
        mm.write(base * PAGE, bytes(range(8)) * PAGE)
        machine.unmap(process, base + start, base + end)
        assert [(v.start - base, v.end - base) for v in mm.vmas] == left
        kept = {i for s, e in left for i in range(s, e)}
        for i in range(8):
            assert (mm.ptes[base + i] is not None) == (i in kept)
        assert machine.memmap.nr_allocated == len(kept) + 1

    def test_each_part_holds_the_file(self, machine: Machine) -> None:
        file = machine.shmem(8)
        process = machine.process()
        base = machine.map(process, 8, file, shared=True).start
        assert file.count == 2
        machine.unmap(process, base + 2, base + 4)
        assert file.count == 3
        machine.unmap(process, base, base + 2)
        assert file.count == 2
        machine.unmap(process, base, base + 100)
        assert file.count == 1
        assert file.cache.i_mmap == []
        file.put()

    def test_unmapping_across_several_mappings(self, machine: Machine) -> None:
        process = machine.process()
        machine.map(process, 4)
        base = machine.map(process, 4).start
        machine.unmap(process, base + 2, base + 6)
        assert [(v.start - base, v.end - base) for v in process.mm.vmas] == [(0, 2), (6, 8)]

    def test_a_file_released_by_munmap_is_released_after_mmap_lock(self, machine: Machine) -> None:
        """fput() puts the release off until the task holds no lock: a guest_memfd's takes slots_lock."""
        file = machine.shmem(1)
        process = machine.process()
        vma = machine.map(process, 1, file, shared=True)
        process.mm.write(address(vma), b"x")
        file.put()
        with process.mm.mmap_lock.exclusive:
            process.mm.unmap_region(vma.start, vma.end)
            assert file.cache.nrpages == 1
        machine.rt.task_work_run()
        assert file.cache.nrpages == 0


class TestProtection:
    def test_splits_and_is_enforced(self, machine: Machine) -> None:
        process, mm = (p := machine.process()), p.mm
        base = machine.map(process, 4).start
        mm.write(base * PAGE, b"data" * PAGE)
        machine.protect(process, base + 1, base + 3, PROT_READ)
        assert [(v.start - base, v.end - base, v.prot) for v in mm.vmas] == [(0, 1, RW), (1, 3, PROT_READ), (3, 4, RW)]
        assert refusal(lambda: mm.write((base + 1) * PAGE, b"x")) == "mm.fault.protection"
        assert mm.read((base + 1) * PAGE, 4) == b"data"
        mm.write(base * PAGE, b"x")

    def test_nothing_may_be_read_under_prot_none(self, machine: Machine) -> None:
        process, mm = (p := machine.process()), p.mm
        vma = machine.map(process, 1)
        mm.write(address(vma), b"kept")
        machine.protect(process, vma.start, vma.end, PROT_NONE)
        with pytest.raises(SegmentationFault):
            mm.read(address(vma), 1)
        assert mm.pte(vma.start) is None
        machine.protect(process, vma.start, vma.end, RW)
        assert mm.read(address(vma), 4) == b"kept"

    def test_a_page_that_stays_private_isnt_copied(self, machine: Machine) -> None:
        process, mm = (p := machine.process()), p.mm
        vma = machine.map(process, 1)
        mm.write(address(vma), b"a")
        before = mm.pte(vma.start)
        machine.protect(process, vma.start, vma.end, PROT_READ)
        machine.protect(process, vma.start, vma.end, RW)
        assert mm.pte(vma.start) == (before and (before[0], False))
        mm.write(address(vma), b"b")
        assert mm.pte(vma.start) == before

    def test_a_pinned_page_isnt_copied_either(self, machine: Machine) -> None:
        """What DMA reads must stay what the process writes, through any number of mprotect() calls."""
        process, mm = (p := machine.process()), p.mm
        vma = machine.map(process, 1)
        mm.write(address(vma), b"a")
        entry = mm.pte(vma.start)
        assert entry is not None
        machine.memmap.pin(entry[0])
        machine.protect(process, vma.start, vma.end, PROT_READ)
        machine.protect(process, vma.start, vma.end, RW)
        mm.write(address(vma), b"b")
        assert mm.pte(vma.start) == entry
        assert machine.memory.read(entry[0] * PAGE, 1) == b"b"
        machine.memmap.unpin(entry[0])

    def test_a_gap_is_refused_after_what_came_before_it(self, machine: Machine) -> None:
        process, mm = (p := machine.process()), p.mm
        base = mm.map_region(100, 2, RW, False, None, 0).start
        assert refusal(lambda: machine.protect(process, base, base + 3, PROT_READ)) == "mm.mprotect.unmapped"
        assert mm.vmas[0].prot == PROT_READ
        assert refusal(lambda: machine.protect(process, base - 1, base + 1, RW)) == "mm.mprotect.unmapped"
        assert mm.vmas[0].prot == PROT_READ


class TestFaults:
    def test_nothing_mapped_is_a_segmentation_fault(self, machine: Machine) -> None:
        mm = machine.process().mm
        for access in (lambda: mm.read(0x5000, 1), lambda: mm.write(0x5000, b"x")):
            with pytest.raises(SegmentationFault) as caught:
                access()
            assert caught.value.address == 0x5000
            assert caught.value.rule.id == "mm.fault.unmapped"

    def test_reading_maps_the_zero_page(self, machine: Machine) -> None:
        process, mm = (p := machine.process()), p.mm
        vma = machine.map(process, 2)
        before = machine.memmap.nr_allocated
        assert mm.read(address(vma), 2 * PAGE) == bytes(2 * PAGE)
        assert mm.pte(vma.start) == (machine.memmap.zero_pfn, False)
        assert machine.memmap.nr_allocated == before
        assert machine.memmap.refcount(machine.memmap.zero_pfn) == 1
        mm.write(address(vma), b"now it has a page")
        entry = mm.pte(vma.start)
        assert entry is not None
        assert entry[0] != machine.memmap.zero_pfn
        assert entry[1]
        assert mm.read(address(vma, 1), 5) == bytes(5)

    def test_an_access_across_pages_stops_at_the_first_bad_one(self, machine: Machine) -> None:
        process, mm = (p := machine.process()), p.mm
        vma = machine.map(process, 2)
        end = vma.end * PAGE
        with pytest.raises(SegmentationFault) as caught:
            mm.write(end - 4, b"12345678")
        assert caught.value.address == end
        assert mm.read(end - 4, 4) == b"1234"

    def test_no_memory_is_a_bus_error(self, machine: Machine) -> None:
        process = machine.process()
        vma = machine.map(process, machine.memmap.nr_pages + 1)
        with pytest.raises(BusError) as caught:
            process.mm.write(address(vma), bytes((machine.memmap.nr_pages + 1) * PAGE))
        assert caught.value.rule.id == "mm.fault.oom"

    def test_a_large_access_faults_in_runs(self, machine: Machine) -> None:
        process, mm = (p := machine.process()), p.mm
        vma = machine.map(process, 1000)
        mm.write(address(vma), b"q" * 1000 * PAGE)
        assert len(mm.ptes) == 1
        assert mm.read(address(vma, 999), 1) == b"q"

    def test_shared_file_pages_are_the_files(self, machine: Machine) -> None:
        file = machine.shmem(2)
        process, mm = (p := machine.process()), p.mm
        one, two = machine.map(process, 2, file, shared=True), machine.map(process, 1, file, shared=True, pgoff=1)
        mm.write(address(one, 1), b"seen")
        assert mm.read(address(two), 4) == b"seen"
        pfn = file.cache.pfn(1)
        assert pfn is not None
        machine.lru.lru_add_drain_all()
        assert (machine.memmap.refcount(pfn), machine.memmap.mapcount(pfn)) == (3, 2)
        machine.unmap(process, one.start, one.end)
        assert (machine.memmap.refcount(pfn), machine.memmap.mapcount(pfn)) == (2, 1)
        file.put()

    def test_a_shared_page_read_first_can_be_written_later(self, machine: Machine) -> None:
        file = machine.shmem(1)
        process, mm = (p := machine.process()), p.mm
        vma = machine.map(process, 1, file, shared=True)
        mm.read(address(vma), 1)
        entry = mm.pte(vma.start)
        assert entry is not None
        assert not entry[1]
        mm.write(address(vma), b"w")
        assert mm.pte(vma.start) == (entry[0], True)
        file.put()

    def test_a_private_file_page_is_copied_by_the_first_write(self, machine: Machine) -> None:
        file = machine.shmem(2)
        process, mm = (p := machine.process()), p.mm
        shared, private = machine.map(process, 2, file, shared=True), machine.map(process, 2, file)
        mm.write(address(shared), b"file")
        assert mm.read(address(private), 4) == b"file"
        mm.write(address(private) + 1, b"XX")
        assert mm.read(address(private), 4) == b"fXXe"
        assert mm.read(address(shared), 4) == b"file"
        mm.write(address(private, 1), b"never read before")
        assert mm.read(address(shared, 1), 5) == bytes(5)
        pfn = file.cache.pfn(0)
        assert pfn is not None
        assert machine.memmap.mapcount(pfn) == 1
        file.put()

    def test_beyond_the_file(self, machine: Machine) -> None:
        file = machine.shmem(1)
        process = machine.process()
        vma = machine.map(process, 2, file, shared=True)
        with pytest.raises(BusError) as caught:
            process.mm.read(address(vma, 1) + 5, 1)
        assert caught.value.rule.id == "mm.fault.eof"
        assert caught.value.address == address(vma, 1) + 5
        file.put()


class TestNotifiers:
    class Listener:
        """Writes down which invalidations began and ended, and whether the entries were there then."""

        def __init__(self, mm: AddressSpace) -> None:
            self.mm = mm
            self.heard: list[tuple[str, int, int]] = []
            mm.notifiers.append(self)

        def invalidate_range(self, start_vpn: int, end_vpn: int) -> AbstractContextManager[None]:
            @contextmanager
            def invalidation() -> Iterator[None]:
                self.heard.append(("start", start_vpn, end_vpn))
                assert not self.mm.ptes.empty(start_vpn, end_vpn)
                yield
                self.heard.append(("end", start_vpn, end_vpn))

            return invalidation()

    def test_hear_of_entries_before_they_go(self, machine: Machine) -> None:
        process, mm = (p := machine.process()), p.mm
        vma = machine.map(process, 4)
        mm.write(address(vma), b"x" * 4 * PAGE)
        listener, base = self.Listener(mm), vma.start
        machine.unmap(process, base, base + 1)
        machine.protect(process, base + 1, base + 2, PROT_READ)
        mm.zap_page_range(base + 2, base + 3)
        expected = [(what, base + i, base + i + 1) for i in range(3) for what in ("start", "end")]
        assert listener.heard == expected
        mm.notifiers.clear()

    def test_hear_of_copies(self, machine: Machine) -> None:
        process, mm = (p := machine.process()), p.mm
        vma = machine.map(process, 1)
        mm.read(address(vma), 1)
        listener = self.Listener(mm)
        mm.write(address(vma), b"x")
        assert [what for what, _, _ in listener.heard] == ["start", "end"]
        mm.notifiers.clear()

    def test_hear_of_fork(self, machine: Machine) -> None:
        process, mm = (p := machine.process()), p.mm
        vma = machine.map(process, 1)
        mm.write(address(vma), b"x")
        listener = self.Listener(mm)
        machine.fork(process)
        assert [what for what, _, _ in listener.heard] == ["start", "end"]
        mm.notifiers.clear()


def test_write_only_and_read_only_anonymous(machine: Machine) -> None:
    process, mm = (p := machine.process()), p.mm
    vma = machine.map(process, 1, prot=PROT_READ)
    assert refusal(lambda: mm.write(address(vma), b"x")) == "mm.fault.protection"
    other = machine.map(process, 1, prot=PROT_WRITE)
    mm.write(address(other), b"x")
