# SPDX-License-Identifier: GPL-2.0-or-later
"""mlock() and munlock(): what is locked, what is faulted in, what is refused."""

from __future__ import annotations

import pytest

from gmemu.mm.mlock import do_mlock, do_munlock
from gmemu.uapi.mman import PROT_NONE

from .machine import PAGE, RW, Machine, refusal

BASE = 0x100


def test_locking_faults_in(machine: Machine) -> None:
    mm = machine.process().mm
    mm.map_region(BASE, 4, RW, False, None, 0)
    do_mlock(mm, (BASE + 1) * PAGE + 7, PAGE)  # touches two pages
    assert [mm.pte(BASE + page) is not None for page in range(4)] == [False, True, True, False]
    assert [(vma.start - BASE, vma.locked) for vma in mm.vmas] == [(0, False), (1, True), (3, False)]
    do_munlock(mm, BASE * PAGE, 4 * PAGE)
    assert [vma.locked for vma in mm.vmas] == [False]


def test_up_to_a_gap(machine: Machine) -> None:
    mm = machine.process().mm
    mm.map_region(BASE, 2, RW, False, None, 0)
    mm.map_region(BASE + 3, 1, RW, False, None, 0)
    assert refusal(lambda: do_mlock(mm, BASE * PAGE, 4 * PAGE)) == "mm.mlock.unmapped"
    assert [vma.locked for vma in mm.vmas] == [True, False]
    assert mm.pte(BASE) is None
    assert refusal(lambda: do_munlock(mm, (BASE + 2) * PAGE, PAGE)) == "mm.mlock.unmapped"


def test_what_cannot_be_had_is_locked_all_the_same(machine: Machine) -> None:
    mm, file = machine.process().mm, machine.shmem(1)
    mm.map_region(BASE, 1, PROT_NONE, False, None, 0)
    mm.map_region(BASE + 1, 2, RW, True, file, 0)
    assert refusal(lambda: do_mlock(mm, BASE * PAGE, PAGE)) == "mm.mlock.fault"
    assert refusal(lambda: do_mlock(mm, (BASE + 1) * PAGE, 2 * PAGE)) == "mm.mlock.fault"
    assert [vma.locked for vma in mm.vmas] == [True, True]
    file.put()


def test_without_memory_it_can_be_tried_again(machine: Machine) -> None:
    mm = machine.process().mm
    left = machine.memmap.nr_free
    mm.map_region(BASE, left + 1, RW, False, None, 0)
    assert refusal(lambda: do_mlock(mm, BASE * PAGE, (left + 1) * PAGE)) == "mm.mlock.oom"


@pytest.mark.parametrize("length", [0, (1 << 64) - 1])
def test_nothing(machine: Machine, length: int) -> None:
    """Lengths are rounded up in 64 bits."""
    mm = machine.process().mm
    do_mlock(mm, BASE * PAGE, length)
    do_munlock(mm, BASE * PAGE, length)


def test_wrapping(machine: Machine) -> None:
    mm = machine.process().mm
    assert refusal(lambda: do_mlock(mm, BASE * PAGE, (1 << 64) - 2 * PAGE)) == "mm.mlock.wrap"
