# SPDX-License-Identifier: GPL-2.0-or-later
"""Model-specific registers (arch/x86/kvm/x86.c): which there are, what they may hold, and who may write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from ..hw.registers import MSR_IA32_CR_PAT, PAT_DEFAULT
from .cpuid import find_entry
from .mce import is_mce_msr
from .pvclock import write_wall_clock

if TYPE_CHECKING:
    from .vcpu import Vcpu

__all__ = ["FEATURE_MSRS", "MSRS", "MsrError", "emulated_indices", "feature_msr", "get_msr", "saved_indices", "set_msr"]

_U64 = (1 << 64) - 1
MSR_TSC, MSR_APICBASE, MSR_TSC_ADJUST, MSR_TSC_DEADLINE = 0x10, 0x1B, 0x3B, 0x6E0
MSR_EFER, MSR_FS_BASE, MSR_GS_BASE = 0xC0000080, 0xC0000100, 0xC0000101
MSR_MISC_ENABLE, MSR_ARCH_CAPABILITIES, MSR_UCODE_REV, MSR_DE_CFG = 0x1A0, 0x10A, 0x8B, 0xC0011029
MSR_HWCR, MSR_PLATFORM_INFO, MSR_XSS, MSR_SMI_COUNT, MSR_SMBASE = 0xC0010015, 0xCE, 0xDA0, 0x34, 0x9E
_EFER_LMA, _EFER_LME, _EFER_NX, _EFER_SCE, _EFER_SVME = 1 << 10, 1 << 8, 1 << 11, 1, 1 << 12
X2APIC_FIRST, X2APIC_LAST = 0x800, 0x8FF


class MsrError(Exception):
    """The register doesn't exist, or may not hold the value: a guest gets #GP, KVM_SET_MSRS stops counting."""


class Msr(NamedTuple):
    """One register: its name, its value at reset, and whether (value, by the host) may be written."""

    name: str
    reset: int = 0
    valid: Callable[[Vcpu, int, bool], bool] = lambda vcpu, value, host: True


def _canonical(vcpu: Vcpu, value: int, host: bool) -> bool:
    return value >> 47 in (0, (1 << 17) - 1)


def _pat(vcpu: Vcpu, value: int, host: bool) -> bool:
    return all(byte in (0, 1, 4, 5, 6, 7) for byte in value.to_bytes(8, "little"))


def _mtrr_default(vcpu: Vcpu, value: int, host: bool) -> bool:
    return not value & ~0xCFF and value & 0xFF in (0, 1, 4, 5, 6)


def _mtrr_fixed(vcpu: Vcpu, value: int, host: bool) -> bool:
    return all(byte in (0, 1, 4, 5, 6) for byte in value.to_bytes(8, "little"))


def _mtrr_base(vcpu: Vcpu, value: int, host: bool) -> bool:
    return not value >> 48 and value & 0xFF in (0, 1, 4, 5, 6) and not value & 0xF00


def _mtrr_mask(vcpu: Vcpu, value: int, host: bool) -> bool:
    return not value >> 48 and not value & 0x7FF


def _host_only(vcpu: Vcpu, value: int, host: bool) -> bool:
    return host


def _has(function: int, register: str, bit: int) -> Callable[[Vcpu, int, bool], bool]:
    def valid(vcpu: Vcpu, value: int, host: bool) -> bool:
        entry = find_entry(vcpu, function, 0)
        return host or (entry is not None and bool(getattr(entry, register) >> bit & 1))

    return valid


def _bits(mask: int) -> Callable[[Vcpu, int, bool], bool]:
    return lambda vcpu, value, host: not value & ~mask


def _hwcr(vcpu: Vcpu, value: int, host: bool) -> bool:
    """set_msr_hwcr: TLB cache disable, MCi_STATUS write enable and TscFreqSel alone may be set; others are ignored first."""
    return not value & ~(1 << 3 | 1 << 6 | 1 << 8 | 1 << 18 | 1 << 24)


