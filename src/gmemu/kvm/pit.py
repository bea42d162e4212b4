# SPDX-License-Identifier: GPL-2.0-or-later
"""The timer of a PC that KVM emulates (arch/x86/kvm/i8254.c)."""

from __future__ import annotations

import time
from struct import pack, unpack
from threading import Timer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .vm import Vm

__all__ = ["Pit"]

_COUNTERS, _CONTROL, _SPEAKER = 0x40, 0x43, 0x61
_PIT_HZ = 1193182
_MIN_PERIOD_NS = 200_000
"""min_timer_period_us"""
_NO_MODE = 0xFF
_MSB, _WORD0, _WORD1 = 2, 3, 4
"""Which byte of a count is next: the higher alone, or of both the lower or the higher."""


class _Channel:
    """One counter: struct kvm_pit_channel_state."""

    _FORMAT = "<IHBBBBBBBBBBq"

    def __init__(self, gate: int) -> None:
        self.count, self.gate, self.mode = 0x10000, gate, _NO_MODE
        self.latched_count = self.count_latched = self.status_latched = self.status = 0
        self.read_state = self.write_state = self.write_latch = self.rw_mode = self.bcd = 0
        self.started = time.monotonic_ns()

    def pack(self) -> bytes:
        return pack(
            self._FORMAT, self.count, self.latched_count, self.count_latched, self.status_latched, self.status,
            self.read_state, self.write_state, self.write_latch, self.rw_mode, self.mode, self.bcd, self.gate, self.started,
        )  # fmt: skip

    def unpack(self, state: bytes) -> None:
        (
            count, self.latched_count, self.count_latched, self.status_latched, self.status,
            self.read_state, self.write_state, self.write_latch, self.rw_mode, self.mode, self.bcd, self.gate, _,
        ) = unpack(self._FORMAT, state)  # fmt: skip
        self.load(count)

    def load(self, count: int) -> None:
        """pit_load_count(), but for the interrupt."""
        self.count, self.started = count or 0x10000, time.monotonic_ns()

    def control(self, value: int) -> None:
        """A control word: how it counts, and how the count is read and written."""
        if not value >> 4 & 3:
            self.latch_count()
            return
        self.rw_mode = self.read_state = self.write_state = value >> 4 & 3
        mode = value >> 1 & 7
        self.mode, self.bcd = mode - 4 if mode > 5 else mode, value & 1

    def latch_count(self) -> None:
        if not self.count_latched:
            self.latched_count, self.count_latched = self._now(), self.rw_mode

    def latch_status(self) -> None:
        if not self.status_latched:
            self.status = self.output << 7 | self.rw_mode << 4 | (self.mode & 7) << 1 | self.bcd
            self.status_latched = 1

    def set_gate(self, gate: int) -> None:
        """pit_set_gate(): most modes begin anew when it rises."""
        if gate and not self.gate and self.mode in (1, 2, 3, 5):
            self.started = time.monotonic_ns()
        self.gate = gate

    def _ticks(self) -> int:
        return (time.monotonic_ns() - self.started) * _PIT_HZ // 1_000_000_000

    def _now(self) -> int:
        """pit_get_count()."""
        ticks = self._ticks()
        if self.mode in (0, 1, 4, 5):
            return self.count - ticks & 0xFFFF
        return self.count - (2 * ticks if self.mode == 3 else ticks) % self.count & 0xFFFF

    @property
    def output(self) -> bool:
        """pit_get_out()."""
        ticks = self._ticks()
        if self.mode == 1:
            return ticks < self.count
        if self.mode == 2:
            return bool(ticks) and not ticks % self.count
        if self.mode == 3:
            return ticks % self.count < self.count + 1 >> 1
        return ticks == self.count if self.mode in (4, 5) else ticks >= self.count

    def write(self, value: int) -> bool:
        """A byte of the count; True if it's whole now."""
        if self.write_state == _WORD0:
            self.write_latch, self.write_state = value, _WORD1
            return False
        if self.write_state == _WORD1:
            value, self.write_state = self.write_latch | value << 8, _WORD0
        elif self.write_state == _MSB:
            value <<= 8
        self.load(value)
        return True

    def read(self) -> int:
        """A byte of the status or of the count, latched or not."""
        if self.status_latched:
            self.status_latched = 0
            return self.status
        if self.count_latched:
            high = self.count_latched == _MSB
            self.count_latched = _MSB if self.count_latched == _WORD0 else 0
            return self.latched_count >> 8 if high else self.latched_count & 0xFF
        high = self.read_state in (_MSB, _WORD1)
        if self.read_state in (_WORD0, _WORD1):
            self.read_state ^= _WORD0 ^ _WORD1
        return self._now() >> 8 if high else self._now() & 0xFF


