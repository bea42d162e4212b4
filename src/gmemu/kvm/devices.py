# SPDX-License-Identifier: GPL-2.0-or-later
"""Ports and addresses that KVM answers for itself: the buses of kvm->buses[], and the local APIC's page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .irqchip import IOAPIC_GPA, IOAPIC_SIZE

if TYPE_CHECKING:
    from .vcpu import Vcpu

__all__ = ["mmio", "pio"]

_APIC_PAGE = 4096


def mmio(vcpu: Vcpu, gpa: int, data: bytes, write: bool) -> bytes | None:
    """vcpu_mmio_read() and vcpu_mmio_write(): what was loaded (nothing for a store), or None: it's for user space."""
    apic, chip = vcpu.apic, vcpu.vm.irqchip
    if apic is not None and (base := apic.gpa) is not None and base <= gpa < base + _APIC_PAGE:
        if not write:
            return apic.read(gpa - base, len(data))
        apic.write(gpa - base, data)
        return b""
    if chip is not None and not chip.split and IOAPIC_GPA <= gpa < IOAPIC_GPA + IOAPIC_SIZE:
        if not write:
            return (
                chip.mmio_read(gpa - IOAPIC_GPA & ~3).to_bytes(4, "little")[gpa & 3 :][: len(data)].ljust(len(data), b"\0")
            )
        chip.mmio_write(gpa - IOAPIC_GPA, int.from_bytes(data, "little"))
        return b""
    if write and vcpu.vm.io.write(vcpu, gpa, data, port=False):
        return b""
    return None


def pio(vcpu: Vcpu, port: int, data: bytes, size: int, write: bool) -> bytes | None:
    """kernel_pio(): the same for ports, where a string instruction brings several elements."""
    chip = vcpu.vm.irqchip
    if write and vcpu.vm.io.write(vcpu, port, data, port=True):
        return b""
    if chip is None or chip.split:
        return None
    if write:
        return b"" if chip.port_write(port, data[0]) else None
    loaded = [chip.port_read(port) for _ in range(len(data) // size)]
    if None in loaded:
        return None
    return b"".join((value or 0).to_bytes(size, "little") for value in loaded)
