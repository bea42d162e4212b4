# SPDX-License-Identifier: GPL-2.0-or-later
"""What an SEV-ES or SNP guest asks of its hypervisor: the GHCB MSR protocol and the page state change request.

The MSR holds the address of the GHCB, or a request in bits 11:0 with its data above; the answer comes back in the same MSR.
Field positions are from <asm/sev-common.h>, exit codes from <asm/svm.h>, both as of Linux 7.3-rc7, after the "SEV-ES
Guest-Hypervisor Communication Block Standardization" (AMD 56421).  All page numbers are gfns (gpa >> 12).
"""

from __future__ import annotations

from enum import IntEnum

from .layout import Struct, u16, u32, u64

__all__ = [
    "GHCB_HV_FT_SNP",
    "GHCB_HV_FT_SNP_AP_CREATION",
    "GHCB_HV_FT_SNP_MULTI_VMPL",
    "GHCB_HV_RESP_ISSUE_EXCEPTION",
    "GHCB_HV_RESP_MALFORMED_INPUT",
    "GHCB_HV_RESP_NO_ACTION",
    "GHCB_MSR_AP_RESET_HOLD_REQ",
    "GHCB_MSR_AP_RESET_HOLD_RESP",
    "GHCB_MSR_CPUID_REQ",
    "GHCB_MSR_CPUID_RESP",
    "GHCB_MSR_HV_FT_REQ",
    "GHCB_MSR_HV_FT_RESP",
    "GHCB_MSR_INFO_MASK",
    "GHCB_MSR_PREF_GPA_NONE",
    "GHCB_MSR_PREF_GPA_REQ",
    "GHCB_MSR_PREF_GPA_RESP",
    "GHCB_MSR_PSC_REQ",
    "GHCB_MSR_PSC_RESP",
    "GHCB_MSR_PSC_RESP_ERROR",
    "GHCB_MSR_REG_GPA_REQ",
    "GHCB_MSR_REG_GPA_RESP",
    "GHCB_MSR_SEV_INFO_REQ",
    "GHCB_MSR_SEV_INFO_RESP",
    "GHCB_MSR_TERM_REQ",
    "GHCB_MSR_VMPL_REQ",
    "GHCB_MSR_VMPL_RESP",
    "GHCB_SHARED_BUF_OFFSET",
    "GHCB_SHARED_BUF_SIZE",
    "SEV_TERM_SET_GEN",
    "SEV_TERM_SET_LINUX",
    "SVM_EXIT_VMGEXIT",
    "SVM_VMGEXIT_AP_CREATE",
    "SVM_VMGEXIT_AP_CREATE_ON_INIT",
    "SVM_VMGEXIT_AP_CREATION",
    "SVM_VMGEXIT_AP_DESTROY",
    "SVM_VMGEXIT_AP_HLT_LOOP",
    "SVM_VMGEXIT_AP_JUMP_TABLE",
    "SVM_VMGEXIT_EXT_GUEST_REQUEST",
    "SVM_VMGEXIT_GUEST_REQUEST",
    "SVM_VMGEXIT_HV_FEATURES",
    "SVM_VMGEXIT_MMIO_READ",
    "SVM_VMGEXIT_MMIO_WRITE",
    "SVM_VMGEXIT_NMI_COMPLETE",
    "SVM_VMGEXIT_PSC",
    "SVM_VMGEXIT_SNP_RUN_VMPL",
    "SVM_VMGEXIT_TERM_REQUEST",
    "SVM_VMGEXIT_UNSUPPORTED_EVENT",
    "VMGEXIT_PSC_ERROR_GENERIC",
    "VMGEXIT_PSC_ERROR_INVALID_ENTRY",
    "VMGEXIT_PSC_ERROR_INVALID_HDR",
    "VMGEXIT_PSC_MAX_COUNT",
    "VMGEXIT_PSC_OP_PRIVATE",
    "VMGEXIT_PSC_OP_SHARED",
    "GhcbError",
    "LinuxTermReason",
    "PscOp",
    "ghcb_msr_gfn",
    "ghcb_msr_hv_ft_resp",
    "ghcb_msr_info",
    "ghcb_msr_psc_req",
    "ghcb_msr_psc_req_fields",
    "ghcb_msr_psc_resp",
    "ghcb_msr_psc_resp_error",
    "ghcb_msr_reg_gpa_req",
    "ghcb_msr_reg_gpa_resp",
    "ghcb_msr_sev_info",
    "ghcb_msr_term_fields",
    "ghcb_msr_term_req",
    "psc_entry",
    "psc_hdr",
]

# --- MSR protocol: request and response numbers, in bits 11:0 ---------------------------------------------------------

GHCB_MSR_INFO_MASK = 0xFFF

