# SPDX-License-Identifier: GPL-2.0-or-later
"""The API's objects do the same on the emulated Linux 6.18 and on a real one: VMs, creation, binding, slots, lifetimes.

Each expectation was met by a real 6.18 first.  Left out is what the two differ in on purpose: the real machines at hand
have neither private memory nor a two-dimensional MMU, so no other VM type, no attributes and no pre-faulting.
"""

from __future__ import annotations

from errno import EBADF, EEXIST, EINVAL, ENOENT, ENOTTY, ENXIO

import pytest

from gmemu import Cap, GuestMemfd, Kvm, Vm
from gmemu.uapi.kvm import (
    KVM_CREATE_GUEST_MEMFD,
    KVM_CREATE_VCPU,
    KVM_GET_DIRTY_LOG,
    KVM_MEM_GUEST_MEMFD,
    KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEM_READONLY,
    KVM_SET_MEMORY_ATTRIBUTES2,
    KVM_SET_USER_MEMORY_REGION2,
    kvm_create_guest_memfd,
    kvm_dirty_log,
    kvm_memory_attributes2,
    kvm_userspace_memory_region2,
)

from .conftest import SIZE
from .refusals import refused

PAGE = 0x1000
BOTH = 3


def bind(vm: Vm, gmem: GuestMemfd | int, slot: int = 0, *, gpa: int = 0, size: int = SIZE, offset: int = 0) -> None:
    vm.set_user_memory_region2(slot, gpa, size, gmem=gmem, offset=offset)


# The device


@pytest.mark.parametrize(
    ("cap", "value"), [(Cap.USER_MEMORY2, 1), (Cap.MEMORY_FAULT_INFO, 1), (Cap.GUEST_MEMFD, 1), (Cap.GUEST_MEMFD_FLAGS, 3)]
)
def test_capabilities(kvm: Kvm, vm: Vm, cap: Cap, value: int) -> None:
    assert kvm.check_extension(cap) == value
    assert vm.check_extension(cap) == value


def test_no_private_memory_in_a_default_vm(vm: Vm) -> None:
    assert vm.check_extension(Cap.MEMORY_ATTRIBUTES) == 0
    assert vm.check_extension(Cap.GUEST_MEMFD_MEMORY_ATTRIBUTES) == 0


def test_device(kvm: Kvm) -> None:
    assert kvm.api_version() == 12
    assert kvm.check_extension(Cap.VM_TYPES) & 1
    assert kvm.check_extension(-1) == 0
    with refused(EINVAL, "kvm.device.ioctl"):
        kvm.ioctl(0x1234)
    with refused(EINVAL, "kvm.device.argument"):
        kvm.ioctl(0xAE00, 1)
    for vm_type in (7, -1, 1 << 63):
        with refused(EINVAL, "kvm.create-vm.type"):
            kvm.create_vm(vm_type)


def test_unknown_ioctls(vm: Vm, gmem: GuestMemfd) -> None:
    with refused(ENOTTY, "kvm.vm.ioctl"):
        vm.ioctl(0x1234)
    with refused(ENOTTY, "gmem.ioctl.unknown"):
        gmem.ioctl(0x1234)
    with refused(ENOTTY, "gmem.attributes.disabled"):
        gmem.ioctl(KVM_SET_MEMORY_ATTRIBUTES2, bytearray(kvm_memory_attributes2(size=PAGE).pack()))


def test_vcpu(vm: Vm) -> None:
    with vm.create_vcpu(3) as vcpu:
        assert not vcpu.immediate_exit
        vcpu.immediate_exit = True
        assert vcpu.kvm_run[1] == 1
        assert (vcpu.regs.rip, vcpu.regs.rflags, vcpu.sregs.cs.base) == (0xFFF0, 2, 0xFFFF0000)
        with refused(EEXIST, "kvm.create-vcpu.exists"):
            vm.create_vcpu(3)
    for number in (vm.check_extension(Cap.MAX_VCPU_ID), 1 << 32, -1):
        with refused(EINVAL, "kvm.create-vcpu.id"):
            vm.ioctl(KVM_CREATE_VCPU, number)


# Creation


