# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_ENABLE_CAP on a VM (kvm_vm_ioctl_enable_cap() and kvm_vm_ioctl_enable_cap_generic())."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..rules import kvm as rules
from ..uapi.kvm import KVM_HC_MAP_GPA_RANGE, Cap, kvm_enable_cap

if TYPE_CHECKING:
    from .vm import Vm

__all__ = ["QUIRKS", "enable_cap"]

QUIRKS = 0xFF
_MSR_EXIT_REASONS = 7
_DISABLE_EXITS = 0xF
_MAX_RESERVED_PINS = 4096
_MAX_BUS_CYCLE_NS = ((1 << 64) - 1) // ((1 << 32) - 1 << 7)
"""So that the timer's count, divided by up to 128, can be told in nanoseconds."""


def enable_cap(vm: Vm, cap: kvm_enable_cap) -> int:
    """Switch a capability on.  Raises EINVAL where it isn't one, or not so."""
    if cap.flags:
        raise rules.ENABLE_CAP_FLAGS(f"flags {cap.flags:#x}")
    handler = _CAPS.get(cap.cap)
    if handler is None or cap.cap not in vm.profile.caps:
        raise rules.ENABLE_CAP(f"capability {cap.cap}")
    return handler(vm, cap.args[0], cap)


def _allow(value: int, allowed: int) -> None:
    if value & ~allowed:
        raise rules.ENABLE_CAP_ARGS(f"{value:#x}, allowed {allowed:#x}")


def _exit_hypercall(vm: Vm, value: int, cap: kvm_enable_cap) -> int:
    _allow(value, 1 << KVM_HC_MAP_GPA_RANGE)
    vm.hypercall_exits = value
    return 0


def _quirks(vm: Vm, value: int, cap: kvm_enable_cap) -> int:
    if cap.cap == Cap.DISABLE_QUIRKS2:
        _allow(value, QUIRKS)
    vm.quirks_disabled |= value
    return 0


def _split_irqchip(vm: Vm, value: int, cap: kvm_enable_cap) -> int:
    from .vm_x86 import create_irqchip

    if value > _MAX_RESERVED_PINS:
        raise rules.ENABLE_CAP_ARGS(f"{value} pins, at most {_MAX_RESERVED_PINS}")
    return create_irqchip(vm, split=True)


def _x2apic(vm: Vm, value: int, cap: kvm_enable_cap) -> int:
    _allow(value, 3)
    vm.x2apic_format = bool(value & 1)
    return 0


def _user_space_msr(vm: Vm, value: int, cap: kvm_enable_cap) -> int:
    _allow(value, _MSR_EXIT_REASONS)
    vm.user_space_msr_mask = value
    return 0


def _max_vcpu_id(vm: Vm, value: int, cap: kvm_enable_cap) -> int:
    if value > vm.profile.caps[Cap.MAX_VCPU_ID].device:
        raise rules.MAX_VCPU_ID(f"{value}")
    with vm.lock:
        if vm.max_vcpu_id == value:
            return 0
        if vm.max_vcpu_id or vm.bsp_vcpu_id > value:
            raise rules.MAX_VCPU_ID(f"{value} after {vm.max_vcpu_id}, boot processor {vm.bsp_vcpu_id}")
        vm.max_vcpu_id = value
    return 0


def _exception_payload(vm: Vm, value: int, cap: kvm_enable_cap) -> int:
    vm.exception_payload = bool(value)
    return 0


def _triple_fault(vm: Vm, value: int, cap: kvm_enable_cap) -> int:
    vm.triple_fault_event = bool(value)
    return 0


def _platform_info(vm: Vm, value: int, cap: kvm_enable_cap) -> int:
    vm.guest_can_read_platform_info = bool(value)
    return 0


def _disable_exits(vm: Vm, value: int, cap: kvm_enable_cap) -> int:
    """What it allows (to halt or to wait without an exit) is an optimization, though CPUID tells of it."""
    _allow(value, _DISABLE_EXITS)
    vm.disabled_exits |= value
    return 0


def _bus_cycles(vm: Vm, value: int, cap: kvm_enable_cap) -> int:
    if not 0 < value <= _MAX_BUS_CYCLE_NS:
        raise rules.BUS_CYCLES(f"{value} ns")
    with vm.lock:
        if vm.irqchip is None:
            raise rules.IRQCHIP_NONE("KVM_CAP_X86_APIC_BUS_CYCLES_NS")
        if vm.created_vcpus:
            raise rules.BUS_CYCLES(f"{vm.created_vcpus} vCPUs")
        vm.apic_bus_cycle_ns = value
    return 0


def _dirty_protect(vm: Vm, value: int, cap: kvm_enable_cap) -> int:
    """Bit 0: KVM_GET_DIRTY_LOG doesn't clear; bit 1, with it: everything is dirty at first."""
    _allow(value, 3 if value & 1 else 1)
    vm.manual_dirty_log_protect = value
    return 0


def _emulation_failure(vm: Vm, value: int, cap: kvm_enable_cap) -> int:
    _allow(value, 1)
    vm.exit_on_emulation_error = bool(value)
    return 0


def _accepted(vm: Vm, value: int, cap: kvm_enable_cap) -> int:
    """A knob of how the host does its work, which a guest doesn't see."""
    return 0


_CAPS: dict[int, Callable[[Vm, int, kvm_enable_cap], int]] = {
    Cap.EXIT_HYPERCALL: _exit_hypercall,
    Cap.DISABLE_QUIRKS: _quirks,
    Cap.DISABLE_QUIRKS2: _quirks,
    Cap.SPLIT_IRQCHIP: _split_irqchip,
    Cap.X2APIC_API: _x2apic,
    Cap.X86_USER_SPACE_MSR: _user_space_msr,
    Cap.MAX_VCPU_ID: _max_vcpu_id,
    Cap.EXCEPTION_PAYLOAD: _exception_payload,
    Cap.X86_TRIPLE_FAULT_EVENT: _triple_fault,
    Cap.MSR_PLATFORM_INFO: _platform_info,
    Cap.X86_DISABLE_EXITS: _disable_exits,
    Cap.X86_APIC_BUS_CYCLES_NS: _bus_cycles,
    Cap.MANUAL_DIRTY_LOG_PROTECT2: _dirty_protect,
    Cap.EXIT_ON_EMULATION_FAILURE: _emulation_failure,
    Cap.HALT_POLL: _accepted,
}
