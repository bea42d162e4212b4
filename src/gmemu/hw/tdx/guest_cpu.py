# SPDX-License-Identifier: GPL-2.0-or-later
"""What a scripted guest of a TDX VM has in its hands.

An access is private unless it says `shared=True` or its address has the shared bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Never

from ...uapi.tdx import (
    TDVMCALL_STATUS_RETRY,
    TdcallLeaf,
    Tdvmcall,
    TdxStatus,
    status_of,
    tdx_error,
)
from ..cpu import TdVmcall
from ..guest_cpu import GuestCpu
from ..memory import PAGE_SIZE

if TYPE_CHECKING:
    from .cpu import TdxCpu

__all__ = ["MapGpaResult", "TdGuestCpu"]

SIZE_2M = 2 << 20
MAX_RETRIES_PER_PAGE = 3


class MapGpaResult(NamedTuple):
    """R10 and R11 of MapGPA: a TDVMCALL_STATUS_*, and for RETRY (or an error) the address to go on from."""

    status: int
    next_gpa: int


class TdGuestCpu(GuestCpu):
    """A TD's view of its processor."""

    def __init__(self, cpu: TdxCpu) -> None:
        super().__init__(cpu)
        self._td = cpu

    @property
    def shared_bit(self) -> int:
        """The bit of an address that makes it shared: 47 or 51."""
        return self._td.shared_bit

    # Memory

    def load(self, gpa: int, length: int = 8, *, shared: bool = False) -> bytes:
        shared = shared or bool(gpa & self.shared_bit)
        return self._td.load(gpa & ~self.shared_bit, length, not shared)

    def store(self, gpa: int, data: bytes, *, shared: bool = False) -> None:
        shared = shared or bool(gpa & self.shared_bit)
        self._td.store(gpa & ~self.shared_bit, data, not shared)

    # TDCALL

    def tdaccept(self, gpa: int, *, huge: bool = False) -> int:
        """TDG.MEM.PAGE.ACCEPT of 4 KiB, or 2 MiB if `huge`: a TDX status, 0 for success."""
        return self._td.tdcall(TdcallLeaf.MEM_PAGE_ACCEPT, gpa | int(huge))

    def rtmr_extend(self, index: int, data: bytes) -> int:
        """TDG.MR.RTMR.EXTEND with 48 bytes: a TDX status."""
        return self._td.rtmr_extend(index, data)

    def tdvmcall(self, leaf: int, *args: int) -> tuple[int, int]:
        """TDG.VP.VMCALL: R10 and R11 of the answer."""
        r10, r11 = self._td.leave(TdVmcall(leaf, args))
        return r10, r11

    def map_gpa(self, gpa: int, size: int, *, private: bool) -> MapGpaResult:
        """TDVMCALL MapGPA, once: ask for `size` bytes at `gpa` to become private or shared."""
        at = gpa & ~self.shared_bit if private else gpa | self.shared_bit
        return MapGpaResult(*self.tdvmcall(Tdvmcall.MAP_GPA, at, size))

    def map_gpa_all(self, gpa: int, size: int, *, private: bool) -> int:
        """MapGPA as Linux does it (tdx_map_gpa): gone on with from where it stopped, three times at one page.  A status."""
        at = gpa & ~self.shared_bit if private else gpa | self.shared_bit
        end, retries = at + size, 0
        while True:
            status, next_gpa = self.tdvmcall(Tdvmcall.MAP_GPA, at, end - at)
            retries = retries + 1 if next_gpa == at else 0
            if status != TDVMCALL_STATUS_RETRY or not at <= next_gpa < end or retries == MAX_RETRIES_PER_PAGE:
                return status
            at = next_gpa

    def report_fatal_error(self, code: int = 0) -> None:
        """TDVMCALL ReportFatalError: the guest gives up."""
        self.tdvmcall(Tdvmcall.REPORT_FATAL_ERROR, code, 0, 0, 0)

    # As Linux does it

    def accept(self, gpa: int, size: int) -> None:
        """Accept `size` bytes at `gpa`: by 2 MiB where that goes, else by 4 KiB.  A failure ends the guest."""
        end = gpa + size
        while gpa < end:
            if gpa % SIZE_2M == 0 and end - gpa >= SIZE_2M and not self._accept_one(gpa, huge=True):
                gpa += SIZE_2M
                continue
            status = self._accept_one(gpa, huge=False)
            if tdx_error(status):
                self.terminate(status >> 32)
            gpa += PAGE_SIZE

    def _accept_one(self, gpa: int, *, huge: bool) -> int:
        """Again while somebody else is at the entry, or an interrupt came in between."""
        while True:
            status = self.tdaccept(gpa, huge=huge)
            if status_of(status) not in (
                TdxStatus.OPERAND_BUSY,
                TdxStatus.OPERAND_BUSY_HOST_PRIORITY,
                TdxStatus.INTERRUPTED_RESTARTABLE,
            ):
                return status
            self._td.rt.resched()

    def convert(self, gpa: int, size: int, *, private: bool) -> None:
        """Change `size` bytes at `gpa` as a Linux TD does: MapGPA, and to private accept.  A failure ends the guest."""
        status = self.map_gpa_all(gpa, size, private=private)
        if status:
            self.terminate(status & 0xFF)
        if private:
            self.accept(gpa, size)

    def terminate(self, reason_set: int = 0, reason: int = 0) -> Never:
        """Report a fatal error, and halt for ever should the guest be run again."""
        self.report_fatal_error(reason_set)
        while True:
            self.halt()