def _xss(vcpu: Vcpu, value: int, host: bool) -> bool:
    return value == 0


def _platform_info(vcpu: Vcpu, value: int, host: bool) -> bool:
    return host


def _smbase(vcpu: Vcpu, value: int, host: bool) -> bool:
    return host


_FIXED_MTRRS = (0x250, 0x258, 0x259, *range(0x268, 0x270))

MSRS: dict[int, Msr] = {
    MSR_TSC: Msr("IA32_TSC"),
    MSR_APICBASE: Msr("IA32_APICBASE"),
    MSR_TSC_ADJUST: Msr("IA32_TSC_ADJUST", 0, _has(7, "ebx", 1)),
    MSR_SMI_COUNT: Msr("SMI_COUNT", 0, _host_only),
    MSR_SMBASE: Msr("IA32_SMBASE", 0x30000, _smbase),
    MSR_PLATFORM_INFO: Msr("PLATFORM_INFO", 1 << 31, _platform_info),
    0xFE: Msr("MTRRcap", 0x508, _host_only),
    MSR_ARCH_CAPABILITIES: Msr("IA32_ARCH_CAPABILITIES", 0, _host_only),
    MSR_UCODE_REV: Msr("IA32_UCODE_REV", 0x100000000, lambda vcpu, value, host: True),
    0x140: Msr("MISC_FEATURES_ENABLES", 0, lambda vcpu, value, host: value == 0),
    0x174: Msr("IA32_SYSENTER_CS"),
    0x175: Msr("IA32_SYSENTER_ESP"),
    0x176: Msr("IA32_SYSENTER_EIP"),
    0x1FC: Msr("IA32_POWER_CTL"),
    MSR_MISC_ENABLE: Msr("IA32_MISC_ENABLE", 1 << 11 | 1 << 12),
    **{0x200 + 2 * i: Msr(f"MTRRphysBase{i}", 0, _mtrr_base) for i in range(8)},
    **{0x201 + 2 * i: Msr(f"MTRRphysMask{i}", 0, _mtrr_mask) for i in range(8)},
    **{index: Msr("MTRRfix", 0, _mtrr_fixed) for index in _FIXED_MTRRS},
    MSR_IA32_CR_PAT: Msr("IA32_CR_PAT", PAT_DEFAULT, _pat),
    0x2FF: Msr("MTRRdefType", 0, _mtrr_default),
    0x1D9: Msr("IA32_DEBUGCTLMSR", 0, lambda vcpu, value, host: not value & ~0x3),
    0x1DB: Msr("LASTBRANCHFROMIP"),
    0x1DC: Msr("LASTBRANCHTOIP"),
    0x1DD: Msr("LASTINTFROMIP"),
    0x1DE: Msr("LASTINTTOIP"),
    MSR_TSC_DEADLINE: Msr("IA32_TSC_DEADLINE"),
    MSR_XSS: Msr("IA32_XSS", 0, _xss),
    0x11: Msr("KVM_WALL_CLOCK"),
    0x12: Msr("KVM_SYSTEM_TIME"),
    0x4B564D00: Msr("KVM_WALL_CLOCK_NEW"),
    0x4B564D01: Msr("KVM_SYSTEM_TIME_NEW"),
    0x4B564D02: Msr("KVM_ASYNC_PF_EN", 0, lambda vcpu, value, host: not value & 0x30),
    0x4B564D03: Msr("KVM_STEAL_TIME", 0, lambda vcpu, value, host: not value & 0x3E),
    0x4B564D04: Msr("KVM_PV_EOI_EN", 0, lambda vcpu, value, host: not value & 2),
    0x4B564D05: Msr("KVM_POLL_CONTROL", 1, lambda vcpu, value, host: value in (0, 1)),
    0x4B564D06: Msr("KVM_ASYNC_PF_INT", 0, lambda vcpu, value, host: value < 256),
    0x4B564D07: Msr("KVM_ASYNC_PF_ACK", 0, lambda vcpu, value, host: value < 2),
    MSR_EFER: Msr("EFER"),
    0xC0000081: Msr("STAR"),
    0xC0000082: Msr("LSTAR", 0, _canonical),
    0xC0000083: Msr("CSTAR", 0, _canonical),
    0xC0000084: Msr("SYSCALL_MASK"),
    MSR_FS_BASE: Msr("FS_BASE", 0, _canonical),
    MSR_GS_BASE: Msr("GS_BASE", 0, _canonical),
    0xC0000102: Msr("KERNEL_GS_BASE", 0, _canonical),
    0xC0000103: Msr("TSC_AUX", 0, lambda vcpu, value, host: not value >> 32),
    MSR_HWCR: Msr("K7_HWCR", 0, _hwcr),
    0xC0010010: Msr("AMD64_SYSCFG"),
    0xC001001F: Msr("AMD64_NB_CFG", 0, lambda vcpu, value, host: True),
    0xC0010114: Msr("VM_CR", 0, lambda vcpu, value, host: host or not value & ~0x1F),
    0xC0010117: Msr("VM_HSAVE_PA"),
    0xC0010055: Msr("K8_INT_PENDING_MSG", 0, lambda vcpu, value, host: value == 0),
    0xC0011020: Msr("AMD64_LS_CFG"),
    0xC0011022: Msr("AMD64_DC_CFG"),
    MSR_DE_CFG: Msr("AMD64_DE_CFG", 0, lambda vcpu, value, host: not value & ~2),
    0x48: Msr("IA32_SPEC_CTRL", 0, _has(7, "edx", 26)),
    0x49: Msr("IA32_PRED_CMD", 0, _has(7, "edx", 26)),
}

