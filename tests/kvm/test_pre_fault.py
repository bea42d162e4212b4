# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_PRE_FAULT_MEMORY: what is refused in which order, and how far it gets."""

from __future__ import annotations

from collections.abc import Callable
from errno import EAGAIN, EFAULT, EINTR, EINVAL, ENOENT, EOPNOTSUPP
from itertools import combinations

import pytest

from gmemu import Host, KernelError, Kvm, Vcpu, Vm, VmType
from gmemu.kvm.memslots import KVM_MEMSLOT_INVALID
from gmemu.uapi.errno import EHWPOISON
from gmemu.uapi.kvm import KVM_PRE_FAULT_MEMORY, kvm_pre_fault_memory
from gmemu.uapi.mman import PROT_READ

from .world import DEFAULT, PAGE, World, errno_of, every_profile, in_profiles, load, refusal, two_pools

Range = kvm_pre_fault_memory
BASE = 0x100000


def with_gmem(world: World, pages: int = 4) -> tuple[Vm, Vcpu]:
    """A VM whose private memory is at BASE."""
    vm = world.vm()
    vm.set_user_memory_region2(0, BASE, pages * PAGE, gmem=world.gmem(vm, pages))
    if not world.profile.in_place:
        vm.make_private(BASE, pages * PAGE)
    return vm, vm.create_vcpu()


def pre_fault(vcpu: Vcpu, wanted: Range) -> tuple[str, Range]:
    """The rule that the call broke, if any, and the structure afterwards."""
    buffer = bytearray(wanted.pack())
    rule = refusal(lambda: vcpu.ioctl(KVM_PRE_FAULT_MEMORY, buffer))
    return rule, Range.unpack_from(buffer)


@every_profile
def test_all_of_it(world: World) -> None:
    vm, vcpu = with_gmem(world)
    assert pre_fault(vcpu, Range(gpa=BASE, size=4 * PAGE)) == ("", Range(gpa=BASE + 4 * PAGE, size=0))
    mmu = world.kvm_vm(vm).mmu
    assert all(mmu.walk((BASE >> 12) + i) is not None for i in range(4))
    assert load(vcpu, BASE, 8) == bytes(8)


@every_profile
def test_what_is_there_already_counts(world: World) -> None:
    _, vcpu = with_gmem(world)
    for _ in range(2):
        assert vcpu.pre_fault(BASE, 2 * PAGE) == 0


@every_profile
def test_beyond_the_slot(world: World) -> None:
    """Success with a remainder, if anything was done; then ENOENT."""
    _, vcpu = with_gmem(world)
    rest = Range(gpa=BASE + 4 * PAGE, size=2 * PAGE)
    assert pre_fault(vcpu, Range(gpa=BASE + 3 * PAGE, size=3 * PAGE)) == ("", rest)
    assert pre_fault(vcpu, rest) == ("kvm.pre-fault.no-slot", rest)
    assert errno_of(lambda: vcpu.pre_fault(0, PAGE)) == ENOENT


def _flags(wanted: Range) -> None:
    wanted.flags = 1


def _range(wanted: Range) -> None:
    wanted.size = 0


def _signal(world: World) -> None:
    world.door.task.pending_signals = 1


def _early(world: World) -> None:
    world.host.vms[0].arch.pre_fault_allowed = False


def _dead(world: World) -> None:
    world.host.vms[0].vm_dead = True


CHECKS: dict[str, Callable[[Range], None]] = {"kvm.pre-fault.flags": _flags, "kvm.pre-fault.range": _range}
STATES: dict[str, Callable[[World], None]] = {"kvm.pre-fault.signal": _signal, "kvm.pre-fault.early": _early}
ORDER = ["kvm.vm.dead", *CHECKS, *STATES, "kvm.pre-fault.no-slot"]


