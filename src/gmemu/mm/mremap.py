# SPDX-License-Identifier: GPL-2.0-or-later
"""mremap() (mm/mremap.c): resize a mapping, or move it with all that it holds.

Since Linux 6.17 a call that only moves takes any number of mappings, gaps between them included (commit d23cb648e365,
"mm/mremap: permit mremap() move of multiple VMAs"), and bad targets are refused before anything is looked up.
"""

from __future__ import annotations

from contextlib import nullcontext, suppress
from typing import NamedTuple

from ..hw.memory import PAGE_SHIFT, PAGE_SIZE
from ..rules import KernelError
from ..rules import mm as rules
from ..uapi.mman import MREMAP_DONTUNMAP, MREMAP_FIXED, MREMAP_MAYMOVE
from .address_space import TASK_SIZE_PAGES, AddressSpace, Vma
from .gup import mm_populate
from .vma import VM_ACCOUNT

__all__ = ["Remap", "do_mremap", "do_mremap_one"]

_U64 = (1 << 64) - 1
_TASK_SIZE = TASK_SIZE_PAGES << PAGE_SHIFT


class Remap(NamedTuple):
    """What is asked, in bytes: `new_address` counts with MREMAP_FIXED, and is a hint with MREMAP_DONTUNMAP alone."""

    address: int
    old_length: int
    new_length: int
    flags: int
    new_address: int = 0
    splits_locked: bool = True
    """What becomes of a locked mapping of which MREMAP_DONTUNMAP moves a part: only that part is unlocked, or all of it."""

    charge: int = 0
    """How many bytes more of private memory are to be committed."""

    @property
    def to_new_address(self) -> bool:
        """vrm_implies_new_addr()."""
        return bool(self.flags & (MREMAP_FIXED | MREMAP_DONTUNMAP))

    @property
    def overlaps(self) -> bool:
        """vrm_overlaps(), in 64-bit numbers."""
        old_end = self.address + self.old_length & _U64
        return old_end > self.new_address and self.new_address + self.new_length > self.address

    def aligned(self) -> Remap:
        """With lengths in whole pages, as 64-bit numbers have them."""
        old, new = ((length + PAGE_SIZE - 1) & -PAGE_SIZE & _U64 for length in (self.old_length, self.new_length))
        return self._replace(old_length=old, new_length=new)


def do_mremap(mm: AddressSpace, asked: Remap) -> int:
    """mremap() since Linux 6.17: the mapping's address afterwards.

    Raises EINVAL, EFAULT and ENOMEM by `mm.mremap.*`, ENOMEM by `mm.mmap.space`.
    """
    asked = asked.aligned()
    _check_flags(asked)
    _check_source(asked)
    if asked.new_length > _TASK_SIZE:
        raise rules.MREMAP_LENGTH(f"new length {asked.new_length:#x}")
    if asked.to_new_address:
        _check_target(asked)
    asked = asked._replace(charge=_kept(asked) or abs(asked.new_length - asked.old_length))
    with mm.mmap_lock.exclusive:
        if asked.flags & MREMAP_FIXED and asked.old_length == asked.new_length:
            return _move_all(mm, asked)
        vma = _find(mm, asked.address)
        if asked.to_new_address:
            _check_resize(vma, asked, min(asked.old_length, asked.new_length))
            result = _to(mm, asked)
        else:
            if asked.new_length > asked.old_length:
                _check_resize(vma, asked, asked.old_length)
            result = _at(mm, vma, asked)
        grown = mm.find_vma(result >> PAGE_SHIFT)
    _populate(mm, grown, result, asked)
    return result


def do_mremap_one(mm: AddressSpace, asked: Remap) -> int:
    """mremap() before Linux 6.17: one mapping at a time.  What lies at a fixed target is gone even if the call then fails.

    Raises as `do_mremap` does.
    """
    _check_flags(asked)  # of lengths as they are given
    asked = asked.aligned()
    _check_source(asked)
    asked = asked._replace(charge=_kept(asked) or max(asked.new_length - asked.old_length, 0))
    with mm.mmap_lock.exclusive:
        vma = _find(mm, asked.address)
        if asked.to_new_address:
            _check_target(asked)
            result = _to(mm, asked)
        else:
            if asked.new_length > asked.old_length:
                _check_resize(vma, asked, asked.old_length)
            result = _at(mm, vma, asked)
        grown = mm.find_vma(result >> PAGE_SHIFT)
    _populate(mm, grown, result, asked)
    return result


