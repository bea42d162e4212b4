# SPDX-License-Identifier: GPL-2.0-or-later
"""Mapped memory, used as `mmap.mmap` is.

Every access goes through the page tables of the process behind the door, so a page that became private since raises
`BusError`, as it would have killed a C program.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self, overload

from ..syscalls.door import Door

if TYPE_CHECKING:
    from .pin import Pin

__all__ = ["Mapping"]

Bytes = bytes | bytearray | memoryview | mmap.mmap


class Mapping:
    """`length` bytes at user address `address`: slices, `read`, `write`, `seek`, `find` and so on, as of `mmap.mmap`."""

    def __init__(self, door: Door, address: int, length: int) -> None:
        self.door, self.address, self.length = door, address, length
        self._position = 0

    # As a sequence of bytes

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> bytes: ...
    def __getitem__(self, index: int | slice) -> int | bytes:
        self._check_open()
        if isinstance(index, slice):
            start, stop, step = index.indices(self.length)
            if step == 1:
                return self.door.load(self.address + start, stop - start) if stop > start else b""
            return bytes(self[i] for i in range(start, stop, step))
        return self.door.load(self.address + self._index(index), 1)[0]

    @overload
    def __setitem__(self, index: int, value: int) -> None: ...
    @overload
    def __setitem__(self, index: slice, value: Bytes) -> None: ...
    def __setitem__(self, index: int | slice, value: int | Bytes) -> None:
        self._check_open()
        if isinstance(index, slice):
            assert not isinstance(value, int)
            start, stop, step = index.indices(self.length)
            if len(value) != len(range(start, stop, step)):
                raise IndexError("a slice of a mapping can't change its size")
            if step == 1:
                self.door.store(self.address + start, memoryview(value))
            else:
                for i, byte in zip(range(start, stop, step), bytes(value), strict=True):
                    self[i] = byte
        else:
            assert isinstance(value, int)
            self.door.store(self.address + self._index(index), bytes((value,)))

    def __iter__(self) -> Iterator[int]:
        return (self[i] for i in range(self.length))

    def __contains__(self, what: object) -> bool:
        if isinstance(what, int):
            return bytes((what,)) in self[:]
        return isinstance(what, bytes | bytearray) and bytes(what) in self[:]

    def tobytes(self) -> bytes:
        """All of it."""
        return self[:]

    # As a file

    def tell(self) -> int:
        """The position of the next `read` or `write` (bytes)."""
        return self._position

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        """Move the position."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.length}[whence]
        if not 0 <= base + position <= self.length:
            raise ValueError("seek out of range")
        self._position = base + position
        return self._position

    def read(self, length: int | None = None) -> bytes:
        """Up to `length` bytes from the position on."""
        end = self.length if length is None or length < 0 else min(self._position + length, self.length)
        data = self[self._position : end]
        self._position = end
        return data

    def read_byte(self) -> int:
        """One byte at the position."""
        if self._position >= self.length:
            raise ValueError("read byte out of range")
        return self.read(1)[0]

    def readline(self) -> bytes:
        """Up to and including the next newline."""
        at = self.find(b"\n", self._position)
        return self.read(None if at < 0 else at + 1 - self._position)

    def write(self, data: Bytes) -> int:
        """Write `data` at the position."""
        if self._position + len(data) > self.length:
            raise ValueError("data out of range")
        self[self._position : self._position + len(data)] = data
        self._position += len(data)
        return len(data)

    def write_byte(self, byte: int) -> None:
        """Write one byte at the position."""
        self.write(bytes((byte,)))

    def find(self, what: Bytes, start: int = 0, end: int | None = None) -> int:
        """Where `what` first occurs in [start, end), or -1."""
        at = self[start:end].find(what)
        return at if at < 0 else at + slice(start, end).indices(self.length)[0]

    def rfind(self, what: Bytes, start: int = 0, end: int | None = None) -> int:
        """Where `what` last occurs in [start, end), or -1."""
        at = self[start:end].rfind(what)
        return at if at < 0 else at + slice(start, end).indices(self.length)[0]

    def move(self, destination: int, source: int, count: int) -> None:
        """memmove() within the mapping."""
        if min(destination, source, count) < 0 or max(destination, source) + count > self.length:
            raise ValueError("source, destination, or count out of range")
        self[destination : destination + count] = self[source : source + count]

    def flush(self) -> None:
        """msync(): there is no storage behind this memory."""

    def size(self) -> int:
        """How many bytes are mapped."""
        return self.length

    # As a mapping

    def madvise(self, advice: int, start: int = 0, length: int | None = None) -> None:
        """madvise() on `length` bytes from `start`."""
        self.door.madvise(self.address + start, self.length - start if length is None else length, advice)

    def pin(self, offset: int = 0, length: int | None = None, *, write: bool = True) -> Pin:
        """Pin `length` bytes from `offset` for DMA, as a driver does on a program's behalf.  Raises EFAULT."""
        from .pin import Pin

        return Pin(self.door, self.address + offset, self.length - offset if length is None else length, write=write)

    def protect(self, prot: int) -> None:
        """mprotect() on all of it."""
        self.door.mprotect(self.address, self.length, prot)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self.length < 0

    def close(self) -> None:
        """munmap().  Further calls do nothing."""
        if self.length >= 0:
            length, self.length = self.length, -1
            self.door.munmap(self.address, length)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Mapping {self.address:#x}+{self.length:#x} ({self.door.name})>"

    def _index(self, index: int) -> int:
        if index < 0:
            index += self.length
        if not 0 <= index < self.length:
            raise IndexError("mapping index out of range")
        return index

    def _check_open(self) -> None:
        if self.length < 0:
            raise ValueError("mapping closed")
