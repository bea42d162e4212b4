# SPDX-License-Identifier: GPL-2.0-or-later
"""A device has memory mapped that the VMM discards and gets back."""

from __future__ import annotations

from ..explore.verdict import Kind
from ..mm.gup import get_user_pages_fast
from ..uapi.mman import FOLL_LONGTERM, FOLL_PIN, FOLL_WRITE
from .worlds import PAGE, OnePage

__all__ = ["VfioMap"]


class VfioMap(OnePage):
    """The page is shared, becomes private, is discarded, becomes shared again: another page by then.  A device does DMA."""

    number = 27
    name = "vfio-map"
    question = "Can a device go on using a page that was discarded?"
    source = "discussion A; guest-memfd S10"
    broken_by = {"vfio-map-kept": Kind.ASSERTION}

    def tasks(self) -> None:
        self.memory[0] = 1
        self.host.lru.lru_add_drain_all()
        self.iommu: int | None = None
        self.map()
        self.task("vmm", self.cycle)
        self.task("dma", self.dma)

    def map(self) -> None:
        """VFIO_IOMMU_MAP_DMA: pin the page, and let the device have it."""
        if self.iommu is None:
            flags = FOLL_PIN | FOLL_LONGTERM | FOLL_WRITE
            [(pfn, _)] = get_user_pages_fast(self.host.init.mm, self.memory.address, 1, flags)
            self.runtime.writes(("iommu", self))
            self.iommu = pfn

    def unmap(self) -> None:
        """VFIO_IOMMU_UNMAP_DMA."""
        self.runtime.writes(("iommu", self))
        if self.iommu is not None:
            pfn, self.iommu = self.iommu, None
            self.host.memmap.unpin(pfn)

    def cycle(self) -> str:
        """Discard, private, shared, and the device may use it again."""
        self.user_space.before_discard(self.unmap)
        self.gmem.punch_hole(0, PAGE)
        self.convert()
        self.share()
        self.map()
        return "shared"

    def dma(self) -> str:
        """The device writes where its map leads."""
        self.runtime.writes(("iommu", self))
        if self.iommu is None:
            return "refused"
        self.host.memory.write(self.iommu * PAGE, b"\2")
        return "written"

    def release(self) -> None:
        self.unmap()

    def holds(self) -> None:
        assert self.seen["vmm"] == "shared"
        assert self.iommu == self.inode.mapping.pfn(0), "the device's map leads to a page that the guest doesn't have"
