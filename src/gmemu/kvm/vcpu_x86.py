# SPDX-License-Identifier: GPL-2.0-or-later
"""ioctls of a vCPU beyond its registers (kvm_arch_vcpu_ioctl() in arch/x86/kvm/x86.c)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..hw.x86.events import Event
from ..mm.uaccess import UserPointer, copy_from_user, copy_to_user, read_user, write_user
from ..rules import kvm as rules
from ..uapi import kvm as uapi
from ..uapi.kvm import kvm_device_attr, kvm_interrupt, kvm_signal_mask
from ..uapi.kvm_x86 import (
    kvm_guest_debug,
    kvm_lapic_state,
    kvm_sregs,
    kvm_sregs2,
    kvm_tpr_access_ctl,
    kvm_translation,
    kvm_vcpu_events,
    kvm_xsave,
)
from .clock import MAX_GUEST_TSC_KHZ
from .mce import set_mce, setup_mce
from .vapic import set_vapic_addr
from .xsave import pack_xsave, unpack_xsave

if TYPE_CHECKING:
    from .lapic import LocalApic
    from .vcpu import Vcpu

__all__ = ["IOCTLS", "get_events", "set_events"]

_NMI_PENDING, _SIPI, _SHADOW, _SMM, _PAYLOAD, _TRIPLE_FAULT = 1, 2, 4, 8, 16, 32
_DEBUG_ENABLE, _DEBUG_STEP, _DEBUG_SW, _DEBUG_HW, _DEBUG_DB, _DEBUG_BP = 1, 2, 1 << 16, 1 << 17, 1 << 18, 1 << 19
_DB, _BP, _OF = 1, 3, 4
_SOFT_EXCEPTIONS = frozenset((_BP, _OF))
_TSC_CTRL, _TSC_OFFSET = 0, 0
_PDPTRS_VALID = 1
_INVALID_GPA = (1 << 64) - 1
_CR0_PG = 1 << 31


def _apic(vcpu: Vcpu) -> LocalApic:
    if vcpu.apic is None:
        raise rules.LAPIC_NONE(f"{vcpu}")
    return vcpu.apic


def _get_lapic(vcpu: Vcpu, arg: UserPointer) -> int:
    copy_to_user(vcpu.vm.rt.current.mm, arg, kvm_lapic_state(regs=_apic(vcpu).state()))
    return 0


def _set_lapic(vcpu: Vcpu, arg: UserPointer) -> int:
    apic = _apic(vcpu)
    state = copy_from_user(vcpu.vm.rt.current.mm, kvm_lapic_state, arg).regs
    if apic.x2apic and vcpu.vm.x2apic_format and not apic.id_fits(state):
        raise rules.LAPIC_ID(f"id {state[0x20:0x24].hex()} of vCPU {vcpu.id}")
    apic.set_state(state)
    return 0


def _interrupt(vcpu: Vcpu, arg: UserPointer) -> int:
    """kvm_vcpu_ioctl_interrupt(): a vector from user space's own interrupt controller."""
    irq = copy_from_user(vcpu.vm.rt.current.mm, kvm_interrupt, arg).irq
    if irq > 255:
        raise rules.INTERRUPT_VECTOR(f"{irq}")
    chip = vcpu.vm.irqchip
    if chip is not None and not chip.split:
        raise rules.INTERRUPT_IRQCHIP(f"vector {irq}")
    if chip is not None and vcpu.interrupt >= 0:
        raise rules.INTERRUPT_PENDING(f"vector {irq}, {vcpu.interrupt} waits")
    vcpu.interrupt = irq
    return 0


def _nmi(vcpu: Vcpu, arg: UserPointer) -> int:
    vcpu.nmi_pending = min(vcpu.nmi_pending + 1, 2)
    vcpu.kick()
    return 0


