# SPDX-License-Identifier: GPL-2.0-or-later
"""Taking guest_memfd pages out of the guests that have them (kvm_gmem_invalidate_start, _end).

The caller holds the inode's invalidate lock, so that bindings can't change between start and end.
"""

from __future__ import annotations

from enum import Flag
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .file import GmemFile
    from .inode import GmemInode

__all__ = ["Filter", "both_views", "invalidate_end", "invalidate_start", "keep_attributes", "view_at_creation"]


class Filter(Flag):
    """Which of a guest's views of a range go: enum kvm_gfn_range_filter."""

    SHARED = 1
    PRIVATE = 2


def both_views(inode: GmemInode) -> Filter:
    """What a punch, release or memory error takes away: where pages are converted, a range can be mixed."""
    return Filter.SHARED | Filter.PRIVATE


def view_at_creation(inode: GmemInode) -> Filter:
    """The same before anything could be converted.  Kept where something can, it misses what became private since, and TDX
    or CCA still own the pages that the host gets back (S22)."""
    return Filter.SHARED if inode.init_shared else Filter.PRIVATE


def keep_attributes(inode: GmemInode, start: int, end: int) -> None:
    """A punch takes memory away, and leaves file pages [start, end) private or shared as they were."""


def invalidate_start(files: list[GmemFile], start: int, end: int, filter: Filter) -> None:
    """kvm_gmem_invalidate_start(): in each VM that has file pages [start, end) bound, begin the invalidation and unmap."""
    for file in files:
        ranges = []
        for first, last, slot in file.bindings.runs(start, end):
            delta = slot.live().base_gfn - slot.gmem_pgoff
            ranges.append((first + delta, last + delta))
        if not ranges:
            continue
        vm = file.vm
        with vm.mmu_lock.exclusive:
            vm.mmu.invalidate_begin()
            flush = False
            for first, last in ranges:
                vm.mmu.invalidate_range_add(first, last)
                flush |= vm.arch.unmap_range(first, last, filter)
                vm.arch.invalidate_range(first, last)
            if flush:
                vm.flush_remote_tlbs()


def invalidate_end(files: list[GmemFile], start: int, end: int) -> None:
    """kvm_gmem_invalidate_end(): faults may come in again."""
    for file in files:
        if not file.bindings.empty(start, end):
            with file.vm.mmu_lock.exclusive:
                file.vm.mmu.invalidate_end()
