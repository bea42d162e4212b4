# SPDX-License-Identifier: GPL-2.0-or-later
"""Granules of 4 KiB: the RMM's table of what it uses each for, and EL3's table of which world may touch it."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from ...rangemap import RangeMap
from ...uapi.rmi import GranuleState

__all__ = ["Gpi", "Gpt", "Granule", "Granules"]


class Gpi(Enum):
    """Granule protection information: which physical address space a granule is in."""

    NS = "non-secure"
    REALM = "realm"


class Gpt:
    """The granule protection table, which EL3 keeps and every access is checked against."""

    def __init__(self) -> None:
        self.realm: RangeMap[bool] = RangeMap()
        """pages in the realm world; all others are the host's"""

    def of(self, pfn: int) -> Gpi:
        """The granule's world."""
        return Gpi.REALM if self.realm[pfn] else Gpi.NS

    def set(self, pfn: int, count: int, gpi: Gpi) -> None:
        """Move `count` granules into a world; nobody has them in a TLB any more."""
        self.realm.set(pfn, pfn + count, True if gpi is Gpi.REALM else None)

    def allows_host(self, pfn: int, count: int) -> bool:
        """Whether the host may touch these; otherwise it takes a granule protection fault."""
        return self.realm.empty(pfn, pfn + count)


class Granule(NamedTuple):
    """State of a granule, and the RD of the realm that it belongs to (-1: none)."""

    state: GranuleState
    rd: int = -1


class Granules:
    """Every granule of the machine.  Those that the RMM hasn't been given are NS."""

    def __init__(self, npages: int) -> None:
        self.npages = npages
        self.entries: RangeMap[Granule] = RangeMap()

    def covers(self, pfn: int, count: int = 1) -> bool:
        """Whether these are granules at all."""
        return pfn >= 0 and pfn + count <= self.npages

    def state(self, pfn: int) -> GranuleState:
        """The granule's state."""
        entry = self.entries[pfn]
        return GranuleState.NS if entry is None else entry.state

    def run(self, pfn: int, count: int, state: GranuleState) -> int:
        """How many of `count` granules from `pfn` are in `state` in a row."""
        done = 0
        for start, end, entry in self.entries.spans(pfn, pfn + count):
            if (GranuleState.NS if entry is None else entry.state) is not state:
                break
            done = end - pfn
            assert start >= pfn
        return done

    def all(self, pfn: int, count: int, state: GranuleState) -> bool:
        """Whether these exist and are all in `state`."""
        return self.covers(pfn, count) and self.run(pfn, count, state) == count

    def set(self, pfn: int, count: int, state: GranuleState, rd: int = -1) -> None:
        """Change the state of `count` granules."""
        self.entries.set(pfn, pfn + count, None if state is GranuleState.NS else Granule(state, rd))
