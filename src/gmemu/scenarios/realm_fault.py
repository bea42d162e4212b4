# SPDX-License-Identifier: GPL-2.0-or-later
"""A realm touches a page that is being converted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..explore.verdict import Kind
from .worlds import PAGE, RealmRunning

if TYPE_CHECKING:
    from ..hw.rmm.guest_cpu import RealmGuestCpu

__all__ = ["RealmFault"]


class RealmFault(RealmRunning):
    """The page is private, and not mapped yet; user space takes it back while the realm's first touch is under way."""

    number = 9
    name = "realm-fault"
    question = "Is a granule given to a realm whose page became shared meanwhile?"
    source = "guest-memfd S11, with a realm"
    broken_by = {"no-seq-retry": Kind.INVARIANT, "store-after-invalidate": Kind.INVARIANT}

    def tasks(self) -> None:
        self.convert(1)
        self.task("vcpu", lambda: self.vcpus[0].run(self.touch).reason.name)
        self.task("convert", lambda: self.share(1))

    def touch(self, cpu: RealmGuestCpu) -> None:
        """A load from page 1."""
        cpu.load(PAGE)

    def holds(self) -> None:
        assert self.seen["convert"] == "shared"
        assert self.seen["vcpu"] in ("HLT", "MEMORY_FAULT")
