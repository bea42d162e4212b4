# SPDX-License-Identifier: GPL-2.0-or-later
"""What a scripted guest has in its hands: ``def guest(cpu): cpu.store(0x1000, b"hello")``.

Guest-physical addresses are bytes.  An access of an SNP guest is private (with the C-bit) unless it says `shared=True`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Never

from ..uapi.ghcb import (
    GHCB_MSR_PSC_RESP,
    SEV_TERM_SET_LINUX,
    SVM_VMGEXIT_AP_CREATE,
    SVM_VMGEXIT_AP_CREATE_ON_INIT,
    SVM_VMGEXIT_AP_CREATION,
    SVM_VMGEXIT_AP_DESTROY,
    SVM_VMGEXIT_PSC,
    LinuxTermReason,
    PscOp,
    ghcb_msr_info,
    ghcb_msr_psc_req,
    ghcb_msr_psc_resp_error,
    ghcb_msr_term_req,
    psc_entry,
    psc_hdr,
)
from ..uapi.kvm import KVM_HC_MAP_GPA_RANGE, KVM_MAP_GPA_RANGE_ENCRYPTED
from ..uapi.sev import SVM_SEV_FEAT_SNP_ACTIVE
from .cpu import Cpu, GhcbMsr, Hlt, PortIo, Shutdown, Vmgexit, Vmmcall
from .memory import PAGE_SHIFT, PAGE_SIZE

__all__ = ["GuestCpu"]


class GuestCpu:
    """The guest's view of its processor."""

    def __init__(self, cpu: Cpu) -> None:
        self._cpu = cpu

    # Memory

    def load(self, gpa: int, length: int = 8, *, shared: bool = False) -> bytes:
        """Read `length` bytes at `gpa`."""
        return self._cpu.load(gpa, length, self._cpu.encrypted_default and not shared)

    def store(self, gpa: int, data: bytes, *, shared: bool = False) -> None:
        """Write `data` at `gpa`."""
        self._cpu.store(gpa, data, self._cpu.encrypted_default and not shared)

    # Leaving the guest

    def hypercall(self, nr: int, *args: int) -> int:
        """VMMCALL: the hypervisor's answer (negative errors as KVM gives them)."""
        result = self._cpu.leave(Vmmcall(nr, args))
        assert isinstance(result, int)
        return result

    def map_gpa_range(self, gpa: int, size: int, *, private: bool) -> int:
        """KVM_HC_MAP_GPA_RANGE: ask for `size` bytes at `gpa` to become private or shared.  0, or an error."""
        attributes = KVM_MAP_GPA_RANGE_ENCRYPTED if private else 0
        return self.hypercall(KVM_HC_MAP_GPA_RANGE, gpa, size >> PAGE_SHIFT, attributes)

    def port_out(self, port: int, data: bytes) -> None:
        """OUT of 1, 2 or 4 bytes."""
        self._cpu.leave(PortIo(port, True, data))

    def port_in(self, port: int, length: int = 1) -> bytes:
        """IN of 1, 2 or 4 bytes."""
        data = self._cpu.leave(PortIo(port, False, bytes(length)))
        assert isinstance(data, bytes)
        return data

    def halt(self) -> None:
        """HLT; returns when the vCPU is run again."""
        self._cpu.leave(Hlt())

    def triple_fault(self) -> None:
        """Nothing can be delivered any more: shutdown."""
        self._cpu.leave(Shutdown())

    # SNP

    def pvalidate(self, gpa: int, *, validate: bool = True, huge: bool = False) -> int:
        """PVALIDATE the page at `gpa` (2 MiB if `huge`): 0; 6 size mismatch; 255 nothing changed (as Linux codes it)."""
        return self._cpu.protection.pvalidate(self._cpu, gpa >> PAGE_SHIFT, validate, huge)

    def rmpadjust(self, gpa: int, *, vmpl: int, mask: int, vmsa: bool = False) -> int:
        """RMPADJUST the page at `gpa` for a less privileged VMPL.  The instruction's code, 0 for success."""
        return self._cpu.protection.rmpadjust(self._cpu, gpa >> PAGE_SHIFT, vmpl, mask, vmsa)

    def ghcb_msr(self, value: int) -> int:
        """Write the GHCB MSR, VMGEXIT, read it back."""
        result = self._cpu.leave(GhcbMsr(value))
        assert isinstance(result, int)
        return result

    def page_state_change_msr(self, gpa: int, *, private: bool) -> int:
        """Page-state change of one 4 KiB page by the MSR protocol: 0, or the upper half of the answer (all ones if it isn't
        an answer to that)."""
        op = PscOp.PRIVATE if private else PscOp.SHARED
        answer = self.ghcb_msr(ghcb_msr_psc_req(gpa >> PAGE_SHIFT, op))
        return ghcb_msr_psc_resp_error(answer) if ghcb_msr_info(answer) == GHCB_MSR_PSC_RESP else 0xFFFFFFFF

    def page_state_change(self, entries: Sequence[psc_entry], *, first: int = 0) -> int:
        """Page-state change by VMGEXIT 0x80000010, from entry `first` of `entries`: SW_EXITINFO2 (0: all done)."""
        header = psc_hdr(cur_entry=first, end_entry=len(entries) - 1 & 0xFFFF)
        buffer = bytearray(header.pack() + b"".join(entry.pack() for entry in entries))
        return self.vmgexit(SVM_VMGEXIT_PSC, 0, 0, buffer)

    def ap_create(self, apic_id: int, vmsa: int, *, on_init: bool = False, features: int = SVM_SEV_FEAT_SNP_ACTIVE) -> int:
        """Have the processor `apic_id` start with the VMSA at gpa `vmsa`, a private page that RMPADJUST made one.

        `features` is the VMSA's SEV_FEATURES.  0, or a GHCB_ERR_*.  `on_init`: once it gets an INIT.
        """
        request = SVM_VMGEXIT_AP_CREATE_ON_INIT if on_init else SVM_VMGEXIT_AP_CREATE
        return self.vmgexit(SVM_VMGEXIT_AP_CREATION, apic_id << 32 | request, vmsa, rax=features)

    def ap_destroy(self, apic_id: int) -> int:
        """Stop the processor `apic_id`.  0, or a GHCB_ERR_*."""
        return self.vmgexit(SVM_VMGEXIT_AP_CREATION, apic_id << 32 | SVM_VMGEXIT_AP_DESTROY, 0)

    def vmgexit(self, code: int, info1: int, info2: int, buffer: bytearray | None = None, *, rax: int = 0) -> int:
        """VMGEXIT with a GHCB: SW_EXITINFO2 of the answer.  `buffer` is the shared buffer, changed in place."""
        shared = buffer if buffer is not None else bytearray(PAGE_SIZE)
        result = self._cpu.leave(Vmgexit(code, info1, info2, shared, rax))
        assert isinstance(result, int)
        return result

    def accept(self, gpa: int, size: int) -> None:
        """What a Linux guest does to private memory before it uses it: PVALIDATE page by page.

        An answer other than 0 ends the guest, also "nothing changed": the page was validated before, so the hypervisor may
        have put another in its place.
        """
        self._validate(gpa, size, True)

    def convert(self, gpa: int, size: int, *, private: bool) -> None:
        """Change `size` bytes at `gpa` as a Linux SNP guest does: to shared, give validation up, then ask; to private, ask,
        then validate.  An answer other than 0 ends the guest."""
        if not private:
            self._validate(gpa, size, False)
        for page in range(gpa, gpa + size, PAGE_SIZE):
            if self.page_state_change_msr(page, private=private):
                self.terminate(SEV_TERM_SET_LINUX, LinuxTermReason.PSC)
        if private:
            self._validate(gpa, size, True)

    def _validate(self, gpa: int, size: int, validate: bool) -> None:
        for page in range(gpa, gpa + size, PAGE_SIZE):
            if self.pvalidate(page, validate=validate):
                self.terminate(SEV_TERM_SET_LINUX, LinuxTermReason.PVALIDATE)

    def terminate(self, reason_set: int = 0, reason: int = 0) -> Never:
        """Ask the hypervisor to end the guest (GHCB MSR 0x100), and halt for ever should it be run again."""
        self.ghcb_msr(ghcb_msr_term_req(reason_set, reason))
        while True:
            self.halt()
