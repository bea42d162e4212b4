# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests of memory management stand on."""

from __future__ import annotations

from collections.abc import Callable

from gmemu.hw.memory import PAGE_SHIFT, PAGE_SIZE, PhysicalMemory
from gmemu.mm.address_space import AddressSpace, Vma
from gmemu.mm.file import File
from gmemu.mm.page import Memmap
from gmemu.mm.process import Process
from gmemu.mm.shmem import ShmemFile
from gmemu.mm.swap import LruBatches
from gmemu.rules import KernelError, MemoryFault
from gmemu.sync import DirectRuntime, Lockdep
from gmemu.uapi.mman import PROT_READ, PROT_WRITE

RW = PROT_READ | PROT_WRITE
PAGE = PAGE_SIZE


class Machine:
    """Physical memory, page counts, LRU batches and processes."""

    def __init__(self, size: int = 16 << 20) -> None:
        self.lockdep = Lockdep()
        self.rt = DirectRuntime(self.lockdep)
        self.memory = PhysicalMemory(size)
        self.memmap = Memmap(self.rt, self.memory)
        self.lru = LruBatches(self.memmap)
        self.processes: list[Process] = []

    def process(self) -> Process:
        """A new process; it exits with the test."""
        process = Process(AddressSpace(self.memmap))
        self.processes.append(process)
        return process

    def fork(self, parent: Process) -> Process:
        """A child of `parent`."""
        child = parent.fork()
        self.processes.append(child)
        return child

    def shmem(self, pages: int) -> ShmemFile:
        """A memfd of so many pages.  The caller puts it."""
        file = ShmemFile(self.memmap, self.lru)
        file.truncate(pages << PAGE_SHIFT)
        return file

    def map(
        self, process: Process, pages: int, file: File | None = None, *, shared: bool = False, prot: int = RW, pgoff: int = 0
    ) -> Vma:
        """mmap() of `pages` pages, wherever there is room."""
        mm = process.mm
        with mm.mmap_lock.exclusive:
            return mm.map_region(mm.get_unmapped_area(pages), pages, prot, shared, file, pgoff)

    def unmap(self, process: Process, start: int, end: int) -> None:
        """munmap() of [start, end) pages."""
        with process.mm.mmap_lock.exclusive:
            process.mm.unmap_region(start, end)
        self.rt.task_work_run()

    def protect(self, process: Process, start: int, end: int, prot: int) -> None:
        """mprotect() of [start, end) pages."""
        with process.mm.mmap_lock.exclusive:
            process.mm.protect(start, end, prot)

    def check_quiet(self) -> None:
        """Everybody exits; nothing may be left."""
        for process in self.processes:
            process.exit()
        self.lru.lru_add_drain_all()
        left = [run for run in self.memmap.refs.runs() if run[0] != self.memmap.zero_pfn and not self.memmap.leaked[run[0]]]
        assert left == []
        assert len(self.memmap.maps) == 0
        assert self.lockdep.cycles() == [], self.lockdep.report()


def address(vma: Vma, page: int = 0) -> int:
    """The user address of a page of a mapping."""
    return (vma.start + page) << PAGE_SHIFT


def refusal(call: Callable[[], object]) -> str:
    """The id of the rule that the call broke; empty if it broke none."""
    try:
        call()
    except (KernelError, MemoryFault) as error:
        return error.rule.id
    return ""
