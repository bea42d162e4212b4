# SPDX-License-Identifier: GPL-2.0-or-later
"""Binding a slot to a guest_memfd: which file, which range, and that no page is bound twice."""

from __future__ import annotations

from errno import EBADF, EEXIST, EINVAL

import pytest

from gmemu import GuestMemfd, Vm
from gmemu.uapi.kvm import KVM_MEM_GUEST_MEMFD, KVM_SET_USER_MEMORY_REGION2, kvm_userspace_memory_region2

from ..world import BOTH, DEFAULT, PAGE, World, errno_of, every_profile, in_profiles, load, refusal, store

HUGE = 0x7FFFFFFFFFFFF000


def bind(vm: Vm, gmem: GuestMemfd | int, offset: int = 0, *, slot: int = 0, gpa: int = 0, pages: int = 1) -> str:
    """What came of binding `pages` pages at `offset` (bytes)."""
    return refusal(lambda: vm.set_user_memory_region2(slot, gpa, pages * PAGE, gmem=gmem, offset=offset))


@every_profile
class TestTheFile:
    def test_must_be_open(self, world: World) -> None:
        vm = world.vm()
        assert bind(vm, 999) == "gmem.bind.fd"
        assert bind(vm, 0xFFFFFFFF) == "gmem.bind.fd"
        assert errno_of(lambda: vm.set_user_memory_region2(0, 0, PAGE, gmem=999)) == EBADF

    def test_must_be_a_guest_memfd_of_this_vm(self, world: World) -> None:
        vm, other = world.vm(), world.vm()
        vcpu = vm.create_vcpu()
        memfd = world.door.memfd_create("x")
        refused = [bind(vm, fd) for fd in (world.kvm.fd, vm.fd, vcpu.fd, memfd)]
        assert refused == ["gmem.bind.not-gmem"] * 4
        assert bind(vm, world.gmem(other, 1, 0)) == "gmem.bind.other-vm"
        assert errno_of(lambda: vm.set_user_memory_region2(0, 0, PAGE, gmem=vm.fd)) == EINVAL

    def test_checks_in_order(self, world: World) -> None:
        """Descriptor, kind, VM, range, overlap: each call breaks that one and all that can be broken after it."""
        vm, other = world.vm(), world.vm()
        gmem, foreign = world.gmem(vm, 4, 0), world.gmem(other, 4, 0)
        assert bind(vm, gmem, pages=2) == ""
        assert bind(vm, 999, 8 * PAGE, slot=1, gpa=0x8000) == "gmem.bind.fd"
        assert bind(vm, vm.fd, 8 * PAGE, slot=1, gpa=0x8000) == "gmem.bind.not-gmem"
        assert bind(vm, foreign, 8 * PAGE, slot=1, gpa=0x8000) == "gmem.bind.other-vm"
        assert bind(vm, gmem, 0, slot=1, gpa=0x8000, pages=5) == "gmem.bind.range"
        overlap = "gmem.bind.overlap" if world.profile.bind_overlap_is_eexist else "gmem.bind.overlap-einval"
        assert bind(vm, gmem, PAGE, slot=1, gpa=0x8000) == overlap
        errno = errno_of(lambda: vm.set_user_memory_region2(1, 0x8000, PAGE, gmem=gmem, offset=PAGE))
        assert errno == (EEXIST if world.profile.bind_overlap_is_eexist else EINVAL)

    def test_no_reference_is_kept(self, world: World) -> None:
        vm = world.vm()
        gmem = world.gmem(vm, 1, 0)
        file = world.gmem_file(gmem)
        bind(vm, gmem)
        assert file.count == 1
        gmem.close()
        assert file.count == 0

    def test_without_memory_nothing_is_stored(self, world: World) -> None:
        """S18."""
        vm = world.vm()
        gmem = world.gmem(vm, 4, 0)
        world.host.failing_allocations["gmem-bindings"] = 1
        assert bind(vm, gmem, 0, pages=4) == "mm.page.oom"
        assert world.gmem_file(gmem).bindings.empty(0, 4)
        assert not world.kvm_vm(vm).memslots[0].by_id
        assert bind(vm, gmem, 0, pages=4) == ""


