# SPDX-License-Identifier: GPL-2.0-or-later
"""References that KVM itself holds for pages of a TD."""

from __future__ import annotations

from ..explore.verdict import Kind
from .worlds import TdxRunning

__all__ = ["TdxPins"]


class TdxPins(TdxRunning):
    """A private page, in the secure EPT, becomes shared; the VMM punches it afterwards."""

    number = 22
    name = "tdx-pins"
    question = "Does KVM's own hold on a private page keep it from becoming shared?"
    source = "discussion B; D5"
    broken_by = {
        "tdx-pins-private+check-both-ways": Kind.ASSERTION,
        "tdx-pins-private+check-both-ways+refcount-wait": Kind.LIVELOCK,
    }
    holds_with = ("tdx-pins-private", "check-both-ways")
    pages = 1

    def tasks(self) -> None:
        self.host.lru.lru_add_drain_all()
        self.task("convert", self.share)
        self.task("vcpu", lambda: self.vcpus[0].run(lambda cpu: cpu.load(0)).reason.name)

    def holds(self) -> None:
        assert self.seen["convert"] == "shared", f"the page can't become shared: {self.seen['convert']}"
        assert self.seen["vcpu"] in ("HLT", "MEMORY_FAULT")
