# SPDX-License-Identifier: GPL-2.0-or-later
"""The design decisions that can be made otherwise, each a component.

A profile chooses the defaults; a variant replaces one.  Code calls the component and has no ``if`` for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, NamedTuple

from ..uapi.kvm import (
    KVM_GMEM_CONVERT_PRIVATE,
    KVM_GMEM_CONVERT_SHARED,
    KVM_MEM_GUEST_MEMFD,
    KVM_MEM_READONLY,
    KVM_SET_MEMORY_ATTRIBUTES2,
)
from .arch.snp_rmp_fault import handle_rmp_fault, handle_rmp_fault_unchecked
from .arch.tdx_map import map_private_pfn
from .arch.tdx_pages import HoldPages, PrivatePages, TrustGuestMemfd
from .guest_memfd import binding, content, conversion, convert, fault, inode, invalidate, large, populate
from .guest_memfd.unshare import Unshare
from .mmu import is_page_fault_stale, map_one_page, may_prefault

if TYPE_CHECKING:
    from ..mm.filemap import Folio, PageCache
    from ..mm.uaccess import UserPointer
    from ..profiles import Profile
    from .arch.base import VmArch
    from .arch.snp import SnpVm
    from .arch.tdx import TdxVm
    from .guest_memfd.file import GmemFile
    from .guest_memfd.inode import GmemInode
    from .guest_memfd.invalidate import Filter
    from .guest_memfd.large import LargeFolioInode
    from .guest_memfd.populate import PopulateCallback
    from .host import Host
    from .memslots import Memslot
    from .mmu import PageFault
    from .vcpu import Vcpu
    from .vm import Vm

__all__ = ["Design"]


_GMEM_IOCTLS: dict[str, dict[int, Callable[[GmemFile, UserPointer], int]]] = {
    "vm": {KVM_SET_MEMORY_ATTRIBUTES2: conversion.set_attributes_disabled},
    "attributes2": {KVM_SET_MEMORY_ATTRIBUTES2: conversion.kvm_gmem_set_attributes},
    "convert": {
        KVM_GMEM_CONVERT_SHARED: convert.kvm_gmem_convert_shared,
        KVM_GMEM_CONVERT_PRIVATE: convert.kvm_gmem_convert_private,
    },
    "content": {KVM_SET_MEMORY_ATTRIBUTES2: content.kvm_gmem_set_attributes_content},
}


def _map_gpa_range_exit(
    vcpu: Vcpu, gpa: int, npages: int, attributes: int, complete: Callable[[int], int], flags: int
) -> int:
    """User space converts, or refuses."""
    from .run import map_gpa_range_exit

    return map_gpa_range_exit(vcpu, gpa, npages, attributes, complete, flags)


class Design(NamedTuple):
    """One way to build it."""

    populate: Callable[[Vm, int, int, int, bool, PopulateCallback], int]
    """(vm, gfn, source, npages, writeback, callback) -> pages done"""
    target_is_source: bool
    """source address 0 stands for the page that is to be populated itself"""
    zero_before_populate: Callable[[PageCache, Folio], None]
    gmem_ioctls: Mapping[int, Callable[[GmemFile, UserPointer], int]]
    """the conversion calls of a guest_memfd, by ioctl number"""
    check_creation: Callable[[int, int], None]
    """(size, flags) of a guest_memfd, beyond what every kernel checks"""
    new_inode: Callable[[Host, int, int], GmemInode]
    """(host, size, flags)"""
    convert: Callable[[GmemInode, int, int, int], None]
    """(inode, start, end, attributes)"""
    reserve_attributes: Callable[[GmemInode, int], None]
    take_from_host: Callable[[GmemInode, int, int], None]
    publish: Callable[[GmemInode, int, int, int], None]
    """(inode, start, end, attributes): invalidate, store, end the invalidation"""
    check_references: Callable[[Host, PageCache, int, int], None]
    drain: Callable[[Host, int], None]
    """(host, 1 for this CPU's LRU batches, 2 for everybody's)"""
    filter_for_removal: Callable[[GmemInode], Filter]
    punched: Callable[[GmemInode, int, int], None]
    """(inode, start, end): pages lost their memory; the invalidate lock is held for writing"""
    is_page_fault_stale: Callable[[Vm, PageFault], bool]
    mapping_range: Callable[[Vm, PageFault], tuple[int, int]]
    """the guest frames [start, end) that a fault on one of them maps, all of them contiguous where they are backed"""
    make_private: Callable[[Vm, GmemInode, Memslot, int, int], None]
    """(vm, inode, slot, gfn, pfn): a fault found a page; of a private one the trusted entity is told before it's mapped"""
    folio_mutex: Callable[[LargeFolioInode], AbstractContextManager[object]]
    """what is held while a large folio is allocated"""
    freeze_folio: Callable[[LargeFolioInode, int, int], None]
    """(inode, first, last): a large folio is about to be split, or pages to be merged to one: nobody may hold any of it"""
    private_pages: PrivatePages
    """what TDX does to pages that are in a secure EPT"""
    map_private_pfn: Callable[[TdxVm, int, int], None]
    """(td, gfn, pfn): map a page that is being populated"""
    handle_rmp_fault: Callable[[SnpVm, int], None]
    """(sev, gfn)"""
    content_modes: Callable[[VmArch, bool], int]
    """(arch, towards private): what RFC v5's conversions promise of the contents"""
    map_gpa_range: Callable[[Vcpu, int, int, int, Callable[[int], int], int], int]
    """(vcpu, gpa, pages, attributes, complete, flags): a guest that isn't encrypted asks for a conversion"""
    unshare: Unshare
    """how a protected guest of pKVM gets a page of guest_memfd back"""
    guest_lookup: Callable[[GmemInode, int], AbstractContextManager[None]]
    """(inode, index): what a guest's fault holds while it looks a page up"""
    may_prefault: Callable[[VmArch], bool]
    unbind: Callable[[Vm, Memslot], None]
    """a slot is being deleted"""
    fixed_slot_flags: int
    """flags of a memslot that can't be changed"""

    @classmethod
    def of(cls, profile: Profile) -> Design:
        """What `profile` does."""
        return cls(
            populate=populate.populate_locked if profile.populate == "locked" else populate.populate_gup_first,
            target_is_source=profile.null_source,
            zero_before_populate=populate.zero_before_populate,
            gmem_ioctls=_GMEM_IOCTLS[profile.conversion],
            check_creation=large.check_creation if profile.conversion == "convert" else inode.check_creation,
            new_inode=large.new_inode if profile.conversion == "convert" else inode.GmemInode,
            convert=large.convert if profile.conversion == "convert" else conversion.convert,
            reserve_attributes=conversion.reserve_attributes,
            take_from_host=conversion.take_from_host,
            publish=conversion.publish,
            check_references=conversion.check_references,
            drain=conversion.drain_lru,
            filter_for_removal=invalidate.both_views if profile.removal_filter == "both" else invalidate.view_at_creation,
            punched=invalidate.keep_attributes,
            is_page_fault_stale=is_page_fault_stale,
            mapping_range=large.map_folio if profile.conversion == "convert" else map_one_page,
            make_private=large.make_folio_private if profile.conversion == "convert" else fault.make_page_private,
            folio_mutex=large.fault_mutex,
            freeze_folio=large.freeze_folio,
            private_pages=HoldPages() if profile.populate == "locked" else TrustGuestMemfd(),
            map_private_pfn=map_private_pfn,
            handle_rmp_fault=handle_rmp_fault if profile.in_place else handle_rmp_fault_unchecked,
            content_modes=content.content_modes,
            map_gpa_range=_map_gpa_range_exit,
            unshare=Unshare(),
            guest_lookup=inode.GmemInode.locked_for_lookup,
            may_prefault=may_prefault,
            unbind=binding.kvm_gmem_unbind,
            fixed_slot_flags=KVM_MEM_READONLY | KVM_MEM_GUEST_MEMFD,
        )
