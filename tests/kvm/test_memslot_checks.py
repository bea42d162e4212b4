# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_SET_USER_MEMORY_REGION and REGION2: what is refused, and in which order."""

from __future__ import annotations

from collections.abc import Callable
from errno import EBADF, EEXIST, EINVAL
from itertools import combinations

import pytest

from gmemu import Vm
from gmemu.mm.uaccess import TASK_SIZE_MAX
from gmemu.uapi.kvm import (
    KVM_MEM_GUEST_MEMFD,
    KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEM_READONLY,
    KVM_SET_USER_MEMORY_REGION,
    KVM_SET_USER_MEMORY_REGION2,
    kvm_userspace_memory_region,
    kvm_userspace_memory_region2,
)

from .world import DEFAULT, PAGE, SW_PROTECTED, World, errno_of, every_profile, refusal

Region = kvm_userspace_memory_region2
TOP = 1 << 64


def set_region(vm: Vm, region: Region) -> int:
    """KVM_SET_USER_MEMORY_REGION2."""
    return vm.ioctl(KVM_SET_USER_MEMORY_REGION2, bytearray(region.pack()))


def _size(region: Region) -> None:
    region.memory_size += 1


def _gpa(region: Region) -> None:
    region.guest_phys_addr |= 1


def _hva(region: Region) -> None:
    region.userspace_addr |= 1


def _offset(region: Region) -> None:
    region.guest_memfd_offset |= 1


def _id(region: Region) -> None:
    region.slot |= 0x7FFC


def _address_space(region: Region) -> None:
    region.slot |= 1 << 16


def _flags(region: Region) -> None:
    region.flags |= 1 << 3


def _wrap(region: Region) -> None:
    region.guest_phys_addr |= TOP - PAGE


def _pages(region: Region) -> None:
    region.memory_size += 1 << 43


def _fd(region: Region) -> None:
    region.guest_memfd = 999


CHECKS: dict[str, Callable[[Region], None]] = {
    "kvm.slot.id": _id,
    "kvm.slot.flags": _flags,
    "kvm.slot.size-unaligned": _size,
    "kvm.slot.gpa-unaligned": _gpa,
    "kvm.slot.hva": _hva,
    "kvm.slot.gmem-offset": _offset,
    "kvm.slot.address-space": _address_space,
    "kvm.slot.gpa-wrap": _wrap,
    "kvm.slot.too-large": _pages,
    "gmem.bind.fd": _fd,
}
"""What each check finds wrong, in the order of the checks."""


def good(world: World, vm: Vm) -> Region:
    """A region that nothing is wrong with."""
    gmem = world.gmem(vm, 4, 0)
    return Region(
        flags=KVM_MEM_GUEST_MEMFD,
        guest_phys_addr=0x10000,
        memory_size=2 * PAGE,
        guest_memfd=gmem.fd,
        guest_memfd_offset=PAGE,
    )


@pytest.mark.parametrize("rule", CHECKS)
@every_profile
def test_each_check_refuses(world: World, rule: str) -> None:
    vm = world.vm()
    region = good(world, vm)
    CHECKS[rule](region)
    assert refusal(lambda: set_region(vm, region)) == rule
    assert errno_of(lambda: set_region(vm, region)) == (EBADF if rule == "gmem.bind.fd" else EINVAL)
    assert set_region(vm, good(world, vm)) == 0


@pytest.mark.parametrize(("first", "second"), list(combinations(CHECKS, 2)))
def test_of_two_faults_the_earlier_is_told(world: World, first: str, second: str) -> None:
    vm = world.vm()
    region = good(world, vm)
    CHECKS[second](region)
    CHECKS[first](region)
    assert refusal(lambda: set_region(vm, region)) == first


def test_everything_wrong_at_once_is_set_right_step_by_step(world: World) -> None:
    vm = world.vm()
    rules = list(CHECKS)
    for left in range(len(rules)):
        region = good(world, vm)
        for rule in rules[left:]:
            CHECKS[rule](region)
        assert refusal(lambda region=region: set_region(vm, region)) == rules[left]  # type: ignore[misc]


