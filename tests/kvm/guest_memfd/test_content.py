# SPDX-License-Identifier: GPL-2.0-or-later
"""RFC v5's content flags: who can keep which promise, and what is in the pages afterwards."""

from __future__ import annotations

from errno import EAGAIN, EINVAL, EOPNOTSUPP

import pytest

from gmemu import ConversionRefused, GuestMemfd, Host, Kvm, Mapping, Vcpu, Vm, VmType
from gmemu.uapi.kvm import (
    KVM_SET_MEMORY_ATTRIBUTES2,
    KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE,
    KVM_SET_MEMORY_ATTRIBUTES2_ZERO,
    kvm_memory_attributes2,
)
from gmemu.uapi.mman import FOLL_PIN

from ..world import BOTH, PAGE, PRIVATE, World, errno_of, fill, in_profiles, load, refusal

ZERO, PRESERVE = KVM_SET_MEMORY_ATTRIBUTES2_ZERO, KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE
only_here = in_profiles("rfc-v5")
DATA = b"data" * 1024


def machine(world: World, pages: int = 4) -> tuple[Vm, Vcpu, GuestMemfd, Mapping]:
    """A software-protected VM whose shared memory is full of DATA."""
    vm = world.vm()
    gmem = vm.create_guest_memfd(pages * PAGE, BOTH)
    mapping = gmem.mmap()
    vm.set_user_memory_region2(0, 0, pages * PAGE, gmem=gmem, userspace_addr=mapping.address)
    fill(mapping, DATA)
    return vm, vm.create_vcpu(), gmem, mapping


@only_here
class TestSoftwareProtected:
    def test_preserve_keeps_contents_both_ways(self, world: World) -> None:
        _, vcpu, gmem, mapping = machine(world)
        gmem.make_private(0, PAGE, PRESERVE)
        assert load(vcpu, 0, PAGE) == DATA
        gmem.make_shared(0, PAGE, PRESERVE)
        assert mapping[:PAGE] == DATA

    def test_zero_is_for_what_becomes_shared(self, world: World) -> None:
        _, _, gmem, mapping = machine(world)
        gmem.make_private(0, 2 * PAGE, PRESERVE)
        gmem.make_shared(PAGE, PAGE, ZERO)
        assert mapping[PAGE : 2 * PAGE] == bytes(PAGE)
        assert errno_of(lambda: gmem.make_private(PAGE, PAGE, ZERO)) == EOPNOTSUPP
        gmem.make_shared(0, PAGE, PRESERVE)
        assert mapping[:PAGE] == DATA

    def test_unspecified_scrambles(self, world: World) -> None:
        _, vcpu, gmem, mapping = machine(world)
        gmem.make_private(0, PAGE)
        scrambled = load(vcpu, 0, PAGE)
        assert scrambled not in (DATA, bytes(PAGE))
        gmem.make_shared(0, PAGE)
        assert mapping[:PAGE] not in (DATA, bytes(PAGE))
        assert mapping[PAGE:] == DATA * 3

    def test_a_mode_is_applied_where_nothing_changes(self, world: World) -> None:
        """D7: the result doesn't depend on what the attribute was before."""
        _, _, gmem, mapping = machine(world)
        gmem.make_shared(0, PAGE, ZERO)
        assert mapping[: 2 * PAGE] == bytes(PAGE) + DATA

    def test_pages_without_memory_get_none(self, world: World) -> None:
        vm = world.vm()
        gmem = vm.create_guest_memfd(1 << 40, BOTH)
        before = world.host.memmap.nr_allocated
        for flags in (ZERO, PRESERVE, 0):
            gmem.make_shared(0, 1 << 40, flags)
        gmem.make_private(0, 1 << 40)
        assert world.host.memmap.nr_allocated == before

    def test_what_fails_leaves_the_contents(self, world: World) -> None:
        _, _, gmem, mapping = machine(world)
        mm = world.host.init.mm
        pinned = world.syscall(lambda: _pin(mm, mapping.address + PAGE))
        with pytest.raises(ConversionRefused) as refused:
            gmem.make_private(0, 4 * PAGE)
        assert (refused.value.errno, refused.value.error_offset) == (EAGAIN, PAGE)
        assert mapping[:] == DATA * 4
        world.host.memmap.unpin(pinned)


def _pin(mm: object, address: int) -> int:
    from gmemu.mm.gup import get_user_pages_fast

    [(pfn, _)] = get_user_pages_fast(mm, address, 1, FOLL_PIN)  # type: ignore[arg-type]
    return pfn


@only_here
def test_flags_are_checked_before_the_range(world: World) -> None:
    _, _, gmem, _ = machine(world)

    def broken(flags: int, size: int = PAGE + 1) -> str:
        args = kvm_memory_attributes2(size=size, attributes=PRIVATE, flags=flags)
        return refusal(lambda: gmem.ioctl(KVM_SET_MEMORY_ATTRIBUTES2, bytearray(args.pack())))

    assert broken(4) == "gmem.content.flags"
    assert broken(ZERO | PRESERVE) == "gmem.content.both"
    assert broken(ZERO) == "gmem.attributes.unaligned"
    assert broken(ZERO, PAGE) == "gmem.content.unsupported"
    assert broken(PRESERVE, PAGE) == ""


@pytest.mark.parametrize(("vm_type", "platform"), [(VmType.SNP, "amd"), (VmType.TDX, "intel")])
def test_encrypted_guests_can_promise_less(vm_type: VmType, platform: str) -> None:
    """Contents survive towards private while firmware still takes pages in as they are; zeroes come back."""
    with Host("rfc-v5", platform=platform, memory=1 << 32) as host:
        kvm = Kvm.open_on(host)
        vm = kvm.create_vm(vm_type)
        (vm.snp.init2 if vm_type is VmType.SNP else vm.tdx.init_vm)()
        gmem = vm.create_guest_memfd(4 * PAGE, BOTH)
        memory = gmem.mmap()
        memory[:PAGE] = DATA
        gmem.make_private(0, PAGE, PRESERVE)
        assert errno_of(lambda: gmem.make_private(PAGE, PAGE, ZERO)) == EOPNOTSUPP
        assert errno_of(lambda: gmem.make_shared(0, PAGE, PRESERVE)) == EOPNOTSUPP
        gmem.make_shared(0, PAGE, ZERO)
        assert memory[:PAGE] == bytes(PAGE)
        if vm_type is VmType.SNP:
            vm.snp.launch_start()
            vm.snp.launch_finish()
        else:
            vm.create_vcpu().tdx_init()
            vm.tdx.finalize_vm()
        assert errno_of(lambda: gmem.make_private(0, PAGE, PRESERVE)) == EOPNOTSUPP
        gmem.make_private(0, PAGE)
        gmem.make_shared(0, PAGE, ZERO)


@in_profiles("inplace-v8", "inplace-v13")
def test_other_kernels_know_no_flags(world: World) -> None:
    _, _, gmem, _ = machine(world)
    assert errno_of(lambda: gmem.make_private(0, PAGE, PRESERVE)) == EINVAL
