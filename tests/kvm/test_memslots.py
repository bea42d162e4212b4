# SPDX-License-Identifier: GPL-2.0-or-later
"""Memslots once they're there: creating, moving, changing flags, deleting, dirty logs, very many of them."""

from __future__ import annotations

from errno import EFAULT, ENOENT

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmemu import ExitReason, GuestMemfd, Mapping, Vcpu, Vm
from gmemu.kvm.memslots import KVM_MEMSLOT_GMEM_ONLY, Memslot, Memslots
from gmemu.uapi.kvm import (
    KVM_GET_DIRTY_LOG,
    KVM_MEM_GUEST_MEMFD,
    KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEM_READONLY,
    KVM_SET_USER_MEMORY_REGION,
    KVM_SET_USER_MEMORY_REGION2,
    kvm_dirty_log,
    kvm_userspace_memory_region,
    kvm_userspace_memory_region2,
)
from gmemu.uapi.mman import MADV_DONTNEED

from .world import BOTH, DEFAULT, PAGE, World, errno_of, every_profile, fill, load, refusal, store, touch


def plain(world: World, pages: int = 4, flags: int = 0) -> tuple[Vm, Vcpu, Mapping]:
    """A default VM whose slot 0 is ordinary memory at gpa 0."""
    vm = world.vm(DEFAULT)
    memory = world.kvm.anonymous(pages * PAGE)
    vm.set_user_memory_region2(0, 0, pages * PAGE, userspace_addr=memory.address, flags=flags)
    return vm, vm.create_vcpu(), memory


@every_profile
def test_every_field_arrives(world: World) -> None:
    vm = world.vm()
    gmem = world.gmem(vm, 8, 0)
    vm.set_user_memory_region2(7, 0x40000, 4 * PAGE, userspace_addr=0x123000, gmem=gmem, offset=2 * PAGE)
    slot = world.slot(vm, 7)
    assert (slot.id, slot.as_id, slot.base_gfn, slot.npages, slot.end_gfn) == (7, 0, 0x40, 4, 0x44)
    assert (slot.userspace_addr, slot.gmem_file, slot.gmem_pgoff) == (0x123000, world.gmem_file(gmem), 2)
    assert slot.flags & ~KVM_MEMSLOT_GMEM_ONLY == KVM_MEM_GUEST_MEMFD
    assert slot.gmem_only == (world.profile.gmem_only_slots == "always")
    assert slot.gmem_index(0x41) == 3
    assert world.kvm_vm(vm).find_slot(0x43) is slot
    assert world.kvm_vm(vm).find_slot(0x44) is None


def test_padding_isnt_looked_at(world: World) -> None:
    region = kvm_userspace_memory_region2(memory_size=PAGE, pad1=7, pad2=(1,) * 14)
    assert world.vm(DEFAULT).ioctl(KVM_SET_USER_MEMORY_REGION2, bytearray(region.pack())) == 0


def test_the_v1_ioctl_reads_only_its_half(world: World) -> None:
    """What comes behind the shorter structure isn't even read."""
    vm = world.vm(DEFAULT)
    memory = world.kvm.anonymous(PAGE)
    region = kvm_userspace_memory_region(guest_phys_addr=0, memory_size=PAGE, userspace_addr=memory.address)
    at = PAGE - region.SIZE
    memory[at:PAGE] = region.pack()
    assert vm.ioctl(KVM_SET_USER_MEMORY_REGION, memory.address + at) == 0
    assert errno_of(lambda: vm.ioctl(KVM_SET_USER_MEMORY_REGION2, memory.address + at)) == EFAULT


