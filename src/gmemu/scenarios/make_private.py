# SPDX-License-Identifier: GPL-2.0-or-later
"""What guests are given: all of a large private folio, nothing of a shared page, and no folio twice."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ..explore.verdict import Kind
from ..kvm.guest_memfd.large import LargeFolioInode
from .worlds import LARGE_PRIVATE, PAGE, OneFolio, SnpFinal

if TYPE_CHECKING:
    from ..hw.guest_cpu import GuestCpu

__all__ = ["FolioAllocatedTwice", "MakePrivate", "SharedPrepared"]


class MakePrivate(SnpFinal):
    """Two faults on a folio of 2 MiB: a guest validates it and uses page 1, another vCPU is told to map page 2 beforehand.

    Whatever isn't assigned to the guest in the RMP is met by it in fault after fault, as KVM finds the page mapped already.
    """

    number = 17
    name = "make-private"
    question = "Does a guest get all of a large folio that it was given?"
    source = "guest-memfd S24"
    broken_by = {"make-private-first-page": Kind.LIVELOCK}
    profile = "rfc-2025-05"
    pages = 512
    flags = LARGE_PRIVATE

    def tasks(self) -> None:
        self.gmem.allocate(0, self.pages * PAGE)
        self.task("vcpu", lambda: self.vcpus[0].run(self.guest).reason.name)
        self.task("prefault", lambda: self.vcpus[1].pre_fault(2 * PAGE, PAGE))

    def guest(self, cpu: GuestCpu) -> None:
        """Validate the 2 MiB, or page 1 alone if that can't be; then write to it."""
        if cpu.pvalidate(0, huge=True):
            cpu.pvalidate(PAGE)
        cpu.store(PAGE, b"mine")
        assert cpu.load(PAGE, 4) == b"mine"

    def holds(self) -> None:
        assert self.seen == {"vcpu": "HLT", "prefault": 0}


class SharedPrepared(SnpFinal):
    """A page that was shared from the beginning is mapped for the guest while the host writes to it."""

    number = 17
    name = "shared-prepared"
    question = "Does a guest's fault on a shared page leave it to the host, too?"
    source = "guest-memfd S25"
    broken_by = {"make-private-shared-too": Kind.ASSERTION}
    pages = 1

    def tasks(self) -> None:
        self.task("prefault", lambda: self.vcpus[0].pre_fault(0, PAGE))
        self.task("write", self.write)

    def write(self) -> str:
        """The host's store."""
        self.memory[0] = 1
        return "written"

    def holds(self) -> None:
        assert self.seen == {"prefault": 0, "write": "written"}


class FolioAllocatedTwice(OneFolio):
    """Two vCPUs are told to map pages of one folio that has no memory yet; there is memory for one.  It's two pages here."""

    number = 31
    name = "folio-allocation"
    question = "Does one of two faults on a large folio fail for want of the memory that the other took for it?"
    source = "guest-memfd S29"
    broken_by = {"folio-allocated-twice": Kind.ASSERTION}

    def tasks(self) -> None:
        assert isinstance(self.inode, LargeFolioInode)
        self.inode.per_folio = self.inode.mapping.alignment = 2
        vcpus = [self.vm.create_vcpu(n) for n in range(2)]
        self.taken = self.host.memmap.alloc(self.host.memmap.nr_free - 2)
        for n, vcpu in enumerate(vcpus):
            self.task(f"vcpu{n}", partial(vcpu.pre_fault, n * PAGE, PAGE))

    def release(self) -> None:
        for pfn, count in self.taken:
            self.host.memmap.put(pfn, count)

    def holds(self) -> None:
        assert self.seen == {"vcpu0": 0, "vcpu1": 0}
