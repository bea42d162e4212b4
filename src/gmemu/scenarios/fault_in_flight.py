# SPDX-License-Identifier: GPL-2.0-or-later
"""A host fault that is past the attribute check when the conversion begins."""

from __future__ import annotations

from ..explore.verdict import Kind
from .worlds import BUSY, PRIVATE, OnePage

__all__ = ["FaultInFlight"]


class FaultInFlight(OnePage):
    """The host's fault holds a reference after it let go of the invalidate lock, and is about to map the page.

    A conversion that only waits for the reference waits for ever: it turns into that of the page table entry.
    """

    number = 7
    name = "fault-in-flight"
    question = "Can a host fault that began before a conversion map the page after it?"
    source = "guest-memfd S09"
    holds_with = ("refcount-third-state",)
    broken_by = {"no-reference-check": Kind.INVARIANT, "refcount-wait": Kind.LIVELOCK}

    def tasks(self) -> None:
        self.task("convert", self.convert)
        self.task("touch", lambda: self.memory[0])

    def holds(self) -> None:
        assert self.seen["convert"] in ("converted", "pending", BUSY)
        assert self.seen["touch"] in (0, PRIVATE)
        assert self.seen != {"convert": BUSY, "touch": PRIVATE}, "neither side had the page"