_KVM_OWN = frozenset(index for index in MSRS if index in (0x11, 0x12) or index >> 8 == 0x4B564D)
_EMULATED = (
    *sorted(_KVM_OWN),
    MSR_TSC_ADJUST,
    MSR_TSC_DEADLINE,
    MSR_ARCH_CAPABILITIES,
    MSR_PLATFORM_INFO,
    MSR_MISC_ENABLE,
    0x17A,
    0x17B,
    MSR_SMBASE,
    MSR_SMI_COUNT,
    0x140,
    MSR_UCODE_REV,
    0x1FC,
    MSR_HWCR,
    0x2FF,
    *_FIXED_MTRRS,
    *(0x200 + i for i in range(16)),
)
_SAVED = (
    0x174,
    0x175,
    0x176,
    0xC0000081,
    0xC0000083,
    0xC0000102,
    0xC0000084,
    0xC0000082,
    MSR_TSC,
    MSR_IA32_CR_PAT,
    0xC0010117,
    0xC0000103,
    MSR_XSS,
)
FEATURE_MSRS = {MSR_DE_CFG: 2, MSR_UCODE_REV: 0x100000000, MSR_ARCH_CAPABILITIES: 0}
"""Feature MSRs, index -> value: what the (simulated) processor has, for KVM_GET_MSRS on /dev/kvm."""


_PV_FEATURES = {
    0x11: 0,
    0x12: 0,
    0x4B564D00: 3,
    0x4B564D01: 3,
    0x4B564D02: 4,
    0x4B564D06: 14,
    0x4B564D07: 14,
    0x4B564D03: 5,
    0x4B564D04: 6,
    0x4B564D05: 12,
}
"""KVM's own MSRs -> the KVM_FEATURE_* bit that goes with each"""


def guest_pv_has(vcpu: Vcpu, feature: int) -> bool:
    """guest_pv_has(): whether the guest may use what KVM adds; without enforcement it always may."""
    if not vcpu.pv_enforced:
        return True
    entry = find_entry(vcpu, 0x40000001, 0)
    return entry is not None and bool(entry.eax >> feature & 1)


def saved_indices() -> list[int]:
    """msrs_to_save followed by emulated_msrs: what KVM_GET_MSR_INDEX_LIST gives."""
    return [*_SAVED, *_EMULATED]


def emulated_indices() -> tuple[int, ...]:
    """The part of the list that hardware needn't have."""
    return _EMULATED


