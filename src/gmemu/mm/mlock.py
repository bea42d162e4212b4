# SPDX-License-Identifier: GPL-2.0-or-later
"""mlock() and munlock() (mm/mlock.c).  RLIMIT_MEMLOCK is that of a privileged process: none."""

from __future__ import annotations

from ..hw.memory import PAGE_SHIFT, PAGE_SIZE
from ..rules import KernelError
from ..rules import mm as rules
from .address_space import AddressSpace
from .gup import mm_populate

__all__ = ["do_mlock", "do_munlock"]

_U64 = (1 << 64) - 1


def do_mlock(mm: AddressSpace, address: int, length: int) -> None:
    """Lock the pages that [address, address + length) bytes touch, and fault them in.

    Raises EINVAL (`mm.mlock.wrap`), ENOMEM (`mm.mlock.unmapped`, what comes before the gap is locked; `mm.mlock.fault`, all
    is), EAGAIN (`mm.mlock.oom`).
    """
    start, end = _pages(address, length)
    with mm.mmap_lock.exclusive:
        _apply(mm, start, end, locked=True)
    try:
        mm_populate(mm, start, end)
    except KernelError as error:
        refused = rules.MLOCK_OOM if error.rule is rules.OUT_OF_MEMORY else rules.MLOCK_FAULT
        raise refused(str(error)) from error


def do_munlock(mm: AddressSpace, address: int, length: int) -> None:
    """Unlock them.  Raises EINVAL (`mm.mlock.wrap`), ENOMEM (`mm.mlock.unmapped`)."""
    start, end = _pages(address, length)
    with mm.mmap_lock.exclusive:
        _apply(mm, start, end, locked=False)


def _pages(address: int, length: int) -> tuple[int, int]:
    """The pages that the bytes touch, in 64-bit numbers: one that wraps to nothing is nothing."""
    length = (length + (address & (PAGE_SIZE - 1)) + PAGE_SIZE - 1) & -PAGE_SIZE & _U64
    start = address & -PAGE_SIZE & _U64
    if start + length > _U64:
        raise rules.MLOCK_WRAP(f"address {address:#x}, length {length:#x}")
    return start >> PAGE_SHIFT, start + length >> PAGE_SHIFT


def _apply(mm: AddressSpace, start: int, end: int, *, locked: bool) -> None:
    """apply_vma_lock_flags(): mapping by mapping, up to the first gap."""
    at = start
    while at < end:
        vma = mm.find_vma(at)
        if vma is None:
            raise rules.MLOCK_UNMAPPED(f"address {at << PAGE_SHIFT:#x}")
        stop = min(vma.end, end)
        if vma.locked != locked:
            mm.isolate(vma, at, stop).locked = locked
            mm.merge(at, stop)
        at = stop
