# SPDX-License-Identifier: GPL-2.0-or-later
"""A conversion to shared for which there is no memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..explore.verdict import Kind
from .worlds import TdxRunning

if TYPE_CHECKING:
    from ..hw.tdx.guest_cpu import TdGuestCpu

__all__ = ["ConversionOutOfMemory"]


class ConversionOutOfMemory(TdxRunning):
    """Storing the attribute takes an allocation, which fails.  What left the secure EPT can't be had back."""

    number = 34
    name = "conversion-oom"
    question = "Does a conversion that fails leave the guest what it had?"
    source = "guest-memfd D12, 3.4"
    broken_by = {"reserve-late": Kind.ASSERTION}
    pages = 1

    def tasks(self) -> None:
        self.host.failing_allocations["gmem-attributes"] = 1
        self.task("convert", self.share)
        self.task("vcpu", self.run)

    def run(self) -> str:
        """The guest reads its page."""
        self.read = b""
        return self.vcpus[0].run(self.guest).reason.name

    def guest(self, cpu: TdGuestCpu) -> None:
        """A load of what `begin` wrote."""
        self.read = cpu.load(0, len(self.CONTENTS))

    def holds(self) -> None:
        assert self.seen["convert"] == "mm.page.oom"
        assert self.read == self.CONTENTS, "the conversion failed, and the guest's data is gone"
