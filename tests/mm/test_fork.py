# SPDX-License-Identifier: GPL-2.0-or-later
"""fork() and exit(): what a child shares, what it copies, and that nothing is left."""

from __future__ import annotations

import pytest

from gmemu.mm.gup import get_user_pages_fast
from gmemu.rules import KernelError
from gmemu.uapi.mman import FOLL_PIN, FOLL_WRITE, PROT_NONE

from .machine import PAGE, RW, Machine, address


def test_private_pages_are_shared_until_either_writes(machine: Machine) -> None:
    parent = machine.process()
    vma = machine.map(parent, 2)
    parent.mm.write(address(vma), b"both" + bytes(PAGE) + b"tail")
    child = machine.fork(parent)
    entry = parent.mm.pte(vma.start)
    assert entry is not None
    assert child.mm.pte(vma.start) == entry == (entry[0], False)
    assert (machine.memmap.refcount(entry[0]), machine.memmap.mapcount(entry[0])) == (2, 2)
    parent.mm.write(address(vma), b"mine")
    assert child.mm.read(address(vma), 4) == b"both"
    child.mm.write(address(vma), b"his!")
    assert parent.mm.read(address(vma), 4) == b"mine"
    after = child.mm.pte(vma.start)
    assert after == (entry[0], True)  # alone by then: no second copy


def test_a_pinned_page_is_copied_at_once(machine: Machine) -> None:
    """The holder of the pin keeps seeing what the parent writes, so it's the child that gets the copy."""
    parent = machine.process()
    vma = machine.map(parent, 3)
    parent.mm.write(address(vma), b"a" * PAGE + b"b" * PAGE + b"c" * PAGE)
    [(pfn, _)] = get_user_pages_fast(parent.mm, address(vma, 1), 1, FOLL_PIN | FOLL_WRITE)
    child = machine.fork(parent)
    assert parent.mm.pte(vma.start + 1) == (pfn, True)
    copied = child.mm.pte(vma.start + 1)
    assert copied is not None
    assert copied[0] != pfn
    assert copied[1]
    parent.mm.write(address(vma, 1), b"new")
    assert machine.memory.read(pfn * PAGE, 3) == b"new"
    assert child.mm.read(address(vma), 3 * PAGE) == b"a" * PAGE + b"b" * PAGE + b"c" * PAGE
    assert machine.memmap.mapcount(pfn) == 1
    machine.memmap.unpin(pfn)


def test_the_zero_page_stays_the_zero_page(machine: Machine) -> None:
    parent = machine.process()
    vma = machine.map(parent, 1)
    parent.mm.read(address(vma), 1)
    child = machine.fork(parent)
    assert child.mm.pte(vma.start) == (machine.memmap.zero_pfn, False)
    child.mm.write(address(vma), b"x")
    assert parent.mm.read(address(vma), 1) == bytes(1)


def test_shared_pages_stay_shared(machine: Machine) -> None:
    file = machine.shmem(1)
    parent = machine.process()
    vma = machine.map(parent, 1, file, shared=True)
    parent.mm.write(address(vma), b"one")
    child = machine.fork(parent)
    assert child.mm.pte(vma.start) is None  # faulted in anew
    child.mm.write(address(vma), b"two")
    assert parent.mm.read(address(vma), 3) == b"two"
    assert len(file.cache.i_mmap) == 2
    file.put()


def test_private_file_pages_and_copies(machine: Machine) -> None:
    file = machine.shmem(2)
    parent = machine.process()
    vma = machine.map(parent, 2, file)
    parent.mm.read(address(vma), 1)
    parent.mm.write(address(vma, 1), b"copied")
    child = machine.fork(parent)
    parent.mm.write(address(vma), b"P")
    child.mm.write(address(vma, 1), b"C")
    assert child.mm.read(address(vma), 1) == bytes(1)
    assert parent.mm.read(address(vma, 1), 6) == b"copied"
    file.put()


def test_what_nobody_may_touch_is_inherited(machine: Machine) -> None:
    parent = machine.process()
    vma = machine.map(parent, 1)
    parent.mm.write(address(vma), b"hidden")
    machine.protect(parent, vma.start, vma.end, PROT_NONE)
    child = machine.fork(parent)
    assert child.mm.pte(vma.start) is None
    for process in (child, parent):
        machine.protect(process, vma.start, vma.end, RW)
        assert process.mm.read(address(vma), 6) == b"hidden"


def test_no_memory_for_a_copy_leaves_no_child(machine: Machine) -> None:
    parent = machine.process()
    vma = machine.map(parent, 2)
    parent.mm.write(address(vma), b"x" * 2 * PAGE)
    pinned = get_user_pages_fast(parent.mm, address(vma), 2, FOLL_PIN | FOLL_WRITE)
    [(hog, count)] = machine.memmap.alloc(machine.memmap.nr_pages - machine.memmap.nr_allocated - 1)
    with pytest.raises(KernelError) as caught:
        machine.fork(parent)
    assert caught.value.rule.id == "mm.page.oom"
    assert parent.mm.read(address(vma), 1) == b"x"
    machine.memmap.put(hog, count)
    for pfn, have in pinned:
        machine.memmap.unpin(pfn, have)
        assert machine.memmap.mapcount(pfn) == 1


def test_a_large_area_is_forked_in_runs(machine: Machine) -> None:
    parent = machine.process()
    vma = machine.map(parent, 2000)
    parent.mm.write(address(vma), b"m" * 2000 * PAGE)
    child = machine.fork(parent)
    assert len(child.mm.ptes) == len(parent.mm.ptes) == 1
    assert child.mm.read(address(vma, 1999), 1) == b"m"


def test_files_are_shared_and_closed_apart(machine: Machine) -> None:
    parent = machine.process()
    fd = parent.install_fd(file := machine.shmem(1))
    child = machine.fork(parent)
    assert child.file(fd) is file
    assert file.count == 2
    parent.close(fd)
    assert child.file(fd) is file
    child.exit()
    assert file.count == 0


def test_a_grandchild(machine: Machine) -> None:
    parent = machine.process()
    vma = machine.map(parent, 1)
    parent.mm.write(address(vma), b"old")
    child = machine.fork(parent)
    grandchild = machine.fork(child)
    entry = parent.mm.pte(vma.start)
    assert entry is not None
    assert machine.memmap.refcount(entry[0]) == 3
    child.exit()
    grandchild.mm.write(address(vma), b"new")
    assert parent.mm.read(address(vma), 3) == b"old"
    assert machine.memmap.refcount(entry[0]) == 1
