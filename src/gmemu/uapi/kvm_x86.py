# SPDX-License-Identifier: GPL-2.0-or-later
"""The part of KVM's uAPI that is x86's: <asm/kvm.h>, and the page fault error code KVM works with.

Checked against Linux 7.3-rc7.  Structures that end in a flexible array are declared as their head; the entries follow it in
the caller's buffer.
"""

from __future__ import annotations

from .layout import Struct, char, nested, u8, u16, u32, u64

__all__ = [
    "KVM_CPUID_FLAG_SIGNIFCANT_INDEX",
    "KVM_EXIT_HYPERCALL_LONG_MODE",
    "KVM_MAX_XCRS",
    "PFERR_FETCH_MASK",
    "PFERR_GUEST_ENC_MASK",
    "PFERR_GUEST_FAULT_STAGE_MASK",
    "PFERR_GUEST_FINAL_MASK",
    "PFERR_GUEST_PAGE_MASK",
    "PFERR_GUEST_RMP_MASK",
    "PFERR_GUEST_SIZEM_MASK",
    "PFERR_GUEST_VMPL_MASK",
    "PFERR_IMPLICIT_ACCESS",
    "PFERR_PK_MASK",
    "PFERR_PRESENT_MASK",
    "PFERR_PRIVATE_ACCESS",
    "PFERR_RSVD_MASK",
    "PFERR_SGX_MASK",
    "PFERR_SS_MASK",
    "PFERR_SYNTHETIC_MASK",
    "PFERR_USER_MASK",
    "PFERR_WRITE_MASK",
    "kvm_cpuid2",
    "kvm_cpuid_entry2",
    "kvm_debug_exit_arch",
    "kvm_debugregs",
    "kvm_dtable",
    "kvm_fpu",
    "kvm_msr_entry",
    "kvm_msr_filter",
    "kvm_msr_filter_range",
    "kvm_msrs",
    "kvm_regs",
    "kvm_segment",
    "kvm_sregs",
    "kvm_xcr",
    "kvm_xcrs",
    "kvm_msr_list",
    "kvm_lapic_state",
    "kvm_xsave",
    "kvm_vcpu_events",
    "KVM_GUESTDBG_BLOCKIRQ",
    "kvm_guest_debug",
    "kvm_x86_mce",
    "kvm_sregs2",
    "kvm_pit_config",
    "kvm_pit_state2",
    "kvm_reinject_control",
    "kvm_irqchip",
    "kvm_translation",
    "kvm_tpr_access_ctl",
    "kvm_vapic_addr",
    "kvm_clock_data",
    "kvm_sync_regs",
]

# --- Page fault error code (arch/x86/include/asm/kvm_host.h) ----------------------------------------------------------

PFERR_PRESENT_MASK = 1 << 0
PFERR_WRITE_MASK = 1 << 1
PFERR_USER_MASK = 1 << 2
PFERR_RSVD_MASK = 1 << 3
PFERR_FETCH_MASK = 1 << 4
PFERR_PK_MASK = 1 << 5
PFERR_SS_MASK = 1 << 6
PFERR_SGX_MASK = 1 << 15

# What a nested page fault adds (SVM's EXITINFO1).
PFERR_GUEST_RMP_MASK = 1 << 31
PFERR_GUEST_FINAL_MASK = 1 << 32
PFERR_GUEST_PAGE_MASK = 1 << 33
PFERR_GUEST_FAULT_STAGE_MASK = PFERR_GUEST_FINAL_MASK | PFERR_GUEST_PAGE_MASK
PFERR_GUEST_ENC_MASK = 1 << 34
PFERR_GUEST_SIZEM_MASK = 1 << 35
PFERR_GUEST_VMPL_MASK = 1 << 36

# What KVM adds; hardware never sets these.
PFERR_IMPLICIT_ACCESS = 1 << 48
PFERR_PRIVATE_ACCESS = 1 << 49
PFERR_SYNTHETIC_MASK = PFERR_IMPLICIT_ACCESS | PFERR_PRIVATE_ACCESS

# --- Registers --------------------------------------------------------------------------------------------------------

KVM_EXIT_HYPERCALL_LONG_MODE = 1 << 0
KVM_CPUID_FLAG_SIGNIFCANT_INDEX = 1 << 0  # the kernel's spelling
KVM_MAX_XCRS = 16


class kvm_regs(Struct):
    """Argument of KVM_GET_REGS and KVM_SET_REGS."""

    rax: int = u64()
    rbx: int = u64()
    rcx: int = u64()
    rdx: int = u64()
    rsi: int = u64()
    rdi: int = u64()
    rsp: int = u64()
    rbp: int = u64()
    r8: int = u64()
    r9: int = u64()
    r10: int = u64()
    r11: int = u64()
    r12: int = u64()
    r13: int = u64()
    r14: int = u64()
    r15: int = u64()
    rip: int = u64()
    rflags: int = u64()


