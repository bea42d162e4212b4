# SPDX-License-Identifier: GPL-2.0-or-later
"""ioctls of a VM that concern its interrupt controllers, clocks and limits (kvm_arch_vm_ioctl() in arch/x86/kvm/x86.c)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..mm.uaccess import UserPointer, copy_from_user, copy_to_user, read_user
from ..rules import kvm as rules
from ..uapi import kvm as uapi
from ..uapi.kvm import (
    Cap,
    kvm_create_device,
    kvm_irq_level,
    kvm_irq_routing,
    kvm_irq_routing_entry,
    kvm_msi,
)
from ..uapi.kvm_x86 import kvm_clock_data, kvm_irqchip, kvm_pit_config, kvm_pit_state2, kvm_reinject_control
from .clock import MAX_GUEST_TSC_KHZ
from .eventfd import coalesce, uncoalesce, vm_ioeventfd, vm_irqfd
from .irqchip import IOAPIC_PINS, ROUTE_IRQCHIP, ROUTE_MSI, IrqChip, deliver_message
from .pit import Pit

if TYPE_CHECKING:
    from .vm import Vm

__all__ = ["IOCTLS", "create_irqchip"]

_MAX_ROUTES = 4096
_CHIPS = 3
_HPET_LEGACY = 1
_MSI_VALID_DEVID = 1
_U32 = (1 << 32) - 1


def create_irqchip(vm: Vm, split: bool) -> int:
    """KVM_CREATE_IRQCHIP, and KVM_CAP_SPLIT_IRQCHIP."""
    with vm.lock:
        if vm.irqchip is not None:
            raise rules.IRQCHIP_EXISTS("KVM_CREATE_IRQCHIP, again")
        if vm.created_vcpus:
            raise (rules.IRQCHIP_SPLIT_VCPUS if split else rules.IRQCHIP_VCPUS)(f"{vm.created_vcpus} vCPUs")
        vm.irqchip = IrqChip(vm, split)
    return 0


def _create_irqchip(vm: Vm, arg: UserPointer) -> int:
    return create_irqchip(vm, split=False)


def _irqchip(vm: Vm) -> IrqChip:
    if vm.irqchip is None or vm.irqchip.split:
        raise rules.IRQCHIP_NONE("a VM without KVM_CREATE_IRQCHIP")
    return vm.irqchip


def _get_irqchip(vm: Vm, arg: UserPointer) -> int:
    mm = vm.rt.current.mm
    asked = copy_from_user(mm, kvm_irqchip, arg)
    chip = _irqchip(vm)
    if asked.chip_id >= _CHIPS:
        raise rules.IRQCHIP_ID(f"chip {asked.chip_id}")
    copy_to_user(mm, arg, kvm_irqchip(chip_id=asked.chip_id, chip=chip.get_state(asked.chip_id).ljust(512, b"\0")))
    return 0


def _set_irqchip(vm: Vm, arg: UserPointer) -> int:
    asked = copy_from_user(vm.rt.current.mm, kvm_irqchip, arg)
    chip = _irqchip(vm)
    if asked.chip_id >= _CHIPS:
        raise rules.IRQCHIP_ID(f"chip {asked.chip_id}")
    chip.set_state(asked.chip_id, asked.chip)
    return 0


def _irq_line(vm: Vm, arg: UserPointer) -> int:
    line = copy_from_user(vm.rt.current.mm, kvm_irq_level, arg)
    if vm.irqchip is None:
        raise rules.IRQCHIP_NONE("KVM_IRQ_LINE")
    vm.irqchip.set_gsi(line.irq, bool(line.level))
    return 0


def _irq_line_status(vm: Vm, arg: UserPointer) -> int:
    mm = vm.rt.current.mm
    line = copy_from_user(mm, kvm_irq_level, arg)
    if vm.irqchip is None:
        raise rules.IRQCHIP_NONE("KVM_IRQ_LINE_STATUS")
    line.irq = vm.irqchip.set_gsi(line.irq, bool(line.level)) & _U32
    copy_to_user(mm, arg, line)
    return 0


def _set_gsi_routing(vm: Vm, arg: UserPointer) -> int:
    """kvm_set_irq_routing(): the table as a whole takes the old one's place."""
    mm = vm.rt.current.mm
    head = copy_from_user(mm, kvm_irq_routing, arg)
    if vm.irqchip is None or head.nr > _MAX_ROUTES or head.flags:
        raise rules.GSI_ROUTING(f"{head.nr} routes, flags {head.flags:#x}, irqchip {vm.irqchip is not None}")
    size, at = kvm_irq_routing_entry.SIZE, kvm_irq_routing.SIZE
    raw = read_user(mm, arg + at, head.nr * size) if isinstance(arg, int) else bytes(arg[at : at + head.nr * size])
    routes: dict[int, list[kvm_irq_routing_entry]] = {}
    for i in range(head.nr):
        entry = kvm_irq_routing_entry.unpack_from(raw, i * size)
        others = routes.setdefault(entry.gsi, [])
        if entry.gsi >= _MAX_ROUTES or not _route_fits(vm, entry, others):
            raise rules.GSI_ROUTING(f"{entry!r}, beside {others!r}")
        others.append(entry)
    vm.irqchip.routes = routes
    return 0


