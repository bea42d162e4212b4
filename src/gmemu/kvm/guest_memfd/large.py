# SPDX-License-Identifier: GPL-2.0-or-later
"""guest_memfd in folios of 2 MiB or 1 GiB, as the RFC of May 2025 had it.

A large folio is private as a whole.  Its first shared page splits all of it to 4 KiB, so that each shared page can be held
and let go by itself; when all of it is private again it's merged.  Attributes are stored first, then folios are
restructured; if that fails the attributes are put back.  The memory of a folio comes and goes as one: a punch of less only
zeroes.

A guest gets a large private folio as a whole: a fault on any of its pages has all of it made private and maps it.  The shape
of a folio changes only under the invalidate lock and after an invalidation, so that a fault which saw another is retried.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from ...hw.memory import PAGE_SHIFT, PAGE_SIZE
from ...mm.filemap import Folio
from ...rangemap import RangeMap
from ...rules import KernelError
from ...rules import gmem as rules
from ...rules import mm as mm_rules
from ...uapi.kvm import (
    GUEST_MEMFD_FLAG_HUGETLB,
    GUESTMEM_HUGETLB_FLAG_SHIFT,
    KVM_MEMORY_ATTRIBUTE_PRIVATE,
)
from .conversion import ConversionError, convert_locked
from .inode import GmemInode

if TYPE_CHECKING:
    from ..host import Host
    from ..memslots import Memslot
    from ..mmu import PageFault
    from ..vm import Vm

__all__ = [
    "LargeFolioInode",
    "check_creation",
    "convert",
    "fault_mutex",
    "folio_of",
    "freeze_folio",
    "make_folio_private",
    "map_folio",
    "new_inode",
]

_SHIFTS = (21, 30)


def check_creation(size: int, flags: int) -> None:
    """The flags that go with HUGETLB, and the size.  Raises EINVAL."""
    shift = flags >> GUESTMEM_HUGETLB_FLAG_SHIFT
    if not flags & GUEST_MEMFD_FLAG_HUGETLB:
        if shift:
            raise rules.CREATE_FOLIO(f"flags {flags:#x}")
    elif shift not in _SHIFTS or size & ((1 << shift) - 1):
        raise rules.CREATE_FOLIO(f"flags {flags:#x}, size {size:#x}")


def new_inode(host: Host, size: int, flags: int) -> GmemInode:
    """An inode of folios as large as the flags say."""
    return (LargeFolioInode if flags & GUEST_MEMFD_FLAG_HUGETLB else GmemInode)(host, size, flags)


class LargeFolioInode(GmemInode):
    """`large` has the file pages that are in large folios now; `per_folio` is how many pages one has."""

    def __init__(self, host: Host, size: int, flags: int) -> None:
        super().__init__(host, size, flags)
        self.per_folio = 1 << (flags >> GUESTMEM_HUGETLB_FLAG_SHIFT) - PAGE_SHIFT
        self.large: RangeMap[bool] = RangeMap()
        self.mapping.alignment = self.per_folio
        self.fault_mutex = host.rt.mutex("hugetlb_fault_mutex")

    def folios(self, start: int, end: int) -> Iterator[int]:
        """The first file page of each folio that has a page in [start, end)."""
        return iter(range(start - start % self.per_folio, min(end, self.nr_pages), self.per_folio))

    def grab_folio(self, index: int, count: int = 1) -> Folio:
        """Memory comes for a whole folio, or not at all.  Raises ENOMEM."""
        self.host.rt.reads(("page-cache", self.mapping, index))
        if self.mapping.pfn(index) is None:
            self._allocate(index - index % self.per_folio)
        return super().grab_folio(index, count)

    def _allocate(self, first: int) -> None:
        with self.host.design.folio_mutex(self):
            if self.mapping.pfn(first) is None:
                self._allocate_locked(first)

    def _allocate_locked(self, first: int) -> None:
        if self.mapping.memmap.nr_free < self.per_folio:
            raise mm_rules.OUT_OF_MEMORY(f"a folio of {self.per_folio} pages, {self.mapping.memmap.nr_free} free")
        at = first
        while at < first + self.per_folio:
            folio = self.mapping.grab_folio(at, first + self.per_folio - at)
            self.mapping.unlock_folio(folio)
            self.mapping.put_folio(folio)
            at += folio.count
        self.host.lru.lru_add_drain(self.host.rt.current.cpu)  # large folios don't stay in batches
        if self._is_private(first):
            self.large.set(first, first + self.per_folio, True)

    def _is_private(self, first: int) -> bool:
        return self.attributes.covers(first, first + self.per_folio, KVM_MEMORY_ATTRIBUTE_PRIVATE)

    def punch(self, start: int, end: int) -> None:
        """Whole folios lose their memory; of others the pages read as zero from now on."""
        for first in self.folios(start, end):
            last = first + self.per_folio
            if start <= first and last <= end:
                self.mapping.truncate_range(first, last)
                self.large.clear(first, last)
            elif self.mapping.pfn(first) is not None:
                for s, e, delta in list(self.mapping.pages.runs(max(start, first), min(end, last))):
                    self.host.memory.clear(s + delta, e - s)

    def restructure(self, start: int, end: int) -> None:
        """Split or merge each folio that has a page in [start, end) as its attributes ask.  Raises `ConversionError`."""
        for first in self.folios(start, end):
            last = first + self.per_folio
            wanted = self.mapping.pfn(first) is not None and self._is_private(first)
            if wanted == bool(self.large[first]):
                continue
            try:
                self.host.allocate("gmem-merge" if wanted else "gmem-split")
                self.host.design.freeze_folio(self, first, last)
            except KernelError as error:
                raise ConversionError(error, max(start, first)) from error
            self.large.set(first, last, True if wanted else None)

    def held(self, first: int, last: int) -> bool:
        """Whether somebody but the page cache holds one of these pages.  It's seen of all at once: a folio has one count."""
        memmap = self.host.memmap
        runs = [(s + delta, e + delta) for s, e, delta in self.mapping.pages.runs(first, last)]
        for s, e in runs:
            self.host.rt.writes(("refcount", s, e))
        return not all(memmap.refs.covers(s, e, 1) for s, e in runs)

    def folio_in(self, slot: Memslot, gfn: int) -> tuple[int, int]:
        """The guest frames [start, end) that have the large folio behind `gfn`: as much of it as the slot has and as is
        contiguous.  That one frame where there is no large folio."""
        index = slot.gmem_index(gfn)
        if not self.large[index]:
            return gfn, gfn + 1
        first = index - index % self.per_folio
        start, end, _ = self.mapping.pages.run(index)
        start, end = max(first, start, slot.gmem_pgoff), min(first + self.per_folio, end, slot.gmem_pgoff + slot.npages)
        return gfn + start - index, gfn + end - index


