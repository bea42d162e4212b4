# SPDX-License-Identifier: GPL-2.0-or-later
"""Interrupt controllers, timer, routes and events of a PC: what is there when, and what KVM refuses."""

from __future__ import annotations

from collections.abc import Callable

from ...api import Vcpu, Vm
from ...uapi.kvm import (
    KVM_CREATE_IRQCHIP,
    KVM_CREATE_PIT2,
    KVM_GET_IRQCHIP,
    KVM_GET_LAPIC,
    KVM_GET_MP_STATE,
    KVM_GET_MSRS,
    KVM_GET_PIT2,
    KVM_INTERRUPT,
    KVM_IOEVENTFD,
    KVM_IRQ_LINE,
    KVM_IRQ_LINE_STATUS,
    KVM_IRQFD,
    KVM_NMI,
    KVM_REGISTER_COALESCED_MMIO,
    KVM_REINJECT_CONTROL,
    KVM_SET_CPUID2,
    KVM_SET_GSI_ROUTING,
    KVM_SET_IRQCHIP,
    KVM_SET_LAPIC,
    KVM_SET_MP_STATE,
    KVM_SET_MSRS,
    KVM_SET_PIT2,
    KVM_SIGNAL_MSI,
    KVM_UNREGISTER_COALESCED_MMIO,
    Cap,
    kvm_coalesced_mmio_zone,
    kvm_interrupt,
    kvm_ioeventfd,
    kvm_irq_level,
    kvm_irq_routing,
    kvm_irq_routing_entry,
    kvm_irqfd,
    kvm_mp_state,
    kvm_msi,
)
from ...uapi.kvm_x86 import (
    kvm_cpuid_entry2,
    kvm_irqchip,
    kvm_lapic_state,
    kvm_msr_entry,
    kvm_msrs,
    kvm_pit_config,
    kvm_pit_state2,
)
from ...uapi.layout import Struct
from ..bench import Bench
from ..case import case

_NOBODY = 987
"""A descriptor that no program has."""
_APIC_BASE, _X2APIC_ENABLE, _CPUID_X2APIC = 0x1B, 1 << 10, 1 << 21
_X2APIC_MSR, _ICR_MSR, _TIMER_MSR = 0x800, 0x30, 0x38
_CHIP_STATE, _IMR = 8, 2
_LAPIC_ID, _LAPIC_VERSION, _SPURIOUS, _LVT_LINT0 = 0x20, 0x30, 0xF0, 0x350


def _without(vm: Vm) -> None:
    """Interrupt controllers in user space."""


def _whole(vm: Vm) -> None:
    vm.ioctl(KVM_CREATE_IRQCHIP)


def _split(vm: Vm) -> None:
    vm.enable_cap(Cap.SPLIT_IRQCHIP, 24)


KINDS: dict[str, Callable[[Vm], None]] = {"no irqchip": _without, "irqchip": _whole, "split irqchip": _split}
"""How a VM's interrupt controllers may be had."""


def _call(b: Bench, name: str, of: Vm | Vcpu, request: int, argument: Struct) -> bytes | None:
    """Probe an ioctl with a structure: what it holds then, if the call worked."""
    memory = bytearray(argument.pack())
    return None if b.probe(name, of.ioctl, request, memory) is None else bytes(memory)


