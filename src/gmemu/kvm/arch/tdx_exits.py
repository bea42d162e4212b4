# SPDX-License-Identifier: GPL-2.0-or-later
"""What makes a TD exit, and what KVM does about it: EPT violations, TDVMCALLs, failed entries (arch/x86/kvm/vmx/tdx.c)."""

from __future__ import annotations

from errno import EAGAIN, EINVAL
from typing import TYPE_CHECKING

from ...hw.cpu import Exit, ExternalInterrupt, NestedPageFault, TdVmcall, VpEnterFailed
from ...hw.memory import PAGE_SHIFT, PAGE_SIZE
from ...rules import kvm as kvm_rules
from ...rules import tdx as rules
from ...uapi.kvm import (
    KVM_HC_MAP_GPA_RANGE,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON,
    KVM_MAP_GPA_RANGE_DECRYPTED,
    KVM_MAP_GPA_RANGE_ENCRYPTED,
    ExitReason,
    SystemEvent,
    kvm_exit_hypercall,
    kvm_exit_internal_error,
    kvm_exit_system_event,
)
from ...uapi.kvm_x86 import (
    KVM_EXIT_HYPERCALL_LONG_MODE,
    PFERR_GUEST_ENC_MASK,
    PFERR_PRIVATE_ACCESS,
    PFERR_WRITE_MASK,
)
from ...uapi.tdx import (
    TDVMCALL_STATUS_ALIGN_ERROR,
    TDVMCALL_STATUS_INVALID_OPERAND,
    TDVMCALL_STATUS_RETRY,
    TDVMCALL_STATUS_SUBFUNC_UNSUPPORTED,
    TDVMCALL_STATUS_SUCCESS,
    TDX_MAP_GPA_MAX_LEN,
    EptViolationType,
    Tdvmcall,
    tdx_operand_busy,
)
from ..memslots import KVM_MEMSLOT_INVALID
from ..mmu import RetPf
from .tdx_sept import BUSY_LIMIT, livelock

if TYPE_CHECKING:
    from ..vcpu import Vcpu
    from .tdx import TdxVm

__all__ = ["handle_exit"]


def handle_exit(td: TdxVm, vcpu: Vcpu, exit_: Exit) -> int | None:
    """tdx_handle_exit(): 1 to resume, 0 to go to user space, None for what every VM has."""
    if isinstance(exit_, NestedPageFault) and exit_.error_code & PFERR_GUEST_ENC_MASK:
        return _handle_private_violation(td, vcpu, exit_)
    if isinstance(exit_, TdVmcall):
        return _handle_tdvmcall(td, vcpu, exit_)
    if isinstance(exit_, VpEnterFailed):
        return _handle_failed_entry(td, vcpu, exit_)
    if isinstance(exit_, ExternalInterrupt):
        return 1
    return None


def _handle_failed_entry(td: TdxVm, vcpu: Vcpu, exit_: VpEnterFailed) -> int:
    """The guest didn't run, or will never again.  A busy module is asked again from outside the fast path."""
    vcpu.completion = exit_.completion
    if tdx_operand_busy(exit_.status):
        td.vm.rt.resched()
        return 1
    error = kvm_exit_internal_error(
        suberror=KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON,
        ndata=2,
        data=(exit_.status, td.vm.rt.current.cpu, *(0,) * 14),
    )
    vcpu.set_exit(ExitReason.INTERNAL_ERROR, error)
    return 0


def _handle_private_violation(td: TdxVm, vcpu: Vcpu, exit_: NestedPageFault) -> int:
    """tdx_handle_ept_violation() for a private address: always a write fault, and retried here for as long as that may help.

    Each entry of the guest that meets the same violation brings zero-step mitigation nearer, so the retries don't enter it.
    """
    vm, gfn = td.vm, exit_.gpa >> PAGE_SHIFT
    if exit_.qualification == EptViolationType.PENDING:
        vm.vm_dead = True
        raise rules.NOT_ACCEPTED(f"gpa {exit_.gpa:#x}, {vcpu}")
    for _ in range(BUSY_LIMIT):
        result = vm.mmu.page_fault(vcpu, gfn, PFERR_WRITE_MASK | PFERR_PRIVATE_ACCESS)
        if result is not RetPf.RETRY or td.vcpus[vcpu].has_events or vm.rt.current.pending_signals:
            return 1
        if vm.vm_dead:
            raise kvm_rules.VM_DEAD()
        slot = vm.find_slot(gfn)
        if slot is not None and slot.flags & KVM_MEMSLOT_INVALID:
            return 1
        vm.rt.retry()
    raise livelock(f"the secure EPT entry of gfn {gfn:#x}")


# TDVMCALL


