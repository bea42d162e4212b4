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

    def __init__(self, memmap: Memmap, lru: LruBatches) -> None:
        self.cache = PageCache(memmap, lru, "shmem")
        super().__init__(Inode(S_IFREG | 0o777, 0, self.cache))

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

    def truncate(self, size: int) -> None:
        """shmem_setattr()."""
        if size < self.inode.size:
            self.cache.truncate_range((size + PAGE_SIZE - 1) >> PAGE_SHIFT, 1 << 51)
        self.inode.size = size

    def release(self) -> None:
        self.cache.truncate_range(0, 1 << 51)
