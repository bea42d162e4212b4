# SPDX-License-Identifier: GPL-2.0-or-later
"""Where memory is said to be, against what was put there."""

from __future__ import annotations

import pytest

from gmemu import PROFILES, BusError, Kvm, Vm, VmType
from gmemu.api.arm64 import init_vcpu
from gmemu.hw.el2.hypervisor import Owner
from gmemu.launch.errors import LaunchError
from gmemu.launch.footprint import PLATFORMS, footprint
from gmemu.profiles.table import CONFIGURATIONS
from gmemu.rules import KernelError
from gmemu.uapi.mman import MADV_DONTNEED, PROT_READ

PAGE, MIB = 4096, 1 << 20
KERNELS = {**PROFILES, **CONFIGURATIONS}
WAYS = [
    (p.name, name)
    for p in KERNELS.values()
    for name, kind in PLATFORMS.items()
    if kind in p.vm_types and (p.name in PROFILES or name in ("cca", "pkvm"))
]


@pytest.mark.parametrize(("profile", "platform"), WAYS)
def test_two_pools_take_twice_the_memory_and_one_doesnt(profile: str, platform: str) -> None:
    size, kernel = 2 * MIB, KERNELS[profile]
    by_name = dict(footprint(kernel, platform, size))
    created, written, converted, used, back = (by_name[n] for n in ("created", "written", "converted", "used", "given back"))
    assert (created.shared, created.private, created.in_both_pools) == (0, 0, 0)
    if platform == "pkvm" and kernel.protected_memory == "pinned":
        one_pool, in_place = True, False
        assert (written.shared, converted.shared, used.shared, used.pinned) == (size, size, 0, size)
        assert size <= used.peak < size + size // 4
    else:
        one_pool = kernel.in_place and (kernel.null_source or platform == "sw-protected") and platform != "cca"
        in_place = kernel.in_place
    if one_pool and in_place and platform == "pkvm":
        assert (written.shared, converted.shared, used.private) == (size, size, size)  # it converts as the guest touches it
        assert size <= used.peak < size + size // 4
    elif one_pool and in_place:
        assert (written.shared, written.private) == (size, 0)
        assert (converted.shared, converted.private) == (0, size)
        assert (used.shared, used.private, used.in_both_pools) == (0, size, 0)
        assert size <= used.peak < size + size // 4
    elif not one_pool:
        assert used.private == size
        assert used.in_both_pools == (0 if kernel.in_place else size)
        assert used.peak >= 2 * size
    assert (back.shared, back.private, back.in_both_pools) == (0, size, 0)
    assert (back.firmware > 0) == (platform != "sw-protected")
    assert back.peak == used.peak
    assert back.total == size + back.firmware


def test_what_cant_be_run() -> None:
    with pytest.raises(LaunchError, match="no VMs of type TDX"):
        footprint(PROFILES["linux-6.12"], "tdx", MIB)
    with pytest.raises(LaunchError, match="multiple"):
        footprint(PROFILES["linux-6.12"], "snp", 5)


def machine(kvm: Kvm) -> Vm:
    """Eight pages: two private, two shared, the rest without memory."""
    vm = kvm.create_vm(VmType.SW_PROTECTED)
    gmem = vm.create_guest_memfd(8 * PAGE, 3)
    memory = gmem.mmap()
    vm.set_user_memory_region2(0, 0, 8 * PAGE, gmem=gmem, userspace_addr=memory.address)
    memory[: 4 * PAGE] = bytes(4 * PAGE)
    gmem.make_private(0, 2 * PAGE)
    return vm


def test_a_vm_is_counted_by_itself() -> None:
    with Kvm.open() as kvm:
        vms = [machine(kvm), machine(kvm)]
        for vm in vms:
            report = vm.memory_report()
            assert (report.shared, report.private, report.in_both_pools, report.firmware) == (2 * PAGE, 2 * PAGE, 0, 0)
            assert report.total == 4 * PAGE
        vms[0].delete_slot(0)
        assert vms[0].memory_report().total == 4 * PAGE  # memory is the file's, bound or not


