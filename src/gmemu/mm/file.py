# SPDX-License-Identifier: GPL-2.0-or-later
"""struct file and struct inode: what every file descriptor leads to, and what files refuse unless they know better."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..hw.memory import PAGE_SHIFT, PAGE_SIZE
from ..rangemap import RangeMap
from ..rules import mm as rules
from .filemap import Folio, PageCache

if TYPE_CHECKING:
    from ..sync import Runtime
    from .address_space import Vma
    from .uaccess import UserPointer

__all__ = ["FALLOC_MODES", "File", "Inode", "Stat", "fput", "vfs_fallocate"]

S_IFREG = 0o100000
FALLOC_MODES = 0xFB
S_IFIFO = 0o010000


class Stat(NamedTuple):
    """What fstat() tells: sizes in bytes, blocks of 512 bytes."""

    ino: int
    mode: int
    size: int
    blksize: int
    blocks: int


class Inode:
    """An inode without a file system behind it."""

    _next_ino = 1000

    def __init__(self, mode: int, size: int = 0, mapping: PageCache | None = None) -> None:
        Inode._next_ino += 1
        self.ino, self.mode, self.size, self.mapping = Inode._next_ino, mode, size, mapping

    def stat(self) -> Stat:
        """generic_fillattr()."""
        blocks = self.mapping.nrpages * (PAGE_SIZE // 512) if self.mapping else 0
        return Stat(self.ino, self.mode, self.size, PAGE_SIZE, blocks)


class File:
    """An open file.  `count` references hold it; the last `fput` releases it."""

    name = "anon_inode"
    noexec = True
    """On a mount that refuses PROT_EXEC."""
    gate: RangeMap[int] | None = None
    """file page -> not 0 if processes may not touch it now, for files that refuse some of their pages"""
    can_read = can_write = True
    """FMODE_READ, FMODE_WRITE."""
    positioned = False
    """FMODE_PREAD and FMODE_PWRITE: calls may say where."""
    position = 0
    """f_pos (bytes)."""

    def __init__(self, inode: Inode) -> None:
        self.inode = inode
        self.count = 1

    def get(self) -> File:
        """get_file()."""
        self.count += 1
        return self

    def get_active(self) -> bool:
        """get_file_active(): take a reference unless the file is being closed."""
        if self.count == 0:
            return False
        self.count += 1
        return True

    def put(self) -> None:
        """__fput_sync(): the last reference releases the file, at once.  For who holds no lock (see `fput`)."""
        self.count -= 1
        if self.count == 0:
            self.release()

    def release(self) -> None:
        """f_op->release()."""

    def ioctl(self, request: int, arg: UserPointer) -> int:
        """f_op->unlocked_ioctl()."""
        raise rules.NOT_AN_IOCTL(f"{request:#x} on {self.name}")

    def mmap(self, vma: Vma) -> None:
        """f_op->mmap(): may refuse, and may set `vma.mapping`."""
        raise rules.MMAP_UNSUPPORTED(self.name)

    @property
    def can_mmap(self) -> bool:
        """can_mmap_file(): the file has an f_op->mmap, which may still refuse."""
        return type(self).mmap is not File.mmap

    def fault(self, vma: Vma, index: int, count: int, write: bool, address: int) -> Folio:
        """vm_ops->fault() for `count` pages from file page `index`: locked folios with a reference.  May give fewer.

        Raises `MemoryFault` for `address` (a user address, bytes).
        """
        raise rules.MMAP_UNSUPPORTED(self.name)

    def fallocate(self, mode: int, offset: int, length: int) -> None:
        """f_op->fallocate()."""
        raise rules.FALLOC_NONE(self.name)

    def read(self, length: int) -> bytes:
        """f_op->read_iter()."""
        raise rules.NO_READ(f"read of {self.name}")

    def write(self, data: bytes) -> int:
        """f_op->write_iter()."""
        raise rules.NO_READ(f"write to {self.name}")

    def pread(self, length: int, offset: int) -> bytes:
        """pread64()."""
        raise rules.NO_SEEK(f"pread of {self.name}")

    def pwrite(self, data: bytes, offset: int) -> int:
        """pwrite64()."""
        raise rules.NO_SEEK(f"pwrite to {self.name}")

    def splice_read(self, position: int, length: int) -> tuple[int, int, int] | None:
        """f_op->splice_read(), one page of it: (pfn, offset, length) of bytes from `position` on, with a reference that the
        caller takes over.  None at the end of the file."""
        raise rules.NO_SPLICE(f"from {self.name}")

    def check_splice_write(self) -> None:
        """Whether there's an f_op->splice_write(), which is `pwrite` for who has one."""
        raise rules.NO_SPLICE(f"to {self.name}")

    def truncate(self, size: int) -> None:
        """ftruncate()."""
        raise rules.NO_TRUNCATE(f"ftruncate of {self.name}")

    def fsync(self) -> None:
        """fsync()."""
        raise rules.NO_FSYNC(f"fsync of {self.name}")

    def stat(self) -> Stat:
        """fstat()."""
        return self.inode.stat()


def fput(rt: Runtime, file: File) -> None:
    """fput(): drop a reference.  If it's the last, the file is released when the task leaves the kernel, without a lock."""
    rt.writes(("file-count", file))
    file.count -= 1
    if file.count == 0:
        rt.current.work.append(file.release)


def vfs_fallocate(file: File, mode: int, offset: int, length: int, known: int = FALLOC_MODES) -> None:
    """fs/open.c: vfs_fallocate(), its checks in its order, then the file's own.  `known`: mode bits that the kernel has."""
    keep_size, punch, collapse, zero, insert, unshare, write_zeroes = (1 << bit for bit in (0, 1, 3, 4, 5, 6, 7))
    if offset < 0 or length <= 0:
        raise rules.FALLOC_RANGE(f"offset {offset:#x}, length {length:#x}")
    kind = mode & ~keep_size
    if (
        mode & ~known
        or kind not in (0, punch, collapse, zero, insert, unshare, write_zeroes)
        or (kind == punch and not mode & keep_size)
        or (kind in (collapse, insert, write_zeroes) and mode & keep_size)
    ):
        raise rules.FALLOC_MODE(f"mode {mode:#x}")
    if not file.can_write:
        raise rules.FILE_MODE(f"fallocate of {file.name}")
    if file.inode.mode & 0o170000 == S_IFIFO:
        raise rules.FALLOC_PIPE(file.name)
    if file.inode.mode & 0o170000 != S_IFREG:
        raise rules.FALLOC_TYPE(file.name)
    if offset + length > (1 << 63) - 1:
        raise rules.FALLOC_LIMIT(f"offset {offset:#x}, length {length:#x}")
    file.fallocate(mode, offset, length)


def page_range(offset: int, length: int) -> tuple[int, int]:
    """The file pages that [offset, offset + length) bytes cover: first, and one past the last."""
    return offset >> PAGE_SHIFT, (offset + length + PAGE_SIZE - 1) >> PAGE_SHIFT
