# SPDX-License-Identifier: GPL-2.0-or-later
"""Conversion where the page is: contents, mappings, pins, batches, bindings, and what a failure leaves."""

from __future__ import annotations

from errno import EAGAIN

import pytest

from gmemu import BusError, ConversionRefused, Exit, ExitReason, GuestCpu, GuestMemfd, KernelError, Mapping, Vcpu, Vm
from gmemu.invariants import InvariantViolation
from gmemu.mm.gup import get_user_pages_fast, put_pages
from gmemu.uapi.kvm import KVM_SET_MEMORY_ATTRIBUTES2, kvm_memory_attributes2
from gmemu.uapi.mman import FOLL_LONGTERM, FOLL_PIN, FOLL_WRITE

from ..world import BOTH, PAGE, PRIVATE, World, fill, load, refusal, store, touch

LONGTERM = FOLL_PIN | FOLL_WRITE | FOLL_LONGTERM


def machine(world: World, pages: int = 4) -> tuple[Vm, Vcpu, GuestMemfd, Mapping]:
    """A software-protected VM whose memory is one shared guest_memfd at gpa 0, mapped by the process."""
    vm = world.vm()
    gmem = vm.create_guest_memfd(pages * PAGE, BOTH)
    vm.set_user_memory_region2(0, 0, pages * PAGE, gmem=gmem)
    return vm, vm.create_vcpu(), gmem, gmem.mmap()


class TestContents:
    def test_survive_both_ways(self, world: World) -> None:
        _, vcpu, gmem, mapping = machine(world)
        mapping[PAGE : PAGE + 6] = b"before"
        gmem.make_private(PAGE, PAGE)
        assert load(vcpu, PAGE, 6) == b"before"
        store(vcpu, PAGE, b"inside")
        gmem.make_shared(PAGE, PAGE)
        assert mapping[PAGE : PAGE + 6] == b"inside"
        gmem.make_private(PAGE, PAGE)
        assert load(vcpu, PAGE, 6) == b"inside"

    def test_neighbours_are_untouched(self, world: World) -> None:
        _, vcpu, gmem, mapping = machine(world)
        fill(mapping, b"abcd")
        before = [world.pfn(gmem, i) for i in range(4)]
        gmem.make_private(PAGE, PAGE)
        mm, base = world.host.init.mm, mapping.address // PAGE
        assert [mm.pte(base + i) is not None for i in range(4)] == [True, False, True, True]
        assert (mapping[:PAGE], mapping[2 * PAGE :]) == (b"abcd" * 1024, b"abcd" * 2048)
        mapping[PAGE - 4 : PAGE] = b"edge"
        assert load(vcpu, PAGE - 4, 8) == b"edgeabcd"
        assert [world.pfn(gmem, i) for i in range(4)] == before

    def test_a_private_page_that_nobody_touched_is_zero(self, world: World) -> None:
        _, vcpu, gmem, mapping = machine(world)
        gmem.make_private(0, PAGE)
        assert load(vcpu, 0, 8) == bytes(8)
        gmem.make_shared(0, PAGE)
        assert mapping[:8] == bytes(8)

    def test_a_hole_ends_the_pages_life_but_not_the_attributes(self, world: World) -> None:
        """S37, in both orders."""
        _, vcpu, gmem, _ = machine(world)
        store(vcpu, 0, b"first")
        gmem.make_private(0, PAGE)
        gmem.punch_hole(0, PAGE)
        assert world.inode(gmem).private_run(0, 4) == 1
        assert load(vcpu, 0, 5) == bytes(5)
        gmem.punch_hole(PAGE, PAGE)
        gmem.make_private(PAGE, PAGE)
        assert load(vcpu, PAGE, 5) == bytes(5)
        assert world.inode(gmem).private_run(0, 4) == 2


