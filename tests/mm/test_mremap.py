# SPDX-License-Identifier: GPL-2.0-or-later
"""mremap(): what is refused, in both generations, and what moves."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gmemu.mm.address_space import AddressSpace
from gmemu.mm.filemap import PageCache
from gmemu.mm.mlock import do_mlock
from gmemu.mm.mremap import Remap, do_mremap, do_mremap_one
from gmemu.rules import SegmentationFault
from gmemu.uapi.mman import MREMAP_DONTUNMAP, MREMAP_FIXED, MREMAP_MAYMOVE, PROT_READ

from .machine import PAGE, RW, Machine, refusal

BASE, AWAY = 0x100 * PAGE, 0x200 * PAGE
TO = MREMAP_MAYMOVE | MREMAP_FIXED
KEEP = TO | MREMAP_DONTUNMAP
Call = Callable[[AddressSpace, Remap], int]

both = pytest.mark.parametrize("call", [do_mremap, do_mremap_one])


@pytest.fixture
def mm(machine: Machine) -> AddressSpace:
    """Four pages at `BASE`, filled with their numbers."""
    mm = machine.process().mm
    mm.map_region(BASE // PAGE, 4, RW, False, None, 0)
    for page in range(4):
        mm.write(BASE + page * PAGE, bytes((page,)) * PAGE)
    return mm


def contents(mm: AddressSpace, address: int, pages: int = 4) -> list[int | None]:
    """The first byte of each page, or None where there's none."""
    found: list[int | None] = []
    for page in range(pages):
        try:
            found.append(mm.read(address + page * PAGE, 1)[0])
        except SegmentationFault:
            found.append(None)
    return found


