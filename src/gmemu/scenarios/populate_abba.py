# SPDX-License-Identifier: GPL-2.0-or-later
"""Populate whose source is guest_memfd memory, against a host fault and a writer of mmap_lock."""

from __future__ import annotations

from ..explore.verdict import Kind
from .worlds import PAGE, SnpLaunch

__all__ = ["PopulateAgainstHostFault"]


class PopulateAgainstHostFault(SnpLaunch):
    """The source is guest_memfd memory itself: its fault takes mmap_lock, then the invalidate lock."""

    number = 1
    name = "populate-abba"
    question = "Can populate, a host fault and an mmap writer wait for each other for ever?"
    source = "guest-memfd S01; discussion C"
    broken_by = {"populate-gup-under-lock": Kind.DEADLOCK}

    def tasks(self) -> None:
        self.convert(0)
        self.task("populate", lambda: self.populate(0, self.memory.address + PAGE))
        self.task("fault", lambda: self.memory[PAGE])
        self.task("protect", lambda: self.kvm.door.mprotect(self.memory.address, PAGE, 3))

    def holds(self) -> None:
        assert self.seen["populate"] == "populated"
