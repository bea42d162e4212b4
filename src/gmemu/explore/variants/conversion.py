# SPDX-License-Identifier: GPL-2.0-or-later
"""Conversion done otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...kvm.guest_memfd.content import content_modes
from ...kvm.guest_memfd.conversion import (
    ConversionError,
    _make_shared,
    check_references,
    publish,
    reserve_attributes,
    store_attributes,
)
from ...kvm.guest_memfd.invalidate import Filter, invalidate_end, invalidate_start, view_at_creation
from ...uapi.kvm import KVM_MEMORY_ATTRIBUTE_PRIVATE, KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE
from .variant import Variant

if TYPE_CHECKING:
    from ...kvm.arch import VmArch
    from ...kvm.guest_memfd.inode import GmemInode
    from ...kvm.host import Host
    from ...mm.filemap import PageCache

__all__ = ["VARIANTS"]


def _no_check(host: Host, mapping: PageCache, start: int, end: int) -> None:
    """Convert whatever anybody holds."""


def _no_drain(host: Host, stage: int) -> None:
    """Leave LRU batches as they are."""


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


def _blame_the_folio(host: Host, mapping: PageCache, start: int, end: int) -> None:
    """Report where the folio begins; pages that were allocated in a row stand for one here."""
    try:
        check_references(host, mapping, start, end)
    except ConversionError as failed:
        raise ConversionError(failed.error, mapping.pages.run(failed.index)[0]) from None


def _reset_attributes(inode: GmemInode, start: int, end: int) -> None:
    """Pages without memory are as they were when the file was made."""
    store_attributes(inode, start, end, 0 if inode.init_shared else KVM_MEMORY_ATTRIBUTE_PRIVATE)


def _reserve_nothing(inode: GmemInode, index: int) -> None:
    """Storing the attribute will find its memory."""


def _reserve_and_store(inode: GmemInode, start: int, end: int, attributes: int) -> None:
    """Take the old view away, then find the memory for the new attribute; if there is none, the old one stays."""
    invalidate_start(inode.files, start, end, Filter.SHARED if attributes else Filter.PRIVATE)
    try:
        reserve_attributes(inode, start)
        if not attributes:
            _make_shared(inode, start, end)
        store_attributes(inode, start, end, attributes)
    finally:
        invalidate_end(inode.files, start, end)


def _preserve_always(arch: VmArch, private: bool) -> int:
    """Promise that contents stay, whatever becomes of them."""
    return content_modes(arch, private) | KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE


def _check_and_publish(inode: GmemInode, start: int, end: int, attributes: int) -> None:
    """Look who holds the pages when they become shared, too."""
    if not attributes:
        inode.host.design.check_references(inode.host, inode.mapping, start, end)
    publish(inode, start, end, attributes)


_SERIES = "in-place conversion series, v13"

VARIANTS = (
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
        "check-both-ways",
        "conversion to shared looks who holds the page, too",
        "RFC v2 of May 2025, which may have to split a folio; discussion B",
        lambda d: d._replace(publish=_check_and_publish),
    ),
    Variant(
        "punch-resets-attribute",
        "punching a hole makes the pages shared or private as they were when the file was created",
        "S37; guest-memfd 3.4",
        lambda d: d._replace(punched=_reset_attributes),
    ),
    Variant(
        "reserve-late",
        "the memory that an attribute needs is allocated after the old view was taken from the guest",
        "D12; the in-place conversion series allocates first",
        lambda d: d._replace(reserve_attributes=_reserve_nothing, publish=_reserve_and_store),
    ),
    Variant(
        "preserve-always",
        "PRESERVE towards private is accepted after the launch is final",
        "discussion D; D6; RFC v5 has it until then only",
        lambda d: d._replace(content_modes=_preserve_always),
    ),
    Variant(
        "error-offset-from-folio-start",
        "a conversion that is refused names the beginning of the folio, which may lie before the range",
        "S07; fixed in the in-place conversion series",
        lambda d: d._replace(check_references=_blame_the_folio),
    ),
    Variant(
        "unmap-current-mm-only",
        "conversion to private unmaps the page from the caller's address space alone",
        "S36; fork",
        lambda d: d._replace(take_from_host=_unmap_current_only),
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
    Variant(
        "filter-from-create-flag",
        "what punching, closing and memory errors take from the guest depends on how the file was created, not on what its"
        " pages are now",
        "S22; seen with CCA before v12",
        lambda d: d._replace(filter_for_removal=view_at_creation),
    ),
)
