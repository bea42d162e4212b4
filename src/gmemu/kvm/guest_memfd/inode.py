# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest_memfd inode: the memory itself, its creation flags, and which of its pages are private."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...hw.memory import PAGE_SHIFT
from ...mm.file import S_IFREG, Inode, Stat
from ...mm.filemap import Folio, PageCache
from ...rangemap import RangeMap
from ...uapi.kvm import GUEST_MEMFD_FLAG_INIT_SHARED, KVM_MEMORY_ATTRIBUTE_PRIVATE

if TYPE_CHECKING:
    from ..host import Host
    from .file import GmemFile

__all__ = ["GmemInode"]


class GmemInode(Inode):
    """struct gmem_inode.  `attributes` covers every page of the file, in merged runs: 0 shared, 8 private."""

    mapping: PageCache

    def __init__(self, host: Host, size: int, flags: int) -> None:
        super().__init__(S_IFREG | 0o600, size, PageCache(host.memmap, host.lru, "gmem"))
        self.host, self.flags = host, flags
        self.mapping.free_folio = host.gmem_reclaim
        self.nr_pages = size >> PAGE_SHIFT
        self.attributes: RangeMap[int] = RangeMap()
        self.attributes.set(0, self.nr_pages, 0 if self.init_shared else KVM_MEMORY_ATTRIBUTE_PRIVATE)
        self.files: list[GmemFile] = []
        host.gmem_inodes.add(self)

    @property
    def init_shared(self) -> bool:
        """Created with GUEST_MEMFD_FLAG_INIT_SHARED."""
        return bool(self.flags & GUEST_MEMFD_FLAG_INIT_SHARED)

    def private_run(self, index: int, count: int) -> int:
        """How many of the `count` pages from `index` are private in a row (kvm_gmem_is_private_mem)."""
        self.host.rt.reads(("attribute", self, index))
        _, end, value = self.attributes.run(index)
        return min(end - index, count) if value == KVM_MEMORY_ATTRIBUTE_PRIVATE else 0

    def shared_run(self, index: int, count: int) -> int:
        """How many of the `count` pages from `index` are shared in a row (kvm_gmem_is_shared_mem)."""
        self.host.rt.reads(("attribute", self, index))
        _, end, value = self.attributes.run(index)
        return min(end - index, count) if value == 0 else 0

    def grab_folio(self, index: int, count: int = 1) -> Folio:
        """kvm_gmem_get_folio(): the folio at `index`, made if need be; locked, with a reference."""
        return self.mapping.grab_folio(index, count)

    def stat(self) -> Stat:
        """fstat(): some kernels don't tell what is allocated."""
        stat = super().stat()
        return stat if self.host.profile.fallocate_counts_blocks else stat._replace(blocks=0)

    def evict(self) -> None:
        """The last file and the last mapping are gone: so is the memory."""
        self.mapping.truncate_range(0, self.nr_pages)
