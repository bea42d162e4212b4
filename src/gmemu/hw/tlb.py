# SPDX-License-Identifier: GPL-2.0-or-later
"""The TLB of one (virtual) processor: translations that outlive the page table entries they came from, until flushed."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Tlb", "Translation"]


class Translation(NamedTuple):
    """Where a guest frame was found: page frame, and whether it may be written."""

    pfn: int
    writable: bool


class Tlb:
    """gfn -> `Translation`, filled by walks and emptied only by `flush`."""

    __slots__ = ("entries", "flushes")

    def __init__(self) -> None:
        self.entries: dict[int, Translation] = {}
        self.flushes = 0

    def flush(self) -> None:
        """Forget everything (a remote flush, or the vCPU moving to another processor)."""
        self.flushes += 1
        if self.entries:
            self.entries.clear()
