# SPDX-License-Identifier: GPL-2.0-or-later
"""Leaves that make, configure and end a TD and its virtual processors: TDH.MNG.*, TDH.VP.*, TDH.PHYMEM.CACHE.WB."""

from __future__ import annotations

from ...uapi.tdx import (
    TDX_CONFIG_FLAGS_MAX_GPAW,
    TDX_CONFIG_FLAGS_NO_RBP_MOD,
    TdxLeaf,
    TdxOperand,
    TdxStatus,
    td_params,
)
from .core import OK, ModuleCore, Seamcall
from .pamt import PageType, PamtEntry
from .sept import SecureEpt
from .td import Lifecycle, OpState, Td, Vp, VpState

__all__ = ["ManagementLeaves"]

_EPTP_WB_4_LEVELS, _EPTP_WB_5_LEVELS = 6 | 3 << 3, 6 | 4 << 3
_TSC_25MHZ = range(4, 401)


class ManagementLeaves(ModuleCore):
    """From an HKID to a TD that may be filled, and back."""

    # TDs

    def mng_create(self, tdr: int, hkid: int) -> Seamcall:
        """TDH.MNG.CREATE: page `tdr` becomes the root of a new TD with key `hkid`."""
        injected = self._begin(TdxLeaf.MNG_CREATE, tdr, tdr)
        if injected is not None:
            return injected
        if hkid not in self.info.hkids:
            return Seamcall(TdxStatus.OPERAND_INVALID | TdxOperand.RDX)
        status = self._free_page(tdr, TdxOperand.RCX)
        if status:
            return Seamcall(status)
        if any(td.hkid == hkid and td.lifecycle is not Lifecycle.TEARDOWN for td in self.tds.values()):
            return Seamcall(TdxStatus.HKID_NOT_FREE)
        self.pamt.assign(tdr, 1, PamtEntry(PageType.TDR, tdr))
        self.tds[tdr] = Td(tdr, hkid)
        self._wbinvd_left.pop(hkid, None)
        return OK

    def mng_key_config(self, tdr: int) -> Seamcall:
        """TDH.MNG.KEY.CONFIG on one package: the TD's key is drawn."""
        injected = self._begin(TdxLeaf.MNG_KEY_CONFIG, tdr, tdr)
        if injected is not None:
            return injected
        td, status = self._tdr(tdr)
        if td is None:
            return Seamcall(status)
        if td.lifecycle is Lifecycle.KEYS_CONFIGURED:
            return Seamcall(TdxStatus.KEY_CONFIGURED)
        if td.lifecycle is not Lifecycle.HKID_ASSIGNED:
            return Seamcall(TdxStatus.KEY_STATE_INCORRECT)
        td.lifecycle = Lifecycle.KEYS_CONFIGURED
        self.memory.encrypt_in_place(tdr, 1, td.hkid)
        return OK

    def mng_addcx(self, tdr: int, pfn: int) -> Seamcall:
        """TDH.MNG.ADDCX: a control page for the TD."""
        injected = self._begin(TdxLeaf.MNG_ADDCX, tdr, pfn)
        if injected is not None:
            return injected
        td, status = self._td(tdr, TdxLeaf.MNG_ADDCX, TdxOperand.RDX)
        if td is None:
            return Seamcall(status)
        if len(td.tdcx) == self.info.tdcs_pages:
            return Seamcall(TdxStatus.TDCX_NUM_INCORRECT)
        status = self._free_page(pfn, TdxOperand.RCX)
        if status:
            return Seamcall(status)
        self._take(td, pfn, PageType.TDCX)
        td.tdcx.append(pfn)
        return OK

    def mng_init(self, tdr: int, params: td_params) -> Seamcall:
        """TDH.MNG.INIT with TD_PARAMS: the measurement begins.  OPERAND_INVALID names the part that is refused."""
        injected = self._begin(TdxLeaf.MNG_INIT, tdr, tdr)
        if injected is not None:
            return injected
        td, status = self._td(tdr, TdxLeaf.MNG_INIT, TdxOperand.RCX)
        if td is None:
            return Seamcall(status)
        if len(td.tdcx) != self.info.tdcs_pages:
            return Seamcall(TdxStatus.TDCX_NUM_INCORRECT)
        wrong = self._wrong_parameter(params)
        if wrong is not None:
            return Seamcall(TdxStatus.OPERAND_INVALID | wrong)
        td.attributes, td.xfam = params.attributes, params.xfam
        td.max_vcpus, td.cpuid_values = params.max_vcpus, params.cpuid_values
        td.mrconfigid, td.mrowner = _digest(params.mrconfigid), _digest(params.mrowner)
        td.mrownerconfig = _digest(params.mrownerconfig)
        td.sept = SecureEpt(5 if params.eptp_controls >> 3 & 7 == 4 else 4)
        td.op_state = OpState.INITIALIZED
        return OK

    def _wrong_parameter(self, params: td_params) -> TdxOperand | None:
        """The first part of TD_PARAMS that doesn't pass."""
        info = self.info
        if params.attributes & ~info.attributes_fixed0 or ~params.attributes & info.attributes_fixed1:
            return TdxOperand.ATTRIBUTES
        if params.xfam & ~info.xfam_fixed0 or ~params.xfam & info.xfam_fixed1:
            return TdxOperand.XFAM
        if not 0 < params.max_vcpus <= info.max_vcpus_per_td:
            return TdxOperand.MAX_VCPUS
        if params.config_flags & ~(TDX_CONFIG_FLAGS_MAX_GPAW | TDX_CONFIG_FLAGS_NO_RBP_MOD):
            return TdxOperand.EXEC_CONTROLS
        wide = bool(params.config_flags & TDX_CONFIG_FLAGS_MAX_GPAW)
        if params.eptp_controls != (_EPTP_WB_5_LEVELS if wide else _EPTP_WB_4_LEVELS) or (wide and not info.ept_5_levels):
            return TdxOperand.EPTP_CONTROLS
        for at, (_, _, allowed) in enumerate(info.cpuid_config):
            if any(value & ~mask for value, mask in zip(params.cpuid_values[4 * at :], allowed, strict=False)):
                return TdxOperand.CPUID_CONFIG
        if params.tsc_frequency not in _TSC_25MHZ:
            return TdxOperand.TSC_FREQUENCY
        return None

    def mng_rd_cpuid(self, tdr: int, leaf: int, subleaf: int | None) -> tuple[Seamcall, tuple[int, int, int, int]]:
        """TDH.MNG.RD of CPUID_VALUES: the registers that the TD gets for a leaf (`subleaf` None: one without)."""
        none = (0, 0, 0, 0)
        injected = self._begin(TdxLeaf.MNG_RD, tdr, tdr)
        if injected is not None:
            return injected, none
        td, status = self._tdr(tdr)
        if td is None:
            return Seamcall(status), none
        wanted = 0xFFFFFFFF if subleaf is None else subleaf
        if (leaf, wanted) in ((0, 0xFFFFFFFF), (0x80000000, 0xFFFFFFFF)):
            highest = max(at for at, _, _ in self.info.cpuid_config if at >> 31 == leaf >> 31)
            return OK, (highest, 0, 0, 0)
        for at, (known, known_subleaf, _) in enumerate(self.info.cpuid_config):
            if (known, known_subleaf) == (leaf, wanted):
                eax, ebx, ecx, edx = td.cpuid_values[4 * at : 4 * at + 4]
                return OK, (eax, ebx, ecx, edx)
        return Seamcall(TdxStatus.METADATA_FIELD_NOT_READABLE), none

    # Virtual processors

    def vp_create(self, tdr: int, tdvpr: int) -> Seamcall:
        """TDH.VP.CREATE: page `tdvpr` becomes the root of a virtual processor."""
        injected = self._begin(TdxLeaf.VP_CREATE, tdr, tdvpr)
        if injected is not None:
            return injected
        td, status = self._td(tdr, TdxLeaf.VP_CREATE, TdxOperand.RDX)
        if td is None:
            return Seamcall(status)
        status = self._free_page(tdvpr, TdxOperand.RCX)
        if status:
            return Seamcall(status)
        self._take(td, tdvpr, PageType.TDVPR)
        td.vps[tdvpr] = self.vps[tdvpr] = Vp(tdvpr, td, self.rt.mutex("TDCALL"))
        return OK

    def vp_addcx(self, tdvpr: int, pfn: int) -> Seamcall:
        """TDH.VP.ADDCX: a control page for the virtual processor."""
        injected = self._begin(TdxLeaf.VP_ADDCX, self._owner(tdvpr), pfn)
        if injected is not None:
            return injected
        vp, status = self._vp(tdvpr, TdxLeaf.VP_ADDCX)
        if vp is None:
            return Seamcall(status)
        if vp.state is not VpState.UNINITIALIZED:
            return Seamcall(TdxStatus.VCPU_STATE_INCORRECT)
        if len(vp.tdcx) == self.info.tdvps_pages - 1:
            return Seamcall(TdxStatus.TDCX_NUM_INCORRECT)
        status = self._free_page(pfn, TdxOperand.RCX)
        if status:
            return Seamcall(status)
        self._take(vp.td, pfn, PageType.TDCX)
        vp.tdcx.append(pfn)
        return OK

    def vp_init(self, tdvpr: int, rcx: int, lp: int = 0) -> Seamcall:
        """TDH.VP.INIT: the virtual processor may run once the TD may; it starts with `rcx` and belongs to processor `lp`."""
        injected = self._begin(TdxLeaf.VP_INIT, self._owner(tdvpr), tdvpr)
        if injected is not None:
            return injected
        vp, status = self._vp(tdvpr, TdxLeaf.VP_INIT)
        if vp is None:
            return Seamcall(status)
        if len(vp.tdcx) != self.info.tdvps_pages - 1:
            return Seamcall(TdxStatus.TDCX_NUM_INCORRECT)
        if vp.state is not VpState.UNINITIALIZED:
            return Seamcall(TdxStatus.VCPU_STATE_INCORRECT)
        index = sum(1 for other in vp.td.vps.values() if other.state is not VpState.UNINITIALIZED)
        if index == vp.td.max_vcpus:
            return Seamcall(TdxStatus.MAX_VCPUS_EXCEEDED)
        vp.state, vp.rcx, vp.index, vp.lp = VpState.READY, rcx, index, lp
        return OK

    def vp_enter(self, tdvpr: int, lp: int = 0) -> Seamcall:
        """TDH.VP.ENTER, until the guest runs.  A TLB epoch that is over costs it its translations (they are flushed)."""
        injected = self._begin(TdxLeaf.VP_ENTER, self._owner(tdvpr), tdvpr)
        if injected is not None:
            return injected
        vp, status = self._vp(tdvpr, TdxLeaf.VP_ENTER)
        if vp is None:
            return Seamcall(status)
        if vp.lp is not None and vp.lp != lp:
            return Seamcall(TdxStatus.VCPU_ASSOCIATED)
        if vp.state is not VpState.READY:
            return Seamcall(TdxStatus.VCPU_STATE_INCORRECT)
        moved = vp.lp is None
        if moved or vp.epoch != vp.td.epoch:
            if vp.tlb is not None:
                vp.tlb.flush()
            vp.epoch = vp.td.epoch
        vp.lp, vp.in_td = lp, True
        return OK

    def vp_exit(self, tdvpr: int) -> None:
        """The guest left (a TD exit): no leaf, but what the module does then."""
        vp = self.vps[tdvpr]
        self.rt.writes(("td", vp.td.tdr))
        vp.in_td = False

    def machine_check(self, tdvpr: int) -> Seamcall:
        """A machine check while the guest ran: the TD is not to be run again.  What VP.ENTER answers."""
        vp = self.vps[tdvpr]
        self.rt.writes(("td", vp.td.tdr))
        vp.in_td, vp.td.fatal, vp.state = False, True, VpState.DISABLED
        return Seamcall(TdxStatus.NON_RECOVERABLE_TD)

    def vp_flush(self, tdvpr: int) -> Seamcall:
        """TDH.VP.FLUSH: the virtual processor is no longer associated with a logical one."""
        injected = self._begin(TdxLeaf.VP_FLUSH, self._owner(tdvpr), tdvpr)
        if injected is not None:
            return injected
        if self.pamt.type(tdvpr) is not PageType.TDVPR:
            return Seamcall(TdxStatus.PAGE_METADATA_INCORRECT | TdxOperand.RCX)
        vp = self.vps[tdvpr]
        if vp.td.lifecycle is not Lifecycle.KEYS_CONFIGURED:
            return Seamcall(TdxStatus.TD_KEYS_NOT_CONFIGURED)
        if vp.lp is None:
            return Seamcall(TdxStatus.VCPU_NOT_ASSOCIATED)
        if vp.tlb is not None:
            vp.tlb.flush()
        vp.lp = None
        return OK

    # The end

    def mng_vpflushdone(self, tdr: int) -> Seamcall:
        """TDH.MNG.VPFLUSHDONE: no virtual processor is associated any more, and the TD is blocked for good."""
        injected = self._begin(TdxLeaf.MNG_VPFLUSHDONE, tdr, tdr)
        if injected is not None:
            return injected
        td, status = self._tdr(tdr)
        if td is None:
            return Seamcall(status)
        if td.lifecycle not in (Lifecycle.HKID_ASSIGNED, Lifecycle.KEYS_CONFIGURED):
            return Seamcall(TdxStatus.LIFECYCLE_STATE_INCORRECT)
        if any(vp.lp is not None for vp in td.vps.values()):
            return Seamcall(TdxStatus.FLUSHVP_NOT_DONE)
        td.lifecycle = Lifecycle.BLOCKED
        self._wbinvd_left[td.hkid] = self.info.packages
        return OK

    def phymem_cache_wb(self) -> Seamcall:
        """TDH.PHYMEM.CACHE.WB on one package: caches of every key that waits for it are written back."""
        injected = self._begin(TdxLeaf.PHYMEM_CACHE_WB, -1, 0)
        if injected is not None:
            return injected
        waiting = [hkid for hkid, left in self._wbinvd_left.items() if left]
        if not waiting:
            return Seamcall(TdxStatus.NO_HKID_READY_TO_WBCACHE)
        for hkid in waiting:
            self._wbinvd_left[hkid] -= 1
        if not any(self._wbinvd_left.values()):
            self.unflushed.clear()
        return OK

    def mng_key_freeid(self, tdr: int) -> Seamcall:
        """TDH.MNG.KEY.FREEID: the key is free for another TD; this one's pages can be reclaimed."""
        injected = self._begin(TdxLeaf.MNG_KEY_FREEID, tdr, tdr)
        if injected is not None:
            return injected
        td, status = self._tdr(tdr)
        if td is None:
            return Seamcall(status)
        if td.lifecycle is not Lifecycle.BLOCKED:
            return Seamcall(TdxStatus.LIFECYCLE_STATE_INCORRECT)
        if self._wbinvd_left.get(td.hkid):
            return Seamcall(TdxStatus.WBCACHE_NOT_COMPLETE)
        self._wbinvd_left.pop(td.hkid, None)
        td.lifecycle = Lifecycle.TEARDOWN
        return OK

    def _tdr(self, tdr: int) -> tuple[Td | None, int]:
        """The TD of a TDR page, whatever state it's in."""
        if self.pamt.type(tdr) is not PageType.TDR:
            return None, TdxStatus.PAGE_METADATA_INCORRECT | TdxOperand.RCX
        return self.tds[tdr], TdxStatus.SUCCESS

    def _owner(self, tdvpr: int) -> int:
        vp = self.vps.get(tdvpr)
        return vp.td.tdr if vp is not None else -1


def _digest(words: tuple[int, ...]) -> bytes:
    return b"".join(word.to_bytes(8, "little") for word in words)
