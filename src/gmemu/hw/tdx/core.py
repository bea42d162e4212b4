# SPDX-License-Identifier: GPL-2.0-or-later
"""What every leaf of the TDX module works on, and the checks that they share."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ...rangemap import RangeMap
from ...sync import Runtime
from ...uapi.tdx import TdAttributes, TdxLeaf, TdxOperand, TdxStatus
from ..memory import PAGE_SHIFT, PAGE_SIZE, PhysicalMemory
from .mrtd import Row
from .pamt import PageType, Pamt, PamtEntry
from .sept import Walk
from .td import ALLOWED_STATES, Lifecycle, Td, Vp

__all__ = ["Inject", "ModuleCore", "ModuleInfo", "Seamcall", "TdLog"]

LINE_SHIFT = 6

Inject = Callable[[TdxLeaf, int], int | None]
"""Asked before each SEAMCALL with its guest physical address, or the page that it names where it has none: the status to
return instead of running it, or `None`."""

TdLog = Callable[[int, list[Row]], None]
"""Told of pages that entered MRTD: the TDR page, and a row for each page in order."""


class ModuleInfo(NamedTuple):
    """What TDH.SYS.RD tells of the module and its platform (struct tdx_sys_info)."""

    version: str = "1.5"
    hkids: range = range(32, 64)
    """Private key ids."""
    tdcs_pages: int = 6
    tdvps_pages: int = 6
    """With the TDVPR page."""
    max_vcpus_per_td: int = 576
    attributes_fixed0: int = int(TdAttributes.DEBUG | TdAttributes.SEPT_VE_DISABLE | TdAttributes.MIGRATABLE)
    attributes_fixed1: int = 0
    xfam_fixed0: int = 0x000618E7
    xfam_fixed1: int = 0x3
    ept_5_levels: bool = True
    packages: int = 1
    cpuid_config: tuple[tuple[int, int, tuple[int, int, int, int]], ...] = (
        (0x1, 0xFFFFFFFF, (0x0FFF3FFF, 0x00FF0000, 0x0, 0x0)),
        (0x4, 0x0, (0xFC000000, 0xFFFFFFFF, 0xFFFFFFFF, 0x0)),
        (0x4, 0x1, (0xFC000000, 0xFFFFFFFF, 0xFFFFFFFF, 0x0)),
        (0x7, 0x0, (0x0, 0xD39FFFEB, 0x1B415F6E, 0xFFBF3FF0)),
        (0x80000007, 0xFFFFFFFF, (0x0, 0x0, 0x0, 0x100)),
        (0x80000008, 0xFFFFFFFF, (0x0, 0x200, 0x0, 0x0)),
    )
    """Leaf, sub-leaf (all ones: none), and the bits of EAX, EBX, ECX and EDX that a VMM may configure."""


class Seamcall(NamedTuple):
    """How a SEAMCALL ended: RAX, and what it has to say in RCX, RDX and R8."""

    status: int
    rcx: int = 0
    rdx: int = 0
    r8: int = 0


OK = Seamcall(TdxStatus.SUCCESS)


class ModuleCore:
    """State of the TDX module.  Pages are named by system page number, guest addresses are bytes."""

    def __init__(
        self, rt: Runtime, memory: PhysicalMemory, npages: int | None = None, info: ModuleInfo | None = None
    ) -> None:
        self.rt, self.memory = rt, memory
        self.info = info or ModuleInfo()
        self.pamt = Pamt(npages if npages is not None else memory.size >> PAGE_SHIFT)
        self.tds: dict[int, Td] = {}
        """TDs by TDR page."""
        self.vps: dict[int, Vp] = {}
        """Virtual processors by TDVPR page."""
        self.inject: Inject | None = None
        self.log: TdLog | None = None
        self.poisoned: RangeMap[bool] = RangeMap()
        """Lines of 64 bytes whose integrity is gone: a TD that reads one gets a machine check."""
        self.unflushed: RangeMap[bool] = RangeMap()
        """Pages that were removed, but whose lines may still be in a cache under the TD's key."""
        self._wbinvd_left: dict[int, int] = {}
        """key id that is to be freed -> packages whose caches aren't written back yet"""

    def _begin(self, leaf: TdxLeaf, tdr: int, what: int) -> Seamcall | None:
        """Every leaf begins here: one step for all that it does to the TD's tables, as the module's locks have it.

        Returns what the leaf is to answer instead of being executed, if it was told to.
        """
        self.rt.writes(("td", tdr))
        if self.inject is None:
            return None
        status = self.inject(leaf, what)
        return None if status is None else Seamcall(status)

    def _td(self, tdr: int, leaf: TdxLeaf, operand: TdxOperand) -> tuple[Td | None, int]:
        """The TD, if its TDR is one, its keys are configured, and its operation state allows the leaf; else a status."""
        if self.pamt.type(tdr) is not PageType.TDR:
            return None, TdxStatus.PAGE_METADATA_INCORRECT | operand
        td = self.tds[tdr]
        if td.fatal:
            return None, TdxStatus.TD_FATAL
        if td.lifecycle is not Lifecycle.KEYS_CONFIGURED:
            return None, TdxStatus.TD_KEYS_NOT_CONFIGURED
        if td.op_state not in ALLOWED_STATES[leaf]:
            return None, TdxStatus.OP_STATE_INCORRECT
        return td, TdxStatus.SUCCESS

    def _vp(self, tdvpr: int, leaf: TdxLeaf) -> tuple[Vp | None, int]:
        """The virtual processor, if its TDVPR is one and its TD allows the leaf; else a status."""
        if self.pamt.type(tdvpr) is not PageType.TDVPR:
            return None, TdxStatus.PAGE_METADATA_INCORRECT | TdxOperand.RCX
        vp = self.vps[tdvpr]
        td, status = self._td(vp.td.tdr, leaf, TdxOperand.TDR)
        return (vp if td is not None else None), status

    def _private(self, td: Td, gpa: int, level: int) -> bool:
        """Whether `gpa` is a private address that an entry of `level` can stand for."""
        gfn = gpa >> PAGE_SHIFT
        aligned = not gpa & (PAGE_SIZE << 9 * level) - 1
        return aligned and gpa >= 0 and gfn < td.shared_gfn_bit

    def _free_page(self, pfn: int, operand: TdxOperand, count: int = 1) -> int:
        """Whether the module may be given these pages: a status."""
        if not self.pamt.covers(pfn, count):
            return TdxStatus.OPERAND_INVALID | operand
        if self.pamt.owned(pfn, count):
            return TdxStatus.PAGE_METADATA_INCORRECT | operand
        return TdxStatus.SUCCESS

    def _take(self, td: Td, pfn: int, type: PageType, count: int = 1) -> None:
        """These pages become the TD's, under its key."""
        self.pamt.assign(pfn, count, PamtEntry(type, td.tdr))
        if type is not PageType.REG:
            self.memory.clear(pfn, count)
            self.memory.encrypt_in_place(pfn, count, td.hkid)
        td.children += count

    def _busy(self, td: Td, gfn: int, count: int) -> bool:
        """Whether a TDCALL holds an entry in this range.  If so, the host's next try comes before the guest's."""
        sept = td.sept
        if sept.locked and any(gfn <= held < gfn + count for held in sept.locked):
            sept.host_priority.add(gfn)
            return True
        if sept.host_priority:
            sept.host_priority.discard(gfn)
        return False

    def _report(self, td: Td, status: int, walk: Walk) -> Seamcall:
        """A status with the entry that it is about."""
        rcx, rdx = td.sept.architectural(walk)
        return Seamcall(status, rcx, rdx)

    def heal(self, pfn: int, count: int) -> None:
        """Whole lines were written under a key by the module: they are sound again."""
        self.poisoned.clear(pfn << PAGE_SHIFT - LINE_SHIFT, (pfn + count) << PAGE_SHIFT - LINE_SHIFT)

    def host_wrote(self, address: int, length: int) -> None:
        """Host software stored `length` bytes at physical `address`: what of it is a TD's is poisoned."""
        first, last = address >> PAGE_SHIFT, address + length - 1 >> PAGE_SHIFT
        for start, end, entry in list(self.pamt.entries.runs(first, last + 1)):
            if entry.type is PageType.NDA:
                continue
            low, high = max(address, start << PAGE_SHIFT), min(address + length, end << PAGE_SHIFT)
            self.poisoned.set(low >> LINE_SHIFT, (high - 1 >> LINE_SHIFT) + 1, True)

    def is_poisoned(self, address: int, length: int) -> bool:
        """Whether a load of these bytes would meet a poisoned line."""
        return not self.poisoned.empty(address >> LINE_SHIFT, (address + length - 1 >> LINE_SHIFT) + 1)