def feature_msr(index: int) -> int | None:
    """do_get_msr_feature()."""
    return FEATURE_MSRS.get(index)


def get_msr(vcpu: Vcpu, index: int, host: bool) -> int:
    """kvm_get_msr() for the guest, or for user space (`host`).  Raises `MsrError`."""
    if X2APIC_FIRST <= index <= X2APIC_LAST and vcpu.apic is not None:
        return vcpu.apic.read_msr(index)
    if index == MSR_APICBASE:
        return vcpu.sregs.apic_base
    if index == MSR_EFER:
        return vcpu.sregs.efer
    if index == MSR_FS_BASE:
        return vcpu.sregs.fs.base
    if index == MSR_GS_BASE:
        return vcpu.sregs.gs.base
    if index == MSR_TSC:
        return vcpu.clock.guest_tsc()
    if index == MSR_PLATFORM_INFO and not host and not vcpu.vm.guest_can_read_platform_info:
        raise MsrError(f"MSR {index:#x} is hidden from the guest")
    if index == MSR_TSC_DEADLINE and vcpu.apic is not None:
        return vcpu.apic.tsc_deadline
    if is_mce_msr(index):
        value = vcpu.mce.get_msr(index, host)
        if value is None:
            raise MsrError(f"there is no machine check MSR {index:#x}")
        return value
    msr = MSRS.get(index)
    if msr is None:
        raise MsrError(f"there is no MSR {index:#x}")
    if index in _PV_FEATURES and not guest_pv_has(vcpu, _PV_FEATURES[index]):
        raise MsrError(f"the guest's CPUID doesn't have {msr.name}")
    return vcpu.msrs.get(index, msr.reset)


def set_msr(vcpu: Vcpu, index: int, value: int, host: bool) -> None:
    """kvm_set_msr().  Raises `MsrError`."""
    if X2APIC_FIRST <= index <= X2APIC_LAST and vcpu.apic is not None:
        vcpu.apic.write_msr(index, value)
        return
    if is_mce_msr(index):
        if not vcpu.mce.set_msr(index, value, host):
            raise MsrError(f"machine check MSR {index:#x} can't be {value:#x}")
        return
    msr = MSRS.get(index)
    if msr is None:
        raise MsrError(f"there is no MSR {index:#x}")
    if index in _PV_FEATURES and not guest_pv_has(vcpu, _PV_FEATURES[index]):
        raise MsrError(f"the guest's CPUID doesn't have {msr.name}")
    if not msr.valid(vcpu, value, host):
        raise MsrError(f"{msr.name} can't be {value:#x}")
    special = _SPECIAL.get(index)
    if special is not None:
        special(vcpu, value, host)
        return
    if index in (0x175, 0x176):  # canonicalized, as AMD's processors take 32 bits of them
        value = value & (1 << 48) - 1 | (0xFFFF << 48 if value >> 47 & 1 else 0)
    if index == MSR_HWCR:
        value &= ~(1 << 3 | 1 << 6 | 1 << 8)  # ignored: FFDIS and the like
    vcpu.registers.set_msr(index, value)


def _set_efer(vcpu: Vcpu, value: int, host: bool) -> None:
    """set_efer(): known bits, those of the guest's CPUID unless the host writes; LME not while paging."""
    known = _EFER_SCE | _EFER_LME | _EFER_LMA | _EFER_NX | 1 << 14
    sregs = vcpu.sregs
    if value & ~known:
        raise MsrError(f"EFER can't be {value:#x}")
    if not host:
        extended = find_entry(vcpu, 0x80000001, 0)
        edx = extended.edx if extended is not None else 0
        lacks = (value & _EFER_NX and not edx >> 20 & 1) or (value & _EFER_LME and not edx >> 29 & 1)
        if lacks or (sregs.cr0 >> 31 & 1 and (value ^ sregs.efer) & _EFER_LME):
            raise MsrError(f"EFER can't be {value:#x}")
    sregs.efer = value & ~_EFER_LMA | sregs.efer & _EFER_LMA
    vcpu.sregs = sregs


