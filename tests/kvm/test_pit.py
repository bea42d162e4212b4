# SPDX-License-Identifier: GPL-2.0-or-later
"""The timer that KVM emulates: its interrupt, and its state."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from gmemu import ExitReason
from gmemu.kvm.pit import Pit
from gmemu.uapi.kvm import (
    KVM_CREATE_IRQCHIP,
    KVM_CREATE_PIT2,
    KVM_GET_PIT2,
    KVM_REINJECT_CONTROL,
    KVM_SET_PIT2,
)
from gmemu.uapi.kvm_x86 import kvm_pit_config, kvm_pit_state2, kvm_reinject_control

from .code import SIZE, Machine, needs_unicorn
from .world import DEFAULT, World, refusal

_VECTOR = 0x20
_HANDLER = 0x3000


class _Pc(Machine):
    """A machine with interrupt controllers and a timer in the kernel."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.vm = world.vm(DEFAULT)
        self.vm.ioctl(KVM_CREATE_IRQCHIP)
        self.vm.ioctl(KVM_CREATE_PIT2, bytearray(kvm_pit_config().pack()))
        self.memory = world.kvm.anonymous(SIZE)
        self.vm.set_user_memory_region2(0, 0, SIZE, userspace_addr=self.memory.address)
        self.vcpu = self.vm.create_vcpu()

    def timer(self) -> Pit:
        """The emulated kernel's own."""
        chip = self.world.kvm.host.vms[-1].irqchip
        assert chip is not None
        assert chip.pit is not None
        return chip.pit

    def pit(self) -> kvm_pit_state2:
        """KVM_GET_PIT2."""
        state = bytearray(kvm_pit_state2.SIZE)
        self.vm.ioctl(KVM_GET_PIT2, state)
        return kvm_pit_state2.unpack_from(state)

    def set_pit(self, count: int, mode: int, flags: int = 0) -> None:
        """KVM_SET_PIT2 for the first counter."""
        channel = count.to_bytes(4, "little") + bytes(8) + bytes((3, mode, 0, 1)) + bytes(8)
        self.vm.ioctl(KVM_SET_PIT2, bytearray(kvm_pit_state2(channels=channel + bytes(48), flags=flags).pack()))

    def run_until_ticks(self, number: int, start: bytes) -> None:
        """`start`, then wait for that many interrupts of the PIC's line 0: each one is told by a port."""
        self.put(_VECTOR * 4, _HANDLER.to_bytes(4, "little"))
        self.put(_HANDLER, bytes.fromhex("b020 e620 e680 cf"))  # out 0x20, EOI; out 0x80; iret
        # PIC: vectors from 0x20, all but line 0 masked
        chip = bytes.fromhex("b011 e620 b020 e621 b004 e621 b001 e621 b0fe e621")
        self.real_mode(chip + start + bytes.fromhex("fb f4 ebfd"))  # sti; again: hlt; jmp again
        for _ in range(number):
            exit_ = self.run()
            assert (exit_.reason, exit_.io.port) == (ExitReason.IO, 0x80)


@pytest.fixture
def pc(world: World) -> Iterator[_Pc]:
    made = _Pc(world)
    yield made
    made.close()


@needs_unicorn
class TestInterrupt:
    def test_rate_generator(self, pc: _Pc) -> None:
        """Again and again: mode 2, 2386 ticks, two milliseconds."""
        pc.run_until_ticks(5, bytes.fromhex("b034 e643 b052 e640 b009 e640"))

    def test_once(self, pc: _Pc) -> None:
        """Mode 0, and again when it's loaded again."""
        pc.run_until_ticks(1, bytes.fromhex("b030 e643 b052 e640 b009 e640"))
        pc.set_pit(2386, 0)
        exit_ = pc.run()
        assert (exit_.reason, exit_.io.port) == (ExitReason.IO, 0x80)

    def test_set_by_user_space(self, pc: _Pc) -> None:
        pc.set_pit(2386, 3)
        pc.run_until_ticks(2, b"")

    @pytest.mark.parametrize("reinject", [True, False])
    def test_ticks_that_nobody_took(self, pc: _Pc, reinject: bool) -> None:
        """While interrupts are off they add up, unless user space wants them forgotten."""
        pc.vm.ioctl(KVM_REINJECT_CONTROL, bytearray(kvm_reinject_control(pit_reinject=int(reinject)).pack()))
        pc.run_until_ticks(1, bytes.fromhex("b034 e643 b052 e640 b009 e640"))
        pc.real_mode(bytes.fromhex("fa e681 ebfc"))  # cli; again: out 0x81; jmp again
        start = time.monotonic()
        while time.monotonic() < start + 0.01:
            assert pc.run().io.port == 0x81
        assert (pc.timer()._pending > 1) == reinject


