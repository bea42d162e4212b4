# SPDX-License-Identifier: GPL-2.0-or-later
"""memfd_create files: ordinary shared memory, for what a VMM keeps outside guest_memfd."""

from __future__ import annotations

from ..hw.memory import PAGE_SHIFT, PAGE_SIZE
from ..rules import BusError
from ..rules import mm as rules
from .address_space import Vma
from .file import S_IFREG, File, Inode, page_range
from .filemap import Folio, PageCache
from .page import Memmap
from .swap import LruBatches

__all__ = ["ShmemFile"]


class ShmemFile(File):
    """A tmpfs file without a name."""

    name = "/memfd"
    noexec = False

    positioned = True

    def __init__(self, memmap: Memmap, lru: LruBatches, same: ShmemFile | None = None) -> None:
        self.cache: PageCache = same.cache if same else PageCache(memmap, lru, "shmem")
        self.cache.swap_backed = True
        super().__init__(same.inode if same else Inode(S_IFREG | 0o777, 0, self.cache))
        self.files: list[ShmemFile] = same.files if same else []
        """open files of the inode"""
        self.files.append(self)

    def mmap(self, vma: Vma) -> None:
        vma.mapping = self.cache

    def fault(self, vma: Vma, index: int, count: int, write: bool, address: int) -> Folio:
        """shmem_fault()."""
        pages = (self.inode.size + PAGE_SIZE - 1) >> PAGE_SHIFT
        if index >= pages:
            raise BusError(rules.BEYOND_EOF, address, f"file page {index:#x} of {pages:#x}")
        folio = self.cache.grab_folio(index, min(count, pages - index))
        self.cache.clear_folio(folio)
        return folio

    def fallocate(self, mode: int, offset: int, length: int) -> None:
        """shmem_fallocate(): allocate, or punch a hole."""
        if mode & ~3:
            raise rules.FALLOC_MODE(f"mode {mode:#x} on {self.name}")
        start, end = page_range(offset, length)
        if mode & 2:
            with self.cache.invalidate_lock.exclusive:
                self._zero(offset, offset + length)
                self.cache.truncate_range((offset + PAGE_SIZE - 1) >> PAGE_SHIFT, (offset + length) >> PAGE_SHIFT)
            return
        if not mode & 1:
            self.inode.size = max(self.inode.size, offset + length)
        while start < end:
            folio = self.cache.grab_folio(start, end - start)
            self.cache.clear_folio(folio)
            self.cache.unlock_folio(folio)
            self.cache.put_folio(folio)
            start += folio.count

    def _zero(self, start: int, end: int) -> None:
        """truncate_inode_partial_folio(): of pages that bytes [start, end) cover in part, that part becomes zero."""
        edges = {start >> PAGE_SHIFT, (end - 1) >> PAGE_SHIFT}
        for index in edges:
            first, last = max(start, index << PAGE_SHIFT), min(end, (index + 1) << PAGE_SHIFT)
            pfn = self.cache.pfn(index)
            if pfn is not None and 0 < last - first < PAGE_SIZE:
                self.cache.memmap.memory.kernel_write((pfn << PAGE_SHIFT) + first % PAGE_SIZE, bytes(last - first))

    def read(self, length: int) -> bytes:
        """shmem_file_read_iter() from the file's position."""
        data = self.pread(length, self.position)
        self.position += len(data)
        return data

    def write(self, data: bytes) -> int:
        """shmem_file_write_iter() at the file's position."""
        done = self.pwrite(data, self.position)
        self.position += done
        return done

    def pread(self, length: int, offset: int) -> bytes:
        """shmem_file_read_iter(): up to the end of the file; what was never written is zeroes, and stays unallocated."""
        parts: list[bytes] = []
        end = min(offset + length, self.inode.size)
        while offset < end:
            stop = min((offset >> PAGE_SHIFT) + 1 << PAGE_SHIFT, end)
            pfn = self.cache.pfn(offset >> PAGE_SHIFT)
            at = None if pfn is None else (pfn << PAGE_SHIFT) + offset % PAGE_SIZE
            parts.append(bytes(stop - offset) if at is None else self.cache.memmap.memory.kernel_read(at, stop - offset))
            offset = stop
        return b"".join(parts)

    def pwrite(self, data: bytes, offset: int) -> int:
        """shmem_file_write_iter(): allocates pages, and makes the file longer."""
        done = 0
        while done < len(data):
            at = offset + done
            piece = data[done : done + PAGE_SIZE - at % PAGE_SIZE]
            folio = self.cache.grab_folio(at >> PAGE_SHIFT)
            self.cache.clear_folio(folio)
            self.cache.memmap.memory.kernel_write((folio.pfn << PAGE_SHIFT) + at % PAGE_SIZE, piece)
            self.inode.size = max(self.inode.size, at + len(piece))
            self.cache.unlock_folio(folio)
            self.cache.put_folio(folio)
            done += len(piece)
        return done

    def splice_read(self, position: int, length: int) -> tuple[int, int, int] | None:
        """shmem_file_splice_read(): the file's own page, or the zero page for a hole."""
        if position >= self.inode.size:
            return None
        offset = position % PAGE_SIZE
        pfn = self.cache.pfn(position >> PAGE_SHIFT)
        pfn = self.cache.memmap.zero_pfn if pfn is None else pfn
        self.cache.memmap.get(pfn)
        return pfn, offset, min(length, PAGE_SIZE - offset, self.inode.size - position)

    def check_splice_write(self) -> None:
        """iter_file_splice_write()."""

    def truncate(self, size: int) -> None:
        """shmem_setattr()."""
        if size < self.inode.size:
            self._zero(size, (size + PAGE_SIZE - 1) & -PAGE_SIZE)
            self.cache.truncate_range((size + PAGE_SIZE - 1) >> PAGE_SHIFT, 1 << 51)
        self.inode.size = size

    def fsync(self) -> None:
        """noop_fsync()."""

    def release(self) -> None:
        """The last open file of the inode is gone."""
        self.files.remove(self)
        if not self.files:
            self.cache.truncate_range(0, 1 << 51)

    def reopen(self) -> ShmemFile:
        """open() by /proc/self/fd: the same inode, another position."""
        return ShmemFile(self.cache.memmap, self.cache.lru, self)
