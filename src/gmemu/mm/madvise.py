# SPDX-License-Identifier: GPL-2.0-or-later
"""madvise() (mm/madvise.c): what is refused, and the advice that changes what memory holds or what is mapped.

Advice that only tunes reclaim, fork, dumps or huge pages is accepted where the kernel accepts it, and does nothing.
MADV_HWPOISON works as for a privileged process; MADV_GUARD_INSTALL (Linux 6.13) and MADV_SOFT_OFFLINE are unknown here.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..hw.memory import PAGE_SHIFT, PAGE_SIZE
from ..rules import BusError, MemoryFault
from ..rules import mm as rules
from ..uapi import mman
from ..uapi.errno import EHWPOISON
from .address_space import AddressSpace, Vma
from .file import vfs_fallocate
from .gup import get_user_pages_fast
from .memory_failure import memory_failure
from .vma import VM_DONTDUMP, VM_HUGEPAGE, VM_MERGEABLE, VM_NOHUGEPAGE, VM_RAND_READ, VM_SEQ_READ

__all__ = ["do_madvise"]

_U64 = (1 << 64) - 1
_KNOWN = {*range(mman.MADV_DONTNEED + 1), *range(mman.MADV_FREE, mman.MADV_COLLAPSE + 1), mman.MADV_HWPOISON}
_POPULATE = {mman.MADV_POPULATE_READ: mman.PROT_READ, mman.MADV_POPULATE_WRITE: mman.PROT_WRITE}
_AT_FORK: dict[int, tuple[bool | None, bool | None]] = {
    mman.MADV_DONTFORK: (True, None),
    mman.MADV_DOFORK: (False, None),
    mman.MADV_WIPEONFORK: (None, True),
    mman.MADV_KEEPONFORK: (None, False),
}
"""What becomes of VM_DONTCOPY and VM_WIPEONFORK."""
_FLAGS = {
    mman.MADV_NORMAL: (0, VM_RAND_READ | VM_SEQ_READ),
    mman.MADV_RANDOM: (VM_RAND_READ, VM_SEQ_READ),
    mman.MADV_SEQUENTIAL: (VM_SEQ_READ, VM_RAND_READ),
    mman.MADV_DONTDUMP: (VM_DONTDUMP, 0),
    mman.MADV_DODUMP: (0, VM_DONTDUMP),
    mman.MADV_MERGEABLE: (VM_MERGEABLE, 0),
    mman.MADV_UNMERGEABLE: (0, VM_MERGEABLE),
    mman.MADV_HUGEPAGE: (VM_HUGEPAGE, VM_NOHUGEPAGE),
    mman.MADV_NOHUGEPAGE: (VM_NOHUGEPAGE, VM_HUGEPAGE),
}
"""Advice that only marks the mapping: what it sets, and what it clears."""
_NOT_LOCKED = {mman.MADV_DONTNEED, mman.MADV_FREE, mman.MADV_COLD, mman.MADV_PAGEOUT}


def do_madvise(mm: AddressSpace, address: int, length: int, advice: int) -> None:
    """Advise about `length` bytes from `address`; what comes before a refusal was done.

    Raises EINVAL, ENOMEM for a gap (after the rest was done, but for POPULATE), EACCES, EFAULT, EHWPOISON, and what
    fallocate() does.
    """
    if advice not in _KNOWN:
        raise rules.MADVISE_ADVICE(f"advice {advice}")
    end = address + ((length + PAGE_SIZE - 1) & -PAGE_SIZE)
    if address & (PAGE_SIZE - 1) or end > _U64:
        raise rules.MADVISE_RANGE(f"address {address:#x}, length {length:#x}")
    first, last = address >> PAGE_SHIFT, end >> PAGE_SHIFT
    if advice == mman.MADV_HWPOISON:
        _inject_error(mm, first, last)
    elif advice in _POPULATE:
        _populate(mm, first, last, _POPULATE[advice])
    elif advice == mman.MADV_REMOVE:
        for vma, start, stop in _parts(mm, first, last):
            _remove(vma, start, stop)
    else:
        with mm.mmap_lock.exclusive if advice in _AT_FORK or advice in _FLAGS else mm.mmap_lock.shared:
            for vma, start, stop in _parts(mm, first, last):
                _advise(vma, start, stop, advice)


def _parts(mm: AddressSpace, start: int, end: int) -> Iterator[tuple[Vma, int, int]]:
    """madvise_walk_vmas(): each mapping in pages [start, end) with its part of them.  A gap counts at the end: ENOMEM."""
    at, gap = start, False
    while at < end:
        vma = next(iter(mm.overlapping(at, end)), None)
        if vma is None:
            gap = True
            break
        gap = gap or vma.start > at
        at = min(vma.end, end)
        yield vma, max(vma.start, start), at
    if gap:
        raise rules.MADVISE_UNMAPPED(f"address {start << PAGE_SHIFT:#x}, {end - start} pages")


def _advise(vma: Vma, start: int, end: int, advice: int) -> None:
    """madvise_vma_behavior() for what mmap_lock is held through."""
    if advice in (mman.MADV_FREE, mman.MADV_WIPEONFORK) and vma.file is not None:
        raise rules.MADVISE_ANONYMOUS(f"{vma}")
    if advice in _NOT_LOCKED and vma.locked:
        raise rules.MADVISE_LOCKED(f"{vma}")
    if advice == mman.MADV_COLLAPSE:
        raise rules.MADVISE_COLLAPSE(f"{vma}")
    if advice in (mman.MADV_DONTNEED, mman.MADV_DONTNEED_LOCKED):
        vma.mm.zap_page_range(start, end)
    if advice in _AT_FORK:
        dont_copy, wipe = _AT_FORK[advice]
        vma.mm.set_at_fork(vma, start, end, dont_copy=dont_copy, wipe=wipe)
    elif advice in _FLAGS and not (vma.shared and advice == mman.MADV_MERGEABLE):
        more, fewer = _FLAGS[advice]
        vma.mm.set_flags(vma, start, end, vma.flags & ~fewer | more)


def _remove(vma: Vma, start: int, end: int) -> None:
    """madvise_remove(): punch a hole in the file, as fallocate() does; mmap_lock isn't held then."""
    if vma.locked:
        raise rules.MADVISE_LOCKED(f"{vma}")
    if vma.file is None:
        raise rules.MADVISE_FILE(f"{vma}")
    if not vma.shared:
        raise rules.MADVISE_SHARED(f"{vma}")
    file = vma.file.get()
    try:
        offset, length = vma.pgoff + start - vma.start, end - start
        mode = mman.FALLOC_FL_PUNCH_HOLE | mman.FALLOC_FL_KEEP_SIZE
        vfs_fallocate(file, mode, offset << PAGE_SHIFT, length << PAGE_SHIFT)
    finally:
        file.put()


