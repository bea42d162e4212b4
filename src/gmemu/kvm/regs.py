# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading and writing a vCPU's registers (arch/x86/kvm/x86.c).

Once a guest's state is encrypted it's out of KVM's reach: the calls fail, as on hardware.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from ..mm.uaccess import UserPointer, copy_from_user, copy_to_user, read_user, write_user
from ..rules import kvm as rules
from ..uapi.kvm import (
    KVM_ENABLE_CAP,
    KVM_GET_CPUID2,
    KVM_GET_DEBUGREGS,
    KVM_GET_FPU,
    KVM_GET_MP_STATE,
    KVM_GET_MSRS,
    KVM_GET_REGS,
    KVM_GET_SREGS,
    KVM_GET_XCRS,
    KVM_SET_CPUID2,
    KVM_SET_DEBUGREGS,
    KVM_SET_FPU,
    KVM_SET_MP_STATE,
    KVM_SET_MSRS,
    KVM_SET_REGS,
    KVM_SET_SREGS,
    KVM_SET_XCRS,
    Cap,
    MpState,
    kvm_enable_cap,
    kvm_mp_state,
)
from ..uapi.kvm_x86 import (
    kvm_debugregs,
    kvm_fpu,
    kvm_msr_entry,
    kvm_msrs,
    kvm_regs,
    kvm_sregs,
    kvm_xcr,
    kvm_xcrs,
)
from ..uapi.layout import Struct
from .cpuid import cr4_valid, get_cpuid2, set_cpuid2
from .msr import MsrError, apic_base_valid, get_msr, set_msr

if TYPE_CHECKING:
    from .vcpu import Vcpu

__all__ = ["IOCTLS", "fixed_regs", "valid_sregs"]

S = TypeVar("S", bound=Struct)
VcpuIoctl = Callable[["Vcpu", UserPointer], int]

_CR0_RESERVED = ~0xE005003F & (1 << 64) - 1
_EFER_KNOWN = 0xFD01
_XCR0_KNOWN = 0x2FF
_HEAD = 8
_LAPIC_STATES = frozenset(
    (MpState.UNINITIALIZED, MpState.INIT_RECEIVED, MpState.HALTED, MpState.SIPI_RECEIVED, MpState.AP_RESET_HOLD)
)


def _protected(vcpu: Vcpu, what: str) -> None:
    if vcpu.guest_state_protected:
        raise rules.REGS_PROTECTED(what)


def _getter(name: str) -> Callable[[Vcpu, UserPointer], int]:
    def get(vcpu: Vcpu, arg: UserPointer) -> int:
        _protected(vcpu, f"reading {name}")
        copy_to_user(vcpu.vm.rt.current.mm, arg, getattr(vcpu, name))
        return 0

    return get


def _setter(
    name: str, layout: type[S], valid: Callable[[Vcpu, S], None] | None = None
) -> Callable[[Vcpu, UserPointer], int]:
    def set_(vcpu: Vcpu, arg: UserPointer) -> int:
        value = copy_from_user(vcpu.vm.rt.current.mm, layout, arg)
        _protected(vcpu, f"writing {name}")
        if valid is not None:
            valid(vcpu, value)
        setattr(vcpu, name, value)
        return 0

    return set_


def fixed_regs(regs: kvm_regs) -> kvm_regs:
    """__set_regs(): what a vCPU has after it was given `regs`."""
    regs.rflags |= 2
    return regs


def _fix_rflags(vcpu: Vcpu, regs: kvm_regs) -> None:
    fixed_regs(regs)


