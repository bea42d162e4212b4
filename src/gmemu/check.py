# SPDX-License-Identifier: GPL-2.0-or-later
"""`check_host`: every invariant of an emulated machine that can be seen while no call is under way.

The kernel code checks much of this where it could break.  This looks at the whole machine instead, from outside, and
recounts what the kernel keeps counts of.  It is meant for tests and for a program that wants to know at once when a
change to the emulation went wrong; it costs time in proportion to what is allocated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

from .hw.memory import PAGE_SHIFT
from .invariants import InvariantViolation, StaleTlb
from .kvm.guest_memfd.inode import ATTRIBUTE_PENDING
from .kvm.guest_memfd.large import LargeFolioInode
from .mm.swap import PAGEVEC_SIZE
from .uapi.kvm import KVM_MEM_READONLY, KVM_MEMORY_ATTRIBUTE_PRIVATE

if TYPE_CHECKING:
    from .kvm.guest_memfd.inode import GmemInode
    from .kvm.host import Host
    from .kvm.memslots import Memslot
    from .kvm.vm import Vm
    from .mm.address_space import AddressSpace, Vma
    from .rangemap import RangeMap

__all__ = ["check_host"]

V = TypeVar("V")

_ATTRIBUTES = frozenset({0, KVM_MEMORY_ATTRIBUTE_PRIVATE, ATTRIBUTE_PENDING})


def check_host(host: Host, held: Mapping[int, int] | None = None) -> None:
    """Raise `InvariantViolation` if anything in `host` is as it must never be.  No call may be under way.

    `held` tells the references that others than the kernel have, such as a device's pins: page frame -> references (a pin
    counts GUP_PIN_COUNTING_BIAS).  Given, every page's count must be exactly what can be found; else at least that.
    """
    _check_counts(host, held)
    for mm in host.memmap.mmlist:
        _check_page_tables(mm)
    for inode in host.gmem_inodes:
        _check_inode(inode)
    for vm in host.vms:
        _check_memslots(vm)
        _check_guest_mappings(vm)


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise InvariantViolation(what)


# Pages


def _check_counts(host: Host, held: Mapping[int, int] | None) -> None:
    """Each page's references: its cache's, its page table entries', its LRU batch's, those of pipes and other
    holders, and of `held`."""
    memmap = host.memmap
    maps = Counter(pfn for mm in memmap.mmlist for _, pfn, _ in _ptes(mm) if pfn != memmap.zero_pfn)
    counts = Counter({pfn: maps[pfn] for pfn in maps})
    for cache in memmap.caches:
        pages = list(_each(cache.pages))
        _require(len(pages) == cache.nrpages, f"a page cache of {len(pages)} pages says that it has {cache.nrpages}")
        for index, _ in _each(cache.uptodate):
            _require(cache.pages[index] is not None, f"file page {index:#x} is up to date and doesn't exist")
        counts.update(index + delta for index, delta in pages)
    for cpu, batch in host.lru.batches().items():
        _require(len(batch) < PAGEVEC_SIZE, f"CPU {cpu} has {len(batch)} folios in its LRU batch")
        counts.update(batch)
    counts.update(buffer.pfn for pipe in memmap.pipes for buffer in pipe.buffers)
    counts.update(page for holder in memmap.holders for page in holder.references())
    counts.update(held or {})
    for pfn, count in counts.items():
        _require(memmap.refs[pfn] is not None, f"pfn {pfn:#x} is in use and free")
        _require((memmap.maps[pfn] or 0) == maps[pfn], f"pfn {pfn:#x}: {memmap.maps[pfn]} map counts, {maps[pfn]} entries")
        if pfn != memmap.zero_pfn and not memmap.leaked[pfn]:
            have = memmap.refs[pfn] or 0
            _require(have >= count, f"pfn {pfn:#x} has {have} references and {count} users")
            _require(held is None or have == count, f"pfn {pfn:#x} has {have} references, and {count} users were found")
    allocated = 0
    for pfn, refs in _each(memmap.refs):
        allocated += 1
        _require(refs > 0, f"pfn {pfn:#x} has {refs} references and isn't free")
        found = pfn in counts or pfn == memmap.zero_pfn or bool(memmap.leaked[pfn])
        _require(held is None or found, f"pfn {pfn:#x} has {refs} references, and nobody uses it")
    _require(allocated == memmap.nr_allocated, f"{allocated} pages are allocated, {memmap.nr_allocated} counted")
    _require(len(list(_each(memmap.maps))) == len(maps), "a page that no entry maps has a map count")


def _each(runs: RangeMap[V]) -> Iterator[tuple[int, V]]:
    """Index by index."""
    for start, end, value in runs.runs():
        for index in range(start, end):
            yield index, value


def _ptes(mm: AddressSpace) -> Iterator[tuple[int, int, bool]]:
    """The page table entries of a process: (vpn, pfn, writable)."""
    for vpn, (delta, writable) in _each(mm.ptes):
        yield vpn, mm.memmap.zero_pfn if delta is None else vpn + delta, bool(writable)


def _check_page_tables(mm: AddressSpace) -> None:
    """Entries exist only in mappings, lead to the page that the file has there, and are no more writable than allowed."""
    for before, after in pairwise(mm.vmas):
        _require(before.end <= after.start, f"{before} and {after} overlap")
    for vpn, pfn, writable in _ptes(mm):
        vma = mm.find_vma(vpn)
        if vma is None:
            raise InvariantViolation(f"user page {vpn:#x} has an entry outside of every mapping")
        _require(vma.prot & 2 != 0 or not writable, f"user page {vpn:#x} is writable in {vma}, which isn't")
        _require(not writable or pfn != mm.memmap.zero_pfn, f"user page {vpn:#x} may write the zero page")
        if vma.mapping is not None and vma.shared:
            _require(vma in vma.mapping.i_mmap, f"{vma} isn't known to its file")
            index = _file_page(vma, vpn)
            found = vma.mapping.pfn(index)
            _require(pfn == found, f"user page {vpn:#x} maps pfn {pfn:#x}, file page {index:#x} is pfn {found}")


def _file_page(vma: Vma, vpn: int) -> int:
    return vpn - vma.start + vma.pgoff


# guest_memfd


def _check_inode(inode: GmemInode) -> None:
    """The attributes cover the file and nothing else, in merged runs; what is private has no host mapping."""
    mapping = inode.mapping
    if not inode.files:
        _require(not mapping.nrpages, f"guest_memfd {inode.ino} was released with {mapping.nrpages} pages")
        return
    at, before = 0, None
    for start, end, value in inode.attributes.runs():
        _require(start == at, f"guest_memfd {inode.ino} has no attribute for file pages {at:#x}-{start:#x}")
        _require(
            value in (0, KVM_MEMORY_ATTRIBUTE_PRIVATE, ATTRIBUTE_PENDING), f"file page {start:#x} has attribute {value:#x}"
        )
        _require(value != before, f"the attribute runs at file page {start:#x} aren't merged")
        at, before = end, value
        private = value == KVM_MEMORY_ATTRIBUTE_PRIVATE
        _require(not private or not mapping.is_mapped(start, end), f"the host maps private pages of {start:#x}-{end:#x}")
    for start, end, _ in inode.large.runs() if isinstance(inode, LargeFolioInode) else ():
        whole = inode.attributes.covers(start, end, KVM_MEMORY_ATTRIBUTE_PRIVATE)
        _require(whole, f"guest_memfd {inode.ino} has a large folio in {start:#x}-{end:#x}, not all of which is private")
    _require(at == inode.nr_pages, f"attributes of guest_memfd {inode.ino} end at {at:#x}, the file at {inode.nr_pages:#x}")
    for file in inode.files:
        _require(file.count > 0, f"guest_memfd {inode.ino} has a released file")
        for start, end, slot in file.bindings.runs():
            _require(not slot.freed, f"file pages {start:#x}-{end:#x} are bound to {slot}, which was freed")
            whole = slot.gmem_pgoff == start and slot.npages == end - start
            _require(slot.gmem_file is file and whole, f"file pages {start:#x}-{end:#x} are bound to {slot}, which isn't")


# VMs


def _check_memslots(vm: Vm) -> None:
    """Slots don't overlap, and each that has a guest_memfd is in the file's bindings."""
    for slots in vm.memslots:
        ordered = sorted(slots.by_id.values(), key=lambda slot: slot.base_gfn)
        for before, after in pairwise(ordered):
            _require(before.end_gfn <= after.base_gfn, f"{before} and {after} overlap")
        for number, slot in slots.by_id.items():
            _require(slot.id == number and not slot.freed, f"{slot} is in use after it was freed")
            _require(slots.find(slot.base_gfn) is slot, f"{slot} can't be found by its first frame")
            if slot.gmem_file is not None:
                first, last = slot.gmem_pgoff, slot.gmem_pgoff + slot.npages
                _require(slot.gmem_file.vm is vm, f"{slot} is bound to another VM's guest_memfd")
                _require(slot.gmem_file.bindings.covers(first, last, slot), f"{slot} is bound to a file that doesn't know")


def _check_guest_mappings(vm: Vm) -> None:
    """Each nested entry is of the attribute's kind, and leads where the slot leads now; so does each TLB entry."""
    _require(vm.mmu.invalidate_in_progress.read() == 0, f"{vm}: an invalidation began and never ended")
    vm.arch.check()
    for gfn, spte in _each(vm.mmu.sptes):
        slot, pfn = vm.memslots[0].find(gfn), gfn + spte.delta
        if slot is None:
            raise InvariantViolation(f"{vm}: gfn {gfn:#x} is mapped, and in no slot")
        _require(not (spte.writable and slot.flags & KVM_MEM_READONLY), f"{vm}: gfn {gfn:#x} is writable in {slot}")
        logged = slot.dirty_bitmap is None or gfn - slot.base_gfn in slot.dirty_bitmap
        _require(logged or not spte.writable, f"{vm}: gfn {gfn:#x} can be written without being logged")
        private = vm.attributes.is_private(gfn)
        _require(spte.private == private, f"{vm}: gfn {gfn:#x} is mapped {_kind(spte.private)}, and is {_kind(private)}")
        if not vm.host.memory.is_own(pfn):
            continue  # a real process's own memory: what is there now the real kernel knows
        found, writable = _backing(vm, slot, gfn, spte.private)
        _require(found == pfn, f"{vm}: gfn {gfn:#x} maps pfn {pfn:#x}, the page there is {found}")
        _require(writable or not spte.writable, f"{vm}: gfn {gfn:#x} is writable, {slot} isn't there")
    for vcpu in vm.vcpus:
        for gfn, entry in vcpu.cpu.tlb.entries.items():
            now = vm.arch.translation(gfn)
            if now is None or now.pfn != entry.pfn or now.writable < entry.writable:
                raise StaleTlb(f"{vcpu} still translates gfn {gfn:#x} to {entry}; the page table has {now}")


def _kind(private: bool) -> str:
    return "private" if private else "shared"


def _backing(vm: Vm, slot: Memslot, gfn: int, private: bool) -> tuple[int | None, bool]:
    """The page frame behind `gfn` as things are now, and whether the slot's owner may write it."""
    if private or slot.gmem_only:
        file = slot.gmem_file
        return (file.gmem_inode.mapping.pfn(slot.gmem_index(gfn)) if file else None), True
    entry = vm.mm.ptes[(slot.userspace_addr >> PAGE_SHIFT) + gfn - slot.base_gfn]
    if entry is None:
        return None, False
    delta, writable = entry
    vpn = (slot.userspace_addr >> PAGE_SHIFT) + gfn - slot.base_gfn
    return (vm.host.memmap.zero_pfn if delta is None else vpn + delta), writable