@pytest.mark.parametrize("bit", range(64))
def test_creation_flags(vm: Vm, bit: int) -> None:
    if 1 << bit & BOTH:
        vm.create_guest_memfd(SIZE, 1 << bit).close()
    else:
        with refused(EINVAL, "gmem.create.flags"):
            vm.create_guest_memfd(SIZE, 1 << bit)


@pytest.mark.parametrize("size", [0, 1, PAGE - 1, PAGE + 1, -1, -PAGE, 1 << 63, (1 << 63) + PAGE, (1 << 63) - 1])
def test_sizes_refused(vm: Vm, size: int) -> None:
    with refused(EINVAL, "gmem.create.size"):
        vm.create_guest_memfd(size, BOTH)


@pytest.mark.parametrize("size", [PAGE, 1 << 40, (1 << 63) - PAGE])
def test_sizes_accepted(vm: Vm, size: int) -> None:
    with vm.create_guest_memfd(size, BOTH) as gmem:
        assert gmem.stat().size == size


def test_flags_are_checked_before_the_size(vm: Vm) -> None:
    with refused(EINVAL, "gmem.create.flags"):
        vm.create_guest_memfd(1, 4)


def test_reserved_words_of_creation_are_ignored(vm: Vm) -> None:
    args = kvm_create_guest_memfd(size=SIZE, reserved=(1, 2, 3, 4, 5, 6))
    fd = vm.ioctl(KVM_CREATE_GUEST_MEMFD, bytearray(args.pack()))
    vm.door.close(fd)


def test_each_file_is_one_of_its_own(vm: Vm, gmem: GuestMemfd) -> None:
    with vm.create_guest_memfd(2 * SIZE) as other:
        assert (other.stat().size, gmem.stat().size) == (2 * SIZE, SIZE)
        assert other.stat().ino != gmem.stat().ino


# Binding


def test_bind_and_delete(vm: Vm, gmem: GuestMemfd) -> None:
    bind(vm, gmem)
    vm.delete_slot(0)
    bind(vm, gmem, 1, gpa=1 << 32, size=PAGE, offset=3 * PAGE)
    bind(vm, gmem, 2, size=3 * PAGE)
    vm.delete_slot(1)
    vm.delete_slot(2)


def test_bind_needs_an_open_descriptor(vm: Vm, gmem: GuestMemfd) -> None:
    closed = vm.create_guest_memfd(SIZE)
    fd = closed.fd
    closed.close()
    for bad in (fd, -1, 1 << 30, 1 << 31):
        with refused(EBADF, "gmem.bind.fd"):
            bind(vm, bad)


def test_bind_needs_a_guest_memfd_of_the_vm(kvm: Kvm, vm: Vm) -> None:
    memfd = kvm.door.memfd_create("plain")
    for fd in (kvm.fd, vm.fd, memfd):
        with refused(EINVAL, "gmem.bind.not-gmem"):
            bind(vm, fd)
    kvm.door.close(memfd)
    with kvm.create_vm() as other, other.create_guest_memfd(SIZE, BOTH) as foreign:
        with refused(EINVAL, "gmem.bind.other-vm"):
            bind(vm, foreign)
        bind(other, foreign)


@pytest.mark.parametrize(
    ("size", "offset", "rule"),
    [
        (PAGE, 1, "kvm.slot.gmem-offset"),
        (PAGE, PAGE - 1, "kvm.slot.gmem-offset"),
        (SIZE, (1 << 64) - PAGE, "kvm.slot.gmem-offset"),
        (PAGE, SIZE, "gmem.bind.range"),
        (SIZE, PAGE, "gmem.bind.range"),
        (SIZE + PAGE, 0, "gmem.bind.range"),
        (PAGE, 1 << 63, "gmem.bind.range"),
        (1, 0, "kvm.slot.size-unaligned"),
    ],
)
def test_bind_within_the_file(vm: Vm, gmem: GuestMemfd, size: int, offset: int, rule: str) -> None:
    with refused(EINVAL, rule):
        bind(vm, gmem, size=size, offset=offset)


@pytest.mark.usefixtures("only_6_18")
def test_bind_checks_its_end_as_a_signed_number(vm: Vm, gmem: GuestMemfd) -> None:
    bind(vm, gmem, size=PAGE, offset=(1 << 63) - PAGE)
    vm.delete_slot(0)