class TestTheHost:
    def test_loses_its_entries_and_gets_sigbus(self, world: World) -> None:
        _, _, gmem, mapping = machine(world)
        other = gmem.mmap(2 * PAGE, PAGE)
        fill(mapping, b"data")
        fill(other, b"more")
        gmem.make_private(PAGE, 2 * PAGE)
        for access, address in (
            (lambda: mapping[PAGE], mapping.address + PAGE),
            (lambda: other[PAGE], other.address + PAGE),
            (lambda: mapping.__setitem__(2 * PAGE, 0), mapping.address + 2 * PAGE),
        ):
            with pytest.raises(BusError) as caught:
                access()
            assert (caught.value.rule.id, caught.value.address) == ("gmem.fault.private", address)
        gmem.make_shared(PAGE, 2 * PAGE)
        assert (mapping[PAGE : PAGE + 4], other[:4]) == (b"more", b"more")

    def test_a_child_loses_access_too(self, world: World) -> None:
        """S36: page tables are found by the file, not by the process that converts."""
        _, _, gmem, mapping = machine(world)
        fill(mapping, b"both")
        child = world.fork()
        assert child.load(mapping.address, 4) == b"both"
        gmem.make_private(0, PAGE)
        with pytest.raises(BusError):
            child.load(mapping.address, 4)
        assert child.load(mapping.address + PAGE, 4) == b"both"
        with pytest.raises(BusError):
            mapping[0]

    def test_a_child_may_convert(self, world: World) -> None:
        """The file doesn't ask whose process calls, unlike the VM; the structure is read from the caller's memory."""
        _, vcpu, gmem, mapping = machine(world)
        fill(mapping, b"data")
        child = world.fork()
        address = child.mmap(0, PAGE, 3, 0x22)
        child.store(address, kvm_memory_attributes2(size=PAGE, attributes=PRIVATE).pack())
        assert child.ioctl(gmem.fd, KVM_SET_MEMORY_ATTRIBUTES2, address) == 0
        with pytest.raises(BusError):
            mapping[0]
        assert load(vcpu, 0, 4) == b"data"

    def test_a_mapping_in_parts(self, world: World) -> None:
        """Every piece of a mapping that was split is found, each at its own offset."""
        _, _, gmem, mapping = machine(world, 8)
        fill(mapping, b"part")
        world.door.munmap(mapping.address + 3 * PAGE, PAGE)
        world.door.mprotect(mapping.address + 5 * PAGE, PAGE, 1)
        gmem.make_private(2 * PAGE, 4 * PAGE)
        mm, base = world.host.init.mm, mapping.address // PAGE
        assert [mm.pte(base + i) is not None for i in range(8)] == [True, True, *[False] * 4, True, True]

    def test_access_across_the_border(self, world: World) -> None:
        _, _, gmem, mapping = machine(world)
        gmem.make_private(PAGE, PAGE)
        with pytest.raises(BusError) as caught:
            mapping[PAGE - 2 : PAGE + 2] = b"abcd"
        assert caught.value.address == mapping.address + PAGE
        assert mapping[PAGE - 2 : PAGE] == b"ab"


