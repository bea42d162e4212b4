# SPDX-License-Identifier: GPL-2.0-or-later
"""struct page, as counts over runs of page frames: who holds a reference, and how many page tables map it.

Nothing is kept per page.  A thousand gigabytes of folios that only their page cache holds are one run of count 1; a
pinned page in the middle makes two more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING
from weakref import WeakSet, WeakValueDictionary

from ..hw.memory import PAGE_SHIFT, PhysicalMemory
from ..invariants import InvariantViolation, UseAfterFree
from ..rangemap import RangeMap
from ..rules import mm as rules
from ..sync import Lock, Runtime
from ..uapi.mman import GUP_PIN_COUNTING_BIAS

if TYPE_CHECKING:
    from .address_space import AddressSpace
    from .filemap import PageCache
    from .holder import PageHolder
    from .pipe import Pipe
    from .process import Process

__all__ = ["Memmap"]

_LOCKS_KEPT = 256


class Memmap:
    """Every page frame of the machine: allocation, reference counts and map counts.  Units are pages."""

    def __init__(self, rt: Runtime, memory: PhysicalMemory) -> None:
        self.rt, self.memory = rt, memory
        self.nr_pages = memory.size >> PAGE_SHIFT
        self.refs: RangeMap[int] = RangeMap()
        self.maps: RangeMap[int] = RangeMap()
        self.poisoned: set[int] = set()
        """pages with a memory error (PG_hwpoison); they are never freed"""
        self.leaked: RangeMap[bool] = RangeMap()
        self.free_checks: list[Callable[[int, int], None]] = []
        """Asked before pages (pfn, count) are freed; raise if something still owns them."""
        self.inject: Callable[[int], bool] | None = None
        """asked before so many pages are allocated: whether that is to fail"""
        self.put_hooks: list[Callable[[int, int], None]] = []
        """Told of pages (first pfn, end) that lost a reference and have others left."""
        self.nr_allocated = 0
        self.peak_allocated = 0
        """the most pages that were allocated at once, since the machine was switched on or somebody set this to 0"""
        self.mmlist: WeakSet[AddressSpace] = WeakSet()
        """every address space, for those who check what must hold in all of them"""
        self.nr_mms = 0
        self.processes: WeakValueDictionary[int, Process] = WeakValueDictionary()
        """every process that hasn't exited, by number"""
        self.caches: WeakSet[PageCache] = WeakSet()
        self.pipes: WeakSet[Pipe] = WeakSet()
        self.holders: WeakSet[PageHolder] = WeakSet()
        """who keeps pages beyond a call, apart from pipes"""
        self._locks: dict[int, Lock] = {}
        self._free: list[tuple[int, int]] = []
        self._next = 1
        self.zero_pfn = self.alloc(1)[0][0]

    @property
    def nr_free(self) -> int:
        """How many pages can still be allocated."""
        return self.nr_pages - self.nr_allocated - 1

    def alloc(self, count: int, alignment: int = 1) -> list[tuple[int, int]]:
        """Take `count` pages off the free list, each with one reference; contents undefined.  Runs of (pfn, count).

        With an `alignment` (pages) it's one run that begins at a multiple of that, while there's memory that nobody had yet.
        Raises ENOMEM (`mm.page.oom`) when the machine hasn't that many.
        """
        if self.inject is not None and self.inject(count):
            raise rules.OUT_OF_MEMORY("an allocation ordered to fail: page")
        if count > self.nr_free:
            raise rules.OUT_OF_MEMORY(f"{count} pages asked, {self.nr_free} free")
        runs: list[tuple[int, int]] = []
        left = count
        skip = -self._next % alignment
        if alignment > 1 and self._next + skip + count <= self.nr_pages:
            if skip:
                self._free.insert(0, (self._next, skip))
            runs, left = [(self._next + skip, count)], 0
            self._next += skip + count
        while left and self._free:
            pfn, have = self._free.pop()
            take = min(have, left)
            if have > take:
                self._free.append((pfn + take, have - take))
            runs.append((pfn, take))
            left -= take
        if left:
            runs.append((self._next, left))
            self._next += left
        for pfn, have in runs:
            self.refs.set(pfn, pfn + have, 1)
        self.nr_allocated += count
        self.peak_allocated = max(self.peak_allocated, self.nr_allocated)
        return runs

    def get(self, pfn: int, count: int = 1, by: int = 1) -> None:
        """folio_get() on `count` pages, which the caller knows to be in use."""
        self.rt.writes_each(("refcount",), pfn, pfn + count)
        if any(not refs for _, _, refs in self.refs.spans(pfn, pfn + count)):
            raise UseAfterFree(f"pfn {pfn:#x}: reference taken to a page that was freed")
        self._add(self.refs, pfn, count, by)

    def try_get(self, pfn: int, count: int = 1, by: int = 1) -> bool:
        """folio_try_get() on `count` pages: False, and nothing taken, if one of them was freed."""
        self.rt.writes_each(("refcount",), pfn, pfn + count)
        if any(not refs for _, _, refs in self.refs.spans(pfn, pfn + count)):
            return False
        self._add(self.refs, pfn, count, by)
        return True

    def put(self, pfn: int, count: int = 1, by: int = 1) -> None:
        """folio_put() on `count` pages; what nobody holds any more is freed."""
        self.rt.writes_each(("refcount",), pfn, pfn + count)
        for start, end, refs in self.refs.spans(pfn, pfn + count):
            left = (refs or 0) - by
            if left < 0:
                raise UseAfterFree(f"pfn {start:#x}: reference dropped that nobody held")
            self.refs.set(start, end, left or None)
            if not left:
                self._free_pages(start, end - start)
                continue
            for hook in self.put_hooks:
                hook(start, end)

    def pin(self, pfn: int, count: int = 1) -> None:
        """What FOLL_PIN adds: GUP_PIN_COUNTING_BIAS references a page."""
        self.get(pfn, count, GUP_PIN_COUNTING_BIAS)

    def unpin(self, pfn: int, count: int = 1) -> None:
        """unpin_user_page()."""
        self.put(pfn, count, GUP_PIN_COUNTING_BIAS)

    def map(self, pfn: int, count: int = 1) -> None:
        """A page table entry for each of `count` pages came to be; the caller's reference becomes the entry's."""
        self._add(self.maps, pfn, count, 1)

    def unmap(self, pfn: int, count: int = 1) -> None:
        """The page table entries of `count` pages are gone, and the references that they held with them."""
        for start, end, maps in self.maps.spans(pfn, pfn + count):
            if not maps:
                raise InvariantViolation(f"pfn {start:#x}: unmapped although no page table maps it")
            self.maps.set(start, end, maps - 1 or None)
        self.put(pfn, count)

    def is_free(self, pfn: int) -> bool:
        """Whether nobody has a reference to the page."""
        return not self.refs[pfn]

    def refcount(self, pfn: int) -> int:
        """folio_ref_count()."""
        self.rt.reads(("refcount", pfn))
        return self.refs[pfn] or 0

    def mapcount(self, pfn: int) -> int:
        """folio_mapcount()."""
        return self.maps[pfn] or 0

    def maybe_dma_pinned(self, pfn: int) -> bool:
        """folio_maybe_dma_pinned(): also true, falsely, of a page with a thousand ordinary references."""
        return self.refcount(pfn) >= GUP_PIN_COUNTING_BIAS

    def sound(self, pfn: int, count: int) -> int:
        """How many of `count` pages from `pfn` come before the first with a memory error."""
        bad = [page for page in self.poisoned if pfn <= page < pfn + count] if self.poisoned else []
        return min(bad) - pfn if bad else count

    def leak(self, pfn: int, count: int) -> None:
        """Never free these pages: something that can't be argued with still owns them (snp_leak_pages)."""
        self.leaked.set(pfn, pfn + count, True)
        self.get(pfn, count)

    def folio_lock(self, pfn: int) -> None:
        """folio_lock().  The lock is made when first asked for."""
        lock = self._locks.get(pfn)
        if lock is None:
            lock = self._locks[pfn] = self.rt.mutex("folio_lock")
        lock.__enter__()

    def folio_unlock(self, pfn: int) -> None:
        """folio_unlock().  A small world keeps its locks, as somebody may wait; a large one forgets them."""
        self._locks[pfn].__exit__(None, None, None)
        if len(self._locks) > _LOCKS_KEPT:
            del self._locks[pfn]

    def _add(self, counts: RangeMap[int], pfn: int, count: int, by: int) -> None:
        if count == 1:
            counts.set(pfn, pfn + 1, (counts[pfn] or 0) + by)
            return
        for start, end, value in counts.spans(pfn, pfn + count):
            counts.set(start, end, (value or 0) + by)

    def _free_pages(self, pfn: int, count: int) -> None:
        for check in self.free_checks:
            check(pfn, count)
        if not self.maps.empty(pfn, pfn + count):
            raise InvariantViolation(f"pfn {pfn:#x}: freed while a page table maps it")
        if self._locks:
            for page in range(pfn, pfn + count) if count < len(self._locks) else list(self._locks):
                if pfn <= page < pfn + count:
                    self._locks.pop(page, None)
        self.memory.clear(pfn, count)
        self.nr_allocated -= count
        self._give_back(pfn, count)

    def _give_back(self, pfn: int, count: int) -> None:
        """Put free pages where `alloc` finds them."""
        self._free.append((pfn, count))
