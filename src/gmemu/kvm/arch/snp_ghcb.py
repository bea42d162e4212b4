# SPDX-License-Identifier: GPL-2.0-or-later
"""What an SNP guest asks by VMGEXIT: the GHCB MSR protocol and page-state change (arch/x86/kvm/svm/sev.c)."""

from __future__ import annotations

from errno import EAGAIN, EINVAL
from typing import TYPE_CHECKING

from ...hw.cpu import Vmgexit
from ...hw.memory import PAGE_SHIFT
from ...rules import gmemu as own_rules
from ...rules import kvm as rules
from ...rules import snp as snp_rules
from ...uapi.ghcb import (
    GHCB_HV_FT_SNP,
    GHCB_HV_FT_SNP_AP_CREATION,
    GHCB_MSR_AP_RESET_HOLD_REQ,
    GHCB_MSR_CPUID_REQ,
    GHCB_MSR_HV_FT_REQ,
    GHCB_MSR_PREF_GPA_NONE,
    GHCB_MSR_PREF_GPA_REQ,
    GHCB_MSR_PREF_GPA_RESP,
    GHCB_MSR_PSC_REQ,
    GHCB_MSR_PSC_RESP,
    GHCB_MSR_PSC_RESP_ERROR,
    GHCB_MSR_REG_GPA_REQ,
    GHCB_MSR_SEV_INFO_REQ,
    GHCB_MSR_TERM_REQ,
    GHCB_SHARED_BUF_SIZE,
    SVM_VMGEXIT_AP_CREATION,
    SVM_VMGEXIT_AP_JUMP_TABLE,
    SVM_VMGEXIT_GUEST_REQUEST,
    SVM_VMGEXIT_HV_FEATURES,
    SVM_VMGEXIT_MMIO_READ,
    SVM_VMGEXIT_PSC,
    SVM_VMGEXIT_TERM_REQUEST,
    SVM_VMGEXIT_UNSUPPORTED_EVENT,
    VMGEXIT_PSC_ERROR_GENERIC,
    VMGEXIT_PSC_ERROR_INVALID_ENTRY,
    VMGEXIT_PSC_ERROR_INVALID_HDR,
    VMGEXIT_PSC_MAX_COUNT,
    GhcbError,
    PscOp,
    ghcb_msr_gfn,
    ghcb_msr_hv_ft_resp,
    ghcb_msr_info,
    ghcb_msr_psc_req_fields,
    ghcb_msr_reg_gpa_resp,
    ghcb_msr_sev_info,
    psc_entry,
    psc_hdr,
)
from ...uapi.kvm import (
    KVM_HC_MAP_GPA_RANGE,
    KVM_MAP_GPA_RANGE_DECRYPTED,
    KVM_MAP_GPA_RANGE_ENCRYPTED,
    KVM_MAP_GPA_RANGE_PAGE_SZ_2M,
    KVM_MAP_GPA_RANGE_PAGE_SZ_4K,
    ExitReason,
    SystemEvent,
    kvm_exit_system_event,
)
from ..run import map_gpa_range_exit
from .snp_ap import ap_creation

if TYPE_CHECKING:
    from ..vcpu import Vcpu
    from .snp import SnpVm

__all__ = ["handle_ghcb_msr", "handle_vmgexit"]

GHCB_VERSION_MIN = 1
C_BIT = 51
HV_FEATURES = GHCB_HV_FT_SNP | GHCB_HV_FT_SNP_AP_CREATION
PAGES_PER_2M = 512
_ANSWERS = (0, EAGAIN, EINVAL)
_NOT_EMULATED = frozenset(
    (
        *(0x27, 0x37, 0x6E, 0x6F, 0x72, 0x76, 0x7B, 0x7C, 0x81, 0x87, 0x89, 0x8A, 0x8B),  # instructions: SVM_EXIT_*
        *range(SVM_VMGEXIT_MMIO_READ, SVM_VMGEXIT_AP_JUMP_TABLE + 1),
        *range(SVM_VMGEXIT_GUEST_REQUEST, SVM_VMGEXIT_AP_CREATION),
    )
)
"""What KVM handles and this doesn't: a scripted guest has methods for most of it."""