@case("interrupts", each_vm=False)
def creating(b: Bench) -> None:
    vm = b.vm(0)
    b.probe("PIT first", vm.ioctl, KVM_CREATE_PIT2, bytearray(kvm_pit_config().pack()))
    b.probe("irqchip", vm.ioctl, KVM_CREATE_IRQCHIP)
    b.probe("irqchip again", vm.ioctl, KVM_CREATE_IRQCHIP)
    b.probe("split, too", vm.enable_cap, Cap.SPLIT_IRQCHIP, 24)
    b.probe("PIT", vm.ioctl, KVM_CREATE_PIT2, bytearray(kvm_pit_config().pack()))
    b.probe("PIT again", vm.ioctl, KVM_CREATE_PIT2, bytearray(kvm_pit_config().pack()))
    b.probe("PIT at an unmapped address", vm.ioctl, KVM_CREATE_PIT2, 0)
    late = b.vm(0)
    b.vcpu(late)
    b.probe("irqchip after a vCPU", late.ioctl, KVM_CREATE_IRQCHIP)
    b.probe("split after a vCPU", late.enable_cap, Cap.SPLIT_IRQCHIP, 24)
    for pins in (0, 1, 24, 0x1000, 0x1001, 1 << 32):
        split = b.vm(0)
        b.probe(f"split with {pins} pins", split.enable_cap, Cap.SPLIT_IRQCHIP, pins)
        b.probe(f"a PIT beside {pins} pins", split.ioctl, KVM_CREATE_PIT2, bytearray(kvm_pit_config().pack()))
        b.probe(f"an irqchip after {pins} pins", split.ioctl, KVM_CREATE_IRQCHIP)


@case("interrupts", each_vm=False)
def chips(b: Bench) -> None:
    for kind, make in KINDS.items():
        vm = b.vm(0)
        make(vm)
        for chip in (0, 1, 2, 3, 0xFFFFFFFF):
            state = _call(b, f"{kind}: get chip {chip}", vm, KVM_GET_IRQCHIP, kvm_irqchip(chip_id=chip))
            if state is not None:
                b.record(f"{kind}: chip {chip} at reset", state)
                b.probe(f"{kind}: set chip {chip}", vm.ioctl, KVM_SET_IRQCHIP, bytearray(state))
            else:
                b.probe(f"{kind}: set chip {chip}", vm.ioctl, KVM_SET_IRQCHIP, bytearray(kvm_irqchip(chip_id=chip).pack()))
        b.probe(f"{kind}: get at an unmapped address", vm.ioctl, KVM_GET_IRQCHIP, 0)
        b.probe(f"{kind}: set at an unmapped address", vm.ioctl, KVM_SET_IRQCHIP, 0)


@case("interrupts", each_vm=False)
def lines(b: Bench) -> None:
    for kind, make in KINDS.items():
        vm = b.vm(0)
        make(vm)
        for gsi in (0, 4, 15, 16, 23, 24, 4095, 4096, 0xFFFFFFFF):
            for level in (1, 1, 0):
                name = f"{kind}: gsi {gsi} level {level}"
                if name in b.probes:
                    name += " again"
                b.probe(name, vm.ioctl, KVM_IRQ_LINE, bytearray(kvm_irq_level(irq=gsi, level=level).pack()))
        told = _call(b, f"{kind}: with status", vm, KVM_IRQ_LINE_STATUS, kvm_irq_level(irq=5, level=1))
        if told is not None:
            b.record(f"{kind}: the status", told)
        for name, request in {"line": KVM_IRQ_LINE, "status": KVM_IRQ_LINE_STATUS}.items():
            b.probe(f"{kind}: {name} at an unmapped address", vm.ioctl, request, 0)
    vm = b.vm(0)
    _whole(vm)
    vm.ioctl(KVM_IRQ_LINE, bytearray(kvm_irq_level(irq=4, level=1).pack()))
    vm.ioctl(KVM_IRQ_LINE, bytearray(kvm_irq_level(irq=12, level=1).pack()))
    for chip in range(3):
        memory = bytearray(kvm_irqchip(chip_id=chip).pack())
        b.probe(f"chip {chip} with lines 4 and 12 up", vm.ioctl, KVM_GET_IRQCHIP, memory)
        b.record(f"chip {chip}'s state then", bytes(memory))
    for name, mask in {"unmasked": 0, "masked": 0xFF}.items():
        for chip in range(2):
            state = bytearray(kvm_irqchip(chip_id=chip).pack())
            state[_CHIP_STATE + _IMR] = mask
            b.probe(f"chip {chip} {name}", vm.ioctl, KVM_SET_IRQCHIP, state)
        for step, (gsi, level) in enumerate(((3, 1), (3, 1), (3, 0), (3, 1), (9, 1))):
            memory = bytearray(kvm_irq_level(irq=gsi, level=level).pack())
            vm.ioctl(KVM_IRQ_LINE_STATUS, memory)
            b.record(f"{name}, step {step}: gsi {gsi} level {level}", kvm_irq_level.unpack_from(memory).irq)


