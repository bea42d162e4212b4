# SPDX-License-Identifier: GPL-2.0-or-later
"""A vCPU's registers: what KVM refuses to be told."""

from __future__ import annotations

from ...uapi.kvm import (
    KVM_GET_DEBUGREGS,
    KVM_GET_FPU,
    KVM_GET_MP_STATE,
    KVM_GET_MSRS,
    KVM_GET_REGS,
    KVM_GET_SREGS,
    KVM_GET_XCRS,
    KVM_MEMORY_ENCRYPT_OP,
    KVM_SET_CPUID2,
    KVM_SET_DEBUGREGS,
    KVM_SET_MP_STATE,
    KVM_SET_MSRS,
    KVM_SET_REGS,
    KVM_SET_SREGS,
    kvm_mp_state,
)
from ...uapi.kvm_x86 import kvm_debugregs, kvm_msr_entry, kvm_msrs, kvm_regs, kvm_sregs
from ..bench import Bench
from ..case import case

PAT = 0x277


@case("registers", each_vm=False)
def at_reset(b: Bench) -> None:
    vcpu = b.vcpu(b.vm(0))
    regs, sregs = vcpu.regs, vcpu.sregs
    b.record("rip rsp rflags rax", (regs.rip, regs.rsp, regs.rflags, regs.rax))
    b.record("cr0 cr2 cr3 cr4 efer", (sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4, sregs.efer))
    b.record("cs", (sregs.cs.base, sregs.cs.limit, sregs.cs.selector, sregs.cs.type))
    b.record("gdt idt", (sregs.gdt.base, sregs.gdt.limit, sregs.idt.base, sregs.idt.limit))
    b.record("apic base", (sregs.apic_base,))


@case("registers", each_vm=False)
def general(b: Bench) -> None:
    vcpu = b.vcpu(b.vm(0))
    values = {
        name: 0x1111 * (i + 1)
        for i, name in enumerate(("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8", "r15"))
    }
    b.probe("set", vcpu.ioctl, KVM_SET_REGS, bytearray(kvm_regs(rip=0x1234, rflags=2, **values).pack()))
    b.probe("get", lambda: [vars(vcpu.regs)[name] for name in (*values, "rip", "rflags")])
    b.probe("rflags 0", vcpu.ioctl, KVM_SET_REGS, bytearray(kvm_regs().pack()))
    b.probe("rflags then", lambda: vcpu.regs.rflags)
    for name, request in {
        "KVM_GET_REGS": KVM_GET_REGS,
        "KVM_SET_REGS": KVM_SET_REGS,
        "KVM_GET_SREGS": KVM_GET_SREGS,
        "KVM_SET_SREGS": KVM_SET_SREGS,
        "KVM_GET_FPU": KVM_GET_FPU,
        "KVM_GET_DEBUGREGS": KVM_GET_DEBUGREGS,
        "KVM_GET_XCRS": KVM_GET_XCRS,
        "KVM_GET_MP_STATE": KVM_GET_MP_STATE,
        "KVM_GET_MSRS": KVM_GET_MSRS,
        "KVM_SET_CPUID2": KVM_SET_CPUID2,
    }.items():
        b.probe(f"{name} at an unmapped address", vcpu.ioctl, request, 0)


@case("registers", each_vm=False)
def special(b: Bench) -> None:
    """Not long mode itself: whether it's had without CPUID depends on the processor's maker."""
    vcpu = b.vcpu(b.vm(0))
    for name, change in {
        "nothing changed": {},
        "protected mode": {"cr0": 0x11},
        "paging without protection": {"cr0": 0x80000010},
        "not write-through without cache disable": {"cr0": 0x20000010},
        "a high bit of cr0": {"cr0": 1 << 32},
        "efer.lma alone": {"efer": 0x400},
        "efer.lme, paging, no pae": {"cr0": 0x80000011, "efer": 0x500},
        "efer.lme, paging, pae, no lma": {"cr0": 0x80000011, "cr4": 0x20, "efer": 0x100},
        "a reserved bit of cr4": {"cr4": 1 << 63},
    }.items():
        sregs = b.vcpu(b.vm(0)).sregs if not change else vcpu.sregs
        for field, value in change.items():
            setattr(sregs, field, value)
        b.probe(name, vcpu.ioctl, KVM_SET_SREGS, bytearray(sregs.pack()))
    b.record("size", kvm_sregs.SIZE)


@case("registers", each_vm=False)
def others(b: Bench) -> None:
    vm = b.vm(0)
    vcpu = b.vcpu(vm)
    for state in (*range(12), 1 << 31):
        fresh = b.vcpu(b.vm(0))
        b.probe(f"mp_state {state}", fresh.ioctl, KVM_SET_MP_STATE, bytearray(kvm_mp_state(mp_state=state).pack()))
    for name, fields in {
        "flags": {"flags": 1},
        "dr6 high": {"dr6": 1 << 32},
        "dr7 high": {"dr7": 1 << 32},
        "good": {"dr6": 0xFFFF0FF0, "dr7": 0x400},
    }.items():
        b.probe(f"debug registers, {name}", vcpu.ioctl, KVM_SET_DEBUGREGS, bytearray(kvm_debugregs(**fields).pack()))  # type: ignore[arg-type]
    for count in (0, 255, 256, 257, 1 << 31):
        memory = b.pointer(kvm_msrs(nmsrs=count).pack() + kvm_msr_entry(index=PAT).pack() * 258)
        b.probe(f"get PAT {count} times", vcpu.ioctl, KVM_GET_MSRS, memory)
        b.probe(f"set PAT {count} times", vcpu.ioctl, KVM_SET_MSRS, memory)
    for count in (0, 256, 257, 1 << 31):
        b.probe(
            f"{count} CPUID entries",
            vcpu.ioctl,
            KVM_SET_CPUID2,
            b.pointer(count.to_bytes(4, "little") + bytes(4 + 40 * 258)),
        )
    for name, fd in {"the VM": vm.fd, "the vCPU": vcpu.fd}.items():
        for arg in (1, 1 << 47):
            b.probe(f"KVM_MEMORY_ENCRYPT_OP({arg:#x}) on {name}", b.door.ioctl, fd, KVM_MEMORY_ENCRYPT_OP, arg)
