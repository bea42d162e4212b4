# SPDX-License-Identifier: GPL-2.0-or-later
"""The profiles.  Sources: the releases named, read as Debian's linux-source packages, and the posted series."""

from __future__ import annotations

import difflib

from ..uapi.kvm import (
    GUEST_MEMFD_FLAG_HUGETLB,
    GUEST_MEMFD_FLAG_INIT_PRIVATE,
    GUEST_MEMFD_FLAG_INIT_SHARED,
    GUEST_MEMFD_FLAG_MMAP,
    GUEST_MEMFD_FLAG_SUPPORT_SHARED,
    GUESTMEM_HUGETLB_FLAG_1GB,
    GUESTMEM_HUGETLB_FLAG_2MB,
    KVM_CAP_GMEM_CONVERSION,
    KVM_CAP_GMEM_SHARED_MEM,
    KVM_DIRTY_LOG_INITIALLY_SET,
    KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
    KVM_HC_MAP_GPA_RANGE,
    KVM_MEMORY_ATTRIBUTE_PRIVATE,
    KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE,
    KVM_SET_MEMORY_ATTRIBUTES2_ZERO,
    Cap,
    VmType,
)
from ..uapi.sev import (
    SNP_POLICY_MASK_API_MAJOR,
    SNP_POLICY_MASK_API_MINOR,
    SNP_POLICY_MASK_CIPHERTEXT_HIDING_DRAM,
    SNP_POLICY_MASK_CXL_ALLOW,
    SNP_POLICY_MASK_DEBUG,
    SNP_POLICY_MASK_MEM_AES_256_XTS,
    SNP_POLICY_MASK_PAGE_SWAP_DISABLE,
    SNP_POLICY_MASK_RAPL_DIS,
    SNP_POLICY_MASK_RSVD_MBO,
    SNP_POLICY_MASK_SINGLE_SOCKET,
    SNP_POLICY_MASK_SMT,
    SVM_SEV_FEAT_DEBUG_SWAP,
    SVM_SEV_FEAT_SECURE_TSC,
)
from .profile import CapValues, Profile

__all__ = ["DEFAULT", "KVM_USER_MEM_SLOTS", "PROFILES", "get"]

KVM_USER_MEM_SLOTS = 32767 - 3
KVM_MAX_VCPUS = 1024
KVM_MAX_VCPU_IDS = 4 * KVM_MAX_VCPUS

_TYPES = (VmType.DEFAULT, VmType.SW_PROTECTED, VmType.SNP)
_TYPES_WITH_TDX = (*_TYPES, VmType.TDX)
_TYPES_7_3 = (*_TYPES_WITH_TDX, VmType.ARM_PROTECTED)
_TYPES_MASK = sum(1 << t for t in _TYPES)
_BOTH = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED
_CONTENT = KVM_SET_MEMORY_ATTRIBUTES2_ZERO | KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE
_RFC_V5_CAP_ATTRIBUTES, _RFC_V5_CAP_FLAGS = 249, 250
_SNP_POLICY = (
    SNP_POLICY_MASK_API_MINOR
    | SNP_POLICY_MASK_API_MAJOR
    | SNP_POLICY_MASK_SMT
    | SNP_POLICY_MASK_RSVD_MBO
    | SNP_POLICY_MASK_DEBUG
)


def _same(value: int) -> CapValues:
    return CapValues(value, value, value)


