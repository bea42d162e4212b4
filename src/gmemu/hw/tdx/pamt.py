# SPDX-License-Identifier: GPL-2.0-or-later
"""The physical address metadata table: what each system page is to the TDX module (TDX module base architecture, PAMT).

Kept as runs.  A page that isn't in the table is NDA: the module doesn't use it.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from ...rangemap import RangeMap

__all__ = ["PageType", "Pamt", "PamtEntry"]


class PageType(IntEnum):
    """PT_* of the module."""

    NDA = 0
    RSVD = 1
    REG = 3
    TDR = 4
    TDCX = 5
    TDVPR = 6
    EPT = 8


class PamtEntry(NamedTuple):
    """Type, the TDR page of the TD that owns the page, and for a page that was blocked the epoch of that (BEPOCH)."""

    type: PageType
    owner: int
    bepoch: int = 0


class Pamt:
    """PAMT for system pages 0 to `npages` - 1."""

    def __init__(self, npages: int) -> None:
        self.npages = npages
        self.entries: RangeMap[PamtEntry] = RangeMap()
        """pfn -> entry.  For looking at: the module's leaves change it."""

    def covers(self, pfn: int, count: int = 1) -> bool:
        """Whether all these pages lie in a TDMR: the module can be given them."""
        return pfn >= 0 and pfn + count <= self.npages

    def type(self, pfn: int) -> PageType:
        """The page's type."""
        entry = self.entries[pfn]
        return entry.type if entry is not None else PageType.NDA

    def owned(self, pfn: int, count: int) -> bool:
        """Whether the module uses any of these pages."""
        return not self.entries.empty(pfn, pfn + count)

    def assign(self, pfn: int, count: int, entry: PamtEntry) -> None:
        """These pages are the module's from now on."""
        self.entries.set(pfn, pfn + count, entry)

    def release(self, pfn: int, count: int) -> None:
        """These pages are NDA again."""
        self.entries.clear(pfn, pfn + count)
