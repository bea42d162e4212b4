# SPDX-License-Identifier: GPL-2.0-or-later
"""Events that cross between guest and user space without an exit: ioeventfd, irqfd (virt/kvm/eventfd.c), coalesced MMIO
(virt/kvm/coalesced_mmio.c)."""

from __future__ import annotations

import os
import select
import threading
from typing import TYPE_CHECKING, NamedTuple

from ..hw.memory import PAGE_SHIFT, PAGE_SIZE
from ..hw.real_memory import out_of_the_way
from ..mm.uaccess import UserPointer, copy_from_user
from ..rules import kvm as rules
from ..uapi.kvm import kvm_coalesced_mmio_zone, kvm_ioeventfd, kvm_irqfd

if TYPE_CHECKING:
    from .vcpu import Vcpu
    from .vm import Vm

__all__ = ["IoBus", "coalesce", "uncoalesce", "vm_ioeventfd", "vm_irqfd"]

_DATAMATCH, _PIO, _DEASSIGN = 1, 2, 4
_KNOWN = 0x1F
"""These, s390's, and one that the kernel keeps to itself and yet lets pass."""
_IRQFD_DEASSIGN, _IRQFD_RESAMPLE = 1, 2
_RING_HEAD, _RING_ENTRY = 8, 24
_RING_MAX = (PAGE_SIZE - _RING_HEAD) // _RING_ENTRY


class _IoEvent(NamedTuple):
    address: int
    length: int
    match: int | None
    port: bool
    given: int
    fd: int


class _Zone(NamedTuple):
    address: int
    size: int
    port: bool


class IoBus:
    """A VM's ioeventfds, coalesced zones and irqfds.  Descriptors are duplicates of user space's."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self.events: list[_IoEvent] = []
        self.zones: list[_Zone] = []
        self._irqfds: dict[tuple[int, int], int] = {}
        """the eventfd's own number and a GSI -> our descriptor"""
        self._thread: threading.Thread | None = None
        self._wake: tuple[int, int] | None = None

    def write(self, vcpu: Vcpu, address: int, data: bytes, *, port: bool) -> bool:
        """kvm_io_bus_write(): whether somebody took it."""
        value = int.from_bytes(data, "little")
        for event in self.events:
            there = event.port == port and event.address == address and event.length in (0, len(data))
            if there and event.match in (None, value):
                os.write(event.fd, (1).to_bytes(8, "little"))
                return True
        for zone in self.zones:
            if zone.port == port and zone.address <= address and address + len(data) <= zone.address + zone.size:
                return self._coalesce(address, data, port)
        return False

    def _coalesce(self, address: int, data: bytes, port: bool) -> bool:
        """coalesced_mmio_write(): into the ring behind kvm_run, unless it's full."""
        memory, ring = self._vm.host.memory, self._vm.vcpus[0].coalesced_pfn << PAGE_SHIFT
        first, last = (int.from_bytes(memory.read(ring + at, 4), "little") for at in (0, 4))
        if last >= _RING_MAX or (last + 1) % _RING_MAX == first:
            return False
        entry = address.to_bytes(8, "little") + len(data).to_bytes(4, "little") + int(port).to_bytes(4, "little")
        memory.write(ring + _RING_HEAD + last * _RING_ENTRY, entry + data.ljust(8, b"\0"))
        memory.write(ring + 4, ((last + 1) % _RING_MAX).to_bytes(4, "little"))
        return True

    # irqfd

    def assign(self, gsi: int, fd: int) -> None:
        """kvm_irqfd_assign(): watch `fd`; each event is a pulse of `gsi`.  Raises EBUSY (`kvm.irqfd.busy`)."""
        number = _eventfd_number(fd)
        if any(known == number for known, _ in self._irqfds):
            os.close(fd)
            raise rules.IRQFD_BUSY(f"eventfd {number}, gsi {gsi}")
        self._irqfds[number, gsi] = fd
        if self._thread is None:
            read, write = os.pipe()
            self._wake = out_of_the_way(read), out_of_the_way(write)
            self._thread = threading.Thread(target=self._watch, name="gmemu-irqfd", daemon=True)
            self._thread.start()
        else:
            self._poke()

    def deassign(self, given: int, gsi: int) -> None:
        """kvm_irqfd_deassign(): nothing happens if there is none such."""
        fd = self._irqfds.pop((_eventfd_number(given), gsi), None)
        if fd is not None:
            self._poke()
            os.close(fd)

    def _poke(self) -> None:
        if self._wake is not None:
            os.write(self._wake[1], b"x")

    def _watch(self) -> None:
        """irqfd_wakeup() and irqfd_inject(), in a thread of their own."""
        assert self._wake is not None
        end, wake = False, self._wake[0]
        task = self._vm.rt.current.__class__("irqfd")
        while not end:
            fds = {fd: gsi for (_, gsi), fd in list(self._irqfds.items())}
            poll = select.poll()
            for fd in (wake, *fds):
                poll.register(fd, select.POLLIN)
            for fd, _ in poll.poll():
                if fd == wake:
                    end = b"q" in os.read(wake, 64)
                    continue
                try:
                    os.read(fd, 8)
                except OSError:
                    continue
                previous = self._vm.rt.enter(task)
                try:
                    if self._vm.irqchip is not None:
                        self._vm.irqchip.set_gsi(fds[fd], True)
                        self._vm.irqchip.set_gsi(fds[fd], False)
                finally:
                    self._vm.rt.leave(previous)
        for fd in self._wake:
            os.close(fd)

    def destroy(self) -> None:
        """The VM is gone: so are its duplicates."""
        if self._wake is not None:
            os.write(self._wake[1], b"q")
        for fd in (*(event.fd for event in self.events), *self._irqfds.values()):
            os.close(fd)
        self.events.clear()
        self._irqfds.clear()


