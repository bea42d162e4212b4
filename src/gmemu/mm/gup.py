# SPDX-License-Identifier: GPL-2.0-or-later
"""get_user_pages: take references on the pages behind user addresses (mm/gup.c)."""

from __future__ import annotations

from ..hw.memory import PAGE_SHIFT
from ..rules import KernelError, MemoryFault
from ..rules import mm as rules
from ..uapi.mman import FOLL_HWPOISON, FOLL_PIN, FOLL_WRITE, GUP_PIN_COUNTING_BIAS, PROT_WRITE
from .address_space import AddressSpace

__all__ = ["get_user_pages_fast", "mm_populate", "pin_user_pages_remote", "put_pages"]


def get_user_pages_fast(mm: AddressSpace, address: int, count: int, flags: int = 0) -> list[tuple[int, int]]:
    """Reference `count` pages from user `address` (page aligned, bytes): runs of (pfn, count), in order.

    With FOLL_PIN each page gets GUP_PIN_COUNTING_BIAS references (release with `Memmap.unpin`), else one.  Nothing is held
    when it fails, with EFAULT (`mm.gup.fault`), ENOMEM, or, for those who ask with FOLL_HWPOISON, EHWPOISON.
    """
    runs: list[tuple[int, int]] = []
    vpn, end = address >> PAGE_SHIFT, (address >> PAGE_SHIFT) + count
    try:
        while vpn < end:
            pfn, have = _get_run(mm, vpn, min(end - vpn, mm.rt.batch(end - vpn)), flags)
            runs.append((pfn, have))
            vpn += have
    except BaseException:
        put_pages(mm, runs, flags)
        raise
    return runs


def pin_user_pages_remote(mm: AddressSpace, address: int, flags: int = 0) -> int:
    """pin_user_pages_remote() of the page at user `address` (page aligned, bytes): its page frame, pinned.

    Unlike the fast way it asks the mapping first (check_vma_flags), so what may be written and not read can't be read.
    Raises as `get_user_pages_fast` does.
    """
    with mm.mmap_lock.shared:
        mm.check_vma_flags(address >> PAGE_SHIFT, bool(flags & FOLL_WRITE))
    [(pfn, _)] = get_user_pages_fast(mm, address, 1, flags | FOLL_PIN)
    return pfn


def mm_populate(mm: AddressSpace, start: int, end: int) -> None:
    """__mm_populate(): fault in what is mapped of pages [start, end), for writing where that makes private copies.

    Raises EFAULT (`mm.gup.fault`) and ENOMEM (`mm.page.oom`) at the first page that can't be had.
    """
    at = start
    while at < end:
        with mm.mmap_lock.shared:
            vma = next(iter(mm.overlapping(at, end)), None)
        if vma is None:
            return
        if not vma.prot:
            raise rules.GUP_FAULT(f"{vma} under PROT_NONE")
        at, stop = max(at, vma.start), min(end, vma.end)
        write = not vma.shared and bool(vma.prot & PROT_WRITE)
        try:
            for _ in mm.translate(at << PAGE_SHIFT, stop - at << PAGE_SHIFT, write):
                pass
        except MemoryFault as fault:
            raise _errno_of(fault, 0) from fault
        at = stop


def put_pages(mm: AddressSpace, runs: list[tuple[int, int]], flags: int = 0) -> None:
    """put_page() or unpin_user_page() for what `get_user_pages_fast` gave."""
    for pfn, count in runs:
        (mm.memmap.unpin if flags & FOLL_PIN else mm.memmap.put)(pfn, count)


def _get_run(mm: AddressSpace, vpn: int, count: int, flags: int) -> tuple[int, int]:
    """One run.  Lockless while the page table entry stays as it was around taking the reference; else by a fault."""
    write, by = bool(flags & FOLL_WRITE), GUP_PIN_COUNTING_BIAS if flags & FOLL_PIN else 1
    memmap = mm.memmap
    while True:
        entry = mm.pte(vpn)
        if entry is None or (write and not entry[1]):
            _fault_in(mm, vpn, count, write, flags)
            continue
        pfn = entry[0]
        if pfn == memmap.zero_pfn:  # which the fast way leaves to the slow one
            with mm.mmap_lock.shared:
                mm.check_vma_flags(vpn, write)
        _, end, found = mm.ptes.run(vpn)
        have = 1 if pfn == memmap.zero_pfn or found is None else min(count, end - vpn)
        if not memmap.try_get(pfn, have, by):
            continue
        if mm.pte(vpn) == entry:
            return pfn, have
        memmap.put(pfn, have, by)  # the entry changed under us: what was referenced may not be ours


def _fault_in(mm: AddressSpace, vpn: int, count: int, write: bool, flags: int) -> None:
    """faultin_page()."""
    try:
        mm.faultin_page(vpn, count, write)
    except MemoryFault as fault:
        raise _errno_of(fault, flags) from fault


def _errno_of(fault: MemoryFault, flags: int) -> KernelError:
    """vm_fault_to_errno()."""
    if fault.rule is rules.FAULT_OOM:
        return rules.OUT_OF_MEMORY(str(fault))
    if fault.rule is rules.POISONED and flags & FOLL_HWPOISON:
        return rules.GUP_POISON(f"address {fault.address:#x}")
    return rules.GUP_FAULT(str(fault))