@pytest.mark.parametrize(("first", "second"), [(rule, rule) for rule in ORDER] + list(combinations(ORDER, 2)))
def test_checks_in_order(world: World, first: str, second: str) -> None:
    """Dead VM, flags, range, signal, launch, slot: of two things wrong the earlier is told."""
    _, vcpu = with_gmem(world)
    wanted = Range(gpa=BASE, size=PAGE)
    if "kvm.pre-fault.no-slot" in (first, second):
        wanted.gpa = 0
    for rule in (second, first):
        if rule in CHECKS:
            CHECKS[rule](wanted)
        elif rule in STATES:
            STATES[rule](world)
    if first == "kvm.vm.dead":
        _dead(world)
    assert pre_fault(vcpu, wanted) == (first, wanted)
    world.door.task.pending_signals = 0


@pytest.mark.parametrize(
    ("gpa", "size"),
    [(1, PAGE), (0, PAGE - 1), (0, 0), ((1 << 64) - PAGE, PAGE), ((1 << 64) - PAGE, 2 * PAGE), (PAGE, (1 << 64) - PAGE)],
)
def test_ranges(world: World, gpa: int, size: int) -> None:
    _, vcpu = with_gmem(world)
    assert pre_fault(vcpu, Range(gpa=gpa, size=size))[0] == "kvm.pre-fault.range"
    assert errno_of(lambda: vcpu.pre_fault(gpa, size)) == EINVAL


def test_padding_is_ignored(world: World) -> None:
    _, vcpu = with_gmem(world)
    assert pre_fault(vcpu, Range(gpa=BASE, size=PAGE, padding=(1,) * 5))[0] == ""


class TestTheStructure:
    def test_that_isnt_there(self, world: World) -> None:
        _, vcpu = with_gmem(world)
        assert errno_of(lambda: vcpu.ioctl(KVM_PRE_FAULT_MEMORY, 0x1000)) == EFAULT

    @pytest.mark.parametrize("flags", [0, 1])
    def test_that_cant_be_written_back(self, world: World, flags: int) -> None:
        """It's copied back in any case, also when the call failed: then EFAULT hides why.  The memory is mapped."""
        vm, vcpu = with_gmem(world)
        memory = world.kvm.anonymous(PAGE)
        memory[: Range.SIZE] = Range(gpa=BASE, size=PAGE, flags=flags).pack()
        memory.protect(PROT_READ)
        assert refusal(lambda: vcpu.ioctl(KVM_PRE_FAULT_MEMORY, memory.address)) == "mm.uaccess"
        assert (world.kvm_vm(vm).mmu.walk(BASE >> 12) is None) == bool(flags)

    def test_by_address(self, world: World) -> None:
        _, vcpu = with_gmem(world)
        memory = world.kvm.anonymous(PAGE)
        memory[: Range.SIZE] = Range(gpa=BASE + 2 * PAGE, size=8 * PAGE).pack()
        assert vcpu.ioctl(KVM_PRE_FAULT_MEMORY, memory.address) == 0
        assert Range.unpack_from(memory[: Range.SIZE]) == Range(gpa=BASE + 4 * PAGE, size=6 * PAGE)