# What is refused


def _check_flags(asked: Remap) -> None:
    if asked.flags & ~(MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP):
        raise rules.MREMAP_FLAGS(f"flags {asked.flags:#x}")
    if asked.to_new_address and not asked.flags & MREMAP_MAYMOVE:
        raise rules.MREMAP_MAYMOVE(f"flags {asked.flags:#x}")
    if asked.flags & MREMAP_DONTUNMAP and asked.old_length != asked.new_length:
        raise rules.MREMAP_RESIZE(f"lengths {asked.old_length:#x} and {asked.new_length:#x}")


def _check_source(asked: Remap) -> None:
    if asked.address & (PAGE_SIZE - 1):
        raise rules.MREMAP_ADDRESS(f"address {asked.address:#x}")
    if not asked.new_length:
        raise rules.MREMAP_LENGTH("new length 0")


def _check_target(asked: Remap) -> None:
    """What a new address must be."""
    if asked.new_address & (PAGE_SIZE - 1) or asked.new_address > _TASK_SIZE - asked.new_length:
        raise rules.MREMAP_TARGET(f"address {asked.new_address:#x}, length {asked.new_length:#x}")
    if asked.overlaps:
        raise rules.MREMAP_OVERLAP(f"{asked.address:#x}+{asked.old_length:#x} to {asked.new_address:#x}")


def _find(mm: AddressSpace, address: int) -> Vma:
    vma = mm.find_vma(address >> PAGE_SHIFT)
    if vma is None:
        raise rules.MREMAP_UNMAPPED(f"address {address:#x}")
    return vma


def _check_resize(vma: Vma, asked: Remap, old_length: int) -> None:
    """check_prep_vma(), vma_to_resize()."""
    if not old_length and not vma.shared:
        raise rules.MREMAP_DUPLICATE(f"{vma}")
    if old_length > (vma.end << PAGE_SHIFT) - asked.address:
        raise rules.MREMAP_CROSSES(f"{asked.address:#x}+{old_length:#x} in {vma}")


def _kept(asked: Remap) -> int:
    """What is to be committed anew where the old mapping stays."""
    return asked.new_length if asked.flags & MREMAP_DONTUNMAP else 0


def _check_charge(mm: AddressSpace, vma: Vma, asked: Remap) -> None:
    """vrm_calc_charge(), __vm_enough_memory() as it guesses by default.  Since 6.17 what a move shrinks by counts
    as well."""
    if vma.flags & VM_ACCOUNT and asked.charge >> PAGE_SHIFT > mm.memmap.nr_pages:
        raise rules.MREMAP_CHARGE(f"{asked.charge:#x} bytes, and {mm.memmap.nr_pages} pages in the machine")


# What is done


def _move_all(mm: AddressSpace, asked: Remap) -> int:
    """remap_move(): each mapping in the range, as far from the next as before."""
    end = asked.address + asked.old_length
    at = asked.address
    first = mm.find_vma(at >> PAGE_SHIFT)
    if first is None:
        raise rules.MREMAP_UNMAPPED(f"address {at:#x}")
    while at < end:
        vma = next(iter(mm.overlapping(at >> PAGE_SHIFT, end >> PAGE_SHIFT)), None)
        if vma is None:
            break
        start = max(at, vma.start << PAGE_SHIFT)
        at = min(end, vma.end << PAGE_SHIFT)
        target = asked.new_address + start - asked.address
        part = asked._replace(address=start, old_length=at - start, new_length=at - start, new_address=target)
        part = part._replace(charge=_kept(part))
        _check_resize(vma, part, part.old_length)
        _to(mm, part)
    return asked.new_address


def _to(mm: AddressSpace, asked: Remap) -> int:
    """mremap_to(): to the address that is given, or hinted at."""
    pages = asked.new_length >> PAGE_SHIFT
    if asked.flags & MREMAP_FIXED:
        mm.unmap_region(asked.new_address >> PAGE_SHIFT, (asked.new_address >> PAGE_SHIFT) + pages)
    if asked.old_length > asked.new_length:
        _unmap_tail(mm, asked)
        asked = asked._replace(old_length=asked.new_length)
    vma = _find(mm, asked.address)
    _check_resize(vma, asked, asked.old_length)
    hint = asked.new_address >> PAGE_SHIFT
    start = hint if asked.flags & MREMAP_FIXED else mm.get_unmapped_area(pages, hint)
    return _move(mm, vma, asked, start)


