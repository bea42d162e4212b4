# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest touches a page that is becoming private."""

from __future__ import annotations

from ..explore.verdict import Kind
from .worlds import BUSY, OnePage

__all__ = ["ConversionAgainstGuestFault"]


class ConversionAgainstGuestFault(OnePage):
    """The guest touches the page while it's converted."""

    number = 9
    name = "guest-fault"
    question = "Can the guest be left with a shared mapping of a page that became private?"
    source = "guest-memfd S11"
    broken_by = {"store-after-invalidate": Kind.INVARIANT}

    def tasks(self) -> None:
        self.vcpu = self.vm.create_vcpu()
        self.task("convert", self.convert)
        self.task("vcpu", lambda: self.vcpu.run(lambda cpu: cpu.load(0, 1)).reason.name)

    def holds(self) -> None:
        assert self.seen["convert"] in ("converted", BUSY)  # busy: the fault holds the page until it's mapped
        assert self.seen["vcpu"] in ("HLT", "MEMORY_FAULT")