def _check(vm: Vm, fd: int) -> None:
    """Raises EINVAL or EBADF for what isn't an eventfd's descriptor."""
    if fd in vm.rt.current.process.files:
        raise rules.EVENTFD(f"fd {fd} is {vm.rt.current.process.files[fd].name}")
    try:
        if "[eventfd]" not in os.readlink(f"/proc/self/fd/{fd}"):
            raise rules.EVENTFD(f"fd {fd} isn't an eventfd")
    except FileNotFoundError:
        raise rules.EVENTFD_NONE(f"fd {fd}") from None


def _duplicate(vm: Vm, fd: int) -> int:
    """A descriptor of the eventfd that user space gave.  Raises as `_check` does."""
    _check(vm, fd)
    return out_of_the_way(os.dup(fd))


def _eventfd_number(fd: int) -> int:
    """Which eventfd this is, by whatever descriptor."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
        lines = dict(line.split(":", 1) for line in file.read().splitlines())
    return int(lines["eventfd-id"])


def vm_ioeventfd(vm: Vm, arg: UserPointer) -> int:
    """kvm_ioeventfd()."""
    given = copy_from_user(vm.rt.current.mm, kvm_ioeventfd, arg)
    if given.flags & _DEASSIGN:
        return _deassign_ioeventfd(vm, given)
    wraps = given.addr + given.len > 1 << 64
    if given.flags & ~_KNOWN or given.len not in (0, 1, 2, 4, 8) or wraps or (not given.len and given.flags & _DATAMATCH):
        raise rules.IOEVENTFD(f"length {given.len}, flags {given.flags:#x}")
    fd = _duplicate(vm, given.fd)
    event = _io_event(given, fd)
    if any(e[:4] == event[:4] for e in vm.io.events):
        os.close(fd)
        raise rules.IOEVENTFD_EXISTS(f"{given!r}")
    vm.io.events.append(event)
    return 0


def _io_event(given: kvm_ioeventfd, fd: int) -> _IoEvent:
    match = given.datamatch if given.flags & _DATAMATCH else None
    return _IoEvent(given.addr, given.len, match, bool(given.flags & _PIO), given.fd, fd)


def _deassign_ioeventfd(vm: Vm, given: kvm_ioeventfd) -> int:
    """kvm_deassign_ioeventfd()."""
    _check(vm, given.fd)
    event = _io_event(given, -1)
    same = [e for e in vm.io.events if e[:5] == event[:5]]
    if not same:
        raise rules.IOEVENTFD_NONE(f"{given!r}")
    vm.io.events.remove(same[0])
    os.close(same[0].fd)
    return 0


def vm_irqfd(vm: Vm, arg: UserPointer) -> int:
    """kvm_irqfd()."""
    given = copy_from_user(vm.rt.current.mm, kvm_irqfd, arg)
    if given.flags & ~_IRQFD_DEASSIGN:
        raise rules.IRQFD(f"gsi {given.gsi}, flags {given.flags:#x}")
    if given.flags & _IRQFD_DEASSIGN:
        _check(vm, given.fd)
        vm.io.deassign(given.fd, given.gsi)
        return 0
    if vm.irqchip is None:
        raise rules.IRQFD("a VM without an irqchip")
    vm.io.assign(given.gsi, _duplicate(vm, given.fd))
    return 0


def coalesce(vm: Vm, arg: UserPointer) -> int:
    """kvm_vm_ioctl_register_coalesced_mmio()."""
    zone = copy_from_user(vm.rt.current.mm, kvm_coalesced_mmio_zone, arg)
    if zone.pio not in (0, 1):
        raise rules.COALESCED_ZONE(f"pio {zone.pio}")
    vm.io.zones.append(_Zone(zone.addr, zone.size, bool(zone.pio)))
    return 0


def uncoalesce(vm: Vm, arg: UserPointer) -> int:
    """kvm_vm_ioctl_unregister_coalesced_mmio(): whatever lies within."""
    zone = copy_from_user(vm.rt.current.mm, kvm_coalesced_mmio_zone, arg)
    if zone.pio not in (0, 1):
        raise rules.COALESCED_ZONE(f"pio {zone.pio}")
    vm.io.zones = [
        z
        for z in vm.io.zones
        if z.port != bool(zone.pio) or not zone.addr <= z.address <= z.address + z.size <= zone.addr + zone.size
    ]
    return 0
