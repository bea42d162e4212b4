# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_SET_MEMORY_ATTRIBUTES2: a range of guest_memfd pages becomes private, or shared, where it is.

The in-place conversion series, v13.  All that can fail comes first, then the point of no return: invalidation begins, the
attribute is stored, invalidation ends.  A conversion that fails has unmapped the host's pages and done nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...hw.memory import PAGE_SHIFT, PAGE_SIZE
from ...invariants import InvariantViolation
from ...mm.filemap import PageCache
from ...mm.uaccess import UserPointer, copy_from_user, copy_to_user
from ...rules import KernelError
from ...rules import gmem as rules
from ...uapi.kvm import KVM_MEMORY_ATTRIBUTE_PRIVATE, kvm_gmem_convert, kvm_memory_attributes2
from .invalidate import Filter, invalidate_end, invalidate_start

if TYPE_CHECKING:
    from ..host import Host
    from .file import GmemFile
    from .inode import GmemInode

__all__ = ["ConversionError", "kvm_gmem_set_attributes"]

_NO_RESERVED = (0,) * 11
_U64 = (1 << 64) - 1


class ConversionError(Exception):
    """A conversion stopped at file page `index`; `error` is what user space gets."""

    def __init__(self, error: KernelError, index: int) -> None:
        super().__init__(error, index)
        self.error, self.index = error, index


def kvm_gmem_set_attributes(file: GmemFile, argp: UserPointer) -> int:
    """The ioctl: checks in the kernel's order, then the conversion.

    On failure of the conversion itself (EAGAIN, ENOMEM) `error_offset` (bytes, from the start of the file) is written
    back; when that write fails the result is EFAULT.  On success nothing is written back.
    """
    attrs = copy_from_user(file.vm.rt.current.mm, kvm_memory_attributes2, argp)
    if attrs.flags:
        raise rules.ATTR_FLAGS(f"flags {attrs.flags:#x}")
    start, end = check_attributes(file, attrs)
    try:
        file.vm.host.design.convert(file.gmem_inode, start, end, attrs.attributes)
    except ConversionError as failed:
        raise with_error_offset(file, attrs, argp, failed) from None
    return 0


def set_attributes_disabled(file: GmemFile, argp: UserPointer) -> int:
    """The ioctl of a kernel that doesn't convert in place."""
    raise rules.ATTR_DISABLED(f"profile {file.vm.profile.name}")


def check_attributes(file: GmemFile, attrs: kvm_memory_attributes2) -> tuple[int, int]:
    """The checks that come after that of the flags.  Returns the range as file pages [start, end).  Raises EINVAL."""
    if attrs.reserved != _NO_RESERVED:
        raise rules.ATTR_RESERVED(f"reserved {attrs.reserved}")
    if not file.vm.arch.has_private_mem:
        raise rules.ATTR_NO_PRIVATE_MEM(f"VM type {file.vm.vm_type.name}")
    if attrs.attributes & ~KVM_MEMORY_ATTRIBUTE_PRIVATE:
        raise rules.ATTR_UNKNOWN(f"attributes {attrs.attributes:#x}")
    offset, size = attrs.offset, attrs.size
    if size == 0 or offset + size > _U64:
        raise rules.ATTR_RANGE(f"offset {offset:#x}, size {size:#x}")
    if (offset | size) & (PAGE_SIZE - 1):
        raise rules.ATTR_UNALIGNED(f"offset {offset:#x}, size {size:#x}")
    inode = file.gmem_inode
    if offset + size > inode.size:
        raise rules.ATTR_EOF(f"offset {offset:#x}, size {size:#x}, file of {inode.size:#x}")
    file.vm.arch.check_conversion(attrs.attributes)
    return offset >> PAGE_SHIFT, (offset + size) >> PAGE_SHIFT


def with_error_offset(
    file: GmemFile, args: kvm_memory_attributes2 | kvm_gmem_convert, argp: UserPointer, failed: ConversionError
) -> KernelError:
    """Copy the structure back with its `error_offset` (bytes): what user space gets.  Raises EFAULT (`mm.uaccess`)."""
    args.error_offset = failed.index << PAGE_SHIFT
    copy_to_user(file.vm.rt.current.mm, argp, args)
    return failed.error