def _route_fits(vm: Vm, entry: kvm_irq_routing_entry, others: list[kvm_irq_routing_entry]) -> bool:
    """setup_routing_entry(): a GSI has one message, or one pin of each chip."""
    if any(other.type != ROUTE_IRQCHIP or entry.type != ROUTE_IRQCHIP or other.u[0] == entry.u[0] for other in others):
        return False
    if entry.type == ROUTE_MSI:
        return not entry.flags & ~_MSI_VALID_DEVID and not _foreign_high(vm, entry.u[1])
    assert vm.irqchip is not None
    if entry.type != ROUTE_IRQCHIP or entry.flags or vm.irqchip.split:
        return False
    return entry.u[0] < _CHIPS and entry.u[1] < (IOAPIC_PINS if entry.u[0] == 2 else 8)


def _foreign_high(vm: Vm, address_hi: int) -> bool:
    """kvm_msi_route_invalid(): with 32-bit destinations the address's bits 32 to 39 are reserved."""
    return vm.x2apic_format and bool(address_hi & 0xFF)


def _signal_msi(vm: Vm, arg: UserPointer) -> int:
    message = copy_from_user(vm.rt.current.mm, kvm_msi, arg)
    if vm.irqchip is None or message.flags & ~_MSI_VALID_DEVID or _foreign_high(vm, message.address_hi):
        raise rules.MSI(f"flags {message.flags:#x}, high address {message.address_hi:#x}, irqchip {vm.irqchip is not None}")
    taken = deliver_message(vm, message.address_lo, message.address_hi, message.data)
    if taken < 0:
        raise rules.MSI_NOBODY(f"address {message.address_lo:#x}")
    return taken


def _create_pit2(vm: Vm, arg: UserPointer) -> int:
    config = copy_from_user(vm.rt.current.mm, kvm_pit_config, arg)
    if vm.irqchip is None or vm.irqchip.split:
        raise rules.PIT_NO_IRQCHIP("KVM_CREATE_PIT2")
    if vm.irqchip.pit is not None:
        raise rules.PIT_EXISTS(f"flags {config.flags:#x}")
    vm.irqchip.pit = Pit(vm)
    return 0


def _pit(vm: Vm) -> Pit:
    if vm.irqchip is None or vm.irqchip.pit is None:
        raise rules.PIT_NONE("a VM without KVM_CREATE_PIT2")
    return vm.irqchip.pit


def _get_pit2(vm: Vm, arg: UserPointer) -> int:
    pit = _pit(vm)
    copy_to_user(vm.rt.current.mm, arg, kvm_pit_state2(channels=pit.get_state(), flags=int(pit.hpet_legacy)))
    return 0


def _set_pit2(vm: Vm, arg: UserPointer) -> int:
    state = copy_from_user(vm.rt.current.mm, kvm_pit_state2, arg)
    pit = _pit(vm)
    pit.hpet_legacy = bool(state.flags & _HPET_LEGACY)
    pit.set_state(state.channels)
    return 0


def _reinject(vm: Vm, arg: UserPointer) -> int:
    """kvm_vm_ioctl_reinject(): whether ticks that came before the last was taken are made good."""
    _pit(vm).reinject = bool(copy_from_user(vm.rt.current.mm, kvm_reinject_control, arg).pit_reinject)
    return 0


def _set_tss_addr(vm: Vm, arg: UserPointer) -> int:
    """vmx_set_tss_addr(): where real mode may keep a TSS; nothing here needs one, as on processors that run it unaided."""
    if isinstance(arg, int) and arg > (1 << 32) - 3 * 4096:
        raise rules.TSS_ADDR(f"{arg:#x}")
    return 0


def _set_identity_map(vm: Vm, arg: UserPointer) -> int:
    if vm.created_vcpus:
        raise rules.IDENTITY_MAP(f"{vm.created_vcpus} vCPUs")
    if isinstance(arg, int):
        read_user(vm.rt.current.mm, arg, 8)
    return 0


