# SPDX-License-Identifier: GPL-2.0-or-later
"""The state in which a VMM hands a fresh vCPU to KVM.

In a launch the VMM sets registers by KVM_SET_REGS, KVM_SET_SREGS and so on; at SNP_LAUNCH_FINISH KVM turns them into
the VM save area, which is measured.  Here stands what the VMM sets.  What KVM changes on the way (EFER.SVME, CR4.MCE,
CR0 without CD and NW) isn't in it.  Source: `x86_cpu_reset_hold()` and `sev_es_set_reset_vector()` of QEMU.
"""

from __future__ import annotations

from typing import NamedTuple

from ..uapi.kvm_x86 import kvm_dtable, kvm_fpu, kvm_regs, kvm_segment, kvm_sregs
from .vmm import RESET_VECTOR, Vmm

__all__ = ["MSR_IA32_CR_PAT", "RESET_VECTOR", "VMSA_GPA", "VcpuState", "initial_state", "segment", "segment_attributes"]

MSR_IA32_CR_PAT = 0x277
VMSA_GPA = 0xFFFFFFFFF000
"""The gpa with which KVM submits every VMSA: all ones in 48 bits, down to the page."""

X86_CR0_RESET = 0x60000010  # CD, NW, ET
RFLAGS_RESET = 0x2
REAL_MODE_LIMIT = 0xFFFF
APIC_BASE = 0xFEE00800
APIC_BASE_BSP = 1 << 8
_DATA = 0x93
_LDT = 0x82


class VcpuState(NamedTuple):
    """One vCPU: the arguments of KVM_SET_REGS, _SREGS and _FPU, XCR0 for KVM_SET_XCRS, the PAT for KVM_SET_MSRS."""

    regs: kvm_regs
    sregs: kvm_sregs
    fpu: kvm_fpu
    xcr0: int
    pat: int

    @property
    def eip(self) -> int:
        """The linear address of the first instruction."""
        return self.sregs.cs.base + self.regs.rip


def initial_state(vmm: Vmm, signature: int, eip: int, *, bsp: bool) -> VcpuState:
    """The state of a vCPU that starts at `eip` in real mode, on a CPU with CPUID `signature`, as `vmm` makes it."""
    own = vmm.registers
    data = segment(_DATA)
    sregs = kvm_sregs(
        cs=segment(own.code_segment(eip), selector=0xF000, base=eip & 0xFFFF0000),
        ds=data,
        es=data,
        fs=data,
        gs=data,
        ss=segment(own.ss),
        tr=segment(own.tr),
        ldt=segment(_LDT),
        gdt=kvm_dtable(limit=REAL_MODE_LIMIT),
        idt=kvm_dtable(limit=REAL_MODE_LIMIT),
        cr0=X86_CR0_RESET,
        apic_base=APIC_BASE | (APIC_BASE_BSP if bsp else 0),
    )
    regs = kvm_regs(rdx=signature if own.rdx is None else own.rdx, rip=eip & 0xFFFF, rflags=RFLAGS_RESET)
    return VcpuState(regs, sregs, kvm_fpu(fcw=own.fcw, mxcsr=own.mxcsr), xcr0=1, pat=own.g_pat)


def segment(attributes: int, selector: int = 0, base: int = 0) -> kvm_segment:
    """A real-mode segment, with the packed `attributes` of the VMSA taken apart."""
    return kvm_segment(
        base=base,
        limit=REAL_MODE_LIMIT,
        selector=selector,
        type=attributes & 0xF,
        s=attributes >> 4 & 1,
        dpl=attributes >> 5 & 3,
        present=attributes >> 7 & 1,
        avl=attributes >> 8 & 1,
        l=attributes >> 9 & 1,
        db=attributes >> 10 & 1,
        g=attributes >> 11 & 1,
    )


def segment_attributes(s: kvm_segment) -> int:
    """The attributes of `s` as the VMSA packs them: 12 bits."""
    low = s.type | s.s << 4 | s.dpl << 5 | s.present << 7
    return low | s.avl << 8 | s.l << 9 | s.db << 10 | s.g << 11
