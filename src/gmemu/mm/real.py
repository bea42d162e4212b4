# SPDX-License-Identifier: GPL-2.0-or-later
"""The memory manager's second implementation: over a real process's address space.

A guest_memfd's pages stand in a row in the machine's memory, so a mapping of the file is one real mapping of that row.  What
of it the process may touch is enforced by userfaultfd.  Memory that the program has of its own isn't ours to manage: it has
page frames (see `hw.real_memory`), but no reference counts, and what becomes of it is heard of only where a guest has it.
"""

from __future__ import annotations

from ..hw.memory import PAGE_SHIFT, PAGE_SIZE
from ..hw.real_memory import ProcessMemory, RealMemory
from ..rangemap import RangeMap
from ..rules import KernelError, SegmentationFault
from ..rules import gmemu as own_rules
from ..rules import mm as rules
from ..sync import Runtime
from ..uapi.mman import MADV_DONTNEED, MADV_POPULATE_READ, MADV_POPULATE_WRITE, MAP_FIXED, MAP_SHARED
from .address_space import AddressSpace, Vma
from .file import File
from .filemap import Folio, PageCache
from .page import Memmap
from .swap import LruBatches

__all__ = ["CHUNK", "PlacedPageCache", "RealAddressSpace", "RealMemmap"]

CHUNK = 512
"""Pages that are registered with userfaultfd together.  Each registered run is a mapping of its own to the real kernel,
which has 65,530 for a process; so pages that change one by one are told apart by being mapped or not, within a chunk."""

FORK_PART = 1 << 24
"""Pages that a child of a fork has for VMs of its own."""


