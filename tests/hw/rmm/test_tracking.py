# SPDX-License-Identifier: GPL-2.0-or-later
"""Activation, and how regions of granules are tracked: with memory of the RMM's own for that, and with the host's."""

from __future__ import annotations

import pytest

from gmemu.hw.memory import PhysicalMemory
from gmemu.hw.rmm.granule import Gpi
from gmemu.hw.rmm.rmm import Rmm, RmmInfo
from gmemu.sync import DirectRuntime
from gmemu.uapi.rmi import (
    RMI_OP_CAN_CANCEL,
    GranuleState,
    MemCategory,
    OpMemRequest,
    Rmi,
    RmiStatus,
    TrackingState,
    addr_range_desc,
    addr_range_of,
)

PAGE, REGION = 4096, 512
SIZE = REGION * PAGE
LIST = 6 * SIZE
"""An address of the host's."""
NONE, FINE, COARSE = TrackingState.NONE, TrackingState.FINE, TrackingState.COARSE
INPUT, TRACKING = RmiStatus.ERROR_INPUT, RmiStatus.ERROR_TRACKING
WANTS_PAGE = RmiStatus.INCOMPLETE | OpMemRequest.DONATE << 8 | RMI_OP_CAN_CANCEL
GIVES_PAGE = RmiStatus.INCOMPLETE | OpMemRequest.RECLAIM << 8
GOES_ON = int(RmiStatus.INCOMPLETE)