_MACHINE: dict[int, CapValues] = {
    **dict.fromkeys(
        (
            Cap.IRQCHIP,
            Cap.HLT,
            Cap.SET_TSS_ADDR,
            Cap.EXT_CPUID,
            Cap.CLOCKSOURCE,
            Cap.PIT,
            Cap.NOP_IO_DELAY,
            Cap.MP_STATE,
            Cap.USER_NMI,
            Cap.SET_GUEST_DEBUG,
            Cap.REINJECT_CONTROL,
            Cap.IRQ_INJECT_STATUS,
            Cap.IRQFD,
            Cap.PIT2,
            Cap.SET_BOOT_CPU_ID,
            Cap.PIT_STATE2,
            Cap.IOEVENTFD,
            Cap.SET_IDENTITY_MAP_ADDR,
            Cap.VCPU_EVENTS,
            Cap.DEBUGREGS,
            Cap.X86_ROBUST_SINGLESTEP,
            Cap.ENABLE_CAP,
            Cap.XSAVE,
            Cap.XCRS,
            Cap.TSC_CONTROL,
            Cap.GET_TSC_KHZ,
            Cap.TSC_DEADLINE_TIMER,
            Cap.KVMCLOCK_CTRL,
            Cap.SIGNAL_MSI,
            Cap.EXT_EMUL_CPUID,
            Cap.IOEVENTFD_NO_LENGTH,
            Cap.IOEVENTFD_ANY_LENGTH,
            Cap.DEVICE_CTRL,
            Cap.DISABLE_QUIRKS,
            Cap.SPLIT_IRQCHIP,
            Cap.VCPU_ATTRIBUTES,
            Cap.GET_MSR_FEATURES,
            Cap.EXCEPTION_PAYLOAD,
            Cap.MSR_PLATFORM_INFO,
            Cap.COALESCED_PIO,
            Cap.HALT_POLL,
            Cap.X86_MSR_FILTER,
            Cap.ENFORCE_PV_FEATURE_CPUID,
            Cap.SREGS2,
            Cap.EXIT_ON_EMULATION_FAILURE,
            Cap.VM_TSC_CONTROL,
            Cap.X86_TRIPLE_FAULT_EVENT,
        ),
        _same(1),
    ),
    Cap.COALESCED_MMIO: _same(2),
    Cap.IRQ_ROUTING: _same(4096),
    Cap.ADJUST_CLOCK: _same(2 | 4 | 8),
    Cap.INTR_SHADOW: _same(3),
    Cap.SYNC_REGS: _same(7),
    Cap.X2APIC_API: _same(3),
    Cap.X86_DISABLE_EXITS: _same(15),
    Cap.X86_USER_SPACE_MSR: _same(7),
    Cap.SET_GUEST_DEBUG2: _same(0x1F0003),
    Cap.XSAVE2: _same(4096),
    Cap.DISABLE_QUIRKS2: _same(0xFF),
    Cap.BINARY_STATS_FD: _same(1),
    Cap.MCE: _same(32),
}
"""What a VMM that runs machine code on x86 asks about."""

_COMMON: dict[int, CapValues] = {
    **_MACHINE,
    Cap.USER_MEMORY: _same(1),
    Cap.NR_VCPUS: _same(8),
    Cap.NR_MEMSLOTS: _same(KVM_USER_MEM_SLOTS),
    Cap.SYNC_MMU: _same(1),
    Cap.DESTROY_MEMORY_REGION_WORKS: _same(1),
    Cap.JOIN_MEMORY_REGIONS_WORKS: _same(1),
    Cap.INTERNAL_ERROR_DATA: _same(1),
    Cap.MAX_VCPUS: _same(KVM_MAX_VCPUS),
    Cap.READONLY_MEM: _same(1),
    Cap.ENABLE_CAP_VM: _same(1),
    Cap.CHECK_EXTENSION_VM: _same(1),
    Cap.MULTI_ADDRESS_SPACE: CapValues(2, 2, 1),
    Cap.MAX_VCPU_ID: _same(KVM_MAX_VCPU_IDS),
    Cap.IMMEDIATE_EXIT: _same(1),
    Cap.MANUAL_DIRTY_LOG_PROTECT2: _same(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET),
    Cap.EXIT_HYPERCALL: _same(1 << KVM_HC_MAP_GPA_RANGE),
    Cap.USER_MEMORY2: _same(1),
    Cap.MEMORY_FAULT_INFO: _same(1),
    Cap.VM_TYPES: _same(_TYPES_MASK),
    Cap.PRE_FAULT_MEMORY: _same(1),
    Cap.X86_APIC_BUS_CYCLES_NS: _same(1),
    Cap.X86_GUEST_MODE: _same(1),
    Cap.MEMORY_ATTRIBUTES: CapValues(KVM_MEMORY_ATTRIBUTE_PRIVATE, 0, KVM_MEMORY_ATTRIBUTE_PRIVATE),
    Cap.GUEST_MEMFD: _same(1),
}

LINUX_6_12 = Profile(
    name="linux-6.12",
    title="two pools; guest_memfd can't be mapped; populate holds the invalidate lock throughout",
    source="Linux 6.12.117",
    in_place=False,
    vm_attributes=True,
    vm_attributes_ioctl=True,
    conversion="vm",
    null_source=False,
    removal_filter="init",
    gmem_flags=0,
    init_flag="shared",
    init_shared_with_private_memory=False,
    gmem_for_default_vm=False,
    gmem_only_slots="never",
    populate="locked",
    bind_overlap_is_eexist=False,
    bind_offset_is_unsigned=True,
    fallocate_counts_blocks=False,
    fallocate_modes=0x7B,
    file_name="anon_inode:[kvm-gmem]",
    anon_inodes_noexec=False,
    mremap_moves_many=False,
    mremap_splits_locked=True,
    counts_shadow_pages=False,
    vm_tsc_after_vcpus=True,
    vcpu_encrypt_op=False,
    snp_policy_bits=_SNP_POLICY,
    snp_policy_required=SNP_POLICY_MASK_RSVD_MBO | SNP_POLICY_MASK_SMT,
    snp_vmsa_features=SVM_SEV_FEAT_DEBUG_SWAP,
    snp_min_ghcb_version=1,
    snp_checks_psc_answer=False,
    snp_req_certs=False,
    protected_memory="pinned",
    vm_types=_TYPES,
    caps={**_COMMON, Cap.GUEST_MEMFD: CapValues(1, 0, 1)},
)

