# SPDX-License-Identifier: GPL-2.0-or-later
"""A VMM that tries again while a driver pins the page again."""

from __future__ import annotations

from ..api import ConversionRefused
from ..explore.verdict import Kind
from ..mm.gup import get_user_pages_fast
from ..rules import KernelError
from ..uapi.mman import FOLL_PIN
from .worlds import PAGE, OnePage

__all__ = ["PinRetry"]


class PinRetry(OnePage):
    """Asynchronous I/O to a page: the next request has it pinned before the last one lets go of it."""

    number = 8
    name = "pin-retry"
    question = "Does a VMM whose conversion is refused ever get through?"
    source = "guest-memfd S10; discussion A; D2"
    broken_by = {"vmm-retries-blindly": Kind.LIVELOCK, "refcount-wait": Kind.LIVELOCK}
    holds_with = ("refcount-third-state", "vmm-retries-blindly+refcount-third-state")

    def tasks(self) -> None:
        self.memory[0] = 1
        self.host.lru.lru_add_drain_all()
        self.stopping = False
        self.tries = 0
        self.pin()
        self.task("vmm", self.convert_when_free)
        self.task("driver", self.io)

    def pin(self) -> int:
        """pin_user_pages_fast(): the page frame."""
        [(pfn, _)] = get_user_pages_fast(self.host.init.mm, self.memory.address, 1, FOLL_PIN)
        return pfn

    def convert_when_free(self) -> str:
        """The conversion, until it isn't refused: how often it was."""
        while not self.convert_once():
            self.user_space.on_busy(self.stop)
            self.runtime.retry()
        return f"converted, {self.tries - 1} refusals"

    def convert_once(self) -> bool:
        """One try; whether it wasn't refused."""
        try:
            self.gmem.make_private(0, PAGE)
            return True
        except ConversionRefused:
            return False
        finally:
            self.runtime.writes(("driver", self))
            self.tries += 1

    def stop(self) -> None:
        """Tell the driver to begin nothing new."""
        self.runtime.writes(("driver", self))
        self.stopping = True

    def io(self) -> str:
        """One request after the other, until told to stop; one ends after each try of the VMM's."""
        pfn, ended = self.pfn(), 0
        while True:
            self.runtime.reads(("driver", self))
            if self.stopping:
                self.let_go(pfn)
                return "stopped"
            if ended < self.tries:
                try:
                    again, ended = self.pin(), self.tries
                except KernelError:
                    self.let_go(pfn)
                    return "refused"
                self.let_go(pfn)
                pfn = again
            self.runtime.retry()

    def holds(self) -> None:
        assert str(self.seen["vmm"]).startswith("converted")
        assert self.seen["driver"] in ("stopped", "refused")
        assert self.inode.private_run(0, 1) == 1, "the page never became private"
