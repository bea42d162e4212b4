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

from ..hw.memory import PAGE_SHIFT, PAGE_SIZE, HostAccessFault, HostStage2Fault
from ..rangemap import RangeMap
from ..rules import BusError, KernelError, MemoryFault, SegmentationFault, pkvm
from ..rules import mm as rules
from ..uapi.mman import GUP_PIN_COUNTING_BIAS, PROT_EXEC, PROT_READ, PROT_WRITE
from .file import File, fput
from .filemap import PageCache
from .page import Memmap
from .vma import VM_ACCOUNT, VM_NORESERVE, vma_merge

__all__ = ["AddressSpace", "MmuNotifier", "Pte", "Vma"]

TASK_SIZE_PAGES = (1 << 47 >> PAGE_SHIFT) - 1
MMAP_BASE_PAGES = 0x7F0000000000 >> PAGE_SHIFT
MMAP_MIN_PAGES = 16
ZERO_PAGE = None

Pte = tuple[int | None, bool | None]
"""(pfn - vpn, writable); the delta of the shared zero page is None.  Writable is None under PROT_NONE: the page is kept,
but nobody may touch it."""


class MmuNotifier(Protocol):
    """Who must hear when page table entries of a process go away (include/linux/mmu_notifier.h)."""

    def invalidate_range(self, start_vpn: int, end_vpn: int) -> AbstractContextManager[None]:
        """Entered before the entries are cleared, left after: invalidate_range_start() and _end()."""


