# SPDX-License-Identifier: GPL-2.0-or-later
"""copy_from_user and copy_to_user: by address, and by buffer."""

from __future__ import annotations

import pytest

from gmemu.mm.uaccess import TASK_SIZE_MAX, access_ok, copy_from_user, copy_to_user, read_user, write_user
from gmemu.uapi.kvm import kvm_pre_fault_memory
from gmemu.uapi.mman import PROT_NONE, PROT_READ

from .machine import PAGE, Machine, address, refusal

VALUE = kvm_pre_fault_memory(gpa=0x1000, size=0x2000, flags=3)


def test_a_structure_by_address(machine: Machine) -> None:
    process = machine.process()
    vma = machine.map(process, 2)
    at = address(vma, 1) - 12  # across a page boundary
    copy_to_user(process.mm, at, VALUE)
    assert copy_from_user(process.mm, kvm_pre_fault_memory, at) == VALUE


@pytest.mark.parametrize("make", [bytearray, lambda size: memoryview(bytearray(size))])
def test_a_structure_in_a_buffer(machine: Machine, make: type[bytearray]) -> None:
    mm = machine.process().mm
    buffer = make(VALUE.SIZE + 4)
    copy_to_user(mm, buffer, VALUE)
    assert copy_from_user(mm, kvm_pre_fault_memory, buffer) == VALUE


def test_a_buffer_that_is_too_short(machine: Machine) -> None:
    mm = machine.process().mm
    assert refusal(lambda: copy_from_user(mm, kvm_pre_fault_memory, bytearray(VALUE.SIZE - 1))) == "mm.uaccess"


def test_a_buffer_that_cant_be_written(machine: Machine) -> None:
    mm = machine.process().mm
    view = memoryview(VALUE.pack())
    assert copy_from_user(mm, kvm_pre_fault_memory, view) == VALUE
    assert refusal(lambda: copy_to_user(mm, view, VALUE)) == "mm.uaccess"


def test_memory_that_isnt_there(machine: Machine) -> None:
    process = machine.process()
    vma = machine.map(process, 1)
    assert refusal(lambda: read_user(process.mm, 0, 8)) == "mm.uaccess"
    assert refusal(lambda: read_user(process.mm, vma.end * PAGE - 4, 8)) == "mm.uaccess"
    assert refusal(lambda: write_user(process.mm, vma.end * PAGE - 4, bytes(8))) == "mm.uaccess"


def test_memory_that_may_not_be_written(machine: Machine) -> None:
    process = machine.process()
    vma = machine.map(process, 1, prot=PROT_READ)
    assert read_user(process.mm, address(vma), 4) == bytes(4)
    assert refusal(lambda: write_user(process.mm, address(vma), b"x")) == "mm.uaccess"
    machine.protect(process, vma.start, vma.end, PROT_NONE)
    assert refusal(lambda: read_user(process.mm, address(vma), 4)) == "mm.uaccess"


def test_memory_beyond_user_space(machine: Machine) -> None:
    mm = machine.process().mm
    for at in (TASK_SIZE_MAX, 1 << 63, (1 << 64) - 8):
        assert refusal(lambda at=at: read_user(mm, at, 8)) == "mm.uaccess"  # type: ignore[misc]
        assert refusal(lambda at=at: write_user(mm, at, bytes(8))) == "mm.uaccess"  # type: ignore[misc]
    assert access_ok(TASK_SIZE_MAX - 8, 8)
    assert not access_ok(TASK_SIZE_MAX - 7, 8)


def test_a_file_that_ends_too_early(machine: Machine) -> None:
    file = machine.shmem(1)
    process = machine.process()
    vma = machine.map(process, 2, file, shared=True)
    assert refusal(lambda: read_user(process.mm, address(vma, 1), 1)) == "mm.uaccess"
    file.put()
