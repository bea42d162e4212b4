# SPDX-License-Identifier: GPL-2.0-or-later
"""Leaves that put memory into a TD: TDH.MEM.SEPT.ADD, .PAGE.ADD, .PAGE.AUG, TDH.MR.EXTEND and .FINALIZE.

Those on pages take a count: that many calls back to back on consecutive pages.  They return how the last one ended, and how
many succeeded.
"""

from __future__ import annotations

from ...uapi.tdx import TDX_EXTENDMR_CHUNKSIZE, TdxLeaf, TdxOperand, TdxStatus
from ..memory import PAGE_SHIFT, PAGE_SIZE
from .core import OK, ModuleCore, Seamcall
from .mrtd import Row
from .pamt import PageType
from .sept import LEVEL_4K, PAGES_PER_2M, SeptEntry, SeptState, SeptTable
from .td import OpState, Td

__all__ = ["BuildLeaves"]


class BuildLeaves(ModuleCore):
    """The tree and what hangs on it."""

    def mem_sept_add(self, tdr: int, gpa: int, level: int, pfn: int) -> Seamcall:
        """TDH.MEM.SEPT.ADD: the entry of `level` (1 and up) for `gpa` leads to a new, empty table in page `pfn`."""
        injected = self._begin(TdxLeaf.MEM_SEPT_ADD, tdr, gpa)
        if injected is not None:
            return injected
        td, status = self._td(tdr, TdxLeaf.MEM_SEPT_ADD, TdxOperand.RDX)
        if td is None:
            return Seamcall(status)
        if not 0 < level <= td.sept.top or not self._private(td, gpa, level):
            return Seamcall(TdxStatus.OPERAND_INVALID | TdxOperand.RCX)
        status = self._free_page(pfn, TdxOperand.R8)
        if status:
            return Seamcall(status)
        gfn = gpa >> PAGE_SHIFT
        walk = td.sept.walk(gfn, level)
        if not walk.reached:
            return self._report(td, TdxStatus.EPT_WALK_FAILED | TdxOperand.RCX, walk)
        if walk.entry is not None:
            status = TdxStatus.EPT_ENTRY_STATE_INCORRECT
            if walk.state is SeptState.NL_MAPPED:
                status = TdxStatus.EPT_ENTRY_NOT_FREE
            return self._report(td, status | TdxOperand.RCX, walk)
        self._take(td, pfn, PageType.EPT)
        td.sept.tables[level, gfn >> 9 * level] = SeptTable(SeptState.NL_MAPPED, pfn)
        return OK

    def mem_page_add(self, tdr: int, gpa: int, pfn: int, source: int, count: int = 1) -> tuple[Seamcall, int]:
        """TDH.MEM.PAGE.ADD: page `pfn` gets the bytes of page `source` (which it may be itself) and is mapped at `gpa`.

        MRTD absorbs the address.
        """
        done = 0
        while done < count:
            result, n = self._add(tdr, gpa + done * PAGE_SIZE, pfn + done, source + done, count - done)
            if result.status:
                return result, done
            td = self.tds[tdr]
            self._absorb_addresses(td, gpa + done * PAGE_SIZE, n)
            done += n
        return OK, done

    def mem_page_add_extend(self, tdr: int, gpa: int, pfn: int, source: int, count: int = 1) -> tuple[Seamcall, int]:
        """TDH.MEM.PAGE.ADD and sixteen TDH.MR.EXTEND for each page in turn, which is the order in which KVM calls them."""
        done = 0
        while done < count:
            at = gpa + done * PAGE_SIZE
            result, n = self._add(tdr, at, pfn + done, source + done, count - done)
            if result.status:
                return result, done
            if self.inject is None:
                address = (pfn + done) << PAGE_SHIFT
                self._absorb_pages(self.tds[tdr], at, self.memory.view[address : address + n * PAGE_SIZE])
            else:
                self.tds[tdr].mrtd.page_add(at)
                result = self.mr_extend_page(tdr, at)
                if result.status:
                    return result, done
            done += n
        return OK, done

    def _add(self, tdr: int, gpa: int, pfn: int, source: int, count: int) -> tuple[Seamcall, int]:
        """PAGE.ADD but for the measurement, for as many of `count` pages as are alike."""
        injected = self._begin(TdxLeaf.MEM_PAGE_ADD, tdr, gpa)
        if injected is not None:
            return injected, 0
        td, status = self._td(tdr, TdxLeaf.MEM_PAGE_ADD, TdxOperand.RDX)
        if td is None:
            return Seamcall(status), 0
        if not self._private(td, gpa, LEVEL_4K):
            return Seamcall(TdxStatus.OPERAND_INVALID | TdxOperand.RCX), 0
        if not self.memory.holds(source):
            return Seamcall(TdxStatus.OPERAND_INVALID | TdxOperand.R9), 0
        n, refused = self._map(td, gpa, pfn, SeptState.MAPPED, 1 if self.inject is not None else count)
        if refused is not None:
            return refused, 0
        if source == pfn:
            self.memory.rekey(pfn, n, 0)
        else:
            self.memory.copy(pfn, source, n)
        self.memory.encrypt_in_place(pfn, n, td.hkid)
        self.heal(pfn, n)
        return OK, n

    def _map(self, td: Td, gpa: int, pfn: int, state: SeptState, count: int) -> tuple[int, Seamcall | None]:
        """Give the TD pages from `pfn` on and set free entries from `gpa` on, as far as they are alike; or the refusal."""
        status = self._free_page(pfn, TdxOperand.R8)
        if status:
            return 0, Seamcall(status)
        gfn = gpa >> PAGE_SHIFT
        n, entry = td.sept.leaf_run(gfn, count)
        walk = td.sept.walk(gfn, LEVEL_4K)
        if not n:
            return 0, self._report(td, TdxStatus.EPT_WALK_FAILED | TdxOperand.RCX, walk)
        if entry is not None:
            return 0, self._report(td, TdxStatus.EPT_ENTRY_STATE_INCORRECT | TdxOperand.RCX, walk)
        if self._busy(td, gfn, 1):
            return 0, self._report(td, TdxStatus.OPERAND_BUSY | TdxOperand.SEPT, walk)
        _, end, _ = self.pamt.entries.run(pfn)
        n = min(n, end - pfn, self.pamt.npages - pfn)
        self._take(td, pfn, PageType.REG, n)
        td.sept.leaves.set(gfn, gfn + n, SeptEntry(state, pfn - gfn))
        return n, None

    def _absorb_addresses(self, td: Td, gpa: int, count: int) -> None:
        if self.log is None:
            td.mrtd.page_add(gpa, count)
            return
        rows: list[Row] = []
        for at in range(gpa, gpa + count * PAGE_SIZE, PAGE_SIZE):
            td.mrtd.page_add(at)
            rows.append(td.mrtd.row(at, None))
        self.log(td.tdr, rows)

    def _absorb_pages(self, td: Td, gpa: int, contents: memoryview) -> None:
        if self.log is None:
            td.mrtd.page_add_extend(gpa, contents)
            return
        rows: list[Row] = []
        for offset in range(0, len(contents), PAGE_SIZE):
            page = contents[offset : offset + PAGE_SIZE]
            td.mrtd.page_add_extend(gpa + offset, page)
            rows.append(td.mrtd.row(gpa + offset, page))
        self.log(td.tdr, rows)

    def log_page(self, tdr: int, gpa: int, pfn: int | None) -> None:
        """Tell the log of a page that is in MRTD now; `pfn` where its contents are in it too."""
        if self.log is not None:
            td = self.tds[tdr]
            contents = None if pfn is None else self.memory.read(pfn << PAGE_SHIFT, PAGE_SIZE, td.hkid)
            self.log(tdr, [td.mrtd.row(gpa, contents)])

    def mr_extend(self, tdr: int, gpa: int) -> Seamcall:
        """TDH.MR.EXTEND: MRTD absorbs the 256 bytes at `gpa` of a mapped page."""
        injected = self._begin(TdxLeaf.MR_EXTEND, tdr, gpa)
        if injected is not None:
            return injected
        td, status = self._td(tdr, TdxLeaf.MR_EXTEND, TdxOperand.RDX)
        if td is None:
            return Seamcall(status)
        if gpa % TDX_EXTENDMR_CHUNKSIZE or not self._private(td, gpa & -PAGE_SIZE, LEVEL_4K):
            return Seamcall(TdxStatus.OPERAND_INVALID | TdxOperand.RCX)
        walk = td.sept.walk(gpa >> PAGE_SHIFT, LEVEL_4K)
        if not walk.reached:
            return self._report(td, TdxStatus.EPT_WALK_FAILED | TdxOperand.RCX, walk)
        if not isinstance(walk.entry, SeptEntry) or walk.state is not SeptState.MAPPED:
            return self._report(td, TdxStatus.EPT_ENTRY_STATE_INCORRECT | TdxOperand.RCX, walk)
        td.mrtd.extend(gpa, self.memory.read(gpa + (walk.entry.delta << PAGE_SHIFT), TDX_EXTENDMR_CHUNKSIZE, td.hkid))
        return OK

    def mr_extend_page(self, tdr: int, gpa: int) -> Seamcall:
        """Sixteen TDH.MR.EXTEND for the page at `gpa`; how the last ended."""
        for chunk in range(gpa, gpa + PAGE_SIZE, TDX_EXTENDMR_CHUNKSIZE):
            result = self.mr_extend(tdr, chunk)
            if result.status:
                return result
        return OK

    def mr_finalize(self, tdr: int) -> Seamcall:
        """TDH.MR.FINALIZE: the measurement is final, the TD may run.  NO_VCPUS if none was made."""
        injected = self._begin(TdxLeaf.MR_FINALIZE, tdr, tdr)
        if injected is not None:
            return injected
        td, status = self._td(tdr, TdxLeaf.MR_FINALIZE, TdxOperand.RCX)
        if td is None:
            return Seamcall(status)
        if not td.vps:
            return Seamcall(TdxStatus.NO_VCPUS)
        td.measurement, td.op_state = td.mrtd.value, OpState.RUNNABLE
        return OK

    def mem_page_aug(self, tdr: int, gpa: int, pfn: int, count: int = 1, level: int = LEVEL_4K) -> tuple[Seamcall, int]:
        """TDH.MEM.PAGE.AUG: page `pfn` is the TD's at `gpa`, PENDING until the guest accepts it.  It isn't zeroed now.

        `level` 1 adds one large page; `count` counts 4 KiB pages otherwise.
        """
        done = 0
        while done < count:
            result, n = self._aug(tdr, gpa + done * PAGE_SIZE, pfn + done, count - done, level)
            if result.status:
                return result, done
            done += n
        return OK, done

    def _aug(self, tdr: int, gpa: int, pfn: int, count: int, level: int) -> tuple[Seamcall, int]:
        injected = self._begin(TdxLeaf.MEM_PAGE_AUG, tdr, gpa)
        if injected is not None:
            return injected, 0
        td, status = self._td(tdr, TdxLeaf.MEM_PAGE_AUG, TdxOperand.RDX)
        if td is None:
            return Seamcall(status), 0
        if level > 1 or not self._private(td, gpa, level) or (level and pfn % PAGES_PER_2M):
            return Seamcall(TdxStatus.OPERAND_INVALID | TdxOperand.RCX), 0
        if level:
            refused = self._map_2m(td, gpa, pfn)
            return (OK, PAGES_PER_2M) if refused is None else (refused, 0)
        n, refused = self._map(td, gpa, pfn, SeptState.PENDING, 1 if self.inject is not None else count)
        return (OK, n) if refused is None else (refused, 0)

    def _map_2m(self, td: Td, gpa: int, pfn: int) -> Seamcall | None:
        status = self._free_page(pfn, TdxOperand.R8, PAGES_PER_2M)
        if status:
            return Seamcall(status)
        gfn = gpa >> PAGE_SHIFT
        walk = td.sept.walk(gfn, 1)
        if not walk.reached:
            return self._report(td, TdxStatus.EPT_WALK_FAILED | TdxOperand.RCX, walk)
        if walk.entry is not None:
            return self._report(td, TdxStatus.EPT_ENTRY_STATE_INCORRECT | TdxOperand.RCX, walk)
        self._take(td, pfn, PageType.REG, PAGES_PER_2M)
        td.sept.leaves.set(gfn, gfn + PAGES_PER_2M, SeptEntry(SeptState.PENDING, pfn - gfn, 1))
        return None
