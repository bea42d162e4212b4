# SPDX-License-Identifier: GPL-2.0-or-later
"""A hole is punched where a trusted entity has the page."""

from __future__ import annotations

from ..explore.verdict import Kind
from .worlds import PAGE, RealmLaunch, TdxLaunch

__all__ = ["PunchGranule", "PunchPrivate"]


class PunchPrivate(TdxLaunch):
    """The file began shared; its page became private and is in the secure EPT.  Somebody allocates when it's gone."""

    number = 15
    name = "punch-private"
    question = "Is a page taken from its guest before its memory goes to somebody else?"
    source = "guest-memfd S22"
    broken_by = {"filter-from-create-flag": Kind.INVARIANT}

    def tasks(self) -> None:
        self.memory[0] = 1
        self.convert(0)
        self.populate(0)
        self.task("punch", lambda: self.gmem.punch_hole(0, PAGE))
        self.task("touch", lambda: self.memory[PAGE])

    def holds(self) -> None:
        assert self.seen == {"punch": None, "touch": 0}


class PunchGranule(RealmLaunch):
    """The same with a realm: left delegated, the granule faults whoever of the host touches it next."""

    number = 15
    name = "punch-granule"
    question = "Is a granule undelegated before its memory goes to somebody else?"
    source = "guest-memfd S22, seen with CCA"
    broken_by = {"filter-from-create-flag": Kind.INVARIANT}

    def tasks(self) -> None:
        self.memory[0] = 1  # so that conversion takes the page out of LRU batches
        self.convert(0)
        self.populate(0)
        self.task("punch", lambda: self.gmem.punch_hole(0, PAGE))
        self.task("touch", lambda: self.memory[PAGE])

    def holds(self) -> None:
        assert self.seen == {"punch": None, "touch": 0}
