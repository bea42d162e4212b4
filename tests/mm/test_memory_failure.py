# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory errors: who loses the page, who finds out, and that it's never used again."""

from __future__ import annotations

import pytest

from gmemu.mm.address_space import AddressSpace
from gmemu.mm.madvise import do_madvise
from gmemu.mm.memory_failure import memory_failure
from gmemu.rules import BusError
from gmemu.uapi.mman import MADV_DONTNEED, MADV_HWPOISON, PROT_READ

from .machine import PAGE, Machine, address, refusal


def poison(mm: AddressSpace, address: int, length: int = PAGE) -> str:
    """MADV_HWPOISON: what came of it."""
    return refusal(lambda: do_madvise(mm, address, length, MADV_HWPOISON))


SIGBUS = "mm.fault.hwpoison"


def test_a_file_page(machine: Machine) -> None:
    """shmem keeps the page in its place: whoever touches it gets SIGBUS, also through a mapping made later."""
    file = machine.shmem(2)
    process, other = machine.process(), machine.process()
    vma = machine.map(process, 2, file, shared=True)
    process.mm.write(address(vma), b"x" * 2 * PAGE)
    pfn = file.cache.pfn(0) or 0
    assert poison(process.mm, address(vma)) == SIGBUS
    assert process.mm.pte(vma.start) is None
    with pytest.raises(BusError) as caught:
        process.mm.read(address(vma) + 7, 1)
    assert (caught.value.rule.id, caught.value.address) == ("mm.fault.hwpoison", address(vma) + 7)
    later = machine.map(other, 2, file, shared=True)
    assert refusal(lambda: other.mm.write(address(later), b"x")) == "mm.fault.hwpoison"
    assert other.mm.read(address(later, 1), 1) == b"x"
    file.put()
    process.exit()
    other.exit()
    assert machine.memmap.refcount(pfn) == 1  # memory_failure()'s own


def test_faulting_around_a_bad_page_stops_before_it(machine: Machine) -> None:
    file = machine.shmem(4)
    process = machine.process()
    vma = machine.map(process, 4, file, shared=True)
    process.mm.write(address(vma), b"x" * 4 * PAGE)
    assert poison(process.mm, address(vma, 2)) == SIGBUS
    file.cache.unmap_pages(0, 4)
    with pytest.raises(BusError) as caught:
        process.mm.read(address(vma), 4 * PAGE)
    assert caught.value.address == address(vma, 2)
    assert process.mm.read(address(vma, 3), 1) == b"x"
    file.put()


def test_an_anonymous_page(machine: Machine) -> None:
    """The process keeps a mark where the page was, until it unmaps it or gives it up."""
    process = machine.process()
    vma = machine.map(process, 2)
    process.mm.write(address(vma), b"x" * 2 * PAGE)
    assert poison(process.mm, address(vma)) == SIGBUS
    assert refusal(lambda: process.mm.write(address(vma), b"y")) == "mm.fault.hwpoison"
    child = machine.fork(process)
    assert refusal(lambda: child.mm.read(address(vma), 1)) == "mm.fault.hwpoison"
    do_madvise(process.mm, address(vma), 2 * PAGE, MADV_DONTNEED)
    assert process.mm.read(address(vma), 1) == bytes(1)


def test_both_sides_of_a_fork_lose_it(machine: Machine) -> None:
    process = machine.process()
    vma = machine.map(process, 1)
    process.mm.write(address(vma), b"x")
    child = machine.fork(process)
    assert poison(child.mm, address(vma)) == ""
    for mm in (process.mm, child.mm):
        assert refusal(lambda mm=mm: mm.read(address(vma), 1)) == "mm.fault.hwpoison"  # type: ignore[misc]


def test_who_wrote_the_page_is_told_at_once(machine: Machine) -> None:
    """SIGBUS for lost data; what can be had again is lost without a word."""
    file = machine.shmem(2)
    process = machine.process()
    vma = machine.map(process, 2, file, shared=True)
    process.mm.read(address(vma), 1)
    process.mm.write(address(vma, 1), b"x")
    assert poison(process.mm, address(vma)) == ""
    with pytest.raises(BusError) as caught:
        do_madvise(process.mm, address(vma, 1), PAGE, MADV_HWPOISON)
    assert (caught.value.rule.id, caught.value.address) == (SIGBUS, address(vma, 1))
    assert refusal(lambda: process.mm.read(address(vma), 1)) == SIGBUS
    file.put()


def test_a_page_that_somebody_holds(machine: Machine) -> None:
    process = machine.process()
    vma = machine.map(process, 1)
    process.mm.write(address(vma), b"x")
    machine.protect(process, vma.start, vma.end, PROT_READ)
    entry = process.mm.pte(vma.start)
    assert entry is not None
    machine.memmap.pin(entry[0])
    assert poison(process.mm, address(vma)) == "mm.hwpoison.kept"
    assert entry[0] in machine.memmap.poisoned
    machine.memmap.unpin(entry[0])


def test_the_zero_page_cant_be_had(machine: Machine) -> None:
    process = machine.process()
    vma = machine.map(process, 1)
    assert poison(process.mm, address(vma)) == "mm.hwpoison.kept"
    assert machine.memmap.refcount(machine.memmap.zero_pfn) == 1


def test_the_same_page_twice(machine: Machine) -> None:
    file = machine.shmem(1)
    process = machine.process()
    vma = machine.map(process, 1, file, shared=True)
    process.mm.write(address(vma), b"x")
    pfn = file.cache.pfn(0) or 0
    assert poison(process.mm, address(vma)) == SIGBUS
    assert poison(process.mm, address(vma)) == "mm.gup.fault"
    machine.memmap.get(pfn)
    assert refusal(lambda: memory_failure(machine.memmap, pfn)) == "mm.hwpoison.again"
    file.put()


def test_a_range_goes_page_by_page(machine: Machine) -> None:
    process = machine.process()
    vma = machine.map(process, 3)
    process.mm.write(address(vma), b"x" * 3 * PAGE)
    machine.protect(process, vma.start, vma.end, PROT_READ)
    assert poison(process.mm, address(vma), 2 * PAGE) == ""
    assert len(machine.memmap.poisoned) == 2
    assert process.mm.read(address(vma, 2), 1) == b"x"
    assert poison(process.mm, address(vma), 0) == ""
    assert poison(process.mm, 0x1000) == "mm.gup.fault"