def handle_ghcb_msr(sev: SnpVm, vcpu: Vcpu, msr: int) -> int:
    """sev_handle_vmgexit_msr_protocol(): 1 to resume with the answer, 0 to go to user space.

    A request that KVM doesn't know is left standing in the MSR.
    """
    request = ghcb_msr_info(msr)
    if request == GHCB_MSR_PSC_REQ:
        return _begin_psc_msr(sev, vcpu, msr)
    if request == GHCB_MSR_TERM_REQ:
        vcpu.completion = msr
        return _system_event(vcpu, msr)
    if request == GHCB_MSR_SEV_INFO_REQ:
        vcpu.completion = ghcb_msr_sev_info(sev.ghcb_version, GHCB_VERSION_MIN, C_BIT)
    elif request == GHCB_MSR_HV_FT_REQ:
        vcpu.completion = ghcb_msr_hv_ft_resp(HV_FEATURES)
    elif request == GHCB_MSR_PREF_GPA_REQ:
        vcpu.completion = GHCB_MSR_PREF_GPA_NONE << 12 | GHCB_MSR_PREF_GPA_RESP
    elif request == GHCB_MSR_REG_GPA_REQ:
        gfn = ghcb_msr_gfn(msr)
        sev.ghcb_gfns[vcpu] = gfn
        vcpu.completion = ghcb_msr_reg_gpa_resp(gfn)
    elif request in (GHCB_MSR_CPUID_REQ, GHCB_MSR_AP_RESET_HOLD_REQ):
        raise own_rules.SNP_GHCB_MSR(f"{msr:#x}")
    else:
        vcpu.completion = msr
    return 1


def handle_vmgexit(sev: SnpVm, vcpu: Vcpu, exit_: Vmgexit) -> int:
    """sev_handle_vmgexit(): the codes that concern memory; the guest is told of any other that it isn't valid.

    A scripted guest's GHCB is where it says by the MSR protocol; no place is needed for what it holds.
    """
    if exit_.code == SVM_VMGEXIT_PSC:
        return _PageStateChange(sev, vcpu, exit_.buffer).begin()
    if exit_.code == SVM_VMGEXIT_AP_CREATION:
        vcpu.completion = ap_creation(sev, exit_)
        return 1
    if exit_.code == SVM_VMGEXIT_TERM_REQUEST:
        vcpu.completion = 0
        return _system_event(vcpu, sev.ghcb_gfns.get(vcpu, 0) << PAGE_SHIFT)
    if exit_.code == SVM_VMGEXIT_UNSUPPORTED_EVENT:
        raise snp_rules.UNSUPPORTED_EVENT(f"exit code {exit_.info1:#x}, information {exit_.info2:#x}")
    if exit_.code in _NOT_EMULATED:
        raise own_rules.SNP_VMGEXIT(f"{exit_.code:#x}")
    vcpu.completion = HV_FEATURES if exit_.code == SVM_VMGEXIT_HV_FEATURES else int(GhcbError.INVALID_EVENT)
    return 1


def _system_event(vcpu: Vcpu, ghcb_msr: int) -> int:
    """The guest ends itself: KVM_EXIT_SYSTEM_EVENT with KVM_SYSTEM_EVENT_SEV_TERM, and what the GHCB MSR holds."""
    details = kvm_exit_system_event(type=SystemEvent.SEV_TERM, ndata=1, data=(ghcb_msr, *(0,) * 15))
    vcpu.set_exit(ExitReason.SYSTEM_EVENT, details)
    return 0


def _begin_psc_msr(sev: SnpVm, vcpu: Vcpu, msr: int) -> int:
    """snp_begin_psc_msr(): one 4 KiB page."""
    gfn, op = ghcb_msr_psc_req_fields(msr)
    if op not in (PscOp.PRIVATE, PscOp.SHARED) or not sev.vm.exits_on_hypercall(KVM_HC_MAP_GPA_RANGE):
        vcpu.completion = GHCB_MSR_PSC_RESP_ERROR
        return 1

    def complete(ret: int) -> int:
        vcpu.completion = msr
        _check_answer(sev, ret)
        vcpu.completion = GHCB_MSR_PSC_RESP_ERROR if ret else GHCB_MSR_PSC_RESP
        return 1

    return map_gpa_range_exit(vcpu, gfn << PAGE_SHIFT, 1, _attributes(op, huge=False), complete)


def _check_answer(sev: SnpVm, ret: int) -> None:
    """kvm_is_valid_map_gpa_range_ret(): KVM_RUN fails, and the guest goes on with its GHCB as it was, should it be run."""
    if sev.vm.profile.snp_checks_psc_answer and ret not in _ANSWERS:
        raise rules.RUN_HYPERCALL_RET(f"{ret:#x}")


