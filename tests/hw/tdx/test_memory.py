# SPDX-License-Identifier: GPL-2.0-or-later
"""TLB tracking, acceptance, sizes, keys and poison."""

from __future__ import annotations

import pytest

from gmemu.hw.tdx.guest import EptViolation, PendingPage
from gmemu.hw.tdx.sept import SeptEntry, SeptState
from gmemu.uapi.tdx import EptViolationType, TdAttributes, TdcallLeaf, TdxOperand, TdxStatus

from .machine import GFN, GPA, HKID, PFN, TDR, TDVPR, Machine, code

PAGE = 4096


# Tracking


def test_removal_waits_for_the_processors_of_the_epoch(m: Machine) -> None:
    m.runnable()
    module = m.module
    assert module.mem_page_aug(TDR, GPA, PFN)[1] == 1
    assert not module.vp_enter(TDVPR).status
    assert module.mem_range_block(TDR, GPA)[1] == 1
    assert code(module.mem_page_remove(TDR, GPA)[0].status) is TdxStatus.TLB_TRACKING_NOT_DONE
    assert not module.mem_track(TDR).status
    assert code(module.mem_page_remove(TDR, GPA)[0].status) is TdxStatus.TLB_TRACKING_NOT_DONE
    assert module.mem_track(TDR).status == TdxStatus.PREVIOUS_TLB_EPOCH_BUSY | TdxOperand.TD_EPOCH
    module.vp_exit(TDVPR)
    assert module.mem_page_remove(TDR, GPA)[1] == 1


def test_a_processor_that_comes_in_after_track_is_no_obstacle(m: Machine) -> None:
    m.runnable()
    module = m.module
    assert module.mem_page_aug(TDR, GPA, PFN)[1] == 1
    assert module.mem_range_block(TDR, GPA)[1] == 1
    assert not module.mem_track(TDR).status
    assert not module.vp_enter(TDVPR).status
    assert module.mem_page_remove(TDR, GPA)[1] == 1


def test_two_tracks_are_as_good_as_a_kick(m: Machine) -> None:
    m.runnable()
    module = m.module
    assert module.mem_page_aug(TDR, GPA, PFN)[1] == 1
    assert module.mem_range_block(TDR, GPA)[1] == 1
    assert not module.mem_track(TDR, 2).status
    assert module.mem_page_remove(TDR, GPA)[1] == 1


def test_entering_in_a_new_epoch_flushes(m: Machine) -> None:
    from gmemu.hw.tlb import Tlb

    m.runnable()
    m.vp.tlb = tlb = Tlb()
    assert not m.module.vp_enter(TDVPR).status
    m.module.vp_exit(TDVPR)
    flushes = tlb.flushes
    assert not m.module.vp_enter(TDVPR).status
    assert tlb.flushes == flushes
    m.track()
    assert not m.module.vp_enter(TDVPR).status
    assert tlb.flushes == flushes + 1


def test_a_processor_is_associated_with_one_logical_processor(m: Machine) -> None:
    m.runnable()
    assert m.module.vp_enter(TDVPR, lp=1).status == TdxStatus.VCPU_ASSOCIATED
    assert not m.module.vp_flush(TDVPR).status
    assert not m.module.vp_enter(TDVPR, lp=1).status


# Acceptance


def test_accept_zeroes_and_maps(m: Machine) -> None:
    m.runnable()
    m.memory.write(PFN << 12, b"left over")
    assert m.module.mem_page_aug(TDR, GPA, PFN)[1] == 1
    assert m.memory.read(PFN << 12, 9) == b"left over"  # AUG doesn't zero
    assert m.module.tdg_mem_page_accept(m.vp, GPA) == 0
    assert m.state() is SeptState.MAPPED
    assert m.memory.read(PFN << 12, 9, HKID) == bytes(9)
    assert m.memory.read(PFN << 12, 9) != bytes(9)
    assert m.module.tdg_mem_page_accept(m.vp, GPA) == TdxStatus.PAGE_ALREADY_ACCEPTED | 0


