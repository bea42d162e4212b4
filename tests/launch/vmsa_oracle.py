# SPDX-License-Identifier: GPL-2.0-or-later
"""The page that a vCPU's initial state becomes.

In a launch KVM builds it (`sev_es_sync_vmsa()`); this makes the same page without KVM, so that the two can be compared.
Layout: AMD APM volume 2, table B-4.
"""

from __future__ import annotations

from gmemu.launch.vcpu_state import VcpuState, segment_attributes
from gmemu.uapi.kvm_x86 import kvm_dtable, kvm_segment
from gmemu.uapi.sev import sev_es_save_area, vmcb_seg

__all__ = ["VMSA_SIZE", "build_vmsa"]

VMSA_SIZE = 4096

EFER_SVME = 1 << 12
X86_CR4_MCE = 1 << 6
X86_CR0_CD_NW = 0x60000000
DR6_RESET = 0xFFFF0FF0
DR7_RESET = 0x400


def build_vmsa(state: VcpuState, sev_features: int) -> bytes:
    """The VMSA page, 4096 bytes, of a vCPU in `state`; `sev_features` as it stands in the page, SNP's bit 0 included."""
    regs, sregs, fpu = state.regs, state.sregs, state.fpu
    area = sev_es_save_area(
        es=_segment(sregs.es),
        cs=_segment(sregs.cs),
        ss=_segment(sregs.ss),
        ds=_segment(sregs.ds),
        fs=_segment(sregs.fs),
        gs=_segment(sregs.gs),
        gdtr=_table(sregs.gdt),
        ldtr=_segment(sregs.ldt),
        idtr=_table(sregs.idt),
        tr=_segment(sregs.tr),
        cpl=sregs.ss.dpl,
        efer=sregs.efer | EFER_SVME,
        cr0=sregs.cr0 & ~X86_CR0_CD_NW,
        cr2=sregs.cr2,
        cr3=sregs.cr3,
        cr4=sregs.cr4 | X86_CR4_MCE,
        dr6=DR6_RESET,
        dr7=DR7_RESET,
        rflags=regs.rflags,
        rip=regs.rip,
        rsp=regs.rsp,
        rax=regs.rax,
        rbx=regs.rbx,
        rcx=regs.rcx,
        rdx=regs.rdx,
        rbp=regs.rbp,
        rsi=regs.rsi,
        rdi=regs.rdi,
        r8=regs.r8,
        r9=regs.r9,
        r10=regs.r10,
        r11=regs.r11,
        r12=regs.r12,
        r13=regs.r13,
        r14=regs.r14,
        r15=regs.r15,
        g_pat=state.pat,
        sev_features=sev_features,
        xcr0=state.xcr0,
        mxcsr=fpu.mxcsr,
        x87_fcw=fpu.fcw,
    )
    return area.pack().ljust(VMSA_SIZE, b"\0")


def _segment(s: kvm_segment) -> vmcb_seg:
    return vmcb_seg(selector=s.selector, attrib=segment_attributes(s), limit=s.limit, base=s.base)


def _table(t: kvm_dtable) -> vmcb_seg:
    return vmcb_seg(limit=t.limit, base=t.base)
