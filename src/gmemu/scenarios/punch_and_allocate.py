# SPDX-License-Identifier: GPL-2.0-or-later
"""Holes and allocations while a page is converted."""

from __future__ import annotations

from ..explore.verdict import Kind
from .worlds import BUSY, PAGE, OnePage

__all__ = ["ConversionAgainstPunch"]


class ConversionAgainstPunch(OnePage):
    """A hole is punched and memory allocated while the page is converted."""

    number = 20
    name = "punch-and-allocate"
    question = "Is an attribute lost when a page is punched or allocated while it's converted?"
    source = "guest-memfd S37, S38"
    broken_by = {"punch-resets-attribute": Kind.ASSERTION}

    def tasks(self) -> None:
        self.memory[0] = 1
        self.task("convert", self.convert)
        self.task("punch", lambda: self.gmem.punch_hole(0, PAGE))
        self.task("allocate", lambda: self.gmem.allocate(0, PAGE))

    def holds(self) -> None:
        assert self.seen["convert"] in ("converted", BUSY)
        private = self.inode.private_run(0, 1) == 1
        assert private == (self.seen["convert"] == "converted"), "the attribute isn't what the conversion said"
