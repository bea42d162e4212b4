# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gmemu.uapi import ghcb
from gmemu.uapi.ghcb import GhcbError, LinuxTermReason, PscOp, psc_entry, psc_hdr

GFN_40 = st.integers(0, 2**40 - 1)
GFN_52 = st.integers(0, 2**52 - 1)


def test_page_state_change_request_by_msr() -> None:
    assert ghcb.ghcb_msr_psc_req(0x12345, PscOp.SHARED) == 0x0020_0000_1234_5014
    assert ghcb.ghcb_msr_psc_req_fields(0x0020_0000_1234_5014) == (0x12345, PscOp.SHARED)


@given(GFN_40, st.integers(0, 15))
def test_page_state_change_request_round_trip(gfn: int, op: int) -> None:
    msr = ghcb.ghcb_msr_psc_req(gfn, op)
    assert ghcb.ghcb_msr_info(msr) == ghcb.GHCB_MSR_PSC_REQ == 0x014
    assert ghcb.ghcb_msr_psc_req_fields(msr) == (gfn, op)


def test_page_state_change_answer_by_msr() -> None:
    assert ghcb.ghcb_msr_psc_resp(0) == 0x015
    assert ghcb.ghcb_msr_psc_resp_error(0x015) == 0
    assert ghcb.GHCB_MSR_PSC_RESP_ERROR == 0x8000_0000_0000_0015
    assert ghcb.ghcb_msr_psc_resp_error(ghcb.GHCB_MSR_PSC_RESP_ERROR) == 0x80000000
    assert ghcb.ghcb_msr_psc_resp(0x80000000) == ghcb.GHCB_MSR_PSC_RESP_ERROR


@given(GFN_52)
def test_registration(gfn: int) -> None:
    request, answer = ghcb.ghcb_msr_reg_gpa_req(gfn), ghcb.ghcb_msr_reg_gpa_resp(gfn)
    assert (ghcb.ghcb_msr_info(request), ghcb.ghcb_msr_info(answer)) == (0x012, 0x013)
    assert ghcb.ghcb_msr_gfn(request) == ghcb.ghcb_msr_gfn(answer) == gfn


def test_refused_registration() -> None:
    assert ghcb.ghcb_msr_reg_gpa_resp(ghcb.GHCB_MSR_PREF_GPA_NONE) == 0xFFFF_FFFF_FFFF_F013


def test_termination() -> None:
    msr = ghcb.ghcb_msr_term_req(ghcb.SEV_TERM_SET_LINUX, LinuxTermReason.PVALIDATE)
    assert msr == 0x21100
    assert ghcb.ghcb_msr_term_fields(msr) == (1, 2)


def test_features() -> None:
    assert ghcb.ghcb_msr_hv_ft_resp(ghcb.GHCB_HV_FT_SNP | ghcb.GHCB_HV_FT_SNP_AP_CREATION) == 0x3081
    assert ghcb.GHCB_HV_FT_SNP_MULTI_VMPL == 0x20


def test_first_word() -> None:
    assert ghcb.ghcb_msr_sev_info(maximum=2, minimum=1, c_bit=51) == 0x0002_0001_3300_0001


def test_request_numbers() -> None:
    assert (ghcb.GHCB_MSR_SEV_INFO_REQ, ghcb.GHCB_MSR_CPUID_REQ, ghcb.GHCB_MSR_PREF_GPA_REQ) == (0x002, 0x004, 0x010)
    assert (ghcb.GHCB_MSR_VMPL_REQ, ghcb.GHCB_MSR_HV_FT_REQ, ghcb.GHCB_MSR_TERM_REQ) == (0x016, 0x080, 0x100)


def test_exit_codes() -> None:
    assert ghcb.SVM_VMGEXIT_PSC == 0x80000010
    assert ghcb.SVM_VMGEXIT_GUEST_REQUEST == 0x80000011
    assert ghcb.SVM_VMGEXIT_EXT_GUEST_REQUEST == 0x80000012
    assert ghcb.SVM_VMGEXIT_AP_CREATION == 0x80000013
    assert ghcb.SVM_VMGEXIT_TERM_REQUEST == 0x8000FFFE


def test_page_state_change_request_layout() -> None:
    assert psc_hdr.OFFSETS == {"cur_entry": 0, "end_entry": 2, "reserved": 4}
    assert (psc_hdr.SIZE, psc_entry.SIZE) == (8, 8)
    assert ghcb.VMGEXIT_PSC_MAX_COUNT == 253
    assert psc_hdr.SIZE + ghcb.VMGEXIT_PSC_MAX_COUNT * psc_entry.SIZE == ghcb.GHCB_SHARED_BUF_SIZE


def test_page_state_change_entry_bits() -> None:
    entry = psc_entry.of(gfn=0x12345, operation=PscOp.PRIVATE, pagesize=1, cur_page=511)
    assert entry.value == 0x0110_0000_1234_51FF
    assert psc_entry(value=0xFE << 56).reserved == 0x7F


@given(GFN_40, st.integers(0, 15), st.integers(0, 1), st.integers(0, 511))
def test_page_state_change_entry_round_trip(gfn: int, operation: int, pagesize: int, cur_page: int) -> None:
    entry = psc_entry.of(gfn, operation, pagesize)
    entry.cur_page = cur_page
    again = psc_entry.unpack_from(entry.pack())
    assert (again.gfn, again.operation, again.pagesize, again.cur_page) == (gfn, operation, pagesize, cur_page)
    assert again.reserved == 0


def test_operations_and_errors() -> None:
    assert (PscOp.PRIVATE, PscOp.SHARED) == (1, 2)
    assert (ghcb.VMGEXIT_PSC_OP_PRIVATE, ghcb.VMGEXIT_PSC_OP_SHARED) == (1, 2)
    assert ghcb.VMGEXIT_PSC_ERROR_GENERIC == 0x100_0000_0000
    assert ghcb.VMGEXIT_PSC_ERROR_INVALID_HDR == 0x1_0000_0001
    assert ghcb.VMGEXIT_PSC_ERROR_INVALID_ENTRY == 0x1_0000_0002
    assert [error.value for error in GhcbError] == list(range(1, 7))
