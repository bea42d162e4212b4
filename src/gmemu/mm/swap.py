# SPDX-License-Identifier: GPL-2.0-or-later
"""LRU-add batches (mm/swap.c): a folio that just entered the page cache waits in its CPU's batch, and is held there.

That reference is why a page that nobody uses can look used: see `lru_add_drain`.
"""

from __future__ import annotations

from .page import Memmap

__all__ = ["PAGEVEC_SIZE", "LruBatches"]

PAGEVEC_SIZE = 31
"""Folios a batch holds before it's drained (include/linux/folio_batch.h)."""


class LruBatches:
    """One batch for each CPU that added a folio."""

    def __init__(self, memmap: Memmap) -> None:
        self._memmap = memmap
        self._batches: dict[int, list[int]] = {}

    def folio_add_lru(self, cpu: int, pfn: int, count: int = 1) -> None:
        """Add `count` folios in turn; a batch that is full lets go of all it has."""
        batch = self._batches.setdefault(cpu, [])
        room = PAGEVEC_SIZE - len(batch)
        if count >= room:
            self.lru_add_drain(cpu)
            kept = (count - room) % PAGEVEC_SIZE
        else:
            kept = count
        if kept:
            first = pfn + count - kept
            self._memmap.get(first, kept)
            batch.extend(range(first, first + kept))

    def lru_add_drain(self, cpu: int) -> None:
        """Move one CPU's batch to the LRU, dropping its references."""
        batch = self._batches.get(cpu)
        if batch:
            pages, batch[:] = batch[:], []
            for pfn in pages:
                self._memmap.put(pfn)

    def lru_add_drain_all(self) -> None:
        """Drain every CPU's batch."""
        for cpu in list(self._batches):
            self.lru_add_drain(cpu)

    def batches(self) -> dict[int, tuple[int, ...]]:
        """The page frames that wait in each CPU's batch, oldest first."""
        return {cpu: tuple(batch) for cpu, batch in self._batches.items() if batch}

    def held(self) -> int:
        """How many folios wait in batches."""
        return sum(map(len, self._batches.values()))
