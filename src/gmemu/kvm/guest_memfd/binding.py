# SPDX-License-Identifier: GPL-2.0-or-later
"""Which slot uses which part of a guest_memfd (kvm_gmem_bind, kvm_gmem_unbind)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...hw.memory import PAGE_SHIFT, PAGE_SIZE
from ...rules import KernelError
from ...rules import gmem as rules

if TYPE_CHECKING:
    from ..memslots import Memslot
    from ..vm import Vm

__all__ = ["kvm_gmem_bind", "kvm_gmem_unbind"]

KVM_MEMSLOT_GMEM_ONLY = 1 << 17


def kvm_gmem_bind(vm: Vm, slot: Memslot, fd: int, offset: int) -> None:
    """Bind `slot` to the guest_memfd `fd` from `offset` (bytes).  No reference is kept: the file holds the VM, not the
    other way round.

    Raises EBADF, EINVAL, or for a range that is bound already EEXIST (EINVAL before it had an errno of its own); ENOMEM, and
    then nothing was stored (S18).
    """
    from .file import GmemFile

    try:
        file = vm.rt.current.process.file(fd & 0xFFFFFFFF)
    except KernelError:
        raise rules.BIND_FD(f"fd {fd}") from None
    if not isinstance(file, GmemFile):
        raise rules.BIND_NOT_GMEM(f"fd {fd} is {file.name}")
    if file.vm is not vm:
        raise rules.BIND_OTHER_VM(f"fd {fd}")
    inode = file.gmem_inode
    size = slot.npages << PAGE_SHIFT
    if offset & (PAGE_SIZE - 1) or not _ends_within(vm, offset, size, inode.size):
        raise rules.BIND_RANGE(f"offset {offset:#x}, slot of {size:#x}, file of {inode.size:#x}")
    with inode.mapping.invalidate_lock.exclusive:
        start = offset >> PAGE_SHIFT
        if not file.bindings.empty(start, start + slot.npages):
            taken = next(file.bindings.runs(start, start + slot.npages))[2]
            refused = rules.BIND_OVERLAP if vm.profile.bind_overlap_is_eexist else rules.BIND_OVERLAP_OLD
            raise refused(f"file pages {start:#x}-{start + slot.npages:#x} meet those of {taken}")
        vm.host.allocate("gmem-bindings")
        vm.rt.writes(("slot-file", slot))
        slot.gmem_file, slot.gmem_pgoff = file, start
        if vm.profile.gmem_only_slots == "always" or (vm.profile.gmem_only_slots == "mmap" and inode.flags & 1):
            slot.flags |= KVM_MEMSLOT_GMEM_ONLY
        file.bindings.set(start, start + slot.npages, slot)


def _ends_within(vm: Vm, offset: int, size: int, file_size: int) -> bool:
    """Whether offset + size is within the file.  6.18 adds them as signed numbers (S17)."""
    end = offset + size
    if not vm.profile.bind_offset_is_unsigned:
        offset = offset - (1 << 64) if offset >> 63 else offset
        end = offset + size & (1 << 64) - 1
        return offset >= 0 and (end >= 1 << 63 or end <= file_size)
    return end <= file_size


def kvm_gmem_unbind(vm: Vm, slot: Memslot) -> None:
    """The slot is gone; nobody can see it any more.  A file that was closed already has no bindings left."""
    file = slot.gmem_file
    if file is None:
        return
    with file.gmem_inode.mapping.invalidate_lock.exclusive:
        vm.rt.writes(("slot-file", slot))
        file.bindings.clear(slot.gmem_pgoff, slot.gmem_pgoff + slot.npages)
        slot.gmem_file = None