GHCB_MSR_SEV_INFO_RESP = 0x001
GHCB_MSR_SEV_INFO_REQ = 0x002
GHCB_MSR_CPUID_REQ = 0x004
GHCB_MSR_CPUID_RESP = 0x005
GHCB_MSR_AP_RESET_HOLD_REQ = 0x006
GHCB_MSR_AP_RESET_HOLD_RESP = 0x007
GHCB_MSR_PREF_GPA_REQ = 0x010
GHCB_MSR_PREF_GPA_RESP = 0x011
GHCB_MSR_REG_GPA_REQ = 0x012
GHCB_MSR_REG_GPA_RESP = 0x013
GHCB_MSR_PSC_REQ = 0x014
GHCB_MSR_PSC_RESP = 0x015
GHCB_MSR_VMPL_REQ = 0x016
GHCB_MSR_VMPL_RESP = 0x017
GHCB_MSR_HV_FT_REQ = 0x080
GHCB_MSR_HV_FT_RESP = 0x081
GHCB_MSR_TERM_REQ = 0x100

GHCB_MSR_PREF_GPA_NONE = (1 << 52) - 1
"""The gfn that refuses: no preferred GHCB page, or a registration that failed."""

GHCB_MSR_PSC_RESP_ERROR = 1 << 63 | GHCB_MSR_PSC_RESP
"""What KVM answers to a page state change by MSR that it couldn't do; success is GHCB_MSR_PSC_RESP with nothing above."""

# Hypervisor features
GHCB_HV_FT_SNP = 1 << 0
GHCB_HV_FT_SNP_AP_CREATION = 1 << 1
GHCB_HV_FT_SNP_MULTI_VMPL = 1 << 5

# Termination: who defined the reason
SEV_TERM_SET_GEN = 0
SEV_TERM_SET_LINUX = 1


class LinuxTermReason(IntEnum):
    """GHCB_TERM_*: why a Linux guest gives up (reason set SEV_TERM_SET_LINUX)."""

    REGISTER = 0
    PSC = 1
    PVALIDATE = 2
    NOT_VMPL0 = 3
    CPUID = 4
    CPUID_HV = 5
    SECRETS_PAGE = 6
    NO_SVSM = 7
    SVSM_VMPL0 = 8
    SVSM_CAA = 9
    SECURE_TSC = 10
    SVSM_CA_REMAP_FAIL = 11
    SAVIC_FAIL = 12


class PscOp(IntEnum):
    """What a page state change asks for, by MSR or by VMGEXIT."""

    PRIVATE = 1
    SHARED = 2


def ghcb_msr_info(msr: int) -> int:
    """The request or response number of an MSR value; 0 when the value is the address of a GHCB."""
    return msr & GHCB_MSR_INFO_MASK


def ghcb_msr_gfn(msr: int) -> int:
    """The gfn in bits 63:12 of an MSR value (registration, preferred GPA, or the GHCB itself)."""
    return msr >> 12


def ghcb_msr_sev_info(maximum: int, minimum: int, c_bit: int) -> int:
    """The hypervisor's first word: GHCB protocol versions it speaks, and which address bit encrypts."""
    return (maximum & 0xFFFF) << 48 | (minimum & 0xFFFF) << 32 | (c_bit & 0xFF) << 24 | GHCB_MSR_SEV_INFO_RESP


def ghcb_msr_reg_gpa_req(gfn: int) -> int:
    """A guest's request to register the page at `gfn` as this vCPU's GHCB."""
    return _data(gfn) | GHCB_MSR_REG_GPA_REQ


def ghcb_msr_reg_gpa_resp(gfn: int) -> int:
    """The answer to a registration: the same gfn, or GHCB_MSR_PREF_GPA_NONE for a refusal."""
    return _data(gfn) | GHCB_MSR_REG_GPA_RESP


def ghcb_msr_hv_ft_resp(features: int) -> int:
    """The answer to GHCB_MSR_HV_FT_REQ: a mask of GHCB_HV_FT_*."""
    return _data(features) | GHCB_MSR_HV_FT_RESP


def ghcb_msr_psc_req(gfn: int, op: int) -> int:
    """A guest's request to change the state of one 4 KiB page; `op` is a `PscOp`."""
    return (op & 0xF) << 52 | (gfn & _GFN_40) << 12 | GHCB_MSR_PSC_REQ


def ghcb_msr_psc_req_fields(msr: int) -> tuple[int, int]:
    """The gfn and the operation of a page state change request; the operation may be none of `PscOp`."""
    return msr >> 12 & _GFN_40, msr >> 52 & 0xF


def ghcb_msr_psc_resp(error: int) -> int:
    """The answer to a page state change by MSR: 0, or an error of 32 bits that isn't."""
    return (error & 0xFFFFFFFF) << 32 | GHCB_MSR_PSC_RESP


def ghcb_msr_psc_resp_error(msr: int) -> int:
    """The error in the answer to a page state change by MSR; 0 is success."""
    return msr >> 32 & 0xFFFFFFFF


def ghcb_msr_term_req(reason_set: int, reason: int) -> int:
    """A guest's request to be terminated."""
    return (reason & 0xFF) << 16 | (reason_set & 0xF) << 12 | GHCB_MSR_TERM_REQ