def _at(mm: AddressSpace, vma: Vma, asked: Remap) -> int:
    """mremap_at(): where it is, if that can be."""
    if asked.old_length == asked.new_length:
        return asked.address
    if asked.old_length > asked.new_length:
        _unmap_tail(mm, asked)
        return asked.address
    delta = asked.new_length - asked.old_length >> PAGE_SHIFT
    if vma.end << PAGE_SHIFT == asked.address + asked.old_length and _expandable(mm, vma, delta):
        _check_charge(mm, vma, asked)
        with mm.page_table_lock:
            vma.end += delta
        mm.merge(vma.start, vma.end)
        return asked.address
    if not asked.flags & MREMAP_MAYMOVE:
        raise rules.MREMAP_NO_ROOM(f"{asked.old_length:#x} to {asked.new_length:#x} bytes at {asked.address:#x}")
    return _move(mm, vma, asked, mm.get_unmapped_area(asked.new_length >> PAGE_SHIFT))


def _expandable(mm: AddressSpace, vma: Vma, delta: int) -> bool:
    """vma_expandable()."""
    return vma.end + delta <= TASK_SIZE_PAGES and not mm.overlapping(vma.end, vma.end + delta)


def _unmap_tail(mm: AddressSpace, asked: Remap) -> None:
    """shrink_vma(): what is beyond the new length goes, whatever is mapped there."""
    start, end = asked.address + asked.new_length, asked.address + asked.old_length
    if end > _TASK_SIZE:
        raise rules.MUNMAP_RANGE(f"address {start:#x}, length {end - start:#x}")
    mm.unmap_region(start >> PAGE_SHIFT, end >> PAGE_SHIFT)


def _move(mm: AddressSpace, vma: Vma, asked: Remap, to: int) -> int:
    """move_vma(): a mapping like it from page `to` on, and the pages with it.  With no old pages, a second view."""
    old, pages = asked.address >> PAGE_SHIFT, asked.new_length >> PAGE_SHIFT
    old_end = old + (asked.old_length >> PAGE_SHIFT)
    keep = bool(asked.flags & MREMAP_DONTUNMAP)
    _check_charge(mm, vma, asked)
    if keep and vma.locked and asked.splits_locked:
        vma = mm.isolate(vma, old, old_end)
    moved = Vma(mm, to, to + pages, vma.prot, vma.shared, vma.file, vma.pgoff + old - vma.start)
    moved.mapping, moved.anon_vma, moved.flags = vma.mapping, vma.anon_vma, vma.flags
    moved.locked, moved.dont_copy, moved.wipe_on_fork = vma.locked, vma.dont_copy, vma.wipe_on_fork
    if vma.file is None and not vma.anon_vma:
        moved.pgoff = to
    if moved.file is not None:
        moved.file.get()
    mm.link(moved)
    with moved.mapping.i_mmap_rwsem.exclusive if moved.mapping is not None else nullcontext():
        mm.move_page_tables(old, old_end, to)
    if keep:
        _empty(vma, old, old_end)
    elif old < old_end:
        mm.unmap_region(old, old_end)
    mm.merge(to, to + pages)
    return to << PAGE_SHIFT


def _empty(vma: Vma, start: int, end: int) -> None:
    """dontunmap_complete(): what stays has no pages, so it isn't locked."""
    vma.locked = False
    if (vma.start, vma.end) == (start, end):
        vma.anon_vma = False
        if vma.file is None:
            vma.pgoff = start


def _populate(mm: AddressSpace, vma: Vma | None, address: int, asked: Remap) -> None:
    """mm_populate() of what a locked mapping grew by; pages that can't be had are left out."""
    if vma is None or not vma.locked or asked.new_length <= asked.old_length:
        return
    with suppress(KernelError):
        mm_populate(mm, address + asked.old_length >> PAGE_SHIFT, address + asked.new_length >> PAGE_SHIFT)
