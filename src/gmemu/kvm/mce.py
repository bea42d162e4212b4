# SPDX-License-Identifier: GPL-2.0-or-later
"""A vCPU's machine check architecture: registers in banks, and errors that user space reports (arch/x86/kvm/x86.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..hw.x86.events import Event
from ..mm.uaccess import UserPointer, copy_from_user, read_user, write_user
from ..rules import kvm as rules
from ..uapi.kvm_x86 import kvm_x86_mce

if TYPE_CHECKING:
    from .host import Host
    from .vcpu import Vcpu

__all__ = ["MachineCheck", "get_mce_cap_supported", "is_mce_msr", "set_mce", "setup_mce", "supported_mce_cap"]

_BANKS = 32
"""KVM_MAX_MCE_BANKS"""
_MCG_CTL_P, _MCG_CMCI_P, _MCG_SER_P, _MCG_LMCE_P = 1 << 8, 1 << 10, 1 << 24, 1 << 27
_STATUS_VAL, _STATUS_OVER, _STATUS_UC = 1 << 63, 1 << 62, 1 << 61
_STATUS_NO_UCNA = 1 << 57 | 1 << 56 | 1 << 55
"""MCI_STATUS_PCC, _S and _AR"""
_MCIP, _CR4_MCE, _CMCI_EN, _CTL2_VALID = 1 << 2, 1 << 6, 1 << 30, 1 << 30 | 0x7FFF
_P5, _CAP, _STATUS, _CTL, _CTL2, _BANK = (0, 1), 0x179, 0x17A, 0x17B, 0x280, 0x400
_MC_VECTOR = 18
_HWCR, _HWCR_STATUS_WRITABLE = 0xC0010015, 1 << 18
_ONES = (1 << 64) - 1


def supported_mce_cap(host: Host) -> int:
    """kvm_caps.supported_mce_cap: threshold interrupts and local errors are Intel's."""
    intel = _MCG_LMCE_P | _MCG_CMCI_P if host.platform == "intel" else 0
    return _MCG_CTL_P | _MCG_SER_P | intel


def is_mce_msr(index: int) -> bool:
    """Whether an MSR is one of them."""
    banks = _CTL2 <= index < _CTL2 + _BANKS or _BANK <= index < _BANK + 4 * _BANKS
    return index in _P5 or index in (_CAP, _STATUS, _CTL) or banks


