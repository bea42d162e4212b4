# SPDX-License-Identifier: GPL-2.0-or-later
"""The clock that a guest reads from memory (arch/x86/kvm/x86.c: kvm_guest_time_update(), kvm_write_wall_clock())."""

from __future__ import annotations

import time
from pathlib import Path
from struct import pack, unpack
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .vcpu import Vcpu

__all__ = ["record_steal_time", "update_guest_time", "write_wall_clock"]

_NANOSECONDS = 1_000_000_000
_TSC_STABLE = 1


def write_wall_clock(vcpu: Vcpu, gpa: int) -> None:
    """struct pvclock_wall_clock: when the VM's clock was zero, in seconds and nanoseconds."""
    boot = time.time_ns() - (time.monotonic_ns() + vcpu.vm.clock_offset)
    write_guest(vcpu, gpa, pack("<III", 2, boot // _NANOSECONDS, boot % _NANOSECONDS))


def update_guest_time(vcpu: Vcpu) -> None:
    """struct pvclock_vcpu_time_info, if it's due: a TSC, the VM's time at it, and what turns ticks into nanoseconds."""
    gpa = vcpu.pvclock_gpa
    if gpa is None or not vcpu.clock_update:
        return
    vcpu.clock_update = False
    vcpu.pvclock_version += 2
    shift, mul = scale(vcpu.clock.khz * 1000)
    now = time.monotonic_ns() + vcpu.vm.clock_offset
    info = pack("<IIQQIbBxx", vcpu.pvclock_version, 0, vcpu.clock.guest_tsc(), now, mul, shift, _TSC_STABLE)
    write_guest(vcpu, gpa, info)


def record_steal_time(vcpu: Vcpu) -> None:
    """record_steal_time(): what the thread that runs the vCPU waited for a processor goes to struct kvm_steal_time.

    Nobody is preempted here, so that its flag stays 0.
    """
    msr = vcpu.msrs.get(0x4B564D03, 0)
    if not vcpu.steal_update or not msr & 1:
        return
    vcpu.steal_update = False
    gpa = msr & ~0x3F
    slot = vcpu.vm.find_slot(gpa >> 12)
    if slot is None:
        return
    raw = vcpu.vm.mm.read(slot.userspace_addr + gpa - (slot.base_gfn << 12), 12)
    steal, version = unpack("<QI", raw)
    delay = _run_delay()
    steal, vcpu.last_steal = steal + delay - vcpu.last_steal, delay
    version += 1 + (version & 1)
    write_guest(vcpu, gpa, pack("<QIIB", steal & (1 << 64) - 1, version + 1 & 0xFFFFFFFF, 0, 0))


def _run_delay() -> int:
    """current->sched_info.run_delay (nanoseconds); 0 where the host's kernel doesn't tell."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1])
    except (OSError, IndexError):
        return 0


def scale(hz: int) -> tuple[int, int]:
    """kvm_get_time_scale(): ((ticks << shift) * mul) >> 32 is nanoseconds."""
    shift, ticks = 0, hz
    while ticks > 2 * _NANOSECONDS:
        ticks, shift = ticks >> 1, shift - 1
    while ticks <= _NANOSECONDS:
        ticks, shift = ticks << 1, shift + 1
    return shift, (_NANOSECONDS << 32) // ticks


def write_guest(vcpu: Vcpu, gpa: int, data: bytes) -> None:
    """kvm_write_guest(): through the slot's user mapping; nothing happens where there is no slot."""
    slot = vcpu.vm.find_slot(gpa >> 12)
    if slot is not None:
        vcpu.vm.mm.write(slot.userspace_addr + gpa - (slot.base_gfn << 12), data)
