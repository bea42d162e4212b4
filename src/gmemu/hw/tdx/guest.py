# SPDX-License-Identifier: GPL-2.0-or-later
"""What the TDX module does for a guest: TDCALL leaves, and what hardware finds in the secure EPT."""

from __future__ import annotations

from collections.abc import Callable

from ...uapi.tdx import EptViolationType, TdcallLeaf, TdxOperand, TdxStatus
from ..memory import PAGE_SHIFT
from ..tlb import Translation
from .core import ModuleCore
from .mrtd import DIGEST_SIZE, NR_RTMRS
from .pamt import PageType
from .sept import LEVEL_2M, LEVEL_4K, SeptEntry, SeptState, SeptTable, Walk
from .td import Td, Vp

__all__ = ["EptViolation", "GuestLeaves", "InjectTdcall", "PendingPage"]

InjectTdcall = Callable[[TdcallLeaf, int], int | None]
"""Asked before each TDCALL with its guest physical address: the status to return instead of running it, or `None`."""


class EptViolation(Exception):
    """The guest exits to the host: nothing is mapped at `gpa`, or not so that the access may pass."""

    def __init__(self, gpa: int, type: EptViolationType) -> None:
        super().__init__(f"EPT violation at gpa {gpa:#x}, type {type.name}")
        self.gpa, self.type = gpa, type


class PendingPage(Exception):
    """The page at `gpa` is there, but the guest hasn't accepted it: a #VE."""

    def __init__(self, gpa: int) -> None:
        super().__init__(f"gpa {gpa:#x} isn't accepted")
        self.gpa = gpa


class GuestLeaves(ModuleCore):
    """TDG.* leaves, and the walk."""

    inject_tdcall: InjectTdcall | None = None

    def sept_walk(self, td: Td, gfn: int) -> Translation:
        """What a processor's walk of the secure EPT finds.  Raises `EptViolation` or `PendingPage`."""
        self.rt.reads(("td", td.tdr))
        walk = td.sept.walk(gfn, LEVEL_4K)
        entry = walk.entry
        if not isinstance(entry, SeptEntry) or (not walk.reached and not entry.level):
            raise EptViolation(gfn << PAGE_SHIFT, EptViolationType.NONE)
        if entry.state is SeptState.MAPPED:
            return Translation(gfn + entry.delta, True)
        if entry.state is SeptState.PENDING:
            if td.pending_ve_disable:
                raise EptViolation(gfn << PAGE_SHIFT, EptViolationType.PENDING)
            raise PendingPage(gfn << PAGE_SHIFT)
        raise EptViolation(gfn << PAGE_SHIFT, EptViolationType.NONE)

    def tdg_mem_page_accept(self, vp: Vp, gpa: int, level: int = LEVEL_4K) -> int:
        """TDG.MEM.PAGE.ACCEPT of the page at `gpa`: it's zeroed and mapped.  A status; raises `EptViolation`.

        PAGE_ALREADY_ACCEPTED and PAGE_SIZE_MISMATCH come with the level at which the walk ended.
        """
        td, gfn, size = vp.td, gpa >> PAGE_SHIFT, 1 << 9 * level
        with vp.tdcall:
            self.rt.writes(("td", td.tdr))
            injected = self.inject_tdcall and self.inject_tdcall(TdcallLeaf.MEM_PAGE_ACCEPT, gpa)
            if injected is not None:
                return injected
            if level > LEVEL_2M or not self._private(td, gpa, level):
                return TdxStatus.OPERAND_INVALID | TdxOperand.RCX
            entry = self._to_accept(td, gpa, td.sept.walk(gfn, level))
            if isinstance(entry, int):
                return entry
            if gfn in td.sept.host_priority:
                return TdxStatus.OPERAND_BUSY_HOST_PRIORITY | TdxOperand.RCX
            td.sept.locked.add(gfn)
            self.rt.writes(("td", td.tdr))
            pfn = gfn + entry.delta
            self.memory.clear(pfn, size)
            self.memory.encrypt_in_place(pfn, size, td.hkid)
            self.heal(pfn, size)
            td.sept.leaves.set(gfn, gfn + size, entry._replace(state=SeptState.MAPPED))
            td.sept.locked.discard(gfn)
        return TdxStatus.SUCCESS

    def _to_accept(self, td: Td, gpa: int, walk: Walk) -> SeptEntry | int:
        """The pending entry that a walk for ACCEPT ended at, or the status to return.  Raises `EptViolation`."""
        entry = walk.entry
        if isinstance(entry, SeptTable):
            if walk.reached and entry.state is SeptState.NL_MAPPED:
                return TdxStatus.PAGE_SIZE_MISMATCH | walk.level
        elif entry is not None:
            if entry.state is SeptState.MAPPED and entry.level >= walk.level:
                return TdxStatus.PAGE_ALREADY_ACCEPTED | walk.level
            if entry.state is SeptState.PENDING and walk.reached and entry.level == walk.level:
                return entry
        raise EptViolation(gpa, EptViolationType.ACCEPT)

    def tdg_mr_rtmr_extend(self, vp: Vp, index: int, data: bytes) -> int:
        """TDG.MR.RTMR.EXTEND of RTMR `index` with 48 bytes.  A status."""
        self.rt.writes(("td", vp.td.tdr))
        injected = self.inject_tdcall and self.inject_tdcall(TdcallLeaf.MR_RTMR_EXTEND, index)
        if injected is not None:
            return injected
        if index not in range(NR_RTMRS) or len(data) != DIGEST_SIZE:
            return TdxStatus.OPERAND_INVALID | TdxOperand.RDX
        vp.td.rtmrs.extend(index, data)
        return TdxStatus.SUCCESS

    def owns(self, pfn: int) -> bool:
        """Whether the page holds memory of a TD."""
        return self.pamt.type(pfn) is PageType.REG
