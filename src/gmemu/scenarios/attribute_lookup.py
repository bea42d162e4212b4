# SPDX-License-Identifier: GPL-2.0-or-later
"""Looking an attribute up while mmu_lock is held."""

from __future__ import annotations

from ..explore.verdict import Kind
from .worlds import OnePage

__all__ = ["AttributeLookupUnderMmuLock"]


class AttributeLookupUnderMmuLock(OnePage):
    """A conversion takes the invalidate lock, then mmu_lock; a guest's fault asks for the attribute meanwhile."""

    number = 3
    name = "attribute-lookup"
    question = "Do a conversion and who asks for an attribute under mmu_lock wait for each other?"
    source = "guest-memfd S03"
    broken_by = {"attribute-lookup-locked": Kind.DEADLOCK}

    def tasks(self) -> None:
        self.convert()
        self.vcpu = self.vm.create_vcpu()
        self.task("convert", self.share)
        self.task("vcpu", lambda: self.vcpu.pre_fault(0, 0x1000))

    def holds(self) -> None:
        assert self.seen["convert"] == "shared"
        assert self.seen["vcpu"] in (0, "kvm.fault.mismatch")
