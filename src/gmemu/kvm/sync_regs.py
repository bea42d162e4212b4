# SPDX-License-Identifier: GPL-2.0-or-later
"""Registers in kvm_run itself, and what else KVM_RUN leaves there (sync_regs(), store_regs(), post_kvm_run_save())."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..rules import kvm as rules
from ..uapi.kvm import KVM_RUN_EXIT_OFFSET, KVM_RUN_EXIT_SIZE, kvm_run
from ..uapi.kvm_x86 import kvm_regs, kvm_sregs, kvm_sync_regs, kvm_vcpu_events
from .regs import fixed_regs, valid_sregs
from .vcpu_x86 import get_events, set_events

if TYPE_CHECKING:
    from .vcpu import Vcpu

__all__ = ["finish_run", "start_run"]

_REGS, _SREGS, _EVENTS = 1, 2, 4
_ALL = _REGS | _SREGS | _EVENTS
_VALID = KVM_RUN_EXIT_OFFSET + KVM_RUN_EXIT_SIZE
_DIRTY = _VALID + 8
_AREA = _VALID + 16
_IF = 1 << 9


def _word(vcpu: Vcpu, offset: int) -> int:
    return int.from_bytes(vcpu.read_run(offset, 8), "little")


def start_run(vcpu: Vcpu) -> None:
    """Take over the registers that user space marked dirty.  Raises EINVAL for marks or values that can't be."""
    valid, dirty = _word(vcpu, _VALID), _word(vcpu, _DIRTY)
    if (valid | dirty) & ~_ALL:
        raise rules.SYNC_REGS(f"valid {valid:#x}, dirty {dirty:#x}")
    if dirty & _REGS:
        vcpu.regs = fixed_regs(kvm_regs.unpack_from(_part(vcpu, "regs", kvm_regs.SIZE)))
    if dirty & _SREGS:
        sregs = kvm_sregs.unpack_from(_part(vcpu, "sregs", kvm_sregs.SIZE))
        valid_sregs(vcpu, sregs)
        vcpu.sregs = sregs
    if dirty & _EVENTS:
        set_events(vcpu, kvm_vcpu_events.unpack_from(_part(vcpu, "events", kvm_vcpu_events.SIZE)))
    if dirty:
        vcpu.write_run(_DIRTY, bytes(8))
    if vcpu.apic is None:
        cr8 = int.from_bytes(vcpu.read_run(kvm_run.OFFSETS["cr8"], 8), "little")
        if cr8 != vcpu.registers.cr8 and cr8 < 16:
            sregs = vcpu.sregs
            sregs.cr8 = cr8
            vcpu.sregs = sregs


def _part(vcpu: Vcpu, name: str, length: int) -> bytes:
    return vcpu.read_run(_AREA + kvm_sync_regs.OFFSETS[name], length)


def finish_run(vcpu: Vcpu) -> None:
    """Give user space the registers that it asked for, and whether the guest takes interrupts."""
    valid = _word(vcpu, _VALID)
    for bit, name, value in ((_REGS, "regs", "regs"), (_SREGS, "sregs", "sregs")):
        if valid & bit:
            vcpu.write_run(_AREA + kvm_sync_regs.OFFSETS[name], getattr(vcpu, value).pack())
    if valid & _EVENTS:
        vcpu.write_run(_AREA + kvm_sync_regs.OFFSETS["events"], get_events(vcpu).pack())
    machine = vcpu.machine
    enabled = machine is not None and machine.interrupt_flag
    ready = vcpu.apic is not None or (vcpu.interrupt < 0 and machine is not None and machine.interruptible)
    cr8 = vcpu.apic.cr8 if vcpu.apic is not None else vcpu.registers.cr8
    head = bytes((int(ready), int(enabled))) + bytes(2) + cr8.to_bytes(8, "little")
    offset = kvm_run.OFFSETS["ready_for_interrupt_injection"]
    vcpu.write_run(offset, head + vcpu.registers.apic_base.to_bytes(8, "little"))
