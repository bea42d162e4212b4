# SPDX-License-Identifier: GPL-2.0-or-later
"""A realm's translation tables (RTTs): levels 0 to 3, entries with HIPAS and RIPAS, blocks, folding and unfolding.

The lower half of the address space is protected, the upper half is shared with the host.  What an entry says is kept by
page, in runs: a block, or an entry above a table that isn't there, is one value over all its pages.  Which tables there
are decides at which level a value stands; so to unfold is to add a table, and to fold is to take it away.
"""

from __future__ import annotations

from typing import NamedTuple

from ...rangemap import RangeMap
from ...uapi.rmi import Hipas, Ripas

__all__ = ["LAST_LEVEL", "NR_ENTRIES", "Rtt", "RttEntry", "Walk", "entry_pages", "root_tables", "start_level"]

LAST_LEVEL = 3
NR_ENTRIES = 512
_STRIDE = 9
MAX_ROOTS = 16
"""How many tables of the start level may stand side by side."""


def entry_pages(level: int) -> int:
    """Pages that an entry of `level` covers: 1 at level 3, 512 at level 2."""
    return 1 << _STRIDE * (LAST_LEVEL - level)


def root_tables(s2sz: int, level: int) -> int:
    """How many tables of `level` an address space of `s2sz` bits starts with."""
    return max(1 << max(s2sz - 12, 0), 1) // (entry_pages(level) * NR_ENTRIES) or 1


def start_level(s2sz: int) -> int:
    """The level that Linux starts at (kvm_get_vtcr()): the deepest one that takes no more than 16 tables."""
    return max(level for level in range(LAST_LEVEL) if root_tables(s2sz, level) <= MAX_ROOTS)


class RttEntry(NamedTuple):
    """What an entry says of each page below it.  `delta`: page frame minus guest frame, if assigned."""

    hipas: Hipas
    ripas: Ripas
    delta: int = 0
    writable: bool = True
    """Only the shared half has pages that can't be written."""


EMPTY = RttEntry(Hipas.UNASSIGNED, Ripas.EMPTY)


class Walk(NamedTuple):
    """Where a walk ended: the level, whether the entry there leads to a table, and else what it says."""

    level: int
    is_table: bool
    entry: RttEntry


class Rtt:
    """The tables of one realm.  Frames are guest frame numbers, tables are named by their page frame."""

    def __init__(self, s2sz: int, level: int, roots: list[int]) -> None:
        self.s2sz, self.start, self.roots = s2sz, level, roots
        self.tables: dict[tuple[int, int], int] = {}
        """(level of its entries, first frame >> its reach) -> page of a table below the start level"""
        self.entries: RangeMap[RttEntry] = RangeMap()
        """gfn -> what its entry says; absent: UNASSIGNED and EMPTY"""

    @property
    def shared_bit(self) -> int:
        """The bit of a frame number that puts it into the shared half."""
        return 1 << self.s2sz - 13

    @property
    def nr_frames(self) -> int:
        """Frames of both halves."""
        return 1 << self.s2sz - 12

    @staticmethod
    def _key(level: int, gfn: int) -> tuple[int, int]:
        return level, gfn >> _STRIDE * (LAST_LEVEL + 1 - level)

    def depth(self, gfn: int) -> int:
        """The level of the entry that a walk without a goal ends at."""
        level = self.start
        while level < LAST_LEVEL and self._key(level + 1, gfn) in self.tables:
            level += 1
        return level

    def entry(self, gfn: int) -> RttEntry:
        """What the entry of `gfn` says."""
        return self.entries[gfn] or EMPTY

    def walk(self, gfn: int, level: int = LAST_LEVEL) -> Walk:
        """Go towards the entry of `level` for `gfn`; it may end before."""
        depth = self.depth(gfn)
        return Walk(min(depth, level), depth > level, self.entry(gfn))

    def table_end(self, gfn: int, level: int) -> int:
        """The first frame that isn't in the same table of `level` as `gfn` (at the start level: after all of them)."""
        if level == self.start:
            return self.nr_frames
        reach = entry_pages(level - 1)
        return (gfn // reach + 1) * reach

    # Tables

    def add_table(self, gfn: int, level: int, pfn: int) -> None:
        """Put a table of `level` under the entry for `gfn`; it says for all its entries what that said."""
        self.tables[self._key(level, gfn)] = pfn

    def remove_table(self, gfn: int, level: int) -> int:
        """Take away the table of `level` that `gfn` is in: its page."""
        return self.tables.pop(self._key(level, gfn))

    def table(self, gfn: int, level: int) -> int | None:
        """The table of `level` that `gfn` is in."""
        return self.tables.get(self._key(level, gfn))

    def span(self, gfn: int, level: int) -> tuple[int, int]:
        """The frames [first, last) that a table of `level` with `gfn` in it reaches."""
        reach = entry_pages(level - 1)
        first = gfn // reach * reach
        return first, first + reach

    def has_tables(self, gfn: int, level: int) -> bool:
        """Whether any entry of the table of `level` that `gfn` is in leads to a table."""
        if level == LAST_LEVEL:
            return False
        first, last = self.span(gfn, level)
        keys = (self._key(level + 1, at) for at in range(first, last, entry_pages(level)))
        return any(key in self.tables for key in keys)

    def live(self, gfn: int, level: int) -> bool:
        """Whether the table of `level` that `gfn` is in has anything assigned, or leads to another."""
        first, last = self.span(gfn, level)
        assigned = any(entry.hipas is not Hipas.UNASSIGNED for _, _, entry in self.entries.runs(first, last))
        return assigned or self.has_tables(gfn, level)

    def homogeneous(self, gfn: int, level: int) -> bool:
        """Whether the table of `level` that `gfn` is in says one thing, so that one entry above could."""
        first, last = self.span(gfn, level)
        entry = self.entries[first]
        if self.has_tables(gfn, level) or not self.entries.covers(first, last, entry):
            return False
        # a block: the entry's output address is aligned to what it covers
        return entry is None or entry.hipas is Hipas.UNASSIGNED or not (first + entry.delta) % (last - first)

    @property
    def is_live(self) -> bool:
        """Whether the root tables have anything but unassigned entries."""
        if self.tables:
            return True
        return any(entry.hipas is not Hipas.UNASSIGNED for _, _, entry in self.entries.runs())