class TestChange:
    def test_moving_takes_the_memory_along(self, world: World) -> None:
        vm, vcpu, memory = plain(world)
        store(vcpu, 0x1000, b"moved")
        vm.set_user_memory_region2(0, 0x100000, 4 * PAGE, userspace_addr=memory.address)
        assert load(vcpu, 0x101000, 5) == b"moved"
        assert touch(vcpu, 0x1000).reason is ExitReason.MMIO

    def test_a_move_that_fails_leaves_the_slot_where_it_was(self, world: World) -> None:
        vm, vcpu, memory = plain(world)
        store(vcpu, 0, b"stays")
        move = lambda: vm.set_user_memory_region2(0, 1 << 52, 4 * PAGE, userspace_addr=memory.address)  # noqa: E731
        assert refusal(move) == "kvm.slot.max-gfn"
        slot = world.slot(vm)
        assert (slot.base_gfn, slot.flags) == (0, 0)
        assert load(vcpu, 0, 5) == b"stays"

    def test_moving_onto_itself_is_allowed(self, world: World) -> None:
        vm, vcpu, memory = plain(world)
        vm.set_user_memory_region2(0, 2 * PAGE, 4 * PAGE, userspace_addr=memory.address)
        store(vcpu, 2 * PAGE, b"first")
        assert memory[:5] == b"first"

    def test_the_same_again_does_nothing(self, world: World) -> None:
        vm, vcpu, memory = plain(world)
        store(vcpu, 0, b"x")
        slot = world.slot(vm)
        vm.set_user_memory_region2(0, 0, 4 * PAGE, userspace_addr=memory.address)
        assert world.slot(vm) is slot
        assert world.kvm_vm(vm).mmu.walk(0) is not None

    def test_a_read_only_slot(self, world: World) -> None:
        """Reads are memory, writes come out as MMIO."""
        vm, vcpu, memory = plain(world, flags=KVM_MEM_READONLY)
        memory[:4] = b"read"
        assert load(vcpu, 0, 4) == b"read"
        exit_ = vcpu.run(lambda cpu: cpu.store(0, b"none"))
        assert exit_.reason is ExitReason.MMIO
        assert (exit_.mmio.phys_addr, exit_.mmio.is_write, exit_.mmio.data[:4]) == (0, 1, b"none")
        assert vcpu.run().reason is ExitReason.HLT
        assert memory[:4] == b"read"
        assert not vm.ioctl(KVM_SET_USER_MEMORY_REGION2, bytearray(kvm_userspace_memory_region2().pack()))


class TestDelete:
    @pytest.mark.parametrize("flags", [0, KVM_MEM_GUEST_MEMFD, KVM_MEM_LOG_DIRTY_PAGES])
    @every_profile
    def test_by_either_ioctl_with_any_flags(self, world: World, flags: int) -> None:
        for by_v1 in (False, True):
            if by_v1 and flags & KVM_MEM_GUEST_MEMFD:
                continue
            vm = world.vm()
            gmem = world.gmem(vm, 2, 0)
            vm.set_user_memory_region2(3, 0, 2 * PAGE, gmem=gmem)
            if by_v1:
                v1 = kvm_userspace_memory_region(slot=3, flags=flags)
                vm.ioctl(KVM_SET_USER_MEMORY_REGION, bytearray(v1.pack()))
            else:
                v2 = kvm_userspace_memory_region2(slot=3, flags=flags)
                vm.ioctl(KVM_SET_USER_MEMORY_REGION2, bytearray(v2.pack()))
            assert len(world.kvm_vm(vm).memslots[0]) == 0
            assert len(world.gmem_file(gmem).bindings) == 0
            assert refusal(lambda vm=vm: vm.delete_slot(3)) == "kvm.slot.delete-missing"  # type: ignore[misc]

    def test_the_guest_loses_it(self, world: World) -> None:
        vm, vcpu, _ = plain(world)
        store(vcpu, 0, b"x")
        assert world.kvm_vcpu(vcpu).cpu.tlb.entries
        vm.delete_slot(0)
        assert not world.kvm_vcpu(vcpu).cpu.tlb.entries
        assert touch(vcpu, 0).reason is ExitReason.MMIO

    def test_a_guest_that_runs_meanwhile(self, world: World) -> None:
        """The guest isn't in the kernel, so the deleter waits for nobody; its next access finds out."""
        vm, vcpu, _ = plain(world)

        def guest(cpu: object) -> None:
            vcpu_cpu = world.kvm_vcpu(vcpu).cpu
            vcpu_cpu.store(0, b"x", False)
            vm.delete_slot(0)
            vcpu_cpu.load(0, 4, False)

        assert vcpu.run(guest).reason is ExitReason.MMIO

    def test_a_number_can_be_used_again(self, world: World) -> None:
        vm = world.vm()
        first, second = world.gmem(vm, 2), world.gmem(vm, 4)
        vm.set_user_memory_region2(0, 0, 2 * PAGE, gmem=first)
        vm.delete_slot(0)
        vm.set_user_memory_region2(0, 0x8000, 4 * PAGE, gmem=second)
        assert world.slot(vm).gmem_file is world.gmem_file(second)


