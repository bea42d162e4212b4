# SPDX-License-Identifier: GPL-2.0-or-later
"""An SNP guest's side of memory: accesses checked against the RMP, and the instructions that change it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..cpu import Access, NestedPageFault, PlainMemory, RmpFault, VmmCommunication
from ..memory import PAGE_SHIFT
from .rmp import NestedFault, NotValidated, Rmp
from .rmp_entry import VmplMask

if TYPE_CHECKING:
    from ..cpu import Cpu

__all__ = ["SnpMemory"]

PVALIDATE_FAIL_NOUPDATE = 255
PAGES_PER_2M = 512


class SnpMemory(PlainMemory):
    """How a vCPU of the guest with `asid` at `vmpl` sees memory.  `keys` has the key of each ASID in use."""

    def __init__(self, rmp: Rmp, keys: dict[int, int], vmpl: int = 0) -> None:
        self.rmp, self.keys, self.vmpl = rmp, keys, vmpl
        self.asid = 0

    def key(self, encrypted: bool) -> int:
        return self.keys[self.asid] if encrypted else 0

    def check(self, pfn: int, gfn: int, write: bool, encrypted: bool) -> None:
        access = VmplMask.WRITE if write else VmplMask.READ
        try:
            self.rmp.check_guest(pfn, gfn, self.asid, self.vmpl, access, encrypted)
        except NestedFault as fault:
            raise RmpFault(fault.error) from fault
        except NotValidated as fault:
            raise VmmCommunication(gfn << PAGE_SHIFT, "the page is assigned, but not validated") from fault

    def pvalidate(self, cpu: Cpu, gfn: int, validate: bool, huge: bool) -> int:
        """PVALIDATE, retried after each nested page fault; "nothing changed" is 255, as Linux codes the carry flag."""

        def execute(pfn: int) -> int:
            status = self.rmp.pvalidate(pfn, gfn, self.asid, self.vmpl, validate, int(huge))
            return PVALIDATE_FAIL_NOUPDATE if status.name == "NO_UPDATE" else int(status)

        return self._instruction(cpu, gfn, execute)

    def rmpadjust(self, cpu: Cpu, gfn: int, vmpl: int, mask: int, vmsa: bool) -> int:
        """RMPADJUST, retried after each nested page fault."""

        def execute(pfn: int) -> int:
            return int(self.rmp.rmpadjust(pfn, gfn, self.asid, self.vmpl, target_vmpl=vmpl, mask=mask, vmsa=vmsa))

        return self._instruction(cpu, gfn, execute)

    def _instruction(self, cpu: Cpu, gfn: int, execute: Callable[[int], int]) -> int:
        gpa = gfn << PAGE_SHIFT
        while True:
            previous = cpu.rt.enter(cpu.task)
            try:
                return execute(cpu.translate(gfn, True, True))
            except NestedFault as fault:
                error_code = fault.error
            except NotValidated as fault:
                raise VmmCommunication(gpa, "the page is assigned, but not validated") from fault
            except RmpFault as fault:
                error_code = fault.error_code
            finally:
                cpu.rt.leave(previous)
            cpu.leave_for_fault(NestedPageFault(gpa, error_code, Access(gpa, True, b"")), True)
