# SPDX-License-Identifier: GPL-2.0-or-later
"""Physical memory: real bytes in a sparse memfd, and the key each page was encrypted with.

Hardware keeps ciphertext.  Here a page keeps its plaintext together with the key that its last writer used; whoever looks
through another key sees that page's noise: the plaintext under both keystreams.  Changing a page's owner therefore costs
nothing, and yields what hardware yields: bytes that make sense only to whoever wrote them.  Key 0 is no encryption.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Protocol

from ..rangemap import RangeMap

__all__ = ["PAGE_SHIFT", "PAGE_SIZE", "HostAccessFault", "HostStage2Fault", "MappedFile", "PhysicalMemory", "noise"]

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT


_BY_SYSCALL = 1 << 16
"""From here on (bytes) a write goes by pwrite(), which needs no page fault for each page that is new."""


class HostAccessFault(Exception):
    """The host touched a page that belongs to somebody else: the access faults in hardware."""


class HostStage2Fault(HostAccessFault):
    """The hypervisor above the host refuses the access: a signal of its own for user space."""


@lru_cache(maxsize=64)
def _keystream(pfn: int, key: int) -> int:
    """What encryption under `key` adds to the page at `pfn`: fixed for the pair, unlike that of any other."""
    from hashlib import shake_128

    seed = b"gmemu memory encryption" + pfn.to_bytes(8, "little") + key.to_bytes(8, "little")
    return int.from_bytes(shake_128(seed).digest(PAGE_SIZE), "little")


def noise(pfn: int, key: int) -> bytes:
    """A page of what looks random: the same for the same `pfn` and `key` (64 bits), unlike that of any other."""
    return _keystream(pfn, key).to_bytes(PAGE_SIZE, "little")


class MappedFile(Protocol):
    """As much of a file in this process's address space as `PhysicalMemory` uses.  Offsets and lengths are in bytes."""

    def __getitem__(self, where: slice, /) -> bytes:
        """The bytes there."""

    def __setitem__(self, where: slice, data: bytes | bytearray | memoryview, /) -> None:
        """As many others instead."""

    def madvise(self, option: int, start: int, length: int, /) -> None:
        """madvise() on a part."""

    def close(self) -> None:
        """Unmap it."""