def test_firmwares_pages_are_what_else_left_the_hosts_world() -> None:
    """By the granule protection table, and by what the hypervisor keeps of the host's pages."""
    with Kvm.open(platform="arm") as kvm:
        vm = kvm.create_vm(VmType.ARM_REALM)
        vcpu = vm.cca.create_vcpu()
        vm.cca.create_vgic()
        gmem = vm.create_guest_memfd(8 * PAGE, 3)
        memory = gmem.mmap()
        vm.set_user_memory_region2(0, 0, 8 * PAGE, gmem=gmem, userspace_addr=memory.address)
        gmem.make_private(0, 8 * PAGE)
        vcpu.run(lambda cpu: cpu.load(0, 1))
        report, gpt = vm.memory_report(), kvm.host.rmm.rmm.gpt
        assert report.private == PAGE
        assert report.firmware + report.private == sum(end - start for start, end, _ in gpt.realm.runs()) * PAGE
    with Kvm.open("linux-7.3", platform="pkvm") as kvm:
        vm = kvm.create_vm(VmType.ARM_PROTECTED)
        with kvm.anonymous(4 * PAGE) as anonymous:
            vm.set_user_memory_region2(0, 0, 4 * PAGE, userspace_addr=anonymous.address)
            vcpu = vm.create_vcpu()
            init_vcpu(vm, vcpu)
            vcpu.run(lambda cpu: cpu.load(PAGE, 1))
            report, pages = vm.memory_report(), kvm.host.pkvm.hypervisor.pages
            assert (report.shared, report.private, report.pinned) == (0, PAGE, PAGE)
            assert report.firmware == sum(e - s for s, e, entry in pages.runs() if entry.owner is Owner.HYP) * PAGE
            assert report.firmware > 0
            vcpu.close()
            vm.close()


def test_other_memory_behind_a_slot_is_shared() -> None:
    with Kvm.open("linux-7.3") as kvm:
        vm = kvm.create_vm(VmType.SW_PROTECTED)
        with kvm.anonymous(4 * PAGE) as memory:
            vm.set_user_memory_region2(0, 0, 4 * PAGE, userspace_addr=memory.address)
            memory[0] = 1
            assert memory[PAGE] == 0  # the zero page, which is nobody's
            assert vm.memory_report().shared == PAGE
            memory.madvise(MADV_DONTNEED)
            assert vm.memory_report().shared == 0


class TestPin:
    def test_counts_until_released(self) -> None:
        with Kvm.open() as kvm:
            vm = kvm.create_vm(VmType.SW_PROTECTED)
            gmem = vm.create_guest_memfd(4 * PAGE, 3)
            memory = gmem.mmap()
            with memory.pin(PAGE + 5, PAGE) as pin:
                assert (pin.pages, vm.memory_report().pinned) == (2, 2 * PAGE)
                with pytest.raises(KernelError) as refused:
                    gmem.make_private(0, 4 * PAGE)
                assert refused.value.rule.id == "gmem.attributes.busy"
            assert vm.memory_report().pinned == 0
            pin.release()
            gmem.make_private(0, 4 * PAGE)

    def test_of_a_private_page(self) -> None:
        with Kvm.open() as kvm:
            vm = kvm.create_vm(VmType.SW_PROTECTED)
            gmem = vm.create_guest_memfd(PAGE, 3)
            memory = gmem.mmap()
            gmem.make_private(0, PAGE)
            with pytest.raises(KernelError) as refused:
                memory.pin()
            assert refused.value.rule.id == "mm.gup.fault"
            with pytest.raises(BusError):
                memory[0]

    def test_for_reading_only(self) -> None:
        with Kvm.open() as kvm, kvm.anonymous(PAGE, prot=PROT_READ) as memory:
            with pytest.raises(KernelError):
                memory.pin()
            memory.pin(write=False).release()