def freeze_folio(inode: LargeFolioInode, first: int, last: int) -> None:
    """folio_ref_freeze(): nobody may hold a page while the folio leaves the cache and comes back in another shape.

    A reference may be due to an LRU batch; any other is somebody's, and isn't waited for.  Raises EAGAIN.
    """
    for stage in (0, 1, 2):
        if stage:
            inode.host.design.drain(inode.host, stage)
        if not inode.held(first, last):
            return
    raise rules.SPLIT_BUSY(f"the folio of {PAGE_SIZE * inode.per_folio:#x} bytes at file page {first:#x}")


def fault_mutex(inode: LargeFolioInode) -> AbstractContextManager[object]:
    """hugetlb_fault_mutex_table: who allocates a folio is alone with that, so that nobody takes the last one twice (S29)."""
    return inode.fault_mutex


def make_folio_private(vm: Vm, inode: GmemInode, slot: Memslot, gfn: int, pfn: int) -> None:
    """kvm_gmem_make_private() for all pages of the folio that a fault found, under the folio's lock, which is its head's.

    The caller has the lock of `pfn`.
    """
    if not inode.private_run(slot.gmem_index(gfn), 1):
        return
    start, end = folio_of(slot, gfn)
    head = pfn - (gfn - start)
    if head != pfn:
        vm.host.memmap.folio_lock(head)
    try:
        vm.arch.make_private(start, head, end - start)
    finally:
        if head != pfn:
            vm.host.memmap.folio_unlock(head)


def map_folio(vm: Vm, fault: PageFault) -> tuple[int, int]:
    """kvm_mmu_hugepage_adjust(): a private folio is mapped as a whole."""
    if fault.slot is None or not fault.private or fault.slot.dirty_bitmap is not None:
        return fault.gfn, fault.gfn + 1
    return folio_of(fault.slot, fault.gfn)


def folio_of(slot: Memslot, gfn: int) -> tuple[int, int]:
    """The guest frames [start, end) that the folio behind `gfn` has in its slot."""
    inode = slot.gmem_file.gmem_inode if slot.gmem_file is not None else None
    return inode.folio_in(slot, gfn) if isinstance(inode, LargeFolioInode) else (gfn, gfn + 1)


def convert(inode: GmemInode, start: int, end: int, attributes: int) -> None:
    """Attributes first, then folios; a failure to restructure puts the attributes back.  Raises `ConversionError`."""
    with inode.mapping.invalidate_lock.exclusive:
        before = list(inode.attributes.spans(start, end))
        convert_locked(inode, start, end, attributes)
        if not isinstance(inode, LargeFolioInode):
            return
        shapes = inode.large.copy()
        try:
            inode.restructure(start, end)
        except ConversionError:
            inode.large = shapes
            for first, last, value in before:
                if not inode.attributes.covers(first, last, value):
                    inode.host.design.publish(inode, first, last, value or 0)
            raise