class TestDirtyLog:
    def log(self, vm: Vm, slot: int = 0, bits: int = 64) -> set[int]:
        """KVM_GET_DIRTY_LOG: the pages that it tells."""
        memory = Mapping(vm.door, vm.door.mmap(0, PAGE, 3, 0x22), PAGE)
        with memory:
            vm.ioctl(KVM_GET_DIRTY_LOG, bytearray(kvm_dirty_log(slot=slot, dirty_bitmap=memory.address).pack()))
            bitmap = int.from_bytes(memory[: bits // 8], "little")
        return {i for i in range(bits) if bitmap >> i & 1}

    def test_writes_are_told_once(self, world: World) -> None:
        vm, vcpu, _ = plain(world, 8, KVM_MEM_LOG_DIRTY_PAGES)
        store(vcpu, 0x2000, b"x")
        store(vcpu, 0x5000, b"x")
        assert self.log(vm) == {2, 5}
        assert self.log(vm) == set()
        store(vcpu, 0x2000, b"x")
        assert self.log(vm) == {2}

    def test_a_write_after_the_log_was_read_is_seen_though_the_page_was_mapped(self, world: World) -> None:
        vm, vcpu, _ = plain(world, 8, KVM_MEM_LOG_DIRTY_PAGES)
        seen: list[set[int]] = []

        def guest(cpu: object) -> None:
            guest_cpu = world.kvm_vcpu(vcpu).cpu
            guest_cpu.store(0, b"a", False)
            seen.append(self.log(vm))
            guest_cpu.store(0, b"b", False)
            seen.append(self.log(vm))

        assert vcpu.run(guest).reason is ExitReason.HLT
        assert seen == [{0}, {0}]

    def test_a_read_that_maps_the_page_writable_counts(self, world: World) -> None:
        """make_spte(): if the process may write the page, so may the guest from now on, unseen."""
        vm, vcpu, memory = plain(world, 8, KVM_MEM_LOG_DIRTY_PAGES)
        load(vcpu, 0x3000)
        assert self.log(vm) == set()  # the zero page
        memory[0x4000] = 1
        load(vcpu, 0x4000)
        assert self.log(vm) == {4}

    def test_turning_it_on_protects_what_is_mapped(self, world: World) -> None:
        vm, vcpu, memory = plain(world)
        store(vcpu, 0, b"before")
        vm.set_user_memory_region2(0, 0, 4 * PAGE, userspace_addr=memory.address, flags=KVM_MEM_LOG_DIRTY_PAGES)
        assert self.log(vm) == set()
        store(vcpu, 0, b"after")
        assert self.log(vm) == {0}
        vm.set_user_memory_region2(0, 0, 4 * PAGE, userspace_addr=memory.address)
        assert refusal(lambda: self.log(vm)) == "kvm.dirty-log.none"

    def test_moving_keeps_the_bitmap(self, world: World) -> None:
        vm, vcpu, memory = plain(world, 8, KVM_MEM_LOG_DIRTY_PAGES)
        store(vcpu, 0x1000, b"x")
        flags = KVM_MEM_LOG_DIRTY_PAGES
        vm.set_user_memory_region2(0, 0x40000, 8 * PAGE, userspace_addr=memory.address, flags=flags)
        assert self.log(vm) == {1}

    def test_checks_in_order(self, world: World) -> None:
        vm, _, _ = plain(world)
        assert refusal(lambda: self.log(vm, 2 << 16)) == "kvm.dirty-log.slot"
        assert refusal(lambda: self.log(vm, 0x7FFD)) == "kvm.dirty-log.slot"
        assert errno_of(lambda: self.log(vm, 5)) == ENOENT
        assert refusal(lambda: self.log(vm, 0)) == "kvm.dirty-log.none"

    def test_nowhere_to_copy_it(self, world: World) -> None:
        """The log is cleared all the same: what was dirty is lost."""
        vm, vcpu, _ = plain(world, 8, KVM_MEM_LOG_DIRTY_PAGES)
        store(vcpu, 0, b"x")
        args = bytearray(kvm_dirty_log(dirty_bitmap=0x1000).pack())
        assert errno_of(lambda: vm.ioctl(KVM_GET_DIRTY_LOG, args)) == EFAULT
        assert self.log(vm) == set()

    def test_guest_memfd_has_none(self, world: World) -> None:
        vm = world.vm()
        vm.set_user_memory_region2(0, 0, PAGE, gmem=world.gmem(vm, 1))
        assert refusal(lambda: self.log(vm)) == "kvm.dirty-log.none"


class TestInvalidationByUserAddress:
    def test_what_the_process_unmaps_the_guest_loses(self, world: World) -> None:
        _, vcpu, memory = plain(world)
        fill(memory, b"abcd")
        assert load(vcpu, 0x1000, 4) == b"abcd"
        memory.madvise(MADV_DONTNEED, PAGE, PAGE)
        assert load(vcpu, 0x1000, 4) == bytes(4)
        assert load(vcpu, 0x2000, 4) == b"abcd"

    def test_one_user_page_in_two_slots(self, world: World) -> None:
        vm, vcpu, memory = plain(world, 2)
        vm.set_user_memory_region2(1, 0x10000, 2 * PAGE, userspace_addr=memory.address)
        store(vcpu, 0, b"x")
        store(vcpu, 0x10000, b"y")
        mmu = world.kvm_vm(vm).mmu
        assert mmu.walk(0) is not None
        memory.madvise(MADV_DONTNEED)
        assert mmu.walk(0) is None
        assert mmu.walk(0x10) is None
        assert mmu.invalidate_in_progress.read() == 0

    def test_a_guest_sees_its_parents_memory_after_fork(self, world: World) -> None:
        """Copy-on-write must not leave the guest with the page that the child got."""
        _, vcpu, memory = plain(world)
        memory[:3] = b"old"
        assert load(vcpu, 0, 3) == b"old"
        world.fork()
        memory[:3] = b"new"
        assert load(vcpu, 0, 3) == b"new"
        store(vcpu, 0, b"gst")
        assert memory[:3] == b"gst"


class TestMany:
    def test_as_many_as_there_may_be(self, world: World) -> None:
        """KVM_CAP_NR_MEMSLOTS of them: added, found, and gone again, at a cost that lets this test end."""
        vm = world.vm(DEFAULT)
        most = vm.check_extension(10)
        memory = world.kvm.anonymous(most * PAGE)
        for i in range(most):
            vm.set_user_memory_region2(i, i * PAGE, PAGE, userspace_addr=memory.address + i * PAGE)
        assert refusal(lambda: vm.set_user_memory_region2(most, 1 << 40, PAGE)) == "kvm.slot.id"
        vcpu = vm.create_vcpu()
        store(vcpu, (most - 1) * PAGE, b"last")
        assert memory[(most - 1) * PAGE : (most - 1) * PAGE + 4] == b"last"
        for _ in range(100):
            memory.madvise(MADV_DONTNEED, (most - 1) * PAGE, PAGE)
        for i in range(0, most, 64):
            vm.delete_slot(i)

    def test_many_at_one_user_address(self, world: World) -> None:
        """guest_memfd slots need no user address, so they all say 0."""
        vm = world.vm()
        gmem = vm.create_guest_memfd(2000 * PAGE, BOTH)
        for i in range(2000):
            vm.set_user_memory_region2(i, i * PAGE, PAGE, gmem=gmem, offset=i * PAGE)
        for i in range(2000):
            vm.delete_slot(i)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.integers(0, 20), st.integers(1, 6), st.integers(0, 20))))