class Vma:
    """A mapping of [start, end) pages: of file pages from `pgoff`, or of anonymous memory."""

    __slots__ = (
        "anon_vma",
        "dont_copy",
        "end",
        "file",
        "flags",
        "locked",
        "mapping",
        "mm",
        "pgoff",
        "prot",
        "shared",
        "start",
        "wipe_on_fork",
    )

    def __init__(
        self, mm: AddressSpace, start: int, end: int, prot: int, shared: bool, file: File | None, pgoff: int
    ) -> None:
        self.mm, self.start, self.end, self.prot, self.shared = mm, start, end, prot, shared
        self.file, self.pgoff = file, pgoff
        self.mapping: PageCache | None = None
        self.anon_vma = False
        """there are, or were, pages of the process's own in it"""
        self.dont_copy = self.wipe_on_fork = self.locked = False
        self.flags = 0
        """VM_* of `vma`: what only tells mappings apart"""

    def pages_of(self, start: int, end: int) -> tuple[int, int]:
        """Where file pages [start, end) are mapped here: virtual pages; nowhere if the first isn't below the last."""
        delta, last = self.start - self.pgoff, self.end  # no max() and min(): a conversion asks this three times
        return start + delta if start > self.pgoff else self.start, end + delta if end + delta < last else last

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
        self.hwpoison: set[int] = set()
        """virtual pages whose memory went bad while they were mapped (hwpoison entries)"""
        self.notifiers: list[MmuNotifier] = []
        self.locked_vm = 0
        """pages that count as locked because somebody pins them for the process"""
        self.memlock_limit: int | None = None
        """RLIMIT_MEMLOCK in pages; None: the process has CAP_IPC_LOCK"""
        self.number = memmap.nr_mms
        """the how-manieth of the machine: mmlist has no order"""
        memmap.nr_mms += 1
        memmap.mmlist.add(self)

    # Mappings

    def find_vma(self, vpn: int) -> Vma | None:
        """vma_lookup(): the mapping that contains page `vpn`."""
        i = bisect_left(self.vmas, vpn + 1, key=lambda vma: vma.start)
        return self.vmas[i - 1] if i and self.vmas[i - 1].end > vpn else None

    def overlapping(self, start: int, end: int) -> list[Vma]:
        """Every mapping that meets [start, end), in order."""
        return [vma for vma in self.vmas if vma.start < end and start < vma.end]

    def get_unmapped_area(self, pages: int, hint: int = 0) -> int:
        """At page `hint` if that's free, else the highest free range below the mmap base: its first page.

        Raises ENOMEM (`mm.mmap.space`).
        """
        if hint >= MMAP_MIN_PAGES and hint + pages <= TASK_SIZE_PAGES and not self.overlapping(hint, hint + pages):
            return hint
        end = MMAP_BASE_PAGES
        for vma in reversed(self.vmas):
            if vma.start >= MMAP_BASE_PAGES:
                continue
            if end - vma.end >= pages:
                break
            end = vma.start
        if end < pages + MMAP_MIN_PAGES:
            raise rules.MMAP_SPACE(f"{pages} pages asked")
        return end - pages

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
        """mmap_region(): make the mapping, or a neighbour longer.  What was there goes first: who refuses leaves a gap.

        The caller holds mmap_lock for writing.
        """
        vma = Vma(self, start, start + pages, prot, shared, file, pgoff if file is not None else start)
        vma.locked = locked
        if not reserve:
            vma.flags |= VM_NORESERVE
        self._account(vma)
        self.unmap_region(start, start + pages)
        if file is not None:
            file.mmap(vma)
            file.get()
        self.link(vma)
        self.merge(vma.start, vma.end)
        merged = self.find_vma(start)
        assert merged is not None
        return merged

    def merge(self, start: int, end: int) -> None:
        """Make one of the mappings in and beside [start, end) pages that nothing tells apart."""
        vma_merge(self, start, end)

    @staticmethod
    def _account(vma: Vma) -> None:
        """accountable_mapping(): private memory that may be written counts as committed from then on."""
        if not vma.shared and vma.prot & PROT_WRITE and not vma.flags & VM_NORESERVE:
            vma.flags |= VM_ACCOUNT

    def link(self, vma: Vma) -> None:
        """vma_link(): it's there for faults, and for whoever unmaps pages of its file."""
        insort(self.vmas, vma)
        if vma.mapping is not None:
            with vma.mapping.i_mmap_rwsem.exclusive:
                vma.mapping.i_mmap.append(vma)

    def unmap_region(self, start: int, end: int) -> None:
        """do_vmi_munmap(): take [start, end) pages out, splitting mappings at its ends."""
        for whole in self.overlapping(start, end):
            vma = self.isolate(whole, max(whole.start, start), min(whole.end, end))
            self.vmas.remove(vma)
            self.zap_page_range(vma.start, vma.end)
            if vma.mapping is not None:
                with vma.mapping.i_mmap_rwsem.exclusive:
                    vma.mapping.i_mmap.remove(vma)
            if vma.file is not None:
                fput(self.rt, vma.file)

    def isolate(self, vma: Vma, start: int, end: int) -> Vma:
        """__split_vma() at both ends: `vma` becomes [start, end), and what else it covered mappings of their own.

        The file sees all of it at once, so nobody who looks for mappings of a page misses one.
        """
        if (vma.start, vma.end) == (start, end):
            return vma
        if vma.mapping is None:
            self._split(vma, start, end)
        else:
            with vma.mapping.i_mmap_rwsem.exclusive:
                vma.mapping.i_mmap += self._split(vma, start, end)
        return vma

    def _split(self, vma: Vma, start: int, end: int) -> list[Vma]:
        rest = [self._part(vma, s, e) for s, e in ((vma.start, start), (end, vma.end)) if s < e]
        vma.pgoff += start - vma.start
        vma.start, vma.end = start, end
        for part in rest:
            insort(self.vmas, part)
        return rest

    def _part(self, vma: Vma, start: int, end: int) -> Vma:
        """vm_area_dup() of pages [start, end) of `vma`, for this address space.  Holds the file."""
        part = Vma(self, start, end, vma.prot, vma.shared, vma.file, vma.pgoff + start - vma.start)
        part.mapping, part.locked = vma.mapping, vma.locked and vma.mm is self
        part.dont_copy, part.wipe_on_fork = vma.dont_copy, vma.wipe_on_fork
        part.anon_vma, part.flags = vma.anon_vma, vma.flags
        if part.file is not None:
            part.file.get()
        return part

    def protect(self, start: int, end: int, prot: int) -> None:
        """mprotect(): change [start, end) pages' protection; what comes before a refusal was changed.

        Raises ENOMEM (`mm.mprotect.unmapped`), EACCES (`mm.mprotect.access`).
        """
        at = start
        while at < end:
            vma = self.find_vma(at)
            if vma is None:
                raise rules.MPROTECT_UNMAPPED(f"address {at << PAGE_SHIFT:#x}")
            if prot & PROT_EXEC and vma.file is not None and vma.file.noexec:
                raise rules.MPROTECT_ACCESS(f"{vma}")
            stop = min(vma.end, end)
            self._protect_vma(self.isolate(vma, at, stop), prot)
            self.merge(at, stop)
            at = stop

    def set_at_fork(
        self, vma: Vma, start: int, end: int, *, dont_copy: bool | None = None, wipe: bool | None = None
    ) -> None:
        """VM_DONTCOPY and VM_WIPEONFORK of a mapping's pages [start, end): a child won't have them, or finds zeroes."""
        part = self.isolate(vma, start, end)
        part.dont_copy = part.dont_copy if dont_copy is None else dont_copy
        part.wipe_on_fork = part.wipe_on_fork if wipe is None else wipe
        self.merge(start, end)

    def set_flags(self, vma: Vma, start: int, end: int, flags: int) -> None:
        """vma_modify_flags(): the `flags` of a mapping's pages [start, end)."""
        if flags != vma.flags:
            self.isolate(vma, start, end).flags = flags
            self.merge(start, end)

    def _protect_vma(self, vma: Vma, prot: int) -> None:
        """mprotect_fixup(): every entry is kept; the next write has to fault."""
        vma.prot = prot
        self._account(vma)
        with self._notified(vma.start, vma.end), self.page_table_lock:
            self.rt.writes_each(("pte", self), vma.start, vma.end)
            for s, e, (delta, _) in list(self.ptes.runs(vma.start, vma.end)):
                self.ptes.set(s, e, (delta, False if prot else None))

    # Page tables

    def zap_page_range(self, start: int, end: int) -> None:
        """zap_page_range_single() by the process itself: its [start, end) pages are as if never touched."""
        self.hwpoison.difference_update([vpn for vpn in self.hwpoison if start <= vpn < end])
        self.unmap_page_range(start, end)

    def unmap_page_range(self, start: int, end: int) -> None:
        """Clear the entries of [start, end) pages and drop their references.  Marks of bad memory stay."""
        if self.notifiers:
            with self._notified(start, end):
                self._clear(start, end)
        else:
            self._clear(start, end)

    def unmap_file_pages(self, vma: Vma, start: int, end: int) -> None:
        """unmap_page_range() without even_cows: entries of [start, end) pages that lead to the file's own pages."""
        if vma.shared:
            self.unmap_page_range(start, end)
        else:
            for s, e in list(self.file_ptes(vma, start, end)):
                self.unmap_page_range(s, e)

    def file_ptes(self, vma: Vma, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Runs of entries in [start, end) pages of `vma` that lead to the file's own pages, not to copies of them."""
        assert vma.mapping is not None
        shift = vma.pgoff - vma.start
        for s, e, (delta, _) in self.ptes.runs(start, end):
            if delta is ZERO_PAGE:
                continue
            for first, last, found in vma.mapping.pages.runs(s + shift, e + shift):
                if found == delta - shift:
                    yield first - shift, last - shift

    def _clear(self, start: int, end: int) -> None:
        with self.page_table_lock:
            self.rt.writes_each(("pte", self), start, end)
            if self.ptes.empty(start, end):
                return
            gone = list(self.ptes.runs(start, end))
            self.ptes.clear(start, end)
            for s, e, (delta, _) in gone:
                if delta is not ZERO_PAGE:
                    self.memmap.unmap(s + delta, e - s)

    def move_page_tables(self, start: int, end: int, to: int) -> None:
        """move_page_tables(): the entries of [start, end) pages, and their references, are from `to` on now.

        The caller holds mmap_lock for writing and a file's i_mmap_rwsem, so that nobody who unmaps pages of it misses one.
        """
        shift = to - start
        self.hwpoison = {vpn + shift if start <= vpn < end else vpn for vpn in self.hwpoison}
        with self._notified(start, end), self.page_table_lock:
            self.rt.writes_each(("pte", self), start, end)
            self.rt.writes_each(("pte", self), to, to + end - start)
            moved = list(self.ptes.runs(start, end))
            self.ptes.clear(start, end)
            for s, e, (delta, writable) in moved:
                self.ptes.set(s + shift, e + shift, (delta if delta is ZERO_PAGE else delta - shift, writable))

    def _notified(self, start: int, end: int) -> AbstractContextManager[None]:
        return _Notified([n.invalidate_range(start, end) for n in self.notifiers])

    def pte(self, vpn: int) -> tuple[int, bool] | None:
        """(pfn, writable) of the entry at `vpn`, if there is one that may be used."""
        self.rt.reads(("pte", self, vpn))
        entry = self.ptes[vpn]
        if entry is None or entry[1] is None:
            return None
        delta, writable = entry[0], entry[1]
        return (self.memmap.zero_pfn if delta is ZERO_PAGE else vpn + delta), writable

    def find_pfn(self, pfn: int) -> list[int]:
        """rmap_walk() in this address space: the virtual pages whose entries lead to page frame `pfn`."""
        runs = ((s, e, delta) for s, e, (delta, _) in self.ptes.runs() if delta is not ZERO_PAGE)
        return [pfn - delta for s, e, delta in runs if s <= pfn - delta < e]

    # Faults

    def handle_mm_fault(self, vpn: int, count: int, write: bool, address: int) -> None:
        """Make page `vpn` accessible, and as many of the `count` from there as can be done alike.

        Takes mmap_lock for reading, as the architecture's fault handler does.  Raises `BusError` or `SegmentationFault`
        for `address`.
        """
        with self.mmap_lock.shared:
            self.fault_locked(vpn, self.rt.batch(count), write, address)

    def faultin_page(self, vpn: int, count: int, write: bool) -> None:
        """faultin_page(): `handle_mm_fault` for get_user_pages, which asks the mapping first (check_vma_flags).

        Raises EFAULT (`mm.gup.fault`), `BusError` or `SegmentationFault`.
        """
        with self.mmap_lock.shared:
            self.check_vma_flags(vpn, write)
            self.fault_locked(vpn, self.rt.batch(count), write, vpn << PAGE_SHIFT)

    def check_vma_flags(self, vpn: int, write: bool) -> None:
        """Whether get_user_pages may have the page: read what may be read only.  Raises EFAULT (`mm.gup.fault`)."""
        vma = self.find_vma(vpn)
        if vma is None or not vma.prot & (PROT_WRITE if write else PROT_READ):
            raise rules.GUP_FAULT(f"address {vpn << PAGE_SHIFT:#x}, {vma or 'unmapped'}")

    def fault_locked(self, vpn: int, count: int, write: bool, address: int) -> None:
        """`handle_mm_fault` for a caller that holds mmap_lock.  Every path looks again under the page table's lock: what
        came meanwhile stays, and the access is tried once more."""
        vma = self.find_vma(vpn)
        if vma is None:
            raise SegmentationFault(rules.UNMAPPED, address)
        if not vma.prot or (write and not vma.prot & PROT_WRITE):
            raise SegmentationFault(rules.PROTECTION, address, f"{'write to' if write else 'read of'} {vma}")
        count = min(count, vma.end - vpn)
        self.rt.reads(("pte", self, vpn))
        entry = self.ptes[vpn]
        if entry is not None and (entry[1] or not write):
            return  # spurious: somebody else was here first
        if vpn in self.hwpoison:
            raise BusError(rules.POISONED, address, f"{vma}")
        try:
            if entry is None and vma.file is not None:
                self._fault_file(vma, vma.file, vpn, count, write, address)
            elif entry is None and write:
                self._fault_anonymous(vma, vpn, count)
            elif entry is None:
                self._fault_zero_page(vpn)
            elif vma.shared:
                self._replace(vpn, entry, (entry[0], True))
            elif entry is not None:
                self._wp_fault(vma, vpn, entry)
        except KernelError as error:
            raise BusError(rules.FAULT_OOM, address, str(error)) from error

    def _fault_file(self, vma: Vma, file: File, vpn: int, count: int, write: bool, address: int) -> None:
        """do_shared_fault(), do_read_fault(): the file gives locked folios; the entries take over their references.

        A private mapping is mapped read-only first, and copied by the fault that follows if it's to be written.
        """
        _, end, _ = self.ptes.run(vpn)
        folio = file.fault(vma, vma.pgoff + vpn - vma.start, min(count, end - vpn), write, address)
        mapping = vma.mapping
        assert mapping is not None
        sound = self.memmap.sound(folio.pfn, folio.count)
        done = self._install(vpn, vpn + sound, folio.pfn - vpn, vma.shared and write)
        mapping.unlock_folio(folio)
        if done < folio.count:
            self.memmap.put(folio.pfn + done, folio.count - done)
        if not sound:
            raise BusError(rules.POISONED, address, f"{vma}")

    def _install(self, start: int, end: int, delta: int, writable: bool) -> int:
        """set_pte_range(): map pages from `start` + `delta` at [start, end), up to the first that is there: how many."""
        with self.page_table_lock:
            self.rt.writes_each(("pte", self), start, end)
            _, free, entry = self.ptes.run(start)
            count = min(end, free) - start if entry is None else 0
            if count > 0:
                self.memmap.map(start + delta, count)
                self.ptes.set(start, start + count, (delta, writable))
        return count

    def _replace(self, vpn: int, old: Pte | None, new: Pte) -> bool:
        """Change one entry if it's still `old` (pte_same): whether it was."""
        with self.page_table_lock:
            self.rt.writes(("pte", self, vpn))
            same = self.ptes[vpn] == old
            if same:
                self.ptes.set(vpn, vpn + 1, new)
        return same

    def _fault_anonymous(self, vma: Vma, vpn: int, count: int) -> None:
        """do_anonymous_page() for writing: zeroed pages of this process's own."""
        vma.anon_vma = True
        _, end, _ = self.ptes.run(vpn)
        for pfn, have in self.memmap.alloc(min(count, end - vpn, max(self.memmap.nr_free, 1))):
            self.memory.clear(pfn, have)
            done = self._install(vpn, vpn + have, pfn - vpn, True)
            if done < have:
                self.memmap.put(pfn + done, have - done)
            vpn += have

    def _fault_zero_page(self, vpn: int) -> None:
        """do_anonymous_page() for reading: the zero page, to which no entry counts as a reference."""
        self._replace(vpn, None, (ZERO_PAGE, False))

    def _wp_fault(self, vma: Vma, vpn: int, entry: Pte) -> None:
        """do_wp_page(): a private page is written; take it over if it's this process's alone, else copy it."""
        delta = entry[0]
        if delta is not ZERO_PAGE and self._is_anonymous(vma, vpn, vpn + delta) and self._is_exclusive(vpn + delta):
            self._replace(vpn, entry, (delta, True))
            return
        [(pfn, _)] = self.memmap.alloc(1)
        vma.anon_vma = True
        self.memory.clear(pfn, 1)
        if delta is not ZERO_PAGE:
            self.memory.copy(pfn, vpn + delta, 1)
        with self._notified(vpn, vpn + 1):
            self.memmap.map(pfn)
            if not self._replace(vpn, entry, (pfn - vpn, True)):
                self.memmap.unmap(pfn)
            elif delta is not ZERO_PAGE:
                self.memmap.unmap(vpn + delta)

    @staticmethod
    def _is_anonymous(vma: Vma, vpn: int, pfn: int) -> bool:
        """folio_test_anon(): not the file's own page, if there is a file."""
        return vma.mapping is None or vma.mapping.pfn(vma.pgoff + vpn - vma.start) != pfn

    def _is_exclusive(self, pfn: int) -> bool:
        """PageAnonExclusive(), as far as counts tell: mapped once, and any further references are pins."""
        others = self.memmap.refcount(pfn) - 1
        return self.memmap.mapcount(pfn) == 1 and others % GUP_PIN_COUNTING_BIAS == 0

    def account_locked_vm(self, pages: int) -> bool:
        """account_locked_vm(): so many more pages are locked, or fewer.  False if that's over the limit."""
        if pages > 0 and self.memlock_limit is not None and self.locked_vm + pages > self.memlock_limit:
            return False
        self.locked_vm += pages
        return True

    def swap_backed(self, vpn: int, pfn: int) -> bool:
        """folio_test_swapbacked() of the page mapped at `vpn`: it's anonymous or shmem's, not another file's."""
        vma = self.find_vma(vpn)
        return vma is not None and (vma.mapping is None or vma.mapping.swap_backed or self._is_anonymous(vma, vpn, pfn))

    # Access by the process

    def translate(self, address: int, length: int, write: bool) -> Iterator[tuple[int, int]]:
        """Physical (address, length) pieces of [address, address + length), faulting pages in as they're needed.

        Raises `BusError` or `SegmentationFault` at the first byte that can't be had.
        """
        end = address + length
        last = (end + PAGE_SIZE - 1) >> PAGE_SHIFT
        mark = self.rt.writes if write else self.rt.reads
        while address < end:
            vpn = address >> PAGE_SHIFT
            self.rt.reads(("pte", self, vpn))
            _, run_end, entry = self.ptes.run(vpn)
            if entry is None or entry[1] is None or (write and not entry[1]):
                self.handle_mm_fault(vpn, last - vpn, write, address)
                continue
            delta, _ = entry
            if delta is ZERO_PAGE:
                stop = min((vpn + 1) << PAGE_SHIFT, end)
                yield (self.memmap.zero_pfn << PAGE_SHIFT) + (address & (PAGE_SIZE - 1)), stop - address
                address = stop
                continue
            mark(("memory", vpn + delta))
            if self.ptes[vpn] != entry:
                continue  # the processor looks the address up and uses it in one go
            stop = min((vpn + self.rt.batch(run_end - vpn)) << PAGE_SHIFT, end)
            yield address + (delta << PAGE_SHIFT), stop - address
            address = stop

    def read(self, address: int, length: int) -> bytes:
        """What a load sees.  Raises `MemoryFault`."""
        pieces = []
        for pa, n in self.translate(address, length, False):
            try:
                pieces.append(self.memory.host_read(pa, n))
            except HostAccessFault as owned:
                at = address + sum(map(len, pieces))
                if self._remapped(at, pa):
                    return b"".join(pieces) + self.read(at, address + length - at)
                raise _not_the_hosts(owned, at) from None
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """What a store does.  Raises `MemoryFault`; what came before the faulting page was written."""
        view = memoryview(data).cast("B")
        done = 0
        for pa, n in self.translate(address, len(view), True):
            try:
                self.memory.host_write(pa, view[done : done + n])
            except HostAccessFault:
                if self._remapped(address + done, pa):
                    self.write(address + done, view[done:])
                    return
                self._write_by_page(address + done, pa, view[done : done + n])
            done += n

    def _remapped(self, address: int, pa: int) -> bool:
        """handle_user_rmp_page_fault(): the address doesn't lead there any more, so the access is made again."""
        entry = self.pte(address >> PAGE_SHIFT)
        return entry is None or entry[0] != pa >> PAGE_SHIFT

    def _write_by_page(self, address: int, pa: int, data: memoryview) -> None:
        """The part of a store that meets a page of somebody else's: what comes before that page is written."""
        done = 0
        while done < len(data):
            n = min(PAGE_SIZE - (pa + done & (PAGE_SIZE - 1)), len(data) - done)
            try:
                self.memory.host_write(pa + done, data[done : done + n])
            except HostAccessFault as owned:
                raise _not_the_hosts(owned, address + done) from None
            done += n

    # Life

    def fork(self) -> AddressSpace:
        """dup_mmap(): a child with the same mappings.  Shared file mappings are faulted in anew; private pages are shared
        copy-on-write, but a pinned one is copied at once, so that its holder keeps seeing the parent's.

        Raises ENOMEM (`mm.page.oom`); nothing is left of the child then.
        """
        child = AddressSpace(self.memmap)
        with self.mmap_lock.exclusive:
            try:
                for vma in self.vmas:
                    if vma.dont_copy:
                        continue
                    child.link(child._part(vma, vma.start, vma.end))
                    if not vma.shared and not vma.wipe_on_fork:
                        self._fork_private(child, vma)
            except BaseException:
                child.exit()
                raise
        return child

    def _fork_private(self, child: AddressSpace, vma: Vma) -> None:
        child.hwpoison.update(vpn for vpn in self.hwpoison if vma.start <= vpn < vma.end)
        with self._notified(vma.start, vma.end), self.page_table_lock:
            self.rt.writes_each(("pte", self), vma.start, vma.end)
            for start, end, (delta, writable) in list(self.ptes.runs(vma.start, vma.end)):
                protected = None if writable is None else False
                if delta is ZERO_PAGE:
                    child.ptes.set(start, end, (ZERO_PAGE, protected))
                    continue
                for s, e, refs in list(self.memmap.refs.runs(start + delta, end + delta)):
                    first, last = s - delta, e - delta
                    if refs >= GUP_PIN_COUNTING_BIAS and self._is_anonymous(vma, first, s):
                        self._fork_pinned(child, first, last, delta, writable)
                        continue
                    self.memmap.get(s, e - s)
                    self.memmap.map(s, e - s)
                    self.ptes.set(first, last, (delta, protected))
                    child.ptes.set(first, last, (delta, protected))

    def _fork_pinned(self, child: AddressSpace, start: int, end: int, delta: int, writable: bool | None) -> None:
        """copy_present_page(): pages [start, end) stay the parent's, and the child has copies from the beginning."""
        for pfn, count in self.memmap.alloc(end - start):
            self.memory.clear(pfn, count)
            self.memory.copy(pfn, start + delta, count)
            self.memmap.map(pfn, count)
            child.ptes.set(start, start + count, (pfn - start, writable))
            start += count

    def exit(self) -> None:
        """exit_mmap(): nothing is left."""
        with self.mmap_lock.exclusive:
            self.unmap_region(0, TASK_SIZE_PAGES)


def _not_the_hosts(fault: HostAccessFault, address: int) -> MemoryFault:
    """What user space gets that touches somebody else's page."""
    if isinstance(fault, HostStage2Fault):
        return SegmentationFault(pkvm.HOST_STAGE2, address, str(fault))
    return BusError(rules.OWNED_BY_GUEST, address, str(fault))


class _Notified(AbstractContextManager[None]):
    def __init__(self, parts: list[AbstractContextManager[None]]) -> None:
        self._parts = parts

    def __enter__(self) -> None:
        for part in self._parts:
            part.__enter__()

    def __exit__(self, *exc: object) -> None:
        for part in self._parts:
            part.__exit__(None, None, None)
