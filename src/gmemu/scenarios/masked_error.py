# SPDX-License-Identifier: GPL-2.0-or-later
"""Populate that stops part-way, and says so only in `len`."""

from __future__ import annotations

from ..explore.verdict import Kind
from ..uapi.sev import SnpPageType
from .worlds import PAGE, SnpLaunch

__all__ = ["MaskedError"]


class MaskedError(SnpLaunch):
    """Pages 0 to 2 are loaded while page 1 is converted to shared."""

    number = 14
    name = "masked-error"
    question = "Does a VMM find out that not all of its pages were loaded?"
    source = "guest-memfd S20, S39"
    broken_by = {"vmm-ignores-len": Kind.ASSERTION}
    pages = 3

    def tasks(self) -> None:
        self.convert(0, 3)
        self.task("load", self.load)
        self.task("share", lambda: self.share(1))

    def load(self) -> str:
        """The VMM's loading of all three pages, in place."""
        self.user_space.load(self.vm.snp, 0, 3 * PAGE, SnpPageType.NORMAL, 0)
        return "loaded"

    def holds(self) -> None:
        loaded = sum(self.sev.platform.rmp.lookup(self.pfn(page)) is not None for page in range(3) if self.has(page))
        assert self.seen["load"] in ("loaded", "snp.update.failed")
        assert self.seen["load"] != "loaded" or loaded == 3 or self.shared_later, f"{loaded} of 3 pages are loaded"

    def has(self, page: int) -> bool:
        """Whether there is memory for the page."""
        return self.inode.mapping.pfn(page) is not None

    @property
    def shared_later(self) -> bool:
        """Page 1 was loaded before it was taken away again, and pages 0 and 2 are."""
        return all(self.has(page) and self.sev.platform.rmp.lookup(self.pfn(page)) for page in (0, 2))
