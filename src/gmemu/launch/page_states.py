# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest memory as the RMP and KVM's attributes have it, in runs of like pages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from ..hw.memory import PAGE_SIZE
from ..rangemap import RangeMap
from .plan import MemoryRegion

if TYPE_CHECKING:
    from ..hw.snp.rmp import Rmp
    from ..kvm.attributes import Attributes
    from ..kvm.host import Host

__all__ = ["PageRun", "frame_of", "page_runs"]

UNASSIGNED = "HYPERVISOR"


class PageRun(NamedTuple):
    """`size` bytes of guest memory from `gpa`, all alike: whether KVM has them as private, and their RMP state.

    A page that isn't assigned, or that no frame backs yet, is the hypervisor's.
    """

    gpa: int
    size: int
    private: bool
    state: str

    @property
    def pages(self) -> int:
        """How many pages of 4 KiB."""
        return self.size // PAGE_SIZE


def frame_of(rmp: Rmp, gpa: int) -> int | None:
    """The page frame that the RMP assigns to the one guest of the machine as `gpa`, or `None`."""
    gfn = gpa // PAGE_SIZE
    for start, end, entry in rmp.entries.runs():
        if entry.asid and entry.gfn(start) <= gfn < entry.gfn(end):
            return start + gfn - entry.gfn(start)
    return None


def page_runs(host: Host, regions: Iterable[MemoryRegion]) -> list[PageRun]:
    """The runs of `regions`, in their order, for a machine with one SNP VM."""
    [vm] = host.vms
    states = _states_by_gfn(host.snp.rmp)
    runs = []
    for region in regions:
        first, last = region.gpa // PAGE_SIZE, (region.gpa + region.size) // PAGE_SIZE
        for start, end, private in _private(vm.attributes, first, last).spans(first, last):
            for s, e, state in states.spans(start, end):
                runs.append(PageRun(s * PAGE_SIZE, (e - s) * PAGE_SIZE, bool(private), state or UNASSIGNED))
    return runs


def _states_by_gfn(rmp: Rmp) -> RangeMap[str]:
    states: RangeMap[str] = RangeMap()
    for start, end, entry in rmp.entries.runs():
        if entry.asid and not entry.vmsa:
            states.set(entry.gfn(start), entry.gfn(end), rmp.state(start).name)
    return states


def _private(attributes: Attributes, gfn: int, end: int) -> RangeMap[bool]:
    private: RangeMap[bool] = RangeMap()
    while gfn < end:
        count = attributes.private_run(gfn, end - gfn)
        private.set(gfn, gfn + count, True)
        gfn += count or 1
    return private
