# SPDX-License-Identifier: GPL-2.0-or-later
"""Machine checks that user space reports, and the time that a vCPU was kept waiting."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gmemu import ExitReason
from gmemu.kvm import pvclock
from gmemu.uapi.kvm import KVM_X86_SET_MCE, KVM_X86_SETUP_MCE
from gmemu.uapi.kvm_x86 import kvm_x86_mce

from .code import CODE, DATA, Machine, needs_unicorn
from .world import World, refusal

pytestmark = needs_unicorn
FATAL = 1 << 63 | 1 << 61 | 1 << 57
STEAL_TIME = 0x4B564D03


@pytest.fixture
def machine(world: World) -> Iterator[Machine]:
    """A guest that halts, with two banks of machine check registers."""
    made = Machine(world)
    made.long_mode(b"\x90\xf4")  # nop; hlt
    made.vcpu.ioctl(KVM_X86_SETUP_MCE, bytearray((2).to_bytes(8, "little")))
    yield made
    made.close()


def report(machine: Machine, status: int, bank: int = 0, mcg_status: int = 4) -> None:
    """KVM_X86_SET_MCE."""
    error = kvm_x86_mce(status=status, addr=0x1000, bank=bank, mcg_status=mcg_status)
    machine.vcpu.ioctl(KVM_X86_SET_MCE, bytearray(error.pack()))


def allow(machine: Machine) -> None:
    """CR4.MCE, and a handler."""
    sregs = machine.vcpu.sregs
    sregs.cr4 |= 1 << 6
    machine.vcpu.sregs = sregs
    machine.handler64(18, CODE + 0x100)
    machine.put(CODE + 0x100, bytes.fromhex("b901040000 0f32 f4"))  # mov ecx, MC0_STATUS; rdmsr; hlt


def test_an_uncorrected_error_is_an_exception(machine: Machine) -> None:
    allow(machine)
    report(machine, FATAL | 0x99)
    assert machine.run().reason is ExitReason.HLT
    assert machine.vcpu.regs.rip == CODE + 0x100 + 8
    assert machine.vcpu.regs.rax == 0x99


def test_a_guest_that_takes_none_is_shut_down(machine: Machine) -> None:
    sregs = machine.vcpu.sregs
    sregs.cr4 &= ~(1 << 6)
    machine.vcpu.sregs = sregs
    report(machine, FATAL)
    assert machine.run().reason is ExitReason.SHUTDOWN
    assert machine.run().reason is ExitReason.HLT


def test_a_second_one_before_the_first_was_handled_shuts_down(machine: Machine) -> None:
    allow(machine)
    report(machine, FATAL)
    report(machine, FATAL)
    assert machine.run().reason is ExitReason.SHUTDOWN


def test_what_cannot_be(machine: Machine) -> None:
    assert refusal(lambda: report(machine, FATAL, bank=2)) == "kvm.mce.bank"
    assert refusal(lambda: report(machine, 0)) == "kvm.mce.bank"
    assert refusal(lambda: machine.vcpu.ioctl(KVM_X86_SETUP_MCE, bytearray(8))) == "kvm.mce.cap"


def test_stolen_time(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It grows by what the thread waited since it was last told, and the version by two."""
    monkeypatch.setattr(pvclock, "_run_delay", iter((1000, 1000, 5000)).__next__)
    machine.vcpu.set_msr(STEAL_TIME, DATA | 1)
    found = []
    for _ in range(3):
        machine.long_mode(b"\x90\xf4")
        assert machine.run().reason is ExitReason.HLT
        raw = machine.get(DATA, 13)
        found.append((int.from_bytes(raw[:8], "little"), int.from_bytes(raw[8:12], "little"), raw[12]))
    assert found == [(1000, 2, 0), (1000, 4, 0), (5000, 6, 0)]
