# SPDX-License-Identifier: GPL-2.0-or-later
"""The AMD secure processor: SNP firmware commands, one method each (SEV-SNP firmware ABI, document 56860).

Each returns a `PspStatus` and checks in the firmware's order: reserved fields, platform, guest context, pages, guest state,
the rest.  What isn't in the ABI's text follows AMD's published firmware for fourth-generation EPYC.  All that comes out is
simulated.  Pages are named by system page number.
"""

from __future__ import annotations

from ...uapi.sev import SNP_POLICY_MASK_SINGLE_SOCKET, PspCommand, PspStatus
from ..memory import PAGE_SHIFT, PAGE_SIZE
from .firmware import FIRMWARE_KEY, AsidState, Firmware, Inject, LaunchLog, PlatformState
from .guest_context import GuestContext, GuestState, snp_guest_status
from .id_block import IdBlockUnavailable
from .launch import LaunchCommands
from .pages import PageCommands
from .rmp_entry import RmpState

__all__ = ["Firmware", "GuestContext", "GuestState", "IdBlockUnavailable", "Inject", "LaunchLog", "PlatformState", "Psp"]


class Psp(LaunchCommands, PageCommands):
    """The firmware with all its commands."""

    def snp_init(self) -> PspStatus:
        """SNP_INIT: UNINIT to INIT.  Every ASID is dirty until the caches are written back and SNP_DF_FLUSH is called."""
        injected = self._injected(PspCommand.INIT, 0)
        if injected is not None:
            return injected
        if self.state is not PlatformState.UNINIT:
            return PspStatus.INVALID_PLATFORM_STATE
        self.state = PlatformState.INIT
        self._asids.clear()
        self._other_asids, self._wbinvd_done = AsidState.DIRTY, False
        return PspStatus.SUCCESS

    def wbinvd(self) -> None:
        """Not a command: the host executed WBINVD on all CPUs, which SNP_DF_FLUSH wants to have been done."""
        self._wbinvd_done = True

    def df_flush(self) -> PspStatus:
        """SNP_DF_FLUSH: dirty ASIDs become clean.  WBINVD_REQUIRED unless the caches were written back before."""
        injected = self._injected(PspCommand.DF_FLUSH, 0)
        if injected is not None:
            return injected
        if not self._wbinvd_done:
            return PspStatus.WBINVD_REQUIRED
        self._asids = {asid: state for asid, state in self._asids.items() if state is not AsidState.DIRTY}
        self._other_asids = AsidState.CLEAN
        return PspStatus.SUCCESS

    def gctx_create(self, gctx_pfn: int) -> PspStatus:
        """SNP_GCTX_CREATE: a FIRMWARE page of 4 KiB becomes the CONTEXT of a new guest, in INIT."""
        injected = self._injected(PspCommand.GCTX_CREATE, gctx_pfn)
        if injected is not None:
            return injected
        if self.state is not PlatformState.INIT:
            return PspStatus.INVALID_PLATFORM_STATE
        if self.rmp.own_state(gctx_pfn) != RmpState.FIRMWARE:
            return PspStatus.INVALID_PAGE_STATE
        entry = self.rmp.own(gctx_pfn)
        if entry is not None and entry.pagesize:
            return PspStatus.INVALID_PAGE_SIZE
        self.rt.writes(("gctx", gctx_pfn))
        self.memory.clear(gctx_pfn, 1)
        self.memory.encrypt_in_place(gctx_pfn, 1, FIRMWARE_KEY)
        self.contexts[gctx_pfn] = GuestContext()
        self.rmp.firmware_write(gctx_pfn, 1, lambda e: e._replace(vmsa=True))
        return PspStatus.SUCCESS

    def activate(self, gctx_pfn: int, asid: int) -> PspStatus:
        """SNP_ACTIVATE: bind the guest to an ASID that owns no page, belongs to nobody and is clean."""
        injected = self._injected(PspCommand.ACTIVATE, gctx_pfn)
        if injected is not None:
            return injected
        if self.state is not PlatformState.INIT:
            return PspStatus.INVALID_PLATFORM_STATE
        guest = self._guest(gctx_pfn)
        if guest is None:
            return PspStatus.INVALID_GUEST
        if guest.state not in (GuestState.LAUNCH, GuestState.RUNNING):
            return PspStatus.INVALID_GUEST_STATE
        if asid and self.rmp.assigned_to(asid):
            return PspStatus.INVALID_CONFIG
        if guest.policy & SNP_POLICY_MASK_SINGLE_SOCKET and self.cpu.sockets > 1:
            return PspStatus.POLICY_FAILURE
        if not 0 < asid <= self.cpu.max_asid:
            return PspStatus.INVALID_ASID
        if self._asid(asid) is AsidState.OWNED:
            return PspStatus.ASID_OWNED
        if guest.asid:
            return PspStatus.ACTIVE
        if self._asid(asid) is AsidState.DIRTY:
            return PspStatus.DFFLUSH_REQUIRED
        self.rt.writes(("gctx", gctx_pfn))
        self._asids[asid] = AsidState.OWNED
        guest.asid, guest.key = asid, self._next_key
        self.keys[asid] = guest.key
        self._next_key += 1
        return PspStatus.SUCCESS

    def decommission(self, gctx_pfn: int) -> PspStatus:
        """SNP_DECOMMISSION, in any guest state: forget the guest.  CONTEXT becomes FIRMWARE, the ASID dirty.

        Pages that the ASID owns stay as they are; until they are taken back the ASID can't be activated again.
        """
        injected = self._injected(PspCommand.DECOMMISSION, gctx_pfn)
        if injected is not None:
            return injected
        if self.state is not PlatformState.INIT:
            return PspStatus.INVALID_PLATFORM_STATE
        guest = self._guest(gctx_pfn)
        if guest is None:
            return PspStatus.INVALID_GUEST
        self.rt.writes(("gctx", gctx_pfn))
        if guest.asid:
            self._asids[guest.asid] = AsidState.DIRTY
            del self.keys[guest.asid]
            self._wbinvd_done = False
        del self.contexts[gctx_pfn]
        self.rmp.firmware_write(gctx_pfn, 1, lambda e: e._replace(vmsa=False))
        return PspStatus.SUCCESS

    def guest_status(self, gctx_pfn: int, status_address: int) -> PspStatus:
        """SNP_GUEST_STATUS: write a `snp_guest_status` to physical address `status_address`, in a FIRMWARE page."""
        injected = self._injected(PspCommand.GUEST_STATUS, gctx_pfn)
        if injected is not None:
            return injected
        if status_address % PAGE_SIZE + snp_guest_status.SIZE > PAGE_SIZE:
            return PspStatus.INVALID_PARAM
        if self.state is not PlatformState.INIT:
            return PspStatus.INVALID_PLATFORM_STATE
        guest = self._guest(gctx_pfn)
        if guest is None:
            return PspStatus.INVALID_GUEST
        if self.rmp.own_state(status_address >> PAGE_SHIFT) not in (RmpState.FIRMWARE, RmpState.DEFAULT):
            return PspStatus.INVALID_PAGE_STATE
        status = snp_guest_status(policy=guest.policy, asid=guest.asid, state=guest.state, flags=int(guest.vcek_dis))
        self.memory.write(status_address, status.pack())
        return PspStatus.SUCCESS