class TestTheGuest:
    def test_loses_the_old_view_while_it_runs(self, world: World) -> None:
        vm, vcpu, gmem, mapping = machine(world)
        mapping[0] = 1
        kvm = world.kvm_vm(vm)
        kinds: list[bool] = []

        def guest(cpu: GuestCpu) -> None:
            for convert in (gmem.make_private, gmem.make_shared, gmem.make_private):
                cpu.load(0, 1)
                kinds.append(kvm.mmu.sptes[0].private)  # type: ignore[union-attr]
                convert(0, PAGE)
                assert kvm.mmu.walk(0) is None
                assert not world.kvm_vcpu(vcpu).cpu.tlb.entries
            assert cpu.load(0, 1) == b"\1"

        assert vcpu.run(guest).reason is ExitReason.HLT
        assert kinds == [False, True, False]

    def test_two_slots_of_one_file(self, world: World) -> None:
        """Each bound range contributes its frames to the invalidation, and no others."""
        vm = world.vm()
        gmem = vm.create_guest_memfd(6 * PAGE, BOTH)
        vm.set_user_memory_region2(0, 0x10000, 2 * PAGE, gmem=gmem, offset=PAGE)
        vm.set_user_memory_region2(1, 0x80000, 2 * PAGE, gmem=gmem, offset=3 * PAGE)
        vcpu, mmu = vm.create_vcpu(), world.kvm_vm(vm).mmu
        frames = (0x10, 0x11, 0x80, 0x81)
        for frame in frames:
            store(vcpu, frame * PAGE, b"x")
        seq = mmu.invalidate_seq.read()
        gmem.make_private(2 * PAGE, 2 * PAGE)  # the second page of the first slot, the first of the second
        assert [mmu.walk(frame) is not None for frame in frames] == [True, False, False, True]
        assert (mmu.invalidate_seq.read(), mmu.invalidate_in_progress.read()) == (seq + 1, 0)
        assert [world.kvm_vm(vm).attributes.is_private(frame) for frame in frames] == [False, True, True, False]

    def test_an_unbound_range_concerns_no_vm(self, world: World) -> None:
        vm, vcpu, gmem, _ = machine(world)
        store(vcpu, 0, b"x")
        vm.delete_slot(0)
        vm.set_user_memory_region2(0, 0, PAGE, gmem=gmem)
        store(vcpu, 0, b"x")
        mmu = world.kvm_vm(vm).mmu
        seq = mmu.invalidate_seq.read()
        gmem.make_private(PAGE, 3 * PAGE)
        assert (mmu.invalidate_seq.read(), mmu.walk(0) is not None) == (seq, True)

    def test_attributes_follow_the_file_to_another_address(self, world: World) -> None:
        vm, vcpu, gmem, _ = machine(world)
        gmem.make_private(PAGE, PAGE)
        store(vcpu, PAGE, b"moved")
        vm.delete_slot(0)
        assert touch(vcpu, PAGE).reason is ExitReason.MMIO
        vm.set_user_memory_region2(3, 0x100000, 4 * PAGE, gmem=gmem)
        assert load(vcpu, 0x101000, 5) == b"moved"
        assert world.kvm_vm(vm).attributes.is_private(0x101)


