# SPDX-License-Identifier: GPL-2.0-or-later
"""The interrupt controllers of a PC that KVM emulates (arch/x86/kvm/i8259.c, ioapic.c, irq_comm.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..uapi.kvm import kvm_irq_routing_entry
from .lapic import deliver

if TYPE_CHECKING:
    from .pit import Pit
    from .vm import Vm

__all__ = ["IOAPIC_GPA", "IOAPIC_PINS", "IrqChip", "ROUTE_IRQCHIP", "ROUTE_MSI", "deliver_message"]

IOAPIC_GPA, IOAPIC_SIZE, IOAPIC_PINS = 0xFEC00000, 0x100, 24
ROUTE_IRQCHIP, ROUTE_MSI = 1, 2
_MASK, _LEVEL, _REMOTE_IRR, _LOGICAL = 1 << 16, 1 << 15, 1 << 14, 1 << 11
_SPURIOUS = 7
"""The pin that a PIC gives when nothing waits any more."""


class _Pic:
    """One 8259A."""

    def __init__(self, elcr_mask: int) -> None:
        self.irr = self.isr = self.last = 0
        self.imr = 0
        self.base = 0
        self.init_step = 0
        self.elcr = 0
        self.auto_eoi = self.read_isr = self.needs_icw4 = False
        self.priority_add = self.poll = self.special_mask = self.rotate_on_auto_eoi = self.special_fully_nested = 0
        self.elcr_mask = elcr_mask

    def set_line(self, pin: int, level: bool) -> int:
        """pic_set_irq1(): 1 if it's new, 0 if it still waited, -1 if it's masked."""
        bit, status = 1 << pin, 1
        if level and (self.elcr & bit or not self.last & bit):
            status = int(not self.irr & bit)
            self.irr |= bit
        elif not level and self.elcr & bit:
            self.irr &= ~bit
        self.last = self.last | bit if level else self.last & ~bit
        return -1 if self.imr & bit else status

    def pending(self) -> int:
        """The pin with the highest priority that isn't behind one in service, or -1."""
        wanted = self.irr & ~self.imr
        pin = (wanted & -wanted).bit_length() - 1
        served = (self.isr & -self.isr).bit_length() - 1
        return pin if pin >= 0 and (served < 0 or pin < served) else -1

    def acknowledge(self, pin: int) -> None:
        if not self.auto_eoi:
            self.isr |= 1 << pin
        if not self.elcr & 1 << pin:
            self.irr &= ~(1 << pin)

    def write(self, port: int, value: int) -> None:
        """The two ports' stores (pic_ioport_write)."""
        if port == 0:
            self._command(value)
        elif self.init_step == 0:
            self.imr = value
        else:
            self._initialize(value)

    def _command(self, value: int) -> None:
        if value & 0x10:
            elcr = self.elcr
            self.__init__(self.elcr_mask)  # type: ignore[misc]
            self.elcr, self.init_step, self.needs_icw4 = elcr, 1, bool(value & 1)
        elif value & 8:
            if value & 2:
                self.read_isr = bool(value & 1)
        elif value >> 5 in (1, 5):
            self.isr &= self.isr - 1
        elif value >> 5 in (3, 7):
            self.isr &= ~(1 << (value & 7))

    def _initialize(self, value: int) -> None:
        if self.init_step == 1:
            self.base = value & 0xF8
            self.init_step = 2
        elif self.init_step == 2:
            self.init_step = 3 if self.needs_icw4 else 0
        else:
            self.auto_eoi = bool(value & 2)
            self.init_step = 0

    def read(self, port: int) -> int:
        """And the loads."""
        return self.imr if port else self.isr if self.read_isr else self.irr


