# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest is rebooted: its memory has to be private again before it begins."""

from __future__ import annotations

from ..explore.verdict import Kind
from .worlds import BUSY, OnePage

__all__ = ["Reboot"]


class Reboot(OnePage):
    """The VMM takes the memslots away, resets the memory to private, and binds it again; the host touches its mapping."""

    number = 25
    name = "reboot"
    question = "Can memory be reset to private while no memslot is bound?"
    source = "discussion A; guest-memfd 3.4"
    broken_by = {"convert-in-vcpu-run": Kind.ASSERTION, "convert-in-vcpu-run-refuse": Kind.ASSERTION}
    holds_with = ("refcount-wait", "refcount-third-state")

    def tasks(self) -> None:
        self.memory[0] = 1
        self.host.lru.lru_add_drain_all()
        self.task("reset", self.reset)
        self.task("touch", lambda: self.memory[0])

    def reset(self) -> str:
        """Unbind, convert, bind."""
        self.vm.delete_slot(0)
        done = self.convert()
        self.bind()
        return done

    def holds(self) -> None:
        assert self.seen["reset"] in ("converted", "pending", BUSY), f"the memory can't be reset: {self.seen['reset']}"