def valid_sregs(vcpu: Vcpu, sregs: kvm_sregs) -> None:
    """kvm_is_valid_sregs(): long mode needs paging and PAE; no reserved bits."""
    paging, protection = sregs.cr0 >> 31 & 1, sregs.cr0 & 1
    if sregs.cr0 & _CR0_RESERVED or (paging and not protection) or (sregs.cr0 >> 29 & 3) == 1:
        raise rules.SREGS_INVALID(f"cr0 {sregs.cr0:#x}")
    if sregs.efer & ~_EFER_KNOWN:
        raise rules.SREGS_INVALID(f"efer {sregs.efer:#x}")
    if not cr4_valid(vcpu, sregs.cr4):
        raise rules.SREGS_INVALID(f"cr4 {sregs.cr4:#x}")
    if sregs.efer & 0x100 and paging:
        if not sregs.cr4 & 0x20 or not sregs.efer & 0x400:
            raise rules.SREGS_INVALID(f"efer {sregs.efer:#x} with cr4 {sregs.cr4:#x}")
    elif sregs.efer & 0x400 or sregs.cs.l:
        raise rules.SREGS_INVALID(f"efer {sregs.efer:#x} with cr0 {sregs.cr0:#x}")
    if not apic_base_valid(vcpu, sregs.apic_base):
        raise rules.SREGS_INVALID(f"apic_base {sregs.apic_base:#x}")


def _set_sregs(vcpu: Vcpu, arg: UserPointer) -> int:
    """kvm_arch_vcpu_ioctl_set_sregs()."""
    _setter("sregs", kvm_sregs, valid_sregs)(vcpu, arg)
    if vcpu.apic is not None:
        vcpu.apic.base_changed(vcpu.sregs.apic_base)
        vcpu.apic.cr8 = vcpu.sregs.cr8
    return 0


def _valid_debugregs(vcpu: Vcpu, regs: kvm_debugregs) -> None:
    if regs.flags or regs.dr6 >> 32 or regs.dr7 >> 32:
        raise rules.DEBUGREGS_INVALID(f"flags {regs.flags:#x}, dr6 {regs.dr6:#x}, dr7 {regs.dr7:#x}")


def _get_xcrs(vcpu: Vcpu, arg: UserPointer) -> int:
    _protected(vcpu, "reading xcrs")
    first = kvm_xcr(xcr=0, value=vcpu.xcr0).pack()
    room = bytes(len(kvm_xcrs().xcrs) - len(first))
    copy_to_user(vcpu.vm.rt.current.mm, arg, kvm_xcrs(nr_xcrs=1, xcrs=first + room))
    return 0


def _set_xcrs(vcpu: Vcpu, arg: UserPointer) -> int:
    """kvm_vcpu_ioctl_x86_set_xcrs(): xcr0 is the only one."""
    xcrs = copy_from_user(vcpu.vm.rt.current.mm, kvm_xcrs, arg)
    _protected(vcpu, "writing xcrs")
    if xcrs.nr_xcrs > 16 or xcrs.flags:
        raise rules.XCRS_INVALID(f"{xcrs.nr_xcrs} registers, flags {xcrs.flags:#x}")
    for i in range(xcrs.nr_xcrs):
        entry = kvm_xcr.unpack_from(xcrs.xcrs, i * kvm_xcr.SIZE)
        if entry.xcr == 0:
            if not entry.value & 1 or entry.value & ~_XCR0_KNOWN or (entry.value & 4 and not entry.value & 2):
                raise rules.XCRS_INVALID(f"xcr0 {entry.value:#x}")
            vcpu.registers.set_xcr0(entry.value)
            break
    return 0


def _get_mp_state(vcpu: Vcpu, arg: UserPointer) -> int:
    copy_to_user(vcpu.vm.rt.current.mm, arg, kvm_mp_state(mp_state=vcpu.mp_state))
    return 0


def _set_mp_state(vcpu: Vcpu, arg: UserPointer) -> int:
    """kvm_arch_vcpu_ioctl_set_mpstate(): without an in-kernel local APIC a vCPU can only be runnable."""
    state = copy_from_user(vcpu.vm.rt.current.mm, kvm_mp_state, arg).mp_state
    if state != MpState.RUNNABLE and (vcpu.apic is None or state not in _LAPIC_STATES):
        raise rules.MP_STATE_INVALID(f"{state}")
    if state == MpState.SIPI_RECEIVED and vcpu.apic is not None:
        vcpu.mp_state = MpState.INIT_RECEIVED
        vcpu.sipi_received(vcpu.apic.sipi_vector)
        return 0
    vcpu.mp_state = MpState(state)
    return 0