def ghcb_msr_term_fields(msr: int) -> tuple[int, int]:
    """The reason set and the reason of a termination request."""
    return msr >> 12 & 0xF, msr >> 16 & 0xFF


_GFN_40 = (1 << 40) - 1


def _data(value: int) -> int:
    return (value & GHCB_MSR_PREF_GPA_NONE) << 12


# --- Exit codes of the GHCB page (sw_exit_code) -----------------------------------------------------------------------

SVM_EXIT_VMGEXIT = 0x403

SVM_VMGEXIT_MMIO_READ = 0x80000001
SVM_VMGEXIT_MMIO_WRITE = 0x80000002
SVM_VMGEXIT_NMI_COMPLETE = 0x80000003
SVM_VMGEXIT_AP_HLT_LOOP = 0x80000004
SVM_VMGEXIT_AP_JUMP_TABLE = 0x80000005
SVM_VMGEXIT_PSC = 0x80000010
SVM_VMGEXIT_GUEST_REQUEST = 0x80000011
SVM_VMGEXIT_EXT_GUEST_REQUEST = 0x80000012
SVM_VMGEXIT_AP_CREATION = 0x80000013
SVM_VMGEXIT_SNP_RUN_VMPL = 0x80000018
SVM_VMGEXIT_HV_FEATURES = 0x8000FFFD
SVM_VMGEXIT_TERM_REQUEST = 0x8000FFFE
SVM_VMGEXIT_UNSUPPORTED_EVENT = 0x8000FFFF

# What AP_CREATION is to do, in sw_exit_info_1.
SVM_VMGEXIT_AP_CREATE_ON_INIT = 0
SVM_VMGEXIT_AP_CREATE = 1
SVM_VMGEXIT_AP_DESTROY = 2

# How an exit went, in sw_exit_info_1; MALFORMED_INPUT puts a `GhcbError` into sw_exit_info_2.
GHCB_HV_RESP_NO_ACTION = 0
GHCB_HV_RESP_ISSUE_EXCEPTION = 1
GHCB_HV_RESP_MALFORMED_INPUT = 2


class GhcbError(IntEnum):
    """GHCB_ERR_*: what was wrong with the guest's input."""

    NOT_REGISTERED = 1
    INVALID_USAGE = 2
    INVALID_SCRATCH_AREA = 3
    MISSING_INPUT = 4
    INVALID_INPUT = 5
    INVALID_EVENT = 6


GHCB_SHARED_BUF_OFFSET = 0x800
"""Where the GHCB page's buffer starts, in bytes; the page state change request usually lies here."""
GHCB_SHARED_BUF_SIZE = 2032
"""Its size in bytes: a header and VMGEXIT_PSC_MAX_COUNT entries fill it exactly."""

# --- Page state change by VMGEXIT -------------------------------------------------------------------------------------

VMGEXIT_PSC_MAX_COUNT = 253
VMGEXIT_PSC_OP_PRIVATE = PscOp.PRIVATE
VMGEXIT_PSC_OP_SHARED = PscOp.SHARED

# In sw_exit_info_2; 0 is success.
VMGEXIT_PSC_ERROR_GENERIC = 0x100 << 32
VMGEXIT_PSC_ERROR_INVALID_HDR = 1 << 32 | 1
VMGEXIT_PSC_ERROR_INVALID_ENTRY = 1 << 32 | 2


class psc_hdr(Struct):
    """Head of a page state change request; `cur_entry` advances, `end_entry` is the last one, inclusive."""

    cur_entry: int = u16()
    end_entry: int = u16()
    reserved: int = u32()


class psc_entry(Struct):
    """One entry of a page state change request: 64 bits of fields.

    `cur_page` counts the 4 KiB pages already done within the entry, `pagesize` 1 makes it a 2 MiB page.
    """

    value: int = u64()

    @classmethod
    def of(cls, gfn: int, operation: int, pagesize: int = 0, cur_page: int = 0) -> psc_entry:
        """An entry from its fields."""
        low = (gfn & _GFN_40) << 12 | cur_page & 0xFFF
        return cls(value=(pagesize & 1) << 56 | (operation & 0xF) << 52 | low)

    @property
    def cur_page(self) -> int:
        """4 KiB pages already done, bits 11:0."""
        return self.value & 0xFFF

    @cur_page.setter
    def cur_page(self, pages: int) -> None:
        self.value = self.value & ~0xFFF | pages & 0xFFF

    @property
    def gfn(self) -> int:
        """The page, bits 51:12."""
        return self.value >> 12 & _GFN_40

    @property
    def operation(self) -> int:
        """What is asked, bits 55:52; a valid one is a `PscOp`."""
        return self.value >> 52 & 0xF

    @property
    def pagesize(self) -> int:
        """0 for 4 KiB, 1 for 2 MiB; bit 56."""
        return self.value >> 56 & 1

    @property
    def reserved(self) -> int:
        """Bits 63:57."""
        return self.value >> 57
