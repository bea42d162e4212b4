# SPDX-License-Identifier: GPL-2.0-or-later
"""The task priority that a guest keeps in memory instead of the local APIC (arch/x86/kvm/lapic.c: KVM_SET_VAPIC_ADDR)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..mm.uaccess import UserPointer, copy_from_user
from ..rules import MemoryFault
from ..rules import kvm as rules
from ..uapi.kvm_x86 import kvm_vapic_addr
from .pvclock import write_guest

if TYPE_CHECKING:
    from .vcpu import Vcpu

__all__ = ["set_vapic_addr", "sync_from_vapic", "sync_to_vapic"]

_SIZE = 4


def set_vapic_addr(vcpu: Vcpu, arg: UserPointer) -> int:
    """kvm_lapic_set_vapic_addr(): the gpa of the guest's word; 0 undoes it.  Raises EINVAL (`kvm.vapic`)."""
    address = copy_from_user(vcpu.vm.rt.current.mm, kvm_vapic_addr, arg).vapic_addr
    if vcpu.apic is None:
        raise rules.VAPIC("KVM_SET_VAPIC_ADDR without a local APIC")
    if address and (vcpu.vm.find_slot(address >> 12) is None or vcpu.vm.find_slot(address + _SIZE - 1 >> 12) is None):
        raise rules.VAPIC(f"gpa {address:#x}, which is in no memslot")
    vcpu.vapic_gpa = address or None
    return 0


def sync_from_vapic(vcpu: Vcpu) -> None:
    """kvm_lapic_sync_from_vapic(): after an exit, the lowest byte of the word is the task priority."""
    slot = None if vcpu.vapic_gpa is None else vcpu.vm.find_slot(vcpu.vapic_gpa >> 12)
    if vcpu.vapic_gpa is None or vcpu.apic is None or slot is None:
        return
    try:
        word = vcpu.vm.mm.read(slot.userspace_addr + vcpu.vapic_gpa - (slot.base_gfn << 12), _SIZE)
    except MemoryFault:
        return
    vcpu.apic.task_priority = word[0]


def sync_to_vapic(vcpu: Vcpu) -> None:
    """kvm_lapic_sync_to_vapic(): before an entry: the task priority, and what is in service and requested, by class."""
    if vcpu.vapic_gpa is None or vcpu.apic is None:
        return
    service, requested = max(vcpu.apic.in_service, 0) & 0xF0, max(vcpu.apic.requested, 0)
    write_guest(vcpu, vcpu.vapic_gpa, bytes((vcpu.apic.task_priority, service, 0, requested)))
