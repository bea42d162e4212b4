# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest writes through its shared view as soon as it can, while its private view is taken away."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..explore.verdict import Kind
from .worlds import TdxRunning

if TYPE_CHECKING:
    from ..hw.tdx.guest_cpu import TdGuestCpu

__all__ = ["BothViews"]


class BothViews(TdxRunning):
    """A page of a TD becomes shared.  Removing it from the secure EPT zeroes it; what is written after that must stay.

    Storing the attribute too early does no harm for as long as a guest's fault takes the invalidate lock to find the page.
    """

    number = 16
    name = "both-views"
    question = "Can a guest have a page in its shared view and its private view at once?"
    source = "guest-memfd S23"
    broken_by = {"store-before-invalidate+guest-lookup-unlocked": Kind.ASSERTION}
    holds_with = ("store-before-invalidate", "guest-lookup-unlocked")
    pages = 1

    def tasks(self) -> None:
        self.task("vcpu", lambda: self.vcpus[0].run(self.write).reason.name)
        self.task("convert", self.share)

    def write(self, cpu: TdGuestCpu) -> None:
        """A store through the shared view."""
        cpu.store(0, b"!", shared=True)

    def holds(self) -> None:
        assert self.seen["convert"] == "shared"
        assert self.seen["vcpu"] in ("HLT", "MEMORY_FAULT")
        if self.seen["vcpu"] == "HLT":
            assert self.memory[0] == 0x21, "what the guest wrote to shared memory is lost"