class kvm_segment(Struct):
    """A segment register with its hidden part taken apart; `limit` in bytes."""

    base: int = u64()
    limit: int = u32()
    selector: int = u16()
    type: int = u8()
    present: int = u8()
    dpl: int = u8()
    db: int = u8()
    s: int = u8()
    l: int = u8()  # noqa: E741
    g: int = u8()
    avl: int = u8()
    unusable: int = u8()
    padding: int = u8()


class kvm_dtable(Struct):
    """A descriptor table register."""

    base: int = u64()
    limit: int = u16()
    padding: tuple[int, ...] = u16(3)


class kvm_sregs(Struct):
    """Argument of KVM_GET_SREGS and KVM_SET_SREGS."""

    cs: kvm_segment = nested(kvm_segment)
    ds: kvm_segment = nested(kvm_segment)
    es: kvm_segment = nested(kvm_segment)
    fs: kvm_segment = nested(kvm_segment)
    gs: kvm_segment = nested(kvm_segment)
    ss: kvm_segment = nested(kvm_segment)
    tr: kvm_segment = nested(kvm_segment)
    ldt: kvm_segment = nested(kvm_segment)
    gdt: kvm_dtable = nested(kvm_dtable)
    idt: kvm_dtable = nested(kvm_dtable)
    cr0: int = u64()
    cr2: int = u64()
    cr3: int = u64()
    cr4: int = u64()
    cr8: int = u64()
    efer: int = u64()
    apic_base: int = u64()
    interrupt_bitmap: tuple[int, ...] = u64(4)


class kvm_fpu(Struct):
    """Argument of KVM_GET_FPU and KVM_SET_FPU; `fpr` is 8 and `xmm` 16 registers of 16 bytes."""

    fpr: bytes = char(128)
    fcw: int = u16()
    fsw: int = u16()
    ftwx: int = u8()
    pad1: int = u8()
    last_opcode: int = u16()
    last_ip: int = u64()
    last_dp: int = u64()
    xmm: bytes = char(256)
    mxcsr: int = u32()
    pad2: int = u32()


class kvm_xcr(Struct):
    """One extended control register."""

    xcr: int = u32()
    reserved: int = u32()
    value: int = u64()


class kvm_xcrs(Struct):
    """Argument of KVM_GET_XCRS and KVM_SET_XCRS; `xcrs` holds KVM_MAX_XCRS of `kvm_xcr`, packed, `nr_xcrs` of them valid."""

    nr_xcrs: int = u32()
    flags: int = u32()
    xcrs: bytes = char(KVM_MAX_XCRS * kvm_xcr.SIZE)
    padding: tuple[int, ...] = u64(16)


class kvm_debugregs(Struct):
    """Argument of KVM_GET_DEBUGREGS and KVM_SET_DEBUGREGS."""

    db: tuple[int, ...] = u64(4)
    dr6: int = u64()
    dr7: int = u64()
    flags: int = u64()
    reserved: tuple[int, ...] = u64(9)


class kvm_cpuid_entry2(Struct):
    """One leaf of a `kvm_cpuid2`."""

    function: int = u32()
    index: int = u32()
    flags: int = u32()
    eax: int = u32()
    ebx: int = u32()
    ecx: int = u32()
    edx: int = u32()
    padding: tuple[int, ...] = u32(3)


class kvm_cpuid2(Struct):
    """Head of the argument of KVM_SET_CPUID2; `nent` of `kvm_cpuid_entry2` follow."""

    nent: int = u32()
    padding: int = u32()


class kvm_msr_entry(Struct):
    """One register of a `kvm_msrs`."""

    index: int = u32()
    reserved: int = u32()
    data: int = u64()


class kvm_msrs(Struct):
    """Head of the argument of KVM_GET_MSRS and KVM_SET_MSRS; `nmsrs` of `kvm_msr_entry` follow."""

    nmsrs: int = u32()
    pad: int = u32()


class kvm_msr_filter_range(Struct):
    """A run of MSRs of a `kvm_msr_filter`; `bitmap` is a user address, one bit for each, set where allowed."""

    flags: int = u32()
    nmsrs: int = u32()
    base: int = u32()
    bitmap: int = u64()


class kvm_msr_filter(Struct):
    """Argument of KVM_X86_SET_MSR_FILTER; `raw_ranges` holds sixteen of `kvm_msr_filter_range`."""

    flags: int = u32()
    pad: int = u32()
    raw_ranges: bytes = char(16 * kvm_msr_filter_range.SIZE)

    def ranges(self) -> list[kvm_msr_filter_range]:
        """The ranges, used or not."""
        size = kvm_msr_filter_range.SIZE
        return [kvm_msr_filter_range.unpack_from(self.raw_ranges, i * size) for i in range(16)]


class kvm_debug_exit_arch(Struct):
    """kvm_run.debug.arch, for KVM_EXIT_DEBUG."""

    exception: int = u32()
    pad: int = u32()
    pc: int = u64()
    dr6: int = u64()
    dr7: int = u64()


class kvm_msr_list(Struct):
    """Head of the argument of KVM_GET_MSR_INDEX_LIST and its like; `nmsrs` 32-bit numbers follow."""

    nmsrs: int = u32()


class kvm_lapic_state(Struct):
    """Argument of KVM_GET_LAPIC and KVM_SET_LAPIC: the page of registers."""

    regs: bytes = char(0x400)