LINUX_6_18 = LINUX_6_12._replace(
    name="linux-6.18",
    title="two pools; a default VM's guest_memfd can be mapped and start shared",
    source="Linux 6.18",
    gmem_flags=_BOTH,
    gmem_for_default_vm=True,
    gmem_only_slots="mmap",
    anon_inodes_noexec=True,
    mremap_moves_many=True,
    fallocate_modes=0xFB,
    mremap_splits_locked=False,
    counts_shadow_pages=False,
    vm_tsc_after_vcpus=False,
    vcpu_encrypt_op=True,
    bind_offset_is_unsigned=False,
    snp_policy_bits=_SNP_POLICY | SNP_POLICY_MASK_SINGLE_SOCKET,
    snp_policy_required=SNP_POLICY_MASK_RSVD_MBO,
    snp_vmsa_features=SVM_SEV_FEAT_DEBUG_SWAP | SVM_SEV_FEAT_SECURE_TSC,
    snp_min_ghcb_version=2,
    vm_types=_TYPES_WITH_TDX,
    caps={**_COMMON, Cap.GUEST_MEMFD_FLAGS: CapValues(_BOTH, _BOTH, GUEST_MEMFD_FLAG_MMAP)},
)

LINUX_7_3 = LINUX_6_18._replace(
    name="linux-7.3",
    counts_shadow_pages=True,
    vm_types=_TYPES_7_3,
    title="two pools; populate pins its source first; bindings checked without sign",
    source="Linux 7.3-rc7",
    mremap_splits_locked=True,
    populate="gup-first",
    bind_overlap_is_eexist=True,
    bind_offset_is_unsigned=True,
    file_name="/[kvm-gmem] (deleted)",
    snp_policy_bits=(
        LINUX_6_18.snp_policy_bits
        | SNP_POLICY_MASK_CXL_ALLOW
        | SNP_POLICY_MASK_MEM_AES_256_XTS
        | SNP_POLICY_MASK_RAPL_DIS
        | SNP_POLICY_MASK_CIPHERTEXT_HIDING_DRAM
        | SNP_POLICY_MASK_PAGE_SWAP_DISABLE
    ),
    snp_checks_psc_answer=True,
    snp_req_certs=True,
)

INPLACE_V13 = LINUX_7_3._replace(
    name="inplace-v13",
    title="one pool: pages are converted where they are, by an ioctl on the guest_memfd",
    source="[PATCH v13 00/44] 20260910-gmem-inplace-conversion-v13-0-dd6fbf94f4e1, gmem_in_place_conversion=1; "
    "on Arm with the CCA series, v14",
    in_place=True,
    vm_attributes=False,
    conversion="attributes2",
    null_source=True,
    removal_filter="both",
    init_shared_with_private_memory=True,
    gmem_only_slots="always",
    fallocate_counts_blocks=True,
    vm_types=(*_TYPES_7_3, VmType.ARM_REALM),
    caps={
        **LINUX_7_3.caps,
        Cap.MEMORY_ATTRIBUTES: _same(0),
        Cap.GUEST_MEMFD_FLAGS: _same(_BOTH),
        Cap.GUEST_MEMFD_MEMORY_ATTRIBUTES: CapValues(KVM_MEMORY_ATTRIBUTE_PRIVATE, 0, KVM_MEMORY_ATTRIBUTE_PRIVATE),
    },
)

INPLACE_V8 = INPLACE_V13._replace(
    name="inplace-v8",
    title="one pool, as posted in June 2026: a slot is served from guest_memfd alone only if the file has MMAP",
    source="[PATCH v8 00/46] guest_memfd: in-place conversion, 2026-06-18, gmem_in_place_conversion=1",
    gmem_only_slots="mmap",
)

