# SPDX-License-Identifier: GPL-2.0-or-later
"""Leaves on single physical pages: TDH.PHYMEM.PAGE.RECLAIM, .WBINVD and .RDMD."""

from __future__ import annotations

from ...uapi.tdx import TdxLeaf, TdxOperand, TdxStatus
from .core import ModuleCore, Seamcall
from .pamt import PageType
from .td import Lifecycle

__all__ = ["PhysmemLeaves"]


class PhysmemLeaves(ModuleCore):
    """What the host does to a page whatever the TD thinks of it."""

    def phymem_page_reclaim(self, pfn: int) -> Seamcall:
        """TDH.PHYMEM.PAGE.RECLAIM: a page of a TD in teardown is NDA again; the TDR goes last.

        RCX, RDX and R8 are the page's type, owner and size as they were.
        """
        entry = self.pamt.entries[pfn] if self.pamt.covers(pfn) else None
        owner = entry.owner if entry is not None else -1
        injected = self._begin(TdxLeaf.PHYMEM_PAGE_RECLAIM, owner, pfn)
        if injected is not None:
            return injected
        if not self.pamt.covers(pfn):
            return Seamcall(TdxStatus.OPERAND_INVALID | TdxOperand.RCX)
        if entry is None:
            return Seamcall(TdxStatus.PAGE_METADATA_INCORRECT | TdxOperand.RCX, PageType.NDA)
        td, about = self.tds[owner], (int(entry.type), owner << 12, 0)
        if td.lifecycle is not Lifecycle.TEARDOWN:
            return Seamcall(TdxStatus.LIFECYCLE_STATE_INCORRECT, *about)
        if entry.type is PageType.TDR:
            if td.children:
                return Seamcall(TdxStatus.TD_ASSOCIATED_PAGES_EXIST, *about)
            del self.tds[pfn]
        else:
            td.children -= 1
            if entry.type is PageType.TDVPR:
                del self.vps[pfn], td.vps[pfn]
        self.pamt.release(pfn, 1)
        if entry.type is PageType.TDR:
            self.unflushed.set(pfn, pfn + 1, True)
        return Seamcall(TdxStatus.SUCCESS, *about)

    def phymem_page_wbinvd(self, pfn: int, count: int = 1) -> Seamcall:
        """TDH.PHYMEM.PAGE.WBINVD: lines of these pages under the key that the address names are written back."""
        for page in range(pfn, pfn + count, count if self.inject is None else 1):
            injected = self._begin(TdxLeaf.PHYMEM_PAGE_WBINVD, -1, page)
            if injected is not None:
                return injected
        if not self.pamt.covers(pfn, count):
            return Seamcall(TdxStatus.OPERAND_INVALID | TdxOperand.RCX)
        self.unflushed.clear(pfn, pfn + count)
        return Seamcall(TdxStatus.SUCCESS)

    def phymem_page_rdmd(self, pfn: int) -> Seamcall:
        """TDH.PHYMEM.PAGE.RDMD: RCX, RDX and R8 are the page's type, its owner's address, and its size."""
        entry = self.pamt.entries[pfn] if self.pamt.covers(pfn) else None
        injected = self._begin(TdxLeaf.PHYMEM_PAGE_RDMD, entry.owner if entry is not None else -1, pfn)
        if injected is not None:
            return injected
        if not self.pamt.covers(pfn):
            return Seamcall(TdxStatus.OPERAND_INVALID | TdxOperand.RCX)
        if entry is None:
            return Seamcall(TdxStatus.SUCCESS, PageType.NDA)
        return Seamcall(TdxStatus.SUCCESS, entry.type, entry.owner << 12)
