# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_SET_MEMORY_ATTRIBUTES on the VM: two-pool kernels track private memory with it, in-place ones only accept 0."""

from __future__ import annotations

from collections.abc import Callable
from errno import EFAULT, EINVAL, ENOMEM, ENOTTY
from itertools import combinations

import pytest

from gmemu import ExitReason, GuestCpu, Host, Kvm
from gmemu.kvm.attributes import VmAttributes
from gmemu.uapi.kvm import KVM_SET_MEMORY_ATTRIBUTES, KVM_SET_MEMORY_ATTRIBUTES2, kvm_memory_attributes

from .world import (
    DEFAULT,
    PAGE,
    PRIVATE,
    SW_PROTECTED,
    World,
    errno_of,
    every_profile,
    in_profiles,
    load,
    refusal,
    store,
    touch,
    two_pools,
    with_vm_ioctl,
)

Attributes = kvm_memory_attributes


def _flags(attrs: Attributes) -> None:
    attrs.flags = 1


def _unknown(attrs: Attributes) -> None:
    attrs.attributes |= 1


def _wrap(attrs: Attributes) -> None:
    attrs.address |= (1 << 64) - PAGE
    attrs.size += PAGE


def _unaligned(attrs: Attributes) -> None:
    attrs.size += 1


CHECKS: dict[str, Callable[[Attributes], None]] = {
    "kvm.attributes.flags": _flags,
    "kvm.attributes.unsupported": _unknown,
    "kvm.attributes.range": _wrap,
    "kvm.attributes.unaligned": _unaligned,
}


def set_attributes(world: World, attrs: Attributes, vm_type: int = SW_PROTECTED) -> str:
    """What came of the ioctl on a new VM."""
    vm = world.vm(vm_type)  # type: ignore[arg-type]
    return refusal(lambda: vm.ioctl(KVM_SET_MEMORY_ATTRIBUTES, bytearray(attrs.pack())))


@pytest.mark.parametrize(("first", "second"), [(rule, rule) for rule in CHECKS] + list(combinations(CHECKS, 2)))
@with_vm_ioctl
def test_checks_in_order(world: World, first: str, second: str) -> None:
    attrs = Attributes(address=PAGE, size=PAGE)
    CHECKS[second](attrs)
    if first != second:
        CHECKS[first](attrs)
    assert set_attributes(world, attrs) == first


@pytest.mark.parametrize("vm_type", [DEFAULT, SW_PROTECTED])
@with_vm_ioctl
def test_which_attributes_a_vm_has(world: World, vm_type: int) -> None:
    can = vm_type == SW_PROTECTED and not world.profile.in_place
    attrs = Attributes(size=PAGE, attributes=PRIVATE)
    assert set_attributes(world, attrs, vm_type) == ("" if can else "kvm.attributes.unsupported")
    attrs.attributes = 0
    assert set_attributes(world, attrs, vm_type) == ""
    for bit in (1, 2, 4, 16, 1 << 63):
        attrs.attributes = bit
        assert set_attributes(world, attrs, vm_type) == "kvm.attributes.unsupported"


@pytest.mark.parametrize(
    ("address", "size", "rule"),
    [
        (0, 0, "kvm.attributes.range"),
        ((1 << 64) - PAGE, PAGE, "kvm.attributes.range"),
        ((1 << 64) - 2 * PAGE, PAGE, ""),
        (1, PAGE, "kvm.attributes.unaligned"),
        (0, PAGE - 1, "kvm.attributes.unaligned"),
        (0, 1 << 63, ""),
        (1 << 63, (1 << 63) - PAGE, ""),
    ],
)
@with_vm_ioctl
def test_ranges(world: World, address: int, size: int, rule: str) -> None:
    assert set_attributes(world, Attributes(address=address, size=size)) == rule


@with_vm_ioctl
def test_a_structure_that_isnt_there(world: World) -> None:
    assert errno_of(lambda: world.vm().ioctl(KVM_SET_MEMORY_ATTRIBUTES, 0x1000)) == EFAULT


def test_a_kernel_built_without_them() -> None:
    with Host("linux-6.18-shared-only", memory=1 << 30) as host:
        vm = Kvm.open_on(host).create_vm()
        args = bytearray(Attributes(size=PAGE).pack())
        assert errno_of(lambda: vm.ioctl(KVM_SET_MEMORY_ATTRIBUTES, args)) == ENOTTY


@in_profiles("rfc-v5")
def test_where_the_guest_memfd_has_them_the_vm_had_none(world: World) -> None:
    """Until v7 of the series the ioctl went away; since v8 it's there and can set nothing."""
    assert errno_of(lambda: world.vm().make_shared(0, PAGE)) == ENOTTY


@every_profile
def test_the_inodes_ioctl_isnt_the_vms(world: World) -> None:
    assert errno_of(lambda: world.vm().ioctl(KVM_SET_MEMORY_ATTRIBUTES2, bytearray(128))) == ENOTTY


@in_profiles("inplace-v8", "inplace-v13")
def test_in_place_zero_is_accepted_and_means_nothing(world: World) -> None:
    vm = world.vm()
    gmem = world.gmem(vm, 1)
    vm.set_user_memory_region2(0, 0, PAGE, gmem=gmem)
    gmem.make_private(0, PAGE)
    vm.make_shared(0, PAGE)
    assert world.inode(gmem).private_run(0, 1) == 1
    assert errno_of(lambda: vm.make_private(0, PAGE)) == EINVAL


