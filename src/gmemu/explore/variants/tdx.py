# SPDX-License-Identifier: GPL-2.0-or-later
"""TDX done otherwise: how pages get into the secure EPT, and who holds them while they are there (discussion B)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ...kvm.arch.tdx_map import map_private_pfn
from ...kvm.arch.tdx_pages import HoldPages, TrustGuestMemfd
from ...kvm.guest_memfd.fault import kvm_gmem_get_pfn
from ...rules import KernelError
from ...rules import tdx as rules
from .variant import Variant

if TYPE_CHECKING:
    from ...kvm.arch.tdx import TdxVm
    from ...kvm.arch.tdx_pages import Bug
    from ...kvm.host import Host

__all__ = ["VARIANTS"]


def _map_through_fault(td: TdxVm, gfn: int, pfn: int) -> None:
    """Find the page as a guest's fault would, which takes the invalidate lock that populate holds."""
    slot = td.vm.find_slot(gfn)
    assert slot is not None
    found = kvm_gmem_get_pfn(td.vm, slot, gfn)
    try:
        map_private_pfn(td, gfn, found)
    finally:
        td.vm.host.memmap.put(found)


def _spurious_is_success(td: TdxVm, gfn: int, pfn: int) -> None:
    """A page that is mapped already is as good as one that was mapped now."""
    try:
        map_private_pfn(td, gfn, pfn)
    except KernelError as error:
        if error.rule is not rules.DOUBLE_ADD:
            raise


class _Ignore(TrustGuestMemfd):
    """The page goes its way, and so does the VM."""

    def not_removed(self, host: Host, pfn: int, count: int, bug: Bug) -> None:
        pass


class _HoldOnFailure(TrustGuestMemfd):
    """A reference is taken only for a page that wasn't removed, which is so never freed."""

    def not_removed(self, host: Host, pfn: int, count: int, bug: Bug) -> None:
        bug()
        host.memmap.leak(pfn, count)


class _Flag(TrustGuestMemfd):
    """A page that wasn't removed is marked; whoever takes it out of the page cache sees that, and keeps it."""

    def not_removed(self, host: Host, pfn: int, count: int, bug: Bug) -> None:
        bug()
        for inode in host.gmem_inodes:
            inode.mapping.free_folio = _unless_marked(host, range(pfn, pfn + count), inode.mapping.free_folio)


def _unless_marked(host: Host, marked: range, free_folio: Callable[[int, int], None] | None) -> Callable[[int, int], None]:
    def free(pfn: int, count: int) -> None:
        for page in range(max(pfn, marked.start), min(pfn + count, marked.stop)):
            host.memmap.leak(page, 1)
        if free_folio is not None:
            free_folio(pfn, count)

    return free


class _Poison(TrustGuestMemfd):
    """A page that wasn't removed is treated as memory that went bad."""

    def not_removed(self, host: Host, pfn: int, count: int, bug: Bug) -> None:
        bug()
        host.memmap.poisoned.update(range(pfn, pfn + count))
        host.memmap.leak(pfn, count)


VARIANTS = (
    Variant(
        "populate-maps-through-fault",
        "TDX maps a page that is being populated by the guest's fault path",
        "S02; fixed by kvm_tdp_mmu_map_private_pfn()",
        lambda d: d._replace(map_private_pfn=_map_through_fault),
    ),
    Variant(
        "spurious-is-success",
        "adding a page that is in the secure EPT already succeeds, and measures it again",
        "discussion E; S19",
        lambda d: d._replace(map_private_pfn=_spurious_is_success),
    ),
    Variant(
        "tdx-pins-private",
        "a reference is held for each page in the secure EPT",
        "discussion B; D5; kernels up to 6.18",
        lambda d: d._replace(private_pages=HoldPages()),
    ),
    Variant(
        "tdx-holds-on-failure",
        "a reference is taken only when removal from the secure EPT fails",
        "discussion B; D5",
        lambda d: d._replace(private_pages=_HoldOnFailure()),
    ),
    Variant(
        "tdx-flags-on-failure",
        "a page whose removal from the secure EPT failed is flagged, and kept when it would be freed",
        "discussion B; D5",
        lambda d: d._replace(private_pages=_Flag()),
    ),
    Variant(
        "tdx-poisons-on-failure",
        "a page whose removal from the secure EPT failed is marked as bad memory",
        "discussion B; D5",
        lambda d: d._replace(private_pages=_Poison()),
    ),
    Variant(
        "tdx-ignores-failure",
        "a removal from the secure EPT that fails has no consequence",
        "discussion B; S42",
        lambda d: d._replace(private_pages=_Ignore()),
    ),
)
