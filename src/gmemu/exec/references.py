# SPDX-License-Identifier: GPL-2.0-or-later
"""References to guest_memfd pages that the program has from this machine's own kernel: vmsplice(), io_uring, VFIO, iommufd.

The real kernel does the call, and holds the real page.  What stands here is the same reference as the emulated kernel has
to see it: taken before the call, so that no conversion gets in between, and let go when the call fails.  Afterwards nobody
tells us when the real one ends.  So who meets a page that is held looks (`settle`): is the pipe still open, and how much of
it hasn't been read; does a ring list the buffer; is the container open.
"""

from __future__ import annotations

import fcntl
import os
import struct
import threading
from collections.abc import Iterator, Sequence
from enum import IntEnum
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from ..hw.memory import PAGE_SHIFT, PAGE_SIZE
from ..kvm.guest_memfd.file import GmemFile
from ..mm.holder import PageHolder
from ..mm.uaccess import Iovec, read_user
from ..uapi.mman import FOLL_LONGTERM, FOLL_PIN, FOLL_WRITE

if TYPE_CHECKING:
    from .host import RealHost

__all__ = ["References", "What"]

_FIONREAD = 0x541B
_PINNED = FOLL_PIN | FOLL_LONGTERM | FOLL_WRITE
_MANY = 64

IORING_REGISTER_BUFFERS, IORING_REGISTER_BUFFERS2, IORING_REGISTER_BUFFERS_UPDATE = 0, 15, 16
VFIO_IOMMU_MAP_DMA, VFIO_IOMMU_UNMAP_DMA = 0x3B71, 0x3B72
IOMMU_IOAS_MAP, IOMMU_IOAS_UNMAP = 0x3B85, 0x3B86
_VFIO_DMA_UNMAP_FLAG_ALL = 2
_IOVEC = struct.Struct("<QQ")
_RSRC_REGISTER = struct.Struct("<IIQQQ")
"""struct io_uring_rsrc_register: nr, flags, resv2, data, tags"""
_RSRC_UPDATE2 = struct.Struct("<IIQQII")
"""struct io_uring_rsrc_update2: offset, resv, data, tags, nr, resv2"""
_VFIO_MAP = struct.Struct("<IIQQQ")
"""struct vfio_iommu_type1_dma_map: argsz, flags, vaddr, iova, size"""
_VFIO_UNMAP = struct.Struct("<IIQQ")
"""struct vfio_iommu_type1_dma_unmap: argsz, flags, iova, size"""
_IOAS_MAP = struct.Struct("<IIIIQQQ")
"""struct iommu_ioas_map: size, flags, ioas_id, reserved, user_va, length, iova"""
_IOAS_UNMAP = struct.Struct("<IIQQ")
"""struct iommu_ioas_unmap: size, ioas_id, iova, length"""


class What(IntEnum):
    """Calls that take references, in the order of enum gmemu_pin (kernel.h)."""

    VMSPLICE = 0
    IO_URING_REGISTER = 1
    DEVICE_IOCTL = 2


class _FileId(NamedTuple):
    """Which file a descriptor leads to, as far as fstat() tells."""

    dev: int
    ino: int
    rdev: int

    @classmethod
    def of(cls, fd: int) -> _FileId:
        st = os.fstat(fd)
        return cls(st.st_dev, st.st_ino, st.st_rdev)


class _Unmapping(NamedTuple):
    """An unmapping that is under way."""

    file: _FileId
    ioas: int
    iova: int
    length: int


class _Kept(PageHolder):
    """What one call took.  `file`: where it went."""

    def __init__(self, host: RealHost, name: str, flags: int, file: _FileId) -> None:
        super().__init__(host.memmap, name, flags)
        self._mm, self.file = host.init.mm, file

    def take(self, address: int, length: int) -> bool:
        """The guest_memfd pages among `length` bytes from `address`, up to the first that can't be had.  All could: True."""
        first, last = address >> PAGE_SHIFT, address + length + PAGE_SIZE - 1 >> PAGE_SHIFT
        for vma in list(self._mm.overlapping(first, last)):
            if isinstance(vma.file, GmemFile):
                start, end = max(first, vma.start), min(last, vma.end)
                if not self.hold_what_can_be(self._mm, start << PAGE_SHIFT, end - start):
                    return False
        return True

    def done(self, result: int) -> bool:
        """The call returned `result`: whether anything is held."""
        if result < 0:
            self.release()
        return bool(self.runs)


