# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest_memfd inode: the memory itself, its creation flags, and which of its pages are private."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from ...hw.memory import PAGE_SHIFT
from ...mm.file import S_IFREG, Inode, Stat
from ...mm.filemap import Folio, PageCache
from ...rangemap import RangeMap
from ...uapi.kvm import KVM_MEMORY_ATTRIBUTE_PRIVATE
from .invalidate import invalidate_end, invalidate_start

if TYPE_CHECKING:
    from ..host import Host
    from .file import GmemFile

__all__ = ["ATTRIBUTE_PENDING", "LAST_INDEX", "GmemInode"]

LAST_INDEX = 1 << 52
"""One past any file page that an offset can name: a slot bound by kernels that don't see S17 can lie beyond the file."""


ATTRIBUTE_PENDING = 1 << 62
"""Neither shared nor private: only designs with a third state store it (D2)."""


def check_creation(size: int, flags: int) -> None:
    """Memory of 4 KiB folios may have any size that is a multiple of that."""


class GmemInode(Inode):
    """struct gmem_inode.  `attributes` covers every page of the file, in merged runs: 0 shared, 8 private."""

    mapping: PageCache

    def __init__(self, host: Host, size: int, flags: int) -> None:
        super().__init__(S_IFREG | 0o600, size, host.new_page_cache("gmem", size >> PAGE_SHIFT))
        self.host, self.flags = host, flags
        self.mapping.free_folio = host.gmem_reclaim
        self.mapping.error_remove_folio = self.error_folio
        self.lookup_lock: AbstractContextManager[None] = nullcontext()
        """what a fault holds while it looks a page up: only where attributes can change is there anything to hold"""
        if host.profile.in_place:
            self.lookup_lock = self.mapping.invalidate_lock.shared
        self.nr_pages = size >> PAGE_SHIFT
        self.attributes: RangeMap[int] = RangeMap()
        self.attributes.set(0, self.nr_pages, 0 if self.init_shared else KVM_MEMORY_ATTRIBUTE_PRIVATE)
        self.files: list[GmemFile] = []
        host.gmem_inodes.add(self)

    def locked_for_lookup(self, index: int) -> AbstractContextManager[None]:
        """What a guest's fault holds while it looks a page up: the same as the host's."""
        return self.lookup_lock

    @property
    def init_shared(self) -> bool:
        """It was created so that the host may touch it at first."""
        return self.host.profile.starts_shared(self.flags)

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

    def punch(self, start: int, end: int) -> None:
        """File pages [start, end) lose their memory; the invalidate lock is held for writing."""
        self.mapping.truncate_range(start, end)

    def stat(self) -> Stat:
        """fstat(): some kernels don't tell what is allocated."""
        stat = super().stat()
        return stat if self.host.profile.fallocate_counts_blocks else stat._replace(blocks=0)

    def error_folio(self, index: int) -> bool:
        """kvm_gmem_error_folio(): the memory at file page `index` is bad.  Guests lose it and find out at their next access;
        nothing is freed.  It's MF_DELAYED, which memory_failure() doesn't take for recovery: False.
        """
        with self.mapping.invalidate_lock.shared:
            invalidate_start(self.files, index, index + 1, self.host.design.filter_for_removal(self))
            invalidate_end(self.files, index, index + 1)
        return False

    def evict(self) -> None:
        """The last file and the last mapping are gone: so is the memory."""
        self.mapping.truncate_range(0, LAST_INDEX)