def _handle_tdvmcall(td: TdxVm, vcpu: Vcpu, exit_: TdVmcall) -> int:
    """handle_tdvmcall(): R10 and R11 are the completion."""
    if exit_.leaf == Tdvmcall.MAP_GPA:
        return _MapGpa(td, vcpu, *(*exit_.args, 0, 0)[:2]).begin()
    if exit_.leaf == Tdvmcall.REPORT_FATAL_ERROR:
        return _report_fatal_error(vcpu, exit_)
    if exit_.leaf == Tdvmcall.GET_TD_VM_CALL_INFO and not any(exit_.args[:1]):
        vcpu.completion = (TDVMCALL_STATUS_SUCCESS, 0)
        return 1
    vcpu.completion = (TDVMCALL_STATUS_SUBFUNC_UNSUPPORTED, 0)
    return 1


def _report_fatal_error(vcpu: Vcpu, exit_: TdVmcall) -> int:
    """tdx_report_fatal_error(): KVM_SYSTEM_EVENT_TDX_FATAL with sixteen registers, of which R10 to R15 are the guest's."""
    r12_to_r15 = (*exit_.args, 0, 0, 0, 0)[:4]
    registers = (*(0,) * 11, exit_.leaf, *r12_to_r15)
    details = kvm_exit_system_event(type=SystemEvent.TDX_FATAL, ndata=16, data=registers)
    vcpu.set_exit(ExitReason.SYSTEM_EVENT, details)
    vcpu.completion = (TDVMCALL_STATUS_SUCCESS, 0)
    return 0


class _MapGpa:
    """TDVMCALL MapGPA in progress: it goes to user space in pieces of at most 2 MiB."""

    def __init__(self, td: TdxVm, vcpu: Vcpu, gpa: int, size: int) -> None:
        self.td, self.vcpu = td, vcpu
        self.next, self.size, self.end = gpa, size, gpa + size

    def begin(self) -> int:
        """tdx_map_gpa()."""
        status = self._check()
        if status:
            return self._finish(status)
        self._exit()
        return 0

    def _check(self) -> int:
        td, gpa, last = self.td, self.next, self.end - 1
        if not td.vm.exits_on_hypercall(KVM_HC_MAP_GPA_RANGE):
            return TDVMCALL_STATUS_SUBFUNC_UNSUPPORTED
        legal = td.gfn_direct_bits << PAGE_SHIFT + 1
        if self.size <= 0 or last >= legal or td.is_gfn_alias(gpa >> PAGE_SHIFT) != td.is_gfn_alias(last >> PAGE_SHIFT):
            return TDVMCALL_STATUS_INVALID_OPERAND
        if (gpa | self.size) & (PAGE_SIZE - 1):
            return TDVMCALL_STATUS_ALIGN_ERROR
        return TDVMCALL_STATUS_SUCCESS

    def _exit(self) -> None:
        """__tdx_map_gpa()."""
        td, size = self.td, min(self.end - self.next, TDX_MAP_GPA_MAX_LEN)
        shared = td.is_gfn_alias(self.next >> PAGE_SHIFT)
        attributes = KVM_MAP_GPA_RANGE_DECRYPTED if shared else KVM_MAP_GPA_RANGE_ENCRYPTED
        gpa = self.next & ~(td.gfn_direct_bits << PAGE_SHIFT)
        details = kvm_exit_hypercall(
            nr=KVM_HC_MAP_GPA_RANGE,
            args=(gpa, size // PAGE_SIZE, attributes, 0, 0, 0),
            flags=KVM_EXIT_HYPERCALL_LONG_MODE,
        )
        self.vcpu.set_exit(ExitReason.HYPERCALL, details)
        self.vcpu.complete_userspace_io = self._complete

    def _complete(self) -> int:
        """tdx_complete_vmcall_map_gpa()."""
        answer = self.vcpu.exit_details(kvm_exit_hypercall)
        assert isinstance(answer, kvm_exit_hypercall)
        if answer.ret == EAGAIN:
            return self._finish(TDVMCALL_STATUS_RETRY)
        if answer.ret == EINVAL:
            return self._finish(TDVMCALL_STATUS_INVALID_OPERAND)
        if answer.ret:
            self.vcpu.completion = (TDVMCALL_STATUS_SUCCESS, Tdvmcall.MAP_GPA)
            raise kvm_rules.RUN_HYPERCALL_RET(f"{answer.ret:#x}")
        self.next += TDX_MAP_GPA_MAX_LEN
        if self.next >= self.end:
            self.vcpu.completion = (TDVMCALL_STATUS_SUCCESS, Tdvmcall.MAP_GPA)
            return 1
        if self.td.vcpus[self.vcpu].has_events:
            return self._finish(TDVMCALL_STATUS_RETRY)
        self._exit()
        return 0

    def _finish(self, status: int) -> int:
        self.vcpu.completion = (status, self.next)
        return 1