def _set_base(name: str) -> Callable[[Vcpu, int, bool], None]:
    def set_(vcpu: Vcpu, value: int, host: bool) -> None:
        sregs = vcpu.sregs
        getattr(sregs, name).base = value
        vcpu.sregs = sregs

    return set_


def apic_base_valid(vcpu: Vcpu, value: int) -> bool:
    """kvm_set_apic_base() by user space: no reserved bits, and x2APIC only on top of enabled, if the guest has it."""
    features = find_entry(vcpu, 1, 0)
    x2apic = features is not None and features.ecx >> 21 & 1
    return not (value >> 48 or value & 0x2FF or value & 0xC00 == 0x400 or (value & 0x400 and not x2apic))


def _set_apic_base(vcpu: Vcpu, value: int, host: bool) -> None:
    """kvm_set_apic_base(): x2APIC only on top of enabled, and no way back from it but by disabling."""
    sregs = vcpu.sregs
    old, new = sregs.apic_base & 0xC00, value & 0xC00
    if not apic_base_valid(vcpu, value):
        raise MsrError(f"IA32_APICBASE can't be {value:#x}")
    if not host and ((old == 0xC00 and new == 0x800) or (not old and new == 0xC00)):
        raise MsrError(f"IA32_APICBASE can't go from {sregs.apic_base:#x} to {value:#x}")
    sregs.apic_base = value
    vcpu.sregs = sregs
    if vcpu.apic is not None:
        vcpu.apic.base_changed(value)


def _set_tsc(vcpu: Vcpu, value: int, host: bool) -> None:
    if host:
        vcpu.clock.set_host(value)
    else:
        adjust = value - vcpu.clock.guest_tsc()
        vcpu.clock.adjust(adjust)
        vcpu.registers.set_msr(MSR_TSC_ADJUST, vcpu.msrs.get(MSR_TSC_ADJUST, 0) + adjust & _U64)


def _set_tsc_adjust(vcpu: Vcpu, value: int, host: bool) -> None:
    if not host:
        vcpu.clock.adjust(value - vcpu.msrs.get(MSR_TSC_ADJUST, 0))
    vcpu.registers.set_msr(MSR_TSC_ADJUST, value)


def _set_tsc_deadline(vcpu: Vcpu, value: int, host: bool) -> None:
    if vcpu.apic is not None:
        vcpu.apic.set_tsc_deadline(value)


def _set_wall_clock(vcpu: Vcpu, value: int, host: bool) -> None:
    """kvm_write_wall_clock()."""
    vcpu.registers.set_msr(0x4B564D00, value)
    vcpu.registers.set_msr(0x11, value)
    if value and not host:
        write_wall_clock(vcpu, value)


def _set_system_time(vcpu: Vcpu, value: int, host: bool) -> None:
    """kvm_write_system_time()."""
    vcpu.registers.set_msr(0x4B564D01, value)
    vcpu.registers.set_msr(0x12, value)
    vcpu.pvclock_gpa = value & ~1 if value & 1 else None
    vcpu.clock_update = True


def _set_steal_time(vcpu: Vcpu, value: int, host: bool) -> None:
    vcpu.registers.set_msr(0x4B564D03, value)
    vcpu.steal_update = True


_SPECIAL: dict[int, Callable[[Vcpu, int, bool], None]] = {
    MSR_EFER: _set_efer,
    MSR_FS_BASE: _set_base("fs"),
    MSR_GS_BASE: _set_base("gs"),
    MSR_APICBASE: _set_apic_base,
    MSR_TSC: _set_tsc,
    MSR_TSC_ADJUST: _set_tsc_adjust,
    MSR_TSC_DEADLINE: _set_tsc_deadline,
    0x11: _set_wall_clock,
    0x12: _set_system_time,
    0x4B564D03: _set_steal_time,
    0x4B564D00: _set_wall_clock,
    0x4B564D01: _set_system_time,
}
