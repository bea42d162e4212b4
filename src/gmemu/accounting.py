# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a VM's memory is: what is shared, what is private, what is held twice, what is pinned, what firmware has.

With two pools a page that changed hands has memory in both until user space gives one back (S35); in place it never has.
Everything is counted from page tables and page caches as they are, in bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from .hw.memory import PAGE_SHIFT
from .uapi.mman import GUP_PIN_COUNTING_BIAS

if TYPE_CHECKING:
    from .kvm.memslots import Memslot
    from .kvm.vm import Vm

__all__ = ["MemoryReport", "memory_report"]


class MemoryReport(NamedTuple):
    """A VM's memory, in bytes.  What is in both pools counts as shared and as private, as it takes memory twice."""

    shared: int
    """guest_memfd pages that are shared, and pages of slots' user mappings that are neither guest_memfd's nor given away"""
    private: int
    """guest_memfd pages that are private, and pages of user mappings that pKVM's host gave to the guest"""
    in_both_pools: int
    """guest frames that have memory of either kind"""
    pinned: int
    """of all these, pages that somebody pinned"""
    firmware: int
    """pages that the trusted entity has for the VM: contexts, save areas, page tables"""
    peak: int
    """the most that the whole machine had allocated at once"""

    @property
    def total(self) -> int:
        """What the VM takes."""
        return self.shared + self.private + self.firmware


def memory_report(vm: Vm) -> MemoryReport:
    """Count the memory of `vm`, bound to a slot or not."""
    memmap = vm.host.memmap
    shared = private = both = pinned = 0
    for inode in vm.host.gmem_inodes:
        if any(file.vm is vm for file in inode.files):
            for start, end, delta in inode.mapping.pages.runs():
                pinned += _pinned(vm, start + delta, end + delta)
                for first, last, attribute in inode.attributes.spans(start, end):
                    private += last - first if attribute else 0
                    shared += 0 if attribute else last - first
    for slot in vm.memslots[0].by_id.values():
        for gfn, count, pfn in _user_pages(vm, slot):
            if slot.gmem_file is not None:
                inode, index = slot.gmem_file.gmem_inode, slot.gmem_index(gfn)
                if inode.mapping.pages.covers(index, index + count, pfn - index):
                    continue  # the slot's user mapping is the guest_memfd itself
                both += sum(end - start for start, end, _ in inode.mapping.pages.runs(index, index + count))
            donated = vm.arch.donated_pages(pfn, count)
            shared, private = shared + count - donated, private + donated
            pinned += _pinned(vm, pfn, pfn + count)
    pages = shared, private, both, pinned, vm.arch.firmware_pages(), memmap.peak_allocated
    return MemoryReport(*(count << PAGE_SHIFT for count in pages))


def _user_pages(vm: Vm, slot: Memslot) -> Iterator[tuple[int, int, int]]:
    """The pages behind a slot's user mapping, without the zero page: runs of (gfn, count, pfn)."""
    first = slot.userspace_addr >> PAGE_SHIFT
    for start, end, (delta, _) in list(vm.mm.ptes.runs(first, first + slot.npages)):
        if delta is not None:
            yield slot.base_gfn + start - first, end - start, start + delta


def _pinned(vm: Vm, start: int, end: int) -> int:
    """How many of the page frames [start, end) are pinned."""
    return sum(e - s for s, e, refs in vm.host.memmap.refs.runs(start, end) if refs >= GUP_PIN_COUNTING_BIAS)