def _attributes(op: int, *, huge: bool) -> int:
    size = KVM_MAP_GPA_RANGE_PAGE_SZ_2M if huge else KVM_MAP_GPA_RANGE_PAGE_SZ_4K
    return size | (KVM_MAP_GPA_RANGE_ENCRYPTED if op == PscOp.PRIVATE else KVM_MAP_GPA_RANGE_DECRYPTED)


class _PageStateChange:
    """VMGEXIT 0x80000010 in progress: entries that adjoin go to user space as one KVM_HC_MAP_GPA_RANGE."""

    def __init__(self, sev: SnpVm, vcpu: Vcpu, buffer: bytearray) -> None:
        self.sev, self.vcpu, self.buffer = sev, vcpu, buffer
        self.index = self.end = self.batch = 0

    def begin(self) -> int:
        """snp_begin_psc()."""
        if not self.sev.vm.exits_on_hypercall(KVM_HC_MAP_GPA_RANGE):
            return self._finish(VMGEXIT_PSC_ERROR_GENERIC)
        self.buffer.extend(bytes(max(GHCB_SHARED_BUF_SIZE - len(self.buffer), 0)))
        header = psc_hdr.unpack_from(self.buffer)
        self.index, self.end = header.cur_entry, header.end_entry
        if self.end >= VMGEXIT_PSC_MAX_COUNT:
            return self._finish(VMGEXIT_PSC_ERROR_INVALID_HDR)
        return self._next()

    def _next(self) -> int:
        """snp_do_psc(): the next range that needs work, with the entries that continue it."""
        while self.index <= self.end:
            entry = self._entry(self.index)
            pages = PAGES_PER_2M if entry.pagesize else 1
            if entry.cur_page > pages or entry.gfn % pages:
                return self._finish(VMGEXIT_PSC_ERROR_INVALID_ENTRY)
            if entry.cur_page == pages:
                self._advance(1)
                continue
            gfn, left = entry.gfn + entry.cur_page, pages - entry.cur_page
            npages = self._join(entry, left, bool(entry.pagesize and not entry.cur_page))
            if entry.operation in (PscOp.PRIVATE, PscOp.SHARED):
                attributes = _attributes(entry.operation, huge=bool(entry.pagesize))
                return map_gpa_range_exit(self.vcpu, gfn << PAGE_SHIFT, npages, attributes, self._complete)
            self._complete_batch()
        return self._finish(0)

    def _join(self, first: psc_entry, npages: int, huge: bool) -> int:
        """How many pages there are with the entries that follow on `first`, of which `npages` are left to do; `batch` is how
        many entries those are.

        KVM looks for the next one `npages` after the start of `first`, also where that is done in part: so a 2 MiB entry
        that was begun isn't joined by the page that follows it.
        """
        self.batch = 1
        while self.index + self.batch <= self.end:
            entry = self._entry(self.index + self.batch)
            if entry.operation != first.operation or entry.gfn != first.gfn + npages or entry.cur_page:
                break
            if bool(entry.pagesize) != huge:
                break
            self.batch += 1
            npages += PAGES_PER_2M if huge else 1
        return npages

    def _complete(self, ret: int) -> int:
        """snp_complete_one_psc()."""
        self.vcpu.completion = 0
        _check_answer(self.sev, ret)
        if ret:
            return self._finish(VMGEXIT_PSC_ERROR_GENERIC)
        self._complete_batch()
        return self._next()

    def _complete_batch(self) -> None:
        """__snp_complete_one_psc(): the guest sees how far it got, in the entries and in the head."""
        for index in range(self.index, self.index + self.batch):
            entry = self._entry(index)
            entry.cur_page = PAGES_PER_2M if entry.pagesize else 1
            entry.pack_into(self.buffer, psc_hdr.SIZE + index * psc_entry.SIZE)
        self._advance(self.batch)

    def _advance(self, entries: int) -> None:
        self.index += entries
        header = psc_hdr.unpack_from(self.buffer)
        header.cur_entry = self.index
        header.pack_into(self.buffer)

    def _entry(self, index: int) -> psc_entry:
        return psc_entry.unpack_from(self.buffer, psc_hdr.SIZE + index * psc_entry.SIZE)

    def _finish(self, code: int) -> int:
        """snp_complete_psc()."""
        self.vcpu.completion = code
        return 1
