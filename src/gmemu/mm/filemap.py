# SPDX-License-Identifier: GPL-2.0-or-later
"""The page cache of one inode (struct address_space): which file page is which page frame."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..rangemap import RangeMap
from .page import Memmap
from .swap import LruBatches

if TYPE_CHECKING:
    from .address_space import Vma

__all__ = ["Folio", "PageCache"]


class Folio:
    """`count` order-0 folios in a row, each referenced once for the holder and locked: index and pfn of the first."""

    __slots__ = ("count", "index", "pfn")

    def __init__(self, index: int, pfn: int, count: int) -> None:
        self.index, self.pfn, self.count = index, pfn, count

    def first(self, count: int) -> Folio:
        """The first `count` of them."""
        return Folio(self.index, self.pfn, count)

    def __repr__(self) -> str:
        return f"<Folio {self.index:#x}+{self.count} pfn {self.pfn:#x}>"


class PageCache:
    """i_mapping: folios by index, what is up to date, who maps it, and the lock against truncation.

    `swap_backed`: the folios are shmem's (folio_test_swapbacked).
    """

    swap_backed = False
    alignment = 1
    """what the page frame of memory that is allocated at once is a multiple of, where that can be had"""

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
        self.error_remove_folio: Callable[[int], bool] | None = None
        """a_ops->error_remove_folio(index): the folio's memory is bad.  Whether that was dealt with (MF_RECOVERED)."""

    def pfn(self, index: int) -> int | None:
        """The page frame at `index`, without taking a reference."""
        delta = self.pages[index]
        return None if delta is None else index + delta

    def grab_folio(self, index: int, count: int = 1) -> Folio:
        """filemap_grab_folio(): find or add the folio at `index`, lock it and take a reference.

        Of `count` pages wanted, as many as are alike (all there and contiguous, or all missing) are done at once.  Raises
        ENOMEM (`mm.page.oom`).
        """
        while True:
            self.rt.reads(("page-cache", self, index))
            _, end, delta = self.pages.run(index)
            have = min(count, end - index)
            folio = self._add_folio(index, have) if delta is None else self._lock_folio(Folio(index, index + delta, have))
            if folio is not None:
                return folio

    def _lock_folio(self, folio: Folio) -> Folio | None:
        """__filemap_get_folio() with FGP_LOCK, once it was looked up.  None if it left the cache meanwhile."""
        if not self.memmap.try_get(folio.pfn, folio.count):
            return None
        self.memmap.folio_lock(folio.pfn)
        self.rt.reads(("page-cache", self, folio.index))
        if self.pages[folio.index] == folio.pfn - folio.index:
            return folio
        self.unlock_folio(folio)
        self.put_folio(folio)
        return None

    def _add_folio(self, index: int, count: int) -> Folio | None:
        """filemap_add_folio(): a new folio has the cache's reference, the caller's, and its LRU batch's.

        None if somebody else's was added first.  As many of the `count` as there is memory for; ENOMEM if for none.
        """
        count = min(count, max(self.memmap.nr_free, 1))
        runs = self._alloc(index, count)
        folio = Folio(index, *runs[0])
        self.memmap.get(folio.pfn, folio.count)
        self.memmap.folio_lock(folio.pfn)  # before anybody can find it
        self.rt.writes_each(("page-cache", self), index, index + count)
        if not self.pages.empty(index, index + count):
            self.unlock_folio(folio)
            self.put_folio(folio)
            for pfn, have in runs:
                self.memmap.put(pfn, have)
            return None
        at = index
        for pfn, have in runs:
            self.pages.set(at, at + have, pfn - at)
            at += have
        self.nrpages += count
        for pfn, have in runs:
            self.lru.folio_add_lru(self.rt.current.cpu, pfn, have)
        return folio

    def _alloc(self, index: int, count: int) -> list[tuple[int, int]]:
        """filemap_alloc_folio() for file pages from `index`: runs of (pfn, count)."""
        return self.memmap.alloc(count, self.alignment)

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
        """truncate_inode_pages_range(): unmap and drop every folio in [start, end).  A reference keeps the page, not the
        place in the file.

        The lock of each folio is taken, so that a fault that has the folio already gets its entry in first, to be unmapped.
        """
        for s, e, delta in list(self.pages.runs(start, end)):
            step = self.rt.batch(e - s)
            for index in range(s, e, step):
                self._truncate_folio(Folio(index, index + delta, step))

    def _truncate_folio(self, folio: Folio) -> None:
        """truncate_inode_folio()."""
        index, end = folio.index, folio.index + folio.count
        self.memmap.folio_lock(folio.pfn)
        self.rt.writes_each(("page-cache", self), index, end)
        if not self.pages.covers(index, end, folio.pfn - index):
            self.unlock_folio(folio)  # somebody else truncated it
            return
        if not self.memmap.maps.empty(folio.pfn, folio.pfn + folio.count):
            self.unmap_pages(index, end)
        self.pages.clear(index, end)
        self.uptodate.clear(index, end)
        self.nrpages -= folio.count
        self.unlock_folio(folio)
        if self.free_folio is not None:
            self.free_folio(folio.pfn, folio.count)
        self.put_folio(folio)

    def unmap_pages(self, start: int, end: int) -> None:
        """unmap_mapping_pages() without even_cows: take [start, end) out of every process's page tables, except for the
        private copies that processes made of them."""
        if not self.i_mmap:
            return
        with self.i_mmap_rwsem.shared:
            for vma in self.i_mmap:
                first, last = vma.pages_of(start, end)
                if first < last:
                    vma.mm.unmap_file_pages(vma, first, last)

    def is_mapped(self, start: int, end: int) -> bool:
        """Whether any process has a page table entry for a page of [start, end)."""
        for vma in self.i_mmap:
            first, last = vma.pages_of(start, end)
            if not vma.mm.ptes.empty(first, last) and any(True for _ in vma.mm.file_ptes(vma, first, last)):
                return True
        return False
