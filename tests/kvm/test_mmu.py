# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's faults: what is mapped, which exits there are, and that a mended fault goes on where it was."""

from __future__ import annotations

from errno import EFAULT

import pytest

from gmemu import BusError, Exit, ExitReason, GuestCpu, GuestMemfd, KernelError, Mapping, Vcpu, Vm
from gmemu.invariants import InvariantViolation
from gmemu.kvm.mmu import PageFault, RetPf
from gmemu.uapi.errno import EHWPOISON
from gmemu.uapi.kvm import kvm_exit_memory_fault
from gmemu.uapi.kvm_x86 import PFERR_PRIVATE_ACCESS, PFERR_WRITE_MASK
from gmemu.uapi.mman import MADV_DONTNEED, MADV_HWPOISON, PROT_NONE, PROT_READ

from .world import BOTH, DEFAULT, MMAP, PAGE, SW_PROTECTED, World, every_profile, in_profiles, load, refusal, store, touch


def with_memory(world: World, pages: int = 2) -> tuple[Vm, Vcpu, Mapping]:
    """A default VM with ordinary memory at gpa 0."""
    vm = world.vm(DEFAULT)
    memory = world.kvm.anonymous(pages * PAGE)
    vm.set_user_memory_region2(0, 0, pages * PAGE, userspace_addr=memory.address)
    return vm, vm.create_vcpu(), memory


def with_gmem(world: World, pages: int = 4) -> tuple[Vm, Vcpu, GuestMemfd]:
    """A VM with private memory whose slot 0 is a guest_memfd that starts shared (in place) or is made private."""
    vm = world.vm()
    gmem = world.gmem(vm, pages)
    vm.set_user_memory_region2(0, 0, pages * PAGE, gmem=gmem)
    return vm, vm.create_vcpu(), gmem


def memory_fault(exit_: Exit) -> tuple[int, int, int, int]:
    """errno, flags, gpa and size of a memory fault exit."""
    assert exit_.reason is ExitReason.MEMORY_FAULT
    assert isinstance(exit_.error, KernelError)
    details = exit_.memory_fault
    return exit_.error.rule.errno, details.flags, details.gpa, details.size


