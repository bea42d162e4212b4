# SPDX-License-Identifier: GPL-2.0-or-later
"""Finding a guest_memfd page: for the host's page fault, for the guest's, and for populate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...mm.file import fput
from ...mm.filemap import Folio
from ...rules import BusError
from ...rules import gmem as rules

if TYPE_CHECKING:
    from ..memslots import Memslot
    from ..vm import Vm
    from .file import GmemFile
    from .inode import GmemInode

__all__ = ["get_pfn_locked", "kvm_gmem_fault_user_mapping", "kvm_gmem_get_pfn", "make_page_private"]


def kvm_gmem_fault_user_mapping(inode: GmemInode, index: int, count: int, address: int) -> Folio:
    """The host touches its mapping: give it the page at `index` (and like ones after it, up to `count`) if it's shared.

    The invalidate lock is held only while the page is looked up; the fault then goes on with the folio's lock and a
    reference, which a conversion can see.  Raises SIGBUS for `address`, or ENOMEM.
    """
    if index >= inode.nr_pages:
        raise BusError(rules.FAULT_EOF, address, f"file page {index:#x} of {inode.nr_pages:#x}")
    mapping = inode.mapping
    with inode.lookup_lock:
        count = inode.shared_run(index, min(count, inode.nr_pages - index))
        if not count:
            raise BusError(rules.FAULT_PRIVATE, address, f"file page {index:#x}, which is private")
        folio = inode.grab_folio(index, count)
    mapping.clear_folio(folio)
    return folio


def get_pfn_locked(file: GmemFile, slot: Memslot, index: int, count: int = 1) -> Folio:
    """__kvm_gmem_get_pfn(): the locked folio at `index`, with a reference; at most `count` like ones.

    Raises EFAULT if the slot isn't the file's any more, EIO if the file knows nothing of it, EHWPOISON, ENOMEM.
    """
    file.vm.rt.reads(("slot-file", slot))
    if slot.gmem_file is not file:
        raise rules.GET_PFN_CLOSED(f"slot {slot.id}")
    if file.bindings[index] is not slot:
        raise rules.GET_PFN_BINDING(f"slot {slot.id}, file page {index:#x}")
    folio = file.gmem_inode.grab_folio(index, count)
    if not file.vm.host.memmap.sound(folio.pfn, 1):
        file.gmem_inode.mapping.unlock_folio(folio)
        file.gmem_inode.mapping.put_folio(folio)
        raise rules.GET_PFN_POISON(f"file page {index:#x}")
    return folio


def make_page_private(vm: Vm, inode: GmemInode, slot: Memslot, gfn: int, pfn: int) -> None:
    """kvm_gmem_make_private(): if the page that a fault found is private the trusted entity is told.  Raises what it raises.

    A shared one is the host's as well, and must stay out of the entity's hands (S25).
    """
    if inode.private_run(slot.gmem_index(gfn), 1):
        vm.arch.make_private(gfn, pfn, 1)


def kvm_gmem_get_pfn(vm: Vm, slot: Memslot, gfn: int) -> int:
    """The page frame for `gfn`, zeroed if never used, and made private for the trusted entity if it's to be.

    The caller gets a reference to the page.  Raises EFAULT if the file was closed, EHWPOISON, ENOMEM, or what making it
    private raises.
    """
    file = vm.gmem_file_of(slot)
    if file is None:
        raise rules.GET_PFN_CLOSED(f"slot {slot.id}")
    inode, index = file.gmem_inode, slot.gmem_index(gfn)
    mapping = inode.mapping
    try:
        with vm.host.design.guest_lookup(inode, index):
            folio = get_pfn_locked(file, slot, index)
            try:
                mapping.clear_folio(folio)
                vm.host.design.make_private(vm, inode, slot, gfn, folio.pfn)
            except BaseException:
                mapping.unlock_folio(folio)
                mapping.put_folio(folio)
                raise
            mapping.unlock_folio(folio)
        return folio.pfn
    finally:
        fput(vm.rt, file)
