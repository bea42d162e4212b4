# SPDX-License-Identifier: GPL-2.0-or-later
"""Physical memory of an emulated machine whose program is a real process: this one.

The machine's own memory is the sparse memfd that it always is, mapped low in the address space.  What the program has of
its own is memory, too: at physical address x stands whatever the process has at virtual address `base` + x.  So every page
that a guest can be given has a page frame number, and every page frame a place where it can be touched.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from typing import Protocol

from .memory import PAGE_SHIFT, PhysicalMemory

__all__ = ["BASE", "ProcessMemory", "RealMemory", "out_of_the_way"]

BASE = 1 << 44
"""Where the machine's memory is wanted: above what ASLR gives to a heap that isn't relocated, below all else."""

_HIGH_FD = 800
_PROT_RW, _MAP_SHARED, _MAP_FIXED_NOREPLACE, _MAP_NORESERVE, _MADV_REMOVE = 3, 1, 0x100000, 0x4000, 9


def out_of_the_way(fd: int) -> int:
    """The same file under a high number: programs count on low numbers for their own.  `fd` is closed."""
    try:
        high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH_FD)
    except OSError:
        return fd
    os.close(fd)
    return high


class ProcessMemory(Protocol):
    """The real process, as kernel.c hands it over.  Addresses and lengths are bytes; what fails is an OSError."""

    def read(self, address: int, length: int) -> bytes:
        """Load; EFAULT where the process itself would get a signal."""

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Store; as `read`."""

    def view(self, address: int, length: int) -> memoryview:
        """The bytes themselves.  Whoever touches what isn't there crashes."""

    def mmap(self, address: int, length: int, prot: int, flags: int, fd: int, offset: int) -> int:
        """mmap()."""

    def munmap(self, address: int, length: int) -> int:
        """munmap()."""

    def mprotect(self, address: int, length: int, prot: int) -> int:
        """mprotect()."""

    def madvise(self, address: int, length: int, advice: int) -> int:
        """madvise(), while which other threads may run Python."""

    def mremap(self, address: int, old: int, new: int, flags: int, to: int) -> int:
        """mremap()."""

    def gate_open(self) -> None:
        """A userfaultfd that answers with SIGBUS."""

    def gate_register(self, address: int, length: int) -> int:
        """From here on, a page of these that isn't mapped is SIGBUS, or EFAULT in a system call."""

    def gate_unregister(self, address: int, length: int) -> int:
        """These pages are mapped at will again."""

    def gate_map(self, address: int, length: int, fd: int, offset: int) -> int:
        """Map registered pages, which show `fd` from `offset`; holes are filled."""

    def mark_fd(self, fd: int, ours: bool) -> None:
        """Whether system calls on `fd` come to the emulated kernel."""

    def watch(self, start: int, end: int, on: bool) -> None:
        """Whether calls that change these mappings come to the emulated kernel."""

    def guest_enter(self, stop: int, argument: int) -> None:
        """Signals may come now; before one is handled, `stop(argument)` is called (C)."""

    def guest_exit(self) -> bool:
        """Signals wait again.  Whether one came."""

    def kernel_thread(self) -> None:
        """The calling thread is ours: nothing that it does is intercepted, and no signal comes to it."""

    def signal_pending(self) -> bool:
        """Whether a signal waits for this thread that the program wants to hear of."""

    def read_tsc(self) -> tuple[int, int, int]:
        """RDTSC now; and when the emulated kernel was started, with CLOCK_MONOTONIC (nanoseconds) of then."""

    def signal_mask(self, on: bool, mask: int) -> None:
        """While this thread's guest runs the signals in `mask` are blocked, or those that the program blocks."""


class _Mapping:
    """As much of a mapped file as `PhysicalMemory` uses, at an address that can be chosen."""

    def __init__(self, process: ProcessMemory, fd: int, size: int) -> None:
        self._process, self._size = process, size
        flags = _MAP_SHARED | _MAP_NORESERVE
        try:
            self.address = process.mmap(BASE, size, _PROT_RW, flags | _MAP_FIXED_NOREPLACE, fd, 0)
        except OSError:
            self.address = process.mmap(0, size, _PROT_RW, flags, fd, 0)
        self.view = process.view(self.address, size)

    def __getitem__(self, where: slice) -> bytes:
        return bytes(self.view[where])

    def __setitem__(self, where: slice, data: bytes | bytearray | memoryview) -> None:
        self.view[where] = data

    def madvise(self, advice: int, start: int, length: int) -> None:
        self._process.madvise(self.address + start, length, advice)

    def close(self) -> None:
        self.view.release()
        self._process.munmap(self.address, self._size)


class RealMemory(PhysicalMemory):
    """`size` bytes of the machine's own, and all that `process` has."""

    def __init__(self, size: int, process: ProcessMemory) -> None:
        self.process = process
        super().__init__(size)
        self.fd = out_of_the_way(self.fd)

    def _map(self) -> _Mapping:
        self._mapping = _Mapping(self.process, self.fd, self.size)
        self.base = self._mapping.address
        return self._mapping

    @property
    def view(self) -> memoryview:
        return self._mapping.view[:]

    def is_own(self, pfn: int) -> bool:
        """Whether page frame `pfn` is of the machine's memory, and not of the program's."""
        return 0 <= pfn < self.size >> PAGE_SHIFT

    def holds(self, pfn: int) -> bool:
        """As the other; what the program has is memory, too."""
        return self.is_own(pfn) or self.base + (pfn << PAGE_SHIFT) >= 0

    def read(self, address: int, length: int, key: int = 0) -> bytes:
        if self.is_own(address >> PAGE_SHIFT):
            return super().read(address, length, key)
        return self.process.read(self.base + address, length)

    def write(self, address: int, data: bytes | bytearray | memoryview, key: int = 0) -> None:
        if self.is_own(address >> PAGE_SHIFT):
            super().write(address, data, key)
        else:
            self.process.write(self.base + address, data)

    def copy(self, destination: int, source: int, count: int) -> None:
        if self.is_own(destination) and self.is_own(source):
            super().copy(destination, source, count)
        else:
            self.write(destination << PAGE_SHIFT, self.read(source << PAGE_SHIFT, count << PAGE_SHIFT))

    def punch(self, pfn: int, count: int) -> None:
        """Give back whatever `count` of the machine's own pages hold, on whoever's account: they read as zero."""
        self._bytes.madvise(_MADV_REMOVE, pfn << PAGE_SHIFT, count << PAGE_SHIFT)

    def resident(self, pfn: int, count: int) -> Iterator[tuple[int, int]]:
        """Which of `count` of the machine's own pages from `pfn` hold anything: runs of page frames."""
        at, end = pfn << PAGE_SHIFT, pfn + count << PAGE_SHIFT
        while at < end:
            try:
                start = os.lseek(self.fd, at, os.SEEK_DATA)
            except OSError:
                return
            at = min(os.lseek(self.fd, start, os.SEEK_HOLE), end)
            if start < end:
                yield start >> PAGE_SHIFT, at >> PAGE_SHIFT

    def close(self) -> None:
        self._bytes.close()
        os.close(self.fd)
