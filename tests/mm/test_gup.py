# SPDX-License-Identifier: GPL-2.0-or-later
"""get_user_pages: references and pins on what is behind user addresses."""

from __future__ import annotations

import pytest

from gmemu.mm.gup import get_user_pages_fast, put_pages
from gmemu.rules import KernelError
from gmemu.uapi.mman import FOLL_HWPOISON, FOLL_PIN, FOLL_WRITE, GUP_PIN_COUNTING_BIAS, PROT_NONE, PROT_READ

from .machine import PAGE, Machine, address, refusal


@pytest.mark.parametrize(("flags", "by"), [(0, 1), (FOLL_PIN, GUP_PIN_COUNTING_BIAS)])
def test_each_page_gets_its_references(machine: Machine, flags: int, by: int) -> None:
    process = machine.process()
    vma = machine.map(process, 4)
    process.mm.write(address(vma), b"x" * 4 * PAGE)
    runs = get_user_pages_fast(process.mm, address(vma), 4, flags | FOLL_WRITE)
    [(pfn, count)] = runs
    assert count == 4
    assert [machine.memmap.refcount(pfn + i) for i in range(4)] == [1 + by] * 4
    put_pages(process.mm, runs, flags)
    assert [machine.memmap.refcount(pfn + i) for i in range(4)] == [1] * 4


def test_pages_are_faulted_in(machine: Machine) -> None:
    process = machine.process()
    vma = machine.map(process, 3)
    process.mm.write(address(vma, 1), b"there")
    runs = get_user_pages_fast(process.mm, address(vma), 3, FOLL_WRITE)
    assert sum(count for _, count in runs) == 3
    assert all(process.mm.pte(vma.start + i) is not None for i in range(3))
    put_pages(process.mm, runs)


def test_reading_takes_the_zero_page(machine: Machine) -> None:
    process = machine.process()
    vma = machine.map(process, 2)
    runs = get_user_pages_fast(process.mm, address(vma), 2)
    assert runs == [(machine.memmap.zero_pfn, 1)] * 2
    put_pages(process.mm, runs)
    assert machine.memmap.refcount(machine.memmap.zero_pfn) == 1


def test_writing_breaks_copy_on_write_first(machine: Machine) -> None:
    file = machine.shmem(1)
    process = machine.process()
    vma = machine.map(process, 1, file)
    process.mm.read(address(vma), 1)
    runs = get_user_pages_fast(process.mm, address(vma), 1, FOLL_WRITE | FOLL_PIN)
    assert runs[0][0] != file.cache.pfn(0)
    put_pages(process.mm, runs, FOLL_PIN)
    file.put()


def test_the_holder_keeps_the_page_after_munmap(machine: Machine) -> None:
    process = machine.process()
    vma = machine.map(process, 1)
    process.mm.write(address(vma), b"kept")
    [(pfn, _)] = get_user_pages_fast(process.mm, address(vma), 1, FOLL_PIN | FOLL_WRITE)
    machine.unmap(process, vma.start, vma.end)
    assert machine.memory.read(pfn * PAGE, 4) == b"kept"
    assert machine.memmap.refcount(pfn) == GUP_PIN_COUNTING_BIAS
    machine.memmap.unpin(pfn)


def test_a_failure_leaves_no_reference(machine: Machine) -> None:
    process = machine.process()
    vma = machine.map(process, 2)
    process.mm.write(address(vma), b"x" * 2 * PAGE)
    refs = machine.memmap.refs.copy()
    with pytest.raises(KernelError) as caught:
        get_user_pages_fast(process.mm, address(vma), 3, FOLL_PIN)
    assert caught.value.rule.id == "mm.gup.fault"
    assert machine.memmap.refs == refs


@pytest.mark.parametrize(("prot", "flags"), [(PROT_READ, FOLL_WRITE), (PROT_NONE, 0), (PROT_NONE, FOLL_WRITE)])
def test_protection_counts(machine: Machine, prot: int, flags: int) -> None:
    process = machine.process()
    vma = machine.map(process, 1)
    process.mm.write(address(vma), b"x")
    machine.protect(process, vma.start, vma.end, prot)
    assert refusal(lambda: get_user_pages_fast(process.mm, address(vma), 1, flags)) == "mm.gup.fault"


def test_no_memory(machine: Machine) -> None:
    process = machine.process()
    vma = machine.map(process, 1)
    [(hog, count)] = machine.memmap.alloc(machine.memmap.nr_pages - machine.memmap.nr_allocated - 1)
    assert refusal(lambda: get_user_pages_fast(process.mm, address(vma), 1, FOLL_WRITE)) == "mm.page.oom"
    machine.memmap.put(hog, count)


def test_a_bad_page_is_told_only_to_those_who_ask(machine: Machine) -> None:
    file = machine.shmem(1)
    process = machine.process()
    vma = machine.map(process, 1, file, shared=True)
    process.mm.write(address(vma), b"x")
    machine.memmap.poisoned.add(file.cache.pfn(0) or 0)
    file.cache.unmap_pages(0, 1)
    assert refusal(lambda: get_user_pages_fast(process.mm, address(vma), 1)) == "mm.gup.fault"
    assert refusal(lambda: get_user_pages_fast(process.mm, address(vma), 1, FOLL_HWPOISON)) == "mm.gup.hwpoison"
    file.put()


def test_an_entry_that_changes_meanwhile_is_looked_up_again(machine: Machine) -> None:
    """The lockless path: the reference is taken, the entry is another by then, and the reference is given back."""
    file = machine.shmem(1)
    process = machine.process()
    vma = machine.map(process, 1, file, shared=True)
    process.mm.write(address(vma), b"old")
    old, take = file.cache.pfn(0), machine.memmap.try_get
    calls: list[int] = []

    def raced(pfn: int, count: int = 1, by: int = 1) -> bool:
        if not calls:
            calls.append(pfn)
            file.cache.truncate_range(0, 1)
        return take(pfn, count, by)

    machine.memmap.try_get = raced  # type: ignore[method-assign]
    [(pfn, _)] = get_user_pages_fast(process.mm, address(vma), 1)
    assert calls == [old]
    assert pfn == file.cache.pfn(0)
    machine.memmap.put(pfn)
    file.put()