def _set_boot_cpu_id(vm: Vm, arg: UserPointer) -> int:
    if vm.created_vcpus:
        raise rules.BOOT_CPU_ID(f"{vm.created_vcpus} vCPUs")
    limit = vm.max_vcpu_id or vm.profile.caps[Cap.MAX_VCPU_ID].device
    if not isinstance(arg, int) or arg >= limit + (not vm.max_vcpu_id):
        raise rules.BOOT_CPU_ID_LIMIT(f"{arg!r}, limit {limit}")
    vm.bsp_vcpu_id = arg
    return 0


def _set_nr_mmu_pages(vm: Vm, arg: UserPointer) -> int:
    if not isinstance(arg, int) or arg < 64:
        raise rules.NR_MMU_PAGES(f"{arg!r}")
    vm.n_max_mmu_pages = arg
    return 0


def _get_clock(vm: Vm, arg: UserPointer) -> int:
    """kvm_vm_ioctl_get_clock(): nanoseconds of the VM, with the host's TSC and time that belong to them."""
    now = time.monotonic_ns()
    data = kvm_clock_data(clock=now + vm.clock_offset, flags=2 | 4 | 8, realtime=time.time_ns(), host_tsc=vm.host.tsc.read())
    copy_to_user(vm.rt.current.mm, arg, data)
    return 0


def _set_clock(vm: Vm, arg: UserPointer) -> int:
    data = copy_from_user(vm.rt.current.mm, kvm_clock_data, arg)
    if data.flags & ~(2 | 4 | 8):
        raise rules.CLOCK_FLAGS(f"flags {data.flags:#x}")
    passed = time.time_ns() - data.realtime if data.flags & 4 else 0
    vm.clock_offset = data.clock + max(passed, 0) - time.monotonic_ns()
    for vcpu in vm.vcpus:
        vcpu.clock_update = True
    return 0


def _set_tsc_khz(vm: Vm, arg: UserPointer) -> int:
    late = bool(vm.created_vcpus) and not vm.profile.vm_tsc_after_vcpus
    if not isinstance(arg, int) or arg >= MAX_GUEST_TSC_KHZ or late:
        raise rules.TSC_KHZ(f"{arg!r} kHz, {vm.created_vcpus} vCPUs")
    vm.default_tsc_khz = arg or vm.host.tsc.khz
    return 0


def _get_tsc_khz(vm: Vm, arg: UserPointer) -> int:
    return vm.default_tsc_khz


def _create_device(vm: Vm, arg: UserPointer) -> int:
    """kvm_ioctl_create_device(): VFIO is the only type that x86 has, and nothing here can be assigned."""
    wanted = copy_from_user(vm.rt.current.mm, kvm_create_device, arg)
    raise rules.DEVICE_TYPE(f"type {wanted.type}")


IOCTLS: dict[int, Callable[[Vm, UserPointer], int]] = {
    uapi.KVM_CREATE_IRQCHIP: _create_irqchip,
    uapi.KVM_GET_IRQCHIP: _get_irqchip,
    uapi.KVM_SET_IRQCHIP: _set_irqchip,
    uapi.KVM_IRQ_LINE: _irq_line,
    uapi.KVM_IRQ_LINE_STATUS: _irq_line_status,
    uapi.KVM_SET_GSI_ROUTING: _set_gsi_routing,
    uapi.KVM_SIGNAL_MSI: _signal_msi,
    uapi.KVM_CREATE_PIT2: _create_pit2,
    uapi.KVM_GET_PIT2: _get_pit2,
    uapi.KVM_SET_PIT2: _set_pit2,
    uapi.KVM_REINJECT_CONTROL: _reinject,
    uapi.KVM_SET_TSS_ADDR: _set_tss_addr,
    uapi.KVM_SET_IDENTITY_MAP_ADDR: _set_identity_map,
    uapi.KVM_SET_BOOT_CPU_ID: _set_boot_cpu_id,
    uapi.KVM_SET_NR_MMU_PAGES: _set_nr_mmu_pages,
    uapi.KVM_GET_CLOCK: _get_clock,
    uapi.KVM_SET_CLOCK: _set_clock,
    uapi.KVM_SET_TSC_KHZ: _set_tsc_khz,
    uapi.KVM_GET_TSC_KHZ: _get_tsc_khz,
    uapi.KVM_IOEVENTFD: vm_ioeventfd,
    uapi.KVM_IRQFD: vm_irqfd,
    uapi.KVM_REGISTER_COALESCED_MMIO: coalesce,
    uapi.KVM_UNREGISTER_COALESCED_MMIO: uncoalesce,
    uapi.KVM_CREATE_DEVICE: _create_device,
}
