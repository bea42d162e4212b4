# SPDX-License-Identifier: GPL-2.0-or-later
"""The host kernel under pKVM: the hypervisor above it, and what happens when the host touches a page it gave away
(arch/arm64/kvm/pkvm.c, arch/arm64/mm/fault.c)."""

from __future__ import annotations

from errno import EAGAIN
from typing import TYPE_CHECKING

from ..hw.el2.hypervisor import Hypervisor, Owner, PageState
from ..hw.memory import HostStage2Fault
from ..invariants import InvariantViolation, Leak

if TYPE_CHECKING:
    from .host import Host

__all__ = ["PkvmPlatform"]


class PkvmPlatform:
    """The hypervisor of one machine."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.hypervisor = Hypervisor(host.rt, host.memory)
        host.memory.guards.append(self._check_host_access)
        host.memory.kernel_accesses.append(self.kernel_access)
        host.memmap.free_checks.append(self._check_free)

    def _check_host_access(self, pfn: int, count: int, write: bool) -> None:
        """The host's stage 2 refuses loads and stores alike."""
        if not self.hypervisor.host_may_access(pfn, count):
            raise HostStage2Fault(f"pfn {pfn:#x} is {self.hypervisor.owner(pfn)}")

    def kernel_access(self, pfn: int, count: int) -> None:
        """is_spurious_el1_translation_fault(): the kernel touches pages through its linear map.  A guest's is taken back by
        force and the access made again; any other is the end of the kernel."""
        for page in range(pfn, pfn + count):
            if self.hypervisor.host_may_access(page, 1):
                continue
            status = self.hypervisor.force_reclaim_guest_page(page)
            if status not in (0, -EAGAIN):
                raise InvariantViolation(f"the host's kernel dies: access to hypervisor-protected memory, pfn {page:#x}")

    def _check_free(self, pfn: int, count: int) -> None:
        for start, _, entry in self.hypervisor.pages.runs(pfn, pfn + count):
            if entry.state is not PageState.SHARED_OWNED:
                raise InvariantViolation(f"pfn {start:#x}: freed while it's {self.hypervisor.owner(start)}")

    def gmem_reclaim(self, pfn: int, count: int) -> None:
        """Pages leave their guest_memfd: the guests that have them lose them.  What the hypervisor keeps is leaked."""
        for start, end, entry in list(self.hypervisor.pages.runs(pfn, pfn + count)):
            for page in range(start, end) if entry.owner is Owner.GUEST else ():
                if self.hypervisor.reclaim_guest_page(page) not in (0, -EAGAIN):
                    self.host.memmap.leak(page, 1)

    def owner(self, pfn: int) -> str:
        """The host's state of the page, and whose it is."""
        return self.hypervisor.owner(pfn)

    def alloc_pages(self, count: int) -> list[int]:
        """Pages that are going to be donated.  Raises ENOMEM."""
        runs = self.host.memmap.alloc(count)
        return [pfn for start, n in runs for pfn in range(start, start + n)]

    def free_pages(self, pfns: list[int]) -> None:
        """Pages that weren't taken, or came back."""
        for pfn in pfns:
            self.host.memmap.put(pfn)

    def check_quiet(self) -> None:
        """With every VM gone, the host has everything back."""
        for start, end, _ in self.hypervisor.pages.runs():
            raise Leak(f"pfn {start:#x}-{end:#x} is still {self.hypervisor.owner(start)}")
        if self.hypervisor.vms:
            raise Leak("the hypervisor still has a VM")
