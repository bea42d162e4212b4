# SPDX-License-Identifier: GPL-2.0-or-later
"""memfd_create files: size, holes, and who sees what."""

from __future__ import annotations

from gmemu.mm.file import vfs_fallocate
from gmemu.uapi.mman import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE

from .machine import PAGE, Machine, address, refusal

PUNCH = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE


def test_a_hole_reads_zero_again(machine: Machine) -> None:
    file = machine.shmem(3)
    process = machine.process()
    vma = machine.map(process, 3, file, shared=True)
    process.mm.write(address(vma), b"x" * 3 * PAGE)
    vfs_fallocate(file, PUNCH, PAGE - 10, PAGE + 20)
    assert file.stat().blocks == 2 * 8
    assert process.mm.read(address(vma), 3 * PAGE) == b"x" * (PAGE - 10) + bytes(PAGE + 20) + b"x" * (PAGE - 10)
    assert file.stat().blocks == 3 * 8
    file.put()


def test_allocation_grows_the_file_unless_told_not_to(machine: Machine) -> None:
    file = machine.shmem(0)
    vfs_fallocate(file, FALLOC_FL_KEEP_SIZE, 0, 2 * PAGE)
    assert (file.inode.size, file.cache.nrpages) == (0, 2)
    vfs_fallocate(file, 0, PAGE, 2 * PAGE)
    assert (file.inode.size, file.cache.nrpages) == (3 * PAGE, 3)
    file.put()


def test_truncation_takes_pages_and_mappings(machine: Machine) -> None:
    file = machine.shmem(4)
    process = machine.process()
    vma = machine.map(process, 4, file, shared=True)
    process.mm.write(address(vma), b"x" * 4 * PAGE)
    file.truncate(2 * PAGE)
    assert file.cache.nrpages == 2
    assert refusal(lambda: process.mm.read(address(vma, 2), 1)) == "mm.fault.eof"
    file.truncate(4 * PAGE)
    assert process.mm.read(address(vma, 2), 1) == bytes(1)
    file.put()


def test_the_last_reference_frees_the_memory(machine: Machine) -> None:
    file = machine.shmem(1)
    process = machine.process()
    vma = machine.map(process, 1, file, shared=True)
    process.mm.write(address(vma), b"x")
    file.put()
    assert file.cache.nrpages == 1
    machine.unmap(process, vma.start, vma.end)
    assert file.cache.nrpages == 0
