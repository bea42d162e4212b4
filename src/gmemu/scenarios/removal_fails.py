# SPDX-License-Identifier: GPL-2.0-or-later
"""The TDX module doesn't let go of a page."""

from __future__ import annotations

from ..explore.verdict import Kind
from ..uapi.tdx import TdxLeaf, TdxStatus
from .worlds import PAGE, TdxRunning

__all__ = ["RemovalFails"]


class RemovalFails(TdxRunning):
    """A page becomes shared, but TDH.MEM.PAGE.REMOVE fails.  Then it's punched, and its memory may go to somebody else."""

    number = 21
    name = "removal-fails"
    question = "Who gets a page that couldn't be taken from a TD?"
    source = "discussion B; guest-memfd S42, D5"
    broken_by = {"tdx-ignores-failure": Kind.INVARIANT}
    holds_with = ("tdx-pins-private", "tdx-holds-on-failure", "tdx-flags-on-failure", "tdx-poisons-on-failure")
    pages = 1

    def tasks(self) -> None:
        self.td.module.inject = self.refuse
        self.page = self.pfn()
        self.host.lru.lru_add_drain_all()
        self.task("convert", self.share)
        self.task("punch", lambda: self.gmem.punch_hole(0, PAGE))

    def refuse(self, leaf: TdxLeaf, what: int) -> int | None:
        """The module finds a reason not to remove the page."""
        return TdxStatus.OPERAND_INVALID if leaf is TdxLeaf.MEM_PAGE_REMOVE else None

    def fate(self) -> str:
        """What became of the page."""
        if self.page in self.host.memmap.poisoned:
            return "kept, as bad memory"
        if self.host.memmap.leaked[self.page]:
            return "kept for ever"
        return "freed while the TD has it" if self.host.tdx.lost[self.page] else "in the file"

    def holds(self) -> None:
        self.seen["page"] = self.fate()
        assert self.kvm_vm.vm_dead, "nobody was told that the page is still the TD's"
