# SPDX-License-Identifier: GPL-2.0-or-later
"""The secure EPT: a TD's private half of the guest address space, which only the TDX module writes.

Leaves are runs of like entries, tables stand by themselves.  Levels are those of the module's operands: 0 is an entry that
maps 4 KiB, 1 one of 2 MiB, and so on; an entry above level 0 maps a large page or leads to a table.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from ...rangemap import RangeMap

__all__ = ["LEVEL_2M", "LEVEL_4K", "PAGES_PER_2M", "SecureEpt", "SeptEntry", "SeptState", "SeptTable", "Walk"]

LEVEL_4K, LEVEL_2M = 0, 1
PAGES_PER_2M = 512
_BITS = 9


class SeptState(Enum):
    """States of an entry, as (the module's own encoding, the code it reports in RDX bits 15:8).

    Those that only migration uses are left out; REMOVED is there for its numbers.
    """

    FREE = (0x0E, 0)
    REMOVED = (0x0C, 5)
    NL_MAPPED = (0x00, 132)
    NL_BLOCKED = (0x08, 129)
    MAPPED = (0x60, 4)
    BLOCKED = (0x68, 1)
    PENDING = (0x70, 2)
    PENDING_BLOCKED = (0x78, 3)

    @property
    def internal(self) -> int:
        """The state bits of the entry in memory."""
        return self.value[0]

    @property
    def public(self) -> int:
        """The code that SEAMCALLs report."""
        return self.value[1]


LEAF_BLOCKED = {SeptState.MAPPED: SeptState.BLOCKED, SeptState.PENDING: SeptState.PENDING_BLOCKED}
LEAF_UNBLOCKED = {blocked: state for state, blocked in LEAF_BLOCKED.items()}


class SeptEntry(NamedTuple):
    """A leaf, or a run of like leaves: state, pfn - gfn, and the level that it stands at."""

    state: SeptState
    delta: int
    level: int = LEVEL_4K


class SeptTable(NamedTuple):
    """An entry that leads to a table: NL_MAPPED or NL_BLOCKED, and the table's page."""

    state: SeptState
    pfn: int


class Walk(NamedTuple):
    """Where a walk for a level ended: at that level, with the entry (None: FREE), or above it, at an entry that leads no
    further."""

    level: int
    entry: SeptEntry | SeptTable | None
    reached: bool

    @property
    def state(self) -> SeptState:
        """The entry's state."""
        return self.entry.state if self.entry is not None else SeptState.FREE


class SecureEpt:
    """One TD's tree; `levels` is 4 or 5, the root is among the TDCS pages."""

    def __init__(self, levels: int) -> None:
        self.levels = levels
        self.leaves: RangeMap[SeptEntry] = RangeMap()
        """gfn -> leaf"""
        self.tables: dict[tuple[int, int], SeptTable] = {}
        """(level of the entry, gfn >> 9 * level) -> the table that it leads to"""
        self.locked: set[int] = set()
        """gfns whose entry a guest's TDCALL holds"""
        self.host_priority: set[int] = set()
        """gfns at which the host met a held entry: until it has had its way, TDCALLs are turned away"""

    @property
    def top(self) -> int:
        """The level of the entries in the root."""
        return self.levels - 1

    def walk(self, gfn: int, level: int) -> Walk:
        """Go down from the root for the entry of `level`.  A table that is blocked leads no further."""
        for at in range(self.top, level, -1):
            table = self.tables.get((at, gfn >> _BITS * at))
            if table is None:
                leaf = self.leaves[gfn]
                return Walk(at, leaf if leaf is not None and leaf.level == at else None, False)
            if table.state is not SeptState.NL_MAPPED:
                return Walk(at, table, False)
        if level:
            table = self.tables.get((level, gfn >> _BITS * level))
            if table is not None:
                return Walk(level, table, True)
        return Walk(level, self.leaves[gfn], True)

    def leaf_run(self, gfn: int, count: int) -> tuple[int, SeptEntry | None]:
        """How many of `count` level-0 entries from `gfn` are alike and in mapped tables (0: there is no table)."""
        walk = self.walk(gfn, LEVEL_4K)
        if not walk.reached or isinstance(walk.entry, SeptTable):
            return 0, None
        _, end, entry = self.leaves.run(gfn)
        reach = gfn | PAGES_PER_2M - 1
        while reach + 1 < min(end, gfn + count) and self.walk(reach + 1, LEVEL_4K).reached:
            reach += PAGES_PER_2M
        return min(end - gfn, count, reach + 1 - gfn), entry

    def children(self, gfn: int, level: int) -> bool:
        """Whether anything hangs below the table at (`level`, `gfn`)."""
        size = 1 << _BITS * level
        start = gfn & -size
        if not self.leaves.empty(start, start + size):
            return True
        return any(at < level and index << _BITS * at & -size == start for at, index in self.tables)

    def architectural(self, walk: Walk) -> tuple[int, int]:
        """RCX and RDX of a SEAMCALL that reports an entry: the entry as hardware has it, and state and level."""
        raw = 1 << 63
        entry = walk.entry
        if isinstance(entry, SeptTable):
            raw = entry.pfn << 12 | (7 if entry.state is SeptState.NL_MAPPED else 1 << 55)
        elif entry is not None:
            raw |= 6 << 3 | (1 << 7 if walk.level else 0)
            raw |= 7 if entry.state is SeptState.MAPPED else 0
            raw |= 1 << 55 if entry.state in LEAF_UNBLOCKED else 0
            raw |= 1 << 56 if entry.state in (SeptState.PENDING, SeptState.PENDING_BLOCKED) else 0
        return raw, walk.state.public << 8 | walk.level