class TestOrderWithSlotsThere:
    def test_deleting_what_isnt_there_comes_before_overlap_and_binding(self, world: World) -> None:
        vm = world.vm()
        region = good(world, vm)
        region.memory_size, region.guest_memfd = 0, 999
        assert refusal(lambda: set_region(vm, region)) == "kvm.slot.delete-missing"

    def test_overlap_comes_before_binding(self, world: World) -> None:
        vm = world.vm()
        set_region(vm, good(world, vm))
        region = good(world, vm)
        region.slot, region.guest_memfd = 1, 999
        assert refusal(lambda: set_region(vm, region)) == "kvm.slot.overlap"
        assert errno_of(lambda: set_region(vm, region)) == EEXIST

    def test_binding_comes_before_the_highest_frame(self, world: World) -> None:
        vm = world.vm()
        region = good(world, vm)
        region.guest_phys_addr = (1 << 48) - PAGE
        region.guest_memfd = 999
        assert refusal(lambda: set_region(vm, region)) == "gmem.bind.fd"

    def test_the_highest_frame_is_the_last_check_and_undoes_the_binding(self, world: World) -> None:
        vm = world.vm()
        region = good(world, vm)
        region.guest_phys_addr = (1 << 48) - PAGE
        file = world.host.init.file(region.guest_memfd)
        assert refusal(lambda: set_region(vm, region)) == "kvm.slot.max-gfn"
        assert len(file.bindings) == 0  # type: ignore[attr-defined]
        region.guest_phys_addr -= PAGE
        assert set_region(vm, region) == 0

    def test_an_existing_guest_memfd_slot_cant_be_changed_at_all(self, world: World) -> None:
        """Not even to what it is."""
        vm = world.vm()
        region = good(world, vm)
        set_region(vm, region)
        assert refusal(lambda: set_region(vm, region)) == "kvm.slot.gmem-immutable"
        region.guest_phys_addr += 16 * PAGE
        region.userspace_addr += PAGE
        assert refusal(lambda: set_region(vm, region)) == "kvm.slot.gmem-immutable"
        region.flags = 0
        assert refusal(lambda: set_region(vm, region)) == "kvm.slot.modify"

    @pytest.mark.parametrize("field", ["userspace_addr", "memory_size", "readonly"])
    def test_what_an_existing_slot_keeps(self, world: World, field: str) -> None:
        vm = world.vm(DEFAULT)
        region = Region(guest_phys_addr=0x10000, memory_size=2 * PAGE, userspace_addr=0x40000)
        set_region(vm, region)
        if field == "readonly":
            region.flags = KVM_MEM_READONLY
        else:
            setattr(region, field, getattr(region, field) + PAGE)
        assert refusal(lambda: set_region(vm, region)) == "kvm.slot.modify"

    def test_changing_comes_before_overlap(self, world: World) -> None:
        vm = world.vm(DEFAULT)
        set_region(vm, Region(guest_phys_addr=0x10000, memory_size=2 * PAGE))
        set_region(vm, Region(slot=1, guest_phys_addr=0x20000, memory_size=2 * PAGE))
        moved = Region(slot=1, guest_phys_addr=0x11000, memory_size=2 * PAGE, userspace_addr=PAGE)
        assert refusal(lambda: set_region(vm, moved)) == "kvm.slot.modify"
        moved.userspace_addr = 0
        assert refusal(lambda: set_region(vm, moved)) == "kvm.slot.overlap"


