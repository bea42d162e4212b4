# SPDX-License-Identifier: GPL-2.0-or-later
"""How trusted entities ask: each has a place (`inject`) where it asks before an operation; here they are connected."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..hw.el2.hypervisor import El2Call
from ..kvm.pkvm_platform import PkvmPlatform
from ..kvm.rmm_platform import RmmPlatform
from ..kvm.snp_platform import SnpPlatform
from ..kvm.tdx_platform import TdxPlatform
from ..uapi.rmi import Rmi
from ..uapi.sev import PspCommand, PspStatus
from ..uapi.tdx import TdcallLeaf, TdxLeaf
from .language import What

if TYPE_CHECKING:
    from .engine import Faults

__all__ = ["attach_entity"]

PAGE_SHIFT = 12


def attach_entity(faults: Faults, entity: object) -> None:
    """Connect a platform that the host made."""
    for kind, attach in _ATTACH.items():
        if isinstance(entity, kind):
            attach(faults, entity)


def _snp(faults: Faults, platform: SnpPlatform) -> None:
    rmp = platform.rmp

    def gfn_of(pfn: int) -> int | None:
        entry = rmp.entries[pfn]
        return entry.gfn(pfn) if entry is not None and entry.asid else None

    def command(command: PspCommand, pfn: int) -> PspStatus | None:
        status = faults.decide(What.PSP, command.name, gfn=gfn_of(pfn), pfn=pfn)
        return None if status is None else PspStatus(status)

    def instruction(name: str, pfn: int, gfn: int | None) -> int | None:
        return faults.decide(What.RMP, name, gfn=gfn if gfn is not None else gfn_of(pfn), pfn=pfn)

    platform.psp.inject = command
    rmp.inject = instruction


_BY_ADDRESS = frozenset(leaf for leaf in TdxLeaf if leaf.name.startswith("MEM_") and leaf is not TdxLeaf.MEM_TRACK) | {
    TdxLeaf.MR_EXTEND
}
"""SEAMCALLs that are about a guest address; the others name a page, or nothing."""


def _tdx(faults: Faults, platform: TdxPlatform) -> None:
    def seamcall(leaf: TdxLeaf, what: int) -> int | None:
        if leaf in _BY_ADDRESS:
            return faults.decide(What.SEAMCALL, leaf.name, gfn=what >> PAGE_SHIFT)
        return faults.decide(What.SEAMCALL, leaf.name, pfn=what)

    def tdcall(leaf: TdcallLeaf, what: int) -> int | None:
        return faults.decide(What.TDCALL, leaf.name, gfn=what >> PAGE_SHIFT)

    platform.module.inject = seamcall
    platform.module.inject_tdcall = tdcall


def _rmm(faults: Faults, platform: RmmPlatform) -> None:
    def command(fid: Rmi, what: int) -> int | None:
        if fid.name.startswith(("RTT_", "DATA_")):
            return faults.decide(What.RMI, fid.name, gfn=what >> PAGE_SHIFT)
        return faults.decide(What.RMI, fid.name, pfn=what)

    def rejects(base: int, top: int) -> bool:
        return faults.decide(What.HOST, "RIPAS_CHANGE", gfn=base >> PAGE_SHIFT) is not None

    platform.rmm.inject = command
    platform.reject_ripas_change = rejects


def _pkvm(faults: Faults, platform: PkvmPlatform) -> None:
    def call(call: El2Call, what: int) -> int | None:
        if call in (El2Call.FORCE_RECLAIM_GUEST_PAGE, El2Call.RECLAIM_GUEST_PAGE):
            return faults.decide(What.EL2, call.name, pfn=what)
        return faults.decide(What.EL2, call.name, gfn=what)

    platform.hypervisor.inject = call


_ATTACH: dict[type, Callable[..., None]] = {SnpPlatform: _snp, TdxPlatform: _tdx, RmmPlatform: _rmm, PkvmPlatform: _pkvm}
