# SPDX-License-Identifier: GPL-2.0-or-later
"""A vCPU's memory is faulted in while the launch goes on."""

from __future__ import annotations

from ..explore.verdict import Kind
from .worlds import PAGE, SnpLaunch

__all__ = ["PrefaultBeforeFinal"]


class PrefaultBeforeFinal(SnpLaunch):
    """Page 0 is loaded and measured; another thread asks for it, and for page 1, to be mapped."""

    number = 29
    name = "prefault-before-final"
    question = "Can a guest be given a page before the launch says what is in it?"
    source = "discussion D; guest-memfd 4.4"
    broken_by = {"prefault-before-final": Kind.ASSERTION}

    def tasks(self) -> None:
        self.convert(0, 2)
        self.vcpu = self.vm.create_vcpu()
        self.task("populate", self.populate)
        self.task("prefault", lambda: self.vcpu.pre_fault(0, PAGE))

    def holds(self) -> None:
        assert self.seen["populate"] == "populated", "a page that was faulted in can't be measured any more"
        assert self.seen["prefault"] == "kvm.pre-fault.early", "a page was given to the guest before it was measured"
