# SPDX-License-Identifier: GPL-2.0-or-later
"""What a scripted Arm guest has in its hands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Never

from ...uapi.kvm_arm64 import Psci
from ..cpu import UndefinedOpcode
from ..guest_cpu import GuestCpu

if TYPE_CHECKING:
    from .cpu import ArmCpu

__all__ = ["ArmGuestCpu"]


def _signed(x0: int) -> int:
    """X0 as the signed number that SMCCC answers are."""
    return x0 - (1 << 64) if x0 >> 63 else x0


class ArmGuestCpu(GuestCpu):
    """The guest's view of its processor.  Addresses are intermediate physical ones, in bytes."""

    def __init__(self, cpu: ArmCpu) -> None:
        super().__init__(cpu)
        self._arm = cpu

    def smc(self, function: int, *args: int) -> tuple[int, ...]:
        """HVC or SMC with up to six arguments: X0 to X3 of the answer."""
        return self._arm.smc(function, *args)

    def hypercall(self, nr: int, *args: int) -> int:
        """`smc` of which only X0 is wanted, as a signed number."""
        return _signed(self.smc(nr, *args)[0])

    def psci(self, function: Psci, *args: int) -> int:
        """A PSCI call: a `PsciReturn`, or what the function gives."""
        return self.hypercall(function, *args)

    def cpu_on(self, mpidr: int, entry: int = 0, context: int = 0) -> int:
        """PSCI CPU_ON: the vCPU with that affinity may run from `entry` with `context` in X0."""
        return self.psci(Psci.CPU_ON, mpidr, entry, context)

    def halt(self) -> None:
        """WFI; returns when the vCPU is run again."""
        super().halt()

    def terminate(self, reason_set: int = 0, reason: int = 0) -> Never:
        """PSCI SYSTEM_OFF, and wait for ever should the guest be run again."""
        self.psci(Psci.SYSTEM_OFF)
        while True:
            self.halt()

    def triple_fault(self) -> None:
        raise UndefinedOpcode("triple fault")

    def port_out(self, port: int, data: bytes) -> None:
        raise UndefinedOpcode("OUT")

    def port_in(self, port: int, length: int = 1) -> bytes:
        raise UndefinedOpcode("IN")

    def ghcb_msr(self, value: int) -> int:
        raise UndefinedOpcode("VMGEXIT")

    def vmgexit(self, code: int, info1: int, info2: int, buffer: bytearray | None = None, *, rax: int = 0) -> int:
        raise UndefinedOpcode("VMGEXIT")
