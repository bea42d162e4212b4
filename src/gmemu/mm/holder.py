# SPDX-License-Identifier: GPL-2.0-or-later
"""Who keeps pages for longer than a call: a driver that pins them, a pipe that they were spliced into.

Nobody in a kernel needs to know that; whoever is told EAGAIN because of a reference wants to.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat

from ..hw.memory import PAGE_SHIFT, PAGE_SIZE
from ..rules import KernelError
from ..uapi.mman import FOLL_PIN, GUP_PIN_COUNTING_BIAS
from .address_space import AddressSpace
from .gup import get_user_pages_fast
from .page import Memmap

__all__ = ["PageHolder"]


class PageHolder:
    """References to pages, in order, until they are let go.  `name` is for people."""

    readable = False
    """somebody will ask for what is in the pages"""

    def __init__(self, memmap: Memmap, name: str, flags: int = 0) -> None:
        self.name, self._memmap, self.flags = name, memmap, flags
        self.runs: list[tuple[int, int, bytes | None]] = []
        """(pfn, pages, contents): contents are those of pages that lost their frame (see `lose`)"""
        memmap.holders.add(self)

    @property
    def pins(self) -> bool:
        """Whether each page has a pin (FOLL_PIN), and not just a reference."""
        return bool(self.flags & FOLL_PIN)

    def __len__(self) -> int:
        return sum(count for _, count, _ in self.runs)

    def hold(self, mm: AddressSpace, address: int, count: int) -> None:
        """Take `count` pages from user `address` (page aligned, bytes), all or none.  Raises as `get_user_pages_fast`."""
        self.runs += [(pfn, have, None) for pfn, have in get_user_pages_fast(mm, address, count, self.flags)]

    def hold_what_can_be(self, mm: AddressSpace, address: int, count: int) -> bool:
        """As `hold`, page by page, up to the first that can't be had: whether all could."""
        try:
            for page in range(count):
                self.hold(mm, address + page * PAGE_SIZE, 1)
        except KernelError:
            return False
        return True

    def holds(self, pfn: int) -> bool:
        """Whether it has a reference to page frame `pfn`."""
        return any(first <= pfn < first + count and data is None for first, count, data in self.runs)

    def references(self) -> Iterator[int]:
        """Page frames, each as often as it has references to it."""
        for pfn, count, data in self.runs:
            if data is None:
                for page in range(pfn, pfn + count):
                    yield from repeat(page, self._by)

    def release(self, first: int = 0) -> None:
        """Let go of all pages, or those from the `first`-th on."""
        kept = self._split(first)
        for pfn, count, data in self.runs[kept:]:
            if data is None:
                self._memmap.put(pfn, count, self._by)
        del self.runs[kept:]

    def release_before(self, first: int) -> None:
        """Let go of the first so many pages."""
        gone, self.runs = self.runs[: (at := self._split(first))], self.runs[at:]
        for pfn, count, data in gone:
            if data is None:
                self._memmap.put(pfn, count, self._by)

    def lose(self, start: int, end: int) -> None:
        """Page frames [start, end) will be other pages from here on: they are let go, and what they hold is kept beside if
        somebody will ask for it."""
        runs: list[tuple[int, int, bytes | None]] = []
        for pfn, count, data in self.runs:
            first, last = max(pfn, start), min(pfn + count, end)
            if data is not None or first >= last:
                runs.append((pfn, count, data))
                continue
            if pfn < first:
                runs.append((pfn, first - pfn, None))
            runs.append((first, last - first, self._read(first, last - first) if self.readable else b""))
            if last < pfn + count:
                runs.append((last, pfn + count - last, None))
            self._memmap.put(first, last - first, self._by)
        self.runs = runs

    def contents(self) -> list[bytes]:
        """Each page's bytes."""
        pages = []
        for pfn, count, data in self.runs:
            whole = self._read(pfn, count) if data is None else data
            pages += [whole[at : at + PAGE_SIZE] for at in range(0, len(whole), PAGE_SIZE)]
        return pages

    def _read(self, pfn: int, count: int) -> bytes:
        return self._memmap.memory.kernel_read(pfn << PAGE_SHIFT, count << PAGE_SHIFT)

    @property
    def _by(self) -> int:
        return GUP_PIN_COUNTING_BIAS if self.pins else 1

    def _split(self, page: int) -> int:
        """Make the `page`-th begin a run: which."""
        for i, (pfn, count, data) in enumerate(self.runs):
            if page <= 0:
                return i
            if page < count:
                cut = page << PAGE_SHIFT
                self.runs[i : i + 1] = [
                    (pfn, page, data and data[:cut]),
                    (pfn + page, count - page, data and data[cut:]),
                ]
                return i + 1
            page -= count
        return len(self.runs)
