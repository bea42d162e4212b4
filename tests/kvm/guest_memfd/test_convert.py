# SPDX-License-Identifier: GPL-2.0-or-later
"""The RFC of May 2025: KVM_GMEM_CONVERT_SHARED and _PRIVATE, and files that start shared unless they ask not to."""

from __future__ import annotations

from collections.abc import Callable
from errno import EAGAIN, EFAULT, EINVAL, ENOMEM, ENOTTY
from itertools import combinations

import pytest

from gmemu import BusError, ConversionRefused, GuestMemfd, Mapping, Vcpu, Vm
from gmemu.mm.gup import get_user_pages_fast
from gmemu.uapi.kvm import (
    GUEST_MEMFD_FLAG_INIT_PRIVATE,
    GUEST_MEMFD_FLAG_SUPPORT_SHARED,
    KVM_GMEM_CONVERT_PRIVATE,
    KVM_GMEM_CONVERT_SHARED,
    KVM_SET_MEMORY_ATTRIBUTES2,
    kvm_gmem_convert,
)
from gmemu.uapi.mman import FOLL_PIN, PROT_READ

from ..world import DEFAULT, PAGE, World, errno_of, in_profiles, load, refusal, store

SHARED, INIT_PRIVATE = GUEST_MEMFD_FLAG_SUPPORT_SHARED, GUEST_MEMFD_FLAG_INIT_PRIVATE
both_ioctls = pytest.mark.parametrize("number", [KVM_GMEM_CONVERT_SHARED, KVM_GMEM_CONVERT_PRIVATE])
pytestmark = in_profiles("rfc-2025-05")


def machine(world: World, pages: int = 4, flags: int = SHARED) -> tuple[Vm, Vcpu, GuestMemfd, Mapping]:
    """A software-protected VM whose memory is one guest_memfd at gpa 0, mapped by the process."""
    vm = world.vm()
    gmem = vm.create_guest_memfd(pages * PAGE, flags)
    vm.set_user_memory_region2(0, 0, pages * PAGE, gmem=gmem)
    return vm, vm.create_vcpu(), gmem, gmem.mmap()


def pin(world: World, mapping: Mapping, page: int) -> int:
    """Pin a page of the mapping as a driver would; its page frame."""
    mm = world.host.init.mm
    [(pfn, _)] = world.syscall(lambda: get_user_pages_fast(mm, mapping.address + page * PAGE, 1, FOLL_PIN))
    return pfn


@pytest.mark.parametrize(("flags", "private"), [(0, True), (SHARED, False), (SHARED | INIT_PRIVATE, True)])
def test_what_a_file_starts_as(world: World, flags: int, private: bool) -> None:
    gmem = world.vm().create_guest_memfd(PAGE, flags)
    assert world.inode(gmem).private_run(0, 1) == private


def test_init_private_takes_support_shared(world: World) -> None:
    assert refusal(lambda: world.vm().create_guest_memfd(PAGE, INIT_PRIVATE)) == "gmem.create.init-private"
    assert refusal(lambda: world.vm().create_guest_memfd(PAGE, 1 << 5)) == "gmem.create.flags"


def test_pages_go_both_ways(world: World) -> None:
    _, vcpu, gmem, mapping = machine(world)
    mapping[PAGE : PAGE + 6] = b"before"
    gmem.convert_private(PAGE, PAGE)
    with pytest.raises(BusError):
        mapping[PAGE]
    assert load(vcpu, PAGE, 6) == b"before"
    store(vcpu, PAGE, b"inside")
    gmem.convert_shared(PAGE, PAGE)
    assert mapping[PAGE : PAGE + 6] == b"inside"


def test_the_general_names_use_what_there_is(world: World) -> None:
    _, _, gmem, mapping = machine(world)
    gmem.make_private(0, PAGE)
    with pytest.raises(BusError):
        mapping[0]
    gmem.make_shared(0, PAGE)
    assert mapping[0] == 0
    assert errno_of(lambda: gmem.ioctl(KVM_SET_MEMORY_ATTRIBUTES2, bytearray(128))) == ENOTTY


# What is refused


def _error_offset(args: kvm_gmem_convert) -> None:
    args.error_offset = PAGE


