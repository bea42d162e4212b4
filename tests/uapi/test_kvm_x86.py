# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from gmemu.uapi import kvm_x86
from gmemu.uapi.layout import Struct

SIZES = {
    "kvm_clock_data": 48,
    "kvm_cpuid2": 8,
    "kvm_cpuid_entry2": 40,
    "kvm_debug_exit_arch": 32,
    "kvm_debugregs": 128,
    "kvm_dtable": 16,
    "kvm_fpu": 416,
    "kvm_guest_debug": 72,
    "kvm_irqchip": 520,
    "kvm_lapic_state": 1024,
    "kvm_msr_entry": 16,
    "kvm_msr_filter": 392,
    "kvm_msr_filter_range": 24,
    "kvm_msr_list": 4,
    "kvm_msrs": 8,
    "kvm_pit_config": 64,
    "kvm_pit_state2": 112,
    "kvm_reinject_control": 32,
    "kvm_regs": 144,
    "kvm_segment": 24,
    "kvm_sregs": 312,
    "kvm_sregs2": 320,
    "kvm_sync_regs": 520,
    "kvm_tpr_access_ctl": 40,
    "kvm_translation": 24,
    "kvm_vapic_addr": 8,
    "kvm_vcpu_events": 64,
    "kvm_x86_mce": 64,
    "kvm_xcr": 16,
    "kvm_xcrs": 392,
    "kvm_xsave": 4096,
}


def test_sizes() -> None:
    declared = {n: v.SIZE for n in kvm_x86.__all__ if isinstance(v := getattr(kvm_x86, n), type) and issubclass(v, Struct)}
    assert declared == SIZES


def test_offsets() -> None:
    assert kvm_x86.kvm_regs.OFFSETS["rip"] == 128
    assert kvm_x86.kvm_sregs.OFFSETS["gdt"] == 192
    assert kvm_x86.kvm_sregs.OFFSETS["cr0"] == 224
    assert kvm_x86.kvm_sregs.OFFSETS["efer"] == 264
    assert kvm_x86.kvm_sregs.OFFSETS["interrupt_bitmap"] == 280
    assert kvm_x86.kvm_fpu.OFFSETS["xmm"] == 152
    assert kvm_x86.kvm_fpu.OFFSETS["mxcsr"] == 408


def test_xcrs_holds_whole_registers() -> None:
    xcr0 = kvm_x86.kvm_xcr(xcr=0, reserved=0, value=7)
    xcrs = kvm_x86.kvm_xcrs(nr_xcrs=1, flags=0, xcrs=xcr0.pack().ljust(256, b"\0"), padding=(0,) * 16)
    assert kvm_x86.kvm_xcr.unpack_from(xcrs.pack(), kvm_x86.kvm_xcrs.OFFSETS["xcrs"]) == xcr0


def test_page_fault_error_code() -> None:
    bits = {
        "PRESENT_MASK": 0,
        "WRITE_MASK": 1,
        "USER_MASK": 2,
        "RSVD_MASK": 3,
        "FETCH_MASK": 4,
        "PK_MASK": 5,
        "SS_MASK": 6,
        "SGX_MASK": 15,
        "GUEST_RMP_MASK": 31,
        "GUEST_FINAL_MASK": 32,
        "GUEST_PAGE_MASK": 33,
        "GUEST_ENC_MASK": 34,
        "GUEST_SIZEM_MASK": 35,
        "GUEST_VMPL_MASK": 36,
        "IMPLICIT_ACCESS": 48,
        "PRIVATE_ACCESS": 49,
    }
    assert {name: getattr(kvm_x86, f"PFERR_{name}") for name in bits} == {name: 1 << bit for name, bit in bits.items()}
    assert kvm_x86.PFERR_SYNTHETIC_MASK == 3 << 48
    assert kvm_x86.PFERR_GUEST_FAULT_STAGE_MASK == 3 << 32