def _channel(state: bytes, number: int) -> str:
    """What struct kvm_pit_channel_state says, up to the time at which it was loaded."""
    return state[24 * number : 24 * number + 16].hex()


@case("interrupts", each_vm=False)
def timer(b: Bench) -> None:
    for kind, make in KINDS.items():
        vm = b.vm(0)
        make(vm)
        for pit in (False, True) if kind == "irqchip" else (False,):
            name = f"{kind} and PIT" if pit else kind
            if pit:
                vm.ioctl(KVM_CREATE_PIT2, bytearray(kvm_pit_config().pack()))
            state = _call(b, f"{name}: get", vm, KVM_GET_PIT2, kvm_pit_state2())
            if state is not None:
                b.record(f"{name}: channels at reset", [_channel(state, i) for i in range(3)])
            _call(b, f"{name}: set", vm, KVM_SET_PIT2, kvm_pit_state2())
            for count in (0, 1, 0xFFFF, 0x10000):
                given = bytearray(kvm_pit_state2(channels=count.to_bytes(4, "little").ljust(72, b"\0")).pack())
                b.probe(f"{name}: channel 0 counts {count:#x}", vm.ioctl, KVM_SET_PIT2, given)
                after = _call(b, f"{name}: get after {count:#x}", vm, KVM_GET_PIT2, kvm_pit_state2())
                if after is not None:
                    b.record(f"{name}: channel 0 after {count:#x}", _channel(after, 0))
            b.probe(f"{name}: get at an unmapped address", vm.ioctl, KVM_GET_PIT2, 0)
            b.probe(f"{name}: set at an unmapped address", vm.ioctl, KVM_SET_PIT2, 0)
            b.probe(f"{name}: reinject", vm.ioctl, KVM_REINJECT_CONTROL, bytearray(32))


def _routes(*entries: kvm_irq_routing_entry, nr: int | None = None, flags: int = 0) -> bytearray:
    head = kvm_irq_routing(nr=len(entries) if nr is None else nr, flags=flags)
    return bytearray(head.pack() + b"".join(entry.pack() for entry in entries))


def _pin(gsi: int, chip: int, pin: int, **fields: int) -> kvm_irq_routing_entry:
    return kvm_irq_routing_entry(gsi=gsi, type=1, u=(chip, pin, 0, 0, 0, 0, 0, 0), **fields)


def _message(gsi: int, low: int, data: int, **fields: int) -> kvm_irq_routing_entry:
    return kvm_irq_routing_entry(gsi=gsi, type=2, u=(low, 0, data, 0, 0, 0, 0, 0), **fields)


