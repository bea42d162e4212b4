# SPDX-License-Identifier: GPL-2.0-or-later
"""What a profile says of a kernel."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from ..uapi.kvm import (
    GUEST_MEMFD_FLAG_INIT_PRIVATE,
    GUEST_MEMFD_FLAG_INIT_SHARED,
    GUEST_MEMFD_FLAG_SUPPORT_SHARED,
    VmType,
)

__all__ = ["CapValues", "Profile"]


class CapValues(NamedTuple):
    """What KVM_CHECK_EXTENSION answers: on /dev/kvm, on a default VM, on a VM with private memory."""

    device: int
    default_vm: int
    private_vm: int


class Profile(NamedTuple):
    """One kernel's guest_memfd: its parts, flags, errnos and capabilities.

    `in_place`: a page changes hands where it is; the guest_memfd tracks what is private.  `vm_attributes`: private and
    shared are tracked for the VM (CONFIG_KVM_VM_MEMORY_ATTRIBUTES).  At most one of the two says what is private.
    """

    name: str
    title: str
    source: str
    in_place: bool
    vm_attributes: bool
    vm_attributes_ioctl: bool
    """KVM_SET_MEMORY_ATTRIBUTES is known on a VM, whether or not it can set anything."""
    conversion: str
    """By which call pages are converted: "vm" (KVM_SET_MEMORY_ATTRIBUTES on the VM alone), or on the guest_memfd
    "attributes2" (KVM_SET_MEMORY_ATTRIBUTES2), "content" (the same, with flags for what becomes of the contents) or
    "convert" (KVM_GMEM_CONVERT_SHARED and _PRIVATE)."""
    null_source: bool
    """Population without a source takes what is in the page already."""
    removal_filter: str
    """Which views a punch, release or memory error takes away: "init" (the one the file started with) or "both"."""
    gmem_flags: int
    """Creation flags that exist: GUEST_MEMFD_FLAG_*."""
    init_flag: str
    """What the second creation flag says: "shared" (INIT_SHARED; else the memory starts private) or "private" (INIT_PRIVATE,
    for memory that can be shared; it starts shared otherwise)."""
    init_shared_with_private_memory: bool
    """INIT_SHARED is allowed for a VM that has private memory."""
    gmem_for_default_vm: bool
    """A default VM may bind a guest_memfd."""
    gmem_only_slots: str
    """Which slots are served from guest_memfd alone: "never", "mmap" (the file has MMAP) or "always"."""
    populate: str
    """"locked": the source is read under the invalidate lock, for the whole range; "gup-first": page by page, before it."""
    bind_overlap_is_eexist: bool
    bind_offset_is_unsigned: bool
    fallocate_counts_blocks: bool
    """st_blocks tells what is allocated; otherwise it's always 0."""
    fallocate_modes: int
    """The bits of fallocate()'s mode that the kernel knows, for whatever file."""
    file_name: str
    anon_inodes_noexec: bool
    """Files of KVM's own can't be mapped PROT_EXEC, whatever else would be said to it."""
    mremap_moves_many: bool
    """mremap() that only moves takes several mappings at once."""
    mremap_splits_locked: bool
    """MREMAP_DONTUNMAP unlocks only what it moves, not all of the mapping."""
    counts_shadow_pages: bool
    """A VM's statistics have mmu_shadow_pages."""
    vm_tsc_after_vcpus: bool
    """The frequency that new vCPUs get can be set while there are others already."""
    vcpu_encrypt_op: bool
    """KVM_MEMORY_ENCRYPT_OP is known on a vCPU, as TDX has commands for one."""
    snp_policy_bits: int
    """Bits of an SNP guest's policy that KVM knows."""
    snp_policy_required: int
    """Those that must be set."""
    snp_vmsa_features: int
    """SEV_FEATURES that KVM_SEV_INIT2 may ask for."""
    snp_min_ghcb_version: int
    """What KVM_SEV_INIT2 may ask for at least; 0 stands for 2."""
    snp_checks_psc_answer: bool
    """User space may answer a guest's page-state change with 0, EAGAIN or EINVAL only."""
    snp_req_certs: bool
    """KVM_SEV_SNP_ENABLE_REQ_CERTS exists."""
    protected_memory: str
    """What a protected VM of pKVM has for memory: "pinned" (the process's own, pinned page by page) or "guest_memfd" (as
    proposed, with slots of the other kind as they were)."""
    vm_types: tuple[VmType, ...]
    caps: Mapping[int, CapValues]
    cap_names: Mapping[int, str] = MappingProxyType({})
    """Capabilities whose number means something else here than in `uapi.kvm.Cap`."""

    @property
    def vm_types_mask(self) -> int:
        """KVM_CAP_VM_TYPES, which only x86 has."""
        return sum(1 << t for t in self.vm_types if t <= VmType.TDX)

    @property
    def shared_at_first(self) -> int:
        """Creation flags of memory that can be mapped and starts shared; 0 if a VM with private memory can't have it."""
        if not self.init_shared_with_private_memory:
            return 0
        return GUEST_MEMFD_FLAG_SUPPORT_SHARED if self.init_flag == "private" else self.gmem_flags

    @property
    def shared_at_first_words(self) -> str:
        """Those flags by name."""
        if self.init_flag == "private":
            return "SUPPORT_SHARED"
        return "MMAP|INIT_SHARED" if self.shared_at_first else "no flags"

    @property
    def conversion_call(self) -> str:
        """The ioctl that converts, and on what."""
        return {
            "vm": "KVM_SET_MEMORY_ATTRIBUTES, VM",
            "convert": "KVM_GMEM_CONVERT_*, guest_memfd",
        }.get(self.conversion, "KVM_SET_MEMORY_ATTRIBUTES2, guest_memfd")

    def starts_shared(self, flags: int) -> bool:
        """Whether memory created with `flags` starts shared."""
        if self.init_flag == "private":
            return flags & (GUEST_MEMFD_FLAG_SUPPORT_SHARED | GUEST_MEMFD_FLAG_INIT_PRIVATE) == 1
        return bool(flags & GUEST_MEMFD_FLAG_INIT_SHARED)

    def gmem_flags_for(self, has_private_mem: bool) -> int:
        """KVM_CAP_GUEST_MEMFD_FLAGS for a VM with or without private memory."""
        if has_private_mem and not self.init_shared_with_private_memory:
            return self.gmem_flags & ~2
        return self.gmem_flags
