# SPDX-License-Identifier: GPL-2.0-or-later
"""A page's memory goes bad while it's converted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..explore.verdict import Kind
from ..rules import KernelError
from .worlds import BUSY, OnePage, TdxRunning

if TYPE_CHECKING:
    from ..hw.tdx.guest_cpu import TdGuestCpu

__all__ = ["HwpoisonAgainstConversion", "HwpoisonPrivate"]


class HwpoisonAgainstConversion(OnePage):
    """The page is shared and mapped by the host; the hardware reports an error."""

    number = 32
    name = "hwpoison"
    question = "Do a conversion and a memory error leave the page mapped anywhere?"
    source = "guest-memfd 3.7"

    def tasks(self) -> None:
        self.memory[0] = 1
        self.host.lru.lru_add_drain_all()
        pfn = self.pfn()
        self.task("convert", self.convert)
        self.task("error", lambda: self.host.memory_failure(pfn))

    def holds(self) -> None:
        assert self.seen["convert"] in ("converted", BUSY)
        assert not self.inode.mapping.is_mapped(0, 1), "the host still maps memory that went bad"


class HwpoisonPrivate(TdxRunning):
    """The page is private, and in the guest's hands; it becomes shared."""

    number = 32
    name = "hwpoison-private"
    question = "Does a guest go on using private memory that went bad?"
    source = "guest-memfd 3.7, S22"
    broken_by = {"filter-from-create-flag": Kind.ASSERTION}
    pages = 1

    def tasks(self) -> None:
        self.task("error", self.fail)
        self.task("vcpu", lambda: self.vcpus[0].run(self.read).reason.name)

    def fail(self) -> str:
        """memory_failure(), and then no guest access gets through."""
        try:
            self.host.memory_failure(self.pfn())
        except KernelError as error:
            return error.rule.id
        return "recovered"

    def read(self, cpu: TdGuestCpu) -> None:
        """A load of the private page."""
        cpu.load(0)

    def holds(self) -> None:
        assert self.td.sept.leaves.empty(0, 1), "the guest still has memory that went bad"
