# SPDX-License-Identifier: GPL-2.0-or-later
"""What the reverse map table holds for one page, the sixteen bytes that say so, and the name of the state it means.

Layout: the RMP entry of Zen 3 and Zen 4 (PPR, and AMD-ASPFW's `rmp_entry_t`).  States: SEV-SNP firmware ABI, "Page States",
evaluated in the order in which the firmware evaluates them.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import NamedTuple

__all__ = [
    "ENTRY_SIZE",
    "PAGES_PER_2M",
    "VMPL_RESET",
    "Marker",
    "RmpEntry",
    "RmpState",
    "VmplMask",
    "decode",
    "encode",
    "state_of",
]

ENTRY_SIZE = 16
PAGES_PER_2M = 512
ASID_MAX = (1 << 10) - 1
GFN_MAX = (1 << 39) - 1


class RmpState(IntEnum):
    """The page states of the firmware ABI, with its numbers.  DEFAULT: the RMP doesn't cover the page."""

    INVALID = 0
    DEFAULT = 1
    HYPERVISOR = 2
    HV_FIXED = 3
    FIRMWARE = 4
    RECLAIM = 6
    CONTEXT = 7
    METADATA = 8
    PRE_GUEST = 9
    PRE_SWAP = 0xA
    GUEST_INVALID = 0xB
    GUEST_VALID = 0xC


class Marker(IntEnum):
    """What the firmware keeps in bits 38:36 of the guest page number of a page that no guest owns."""

    FIRMWARE = 0
    METADATA = 1
    IOMMU = 2


class VmplMask(IntFlag):
    """Rights of one VMPL to a page."""

    READ = 1
    WRITE = 2
    EXEC_USER = 4
    EXEC_SUPERVISOR = 8
    SSS = 16
    ALL = 31


VMPL_RESET: tuple[int, int, int, int] = (31, 0, 0, 0)
"""A newly assigned page: VMPL0 may do everything, the others nothing."""


class RmpEntry(NamedTuple):
    """One page's entry.  A page without one is in the HYPERVISOR state.

    `gfn_delta` is the guest page number less the system page number, so that a guest's consecutive pages hold equal values
    and share a run; where no guest owns the page (`asid` 0) it is the guest page number itself.  Every 4 KiB page below a
    2 MiB entry (`pagesize` 1) holds that entry.
    """

    assigned: bool = True
    validated: bool = False
    immutable: bool = False
    asid: int = 0
    gfn_delta: int = 0
    vmsa: bool = False
    pagesize: int = 0
    vmpl: tuple[int, int, int, int] = VMPL_RESET
    marker: int = 0

    def gfn(self, pfn: int) -> int:
        """The guest page number that the entry of page `pfn` holds."""
        return pfn + self.gfn_delta if self.asid else self.gfn_delta


SUBPAGE = RmpEntry()
"""What stands in the table for each page below a 2 MiB entry but the first: assigned to nobody, 4 KiB.  SNP_PAGE_UNSMASH
writes just this; the firmware, reading such a page by itself, takes it for a RECLAIM page."""


def state_of(entry: RmpEntry | None) -> RmpState:
    """The page state that an entry means."""
    if entry is None:
        return RmpState.HYPERVISOR
    if not entry.assigned:
        if entry.validated or entry.asid:
            return RmpState.INVALID
        return RmpState.HV_FIXED if entry.immutable else RmpState.HYPERVISOR
    if entry.asid:
        if entry.immutable:
            return RmpState.PRE_SWAP if entry.validated else RmpState.PRE_GUEST
        return RmpState.GUEST_VALID if entry.validated else RmpState.GUEST_INVALID
    if entry.validated:
        return RmpState.INVALID
    if not entry.immutable:
        return RmpState.RECLAIM
    if entry.gfn_delta == 0 and entry.marker == Marker.FIRMWARE:
        return RmpState.CONTEXT if entry.vmsa else RmpState.FIRMWARE
    if entry.gfn_delta and entry.marker == Marker.METADATA:
        return RmpState.METADATA
    return RmpState.INVALID


def encode(entry: RmpEntry | None, pfn: int, subpage_count: int = 0) -> bytes:
    """The sixteen bytes of page `pfn`'s entry.

    `subpage_count` belongs to the first page of each 2 MiB: how many of the other 511 are assigned as 4 KiB pages.  The lock
    bit follows `immutable`, as in every entry that the firmware writes.
    """
    if entry is None:
        return (subpage_count << 3).to_bytes(ENTRY_SIZE, "little")
    gfn = entry.gfn(pfn) | entry.marker << 36
    first = (
        int(entry.assigned)
        | entry.pagesize << 1
        | entry.immutable << 2
        | subpage_count << 3
        | gfn << 12
        | entry.asid << 51
        | entry.vmsa << 61
        | entry.validated << 62
        | entry.immutable << 63
    )
    return first.to_bytes(8, "little") + bytes(entry.vmpl) + bytes(4)


def decode(raw: bytes | memoryview, pfn: int) -> tuple[RmpEntry | None, int]:
    """The entry that sixteen bytes of page `pfn` mean, and its sub-page count."""
    first = int.from_bytes(raw[:8], "little")
    count = first >> 3 & 0x1FF
    if not first & ~(0x1FF << 3):
        return None, count
    asid, gfn = first >> 51 & ASID_MAX, first >> 12 & GFN_MAX
    marker = 0 if asid else gfn >> 36
    gfn -= marker << 36
    entry = RmpEntry(
        assigned=bool(first & 1),
        validated=bool(first >> 62 & 1),
        immutable=bool(first >> 2 & 1),
        asid=asid,
        gfn_delta=gfn - pfn if asid else gfn,
        vmsa=bool(first >> 61 & 1),
        pagesize=first >> 1 & 1,
        vmpl=(raw[8], raw[9], raw[10], raw[11]),
        marker=marker,
    )
    return entry, count
