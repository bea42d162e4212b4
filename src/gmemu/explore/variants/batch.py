# SPDX-License-Identifier: GPL-2.0-or-later
"""Population by batches of pinned source pages, as proposed in November 2025 (discussion C), and what review found in it.

A source need not be aligned there: each target page takes the tail of one source page and the head of the next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...hw.memory import PAGE_SHIFT, PAGE_SIZE
from ...kvm.guest_memfd.populate import Source, _find, _populate_run
from ...mm.file import fput
from ...mm.gup import get_user_pages_fast, put_pages
from ...uapi.mman import FOLL_WRITE
from .variant import Variant

if TYPE_CHECKING:
    from ...hw.memory import PhysicalMemory
    from ...kvm.guest_memfd.populate import PopulateCallback
    from ...kvm.vm import Vm
    from ...mm.address_space import AddressSpace
    from ...rules import KernelError

__all__ = ["VARIANTS"]


class _Batch:
    """Pin, then load page by page through a page of its own; `frames` are the source's page frames, `at` which of them a
    target page begins in, `offset` where (bytes)."""

    limit = 512
    """source pages that are pinned at once"""

    def __call__(self, vm: Vm, gfn: int, source: int, npages: int, writeback: bool, post_populate: PopulateCallback) -> int:
        slot, file, npages = _find(vm, gfn, npages)
        mm, offset = vm.rt.current.mm, source & PAGE_SIZE - 1
        wanted = npages + bool(offset)
        done, error = 0, None
        try:
            pinned = get_user_pages_fast(mm, source - offset, min(wanted, self.limit), FOLL_WRITE if writeback else 0)
            frames = [pfn for start, count in pinned for pfn in range(start, start + count)]
            while done < npages and error is None:
                [(bounce, _)] = vm.host.memmap.alloc(1)
                vm.host.memory.write(bounce << PAGE_SHIFT, self.gather(vm.host.memory, frames, done, offset))
                n, error = _populate_run(vm, slot, file, gfn + done, 1, Source(bounce), post_populate)
                if error is not None and writeback:
                    self.scatter(vm.host.memory, bounce, frames, done, offset)
                vm.host.memmap.put(bounce)
                done += n
            self.release(mm, pinned, error)
        finally:
            fput(vm.rt, file)
        if error is not None and not done:
            raise error
        return done

    def gather(self, memory: PhysicalMemory, frames: list[int], at: int, offset: int) -> bytes:
        """The bytes for one target page."""
        head = memory.read(_address(frames, at) + offset, PAGE_SIZE - offset)
        return head + (memory.read(_address(frames, at + 1), offset) if offset else b"")

    def scatter(self, memory: PhysicalMemory, bounce: int, frames: list[int], at: int, offset: int) -> None:
        """A page that the firmware corrected goes back to where it came from."""
        page = memory.read(bounce << PAGE_SHIFT, PAGE_SIZE)
        memory.write(_address(frames, at) + offset, page[: PAGE_SIZE - offset])
        if offset:
            memory.write(_address(frames, at + 1), page[PAGE_SIZE - offset :])

    def release(self, mm: AddressSpace, pinned: list[tuple[int, int]], error: KernelError | None) -> None:
        """Let go of the source."""
        put_pages(mm, pinned)


def _address(frames: list[int], at: int) -> int:
    """Where source page `at` is; past the batch, what C would find there: the memory behind the last page."""
    return (frames[at] if at < len(frames) else frames[-1] + at - len(frames) + 1) << PAGE_SHIFT


class _OnePage(_Batch):
    """What isn't in the first source page is taken from the memory behind it."""

    def gather(self, memory: PhysicalMemory, frames: list[int], at: int, offset: int) -> bytes:
        return memory.read(_address(frames, at) + offset, PAGE_SIZE)


class _HeadBack(_Batch):
    """Only the first source page gets the correction."""

    def scatter(self, memory: PhysicalMemory, bounce: int, frames: list[int], at: int, offset: int) -> None:
        head = memory.read(bounce << PAGE_SHIFT, PAGE_SIZE - offset)
        memory.write(_address(frames, at) + offset, head)


class _Short(_Batch):
    """A batch is shorter than what is loaded of it, as 512 pages are against a folio of 1 GiB.  Here it's two pages."""

    limit = 2


class _Leaky(_Batch):
    """On an error the pins are forgotten."""

    def release(self, mm: AddressSpace, pinned: list[tuple[int, int]], error: KernelError | None) -> None:
        if error is None:
            put_pages(mm, pinned)


_REVIEW = "discussion C, review of November 2025"

VARIANTS = (
    Variant(
        "populate-gup-batch",
        "populate pins a batch of source pages, aligned or not, before it takes the lock",
        "discussion C; superseded by one aligned page at a time",
        lambda d: d._replace(populate=_Batch()),
    ),
    Variant(
        "populate-one-source-page",
        "an unaligned source is read from its first page on, whatever comes behind that in memory",
        _REVIEW,
        lambda d: d._replace(populate=_OnePage()),
    ),
    Variant(
        "populate-writes-back-head",
        "a corrected CPUID page is written back to the first of its two source pages only",
        _REVIEW,
        lambda d: d._replace(populate=_HeadBack()),
    ),
    Variant(
        "populate-batch-too-short",
        "more is loaded than the batch of source pages holds",
        f"{_REVIEW}: 512 pages against folios of 1 GiB",
        lambda d: d._replace(populate=_Short()),
    ),
    Variant(
        "populate-leaks-pins",
        "populate returns an error without letting go of its source",
        _REVIEW,
        lambda d: d._replace(populate=_Leaky()),
    ),
)
