# SPDX-License-Identifier: GPL-2.0-or-later
"""kvm_gmem_populate: the platform loads the initial contents of private memory.

Two orders exist.  Until 7.2 the invalidate lock was taken once for the whole range and the platform's callback read the
source under it.  Since then each page's source is pinned before the lock is taken, because the source may be guest_memfd
memory itself, whose page fault takes mmap_lock and then the invalidate lock (discussion C; S01).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from ...hw.memory import PAGE_SHIFT, PAGE_SIZE
from ...mm.file import fput
from ...mm.filemap import Folio, PageCache
from ...mm.gup import get_user_pages_fast, put_pages
from ...rules import KernelError
from ...rules import gmem as rules
from ...uapi.mman import FOLL_WRITE
from .fault import get_pfn_locked

if TYPE_CHECKING:
    from ..memslots import Memslot
    from ..vm import Vm
    from .file import GmemFile

__all__ = ["PopulateCallback", "Source", "populate_gup_first", "populate_locked"]


class Source(NamedTuple):
    """Where a run of pages' contents come from: pinned page frames, or a user address to be copied from."""

    pfn: int = -1
    address: int = 0


PopulateCallback = Callable[[int, int, int, Source | None], tuple[int, KernelError | None]]
"""``post_populate(gfn, pfn, count, source)``: load `count` pages in turn; how many were, and why it stopped."""


def _find(vm: Vm, gfn: int, npages: int) -> tuple[Memslot, GmemFile, int]:
    """The slot of `gfn` and its file (referenced), and how many of the `npages` lie in that slot."""
    slot = vm.find_slot(gfn)
    if slot is None or not slot.has_gmem:
        raise rules.POPULATE_SLOT(f"gfn {gfn:#x}")
    file = vm.gmem_file_of(slot)
    if file is None:
        raise rules.POPULATE_CLOSED(f"slot {slot.id}")
    return slot, file, min(npages, slot.end_gfn - gfn)


def populate_gup_first(vm: Vm, gfn: int, source: int, npages: int, writeback: bool, post_populate: PopulateCallback) -> int:
    """Load `npages` from user address `source` (0: none) at `gfn`: how many pages were done.

    Slots_lock is held.  An error counts only if no page was done; else it's met again by the next call (S20).
    `writeback`: the platform may correct the source, so it's pinned for writing.
    """
    vm.slots_lock.assert_held()
    if npages <= 0:
        raise rules.POPULATE_COUNT(f"{npages}")
    if source & (PAGE_SIZE - 1):
        raise rules.POPULATE_UNALIGNED(f"{source:#x}")
    slot, file, npages = _find(vm, gfn, npages)
    done, error = 0, None
    mm = vm.rt.current.mm
    try:
        while done < npages and error is None:
            if vm.rt.current.pending_signals:
                error = rules.POPULATE_SIGNAL(f"{npages - done} pages still to populate")
                break
            count = _at_once(vm, npages, done)
            if not source:
                n, error = _populate_run(vm, slot, file, gfn + done, count, None, post_populate)
                done += n
                continue
            try:
                pinned = _get_source(vm, source + done * PAGE_SIZE, count, FOLL_WRITE if writeback else 0)
            except KernelError as failed:
                error = failed
                break
            pfn, count = pinned
            try:
                n, error = _populate_run(vm, slot, file, gfn + done, count, Source(pfn), post_populate)
            finally:
                put_pages(mm, [pinned])
            done += n
    finally:
        fput(vm.rt, file)
    if error is not None and not done:
        raise error
    return done


def _at_once(vm: Vm, npages: int, done: int) -> int:
    """How many pages to try together: one at first, as what is refused is mostly refused there, and a page that the kernel
    wouldn't have come to must not be allocated."""
    return vm.rt.batch(npages - done) if done else 1


def _readable(vm: Vm, address: int, count: int) -> int:
    """How many of the source pages from `address` are mapped, so that reading them can't fail; one if it might."""
    mm, first = vm.rt.current.mm, address >> PAGE_SHIFT
    last = (address + count * PAGE_SIZE - 1) >> PAGE_SHIFT
    mapped = 0
    for _, end, entry in mm.ptes.spans(first, last + 1):
        if entry is None or entry[1] is None:
            break
        mapped = end - first
    return max(min(count, mapped - bool(address & (PAGE_SIZE - 1))), 1)