class PhysicalMemory:
    """`size` bytes of physical address space.  What was never written costs nothing and reads as zero."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.fd = os.memfd_create("gmemu-memory", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, size)
        self._bytes = self._map()
        self.keys: RangeMap[int] = RangeMap()
        """pfn -> key the page's bytes were written with (absent: key 0)."""
        self.guards: list[Callable[[int, int, bool], None]] = []
        """Asked before the host touches pages (pfn, count, write); raise `HostAccessFault` to refuse."""
        self.kernel_accesses: list[Callable[[int, int], None]] = []
        """Asked before the host's kernel touches pages through its own mapping (pfn, count)."""
        self.watchers: list[Callable[[int, int], None]] = []
        """Told of each store by the host's software: physical address, length (bytes)."""

    def _map(self) -> MappedFile:
        self._mmap = mmap.mmap(self.fd, self.size)
        return self._mmap

    def close(self) -> None:
        """Give the memory back."""
        self._bytes.close()
        os.close(self.fd)

    @cached_property
    def base(self) -> int:
        """Where in this process's address space physical address 0 is."""
        import ctypes

        return ctypes.addressof(ctypes.c_char.from_buffer(self._mmap))

    @property
    def view(self) -> memoryview:
        """The plaintext of everything, whoever owns it.  Release it before `close`."""
        return memoryview(self._mmap)

    def resident_bytes(self) -> int:
        """How many bytes the pages that were touched take on this machine."""
        return os.fstat(self.fd).st_blocks * 512

    def read(self, address: int, length: int, key: int = 0) -> bytes:
        """`length` bytes at physical `address` as `key` sees them."""
        end = address + length
        first, last = address >> PAGE_SHIFT, (end + PAGE_SIZE - 1) >> PAGE_SHIFT
        if self.keys.covers(first, last, key or None):
            return self._bytes[address:end]
        out = bytearray()
        for pfn in range(first, last):
            base = pfn << PAGE_SHIFT
            page = self._seen(pfn, key)
            out += page[max(address - base, 0) : min(end - base, PAGE_SIZE)]
        return bytes(out)

    def write(self, address: int, data: bytes | bytearray | memoryview, key: int = 0) -> None:
        """Write `data` at physical `address` under `key`.  The rest of a page that had another key turns to noise."""
        end = address + len(data)
        first, last = address >> PAGE_SHIFT, (end + PAGE_SIZE - 1) >> PAGE_SHIFT
        if not self.keys.covers(first, last, key or None):
            self.rekey(first, last - first, key)
        if end - address >= _BY_SYSCALL:
            view = memoryview(data)
            while address < end:  # one call writes less than 2 GiB
                address += os.pwrite(self.fd, view[len(view) - (end - address) :], address)
        else:
            self._bytes[address:end] = data

    def host_read(self, address: int, length: int) -> bytes:
        """A load by the host's own software.  Raises `HostAccessFault`."""
        for guard in self.guards:
            guard(address >> PAGE_SHIFT, (address + length - 1 >> PAGE_SHIFT) - (address >> PAGE_SHIFT) + 1, False)
        return self.read(address, length)

    def host_write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """A store by the host's own software.  Raises `HostAccessFault`."""
        for guard in self.guards:
            guard(address >> PAGE_SHIFT, (address + len(data) - 1 >> PAGE_SHIFT) - (address >> PAGE_SHIFT) + 1, True)
        for watcher in self.watchers:
            watcher(address, len(data))
        self.write(address, data)

    def is_own(self, pfn: int) -> bool:
        """Whether page frame `pfn` is of the machine's memory, and not of a real process's own: here it always is."""
        return True

    def kernel_read(self, address: int, length: int) -> bytes:
        """A load by the host's kernel through its own mapping of all memory.  Raises `HostAccessFault`."""
        self._kernel_access(address, length)
        return self.host_read(address, length)

    def kernel_write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """A store of that kind.  Raises `HostAccessFault`."""
        self._kernel_access(address, len(data))
        self.host_write(address, data)

    def _kernel_access(self, address: int, length: int) -> None:
        first, last = address >> PAGE_SHIFT, address + length - 1 >> PAGE_SHIFT
        for access in self.kernel_accesses:
            access(first, last - first + 1)

    def holds(self, pfn: int) -> bool:
        """Whether there is memory at page frame `pfn`."""
        return 0 <= pfn < self.size >> PAGE_SHIFT

    def copy(self, destination: int, source: int, count: int) -> None:
        """memcpy() of `count` whole pages by the host's kernel: both sides through key 0."""
        for pfn in (source, destination):
            self._kernel_access(pfn << PAGE_SHIFT, count << PAGE_SHIFT)
        if not self.keys.empty(source, source + count):
            self.write(destination << PAGE_SHIFT, self.read(source << PAGE_SHIFT, count << PAGE_SHIFT))
            return
        self.keys.clear(destination, destination + count)
        with self.view as view:
            length = count << PAGE_SHIFT
            to, from_ = destination << PAGE_SHIFT, source << PAGE_SHIFT
            if length < _BY_SYSCALL:
                view[to : to + length] = view[from_ : from_ + length]
                return
            done = 0
            while done < length:
                with view[from_ + done : from_ + length] as rest:
                    done += os.pwrite(self.fd, rest, to + done)

    def rekey(self, pfn: int, count: int, key: int) -> None:
        """Keep `count` pages' bytes as `key` sees them, and let `key` be theirs."""
        for start, end, old in self.keys.spans(pfn, pfn + count):
            if (old or 0) != key:
                for page in range(start, end):
                    self._bytes[page << PAGE_SHIFT : (page + 1) << PAGE_SHIFT] = self._seen(page, key)
        self.keys.set(pfn, pfn + count, key or None)

    def encrypt_in_place(self, pfn: int, count: int, key: int) -> None:
        """Trusted hardware reads `count` plain pages and writes them back under `key`: same bytes, another owner."""
        self.keys.set(pfn, pfn + count, key or None)

    def clear(self, pfn: int, count: int) -> None:
        """Zero `count` pages (clear_highpage) under key 0, and let this machine have their memory back."""
        self.keys.clear(pfn, pfn + count)
        self._bytes.madvise(mmap.MADV_REMOVE, pfn << PAGE_SHIFT, count << PAGE_SHIFT)

    def save_contents(self) -> dict[int, bytes]:
        """The pages that were written, to go back to: the rest is zeroes."""
        return {pfn: self._bytes[pfn << PAGE_SHIFT : (pfn + 1) << PAGE_SHIFT] for pfn in self._present()}

    def restore_contents(self, saved: dict[int, bytes]) -> None:
        """Make the bytes what they were at `save_contents`."""
        for pfn in self._present():
            if pfn not in saved:
                self._bytes.madvise(mmap.MADV_REMOVE, pfn << PAGE_SHIFT, PAGE_SIZE)
        for pfn, page in saved.items():
            self._bytes[pfn << PAGE_SHIFT : (pfn + 1) << PAGE_SHIFT] = page

    def _present(self) -> list[int]:
        """Pages of the memfd that aren't holes."""
        pages: list[int] = []
        at = 0
        while True:
            try:
                at = os.lseek(self.fd, at, os.SEEK_DATA)
            except OSError:
                return pages
            end = os.lseek(self.fd, at, os.SEEK_HOLE)
            pages += range(at >> PAGE_SHIFT, end + PAGE_SIZE - 1 >> PAGE_SHIFT)
            at = end

    def _seen(self, pfn: int, key: int) -> bytes:
        plain = self._bytes[pfn << PAGE_SHIFT : (pfn + 1) << PAGE_SHIFT]
        owner = self.keys[pfn] or 0
        if owner == key:
            return plain
        noise = (_keystream(pfn, owner) if owner else 0) ^ (_keystream(pfn, key) if key else 0)
        return (int.from_bytes(plain, "little") ^ noise).to_bytes(PAGE_SIZE, "little")
