# SPDX-License-Identifier: GPL-2.0-or-later
"""fallocate on a guest_memfd, and what happens when the file is closed."""

from __future__ import annotations

from errno import EINTR, EINVAL, ENOMEM, EOPNOTSUPP

import pytest

from gmemu import ExitReason
from gmemu.kvm.guest_memfd.invalidate import Filter
from gmemu.uapi.kvm import KVM_RUN
from gmemu.uapi.mman import (
    FALLOC_FL_COLLAPSE_RANGE,
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_UNSHARE_RANGE,
    FALLOC_FL_ZERO_RANGE,
)

from ..world import BOTH, PAGE, World, errno_of, every_profile, fill, load, refusal, store, touch

PUNCH = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
KEEP = FALLOC_FL_KEEP_SIZE


class TestFallocateChecks:
    @pytest.mark.parametrize(
        ("mode", "rule"),
        [
            (0, "gmem.fallocate.keep-size"),
            (FALLOC_FL_PUNCH_HOLE, "fs.fallocate.mode"),
            (FALLOC_FL_ZERO_RANGE, "gmem.fallocate.keep-size"),
            (FALLOC_FL_COLLAPSE_RANGE, "gmem.fallocate.keep-size"),
            (FALLOC_FL_UNSHARE_RANGE, "gmem.fallocate.keep-size"),
            (FALLOC_FL_ZERO_RANGE | KEEP, "gmem.fallocate.mode"),
            (FALLOC_FL_UNSHARE_RANGE | KEEP, "gmem.fallocate.mode"),
            (KEEP, ""),
            (PUNCH, ""),
        ],
    )
    @every_profile
    def test_modes(self, world: World, mode: int, rule: str) -> None:
        gmem = world.gmem(world.vm(), 4, 0)
        assert refusal(lambda: gmem.fallocate(mode, 0, PAGE)) == rule
        assert errno_of(lambda: gmem.fallocate(mode, 0, PAGE)) == (EOPNOTSUPP if rule else 0)

    @every_profile
    def test_modes_come_before_alignment_and_that_before_the_end(self, world: World) -> None:
        gmem = world.gmem(world.vm(), 4, 0)
        beyond = 4 * PAGE + 1
        assert refusal(lambda: gmem.fallocate(0, beyond, 1)) == "gmem.fallocate.keep-size"
        assert refusal(lambda: gmem.fallocate(KEEP | FALLOC_FL_ZERO_RANGE, beyond, 1)) == "gmem.fallocate.mode"
        assert refusal(lambda: gmem.fallocate(KEEP, beyond, 1)) == "gmem.fallocate.unaligned"
        assert refusal(lambda: gmem.fallocate(KEEP, 4 * PAGE, PAGE)) == "gmem.fallocate.eof"
        assert refusal(lambda: gmem.fallocate(KEEP, -PAGE, PAGE)) == "fs.fallocate.range"
        assert refusal(lambda: gmem.fallocate(KEEP, 0, 0)) == "fs.fallocate.range"

    @pytest.mark.parametrize(
        ("offset", "length"),
        [(1, PAGE), (0, 1), (PAGE - 1, PAGE), (0, PAGE + 1), (PAGE, 2 * PAGE - 1), (8, 8), (3 * PAGE + 4, PAGE - 4)],
    )
    @pytest.mark.parametrize("mode", [KEEP, PUNCH])
    def test_alignment(self, world: World, mode: int, offset: int, length: int) -> None:
        gmem = world.gmem(world.vm(), 4)
        assert refusal(lambda: gmem.fallocate(mode, offset, length)) == "gmem.fallocate.unaligned"
        assert errno_of(lambda: gmem.fallocate(mode, offset, length)) == EINVAL

    @pytest.mark.parametrize(("offset", "length"), [(4, 1), (3, 2), (0, 5), (100, 1), (0, 1 << 40)])
    @every_profile
    def test_beyond_the_end_only_holes_can_be_punched(self, world: World, offset: int, length: int) -> None:
        gmem = world.gmem(world.vm(), 4, 0)
        assert refusal(lambda: gmem.allocate(offset * PAGE, length * PAGE)) == "gmem.fallocate.eof"
        gmem.punch_hole(offset * PAGE, length * PAGE)
        assert world.inode(gmem).mapping.nrpages == 0


class TestAllocation:
    def test_what_is_there_stays(self, world: World) -> None:
        gmem = world.gmem(world.vm(), 4)
        mapping = gmem.mmap()
        mapping[PAGE : PAGE + 4] = b"data"
        gmem.allocate(0, 4 * PAGE)
        assert world.inode(gmem).mapping.nrpages == 4
        assert mapping[PAGE : PAGE + 4] == b"data"

    def test_works_on_private_pages_and_doesnt_convert(self, world: World) -> None:
        gmem = world.gmem(world.vm(), 4, 0)
        gmem.allocate(0, 4 * PAGE)
        assert world.inode(gmem).private_run(0, 4) == 4

    def test_a_signal(self, world: World) -> None:
        gmem = world.gmem(world.vm(), 4)
        world.door.task.pending_signals = 1
        assert errno_of(lambda: gmem.allocate(0, 4 * PAGE)) == EINTR
        world.door.task.pending_signals = 0
        gmem.allocate(0, 4 * PAGE)

    def test_what_was_allocated_before_memory_ran_out_stays(self, world: World) -> None:
        gmem = world.gmem(world.vm(), 4)
        gmem.allocate(PAGE, PAGE)
        memmap = world.host.memmap
        [(hog, count)] = memmap.alloc(memmap.nr_pages - memmap.nr_allocated - 2)
        assert errno_of(lambda: gmem.allocate(0, 4 * PAGE)) == ENOMEM
        assert [world.inode(gmem).mapping.pfn(i) is not None for i in range(4)] == [True, True, False, False]
        memmap.put(hog, count)


