# SPDX-License-Identifier: GPL-2.0-or-later
"""What a conversion to private does about a page that somebody still holds, other than to fail (D2)."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING

from ...kvm.guest_memfd.conversion import ConversionError, check_references, convert_locked
from ...kvm.guest_memfd.inode import ATTRIBUTE_PENDING
from ...rules import gmem as rules
from ...uapi.kvm import KVM_MEMORY_ATTRIBUTE_PRIVATE
from .variant import Variant

if TYPE_CHECKING:
    from ...kvm.guest_memfd.inode import GmemInode
    from ...kvm.host import Host
    from ...mm.filemap import PageCache

__all__ = ["VARIANTS", "convert_or_leave_pending", "guest_lookup"]


def _wait_for_references(host: Host, mapping: PageCache, start: int, end: int) -> None:
    """Look again until nobody holds a page.  The invalidate lock is held all the while."""
    while True:
        try:
            return check_references(host, mapping, start, end)
        except ConversionError as held:
            host.rt.wait_for_others(f"references to go: {held.error.found}")


def convert_or_leave_pending(inode: GmemInode, start: int, end: int, attributes: int) -> None:
    """Convert, or leave the pages to neither side until the last reference is gone."""
    with inode.mapping.invalidate_lock.exclusive:
        try:
            convert_locked(inode, start, end, attributes)
        except ConversionError as failed:
            if failed.error.rule is not rules.ATTR_BUSY:
                raise
            inode.host.memmap.put_hooks.append(_Completion(inode))
            inode.host.design.publish(inode, start, end, ATTRIBUTE_PENDING)
            _complete_locked(inode, start, end)  # the last reference may have gone before the hook could see why


class _Completion:
    """Hears of references that go.  Whoever drops one may hold any lock, so the rest is done as task work."""

    def __init__(self, inode: GmemInode) -> None:
        self.inode = inode

    def __call__(self, pfn: int, end: int) -> None:
        inode = self.inode
        for first, last, delta in inode.mapping.pages.runs(0, inode.nr_pages):
            pages = max(first, pfn - delta), min(last, end - delta)
            if pages[0] < pages[1] and not inode.attributes.covers(*pages, 0):
                inode.host.rt.current.work.append(partial(_complete, inode, *pages))


def _complete(inode: GmemInode, start: int, end: int) -> None:
    with inode.mapping.invalidate_lock.exclusive:
        _complete_locked(inode, start, end)


def _complete_locked(inode: GmemInode, start: int, end: int) -> None:
    """What is pending of [start, end) becomes private, if nobody holds it any more."""
    inode.host.rt.reads_each(("attribute", inode), start, end)
    for first, last, value in list(inode.attributes.runs(start, end)):
        if value == ATTRIBUTE_PENDING:
            try:
                convert_locked(inode, first, last, KVM_MEMORY_ATTRIBUTE_PRIVATE)
            except ConversionError:
                continue


def guest_lookup(inode: GmemInode, index: int) -> AbstractContextManager[None]:
    """A page that changes hands is given to no guest.  Raises EFAULT (`gmem.get-pfn.pending`)."""
    inode.host.rt.reads(("attribute", inode, index))
    if inode.attributes[index] == ATTRIBUTE_PENDING:
        raise rules.GET_PFN_PENDING(f"file page {index:#x}")
    return inode.locked_for_lookup(index)


VARIANTS = (
    Variant(
        "refcount-wait",
        "conversion to private waits until nobody holds the page",
        "D2; discussion A",
        lambda d: d._replace(check_references=_wait_for_references),
    ),
    Variant(
        "refcount-third-state",
        "a page that is still held belongs to neither side until its last reference goes, and then becomes private",
        "D2; discussion A",
        lambda d: d._replace(convert=convert_or_leave_pending, guest_lookup=guest_lookup),
    ),
)