RFC_V5 = INPLACE_V8._replace(
    name="rfc-v5",
    title="one pool; a conversion may say what becomes of the contents: ZERO or PRESERVE",
    source="[RFC PATCH v5 00/53] guest_memfd: in-place conversion, 2026-04-28, vm_memory_attributes=0",
    vm_attributes_ioctl=False,
    conversion="content",
    caps={
        **LINUX_7_3.caps,
        Cap.MEMORY_ATTRIBUTES: _same(0),
        Cap.GUEST_MEMFD_FLAGS: _same(_BOTH),
        _RFC_V5_CAP_ATTRIBUTES: CapValues(KVM_MEMORY_ATTRIBUTE_PRIVATE, 0, KVM_MEMORY_ATTRIBUTE_PRIVATE),
        _RFC_V5_CAP_FLAGS: CapValues(_CONTENT, 0, _CONTENT),
    },
    cap_names={
        _RFC_V5_CAP_ATTRIBUTES: "GUEST_MEMFD_MEMORY_ATTRIBUTES",
        _RFC_V5_CAP_FLAGS: "GUEST_MEMFD_MEMORY_ATTRIBUTES2_FLAGS",
    },
)

RFC_2025_05 = LINUX_6_12._replace(
    name="rfc-2025-05",
    title="one pool, converted by two ioctls on the guest_memfd; memory may be in folios of 2 MiB or 1 GiB",
    source="[RFC PATCH v2 00/51] 1G page support for guest_memfd, 2025-05-14; capability numbers inferred",
    in_place=True,
    vm_attributes=False,
    conversion="convert",
    removal_filter="both",
    gmem_flags=(
        GUEST_MEMFD_FLAG_SUPPORT_SHARED
        | GUEST_MEMFD_FLAG_INIT_PRIVATE
        | GUEST_MEMFD_FLAG_HUGETLB
        | GUESTMEM_HUGETLB_FLAG_2MB
        | GUESTMEM_HUGETLB_FLAG_1GB
    ),
    init_flag="private",
    init_shared_with_private_memory=True,
    gmem_for_default_vm=True,
    gmem_only_slots="mmap",
    caps={
        **LINUX_6_12.caps,
        Cap.MEMORY_ATTRIBUTES: _same(0),
        KVM_CAP_GMEM_SHARED_MEM: _same(1),
        KVM_CAP_GMEM_CONVERSION: CapValues(1, 0, 1),
    },
    cap_names={KVM_CAP_GMEM_SHARED_MEM: "GMEM_SHARED_MEM", KVM_CAP_GMEM_CONVERSION: "GMEM_CONVERSION"},
)

LINUX_6_18_SHARED_ONLY = LINUX_6_18._replace(
    name="linux-6.18-shared-only",
    title="as linux-6.18, built without private memory, attributes, pre-faulting and SMM, as some distributions' hosts are",
    source="Linux 6.18, CONFIG_KVM_GENERIC_MEMORY_ATTRIBUTES and CONFIG_KVM_SMM off; recorded from a host",
    vm_attributes=False,
    vm_attributes_ioctl=False,
    vm_types=(VmType.DEFAULT,),
    caps={
        **LINUX_6_18.caps,
        Cap.VM_TYPES: _same(1 << VmType.DEFAULT),
        Cap.MEMORY_ATTRIBUTES: _same(0),
        Cap.PRE_FAULT_MEMORY: _same(0),
        Cap.MULTI_ADDRESS_SPACE: _same(0),
        Cap.GUEST_MEMFD_FLAGS: _same(_BOTH),
    },
)

LINUX_7_3_CCA = LINUX_7_3._replace(
    name="linux-7.3-cca",
    title="as linux-7.3, with the Arm CCA series: realms, in two pools",
    source="Linux 7.3-rc7 and the Arm CCA series, v14",
    vm_types=(*_TYPES_7_3, VmType.ARM_REALM),
)

INPLACE_V13_PKVM = INPLACE_V13._replace(
    name="inplace-v13-pkvm",
    title="as inplace-v13; protected VMs of pKVM have their memory in guest_memfd, converted inside KVM_RUN, as proposed",
    source="discussion of [RFC v2 04/51], May 2025: pKVM's proof of concept; never posted as a series, details inferred",
    protected_memory="guest_memfd",
)

CONFIGURATIONS = {p.name: p for p in (LINUX_6_18_SHARED_ONLY, LINUX_7_3_CCA, INPLACE_V13_PKVM)}
"""The same kernels built otherwise, or with more in them: for comparing with real ones that are."""

PROFILES = {p.name: p for p in (LINUX_6_12, LINUX_6_18, LINUX_7_3, RFC_2025_05, RFC_V5, INPLACE_V8, INPLACE_V13)}
DEFAULT = INPLACE_V13.name


def get(name: str) -> Profile:
    """The profile called `name`.  Raises `ValueError` with a sentence that lists what there is."""
    try:
        return PROFILES.get(name) or CONFIGURATIONS[name]
    except KeyError:
        near = difflib.get_close_matches(name, PROFILES, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"there is no profile {name!r}; there are {', '.join(PROFILES)}.{hint}") from None