class _Spliced(_Kept):
    """Pages in a pipe.  Those are let go whose bytes were read."""

    def __init__(self, host: RealHost, name: str, file: _FileId, iov: list[Iovec]) -> None:
        super().__init__(host, name, 0, file)
        self._ends: list[int] = []
        """for each page, how many bytes of this call come up to its end"""
        self.length = 0
        """bytes that the call put into the pipe"""
        at = 0
        for address, length in iov:
            for page, part in _pages(address, length):
                at += part
                before = len(self)
                if not self.take(page, 1):
                    return
                if len(self) > before:
                    self._ends.append(at)

    def done(self, result: int) -> bool:
        self.length = max(result, 0)
        kept = sum(1 for start in [0, *self._ends[:-1]] if start < self.length)
        self.release(kept if self._ends else 0)
        self._ends = [min(end, self.length) for end in self._ends[:kept]]
        return bool(self.runs)

    def read_up_to(self, consumed: int) -> None:
        """`consumed` bytes of this call have left the pipe."""
        gone = sum(1 for end in self._ends if end <= consumed)
        self.release_before(gone)
        del self._ends[:gone]


class _Registered(_Kept):
    """A buffer of a ring."""

    def __init__(self, host: RealHost, name: str, file: _FileId, buffer: Iovec) -> None:
        super().__init__(host, name, _PINNED, file)
        self.buffer = buffer
        self.take(*buffer)


class _Mapped(_Kept):
    """Memory that devices may reach, at `iova` of address space `ioas` (0 of a VFIO container)."""

    def __init__(self, host: RealHost, name: str, file: _FileId, ioas: int, iova: int, address: int, length: int) -> None:
        super().__init__(host, name, _PINNED, file)
        self.ioas, self.iova, self.length = ioas, iova, length
        self.take(address, length)

    def lies_in(self, gone: _Unmapping) -> bool:
        """Whether `gone` takes it away."""
        end = self.iova + self.length
        return (self.file, self.ioas) == (gone.file, gone.ioas) and gone.iova <= self.iova and end <= gone.iova + gone.length


_Pending = Sequence[_Kept] | _Unmapping