def test_lookups_against_a_model(changes: list[tuple[bool, int, int, int, int]]) -> None:
    """By frame, by range and by user page, with slots coming and going."""
    slots = Memslots()
    for add, number, gfn, npages, vpn in changes:
        old = slots.by_id.get(number)
        new = Memslot(0, number, gfn, npages, 0, vpn * PAGE) if add else None
        if new is not None and any(slot is not old for slot in slots.overlapping(gfn, gfn + npages)):
            continue
        slots.replace(old, new)
        everyone = list(slots.by_id.values())
        for frame in range(30):
            holders = [slot for slot in everyone if slot.base_gfn <= frame < slot.end_gfn]
            assert slots.find(frame) is (holders[0] if holders else None)
            found = {(s, g) for s, start, end in slots.backed_by(frame, frame + 3) for g in range(start, end)}
            expected = {
                (slot, slot.base_gfn + page - (slot.userspace_addr >> 12))
                for slot in everyone
                for page in range(frame, frame + 3)
                if 0 <= page - (slot.userspace_addr >> 12) < slot.npages
            }
            assert found == expected


def test_a_memfd_can_back_a_slot(world: World) -> None:
    fd = world.door.memfd_create("ram")
    world.door.ftruncate(fd, 2 * PAGE)
    memory = Mapping(world.door, world.door.mmap(0, 2 * PAGE, 3, 1, fd), 2 * PAGE)
    vm = world.vm(DEFAULT)
    vm.set_user_memory_region2(0, 0, 2 * PAGE, userspace_addr=memory.address)
    vcpu = vm.create_vcpu()
    store(vcpu, PAGE, b"guest")
    assert memory[PAGE : PAGE + 5] == b"guest"
    world.door.fallocate(fd, 3, 0, 2 * PAGE)
    assert load(vcpu, PAGE, 5) == bytes(5)


def test_a_slot_replaced_by_plain_memory(world: World) -> None:
    """S33: what the frame was before doesn't matter; without guest_memfd it's shared."""
    vm = world.vm()
    gmem: GuestMemfd = world.gmem(vm, 1)
    vcpu = vm.create_vcpu()
    vm.set_user_memory_region2(0, 0, PAGE, gmem=gmem)
    gmem.make_private(0, PAGE)
    store(vcpu, 0, b"private")
    vm.delete_slot(0)
    memory = world.kvm.anonymous(PAGE)
    memory[:5] = b"plain"
    vm.set_user_memory_region2(0, 0, PAGE, userspace_addr=memory.address)
    assert load(vcpu, 0, 5) == b"plain"