class TestWhoHoldsThePage:
    def test_a_pin(self, world: World) -> None:
        """EAGAIN with its offset; attributes as they were; the host's entries of the whole range gone; the guest's not."""
        vm, vcpu, gmem, mapping = machine(world)
        fill(mapping, b"data")
        for page in range(4):
            load(vcpu, page * PAGE)
        mm = world.host.init.mm
        runs = get_user_pages_fast(mm, mapping.address + 2 * PAGE, 1, LONGTERM)
        with pytest.raises(ConversionRefused) as caught:
            gmem.make_private(PAGE, 3 * PAGE)
        assert (caught.value.errno, caught.value.error_offset) == (EAGAIN, 2 * PAGE)
        assert caught.value.rule.id == "gmem.attributes.busy"
        base = mapping.address // PAGE
        assert [mm.pte(base + i) is not None for i in range(4)] == [True, False, False, False]
        assert world.inode(gmem).shared_run(0, 4) == 4
        assert all(world.kvm_vm(vm).mmu.walk(i) is not None for i in range(4))
        assert mapping[PAGE : PAGE + 4] == b"data"
        put_pages(mm, runs, LONGTERM)
        gmem.make_private(PAGE, 3 * PAGE)
        assert world.inode(gmem).private_run(1, 3) == 3

    def test_a_slot_that_names_the_mapping_loses_the_guests_entries_too(self, world: World) -> None:
        """With userspace_addr at the guest_memfd's own mapping, unmapping the host is an invalidation by user address."""
        vm, vcpu, gmem, mapping = machine(world)
        vm.delete_slot(0)
        vm.set_user_memory_region2(0, 0, 4 * PAGE, gmem=gmem, userspace_addr=mapping.address)
        fill(mapping, b"data")
        load(vcpu, 0)
        world.drain()
        world.host.memmap.pin(world.pfn(gmem, 0))
        assert refusal(lambda: gmem.make_private(0, PAGE)) == "gmem.attributes.busy"
        assert world.kvm_vm(vm).mmu.walk(0) is None
        assert load(vcpu, 0, 4) == b"data"
        world.host.memmap.unpin(world.pfn(gmem, 0))

    def test_around_it_conversion_goes_on(self, world: World) -> None:
        """What a VMM does: [start, error), then the rest, then the page when it's free."""
        _, _, gmem, mapping = machine(world, 8)
        fill(mapping, b"data")
        mm = world.host.init.mm
        runs = get_user_pages_fast(mm, mapping.address + 5 * PAGE, 1, FOLL_WRITE)
        with pytest.raises(ConversionRefused) as caught:
            gmem.make_private(0, 8 * PAGE)
        gmem.make_private(0, caught.value.error_offset)
        gmem.make_private(caught.value.error_offset + PAGE, 2 * PAGE)
        assert [s for s, _, v in world.inode(gmem).attributes.runs() if v == 0] == [5]
        put_pages(mm, runs)
        gmem.make_private(5 * PAGE, PAGE)

    def test_a_pin_doesnt_matter_to_shared_nor_where_nothing_changes(self, world: World) -> None:
        """S26: a page that's private already isn't looked at, so 0 doesn't mean that nobody holds it."""
        _, _, gmem, mapping = machine(world)
        fill(mapping, b"data")
        gmem.make_private(0, PAGE)
        world.host.memmap.pin(world.pfn(gmem, 0))
        gmem.make_private(0, PAGE)
        gmem.make_shared(0, PAGE)
        assert refusal(lambda: gmem.make_private(0, PAGE)) == "gmem.attributes.busy"
        world.host.memmap.unpin(world.pfn(gmem, 0))

    def test_a_page_outside_doesnt_matter(self, world: World) -> None:
        _, _, gmem, mapping = machine(world)
        fill(mapping, b"data")
        world.drain()
        world.host.memmap.pin(world.pfn(gmem, 3))
        gmem.make_private(0, 3 * PAGE)
        world.host.memmap.unpin(world.pfn(gmem, 3))

    def test_the_source_of_a_fault_elsewhere(self, world: World) -> None:
        """A mapping that appears after the unmapping would be one; the emulation's own invariant looks for it."""
        _, _, gmem, mapping = machine(world)
        design = world.host.design

        def races(*args: object) -> None:
            design.check_references(*args)  # type: ignore[arg-type]
            mm, base = world.host.init.mm, mapping.address // PAGE
            world.host.memmap.get(world.pfn(gmem, 0))
            world.host.memmap.map(world.pfn(gmem, 0))
            mm.ptes.set(base, base + 1, (world.pfn(gmem, 0) - base, True))

        mapping[0] = 1
        world.host.design = design._replace(check_references=races)
        with pytest.raises(InvariantViolation, match="private and mapped by the host"):
            gmem.make_private(0, PAGE)
        world.host.design = design
        world.host.init.mm.unmap_page_range(mapping.address // PAGE, mapping.address // PAGE + 1)


class TestLruBatches:
    """S08: a page that waits in a CPU's batch has a reference more than it should."""

    def test_are_drained_once_and_only_if_need_be(self, world: World) -> None:
        _, _, gmem, mapping = machine(world)
        design, stages = world.host.design, list[int]()

        def drain(host: object, stage: int) -> None:
            stages.append(stage)
            design.drain(host, stage)  # type: ignore[arg-type]

        world.host.design = design._replace(drain=drain)
        world.drain()
        fill(mapping, b"x")
        assert world.host.lru.held() == 4
        gmem.make_private(0, 2 * PAGE)
        assert (stages, world.host.lru.held()) == ([1], 0)
        gmem.make_private(2 * PAGE, PAGE)
        assert stages == [1]

    def test_of_other_cpus(self, world: World) -> None:
        _, _, gmem, mapping = machine(world)
        world.drain()
        world.door.thread("io", cpu=3).store(mapping.address, b"x")
        assert world.host.lru.batches() == {3: (world.pfn(gmem, 0),)}
        gmem.make_private(0, PAGE)
        assert world.host.lru.held() == 0

    def test_without_draining_nobody_can_convert(self, world: World) -> None:
        _, _, gmem, mapping = machine(world)
        world.host.design = world.host.design._replace(drain=lambda host, stage: None)
        mapping[0] = 1
        assert refusal(lambda: gmem.make_private(0, PAGE)) == "gmem.attributes.busy"
        world.drain()
        gmem.make_private(0, PAGE)

    def test_dont_hide_a_reference_behind_them(self, world: World) -> None:
        _, _, gmem, mapping = machine(world)
        fill(mapping, b"x")
        world.host.memmap.get(world.pfn(gmem, 1))
        with pytest.raises(ConversionRefused) as caught:
            gmem.make_private(0, 4 * PAGE)
        assert caught.value.error_offset == PAGE
        world.host.memmap.put(world.pfn(gmem, 1))


class TestSize:
    def test_a_terabyte_in_one_call(self, world: World) -> None:
        vm = world.vm()
        gmem = vm.create_guest_memfd(1 << 40, BOTH)
        vm.set_user_memory_region2(0, 0, 1 << 40, gmem=gmem)
        vcpu = vm.create_vcpu()
        store(vcpu, 1 << 39, b"touched")
        gmem.make_private(0, 1 << 40)
        assert list(world.inode(gmem).attributes.runs()) == [(0, 1 << 28, PRIVATE)]
        assert load(vcpu, 1 << 39, 7) == b"touched"
        gmem.make_shared(0, 1 << 40)
        assert gmem.mmap(PAGE, 1 << 39)[:7] == b"touched"

    def test_a_pin_in_the_middle_of_a_terabyte(self, world: World) -> None:
        vm = world.vm()
        gmem = vm.create_guest_memfd(1 << 40, BOTH)
        for page in (5, 123456788, 123456789, (1 << 28) - 1):
            gmem.allocate(page * PAGE, PAGE)
        world.drain()
        world.host.memmap.pin(world.pfn(gmem, 123456789))
        with pytest.raises(ConversionRefused) as caught:
            gmem.make_private(0, 1 << 40)
        assert caught.value.error_offset == 123456789 * PAGE
        world.host.memmap.unpin(world.pfn(gmem, 123456789))

    def test_runs_stay_merged(self, world: World) -> None:
        gmem = world.vm().create_guest_memfd(1000 * PAGE, BOTH)
        for page in range(0, 1000, 2):
            gmem.make_private(page * PAGE, PAGE)
        assert len(world.inode(gmem).attributes) == 1000
        gmem.make_private(0, 1000 * PAGE)
        assert len(world.inode(gmem).attributes) == 1


class TestExits:
    def test_a_slot_that_went(self, world: World) -> None:
        """Facts 3.4: after deletion a private access is MMIO in place; the guest can't tell what the frame was."""
        vm, vcpu, gmem, _ = machine(world)
        gmem.make_private(0, PAGE)
        store(vcpu, 0, b"x")
        vm.delete_slot(0)
        exit_: Exit = touch(vcpu, 0)
        assert (exit_.reason, exit_.mmio.len) == (ExitReason.MMIO, 8)

    def test_a_file_that_went(self, world: World) -> None:
        """S32: the last reference is the mapping's; then it's EFAULT, as a shared access."""
        vm, vcpu, gmem, mapping = machine(world)
        gmem.make_private(0, PAGE)
        store(vcpu, 0, b"x")
        gmem.close()
        assert load(vcpu, 0, 1) == b"x"
        mapping.close()
        exit_ = touch(vcpu, 0)
        assert exit_.reason is ExitReason.MEMORY_FAULT
        assert isinstance(exit_.error, KernelError)
        assert (exit_.error.rule.id, exit_.memory_fault.flags) == ("gmem.get-pfn.closed", 0)
        vm.delete_slot(0)
