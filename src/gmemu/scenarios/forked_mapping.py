# SPDX-License-Identifier: GPL-2.0-or-later
"""A mapping in another address space."""

from __future__ import annotations

from ..explore.verdict import Kind
from ..syscalls.emulated import EmulatedDoor
from .worlds import BUSY, OnePage

__all__ = ["ForkedMapping"]


class ForkedMapping(OnePage):
    """A forked child has the page mapped too, and touches it again."""

    number = 19
    name = "forked-mapping"
    question = "Does a forked child lose the page when its parent converts it?"
    source = "guest-memfd S36"
    broken_by = {"unmap-current-mm-only": Kind.INVARIANT}

    def tasks(self) -> None:
        self.child = EmulatedDoor(self.host).fork()
        self.child.load(self.memory.address, 1)
        self.task("convert", self.convert)
        self.task("child", lambda: self.child.load(self.memory.address, 1))

    def holds(self) -> None:
        assert self.seen["convert"] in ("converted", BUSY)