class RealMemmap(Memmap):
    """Page frames, of which some are set aside for a file in a row, and those of the program's own memory aren't counted."""

    memory: RealMemory

    def __init__(self, rt: Runtime, memory: RealMemory) -> None:
        self._reserved: RangeMap[bool] = RangeMap()
        self._returned: list[tuple[int, int]] = []
        self._limit = memory.size >> PAGE_SHIFT
        super().__init__(rt, memory)

    def part_for_child(self) -> int:
        """About to fork: leave a part of the memory to the child's own VMs.  Its first page frame."""
        self._limit = max(self._limit - FORK_PART, self._next)
        return self._limit

    def keep_to(self, part: int) -> None:
        """In the child: what is new comes from there, and what the parent frees is the parent's."""
        self._next, self._limit = part, part + FORK_PART
        self._free, self._returned = [], []

    @property
    def nr_free(self) -> int:
        """What is left of this process's part, and what was given back."""
        return self._limit - self._next + sum(count for _, count in self._free)

    def alloc(self, count: int, alignment: int = 1) -> list[tuple[int, int]]:
        """As the other, but in one run, so that it can be mapped in one go."""
        fitting = next((i for i, (_, have) in enumerate(self._free) if have >= count), None)
        if fitting is None:
            free, self._free = self._free, []
            try:
                return super().alloc(count)
            finally:
                self._free += free
        self._free.append(self._free.pop(fitting))
        return super().alloc(count)

    def reserve(self, count: int) -> int | None:
        """Set `count` page frames in a row aside: the first, or None if the machine hasn't that many."""
        count = -(-count // CHUNK) * CHUNK
        for i, (pfn, have) in enumerate(self._returned):
            if have == count:
                del self._returned[i]
                return pfn
        pfn = -(-self._next // CHUNK) * CHUNK
        if pfn + count > self._limit:
            return None
        self._next = pfn + count
        self._reserved.set(pfn, pfn + count, True)
        return pfn

    def unreserve(self, pfn: int, count: int) -> None:
        """The file that they were set aside for is gone."""
        self._returned.append((pfn, -(-count // CHUNK) * CHUNK))

    def alloc_at(self, pfn: int, count: int) -> None:
        """Take `count` pages that were set aside into use, with one reference each.

        Raises ENOMEM (`mm.page.held`) while somebody still holds one of them from before it was truncated.
        """
        if not self.refs.empty(pfn, pfn + count):
            raise rules.PAGE_HELD(f"{count} pages from pfn {pfn:#x}")
        self.refs.set(pfn, pfn + count, 1)
        self.nr_allocated += count

    def _give_back(self, pfn: int, count: int) -> None:
        if self._reserved[pfn] is None:
            super()._give_back(pfn, count)

    def get(self, pfn: int, count: int = 1, by: int = 1) -> None:
        if self.memory.is_own(pfn):
            super().get(pfn, count, by)

    def try_get(self, pfn: int, count: int = 1, by: int = 1) -> bool:
        return not self.memory.is_own(pfn) or super().try_get(pfn, count, by)

    def put(self, pfn: int, count: int = 1, by: int = 1) -> None:
        if self.memory.is_own(pfn):
            super().put(pfn, count, by)

    def refcount(self, pfn: int) -> int:
        return super().refcount(pfn) if self.memory.is_own(pfn) else 1


class PlacedPageCache(PageCache):
    """The page cache of a file whose pages have their places from the start: file page i is page frame `first_pfn` + i.

    A page that nobody took into use is a hole in the memfd, and one that was freed became a hole: it reads as zero.  The
    process may have written to a page of which the cache hasn't heard, as the real kernel fills holes by itself.
    """

    memmap: RealMemmap

    def __init__(self, memmap: RealMemmap, lru: LruBatches, name: str, pages: int) -> None:
        super().__init__(memmap, lru, name)
        self.nr_reserved = pages
        self.first_pfn = memmap.reserve(pages)

    def _alloc(self, index: int, count: int) -> list[tuple[int, int]]:
        if self.first_pfn is None:
            raise rules.OUT_OF_MEMORY(f"a file of {self.nr_reserved} pages, more than the machine has in a row")
        if not self.memmap.refs.empty(self.first_pfn + index, self.first_pfn + index + count):
            self.lru.lru_add_drain_all()  # a page that was truncated may be in a batch still
        self.memmap.alloc_at(self.first_pfn + index, count)
        return [(self.first_pfn + index, count)]

    def clear_folio(self, folio: Folio) -> None:
        self.mark_uptodate(folio)

    def adopt(self) -> None:
        """Hear of the pages that the real kernel has filled by itself, for who asks what the file has.

        Pages that had to be filled because their neighbours were taken away count, too.
        """
        if self.first_pfn is None:
            return
        for start, end in self.memmap.memory.resident(self.first_pfn, self.nr_reserved):
            at, last = start - self.first_pfn, end - self.first_pfn
            while at < last:
                folio = self.grab_folio(at, last - at)
                self.mark_uptodate(folio)
                self.unlock_folio(folio)
                self.put_folio(folio)
                at += folio.count

    def truncate_range(self, start: int, end: int) -> None:
        """As the other.  The places will have other pages: who keeps one keeps it beside (the real kernel does)."""
        if self.first_pfn is not None:
            for holder in list(self.memmap.holders):
                holder.lose(self.first_pfn + start, self.first_pfn + min(end, self.nr_reserved))
        super().truncate_range(start, end)
        end = min(end, self.nr_reserved)
        if self.first_pfn is not None and start < end:
            self.memmap.memory.punch(self.first_pfn + start, end - start)
            for vma in self.i_mmap:
                assert isinstance(vma.mm, RealAddressSpace)
                vma.mm.refresh(vma, *vma.pages_of(start, end))


class RealAddressSpace(AddressSpace):
    """The process's address space.  `vmas` are the mappings of the emulated kernel's files alone.

    Of a file that refuses some of its pages (`File.gate`) only the others can be touched.
    """

    memory: RealMemory
    memmap: RealMemmap

    def __init__(self, memmap: RealMemmap, process: ProcessMemory) -> None:
        super().__init__(memmap)
        self._process = process
        self._gated: RangeMap[bool] = RangeMap()
        """virtual pages that are registered with userfaultfd"""
        self._has_gate = False
        self._found: tuple[int, bool] | None = None
        """the page of the program's own that was looked up last: its number, and whether it can be written"""

    # Mappings

    def map_region(
        self,
        start: int,
        pages: int,
        prot: int,
        shared: bool,
        file: File | None,
        pgoff: int,
        *,
        locked: bool = False,
        reserve: bool = True,
    ) -> Vma:
        """mmap_region(), and the real mapping in the place of what was there."""
        vma = super().map_region(start, pages, prot, shared, file, pgoff, locked=locked, reserve=reserve)
        try:
            self._map_real(vma)
        except KernelError:
            self.unmap_region(start, start + pages)
            raise
        except OSError as error:
            self.unmap_region(start, start + pages)
            raise rules.MMAP_REAL(f"{pages} pages: {error.strerror}") from error
        self._process.watch(start << PAGE_SHIFT, start + pages << PAGE_SHIFT, True)
        return vma

    def merge(self, start: int, end: int) -> None:
        """Each mapping stays as it was made: what the real kernel makes of them is its own affair."""

    def _map_real(self, vma: Vma) -> None:
        """Pages that the file hasn't are mapped from an empty file: to touch them is SIGBUS."""
        assert vma.mapping is not None
        first, have = _place(vma)[0], _placed_end(vma) - vma.start
        if have > 0:
            fd, offset = self.memory.fd, first << PAGE_SHIFT
            self._process.mmap(vma.start << PAGE_SHIFT, have << PAGE_SHIFT, vma.prot, MAP_SHARED | MAP_FIXED, fd, offset)
        if vma.start + max(have, 0) < vma.end:
            self._map_nothing(vma.start + max(have, 0), vma.end, vma.prot)
        self._gated.clear(vma.start, vma.end)
        if have > 0:
            self.refresh(vma, vma.start, vma.start + have)

    def _map_nothing(self, start: int, end: int, prot: int) -> None:
        import os

        fd = os.memfd_create("gmemu-nothing", os.MFD_CLOEXEC)
        try:
            flags = MAP_SHARED | MAP_FIXED
            self._process.mmap(start << PAGE_SHIFT, end - start << PAGE_SHIFT, prot, flags, fd, 0)
        finally:
            os.close(fd)

    def unmap_region(self, start: int, end: int) -> None:
        super().unmap_region(start, end)
        self._gated.clear(start, end)

    def unmap_program_range(self, start: int, end: int) -> None:
        """Virtual pages [start, end) go, or become something else: guests and mappings of ours lose them."""
        self._found = None
        with self.mmap_lock.exclusive:
            if self.notifiers:
                with self._notified(start, end):
                    self.unmap_region(start, end)
            else:
                self.unmap_region(start, end)

    # The gate

    def unmap_file_pages(self, vma: Vma, start: int, end: int) -> None:
        """As the other.  Only get_user_pages makes entries here: where there are none, no guest has a page by them."""
        if not self.ptes.empty(start, end):
            super().unmap_file_pages(vma, start, end)
        if _gate(vma) is not None:
            self._deny(vma, start, end)

    def refresh(self, vma: Vma, start: int, end: int) -> None:
        """Let the process touch those of virtual pages [start, end) that it may, and no others."""
        gate = _gate(vma)
        if gate is None:
            return
        shift = vma.pgoff - vma.start
        if end - start < CHUNK and self._gated.covers(start, end, True) and gate.covers(start + shift, end + shift, 0):
            self._map_shared(vma, start, end)  # the usual case, and the one to be quick in
            return
        for s, e, private in gate.spans(start + shift, min(end, _placed_end(vma)) + shift):
            if private:
                self._deny(vma, s - shift, e - shift)
            else:
                self._allow(vma, s - shift, e - shift)

    def _deny(self, vma: Vma, start: int, end: int) -> None:
        """Take pages away: register what isn't, then unmap."""
        if self._gated.covers(start, end, True):
            self._process.madvise(start << PAGE_SHIFT, end - start << PAGE_SHIFT, MADV_DONTNEED)
            return
        end = min(end, _placed_end(vma))
        if start >= end:
            return
        if not self._has_gate:
            self._open_gate()
            self._has_gate = True
        first = max(start - start % CHUNK, vma.start)
        last = min(end + -end % CHUNK, _placed_end(vma))
        fresh = [(s, e) for s, e, gated in self._gated.spans(first, last) if not gated]
        for s, e in fresh:
            self._process.gate_register(s << PAGE_SHIFT, e - s << PAGE_SHIFT)
            self._gated.set(s, e, True)
        self._process.madvise(start << PAGE_SHIFT, end - start << PAGE_SHIFT, MADV_DONTNEED)
        for s, e in fresh:
            self._map_present(vma, s, min(e, start))
            self._map_present(vma, max(s, end), e)

    def _open_gate(self) -> None:
        try:
            self._process.gate_open()
        except OSError as error:
            raise own_rules.NO_USERFAULTFD(f"{error.strerror}") from error

    def _allow(self, vma: Vma, start: int, end: int) -> None:
        """Give pages: whole chunks are let go, others mapped one by one."""
        for s, e, gated in self._gated.spans(start, end):
            if not gated:
                continue
            first, last = s + -s % CHUNK if s > vma.start else s, e - e % CHUNK if e < vma.end else e
            if first < last and last - first >= CHUNK:
                self._process.gate_unregister(first << PAGE_SHIFT, last - first << PAGE_SHIFT)
                self._gated.clear(first, last)
                self._map_shared(vma, s, first)
                self._map_shared(vma, last, e)
            else:
                self._map_shared(vma, s, e)

    def _map_present(self, vma: Vma, start: int, end: int) -> None:
        """Map those of registered pages [start, end) that the process may touch."""
        shift, gate = vma.pgoff - vma.start, _gate(vma)
        assert gate is not None
        for s, e, private in gate.spans(start + shift, end + shift):
            if not private:
                self._map_shared(vma, s - shift, e - shift)

    def _map_shared(self, vma: Vma, start: int, end: int) -> None:
        """Map registered pages [start, end), all of them shared."""
        if start < end:
            offset = _place(vma)[0] - vma.start + start << PAGE_SHIFT
            self._process.gate_map(start << PAGE_SHIFT, end - start << PAGE_SHIFT, self.memory.fd, offset)

    def access_again(self, address: int) -> None:
        """The process got SIGBUS at `address`, in a mapping of ours: map the page if it may be touched.

        Raises `BusError` if it may not, `SegmentationFault` if the page isn't ours.
        """
        vpn = address >> PAGE_SHIFT
        vma = self.find_vma(vpn)
        if vma is None:
            raise SegmentationFault(rules.UNMAPPED, address)
        assert vma.file is not None
        folio = vma.file.fault(vma, vma.pgoff + vpn - vma.start, 1, False, address)
        assert vma.mapping is not None
        vma.mapping.unlock_folio(folio)
        vma.mapping.put_folio(folio)
        if self._gated[vpn]:
            self._map_present(vma, vpn, vpn + 1)

    # Access by the kernel

    def read(self, address: int, length: int) -> bytes:
        try:
            return self._process.read(address, length)
        except OSError:
            raise SegmentationFault(rules.UNMAPPED, address) from None

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        try:
            self._process.write(address, data)
        except OSError:
            raise SegmentationFault(rules.UNMAPPED, address) from None

    def pte(self, vpn: int) -> tuple[int, bool] | None:
        """As the other for mappings of ours; for the program's own memory, what the last fault found."""
        if self.find_vma(vpn) is not None:
            return super().pte(vpn)
        if self._found is None or self._found[0] != vpn:
            return None
        return vpn - (self.memory.base >> PAGE_SHIFT), self._found[1]

    def handle_mm_fault(self, vpn: int, count: int, write: bool, address: int) -> None:
        """For the program's own memory the real kernel is asked to fault it in; for writing, if that can be had."""
        if self.find_vma(vpn) is not None:
            super().handle_mm_fault(vpn, count, write, address)
            return
        for advice, writable in (MADV_POPULATE_WRITE, True), (MADV_POPULATE_READ, False):
            if write and not writable:
                break
            try:
                self._process.madvise(vpn << PAGE_SHIFT, PAGE_SIZE, advice)
            except OSError:
                continue
            self._found = vpn, writable
            return
        raise SegmentationFault(rules.UNMAPPED, address, "which the process itself can't touch")

    def faultin_page(self, vpn: int, count: int, write: bool) -> None:
        """As the other for mappings of ours; the real kernel knows what may be done to the program's own memory."""
        if self.find_vma(vpn) is not None:
            super().faultin_page(vpn, count, write)
        else:
            self.handle_mm_fault(vpn, count, write, vpn << PAGE_SHIFT)

    def after_fork(self) -> None:
        """In the child of a real fork: userfaultfd wasn't handed on, nor was any page mapped."""
        if not self._has_gate:
            return
        self._open_gate()
        for s, e, _ in self._gated.runs():
            self._process.gate_register(s << PAGE_SHIFT, e - s << PAGE_SHIFT)
        for vma in self.vmas:
            if _gate(vma) is not None:
                for s, e, _ in list(self._gated.runs(vma.start, vma.end)):
                    self._map_present(vma, s, e)

    def fork(self) -> AddressSpace:
        raise NotImplementedError("a real process is forked by its own kernel")


def _gate(vma: Vma) -> RangeMap[int] | None:
    """Which pages of its file are private, if that can be."""
    return vma.file.gate if vma.file is not None else None


def _placed_end(vma: Vma) -> int:
    """One past the last virtual page of the mapping that the file has."""
    return min(vma.end, vma.start + _place(vma)[1])


def _place(vma: Vma) -> tuple[int, int]:
    """Where in the machine's memory the mapping begins (pfn), and how many pages from there are the file's."""
    mapping = vma.mapping
    if isinstance(mapping, PlacedPageCache):
        if mapping.first_pfn is None:
            return 0, 0
        return mapping.first_pfn + vma.pgoff, mapping.nr_reserved - vma.pgoff
    assert mapping is not None
    _, end, delta = mapping.pages.run(vma.pgoff)
    return (0, 0) if delta is None else (vma.pgoff + delta, end - vma.pgoff)
