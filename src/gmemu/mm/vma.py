# SPDX-License-Identifier: GPL-2.0-or-later
"""Which mappings the kernel keeps as one (mm/vma.c): a program sees it where a call takes no more than one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .file import fput

if TYPE_CHECKING:
    from .address_space import AddressSpace, Vma

__all__ = [
    "VM_ACCOUNT",
    "VM_DONTDUMP",
    "VM_HUGEPAGE",
    "VM_MERGEABLE",
    "VM_NOHUGEPAGE",
    "VM_NORESERVE",
    "VM_RAND_READ",
    "VM_SEQ_READ",
    "vma_merge",
]

VM_SEQ_READ = 1 << 15
VM_RAND_READ = 1 << 16
VM_ACCOUNT = 1 << 20
VM_NORESERVE = 1 << 21
VM_DONTDUMP = 1 << 26
VM_HUGEPAGE = 1 << 29
VM_NOHUGEPAGE = 1 << 30
VM_MERGEABLE = 1 << 31


def vma_merge(mm: AddressSpace, start: int, end: int) -> None:
    """vma_merge_existing_range(): make one of neighbours in and beside [start, end) pages that nothing tells apart.

    The caller holds mmap_lock for writing.  Anonymous pages are taken to be of one anon_vma, as they are unless neighbours
    were written to while something else lay between them.
    """
    near = [vma for vma in mm.vmas if vma.start <= end and start <= vma.end]
    if not near:
        return
    kept = near[0]
    for vma in near[1:]:
        if _mergeable(kept, vma):
            _absorb(mm, kept, vma)
        else:
            kept = vma


def _mergeable(before: Vma, after: Vma) -> bool:
    """can_vma_merge_after()."""
    return (
        before.end == after.start
        and before.file is after.file
        and before.pgoff + before.end - before.start == after.pgoff
        and _flags(before) == _flags(after)
    )


def _flags(vma: Vma) -> tuple[object, ...]:
    """vm_flags."""
    return vma.prot, vma.shared, vma.locked, vma.dont_copy, vma.wipe_on_fork, vma.flags


def _absorb(mm: AddressSpace, kept: Vma, gone: Vma) -> None:
    """commit_merge(): the file sees both or one, never neither."""
    if gone.mapping is None:
        kept.end = gone.end
    else:
        with gone.mapping.i_mmap_rwsem.exclusive:
            kept.end = gone.end
            gone.mapping.i_mmap.remove(gone)
    mm.vmas.remove(gone)
    kept.anon_vma |= gone.anon_vma
    if gone.file is not None:
        fput(mm.rt, gone.file)
