# SPDX-License-Identifier: GPL-2.0-or-later
"""SNP_LAUNCH_START, _UPDATE and _FINISH (SEV-SNP firmware ABI, sections of these names; order of checks as in AMD-ASPFW)."""

from __future__ import annotations

from ...uapi.sev import (
    SNP_POLICY_MASK_API_MAJOR,
    SNP_POLICY_MASK_API_MINOR,
    SNP_POLICY_MASK_MIGRATE_MA,
    SNP_POLICY_MASK_PAGE_SWAP_DISABLE,
    SNP_POLICY_MASK_RSVD_MBO,
    SNP_POLICY_MASK_SINGLE_SOCKET,
    SNP_POLICY_MASK_SMT,
    PspCommand,
    PspStatus,
    SnpPageType,
)
from ..memory import PAGE_SHIFT, PAGE_SIZE
from .cpuid_page import header_ok, sanitize
from .digest import LaunchDigest, Row, vmsa_contents
from .firmware import Firmware, PlatformState
from .guest_context import GuestContext, GuestState
from .id_block import check_id_block
from .rmp_entry import PAGES_PER_2M, RmpEntry, RmpState, state_of
from .special_pages import secrets_page, tweak_vmsa

__all__ = ["LaunchCommands"]

_ONE_BY_ONE = (SnpPageType.VMSA, SnpPageType.SECRETS, SnpPageType.CPUID)
"""Page types of which the firmware takes only 4 KiB pages, and to which it does something of its own."""
_PAGE_TYPES = frozenset(SnpPageType)
_POLICY_RESERVED = ~((SNP_POLICY_MASK_PAGE_SWAP_DISABLE << 1) - 1)

Masks = tuple[int, int, int]


