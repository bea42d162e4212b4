# SPDX-License-Identifier: GPL-2.0-or-later
"""Population done otherwise (discussions C, D and E)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ...hw.memory import PAGE_SIZE
from ...kvm.guest_memfd.conversion import ConversionError, convert
from ...kvm.guest_memfd.fault import get_pfn_locked
from ...kvm.guest_memfd.populate import Source, _find, _populate_run, populate_gup_first, populate_locked
from ...mm.file import fput
from ...mm.gup import get_user_pages_fast, put_pages
from ...rules import KernelError
from ...uapi.kvm import KVM_MEMORY_ATTRIBUTE_PRIVATE
from .variant import Variant

if TYPE_CHECKING:
    from ...kvm.guest_memfd.populate import PopulateCallback
    from ...kvm.vm import Vm
    from ...mm.filemap import Folio, PageCache

__all__ = ["VARIANTS"]


def _unzeroed(mapping: PageCache, folio: Folio) -> None:
    """Load what the page frame happens to hold."""


def _never_written_back(vm: Vm, gfn: int, source: int, npages: int, writeback: bool, post_populate: PopulateCallback) -> int:
    """Pin the source for reading, though the platform may correct it."""
    return populate_gup_first(vm, gfn, source, npages, False, post_populate)


def _drops_source(vm: Vm, gfn: int, source: int, npages: int, writeback: bool, post_populate: PopulateCallback) -> int:
    """Find the source's page frame before the lock is taken, as it must be, and let go of it at once."""
    slot, file, npages = _find(vm, gfn, npages)
    mm = vm.rt.current.mm
    try:
        for done in range(npages):
            pinned = get_user_pages_fast(mm, source + done * PAGE_SIZE, 1)
            put_pages(mm, pinned)
            loaded, error = _populate_run(vm, slot, file, gfn + done, 1, Source(pinned[0][0]), post_populate)
            if error is not None and not done:
                raise error
            if not loaded:
                return done
    finally:
        fput(vm.rt, file)
    return npages


def _converts(vm: Vm, gfn: int, source: int, npages: int, writeback: bool, post_populate: PopulateCallback) -> int:
    """Page by page, make private what isn't, and populate it."""
    done = 0
    while done < npages:
        try:
            _make_private(vm, gfn + done)
            at = source and source + done * PAGE_SIZE
            populate_gup_first(vm, gfn + done, at, 1, writeback, post_populate)
        except KernelError:
            if not done:
                raise
            break
        done += 1
    return done


def _whatever_it_is(vm: Vm, gfn: int, source: int, npages: int, writeback: bool, post_populate: PopulateCallback) -> int:
    """In place, without asking whether the page is private."""
    slot, file, npages = _find(vm, gfn, npages)
    mapping = file.gmem_inode.mapping
    try:
        for done in range(npages):
            with mapping.invalidate_lock.exclusive:
                folio = get_pfn_locked(file, slot, slot.gmem_index(gfn + done))
                mapping.clear_folio(folio)
                mapping.unlock_folio(folio)
                _, error = post_populate(gfn + done, folio.pfn, 1, None)
                mapping.put_folio(folio)
            if error is not None:
                raise error
    finally:
        fput(vm.rt, file)
    return npages


def _convert_last(convert: Callable[[], object], populate: Callable[[], object]) -> None:
    populate()
    convert()


def _make_private(vm: Vm, gfn: int) -> None:
    slot = vm.find_slot(gfn)
    if slot is None or slot.gmem_file is None:
        return
    index = slot.gmem_index(gfn)
    try:
        convert(slot.gmem_file.gmem_inode, index, index + 1, KVM_MEMORY_ATTRIBUTE_PRIVATE)
    except ConversionError as failed:
        raise failed.error from None


VARIANTS = (
    Variant(
        "populate-gup-under-lock",
        "populate reads its source while it holds the invalidate lock",
        "discussion C; S01; fixed by the populate rework of January 2026",
        lambda d: d._replace(populate=populate_locked),
    ),
    Variant(
        "populate-drops-source",
        "populate looks its source up before it takes the lock, and holds no reference to it afterwards",
        "discussion C",
        lambda d: d._replace(populate=_drops_source),
    ),
    Variant(
        "populate-unzeroed",
        "a page that was never written is populated without being zeroed",
        "S12; fixed in v8 of the in-place conversion series",
        lambda d: d._replace(zero_before_populate=_unzeroed),
    ),
    Variant(
        "null-source-error",
        "source address 0 is an error, in place too",
        "discussion E; D4",
        lambda d: d._replace(target_is_source=False),
    ),
    Variant(
        "cpuid-source-read-only",
        "populate pins a CPUID page's source for reading, and writes the firmware's correction through that",
        "S13; fixed before 7.2",
        lambda d: d._replace(populate=_never_written_back),
    ),
    Variant(
        "convert-after-populate",
        "pages are populated while they are shared, and the VMM converts them afterwards",
        "discussion D; D3",
        lambda d: d._replace(populate=_whatever_it_is),
        lambda u: u._replace(load_in_place=_convert_last),
    ),
    Variant(
        "populate-converts",
        "populate makes private what isn't",
        "discussion D; D3",
        lambda d: d._replace(populate=_converts),
    ),
)
