# SPDX-License-Identifier: GPL-2.0-or-later
"""A vCPU's time stamp counter: the host's clock at a frequency, with an offset (arch/x86/kvm/x86.c, kvm_synchronize_tsc)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .vm import Vm

__all__ = ["MAX_GUEST_TSC_KHZ", "Clock", "Tsc"]

MAX_GUEST_TSC_KHZ = (1 << 31) - 1
_U64 = (1 << 64) - 1


class Tsc:
    """The machine's own time stamp counter."""

    khz = 2_000_000

    def read(self) -> int:
        """RDTSC."""
        return time.monotonic_ns() * self.khz // 1_000_000


class Clock:
    """Counts `khz` thousand ticks a second of the host's time.  `offset` is in ticks of the guest."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self.khz = vm.default_tsc_khz
        self.offset = 0
        self._synchronize(0)

    def _raw(self) -> int:
        host = self._vm.host.tsc
        return host.read() * self.khz // host.khz

    def guest_tsc(self) -> int:
        """What RDTSC gives."""
        return self._raw() + self.offset & _U64

    def set_khz(self, khz: int) -> None:
        """kvm_set_tsc_khz(): count goes on from where it is."""
        now = self.guest_tsc()
        self.khz = khz
        self.offset = now - self._raw()

    def adjust(self, ticks: int) -> None:
        """adjust_tsc_offset()."""
        self.offset += ticks

    def set_host(self, value: int) -> None:
        """A write by user space, which may be one of several meant to be alike: see `_synchronize`."""
        self._synchronize(value)

    def _synchronize(self, value: int) -> None:
        """kvm_synchronize_tsc(): a value within a second of what the last written one is by now is taken for that."""
        offset = value - self._raw()
        last = self._vm.last_tsc_write
        if last is not None and last[0] == self.khz and (value == 0 or abs(last[1] - offset) < self.khz * 1000):
            offset = last[1]
        else:
            self._vm.last_tsc_write = (self.khz, offset)
        self.offset = offset