class IrqChip:
    """Two PICs, an I/O APIC unless user space has it (split), and the routes of GSIs to them."""

    def __init__(self, vm: Vm, split: bool) -> None:
        self._vm, self.split = vm, split
        self.pics = (_Pic(0xF8), _Pic(0xDE))
        self.redirection = [_MASK] * IOAPIC_PINS
        self._select = self._lines = 0
        self.ioapic_id = 0
        self.pit: Pit | None = None
        self.routes: dict[int, list[kvm_irq_routing_entry]] = {}
        if not split:
            self.set_default_routes()

    def set_default_routes(self) -> None:
        """kvm_setup_default_irq_routing(): GSIs below 16 to the PICs and the I/O APIC, the rest to the latter."""
        for gsi in range(IOAPIC_PINS):
            targets = [(2, gsi)] + ([(gsi >> 3, gsi & 7)] if gsi < 16 else [])
            self.routes[gsi] = [
                kvm_irq_routing_entry(gsi=gsi, type=ROUTE_IRQCHIP, u=(chip, pin, 0, 0, 0, 0, 0, 0)) for chip, pin in targets
            ]

    def destroy(self) -> None:
        """The VM is gone."""
        if self.pit is not None:
            self.pit.destroy()

    # GSIs

    def set_gsi(self, gsi: int, level: bool) -> int:
        """kvm_set_irq(): how many took it, 0 if the one before still waits, -1 if it's masked or goes nowhere."""
        taken = [status for route in self.routes.get(gsi, ()) if (status := self._set_route(route, level)) >= 0]
        return sum(taken) if taken else -1

    def _set_route(self, route: kvm_irq_routing_entry, level: bool) -> int:
        if route.type == ROUTE_MSI:
            return deliver_message(self._vm, route.u[0], route.u[1], route.u[2]) if level else -1
        if route.u[0] == 2:
            return self._set_ioapic(route.u[1], level)
        return self._set_pic(route.u[0] * 8 + route.u[1], level)

    # The PICs

    def _set_pic(self, pin: int, level: bool) -> int:
        status = self.pics[pin >> 3].set_line(pin & 7, level)
        self._cascade()
        return status

    def _cascade(self) -> None:
        """pic_update_irq(): the slave's line is a pulse, which the master keeps."""
        master, slave = self.pics
        if slave.pending() >= 0:
            master.set_line(2, True)
            master.set_line(2, False)
        if master.pending() >= 0 and self._vm.vcpus:
            self._vm.vcpus[0].kick()

    @property
    def output(self) -> bool:
        """The line to the boot processor."""
        return not self.split and self.pics[0].pending() >= 0

    def peek(self) -> int:
        """The vector that `acknowledge` would give."""
        master, slave = self.pics
        pin = master.pending()
        if pin == 2:
            second = slave.pending()
            return slave.base + (second if second >= 0 else _SPURIOUS)
        return master.base + (pin if pin >= 0 else _SPURIOUS)

    def acknowledge(self) -> int:
        """kvm_pic_read_irq()."""
        master, slave = self.pics
        pin, vector = master.pending(), self.peek()
        if pin == 2 and (second := slave.pending()) >= 0:
            slave.acknowledge(second)
        if pin >= 0:
            master.acknowledge(pin)
        self._cascade()
        return vector

    def port_write(self, port: int, value: int) -> bool:
        """OUT to one of the chip's ports; False if it isn't one."""
        if port in (0x20, 0x21, 0xA0, 0xA1):
            self.pics[port >> 7].write(port & 1, value)
        elif port in (0x4D0, 0x4D1):
            self.pics[port & 1].elcr = value & self.pics[port & 1].elcr_mask
        elif self.pit is None or not self.pit.port_write(port, value):
            return False
        self._cascade()
        return True

    def port_read(self, port: int) -> int | None:
        """IN from one of the chip's ports."""
        if port in (0x20, 0x21, 0xA0, 0xA1):
            return self.pics[port >> 7].read(port & 1)
        if port in (0x4D0, 0x4D1):
            return self.pics[port & 1].elcr
        return self.pit.port_read(port) if self.pit is not None else None

    # The I/O APIC

    def _set_ioapic(self, pin: int, level: bool) -> int:
        """ioapic_set_irq(): how many vCPUs took it, 0 for an edge that still waits, -1 if it's masked."""
        bit, entry = 1 << pin, self.redirection[pin]
        rose = level and not self._lines & bit
        self._lines = self._lines | bit if level else self._lines & ~bit
        if not level:
            return 1
        if not entry & _LEVEL and not rose:
            return 0
        if entry & _MASK or (entry & _LEVEL and entry & _REMOTE_IRR):
            return -1
        taken = deliver(
            self._vm.vcpus,
            entry >> 56,
            entry >> 8 & 7,
            entry & 0xFF,
            logical=bool(entry & _LOGICAL),
            level=bool(entry & _LEVEL),
        )
        if taken and entry & _LEVEL:
            self.redirection[pin] |= _REMOTE_IRR
        return taken

    def eoi(self, vector: int) -> None:
        """kvm_ioapic_update_eoi(): a level that is still up comes again."""
        for pin, entry in enumerate(self.redirection):
            if entry & 0xFF == vector and entry & _REMOTE_IRR:
                self.redirection[pin] &= ~_REMOTE_IRR
                if self._lines >> pin & 1:
                    self._set_ioapic(pin, True)

    def mmio_read(self, offset: int) -> int:
        """A load from IOREGSEL or IOWIN."""
        if offset == 0:
            return self._select
        if offset != 0x10:
            return 0
        if self._select == 0:
            return self.ioapic_id << 24
        if self._select == 1:
            return 0x11 | IOAPIC_PINS - 1 << 16
        pin = self._select - 0x10 >> 1
        if not 0 <= pin < IOAPIC_PINS:
            return 0
        return self.redirection[pin] >> (32 if self._select & 1 else 0) & 0xFFFFFFFF

    def mmio_write(self, offset: int, value: int) -> None:
        """A store to them."""
        pin = self._select - 0x10 >> 1
        if offset == 0:
            self._select = value & 0xFF
        elif offset == 0x10 and self._select == 0:
            self.ioapic_id = value >> 24 & 0xF
        elif offset == 0x10 and 0 <= pin < IOAPIC_PINS:
            old = self.redirection[pin]
            if self._select & 1:
                new = old & 0xFFFFFFFF | value << 32
            else:
                new = old & ~0xFFFFFFFF | value & ~(_REMOTE_IRR | 1 << 12) & 0xFFFFFFFF | old & _REMOTE_IRR
            self.redirection[pin] = new
            if new & _LEVEL and self._lines >> pin & 1:
                self._set_ioapic(pin, True)

    # KVM_GET_IRQCHIP and KVM_SET_IRQCHIP

    def get_state(self, chip: int) -> bytes:
        """The chip's state as user space sees it: struct kvm_pic_state or kvm_ioapic_state."""
        if chip == 2:
            head = IOAPIC_GPA.to_bytes(8, "little") + self._select.to_bytes(4, "little")
            head += self.ioapic_id.to_bytes(4, "little") + self._lines.to_bytes(4, "little") + bytes(4)
            return head + b"".join(entry.to_bytes(8, "little") for entry in self.redirection)
        pic = self.pics[chip]
        lines = (pic.last & 0xFF, pic.irr, pic.imr, pic.isr, pic.priority_add, pic.base, int(pic.read_isr))
        modes = (pic.poll, pic.special_mask, pic.init_step, int(pic.auto_eoi), pic.rotate_on_auto_eoi)
        return bytes((*lines, *modes, pic.special_fully_nested, int(pic.needs_icw4), pic.elcr, pic.elcr_mask))

    def set_state(self, chip: int, state: bytes) -> None:
        """The other way."""
        if chip == 2:
            self._select, self.ioapic_id, self._lines = (int.from_bytes(state[at : at + 4], "little") for at in (8, 12, 16))
            self.redirection = [int.from_bytes(state[24 + 8 * i : 32 + 8 * i], "little") for i in range(IOAPIC_PINS)]
            return
        pic = self.pics[chip]
        pic.last, pic.irr, pic.imr, pic.isr, pic.base = state[0], state[1], state[2], state[3], state[5]
        pic.read_isr, pic.init_step, pic.auto_eoi = bool(state[6]), state[9], bool(state[10])
        pic.needs_icw4, pic.elcr, pic.elcr_mask = bool(state[13]), state[14], state[15]
        pic.priority_add, pic.poll, pic.special_mask, pic.rotate_on_auto_eoi = state[4], state[7], state[8], state[11]
        pic.special_fully_nested = state[12]


def deliver_message(vm: Vm, low: int, high: int, data: int) -> int:
    """kvm_set_msi(): a message to local APICs.  How many took it, or -1 if there is none to take it."""
    x2apic = vm.x2apic_format
    destination = low >> 12 & 0xFF | (high & 0xFFFFFF00 if x2apic else 0)
    return deliver(vm.vcpus, destination, data >> 8 & 7, data & 0xFF, logical=bool(low & 4), x2apic=x2apic)
