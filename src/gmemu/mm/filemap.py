# SPDX-License-Identifier: GPL-2.0-or-later
"""The page cache of one inode (struct address_space): which file page is which page frame."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from ..rangemap import RangeMap
from .page import Memmap
from .swap import LruBatches

if TYPE_CHECKING:
    from .address_space import Vma

__all__ = ["Folio", "PageCache"]


class Folio(NamedTuple):
    """`count` order-0 folios in a row, each referenced once for the holder and locked: index and pfn of the first."""

    index: int
    pfn: int
    count: int


class PageCache:
    """i_mapping: folios by index, what is up to date, who maps it, and the lock against truncation."""

    def __init__(self, memmap: Memmap, lru: LruBatches, name: str) -> None:
        self.memmap, self.lru, self.rt = memmap, lru, memmap.rt
        self.pages: RangeMap[int] = RangeMap()
        """index -> pfn - index"""
        self.uptodate: RangeMap[bool] = RangeMap()
        self.invalidate_lock = self.rt.rwsem(f"{name}:invalidate_lock")
        self.i_mmap_rwsem = self.rt.rwsem(f"{name}:i_mmap_rwsem")
        self.i_mmap: list[Vma] = []
        self.nrpages = 0
        memmap.caches.add(self)
        self.free_folio: Callable[[int, int], None] | None = None
        """a_ops->free_folio(pfn, count): the folios left the cache."""

    def pfn(self, index: int) -> int | None:
        """The page frame at `index`, without taking a reference."""
        delta = self.pages[index]
        return None if delta is None else index + delta

    def grab_folio(self, index: int, count: int = 1) -> Folio:
        """filemap_grab_folio(): find or add the folio at `index`, lock it and take a reference.

        Of `count` pages wanted, as many as are alike (all there and contiguous, or all missing) are done at once.  Raises
        ENOMEM (`mm.page.oom`).
        """
        self.rt.reads(("page-cache", self, index))
        _, end, delta = self.pages.run(index)
        count = min(count, end - index)
        if delta is None:
            return self._add_folio(index, count)
        folio = Folio(index, index + delta, count)
        self.memmap.get(folio.pfn, count)
        self.memmap.folio_lock(folio.pfn)
        return folio

    def _add_folio(self, index: int, count: int) -> Folio:
        """filemap_add_folio(): a new folio has the cache's reference, the caller's, and its LRU batch's."""
        runs = self.memmap.alloc(count)
        at = index
        for pfn, have in runs:
            self.rt.writes(("page-cache", self, at))
            self.pages.set(at, at + have, pfn - at)
            self.lru.folio_add_lru(self.rt.current.cpu, pfn, have)
            at += have
        self.nrpages += count
        pfn, have = runs[0]
        self.memmap.get(pfn, have)
        self.memmap.folio_lock(pfn)
        return Folio(index, pfn, have)

    def unlock_folio(self, folio: Folio) -> None:
        """folio_unlock()."""
        self.memmap.folio_unlock(folio.pfn)

    def put_folio(self, folio: Folio) -> None:
        """folio_put()."""
        self.memmap.put(folio.pfn, folio.count)

    def clear_folio(self, folio: Folio) -> None:
        """Zero what was never used, and say so: clear_highpage(), folio_mark_uptodate()."""
        index, end = folio.index, folio.index + folio.count
        self.rt.reads(("uptodate", self, index))
        if self.uptodate.covers(index, end, True):
            return
        delta = folio.pfn - index
        for start, stop, fresh in self.uptodate.spans(index, end):
            if not fresh:
                self.memmap.memory.clear(start + delta, stop - start)
        self.mark_uptodate(folio)

    def mark_uptodate(self, folio: Folio) -> None:
        """folio_mark_uptodate()."""
        self.rt.writes(("uptodate", self, folio.index))
        self.uptodate.set(folio.index, folio.index + folio.count, True)

    def truncate_range(self, start: int, end: int) -> None:
        """truncate_inode_pages_range(): unmap and drop every folio in [start, end).  Who holds a reference keeps the page."""
        gone = list(self.pages.runs(start, end))
        if not gone:
            return
        self.unmap_pages(start, end)
        self.pages.clear(start, end)
        self.uptodate.clear(start, end)
        for s, e, delta in gone:
            self.rt.writes(("page-cache", self, s))
            self.nrpages -= e - s
            if self.free_folio is not None:
                self.free_folio(s + delta, e - s)
            self.memmap.put(s + delta, e - s)

    def unmap_pages(self, start: int, end: int) -> None:
        """unmap_mapping_pages(): take [start, end) out of every process's page tables."""
        if not self.i_mmap:
            return
        with self.i_mmap_rwsem.shared:
            for vma in self.i_mmap:
                first = vma.start + max(start - vma.pgoff, 0)
                last = min(vma.start + end - vma.pgoff, vma.end)
                if first < last:
                    vma.mm.zap_page_range(first, last)

    def is_mapped(self, start: int, end: int) -> bool:
        """Whether any process has a page table entry for a page of [start, end)."""
        for vma in self.i_mmap:
            first = vma.start + max(start - vma.pgoff, 0)
            last = min(vma.start + end - vma.pgoff, vma.end)
            if first < last and not vma.mm.ptes.empty(first, last):
                return True
        return False
