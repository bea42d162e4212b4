# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_PRE_FAULT_MEMORY."""

from __future__ import annotations

from ...api import Vcpu
from ...rules import KernelError
from ...uapi.errno import errno_name
from ...uapi.kvm import KVM_PRE_FAULT_MEMORY, kvm_pre_fault_memory
from ..bench import PAGE, Bench
from ..case import case
from ..guests import Load
from ..outcome import Outcome, describe

GPA = 0x1000_0000


def pre_fault(vcpu: Vcpu, **fields: int | tuple[int, ...]) -> Outcome:
    """What the call came to, and how it left gpa and size."""
    buffer = bytearray(kvm_pre_fault_memory(**{"gpa": GPA, "size": PAGE, **fields}).pack())  # type: ignore[arg-type]
    try:
        result, rule = describe(vcpu.ioctl(KVM_PRE_FAULT_MEMORY, buffer)), ""
    except KernelError as error:
        result, rule = errno_name(error.errno or 0), error.rule.id
    left = kvm_pre_fault_memory.unpack_from(buffer)
    return Outcome(f"{result}, gpa {left.gpa:#x} size {left.size:#x} left", rule)


@case("pre-fault")
def arguments(b: Bench) -> None:
    vm = b.vm()
    vcpu = b.vcpu(vm)
    for bit in range(64):
        b.record(f"flag bit {bit}", pre_fault(vcpu, flags=1 << bit))
    for gpa, size in (
        (GPA, 0),
        (GPA, 1),
        (GPA + 1, PAGE),
        (GPA, 4095),
        (0, PAGE),
        ((1 << 64) - PAGE, PAGE),
        ((1 << 64) - PAGE, 2 * PAGE),
    ):
        b.record(f"gpa {gpa:#x} size {size:#x}", pre_fault(vcpu, gpa=gpa, size=size))
    b.record("padding", pre_fault(vcpu, padding=((1 << 64) - 1,) * 5))
    for name, address in b.pointers(kvm_pre_fault_memory(gpa=GPA, size=PAGE).pack()).items():
        b.probe(name, vcpu.ioctl, KVM_PRE_FAULT_MEMORY, address)
    for name, fd in {"the VM": vm.fd, "/dev/kvm": b.kvm.fd}.items():
        b.probe(f"on {name}", b.door.ioctl, fd, KVM_PRE_FAULT_MEMORY, bytearray(64))


@case("pre-fault")
def ordinary_memory(b: Bench) -> None:
    vm = b.vm()
    vcpu, memory = b.vcpu(vm), b.anonymous(4 * PAGE)
    vm.set_user_memory_region(1, GPA, 4 * PAGE, memory.address)
    b.record("one page", pre_fault(vcpu))
    b.record("again", pre_fault(vcpu))
    b.record("all", pre_fault(vcpu, size=4 * PAGE))
    b.record("past the slot", pre_fault(vcpu, size=8 * PAGE))
    b.record("wholly past the slot", pre_fault(vcpu, gpa=GPA + 4 * PAGE))
    memory.close()
    b.record("unmapped", pre_fault(vcpu))


@case("pre-fault", "pre-fault", "private-memory", "vm-attributes", each_vm=False)
def private_memory(b: Bench) -> None:
    vm = b.vm(1)
    vcpu, gmem, memory = b.vcpu(vm), b.gmem(vm, 4 * PAGE), b.anonymous(4 * PAGE)
    vm.set_user_memory_region2(1, GPA, 4 * PAGE, gmem=gmem, userspace_addr=memory.address)
    vm.make_private(GPA, 2 * PAGE)
    b.record("private", pre_fault(vcpu, size=2 * PAGE))
    b.record("private and shared", pre_fault(vcpu, size=4 * PAGE))
    vm.make_private(GPA, 8 * PAGE)
    b.record("private without a slot", pre_fault(vcpu, gpa=GPA + 4 * PAGE))
    vm.set_user_memory_region(2, GPA + 4 * PAGE, PAGE, memory.address)
    b.record("private without guest_memfd", pre_fault(vcpu, gpa=GPA + 4 * PAGE))
    b.record("up to where there's no guest_memfd", pre_fault(vcpu, size=8 * PAGE))
    gmem.close()
    b.record("the file closed", pre_fault(vcpu))


@case("pre-fault", "init-shared")
def shared_guest_memfd(b: Bench) -> None:
    vm = b.vm()
    vcpu, gmem = b.vcpu(vm), b.shared_gmem(vm)
    vm.set_user_memory_region2(1, GPA, 4 * PAGE, gmem=gmem)
    b.record("all", pre_fault(vcpu, size=4 * PAGE))
    gmem.punch_hole(0, 4 * PAGE)
    b.record("all again", pre_fault(vcpu, size=5 * PAGE))
    b.record("blocks", gmem.stat().blocks)
    gmem.close()
    b.record("the file closed", pre_fault(vcpu))


@case("pre-fault", "pre-fault", "guest-code", "private-memory", "vm-attributes", each_vm=False)
def what_the_guest_sees(b: Bench) -> None:
    vm = b.vm(1)
    vcpu, gmem, memory = b.vcpu(vm), b.gmem(vm), b.anonymous(4 * PAGE)
    memory[:] = b"\x55" * len(memory)
    vm.set_user_memory_region2(1, GPA, 4 * PAGE, gmem=gmem, userspace_addr=memory.address)
    b.record("shared", pre_fault(vcpu, size=4 * PAGE))
    b.guest(vm, vcpu, "shared pages", [Load(GPA), Load(GPA + 3 * PAGE)])
    vm.make_private(GPA, 4 * PAGE)
    b.record("private", pre_fault(vcpu, size=4 * PAGE))
    b.guest(vm, vcpu, "private pages", [Load(GPA), Load(GPA + 3 * PAGE)])
