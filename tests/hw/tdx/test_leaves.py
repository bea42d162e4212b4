# SPDX-License-Identifier: GPL-2.0-or-later
"""Every leaf: in which operation states and from which S-EPT states it goes, and what it leaves behind when it doesn't."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gmemu.hw.tdx.pamt import PageType
from gmemu.hw.tdx.sept import SeptEntry, SeptState, SeptTable
from gmemu.hw.tdx.td import ALLOWED_STATES, Lifecycle, OpState
from gmemu.uapi.tdx import TdxLeaf, TdxOperand, TdxStatus, tdx_operand

from .machine import GFN, GPA, HKID, PFN, TABLES, TDR, TDVPR, Machine, code, parameters

Call = Callable[[Machine], int]

CALLS: dict[TdxLeaf, Call] = {
    TdxLeaf.MNG_ADDCX: lambda m: m.module.mng_addcx(TDR, 0x300).status,
    TdxLeaf.MNG_INIT: lambda m: m.module.mng_init(TDR, parameters()).status,
    TdxLeaf.VP_CREATE: lambda m: m.module.vp_create(TDR, 0x300).status,
    TdxLeaf.VP_ADDCX: lambda m: m.module.vp_addcx(TDVPR, 0x300).status,
    TdxLeaf.VP_INIT: lambda m: m.module.vp_init(TDVPR, 0).status,
    TdxLeaf.VP_ENTER: lambda m: m.module.vp_enter(TDVPR).status,
    TdxLeaf.MEM_SEPT_ADD: lambda m: m.module.mem_sept_add(TDR, 0, 1, 0x300).status,
    TdxLeaf.MEM_PAGE_ADD: lambda m: m.module.mem_page_add(TDR, GPA, PFN, 0x100)[0].status,
    TdxLeaf.MR_EXTEND: lambda m: m.module.mr_extend(TDR, GPA).status,
    TdxLeaf.MR_FINALIZE: lambda m: m.module.mr_finalize(TDR).status,
    TdxLeaf.MEM_PAGE_AUG: lambda m: m.module.mem_page_aug(TDR, GPA, PFN)[0].status,
    TdxLeaf.MEM_RANGE_BLOCK: lambda m: m.module.mem_range_block(TDR, GPA)[0].status,
    TdxLeaf.MEM_RANGE_UNBLOCK: lambda m: m.module.mem_range_unblock(TDR, GPA).status,
    TdxLeaf.MEM_TRACK: lambda m: m.module.mem_track(TDR).status,
    TdxLeaf.MEM_PAGE_REMOVE: lambda m: m.module.mem_page_remove(TDR, GPA)[0].status,
    TdxLeaf.MEM_SEPT_REMOVE: lambda m: m.module.mem_sept_remove(TDR, GPA, 1).status,
    TdxLeaf.MEM_PAGE_PROMOTE: lambda m: m.module.mem_page_promote(TDR, GPA).status,
    TdxLeaf.MEM_PAGE_DEMOTE: lambda m: m.module.mem_page_demote(TDR, GPA, 0x300).status,
}


def test_the_table_has_every_leaf_that_depends_on_the_operation_state() -> None:
    assert CALLS.keys() == ALLOWED_STATES.keys()


@pytest.mark.parametrize("leaf", list(CALLS), ids=lambda leaf: leaf.name)
@pytest.mark.parametrize("state", list(OpState), ids=lambda state: state.name)
def test_operation_states(m: Machine, leaf: TdxLeaf, state: OpState) -> None:
    m.initialize()
    m.vcpu()
    m.td.op_state = state
    refused = code(CALLS[leaf](m)) is TdxStatus.OP_STATE_INCORRECT
    assert refused == (state not in ALLOWED_STATES[leaf])


@pytest.mark.parametrize("leaf", list(CALLS), ids=lambda leaf: leaf.name)
def test_a_dead_td_and_one_without_a_key(m: Machine, leaf: TdxLeaf) -> None:
    m.initialize()
    m.vcpu()
    m.td.lifecycle = Lifecycle.BLOCKED
    assert code(CALLS[leaf](m)) is TdxStatus.TD_KEYS_NOT_CONFIGURED
    m.td.fatal = True
    assert code(CALLS[leaf](m)) is TdxStatus.TD_FATAL


@pytest.mark.parametrize("leaf", list(CALLS), ids=lambda leaf: leaf.name)
def test_a_page_that_is_no_tdr_or_tdvpr(m: Machine, leaf: TdxLeaf) -> None:
    assert code(CALLS[leaf](m)) is TdxStatus.PAGE_METADATA_INCORRECT


@pytest.mark.parametrize("leaf", list(CALLS), ids=lambda leaf: leaf.name)
def test_an_injected_status_is_returned_and_nothing_done(m: Machine, leaf: TdxLeaf) -> None:
    m.initialize()
    m.vcpu()
    asked: list[TdxLeaf] = []

    def inject(called: TdxLeaf, what: int) -> int:
        asked.append(called)
        return TdxStatus.OPERAND_BUSY | TdxOperand.SEPT

    before = m.module.pamt.entries.copy()
    m.module.inject = inject
    assert CALLS[leaf](m) == TdxStatus.OPERAND_BUSY | TdxOperand.SEPT
    assert asked == [leaf]
    assert m.module.pamt.entries == before


# S-EPT states


FREE, NL_MAPPED, NL_BLOCKED = SeptState.FREE, SeptState.NL_MAPPED, SeptState.NL_BLOCKED
MAPPED, BLOCKED = SeptState.MAPPED, SeptState.BLOCKED
PENDING, PENDING_BLOCKED = SeptState.PENDING, SeptState.PENDING_BLOCKED
LEAVES = (FREE, MAPPED, BLOCKED, PENDING, PENDING_BLOCKED)

ACCEPTED: dict[TdxLeaf, dict[SeptState, SeptState]] = {
    TdxLeaf.MEM_PAGE_ADD: {FREE: MAPPED},
    TdxLeaf.MEM_PAGE_AUG: {FREE: PENDING},
    TdxLeaf.MR_EXTEND: {MAPPED: MAPPED},
    TdxLeaf.MEM_RANGE_BLOCK: {MAPPED: BLOCKED, PENDING: PENDING_BLOCKED},
    TdxLeaf.MEM_RANGE_UNBLOCK: {BLOCKED: MAPPED, PENDING_BLOCKED: PENDING},
    TdxLeaf.MEM_PAGE_REMOVE: {BLOCKED: FREE, PENDING_BLOCKED: FREE},
}
"""Once processors may run; ADD and EXTEND come before."""


def put(m: Machine, state: SeptState) -> None:
    """Set the leaf at GPA, with its page tracked."""
    if state is not FREE:
        assert m.module.mem_page_aug(TDR, GPA, PFN)[1] == 1
        m.td.sept.leaves.set(GFN, GFN + 1, SeptEntry(state, PFN - GFN))
        m.td.epoch += 2


@pytest.mark.parametrize("leaf", list(ACCEPTED), ids=lambda leaf: leaf.name)
@pytest.mark.parametrize("state", LEAVES, ids=lambda state: state.name)
def test_leaf_states(m: Machine, leaf: TdxLeaf, state: SeptState) -> None:
    m.runnable()
    put(m, state)
    if leaf in (TdxLeaf.MEM_PAGE_ADD, TdxLeaf.MR_EXTEND):
        m.td.op_state = OpState.INITIALIZED
    before, mrtd, leaves = m.module.pamt.entries.copy(), m.td.mrtd.value, m.td.sept.leaves.copy()
    status = CALLS[leaf](m)
    if state in ACCEPTED[leaf]:
        assert status == TdxStatus.SUCCESS
        assert m.state() is ACCEPTED[leaf][state]
    else:
        assert status
        assert m.td.sept.leaves == leaves
        assert m.module.pamt.entries == before
        assert m.td.mrtd.value == mrtd


def test_before_the_td_is_final_a_page_can_go_without_being_blocked(m: Machine) -> None:
    m.initialize()
    m.tables()
    assert m.module.mem_page_add(TDR, GPA, PFN, 0x100)[1] == 1
    result, done = m.module.mem_page_remove(TDR, GPA)
    assert (done, result.rcx) == (1, PFN << 12)
    assert m.module.pamt.type(PFN) is PageType.NDA


def test_what_a_refusal_reports(m: Machine) -> None:
    m.initialize()
    m.tables()
    result, _ = m.module.mem_page_add(TDR, GPA + (1 << 30), PFN, 0x100)
    assert (code(result.status), tdx_operand(result.status)) == (TdxStatus.EPT_WALK_FAILED, TdxOperand.RCX)
    assert result.rdx == 2  # a free entry of level 2: state 0
    assert m.module.mem_page_add(TDR, GPA, PFN, 0x100)[1] == 1
    result, _ = m.module.mem_page_add(TDR, GPA, PFN + 1, 0x100)
    assert code(result.status) is TdxStatus.EPT_ENTRY_STATE_INCORRECT
    assert (result.rdx, result.rcx & 7) == (4 << 8, 7)
    result, _ = m.module.mem_page_add(TDR, GPA + 4096, PFN, 0x100)
    assert (code(result.status), tdx_operand(result.status)) == (TdxStatus.PAGE_METADATA_INCORRECT, TdxOperand.R8)
    result, _ = m.module.mem_page_add(TDR, GPA | 1 << 47, PFN + 1, 0x100)
    assert result.status == TdxStatus.OPERAND_INVALID | TdxOperand.RCX
    result, _ = m.module.mem_page_add(TDR, GPA + 8, PFN + 1, 0x100)
    assert result.status == TdxStatus.OPERAND_INVALID | TdxOperand.RCX


def test_public_state_codes() -> None:
    codes = {state.name: state.public for state in SeptState}
    assert codes == {
        "FREE": 0,
        "REMOVED": 5,
        "NL_MAPPED": 132,
        "NL_BLOCKED": 129,
        "MAPPED": 4,
        "BLOCKED": 1,
        "PENDING": 2,
        "PENDING_BLOCKED": 3,
    }


# Tables


def test_tables(m: Machine) -> None:
    m.initialize()
    assert code(m.module.mem_sept_add(TDR, GPA, 1, TABLES).status) is TdxStatus.EPT_WALK_FAILED
    assert m.module.mem_sept_add(TDR, GPA, 0, TABLES).status == TdxStatus.OPERAND_INVALID | TdxOperand.RCX
    assert m.module.mem_sept_add(TDR, GPA + 4096, 1, TABLES).status == TdxStatus.OPERAND_INVALID | TdxOperand.RCX
    m.tables()
    assert code(m.module.mem_sept_add(TDR, GPA, 1, 0x300).status) is TdxStatus.EPT_ENTRY_NOT_FREE
    assert m.module.pamt.type(TABLES) is PageType.EPT
    assert m.module.mem_page_add(TDR, GPA, PFN, 0x100)[1] == 1
    assert code(m.module.mem_sept_remove(TDR, GPA, 1).status) is TdxStatus.EPT_PAGE_NOT_FREE
    assert m.module.mem_page_remove(TDR, GPA)[1] == 1
    result = m.module.mem_sept_remove(TDR, GPA, 1)
    assert (result.status, result.rcx) == (0, TABLES + 2 << 12)
    assert m.module.pamt.type(TABLES + 2) is PageType.NDA


def test_a_blocked_table_hides_what_is_below(m: Machine) -> None:
    m.runnable()
    assert m.module.mem_page_aug(TDR, GPA, PFN)[1] == 1
    assert m.module.mem_range_block(TDR, GPA, 1)[1] == 1
    assert isinstance(m.td.sept.tables[1, GFN >> 9], SeptTable)
    assert m.td.sept.tables[1, GFN >> 9].state is NL_BLOCKED
    assert code(m.module.mem_range_block(TDR, GPA, 1)[0].status) is TdxStatus.GPA_RANGE_ALREADY_BLOCKED
    assert code(m.module.mem_range_block(TDR, GPA)[0].status) is TdxStatus.EPT_WALK_FAILED
    m.track()
    assert not m.module.mem_range_unblock(TDR, GPA, 1).status
    assert m.td.sept.tables[1, GFN >> 9].state is NL_MAPPED


def test_five_levels(m: Machine) -> None:
    td = m.initialize(eptp_controls=0x26, config_flags=1)
    assert td.shared_gfn_bit << 12 == 1 << 51
    m.tables(1 << 48, levels=5)
    assert m.module.mem_page_add(TDR, 1 << 48, PFN, 0x100)[1] == 1


# Building and ending a TD


def test_keys(m: Machine) -> None:
    assert m.module.mng_create(TDR, 5).status == TdxStatus.OPERAND_INVALID | TdxOperand.RDX
    assert not m.module.mng_create(TDR, HKID).status
    assert code(m.module.mng_create(2, HKID).status) is TdxStatus.HKID_NOT_FREE
    assert code(m.module.mng_create(TDR, HKID + 1).status) is TdxStatus.PAGE_METADATA_INCORRECT
    assert code(m.module.mng_addcx(TDR, 3).status) is TdxStatus.TD_KEYS_NOT_CONFIGURED
    assert not m.module.mng_key_config(TDR).status
    assert m.module.mng_key_config(TDR).status == TdxStatus.KEY_CONFIGURED


def test_control_pages_are_counted(m: Machine) -> None:
    m.create()
    assert code(m.module.mng_addcx(TDR, 0x300).status) is TdxStatus.TDCX_NUM_INCORRECT
    assert not m.module.mng_init(TDR, parameters()).status
    assert not m.module.vp_create(TDR, TDVPR).status
    assert code(m.module.vp_init(TDVPR, 0).status) is TdxStatus.TDCX_NUM_INCORRECT


@pytest.mark.parametrize(
    ("changes", "operand"),
    [
        ({"attributes": 1 << 40}, TdxOperand.ATTRIBUTES),
        ({"xfam": 0}, TdxOperand.XFAM),
        ({"max_vcpus": 0}, TdxOperand.MAX_VCPUS),
        ({"config_flags": 1 << 7}, TdxOperand.EXEC_CONTROLS),
        ({"eptp_controls": 0}, TdxOperand.EPTP_CONTROLS),
        ({"cpuid_values": (0xFFFFFFFF, *(0,) * 191)}, TdxOperand.CPUID_CONFIG),
        ({"tsc_frequency": 3}, TdxOperand.TSC_FREQUENCY),
    ],
)
def test_td_params_that_are_refused(m: Machine, changes: dict[str, object], operand: TdxOperand) -> None:
    m.create()
    assert m.module.mng_init(TDR, parameters(**changes)).status == TdxStatus.OPERAND_INVALID | operand
    assert m.td.op_state is OpState.UNINITIALIZED


def test_finalize_takes_a_vcpu(m: Machine) -> None:
    m.initialize()
    assert m.module.mr_finalize(TDR).status == TdxStatus.NO_VCPUS
    m.vcpu()
    assert not m.module.mr_finalize(TDR).status
    assert m.td.op_state is OpState.RUNNABLE
    assert m.td.measurement == m.td.mrtd.value


def test_teardown_in_the_only_order_that_works(m: Machine) -> None:
    m.runnable()
    assert m.module.mem_page_aug(TDR, GPA, PFN)[1] == 1
    module = m.module
    assert code(module.phymem_page_reclaim(PFN).status) is TdxStatus.LIFECYCLE_STATE_INCORRECT
    assert module.mng_vpflushdone(TDR).status == TdxStatus.FLUSHVP_NOT_DONE
    assert not module.vp_flush(TDVPR).status
    assert module.vp_flush(TDVPR).status == TdxStatus.VCPU_NOT_ASSOCIATED
    assert code(module.mng_key_freeid(TDR).status) is TdxStatus.LIFECYCLE_STATE_INCORRECT
    assert not module.mng_vpflushdone(TDR).status
    assert module.mng_key_freeid(TDR).status == TdxStatus.WBCACHE_NOT_COMPLETE
    assert not module.phymem_cache_wb().status
    assert module.phymem_cache_wb().status == TdxStatus.NO_HKID_READY_TO_WBCACHE
    assert not module.mng_key_freeid(TDR).status
    assert module.phymem_page_reclaim(TDR).status == TdxStatus.TD_ASSOCIATED_PAGES_EXIST
    owned = [pfn for s, e, _ in module.pamt.entries.runs() for pfn in range(s, e) if pfn != TDR]
    for pfn in owned:
        assert not module.phymem_page_reclaim(pfn).status
    result = module.phymem_page_reclaim(TDR)
    assert (result.status, result.rcx) == (0, PageType.TDR)
    assert not module.phymem_page_wbinvd(TDR).status
    assert not module.pamt.owned(0, module.pamt.npages)
    assert not module.tds
    assert not module.vps
    assert code(module.phymem_page_reclaim(TDR).status) is TdxStatus.PAGE_METADATA_INCORRECT
    assert not module.mng_create(TDR, HKID).status  # the key is free again


def test_rdmd(m: Machine) -> None:
    m.initialize()
    result = m.module.phymem_page_rdmd(2)
    assert (result.rcx, result.rdx) == (PageType.TDCX, TDR << 12)
    assert m.module.phymem_page_rdmd(PFN).rcx == PageType.NDA
    assert code(m.module.phymem_page_rdmd(1 << 40).status) is TdxStatus.OPERAND_INVALID
