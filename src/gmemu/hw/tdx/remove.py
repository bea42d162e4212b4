# SPDX-License-Identifier: GPL-2.0-or-later
"""Leaves that take memory out of a TD, or map it otherwise: blocking, TLB tracking, removal, promotion and demotion.

TLB tracking: BLOCK notes TD_EPOCH in the page's PAMT entry; TRACK begins a new epoch, which takes that no processor runs in
the one before the last; a page goes once no processor can have a translation from before it was blocked.
"""

from __future__ import annotations

from ...uapi.tdx import TdxLeaf, TdxOperand, TdxStatus
from ..memory import PAGE_SHIFT, PAGE_SIZE
from .core import OK, ModuleCore, Seamcall
from .pamt import PageType, PamtEntry
from .sept import (
    LEAF_BLOCKED,
    LEAF_UNBLOCKED,
    LEVEL_2M,
    LEVEL_4K,
    PAGES_PER_2M,
    SeptEntry,
    SeptState,
    SeptTable,
    Walk,
)
from .td import Td

__all__ = ["RemoveLeaves"]

_RCX, _RDX = TdxOperand.RCX, TdxOperand.RDX


class RemoveLeaves(ModuleCore):
    """Each leaf on pages takes a count of 4 KiB pages: that many calls back to back on consecutive ones."""

    def _begin_on(self, leaf: TdxLeaf, tdr: int, gpa: int, level: int) -> tuple[Td | None, Walk, Seamcall]:
        """What these leaves begin with: the TD, and the entry of `level` for `gpa`; or the refusal."""
        none = Walk(level, None, False)
        injected = self._begin(leaf, tdr, gpa)
        if injected is not None:
            return None, none, injected
        td, status = self._td(tdr, leaf, _RDX)
        if td is None:
            return None, none, Seamcall(status)
        if not 0 <= level <= td.sept.top or not self._private(td, gpa, level):
            return None, none, Seamcall(TdxStatus.OPERAND_INVALID | _RCX)
        gfn = gpa >> PAGE_SHIFT
        walk = td.sept.walk(gfn, level)
        if not walk.reached:
            return None, walk, self._report(td, TdxStatus.EPT_WALK_FAILED | _RCX, walk)
        if self._busy(td, gfn, 1 << 9 * level):
            return None, walk, self._report(td, TdxStatus.OPERAND_BUSY | TdxOperand.SEPT, walk)
        return td, walk, OK

    def _pages(self, count: int) -> int:
        return 1 if self.inject is not None else count

    # Blocking and tracking

    def mem_range_block(self, tdr: int, gpa: int, level: int = LEVEL_4K, count: int = 1) -> tuple[Seamcall, int]:
        """TDH.MEM.RANGE.BLOCK: nothing new is translated through the entry; BEPOCH is the current epoch."""
        done = 0
        while done < count:
            at = gpa + done * PAGE_SIZE
            td, walk, refused = self._begin_on(TdxLeaf.MEM_RANGE_BLOCK, tdr, at, level)
            if td is None:
                return refused, done
            gfn, entry = at >> PAGE_SHIFT, walk.entry
            if isinstance(entry, SeptTable):
                result = self._block_table(td, level, gfn, entry, walk)
                return result, 0 if result.status else 1
            if entry is None:
                return self._report(td, TdxStatus.EPT_ENTRY_FREE | _RCX, walk), done
            if entry.state not in LEAF_BLOCKED:
                return self._report(td, TdxStatus.GPA_RANGE_ALREADY_BLOCKED | _RCX, walk), done
            n = self._leaf_run(td, gfn, entry, self._pages(count - done))
            td.sept.leaves.set(gfn, gfn + n, entry._replace(state=LEAF_BLOCKED[entry.state]))
            pfn = gfn + entry.delta
            self.pamt.assign(pfn, n, PamtEntry(PageType.REG, tdr, td.epoch))
            done += n
        return OK, done

    def _block_table(self, td: Td, level: int, gfn: int, table: SeptTable, walk: Walk) -> Seamcall:
        if table.state is SeptState.NL_BLOCKED:
            return self._report(td, TdxStatus.GPA_RANGE_ALREADY_BLOCKED | _RCX, walk)
        td.sept.tables[level, gfn >> 9 * level] = table._replace(state=SeptState.NL_BLOCKED)
        self.pamt.assign(table.pfn, 1, PamtEntry(PageType.EPT, td.tdr, td.epoch))
        return OK

    def mem_track(self, tdr: int, count: int = 1) -> Seamcall:
        """TDH.MEM.TRACK, `count` times: a new TLB epoch.  PREVIOUS_TLB_EPOCH_BUSY while a processor runs in the last one."""
        while count:
            injected = self._begin(TdxLeaf.MEM_TRACK, tdr, tdr)
            if injected is not None:
                return injected
            td, status = self._td(tdr, TdxLeaf.MEM_TRACK, _RCX)
            if td is None:
                return Seamcall(status)
            if td.runs_in(td.epoch - 1):
                return Seamcall(TdxStatus.PREVIOUS_TLB_EPOCH_BUSY | TdxOperand.TD_EPOCH)
            passed = count if self.inject is None and not td.runs else 1
            td.epoch, count = td.epoch + passed, count - passed
        return OK

    def mem_range_unblock(self, tdr: int, gpa: int, level: int = LEVEL_4K) -> Seamcall:
        """TDH.MEM.RANGE.UNBLOCK: as it was before, once tracking is done."""
        td, walk, refused = self._begin_on(TdxLeaf.MEM_RANGE_UNBLOCK, tdr, gpa, level)
        if td is None:
            return refused
        gfn, entry = gpa >> PAGE_SHIFT, walk.entry
        if entry is None or entry.state not in (SeptState.NL_BLOCKED, *LEAF_UNBLOCKED):
            return self._report(td, TdxStatus.GPA_RANGE_NOT_BLOCKED | _RCX, walk)
        pfn = entry.pfn if isinstance(entry, SeptTable) else gfn + entry.delta
        if not self._tracking_done(td, pfn):
            return self._report(td, TdxStatus.TLB_TRACKING_NOT_DONE | _RCX, walk)
        if isinstance(entry, SeptTable):
            td.sept.tables[level, gfn >> 9 * level] = entry._replace(state=SeptState.NL_MAPPED)
        else:
            size = 1 << 9 * entry.level
            td.sept.leaves.set(gfn, gfn + size, entry._replace(state=LEAF_UNBLOCKED[entry.state]))
        return OK

    def _tracking_done(self, td: Td, pfn: int) -> bool:
        """No processor can have a translation from before the page was blocked."""
        entry = self.pamt.entries[pfn]
        assert entry is not None
        if not td.tracked or entry.bepoch < td.epoch - 1:
            return True
        return entry.bepoch == td.epoch - 1 and not td.runs_in(td.epoch - 1)

    # Removal

    def mem_page_remove(self, tdr: int, gpa: int, level: int = LEVEL_4K, count: int = 1) -> tuple[Seamcall, int]:
        """TDH.MEM.PAGE.REMOVE: a blocked and tracked page is nobody's; its bytes stay as the TD's key left them.

        Before the TD can run, a page needn't be blocked.  RCX of the last call is the page's address.
        """
        done, result = 0, OK
        while done < count:
            at = gpa + done * PAGE_SIZE
            td, walk, refused = self._begin_on(TdxLeaf.MEM_PAGE_REMOVE, tdr, at, level)
            if td is None:
                return refused, done
            gfn, entry = at >> PAGE_SHIFT, walk.entry
            if not isinstance(entry, SeptEntry):
                status = TdxStatus.EPT_ENTRY_FREE if entry is None else TdxStatus.EPT_ENTRY_NOT_LEAF
                return self._report(td, status | _RCX, walk), done
            if td.tracked and entry.state not in LEAF_UNBLOCKED:
                return self._report(td, TdxStatus.GPA_RANGE_NOT_BLOCKED | _RCX, walk), done
            pfn = gfn + entry.delta
            if not self._tracking_done(td, pfn):
                return self._report(td, TdxStatus.TLB_TRACKING_NOT_DONE | _RCX, walk), done
            n = self._leaf_run(td, gfn, entry, self._pages(count - done))
            _, end, _ = self.pamt.entries.run(pfn)
            n = min(n, end - pfn) if entry.level == LEVEL_4K else n
            td.sept.leaves.clear(gfn, gfn + n)
            self.pamt.release(pfn, n)
            self.unflushed.set(pfn, pfn + n, True)
            td.children -= n
            result, done = Seamcall(TdxStatus.SUCCESS, (pfn + n - 1) << PAGE_SHIFT), done + n
        return result, done

    def mem_sept_remove(self, tdr: int, gpa: int, level: int) -> Seamcall:
        """TDH.MEM.SEPT.REMOVE: an empty table, blocked and tracked if processors may run, goes.  RCX: its address."""
        td, walk, refused = self._begin_on(TdxLeaf.MEM_SEPT_REMOVE, tdr, gpa, level)
        if td is None:
            return refused
        gfn, entry = gpa >> PAGE_SHIFT, walk.entry
        if not isinstance(entry, SeptTable):
            status = TdxStatus.EPT_ENTRY_FREE if entry is None else TdxStatus.EPT_ENTRY_LEAF
            return self._report(td, status | _RCX, walk)
        if td.sept.children(gfn, level):
            return self._report(td, TdxStatus.EPT_PAGE_NOT_FREE | _RCX, walk)
        if td.tracked and entry.state is not SeptState.NL_BLOCKED:
            return self._report(td, TdxStatus.GPA_RANGE_NOT_BLOCKED | _RCX, walk)
        if not self._tracking_done(td, entry.pfn):
            return self._report(td, TdxStatus.TLB_TRACKING_NOT_DONE | _RCX, walk)
        del td.sept.tables[level, gfn >> 9 * level]
        self.pamt.release(entry.pfn, 1)
        self.unflushed.set(entry.pfn, entry.pfn + 1, True)
        td.children -= 1
        return Seamcall(TdxStatus.SUCCESS, entry.pfn << PAGE_SHIFT)

    # Sizes

    def mem_page_promote(self, tdr: int, gpa: int) -> Seamcall:
        """TDH.MEM.PAGE.PROMOTE: a blocked table of 512 like leaves becomes one leaf of 2 MiB.  RCX: the table's address."""
        td, walk, refused = self._begin_on(TdxLeaf.MEM_PAGE_PROMOTE, tdr, gpa, LEVEL_2M)
        if td is None:
            return refused
        gfn, table = gpa >> PAGE_SHIFT, walk.entry
        if not isinstance(table, SeptTable):
            status = TdxStatus.EPT_ENTRY_FREE if table is None else TdxStatus.EPT_ENTRY_LEAF
            return self._report(td, status | _RCX, walk)
        if td.tracked and table.state is not SeptState.NL_BLOCKED:
            return self._report(td, TdxStatus.GPA_RANGE_NOT_BLOCKED | _RCX, walk)
        if not self._tracking_done(td, table.pfn):
            return self._report(td, TdxStatus.TLB_TRACKING_NOT_DONE | _RCX, walk)
        entry = td.sept.leaves[gfn]
        alike = entry is not None and td.sept.leaves.covers(gfn, gfn + PAGES_PER_2M, entry)
        if entry is None or not alike or entry.state not in LEAF_BLOCKED or (gfn + entry.delta) % PAGES_PER_2M:
            return self._report(td, TdxStatus.EPT_INVALID_PROMOTE_CONDITIONS | _RCX, walk)
        del td.sept.tables[LEVEL_2M, gfn >> 9]
        td.sept.leaves.set(gfn, gfn + PAGES_PER_2M, entry._replace(level=LEVEL_2M))
        self.pamt.release(table.pfn, 1)
        self.unflushed.set(table.pfn, table.pfn + 1, True)
        td.children -= 1
        return Seamcall(TdxStatus.SUCCESS, table.pfn << PAGE_SHIFT)

    def mem_page_demote(self, tdr: int, gpa: int, pfn: int) -> Seamcall:
        """TDH.MEM.PAGE.DEMOTE: a leaf of 2 MiB becomes 512 leaves in a new table in page `pfn`; the bytes stay.

        With processors running it must be blocked and tracked, and is unblocked by it.
        """
        td, walk, refused = self._begin_on(TdxLeaf.MEM_PAGE_DEMOTE, tdr, gpa, LEVEL_2M)
        if td is None:
            return refused
        status = self._free_page(pfn, TdxOperand.R8)
        if status:
            return Seamcall(status)
        gfn, entry = gpa >> PAGE_SHIFT, walk.entry
        if not isinstance(entry, SeptEntry):
            status = TdxStatus.EPT_ENTRY_FREE if entry is None else TdxStatus.EPT_ENTRY_NOT_LEAF
            return self._report(td, status | _RCX, walk)
        if td.tracked and entry.state not in LEAF_UNBLOCKED:
            return self._report(td, TdxStatus.GPA_RANGE_NOT_BLOCKED | _RCX, walk)
        if not self._tracking_done(td, gfn + entry.delta):
            return self._report(td, TdxStatus.TLB_TRACKING_NOT_DONE | _RCX, walk)
        self._take(td, pfn, PageType.EPT)
        td.sept.tables[LEVEL_2M, gfn >> 9] = SeptTable(SeptState.NL_MAPPED, pfn)
        state = LEAF_UNBLOCKED.get(entry.state, entry.state)
        td.sept.leaves.set(gfn, gfn + PAGES_PER_2M, SeptEntry(state, entry.delta))
        return OK

    def _leaf_run(self, td: Td, gfn: int, entry: SeptEntry, count: int) -> int:
        """How many of `count` pages from `gfn` are mapped by entries like this one; a large page goes whole."""
        if entry.level:
            return 1 << 9 * entry.level
        _, end, _ = td.sept.leaves.run(gfn)
        return min(end - gfn, count)
