# SPDX-License-Identifier: GPL-2.0-or-later
"""An SNP guest gives a processor its VMSA: AP creation, and what becomes of a VMSA whose page goes away
(arch/x86/kvm/svm/sev.c, Linux 7.3: sev_snp_ap_creation, __sev_snp_reload_vmsa, sev_gmem_invalidate_range).

A scripted guest has no state in the VMSA's bytes: a processor that gets one starts its function from the beginning.  Where
KVM would let the vCPU wait for a VMSA, KVM_RUN ends with KVM_EXIT_HLT, as no thread would wake it here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...hw.memory import PAGE_SHIFT, PAGE_SIZE
from ...rules import KernelError
from ...uapi.ghcb import (
    SVM_VMGEXIT_AP_CREATE,
    SVM_VMGEXIT_AP_CREATE_ON_INIT,
    SVM_VMGEXIT_AP_DESTROY,
    GhcbError,
)
from ...uapi.kvm import ExitReason, MpState
from ..guest_memfd.fault import kvm_gmem_get_pfn

if TYPE_CHECKING:
    from ...hw.cpu import Vmgexit
    from ..vcpu import Vcpu
    from .snp import SnpVm

__all__ = ["GuestVmsa", "ap_creation", "handle_requests", "invalidate_range", "may_enter"]

UPDATE, RELOAD = "KVM_REQ_UPDATE_PROTECTED_GUEST_STATE", "KVM_REQ_VMSA_PAGE_RELOAD"
PMD_SIZE = 2 << 20
MAX_GPA = 1 << 52
_U32 = (1 << 32) - 1


class GuestVmsa:
    """What struct vcpu_sev_es_state keeps of a vCPU's VMSA once the guest has a say in it.  Addresses are bytes, None is
    INVALID_PAGE."""

    def __init__(self, vcpu: Vcpu) -> None:
        self.mutex = vcpu.vm.rt.mutex("snp_vmsa_mutex")
        self.pending_gpa: int | None = None
        self.guest_gpa: int | None = None
        self.waiting_for_reset = False
        self.chosen = False
        """snp_has_guest_vmsa: KVM's own is never used again"""
        self.pfn: int | None = None
        """vmcb->control.vmsa_pa"""
        self._vcpu = vcpu
        self._requests: set[str] = set()

    def make_request(self, request: str) -> None:
        """kvm_make_request_and_kick()."""
        self._vcpu.vm.rt.writes(("request", self._vcpu))
        self._requests.add(request)
        self._vcpu.cpu.kick()

    def check_request(self, request: str) -> bool:
        """kvm_check_request(): whether it was made; it's dealt with now."""
        self._vcpu.vm.rt.writes(("request", self._vcpu))
        made = request in self._requests
        self._requests.discard(request)
        return made


def ap_creation(sev: SnpVm, exit_: Vmgexit) -> int:
    """sev_snp_ap_creation(): SW_EXITINFO2 of the answer, 0 or GHCB_ERR_INVALID_INPUT."""
    request, apic_id = exit_.info1 & _U32, exit_.info1 >> 32
    target = next((vcpu for vcpu in sev.vm.vcpus if vcpu.id == apic_id), None)
    if target is None:
        return int(GhcbError.INVALID_INPUT)
    vmsa = sev.vmsas[target]
    with vmsa.mutex:
        if request in (SVM_VMGEXIT_AP_CREATE_ON_INIT, SVM_VMGEXIT_AP_CREATE):
            gpa = exit_.info2
            valid = not gpa & (PAGE_SIZE - 1) and gpa < MAX_GPA and gpa % PMD_SIZE
            if exit_.rax != sev.vmsa_features or not valid:
                return int(GhcbError.INVALID_INPUT)
            vmsa.pending_gpa = gpa
        elif request == SVM_VMGEXIT_AP_DESTROY:
            vmsa.pending_gpa = None
        else:
            return int(GhcbError.INVALID_INPUT)
        vmsa.waiting_for_reset = True
        if request != SVM_VMGEXIT_AP_CREATE_ON_INIT:
            vmsa.make_request(UPDATE)
    return 0


def handle_requests(sev: SnpVm, vcpu: Vcpu) -> int:
    """vcpu_enter_guest(): a new VMSA, or the old one's page anew.  1 to go on, 0 where the vCPU would wait."""
    vmsa = sev.vmsas[vcpu]
    if vmsa.check_request(UPDATE):
        _init_protected_guest_state(sev, vcpu, vmsa)
    if vmsa.chosen and vcpu.mp_state is MpState.HALTED:
        vcpu.set_exit(ExitReason.HLT)
        return 0
    if vmsa.check_request(RELOAD):
        with vmsa.mutex:
            _reload_vmsa(sev, vmsa, vmsa.guest_gpa, vcpu)
    return 1


def may_enter(sev: SnpVm, vcpu: Vcpu) -> bool:
    """pre_sev_run(), and what VMRUN checks: the page must be one that the guest made a VMSA by RMPADJUST."""
    vmsa = sev.vmsas[vcpu]
    if not vmsa.chosen:
        return vcpu.guest_state_protected and sev.pre_fault_allowed
    if vmsa.pfn is None:
        return False
    entry = sev.platform.rmp.lookup(vmsa.pfn)
    return entry is not None and entry.asid == sev.asid and entry.vmsa and entry.validated


def invalidate_range(sev: SnpVm, start: int, end: int) -> None:
    """sev_gmem_invalidate_range(): vCPUs whose VMSA is in guest frames [start, end) have to find it again."""
    for vmsa in sev.vmsas.values():
        if vmsa.guest_gpa is not None and start <= vmsa.guest_gpa >> PAGE_SHIFT < end:
            vmsa.make_request(RELOAD)


def _init_protected_guest_state(sev: SnpVm, vcpu: Vcpu, vmsa: GuestVmsa) -> None:
    """kvm_vcpu_reset() and sev_snp_init_protected_guest_state()."""
    with vmsa.mutex:
        if not vmsa.waiting_for_reset:
            return
        vmsa.waiting_for_reset = False
        vcpu.mp_state = MpState.HALTED
        gpa, vmsa.pending_gpa = vmsa.pending_gpa, None
        _reload_vmsa(sev, vmsa, gpa, vcpu)
        vcpu.pending_exit = vcpu.completion = vcpu.complete_userspace_io = None
        vcpu.cpu.restart_guest()
        if gpa is not None:
            vcpu.mp_state = MpState.RUNNABLE


def _reload_vmsa(sev: SnpVm, vmsa: GuestVmsa, gpa: int | None, vcpu: Vcpu) -> None:
    """__sev_snp_reload_vmsa(): without a page the vCPU can't be entered."""
    vm = sev.vm
    vmsa.pfn = vmsa.guest_gpa = None
    vmsa.chosen = True
    slot = vm.find_slot(gpa >> PAGE_SHIFT) if gpa is not None else None
    if gpa is None or slot is None or not slot.has_gmem:
        return
    seq = vm.mmu.invalidate_seq.read()
    try:
        pfn = kvm_gmem_get_pfn(vm, slot, gpa >> PAGE_SHIFT)
    except KernelError:
        return
    with vm.mmu_lock.shared:
        vmsa.guest_gpa = gpa
        if vm.mmu.invalidate_retry_gfn(seq, gpa >> PAGE_SHIFT):
            vmsa.make_request(RELOAD)
        else:
            vmsa.pfn = pfn
    vm.host.memmap.put(pfn)