class Pit:
    """The 8254: three counters that run at their rate, the speaker's gate, and the first counter's interrupt (GSI 0).

    Ticks that nobody has taken are kept (KVM_REINJECT_CONTROL), or not.
    """

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self.reinject = True
        self.hpet_legacy = False
        """whether the first counter has no interrupt, as an HPET has its line"""
        self._expires: int | None = None
        self._period = self._pending = 0
        self._alarm: Timer | None = None
        self.channels = [_Channel(gate) for gate in (1, 1, 0)]
        self._speaker_data = 0

    def port_write(self, port: int, value: int) -> bool:
        """OUT; False if the port isn't the timer's."""
        if port == _SPEAKER:
            self._speaker_data = value & 2
            self.channels[2].set_gate(value & 1)
        elif port == _CONTROL:
            self._control(value)
        elif _COUNTERS <= port < _CONTROL:
            if self.channels[port - _COUNTERS].write(value) and port == _COUNTERS:
                self._start_timer()
        else:
            return False
        return True

    def _control(self, value: int) -> None:
        if value >> 6 < len(self.channels):
            self.channels[value >> 6].control(value)
            return
        for i, channel in enumerate(self.channels):  # read-back
            if value & 2 << i and not value & 0x20:
                channel.latch_count()
            if value & 2 << i and not value & 0x10:
                channel.latch_status()

    def port_read(self, port: int) -> int | None:
        """IN; None if the port isn't the timer's."""
        if port == _SPEAKER:
            refresh = time.monotonic_ns() // 15_000 & 1
            gated = self.channels[2]
            return self._speaker_data | gated.gate | refresh << 4 | gated.output << 5
        return self.channels[port - _COUNTERS].read() if _COUNTERS <= port < _CONTROL else None

    # The interrupt

    def _start_timer(self) -> None:
        """pit_load_count() of the first counter: once, or again and again, as its mode has it."""
        self.destroy()
        mode, self._pending = self.channels[0].mode, 0
        if self.hpet_legacy or mode not in (0, 1, 2, 3, 4):
            return
        interval = max(self.channels[0].count * 1_000_000_000 // _PIT_HZ, _MIN_PERIOD_NS)
        self._period = interval if mode in (2, 3) else 0
        self._arm(time.monotonic_ns() + interval)

    def _arm(self, when: int) -> None:
        self._expires = when
        self._alarm = Timer(max(when - time.monotonic_ns(), 0) / 1e9, self._kick)
        self._alarm.daemon = True
        self._alarm.start()

    def _kick(self) -> None:
        if self._vm.vcpus:
            self._vm.vcpus[0].kick()

    def poll(self) -> None:
        """pit_timer_fn() and pit_do_work(): what is due goes to the interrupt controllers, if the one before was taken."""
        now, due, chip = time.monotonic_ns(), 0, self._vm.irqchip
        if self._expires is not None and now >= self._expires:
            due = 1 + (now - self._expires) // self._period if self._period else 1
            self._pending += due
            expires, self._expires = self._expires, None
            if self._period:
                self._arm(expires + due * self._period)
        if self._pending and chip is not None and (due or not chip.pics[0].irr & 1):
            taken = chip.set_gsi(0, True)
            chip.set_gsi(0, False)
            if taken < 0 or not self.reinject:
                self._pending = 0  # masked: nobody counts on it
            elif taken:
                self._pending -= 1

    def destroy(self) -> None:
        """kvm_free_pit(): no tick comes any more."""
        self._expires = None
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    # State

    def get_state(self) -> bytes:
        """Three of struct kvm_pit_channel_state."""
        return b"".join(channel.pack() for channel in self.channels)

    def set_state(self, state: bytes) -> None:
        """The other way: counting begins anew (kvm_vm_ioctl_set_pit2())."""
        for i, channel in enumerate(self.channels):
            channel.unpack(state[24 * i : 24 * i + 24])
        self._start_timer()
