# SPDX-License-Identifier: GPL-2.0-or-later
"""What RMM 2.0 adds for the host to set it up: activation, how regions of granules are tracked, pages for that.

A region of 2 MiB is tracked granule by granule (FINE), as one granule (COARSE), or not at all (NONE).  An RMM with memory
for it tracks all FINE from activation on; one without starts COARSE, and asks for a page when a region is to be FINE, which
comes back when it no longer is.  (Arm DEN0137, 2.0 beta, and TF-RMM where that leaves something open.  The size of a region
is fixed here, as RMI_RMM_CONFIG_SET isn't there; there is no device memory.)
"""

from __future__ import annotations

from ...uapi.rmi import (
    GranuleState,
    MemCategory,
    OpMemRequest,
    Rmi,
    RmiStatus,
    TrackingState,
    addr_range_desc,
    addr_range_of,
)
from ..memory import PAGE_SHIFT, PAGE_SIZE
from .core import OK, REGION_PAGES, RmiResult, RmmCore, Transfer, command, error
from .granule import Gpi

__all__ = ["TrackingCommands"]

_INPUT, _GLOBAL, _TRACKING = (
    error(code) for code in (RmiStatus.ERROR_INPUT, RmiStatus.ERROR_GLOBAL, RmiStatus.ERROR_TRACKING)
)
_STATES = (TrackingState.NONE, TrackingState.FINE, TrackingState.COARSE)