class MachineCheck:
    """What one vCPU has."""

    def __init__(self, vcpu: Vcpu) -> None:
        self._vcpu = vcpu
        self.cap, self.ctl, self.status = _BANKS, 0, 0
        self.banks = [0] * 4 * _BANKS
        """CTL, STATUS, ADDR and MISC of each"""
        self.ctl2 = [0] * _BANKS

    @property
    def signals_corrected(self) -> bool:
        """MCG_CMCI_P."""
        return bool(self.cap & _MCG_CMCI_P)

    def setup(self, cap: int) -> None:
        """kvm_vcpu_ioctl_x86_setup_mce().  Raises EINVAL."""
        count = cap & 0xFF
        if not 0 < count <= _BANKS or cap & ~(supported_mce_cap(self._vcpu.vm.host) | 0xFF00FF):
            raise rules.MCE_CAP(f"{cap:#x}")
        self.cap = cap
        if cap & _MCG_CTL_P:
            self.ctl = _ONES
        for bank in range(count):
            self.banks[4 * bank] = _ONES
            if self.signals_corrected:
                self.ctl2[bank] = 0
        if self._vcpu.apic is not None:
            self._vcpu.apic.set_corrected_errors(self.signals_corrected)

    def report(self, error: kvm_x86_mce) -> None:
        """kvm_vcpu_ioctl_x86_set_mce(): an error in one bank.  Raises EINVAL."""
        vcpu = self._vcpu
        if error.bank >= self.cap & 0xFF or not error.status & _STATUS_VAL:
            raise rules.MCE_BANK(f"bank {error.bank}, status {error.status:#x}")
        at = 4 * error.bank
        ctl, old = self.banks[at : at + 2]
        uncorrected = bool(error.status & _STATUS_UC)
        if uncorrected and not error.mcg_status and not error.status & _STATUS_NO_UCNA:
            self._record(at, error, 0)
            if self.signals_corrected and self.ctl2[error.bank] & _CMCI_EN and vcpu.apic is not None:
                vcpu.apic.deliver_corrected_error()
            return
        if uncorrected and ((self.cap & _MCG_CTL_P and self.ctl != _ONES) or ctl != _ONES):
            return
        overflow = _STATUS_OVER if old & _STATUS_VAL else 0
        if uncorrected:
            if self.status & _MCIP or not vcpu.sregs.cr4 & _CR4_MCE:
                vcpu.triple_fault = True
                return
            self._record(at, error, overflow)
            if vcpu.machine is not None:
                vcpu.machine.event = Event(_MC_VECTOR)
        elif not overflow or not old & _STATUS_UC:
            status = self.status
            self._record(at, error, overflow)
            self.status = status
        else:
            self.banks[at + 1] |= _STATUS_OVER

    def _record(self, at: int, error: kvm_x86_mce, overflow: int) -> None:
        self.banks[at + 1 : at + 4] = error.status | overflow, error.addr, error.misc
        self.status = error.mcg_status

    def get_msr(self, index: int, host: bool) -> int | None:
        """get_msr_mce(): None where there is no such register for whom it reads."""
        count = self.cap & 0xFF
        if index in _P5:
            return 0
        if index == _CAP:
            return self.cap
        if index == _STATUS:
            return self.status
        if index == _CTL:
            return self.ctl if self.cap & _MCG_CTL_P or host else None
        if index < _BANK:
            known = index < _CTL2 + count and (self.signals_corrected or host)
            return self.ctl2[index - _CTL2] if known else None
        return self.banks[index - _BANK] if index < _BANK + 4 * count else None

    def set_msr(self, index: int, value: int, host: bool) -> bool:
        """set_msr_mce(): whether the register was there and may hold the value."""
        count = self.cap & 0xFF
        if index == _STATUS:
            self.status = value
        elif index == _CTL:
            if (not self.cap & _MCG_CTL_P and (value or not host)) or value not in (0, _ONES):
                return False
            self.ctl = value
        elif _CTL2 <= index < _CTL2 + count:
            if (not self.signals_corrected and (value or not host)) or value & ~_CTL2_VALID:
                return False
            self.ctl2[index - _CTL2] = value
        elif _BANK <= index < _BANK + 4 * count:
            kind = index & 3
            if kind == 0 and value and value | 1 << 10 | 1 != _ONES:
                return False
            if kind == 1 and value and not host and not self._vcpu.msrs.get(_HWCR, 0) & _HWCR_STATUS_WRITABLE:
                return False
            self.banks[index - _BANK] = value
        else:
            return False
        return True


def setup_mce(vcpu: Vcpu, arg: UserPointer) -> int:
    """KVM_X86_SETUP_MCE."""
    raw = read_user(vcpu.vm.rt.current.mm, arg, 8) if isinstance(arg, int) else bytes(arg[:8])
    vcpu.mce.setup(int.from_bytes(raw, "little"))
    return 0


def set_mce(vcpu: Vcpu, arg: UserPointer) -> int:
    """KVM_X86_SET_MCE."""
    vcpu.mce.report(copy_from_user(vcpu.vm.rt.current.mm, kvm_x86_mce, arg))
    return 0


def get_mce_cap_supported(host: Host, arg: UserPointer) -> int:
    """KVM_X86_GET_MCE_CAP_SUPPORTED, on /dev/kvm."""
    data = supported_mce_cap(host).to_bytes(8, "little")
    if isinstance(arg, int):
        write_user(host.rt.current.mm, arg, data)
    else:
        arg[:8] = data
    return 0
