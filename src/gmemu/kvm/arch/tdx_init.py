# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_TDX_CAPABILITIES, _INIT_VM, _INIT_VCPU and _GET_CPUID (arch/x86/kvm/vmx/tdx.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...mm.uaccess import copy_from_user, copy_to_user, read_user, write_user
from ...rules import KernelError
from ...rules import tdx as rules
from ...uapi.kvm import MpState
from ...uapi.kvm_x86 import KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid2, kvm_cpuid_entry2
from ...uapi.tdx import (
    KVM_MAX_CPUID_ENTRIES,
    TDVMCALLINFO_SETUP_EVENT_NOTIFY_INTERRUPT,
    TDX_CONFIG_FLAGS_MAX_GPAW,
    TDX_CONFIG_FLAGS_NO_RBP_MOD,
    TdAttributes,
    TdxStatus,
    kvm_tdx_capabilities,
    kvm_tdx_cmd,
    kvm_tdx_init_vm,
    status_of,
    status_text,
    td_params,
)
from ..tdx_platform import sc_retry

if TYPE_CHECKING:
    from ..vcpu import Vcpu
    from .tdx import TdxVm

__all__ = ["get_capabilities", "td_init", "vcpu_get_cpuid", "vcpu_init"]

KVM_SUPPORTED_TDX_TD_ATTRS = int(TdAttributes.SEPT_VE_DISABLE)
NO_SUBLEAF = 0xFFFFFFFF
SHARED_BIT_PWL_4, SHARED_BIT_PWL_5 = 1 << 47 - 12, 1 << 51 - 12
TSC_25MHZ = 80
X2APIC, HLE_RTM, WAITPKG = 1 << 21, 1 << 4 | 1 << 11, 1 << 5
_EPTP_4_LEVELS, _EPTP_5_LEVELS = 6 | 3 << 3, 6 | 4 << 3
_UNREADABLE_LEAF = 0x7FFFFF80


# CAPABILITIES


def _supported_attributes(td: TdxVm) -> int:
    """tdx_get_supported_attrs()."""
    info = td.module.info
    return KVM_SUPPORTED_TDX_TD_ATTRS & info.attributes_fixed0


def _configurable(td: TdxVm) -> list[kvm_cpuid_entry2]:
    """td_init_cpuid_entry2() for each configurable leaf: without TSX and WAITPKG, with the physical address width."""
    entries = []
    for leaf, subleaf, (eax, ebx, ecx, edx) in td.module.info.cpuid_config:
        entry = kvm_cpuid_entry2(
            function=leaf, index=0 if subleaf == NO_SUBLEAF else subleaf, eax=eax, ebx=ebx, ecx=ecx, edx=edx
        )
        if leaf == 0x80000008:
            entry.eax |= 0xFF0000
        if (leaf, entry.index) == (7, 0):
            entry.ebx &= ~HLE_RTM
            entry.ecx &= ~WAITPKG
        entries.append(entry)
    return entries


def get_capabilities(td: TdxVm, cmd: kvm_tdx_cmd) -> None:
    """tdx_get_capabilities()."""
    mm = td.vm.rt.current.mm
    if cmd.flags:
        raise rules.CAPS_FLAGS(f"flags {cmd.flags:#x}")
    room = copy_from_user(mm, kvm_cpuid2, cmd.data + kvm_tdx_capabilities.OFFSETS["cpuid"]).nent
    entries = _configurable(td)
    if room < len(entries):
        raise rules.CAPS_ROOM(f"{room}, {len(entries)} needed")
    caps = kvm_tdx_capabilities(
        supported_attrs=_supported_attributes(td),
        supported_xfam=td.module.info.xfam_fixed0,
        user_tdvmcallinfo_1_r11=TDVMCALLINFO_SETUP_EVENT_NOTIFY_INTERRUPT,
        cpuid=kvm_cpuid2(nent=len(entries)),
    )
    write_user(mm, cmd.data, caps.pack() + b"".join(entry.pack() for entry in entries))


# INIT_VM


def td_init(td: TdxVm, cmd: kvm_tdx_cmd) -> None:
    """tdx_td_init()."""
    from .tdx import TdState

    mm = td.vm.rt.current.mm
    if td.state is not TdState.UNINITIALIZED:
        raise rules.INIT_STATE(f"TD state {td.state.name}")
    if cmd.flags:
        raise rules.INIT_FLAGS(f"flags {cmd.flags:#x}")
    nent = copy_from_user(mm, kvm_cpuid2, cmd.data + kvm_tdx_init_vm.OFFSETS["cpuid"]).nent
    if nent > KVM_MAX_CPUID_ENTRIES:
        raise rules.INIT_NENT(f"{nent}")
    size = kvm_cpuid_entry2.SIZE
    raw = read_user(mm, cmd.data, kvm_tdx_init_vm.SIZE + nent * size)
    init_vm = kvm_tdx_init_vm.unpack_from(raw)
    entries = [kvm_cpuid_entry2.unpack_from(raw, kvm_tdx_init_vm.SIZE + i * size) for i in range(nent)]
    if any(init_vm.reserved):
        raise rules.INIT_RESERVED(f"{init_vm.reserved}")
    if init_vm.cpuid.padding or init_vm.cpuid.nent != nent:
        raise rules.INIT_PADDING(f"padding {init_vm.cpuid.padding:#x}, nent {init_vm.cpuid.nent} then {nent}")
    td.vm.host.allocate("td-params")
    params = _setup_tdparams(td, init_vm, entries)
    _create_td(td, params, cmd)
    td.attributes, td.xfam = params.attributes, params.xfam
    wide = params.config_flags & TDX_CONFIG_FLAGS_MAX_GPAW
    td.gfn_direct_bits = SHARED_BIT_PWL_5 if wide else SHARED_BIT_PWL_4
    td.state = TdState.INITIALIZED


