# SPDX-License-Identifier: GPL-2.0-or-later
"""The source of populate is punched out of the same guest_memfd meanwhile."""

from __future__ import annotations

from ..explore.verdict import Kind
from .worlds import PAGE, SnpLaunch

__all__ = ["SourceDiscarded"]


class SourceDiscarded(SnpLaunch):
    """Populate holds a reference to the source page from before it takes the lock, so what is loaded is what was there."""

    number = 18
    name = "source-discarded"
    question = "Can populate load from a page that is somebody else's by now?"
    source = "guest-memfd S39; discussion C"
    broken_by = {"populate-drops-source": Kind.ASSERTION}

    def tasks(self) -> None:
        self.convert(0)
        self.memory[PAGE] = 0x5A
        self.host.lru.lru_add_drain_all()
        self.task("populate", lambda: self.populate(0, self.memory.address + PAGE))
        self.other = self.kvm.anonymous(PAGE)
        self.task("punch", self.punch)

    def punch(self) -> None:
        """Give the page back, and write something else into the memory that is next to be had."""
        self.gmem.punch_hole(PAGE, PAGE)
        self.other[0] = 0xFF

    def holds(self) -> None:
        assert self.seen["populate"] == "populated"
        assert self.guest_sees(0, 1) in (b"\x5a", b"\0"), "the guest got somebody else's memory"