def _inject_error(mm: AddressSpace, start: int, end: int) -> None:
    """madvise_inject_error(): the memory of pages [start, end) turns bad, one by one until one can't be dealt with.

    Whose page was written has lost data, and is sent SIGBUS at once (kill_procs), whatever the call goes on to return.
    """
    for vpn in range(start, end):
        address = vpn << PAGE_SHIFT
        [(pfn, _)] = get_user_pages_fast(mm, address, 1)
        entry = mm.pte(vpn)
        dirty = entry is not None and entry[1]
        try:
            memory_failure(mm.memmap, pfn)
        finally:
            if dirty:
                raise BusError(rules.POISONED, address, "written data in it")


def _populate(mm: AddressSpace, start: int, end: int, need: int) -> None:
    """madvise_populate(): fault in pages [start, end), for writing or for reading."""
    at = start
    while at < end:
        with mm.mmap_lock.shared:
            vma = mm.find_vma(at)
        if vma is None:
            raise rules.MADVISE_UNMAPPED(f"address {at << PAGE_SHIFT:#x}")
        if not vma.prot & need:
            raise rules.MADVISE_POPULATE(f"{vma}")
        stop = min(vma.end, end)
        try:
            for _ in mm.translate(at << PAGE_SHIFT, stop - at << PAGE_SHIFT, need == mman.PROT_WRITE):
                pass
        except MemoryFault as fault:
            refused = rules.MADVISE_POISON if fault.rule.errno == EHWPOISON else rules.MADVISE_FAULT
            raise refused(str(fault)) from fault
        at = stop