def test_state(pc: _Pc) -> None:
    pc.set_pit(0x1234, 2)
    state = pc.pit()
    assert int.from_bytes(state.channels[:4], "little") == 0x1234
    assert list(state.channels[12:16]) == [3, 2, 0, 1]
    assert state.flags == 0


def test_an_hpet_in_its_place(pc: _Pc) -> None:
    """The first counter has no interrupt then."""
    pc.set_pit(2386, 2, flags=1)
    assert pc.pit().flags == 1
    assert pc.timer()._expires is None


def test_reinject_needs_a_pit(world: World) -> None:
    vm = world.vm(DEFAULT)
    vm.ioctl(KVM_CREATE_IRQCHIP)
    argument = bytearray(kvm_reinject_control(pit_reinject=1).pack())
    assert refusal(lambda: vm.ioctl(KVM_REINJECT_CONTROL, argument)) == "kvm.pit.none"


class TestPorts:
    """What a guest that polls the counters sees."""

    @pytest.fixture
    def pit(self, world: World) -> Pit:
        vm = world.vm(DEFAULT)
        vm.ioctl(KVM_CREATE_IRQCHIP)
        vm.ioctl(KVM_CREATE_PIT2, bytearray(kvm_pit_config().pack()))
        chip = world.kvm.host.vms[-1].irqchip
        assert chip is not None
        assert chip.pit is not None
        return chip.pit

    def test_a_latched_count_stays(self, pit: Pit) -> None:
        pit.port_write(0x43, 0xB4)  # counter 2, both bytes, mode 2
        for byte in (0x34, 0x12):
            pit.port_write(0x42, byte)
        pit.port_write(0x43, 0x80)
        held = pit.channels[2].latched_count
        pit.port_write(0x43, 0x80)
        assert 0 < held <= 0x1234
        assert [pit.port_read(0x42), pit.port_read(0x42)] == [held & 0xFF, held >> 8]
        assert pit.channels[2].count_latched == 0

    @pytest.mark.parametrize(("access", "count"), [(1, 0x56), (2, 0x5600), (3, 0x5656)])
    def test_which_bytes_are_written(self, pit: Pit, access: int, count: int) -> None:
        pit.port_write(0x43, 2 << 6 | access << 4)
        for _ in range(2 if access == 3 else 1):
            pit.port_write(0x42, 0x56)
        assert pit.channels[2].count == count

    @pytest.mark.parametrize(("mode", "kept"), [(0, 0), (3, 3), (5, 5), (6, 2), (7, 3)])
    def test_the_status_tells_the_mode(self, pit: Pit, mode: int, kept: int) -> None:
        pit.port_write(0x43, 2 << 6 | 3 << 4 | mode << 1)
        pit.port_write(0x43, 0xE8)
        assert (pit.port_read(0x42) or 0) & 0x7F == 3 << 4 | kept << 1

    def test_the_gate_behind_the_speaker(self, pit: Pit) -> None:
        assert (pit.port_read(0x61) or 0) & 3 == 0
        pit.port_write(0x61, 3)
        assert (pit.port_read(0x61) or 0) & 3 == 3
        assert (pit.channels[2].gate, pit.channels[0].gate) == (1, 1)

    def test_ports_that_are_others(self, pit: Pit) -> None:
        assert not pit.port_write(0x44, 0)
        assert (pit.port_read(0x43), pit.port_read(0x3F)) == (None, None)
