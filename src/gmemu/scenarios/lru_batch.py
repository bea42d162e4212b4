# SPDX-License-Identifier: GPL-2.0-or-later
"""A page that waits in an LRU batch."""

from __future__ import annotations

from ..explore.verdict import Kind
from ..syscalls.emulated import EmulatedDoor
from .worlds import OnePage

__all__ = ["LruBatch"]


class LruBatch(OnePage):
    """The host wrote the page a moment ago on another CPU: a reference waits in that CPU's batch, and nobody uses it."""

    number = 6
    name = "lru-batch"
    question = "Does a page that nobody uses look used because it waits in an LRU batch?"
    source = "guest-memfd S08"
    broken_by = {"no-lru-drain": Kind.ASSERTION}

    def tasks(self) -> None:
        writer = EmulatedDoor(self.host).thread("writer", cpu=1)
        writer.store(self.memory.address, b"x")
        self.task("convert", self.convert)

    def holds(self) -> None:
        assert self.seen["convert"] == "converted", (
            f"conversion failed with {self.seen['convert']}, and nobody holds the page"
        )
