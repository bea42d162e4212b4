# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM's side of the secure EPT: the mirror that it keeps, and the SEAMCALLs by which the real one follows.

Only OPERAND_BUSY is ever expected of them.  When something is mapped it means "try again"; when something is removed,
"once more with every vCPU out of the guest".  Anything else is a bug, and the VM is dead (TDX_BUG_ON).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from ...hw.memory import PAGE_SHIFT
from ...hw.tdx.core import Seamcall
from ...hw.tdx.pamt import PageType, PamtEntry
from ...invariants import InvariantViolation
from ...rangemap import RangeMap
from ...uapi.tdx import tdx_operand_busy
from ..mmu import RetPf

if TYPE_CHECKING:
    from ...hw.tdx.td import Td
    from .tdx import TdxVm
    from .tdx_pages import Bug

__all__ = ["BUSY_LIMIT", "TdxSept"]

PAGES_PER_2M = 512
BUSY_LIMIT = 100_000
"""How often in a row a mapping may find its entry busy.  KVM tries for ever; here somebody has ordered it."""


class TdxSept:
    """The mirror page table: which frames are mapped (4 KiB each) and which tables there are.

    `wait_for_zap` keeps vCPUs from entering while a removal is tried again.  `page_add_source` is what PAGE.ADD copies
    from, set while a page is populated; slots_lock protects it.
    """

    def __init__(self, td: TdxVm) -> None:
        self.td, self.vm, self.module, self.platform = td, td.vm, td.module, td.platform
        self.leaves: RangeMap[int] = RangeMap()
        """gfn -> pfn - gfn"""
        self.tables: dict[tuple[int, int], int] = {}
        """(level of the entry that leads to it, gfn >> 9 * level) -> page of the table"""
        self.page_add_source: int | None = None
        self.wait_for_zap = False

    # Mapping

    def map(self, gfn: int, pfn: int) -> RetPf:
        """kvm_tdp_mmu_map() in the mirror, for one page: RETRY if the secure EPT was busy, or the VM is dead by now."""
        if self.leaves[gfn] is not None:
            return RetPf.SPURIOUS
        if not self._map_tables(gfn):
            return RetPf.RETRY
        result = self._map_leaf(gfn, pfn)
        if result.status:
            return RetPf.RETRY
        self._mapped(gfn, pfn, 1)
        return RetPf.FIXED

    def _map_leaf(self, gfn: int, pfn: int) -> Seamcall:
        """tdx_sept_map_leaf_spte(): ADD before the TD is final, AUG after."""
        if not self.td.pre_fault_allowed:
            if self.page_add_source is None:
                self.vm.bug("a page is to be added, but none is being populated")
                return Seamcall(-1)
            result, _ = self.module.mem_page_add(self.td.tdr, gfn << PAGE_SHIFT, pfn, self.page_add_source)
            self._check(result, "TDH_MEM_PAGE_ADD")
            return result
        result, _ = self.module.mem_page_aug(self.td.tdr, gfn << PAGE_SHIFT, pfn)
        self._check(result, "TDH_MEM_PAGE_AUG")
        return result

    def _map_tables(self, gfn: int) -> bool:
        """The tables that lead to `gfn`, made from the top down where they are missing.  False: busy, or the VM is dead."""
        top = 4 if self.td.gfn_direct_bits >> 39 else 3
        for level in range(top, 0, -1):
            if (level, gfn >> 9 * level) in self.tables:
                continue
            pfn = self.platform.alloc_page()
            base = gfn >> 9 * level << 9 * level
            result = self.module.mem_sept_add(self.td.tdr, base << PAGE_SHIFT, level, pfn)
            if result.status:
                self.platform.free_page(pfn)
                self._check(result, "TDH_MEM_SEPT_ADD")
                return False
            self.tables[level, gfn >> 9 * level] = pfn
        return True

    def _check(self, result: Seamcall, leaf: str) -> None:
        if result.status and not tdx_operand_busy(result.status):
            self.td.bug(result.status, leaf)

    def _mapped(self, gfn: int, pfn: int, count: int) -> None:
        self.leaves.set(gfn, gfn + count, pfn - gfn)
        self.vm.host.design.private_pages.mapped(self.vm.host, pfn, count)

    def add_run(self, gfn: int, pfn: int, source: int, count: int, measure: bool) -> int:
        """Populate as many of `count` pages as are fresh, where nothing can run between them: how many.

        The pages are added, and with `measure` extended, one after the other, as `map` would do it.
        """
        _, end, delta = self.leaves.run(gfn)
        if delta is not None or not self._map_tables(gfn):
            return 0
        count = min(count, end - gfn, (gfn | PAGES_PER_2M - 1) + 1 - gfn)
        add = self.module.mem_page_add_extend if measure else self.module.mem_page_add
        result, done = add(self.td.tdr, gfn << PAGE_SHIFT, pfn, source, count)
        self._check(result, "TDH_MEM_PAGE_ADD")
        if done:
            self._mapped(gfn, pfn, done)
        return done

    # Removal

    def unmap_range(self, start: int, end: int) -> bool:
        """tdp_mmu_zap_leafs() in the mirror; mmu_lock is held exclusively.  True if TLBs must be flushed."""
        self.vm.mmu_lock.assert_exclusive()
        runs = list(self.leaves.runs(start, end))
        for s, e, delta in runs:
            while s < e:
                n = 1 if self.module.inject is not None else self.vm.rt.batch(e - s)
                self.leaves.clear(s, s + n)
                bug = self._remove_leaves(s, s + delta, n)
                if bug is None:
                    self.vm.host.design.private_pages.removed(self.vm.host, s + delta, n)
                else:
                    self.vm.host.design.private_pages.not_removed(self.vm.host, s + delta, n, bug)
                s += n
        return bool(runs)

    def _remove_leaves(self, gfn: int, pfn: int, count: int) -> Bug | None:
        """tdx_sept_remove_leaf_spte() for `count` pages: BLOCK, TRACK and kick, REMOVE, WBINVD, scrub.

        What failed is a bug, which whoever decides over the pages (`PrivatePages`) has to declare.
        """
        td, module, gpa = self.td, self.module, gfn << PAGE_SHIFT
        if not td.hkid:
            return partial(self.vm.bug, "a private page is removed without a key")
        result = self._no_vcpus(lambda: module.mem_range_block(td.tdr, gpa, count=count)[0])
        if result.status:
            return partial(td.bug, result.status, "TDH_MEM_RANGE_BLOCK")
        self._track(count)
        result = self._no_vcpus(lambda: module.mem_page_remove(td.tdr, gpa, count=count)[0])
        if result.status:
            return partial(td.bug, result.status, "TDH_MEM_PAGE_REMOVE")
        result = module.phymem_page_wbinvd(pfn, count)
        if result.status:
            return partial(td.bug, result.status, "TDH_PHYMEM_PAGE_WBINVD")
        self.platform.quirk_reset(pfn, count)
        return None

    def _track(self, count: int) -> None:
        """tdx_track(): a new epoch for each page, and every vCPU out of the old one."""
        if not self.td.pre_fault_allowed:
            return
        result = self._no_vcpus(lambda: self.module.mem_track(self.td.tdr))
        if result.status:
            self.td.bug(result.status, "TDH_MEM_TRACK")
        self.td.kick_all()
        if count > 1 and not result.status:
            self.module.mem_track(self.td.tdr, count - 1)

    def _no_vcpus(self, seamcall: Callable[[], Seamcall]) -> Seamcall:
        """tdh_do_no_vcpus(): when busy, once more with every vCPU kicked out and kept out."""
        result = seamcall()
        if tdx_operand_busy(result.status):
            self.wait_for_zap = True
            self.td.kick_all()
            result = seamcall()
            self.wait_for_zap = False
        return result

    def free_tables(self) -> None:
        """tdx_sept_free_private_spt() for every table, lowest first.  One that can't be had back is leaked."""
        for level, index in sorted(self.tables):
            pfn = self.tables[level, index]
            if self.td.hkid:
                self.vm.bug("a table of the secure EPT is freed while the TD has a key")
                self.platform.leak(pfn)
            else:
                self.platform.reclaim_control_page(pfn)
        self.tables.clear()

    # For those who check what must hold

    def check(self, td: Td) -> None:
        """Compare the mirror with the secure EPT, PAMT and the attributes."""
        if {key: table.pfn for key, table in td.sept.tables.items()} != self.tables:
            raise InvariantViolation(f"{self.vm}: the mirror's tables aren't those of the secure EPT")
        found = [(s, e, entry.delta) for s, e, entry in td.sept.leaves.runs()]
        for start, end, delta in found:
            if not self.leaves.covers(start, end, delta):
                raise InvariantViolation(
                    f"{self.vm}: gfn {start:#x}-{end:#x} is in the secure EPT, and not so in the mirror"
                )
            private = self.vm.attributes.private_run(start, end - start)
            if private < end - start:
                raise InvariantViolation(f"{self.vm}: gfn {start + private:#x} is in the secure EPT, and is shared")
            owned = PamtEntry(PageType.REG, td.tdr)
            for s, e, entry in self.module.pamt.entries.spans(start + delta, end + delta):
                if entry is None or entry._replace(bepoch=0) != owned:
                    raise InvariantViolation(f"pfn {s:#x}-{e:#x} is in a secure EPT, and {entry} in PAMT")
        if sum(e - s for s, e, _ in self.leaves.runs()) != sum(e - s for s, e, _ in found):
            raise InvariantViolation(f"{self.vm}: the mirror has pages that the secure EPT hasn't")


def livelock(what: str) -> InvariantViolation:
    """Trying again was of no use for so long that nothing else can come of it."""
    return InvariantViolation(f"{what} was busy {BUSY_LIMIT} times in a row: KVM would try for ever")
