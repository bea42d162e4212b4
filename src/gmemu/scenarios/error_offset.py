# SPDX-License-Identifier: GPL-2.0-or-later
"""Which page a refused conversion names."""

from __future__ import annotations

from ..api import ConversionRefused
from ..explore.verdict import Kind
from ..mm.gup import get_user_pages_fast
from ..uapi.mman import FOLL_LONGTERM, FOLL_PIN
from .worlds import PAGE, OnePage

__all__ = ["ErrorOffset"]


class ErrorOffset(OnePage):
    """Pages 0 to 3 were allocated together, and page 2 is pinned.  Pages 1 and 2 are to become private."""

    number = 5
    name = "error-offset"
    question = "Does a refused conversion name a page of the range that was asked for, the one that is held?"
    source = "guest-memfd S07"
    broken_by = {"error-offset-from-folio-start": Kind.ASSERTION}
    pages = 4

    def tasks(self) -> None:
        self.gmem.allocate(0, self.pages * PAGE)
        self.host.lru.lru_add_drain_all()
        [(self.pinned, _)] = get_user_pages_fast(
            self.host.init.mm, self.memory.address + 2 * PAGE, 1, FOLL_PIN | FOLL_LONGTERM
        )
        self.task("convert", self.refused)
        self.task("touch", lambda: self.memory[PAGE])

    def refused(self) -> int:
        """The conversion of pages 1 and 2: error_offset."""
        try:
            self.convert(1, 2)
        except ConversionRefused as refused:
            return refused.error_offset
        raise AssertionError("a pinned page became private")

    def release(self) -> None:
        self.let_go(self.pinned)

    def holds(self) -> None:
        offset, touched = self.seen["convert"], self.seen["touch"]
        expected = {2 * PAGE} if touched != 0 else {PAGE, 2 * PAGE}  # the touch may hold page 1 just then
        assert offset in expected, f"error_offset is {offset:#x}; the range begins at 0x1000, and 0x2000 is pinned"