@pytest.mark.parametrize("state", [SeptState.FREE, SeptState.BLOCKED, SeptState.PENDING_BLOCKED])
def test_accept_of_what_isnt_there_goes_to_the_host(m: Machine, state: SeptState) -> None:
    m.runnable()
    if state is not SeptState.FREE:
        assert m.module.mem_page_aug(TDR, GPA, PFN)[1] == 1
        m.td.sept.leaves.set(GFN, GFN + 1, SeptEntry(state, PFN - GFN))
    with pytest.raises(EptViolation) as violation:
        m.module.tdg_mem_page_accept(m.vp, GPA)
    assert violation.value.type is EptViolationType.ACCEPT


def test_accept_of_another_size(m: Machine) -> None:
    m.runnable()
    assert m.module.tdg_mem_page_accept(m.vp, GPA, 1) == TdxStatus.PAGE_SIZE_MISMATCH | 1  # a table is there
    assert m.module.tdg_mem_page_accept(m.vp, GPA + PAGE, 1) == TdxStatus.OPERAND_INVALID | TdxOperand.RCX
    assert m.module.tdg_mem_page_accept(m.vp, GPA | 1 << 47) == TdxStatus.OPERAND_INVALID | TdxOperand.RCX
    large = GPA + (2 << 20)
    with pytest.raises(EptViolation):
        m.module.tdg_mem_page_accept(m.vp, large, 1)
    assert m.module.mem_page_aug(TDR, large, PFN, level=1)[1] == 512
    with pytest.raises(EptViolation):
        m.module.tdg_mem_page_accept(m.vp, large)  # smaller than the pending page: the host must demote
    assert m.module.tdg_mem_page_accept(m.vp, large, 1) == 0
    assert m.module.tdg_mem_page_accept(m.vp, large + PAGE) == TdxStatus.PAGE_ALREADY_ACCEPTED | 1


def test_a_tdcall_in_progress_makes_the_host_wait_and_then_yield(m: Machine) -> None:
    m.runnable()
    assert m.module.mem_page_aug(TDR, GPA, PFN)[1] == 1
    m.td.sept.locked.add(GFN)
    assert m.module.mem_range_block(TDR, GPA)[0].status == TdxStatus.OPERAND_BUSY | TdxOperand.SEPT
    m.td.sept.locked.discard(GFN)
    assert m.module.tdg_mem_page_accept(m.vp, GPA) == TdxStatus.OPERAND_BUSY_HOST_PRIORITY | TdxOperand.RCX
    assert m.module.mem_range_block(TDR, GPA)[1] == 1


def test_access_before_acceptance(m: Machine) -> None:
    m.runnable()
    assert m.module.mem_page_aug(TDR, GPA, PFN)[1] == 1
    with pytest.raises(PendingPage):
        m.module.sept_walk(m.td, GFN)
    m.td.attributes = TdAttributes.SEPT_VE_DISABLE
    with pytest.raises(EptViolation) as violation:
        m.module.sept_walk(m.td, GFN)
    assert violation.value.type is EptViolationType.PENDING


def test_tdcalls_can_be_told_what_to_answer(m: Machine) -> None:
    m.runnable()
    answers = {TdcallLeaf.MEM_PAGE_ACCEPT: TdxStatus.INTERRUPTED_RESTARTABLE}
    m.module.inject_tdcall = lambda leaf, gpa: answers.get(leaf)
    assert m.module.tdg_mem_page_accept(m.vp, GPA) == TdxStatus.INTERRUPTED_RESTARTABLE
    assert m.module.tdg_mr_rtmr_extend(m.vp, 1, bytes(48)) == 0
    assert m.module.tdg_mr_rtmr_extend(m.vp, 4, bytes(48)) == TdxStatus.OPERAND_INVALID | TdxOperand.RDX


# Sizes