@case("interrupts", each_vm=False)
def routing(b: Bench) -> None:
    tables = {
        "nothing": _routes(),
        "one pin": _routes(_pin(4, 2, 4)),
        "one message": _routes(_message(30, 0xFEE00000, 0x30)),
        "the table's flags": _routes(_pin(4, 2, 4), flags=1),
        "an entry's flags": _routes(_pin(4, 2, 4, flags=1)),
        "a message's flags": _routes(_message(4, 0xFEE00000, 0x30, flags=1)),
        "an entry's padding": _routes(_pin(4, 2, 4, pad=1)),
        "chip 3": _routes(_pin(4, 3, 4)),
        "pin 8 of a PIC": _routes(_pin(4, 0, 8)),
        "pin 23": _routes(_pin(4, 2, 23)),
        "pin 24": _routes(_pin(4, 2, 24)),
        "type 0": _routes(kvm_irq_routing_entry(gsi=4)),
        "type 3": _routes(kvm_irq_routing_entry(gsi=4, type=3)),
        "type 99": _routes(kvm_irq_routing_entry(gsi=4, type=99)),
        "gsi 4095": _routes(_message(4095, 0xFEE00000, 0x30)),
        "gsi 4096": _routes(_message(4096, 0xFEE00000, 0x30)),
        "two messages for one gsi": _routes(_message(4, 0xFEE00000, 0x30), _message(4, 0xFEE00000, 0x31)),
        "a pin and a message for one gsi": _routes(_pin(4, 2, 4), _message(4, 0xFEE00000, 0x31)),
        "one chip twice for one gsi": _routes(_pin(4, 2, 4), _pin(4, 2, 5)),
        "two chips for one gsi": _routes(_pin(4, 2, 4), _pin(4, 0, 4)),
        "one pin for two gsis": _routes(_pin(4, 2, 4), _pin(5, 2, 4)),
    }
    for kind, make in KINDS.items():
        vm = b.vm(0)
        make(vm)
        for name, table in tables.items():
            b.probe(f"{kind}: {name}", vm.ioctl, KVM_SET_GSI_ROUTING, b.pointer(bytes(table)))
        for count in (4097, 1 << 31):
            b.probe(f"{kind}: {count} entries", vm.ioctl, KVM_SET_GSI_ROUTING, b.pointer(bytes(_routes(nr=count))))
        b.probe(f"{kind}: at an unmapped address", vm.ioctl, KVM_SET_GSI_ROUTING, 0)
    vm = b.vm(0)
    _whole(vm)
    vm.ioctl(KVM_SET_GSI_ROUTING, bytearray(_routes(_message(7, 0xFEE00000, 0x30))))
    for gsi in (4, 7):
        b.probe(
            f"line {gsi}, of a table with 7 alone", vm.ioctl, KVM_IRQ_LINE, bytearray(kvm_irq_level(irq=gsi, level=1).pack())
        )


@case("interrupts", each_vm=False)
def messages(b: Bench) -> None:
    for kind, make in KINDS.items():
        vm = b.vm(0)
        make(vm)
        for when in ("without vCPUs", "with one"):
            for name, fields in {
                "fixed": {"address_lo": 0xFEE00000, "data": 0x30},
                "to nobody": {"address_lo": 0xFEE7F000, "data": 0x30},
                "to all": {"address_lo": 0xFEEFF000, "data": 0x30},
                "logical": {"address_lo": 0xFEE01004, "data": 0x30},
                "high address": {"address_lo": 0xFEE00000, "address_hi": 0x100, "data": 0x30},
                "low byte of the high address": {"address_lo": 0xFEE00000, "address_hi": 1, "data": 0x30},
                "vector 0": {"address_lo": 0xFEE00000, "data": 0},
                "flags": {"address_lo": 0xFEE00000, "data": 0x30, "flags": 1},
                "unknown flags": {"address_lo": 0xFEE00000, "data": 0x30, "flags": 2},
            }.items():
                _call(b, f"{kind}, {when}: {name}", vm, KVM_SIGNAL_MSI, kvm_msi(**fields))  # type: ignore[arg-type]
            if when == "without vCPUs":
                b.vcpu(vm)
        b.probe(f"{kind}: at an unmapped address", vm.ioctl, KVM_SIGNAL_MSI, 0)


@case("interrupts", each_vm=False)
def local_apic(b: Bench) -> None:
    for kind, make in KINDS.items():
        vm = b.vm(0)
        make(vm)
        for number in (0, 3):
            vcpu = b.vcpu(vm, number)
            name = f"{kind}, vCPU {number}"
            state = _call(b, f"{name}: get", vcpu, KVM_GET_LAPIC, kvm_lapic_state())
            if state is not None:
                for part, at in {
                    "id": _LAPIC_ID,
                    "version": _LAPIC_VERSION,
                    "spurious": _SPURIOUS,
                    "LINT0": _LVT_LINT0,
                }.items():
                    b.record(f"{name}: {part}", int.from_bytes(state[at : at + 4], "little"))
            _call(b, f"{name}: set", vcpu, KVM_SET_LAPIC, kvm_lapic_state(regs=state or bytes(0x400)))
            wrong = bytearray(state or bytes(0x400))
            wrong[_LAPIC_ID : _LAPIC_ID + 4] = (7 << 24).to_bytes(4, "little")
            _call(b, f"{name}: set with another's id", vcpu, KVM_SET_LAPIC, kvm_lapic_state(regs=bytes(wrong)))
            b.probe(f"{name}: at an unmapped address", vcpu.ioctl, KVM_GET_LAPIC, 0)
            b.probe(f"{name}: apic base", lambda vcpu=vcpu: vcpu.sregs.apic_base)
            mp_state = _call(b, f"{name}: mp state", vcpu, KVM_GET_MP_STATE, kvm_mp_state())
            b.record(f"{name}: mp state is", mp_state or "unknown")
    for state_number in (*range(12), 1 << 31):
        vm = b.vm(0)
        _whole(vm)
        _call(b, f"mp_state {state_number}", b.vcpu(vm, 1), KVM_SET_MP_STATE, kvm_mp_state(mp_state=state_number))


