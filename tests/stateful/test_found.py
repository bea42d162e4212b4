# SPDX-License-Identifier: GPL-2.0-or-later
"""What the stateful test found, each as a program of its own."""

from __future__ import annotations

from errno import EIO, ENODEV, ENOMEM

import pytest

from gmemu import BusError, KernelError, Kvm, VmType
from gmemu.api import Vm
from gmemu.uapi.mman import MAP_FIXED, MAP_SHARED
from gmemu.uapi.sev import SnpPageType

PAGE = 4096


def test_vcpu_in_fragmented_memory() -> None:
    """The three pages of kvm_run needn't be neighbours: with a single free page in front, KVM_CREATE_VCPU crashed."""
    with Kvm.open() as kvm:
        vm = kvm.create_vm()
        one, other = kvm.anonymous(PAGE), kvm.anonymous(PAGE)
        one[:], other[:] = bytes(PAGE), bytes(PAGE)
        one.close()
        vcpu = vm.create_vcpu()
        vcpu.kvm_run[PAGE : 2 * PAGE] = bytes([7]) * PAGE
        assert other[:] == bytes(PAGE)


@pytest.mark.parametrize(("profile", "survives"), [("linux-6.12", True), ("linux-7.3", False)])
def test_refused_mapping_over_another(profile: str, survives: bool) -> None:
    """MAP_FIXED takes away what was there before kvm_gmem_mmap() refuses; a kernel without kvm_gmem_mmap() refuses first."""
    with Kvm.open(profile) as kvm:
        gmem = kvm.create_vm(VmType.SW_PROTECTED).create_guest_memfd(PAGE)
        there = kvm.anonymous(PAGE)
        there[:4] = b"here"
        with pytest.raises(KernelError) as refused:
            kvm.door.mmap(there.address, PAGE, 3, MAP_SHARED | MAP_FIXED, gmem.fd, 0)
        assert refused.value.errno == ENODEV
        if survives:
            assert there[:4] == b"here"
        else:
            with pytest.raises(Exception, match="SIGSEGV"):
                there[:4]


def _snp(kvm: Kvm) -> Vm:
    vm = kvm.create_vm(VmType.SNP)
    vm.snp.init2()
    vm.snp.launch_start()
    return vm


@pytest.mark.parametrize("profile", ["linux-6.18", "linux-7.3"])
def test_refused_update_allocates_no_more_than_the_kernel(profile: str) -> None:
    """LAUNCH_UPDATE of four pages that fails with the first: the other three aren't allocated, as the kernel never came to
    them.  (With its source unreadable 7.3 doesn't even come to the first; after LAUNCH_FINISH it does.)"""
    with Kvm.open(profile) as kvm:
        vm = _snp(kvm)
        gmem = vm.create_guest_memfd(4 * PAGE)
        source = kvm.anonymous(4 * PAGE)
        vm.set_user_memory_region2(0, 0, 4 * PAGE, gmem=gmem, userspace_addr=source.address)
        vm.make_private(0, 4 * PAGE)
        if profile == "linux-7.3":
            source[:] = bytes([1]) * 4 * PAGE
            vm.snp.launch_finish()
        else:
            source.close()
        with pytest.raises(KernelError) as failed:
            vm.snp.launch_update(0, 4 * PAGE, SnpPageType.NORMAL, source.address)
        assert failed.value.errno == EIO
        [inode] = kvm.host.gmem_inodes
        assert [index for index in range(4) if inode.mapping.pfn(index) is not None] == [0]


def test_memory_runs_out_half_way() -> None:
    """Whatever takes several pages gets those that there are, one after the other, before it fails."""
    with Kvm.open(memory=16 * PAGE) as kvm:
        vm = kvm.create_vm(VmType.SW_PROTECTED)
        gmem = vm.create_guest_memfd(32 * PAGE, 3)
        free = kvm.host.memmap.nr_free
        with pytest.raises(KernelError) as failed:
            gmem.allocate(0, 32 * PAGE)
        assert failed.value.errno == ENOMEM
        assert gmem.stat().blocks == free * 8
        gmem.punch_hole(0, 32 * PAGE)
        kvm.host.lru.lru_add_drain_all()
        memory = kvm.anonymous(32 * PAGE)
        with pytest.raises(BusError) as fault:
            memory[:] = bytes([1]) * 32 * PAGE
        assert fault.value.address == memory.address + free * PAGE
        assert memory[: free * PAGE] == bytes([1]) * free * PAGE
