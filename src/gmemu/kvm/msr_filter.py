# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_X86_SET_MSR_FILTER: which MSRs a guest may reach without asking user space (arch/x86/kvm/x86.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..mm.uaccess import UserPointer, copy_from_user, read_user
from ..rules import kvm as rules
from ..uapi.kvm_x86 import kvm_msr_filter

if TYPE_CHECKING:
    from .vm import Vm

__all__ = ["MsrFilter", "set_msr_filter"]

FILTER_READ, FILTER_WRITE = 1, 2
DEFAULT_DENY = 1
_MAX_BITMAP = 0x600 * 8


class _Range(NamedTuple):
    flags: int
    base: int
    number: int
    bitmap: bytes


class MsrFilter:
    """Ranges of MSRs with a bit each (1: allowed), and what holds for the rest."""

    def __init__(self, default_allow: bool, ranges: list[_Range]) -> None:
        self._default, self._ranges = default_allow, ranges

    def allows(self, index: int, write: bool) -> bool:
        """kvm_msr_allowed(): x2APIC's registers are never filtered."""
        if 0x800 <= index <= 0x8FF:
            return True
        wanted = FILTER_WRITE if write else FILTER_READ
        for part in self._ranges:
            at = index - part.base
            if part.flags & wanted and 0 <= at < part.number:
                return bool(part.bitmap[at >> 3] >> (at & 7) & 1)
        return self._default


def set_msr_filter(vm: Vm, arg: UserPointer) -> int:
    """kvm_vm_ioctl_set_msr_filter(): the new filter takes the old one's place as a whole."""
    mm = vm.rt.current.mm
    given = copy_from_user(mm, kvm_msr_filter, arg)
    if given.flags & ~DEFAULT_DENY:
        raise rules.MSR_FILTER_FLAGS(f"flags {given.flags:#x}")
    ranges = []
    for part in given.ranges():
        if not part.nmsrs:
            continue
        if part.flags & ~(FILTER_READ | FILTER_WRITE) or not part.flags or part.nmsrs > _MAX_BITMAP:
            raise rules.MSR_FILTER_RANGE(f"flags {part.flags:#x}, {part.nmsrs} MSRs")
        bitmap = read_user(mm, part.bitmap, -(-part.nmsrs // 64) * 8)
        ranges.append(_Range(part.flags, part.base, part.nmsrs, bitmap))
    if not ranges and given.flags & DEFAULT_DENY:
        raise rules.MSR_FILTER_EMPTY("no ranges, and a default that denies")
    vm.msr_filter = MsrFilter(not given.flags & DEFAULT_DENY, ranges)
    return 0