@case("interrupts", each_vm=False)
def x2apic(b: Bench) -> None:
    """The local APIC's registers as MSRs: each is read, and written with what fits and what doesn't."""
    vm = b.vm(0)
    _whole(vm)
    b.probe("32-bit destinations", vm.enable_cap, Cap.X2APIC_API, 3)
    b.probe("unknown bits", vm.enable_cap, Cap.X2APIC_API, 4)
    vcpu = b.vcpu(vm)
    apic_base = int.from_bytes(_msr(b, vcpu, "apic base", _APIC_BASE) or b"", "little")
    _set_msr(b, vcpu, "x2APIC without CPUID's word", _APIC_BASE, apic_base | _X2APIC_ENABLE)
    leaf = kvm_cpuid_entry2(function=1, ecx=_CPUID_X2APIC).pack()
    b.probe("CPUID", vcpu.ioctl, KVM_SET_CPUID2, b.pointer((1).to_bytes(8, "little") + leaf))
    _set_msr(b, vcpu, "x2APIC", _APIC_BASE, apic_base | _X2APIC_ENABLE)
    for register in range(0x40):
        _msr(b, vcpu, f"register {register:#x}", _X2APIC_MSR + register)
    for register in range(0x40):
        if register not in (_ICR_MSR, _TIMER_MSR):
            for value in (0, 1, 1 << 32, 0xFFFFFFFF):
                _set_msr(b, vcpu, f"register {register:#x} := {value:#x}", _X2APIC_MSR + register, value)
    state = _call(b, "get", vcpu, KVM_GET_LAPIC, kvm_lapic_state())
    for name, number in {"its own": 0, "another's": 7, "another's, as an xAPIC has it": 7 << 24}.items():
        given = bytearray(state or bytes(0x400))
        given[_LAPIC_ID : _LAPIC_ID + 4] = number.to_bytes(4, "little")
        _call(b, f"set with {name} id", vcpu, KVM_SET_LAPIC, kvm_lapic_state(regs=bytes(given)))


def _msr(b: Bench, vcpu: Vcpu, name: str, index: int) -> bytes | None:
    """Probe the reading of an MSR, and record what was in it."""
    memory = bytearray(kvm_msrs(nmsrs=1).pack() + kvm_msr_entry(index=index).pack())
    if b.probe(f"read {name}", vcpu.ioctl, KVM_GET_MSRS, memory) != 1:
        return None
    value = bytes(memory[-8:])
    b.record(f"{name} is", int.from_bytes(value, "little"))
    return value


def _set_msr(b: Bench, vcpu: Vcpu, name: str, index: int, value: int) -> None:
    memory = bytearray(kvm_msrs(nmsrs=1).pack() + kvm_msr_entry(index=index, data=value).pack())
    b.probe(name, vcpu.ioctl, KVM_SET_MSRS, memory)


@case("interrupts", each_vm=False)
def injecting(b: Bench) -> None:
    for kind, make in KINDS.items():
        for irq in (0, 32, 255, 256, 0xFFFFFFFF):
            vm = b.vm(0)
            make(vm)
            vcpu = b.vcpu(vm)
            _call(b, f"{kind}: vector {irq}", vcpu, KVM_INTERRUPT, kvm_interrupt(irq=irq))
            _call(b, f"{kind}: vector {irq} and another", vcpu, KVM_INTERRUPT, kvm_interrupt(irq=33))
        b.probe(f"{kind}: at an unmapped address", vcpu.ioctl, KVM_INTERRUPT, 0)
        b.probe(f"{kind}: NMI", vcpu.ioctl, KVM_NMI)


