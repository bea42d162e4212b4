# SPDX-License-Identifier: GPL-2.0-or-later
"""The door to an emulated kernel, for one process of an emulated `Host`."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from ..hw.cpu import Guest
from ..hw.memory import PAGE_SHIFT, PAGE_SIZE
from ..kvm.device import KvmDeviceFile
from ..kvm.host import Host
from ..kvm.vcpu import VcpuFile
from ..mm.address_space import TASK_SIZE_PAGES, Vma
from ..mm.file import File, Stat, vfs_fallocate
from ..mm.process import Process
from ..mm.shmem import ShmemFile
from ..mm.uaccess import UserPointer
from ..rules import mm as rules
from ..sync import Task
from ..uapi.mman import (
    MADV_COLLAPSE,
    MADV_DONTNEED,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_PRIVATE,
    MAP_SHARED,
    MAP_SHARED_VALIDATE,
    PROT_EXEC,
)

__all__ = ["EmulatedDoor"]

_ADVICE = {0, 1, 2, 3, 4, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25}


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

    def thread(self, name: str, cpu: int = 0) -> EmulatedDoor:
        """The same process, another thread, on CPU `cpu`."""
        return EmulatedDoor(self.host, self.process, self.process.thread(name, cpu))

    def fork(self) -> EmulatedDoor:
        """fork(): the child's door."""
        with _Syscall(self):
            return EmulatedDoor(self.host, self.process.fork())

    def exit(self) -> None:
        """_exit(): the process is gone."""
        with _Syscall(self):
            self.process.exit()

    # Files

    def open(self, path: str) -> int:
        with _Syscall(self):
            if path.startswith("/proc/self/fd/"):
                self.process.file(int(path.rpartition("/")[2]))
                raise rules.NO_DEVICE_BEHIND(path)
            if path == "/dev/kvm":
                return self.process.install_fd(KvmDeviceFile(self.host))
            if path == "/dev/sev":
                from ..kvm.snp_platform import SevDeviceFile

                return self.process.install_fd(SevDeviceFile(self.host))
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
            return self.process.file(fd).ioctl(request, arg)
        finally:
            rt.leave(previous)

    def fallocate(self, fd: int, mode: int, offset: int, length: int) -> None:
        with _Syscall(self):
            vfs_fallocate(self.process.file(fd), mode, offset, length)

    def fstat(self, fd: int) -> Stat:
        with _Syscall(self):
            return self.process.file(fd).stat()

    def ftruncate(self, fd: int, length: int) -> None:
        with _Syscall(self):
            self.process.file(fd).truncate(length)

    def fsync(self, fd: int) -> None:
        with _Syscall(self):
            self.process.file(fd).fsync()

    def read(self, fd: int, length: int) -> bytes:
        with _Syscall(self):
            return self.process.file(fd).read(length)

    def write(self, fd: int, data: bytes) -> int:
        with _Syscall(self):
            return self.process.file(fd).write(data)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        with _Syscall(self):
            return self.process.file(fd).pread(length, offset)

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        with _Syscall(self):
            return self.process.file(fd).pwrite(data, offset)

    # Memory

    def mmap(self, address: int, length: int, prot: int, flags: int, fd: int = -1, offset: int = 0) -> int:
        """ksys_mmap_pgoff() and do_mmap(): the checks in their order."""
        with _Syscall(self):
            if offset & (PAGE_SIZE - 1):
                raise rules.MMAP_OFFSET(f"offset {offset:#x}")
            file = None if flags & MAP_ANONYMOUS else self.process.file(fd)
            with self.mm.mmap_lock.exclusive:
                start, pages = self._place(address, length, flags)
                shared = self._check_mapping(file, prot, flags)
                if file is None and shared:
                    file = ShmemFile(self.host.memmap, self.host.lru)
                    file.inode.size = pages << PAGE_SHIFT
                    vma = self.mm.map_region(start, pages, prot, True, file, 0)
                    file.put()
                else:
                    vma = self.mm.map_region(start, pages, prot, shared, file, offset >> PAGE_SHIFT)
                return vma.start << PAGE_SHIFT

    def _place(self, address: int, length: int, flags: int) -> tuple[int, int]:
        """get_unmapped_area(): the first page, and how many."""
        if not length:
            raise rules.MMAP_LENGTH("length 0")
        pages = (length + PAGE_SIZE - 1) >> PAGE_SHIFT
        if pages > TASK_SIZE_PAGES:
            raise rules.MMAP_SPACE(f"length {length:#x}")
        if flags & (MAP_FIXED | MAP_FIXED_NOREPLACE):
            if address & (PAGE_SIZE - 1):
                raise rules.MMAP_ADDRESS(f"address {address:#x}")
            start = address >> PAGE_SHIFT
            if start + pages > TASK_SIZE_PAGES:
                raise rules.MMAP_SPACE(f"address {address:#x}, length {length:#x}")
            if flags & MAP_FIXED_NOREPLACE and self.mm.overlapping(start, start + pages):
                raise rules.MMAP_TAKEN(f"address {address:#x}, length {length:#x}")
            return start, pages
        start = address >> PAGE_SHIFT
        if start >= 16 and start + pages <= TASK_SIZE_PAGES and not self.mm.overlapping(start, start + pages):
            return start, pages
        return self.mm.get_unmapped_area(pages), pages

    def _check_mapping(self, file: File | None, prot: int, flags: int) -> bool:
        """do_mmap(): the type of mapping, and what the file's mount forbids.  Whether it's shared."""
        kind = flags & 0xF
        if kind not in (MAP_SHARED, MAP_PRIVATE, MAP_SHARED_VALIDATE):
            raise rules.MMAP_FLAGS(f"flags {flags:#x}")
        if file is not None and file.noexec and prot & PROT_EXEC:
            raise rules.MMAP_NOEXEC(file.name)
        return kind != MAP_PRIVATE

    def munmap(self, address: int, length: int) -> None:
        with _Syscall(self):
            start, end = self._range(address, length)
            if address & (PAGE_SIZE - 1) or not length or end > TASK_SIZE_PAGES:
                raise rules.MUNMAP_RANGE(f"address {address:#x}, length {length:#x}")
            with self.mm.mmap_lock.exclusive:
                self.mm.unmap_region(start, end)

    def mprotect(self, address: int, length: int, prot: int) -> None:
        with _Syscall(self):
            if address & (PAGE_SIZE - 1):
                raise rules.MPROTECT_RANGE(f"address {address:#x}")
            with self.mm.mmap_lock.exclusive:
                self.mm.protect(*self._range(address, length), prot)

    def madvise(self, address: int, length: int, advice: int) -> None:
        """do_madvise(): what bears on guest_memfd is DONTNEED (drop the page tables) and COLLAPSE (refused)."""
        with _Syscall(self):
            if advice not in _ADVICE:
                raise rules.MADVISE_ADVICE(f"advice {advice}")
            if address & (PAGE_SIZE - 1) or length < 0:
                raise rules.MADVISE_RANGE(f"address {address:#x}, length {length:#x}")
            start, end = self._range(address, length)
            with self.mm.mmap_lock.shared:
                parts = self.mm.overlapping(start, end)
                for vma in parts:
                    self._advise(vma, max(vma.start, start), min(vma.end, end), advice)
                if sum(min(v.end, end) - max(v.start, start) for v in parts) != end - start:
                    raise rules.MADVISE_UNMAPPED(f"address {address:#x}, length {length:#x}")

    def _advise(self, vma: Vma, start: int, end: int, advice: int) -> None:
        if advice == MADV_COLLAPSE:
            raise rules.MADVISE_COLLAPSE(f"{vma}")
        if advice == MADV_DONTNEED:
            self.mm.zap_page_range(start, end)

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
        from ..hw.guest_cpu import GuestCpu

        file: Any = self.process.file(vcpu_fd)
        assert isinstance(file, VcpuFile)
        file.vcpu.cpu.load_guest(guest, GuestCpu(file.vcpu.cpu))