def convert(inode: GmemInode, start: int, end: int, attributes: int) -> None:
    """Give file pages [start, end) the wanted attribute.  Raises `ConversionError`, having changed no attribute."""
    with inode.mapping.invalidate_lock.exclusive:
        convert_locked(inode, start, end, attributes)


def convert_locked(inode: GmemInode, start: int, end: int, attributes: int) -> None:
    """`convert` with the invalidate lock held for writing."""
    host, mapping = inode.host, inode.mapping
    host.rt.reads_each(("attribute", inode), start, end)
    if inode.attributes.covers(start, end, attributes):
        return
    host.design.reserve_attributes(inode, start)
    if attributes:
        host.design.take_from_host(inode, start, end)
    host.design.publish(inode, start, end, attributes)
    if attributes and mapping.i_mmap and mapping.is_mapped(start, end):
        raise InvariantViolation(f"file pages {start:#x}-{end:#x} are private and mapped by the host")


def take_from_host(inode: GmemInode, start: int, end: int) -> None:
    """Unmap the pages from every process, then make sure that nobody holds one.  Raises `ConversionError`.

    In this order: a fault that is past the attribute check has a reference already, which the check finds.
    """
    inode.mapping.unmap_pages(start, end)
    inode.host.design.check_references(inode.host, inode.mapping, start, end)


def publish(inode: GmemInode, start: int, end: int, attributes: int) -> None:
    """The point of no return: guests lose the old view, the attribute is stored, guests may fault in the new view.

    The attribute changes between start and end of the invalidation, so that a fault which saw it either way is retried.
    """
    bound = [file for file in inode.files if not file.bindings.empty(start, end)]
    if bound:
        invalidate_start(bound, start, end, Filter.SHARED if attributes else Filter.PRIVATE)
    if not attributes:
        _make_shared(inode, start, end)
    store_attributes(inode, start, end, attributes)
    if bound:
        invalidate_end(bound, start, end)


def store_attributes(inode: GmemInode, start: int, end: int, attributes: int) -> None:
    """Write the attribute of file pages [start, end)."""
    inode.host.rt.writes_each(("attribute", inode), start, end)
    inode.attributes.set(start, end, attributes)


def reserve_attributes(inode: GmemInode, index: int) -> None:
    """Preallocate what storing the attribute may need (the maple tree's nodes), so that storing can't fail.

    Raises ENOMEM at `index` when the host is told to fail that allocation.
    """
    try:
        inode.host.allocate("gmem-attributes")
    except KernelError as error:
        raise ConversionError(error, index) from error


def _make_shared(inode: GmemInode, start: int, end: int) -> None:
    """kvm_arch_gmem_make_shared() for what is allocated: the trusted entity gives the pages back."""
    for s, e, delta in list(inode.mapping.pages.runs(start, end)):
        inode.host.gmem_make_shared(s + delta, e - s)


def check_references(host: Host, mapping: PageCache, start: int, end: int) -> None:
    """Nobody but the page cache may hold a page that is to become private.

    A count that is too high may be due to LRU batches: drain this CPU's, then every CPU's, each at most once a call.
    Raises `ConversionError` with EAGAIN at the first page that is still held.
    """
    memmap = host.memmap
    drained = 0
    for s, e, delta in list(mapping.pages.runs(start, end)):
        host.rt.reads_each(("refcount",), s + delta, e + delta)
        while not memmap.refs.covers(s + delta, e + delta, 1):
            first, count = next((f, r) for f, _, r in memmap.refs.runs(s + delta, e + delta) if r != 1)
            if drained == 2 or memmap.maybe_dma_pinned(first) or memmap.mapcount(first):
                held = f"file page {first - delta:#x} with {count} references, 1 expected"
                raise ConversionError(rules.ATTR_BUSY(held), max(start, first - delta))
            drained += 1
            host.design.drain(host, drained)


def drain_lru(host: Host, stage: int) -> None:
    """lru_add_drain() on this CPU, then lru_add_drain_all()."""
    if stage == 1:
        host.lru.lru_add_drain(host.rt.current.cpu)
    else:
        host.lru.lru_add_drain_all()