@every_profile
class TestHoles:
    def test_take_pages_from_host_and_guest(self, world: World) -> None:
        vm = world.vm()
        gmem = world.gmem(vm, 4)
        vm.set_user_memory_region2(0, 0, 4 * PAGE, gmem=gmem)
        if not world.profile.in_place:
            vm.make_private(0, 4 * PAGE)
        vcpu, mmu = vm.create_vcpu(), world.kvm_vm(vm).mmu
        for page in range(4):
            store(vcpu, page * PAGE, b"data")
        free = world.host.memmap.nr_allocated
        world.drain()
        gmem.punch_hole(PAGE, 2 * PAGE)
        assert [mmu.walk(page) is not None for page in range(4)] == [True, False, False, True]
        assert world.host.memmap.nr_allocated == free - 2
        assert [load(vcpu, page * PAGE, 4) for page in range(4)] == [b"data", bytes(4), bytes(4), b"data"]

    def test_of_nothing(self, world: World) -> None:
        gmem = world.gmem(world.vm(), 4, 0)
        gmem.punch_hole(0, 4 * PAGE)
        gmem.punch_hole(0, 4 * PAGE)

    def test_which_views_go(self, world: World) -> None:
        """S22: where pages are converted a range may be mixed, which the series respects since v12."""
        vm = world.vm(0)  # type: ignore[arg-type]
        for flags in (0, 1, 2, 3):
            if flags & ~world.profile.gmem_flags_for(False):
                continue
            found = world.host.design.filter_for_removal(world.inode(vm.create_guest_memfd(PAGE, flags)))
            if world.profile.removal_filter == "both":
                assert found == Filter.SHARED | Filter.PRIVATE
            else:
                assert found == (Filter.SHARED if flags & 2 else Filter.PRIVATE)


class TestRelease:
    @every_profile
    def test_a_live_slot_loses_its_memory(self, world: World) -> None:
        vm = world.vm()
        gmem = world.gmem(vm, 2)
        vm.set_user_memory_region2(0, 0, 2 * PAGE, gmem=gmem)
        if not world.profile.in_place:
            vm.make_private(0, 2 * PAGE)
        vcpu = vm.create_vcpu()
        store(vcpu, 0, b"x")
        inode, slot = world.inode(gmem), world.slot(vm)
        gmem.close()
        assert (slot.gmem_file, inode.files, inode.mapping.nrpages) == (None, [], 0)
        assert world.kvm_vm(vm).mmu.walk(0) is None
        assert touch(vcpu, 0).reason is ExitReason.MEMORY_FAULT
        vm.delete_slot(0)
        again = world.gmem(vm, 2)
        vm.set_user_memory_region2(0, 0, 2 * PAGE, gmem=again)
        if world.profile.in_place:
            again.make_private(0, 2 * PAGE)
        assert load(vcpu, 0, 1) == bytes(1)

    def test_a_mapping_is_a_reference(self, world: World) -> None:
        vm = world.vm()
        gmem = vm.create_guest_memfd(2 * PAGE, BOTH)
        vm.set_user_memory_region2(0, 0, 2 * PAGE, gmem=gmem)
        mapping = gmem.mmap()
        fill(mapping, b"live")
        file, vcpu = world.gmem_file(gmem), vm.create_vcpu()
        gmem.close()
        assert load(vcpu, 0, 4) == b"live"
        world.door.munmap(mapping.address, PAGE)
        assert file.count == 1
        world.door.munmap(mapping.address + PAGE, PAGE)
        assert file.count == 0
        assert touch(vcpu, 0).reason is ExitReason.MEMORY_FAULT

    def test_in_a_child_too(self, world: World) -> None:
        vm = world.vm()
        gmem = vm.create_guest_memfd(PAGE, BOTH)
        mapping = gmem.mmap()
        file = world.gmem_file(gmem)
        child = world.fork()
        assert file.count == 4
        gmem.close()
        mapping.close()
        assert file.count == 2
        child.exit()
        assert file.count == 0
        world.children.clear()

    def test_the_vm_goes_before_the_memory(self, world: World) -> None:
        """kvm_gmem_release() lets the VM go; the inode, and with it the memory, is dropped after that."""
        vm = world.vm()
        gmem = world.gmem(vm, 1)
        gmem.allocate(0, PAGE)
        seen: list[int] = []
        world.inode(gmem).mapping.free_folio = lambda pfn, count: seen.append(len(world.host.vms))
        vm.close()
        gmem.close()
        assert seen == [0]

    def test_by_a_vcpu_that_had_the_last_reference(self, world: World) -> None:
        """The guest's fault holds the file for a moment; if it's closed then, the release waits for the way out."""
        vm = world.vm()
        gmem = world.gmem(vm, 1)
        vm.set_user_memory_region2(0, 0, PAGE, gmem=gmem)
        vcpu, file = vm.create_vcpu(), world.gmem_file(gmem)
        kvm = world.kvm_vm(vm)
        grab = kvm.gmem_file_of

        def closes_meanwhile(slot: object) -> object:
            held = grab(slot)  # type: ignore[arg-type]
            if file.count == 2:
                gmem.close()
            return held

        kvm.gmem_file_of = closes_meanwhile  # type: ignore[method-assign, assignment]
        world.door.load_guest(vcpu.fd, lambda cpu: cpu.load(0, 1))
        assert refusal(lambda: vcpu.ioctl(KVM_RUN)) in ("", "gmem.get-pfn.closed")
        assert file.count == 0
        del kvm.gmem_file_of