class kvm_xsave(Struct):
    """Argument of KVM_GET_XSAVE and KVM_SET_XSAVE: the standard form of XSAVE's area."""

    region: bytes = char(4096)


class kvm_vcpu_events(Struct):
    """Argument of KVM_GET_VCPU_EVENTS and KVM_SET_VCPU_EVENTS; the name of an inner struct is put before its member's."""

    exception_injected: int = u8()
    exception_nr: int = u8()
    exception_has_error_code: int = u8()
    exception_pending: int = u8()
    exception_error_code: int = u32()
    interrupt_injected: int = u8()
    interrupt_nr: int = u8()
    interrupt_soft: int = u8()
    interrupt_shadow: int = u8()
    nmi_injected: int = u8()
    nmi_pending: int = u8()
    nmi_masked: int = u8()
    nmi_pad: int = u8()
    sipi_vector: int = u32()
    flags: int = u32()
    smi_smm: int = u8()
    smi_pending: int = u8()
    smi_smm_inside_nmi: int = u8()
    smi_latched_init: int = u8()
    triple_fault_pending: int = u8()
    reserved: tuple[int, ...] = u8(26)
    exception_has_payload: int = u8()
    exception_payload: int = u64()


class kvm_x86_mce(Struct):
    """Argument of KVM_X86_SET_MCE: what a bank of machine check registers is to hold."""

    status: int = u64()
    addr: int = u64()
    misc: int = u64()
    mcg_status: int = u64()
    bank: int = u8()
    pad1: tuple[int, ...] = u8(7)
    pad2: tuple[int, ...] = u64(3)


KVM_GUESTDBG_BLOCKIRQ = 0x00100000


class kvm_guest_debug(Struct):
    """Argument of KVM_SET_GUEST_DEBUG; `debugreg` are DR0 to DR7."""

    control: int = u32()
    pad: int = u32()
    debugreg: tuple[int, ...] = u64(8)


class kvm_sregs2(Struct):
    """Argument of KVM_GET_SREGS2 and KVM_SET_SREGS2."""

    cs: kvm_segment = nested(kvm_segment)
    ds: kvm_segment = nested(kvm_segment)
    es: kvm_segment = nested(kvm_segment)
    fs: kvm_segment = nested(kvm_segment)
    gs: kvm_segment = nested(kvm_segment)
    ss: kvm_segment = nested(kvm_segment)
    tr: kvm_segment = nested(kvm_segment)
    ldt: kvm_segment = nested(kvm_segment)
    gdt: kvm_dtable = nested(kvm_dtable)
    idt: kvm_dtable = nested(kvm_dtable)
    cr0: int = u64()
    cr2: int = u64()
    cr3: int = u64()
    cr4: int = u64()
    cr8: int = u64()
    efer: int = u64()
    apic_base: int = u64()
    flags: int = u64()
    pdptrs: tuple[int, ...] = u64(4)


class kvm_pit_config(Struct):
    """Argument of KVM_CREATE_PIT2."""

    flags: int = u32()
    pad: tuple[int, ...] = u32(15)


class kvm_pit_state2(Struct):
    """Argument of KVM_GET_PIT2 and KVM_SET_PIT2: three channels of 24 bytes, and flags."""

    channels: bytes = char(72)
    flags: int = u32()
    reserved: tuple[int, ...] = u32(9)


class kvm_reinject_control(Struct):
    """Argument of KVM_REINJECT_CONTROL."""

    pit_reinject: int = u8()
    reserved: bytes = char(31)


class kvm_irqchip(Struct):
    """Argument of KVM_GET_IRQCHIP and KVM_SET_IRQCHIP: chip 0 or 1 (PIC) or 2 (I/O APIC), and its state."""

    chip_id: int = u32()
    pad: int = u32()
    chip: bytes = char(512)


class kvm_translation(Struct):
    """Argument of KVM_TRANSLATE."""

    linear_address: int = u64()
    physical_address: int = u64()
    valid: int = u8()
    writeable: int = u8()
    usermode: int = u8()
    pad: tuple[int, ...] = u8(5)


class kvm_tpr_access_ctl(Struct):
    """Argument of KVM_TPR_ACCESS_REPORTING."""

    enabled: int = u32()
    flags: int = u32()
    reserved: tuple[int, ...] = u32(8)


class kvm_vapic_addr(Struct):
    """Argument of KVM_SET_VAPIC_ADDR."""

    vapic_addr: int = u64()


class kvm_clock_data(Struct):
    """Argument of KVM_GET_CLOCK and KVM_SET_CLOCK; nanoseconds."""

    clock: int = u64()
    flags: int = u32()
    pad0: int = u32()
    realtime: int = u64()
    host_tsc: int = u64()
    pad: tuple[int, ...] = u32(4)


class kvm_sync_regs(Struct):
    """kvm_run.s.regs on x86."""

    regs: kvm_regs = nested(kvm_regs)
    sregs: kvm_sregs = nested(kvm_sregs)
    events: kvm_vcpu_events = nested(kvm_vcpu_events)