def get_events(vcpu: Vcpu) -> kvm_vcpu_events:
    """kvm_vcpu_ioctl_x86_get_vcpu_events()."""
    cpu, events = vcpu.machine, kvm_vcpu_events()
    events.flags = _NMI_PENDING | _SHADOW | _SMM
    event = cpu.event if cpu is not None else None
    if event is not None and event.external and event.vector != 2:
        events.interrupt_injected, events.interrupt_nr = 1, event.vector
    elif event is not None and event.external:
        events.nmi_injected = 1
    elif event is not None:
        events.exception_nr = event.vector
        if event.vector not in _SOFT_EXCEPTIONS:
            events.exception_pending = int(event.pending)
            events.exception_injected = int(not event.pending or not vcpu.vm.exception_payload)
        events.exception_has_error_code = int(event.error_code is not None)
        events.exception_error_code = event.error_code or 0
    elif vcpu.interrupt >= 0:
        events.interrupt_injected, events.interrupt_nr = 1, vcpu.interrupt
    events.interrupt_shadow = vcpu.registers.shadow * 3
    events.nmi_pending = vcpu.nmi_pending
    if vcpu.vm.exception_payload:
        events.flags |= _PAYLOAD
    if vcpu.vm.triple_fault_event:
        events.flags |= _TRIPLE_FAULT
        events.triple_fault_pending = int(vcpu.triple_fault)
    return events


def set_events(vcpu: Vcpu, events: kvm_vcpu_events) -> None:
    """kvm_vcpu_ioctl_x86_set_vcpu_events().  Raises EINVAL (`kvm.events`)."""
    allowed = _NMI_PENDING | _SIPI | _SHADOW | _SMM
    allowed |= _PAYLOAD if vcpu.vm.exception_payload else 0
    allowed |= _TRIPLE_FAULT if vcpu.vm.triple_fault_event else 0
    if events.flags & ~allowed:
        raise rules.EVENTS_INVALID(f"flags {events.flags:#x}, allowed {allowed:#x}")
    if not events.flags & _PAYLOAD:
        events.exception_pending = events.exception_has_payload = 0
    elif events.exception_pending:
        events.exception_injected = 0
    else:
        events.exception_has_payload = 0
    exception = events.exception_injected or events.exception_pending
    if exception and (events.exception_nr > 31 or events.exception_nr == 2):
        raise rules.EVENTS_INVALID(f"exception {events.exception_nr}")
    if events.flags & _SMM and (events.smi_smm or events.smi_pending or events.smi_smm_inside_nmi):
        raise rules.EVENTS_INVALID("system management mode, which there isn't")
    cpu = vcpu.machine
    if cpu is not None:
        cpu.event = None
        if exception:
            error = events.exception_error_code if events.exception_has_error_code else None
            address = events.exception_payload if events.exception_has_payload and events.exception_nr == 14 else None
            cpu.event = Event(events.exception_nr, error, address=address, pending=bool(events.exception_pending))
        elif events.nmi_injected:
            cpu.event = Event(2, external=True)
        elif events.interrupt_injected:
            cpu.event = Event(events.interrupt_nr, external=not events.interrupt_soft, software=bool(events.interrupt_soft))
    vcpu.interrupt = -1
    if events.flags & _SHADOW:
        vcpu.registers.shadow = int(bool(events.interrupt_shadow))
    if events.flags & _NMI_PENDING:
        vcpu.nmi_pending = events.nmi_pending
    if events.flags & _SIPI and vcpu.apic is not None:
        vcpu.apic.sipi_vector = events.sipi_vector
    if events.flags & _TRIPLE_FAULT:
        vcpu.triple_fault = bool(events.triple_fault_pending)


def _get_events(vcpu: Vcpu, arg: UserPointer) -> int:
    copy_to_user(vcpu.vm.rt.current.mm, arg, get_events(vcpu))
    return 0


def _set_events(vcpu: Vcpu, arg: UserPointer) -> int:
    set_events(vcpu, copy_from_user(vcpu.vm.rt.current.mm, kvm_vcpu_events, arg))
    return 0


def _get_xsave(vcpu: Vcpu, arg: UserPointer) -> int:
    copy_to_user(vcpu.vm.rt.current.mm, arg, kvm_xsave(region=pack_xsave(vcpu.fpu, vcpu.registers)))
    return 0


def _set_xsave(vcpu: Vcpu, arg: UserPointer) -> int:
    """kvm_vcpu_ioctl_x86_set_xsave(): components that there aren't, and reserved bits of MXCSR, are refused."""
    region = copy_from_user(vcpu.vm.rt.current.mm, kvm_xsave, arg).region
    xstate_bv = int.from_bytes(region[512:520], "little")
    mxcsr = int.from_bytes(region[24:28], "little")
    if xstate_bv & ~3 or (xstate_bv and mxcsr & ~0xFFFF):
        raise rules.XSAVE_INVALID(f"XSTATE_BV {xstate_bv:#x}, MXCSR {mxcsr:#x}")
    vcpu.fpu = unpack_xsave(region)
    return 0


