# SPDX-License-Identifier: GPL-2.0-or-later
"""Instructions of a guest that KVM answers for (arch/x86/kvm/svm/svm.c's exit handlers, and what they call in x86.c)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..hw.cpu import (
    Cpuid,
    CrAccess,
    EmulationFailure,
    ExceptionIntercept,
    Exit,
    GuestException,
    MsrAccess,
    Mwait,
    Xsetbv,
)
from ..uapi.kvm import KVM_INTERNAL_ERROR_EMULATION, ExitReason, kvm_exit_internal_error, kvm_exit_msr
from .cpuid import XCR0_SUPPORTED, cr4_valid, find_entry, kvm_cpuid
from .msr import MsrError, get_msr, set_msr

if TYPE_CHECKING:
    from .vcpu import Vcpu

__all__ = ["handle_intercept"]

_GP = GuestException(13, 0)
_UD = GuestException(6)
_CR0_PE, _CR0_NW, _CR0_CD, _CR0_PG = 1, 1 << 29, 1 << 30, 1 << 31
_CR4_PAE, _CR4_VMXE = 1 << 5, 1 << 13
MSR_EXIT_UNKNOWN, MSR_EXIT_INVAL, MSR_EXIT_FILTER = 1 << 1, 1 << 0, 1 << 2


def handle_intercept(vcpu: Vcpu, exit_: Exit) -> int:
    """Answer `exit_`: 1 to resume the guest, 0 to go to user space."""
    return _HANDLERS[type(exit_)](vcpu, exit_)


def _cpuid(vcpu: Vcpu, exit_: Cpuid) -> int:
    """kvm_emulate_cpuid()."""
    vcpu.completion = kvm_cpuid(vcpu, exit_.function, exit_.subleaf)
    return 1


def _msr(vcpu: Vcpu, exit_: MsrAccess) -> int:
    """kvm_emulate_rdmsr() and kvm_emulate_wrmsr(): what KVM refuses goes to user space, if that asked for it."""
    write = exit_.value is not None
    reason = MSR_EXIT_FILTER
    try:
        if vcpu.vm.msr_filter is not None and not vcpu.vm.msr_filter.allows(exit_.msr, write):
            raise MsrError("user space filters it")
        reason = MSR_EXIT_UNKNOWN
        if exit_.value is None:
            vcpu.completion = get_msr(vcpu, exit_.msr, host=False)
        else:
            reason = MSR_EXIT_INVAL if _known(vcpu, exit_.msr) else MSR_EXIT_UNKNOWN
            set_msr(vcpu, exit_.msr, exit_.value, host=False)
    except MsrError:
        return _refused_msr(vcpu, exit_, reason)
    return 1


def _known(vcpu: Vcpu, index: int) -> bool:
    try:
        get_msr(vcpu, index, host=True)
    except MsrError:
        return False
    return True


def _refused_msr(vcpu: Vcpu, exit_: MsrAccess, reason: int) -> int:
    """kvm_msr_user_space(): KVM_EXIT_X86_RDMSR or WRMSR, or #GP."""
    if not vcpu.vm.user_space_msr_mask & reason:
        vcpu.completion = _GP
        return 1
    write = exit_.value is not None
    details = kvm_exit_msr(index=exit_.msr, reason=reason, data=exit_.value or 0)
    vcpu.set_exit(ExitReason.X86_WRMSR if write else ExitReason.X86_RDMSR, details)

    def complete() -> int:
        answer = vcpu.exit_details(kvm_exit_msr)
        assert isinstance(answer, kvm_exit_msr)
        vcpu.completion = _GP if answer.error else None if write else answer.data
        return 1

    vcpu.complete_userspace_io = complete
    return 0