def _read(vcpu: Vcpu, arg: UserPointer, offset: int, length: int) -> bytes:
    """`length` bytes behind a structure with a flexible array."""
    if isinstance(arg, int):
        return read_user(vcpu.vm.rt.current.mm, arg + offset, length)
    return bytes(arg[offset : offset + length])


def _set_msrs(vcpu: Vcpu, arg: UserPointer) -> int:
    """msr_io() for writing: how many were set."""
    head = copy_from_user(vcpu.vm.rt.current.mm, kvm_msrs, arg)
    if head.nmsrs >= 256:
        raise rules.MSRS_MANY(f"{head.nmsrs} MSRs")
    for i in range(head.nmsrs):
        entry = kvm_msr_entry.unpack_from(_read(vcpu, arg, _HEAD + i * kvm_msr_entry.SIZE, kvm_msr_entry.SIZE))
        if vcpu.guest_state_protected:
            return i
        try:
            set_msr(vcpu, entry.index, entry.data, host=True)
        except MsrError:
            return i
    return head.nmsrs


def _get_msrs(vcpu: Vcpu, arg: UserPointer) -> int:
    """msr_io() for reading: how many were read; it stops at the first that isn't known."""
    mm = vcpu.vm.rt.current.mm
    head = copy_from_user(mm, kvm_msrs, arg)
    if head.nmsrs >= 256:
        raise rules.MSRS_MANY(f"{head.nmsrs} MSRs")
    for i in range(head.nmsrs):
        at = _HEAD + i * kvm_msr_entry.SIZE
        entry = kvm_msr_entry.unpack_from(_read(vcpu, arg, at, kvm_msr_entry.SIZE))
        try:
            entry.data = get_msr(vcpu, entry.index, host=True)
        except MsrError:
            return i
        if isinstance(arg, int):
            write_user(mm, arg + at, entry.pack())
        else:
            entry.pack_into(arg, at)
    return head.nmsrs


def _enable_cap(vcpu: Vcpu, arg: UserPointer) -> int:
    """kvm_vcpu_ioctl_enable_cap(): of a vCPU's capabilities there is the one that enforces what its CPUID says of KVM."""
    cap = copy_from_user(vcpu.vm.rt.current.mm, kvm_enable_cap, arg)
    if cap.flags or cap.cap != Cap.ENFORCE_PV_FEATURE_CPUID:
        raise rules.ENABLE_CAP(f"capability {cap.cap} on a vCPU")
    vcpu.pv_enforced = bool(cap.args[0])
    return 0


IOCTLS: dict[int, Callable[[Vcpu, UserPointer], int]] = {
    KVM_ENABLE_CAP: _enable_cap,
    KVM_GET_REGS: _getter("regs"),
    KVM_SET_REGS: _setter("regs", kvm_regs, _fix_rflags),
    KVM_GET_SREGS: _getter("sregs"),
    KVM_SET_SREGS: _set_sregs,
    KVM_GET_FPU: _getter("fpu"),
    KVM_SET_FPU: _setter("fpu", kvm_fpu),
    KVM_GET_DEBUGREGS: _getter("debugregs"),
    KVM_SET_DEBUGREGS: _setter("debugregs", kvm_debugregs, _valid_debugregs),
    KVM_GET_XCRS: _get_xcrs,
    KVM_SET_XCRS: _set_xcrs,
    KVM_GET_MP_STATE: _get_mp_state,
    KVM_SET_MP_STATE: _set_mp_state,
    KVM_SET_CPUID2: set_cpuid2,
    KVM_GET_CPUID2: get_cpuid2,
    KVM_SET_MSRS: _set_msrs,
    KVM_GET_MSRS: _get_msrs,
}