@two_pools
class TestTwoPools:
    def test_runs_are_merged(self, world: World) -> None:
        vm = world.vm()
        attributes = world.kvm_vm(vm).attributes
        assert isinstance(attributes, VmAttributes)
        vm.make_private(0, 1 << 40)
        vm.make_shared(4 * PAGE, PAGE)
        assert list(attributes.array.runs()) == [(0, 4, PRIVATE), (5, 1 << 28, PRIVATE)]
        vm.make_private(4 * PAGE, PAGE)
        assert list(attributes.array.runs()) == [(0, 1 << 28, PRIVATE)]
        vm.make_shared(0, 1 << 40)
        assert len(attributes.array) == 0

    def test_they_belong_to_frames_not_to_slots(self, world: World) -> None:
        """They can be set where no slot is, and survive the slot's deletion."""
        vm = world.vm()
        gmem, memory = world.gmem(vm, 1, 0), world.kvm.anonymous(PAGE)
        vm.make_private(0, PAGE)
        vm.set_user_memory_region2(0, 0, PAGE, gmem=gmem, userspace_addr=memory.address)
        vcpu = vm.create_vcpu()
        store(vcpu, 0, b"private")
        assert memory[:7] == bytes(7)
        vm.delete_slot(0)
        exit_ = touch(vcpu, 0)
        assert (exit_.reason, exit_.wants_private) == (ExitReason.MEMORY_FAULT, True)
        vm.set_user_memory_region2(0, 0, PAGE, gmem=gmem, userspace_addr=memory.address)
        assert load(vcpu, 0, 7) == b"private"

    def test_two_backings_keep_their_bytes(self, world: World) -> None:
        vm = world.vm()
        gmem, memory = world.gmem(vm, 1, 0), world.kvm.anonymous(PAGE)
        vm.set_user_memory_region2(0, 0, PAGE, gmem=gmem, userspace_addr=memory.address)
        vcpu = vm.create_vcpu()
        store(vcpu, 0, b"shared!")
        vm.make_private(0, PAGE)
        assert load(vcpu, 0, 7) == bytes(7)
        store(vcpu, 0, b"private")
        assert memory[:7] == b"shared!"
        vm.make_shared(0, PAGE)
        assert load(vcpu, 0, 7) == b"shared!"
        vm.make_private(0, PAGE)
        assert load(vcpu, 0, 7) == b"private"

    def test_a_change_takes_the_old_view_away(self, world: World) -> None:
        vm = world.vm()
        gmem, memory = world.gmem(vm, 3, 0), world.kvm.anonymous(3 * PAGE)
        vm.set_user_memory_region2(0, 0, 3 * PAGE, gmem=gmem, userspace_addr=memory.address)
        vcpu = vm.create_vcpu()
        memory[:] = b"s" * 3 * PAGE
        seen: list[bytes] = []

        def guest(cpu: GuestCpu) -> None:
            seen.append(cpu.load(PAGE, 1))
            vm.make_private(PAGE, PAGE)
            seen.append(cpu.load(PAGE, 1))
            seen.append(cpu.load(0, 1) + cpu.load(2 * PAGE, 1))

        assert vcpu.run(guest).reason is ExitReason.HLT
        assert seen == [b"s", b"\0", b"ss"]
        assert world.kvm_vm(vm).mmu.invalidate_in_progress.read() == 0

    def test_what_is_so_already_changes_nothing(self, world: World) -> None:
        vm = world.vm()
        memory = world.kvm.anonymous(PAGE)
        vm.set_user_memory_region2(0, 0, PAGE, userspace_addr=memory.address)
        vcpu = vm.create_vcpu()
        load(vcpu, 0)
        kvm = world.kvm_vm(vm)
        seq = kvm.mmu.invalidate_seq.read()
        vm.make_shared(0, 1 << 30)
        assert (kvm.mmu.invalidate_seq.read(), kvm.mmu.walk(0) is not None) == (seq, True)
        vm.make_private(1 << 30, PAGE)  # no slot there: nothing to invalidate
        assert kvm.mmu.invalidate_seq.read() == seq
        vm.make_private(0, PAGE)
        assert (kvm.mmu.invalidate_seq.read(), kvm.mmu.walk(0)) == (seq + 1, None)

    def test_private_memory_without_guest_memfd(self, world: World) -> None:
        vm = world.vm()
        memory = world.kvm.anonymous(PAGE)
        vm.set_user_memory_region2(0, 0, PAGE, userspace_addr=memory.address)
        vm.make_private(0, PAGE)
        exit_ = touch(vm.create_vcpu(), 8)
        assert (exit_.reason, exit_.wants_private, exit_.memory_fault.gpa) == (ExitReason.MEMORY_FAULT, True, 0)

    def test_no_memory_to_store_them(self, world: World) -> None:
        vm = world.vm()
        world.host.failing_allocations["vm-attributes"] = 1
        assert errno_of(lambda: vm.make_private(0, PAGE)) == ENOMEM
        vm.make_private(0, PAGE)
        world.host.failing_allocations["vm-attributes"] = 1
        vm.make_shared(0, PAGE)  # clearing allocates nothing
