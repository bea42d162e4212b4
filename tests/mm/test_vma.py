# SPDX-License-Identifier: GPL-2.0-or-later
"""Which neighbours are one mapping."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gmemu.mm.address_space import AddressSpace
from gmemu.mm.madvise import do_madvise
from gmemu.mm.mlock import do_mlock, do_munlock
from gmemu.uapi.mman import (
    MADV_DODUMP,
    MADV_DOFORK,
    MADV_DONTDUMP,
    MADV_DONTFORK,
    MADV_HUGEPAGE,
    MADV_NOHUGEPAGE,
    MADV_NORMAL,
    MADV_SEQUENTIAL,
    PROT_READ,
)

from .machine import PAGE, RW, Machine

BASE = 0x100


def spans(mm: AddressSpace) -> list[tuple[int, int]]:
    """Where mappings begin and end, from `BASE` on."""
    return [(vma.start - BASE, vma.end - BASE) for vma in mm.vmas]


def test_a_mapping_beside_one_that_is_alike_makes_it_longer(machine: Machine) -> None:
    mm = machine.process().mm
    mm.map_region(BASE, 2, RW, False, None, 0)
    mm.map_region(BASE + 4, 2, RW, False, None, 0)
    assert spans(mm) == [(0, 2), (4, 6)]
    found = mm.map_region(BASE + 2, 2, RW, False, None, 0)
    assert spans(mm) == [(0, 6)]
    assert found is mm.vmas[0]


@pytest.mark.parametrize("other", [{"locked": True}, {"reserve": False}])
def test_one_that_differs_stays_apart(machine: Machine, other: dict[str, bool]) -> None:
    mm = machine.process().mm
    mm.map_region(BASE, 2, RW, False, None, 0)
    mm.map_region(BASE + 2, 2, RW, False, None, 0, **other)
    assert spans(mm) == [(0, 2), (2, 4)]


def test_of_a_file_only_what_follows_in_it(machine: Machine) -> None:
    file, other = machine.shmem(8), machine.shmem(8)
    mm = machine.process().mm
    mm.map_region(BASE, 2, RW, True, file, 0)
    mm.map_region(BASE + 2, 2, RW, True, file, 2)
    assert (spans(mm), file.count, len(file.cache.i_mmap)) == ([(0, 4)], 2, 1)
    mm.map_region(BASE + 4, 1, RW, True, file, 6)
    mm.map_region(BASE + 5, 1, RW, True, other, 7)
    mm.map_region(BASE + 6, 1, RW, False, other, 8)
    assert spans(mm) == [(0, 4), (4, 5), (5, 6), (6, 7)]
    file.put()
    other.put()


def test_memory_that_may_be_written_once_is_never_like_one_that_may_not(machine: Machine) -> None:
    mm = machine.process().mm
    mm.map_region(BASE, 2, PROT_READ, False, None, 0)
    mm.map_region(BASE + 2, 2, RW, False, None, 0)
    mm.protect(BASE + 2, BASE + 4, PROT_READ)
    assert spans(mm) == [(0, 2), (2, 4)]


def advise(advice: int) -> Callable[[AddressSpace], None]:
    return lambda mm: do_madvise(mm, (BASE + 2) * PAGE, 2 * PAGE, advice)


@pytest.mark.parametrize(
    ("change", "back"),
    [
        (lambda mm: mm.protect(BASE + 2, BASE + 4, PROT_READ), lambda mm: mm.protect(BASE + 2, BASE + 4, RW)),
        (lambda mm: do_mlock(mm, (BASE + 2) * PAGE, 2 * PAGE), lambda mm: do_munlock(mm, (BASE + 2) * PAGE, 2 * PAGE)),
        (advise(MADV_SEQUENTIAL), advise(MADV_NORMAL)),
        (advise(MADV_DONTFORK), advise(MADV_DOFORK)),
        (advise(MADV_DONTDUMP), advise(MADV_DODUMP)),
    ],
    ids=["protection", "lock", "reading", "fork", "dump"],
)
def test_what_is_changed_and_back_is_one_again(
    machine: Machine, change: Callable[[AddressSpace], None], back: Callable[[AddressSpace], None]
) -> None:
    mm = machine.process().mm
    mm.map_region(BASE, 6, RW, False, None, 0)
    change(mm)
    assert spans(mm) == [(0, 2), (2, 4), (4, 6)]
    back(mm)
    assert spans(mm) == [(0, 6)]


def test_advice_for_or_against_huge_pages_stays(machine: Machine) -> None:
    mm = machine.process().mm
    mm.map_region(BASE, 6, RW, False, None, 0)
    advise(MADV_HUGEPAGE)(mm)
    advise(MADV_NOHUGEPAGE)(mm)
    assert spans(mm) == [(0, 2), (2, 4), (4, 6)]