def _get_sregs2(vcpu: Vcpu, arg: UserPointer) -> int:
    old = vars(vcpu.sregs).copy()
    del old["interrupt_bitmap"]
    copy_to_user(vcpu.vm.rt.current.mm, arg, kvm_sregs2(**old))
    return 0


def _set_sregs2(vcpu: Vcpu, arg: UserPointer) -> int:
    from .regs import valid_sregs

    new = copy_from_user(vcpu.vm.rt.current.mm, kvm_sregs2, arg)
    if new.flags & ~_PDPTRS_VALID:
        raise rules.SREGS_INVALID(f"flags {new.flags:#x}")
    fields = {name: value for name, value in vars(new).items() if name not in ("flags", "pdptrs")}
    sregs = kvm_sregs(**fields)
    valid_sregs(vcpu, sregs)
    vcpu.sregs = sregs
    return 0


def _translate(vcpu: Vcpu, arg: UserPointer) -> int:
    """kvm_arch_vcpu_ioctl_translate(): the guest's page tables, as supervisor."""
    mm = vcpu.vm.rt.current.mm
    wanted = copy_from_user(mm, kvm_translation, arg)
    if not vcpu.sregs.cr0 & _CR0_PG:
        gpa: int | None = wanted.linear_address
    else:
        gpa = vcpu.machine.translate_linear(wanted.linear_address) if vcpu.machine is not None else None
    wanted.physical_address = _INVALID_GPA if gpa is None else gpa
    wanted.valid = int(wanted.physical_address != _INVALID_GPA)
    wanted.writeable = 1
    copy_to_user(mm, arg, wanted)
    return 0


def _set_guest_debug(vcpu: Vcpu, arg: UserPointer) -> int:
    """kvm_arch_vcpu_ioctl_set_guest_debug(): stepping, breakpoints, or an exception to be injected."""
    debug = copy_from_user(vcpu.vm.rt.current.mm, kvm_guest_debug, arg)
    cpu = vcpu.machine
    if cpu is None:
        raise rules.GUEST_DEBUG("a guest that isn't machine code")
    if debug.control & (_DEBUG_DB | _DEBUG_BP):
        if cpu.event is not None:
            raise rules.GUEST_DEBUG_BUSY(f"{cpu.event}")
        cpu.event = Event(_DB if debug.control & _DEBUG_DB else _BP, pending=True)
    enabled = bool(debug.control & _DEBUG_ENABLE)
    vcpu.guest_debug = debug.control if enabled else 0
    cpu.intercepts = frozenset(
        ([_BP] if enabled and debug.control & _DEBUG_SW else [])
        + ([_DB] if enabled and debug.control & (_DEBUG_STEP | _DEBUG_HW) else [])
    )
    cpu.single_step = enabled and bool(debug.control & _DEBUG_STEP)
    vcpu.guest_debug_dr7 = debug.debugreg[7] if enabled and debug.control & _DEBUG_HW else 0
    own = enabled and bool(debug.control & _DEBUG_HW)
    cpu.host_breakpoints = (debug.debugreg[:4], vcpu.guest_debug_dr7) if own else None
    return 0


def _set_signal_mask(vcpu: Vcpu, arg: UserPointer) -> int:
    """kvm_vcpu_ioctl_set_sigmask(): which signals are blocked while the guest runs; a null pointer undoes it."""
    mm = vcpu.vm.rt.current.mm
    if arg == 0:
        vcpu.signal_mask = None
        return 0
    head = copy_from_user(mm, kvm_signal_mask, arg)
    if head.len != 8:
        raise rules.SIGNAL_MASK(f"{head.len} bytes")
    raw = read_user(mm, arg + 4, 8) if isinstance(arg, int) else bytes(arg[4:12])
    vcpu.signal_mask = int.from_bytes(raw, "little")
    return 0


