# SPDX-License-Identifier: GPL-2.0-or-later
"""The VMM converts a page before it's populated, or only afterwards."""

from __future__ import annotations

from ..explore.verdict import Kind
from .worlds import BUSY, PRIVATE, SnpLaunch

__all__ = ["ConvertBeforePopulate"]


class ConvertBeforePopulate(SnpLaunch):
    """A page is loaded in place while another thread writes to its mapping."""

    number = 28
    name = "convert-before-populate"
    question = "Can the host write to a page that the platform has taken over?"
    source = "discussion D; D3"
    broken_by = {"convert-after-populate": Kind.ASSERTION}
    pages = 1

    def tasks(self) -> None:
        self.memory[0] = 1
        self.host.lru.lru_add_drain_all()
        self.task("load", self.load)
        self.task("write", self.write)

    def load(self) -> str:
        """Both steps of the VMM's, in its order."""
        self.user_space.load_in_place(self.convert, self.populate)
        return "loaded"

    def write(self) -> str:
        """A store through the mapping, which may well be refused."""
        self.memory[0] = 2
        return "written"

    def holds(self) -> None:
        assert self.seen["load"] in ("loaded", BUSY)
        assert self.seen["write"] in ("written", PRIVATE), f"the page was shared, and a store failed: {self.seen['write']}"
        if self.seen["load"] == "loaded":
            assert self.guest_sees(0, 1) in (b"\1", b"\2"), "the guest doesn't have what was written"
