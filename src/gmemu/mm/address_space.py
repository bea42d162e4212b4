# SPDX-License-Identifier: GPL-2.0-or-later
"""A process's address space (mm_struct): mappings, page tables, faults, fork.

Addresses are bytes; `vpn` is a virtual page number.  Page table entries are runs of (pfn - vpn, writable), so a large
mapping that was filled in order is one run.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from ..hw.memory import PAGE_SHIFT, PAGE_SIZE, HostAccessFault
from ..rangemap import RangeMap
from ..rules import BusError, KernelError, SegmentationFault
from ..rules import mm as rules
from ..uapi.mman import PROT_WRITE
from .file import File
from .filemap import PageCache
from .page import Memmap

__all__ = ["AddressSpace", "MmuNotifier", "Pte", "Vma"]

TASK_SIZE_PAGES = (1 << 47 >> PAGE_SHIFT) - 1
MMAP_BASE_PAGES = 0x7F0000000000 >> PAGE_SHIFT
ZERO_PAGE = None

Pte = tuple[int | None, bool]
"""(pfn - vpn, writable); the delta of the shared zero page is None."""


class MmuNotifier(Protocol):
    """Who must hear when page table entries of a process go away (include/linux/mmu_notifier.h)."""

    def invalidate_range(self, start_vpn: int, end_vpn: int) -> AbstractContextManager[None]:
        """Entered before the entries are cleared, left after: invalidate_range_start() and _end()."""


class Vma:
    """A mapping of [start, end) pages: of file pages from `pgoff`, or of anonymous memory."""

    __slots__ = ("end", "file", "mapping", "mm", "pgoff", "prot", "shared", "start")

    def __init__(
        self, mm: AddressSpace, start: int, end: int, prot: int, shared: bool, file: File | None, pgoff: int
    ) -> None:
        self.mm, self.start, self.end, self.prot, self.shared = mm, start, end, prot, shared
        self.file, self.pgoff = file, pgoff
        self.mapping: PageCache | None = None

    def __lt__(self, other: Vma) -> bool:
        return self.start < other.start

    def __repr__(self) -> str:
        what = self.file.name if self.file else "anonymous"
        return f"<Vma {self.start << PAGE_SHIFT:#x}-{self.end << PAGE_SHIFT:#x} {what}>"


class AddressSpace:
    """mm_struct.  `users` processes share it; `notifiers` hear of entries that go away."""

    def __init__(self, memmap: Memmap) -> None:
        self.memmap, self.rt, self.memory = memmap, memmap.rt, memmap.memory
        self.mmap_lock = self.rt.rwsem("mmap_lock")
        self.page_table_lock = self.rt.spinlock("page_table_lock")
        self.vmas: list[Vma] = []
        self.ptes: RangeMap[Pte] = RangeMap()
        self.notifiers: list[MmuNotifier] = []
        memmap.mmlist.add(self)

    # Mappings

    def find_vma(self, vpn: int) -> Vma | None:
        """vma_lookup(): the mapping that contains page `vpn`."""
        i = bisect_left(self.vmas, vpn + 1, key=lambda vma: vma.start)
        return self.vmas[i - 1] if i and self.vmas[i - 1].end > vpn else None

    def overlapping(self, start: int, end: int) -> list[Vma]:
        """Every mapping that meets [start, end), in order."""
        return [vma for vma in self.vmas if vma.start < end and start < vma.end]

    def get_unmapped_area(self, pages: int) -> int:
        """The highest free range below the mmap base: its first page.  Raises ENOMEM (`mm.mmap.space`)."""
        end = MMAP_BASE_PAGES
        for vma in reversed(self.vmas):
            if vma.start >= MMAP_BASE_PAGES:
                continue
            if end - vma.end >= pages:
                break
            end = vma.start
        if end < pages + 16:
            raise rules.MMAP_SPACE(f"{pages} pages asked")
        return end - pages

    def map_region(self, start: int, pages: int, prot: int, shared: bool, file: File | None, pgoff: int) -> Vma:
        """mmap_region(): make the mapping; what was there goes first.  The caller holds mmap_lock for writing."""
        vma = Vma(self, start, start + pages, prot, shared, file, pgoff)
        if file is not None:
            file.mmap(vma)
        self.unmap_region(start, start + pages)
        if file is not None:
            file.get()
        self._link(vma)
        return vma

    def _link(self, vma: Vma) -> None:
        insort(self.vmas, vma)
        if vma.mapping is not None:
            with vma.mapping.i_mmap_rwsem.exclusive:
                vma.mapping.i_mmap.append(vma)

    def _unlink(self, vma: Vma) -> None:
        self.vmas.remove(vma)
        if vma.mapping is not None:
            with vma.mapping.i_mmap_rwsem.exclusive:
                vma.mapping.i_mmap.remove(vma)

    def unmap_region(self, start: int, end: int) -> None:
        """do_vmi_munmap(): take [start, end) pages out, splitting mappings at its ends."""
        for vma in self.overlapping(start, end):
            self.zap_page_range(max(vma.start, start), min(vma.end, end))
            self._unlink(vma)
            for s, e in ((vma.start, min(vma.end, start)), (max(vma.start, end), vma.end)):
                if s < e:
                    self._copy(vma, s, e, vma.prot)
            if vma.file is not None:
                vma.file.put()

    def _copy(self, vma: Vma, start: int, end: int, prot: int) -> Vma:
        part = Vma(self, start, end, prot, vma.shared, vma.file, vma.pgoff + start - vma.start)
        part.mapping = vma.mapping
        if part.file is not None:
            part.file.get()
        self._link(part)
        return part

    def protect(self, start: int, end: int, prot: int) -> None:
        """mprotect(): change [start, end) pages' protection.  Raises ENOMEM (`mm.mprotect.unmapped`)."""
        parts = self.overlapping(start, end)
        if sum(min(v.end, end) - max(v.start, start) for v in parts) != end - start:
            raise rules.MPROTECT_UNMAPPED(f"{start << PAGE_SHIFT:#x}-{end << PAGE_SHIFT:#x}")
        for vma in parts:
            s, e = max(vma.start, start), min(vma.end, end)
            with self._notified(s, e):
                for rs, re, (delta, _) in list(self.ptes.runs(s, e)):
                    if prot:
                        self.ptes.set(rs, re, (delta, False))
                    else:
                        self._clear(rs, re)
            self._unlink(vma)
            for ps, pe, pp in ((vma.start, s, vma.prot), (s, e, prot), (e, vma.end, vma.prot)):
                if ps < pe:
                    self._copy(vma, ps, pe, pp)
            if vma.file is not None:
                vma.file.put()

    # Page tables

    def zap_page_range(self, start: int, end: int) -> None:
        """zap_page_range_single(): clear the entries of [start, end) pages and drop their references."""
        if self.notifiers:
            with self._notified(start, end):
                self._clear(start, end)
        else:
            self._clear(start, end)

    def _clear(self, start: int, end: int) -> None:
        with self.page_table_lock:
            self.rt.writes(("pte", self, start))
            if self.ptes.empty(start, end):
                return
            gone = list(self.ptes.runs(start, end))
            self.ptes.clear(start, end)
            for s, e, (delta, _) in gone:
                if delta is not ZERO_PAGE:
                    self.memmap.unmap(s + delta, e - s)

    def _notified(self, start: int, end: int) -> AbstractContextManager[None]:
        return _Notified([n.invalidate_range(start, end) for n in self.notifiers])

    def pte(self, vpn: int) -> tuple[int, bool] | None:
        """(pfn, writable) of the entry at `vpn`, if there is one."""
        self.rt.reads(("pte", self, vpn))
        entry = self.ptes[vpn]
        if entry is None:
            return None
        delta, writable = entry
        return (self.memmap.zero_pfn if delta is ZERO_PAGE else vpn + delta), writable

    # Faults

    def handle_mm_fault(self, vpn: int, count: int, write: bool, address: int) -> None:
        """Make page `vpn` accessible, and as many of the `count` from there as can be done alike.

        Takes mmap_lock for reading, as the architecture's fault handler does.  Raises `BusError` or `SegmentationFault`
        for `address`.
        """
        with self.mmap_lock.shared:
            self.fault_locked(vpn, self.rt.batch(count), write, address)

    def fault_locked(self, vpn: int, count: int, write: bool, address: int) -> None:
        """`handle_mm_fault` for a caller that holds mmap_lock."""
        vma = self.find_vma(vpn)
        if vma is None:
            raise SegmentationFault(rules.UNMAPPED, address)
        if not vma.prot or (write and not vma.prot & PROT_WRITE):
            raise SegmentationFault(rules.PROTECTION, address, f"{'write to' if write else 'read of'} {vma}")
        count = min(count, vma.end - vpn)
        entry = self.ptes[vpn]
        if entry is not None and (entry[1] or not write):
            return  # spurious: somebody else was here first
        try:
            if entry is None and vma.file is not None:
                self._fault_file(vma, vpn, count, write, address)
            elif entry is None and write:
                self._fault_anonymous(vpn, count)
            elif entry is None:
                self._install(vpn, vpn + 1, (ZERO_PAGE, False))
            elif vma.shared:
                self._install(vpn, vpn + 1, (entry[0], True))
            else:
                self._wp_fault(vma, vpn)
        except KernelError as error:
            raise BusError(rules.FAULT_OOM, address, str(error)) from error

    def _fault_file(self, vma: Vma, vpn: int, count: int, write: bool, address: int) -> None:
        """do_shared_fault(), do_read_fault(): the file gives locked folios; the entries take over their references.

        A private mapping is mapped read-only first, and copied by the fault that follows if it's to be written.
        """
        assert vma.file is not None
        _, end, _ = self.ptes.run(vpn)
        folio = vma.file.fault(vma, vma.pgoff + vpn - vma.start, min(count, end - vpn), write, address)
        assert vma.mapping is not None
        self.memmap.map(folio.pfn, folio.count)
        self._install(vpn, vpn + folio.count, (folio.pfn - vpn, vma.shared and write))
        vma.mapping.unlock_folio(folio)

    def _fault_anonymous(self, vpn: int, count: int) -> None:
        """do_anonymous_page() for writing: zeroed pages of this process's own."""
        _, end, _ = self.ptes.run(vpn)
        for pfn, have in self.memmap.alloc(min(count, end - vpn)):
            self.memory.clear(pfn, have)
            self.memmap.map(pfn, have)
            self.ptes.set(vpn, vpn + have, (pfn - vpn, True))
            vpn += have

    def _install(self, start: int, end: int, entry: Pte) -> None:
        with self.page_table_lock:
            self.rt.writes(("pte", self, start))
            self.ptes.set(start, end, entry)

    def _wp_fault(self, vma: Vma, vpn: int) -> None:
        """do_wp_page(): a private page is written; take it over if it's ours alone, else copy it."""
        entry = self.ptes[vpn]
        assert entry is not None
        delta = entry[0]
        if delta is not ZERO_PAGE and vma.file is None and self.memmap.refcount(vpn + delta) == 1:
            self.ptes.set(vpn, vpn + 1, (delta, True))
            return
        with self._notified(vpn, vpn + 1):
            [(pfn, _)] = self.memmap.alloc(1)
            self.memory.clear(pfn, 1)
            if delta is not ZERO_PAGE:
                self.memory.write(pfn << PAGE_SHIFT, self.memory.read((vpn + delta) << PAGE_SHIFT, PAGE_SIZE))
            self._clear(vpn, vpn + 1)
            self.memmap.map(pfn)
            self.ptes.set(vpn, vpn + 1, (pfn - vpn, True))

    # Access by the process

    def translate(self, address: int, length: int, write: bool) -> Iterator[tuple[int, int]]:
        """Physical (address, length) pieces of [address, address + length), faulting pages in as they're needed.

        Raises `BusError` or `SegmentationFault` at the first byte that can't be had.
        """
        end = address + length
        last = (end + PAGE_SIZE - 1) >> PAGE_SHIFT
        while address < end:
            vpn = address >> PAGE_SHIFT
            _, run_end, entry = self.ptes.run(vpn)
            if entry is None or (write and not entry[1]):
                self.handle_mm_fault(vpn, last - vpn, write, address)
                continue
            delta, _ = entry
            stop = min(run_end << PAGE_SHIFT, end)
            if delta is ZERO_PAGE:
                stop = min((vpn + 1) << PAGE_SHIFT, end)
                yield (self.memmap.zero_pfn << PAGE_SHIFT) + (address & (PAGE_SIZE - 1)), stop - address
            else:
                yield address + (delta << PAGE_SHIFT), stop - address
            address = stop

    def read(self, address: int, length: int) -> bytes:
        """What a load sees.  Raises `MemoryFault`."""
        pieces = []
        for pa, n in self.translate(address, length, False):
            try:
                pieces.append(self.memory.host_read(pa, n))
            except HostAccessFault as owned:
                raise BusError(rules.OWNED_BY_GUEST, address, str(owned)) from None
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """What a store does.  Raises `MemoryFault`; what came before the faulting page was written."""
        view = memoryview(data).cast("B")
        done = 0
        for pa, n in self.translate(address, len(view), True):
            try:
                self.memory.host_write(pa, view[done : done + n])
            except HostAccessFault as owned:
                raise BusError(rules.OWNED_BY_GUEST, address + done, str(owned)) from None
            done += n

    # Life

    def fork(self) -> AddressSpace:
        """dup_mmap(): a child with the same mappings.  Shared file mappings are faulted in anew; private pages are shared
        copy-on-write, but a pinned one is copied at once, so that its holder keeps seeing the parent's."""
        child = AddressSpace(self.memmap)
        with self.mmap_lock.exclusive:
            for vma in self.vmas:
                child._copy(vma, vma.start, vma.end, vma.prot)
                if not vma.shared:
                    self._fork_private(child, vma)
        return child

    def _fork_private(self, child: AddressSpace, vma: Vma) -> None:
        with self._notified(vma.start, vma.end):
            for start, end, (delta, _) in list(self.ptes.runs(vma.start, vma.end)):
                if delta is ZERO_PAGE:
                    child.ptes.set(start, end, (ZERO_PAGE, False))
                    continue
                for vpn in range(start, end):
                    pfn = vpn + delta
                    if self.memmap.maybe_dma_pinned(pfn):
                        [(copy, _)] = self.memmap.alloc(1)
                        self.memory.clear(copy, 1)
                        self.memory.write(copy << PAGE_SHIFT, self.memory.read(pfn << PAGE_SHIFT, PAGE_SIZE))
                        child.memmap.map(copy)
                        child.ptes.set(vpn, vpn + 1, (copy - vpn, True))
                        continue
                    self.memmap.get(pfn)
                    self.memmap.map(pfn)
                    self.ptes.set(vpn, vpn + 1, (delta, False))
                    child.ptes.set(vpn, vpn + 1, (delta, False))

    def exit(self) -> None:
        """exit_mmap(): nothing is left."""
        self.unmap_region(0, TASK_SIZE_PAGES)


class _Notified(AbstractContextManager[None]):
    def __init__(self, parts: list[AbstractContextManager[None]]) -> None:
        self._parts = parts

    def __enter__(self) -> None:
        for part in self._parts:
            part.__enter__()

    def __exit__(self, *exc: object) -> None:
        for part in self._parts:
            part.__exit__(None, None, None)