def test_promote_and_demote_keep_the_bytes(m: Machine) -> None:
    m.runnable()
    module = m.module
    assert module.mem_page_aug(TDR, GPA, PFN, 512)[1] == 512
    for page in range(512):
        assert module.tdg_mem_page_accept(m.vp, GPA + page * PAGE) == 0
    m.memory.write((PFN + 7) << 12, b"seven", HKID)
    assert code(module.mem_page_promote(TDR, GPA).status) is TdxStatus.GPA_RANGE_NOT_BLOCKED
    assert module.mem_range_block(TDR, GPA, 1)[1] == 1
    assert code(module.mem_page_promote(TDR, GPA).status) is TdxStatus.TLB_TRACKING_NOT_DONE
    m.track()
    result = module.mem_page_promote(TDR, GPA)
    assert result.status == 0
    assert m.td.sept.leaves[GFN] == SeptEntry(SeptState.MAPPED, PFN - GFN, 1)
    assert (module.sept_walk(m.td, GFN + 7).pfn) == PFN + 7
    assert code(module.mem_page_demote(TDR, GPA, 0x300).status) is TdxStatus.GPA_RANGE_NOT_BLOCKED
    assert module.mem_range_block(TDR, GPA, 1)[1] == 512
    assert code(module.mem_page_demote(TDR, GPA, 0x300).status) is TdxStatus.TLB_TRACKING_NOT_DONE
    m.track()
    assert module.mem_page_demote(TDR, GPA, 0x300).status == 0
    assert m.td.sept.leaves.covers(GFN, GFN + 512, SeptEntry(SeptState.MAPPED, PFN - GFN))
    assert m.memory.read((PFN + 7) << 12, 5, HKID) == b"seven"


def test_promote_takes_512_like_pages(m: Machine) -> None:
    m.initialize()
    m.tables()
    assert m.module.mem_page_add(TDR, GPA, PFN, 0x100, 511)[1] == 511
    assert code(m.module.mem_page_promote(TDR, GPA).status) is TdxStatus.EPT_INVALID_PROMOTE_CONDITIONS
    assert m.module.mem_page_add(TDR, GPA + 511 * PAGE, PFN + 600, 0x100)[1] == 1
    assert code(m.module.mem_page_promote(TDR, GPA).status) is TdxStatus.EPT_INVALID_PROMOTE_CONDITIONS


# Keys and poison


def test_each_side_sees_the_others_bytes_as_noise(m: Machine) -> None:
    m.initialize()
    m.tables()
    m.memory.write(0x100 << 12, b"plain text")
    assert m.module.mem_page_add(TDR, GPA, PFN, 0x100)[1] == 1
    assert m.memory.read(PFN << 12, 10, HKID) == b"plain text"
    assert m.memory.host_read(PFN << 12, 10) != b"plain text"
    assert m.module.mem_page_remove(TDR, GPA)[1] == 1
    assert m.memory.host_read(PFN << 12, 10) != b"plain text"


def test_a_host_store_poisons_its_lines_only(m: Machine) -> None:
    m.initialize()
    m.tables()
    m.memory.watchers.append(m.module.host_wrote)
    m.memory.write(0x100 << 12, bytes(range(256)))
    assert m.module.mem_page_add(TDR, GPA, PFN, 0x100)[1] == 1
    address = PFN << 12
    m.memory.host_write(address + 100, b"!")
    assert m.module.is_poisoned(address + 64, 64)
    assert not m.module.is_poisoned(address, 64)
    assert m.memory.read(address, 64, HKID) == bytes(range(64))
    m.memory.host_write(0x200 << 12, b"not a TD's")
    assert not m.module.is_poisoned(0x200 << 12, 64)


def test_acceptance_mends_poison(m: Machine) -> None:
    m.runnable()
    m.memory.watchers.append(m.module.host_wrote)
    assert m.module.mem_page_aug(TDR, GPA, PFN)[1] == 1
    m.memory.host_write(PFN << 12, b"!")
    assert m.module.tdg_mem_page_accept(m.vp, GPA) == 0
    assert not m.module.is_poisoned(PFN << 12, PAGE)