def make(*, preallocated: bool, active: bool = True) -> Rmm:
    """An RMM of eight regions and a half."""
    rmm = Rmm(DirectRuntime(), PhysicalMemory(8 * SIZE + SIZE // 2), info=RmmInfo(preallocated=preallocated))
    if active:
        assert rmm.rmm_activate().status == 0
    return rmm


@pytest.fixture
def rmm() -> Rmm:
    """One without memory of its own: all regions are COARSE."""
    return make(preallocated=False)


def set_state(rmm: Rmm, region: int, state: TrackingState) -> tuple[int, ...]:
    """RMI_GRANULE_TRACKING_SET by SMC: status and handle."""
    result = rmm.smc(Rmi.TRACKING_SET, region * SIZE, MemCategory.CONVENTIONAL, state)
    return (result.status, *result.out[:1])


def donate(rmm: Rmm, handle: int, pfn: int) -> int:
    """RMI_OP_MEM_DONATE of one page: its status."""
    rmm.memory.write(LIST, addr_range_desc(pfn).to_bytes(8, "little"))
    return rmm.smc(Rmi.OP_MEM_DONATE, handle, LIST, 1).status


def make_fine(rmm: Rmm, region: int, pfn: int) -> None:
    status, handle = set_state(rmm, region, FINE)
    assert status == WANTS_PAGE
    assert donate(rmm, handle, pfn) == GOES_ON
    assert rmm.smc(Rmi.OP_CONTINUE, handle).status == 0
    assert rmm.tracking_of(region) is FINE


def test_nothing_before_activation_and_no_second() -> None:
    rmm = make(preallocated=True, active=False)
    for fid, *args in (
        (Rmi.GRANULE_RANGE_DELEGATE, 0, PAGE),
        (Rmi.GRANULE_RANGE_UNDELEGATE, 0, PAGE),
        (Rmi.TRACKING_GET, 0, PAGE),
        (Rmi.TRACKING_SET, 0, 0, COARSE),
    ):
        assert rmm.smc(fid, *args).status == RmiStatus.ERROR_GLOBAL
    assert rmm.smc(Rmi.RMM_ACTIVATE).status == 0
    assert rmm.smc(Rmi.RMM_ACTIVATE).status == RmiStatus.ERROR_GLOBAL
    assert rmm.granule_range_delegate(0).status == 0


def test_1_0_has_none_of_it() -> None:
    rmm = Rmm(DirectRuntime(), PhysicalMemory(SIZE), info=RmmInfo(version=(1, 0)))
    for fid in (Rmi.RMM_ACTIVATE, Rmi.TRACKING_GET, Rmi.TRACKING_SET, Rmi.OP_MEM_DONATE, Rmi.OP_MEM_RECLAIM):
        assert rmm.smc(fid, 0, 0, 0).status == RmiStatus.ERROR_NOT_SUPPORTED
    assert rmm.granule_range_delegate(0).status == 0


def test_what_is_how_tracked(rmm: Rmm) -> None:
    assert rmm.smc(Rmi.TRACKING_GET, 0, 20 * SIZE).out == (MemCategory.CONVENTIONAL, COARSE, 9 * SIZE)
    assert rmm.smc(Rmi.TRACKING_GET, 9 * SIZE, 20 * SIZE).out == (MemCategory.NONE, TrackingState.RESERVED, 20 * SIZE)
    make_fine(rmm, 1, REGION)
    assert rmm.smc(Rmi.TRACKING_GET, 0, 20 * SIZE).out[1:] == (COARSE, SIZE)
    assert rmm.smc(Rmi.TRACKING_GET, SIZE + PAGE, SIZE + 2 * PAGE).out[1:] == (FINE, SIZE + 2 * PAGE)
    for base, top in ((1, PAGE), (0, 1), (PAGE, PAGE)):
        assert rmm.smc(Rmi.TRACKING_GET, base, top).status == INPUT
    fine = make(preallocated=True)
    assert fine.smc(Rmi.TRACKING_GET, 0, SIZE).out[1:] == (FINE, SIZE)


def test_arguments_of_set(rmm: Rmm) -> None:
    for address, category, state in (
        (0, 0, TrackingState.RESERVED),
        (0, 0, 9),
        (PAGE, 0, FINE),
        (1, 0, FINE),
        (0, MemCategory.DEV_COH, FINE),
        (9 * SIZE, 0, FINE),
    ):
        assert rmm.smc(Rmi.TRACKING_SET, address, category, state).status == INPUT
    assert set_state(rmm, 0, COARSE) == (0,)  # as it is already


def test_a_coarse_region_is_delegated_as_a_whole(rmm: Rmm) -> None:
    assert rmm.granule_range_delegate(0).status == TRACKING
    assert rmm.granule_range_delegate(5, REGION).status == TRACKING
    assert rmm.granule_range_delegate(0, REGION + 5).out == (REGION,)
    assert rmm.granule_range_undelegate(7).status == TRACKING
    assert rmm.granule_range_undelegate(0, REGION).status == 0
    assert rmm.granule_range_delegate(8 * REGION, REGION // 2).out == (8 * REGION + REGION // 2,)  # the half at the end
    assert set_state(rmm, 1, NONE) == (0,)
    assert rmm.granule_range_delegate(REGION, REGION).status == TRACKING
    assert rmm.check_granules() == []


@pytest.mark.parametrize("delegated", [False, True])
def test_a_region_pays_for_itself_and_gets_it_back(rmm: Rmm, delegated: bool) -> None:
    if delegated:
        assert rmm.granule_range_delegate(REGION, REGION).status == 0
    rmm.memory.write((REGION + 3) * PAGE, b"the host's")
    make_fine(rmm, 1, REGION + 3)
    assert rmm.granules.state(REGION + 3) is GranuleState.INTERNAL
    assert rmm.memory.read((REGION + 3) * PAGE, 10) == bytes(10)
    one = rmm.granule_range_undelegate(REGION) if delegated else rmm.granule_range_delegate(REGION)
    assert one.status == 0
    assert set_state(rmm, 1, COARSE) == (TRACKING,)  # one isn't like the others
    assert (rmm.granule_range_delegate if delegated else rmm.granule_range_undelegate)(REGION).status == 0
    status, handle = set_state(rmm, 1, COARSE)
    assert status == GIVES_PAGE
    assert rmm.smc(Rmi.OP_CONTINUE, handle).status == INPUT
    assert rmm.smc(Rmi.OP_CANCEL, handle).status == INPUT
    assert rmm.smc(Rmi.OP_MEM_RECLAIM, handle, LIST, 1).status == GOES_ON
    assert addr_range_of(int.from_bytes(rmm.memory.read(LIST, 8), "little")) == (REGION + 3, 1)
    assert rmm.smc(Rmi.OP_CONTINUE, handle).status == 0
    assert rmm.granules.state(REGION + 3) is (GranuleState.DELEGATED if delegated else GranuleState.NS)
    assert rmm.gpt.of(REGION + 3) is (Gpi.REALM if delegated else Gpi.NS)
    assert rmm.tracking_of(1) is COARSE
    assert rmm.check_granules() == []


def test_a_page_of_another_region(rmm: Rmm) -> None:
    make_fine(rmm, 1, REGION)
    assert rmm.granule_range_delegate(REGION + 1, 2).status == 0
    status, handle = set_state(rmm, 2, FINE)
    assert status == WANTS_PAGE
    for pfn in (REGION, REGION + 9, 3 * REGION, 1 << 30):  # in use, the host's, tracked with others, no memory
        assert donate(rmm, handle, pfn) == INPUT
    assert donate(rmm, handle, REGION + 1) == GOES_ON
    assert donate(rmm, handle, REGION + 2) == INPUT  # one is enough
    assert rmm.smc(Rmi.OP_CANCEL, handle).status == INPUT  # too late
    assert rmm.smc(Rmi.OP_CONTINUE, handle).status == 0
    assert set_state(rmm, 1, NONE) == (TRACKING,)  # it has pages that aren't the host's
    status, handle = set_state(rmm, 2, NONE)
    assert status == GIVES_PAGE
    assert rmm.smc(Rmi.OP_MEM_RECLAIM, handle, LIST, 1).status == GOES_ON
    assert rmm.smc(Rmi.OP_CONTINUE, handle).status == 0
    assert rmm.granules.state(REGION + 1) is GranuleState.DELEGATED
    assert rmm.tracking_of(2) is NONE


def test_transfers_that_arent(rmm: Rmm) -> None:
    _, handle = set_state(rmm, 1, FINE)
    assert rmm.smc(Rmi.OP_CONTINUE, handle).status == INPUT  # it waits for a page
    assert rmm.smc(Rmi.OP_MEM_RECLAIM, handle, LIST, 1).status == INPUT
    assert rmm.smc(Rmi.OP_MEM_DONATE, handle + 1, LIST, 1).status == INPUT
    for address, count in ((LIST + 4, 1), (LIST, 0), (99 * SIZE, 1)):
        assert rmm.smc(Rmi.OP_MEM_DONATE, handle, address, count).status == INPUT
    rmm.memory.write(LIST, bytes(8))
    assert rmm.smc(Rmi.OP_MEM_DONATE, handle, LIST, 1).status == INPUT  # an entry of no pages
    assert rmm.smc(Rmi.OP_CANCEL, handle).status == 0
    assert rmm.tracking_of(1) is COARSE
    assert rmm.smc(Rmi.OP_CONTINUE, handle).status == INPUT


def test_with_memory_of_its_own_nothing_is_wanted() -> None:
    rmm = make(preallocated=True)
    assert set_state(rmm, 1, COARSE) == (0,)
    assert rmm.granule_range_delegate(REGION).status == TRACKING
    assert set_state(rmm, 1, FINE) == (0,)
    assert rmm.granule_range_delegate(REGION).status == 0
    assert set_state(rmm, 1, COARSE) == (TRACKING,)


def test_descriptors() -> None:
    assert addr_range_of(addr_range_desc(0x12345, 7)) == (0x12345, 7)
    assert addr_range_of(addr_range_desc(0x200, 3) | 1) == (0x200, 3 * 512)
