# SPDX-License-Identifier: GPL-2.0-or-later
"""process_vm_readv() and process_vm_writev(): between two processes, up to the first byte that can't be had."""

from __future__ import annotations

import pytest

from gmemu.mm.address_space import AddressSpace
from gmemu.mm.process_vm_access import process_vm_readv, process_vm_writev
from gmemu.uapi.mman import PROT_READ, PROT_WRITE

from .machine import PAGE, RW, Machine, refusal

HERE, THERE = 0x100 * PAGE, 0x200 * PAGE


@pytest.fixture
def pair(machine: Machine) -> tuple[AddressSpace, AddressSpace]:
    """Two processes with two pages each."""
    here, there = machine.process().mm, machine.process().mm
    here.map_region(HERE // PAGE, 2, RW, False, None, 0)
    there.map_region(THERE // PAGE, 2, RW, False, None, 0)
    there.write(THERE, b"t" * 2 * PAGE)
    return here, there


Pair = tuple[AddressSpace, AddressSpace]


def test_reading(pair: Pair) -> None:
    here, there = pair
    assert process_vm_readv(here, [(HERE + 1, 3), (HERE + PAGE, PAGE)], [(THERE + 5, PAGE)], there) == PAGE
    assert here.read(HERE, 5) == b"\0ttt\0"
    assert here.read(HERE + PAGE, PAGE) == b"t" * (PAGE - 3) + bytes(3)


def test_writing(pair: Pair, machine: Machine) -> None:
    here, there = pair
    here.write(HERE, b"h" * 10)
    assert process_vm_writev(here, [(HERE, 10)], [(THERE + PAGE - 5, 10)], there) == 10
    assert there.read(THERE + PAGE - 6, 12) == b"t" + b"h" * 10 + b"t"
    entry = there.pte(THERE // PAGE)
    assert entry is not None
    assert machine.memmap.refcount(entry[0]) == 1  # pinned only meanwhile


def test_of_a_child_its_own_copy_is_written(pair: Pair, machine: Machine) -> None:
    _, there = pair
    child = machine.fork(next(process for process in machine.processes if process.mm is there))
    process_vm_writev(there, [(THERE, 1)], [(THERE + PAGE, 1)], child.mm)
    child.mm.write(THERE, b"c")
    process_vm_writev(child.mm, [(THERE, 1)], [(THERE + 1, 1)], there)
    assert (there.read(THERE, 2), child.mm.read(THERE, 2)) == (b"tc", b"ct")


def test_as_far_as_it_goes(pair: Pair) -> None:
    here, there = pair
    assert process_vm_readv(here, [(HERE, 4 * PAGE)], [(THERE + PAGE, 4 * PAGE)], there) == PAGE
    assert process_vm_readv(here, [(HERE + 2 * PAGE - 7, 100)], [(THERE, 100)], there) == 7
    assert process_vm_writev(here, [(HERE + 2 * PAGE - 7, 100)], [(THERE, 100)], there) == 7
    assert refusal(lambda: process_vm_readv(here, [(HERE, 4)], [(THERE - 1, 4)], there)) == "mm.gup.fault"
    assert refusal(lambda: process_vm_readv(here, [(HERE - 1, 4)], [(THERE, 4)], there)) == "mm.uaccess"


@pytest.mark.parametrize(
    ("prot", "readable", "writable"), [(0, False, False), (PROT_READ, True, False), (PROT_WRITE, False, True)]
)
def test_protection_counts(pair: Pair, prot: int, readable: bool, writable: bool) -> None:
    here, there = pair
    there.protect(THERE // PAGE, THERE // PAGE + 1, prot)
    reading = refusal(lambda: process_vm_readv(here, [(HERE, 4)], [(THERE, 4)], there))
    writing = refusal(lambda: process_vm_writev(here, [(HERE, 4)], [(THERE, 4)], there))
    assert (reading == "", writing == "") == (readable, writable)


def test_nothing_at_all(pair: Pair) -> None:
    """What there's nothing to do for isn't looked up."""
    here, _ = pair
    assert process_vm_readv(here, [], [(THERE, 4)], None) == 0
    assert process_vm_readv(here, [(HERE, 0)], [(THERE, 1 << 63)], None) == 0
    assert process_vm_readv(here, [(HERE, 4)], [(THERE, 0)], None) == 0
    assert refusal(lambda: process_vm_readv(here, [(HERE, 4)], [(THERE, 4)], None)) == "mm.process.missing"
    assert refusal(lambda: process_vm_readv(here, [(HERE, 4)], [(THERE, 1 << 63)], None)) == "mm.iovec.length"
