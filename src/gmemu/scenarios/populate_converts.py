# SPDX-License-Identifier: GPL-2.0-or-later
"""Populate of pages that are still shared."""

from __future__ import annotations

from ..explore.verdict import Kind
from ..mm.gup import get_user_pages_fast, put_pages
from ..uapi.sev import SnpPageType
from .worlds import PAGE, SnpLaunch

__all__ = ["PopulateConverts"]


class PopulateConverts(SnpLaunch):
    """Two pages are loaded in place that the VMM hasn't converted; the second is read meanwhile."""

    number = 28
    name = "populate-converts"
    question = "Does a populate that fails leave every page as the VMM made it?"
    source = "discussion D; D3"
    broken_by = {"populate-converts": Kind.ASSERTION}

    def tasks(self) -> None:
        self.memory[0], self.memory[PAGE] = 1, 2
        self.task("load", self.load)
        self.task("read", self.read)

    def load(self) -> str:
        """The VMM's loading of both pages."""
        self.user_space.load(self.vm.snp, 0, 2 * PAGE, SnpPageType.NORMAL, 0)
        return "loaded"

    def read(self) -> str:
        """Direct I/O from page 1: a reference for a moment."""
        mm = self.host.init.mm
        pages = get_user_pages_fast(mm, self.memory.address + PAGE, 1)
        put_pages(mm, pages)
        return "done"

    def holds(self) -> None:
        private = sum(self.inode.private_run(page, 1) for page in range(2))
        assert self.seen["load"] != "loaded" or private == 2
        assert self.seen["load"] == "loaded" or not private, f"the call failed, and {private} of the pages are private"