def _setup_tdparams(td: TdxVm, init_vm: kvm_tdx_init_vm, entries: list[kvm_cpuid_entry2]) -> td_params:
    """setup_tdparams()."""
    info = td.module.info
    if td.vm.created_vcpus:
        raise rules.INIT_VCPUS(f"{td.vm.created_vcpus} exist")
    supported = _supported_attributes(td)
    if init_vm.attributes & ~supported:
        raise rules.INIT_ATTRIBUTES(f"{init_vm.attributes:#x}, supported {supported:#x}")
    if init_vm.xfam & ~info.xfam_fixed0:
        raise rules.INIT_XFAM(f"{init_vm.xfam:#x}, supported {info.xfam_fixed0:#x}")
    config_flags = TDX_CONFIG_FLAGS_NO_RBP_MOD
    width = next((e.eax >> 16 & 0xFF for e in entries if (e.function, e.index) == (0x80000008, 0)), 0)
    if width not in (48, 52) or (width == 52 and not info.ept_5_levels):
        raise rules.INIT_GPAW(f"{width}" if width else "no such leaf")
    if width == 52:
        config_flags |= TDX_CONFIG_FLAGS_MAX_GPAW
    return td_params(
        attributes=init_vm.attributes | info.attributes_fixed1,
        xfam=init_vm.xfam | info.xfam_fixed1,
        max_vcpus=info.max_vcpus_per_td,
        eptp_controls=_EPTP_5_LEVELS if width == 52 else _EPTP_4_LEVELS,
        config_flags=config_flags,
        tsc_frequency=TSC_25MHZ,
        mrconfigid=init_vm.mrconfigid,
        mrowner=init_vm.mrowner,
        mrownerconfig=init_vm.mrownerconfig,
        cpuid_values=_cpuid_values(td, entries),
    )


def _cpuid_values(td: TdxVm, entries: list[kvm_cpuid_entry2]) -> tuple[int, ...]:
    """setup_tdparams_cpuids(): each entry in the module's order; one that has no place there is refused."""
    values, copied = [0] * 192, 0
    for at, (leaf, subleaf, _) in enumerate(td.module.info.cpuid_config):
        index = 0 if subleaf == NO_SUBLEAF else subleaf
        entry = next((e for e in entries if (e.function, e.index) == (leaf, index)), None)
        if entry is None:
            continue
        if (leaf, index) == (7, 0) and (entry.ebx & HLE_RTM or entry.ecx & WAITPKG):
            raise rules.INIT_CPUID("leaf 7 with TSX or WAITPKG")
        copied += 1
        eax = entry.eax & ~0xFF0000 if leaf == 0x80000008 else entry.eax
        values[4 * at : 4 * at + 4] = eax, entry.ebx, entry.ecx, entry.edx
    if copied != len(entries):
        raise rules.INIT_CPUID(f"{len(entries)} entries, {copied} of them configurable")
    return tuple(values)


def _create_td(td: TdxVm, params: td_params, cmd: kvm_tdx_cmd) -> None:
    """__tdx_td_init(): key, TDR, TDCS, TDH.MNG.INIT.  A failure takes down what was built."""
    platform, module = td.platform, td.module
    td.hkid = platform.hkid_alloc()
    pages: list[int] = []
    try:
        for _ in range(1 + module.info.tdcs_pages):
            pages.append(platform.alloc_page())
        with platform.tdx_lock:
            status = sc_retry(lambda: module.mng_create(pages[0], td.hkid)).status
        if status == TdxStatus.RND_NO_ENTROPY:
            raise rules.INIT_ENTROPY("TDH.MNG.CREATE")
        if status:
            raise td.bug(status, "TDH_MNG_CREATE")
    except KernelError:
        for pfn in pages:
            platform.free_page(pfn)
        platform.hkid_free(td.hkid)
        td.hkid = 0
        raise
    td.tdr, unused = pages[0], pages[1:]
    try:
        _configure_td(td, params, cmd, unused)
    except KernelError:
        for pfn in unused:
            platform.free_page(pfn)
        td.release_hkid()
        td.reclaim_td_control_pages()
        raise


