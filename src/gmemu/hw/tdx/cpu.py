# SPDX-License-Identifier: GPL-2.0-or-later
"""A virtual processor of a TD: two EPTs, private memory under the TD's key, TDCALL, machine checks.

Between host and guest stands the module: entering is TDH.VP.ENTER, and a processor that the host wants out of the guest
(`kick`) leaves before its next access to memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ...sync import Runtime
from ...uapi.kvm_x86 import PFERR_PRESENT_MASK
from ...uapi.tdx import TdcallLeaf, Tdvmcall, TdxStatus
from ..cpu import (
    Access,
    Cpu,
    Exit,
    ExternalInterrupt,
    GuestFatal,
    NestedPageFault,
    PlainMemory,
    RmpFault,
    TdVmcall,
    VirtualizationException,
    VpEnterFailed,
)
from ..memory import PAGE_SHIFT
from ..tlb import Translation
from .core import LINE_SHIFT
from .guest import EptViolation, PendingPage
from .td import Vp

if TYPE_CHECKING:
    from ..guest_cpu import GuestCpu
    from .module import TdxModule

__all__ = ["TdxCpu"]

_LINE = (1 << LINE_SHIFT) - 1


class _Interrupted(Exception):
    """The processor was kicked before the instruction was done."""


class _MachineCheck(Exception):
    """The instruction met a poisoned line."""

    def __init__(self, address: int) -> None:
        super().__init__(f"machine check at physical address {address:#x}")
        self.address = address


class TdxCpu(Cpu):
    """`shared_walk` walks the shared EPT; `on_machine_check` is the host's handler, told the physical address."""

    def __init__(
        self,
        rt: Runtime,
        module: TdxModule,
        shared_walk: Callable[[int], Translation | None],
        on_machine_check: Callable[[int], None],
    ) -> None:
        super().__init__(rt, module.memory, shared_walk, PlainMemory(), encrypted_default=True)
        self.module, self.on_machine_check = module, on_machine_check
        self.vp: Vp | None = None
        self.held_off: Callable[[], bool] = lambda: False
        """asked before each entry: whether the host doesn't want to enter now"""
        self.kicked = False

    @property
    def shared_bit(self) -> int:
        """The bit of a guest physical address that makes it shared."""
        return self._vp.td.shared_gfn_bit << PAGE_SHIFT

    @property
    def _vp(self) -> Vp:
        assert self.vp is not None
        return self.vp

    # In and out

    def enter(self, completion: object = None) -> Exit:
        """TDH.VP.ENTER."""
        vp = self._vp
        if self.held_off():
            return VpEnterFailed(TdxStatus.OPERAND_BUSY, completion)
        vp.tlb, self.kicked = self.tlb, False
        entered = self.module.vp_enter(vp.tdvpr, self.rt.current.cpu)
        if entered.status:
            return VpEnterFailed(entered.status, completion)
        try:
            return super().enter(completion)
        finally:
            self._left()

    def kick(self) -> None:
        """An interrupt from the host: whatever the guest executes is finished, then it's out until it is entered again."""
        vp = self.vp
        if vp is not None and vp.in_td:
            with vp.tdcall:
                self.kicked = True
                self._left()

    def _left(self) -> None:
        if self._vp.in_td:
            self.module.vp_exit(self._vp.tdvpr)

    def fatal_exit(self, exception: GuestFatal) -> Exit:
        """What Linux does with a #VE that it can't handle: report a fatal error."""
        self.fatal = exception
        return TdVmcall(Tdvmcall.REPORT_FATAL_ERROR, (0, 0, 0, 0))

    def interface(self) -> GuestCpu:
        from .guest_cpu import TdGuestCpu

        return TdGuestCpu(self)

    # Memory

    def _access(self, access: Access, encrypted: bool) -> bytes:
        """One access within one page, retried after each exit until it's done or KVM emulated it."""
        gfn, offset = access.gpa >> PAGE_SHIFT, access.gpa & (1 << PAGE_SHIFT) - 1
        while True:
            done = self._instruction(access, encrypted, lambda: self._try_access(access, gfn, offset, encrypted))
            if isinstance(done, bytes):
                return done

    def _instruction(self, access: Access, encrypted: bool, execute: Callable[[], object]) -> object:
        """Execute once.  What it gave; or what KVM completed its exit with."""
        previous = self.rt.enter(self.task)
        try:
            return execute()
        except _Interrupted:
            exit_: Exit = ExternalInterrupt()
        except _MachineCheck as check:
            self.on_machine_check(check.address)
            exit_ = VpEnterFailed(self.module.machine_check(self._vp.tdvpr).status, None)
        except EptViolation as violation:
            exit_ = NestedPageFault(access.gpa, 0, access, violation.type)
        except RmpFault as fault:
            exit_ = NestedPageFault(access.gpa, fault.error_code, access)
        except PendingPage as pending:
            raise VirtualizationException(pending.gpa, "the page is pending, not accepted") from pending
        finally:
            self.rt.leave(previous)
        if isinstance(exit_, NestedPageFault):
            return self.leave_for_fault(exit_, encrypted)
        return self.leave(exit_)

    def _try_access(self, access: Access, gfn: int, offset: int, encrypted: bool) -> bytes:
        """Translate, then touch the bytes, unless the processor was kicked or the line is poisoned."""
        pfn = self.translate(gfn, access.write, encrypted)
        address, length = (pfn << PAGE_SHIFT) + offset, len(access.data)
        if access.write:
            self.rt.writes(("memory", pfn))
        else:
            self.rt.reads(("memory", pfn))
        if self.kicked:
            raise _Interrupted
        if encrypted and self.module.poisoned and self.module.is_poisoned(address, length):
            if not access.write or (address | length) & _LINE:
                raise _MachineCheck(address)
            self.module.poisoned.clear(address >> LINE_SHIFT, address + length >> LINE_SHIFT)
        key = self._vp.td.hkid if encrypted else 0
        if access.write:
            self.memory.write(address, access.data, key)
            return b""
        return self.memory.read(address, length, key)

    def translate(self, gfn: int, write: bool, encrypted: bool) -> int:
        """The page frame at `gfn`: the secure EPT has private addresses, the shared EPT those with the shared bit."""
        frame = gfn if encrypted else gfn | self._vp.td.shared_gfn_bit
        hit = self.tlb.entries.get(frame)
        if hit is None or (write and not hit.writable):
            hit = self.module.sept_walk(self._vp.td, gfn) if encrypted else self.walk(gfn)
            if hit is None or (write and not hit.writable):
                raise RmpFault(PFERR_PRESENT_MASK if hit else 0)
            self.tlb.entries[frame] = hit
        return hit.pfn

    # TDCALL

    def tdcall(self, leaf: int, *args: int) -> int:
        """TDCALL: TDG.MEM.PAGE.ACCEPT of (gpa | level), tried again after each EPT violation.  A status."""
        assert leaf == TdcallLeaf.MEM_PAGE_ACCEPT
        [rcx] = args
        gpa, level = rcx & -(1 << PAGE_SHIFT), rcx & 7

        def execute() -> object:
            if self.kicked:
                raise _Interrupted
            return self.module.tdg_mem_page_accept(self._vp, gpa, level)

        while True:
            status = self._instruction(Access(gpa, True, b""), True, execute)
            if isinstance(status, int):
                return status

    def rtmr_extend(self, index: int, data: bytes) -> int:
        """TDG.MR.RTMR.EXTEND.  A status."""
        return self.module.tdg_mr_rtmr_extend(self._vp, index, data)
