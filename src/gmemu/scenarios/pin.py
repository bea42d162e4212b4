# SPDX-License-Identifier: GPL-2.0-or-later
"""GUP-fast against conversion."""

from __future__ import annotations

from ..explore.verdict import Kind
from ..mm.gup import get_user_pages_fast
from ..uapi.mman import FOLL_LONGTERM, FOLL_PIN
from .worlds import BUSY, OnePage

__all__ = ["PinAgainstConversion"]


class PinAgainstConversion(OnePage):
    """A driver pins the page, which the host has mapped, by GUP-fast: no lock is taken."""

    number = 8
    name = "pin"
    question = "Can a page be private while somebody who pinned it when it was shared goes on using it?"
    source = "guest-memfd S09, S10; 3.4"
    broken_by = {
        "no-reference-check": Kind.ASSERTION,
        "check-before-unmap": Kind.ASSERTION,
        "refcount-wait": Kind.LIVELOCK,
    }
    holds_with = ("refcount-third-state",)

    def tasks(self) -> None:
        self.memory[0] = 1
        self.host.lru.lru_add_drain_all()
        self.pinned: int | None = None
        self.task("convert", self.convert)
        self.task("pin", self.pin)

    def pin(self) -> str:
        """pin_user_pages_fast(FOLL_LONGTERM)."""
        [(self.pinned, _)] = get_user_pages_fast(self.host.init.mm, self.memory.address, 1, FOLL_PIN | FOLL_LONGTERM)
        return "pinned"

    def release(self) -> None:
        if self.pinned is not None:
            self.let_go(self.pinned)

    def holds(self) -> None:
        assert self.seen != {"convert": "converted", "pin": "pinned"}, "the page is private, and pinned as shared"
        assert self.seen["convert"] in ("converted", "pending", BUSY)