class TrackingCommands(RmmCore):
    """RMI_RMM_ACTIVATE, RMI_GRANULE_TRACKING_*, RMI_OP_MEM_*."""

    @command(Rmi.RMM_ACTIVATE, granules=())
    def rmm_activate(self) -> RmiResult:
        """RMI_RMM_ACTIVATE: from here on there may be realms.  ERROR_GLOBAL the second time."""
        if self.active:
            return _GLOBAL
        self.active = True
        if not self.info.preallocated:
            self.regions.set(0, -(-self.granules.npages // REGION_PAGES), TrackingState.COARSE)
        return OK

    def tracking_of(self, region: int) -> TrackingState:
        """How the region is tracked."""
        if region * REGION_PAGES >= self.granules.npages:
            return TrackingState.RESERVED
        return self.regions[region] or TrackingState.FINE

    @command(Rmi.TRACKING_GET, granules=())
    def granule_tracking_get(self, base: int, top: int) -> RmiResult:
        """RMI_GRANULE_TRACKING_GET for [base, top) in bytes.  Out: category, state, and the address up to which they
        hold."""
        if not self.active:
            return _GLOBAL
        if (base | top) % PAGE_SIZE or top <= base:
            return _INPUT
        size = REGION_PAGES * PAGE_SIZE
        region, state = base // size, self.tracking_of(base // size)
        while (region + 1) * size < top and self.tracking_of(region + 1) is state:
            region += 1
        category = MemCategory.NONE if state is TrackingState.RESERVED else MemCategory.CONVENTIONAL
        return RmiResult(RmiStatus.SUCCESS, (category, state, min((region + 1) * size, top)))

    @command(Rmi.TRACKING_SET, granules=())
    def granule_tracking_set(self, address: int, category: int, state: int) -> RmiResult:
        """RMI_GRANULE_TRACKING_SET of the region at `address` (bytes).

        ERROR_TRACKING if its granules aren't all alike, or, for NONE, not all the host's.  INCOMPLETE where a page is wanted
        or comes back.
        """
        if not self.active:
            return _GLOBAL
        region, rest = divmod(address >> PAGE_SHIFT, REGION_PAGES)
        old = self.tracking_of(region)
        if state not in _STATES or rest or address % PAGE_SIZE or old is TrackingState.RESERVED:
            return _INPUT
        if category != MemCategory.CONVENTIONAL:
            return _INPUT
        new = TrackingState(state)
        if new is old:
            return OK
        if new is not TrackingState.FINE and not self._alike(region, new):
            return _TRACKING
        if self.info.preallocated or TrackingState.FINE not in (old, new):
            return self._track(region, new)
        if new is TrackingState.FINE:
            transfer = Transfer(OpMemRequest.DONATE, region)
            return self.suspend(lambda: self._track_with(transfer), transfer)
        self._track(region, new)
        return self.suspend(lambda: OK, Transfer(OpMemRequest.RECLAIM, region, self.tracking_pages.pop(region)))

    def _others_than(self, page: int, region: int) -> set[GranuleState]:
        """The states of the region's granules but for `page`, should that be one of them."""
        first = region * REGION_PAGES
        last = min(first + REGION_PAGES, self.granules.npages)
        runs = [(first, page), (page + 1, last)] if first <= page < last else [(first, last)]
        spans = (span for start, end in runs if start < end for span in self.granules.entries.spans(start, end))
        return {GranuleState.NS if entry is None else entry.state for _, _, entry in spans}

    def _alike(self, region: int, state: TrackingState) -> bool:
        """Whether all granules of the region can be tracked as one, or needn't be tracked."""
        allowed = [{GranuleState.NS}] if state is TrackingState.NONE else [{GranuleState.NS}, {GranuleState.DELEGATED}]
        return self._others_than(self.tracking_pages.get(region, -1), region) in allowed

    def _track(self, region: int, state: TrackingState) -> RmiResult:
        self.regions.set(region, region + 1, None if state is TrackingState.FINE else state)
        return OK

    def _track_with(self, transfer: Transfer) -> RmiResult:
        self.tracking_pages[transfer.region] = transfer.pfn
        return self._track(transfer.region, TrackingState.FINE)

    # Pages for a suspended operation

    @command(Rmi.OP_MEM_DONATE, granules=())
    def op_mem_donate(self, handle: int, list_address: int, list_count: int) -> RmiResult:
        """RMI_OP_MEM_DONATE: a delegated granule, by a list in the host's memory, for the operation.  Out: how many it took.

        It may be of the region that is to be FINE, delegated or not.  ERROR_INPUT if the operation wants none, the list
        isn't the host's, or the granule isn't free.
        """
        transfer = self.transfers.get(handle)
        if transfer is None or transfer.wants is not OpMemRequest.DONATE or not self._list(list_address, list_count):
            return _INPUT
        pfn, count = addr_range_of(int.from_bytes(self.memory.read(list_address, 8), "little"))
        own = pfn // REGION_PAGES == transfer.region and self.granules.all(pfn, 1, GranuleState.NS)
        if not count or not (own or self._spare(pfn, transfer.region)):
            return _INPUT
        if own:
            self.to_world(pfn, 1, Gpi.REALM)
        self.granules.set(pfn, 1, GranuleState.INTERNAL)
        self.memory.clear(pfn, 1)
        transfer.pfn, transfer.wants = pfn, OpMemRequest.NONE
        return RmiResult(transfer.status, (1,))

    @command(Rmi.OP_MEM_RECLAIM, granules=())
    def op_mem_reclaim(self, handle: int, list_address: int, list_count: int) -> RmiResult:
        """RMI_OP_MEM_RECLAIM: the granule that the operation gives back is delegated and free, and stands in the list.

        Out: how many there were.  ERROR_INPUT if the operation has none to give, or the list isn't the host's.
        """
        transfer = self.transfers.get(handle)
        if transfer is None or transfer.wants is not OpMemRequest.RECLAIM or not self._list(list_address, list_count):
            return _INPUT
        pfn = transfer.pfn
        self.memory.clear(pfn, 1)
        own = pfn // REGION_PAGES == transfer.region
        if own and self._others_than(pfn, transfer.region) == {GranuleState.NS}:
            self.to_world(pfn, 1, Gpi.NS)
        else:
            self.give_back(pfn)
        self.memory.write(list_address, addr_range_desc(pfn).to_bytes(8, "little"))
        transfer.wants = OpMemRequest.NONE
        return RmiResult(transfer.status, (1,))

    def _spare(self, pfn: int, region: int) -> bool:
        """Whether the granule is delegated, free, and tracked for itself, or of the region that is being changed."""
        return self.delegated(pfn) and (pfn // REGION_PAGES == region or self.regions[pfn // REGION_PAGES] is None)

    def _list(self, address: int, count: int) -> bool:
        """Whether the host's list is one: aligned, not empty, and the host's."""
        return address % 8 == 0 and count > 0 and self.host_page(address >> PAGE_SHIFT)
