# SPDX-License-Identifier: GPL-2.0-or-later
"""The door for a real process: as the emulated one, and the real mappings follow."""

from __future__ import annotations

from threading import get_ident

from ..hw.memory import PAGE_SHIFT, PAGE_SIZE
from ..mm.address_space import TASK_SIZE_PAGES
from ..mm.file import Stat
from ..mm.real import PlacedPageCache, RealAddressSpace
from ..rules import mm as rules
from ..sync import Task
from ..syscalls.emulated import EmulatedDoor
from ..uapi import mman
from .host import RealHost

__all__ = ["RealDoor"]

_PRIVATE_ANONYMOUS = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS | mman.MAP_NORESERVE
_ZAPS = {mman.MADV_DONTNEED, mman.MADV_DONTNEED_LOCKED}


class RealDoor(EmulatedDoor):
    """System calls of the program, for what the preloaded library takes to be ours."""

    mm: RealAddressSpace

    def __init__(self, host: RealHost) -> None:
        super().__init__(host)
        self._real = host.process_memory

    def task_of_thread(self) -> Task:
        """The task as which the calling thread enters the kernel."""
        return self.task.of_thread(get_ident())

    def fstat(self, fd: int) -> Stat:
        """As the other, and with what the real kernel has allocated."""
        self.adopt(fd)
        return super().fstat(fd)

    def adopt(self, fd: int) -> None:
        """Hear of the pages of a file that the real kernel has allocated by itself."""
        file = self.process.files.get(fd)
        mapping = file.inode.mapping if file is not None else None
        if isinstance(mapping, PlacedPageCache):
            previous = self.rt.enter(self.task)
            try:
                mapping.adopt()
            finally:
                self.rt.leave(previous)

    def _place(self, address: int, length: int, flags: int) -> tuple[int, int]:
        """The real kernel chooses where, and keeps the place until the mapping takes it."""
        fixed = mman.MAP_FIXED | mman.MAP_FIXED_NOREPLACE
        if not length or length > TASK_SIZE_PAGES << PAGE_SHIFT or (flags & fixed and address & (PAGE_SIZE - 1)):
            return super()._place(address, length, flags)
        if flags & fixed == mman.MAP_FIXED:
            return super()._place(address, length, flags)
        kept = flags & mman.MAP_FIXED_NOREPLACE
        try:
            start = self._real.mmap(address, length, 0, _PRIVATE_ANONYMOUS | kept, -1, 0)
        except OSError as error:
            refused = rules.MMAP_TAKEN if kept and error.errno == 17 else rules.MMAP_SPACE
            raise refused(f"address {address:#x}, length {length:#x}") from error
        return start >> PAGE_SHIFT, (length + PAGE_SIZE - 1) >> PAGE_SHIFT

    def munmap(self, address: int, length: int) -> None:
        """For a range that meets our mappings or guests' memory; the rest of it goes too."""
        previous = self.rt.enter(self.task)
        try:
            start, end = self._range(address, length)
            if address & (PAGE_SIZE - 1) or not length or end > TASK_SIZE_PAGES:
                raise rules.MUNMAP_RANGE(f"address {address:#x}, length {length:#x}")
            self.mm.unmap_program_range(start, end)
            self._real.munmap(address, length)
            self._real.watch(start << PAGE_SHIFT, end << PAGE_SHIFT, False)
        finally:
            self.rt.leave(previous)

    def mprotect(self, address: int, length: int, prot: int) -> None:
        """The emulated mappings' protection is checked; the real one is the real kernel's affair."""
        start, end = self._range(address, length)
        if any(vma.start <= start and end <= vma.end for vma in self.mm.overlapping(start, end)):
            super().mprotect(address, length, prot)
        else:
            self._forget(start, end)
        self._real.mprotect(address, length, prot)

    def madvise(self, address: int, length: int, advice: int) -> None:
        """Advice on our mappings is ours to judge; what zaps page tables is done to the real ones, too."""
        start, end = self._range(address, length)
        ours = self.mm.overlapping(start, end)
        if not ours:
            if advice not in (mman.MADV_POPULATE_READ, mman.MADV_POPULATE_WRITE):
                self._forget(start, end)
            self._real.madvise(address, length, advice)
            return
        super().madvise(address, length, advice)
        if advice in _ZAPS:
            self._real.madvise(address, length, mman.MADV_DONTNEED)
            for vma in ours:
                self.mm.refresh(vma, max(vma.start, start), min(vma.end, end))

    def mremap(self, address: int, old_length: int, new_length: int, flags: int, new_address: int = 0) -> int:
        """mremap() of guest memory that is the program's own: guests lose it first."""
        start, end = self._range(address, old_length)
        if self.mm.overlapping(start, end):
            raise rules.MREMAP(f"address {address:#x}, {old_length:#x} bytes to {new_length:#x}")
        self._forget(start, end)
        return self._real.mremap(address, old_length, new_length, flags, new_address)

    def replaced(self, address: int, length: int) -> None:
        """The program has put another mapping over this range."""
        start, end = self._range(address, length)
        self._forget(start, end)

    def _forget(self, start: int, end: int) -> None:
        previous = self.rt.enter(self.task)
        try:
            self.mm.unmap_program_range(start, end)
        finally:
            self.rt.leave(previous)

    def access_again(self, address: int) -> None:
        """A load or store met SIGBUS in a mapping of ours.  Raises `MemoryFault` if that's what it should meet."""
        previous = self.rt.enter(self.task)
        try:
            self.mm.access_again(address)
        finally:
            self.rt.leave(previous)
