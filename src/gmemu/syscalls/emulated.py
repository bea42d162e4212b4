# SPDX-License-Identifier: GPL-2.0-or-later
"""The door to an emulated kernel, for one process of an emulated `Host`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

from ..hw.cpu import Guest
from ..hw.memory import PAGE_SHIFT, PAGE_SIZE
from ..kvm.device import KvmDeviceFile
from ..kvm.host import Host
from ..kvm.vcpu import VcpuFile
from ..mm.address_space import TASK_SIZE_PAGES, AddressSpace
from ..mm.file import S_IFREG, File, Stat, fput, vfs_fallocate
from ..mm.gup import mm_populate
from ..mm.gup_test import GUP_TEST, GupTestFile
from ..mm.madvise import do_madvise
from ..mm.mlock import do_mlock, do_munlock
from ..mm.mremap import Remap, do_mremap, do_mremap_one
from ..mm.pipe import Pipe
from ..mm.process import Process
from ..mm.process_vm_access import process_vm_readv, process_vm_writev
from ..mm.shmem import ShmemFile
from ..mm.splice import check_splice_flags, do_splice, do_vmsplice
from ..mm.uaccess import Iovec, UserPointer
from ..rules import KernelError
from ..rules import mm as rules
from ..sync import Task
from ..uapi import mman
from ..uapi.mman import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_GROWSDOWN,
    MAP_HUGETLB,
    MAP_LOCKED,
    MAP_PRIVATE,
    MAP_SHARED,
    MAP_SHARED_VALIDATE,
    MAP_TYPE,
    PROT_EXEC,
    PROT_GROWSDOWN,
    PROT_GROWSUP,
)

__all__ = ["EmulatedDoor"]

_U64 = (1 << 64) - 1
_PROT = mman.PROT_READ | mman.PROT_WRITE | PROT_EXEC
_LEGACY_MAP_MASK = (
    MAP_SHARED
    | MAP_PRIVATE
    | MAP_FIXED
    | MAP_ANONYMOUS
    | mman.MAP_32BIT
    | mman.MAP_ABOVE4G
    | MAP_GROWSDOWN
    | mman.MAP_DENYWRITE
    | mman.MAP_EXECUTABLE
    | mman.MAP_LOCKED
    | mman.MAP_NORESERVE
    | mman.MAP_POPULATE
    | mman.MAP_NONBLOCK
    | mman.MAP_STACK
    | MAP_HUGETLB
    | mman.MAP_HUGE_2MB
    | mman.MAP_HUGE_1GB
)
"""The flags that every file accepts with MAP_SHARED_VALIDATE (linux/mman.h)."""


def _s64(value: int) -> int:
    """A register as a signed number: offsets, and sizes of files."""
    value &= _U64
    return value - (1 << 64) if value >> 63 else value


class _Syscall(AbstractContextManager[None]):
    __slots__ = ("_door", "_previous")

    def __init__(self, door: EmulatedDoor) -> None:
        self._door = door

    def __enter__(self) -> None:
        self._previous = self._door.rt.enter(self._door.task)

    def __exit__(self, *exc: object) -> None:
        self._door.rt.leave(self._previous)


class EmulatedDoor:
    """System calls of `process`, made by its thread `task`."""

    name = "emulated"

    def __init__(self, host: Host, process: Process | None = None, task: Task | None = None) -> None:
        self.host, self.rt = host, host.rt
        self.process = process or host.init
        self.task = task or self.process.task
        self.mm = self.process.mm

    def syscall(self) -> AbstractContextManager[None]:
        """Within it, kernel code runs as this process: for what a device or a driver does."""
        return _Syscall(self)

    def thread(self, name: str, cpu: int = 0) -> EmulatedDoor:
        """The same process, another thread, on CPU `cpu`."""
        return type(self)(self.host, self.process, self.process.thread(name, cpu))

    def fork(self) -> EmulatedDoor:
        """fork(): the child's door."""
        with _Syscall(self):
            return type(self)(self.host, self.process.fork())

    def exit(self) -> None:
        """_exit(): the process is gone."""
        with _Syscall(self):
            self.process.exit()

    # Files

    def open(self, path: str) -> int:
        with _Syscall(self):
            if path.startswith("/proc/self/fd/"):
                number = path.removeprefix("/proc/self/fd/")
                file = self.process.files.get(int(number)) if number.isdecimal() else None
                if file is None:
                    raise rules.NO_SUCH_FILE(path)
                if isinstance(file, ShmemFile):
                    return self.process.install_fd(file.reopen())
                if not isinstance(file, KvmDeviceFile):
                    raise rules.NO_DEVICE_BEHIND(path)
                return self.process.install_fd(file.get())  # it keeps nothing by open file
            if path == "/dev/kvm":
                return self.process.install_fd(KvmDeviceFile(self.host))
            if path == "/dev/sev":
                from ..kvm.snp_platform import SevDeviceFile

                return self.process.install_fd(SevDeviceFile(self.host))
            if path == GUP_TEST:
                return self.process.install_fd(GupTestFile(self.host.memmap))
            raise rules.NO_SUCH_FILE(path)

    def close(self, fd: int) -> None:
        with _Syscall(self):
            self.process.close(fd)

    def dup(self, fd: int) -> int:
        with _Syscall(self):
            return self.process.install_fd(self.process.file(fd).get())

    def memfd_create(self, name: str) -> int:
        with _Syscall(self):
            return self.process.install_fd(ShmemFile(self.host.memmap, self.host.lru))

    def ioctl(self, fd: int, request: int, arg: UserPointer = 0) -> int:
        rt = self.rt
        previous = rt.enter(self.task)
        try:
            file = self.process.file(fd).get()
            try:
                if self.host.faults is not None:
                    with self.host.faults.ioctl(self.host, file, request, arg):
                        return file.ioctl(request, arg)
                return file.ioctl(request, arg)
            finally:
                fput(rt, file)
        finally:
            rt.leave(previous)

    def fallocate(self, fd: int, mode: int, offset: int, length: int) -> None:
        with _Syscall(self), self.process.fdget(fd) as file:
            faults = self.host.faults
            with faults.call(self.host, "fallocate", file) if faults is not None else nullcontext():
                vfs_fallocate(file, mode, _s64(offset), _s64(length), self.host.profile.fallocate_modes)

    def fstat(self, fd: int) -> Stat:
        with _Syscall(self), self.process.fdget(fd) as file:
            return file.stat()

    def ftruncate(self, fd: int, length: int) -> None:
        with _Syscall(self):
            if _s64(length) < 0:
                raise rules.NEGATIVE_SIZE(f"{_s64(length):#x}")
            with self.process.fdget(fd) as file:
                file.truncate(length)

    def fsync(self, fd: int) -> None:
        with _Syscall(self), self.process.fdget(fd) as file:
            file.fsync()

    def read(self, fd: int, length: int) -> bytes:
        with _Syscall(self), self.process.fdget(fd) as file:
            if not file.can_read:
                raise rules.FILE_MODE(f"read of {file.name}")
            return file.read(length)

    def write(self, fd: int, data: bytes) -> int:
        with _Syscall(self), self.process.fdget(fd) as file:
            if not file.can_write:
                raise rules.FILE_MODE(f"write to {file.name}")
            return file.write(data)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        with _Syscall(self):
            if _s64(offset) < 0:
                raise rules.NEGATIVE_OFFSET(f"{_s64(offset):#x}")
            with self.process.fdget(fd) as file:
                return file.pread(length, offset)

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        with _Syscall(self):
            if _s64(offset) < 0:
                raise rules.NEGATIVE_OFFSET(f"{_s64(offset):#x}")
            with self.process.fdget(fd) as file:
                return file.pwrite(data, offset)

    def pipe(self) -> tuple[int, int]:
        with _Syscall(self):
            reads, writes = Pipe(self.host.memmap).ends(noexec=self.host.profile.anon_inodes_noexec)
            try:
                first = self.process.install_fd(reads)
            except KernelError:
                writes.put()
                raise
            try:
                return first, self.process.install_fd(writes)
            except KernelError:
                self.process.close(first)
                raise

    def splice(self, fd_in: int, off_in: UserPointer, fd_out: int, off_out: UserPointer, length: int, flags: int = 0) -> int:
        """splice(): the checks that come before the files' own."""
        with _Syscall(self):
            if not length & _U64:
                return 0
            check_splice_flags(flags)
            with self.process.fdget(fd_in) as source, self.process.fdget(fd_out) as to:
                return do_splice(self.mm, source, off_in, to, off_out, length & _U64)

    def vmsplice(self, fd: int, iov: Sequence[Iovec], flags: int = 0) -> int:
        with _Syscall(self):
            check_splice_flags(flags)
            with self.process.fdget(fd) as file:
                return do_vmsplice(self.mm, file, iov, flags)

    # Processes

    def getpid(self) -> int:
        return self.process.pid

    def process_vm_readv(self, pid: int, local: Sequence[Iovec], remote: Sequence[Iovec], flags: int = 0) -> int:
        with _Syscall(self):
            return process_vm_readv(self.mm, local, remote, self._mm_of(pid, flags))

    def process_vm_writev(self, pid: int, local: Sequence[Iovec], remote: Sequence[Iovec], flags: int = 0) -> int:
        with _Syscall(self):
            return process_vm_writev(self.mm, local, remote, self._mm_of(pid, flags))

    def _mm_of(self, pid: int, flags: int) -> AddressSpace | None:
        if flags:
            raise rules.PROCESS_VM_FLAGS(f"flags {flags:#x}")
        process = self.host.memmap.processes.get(pid)
        return process.mm if process else None

    # Memory

    def mmap(self, address: int, length: int, prot: int, flags: int, fd: int = -1, offset: int = 0) -> int:
        """ksys_mmap_pgoff() and do_mmap(): the checks in their order."""
        address, length, offset, prot = address & _U64, length & _U64, offset & _U64, prot & _PROT
        with _Syscall(self):
            if offset & (PAGE_SIZE - 1):
                raise rules.MMAP_OFFSET(f"offset {offset:#x}")
            if flags & MAP_ANONYMOUS:
                start, end = self._map_anonymous(address, length, prot, flags)
            else:
                with self.process.fdget(fd) as file:
                    if flags & MAP_HUGETLB:
                        raise rules.MMAP_HUGETLB(file.name)
                    start, end = self._map_file(address, length, prot, flags, file, offset >> PAGE_SHIFT)
            if flags & MAP_LOCKED or flags & (mman.MAP_POPULATE | mman.MAP_NONBLOCK) == mman.MAP_POPULATE:
                with suppress(KernelError):
                    mm_populate(self.mm, start, end)
            return start << PAGE_SHIFT

    def _map_anonymous(self, address: int, length: int, prot: int, flags: int) -> tuple[int, int]:
        locked, reserve = bool(flags & MAP_LOCKED), not flags & mman.MAP_NORESERVE
        with self.mm.mmap_lock.exclusive:
            start, pages = self._place(address, length, flags)
            if not self._check_anonymous(flags):
                self.mm.map_region(start, pages, prot, False, None, 0, locked=locked, reserve=reserve)
            else:
                file = ShmemFile(self.host.memmap, self.host.lru)
                file.inode.size = pages << PAGE_SHIFT
                self.mm.map_region(start, pages, prot, True, file, 0, locked=locked, reserve=reserve)
                file.put()
            return start, start + pages

    def _map_file(self, address: int, length: int, prot: int, flags: int, file: File, pgoff: int) -> tuple[int, int]:
        locked, reserve = bool(flags & MAP_LOCKED), not flags & mman.MAP_NORESERVE
        with self.mm.mmap_lock.exclusive:
            start, pages = self._place(address, length, flags)
            shared = self._check_file(file, pgoff, pages, prot, flags)
            self.mm.map_region(start, pages, prot, shared, file, pgoff, locked=locked, reserve=reserve)
            return start, start + pages

    def _place(self, address: int, length: int, flags: int) -> tuple[int, int]:
        """get_unmapped_area(): the first page, and how many."""
        if not length:
            raise rules.MMAP_LENGTH("length 0")
        pages = (length + PAGE_SIZE - 1) >> PAGE_SHIFT
        if pages > TASK_SIZE_PAGES:
            raise rules.MMAP_SPACE(f"length {length:#x}")
        if flags & (MAP_FIXED | MAP_FIXED_NOREPLACE):
            start = address >> PAGE_SHIFT
            if address + (pages << PAGE_SHIFT) > TASK_SIZE_PAGES << PAGE_SHIFT:
                raise rules.MMAP_SPACE(f"address {address:#x}, length {length:#x}")
            if address & (PAGE_SIZE - 1):
                raise rules.MMAP_ADDRESS(f"address {address:#x}")
            if flags & MAP_FIXED_NOREPLACE and self.mm.overlapping(start, start + pages):
                raise rules.MMAP_TAKEN(f"address {address:#x}, length {length:#x}")
            return start, pages
        return self.mm.get_unmapped_area(pages, address >> PAGE_SHIFT), pages

    @staticmethod
    def _check_anonymous(flags: int) -> bool:
        """do_mmap() without a file: the type of mapping.  Whether it's shared."""
        kind = flags & MAP_TYPE
        if kind not in (MAP_SHARED, MAP_PRIVATE):
            raise rules.MMAP_FLAGS(f"flags {flags:#x}")
        if kind == MAP_SHARED and flags & MAP_GROWSDOWN:
            raise rules.MMAP_GROWS(f"flags {flags:#x}")
        return kind == MAP_SHARED

    @staticmethod
    def _check_file(file: File, pgoff: int, pages: int, prot: int, flags: int) -> bool:
        """do_mmap() with a file: its size, the type of mapping, and what the file's mount forbids.  Whether it's shared."""
        largest = (1 << 63) - 1 if file.inode.mode & 0o170000 == S_IFREG else _U64
        if pgoff > largest - (pages << PAGE_SHIFT) >> PAGE_SHIFT:
            raise rules.MMAP_FILE_LIMIT(f"offset {pgoff << PAGE_SHIFT:#x}, {pages} pages")
        kind = flags & MAP_TYPE
        if kind not in (MAP_SHARED, MAP_PRIVATE, MAP_SHARED_VALIDATE):
            raise rules.MMAP_FLAGS(f"flags {flags:#x}")
        if kind == MAP_SHARED_VALIDATE and flags & ~_LEGACY_MAP_MASK:
            raise rules.MMAP_VALIDATE(f"flags {flags & ~_LEGACY_MAP_MASK:#x}")
        if not file.can_read or (kind != MAP_PRIVATE and prot & mman.PROT_WRITE and not file.can_write):
            raise rules.MMAP_MODE(file.name)
        if file.noexec and prot & PROT_EXEC:
            raise rules.MMAP_NOEXEC(file.name)
        if not file.can_mmap:
            raise rules.MMAP_UNSUPPORTED(file.name)
        if flags & MAP_GROWSDOWN:
            raise rules.MMAP_GROWS(f"flags {flags:#x}")
        return kind != MAP_PRIVATE

    def munmap(self, address: int, length: int) -> None:
        address, length = address & _U64, length & _U64
        with _Syscall(self):
            start, end = self._range(address, length)
            if address & (PAGE_SIZE - 1) or not length or end > TASK_SIZE_PAGES:
                raise rules.MUNMAP_RANGE(f"address {address:#x}, length {length:#x}")
            with self.mm.mmap_lock.exclusive:
                self.mm.unmap_region(start, end)

    def mprotect(self, address: int, length: int, prot: int) -> None:
        """do_mprotect_pkey(): the checks in their order."""
        address, length = address & _U64, length & _U64
        grows = prot & (PROT_GROWSDOWN | PROT_GROWSUP)
        with _Syscall(self):
            if grows == PROT_GROWSDOWN | PROT_GROWSUP:
                raise rules.MPROTECT_GROWS(f"protection {prot:#x}")
            if address & (PAGE_SIZE - 1):
                raise rules.MPROTECT_RANGE(f"address {address:#x}")
            if not length:
                return
            start, end = self._range(address, length)
            if end << PAGE_SHIFT > _U64:
                raise rules.MPROTECT_WRAP(f"address {address:#x}, length {length:#x}")
            if prot & ~(_PROT | mman.PROT_SEM | grows):
                raise rules.MPROTECT_PROT(f"protection {prot:#x}")
            with self.mm.mmap_lock.exclusive:
                if grows and self.mm.overlapping(start, end if grows == PROT_GROWSDOWN else start + 1):
                    raise rules.MPROTECT_GROWS(f"protection {prot:#x}")
                self.mm.protect(start, end, prot & _PROT)

    def madvise(self, address: int, length: int, advice: int) -> None:
        with _Syscall(self):
            do_madvise(self.mm, address & _U64, length & _U64, advice)

    def mremap(self, address: int, old_length: int, new_length: int, flags: int, new_address: int = 0) -> int:
        asked = Remap(address & _U64, old_length & _U64, new_length & _U64, flags & _U64, new_address & _U64)
        asked = asked._replace(splits_locked=self.host.profile.mremap_splits_locked)
        remap = do_mremap if self.host.profile.mremap_moves_many else do_mremap_one
        with _Syscall(self):
            return remap(self.mm, asked)

    def mlock(self, address: int, length: int) -> None:
        with _Syscall(self):
            do_mlock(self.mm, address & _U64, length & _U64)

    def munlock(self, address: int, length: int) -> None:
        with _Syscall(self):
            do_munlock(self.mm, address & _U64, length & _U64)

    @staticmethod
    def _range(address: int, length: int) -> tuple[int, int]:
        return address >> PAGE_SHIFT, (address + length + PAGE_SIZE - 1) >> PAGE_SHIFT

    def load(self, address: int, length: int) -> bytes:
        with _Syscall(self):
            return self.mm.read(address, length)

    def store(self, address: int, data: bytes | bytearray | memoryview) -> None:
        with _Syscall(self):
            self.mm.write(address, data)

    def load_guest(self, vcpu_fd: int, guest: Guest) -> None:
        file: Any = self.process.file(vcpu_fd)
        assert isinstance(file, VcpuFile)
        file.vcpu.pending_exit = file.vcpu.completion = file.vcpu.complete_userspace_io = None
        file.vcpu.cpu.load_guest(guest, file.vcpu.cpu.interface())