@both
@pytest.mark.parametrize(
    ("asked", "rule"),
    [
        (Remap(BASE, PAGE, PAGE, 8), "flags"),
        (Remap(BASE, PAGE, PAGE, MREMAP_FIXED, AWAY), "maymove"),
        (Remap(BASE, PAGE, PAGE, MREMAP_DONTUNMAP, AWAY), "maymove"),
        (Remap(BASE, PAGE, 2 * PAGE, KEEP, AWAY), "resize"),
        (Remap(BASE + 1, PAGE, PAGE, 0), "address"),
        (Remap(BASE, PAGE, 0, 0), "length"),
        (Remap(BASE, PAGE, (1 << 64) - 1, 0), "length"),
        (Remap(BASE, PAGE, PAGE, TO, AWAY + 1), "target"),
        (Remap(BASE, PAGE, PAGE, TO, (1 << 47) - PAGE), "target"),
        (Remap(BASE, 4 * PAGE, 4 * PAGE, TO, BASE + PAGE), "overlap"),
        (Remap(AWAY, PAGE, PAGE, 0), "unmapped"),
        (Remap(AWAY, PAGE, PAGE, TO, BASE), "unmapped"),
        (Remap(BASE, 0, PAGE, MREMAP_MAYMOVE), "duplicate"),
        (Remap(BASE, 5 * PAGE, 6 * PAGE, MREMAP_MAYMOVE), "crosses"),
        (Remap(BASE, PAGE, 2 * PAGE, 0), "no-room"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refusals(mm: AddressSpace, call: Call, asked: Remap, rule: str) -> None:
    assert refusal(lambda: call(mm, asked)) == f"mm.mremap.{rule}"


def test_what_a_bad_target_hides(mm: AddressSpace) -> None:
    """Since 6.17 it's found before anything is looked up; a length is checked even if nothing moves."""
    asked = Remap(AWAY, PAGE, PAGE, TO, 1)
    assert (refusal(lambda: do_mremap(mm, asked)), refusal(lambda: do_mremap_one(mm, asked))) == (
        "mm.mremap.target",
        "mm.mremap.unmapped",
    )
    asked = Remap(AWAY, PAGE, 1, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, AWAY + 2 * PAGE)
    assert (refusal(lambda: do_mremap(mm, asked)), refusal(lambda: do_mremap_one(mm, asked))) == (
        "mm.mremap.unmapped",
        "mm.mremap.resize",
    )
    asked = Remap(BASE, PAGE, 1 << 48, MREMAP_MAYMOVE)
    assert (refusal(lambda: do_mremap(mm, asked)), refusal(lambda: do_mremap_one(mm, asked))) == (
        "mm.mremap.length",
        "mm.mmap.space",
    )


@both
def test_moving_takes_the_pages_along(mm: AddressSpace, call: Call) -> None:
    mm.map_region(AWAY // PAGE, 1, RW, False, None, 0)
    mm.write(AWAY, b"\xff")
    pte = mm.pte(BASE // PAGE + 1)
    assert call(mm, Remap(BASE + PAGE, 2 * PAGE, 2 * PAGE, TO, AWAY)) == AWAY
    assert mm.pte(AWAY // PAGE) == pte
    assert contents(mm, BASE) == [0, None, None, 3]
    assert contents(mm, AWAY, 3) == [1, 2, None]


@both
def test_shrinking_and_growing(mm: AddressSpace, call: Call) -> None:
    assert call(mm, Remap(BASE, 4 * PAGE, 3 * PAGE, 0)) == BASE
    assert contents(mm, BASE) == [0, 1, 2, None]
    assert call(mm, Remap(BASE, 3 * PAGE, 5 * PAGE, 0)) == BASE
    assert contents(mm, BASE, 6) == [0, 1, 2, 0, 0, None]
    mm.map_region(BASE // PAGE + 5, 1, PROT_READ, False, None, 0)
    assert refusal(lambda: call(mm, Remap(BASE, 5 * PAGE, 6 * PAGE, 0))) == "mm.mremap.no-room"
    moved = call(mm, Remap(BASE, 5 * PAGE, 6 * PAGE, MREMAP_MAYMOVE))
    assert moved != BASE
    assert contents(mm, moved, 6) == [0, 1, 2, 0, 0, 0]
    assert contents(mm, BASE) == [None] * 4


@both
def test_shrinking_while_moving_unmaps_what_is_left(mm: AddressSpace, call: Call) -> None:
    assert call(mm, Remap(BASE, 3 * PAGE, PAGE, TO, AWAY)) == AWAY
    assert (contents(mm, BASE), contents(mm, AWAY, 2)) == ([None, None, None, 3], [0, None])


@both
def test_keeping_the_old_mapping_empty(mm: AddressSpace, call: Call) -> None:
    assert call(mm, Remap(BASE, 4 * PAGE, 4 * PAGE, KEEP, AWAY)) == AWAY
    assert (contents(mm, BASE), contents(mm, AWAY)) == ([0, 0, 0, 0], [0, 1, 2, 3])
    hinted = call(mm, Remap(AWAY, 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0x300 * PAGE))
    assert hinted == 0x300 * PAGE


@pytest.mark.parametrize(("splits", "left"), [(True, [False, True, False]), (False, [False, False])])
def test_of_a_locked_mapping_what_was_moved_is_unlocked(mm: AddressSpace, splits: bool, left: list[bool]) -> None:
    do_mlock(mm, BASE, 4 * PAGE)
    do_mremap(mm, Remap(BASE, 2 * PAGE, 2 * PAGE, KEEP, AWAY, splits_locked=splits))
    assert [vma.locked for vma in mm.vmas] == [*left[:-1], True]


@both
def test_what_a_locked_mapping_grows_by_is_faulted_in(mm: AddressSpace, call: Call) -> None:
    do_mlock(mm, BASE, 4 * PAGE)
    call(mm, Remap(BASE, 4 * PAGE, 5 * PAGE, 0))
    assert mm.pte(BASE // PAGE + 4) is not None


def test_what_is_committed_must_fit_the_machine(mm: AddressSpace) -> None:
    """Before 6.17 what shrinks is cut off first, and commits nothing."""
    below = 0x80 * PAGE
    asked = Remap(BASE, 1 << 46, PAGE, TO, below)
    assert refusal(lambda: do_mremap(mm, asked)) == "mm.mremap.charge"
    assert contents(mm, BASE) == [0, None, None, None]
    assert do_mremap_one(mm, asked) == below
    asked = Remap(below, PAGE, 1 << 46, MREMAP_MAYMOVE)
    assert refusal(lambda: do_mremap(mm, asked)) == "mm.mremap.charge"
    assert refusal(lambda: do_mremap_one(mm, asked)) == "mm.mremap.charge"


def test_several_mappings_at_once(mm: AddressSpace) -> None:
    mm.protect(BASE // PAGE + 1, BASE // PAGE + 2, PROT_READ)
    mm.unmap_region(BASE // PAGE + 2, BASE // PAGE + 3)
    asked = Remap(BASE, 4 * PAGE, 4 * PAGE, TO, AWAY)
    assert refusal(lambda: do_mremap_one(mm, asked)) == "mm.mremap.crosses"
    assert do_mremap(mm, asked) == AWAY
    assert (contents(mm, BASE), contents(mm, AWAY)) == ([None] * 4, [0, 1, None, 3])
    assert [vma.prot for vma in mm.vmas] == [RW, PROT_READ, RW]


def test_a_refusal_before_6_17_comes_after_the_target_is_gone(mm: AddressSpace) -> None:
    mm.map_region(AWAY // PAGE, 1, RW, False, None, 0)
    asked = Remap(BASE, 5 * PAGE, 6 * PAGE, TO, AWAY)
    assert refusal(lambda: do_mremap(mm, asked)) == "mm.mremap.crosses"
    assert mm.find_vma(AWAY // PAGE) is not None
    assert refusal(lambda: do_mremap_one(mm, asked)) == "mm.mremap.crosses"
    assert mm.find_vma(AWAY // PAGE) is None


def test_a_second_view_of_a_file(machine: Machine) -> None:
    mm, file = machine.process().mm, machine.shmem(4)
    mm.map_region(BASE // PAGE, 4, RW, True, file, 0)
    mm.write(BASE, b"one")
    assert do_mremap(mm, Remap(BASE, 0, 2 * PAGE, TO, AWAY)) == AWAY
    assert mm.read(AWAY, 3) == mm.read(BASE, 3) == b"one"
    assert (len(file.cache.i_mmap), file.count) == (2, 3)
    file.put()


def test_whoever_unmaps_the_file_finds_what_was_moved(machine: Machine) -> None:
    mm, file = machine.process().mm, machine.shmem(4)
    mm.map_region(BASE // PAGE, 4, RW, True, file, 0)
    mm.write(BASE + PAGE, b"moved")
    do_mremap(mm, Remap(BASE + PAGE, PAGE, PAGE, TO, AWAY))
    cache: PageCache = file.cache
    cache.unmap_pages(1, 2)
    assert mm.pte(AWAY // PAGE) is None
    assert mm.read(AWAY, 5) == b"moved"
    file.put()


def test_notifiers_hear_of_it(mm: AddressSpace) -> None:
    from contextlib import AbstractContextManager, nullcontext

    heard: list[tuple[int, int]] = []

    class Listener:
        def invalidate_range(self, start_vpn: int, end_vpn: int) -> AbstractContextManager[None]:
            heard.append((start_vpn, end_vpn))
            return nullcontext()

    mm.notifiers.append(Listener())
    do_mremap(mm, Remap(BASE, 2 * PAGE, 2 * PAGE, TO, AWAY))
    assert (BASE // PAGE, BASE // PAGE + 2) in heard
