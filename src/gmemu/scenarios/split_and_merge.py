# SPDX-License-Identifier: GPL-2.0-or-later
"""A large folio is split for its first shared page, and merged again, while somebody holds a page of it."""

from __future__ import annotations

from collections.abc import Callable

from ..explore.verdict import Kind
from ..rules import BusError, KernelError
from .worlds import PAGE, PRIVATE, OneFolio

__all__ = ["SplitAgainstMemoryError", "SplitAndMerge"]

SPLIT_BUSY = "gmem.convert.split-busy"


class _ThereAndBack(OneFolio):
    """Page 1 becomes shared, is written by the host, and becomes private again."""

    def tasks(self) -> None:
        self.gmem.allocate(0, self.pages * PAGE)
        steps = (lambda: self.share(1), self.write, lambda: self.convert(1))
        self.task("vmm", lambda: ", then ".join(self.attempt(step) for step in steps))
        self.hold()

    def hold(self) -> None:
        """Add the task that holds page 0."""
        raise NotImplementedError

    def attempt(self, step: Callable[[], str]) -> str:
        """What a step comes to, or why it failed."""
        try:
            return step()
        except (KernelError, BusError) as error:
            return error.rule.id

    def write(self) -> str:
        """The host's store to page 1."""
        self.memory[PAGE] = 1
        return "written"

    def holds(self) -> None:
        vmm = self.seen["vmm"]
        if vmm == "shared, then written, then converted":
            assert self.is_large, "all of it is private, and it wasn't merged"
        elif vmm == f"shared, then written, then {SPLIT_BUSY}":
            assert not self.is_large, "it couldn't be merged, and is in one piece"
        else:
            assert vmm == f"{SPLIT_BUSY}, then {PRIVATE}, then converted", f"no outcome that may be: {vmm}"
            assert self.is_large, "it couldn't be split, and isn't in one piece"


class SplitAndMerge(_ThereAndBack):
    """Somebody who walks page frames (compaction, page idle tracking) takes a speculative reference and drops it again.

    Waiting for it does no harm here, as whoever holds it comes to his end by himself.
    """

    number = 31
    name = "split-and-merge"
    question = "Is a large folio split or merged under somebody who holds a speculative reference?"
    source = "guest-memfd S30, 3.6; discussion B"
    broken_by = {"split-without-freeze": Kind.ASSERTION, "split-keeps-attributes": Kind.ASSERTION}
    holds_with = ("split-spins",)

    def hold(self) -> None:
        pfn = self.pfn()
        self.task("walker", lambda: self.look(pfn))

    def look(self, pfn: int) -> str:
        """folio_try_get(), a look at the folio, folio_put()."""
        self.host.memmap.get(pfn)
        before = self.is_large
        self.host.memmap.put(pfn)
        assert self.is_large == before, "the folio that was let go of isn't the one that was taken"
        return "looked"


class SplitAgainstMemoryError(_ThereAndBack):
    """memory_failure() has a reference, and then asks the file, which takes the invalidate lock: the conversion has that."""

    number = 31
    name = "split-hwpoison"
    question = "Does a conversion that finds a large folio held come to an end?"
    source = "guest-memfd S30, 3.6, 3.7"
    broken_by = {"split-spins": Kind.LIVELOCK}

    def hold(self) -> None:
        pfn = self.pfn()
        self.task("error", lambda: self.host.memory_failure(pfn))
