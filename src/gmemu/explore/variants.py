# SPDX-License-Identifier: GPL-2.0-or-later
"""Variants: one design decision made otherwise, each a component in place of the default one.

Some were proposed on the lists, some are bugs that were fixed; put back, they must be found.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from ..kvm.design import Design
from ..kvm.guest_memfd.conversion import _make_shared, store_attributes
from ..kvm.guest_memfd.invalidate import Filter, invalidate_end, invalidate_start
from ..kvm.guest_memfd.populate import populate_locked

if TYPE_CHECKING:
    from ..kvm.guest_memfd.inode import GmemInode
    from ..kvm.host import Host
    from ..kvm.mmu import PageFault
    from ..kvm.vm import Vm
    from ..mm.filemap import PageCache

__all__ = ["VARIANTS", "Variant", "apply"]


class Variant(NamedTuple):
    """What is different, in a sentence, and where it was discussed or fixed."""

    name: str
    text: str
    source: str
    change: Callable[[Design], Design]


def apply(design: Design, names: tuple[str, ...]) -> Design:
    """`design` with the named variants in it.  Raises `KeyError` for a name that isn't one."""
    for name in names:
        design = VARIANTS[name].change(design)
    return design


def _no_check(host: Host, mapping: PageCache, start: int, end: int) -> None:
    """Convert whatever anybody holds."""


def _no_drain(host: Host, stage: int) -> None:
    """Leave LRU batches as they are."""


def _never_stale(vm: Vm, fault: PageFault) -> bool:
    """Map what was found, whatever happened since."""
    return False


def _check_then_unmap(inode: GmemInode, start: int, end: int) -> None:
    """Look for references first, then unmap: a fault in between maps the page again."""
    mapping = inode.mapping
    for first, last, delta in list(mapping.pages.runs(start, end)):
        mapped = inode.host.memmap.mapcount(first + delta)
        if mapped <= 1 and inode.host.memmap.refcount(first + delta) <= 1 + mapped:
            continue
        inode.host.design.check_references(inode.host, mapping, first, last)
    mapping.unmap_pages(start, end)


def _unmap_current_only(inode: GmemInode, start: int, end: int) -> None:
    """Unmap the pages from the caller's address space, and let the check miss mappings of others."""
    mapping, mm = inode.mapping, inode.host.rt.current.mm
    for vma in mapping.i_mmap:
        if vma.mm is mm:
            first = vma.start + max(start - vma.pgoff, 0)
            mm.zap_page_range(first, min(vma.start + end - vma.pgoff, vma.end))


def _store_then_invalidate(inode: GmemInode, start: int, end: int, attributes: int) -> None:
    """Store the attribute, then take the old view away: for a while the guest may have both."""
    store_attributes(inode, start, end, attributes)
    invalidate_start(inode.files, start, end, Filter.SHARED if attributes else Filter.PRIVATE)
    if not attributes:
        _make_shared(inode, start, end)
    invalidate_end(inode.files, start, end)


def _store_after_invalidation(inode: GmemInode, start: int, end: int, attributes: int) -> None:
    """End the invalidation, then store the attribute: a fault in between maps the old view again."""
    invalidate_start(inode.files, start, end, Filter.SHARED if attributes else Filter.PRIVATE)
    if not attributes:
        _make_shared(inode, start, end)
    invalidate_end(inode.files, start, end)
    store_attributes(inode, start, end, attributes)


_SERIES = "in-place conversion series, v13"

VARIANTS: dict[str, Variant] = {
    v.name: v
    for v in (
        Variant(
            "populate-gup-under-lock",
            "populate reads its source while it holds the invalidate lock",
            "discussion C; S01; fixed by the populate rework of January 2026",
            lambda d: d._replace(populate=populate_locked),
        ),
        Variant(
            "no-lru-drain",
            "conversion doesn't drain LRU batches before it judges a reference count",
            "S08; RFC v2 of February 2026 added the drain",
            lambda d: d._replace(drain=_no_drain),
        ),
        Variant(
            "no-reference-check",
            "conversion to private doesn't look who holds the page",
            f"S09; {_SERIES}",
            lambda d: d._replace(check_references=_no_check),
        ),
        Variant(
            "check-before-unmap",
            "conversion to private looks for references before it unmaps the page",
            f"S09; {_SERIES}",
            lambda d: d._replace(take_from_host=_check_then_unmap),
        ),
        Variant(
            "unmap-current-mm-only",
            "conversion to private unmaps the page from the caller's address space alone",
            "S36; fork",
            lambda d: d._replace(take_from_host=_unmap_current_only),
        ),
        Variant(
            "no-seq-retry",
            "a guest fault doesn't look again, under mmu_lock, whether an invalidation went by",
            "S11; arch/x86/kvm/mmu/mmu.c: is_page_fault_stale()",
            lambda d: d._replace(is_page_fault_stale=_never_stale),
        ),
        Variant(
            "store-before-invalidate",
            "conversion stores the attribute before the old view is taken from the guest",
            "S23",
            lambda d: d._replace(publish=_store_then_invalidate),
        ),
        Variant(
            "store-after-invalidate",
            "conversion stores the attribute after the invalidation has ended",
            "S11, S23",
            lambda d: d._replace(publish=_store_after_invalidation),
        ),
    )
}