class LaunchCommands(Firmware):
    """From a context in INIT to a guest that runs."""

    def launch_start(
        self,
        gctx_pfn: int,
        policy: int,
        *,
        gosvw: bytes = bytes(16),
        desired_tsc_khz: int = 0,
        imi: bool = False,
        ma_gctx_pfn: int | None = None,
        reserved: int = 0,
    ) -> PspStatus:
        """SNP_LAUNCH_START: INIT to LAUNCH.  POLICY_FAILURE if this machine can't keep what `policy` promises.

        `imi`: the guest is an initial migration image; `ma_gctx_pfn`: the context of the guest's migration agent.
        """
        injected = self._injected(PspCommand.LAUNCH_START, gctx_pfn)
        if injected is not None:
            return injected
        if reserved:
            return PspStatus.INVALID_PARAM
        if self.state is not PlatformState.INIT:
            return PspStatus.INVALID_PLATFORM_STATE
        guest = self._guest(gctx_pfn)
        if guest is None:
            return PspStatus.INVALID_GUEST
        if guest.state is not GuestState.INIT:
            return PspStatus.INVALID_GUEST_STATE
        agent = None
        if ma_gctx_pfn is not None:
            agent = self._guest(ma_gctx_pfn)
            if agent is None:
                return PspStatus.INVALID_GUEST
        if not self._policy_ok(policy, agent):
            return PspStatus.POLICY_FAILURE
        self.rt.writes(("gctx", gctx_pfn))
        guest.draw(self.rng)
        guest.policy, guest.gosvw, guest.desired_tsc_khz = policy, bytes(gosvw), desired_tsc_khz
        guest.imi_en, guest.ma_gctx_pfn = imi, ma_gctx_pfn
        guest.report_id_ma = agent.report_id if agent else b"\xff" * 32
        guest.state = GuestState.LAUNCH
        return PspStatus.SUCCESS

    def _policy_ok(self, policy: int, agent: GuestContext | None) -> bool:
        """All are one check to the firmware, with one status; the agent's part is that it can't migrate itself."""
        if agent and (not policy & SNP_POLICY_MASK_MIGRATE_MA or agent.ma_gctx_pfn is not None):
            return False
        if agent and policy & ~agent.policy & SNP_POLICY_MASK_SINGLE_SOCKET:
            return False
        if not policy & SNP_POLICY_MASK_RSVD_MBO or policy & _POLICY_RESERVED:
            return False
        if self.cpu.smt and not policy & SNP_POLICY_MASK_SMT:
            return False
        return ((policy & SNP_POLICY_MASK_API_MAJOR) >> 8, policy & SNP_POLICY_MASK_API_MINOR) <= self.abi

    def launch_update(
        self,
        gctx_pfn: int,
        pfn: int,
        page_type: int,
        *,
        count: int = 1,
        pagesize: int = 0,
        imi: bool = False,
        vmpl_masks: Masks = (0, 0, 0),
        reserved: int = 0,
    ) -> tuple[PspStatus, int]:
        """SNP_LAUNCH_UPDATE, `count` times back to back on consecutive pages: the last status, and how many succeeded.

        Each measures a PRE_GUEST page and encrypts it where it is; the page becomes GUEST_VALID.  `pagesize` 1: 2 MiB
        each.  A refused CPUID page is corrected in place, in plain, and stays PRE_GUEST.  Checks, in order: reserved
        fields, platform state, context, page state, page size, page type, guest state, ASID, owner, `imi`.
        (INVALID_ADDRESS, for a 2 MiB page that isn't aligned, can't be had: it wouldn't have passed for its size.)
        """
        step = PAGES_PER_2M if pagesize else 1
        done, status = 0, PspStatus.SUCCESS
        while done < count and status == PspStatus.SUCCESS:
            at, limit = pfn + done * step, count - done
            if self.inject:
                injected, limit = self.inject(PspCommand.LAUNCH_UPDATE, at), 1
                if injected is not None:
                    return injected, done
            if reserved:
                return PspStatus.INVALID_PARAM, done
            entry, run = self.rmp.own_run(at, limit * step) if self.rmp.covers(at) else (None, 0)
            guest, status = self._may_update(gctx_pfn, entry, page_type, pagesize, imi)
            if guest is None or entry is None:
                return status, done
            n = 1 if page_type in _ONE_BY_ONE else max(run // step, 1)
            kind = SnpPageType(page_type)
            status = self._update(gctx_pfn, guest, at, n * step, entry, kind, imi, vmpl_masks)
            done += n if status == PspStatus.SUCCESS else 0
        return status, done

    def _may_update(
        self, gctx_pfn: int, entry: RmpEntry | None, page_type: int, pagesize: int, imi: bool
    ) -> tuple[GuestContext | None, PspStatus]:
        """The checks before anything is touched.  The guest, if all pass."""
        if self.state is not PlatformState.INIT:
            return None, PspStatus.INVALID_PLATFORM_STATE
        guest = self._guest(gctx_pfn)
        if guest is None:
            return None, PspStatus.INVALID_GUEST
        if entry is None or state_of(entry) != RmpState.PRE_GUEST:
            return None, PspStatus.INVALID_PAGE_STATE
        if entry.pagesize != pagesize:
            return None, PspStatus.INVALID_PAGE_SIZE
        if page_type in _ONE_BY_ONE and pagesize:
            return None, PspStatus.INVALID_PAGE_SIZE
        if page_type not in _PAGE_TYPES:
            return None, PspStatus.INVALID_PARAM
        if guest.state is not GuestState.LAUNCH:
            return None, PspStatus.INVALID_GUEST_STATE
        if not guest.asid:
            return None, PspStatus.INACTIVE
        if entry.asid != guest.asid:
            return None, PspStatus.INVALID_PAGE_OWNER
        if guest.imi_en and not imi:
            return None, PspStatus.INVALID_PARAM
        return guest, PspStatus.SUCCESS

    def _update(
        self,
        gctx_pfn: int,
        guest: GuestContext,
        pfn: int,
        pages: int,
        entry: RmpEntry,
        page_type: SnpPageType,
        imi: bool,
        masks: Masks,
    ) -> PspStatus:
        """Transform, measure, encrypt; then write the RMP, once.  The firmware reads pages as the host sees them."""
        self.rt.writes(("gctx", gctx_pfn))
        gpa = entry.gfn(pfn) << PAGE_SHIFT
        if page_type == SnpPageType.CPUID and not self._sanitize_cpuid(pfn):
            return PspStatus.INVALID_PARAM
        rows = self._measure(guest.ld, guest, pfn, pages, gpa, page_type, imi, masks)
        if imi:
            for at, contents, _ in rows:
                guest.imd.extend(page_type, at, contents, imi=True, vmpl_masks=masks)
        self.memory.encrypt_in_place(pfn, pages, guest.key)
        self.rmp.set_validated(pfn, pages, vmsa=page_type == SnpPageType.VMSA, vmpl_masks=masks)
        if self.log:
            self.log(gctx_pfn, page_type, rows)
        return PspStatus.SUCCESS

    def _sanitize_cpuid(self, pfn: int) -> bool:
        """Whether the page is a table that the CPU bears out.  Wrong entries are corrected there; a wrong head isn't."""
        address = pfn << PAGE_SHIFT
        page = bytearray(self.memory.read(address, PAGE_SIZE))
        if not header_ok(page):
            return False
        in_order = sanitize(page, self.cpu)
        self.memory.write(address, page)
        return in_order

    def _measure(
        self,
        ld: LaunchDigest,
        guest: GuestContext,
        pfn: int,
        pages: int,
        gpa: int,
        page_type: SnpPageType,
        imi: bool,
        masks: Masks,
    ) -> list[Row]:
        """Make the pages what the guest will find, and extend the digest.  They are left in plain."""
        address, end = pfn << PAGE_SHIFT, (pfn + pages) << PAGE_SHIFT
        if page_type == SnpPageType.NORMAL:
            self.memory.rekey(pfn, pages, 0)
            return ld.extend_pages(page_type, gpa, self.memory.view[address:end], imi=imi, vmpl_masks=masks)
        if page_type == SnpPageType.VMSA:
            page = bytearray(self.memory.read(address, PAGE_SIZE))
            contents = vmsa_contents(page)
            tweak_vmsa(page, guest, self.cpu, self.rng)
            self.memory.write(address, page)
            return [(gpa, contents, ld.extend(page_type, gpa, contents, imi=imi, vmpl_masks=masks))]
        if page_type == SnpPageType.ZERO:
            self.memory.clear(pfn, pages)
        elif page_type == SnpPageType.SECRETS:
            self.memory.clear(pfn, 1)
            self.memory.write(address, secrets_page(guest, self.cpu))
        else:
            self.memory.rekey(pfn, pages, 0)
        return ld.extend_blank(page_type, gpa, pages, imi=imi, vmpl_masks=masks)

    def launch_finish(
        self,
        gctx_pfn: int,
        *,
        id_block: bytes | None = None,
        id_auth: bytes | None = None,
        auth_key_en: bool = False,
        vcek_disabled: bool = False,
        host_data: bytes = bytes(32),
        reserved: int = 0,
    ) -> PspStatus:
        """SNP_LAUNCH_FINISH: LAUNCH to RUNNING, if the guest is what its owner signed, should an `id_block` be given.

        `id_block` and `id_auth` are the pages' bytes.  `IdBlockUnavailable` where no signature can be verified.
        """
        injected = self._injected(PspCommand.LAUNCH_FINISH, gctx_pfn)
        if injected is not None:
            return injected
        if reserved:
            return PspStatus.INVALID_PARAM
        if self.state is not PlatformState.INIT:
            return PspStatus.INVALID_PLATFORM_STATE
        guest = self._guest(gctx_pfn)
        if guest is None:
            return PspStatus.INVALID_GUEST
        if guest.state is not GuestState.LAUNCH or guest.imi_en:
            return PspStatus.INVALID_GUEST_STATE
        if not guest.asid:
            return PspStatus.INACTIVE
        self.rt.writes(("gctx", gctx_pfn))
        if id_block is not None:
            status = check_id_block(guest, id_block, id_auth or bytes(PAGE_SIZE), auth_key_en)
            if status != PspStatus.SUCCESS:
                return status
        guest.host_data, guest.vcek_dis = bytes(host_data), vcek_disabled
        guest.id_block_en, guest.auth_key_en = id_block is not None, auth_key_en
        guest.state = GuestState.RUNNING
        return PspStatus.SUCCESS
