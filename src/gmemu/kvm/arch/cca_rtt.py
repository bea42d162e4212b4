# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM's side of a realm's translation tables: it maps, unmaps and makes tables by RMI, and keeps no copy of them.

Where the RMM finds no table at the level that it needs, it says at which level it stopped; KVM makes what is missing below,
and tries again.  A missing table at the last level would be a bug.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ...hw.memory import PAGE_SHIFT, PAGE_SIZE
from ...hw.rmm.rtt import LAST_LEVEL, entry_pages
from ...invariants import InvariantViolation
from ...rules import KernelError
from ...rules import cca as rules
from ...uapi.rmi import (
    RMI_ERROR_STATUS_MASK,
    GranuleState,
    Hipas,
    Ripas,
    RmiStatus,
    rmi_index,
    rmi_text,
)
from ..mmu import RetPf

if TYPE_CHECKING:
    from ...hw.rmm.rmm import RmiResult
    from ..mmu import PageFault
    from .cca import CcaVm

__all__ = ["RealmRtt"]

_REFUSED_LIMIT = 100
"""How often in a row a page that the RMM doesn't take is taken for another vCPU's.  KVM has no limit."""


class RealmRtt:
    """The tables of one realm, as the host drives them.  Frames are guest frame numbers without the shared bit."""

    def __init__(self, cca: CcaVm) -> None:
        self.cca, self.vm = cca, cca.vm
        self._refused: dict[int, int] = {}
        """gfn -> how often in a row the RMM didn't take the page for it"""

    @property
    def rd(self) -> int:
        """The realm's RD."""
        return self.cca.rd

    def with_tables(self, gfn: int, command: Callable[[], RmiResult], name: str) -> RmiResult:
        """An RMI command about `gfn`; tables that it misses are made.  Raises ENXIO, EIO, ENOMEM."""
        platform = self.cca.platform
        while True:
            result = platform.call(command)
            if result.status & RMI_ERROR_STATUS_MASK != RmiStatus.ERROR_RTT:
                platform.check(result, name)
                return result
            level = rmi_index(result.status)
            if level >= LAST_LEVEL:
                self.vm.bug(f"{name} at gfn {gfn:#x}: {rmi_text(result.status)}")
                raise rules.LAST_LEVEL(f"{name} at gfn {gfn:#x}: {rmi_text(result.status)}")
            self.create_tables(gfn, level + 1)

    def create_tables(self, gfn: int, level: int) -> None:
        """realm_create_rtt_levels(): the table of `level`; those below follow when they are missed."""
        platform = self.cca.platform
        pfn = platform.alloc_granules()
        base = gfn // entry_pages(level - 1) * entry_pages(level - 1)
        result = platform.call(lambda: platform.rmm.rtt_create(self.rd, pfn, base << PAGE_SHIFT, level))
        if result.status:
            platform.free_granules(pfn)
            # another vCPU made it first
            if result.status & RMI_ERROR_STATUS_MASK != RmiStatus.ERROR_RTT:
                platform.check(result, "RMI_RTT_CREATE")

    def read_entry(self, ipa: int) -> RmiResult:
        """RMI_RTT_READ_ENTRY: where a walk to the last level ends, HIPAS, output address, RIPAS.  Raises ENXIO."""
        platform = self.cca.platform
        result = platform.call(lambda: platform.rmm.rtt_read_entry(self.rd, ipa, LAST_LEVEL))
        platform.check(result, "RMI_RTT_READ_ENTRY")
        return result

    # The protected half

    def map_protected(self, gfn: int, pfn: int) -> RetPf:
        """realm_map_protected(): delegate the page and give it to the realm, which sees zeroes.  Raises ENXIO."""
        platform, ipa = self.cca.platform, gfn << PAGE_SHIFT
        mapped = self.read_entry(ipa)
        if mapped.out[0] == LAST_LEVEL and mapped.out[1] == Hipas.ASSIGNED and mapped.out[2] == pfn << PAGE_SHIFT:
            if mapped.out[3] == Ripas.DESTROYED:
                raise rules.DESTROYED(f"gfn {gfn:#x}")
            return RetPf.SPURIOUS
        try:
            platform.delegate(pfn)
        except KernelError:
            # most likely another vCPU is at the same page: back to the guest, which faults again if need be
            self._refused[gfn] = self._refused.get(gfn, 0) + 1
            if self._refused[gfn] > _REFUSED_LIMIT:
                raise
            return RetPf.RETRY
        self._refused.pop(gfn, None)
        try:
            self.with_tables(gfn, lambda: platform.rmm.rtt_data_map(self.rd, ipa, ipa + PAGE_SIZE, pfn), "RMI_RTT_DATA_MAP")
        except KernelError:
            platform.undelegate(pfn)
            raise
        return RetPf.FIXED

    def unmap_protected(self, start: int, end: int) -> bool:
        """realm_unmap_private_range(): what is mapped is taken back from the realm, and undelegated, which wipes it.

        True if anything was mapped.  A page that the RMM doesn't let go is leaked.
        """
        platform, rmm = self.cca.platform, self.cca.platform.rmm
        base, top, found = start << PAGE_SHIFT, min(end << PAGE_SHIFT, self.cca.protected_end), False
        while base < top:
            result = platform.call(lambda at=base: rmm.rtt_data_unmap(self.rd, at, top))  # type: ignore[misc]
            code = result.status & RMI_ERROR_STATUS_MASK
            if code == RmiStatus.SUCCESS:
                found = True
                for pfn, count in result.runs:
                    platform.undelegate(pfn, count)
                base = result.out[0]
            elif code == RmiStatus.ERROR_RTT and result.out and result.out[0] > base:
                base = result.out[0]
            elif code == RmiStatus.ERROR_RTT and rmi_index(result.status) < LAST_LEVEL:
                self.create_tables(base >> PAGE_SHIFT, rmi_index(result.status) + 1)
            else:
                self.vm.bug(f"RMI_RTT_DATA_UNMAP at ipa {base:#x}: {rmi_text(result.status)}")
                base = self._leak(base)
        return found

    def _leak(self, ipa: int) -> int:
        """A page that the RMM won't let go is never used again.  Returns the address after the entry."""
        memmap = self.vm.host.memmap
        realm = self.cca.platform.rmm.realms[self.rd]
        walk = realm.rtt.walk(ipa >> PAGE_SHIFT)
        gfn, size = ipa >> PAGE_SHIFT, entry_pages(walk.level)
        if walk.entry.hipas is Hipas.ASSIGNED:
            memmap.leak(gfn + walk.entry.delta, 1)
            self.cca.platform.warn(f"pfn {gfn + walk.entry.delta:#x} is lost to the realm")
            return ipa + PAGE_SIZE
        return (gfn // size + 1) * size << PAGE_SHIFT

    # The shared half

    def map_shared(self, fault: PageFault) -> RetPf:
        """realm_map_non_secure(): the RMM maps the host's page, and the nested page table that KVM keeps says the same."""
        platform, rmm = self.cca.platform, self.cca.platform.rmm
        ipa = fault.gfn << PAGE_SHIFT | self.cca.protected_end
        old = self.vm.mmu.sptes[fault.gfn]
        result = self.vm.mmu.map(fault)
        if result is RetPf.SPURIOUS:
            return result
        if old is not None:
            platform.call(lambda: rmm.rtt_unprot_unmap(self.rd, ipa, LAST_LEVEL))
        try:
            self.with_tables(
                ipa >> PAGE_SHIFT,
                lambda: rmm.rtt_unprot_map(self.rd, ipa, LAST_LEVEL, fault.pfn, int(fault.map_writable)),
                "RMI_RTT_UNPROT_MAP",
            )
        except KernelError:
            self.vm.mmu.sptes.clear(fault.gfn, fault.gfn + 1)
            raise
        return result

    def unmap_shared(self, start: int, end: int) -> bool:
        """realm_unmap_shared_range(): of the frames that KVM mapped.  One that the RMM keeps is a bug."""
        platform, rmm, sptes = self.cca.platform, self.cca.platform.rmm, self.vm.mmu.sptes
        for first, last, _ in list(sptes.runs(start, end)):
            for gfn in range(first, last):
                ipa = gfn << PAGE_SHIFT | self.cca.protected_end
                result = platform.call(lambda at=ipa: rmm.rtt_unprot_unmap(self.rd, at, LAST_LEVEL))  # type: ignore[misc]
                if result.status:
                    self.vm.bug(f"RMI_RTT_UNPROT_UNMAP at ipa {ipa:#x}: {rmi_text(result.status)}")
        return self.vm.mmu.unmap_range(start, end)

    # RIPAS

    def init_ripas(self, start: int, end: int) -> None:
        """realm_init_ipa_state(): frames [start, end) are RAM from the beginning.  Raises ENXIO, EIO, ENOMEM."""
        rmm, base, top = self.cca.platform.rmm, start << PAGE_SHIFT, end << PAGE_SHIFT
        while base < top:
            result = self.with_tables(
                base >> PAGE_SHIFT,
                lambda at=base: rmm.rtt_init_ripas(self.rd, at, top),  # type: ignore[misc]
                "RMI_RTT_INIT_RIPAS",
            )
            base = result.out[0]

    def set_ripas(self, rec: int, base: int, top: int) -> None:
        """realm_set_ipa_state(): serve a realm's request, bytes [base, top), as far as the RMM lets it.

        It stops at memory that was destroyed, unless the realm allowed for that.  Raises ENXIO, ENOMEM.
        """
        platform, rmm = self.cca.platform, self.cca.platform.rmm
        while base < top:
            result = platform.call(lambda at=base: rmm.rtt_set_ripas(self.rd, rec, at, top))  # type: ignore[misc]
            if result.status & RMI_ERROR_STATUS_MASK == RmiStatus.ERROR_RTT:
                level = rmi_index(result.status)
                if level >= LAST_LEVEL or self._must_stay_destroyed(rec, base):
                    return
                self.create_tables(base >> PAGE_SHIFT, level + 1)
                continue
            platform.check(result, "RMI_RTT_SET_RIPAS")
            base = result.out[0]

    def _must_stay_destroyed(self, rec: int, ipa: int) -> bool:
        """Whether the RMM stopped because the realm didn't allow for what was destroyed (the REC's exit says so)."""
        change = self.cca.platform.rmm.recs[rec].ripas_change
        forbids = change is not None and not change.change_destroyed
        return forbids and self.read_entry(ipa).out[3] == Ripas.DESTROYED

    # Teardown

    def destroy_tables(self) -> None:
        """kvm_realm_destroy_rtts(): every table below the roots, deepest first.  One that stays is leaked."""
        platform, rmm = self.cca.platform, self.cca.platform.rmm
        rtt = rmm.realms[self.rd].rtt
        for level, index in sorted(rtt.tables, reverse=True):
            ipa = index * entry_pages(level - 1) << PAGE_SHIFT
            result = platform.call(lambda at=ipa, of=level: rmm.rtt_destroy(self.rd, at, of))  # type: ignore[misc]
            if result.status:
                platform.warn(f"RMI_RTT_DESTROY of level {level} at ipa {ipa:#x}: {rmi_text(result.status)}")
                self.vm.host.memmap.leaked.set(rtt.tables[level, index], rtt.tables[level, index] + 1, True)
                continue
            for pfn, count in result.runs:
                platform.free_granules(pfn, count)

    # For those who check what must hold

    def check(self) -> None:
        """What is in the tables is the guest_memfd's, of the right kind, and the realm's; shared pages are the host's."""
        rmm = self.cca.platform.rmm
        realm = rmm.realms[self.rd]
        bit, shared = realm.rtt.shared_bit, 0
        for start, end, entry in realm.rtt.entries.runs():
            if entry.hipas is not Hipas.ASSIGNED:
                continue
            if start >= bit:
                shared += end - start
                self._check_shared(start, end, entry.delta)
                continue
            private = self.vm.attributes.private_run(start, end - start)
            if private < end - start:
                raise InvariantViolation(f"{self.vm}: gfn {start + private:#x} is the realm's, and is shared")
            for s, e, granule in rmm.granules.entries.spans(start + entry.delta, end + entry.delta):
                if granule is None or granule != (GranuleState.DATA, self.rd):
                    raise InvariantViolation(f"pfn {s:#x}-{e:#x} is mapped in a realm, and {granule} to the RMM")
        if shared != sum(end - start for start, end, _ in self.vm.mmu.sptes.runs()):
            raise InvariantViolation(f"{self.vm}: KVM believes in shared pages that the realm doesn't have")
        for problem in rmm.check_granules():
            raise InvariantViolation(problem)

    def _check_shared(self, start: int, end: int, delta: int) -> None:
        rmm, bit = self.cca.platform.rmm, self.cca.protected_end >> PAGE_SHIFT
        for frame in range(start, end):
            spte = self.vm.mmu.sptes[frame & ~bit]
            if spte is None or (frame & ~bit) + spte.delta != frame + delta:
                raise InvariantViolation(f"{self.vm}: gfn {frame & ~bit:#x} is mapped shared, and KVM has {spte}")
        leaked = self.vm.host.memmap.leaked.covers(start + delta, end + delta, True)
        if not leaked and not rmm.gpt.allows_host(start + delta, end - start):
            raise InvariantViolation(f"pfn {start + delta:#x} is mapped as the host's, and in the realm world")
