# SPDX-License-Identifier: GPL-2.0-or-later
"""A realm's wish for another RIPAS, and a conversion."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .worlds import PAGE, RealmRunning

if TYPE_CHECKING:
    from ..hw.rmm.guest_cpu import RealmGuestCpu

__all__ = ["RipasAgainstConversion"]


class RipasAgainstConversion(RealmRunning):
    """A realm wants a page shared that user space has converted so, and converts back at that moment."""

    number = 33
    name = "ripas-change"
    question = "Does the RMM change a page's RIPAS only to what its attribute is at that moment?"
    source = "Arm CCA series, rec_exit_ripas_change()"
    broken_by = {}

    def tasks(self) -> None:
        self.task("vcpu", lambda: self.vcpus[0].run(self.give_up).reason.name)
        self.task("convert", lambda: self.convert(1))

    def give_up(self, cpu: RealmGuestCpu) -> None:
        """Page 1 is to be EMPTY."""
        cpu.convert(PAGE, PAGE, private=False)

    def holds(self) -> None:
        assert self.seen["convert"] == "converted"
        assert self.seen["vcpu"] in ("HLT", "MEMORY_FAULT")
        assert self.ripas(1) == ("EMPTY" if self.seen["vcpu"] == "HLT" else "RAM")