@pytest.mark.usefixtures("only_6_18")
def test_bind_overlapping_file_pages(vm: Vm, gmem: GuestMemfd) -> None:
    bind(vm, gmem, 0, size=2 * PAGE, offset=PAGE)
    for offset, size in ((0, 2 * PAGE), (PAGE, PAGE), (2 * PAGE, 2 * PAGE), (0, SIZE)):
        with refused(EINVAL, "gmem.bind.overlap-einval"):
            bind(vm, gmem, 1, gpa=1 << 32, size=size, offset=offset)
    bind(vm, gmem, 1, gpa=1 << 32, size=PAGE)
    bind(vm, gmem, 2, gpa=1 << 33, size=PAGE, offset=3 * PAGE)


def test_overlap_of_guest_frames_is_found_first(vm: Vm, gmem: GuestMemfd) -> None:
    bind(vm, gmem, 0, size=2 * PAGE)
    with refused(EEXIST, "kvm.slot.overlap"):
        bind(vm, -1, 1, gpa=PAGE, size=PAGE, offset=2 * PAGE)


@pytest.mark.usefixtures("only_6_18")
def test_a_dup_has_the_same_bindings(vm: Vm, gmem: GuestMemfd) -> None:
    bind(vm, gmem, size=PAGE)
    with GuestMemfd(vm.door, vm.door.dup(gmem.fd), SIZE) as other:
        with refused(EINVAL, "gmem.bind.overlap-einval"):
            bind(vm, other, 1, gpa=1 << 32, size=PAGE)
        gmem.close()
        bind(vm, other, 1, gpa=1 << 32, size=PAGE, offset=PAGE)


def test_a_refused_binding_leaves_nothing(vm: Vm, gmem: GuestMemfd) -> None:
    with refused(EINVAL, "gmem.bind.range"):
        bind(vm, gmem, size=SIZE + PAGE)
    with refused(EINVAL, "kvm.slot.delete-missing"):
        vm.delete_slot(0)
    bind(vm, gmem)


@pytest.mark.parametrize("flags", [KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, 8, 1 << 16, 1 << 17, 1 << 31])
def test_flags_that_exclude_a_guest_memfd(vm: Vm, gmem: GuestMemfd, flags: int) -> None:
    with refused(EINVAL, "kvm.slot.flags"):
        vm.set_user_memory_region2(0, 0, SIZE, gmem=gmem, flags=flags)


def test_padding_of_a_region_is_ignored(vm: Vm, gmem: GuestMemfd) -> None:
    region = kvm_userspace_memory_region2(
        flags=KVM_MEM_GUEST_MEMFD, memory_size=SIZE, guest_memfd=gmem.fd, pad1=7, pad2=(9,) * 14
    )
    vm.ioctl(KVM_SET_USER_MEMORY_REGION2, bytearray(region.pack()))


@pytest.mark.parametrize("hva", [1, PAGE - 1, (1 << 47) - PAGE, 1 << 47, 1 << 63, (1 << 64) - PAGE])
def test_userspace_addr(vm: Vm, gmem: GuestMemfd, hva: int) -> None:
    with refused(EINVAL, "kvm.slot.hva"):
        vm.set_user_memory_region2(0, 0, SIZE, gmem=gmem, userspace_addr=hva)


# A slot's life


def test_a_bound_slot_is_immutable(vm: Vm, gmem: GuestMemfd) -> None:
    bind(vm, gmem)
    bind_again = [dict[str, int](), {"gpa": 1 << 20}, {"size": PAGE}, {"offset": PAGE}]
    for change in bind_again:
        with refused(EINVAL, "kvm.slot.gmem-immutable"):
            bind(vm, gmem, **change)
    for flags in (0, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY):
        with refused(EINVAL, "kvm.slot.modify"):
            vm.set_user_memory_region2(0, 0, SIZE, flags=flags)
    with refused(EINVAL, "kvm.slot.modify"):
        vm.set_user_memory_region(0, 0, SIZE, 0)


def test_a_plain_slot_cannot_become_bound(kvm: Kvm, vm: Vm, gmem: GuestMemfd) -> None:
    with kvm.anonymous(SIZE) as memory:
        vm.set_user_memory_region(0, 0, SIZE, memory.address)
        with refused(EINVAL, "kvm.slot.gmem-immutable"):
            vm.set_user_memory_region2(0, 0, SIZE, userspace_addr=memory.address, gmem=gmem)
        vm.delete_slot(0)