class TestSharedMemory:
    @every_profile
    def test_guest_and_process_see_the_same(self, world: World) -> None:
        _, vcpu, memory = with_memory(world)
        memory[100:105] = b"hello"
        assert load(vcpu, 100, 5) == b"hello"
        store(vcpu, PAGE - 2, b"across")
        assert memory[PAGE - 2 : PAGE + 4] == b"across"

    def test_a_read_maps_no_more_than_the_process_may_do(self, world: World) -> None:
        vm, vcpu, memory = with_memory(world)
        mmu = world.kvm_vm(vm).mmu
        load(vcpu, 0)  # the zero page
        entry = mmu.walk(0)
        assert entry is not None
        assert not entry.writable
        memory[PAGE] = 1
        load(vcpu, PAGE)
        entry = mmu.walk(1)
        assert entry is not None
        assert entry.writable
        store(vcpu, 0, b"x")
        assert memory[0] == ord("x")

    def test_the_guest_holds_no_reference(self, world: World) -> None:
        _, vcpu, memory = with_memory(world)
        store(vcpu, 0, b"x")
        entry = world.host.init.mm.pte(memory.address // PAGE)
        assert entry is not None
        assert world.host.memmap.refcount(entry[0]) == 1

    @pytest.mark.parametrize("how", ["unmapped", "protected", "read-only"])
    @every_profile
    def test_a_bad_user_address(self, world: World, how: str) -> None:
        """EFAULT with exit reason 0: KVM has nothing to tell.  Mended, the access goes on."""
        vm = world.vm(DEFAULT)
        vcpu = vm.create_vcpu()
        memory = world.kvm.anonymous(PAGE)
        address = memory.address
        if how == "unmapped":
            memory.close()
        else:
            memory.protect(PROT_NONE if how == "protected" else PROT_READ)
        vm.set_user_memory_region2(0, 0, PAGE, userspace_addr=address)
        done: list[bytes] = []

        def guest(cpu: GuestCpu) -> None:
            cpu.store(0, b"written")
            done.append(cpu.load(0, 7))

        with pytest.raises(KernelError) as caught:
            vcpu.run(guest)
        assert (caught.value.errno, caught.value.rule.id) == (EFAULT, "kvm.fault.hva")
        assert world.kvm_vcpu(vcpu).exit_reason == 0
        assert refusal(vcpu.run) == "kvm.fault.hva"  # the instruction didn't retire
        if how == "unmapped":
            memory = Mapping(world.door, world.door.mmap(address, PAGE, 3, 0x32), PAGE)
        else:
            memory.protect(3)
        assert vcpu.run().reason is ExitReason.HLT
        assert done == [b"written"]
        assert memory[:7] == b"written"

    def test_memory_that_went_bad(self, world: World) -> None:
        """The vCPU's thread is sent SIGBUS; there is no exit for it."""
        _, vcpu, memory = with_memory(world)
        memory[:] = b"x" * 2 * PAGE
        load(vcpu, 0)
        assert refusal(lambda: memory.madvise(MADV_HWPOISON, 0, PAGE)) == "mm.fault.hwpoison"
        with pytest.raises(BusError) as caught:
            vcpu.run(lambda cpu: cpu.load(8, 8))
        assert (caught.value.rule.id, caught.value.address) == ("kvm.fault.hva-hwpoison", memory.address)
        memory.madvise(MADV_DONTNEED, 0, PAGE)
        assert vcpu.run().reason is ExitReason.HLT
        assert load(vcpu, PAGE, 1) == b"x"

    def test_nothing_is_left_half_done_when_the_host_is_out_of_memory(self, world: World) -> None:
        _, vcpu, _ = with_memory(world)
        memmap = world.host.memmap
        [(hog, count)] = memmap.alloc(memmap.nr_pages - memmap.nr_allocated - 1)
        assert refusal(lambda: vcpu.run(lambda cpu: cpu.store(0, b"x"))) == "kvm.fault.hva"
        memmap.put(hog, count)
        assert vcpu.run().reason is ExitReason.HLT


class TestGuestMemfd:
    @in_profiles("inplace-v13")
    def test_in_place_everything_is_served_from_it(self, world: World) -> None:
        """S34: a user address is ignored, whatever the attribute."""
        vm = world.vm()
        gmem, memory = world.gmem(vm, 2), world.kvm.anonymous(2 * PAGE)
        vm.set_user_memory_region2(0, 0, 2 * PAGE, gmem=gmem, userspace_addr=memory.address)
        memory[:3] = b"old"
        vcpu = vm.create_vcpu()
        assert load(vcpu, 0, 3) == bytes(3)
        store(vcpu, 0, b"new")
        assert gmem.mmap()[:3] == b"new"
        assert memory[:3] == b"old"

    @in_profiles("linux-6.18", "linux-7.3")
    def test_a_mappable_file_is_used_for_shared_memory_too(self, world: World) -> None:
        """Flags 1: even where the process itself gets SIGBUS."""
        vm = world.vm(DEFAULT)
        memory = world.kvm.anonymous(PAGE)
        for slot, flags in enumerate((BOTH, MMAP)):
            gmem = vm.create_guest_memfd(PAGE, flags)
            vm.set_user_memory_region2(slot, slot * PAGE, PAGE, gmem=gmem, userspace_addr=memory.address)
            vcpu = vm.create_vcpu(slot)
            store(vcpu, slot * PAGE, b"gmem")
            mapping = gmem.mmap()
            if flags == BOTH:
                assert mapping[:4] == b"gmem"
            else:
                assert refusal(lambda mapping=mapping: mapping[0]) == "gmem.fault.private"  # type: ignore[misc]
        assert memory[:4] == bytes(4)

    @in_profiles("linux-6.18", "linux-7.3")
    def test_without_mmap_shared_memory_is_the_users(self, world: World) -> None:
        vm = world.vm(DEFAULT)
        memory = world.kvm.anonymous(PAGE)
        memory[:4] = b"user"
        vm.set_user_memory_region2(0, 0, PAGE, gmem=vm.create_guest_memfd(PAGE), userspace_addr=memory.address)
        assert load(vm.create_vcpu(), 0, 4) == b"user"

    @every_profile
    def test_a_closed_file(self, world: World) -> None:
        """S32: EFAULT and a memory fault exit; flags tell the view that was asked for."""
        vm = world.vm()
        flags = world.profile.gmem_flags_for(True) & ~2
        gmem, memory = world.gmem(vm, 1, flags), world.kvm.anonymous(PAGE)
        vm.set_user_memory_region2(0, 0, PAGE, gmem=gmem, userspace_addr=memory.address)
        if not world.profile.in_place:
            vm.make_private(0, PAGE)
        vcpu = vm.create_vcpu()
        store(vcpu, 0, b"x")
        gmem.close()
        assert world.kvm_vm(vm).mmu.walk(0) is None
        wanted = 0 if world.profile.in_place else 8  # in place, a file that is gone has no attributes any more
        assert memory_fault(touch(vcpu, 8)) == (EFAULT, wanted, 0, PAGE)
        assert memory_fault(vcpu.run()) == (EFAULT, wanted, 0, PAGE)
        vm.delete_slot(0)
        again = vcpu.run()
        expected = ExitReason.MMIO if world.profile.in_place else ExitReason.MEMORY_FAULT
        assert again.reason is expected

    @every_profile
    def test_a_bad_page(self, world: World) -> None:
        """EHWPOISON with the exit; a hole punched at the page brings a new one."""
        vm = world.vm()
        gmem = world.gmem(vm, 2)
        vm.set_user_memory_region2(0, 0, 2 * PAGE, gmem=gmem)
        wanted = 0
        if not world.profile.in_place:
            vm.make_private(0, 2 * PAGE)
            wanted = 8
        vcpu = vm.create_vcpu()
        store(vcpu, PAGE, b"x")
        assert refusal(lambda: world.host.memory_failure(world.pfn(gmem, 1))) == "mm.hwpoison.kept"
        assert world.kvm_vm(vm).mmu.walk(1) is None
        assert memory_fault(touch(vcpu, PAGE + 16)) == (EHWPOISON, wanted, PAGE, PAGE)
        store(vcpu, 0, b"neighbour")
        gmem.punch_hole(PAGE, PAGE)
        assert load(vcpu, PAGE, 1) == bytes(1)

    @every_profile
    def test_no_memory_for_a_page(self, world: World) -> None:
        vm = world.vm()
        vm.set_user_memory_region2(0, 0, PAGE, gmem=world.gmem(vm, 1))
        if not world.profile.in_place:
            vm.make_private(0, PAGE)
        vcpu = vm.create_vcpu()
        memmap = world.host.memmap
        [(hog, count)] = memmap.alloc(memmap.nr_pages - memmap.nr_allocated - 1)
        with pytest.raises(KernelError) as caught:
            vcpu.run(lambda cpu: cpu.load(0, 1))
        assert caught.value.rule.id == "mm.page.oom"
        memmap.put(hog, count)
        assert vcpu.run().reason is ExitReason.HLT

    def test_a_page_of_another_binding(self, world: World) -> None:
        """EIO, with a warning in the kernel's log: it can't happen, but it is checked."""
        vm, vcpu, gmem = with_gmem(world)
        world.gmem_file(gmem).bindings.clear(1, 2)
        with pytest.raises(KernelError) as caught:
            vcpu.run(lambda cpu: cpu.load(PAGE, 1))
        assert caught.value.rule.id == "gmem.get-pfn.binding"
        world.gmem_file(gmem).bindings.set(1, 2, world.slot(vm))


class TestMismatch:
    """SW_PROTECTED defines the access by the attribute, so the mismatch must be asked for."""

    @every_profile
    def test_the_view_that_isnt_valid(self, world: World) -> None:
        vm = world.vm()
        gmem = world.gmem(vm, 2)
        vm.set_user_memory_region2(0, 0, 2 * PAGE, gmem=gmem)
        if world.profile.in_place:
            gmem.make_private(PAGE, PAGE)
        else:
            vm.make_private(PAGE, PAGE)
        kvm, vcpu = world.kvm_vm(vm), world.kvm_vcpu(vm.create_vcpu())
        for gfn, error_code, flags in ((0, PFERR_PRIVATE_ACCESS, 8), (1, PFERR_WRITE_MASK, 0)):
            fault = lambda gfn=gfn, code=error_code: kvm.mmu.page_fault(vcpu, gfn, code)  # noqa: E731
            assert refusal(lambda fault=fault: world.syscall(fault)) == "kvm.fault.mismatch"  # type: ignore[misc]
            assert vcpu.exit_reason == ExitReason.MEMORY_FAULT
            details = vcpu.exit_details(kvm_exit_memory_fault)
            assert details == kvm_exit_memory_fault(flags=flags, gpa=gfn * PAGE, size=PAGE)

    @every_profile
    def test_a_private_access_without_a_slot(self, world: World) -> None:
        vm = world.vm()
        if world.profile.in_place:
            exit_ = touch(vm.create_vcpu(), 0xC0000000)
            assert (exit_.reason, exit_.mmio.phys_addr, exit_.mmio.len) == (ExitReason.MMIO, 0xC0000000, 8)
            return
        vm.make_private(0xC0000000, PAGE)
        assert memory_fault(touch(vm.create_vcpu(), 0xC0000000)) == (EFAULT, 8, 0xC0000000, PAGE)


class TestMapping:
    def test_a_fault_on_what_is_mapped_is_spurious(self, world: World) -> None:
        vm, vcpu, _ = with_gmem(world)
        store(vcpu, 0, b"x")
        kvm, kvm_vcpu = world.kvm_vm(vm), world.kvm_vcpu(vcpu)
        for error_code in (0, PFERR_WRITE_MASK):
            assert world.syscall(lambda code=error_code: kvm.mmu.page_fault(kvm_vcpu, 0, code)) is RetPf.SPURIOUS  # type: ignore[misc]

    def test_a_fault_that_is_stale_maps_nothing(self, world: World) -> None:
        """An invalidation went by since the fault looked: whatever it found may be gone."""
        vm, vcpu, gmem = with_gmem(world)
        kvm = world.kvm_vm(vm)
        fault = world.syscall(lambda: PageFault(world.kvm_vcpu(vcpu), 0, 0, False))
        fault.mmu_seq = kvm.mmu.invalidate_seq.read()
        assert not kvm.host.design.is_page_fault_stale(kvm, fault)
        gmem.make_private(0, PAGE)
        assert kvm.host.design.is_page_fault_stale(kvm, fault)

    def test_an_invalidation_under_way_holds_back_its_range_only(self, world: World) -> None:
        vm, _, _ = with_gmem(world)
        mmu = world.kvm_vm(vm).mmu
        seq = mmu.invalidate_seq.read()
        with world.kvm_vm(vm).mmu_lock.exclusive:
            mmu.invalidate_begin()
            assert mmu.invalidate_retry_gfn(seq, 0)  # no range yet: everything
            mmu.invalidate_range_add(2, 4)
            mmu.invalidate_range_add(8, 9)
            assert [mmu.invalidate_retry_gfn(seq, gfn) for gfn in (1, 2, 5, 8, 9)] == [False, True, True, True, False]
            mmu.invalidate_begin()
            mmu.invalidate_end()
            assert mmu.invalidate_retry_gfn(seq + 1, 2)
            mmu.invalidate_end()
            assert not mmu.invalidate_retry_gfn(seq + 2, 2)
            with pytest.raises(InvariantViolation, match="below zero"):
                mmu.invalidate_end()
            mmu.invalidate_begin()

    def test_two_different_pages_at_one_frame_are_noticed(self, world: World) -> None:
        vm, vcpu, gmem = with_gmem(world)
        store(vcpu, 0, b"x")
        kvm = world.kvm_vm(vm)
        fault = world.syscall(lambda: PageFault(world.kvm_vcpu(vcpu), 0, 0, False))
        fault.pfn = world.pfn(gmem, 0) + 1
        with kvm.mmu_lock.shared, pytest.raises(InvariantViolation, match="is mapped to"):
            kvm.mmu.map(fault)

    def test_unmapping_needs_the_lock(self, world: World) -> None:
        vm, _, _ = with_gmem(world)
        with pytest.raises(AssertionError, match="mmu_lock"):
            world.kvm_vm(vm).mmu.unmap_range(0, 1)

    def test_a_large_guest_costs_what_it_touches(self, world: World) -> None:
        vm = world.vm()
        gmem = vm.create_guest_memfd(1 << 40, BOTH)
        vm.set_user_memory_region2(0, 0, 1 << 40, gmem=gmem)
        vcpu = vm.create_vcpu()
        for gpa in (0, 1 << 39, (1 << 40) - PAGE):
            store(vcpu, gpa, b"x")
        assert len(world.kvm_vm(vm).mmu.sptes) == 3
        assert world.inode(gmem).mapping.nrpages == 3

    def test_vm_types_without_private_memory_have_no_private_accesses(self, world: World) -> None:
        assert world.kvm_vm(world.vm(SW_PROTECTED)).arch.has_private_mem
        assert not world.kvm_vm(world.vm(DEFAULT)).arch.has_private_mem
