# SPDX-License-Identifier: GPL-2.0-or-later
"""The same page is added to a TD twice."""

from __future__ import annotations

from ..api.tdx import Tdx
from ..explore.verdict import Kind
from ..hw.tdx.mrtd import Mrtd
from .worlds import PAGE, TdxLaunch

__all__ = ["DoubleAdd"]


class DoubleAdd(TdxLaunch):
    """Two threads add the page, by two vCPUs."""

    number = 13
    name = "double-add"
    question = "Can a page be added, and measured, twice?"
    source = "guest-memfd S19; discussion E"
    broken_by = {"spurious-is-success": Kind.ASSERTION}
    nr_vcpus = 2

    def tasks(self) -> None:
        self.memory[0] = 0x5A
        self.convert(0)
        self.task("add", lambda: self.add(0), group="add")
        self.task("again", lambda: self.add(1), group="add")

    def add(self, vcpu: int) -> str:
        """KVM_TDX_INIT_MEM_REGION of page 0, with memory of its own for the arguments."""
        Tdx(self.vm).init_mem_region(self.vcpus[vcpu], 0, PAGE)
        return "added"

    def holds(self) -> None:
        assert sorted(map(str, self.seen.values())) == ["added", "tdx.populate.mapped"]
        once = Mrtd()
        once.page_add_extend(0, b"\x5a" + bytes(PAGE - 1))
        assert self.td.module.tds[self.td.tdr].mrtd.value == once.value, "the page was measured twice"