@pytest.mark.parametrize("flags", [0, KVM_MEM_GUEST_MEMFD, KVM_MEM_LOG_DIRTY_PAGES])
def test_delete_by_region2(vm: Vm, gmem: GuestMemfd, flags: int) -> None:
    bind(vm, gmem)
    vm.set_user_memory_region2(0, 0, 0, flags=flags)
    bind(vm, gmem)


@pytest.mark.parametrize("flags", [0, KVM_MEM_LOG_DIRTY_PAGES])
def test_delete_by_region1(vm: Vm, gmem: GuestMemfd, flags: int) -> None:
    bind(vm, gmem)
    vm.set_user_memory_region(0, 0, 0, 0, flags)
    bind(vm, gmem)


def test_region1_does_not_know_the_flag(vm: Vm, gmem: GuestMemfd) -> None:
    bind(vm, gmem)
    with refused(EINVAL, "kvm.slot.v1-flags"):
        vm.set_user_memory_region(0, 0, 0, 0, KVM_MEM_GUEST_MEMFD)
    with refused(EINVAL, "kvm.slot.id"):
        vm.delete_slot(vm.check_extension(Cap.NR_MEMSLOTS))


def test_a_bound_slot_has_no_dirty_log(kvm: Kvm, vm: Vm, gmem: GuestMemfd) -> None:
    bind(vm, gmem)
    with kvm.anonymous(PAGE) as bitmap, refused(ENOENT, "kvm.dirty-log.none"):
        vm.ioctl(KVM_GET_DIRTY_LOG, bytearray(kvm_dirty_log(dirty_bitmap=bitmap.address).pack()))


# Orders of closing


def test_the_file_may_go_before_its_slot(vm: Vm) -> None:
    with vm.create_guest_memfd(SIZE, BOTH) as gmem:
        bind(vm, gmem)
    vm.delete_slot(0)
    with vm.create_guest_memfd(SIZE, BOTH) as gmem:
        bind(vm, gmem)


def test_the_file_outlives_its_vm(kvm: Kvm) -> None:
    vm = kvm.create_vm()
    with vm.create_guest_memfd(SIZE, BOTH) as gmem, gmem.mmap() as mapping:
        bind(vm, gmem)
        mapping[0:4] = b"kept"
        vm.close()
        assert mapping[0:4] == b"kept"
        gmem.punch_hole(0, PAGE)
        assert mapping[0:4] == bytes(4)


def test_a_mapping_outlives_its_file(vm: Vm) -> None:
    gmem = vm.create_guest_memfd(SIZE, BOTH)
    with gmem.mmap() as mapping:
        bind(vm, gmem)
        mapping[PAGE : PAGE + 4] = b"kept"
        gmem.close()
        assert mapping[PAGE : PAGE + 4] == b"kept"
        mapping[0:3] = b"new"
        with refused(EBADF, "gmem.bind.fd"):
            bind(vm, 1 << 30, 1, gpa=1 << 32)
        vm.delete_slot(0)
        assert mapping[0:3] + mapping[PAGE : PAGE + 4] == b"newkept"


def test_dup_is_the_same_file(vm: Vm, gmem: GuestMemfd) -> None:
    other = GuestMemfd(vm.door, vm.door.dup(gmem.fd), SIZE)
    assert other.stat() == gmem.stat()
    with gmem.mmap() as one, other.mmap() as two:
        gmem.close()
        one[0:4] = b"both"
        assert two[0:4] == b"both"
        other.close()
        assert one[0:4] == b"both"
    with refused(EBADF, "fs.fd"):
        vm.door.dup(1 << 30)


def test_proc_does_not_lead_to_the_file_again(kvm: Kvm, gmem: GuestMemfd) -> None:
    with refused(ENXIO, "fs.open.no-device"):
        kvm.door.open(f"/proc/self/fd/{gmem.fd}")
    with refused(ENOENT, "fs.open.missing"):
        kvm.door.open(f"/proc/self/fd/{1 << 30}")
    kvm.door.close(kvm.door.open(f"/proc/self/fd/{kvm.fd}"))
