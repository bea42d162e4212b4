# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest has a large private folio mapped as a whole: all of it must be the guest's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..explore.verdict import Kind
from ..uapi.kvm import VmType
from .worlds import LARGE_PRIVATE, PAGE, SnpLaunch

if TYPE_CHECKING:
    from ..hw.guest_cpu import GuestCpu

__all__ = ["MakePrivate"]


class MakePrivate(SnpLaunch):
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

    def set_up(self) -> None:
        self.vm = self.kvm.create_vm(VmType.SNP)
        self.vm.snp.init2()
        self.make_memory()
        self.gmem.allocate(0, self.pages * PAGE)
        self.vm.snp.launch_start()
        self.vcpus = [self.vm.create_vcpu(n) for n in range(2)]
        self.vm.snp.launch_finish()
        self.tasks()

    def tasks(self) -> None:
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