def _reserved(args: kvm_gmem_convert) -> None:
    args.reserved = (0, 0, 0, 0, 1)


def _range(args: kvm_gmem_convert) -> None:
    args.size |= (1 << 64) - PAGE
    args.offset |= PAGE


def _unaligned(args: kvm_gmem_convert) -> None:
    args.offset |= 1


CHECKS: dict[str, Callable[[kvm_gmem_convert], None]] = {
    "gmem.convert.error-offset": _error_offset,
    "gmem.convert.reserved": _reserved,
    "gmem.convert.range": _range,
    "gmem.convert.unaligned": _unaligned,
}


@both_ioctls
@pytest.mark.parametrize(("first", "second"), [(rule, rule) for rule in CHECKS] + list(combinations(CHECKS, 2)))
def test_checks_in_order(world: World, number: int, first: str, second: str) -> None:
    _, _, gmem, _ = machine(world)
    args = kvm_gmem_convert(size=PAGE)
    for rule in {second, first}:
        CHECKS[rule](args)
    assert refusal(lambda: gmem.ioctl(number, bytearray(args.pack()))) == first


@both_ioctls
@pytest.mark.parametrize("default_vm", [False, True])
def test_who_hasnt_the_ioctls(world: World, number: int, default_vm: bool) -> None:
    """A file that can't be shared, and a VM without private memory."""
    gmem = world.vm(DEFAULT).create_guest_memfd(PAGE, SHARED) if default_vm else world.vm().create_guest_memfd(PAGE)
    args = bytearray(kvm_gmem_convert(size=PAGE).pack())
    assert refusal(lambda: gmem.ioctl(number, args)) == "gmem.convert.support-shared"
    assert errno_of(lambda: gmem.ioctl(number, args)) == ENOTTY


@both_ioctls
def test_nothing_is_converted_at_once(world: World, number: int) -> None:
    """Size 0 returns 0, wherever the range begins; the other fields were looked at before."""
    _, _, gmem, _ = machine(world)
    assert gmem.ioctl(number, bytearray(kvm_gmem_convert(offset=1 << 40).pack())) == 0
    broken = bytearray(kvm_gmem_convert(error_offset=1).pack())
    assert errno_of(lambda: gmem.ioctl(number, broken)) == EINVAL
    assert errno_of(lambda: gmem.ioctl(number, 0x1000)) == EFAULT


def test_the_page_in_the_way_is_told(world: World) -> None:
    _, _, gmem, mapping = machine(world)
    mapping[2 * PAGE] = 1
    pfn = pin(world, mapping, 2)
    buffer = bytearray(kvm_gmem_convert(size=4 * PAGE).pack())
    assert errno_of(lambda: gmem.ioctl(KVM_GMEM_CONVERT_PRIVATE, buffer)) == EAGAIN
    assert kvm_gmem_convert.unpack_from(buffer).error_offset == 2 * PAGE
    assert errno_of(lambda: gmem.ioctl(KVM_GMEM_CONVERT_PRIVATE, buffer)) == EINVAL  # the answer isn't a question
    assert mapping[2 * PAGE] == 1
    world.host.memmap.unpin(pfn)
    gmem.convert_private(0, 4 * PAGE)


def test_memory_that_fails_is_told_too(world: World) -> None:
    _, _, gmem, _ = machine(world)
    world.host.failing_allocations["gmem-attributes"] = 1
    with pytest.raises(ConversionRefused) as refused:
        gmem.convert_private(PAGE, PAGE)
    assert (refused.value.errno, refused.value.error_offset) == (ENOMEM, PAGE)


def test_an_answer_that_cant_be_written_is_efault(world: World) -> None:
    _, _, gmem, mapping = machine(world)
    mapping[0] = 1
    pfn = pin(world, mapping, 0)
    with world.kvm.anonymous(PAGE) as page:
        page[: kvm_gmem_convert.SIZE] = kvm_gmem_convert(size=PAGE).pack()
        page.protect(PROT_READ)
        assert errno_of(lambda: gmem.ioctl(KVM_GMEM_CONVERT_PRIVATE, page.address)) == EFAULT
    world.host.memmap.unpin(pfn)
