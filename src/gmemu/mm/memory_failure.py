# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that went bad (mm/memory-failure.c): a page is taken out of use, and whoever maps it finds out by touching it."""

from __future__ import annotations

from ..rules import mm as rules
from .filemap import PageCache
from .page import Memmap

__all__ = ["memory_failure"]


def memory_failure(memmap: Memmap, pfn: int) -> None:
    """The memory of page frame `pfn` is bad.  The caller's reference to it is kept for good, so that it's never used again.

    Raises EHWPOISON if that was known, and EBUSY if the page couldn't be taken out of use: that it's poisoned stays, as
    with a guest_memfd page, which is left where it is for its owner to deal with.
    """
    if pfn == memmap.zero_pfn:
        memmap.put(pfn)
        raise rules.HWPOISON_KEPT("the zero page, which is the kernel's")
    memmap.rt.writes(("hwpoison", pfn))
    if pfn in memmap.poisoned:
        memmap.put(pfn)
        raise rules.HWPOISON_AGAIN(f"pfn {pfn:#x}")
    memmap.poisoned.add(pfn)
    memmap.leaked.set(pfn, pfn + 1, True)
    for mm in sorted(memmap.mmlist, key=lambda mm: mm.number):
        for vpn in mm.find_pfn(pfn):
            mm.hwpoison.add(vpn)
            mm.unmap_page_range(vpn, vpn + 1)
    expected = 1
    for cache, index in _find_folio(memmap, pfn):
        cache.lru.lru_add_drain_all()
        expected += 1
        if cache.error_remove_folio is not None and not cache.error_remove_folio(index):
            raise rules.HWPOISON_KEPT(f"file page {index:#x}, pfn {pfn:#x}")
    if memmap.refcount(pfn) > expected:
        raise rules.HWPOISON_KEPT(f"pfn {pfn:#x} with {memmap.refcount(pfn)} references, {expected} expected")


def _find_folio(memmap: Memmap, pfn: int) -> list[tuple[PageCache, int]]:
    """folio->mapping and folio->index, if the page is in a page cache."""
    found = ((cache, start, end, delta) for cache in memmap.caches for start, end, delta in cache.pages.runs())
    return [(cache, pfn - delta) for cache, start, end, delta in found if start <= pfn - delta < end]
