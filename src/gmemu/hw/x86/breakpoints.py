# SPDX-License-Identifier: GPL-2.0-or-later
"""Breakpoints by DR0 to DR3 and DR7, on instructions and on data (Intel SDM volume 3, 18.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["DR6_BD", "DR6_BS", "DR7_GD", "Breakpoints", "breakpoints"]

DR6_BD, DR6_BS, DR7_GD = 1 << 13, 1 << 14, 1 << 13
_EXECUTE, _WRITE, _ACCESS = 0, 1, 3
_LENGTHS = {0: 1, 1: 2, 2: 8, 3: 4}
_PAGE = ~0xFFF


class Breakpoints(NamedTuple):
    """What is watched.  Addresses are linear, in bytes."""

    instructions: dict[int, int]
    """address -> number"""
    data: tuple[tuple[int, int, bool, int], ...]
    """[start, end), whether only stores count, number"""
    guarded: bool
    """DR7.GD: the debug registers themselves"""

    def pages(self) -> frozenset[int]:
        """Addresses of pages that have data that is watched."""
        return frozenset(page & _PAGE for start, end, _, _ in self.data for page in (start, end - 1))

    def hits(self, address: int, size: int, write: bool) -> int:
        """DR6's bits for an access."""
        return sum(
            1 << number
            for start, end, stores, number in self.data
            if address < end and start < address + size and (write or not stores)
        )


def breakpoints(addresses: Sequence[int], dr7: int) -> Breakpoints:
    """Those that DR7 enables; breakpoints on I/O aren't watched."""
    instructions, data = {}, []
    for number, address in enumerate(addresses):
        if not dr7 >> 2 * number & 3:
            continue
        kind, length = dr7 >> 16 + 4 * number & 3, _LENGTHS[dr7 >> 18 + 4 * number & 3]
        if kind == _EXECUTE:
            instructions[address] = number
        elif kind in (_WRITE, _ACCESS):
            start = address & -length
            data.append((start, start + length, kind == _WRITE, number))
    return Breakpoints(instructions, tuple(data), bool(dr7 & DR7_GD))
