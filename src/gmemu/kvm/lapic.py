# SPDX-License-Identifier: GPL-2.0-or-later
"""The local APIC that KVM emulates (arch/x86/kvm/lapic.c): registers, priorities, interprocessor interrupts, the timer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from threading import Timer
from typing import TYPE_CHECKING

from ..uapi.kvm import MpState
from .msr import MsrError

if TYPE_CHECKING:
    from .vcpu import Vcpu

__all__ = ["APIC_REGISTERS_SIZE", "DELIVERY_FIXED", "DELIVERY_NMI", "LocalApic", "deliver", "send"]

APIC_REGISTERS_SIZE = 0x400
_ID, _LVR, _TPR, _PPR, _EOI, _LDR, _DFR, _SVR = 0x20, 0x30, 0x80, 0xA0, 0xB0, 0xD0, 0xE0, 0xF0
_ARBPRI = 0x90
_ISR, _TMR, _IRR, _ESR, _LVT_CMCI, _ICR, _ICR2 = 0x100, 0x180, 0x200, 0x280, 0x2F0, 0x300, 0x310
_LVT_TIMER, _LVT_LINT0, _LVT_ERROR, _TIMER_INITIAL, _TIMER_CURRENT, _TIMER_DIVIDE, _SELF_IPI = (
    0x320,
    0x350,
    0x370,
    0x380,
    0x390,
    0x3E0,
    0x3F0,
)
_MASKED = 1 << 16
_ENABLED = 1 << 8
_BASE_ENABLE, _BASE_X2APIC = 1 << 11, 1 << 10
_ONE_SHOT, _PERIODIC, _TSC_DEADLINE = 0, 1, 2
DELIVERY_FIXED, DELIVERY_LOWEST, DELIVERY_SMI, DELIVERY_NMI, DELIVERY_INIT, DELIVERY_STARTUP = 0, 1, 2, 4, 5, 6
_READABLE = frozenset(
    (
        *(_ID, _LVR, _TPR, _ARBPRI, _PPR, _LDR, _DFR, _SVR, _ESR, _ICR, _ICR2),
        *(_TIMER_INITIAL, _TIMER_CURRENT, _TIMER_DIVIDE),
        *range(_ISR, _ESR, 0x10),
        *range(_LVT_TIMER, _LVT_ERROR + 1, 0x10),
    )
)
_U32 = (1 << 32) - 1


class LocalApic:
    """One vCPU's.  Times are in nanoseconds."""

    def __init__(self, vcpu: Vcpu) -> None:
        self._vcpu = vcpu
        self.sipi_vector = 0
        self.tsc_deadline = 0
        self._expires: int | None = None
        self._period = 0
        self._alarm: Timer | None = None
        self._registers = bytearray(APIC_REGISTERS_SIZE)
        self._has_cmci = False
        self.reset()

    def reset(self) -> None:
        """kvm_lapic_reset()."""
        self._registers[:] = bytes(APIC_REGISTERS_SIZE)
        for lvt in range(_LVT_TIMER, _LVT_ERROR + 1, 0x10):
            self._set(lvt, _MASKED)
        if self._vcpu.id == 0:
            self._set(_LVT_LINT0, 7 << 8)  # ExtINT: the PIC's line
        self._set(_DFR, _U32)
        self._set(_SVR, 0xFF)
        self._set_id()
        self.set_corrected_errors(self._vcpu.mce.signals_corrected)
        self._stop_timer()

    def set_corrected_errors(self, on: bool) -> None:
        """kvm_apic_after_set_mcg_cap(): there's an LVT entry for corrected machine errors, or not."""
        if on and not self._has_cmci:
            self._set(_LVT_CMCI, _MASKED)
        self._has_cmci = on
        self._set(_LVR, 0x60014 if on else 0x50014)

    def deliver_corrected_error(self) -> None:
        """kvm_apic_local_deliver(APIC_LVTCMCI)."""
        lvt = self._get(_LVT_CMCI)
        if self._has_cmci and not lvt & _MASKED and self.software_enabled:
            self.accept(lvt & 0xFF)

    # Registers

    def _get(self, register: int) -> int:
        return int.from_bytes(self._registers[register : register + 4], "little")

    def _set(self, register: int, value: int) -> None:
        self._registers[register : register + 4] = (value & _U32).to_bytes(4, "little")

    @property
    def base(self) -> int:
        """IA32_APICBASE."""
        return self._vcpu.registers.apic_base

    @property
    def x2apic(self) -> bool:
        """apic_x2apic_mode()."""
        return self.base & (_BASE_ENABLE | _BASE_X2APIC) == _BASE_ENABLE | _BASE_X2APIC

    @property
    def gpa(self) -> int | None:
        """Where the registers are in guest-physical memory, if they are."""
        return self.base & 0xFFFFFF000 if self.base & _BASE_ENABLE and not self.x2apic else None

    @property
    def software_enabled(self) -> bool:
        """apic_sw_enabled()."""
        return bool(self._get(_SVR) & _ENABLED)

    @property
    def id(self) -> int:
        """kvm_apic_id()."""
        return self._get(_ID) if self.x2apic else self._get(_ID) >> 24

    def _set_id(self) -> None:
        if self.x2apic:
            self._set(_ID, self._vcpu.id)
            self._set(_LDR, (self._vcpu.id >> 4) << 16 | 1 << (self._vcpu.id & 15))
        else:
            self._set(_ID, self._vcpu.id << 24)

    def base_changed(self, value: int) -> None:
        """kvm_lapic_set_base()."""
        self._set_id()

    def state(self) -> bytes:
        """KVM_GET_LAPIC."""
        self._set(_TIMER_CURRENT, self._current_count())
        state = self._registers.copy()
        if self.x2apic and not self._vcpu.vm.x2apic_format:
            state[_ID : _ID + 4] = (self._vcpu.id << 24 & _U32).to_bytes(4, "little")
        return bytes(state)

    def id_fits(self, state: bytes) -> bool:
        """kvm_apic_state_fixup(): in x2APIC mode the id can't be other than the vCPU's."""
        given = int.from_bytes(state[_ID : _ID + 4], "little")
        return given == (self._vcpu.id if self._vcpu.vm.x2apic_format else self._vcpu.id << 24)

    def set_state(self, state: bytes) -> None:
        """KVM_SET_LAPIC."""
        self._registers[:] = state
        self._set(_LVR, 0x60014 if self._has_cmci else 0x50014)
        if self.x2apic:
            self._set_id()
        if self._get(_TIMER_INITIAL):
            self._start_timer()

    def read(self, offset: int, length: int) -> bytes:
        """A load from the page of registers (apic_mmio_read)."""
        register = offset & ~15
        value = self._read(register) if register in _READABLE else 0
        return value.to_bytes(4, "little")[offset & 15 :][:length].ljust(length, b"\0")

    def _read(self, register: int) -> int:
        if register == _TIMER_CURRENT:
            return self._current_count()
        if register == _PPR:
            return self._priority()
        return self._get(register)

    def write(self, offset: int, data: bytes) -> None:
        """A store to the page of registers (apic_mmio_write): aligned, four bytes."""
        if len(data) == 4 and not offset & 15:
            self._write(offset, int.from_bytes(data, "little"))

    def _write(self, register: int, value: int) -> None:
        """kvm_lapic_reg_write()."""
        if register == _TPR:
            self._set(_TPR, value & 0xFF)
            self._vcpu.kick()
        elif register == _EOI:
            self._eoi()
        elif register == _LDR and not self.x2apic:
            self._set(_LDR, value & 0xFF000000)
        elif register == _DFR and not self.x2apic:
            self._set(_DFR, value | 0x0FFFFFFF)
        elif register == _ID and not self.x2apic:
            self._set(_ID, value & 0xFF000000)
        elif register == _SVR:
            self._set(_SVR, value & 0x11FF)
        elif register == _ICR:
            self._set(_ICR, value & ~(1 << 12))
            self._send_ipi(value, self._get(_ICR2) if self.x2apic else self._get(_ICR2) >> 24)
        elif register == _ICR2:
            self._set(_ICR2, value if self.x2apic else value & 0xFF000000)
        elif register == _LVT_TIMER:
            self._set(_LVT_TIMER, value & 0x710FF)
            self._start_timer()
        elif _LVT_TIMER < register <= _LVT_ERROR or (register == _LVT_CMCI and self._has_cmci):
            self._set(register, value & 0x1F7FF)
        elif register == _TIMER_INITIAL:
            if (self._get(_LVT_TIMER) >> 17 & 3) != _TSC_DEADLINE:
                self._set(_TIMER_INITIAL, value)
                self._start_timer()
        elif register == _TIMER_DIVIDE:
            self._set(_TIMER_DIVIDE, value & 0xB)
            self._start_timer()
        elif register == _ESR:
            self._set(_ESR, 0)
        elif register == _SELF_IPI and self.x2apic:
            self.accept(value & 0xFF)

    def read_msr(self, index: int) -> int:
        """kvm_x2apic_msr_read().  Raises `MsrError`."""
        register = (index - 0x800) << 4
        known = register in _READABLE or (register == _LVT_CMCI and self._has_cmci)
        if not self.x2apic or not known or register in (_ARBPRI, _DFR, _ICR2):
            raise MsrError(f"MSR {index:#x} isn't a readable x2APIC register")
        value = self._read(register)
        return value | self._get(_ICR2) << 32 if register == _ICR else value

    def write_msr(self, index: int, value: int) -> None:
        """kvm_x2apic_msr_write().  Raises `MsrError`."""
        register = (index - 0x800) << 4
        writable = register in (_TPR, _EOI, _SVR, _ESR, _ICR, _TIMER_INITIAL, _TIMER_DIVIDE, _SELF_IPI)
        writable |= register == _LVT_CMCI and self._has_cmci
        if not self.x2apic or not (writable or _LVT_TIMER <= register <= _LVT_ERROR):
            raise MsrError(f"MSR {index:#x} isn't a writable x2APIC register")
        if (register == _ICR and value & 0xFFF32000) or (register != _ICR and value >> 32):
            raise MsrError(f"x2APIC register {register:#x} can't be {value:#x}")
        if (register == _ESR and value) or (register == _SELF_IPI and value > 0xFF):
            raise MsrError(f"x2APIC register {register:#x} can't be {value:#x}")
        if register == _ICR:
            self._set(_ICR2, value >> 32)
        self._write(register, value & _U32)

    @property
    def cr8(self) -> int:
        """The high half of the task priority."""
        return self._get(_TPR) >> 4 & 15

    @cr8.setter
    def cr8(self, value: int) -> None:
        self._set(_TPR, value << 4)

    @property
    def task_priority(self) -> int:
        """TPR."""
        return self._get(_TPR) & 0xFF

    @task_priority.setter
    def task_priority(self, value: int) -> None:
        self._set(_TPR, value)

    @property
    def in_service(self) -> int:
        """The highest vector in service; -1 if there is none."""
        return self._highest(_ISR)

    @property
    def requested(self) -> int:
        """The highest vector requested; -1 if there is none."""
        return self._highest(_IRR)

    # Interrupts

    def _highest(self, vector: int) -> int:
        """The highest vector set in IRR, ISR or TMR; -1 if there is none."""
        for word in range(7, -1, -1):
            bits = self._get(vector + 16 * word)
            if bits:
                return 32 * word + bits.bit_length() - 1
        return -1

    def _assign(self, group: int, vector: int, on: bool) -> None:
        register = group + 16 * (vector >> 5)
        bits = self._get(register) & ~(1 << (vector & 31))
        self._set(register, bits | (on << (vector & 31)))

    def _priority(self) -> int:
        """The processor priority: the task's, or that of what is in service."""
        tpr, service = self._get(_TPR), self._highest(_ISR)
        return tpr if tpr >> 4 >= max(service, 0) >> 4 else service & 0xF0

    def accept(self, vector: int, *, level: bool = False) -> bool:
        """__apic_accept_irq() for a fixed interrupt: whether it was taken."""
        if not self.software_enabled:
            return False
        if vector >= 16:
            self._assign(_TMR, vector, level)
            self._assign(_IRR, vector, True)
            self._vcpu.kick()
        return True

    def pending(self) -> int:
        """apic_has_interrupt_for_ppr(): the vector that would be taken now, or -1."""
        self.poll_timer()
        vector = self._highest(_IRR) if self.software_enabled else -1
        return vector if vector >= 0 and vector >> 4 > self._priority() >> 4 else -1

    def take(self) -> int:
        """kvm_get_apic_interrupt(): it goes from requested to in service."""
        vector = self.pending()
        if vector >= 0:
            self._assign(_IRR, vector, False)
            self._assign(_ISR, vector, True)
        return vector

    def _eoi(self) -> None:
        """apic_set_eoi()."""
        vector = self._highest(_ISR)
        if vector < 0:
            return
        self._assign(_ISR, vector, False)
        chip = self._vcpu.vm.irqchip
        if chip is not None and self._get(_TMR + 16 * (vector >> 5)) >> (vector & 31) & 1:
            chip.eoi(vector)
        self._vcpu.kick()

    @property
    def takes_pic(self) -> bool:
        """kvm_apic_accept_pic_intr(): LINT0 is ExtINT and not masked, or the APIC is off."""
        lint0 = self._get(_LVT_LINT0)
        return not self.base & _BASE_ENABLE or (not lint0 & _MASKED and lint0 >> 8 & 7 == 7)

    def in_group(self, destination: int) -> bool:
        """kvm_apic_match_logical_addr()."""
        ldr = self._get(_LDR)
        if self.x2apic:
            return ldr >> 16 == destination >> 16 and bool(ldr & destination & 0xFFFF)
        ldr >>= 24
        if self._get(_DFR) >> 28 == 15:
            return bool(ldr & destination)
        return ldr >> 4 == destination >> 4 and bool(ldr & destination & 15)

    def _send_ipi(self, low: int, destination: int) -> None:
        """kvm_apic_send_ipi()."""
        shorthand, mode = low >> 18 & 3, low >> 8 & 7
        everybody = [v for v in self._vcpu.vm.vcpus if v.apic is not None]
        if shorthand == 1:
            targets = [self._vcpu]
        elif shorthand:
            targets = [v for v in everybody if shorthand == 2 or v is not self._vcpu]
        else:
            targets = list(matches(everybody, destination, bool(low & 1 << 11), self.x2apic))
        if mode == DELIVERY_INIT and low >> 14 & 3 == 2:
            return  # a de-assert of INIT
        send(targets, mode, low & 0xFF)

    # The timer

    def _divided(self) -> int:
        divide = self._get(_TIMER_DIVIDE)
        return 1 << ((divide & 3 | divide >> 1 & 4) + 1 & 7)

    def _tick(self) -> int:
        return self._vcpu.vm.apic_bus_cycle_ns * self._divided()

    def _current_count(self) -> int:
        if self._expires is None or self._get(_LVT_TIMER) >> 17 & 3 == _TSC_DEADLINE:
            return 0
        self.poll_timer()
        return 0 if self._expires is None else max(self._expires - time.monotonic_ns(), 0) // self._tick()

    def _stop_timer(self) -> None:
        self._expires = None
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _start_timer(self) -> None:
        """start_apic_timer()."""
        mode, count = self._get(_LVT_TIMER) >> 17 & 3, self._get(_TIMER_INITIAL)
        self._stop_timer()
        if mode != _TSC_DEADLINE and count:
            self._period = count * self._tick() if mode == _PERIODIC else 0
            self._arm(time.monotonic_ns() + count * self._tick())

    def set_tsc_deadline(self, value: int) -> None:
        """kvm_set_lapic_tscdeadline_msr()."""
        if self._get(_LVT_TIMER) >> 17 & 3 != _TSC_DEADLINE:
            return
        self._stop_timer()
        self.tsc_deadline, self._period = value, 0
        if value:
            clock = self._vcpu.clock
            self._arm(time.monotonic_ns() + (value - clock.guest_tsc()) * 1_000_000 // clock.khz)

    def _arm(self, when: int) -> None:
        self._expires = when
        self._alarm = Timer(max(when - time.monotonic_ns(), 0) / 1e9, self._vcpu.kick)
        self._alarm.daemon = True
        self._alarm.start()

    def poll_timer(self) -> None:
        """kvm_inject_pending_timer_irqs(): what is due is requested."""
        if self._expires is None or time.monotonic_ns() < self._expires:
            return
        due = self._expires
        self._stop_timer()
        self.tsc_deadline = 0
        lvt = self._get(_LVT_TIMER)
        if not lvt & _MASKED and self.software_enabled:
            self._assign(_IRR, lvt & 0xFF, True)
        if self._period:
            self._arm(max(due + self._period, time.monotonic_ns()))

    def destroy(self) -> None:
        """kvm_free_lapic()."""
        self._stop_timer()


def matches(vcpus: list[Vcpu], destination: int, logical: bool, x2apic: bool) -> Iterator[Vcpu]:
    """kvm_apic_match_dest(): whom a message to `destination` is for."""
    broadcast = _U32 if x2apic else 0xFF
    for vcpu in vcpus:
        apic = vcpu.apic
        if apic is None:
            continue
        if destination == broadcast or (not logical and apic.id == destination) or (logical and apic.in_group(destination)):
            yield vcpu


def deliver(
    vcpus: list[Vcpu], destination: int, mode: int, vector: int, *, logical: bool, x2apic: bool = False, level: bool = False
) -> int:
    """kvm_irq_delivery_to_apic(): how many took it, or -1 if there is no local APIC to take it."""
    targets = list(matches(vcpus, destination, logical, x2apic))
    if not targets and (destination == (_U32 if x2apic else 0xFF) or all(vcpu.apic is None for vcpu in vcpus)):
        return -1
    return send(targets, mode, vector, level=level)


def send(targets: list[Vcpu], mode: int, vector: int, *, level: bool = False) -> int:
    """Deliver a message: how many took it."""
    if mode == DELIVERY_LOWEST:
        targets, mode = targets[:1], DELIVERY_FIXED
    return sum(_accept(vcpu, mode, vector, level) for vcpu in targets)


def _accept(vcpu: Vcpu, mode: int, vector: int, level: bool) -> bool:
    """__apic_accept_irq()."""
    apic = vcpu.apic
    assert apic is not None
    if mode == DELIVERY_FIXED:
        return apic.accept(vector, level=level)
    if mode == DELIVERY_NMI:
        vcpu.nmi_pending = min(vcpu.nmi_pending + 1, 2)
        vcpu.kick()
    elif mode == DELIVERY_INIT:
        vcpu.init_received()
    elif mode == DELIVERY_STARTUP:
        if vcpu.mp_state in (MpState.INIT_RECEIVED, MpState.UNINITIALIZED):
            vcpu.sipi_received(vector)
    else:
        return False
    return True