class References:
    """All that the program has taken in these ways."""

    def __init__(self, host: RealHost) -> None:
        self._host = host
        self._tokens = count(1)
        self._pending: dict[int, _Pending] = {}
        self._kept: list[_Kept] = []

    def start(self, what: int, fd: int, request: int, argument: int, number: int) -> int:
        """The program is about to make the call: a token for `done`, or 0 if nothing of it is guest_memfd's."""
        if len(self._kept) > _MANY:
            self.settle()
        try:
            pending = self._take(What(what), fd, request, argument, number)
        except OSError:  # a bad descriptor, or a bad address: the real call will say so
            return 0
        if not isinstance(pending, _Unmapping) and not any(kept.runs for kept in pending):
            return 0
        token = next(self._tokens)
        self._pending[token] = pending
        return token

    def done(self, token: int, result: int) -> None:
        """The call that `start` gave the token for returned `result`, or -1."""
        pending = self._pending.pop(token)
        if isinstance(pending, _Unmapping):
            if result >= 0:
                self._unmapped(pending)
            return
        for kept in pending:
            if kept.done(result):
                self._kept.append(kept)
                self._host.look_closer()
                self._host.tell("hold", by=kept.name, pages=len(kept))

    def settle(self) -> bool:
        """Let go of what the real kernel has let go of since: whether there was any."""
        before = sum(map(len, self._kept))
        if not before:
            self._kept.clear()
            return False
        files: dict[_FileId, int] = {}
        for fd in _descriptors():
            files.setdefault(_FileId.of(fd), fd)
        self._settle_pipes(files)
        listed = _ring_buffers() if any(isinstance(kept, _Registered) for kept in self._kept) else set()
        for kept in self._kept:
            if isinstance(kept, _Registered):
                if listed is not None and kept.buffer not in listed:
                    kept.release()
            elif kept.file not in files:
                kept.release()
        for kept in [kept for kept in self._kept if not kept.runs]:
            self._host.tell("release", by=kept.name)
            self._kept.remove(kept)
        return sum(map(len, self._kept)) < before

    def _settle_pipes(self, files: dict[_FileId, int]) -> None:
        """What is left in a pipe is the last that was put there."""
        left: dict[_FileId, int] = {}
        for kept in reversed(self._kept):
            if isinstance(kept, _Spliced) and kept.file in files:
                if kept.file not in left:
                    left[kept.file] = _bytes_in(files[kept.file])
                mine = min(left[kept.file], kept.length)
                left[kept.file] -= mine
                kept.read_up_to(kept.length - mine)

    # Calls

    def _take(self, what: What, fd: int, request: int, argument: int, number: int) -> _Pending:
        file, who = _FileId.of(fd), f"by thread {threading.get_native_id()}"
        if what is What.DEVICE_IOCTL:
            return self._dma(file, fd, request, argument, who)
        if what is What.VMSPLICE:
            if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
                return ()  # out of the pipe: copied
            return [_Spliced(self._host, f"vmsplice() into pipe {fd} {who}", file, self._iov(argument, number))]
        name = f"io_uring {fd}'s registered buffers {who}"
        if request == IORING_REGISTER_BUFFERS2:
            number, _, _, argument, _ = _RSRC_REGISTER.unpack(self._read(argument, _RSRC_REGISTER.size))
        elif request == IORING_REGISTER_BUFFERS_UPDATE:
            _, _, argument, _, number, _ = _RSRC_UPDATE2.unpack(self._read(argument, _RSRC_UPDATE2.size))
        elif request != IORING_REGISTER_BUFFERS:
            return ()
        buffers = self._iov(argument, number) if argument else []
        return [_Registered(self._host, name, file, buffer) for buffer in buffers if buffer[1]]

    def _dma(self, file: _FileId, fd: int, request: int, argument: int, who: str) -> _Pending:
        if request == VFIO_IOMMU_MAP_DMA:
            _, _, address, iova, length = _VFIO_MAP.unpack(self._read(argument, _VFIO_MAP.size))
            name = f"VFIO container {fd}'s DMA mapping at iova {iova:#x} {who}"
            return [_Mapped(self._host, name, file, 0, iova, address, length)]
        if request == IOMMU_IOAS_MAP:
            _, _, ioas, _, address, length, iova = _IOAS_MAP.unpack(self._read(argument, _IOAS_MAP.size))
            name = f"iommufd {fd}'s mapping in IOAS {ioas} at iova {iova:#x} {who}"
            return [_Mapped(self._host, name, file, ioas, iova, address, length)]
        if request == VFIO_IOMMU_UNMAP_DMA:
            _, flags, iova, length = _VFIO_UNMAP.unpack(self._read(argument, _VFIO_UNMAP.size))
            return _Unmapping(file, 0, *((0, 1 << 64) if flags & _VFIO_DMA_UNMAP_FLAG_ALL else (iova, length)))
        if request == IOMMU_IOAS_UNMAP:
            _, ioas, iova, length = _IOAS_UNMAP.unpack(self._read(argument, _IOAS_UNMAP.size))
            return _Unmapping(file, ioas, iova, length)
        return ()

    def _unmapped(self, gone: _Unmapping) -> None:
        """Only whole mappings can be unmapped."""
        for kept in list(self._kept):
            if isinstance(kept, _Mapped) and kept.lies_in(gone):
                kept.release()
                self._kept.remove(kept)
                self._host.tell("release", by=kept.name)

    def _iov(self, address: int, number: int) -> list[Iovec]:
        data = self._read(address, min(number, 1024) * _IOVEC.size)
        return list(_IOVEC.iter_unpack(data))

    def _read(self, address: int, length: int) -> bytes:
        return read_user(self._host.init.mm, address, length)


def _pages(address: int, length: int) -> Iterator[tuple[int, int]]:
    """The pages of a range: each one's first byte in the range, and how many."""
    end = address + length
    while address < end:
        part = min(PAGE_SIZE - address % PAGE_SIZE, end - address)
        yield address, part
        address += part


def _descriptors() -> list[int]:
    """Descriptors of this process that are open."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            os.fstat(int(name))
        except OSError:
            continue  # the directory's own
        found.append(int(name))
    return found


def _bytes_in(fd: int) -> int:
    return int.from_bytes(fcntl.ioctl(fd, _FIONREAD, bytes(4)), "little")


def _ring_buffers() -> set[Iovec] | None:
    """Address and length of every buffer that is registered with a ring of this process; None if one doesn't say."""
    found: set[Iovec] = set()
    for fd in _descriptors():
        try:
            if os.readlink(f"/proc/self/fd/{fd}") != "anon_inode:[io_uring]":
                continue
            with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
                lines = file.read().splitlines()
        except OSError:
            continue
        at = next((i for i, line in enumerate(lines) if line.startswith("UserBufs:")), None)
        if at is None:
            return None  # it's busy
        for line in lines[at + 1 : at + 1 + int(lines[at].split()[1])]:
            where = line.split(":")[1].strip()
            if where.startswith("0x"):
                address, _, length = where.partition("/")
                found.add((int(address, 16), int(length)))
    return found
