# SPDX-License-Identifier: GPL-2.0-or-later
"""The VMSA that KVM makes of a vCPU's registers (arch/x86/kvm/svm/sev.c: sev_es_sync_vmsa; layout: APM vol. 2, B-4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...hw.memory import PAGE_SIZE
from ...uapi.kvm_x86 import kvm_dtable, kvm_fpu, kvm_segment
from ...uapi.sev import sev_es_save_area, vmcb_seg

if TYPE_CHECKING:
    from ..vcpu import Vcpu

__all__ = ["build_vmsa"]

EFER_SVME = 1 << 12
X86_CR4_MCE = 1 << 6
X86_CR0_CD_NW = 0x60000000
MSR_IA32_CR_PAT = 0x277
MSR_STAR, MSR_LSTAR, MSR_CSTAR, MSR_SFMASK = 0xC0000081, 0xC0000082, 0xC0000083, 0xC0000084
MSR_KERNEL_GS_BASE = 0xC0000102
MSR_SYSENTER_CS, MSR_SYSENTER_ESP, MSR_SYSENTER_EIP = 0x174, 0x175, 0x176

_GPRS = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", *(f"r{i}" for i in range(8, 16)), "rip", "rflags")


def build_vmsa(vcpu: Vcpu, sev_features: int) -> bytes:
    """The page, 4096 bytes.  EFER.SVME and CR4.MCE are always set; CR0.CD and CR0.NW never reach the guest, nor does CR2,
    which KVM puts in place only when it runs a vCPU."""
    sregs, fpu, debug, msrs = vcpu.sregs, vcpu.fpu, vcpu.debugregs, vcpu.msrs
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
        cr3=sregs.cr3,
        cr4=sregs.cr4 | X86_CR4_MCE,
        dr6=debug.dr6,
        dr7=debug.dr7,
        star=msrs.get(MSR_STAR, 0),
        lstar=msrs.get(MSR_LSTAR, 0),
        cstar=msrs.get(MSR_CSTAR, 0),
        sfmask=msrs.get(MSR_SFMASK, 0),
        kernel_gs_base=msrs.get(MSR_KERNEL_GS_BASE, 0),
        sysenter_cs=msrs.get(MSR_SYSENTER_CS, 0),
        sysenter_esp=msrs.get(MSR_SYSENTER_ESP, 0),
        sysenter_eip=msrs.get(MSR_SYSENTER_EIP, 0),
        g_pat=msrs[MSR_IA32_CR_PAT],
        sev_features=sev_features,
        xcr0=vcpu.xcr0,
        x87_dp=fpu.last_dp,
        mxcsr=fpu.mxcsr,
        x87_ftw=fpu.ftwx,
        x87_fsw=fpu.fsw,
        x87_fcw=fpu.fcw,
        x87_fop=fpu.last_opcode,
        x87_rip=fpu.last_ip,
        fpreg_x87=_x87_registers(fpu),
        fpreg_xmm=fpu.xmm,
        **{name: getattr(vcpu.regs, name) for name in _GPRS},
    )
    return area.pack().ljust(PAGE_SIZE, b"\0")


def _segment(s: kvm_segment) -> vmcb_seg:
    """svm_set_segment(): the attribute word is the descriptor's, without the limit between; unusable means not present."""
    present = s.present and not s.unusable
    attrib = s.type | s.s << 4 | s.dpl << 5 | present << 7 | s.avl << 8 | s.l << 9 | s.db << 10 | s.g << 11
    return vmcb_seg(selector=s.selector, attrib=attrib, limit=s.limit, base=s.base)


def _table(t: kvm_dtable) -> vmcb_seg:
    return vmcb_seg(limit=t.limit, base=t.base)


def _x87_registers(fpu: kvm_fpu) -> bytes:
    """Eight times the low eight bytes, then eight times the high two, of registers that stand 16 bytes apart."""
    registers = [fpu.fpr[i : i + 16] for i in range(0, 128, 16)]
    return b"".join(r[:8] for r in registers) + b"".join(r[8:10] for r in registers)
