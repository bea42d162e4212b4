# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_SET_GUEST_DEBUG: user space steps the guest, or takes its breakpoints (arch/x86/kvm/x86.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..hw.cpu import ExceptionIntercept
from ..uapi.kvm import ExitReason
from ..uapi.kvm_x86 import kvm_debug_exit_arch

if TYPE_CHECKING:
    from .vcpu import Vcpu

__all__ = ["debug_exit", "handle_exception"]

_DB, _BP = 1, 3


def debug_exit(vcpu: Vcpu, exception: int, dr6: int, pc: int) -> int:
    """KVM_EXIT_DEBUG."""
    details = kvm_debug_exit_arch(exception=exception, pc=pc, dr6=dr6, dr7=vcpu.guest_debug_dr7 or vcpu.debugregs.dr7)
    vcpu.set_exit(ExitReason.DEBUG, details)
    return 0


def handle_exception(vcpu: Vcpu, exit_: ExceptionIntercept) -> int:
    """db_interception() and bp_interception()."""
    regs, sregs = vcpu.regs, vcpu.sregs
    base = 0 if sregs.cs.l and sregs.efer & 1 << 10 else sregs.cs.base
    if exit_.vector == _BP:
        regs.rip -= 1  # INT3 reports as a fault, as SVM does
        vcpu.regs = regs
        return debug_exit(vcpu, _BP, 0, base + regs.rip)
    return debug_exit(vcpu, _DB, exit_.dr6 | 0xFFFF0FF0, base + regs.rip)