def _tpr_access(vcpu: Vcpu, arg: UserPointer) -> int:
    mm = vcpu.vm.rt.current.mm
    wanted = copy_from_user(mm, kvm_tpr_access_ctl, arg)
    if wanted.flags:
        raise rules.TPR_ACCESS(f"flags {wanted.flags:#x}")
    copy_to_user(mm, arg, wanted)
    return 0


def _set_tsc_khz(vcpu: Vcpu, arg: UserPointer) -> int:
    if not isinstance(arg, int) or arg >= MAX_GUEST_TSC_KHZ:
        raise rules.TSC_KHZ(f"{arg!r} kHz")
    vcpu.clock.set_khz(arg or vcpu.vm.default_tsc_khz)
    vcpu.clock_update = True
    return 0


def _get_tsc_khz(vcpu: Vcpu, arg: UserPointer) -> int:
    return vcpu.clock.khz


def _nothing(vcpu: Vcpu, arg: UserPointer) -> int:
    """KVM_KVMCLOCK_CTRL: the guest has no clock page that says it was paused."""
    raise rules.KVMCLOCK_NONE("KVM_KVMCLOCK_CTRL")


def _attr(vcpu: Vcpu, arg: UserPointer) -> kvm_device_attr:
    """The one attribute of a vCPU: its TSC offset.  Raises ENXIO."""
    attr = copy_from_user(vcpu.vm.rt.current.mm, kvm_device_attr, arg)
    if attr.group != _TSC_CTRL or attr.attr != _TSC_OFFSET:
        raise rules.VCPU_ATTR(f"group {attr.group}, attribute {attr.attr}")
    return attr


def _has_attr(vcpu: Vcpu, arg: UserPointer) -> int:
    _attr(vcpu, arg)
    return 0


def _get_attr(vcpu: Vcpu, arg: UserPointer) -> int:
    offset = vcpu.clock.offset & (1 << 64) - 1
    write_user(vcpu.vm.rt.current.mm, _attr(vcpu, arg).addr, offset.to_bytes(8, "little"))
    return 0


def _set_attr(vcpu: Vcpu, arg: UserPointer) -> int:
    raw = read_user(vcpu.vm.rt.current.mm, _attr(vcpu, arg).addr, 8)
    vcpu.clock.offset = int.from_bytes(raw, "little")
    return 0


def _smi(vcpu: Vcpu, arg: UserPointer) -> int:
    from ..rules import gmemu as own_rules

    raise own_rules.IOCTL("KVM_SMI: there is no system management mode")


IOCTLS: dict[int, Callable[[Vcpu, UserPointer], int]] = {
    uapi.KVM_GET_LAPIC: _get_lapic,
    uapi.KVM_SET_LAPIC: _set_lapic,
    uapi.KVM_INTERRUPT: _interrupt,
    uapi.KVM_NMI: _nmi,
    uapi.KVM_SMI: _smi,
    uapi.KVM_GET_VCPU_EVENTS: _get_events,
    uapi.KVM_SET_VCPU_EVENTS: _set_events,
    uapi.KVM_GET_XSAVE: _get_xsave,
    uapi.KVM_GET_XSAVE2: _get_xsave,
    uapi.KVM_SET_XSAVE: _set_xsave,
    uapi.KVM_GET_SREGS2: _get_sregs2,
    uapi.KVM_SET_SREGS2: _set_sregs2,
    uapi.KVM_TRANSLATE: _translate,
    uapi.KVM_SET_GUEST_DEBUG: _set_guest_debug,
    uapi.KVM_SET_SIGNAL_MASK: _set_signal_mask,
    uapi.KVM_X86_SETUP_MCE: setup_mce,
    uapi.KVM_X86_SET_MCE: set_mce,
    uapi.KVM_TPR_ACCESS_REPORTING: _tpr_access,
    uapi.KVM_SET_VAPIC_ADDR: set_vapic_addr,
    uapi.KVM_SET_TSC_KHZ: _set_tsc_khz,
    uapi.KVM_GET_TSC_KHZ: _get_tsc_khz,
    uapi.KVM_KVMCLOCK_CTRL: _nothing,
    uapi.KVM_HAS_DEVICE_ATTR: _has_attr,
    uapi.KVM_GET_DEVICE_ATTR: _get_attr,
    uapi.KVM_SET_DEVICE_ATTR: _set_attr,
}