def _configure_td(td: TdxVm, params: td_params, cmd: kvm_tdx_cmd, unused: list[int]) -> None:
    """The part of __tdx_td_init() after the TDR exists; pages that the module took leave `unused`."""
    module = td.module
    for _ in range(module.info.packages):
        status = sc_retry(lambda: module.mng_key_config(td.tdr)).status
        if status:
            raise td.bug(status, "TDH_MNG_KEY_CONFIG")
    while unused:
        status = sc_retry(lambda: module.mng_addcx(td.tdr, unused[0])).status
        if status == TdxStatus.RND_NO_ENTROPY:
            raise rules.INIT_ENTROPY("TDH.MNG.ADDCX")
        if status:
            raise td.bug(status, "TDH_MNG_ADDCX")
        td.tdcs_pages.append(unused.pop(0))
    status = module.mng_init(td.tdr, params).status
    if status and status_of(status) is TdxStatus.OPERAND_INVALID:
        cmd.hw_error = status
        raise rules.INIT_OPERAND(status_text(status))
    if status:
        raise td.bug(status, "TDH_MNG_INIT")


# INIT_VCPU


def vcpu_init(td: TdxVm, vcpu: Vcpu, cmd: kvm_tdx_cmd) -> None:
    """tdx_vcpu_init() and tdx_td_vcpu_init(); `cmd.data` is RCX when the vCPU starts."""
    tdx = td.vcpus[vcpu]
    if cmd.flags:
        raise rules.INIT_VCPU_FLAGS(f"flags {cmd.flags:#x}")
    if tdx.initialized:
        raise rules.INIT_VCPU_AGAIN(f"{vcpu}")
    entries = [kvm_cpuid_entry2.unpack_from(raw) for raw in vcpu.cpuid]
    if not any(entry.function == 1 and entry.ecx & X2APIC for entry in entries):
        raise rules.INIT_VCPU_APIC(f"{vcpu} with {len(entries)} CPUID leaves")
    platform, module = td.platform, td.module
    pages: list[int] = []
    try:
        for _ in range(module.info.tdvps_pages):
            pages.append(platform.alloc_page())
        status = module.vp_create(td.tdr, pages[0]).status
        if status:
            raise td.bug(status, "TDH_VP_CREATE")
    except KernelError:
        for pfn in pages:
            platform.free_page(pfn)
        raise
    tdx.tdvpr, unused = pages[0], pages[1:]
    while unused:
        status = module.vp_addcx(tdx.tdvpr, unused[0]).status
        if status:
            for pfn in unused:
                platform.free_page(pfn)
            raise td.bug(status, "TDH_VP_ADDCX")
        tdx.tdcx_pages.append(unused.pop(0))
    tdx.last_cpu = td.vm.rt.current.cpu
    with td.vm.mmu_lock.exclusive:
        status = module.vp_init(tdx.tdvpr, cmd.data, tdx.last_cpu).status
    if status:
        raise td.bug(status, "TDH_VP_INIT")
    tdx.cpu.vp = module.vps[tdx.tdvpr]
    vcpu.mp_state = MpState.RUNNABLE
    tdx.initialized = True


# GET_CPUID


def vcpu_get_cpuid(td: TdxVm, cmd: kvm_tdx_cmd) -> None:
    """tdx_vcpu_get_cpuid(): what the TD's CPUID returns, as far as the module tells; E2BIG comes with how many there are."""
    mm = td.vm.rt.current.mm
    head = copy_from_user(mm, kvm_cpuid2, cmd.data)
    entries: list[kvm_cpuid_entry2] = []
    for first in (0, 0x80000000):
        if not _read_leaf(td, first, entries):
            raise rules.CPUID_READ(f"leaf {first:#x}")
        for leaf in range(first + 1, entries[-1].eax + 1):
            _read_leaf(td, leaf, entries)
    room, head.nent = head.nent, len(entries)
    copy_to_user(mm, cmd.data, head)
    if room < len(entries):
        raise rules.CPUID_ROOM(f"{room}, {len(entries)} needed")
    write_user(mm, cmd.data + kvm_cpuid2.SIZE, b"".join(entry.pack() for entry in entries))


def _read_leaf(td: TdxVm, leaf: int, entries: list[kvm_cpuid_entry2]) -> bool:
    """tdx_vcpu_get_cpuid_leaf(): the leaf itself, or as many sub-leaves as there are."""
    if leaf & _UNREADABLE_LEAF:
        return False
    if _read_cpuid(td, leaf, None, entries):
        return True
    subleaf = 0
    while subleaf < 0x80 and _read_cpuid(td, leaf, subleaf, entries):
        subleaf += 1
    return subleaf > 0


def _read_cpuid(td: TdxVm, leaf: int, subleaf: int | None, entries: list[kvm_cpuid_entry2]) -> bool:
    """tdx_read_cpuid()."""
    result, (eax, ebx, ecx, edx) = td.module.mng_rd_cpuid(td.tdr, leaf, subleaf)
    if result.status:
        return False
    if leaf == 0x80000008:
        width = 52 if td.gfn_direct_bits == SHARED_BIT_PWL_5 else 48
        eax = (eax & ~0xFF0000) | width << 16
    entries.append(
        kvm_cpuid_entry2(
            function=leaf,
            index=subleaf or 0,
            flags=0 if subleaf is None else KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax=eax,
            ebx=ebx,
            ecx=ecx,
            edx=edx,
        )
    )
    return True
