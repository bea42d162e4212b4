# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands that move pages between states (SEV-SNP firmware ABI, SNP_PAGE_*; order of checks as in AMD-ASPFW)."""

from __future__ import annotations

from ...uapi.sev import PspCommand, PspStatus
from ..memory import PAGE_SHIFT
from .firmware import Firmware, PlatformState
from .guest_context import GuestState
from .rmp_entry import PAGES_PER_2M, Marker, RmpEntry, RmpState, state_of

__all__ = ["PageCommands"]

_RECLAIMABLE = (RmpState.METADATA, RmpState.FIRMWARE, RmpState.PRE_GUEST, RmpState.PRE_SWAP)
_LAUNCHED = (GuestState.LAUNCH, GuestState.RUNNING)


def _size(entry: RmpEntry | None) -> int:
    return entry.pagesize if entry else 0


class PageCommands(Firmware):
    """KVM uses PAGE_RECLAIM; the others are there for hypervisors that swap and move guest pages."""

    def page_reclaim(self, pfn: int, pagesize: int = 0, *, reserved: int = 0) -> PspStatus:
        """SNP_PAGE_RECLAIM: make an immutable page mutable, so that RMPUPDATE may have it.

        METADATA and FIRMWARE become RECLAIM, PRE_GUEST becomes GUEST_INVALID, PRE_SWAP becomes GUEST_VALID.  A page that is
        mutable already is a success; CONTEXT and HV_FIXED are INVALID_PAGE_STATE.
        """
        injected = self._injected(PspCommand.PAGE_RECLAIM, pfn)
        if injected is not None:
            return injected
        if reserved:
            return PspStatus.INVALID_PARAM
        if self.state is not PlatformState.INIT:
            return PspStatus.INVALID_PLATFORM_STATE
        pages = PAGES_PER_2M if pagesize else 1
        if pfn < 0 or (pfn + pages) << PAGE_SHIFT > self.memory.size:
            return PspStatus.INVALID_ADDRESS
        if not self.rmp.covers(pfn):
            return PspStatus.INVALID_PAGE_STATE
        entry = self.rmp.own(pfn)
        if _size(entry) != pagesize:
            return PspStatus.INVALID_PAGE_SIZE
        if entry is None or not entry.immutable:
            return PspStatus.SUCCESS
        if state_of(entry) not in _RECLAIMABLE:
            return PspStatus.INVALID_PAGE_STATE
        self.rmp.firmware_write(pfn, pages, lambda e: e._replace(immutable=False, marker=0))
        return PspStatus.SUCCESS

    def page_move(self, gctx_pfn: int, src_pfn: int, dst_pfn: int, pagesize: int = 0, *, reserved: int = 0) -> PspStatus:
        """SNP_PAGE_MOVE: a page's contents and its place in the guest go from one system page to another.

        A guest's page goes from PRE_SWAP or PRE_GUEST to a PRE_GUEST page, which becomes GUEST_VALID or GUEST_INVALID; the
        source becomes GUEST_INVALID.  A METADATA page goes to a FIRMWARE page, and the two change states.
        """
        injected = self._injected(PspCommand.PAGE_MOVE, src_pfn)
        if injected is not None:
            return injected
        if reserved:
            return PspStatus.INVALID_PARAM
        if self.state is not PlatformState.INIT:
            return PspStatus.INVALID_PLATFORM_STATE
        guest = self._guest(gctx_pfn)
        if guest is None:
            return PspStatus.INVALID_GUEST
        src = self.rmp.own(src_pfn) if self.rmp.covers(src_pfn) else None
        dst = self.rmp.own(dst_pfn) if self.rmp.covers(dst_pfn) else None
        if _size(src) != pagesize or _size(dst) != pagesize:
            return PspStatus.INVALID_PAGE_SIZE
        if guest.state not in _LAUNCHED:
            return PspStatus.INVALID_GUEST_STATE
        if not guest.asid:
            return PspStatus.INACTIVE
        if src is None or dst is None:
            return PspStatus.INVALID_PAGE_STATE
        pages = PAGES_PER_2M if pagesize else 1
        states = state_of(src), state_of(dst)
        if states in ((RmpState.PRE_SWAP, RmpState.PRE_GUEST), (RmpState.PRE_GUEST, RmpState.PRE_GUEST)):
            if not src.asid == dst.asid == guest.asid:
                return PspStatus.INVALID_PAGE_OWNER
            self._copy(dst_pfn, src_pfn, pages, guest.key)
            arrived = src._replace(immutable=False, gfn_delta=src.gfn(src_pfn) - dst_pfn)
            self.rmp.firmware_write(src_pfn, pages, lambda e: e._replace(validated=False, immutable=False))
            self.rmp.firmware_write(dst_pfn, pages, lambda e: arrived)
            return PspStatus.SUCCESS
        if states == (RmpState.METADATA, RmpState.FIRMWARE):
            if src.gfn_delta != gctx_pfn:
                return PspStatus.INVALID_PAGE_OWNER
            self._copy(dst_pfn, src_pfn, pages, 0)
            self.rmp.firmware_write(src_pfn, pages, lambda e: e._replace(gfn_delta=0, marker=Marker.FIRMWARE, vmsa=False))
            self.rmp.firmware_write(dst_pfn, pages, lambda e: e._replace(gfn_delta=gctx_pfn, marker=Marker.METADATA))
            return PspStatus.SUCCESS
        return PspStatus.INVALID_PAGE_STATE

    def _copy(self, dst_pfn: int, src_pfn: int, pages: int, key: int) -> None:
        contents = self.memory.read(src_pfn << PAGE_SHIFT, pages << PAGE_SHIFT, key)
        self.memory.write(dst_pfn << PAGE_SHIFT, contents, key)

    def md_init(self, gctx_pfn: int, pfn: int, *, reserved: int = 0) -> PspStatus:
        """SNP_PAGE_MD_INIT: FIRMWARE to METADATA of that guest, zeroed: room for what swapping has to remember."""
        injected = self._injected(PspCommand.PAGE_MD_INIT, pfn)
        if injected is not None:
            return injected
        if reserved:
            return PspStatus.INVALID_PARAM
        if self.state is not PlatformState.INIT:
            return PspStatus.INVALID_PLATFORM_STATE
        guest = self._guest(gctx_pfn)
        if guest is None:
            return PspStatus.INVALID_GUEST
        if self.rmp.own_state(pfn) != RmpState.FIRMWARE:
            return PspStatus.INVALID_PAGE_STATE
        if guest.state not in _LAUNCHED:
            return PspStatus.INVALID_GUEST_STATE
        pages = PAGES_PER_2M if _size(self.rmp.own(pfn)) else 1
        self.memory.clear(pfn, pages)
        self.rmp.firmware_write(pfn, pages, lambda e: e._replace(gfn_delta=gctx_pfn, marker=Marker.METADATA))
        return PspStatus.SUCCESS

    def page_unsmash(self, pfn: int, *, reserved: int = 0) -> PspStatus:
        """SNP_PAGE_UNSMASH: 512 immutable pages of one guest, alike and consecutive, become one of 2 MiB.

        The firmware looks at alignment before it looks whether the platform is initialised.
        """
        injected = self._injected(PspCommand.PAGE_UNSMASH, pfn)
        if injected is not None:
            return injected
        if reserved or pfn % PAGES_PER_2M:
            return PspStatus.INVALID_PARAM
        if self.state is not PlatformState.INIT:
            return PspStatus.INVALID_PLATFORM_STATE
        if not self.rmp.covers(pfn):
            return PspStatus.INVALID_PAGE_STATE
        entry = self.rmp.own(pfn)
        alike = self.rmp.entries.covers(pfn, pfn + PAGES_PER_2M, entry)
        if entry is None or not alike or entry.pagesize or not entry.immutable or entry.vmsa or not entry.asid:
            return PspStatus.INVALID_PAGE_STATE
        if entry.gfn(pfn) % PAGES_PER_2M:
            return PspStatus.INVALID_PAGE_STATE
        self.rmp.firmware_write(pfn, PAGES_PER_2M, lambda e: e._replace(pagesize=1))
        return PspStatus.SUCCESS
