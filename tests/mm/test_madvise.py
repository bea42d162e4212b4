# SPDX-License-Identifier: GPL-2.0-or-later
"""madvise(): what is refused, and what the advice that matters does."""

from __future__ import annotations

import pytest

from gmemu.mm.madvise import do_madvise
from gmemu.uapi.mman import (
    MADV_COLLAPSE,
    MADV_DONTNEED,
    MADV_FREE,
    MADV_HUGEPAGE,
    MADV_HWPOISON,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MADV_REMOVE,
    PROT_READ,
)

from .machine import PAGE, Machine, address, refusal


def test_checks_in_order(machine: Machine) -> None:
    """The advice, the range, then the mappings one by one; a gap is told last."""
    mm = machine.process().mm
    mm.map_region(0x100, 1, 3, False, None, 0)
    mm.map_region(0x102, 1, 3, False, None, 0)
    base = 0x100 * PAGE
    assert refusal(lambda: do_madvise(mm, base + 1, PAGE, 12345)) == "mm.madvise.advice"
    assert refusal(lambda: do_madvise(mm, base + 1, PAGE, MADV_DONTNEED)) == "mm.madvise.range"
    assert refusal(lambda: do_madvise(mm, base, (1 << 64) - PAGE, MADV_DONTNEED)) == "mm.madvise.range"
    assert refusal(lambda: do_madvise(mm, base, 3 * PAGE, MADV_COLLAPSE)) == "mm.madvise.collapse"
    mm.write(base, b"x")
    mm.write(base + 2 * PAGE, b"x")
    assert refusal(lambda: do_madvise(mm, base, 3 * PAGE, MADV_DONTNEED)) == "mm.madvise.unmapped"
    assert mm.read(base, 1) + mm.read(base + 2 * PAGE, 1) == bytes(2)
    do_madvise(mm, base, 0, MADV_DONTNEED)


def test_dontneed_takes_anonymous_memory_and_refaults_a_file(machine: Machine) -> None:
    file = machine.shmem(1)
    process = machine.process()
    anonymous, mapped = machine.map(process, 1), machine.map(process, 1, file, shared=True)
    for vma in (anonymous, mapped):
        process.mm.write(address(vma), b"data")
        do_madvise(process.mm, address(vma), PAGE, MADV_DONTNEED)
        assert process.mm.pte(vma.start) is None
    assert process.mm.read(address(anonymous), 4) == bytes(4)
    assert process.mm.read(address(mapped), 4) == b"data"
    file.put()


def test_remove_punches_a_hole(machine: Machine) -> None:
    file = machine.shmem(3)
    process = machine.process()
    shared, private = machine.map(process, 2, file, shared=True, pgoff=1), machine.map(process, 1, file)
    process.mm.write(address(shared), b"x" * 2 * PAGE)
    do_madvise(process.mm, address(shared), PAGE, MADV_REMOVE)
    assert process.mm.read(address(shared), 1) + process.mm.read(address(shared, 1), 1) == b"\0x"
    assert file.cache.pfn(2) is not None
    assert refusal(lambda: do_madvise(process.mm, address(private), PAGE, MADV_REMOVE)) == "mm.madvise.shared"
    anonymous = machine.map(process, 1)
    assert refusal(lambda: do_madvise(process.mm, address(anonymous), PAGE, MADV_REMOVE)) == "mm.madvise.file"
    file.put()


@pytest.mark.parametrize("advice", [MADV_DONTNEED, MADV_REMOVE, MADV_FREE])
def test_locked_memory_stays(machine: Machine, advice: int) -> None:
    process = machine.process()
    vma = machine.map(process, 1)
    vma.locked = True
    assert refusal(lambda: do_madvise(process.mm, address(vma), PAGE, advice)) == "mm.madvise.locked"
    do_madvise(process.mm, address(vma), PAGE, MADV_HUGEPAGE)


class TestPopulate:
    def test_faults_everything_in(self, machine: Machine) -> None:
        process = machine.process()
        vma = machine.map(process, 3)
        do_madvise(process.mm, address(vma), 2 * PAGE, MADV_POPULATE_WRITE)
        assert [process.mm.pte(vma.start + i) is not None for i in range(3)] == [True, True, False]
        do_madvise(process.mm, address(vma, 2), PAGE, MADV_POPULATE_READ)
        assert process.mm.pte(vma.start + 2) == (machine.memmap.zero_pfn, False)

    def test_needs_the_protection(self, machine: Machine) -> None:
        process = machine.process()
        vma = machine.map(process, 1, prot=PROT_READ)
        do_madvise(process.mm, address(vma), PAGE, MADV_POPULATE_READ)
        assert refusal(lambda: do_madvise(process.mm, address(vma), PAGE, MADV_POPULATE_WRITE)) == "mm.madvise.populate"

    def test_tells_what_went_wrong(self, machine: Machine) -> None:
        file = machine.shmem(2)
        process = machine.process()
        vma = machine.map(process, 3, file, shared=True)
        populate = lambda: do_madvise(process.mm, address(vma), 3 * PAGE, MADV_POPULATE_READ)  # noqa: E731
        assert refusal(populate) == "mm.madvise.fault"
        do_madvise(process.mm, address(vma, 1), PAGE, MADV_HWPOISON)
        assert refusal(populate) == "mm.madvise.hwpoison"
        assert refusal(lambda: do_madvise(process.mm, 0x1000, PAGE, MADV_POPULATE_READ)) == "mm.madvise.unmapped"
        file.put()
