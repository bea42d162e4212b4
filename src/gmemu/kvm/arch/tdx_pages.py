# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether KVM holds on to pages that are in a secure EPT (discussion B: TDX without pins).

Kernels up to 6.18 take a reference for each.  Since then none is taken: guest_memfd keeps a page until it's out of the
secure EPT, and a removal that fails is a bug after which the VM is dead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from ...rules import KernelError

if TYPE_CHECKING:
    from ..host import Host

__all__ = ["Bug", "HoldPages", "PrivatePages", "TrustGuestMemfd"]

Bug = Callable[[], KernelError]
"""Declare that the TDX module wouldn't let go of a page: the VM is dead."""


class PrivatePages(Protocol):
    """Told of pages as they enter and leave a secure EPT."""

    def mapped(self, host: Host, pfn: int, count: int) -> None:
        """These pages were mapped."""

    def removed(self, host: Host, pfn: int, count: int) -> None:
        """These pages were removed."""

    def not_removed(self, host: Host, pfn: int, count: int, bug: Bug) -> None:
        """The TDX module didn't let go of these pages."""


class TrustGuestMemfd(PrivatePages):
    """No references; a page that wasn't removed goes its way."""

    def mapped(self, host: Host, pfn: int, count: int) -> None:
        pass

    def removed(self, host: Host, pfn: int, count: int) -> None:
        pass

    def not_removed(self, host: Host, pfn: int, count: int, bug: Bug) -> None:
        bug()


class HoldPages(PrivatePages):
    """A reference for each page that is mapped; one that isn't removed is so never freed."""

    def mapped(self, host: Host, pfn: int, count: int) -> None:
        host.memmap.get(pfn, count)

    def removed(self, host: Host, pfn: int, count: int) -> None:
        host.memmap.put(pfn, count)

    def not_removed(self, host: Host, pfn: int, count: int, bug: Bug) -> None:
        bug()
        host.memmap.leaked.set(pfn, pfn + count, True)
