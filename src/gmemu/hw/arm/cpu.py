# SPDX-License-Identifier: GPL-2.0-or-later
"""A virtual Arm processor that runs a scripted guest: stage 2 translation, HVC and SMC.

A stage 2 abort comes out as `NestedPageFault`, WFI as `Hlt`, as on every other processor here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ...sync import Runtime
from ...uapi.kvm_arm64 import Psci
from ..cpu import Cpu, Exit, GuestFatal, PlainMemory, Smccc
from ..memory import PhysicalMemory
from ..tlb import Translation

if TYPE_CHECKING:
    from ..guest_cpu import GuestCpu

__all__ = ["ArmCpu"]


class ArmCpu(Cpu):
    """`walk` gives stage 2 entries."""

    def __init__(
        self,
        rt: Runtime,
        memory: PhysicalMemory,
        walk: Callable[[int], Translation | None],
        encrypted_default: bool = False,
    ) -> None:
        super().__init__(rt, memory, walk, PlainMemory(), encrypted_default)

    def interface(self) -> GuestCpu:
        from .guest_cpu import ArmGuestCpu

        return ArmGuestCpu(self)

    def fatal_exit(self, exception: GuestFatal) -> Exit:
        """What Linux does with an external abort in the kernel: panic, and with panic=-1 reset the machine."""
        self.fatal = exception
        return Smccc(Psci.SYSTEM_RESET, ())

    def smc(self, function: int, *args: int) -> tuple[int, ...]:
        """HVC or SMC: X0 to X3 of the answer."""
        answer = self.leave(Smccc(function, args))
        assert isinstance(answer, tuple)
        return answer
