# SPDX-License-Identifier: GPL-2.0-or-later
"""Populate that looks its page up as a guest's fault does."""

from __future__ import annotations

from ..explore.verdict import Kind
from .worlds import TdxLaunch

__all__ = ["PopulateThroughFault"]


class PopulateThroughFault(TdxLaunch):
    """A TD's page is populated; the invalidate lock is held when it's mapped."""

    number = 2
    name = "populate-self-deadlock"
    question = "Can populate wait for itself?"
    source = "guest-memfd S02"
    broken_by = {"populate-maps-through-fault": Kind.DEADLOCK}

    def tasks(self) -> None:
        self.memory[0] = 1
        self.convert(0)
        self.task("populate", self.populate)
        self.task("touch", lambda: self.memory[0x1000])

    def holds(self) -> None:
        assert self.seen == {"populate": "populated", "touch": 0}
