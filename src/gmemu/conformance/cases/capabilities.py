# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_CHECK_EXTENSION, for what bears on memory; KVM_ENABLE_CAP for hypercalls."""

from __future__ import annotations

from ...uapi.kvm import KVM_CHECK_EXTENSION, KVM_ENABLE_CAP, Cap, kvm_enable_cap
from ..bench import Bench
from ..case import case

CAPS = (
    Cap.USER_MEMORY, Cap.NR_MEMSLOTS, Cap.SYNC_MMU, Cap.DESTROY_MEMORY_REGION_WORKS, Cap.JOIN_MEMORY_REGIONS_WORKS,
    Cap.READONLY_MEM, Cap.ENABLE_CAP_VM, Cap.CHECK_EXTENSION_VM, Cap.MULTI_ADDRESS_SPACE, Cap.MAX_VCPU_ID,
    Cap.IMMEDIATE_EXIT, Cap.EXIT_HYPERCALL, *range(231, 256),
)  # fmt: skip


@case("capabilities", each_vm=False)
def on_the_device(b: Bench) -> None:
    for cap in CAPS:
        b.probe(f"{int(cap)}", b.kvm.check_extension, cap)


@case("capabilities", each_vm=False)
def on_a_default_vm(b: Bench) -> None:
    vm = b.vm(0)
    for cap in CAPS:
        b.probe(f"{int(cap)}", vm.check_extension, cap)


@case("capabilities", "private-memory", each_vm=False)
def on_a_private_vm(b: Bench) -> None:
    vm = b.vm(1)
    for cap in CAPS:
        b.probe(f"{int(cap)}", vm.check_extension, cap)


@case("capabilities", each_vm=False)
def on_a_vcpu(b: Bench) -> None:
    vcpu = b.vcpu(b.vm(0))
    for cap in (Cap.EXIT_HYPERCALL, Cap.GUEST_MEMFD, 0x7FFFFFFF):
        for name, address in b.pointers(kvm_enable_cap(cap=cap).pack()).items():
            b.probe(f"enable {int(cap)}, {name}", vcpu.ioctl, KVM_ENABLE_CAP, address)
    b.probe("check", vcpu.ioctl, KVM_CHECK_EXTENSION, Cap.GUEST_MEMFD)


@case("capabilities", "gmem")
def enabling(b: Bench) -> None:
    vm = b.vm()
    for bit in range(64):
        b.probe(f"EXIT_HYPERCALL bit {bit}", vm.enable_cap, Cap.EXIT_HYPERCALL, 1 << bit)
    b.probe("EXIT_HYPERCALL nothing", vm.enable_cap, Cap.EXIT_HYPERCALL, 0)
    b.probe("EXIT_HYPERCALL, second argument", vm.enable_cap, Cap.EXIT_HYPERCALL, 1 << 12, 1)
    flags = bytearray(kvm_enable_cap(cap=Cap.EXIT_HYPERCALL, flags=1, args=(1 << 12, 0, 0, 0)).pack())
    b.probe("flags", vm.ioctl, KVM_ENABLE_CAP, flags)
    for cap in (Cap.GUEST_MEMFD, Cap.MEMORY_ATTRIBUTES, Cap.GUEST_MEMFD_FLAGS, 0x7FFFFFFF):
        b.probe(f"capability {int(cap)}", vm.enable_cap, cap)
    for name, address in b.pointers(kvm_enable_cap(cap=Cap.EXIT_HYPERCALL, args=(1 << 12, 0, 0, 0)).pack()).items():
        b.probe(name, vm.ioctl, KVM_ENABLE_CAP, address)
