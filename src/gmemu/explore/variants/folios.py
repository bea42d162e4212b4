# SPDX-License-Identifier: GPL-2.0-or-later
"""Large folios handled otherwise (profile rfc-2025-05)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from ...kvm.guest_memfd.conversion import convert_locked
from ...kvm.guest_memfd.large import LargeFolioInode, folio_of
from .variant import Variant

if TYPE_CHECKING:
    from ...kvm.guest_memfd.inode import GmemInode
    from ...kvm.memslots import Memslot
    from ...kvm.vm import Vm

__all__ = ["VARIANTS"]


def _first_page_private(vm: Vm, inode: GmemInode, slot: Memslot, gfn: int, pfn: int) -> None:
    """Tell the trusted entity of the folio's first page."""
    if inode.private_run(slot.gmem_index(gfn), 1):
        start, _ = folio_of(slot, gfn)
        vm.arch.make_private(start, pfn - (gfn - start), 1)


def _nobody_waits(inode: LargeFolioInode) -> AbstractContextManager[object]:
    """Whoever needs a folio allocates it."""
    return nullcontext()


def _spin(inode: LargeFolioInode, first: int, last: int) -> None:
    """Look again until nobody holds the folio.  The invalidate lock is held all the while."""
    while inode.held(first, last):
        inode.host.rt.wait_for_others(f"references to a folio to go: file pages {first:#x}-{last:#x}")


def _freeze_nothing(inode: LargeFolioInode, first: int, last: int) -> None:
    """Split or merge whatever the count says."""
    inode.held(first, last)


def _convert_and_stay(inode: GmemInode, start: int, end: int, attributes: int) -> None:
    """A folio that can't be restructured leaves the new attributes in place."""
    with inode.mapping.invalidate_lock.exclusive:
        convert_locked(inode, start, end, attributes)
        if isinstance(inode, LargeFolioInode):
            inode.restructure(start, end)


_RFC = "1G page support for guest_memfd, RFC v2 of May 2025"

VARIANTS = (
    Variant(
        "make-private-first-page",
        "of a large folio that a guest's fault maps, only the first page is made private",
        "S24; fixed by fb50ca77b672, which passes the number of pages",
        lambda d: d._replace(make_private=_first_page_private),
    ),
    Variant(
        "folio-allocated-twice",
        "two faults on one large folio that has no memory allocate it at once",
        f"S29; {_RFC}: hugetlb_fault_mutex_table is what prevents it",
        lambda d: d._replace(folio_mutex=_nobody_waits),
    ),
    Variant(
        "split-spins",
        "whoever splits or merges a large folio tries again until nobody holds it",
        f"S30; {_RFC}",
        lambda d: d._replace(freeze_folio=_spin),
    ),
    Variant(
        "split-without-freeze",
        "a large folio is split or merged although somebody holds it",
        f"S30; {_RFC}: folio_ref_freeze() is what prevents it",
        lambda d: d._replace(freeze_folio=_freeze_nothing),
    ),
    Variant(
        "split-keeps-attributes",
        "a conversion whose folio can't be split or merged fails without putting the attributes back",
        f"guest-memfd 3.6; {_RFC}",
        lambda d: d._replace(convert=_convert_and_stay),
    ),
)
