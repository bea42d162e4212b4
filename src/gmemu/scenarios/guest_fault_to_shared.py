# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest touches a page that is becoming shared."""

from __future__ import annotations

from ..explore.verdict import Kind
from .worlds import OnePage

__all__ = ["ConversionToSharedAgainstGuestFault"]


class ConversionToSharedAgainstGuestFault(OnePage):
    """The other direction, in which no reference count stands in the way of a fault that is late."""

    number = 9
    name = "guest-fault-to-shared"
    question = "Can the guest be left with a private mapping of a page that became shared?"
    source = "guest-memfd S11"
    broken_by = {"no-seq-retry": Kind.INVARIANT, "store-after-invalidate": Kind.INVARIANT}

    def tasks(self) -> None:
        self.convert()
        self.vcpu = self.vm.create_vcpu()
        self.task("convert", self.share)
        self.task("vcpu", lambda: self.vcpu.run(lambda cpu: cpu.load(0, 1)).reason.name)

    def holds(self) -> None:
        assert self.seen["convert"] == "shared"
        assert self.seen["vcpu"] in ("HLT", "MEMORY_FAULT")
