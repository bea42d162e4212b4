# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel offers to a program: one protocol, two kernels behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from ..mm.file import Stat
from ..mm.uaccess import Iovec, UserPointer

__all__ = ["Door"]


class Door(Protocol):
    """System calls of one process.  Each returns what the call returns, or raises `KernelError` with the errno.

    Addresses are of the process's address space; offsets and lengths are bytes.
    """

    name: str
    """"emulated" or "host"."""

    def open(self, path: str) -> int:
        """open(path, O_RDWR | O_CLOEXEC)."""

    def close(self, fd: int) -> None:
        """close()."""

    def dup(self, fd: int) -> int:
        """dup()."""

    def ioctl(self, fd: int, request: int, arg: UserPointer = 0) -> int:
        """ioctl().  `arg` is a number, an address, or a buffer that stands for user memory."""

    def mmap(self, address: int, length: int, prot: int, flags: int, fd: int = -1, offset: int = 0) -> int:
        """mmap(): the address of the new mapping."""

    def munmap(self, address: int, length: int) -> None:
        """munmap()."""

    def mprotect(self, address: int, length: int, prot: int) -> None:
        """mprotect()."""

    def madvise(self, address: int, length: int, advice: int) -> None:
        """madvise()."""

    def fallocate(self, fd: int, mode: int, offset: int, length: int) -> None:
        """fallocate()."""

    def fstat(self, fd: int) -> Stat:
        """fstat()."""

    def ftruncate(self, fd: int, length: int) -> None:
        """ftruncate()."""

    def fsync(self, fd: int) -> None:
        """fsync()."""

    def read(self, fd: int, length: int) -> bytes:
        """read()."""

    def write(self, fd: int, data: bytes) -> int:
        """write()."""

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        """pread64()."""

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        """pwrite64()."""

    def memfd_create(self, name: str) -> int:
        """memfd_create(name, 0)."""

    def pipe(self) -> tuple[int, int]:
        """pipe2(O_CLOEXEC | O_NONBLOCK): the end to read from, and the end to write to."""

    def splice(self, fd_in: int, off_in: UserPointer, fd_out: int, off_out: UserPointer, length: int, flags: int = 0) -> int:
        """splice(): how many bytes.  An offset is an address, 8 bytes that stand for what is there, or 0 for none."""

    def vmsplice(self, fd: int, iov: Sequence[Iovec], flags: int = 0) -> int:
        """vmsplice(): how many bytes.  Without SPLICE_F_NONBLOCK it may wait for another process."""

    def getpid(self) -> int:
        """getpid()."""

    def process_vm_readv(self, pid: int, local: Sequence[Iovec], remote: Sequence[Iovec], flags: int = 0) -> int:
        """process_vm_readv(): how many bytes."""

    def process_vm_writev(self, pid: int, local: Sequence[Iovec], remote: Sequence[Iovec], flags: int = 0) -> int:
        """process_vm_writev(): how many bytes."""

    def mremap(self, address: int, old_length: int, new_length: int, flags: int, new_address: int = 0) -> int:
        """mremap(): the address of the mapping afterwards."""

    def mlock(self, address: int, length: int) -> None:
        """mlock()."""

    def munlock(self, address: int, length: int) -> None:
        """munlock()."""

    def load(self, address: int, length: int) -> bytes:
        """Not a call: the program reads its memory.  Raises `BusError` or `SegmentationFault`."""

    def store(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Not a call: the program writes its memory.  Raises `BusError` or `SegmentationFault`."""

    def load_guest(self, vcpu_fd: int, guest: Any) -> None:
        """Not a call: put a scripted guest into a vCPU, as if its code were in guest memory."""