def _cr(vcpu: Vcpu, exit_: CrAccess) -> int:
    """cr_interception(): kvm_set_cr0(), kvm_set_cr4(), kvm_set_cr8()."""
    value = exit_.value
    if exit_.number == 8:
        return _cr8(vcpu, value)
    assert value is not None
    sregs = vcpu.sregs
    if exit_.number == 0:
        paging = value & _CR0_PG
        bad = value >> 32 or (value & _CR0_NW and not value & _CR0_CD) or (paging and not value & _CR0_PE)
        turning_on = paging and not sregs.cr0 & _CR0_PG
        if turning_on and sregs.efer & 1 << 8 and (not sregs.cr4 & _CR4_PAE or sregs.cs.l):
            bad = 1
    else:
        bad = not cr4_valid(vcpu, value) or (sregs.efer & 1 << 10 and not value & _CR4_PAE)
    vcpu.completion = _GP if bad else True
    return 1


def _cr8(vcpu: Vcpu, value: int | None) -> int:
    """The task priority: with a local APIC its own, else user space is told when it falls."""
    if value is None:
        vcpu.completion = vcpu.apic.cr8 if vcpu.apic is not None else vcpu.sregs.cr8
        return 1
    if value >> 4:
        vcpu.completion = _GP
        return 1
    vcpu.completion = True
    if vcpu.apic is not None:
        vcpu.apic.cr8 = value
        return 1
    sregs = vcpu.sregs
    fell, sregs.cr8 = value < sregs.cr8, value
    if fell:
        vcpu.set_exit(ExitReason.SET_TPR)
        vcpu.complete_userspace_io = lambda: 1
    return int(not fell)


def _xsetbv(vcpu: Vcpu, exit_: Xsetbv) -> int:
    """kvm_emulate_xsetbv(): XCR0 may have what CPUID has, x87 always, AVX only with SSE."""
    features = find_entry(vcpu, 0xD, 0)
    allowed = XCR0_SUPPORTED & ((features.eax if features is not None else 0) | 1)
    value = exit_.value
    if not vcpu.sregs.cr4 & 1 << 18:
        vcpu.completion = _UD
    elif exit_.xcr or not value & 1 or value & ~allowed:
        vcpu.completion = _GP
    else:
        vcpu.registers.set_xcr0(value)
        vcpu.completion = True
    return 1


def _mwait(vcpu: Vcpu, exit_: Mwait) -> int:
    """kvm_emulate_monitor_mwait(): a no-op, or #UD where CPUID denies it and no quirk forgives that."""
    never_faults = not vcpu.vm.quirks_disabled & 1 << 6  # KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS
    features = find_entry(vcpu, 1, 0)
    has = features is not None and kvm_cpuid(vcpu, 1, 0)[2] & 1 << 3
    vcpu.completion = True if never_faults or has else _UD
    return 1


def _failure(vcpu: Vcpu, exit_: EmulationFailure) -> int:
    """handle_emulation_failure(): code or an event's frame isn't in memory, or KVM can't take the instruction apart.

    With the instruction's bytes, where user space may have them (prepare_emulation_failure_exit).
    """
    vcpu.stat["insn_emulation_fail"] += 1
    code = vcpu.machine.code_at_rip() if vcpu.machine is not None else b""
    data = [len(code) and 1, len(code) | int.from_bytes(code[:7], "little") << 8, int.from_bytes(code[7:15], "little")]
    details = kvm_exit_internal_error(
        suberror=KVM_INTERNAL_ERROR_EMULATION, ndata=3 if code else 0, data=tuple(data + [0] * 13)
    )
    vcpu.set_exit(ExitReason.INTERNAL_ERROR, details)
    return 0


def _exception(vcpu: Vcpu, exit_: ExceptionIntercept) -> int:
    from .guest_debug import handle_exception

    return handle_exception(vcpu, exit_)


_HANDLERS: dict[type, Callable[[Vcpu, Any], int]] = {
    Cpuid: _cpuid,
    MsrAccess: _msr,
    CrAccess: _cr,
    Xsetbv: _xsetbv,
    Mwait: _mwait,
    EmulationFailure: _failure,
    ExceptionIntercept: _exception,
}
