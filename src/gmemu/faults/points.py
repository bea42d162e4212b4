# SPDX-License-Identifier: GPL-2.0-or-later
"""From a run in which nothing failed: every point at which something could have, as the orders that make it fail."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypeVar

from ..hw.memory import PAGE_SHIFT
from ..kvm.guest_memfd.file import GmemFile
from .engine import Call, Observer
from .language import Order, What

__all__ = ["Points"]

T = TypeVar("T")

_RESULTS = {
    What.ALLOC: "ENOMEM",
    What.PSP: "RESOURCE_LIMIT",
    What.SEAMCALL: "OPERAND_BUSY",
    What.TDCALL: "OPERAND_BUSY",
    What.RMI: "BUSY",
    What.EL2: "EPERM",
    What.HOST: "REJECT",
}
_RMP_RESULTS = {"RMPUPDATE": "FAIL_INUSE", "PSMASH": "FAIL_INUSE", "PVALIDATE": "NO_UPDATE"}
_UNFAILING = {
    (What.PSP, "PAGE_RECLAIM"),
    (What.PSP, "DECOMMISSION"),
    (What.PSP, "DF_FLUSH"),
    (What.TDCALL, "VP_VMCALL"),
    (What.EL2, "FORCE_RECLAIM_GUEST_PAGE"),
    (What.EL2, "RECLAIM_DYING_GUEST_PAGE"),
    (What.EL2, "RECLAIM_GUEST_PAGE"),
    *((What.SEAMCALL, leaf) for leaf in ("PHYMEM_PAGE_WBINVD", "PHYMEM_PAGE_RECLAIM", "PHYMEM_CACHE_WB")),
    *((What.SEAMCALL, leaf) for leaf in ("VP_FLUSH", "MNG_VPFLUSHDONE", "MNG_KEY_FREEID")),
}
"""What isn't made to fail, as is RMPUPDATE of pages that go back: it's how memory is had back.  KVM has no other way, only
warns, and loses the memory: that is known, and says nothing of the program."""
_INTERRUPTIBLE = (
    "SNP_LAUNCH_UPDATE",
    "INIT_MEM_REGION",
    "KVM_ARM_RMI_POPULATE",
    "fallocate",
    "KVM_RUN",
    "KVM_PRE_FAULT_MEMORY",
)


class _Operation(NamedTuple):
    what: What
    name: str
    call: str
    number: int
    """which call of that name"""
    nth: int
    """in the whole run"""


def _gives_back(operation: _Operation) -> bool:
    """RMPUPDATE outside of a launch and of the guest's first use: the page goes back to the hypervisor."""
    return operation.name == "RMPUPDATE" and not (operation.call.startswith("SNP_") or operation.call == "KVM_RUN")


class Points(Observer):
    """Watches the run.  Of like operations in one call the first, the second and the last are taken, unless `every`."""

    def __init__(self, every: bool = False) -> None:
        self.every = every
        self._call: Call | None = None
        self._operations: list[_Operation] = []
        self._pages: dict[tuple[str, int], int] = {}
        self._calls: list[tuple[str, int]] = []
        self._held: list[tuple[str, int, int]] = []
        """conversion, which of its name, offset of a page that it would find in use"""

    def call_begins(self, call: Call) -> None:
        self._call = call
        self._calls.append((call.name, call.number))
        if call.is_conversion and isinstance(call.file, GmemFile):
            allocated = list(call.file.gmem_inode.mapping.pages.runs())
            if allocated:
                offsets = dict.fromkeys((allocated[0][0], allocated[-1][1] - 1))
                self._held += [(call.name, call.number, index << PAGE_SHIFT) for index in offsets]

    def call_ends(self, call: Call) -> None:
        self._call = None

    def point(self, what: What, name: str, nth: int) -> None:
        call = (self._call.name, self._call.number) if self._call is not None else ("", 0)
        self._operations.append(_Operation(what, name, *call, nth))

    def page(self, call: Call, nth: int) -> None:
        self._pages[call.name, call.number] = nth

    def orders(self) -> Iterator[Order]:
        """One order for each point, in the order of the run; allocations and operations first."""
        for operation in self._chosen():
            result = _RMP_RESULTS.get(operation.name, "") if operation.what is What.RMP else _RESULTS[operation.what]
            if result and (operation.what, operation.name) not in _UNFAILING and not _gives_back(operation):
                yield Order(operation.what, operation.name, result, nth=operation.nth)
        for name, number in self._calls:
            if name in _INTERRUPTIBLE:
                yield Order(What.SIGNAL, during=name, call=number)
                yield from self._signals(name, number, self._pages.get((name, number), 0))
        for name, number, offset in self._held:
            yield Order(What.REF, offset=offset, during=name, call=number)
            yield Order(What.PIN, offset=offset, during=name, call=number, hold=0)

    def _signals(self, name: str, number: int, pages: int) -> Iterator[Order]:
        for nth in self._some(list(range(1, pages + 1))):
            yield Order(What.SIGNAL, during=name, call=number, at="page", nth=nth)  # type: ignore[arg-type]

    def _chosen(self) -> Iterator[_Operation]:
        alike: dict[tuple[What, str, str, int], list[_Operation]] = {}
        for operation in self._operations:
            alike.setdefault(operation[:4], []).append(operation)
        taken = {id(operation) for group in alike.values() for operation in self._some(group)}
        yield from (operation for operation in self._operations if id(operation) in taken)

    def _some(self, group: list[T]) -> list[T]:
        return group if self.every or len(group) <= 3 else [*group[:2], group[-1]]
