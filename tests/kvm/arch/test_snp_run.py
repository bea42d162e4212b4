# SPDX-License-Identifier: GPL-2.0-or-later
"""An SNP guest at run time: assignment, PVALIDATE, #VC, implicit conversion, RMPADJUST."""

from __future__ import annotations

import pytest

from gmemu import ExitReason, GuestCpu, InvariantViolation, KernelError, VmmCommunication
from gmemu.hw.cpu import UndefinedOpcode
from gmemu.hw.memory import PAGE_SIZE
from gmemu.hw.snp.rmp import PsmashStatus, RmpState, VmplMask
from gmemu.uapi.ghcb import SEV_TERM_SET_GEN, SEV_TERM_SET_LINUX, LinuxTermReason, ghcb_msr_term_fields
from gmemu.uapi.kvm import KVM_MEMORY_EXIT_FLAG_PRIVATE, SystemEvent, VmType

from .snp_world import BASE, World, noise

NO_UPDATE, SIZE_MISMATCH, FAIL_INPUT, FAIL_PERMISSION = 255, 6, 1, 2


def page(number: int) -> int:
    """The gpa of a page of the memory."""
    return BASE + number * PAGE_SIZE


def terminated(world: World, guest: object) -> tuple[int, int]:
    """Run a guest that ends itself: reason set and reason."""
    assert callable(guest)
    exit_ = world.serve(world.vcpus[0], guest)[-1].exit
    assert exit_.reason is ExitReason.SYSTEM_EVENT
    assert (exit_.system_event.type, exit_.system_event.ndata) == (SystemEvent.SEV_TERM, 1)
    return ghcb_msr_term_fields(exit_.system_event.data[0])


def test_the_first_access_assigns_and_the_guest_must_validate(world: World) -> None:
    world.finished()
    states = []

    def guest(cpu: GuestCpu) -> None:
        with pytest.raises(VmmCommunication) as vc:
            cpu.load(page(0))
        assert vc.value.gpa == page(0)
        states.append(world.state(0))
        assert cpu.pvalidate(page(0)) == 0
        states.append(world.state(0))
        cpu.store(page(0), b"mine")
        assert cpu.load(page(0), 4) == b"mine"
        assert cpu.pvalidate(page(0), validate=False) == 0
        states.append(world.state(0))
        with pytest.raises(VmmCommunication):
            cpu.store(page(0), b"lost")

    world.convert(0, private=True)
    assert [stop.reason for stop in world.serve(world.vcpus[0], guest)] == ["HLT"]
    assert states == [RmpState.GUEST_INVALID, RmpState.GUEST_VALID, RmpState.GUEST_INVALID]


def test_pvalidate_may_be_the_first_access(world: World) -> None:
    world.finished()
    world.convert(0, private=True)
    world.vcpus[0].run(lambda cpu: cpu.accept(page(0), PAGE_SIZE))
    assert world.state(0) is RmpState.GUEST_VALID


def test_an_unhandled_vc_is_fatal(world: World) -> None:
    """General reason set, reason 0."""
    world.finished()
    world.convert(0, private=True)
    assert terminated(world, lambda cpu: cpu.load(page(0))) == (SEV_TERM_SET_GEN, 0)
    assert world.state(0) is RmpState.GUEST_INVALID


def test_pvalidate_twice(world: World) -> None:
    """The carry flag, for which Linux guests have 255, and which they don't forgive."""
    world.finished()
    world.convert(0, 2, private=True)
    codes = []

    def guest(cpu: GuestCpu) -> None:
        codes.extend([cpu.pvalidate(page(0)), cpu.pvalidate(page(0))])
        codes.extend([cpu.pvalidate(page(1), validate=False), cpu.pvalidate(page(1))])
        cpu.accept(page(1), PAGE_SIZE)

    assert terminated(world, guest) == (SEV_TERM_SET_LINUX, LinuxTermReason.PVALIDATE)
    assert codes == [0, NO_UPDATE, NO_UPDATE, 0]