class TestFlags:
    CASES = (
        (0, True, True),
        (KVM_MEM_LOG_DIRTY_PAGES, True, True),
        (KVM_MEM_READONLY, True, True),
        (KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY, True, True),
        (KVM_MEM_GUEST_MEMFD | KVM_MEM_LOG_DIRTY_PAGES, False, False),
        (KVM_MEM_GUEST_MEMFD | KVM_MEM_READONLY, False, False),
        (1 << 16, False, False),
        (1 << 17, False, False),
        (1 << 31, False, False),
    )

    @pytest.mark.parametrize(("flags", "by_v2", "by_v1"), CASES)
    @every_profile
    def test_combinations(self, world: World, flags: int, by_v2: bool, by_v1: bool) -> None:
        vm = world.vm()
        fd = world.gmem(vm, 4, 0).fd
        region = Region(flags=flags, guest_phys_addr=0, memory_size=PAGE, guest_memfd=fd)
        assert refusal(lambda: set_region(vm, region)) == ("" if by_v2 else "kvm.slot.flags")
        old = kvm_userspace_memory_region(slot=1, flags=flags, guest_phys_addr=PAGE, memory_size=PAGE)
        call = lambda: vm.ioctl(KVM_SET_USER_MEMORY_REGION, bytearray(old.pack()))  # noqa: E731
        assert refusal(call) == ("" if by_v1 else "kvm.slot.v1-flags")

    @every_profile
    def test_a_default_vm_and_guest_memfd(self, world: World) -> None:
        """6.12 has guest_memfd for VMs with private memory only."""
        vm = world.vm(DEFAULT)
        fd = world.gmem(vm, 1, 0).fd
        region = Region(flags=KVM_MEM_GUEST_MEMFD, memory_size=PAGE, guest_memfd=fd)
        assert refusal(lambda: set_region(vm, region)) == ("" if world.profile.gmem_for_default_vm else "kvm.slot.flags")

    def test_of_v1_come_before_the_number(self, world: World) -> None:
        region = kvm_userspace_memory_region(slot=0xFFFF, flags=KVM_MEM_GUEST_MEMFD, memory_size=PAGE)
        call = lambda: world.vm().ioctl(KVM_SET_USER_MEMORY_REGION, bytearray(region.pack()))  # noqa: E731
        assert refusal(call) == "kvm.slot.v1-flags"
        region.flags = 0
        assert refusal(call) == "kvm.slot.id"


class TestAddresses:
    @pytest.mark.parametrize("vm_type", [DEFAULT, SW_PROTECTED])
    def test_address_spaces(self, world: World, vm_type: int) -> None:
        """SMM's exists unless memory can be private."""
        vm = world.vm(vm_type)  # type: ignore[arg-type]
        refused = [
            refusal(lambda i=i: set_region(vm, Region(slot=i << 16, memory_size=PAGE)))  # type: ignore[misc]
            for i in range(3)
        ]
        smm = "" if vm_type == DEFAULT else "kvm.slot.address-space"
        assert refused == ["", smm, "kvm.slot.address-space"]

    def test_the_user_address_must_be_in_user_space(self, world: World) -> None:
        vm = world.vm(DEFAULT)
        last = Region(memory_size=2 * PAGE, userspace_addr=TASK_SIZE_MAX - PAGE)
        assert refusal(lambda: set_region(vm, last)) == "kvm.slot.hva"
        last.userspace_addr = 1 << 63
        assert refusal(lambda: set_region(vm, last)) == "kvm.slot.hva"
        last.userspace_addr = TASK_SIZE_MAX - 2 * PAGE
        assert set_region(vm, last) == 0

    def test_the_user_address_need_not_be_mapped(self, world: World) -> None:
        assert set_region(world.vm(DEFAULT), Region(memory_size=PAGE, userspace_addr=0x5000)) == 0

    def test_the_largest_slot(self, world: World) -> None:
        vm = world.vm(DEFAULT)
        assert refusal(lambda: set_region(vm, Region(memory_size=1 << 43))) == "kvm.slot.too-large"
        assert set_region(vm, Region(memory_size=(1 << 43) - PAGE)) == 0

    def test_the_end_of_guest_memory(self, world: World) -> None:
        vm = world.vm(DEFAULT)
        assert refusal(lambda: set_region(vm, Region(guest_phys_addr=1 << 48, memory_size=PAGE))) == "kvm.slot.max-gfn"
        assert set_region(vm, Region(guest_phys_addr=(1 << 48) - PAGE, memory_size=PAGE)) == 0
        assert refusal(lambda: set_region(vm, Region(slot=1, guest_phys_addr=TOP - PAGE, memory_size=PAGE))) == (
            "kvm.slot.gpa-wrap"
        )