@case("interrupts", each_vm=False)
def event_descriptors(b: Bench) -> None:
    """Those that can't be: an eventfd itself isn't to be had behind every door."""
    other = b.memfd()
    for kind, make in KINDS.items():
        vm = b.vm(0)
        make(vm)
        for name, event in {
            "no descriptor": kvm_ioeventfd(addr=0x1000, len=4, fd=_NOBODY),
            "-1": kvm_ioeventfd(addr=0x1000, len=4, fd=-1),
            "an ordinary file": kvm_ioeventfd(addr=0x1000, len=4, fd=other.fd),
            "the VM": kvm_ioeventfd(addr=0x1000, len=4, fd=vm.fd),
            "3 bytes": kvm_ioeventfd(addr=0x1000, len=3, fd=_NOBODY),
            "16 bytes": kvm_ioeventfd(addr=0x1000, len=16, fd=_NOBODY),
            "wrapping": kvm_ioeventfd(addr=(1 << 64) - 2, len=4, fd=_NOBODY),
            "the kernel's own flag": kvm_ioeventfd(addr=0x1000, len=4, fd=_NOBODY, flags=1 << 4),
            "unknown flags": kvm_ioeventfd(addr=0x1000, len=4, fd=_NOBODY, flags=1 << 5),
            "no length, data": kvm_ioeventfd(addr=0x1000, len=0, fd=_NOBODY, flags=1),
            "taken back, never given": kvm_ioeventfd(addr=0x1000, len=4, fd=other.fd, flags=4),
            "taken back, no descriptor": kvm_ioeventfd(addr=0x1000, len=4, fd=_NOBODY, flags=4),
        }.items():
            _call(b, f"{kind}: ioeventfd, {name}", vm, KVM_IOEVENTFD, event)
        for name, irq in {
            "no descriptor": kvm_irqfd(fd=_NOBODY, gsi=4),
            "an ordinary file": kvm_irqfd(fd=other.fd, gsi=4),
            "the VM": kvm_irqfd(fd=vm.fd, gsi=4),
            "unknown flags": kvm_irqfd(fd=_NOBODY, gsi=4, flags=1 << 2),
            "resample": kvm_irqfd(fd=other.fd, gsi=4, flags=2),
            "gsi 4095": kvm_irqfd(fd=other.fd, gsi=4095),
            "gsi 4096": kvm_irqfd(fd=other.fd, gsi=4096),
            "taken back, never given": kvm_irqfd(fd=other.fd, gsi=4, flags=1),
            "taken back, no descriptor": kvm_irqfd(fd=_NOBODY, gsi=4, flags=1),
        }.items():
            _call(b, f"{kind}: irqfd, {name}", vm, KVM_IRQFD, irq)
        for name, request in {"ioeventfd": KVM_IOEVENTFD, "irqfd": KVM_IRQFD}.items():
            b.probe(f"{kind}: {name} at an unmapped address", vm.ioctl, request, 0)


@case("interrupts", each_vm=False)
def coalesced_zones(b: Bench) -> None:
    vm = b.vm(0)
    for pio in (0, 1, 2):
        for name, request in {"register": KVM_REGISTER_COALESCED_MMIO, "unregister": KVM_UNREGISTER_COALESCED_MMIO}.items():
            zone = kvm_coalesced_mmio_zone(addr=0x1000, size=8, pio=pio)
            _call(b, f"{name}, pio {pio}", vm, request, zone)
            _call(b, f"{name} again, pio {pio}", vm, request, zone)
            empty = kvm_coalesced_mmio_zone(addr=0x1000, size=0, pio=pio)
            _call(b, f"{name}, pio {pio}, nothing", vm, request, empty)
    for name, request in {"register": KVM_REGISTER_COALESCED_MMIO, "unregister": KVM_UNREGISTER_COALESCED_MMIO}.items():
        b.probe(f"{name} at an unmapped address", vm.ioctl, request, 0)