@every_profile
class TestTheRange:
    @pytest.mark.parametrize("offset", [1, 8, 512, PAGE - 1, PAGE + 1])
    def test_offsets_are_aligned(self, world: World, offset: int) -> None:
        vm = world.vm()
        assert bind(vm, world.gmem(vm, 4, 0), offset) == "kvm.slot.gmem-offset"

    @pytest.mark.parametrize(
        ("offset", "pages", "fits"), [(0, 4, True), (3, 1, True), (0, 5, False), (3, 2, False), (4, 1, False), (5, 1, False)]
    )
    def test_lies_within_the_file(self, world: World, offset: int, pages: int, fits: bool) -> None:
        vm = world.vm()
        assert bind(vm, world.gmem(vm, 4, 0), offset * PAGE, pages=pages) == ("" if fits else "gmem.bind.range")

    def test_near_the_end_of_the_numbers(self, world: World) -> None:
        """S17: added as signed numbers, offset and size wrap to less than the size of the file."""
        vm = world.vm()
        gmem = world.gmem(vm, 4, 0)
        accepted = not world.profile.bind_offset_is_unsigned
        assert bind(vm, gmem, HUGE) == ("" if accepted else "gmem.bind.range")
        if accepted:
            slot = world.slot(vm)
            assert slot.gmem_index(slot.base_gfn) == HUGE >> 12
            vm.delete_slot(0)
        assert bind(vm, gmem, 1 << 63) == "gmem.bind.range"
        assert bind(vm, gmem, (1 << 64) - 2 * PAGE) == "gmem.bind.range"
        assert bind(vm, gmem, (1 << 64) - PAGE) == "kvm.slot.gmem-offset"


@in_profiles("linux-6.18")
def test_a_page_beyond_the_file_is_freed_with_it(world: World) -> None:
    """What S17 lets the guest have isn't part of the file's size, but it goes with the file."""
    vm = world.vm(DEFAULT)
    gmem = vm.create_guest_memfd(PAGE, BOTH)
    assert bind(vm, gmem, HUGE) == ""
    vcpu = vm.create_vcpu()
    store(vcpu, 0, b"lost in space")
    assert load(vcpu, 0, 4) == b"lost"
    gmem.close()
    assert world.kvm_vm(vm).mmu.walk(0) is None


@every_profile
class TestOverlap:
    @pytest.mark.parametrize(("first", "count"), [(1, 2), (0, 2), (2, 2), (0, 4), (1, 1), (2, 1)])
    def test_no_page_twice(self, world: World, first: int, count: int) -> None:
        vm = world.vm()
        gmem = world.gmem(vm, 4, 0)
        assert bind(vm, gmem, PAGE, pages=2) == ""
        assert bind(vm, gmem, first * PAGE, slot=1, gpa=0x10000, pages=count).startswith("gmem.bind.overlap")
        assert world.slot(vm).gmem_file is world.gmem_file(gmem)

    def test_neighbours(self, world: World) -> None:
        vm = world.vm()
        gmem = world.gmem(vm, 4, 0)
        for i in (2, 0, 3, 1):
            assert bind(vm, gmem, i * PAGE, slot=i, gpa=i * 0x10000) == ""
        assert len(world.gmem_file(gmem).bindings) == 4

    def test_again_after_deletion(self, world: World) -> None:
        vm = world.vm()
        gmem = world.gmem(vm, 4, 0)
        for gpa in (0, 0x10000, 0):
            assert bind(vm, gmem, PAGE, gpa=gpa, pages=3) == ""
            vm.delete_slot(0)

    def test_the_same_pages_of_two_files(self, world: World) -> None:
        vm = world.vm()
        assert bind(vm, world.gmem(vm, 1, 0)) == ""
        assert bind(vm, world.gmem(vm, 1, 0), slot=1, gpa=0x1000) == ""


@every_profile
def test_which_slots_are_served_from_it_alone(world: World) -> None:
    vm = world.vm(DEFAULT if world.profile.gmem_for_default_vm else 1)  # type: ignore[arg-type]
    for slot in range(4):
        if slot & ~world.profile.gmem_flags_for(vm.vm_type != DEFAULT):
            continue
        bind(vm, vm.create_guest_memfd(PAGE, slot), slot=slot, gpa=slot * PAGE)
        only = {"never": False, "always": True, "mmap": bool(slot & 1)}[world.profile.gmem_only_slots]
        assert world.slot(vm, slot).gmem_only == only


def test_a_slot_of_the_other_address_space(world: World) -> None:
    vm = world.vm(DEFAULT)
    gmem = vm.create_guest_memfd(2 * PAGE, BOTH)
    region = kvm_userspace_memory_region2(
        slot=1 << 16, flags=KVM_MEM_GUEST_MEMFD, memory_size=PAGE, guest_memfd=gmem.fd, guest_memfd_offset=PAGE
    )
    vm.ioctl(KVM_SET_USER_MEMORY_REGION2, bytearray(region.pack()))
    assert bind(vm, gmem, PAGE) == "gmem.bind.overlap"
    assert bind(vm, gmem, 0) == ""
    gmem.close()
    assert world.slot(vm, 0, 1).gmem_file is None