def _get_source(vm: Vm, address: int, count: int, flags: int) -> tuple[int, int]:
    """Reference the source page at `address`, and those after it that are mapped to the page frames that follow: at most
    `count`, as (pfn, count)."""
    mm, vpn = vm.rt.current.mm, address >> PAGE_SHIFT
    [(pfn, _)] = get_user_pages_fast(mm, address, 1, flags)
    _, end, entry = mm.ptes.run(vpn)
    like = 1 if entry is None or entry[0] is None or (flags & FOLL_WRITE and not entry[1]) else min(count, end - vpn)
    if like > 1:
        vm.host.memmap.get(pfn + 1, like - 1)
    return pfn, like


def _populate_run(
    vm: Vm,
    slot: Memslot,
    file: GmemFile,
    gfn: int,
    count: int,
    source: Source | None,
    post_populate: PopulateCallback,
) -> tuple[int, KernelError | None]:
    """__kvm_gmem_populate() for as many of `count` like pages as there are: under the lock, find, check, load."""
    mapping = file.gmem_inode.mapping
    index = slot.gmem_index(gfn)
    with mapping.invalidate_lock.exclusive:
        if count > 1:
            count = max(vm.attributes.private_run(gfn, count), 1)
        try:
            folio = _get_folio(file, slot, index, count)
        except KernelError as failed:
            return 0, failed
        if vm.profile.in_place:
            vm.host.design.zero_before_populate(mapping, folio)
        mapping.unlock_folio(folio)
        try:
            private = vm.host.memmap.sound(folio.pfn, vm.attributes.private_run(gfn, folio.count))
            if not private:
                return 0, rules.POPULATE_NOT_PRIVATE(f"gfn {gfn:#x}")
            done, error = post_populate(gfn, folio.pfn, private, source)
            if done:
                mapping.mark_uptodate(folio.first(done))
            return done, error
        finally:
            mapping.put_folio(folio)


def _get_folio(file: GmemFile, slot: Memslot, index: int, count: int) -> Folio:
    """The pages from `index` that are alike, at most `count`; one, if memory doesn't do for all."""
    try:
        return get_pfn_locked(file, slot, index, count)
    except KernelError:
        if count == 1:
            raise
    return get_pfn_locked(file, slot, index, 1)


def populate_locked(vm: Vm, gfn: int, source: int, npages: int, writeback: bool, post_populate: PopulateCallback) -> int:
    """The order before 7.2: one lock for all pages, the source is read under it, a page that was prepared is EEXIST."""
    vm.slots_lock.assert_held()
    slot, file, npages = _find(vm, gfn, npages)
    mapping = file.gmem_inode.mapping
    done, error = 0, None
    try:
        with mapping.invalidate_lock.exclusive:
            while done < npages and error is None:
                if vm.rt.current.pending_signals:
                    error = rules.POPULATE_SIGNAL(f"{npages - done} pages still to populate")
                    break
                index, count = slot.gmem_index(gfn + done), _at_once(vm, npages, done)
                if source:
                    count = min(count, _readable(vm, source + done * PAGE_SIZE, count))
                if count > 1:
                    count = max(vm.attributes.private_run(gfn + done, count), 1)
                try:
                    folio = _get_folio(file, slot, index, count)
                except KernelError as failed:
                    error = failed
                    break
                address = source and source + done * PAGE_SIZE
                n, error = _populate_unprepared(vm, file, gfn + done, folio, address, post_populate)
                done += n
    finally:
        fput(vm.rt, file)
    if error is not None and not done:
        raise error
    return done


def _populate_unprepared(
    vm: Vm, file: GmemFile, gfn: int, folio: Folio, source: int, post_populate: PopulateCallback
) -> tuple[int, KernelError | None]:
    mapping = file.gmem_inode.mapping
    _, end, prepared = mapping.uptodate.run(folio.index)
    mapping.unlock_folio(folio)
    try:
        if prepared:
            return 0, rules.POPULATE_PREPARED(f"gfn {gfn:#x}")
        private = vm.attributes.private_run(gfn, min(folio.count, end - folio.index))
        private = vm.host.memmap.sound(folio.pfn, private)
        if not private:
            return 0, rules.POPULATE_NOT_PRIVATE(f"gfn {gfn:#x}")
        done, error = post_populate(gfn, folio.pfn, private, Source(address=source) if source else None)
        if done:
            mapping.mark_uptodate(folio.first(done))
        return done, error
    finally:
        mapping.put_folio(folio)


def zero_before_populate(mapping: PageCache, folio: Folio) -> None:
    """Zero a page that was never used, so that a missing source can't load what the host left there (S12)."""
    mapping.clear_folio(folio)
