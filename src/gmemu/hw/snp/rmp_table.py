# SPDX-License-Identifier: GPL-2.0-or-later
"""The reverse map table as memory: who owns each system page.  The instructions on it are in `rmp`.

Kept as runs: a guest's pages are alike but for their number, so a terabyte costs what it is divided into.  Each access marks
``("rmp", pfn)``; where nothing can run between like steps (`Runtime.batch`) a run is one step.
"""

from __future__ import annotations

from collections.abc import Callable

from ...rangemap import RangeMap
from ...sync import Runtime
from .rmp_entry import PAGES_PER_2M, SUBPAGE, RmpEntry, RmpState, encode, state_of

__all__ = ["Inject", "RmpTable"]

Inject = Callable[[str, int, int | None], int | None]
"""Asked before each instruction on the table with its name, the page, and the guest page where it names one: the code to
return instead of executing it, or `None`."""


class RmpTable:
    """Entries for system pages 0 to `npages` - 1; pages above are in the DEFAULT state and have none."""

    def __init__(self, rt: Runtime, npages: int) -> None:
        self.npages = npages
        self.entries: RangeMap[RmpEntry] = RangeMap()
        """pfn -> entry that covers the page.  For looking at: change it by an instruction or a firmware command."""
        self.in_use: set[int] = set()
        """Pages whose entry hardware holds: the VMSA of each running vCPU."""
        self.inject: Inject | None = None
        self._rt = rt

    def covers(self, pfn: int) -> bool:
        """Whether the table has an entry for the page."""
        return 0 <= pfn < self.npages

    def lookup(self, pfn: int) -> RmpEntry | None:
        """The entry that covers the page (snp_lookup_rmpentry()): a 2 MiB page's head for any of its 512 pages.

        `None`: no one owns the page but the hypervisor.  `LookupError`: the table doesn't reach so far.
        """
        if not self.covers(pfn):
            raise LookupError(f"page {pfn:#x} lies outside the RMP, which covers {self.npages:#x} pages")
        self._rt.reads(("rmp", pfn))
        return self.entries[pfn]

    def own(self, pfn: int) -> RmpEntry | None:
        """The page's own entry, as the firmware reads it: below a 2 MiB entry that is not the head's."""
        entry = self.lookup(pfn)
        return SUBPAGE if entry is not None and entry.pagesize and pfn % PAGES_PER_2M else entry

    def state(self, pfn: int) -> RmpState:
        """The page state; all pages below a 2 MiB entry are in its state."""
        return state_of(self.lookup(pfn)) if self.covers(pfn) else RmpState.DEFAULT

    def own_state(self, pfn: int) -> RmpState:
        """The page state by the page's own entry, which is what firmware commands go by."""
        return state_of(self.own(pfn)) if self.covers(pfn) else RmpState.DEFAULT

    def own_run(self, pfn: int, limit: int) -> tuple[RmpEntry | None, int]:
        """The page's own entry and how many pages from it on, up to `limit`, hold the same.  The page must be covered."""
        limit = self._rt.batch(limit)
        self._rt.reads(("rmp", pfn))
        _, end, entry = self.entries.run(pfn)
        if entry is not None and entry.pagesize and pfn % PAGES_PER_2M:
            return SUBPAGE, 1
        return entry, min(end, self.npages, pfn + limit) - pfn

    def raw(self, pfn: int) -> bytes:
        """The sixteen bytes of the page's own entry, as they stand in memory."""
        entry = self.own(pfn)
        if pfn % PAGES_PER_2M or (entry is not None and entry.pagesize):
            return encode(entry, pfn)
        below = self.entries.runs(pfn + 1, pfn + PAGES_PER_2M)
        return encode(entry, pfn, sum(end - start for start, end, sub in below if sub.assigned))

    def owned(self, pfn: int, count: int = 1) -> bool:
        """Whether a page of the range isn't the hypervisor's, and so may not be given back to the host's allocator."""
        self._mark(self._rt.reads, pfn, count)
        return not self.entries.empty(pfn, pfn + count)

    def unassigned(self, pfn: int, count: int) -> list[tuple[int, int]]:
        """The runs [start, end) among `count` pages that nobody owns but the hypervisor, looked up as one."""
        self._rt.reads(("rmp", pfn) if count == 1 else ("rmp", pfn, pfn + count))
        return [(start, end) for start, end, entry in self.entries.spans(pfn, pfn + count) if entry is None]

    def check_host_write(self, pfn: int, count: int = 1) -> bool:
        """Whether the host may write all these pages.  A write to an assigned one is a #PF with the RMP bit (APM vol. 2).

        The host may read any page; it gets ciphertext.
        """
        self._mark(self._rt.reads, pfn, count)
        if self.entries.empty(pfn, pfn + count):
            return True
        return not any(entry.assigned for _, _, entry in self.entries.runs(pfn, pfn + count))

    def set_in_use(self, pfn: int, in_use: bool) -> None:
        """VMRUN marks the VMSA's entry while the vCPU runs; RMPUPDATE and PSMASH then answer FAIL_INUSE."""
        self._rt.writes(("rmp", pfn))
        if in_use:
            self.in_use.add(pfn)
        else:
            self.in_use.discard(pfn)

    def assigned_to(self, asid: int) -> int:
        """How many pages the ASID owns.  Hardware counts them in the 16 KiB before the first entry."""
        runs = [(start, end) for start, end, entry in self.entries.runs() if entry.asid == asid]
        for start, end in runs:
            self._mark(self._rt.reads, start, end - start)
        return sum(end - start for start, end in runs)

    def set_validated(
        self, pfn: int, count: int, *, vmsa: bool = False, vmpl_masks: tuple[int, int, int] = (0, 0, 0)
    ) -> None:
        """What SNP_LAUNCH_UPDATE writes when it is done with `count` pages: GUEST_VALID, and the masks of VMPL 1 to 3."""
        self.firmware_write(
            pfn,
            count,
            lambda entry: entry._replace(
                validated=True, immutable=False, vmsa=vmsa or entry.vmsa, vmpl=(entry.vmpl[0], *vmpl_masks)
            ),
        )

    def firmware_write(self, pfn: int, count: int, change: Callable[[RmpEntry], RmpEntry | None]) -> None:
        """The firmware rewrites the entries of `count` pages that have one; it checks for itself what it may do."""
        self._mark(self._rt.writes, pfn, count)
        for start, end, entry in list(self.entries.runs(pfn, pfn + count)):
            self.entries.set(start, end, change(entry))

    def _mark(self, mark: Callable[[object], None], pfn: int, count: int) -> None:
        """Mark an access to each page, or one for all where no other task could tell the difference."""
        for page in range(pfn, pfn + (1 if self._rt.batch(count) == count else count)):
            mark(("rmp", page))

    def _mark_2m(self, pfn: int, pagesize: int = 1) -> None:
        """Mark what one instruction does to the entry of a 2 MiB page and those below it, or to that of a 4 KiB page."""
        self._rt.writes(("rmp", pfn, pfn + PAGES_PER_2M) if pagesize else ("rmp", pfn))

    def _held(self, start: int, end: int) -> int | None:
        """The first page of the range that hardware holds."""
        return min((pfn for pfn in self.in_use if start <= pfn < end), default=None) if self.in_use else None
