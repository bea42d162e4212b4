# SPDX-License-Identifier: GPL-2.0-or-later
"""Populate whose source, in the same guest_memfd, is converted meanwhile."""

from __future__ import annotations

from ..explore.verdict import Kind
from .worlds import BUSY, PAGE, SnpLaunch

__all__ = ["SourceConverted"]


class SourceConverted(SnpLaunch):
    """The source page is converted to private while populate reads it."""

    number = 18
    name = "source-converted"
    question = "What if the source of populate, in the same guest_memfd, is converted meanwhile?"
    source = "guest-memfd S39"
    broken_by = {"refcount-wait": Kind.LIVELOCK}
    holds_with = ("refcount-third-state",)

    def tasks(self) -> None:
        self.convert(0)
        self.memory[PAGE] = 0x5A
        self.task("populate", lambda: self.populate(0, self.memory.address + PAGE))
        self.task("convert", lambda: self.convert(1))

    def holds(self) -> None:
        assert self.seen["convert"] in ("converted", "pending", BUSY)
        assert self.seen["populate"] in ("populated", "snp.update.failed")
        if self.seen["convert"] == BUSY:
            assert self.seen["populate"] == "populated", "the source was held, so populate had it"
