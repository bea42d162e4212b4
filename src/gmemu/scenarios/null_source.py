# SPDX-License-Identifier: GPL-2.0-or-later
"""Population in place of a page that nobody ever wrote."""

from __future__ import annotations

from ..explore.verdict import Kind
from .worlds import PAGE, SnpLaunch

__all__ = ["NullSource"]

SECRET = b"a secret"


class NullSource(SnpLaunch):
    """The page frame that will be found was somebody else's, whose data is still in it."""

    number = 10
    name = "null-source"
    question = "What does a guest get that is loaded in place from a page that was never written?"
    source = "guest-memfd S12; discussion E"
    broken_by = {"populate-unzeroed": Kind.ASSERTION, "null-source-error": Kind.ASSERTION}

    def tasks(self) -> None:
        self.convert(0)
        [(pfn, _)] = self.host.memmap.alloc(1)
        self.host.memmap.put(pfn)
        self.host.memory.write(pfn * PAGE, SECRET)  # freeing clears nothing; the next to allocate gets this frame
        self.task("populate", self.populate)

    def holds(self) -> None:
        assert self.seen["populate"] == "populated", "source address 0 isn't taken for the page itself"
        seen = self.guest_sees(0)
        assert seen == bytes(8), f"the guest reads, and the launch digest measures, {seen!r} of somebody else's"