def test_launched_pages_are_validated_already(world: World) -> None:
    world.started(vcpus=1)
    world.load(0, noise(2))
    world.finish()
    seen = []
    world.vcpus[0].run(lambda cpu: seen.extend([cpu.pvalidate(page(0)), cpu.load(page(0), 2 * PAGE_SIZE)]))
    assert seen == [NO_UPDATE, noise(2)]


def test_pvalidate_of_two_megabytes_over_small_pages() -> None:
    world = World("inplace-v13", pages=1024).finished()
    world.convert(0, 1024, private=True)
    aligned = (BASE + (2 << 20) - 1) & -(2 << 20)
    codes = []

    def guest(cpu: GuestCpu) -> None:
        codes.append(cpu.pvalidate(aligned, huge=True))
        codes.append(cpu.pvalidate(aligned + PAGE_SIZE, huge=True))
        codes.append(cpu.pvalidate(aligned))

    world.vcpus[0].run(guest)
    assert codes == [SIZE_MISMATCH, FAIL_INPUT, 0]
    world.close()


# 2 MiB entries, which no kernel makes for the 4 KiB folios of guest_memfd, and which KVM could deal with


def large_page() -> tuple[World, int, int]:
    """A guest that owns 2 MiB by one RMP entry: its world, and where that is (gpa, page of the file)."""
    world = World("inplace-v13", pages=1024).finished()
    world.gmem.allocate(0, 1024 * PAGE_SIZE)
    world.convert(0, 1024, private=True)
    first, gpa = -world.gmem_pfn(0) % 512, 64 << 20
    world.vm.delete_slot(0)
    world.vm.set_user_memory_region2(0, gpa, 512 * PAGE_SIZE, gmem=world.gmem, offset=first * PAGE_SIZE)
    update = world.platform.rmp.rmpupdate(world.gmem_pfn(first), assigned=True, asid=1, gfn=gpa // PAGE_SIZE, pagesize=1)
    assert update == (0, 1)
    return world, gpa, first


def test_a_large_rmp_entry_is_split_for_small_pages() -> None:
    """SIZEM: KVM answers with PSMASH, and what the guest did is done again."""
    world, gpa, first = large_page()
    codes = []

    def guest(cpu: GuestCpu) -> None:
        codes.append(cpu.pvalidate(gpa + 5 * PAGE_SIZE))
        codes.append(cpu.pvalidate(gpa + 6 * PAGE_SIZE))
        cpu.store(gpa + 5 * PAGE_SIZE, b"split")

    assert world.vcpus[0].run(guest).reason is ExitReason.HLT
    assert codes == [0, 0]
    names = [world.state(first + i).name for i in range(4, 8)]
    assert names == ["GUEST_INVALID", "GUEST_VALID", "GUEST_VALID", "GUEST_INVALID"]
    assert all(not entry.pagesize for _, _, entry in world.platform.rmp.entries.runs() if entry.asid)
    world.close()


def test_a_large_page_is_validated_as_one() -> None:
    world, gpa, first = large_page()
    codes = []
    world.vcpus[0].run(lambda cpu: codes.extend([cpu.pvalidate(gpa, huge=True), cpu.pvalidate(gpa, huge=True)]))
    assert codes == [0, NO_UPDATE]
    assert world.state(first + 511) is RmpState.GUEST_VALID
    world.close()


@pytest.mark.parametrize(("start", "count"), [(0, 1), (5, 1), (511, 1), (100, 300), (0, 512)])
def test_part_of_a_large_page_is_freed(start: int, count: int) -> None:
    """The entry is split, and the rest stays the guest's."""
    world, _, first = large_page()
    world.gmem.punch_hole((first + start) * PAGE_SIZE, count * PAGE_SIZE)
    assert world.platform.rmp.assigned_to(1) == 512 - count + 1  # and the VMSA
    assert not world.platform.warnings
    world.close()


def test_a_large_page_that_cant_be_split() -> None:
    """PSMASH that fails is warned about; the RMPUPDATE after it overlaps, and would be tried for ever."""
    world, _, first = large_page()
    world.platform.rmp.inject = lambda name, pfn, gfn: PsmashStatus.FAIL_PERMISSION if name == "PSMASH" else None
    with pytest.raises(InvariantViolation, match=r"RMPUPDATE of pfn 0x\w+ came to code 4 \d+ times in a row"):
        world.convert(first + 3, private=False)
    assert [warning.split(" of ")[0] for warning in world.platform.warnings] == ["PSMASH"]
    world.kvm.close()


def test_a_large_page_in_use() -> None:
    """Another processor is at the entry: PSMASH is tried again until it's done."""
    world, _, first = large_page()
    left = 3

    def busy(name: str, pfn: int, gfn: int | None) -> int | None:
        nonlocal left
        left -= name == "PSMASH"
        return PsmashStatus.FAIL_INUSE if name == "PSMASH" and left >= 0 else None

    world.platform.rmp.inject = busy
    world.convert(first + 3, private=False)
    assert (left, world.platform.warnings) == (-1, [])
    world.convert(first + 3, private=True)
    world.close()


# Implicit conversion


def test_a_private_access_to_shared_memory(world: World) -> None:
    """The C-bit against the attribute: user space is told which view was wanted, and where."""
    world.finished()
    world.convert(1, private=False)
    vcpu = world.vcpus[0]

    def guest(cpu: GuestCpu) -> None:
        cpu.accept(page(1), PAGE_SIZE)
        cpu.store(page(1) + 8, b"x")

    exit_ = vcpu.run(guest)
    assert exit_.reason is ExitReason.MEMORY_FAULT
    assert exit_.error is not None
    assert exit_.error.rule.id == "kvm.fault.mismatch"
    fault = exit_.memory_fault
    assert (fault.gpa, fault.size, fault.flags) == (page(1), PAGE_SIZE, KVM_MEMORY_EXIT_FLAG_PRIVATE)
    assert vcpu.run().reason is ExitReason.MEMORY_FAULT, "as long as nobody converts"
    world.convert(1, private=True)
    assert vcpu.run().reason is ExitReason.HLT


def test_a_shared_access_to_private_memory(world: World) -> None:
    world.finished()
    world.convert(1, private=True)
    vcpu = world.vcpus[0]

    def guest(cpu: GuestCpu) -> None:
        cpu.accept(page(1), PAGE_SIZE)
        cpu.store(page(1), b"secret")
        cpu.load(page(1), 6, shared=True)

    exit_ = vcpu.run(guest)
    assert exit_.reason is ExitReason.MEMORY_FAULT
    assert (exit_.memory_fault.gpa, exit_.memory_fault.flags) == (page(1), 0)
    assert world.state(1) is RmpState.GUEST_VALID
    world.convert(1, private=False)
    assert vcpu.run().reason is ExitReason.HLT


def test_touching_what_was_mapped_the_other_way_before(world: World) -> None:
    """The nested mapping is there, of the other kind: the RMP check, not the walk, is what faults."""
    world.finished()
    world.convert(0, private=False)
    world.buffer[:4] = b"host"
    seen = []

    def guest(cpu: GuestCpu) -> None:
        seen.append(cpu.load(page(0), 4, shared=True))
        cpu.accept(page(0), PAGE_SIZE)
        cpu.store(page(0), b"mine")
        cpu.store(page(0), b"ours", shared=True)
        seen.append(cpu.load(page(0), 4, shared=True))

    stops = world.serve(world.vcpus[0], guest)
    assert [(stop.reason, stop.private) for stop in stops[:-1]] == [("MEMORY_FAULT", True), ("MEMORY_FAULT", False)]
    assert seen == [b"host", b"ours"]


def test_an_access_across_two_pages(world: World) -> None:
    """One is private, one shared; each is a fault of its own."""
    world.finished()
    world.convert(0, 2, private=True)
    world.convert(1, private=False)

    def guest(cpu: GuestCpu) -> None:
        cpu.accept(page(0), PAGE_SIZE)
        cpu.accept(page(1), PAGE_SIZE)
        cpu.store(page(1) - 2, b"abcd")
        assert cpu.load(page(1) - 2, 4) == b"abcd"

    stops = world.serve(world.vcpus[0], guest)
    assert [(stop.reason, stop.gpa) for stop in stops] == [("MEMORY_FAULT", page(1)), ("HLT", 0)]


def test_no_slot(world: World) -> None:
    """A private access outside of every slot is a mismatch (or has no slot, where attributes are the VM's)."""
    world.finished()
    gpa = 0x40000000
    exit_ = world.vcpus[0].run(lambda cpu: cpu.load(gpa))
    assert (exit_.reason, exit_.memory_fault.gpa, exit_.wants_private) == (ExitReason.MEMORY_FAULT, gpa, True)
    assert exit_.error is not None
    assert exit_.error.rule.id == "kvm.fault.mismatch"
    if not world.profile.in_place:
        world.vm.make_private(gpa, PAGE_SIZE)
        again = world.vcpus[0].run()
        assert again.error is not None
        assert again.error.rule.id == "kvm.fault.private-no-slot"
    mmio = world.vcpus[0].run(lambda cpu: cpu.load(gpa + PAGE_SIZE, 4, shared=True))
    assert (mmio.reason, mmio.mmio.phys_addr, mmio.mmio.len) == (ExitReason.MMIO, gpa + PAGE_SIZE, 4)


# RMPADJUST


def test_rmpadjust(world: World) -> None:
    world.started(vcpus=1)
    world.load(0, noise())
    world.finish()
    world.convert(1, private=True)
    codes = []

    def guest(cpu: GuestCpu) -> None:
        codes.append(cpu.rmpadjust(page(0), vmpl=1, mask=VmplMask.READ | VmplMask.WRITE))
        codes.append(cpu.rmpadjust(page(0), vmpl=3, mask=VmplMask.ALL, vmsa=True))
        codes.append(cpu.rmpadjust(page(0), vmpl=0, mask=0))
        codes.append(cpu.rmpadjust(page(0), vmpl=4, mask=0))
        with pytest.raises(VmmCommunication):
            cpu.rmpadjust(page(1), vmpl=1, mask=0)

    assert world.vcpus[0].run(guest).reason is ExitReason.HLT
    assert codes == [0, 0, FAIL_PERMISSION, FAIL_INPUT]
    entry = world.platform.rmp.lookup(world.gmem_pfn(0))
    assert entry is not None
    assert (entry.vmpl, entry.vmsa) == ((31, 3, 0, 31), True)


def test_other_guests_have_no_such_instructions() -> None:
    world = World("inplace-v13")
    vm = world.kvm.create_vm(VmType.SW_PROTECTED)
    vcpu = vm.create_vcpu()
    with pytest.raises(UndefinedOpcode):
        vcpu.run(lambda cpu: cpu.pvalidate(0))
    with pytest.raises(UndefinedOpcode):
        vcpu.run(lambda cpu: cpu.rmpadjust(0, vmpl=1, mask=0))
    vcpu.close()
    vm.close()
    world.close()


# Holes and poison


def test_a_punched_page_comes_back_fresh(world: World) -> None:
    """#7: assigned anew, not validated, and what was in it is gone."""
    world.started(vcpus=1)
    world.load(0, noise(2))
    world.finish()
    assert world.vcpus[0].run(lambda cpu: cpu.load(page(0))).reason is ExitReason.HLT
    world.gmem.punch_hole(0, PAGE_SIZE)
    codes: list[int] = []
    seen: list[bytes] = []

    def guest(cpu: GuestCpu) -> None:
        with pytest.raises(VmmCommunication):
            cpu.load(page(0))
        codes.append(cpu.pvalidate(page(0)))
        seen.append(cpu.load(page(0), PAGE_SIZE))
        seen.append(cpu.load(page(1), PAGE_SIZE))

    assert world.vcpus[0].run(guest).reason is ExitReason.HLT
    assert codes == [0]
    assert seen[0] != noise(2)[:PAGE_SIZE]
    assert seen[1] == noise(2)[PAGE_SIZE:]


def test_signals_interrupt_a_run(world: World) -> None:
    world.finished()
    world.convert(0, private=True)
    world.signal()
    with pytest.raises(KernelError, match=r"kvm\.run\.signal"):
        world.vcpus[0].run(lambda cpu: cpu.accept(page(0), PAGE_SIZE))
    world.signal(0)
    assert world.vcpus[0].run().reason is ExitReason.HLT
    assert world.state(0) is RmpState.GUEST_VALID
