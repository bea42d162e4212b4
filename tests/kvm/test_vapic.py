# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_SET_VAPIC_ADDR: a task priority in guest memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gmemu import ExitReason
from gmemu.uapi.kvm import KVM_CREATE_IRQCHIP, KVM_GET_LAPIC, KVM_SET_VAPIC_ADDR

from .code import DATA, SIZE, Machine, needs_unicorn
from .world import DEFAULT, World, refusal

pytestmark = needs_unicorn
_TPR = 0x80


class _WithApic(Machine):
    """A machine whose interrupt controllers are in the kernel."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.vm = world.vm(DEFAULT)
        self.vm.ioctl(KVM_CREATE_IRQCHIP)
        self.memory = world.kvm.anonymous(SIZE)
        self.vm.set_user_memory_region2(0, 0, SIZE, userspace_addr=self.memory.address)
        self.vcpu = self.vm.create_vcpu()

    def task_priority(self) -> int:
        """TPR, as KVM_GET_LAPIC has it."""
        registers = bytearray(0x400)
        self.vcpu.ioctl(KVM_GET_LAPIC, registers)
        return registers[_TPR]


@pytest.fixture
def machine(world: World) -> Iterator[_WithApic]:
    made = _WithApic(world)
    yield made
    made.close()


def _word(gpa: int) -> bytearray:
    return bytearray(gpa.to_bytes(8, "little"))


def test_the_guests_word_is_the_task_priority(machine: _WithApic) -> None:
    """Before an entry KVM writes it, after an exit it reads it."""
    machine.vcpu.ioctl(KVM_SET_VAPIC_ADDR, _word(DATA))
    machine.put(DATA, b"\xff\xff\xff\xff")
    machine.real_mode(b"\xa0\x00\x00\xe6\x10\xb0\x50\xa2\x00\x00\xe6\x10\xf4")  # out [DATA]; [DATA] = 0x50; out
    sregs = machine.vcpu.sregs
    sregs.ds.base = DATA
    machine.vcpu.sregs = sregs
    assert machine.run().reason is ExitReason.IO
    assert machine.vcpu.regs.rax & 0xFF == 0
    assert machine.get(DATA, 4) == bytes(4)
    machine.run()
    assert machine.task_priority() == 0x50
    machine.vcpu.ioctl(KVM_SET_VAPIC_ADDR, _word(0))
    machine.put(DATA, b"\x70")
    machine.vcpu.immediate_exit = True
    assert refusal(machine.run) == "kvm.run.immediate-exit"
    assert machine.task_priority() == 0x50


def test_what_is_refused(world: World, machine: _WithApic) -> None:
    assert refusal(lambda: machine.vcpu.ioctl(KVM_SET_VAPIC_ADDR, _word(SIZE))) == "kvm.vapic"
    assert refusal(lambda: machine.vcpu.ioctl(KVM_SET_VAPIC_ADDR, _word(SIZE - 2))) == "kvm.vapic"
    without = world.vm(DEFAULT).create_vcpu()
    assert refusal(lambda: without.ioctl(KVM_SET_VAPIC_ADDR, _word(0))) == "kvm.vapic"
