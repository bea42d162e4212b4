# SPDX-License-Identifier: GPL-2.0-or-later
"""Interrupt controllers' state, and eventfds that raise their lines."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from errno import EBUSY

import pytest

from gmemu import Vm
from gmemu.uapi.kvm import KVM_CREATE_IRQCHIP, KVM_GET_IRQCHIP, KVM_IRQFD, KVM_SET_IRQCHIP, kvm_irqfd
from gmemu.uapi.kvm_x86 import kvm_irqchip

from .world import DEFAULT, World, errno_of, refusal

_DEASSIGN = 1


@pytest.fixture
def vm(world: World) -> Vm:
    made = world.vm(DEFAULT)
    made.ioctl(KVM_CREATE_IRQCHIP)
    return made


@pytest.fixture
def eventfd() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


def _irqfd(vm: Vm, fd: int, gsi: int, flags: int = 0) -> None:
    vm.ioctl(KVM_IRQFD, bytearray(kvm_irqfd(fd=fd, gsi=gsi, flags=flags).pack()))


def _until(happened: Callable[[], bool]) -> None:
    """Let the thread that watches the eventfds go on until what it does is seen."""
    for _ in range(1_000_000):
        if happened():
            return
        os.sched_yield()
    raise AssertionError("it didn't happen")


def _is_pending(vm: Vm, pin: int) -> bool:
    state = bytearray(kvm_irqchip(chip_id=0, chip=bytes(512)).pack())
    vm.ioctl(KVM_GET_IRQCHIP, state)
    return bool(state[8 + 1] >> pin & 1)


def test_an_event_is_a_pulse_of_the_line(vm: Vm, eventfd: int) -> None:
    vm.create_vcpu()
    _irqfd(vm, eventfd, 4)
    os.eventfd_write(eventfd, 1)
    _until(lambda: _is_pending(vm, 4))


def test_an_eventfd_is_for_one_line(vm: Vm, eventfd: int) -> None:
    """By whatever descriptor."""
    copy = os.dup(eventfd)
    _irqfd(vm, eventfd, 4)
    assert errno_of(lambda: _irqfd(vm, copy, 5)) == EBUSY
    assert refusal(lambda: _irqfd(vm, eventfd, 4)) == "kvm.irqfd.busy"
    _irqfd(vm, copy, 4, _DEASSIGN)
    _irqfd(vm, copy, 4, _DEASSIGN)
    _irqfd(vm, eventfd, 5)
    os.close(copy)


def test_nothing_is_left_when_the_vm_is_gone(world: World, eventfd: int) -> None:
    before = set(os.listdir("/proc/self/fd"))
    vm = world.vm(DEFAULT)
    vm.ioctl(KVM_CREATE_IRQCHIP)
    _irqfd(vm, eventfd, 4)
    vm.close()
    _until(lambda: set(os.listdir("/proc/self/fd")) <= before)


@pytest.mark.parametrize("chip", [0, 1])
def test_a_pics_state_is_kept_to_the_byte(vm: Vm, chip: int) -> None:
    """As a migration would move it."""
    state = bytes([0x11, 0x22, 0x33, 0x44, 5, 0x58, 1, 1, 1, 2, 1, 1, 1, 1, 0x60, 0x70])
    vm.ioctl(KVM_SET_IRQCHIP, bytearray(kvm_irqchip(chip_id=chip, chip=state.ljust(512, b"\0")).pack()))
    found = bytearray(kvm_irqchip(chip_id=chip, chip=bytes(512)).pack())
    vm.ioctl(KVM_GET_IRQCHIP, found)
    assert bytes(found[8:24]) == state