class TestFailuresOnTheWay:
    """Whatever goes wrong with a later page, what came before was done and counts as success."""

    def partial(self, vcpu: Vcpu, errno: int, rule: str) -> None:
        rest = Range(gpa=BASE + 2 * PAGE, size=2 * PAGE)
        assert pre_fault(vcpu, Range(gpa=BASE, size=4 * PAGE)) == ("", rest)
        assert pre_fault(vcpu, rest) == (rule, rest)
        assert errno_of(lambda: vcpu.pre_fault(rest.gpa, rest.size)) == errno

    def test_a_bad_page(self, world: World) -> None:
        vm = world.vm()
        gmem = world.gmem(vm, 4)
        vm.set_user_memory_region2(0, BASE, 4 * PAGE, gmem=gmem)
        gmem.allocate(0, 4 * PAGE)
        assert refusal(lambda: world.host.memory_failure(world.pfn(gmem, 2))) == "mm.hwpoison.kept"
        self.partial(vm.create_vcpu(), EHWPOISON, "gmem.get-pfn.hwpoison")

    def test_a_bad_user_address(self, world: World) -> None:
        vm = world.vm(DEFAULT)
        vcpu = vm.create_vcpu()
        memory = world.kvm.anonymous(4 * PAGE)
        world.door.munmap(memory.address + 2 * PAGE, 2 * PAGE)
        vm.set_user_memory_region2(0, BASE, 4 * PAGE, userspace_addr=memory.address)
        self.partial(vcpu, EFAULT, "kvm.fault.hva")
        world.door.munmap(memory.address, 2 * PAGE)

    @two_pools
    def test_private_memory_without_guest_memfd(self, world: World) -> None:
        vm = world.vm()
        memory = world.kvm.anonymous(4 * PAGE)
        vm.set_user_memory_region2(0, BASE, 4 * PAGE, userspace_addr=memory.address)
        vm.make_private(BASE + 2 * PAGE, 2 * PAGE)
        self.partial(vm.create_vcpu(), EFAULT, "kvm.fault.no-gmem")

    @two_pools
    def test_private_memory_without_a_slot(self, world: World) -> None:
        vm = world.vm()
        vm.make_private(0, PAGE)
        assert refusal(lambda: vm.create_vcpu().pre_fault(0, PAGE)) == "kvm.fault.private-no-slot"

    @every_profile
    def test_a_closed_file(self, world: World) -> None:
        vm = world.vm()
        gmem = world.gmem(vm, 1)
        vm.set_user_memory_region2(0, BASE, PAGE, gmem=gmem)
        if not world.profile.in_place:
            vm.make_private(BASE, PAGE)
        gmem.close()
        assert refusal(lambda: vm.create_vcpu().pre_fault(BASE, PAGE)) == "gmem.get-pfn.closed"

    def test_a_slot_that_is_going_away(self, world: World) -> None:
        """A running guest would retry; this has no promise to make progress."""
        vm, vcpu = with_gmem(world)
        slot = world.slot(vm)
        slot.flags |= KVM_MEMSLOT_INVALID
        with pytest.raises(KernelError) as caught:
            vcpu.pre_fault(BASE, PAGE)
        assert (caught.value.errno, caught.value.rule.id) == (EAGAIN, "kvm.pre-fault.slot-deleted")
        slot.flags &= ~KVM_MEMSLOT_INVALID

    def test_a_signal(self, world: World) -> None:
        _, vcpu = with_gmem(world)
        world.door.task.pending_signals = 1
        assert errno_of(lambda: vcpu.pre_fault(BASE, PAGE)) == EINTR
        world.door.task.pending_signals = 0
        assert vcpu.pre_fault(BASE, PAGE) == 0


@pytest.mark.parametrize("unaligned", [False, True])
def test_a_launch_that_isnt_finished(world: World, unaligned: bool) -> None:
    vm = world.vm(VmType.SNP)
    vm.snp.init2()
    vcpu = vm.create_vcpu()
    assert errno_of(lambda: vcpu.pre_fault(int(unaligned), PAGE)) == (EINVAL if unaligned else EOPNOTSUPP)


def test_a_kernel_with_a_shadow_mmu() -> None:
    """Without two-dimensional paging it's refused; before there ever was a slot even the MMU's pages are lacking."""
    with (
        Host("linux-6.18-shared-only", memory=1 << 30) as host,
        Kvm.open_on(host) as kvm,
        kvm.create_vm() as vm,
        vm.create_vcpu() as vcpu,
    ):
        assert refusal(lambda: vcpu.pre_fault(0, PAGE)) == "kvm.pre-fault.no-mmu-pages"
        vm.set_user_memory_region2(0, 0, PAGE)
        assert refusal(lambda: vcpu.pre_fault(0, PAGE)) == "kvm.pre-fault.no-tdp"


@in_profiles("linux-7.3")
def test_shared_memory_of_both_kinds(world: World) -> None:
    vm = world.vm(DEFAULT)
    memory = world.kvm.anonymous(PAGE)
    vm.set_user_memory_region2(0, 0, PAGE, userspace_addr=memory.address)
    vm.set_user_memory_region2(1, PAGE, PAGE, gmem=vm.create_guest_memfd(PAGE, 3))
    assert vm.create_vcpu().pre_fault(0, 2 * PAGE) == 0
