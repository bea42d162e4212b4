# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules of TDX VMs: the KVM_TDX_* commands, and the SEAMCALLs behind them."""

from __future__ import annotations

from errno import E2BIG, EAGAIN, EBUSY, EINTR, EINVAL, EIO, ENOSPC, EOPNOTSUPP
from typing import TYPE_CHECKING

from .base import rule

if TYPE_CHECKING:
    from ..profiles import Profile

_TDX = "arch/x86/kvm/vmx/tdx.c: "
_MAIN = "arch/x86/kvm/vmx/main.c: "


def _gup_first(profile: Profile) -> bool:
    return profile.populate == "gup-first"


def _locked(profile: Profile) -> bool:
    return profile.populate == "locked"


VCPU_NOT_TD = rule(
    "tdx.vcpu-cmd.not-td",
    EINVAL,
    "KVM_MEMORY_ENCRYPT_OP on a vCPU needs a TDX VM",
    _MAIN + "vt_vcpu_mem_enc_unlocked_ioctl()",
)
HW_ERROR = rule("tdx.cmd.hw-error", EINVAL, "kvm_tdx_cmd.hw_error must be 0: KVM writes it", _TDX + "tdx_get_cmd()")
UNKNOWN_VM_COMMAND = rule("tdx.cmd.unknown", EINVAL, "the VM's command must be known", _TDX + "tdx_vm_ioctl()")
UNKNOWN_VCPU_COMMAND = rule("tdx.vcpu-cmd.unknown", EINVAL, "the vCPU's command must be known", _TDX + "tdx_vcpu_ioctl()")
VCPU_COMMAND_STATE = rule(
    "tdx.vcpu-cmd.state",
    EINVAL,
    "a vCPU's commands come after KVM_TDX_INIT_VM and before KVM_TDX_FINALIZE_VM",
    _TDX + "tdx_vcpu_unlocked_ioctl(), tdx_vcpu_ioctl()",
)

CAPS_FLAGS = rule("tdx.capabilities.flags", EINVAL, "flags must be 0", _TDX + "tdx_get_capabilities()")
CAPS_ROOM = rule(
    "tdx.capabilities.nent",
    E2BIG,
    "cpuid.nent must leave room for every configurable leaf",
    _TDX + "tdx_get_capabilities()",
    advice="Try again with more.",
)

INIT_STATE = rule("tdx.init-vm.again", EINVAL, "a VM is initialised once", _TDX + "tdx_td_init()")
INIT_FLAGS = rule("tdx.init-vm.flags", EINVAL, "flags must be 0", _TDX + "tdx_td_init()")
INIT_NENT = rule("tdx.init-vm.nent", E2BIG, "cpuid.nent must be no more than 256", _TDX + "tdx_td_init()")
INIT_RESERVED = rule("tdx.init-vm.reserved", EINVAL, "reserved must be 0", _TDX + "tdx_td_init()")
INIT_PADDING = rule(
    "tdx.init-vm.padding", EINVAL, "cpuid.padding must be 0, and cpuid.nent may not change meanwhile", _TDX + "tdx_td_init()"
)
INIT_VCPUS = rule("tdx.init-vm.vcpus", EBUSY, "KVM_TDX_INIT_VM comes before the first vCPU", _TDX + "setup_tdparams()")
INIT_ATTRIBUTES = rule(
    "tdx.init-vm.attributes",
    EINVAL,
    "attributes must be among those that KVM_TDX_CAPABILITIES tells",
    _TDX + "setup_tdparams()",
)
INIT_XFAM = rule("tdx.init-vm.xfam", EINVAL, "xfam must be among what KVM_TDX_CAPABILITIES tells", _TDX + "setup_tdparams()")
INIT_GPAW = rule(
    "tdx.init-vm.gpaw",
    EINVAL,
    "cpuid must have leaf 0x80000008 with 48 or 52 in EAX[23:16], the guest's physical address width",
    _TDX + "setup_tdparams_eptp_controls()",
)
INIT_CPUID = rule(
    "tdx.init-vm.cpuid",
    EINVAL,
    "cpuid must hold only leaves that KVM_TDX_CAPABILITIES tells, without TSX and WAITPKG",
    _TDX + "setup_tdparams_cpuids()",
)
INIT_HKID = rule(
    "tdx.init-vm.hkid", ENOSPC, "there must be a free private key id", "arch/x86/virt/vmx/tdx/tdx.c: tdx_guest_keyid_alloc()"
)
INIT_ENTROPY = rule("tdx.init-vm.entropy", EAGAIN, "the processor must have entropy for a key", _TDX + "__tdx_td_init()")
INIT_OPERAND = rule(
    "tdx.init-vm.td-params",
    EINVAL,
    "the TDX module must accept TD_PARAMS; hw_error says which part it doesn't",
    _TDX + "__tdx_td_init()",
)

VCPU_CREATE_STATE = rule(
    "tdx.vcpu-create.state",
    EIO,
    "a vCPU is created between KVM_TDX_INIT_VM and KVM_TDX_FINALIZE_VM",
    _TDX + "tdx_vcpu_create()",
)
INIT_VCPU_FLAGS = rule("tdx.init-vcpu.flags", EINVAL, "flags must be 0", _TDX + "tdx_vcpu_init()")
INIT_VCPU_AGAIN = rule("tdx.init-vcpu.again", EINVAL, "a vCPU is initialised once", _TDX + "tdx_vcpu_init()")
INIT_VCPU_APIC = rule(
    "tdx.init-vcpu.x2apic",
    EINVAL,
    "the vCPU's CPUID must have x2APIC (leaf 1, ECX bit 21), which TDX needs",
    _TDX + "tdx_vcpu_init()",
    advice="Call KVM_SET_CPUID2 first.",
)

REGION_VCPU = rule(
    "tdx.init-mem-region.vcpu",
    EINVAL,
    "KVM_TDX_INIT_VCPU must have been done on this vCPU",
    _TDX + "tdx_vcpu_init_mem_region()",
)
REGION_FLAGS = rule(
    "tdx.init-mem-region.flags",
    EINVAL,
    "flags may only have KVM_TDX_MEASURE_MEMORY_REGION",
    _TDX + "tdx_vcpu_init_mem_region()",
)
REGION_NO_SOURCE = rule(
    "tdx.init-mem-region.no-source",
    EINVAL,
    "source_addr may not be 0: only with in-place conversion is the target page its own source",
    _TDX + "tdx_vcpu_init_mem_region()",
    when=lambda profile: _gup_first(profile) and not profile.null_source,
)
REGION_RANGE = rule(
    "tdx.init-mem-region.range",
    EINVAL,
    "source_addr and gpa must be page aligned, the region not empty, and all of it private",
    _TDX + "tdx_vcpu_init_mem_region()",
)
REGION_SIGNAL = rule("tdx.init-mem-region.signal", EINTR, "no signal may be pending", _TDX + "tdx_vcpu_init_mem_region()")
POPULATE_NO_SOURCE = rule(
    "tdx.populate.no-source",
    EOPNOTSUPP,
    "a source is needed: the target page can't be its own without in-place conversion",
    _TDX + "tdx_gmem_post_populate()",
    when=_locked,
)
DOUBLE_ADD = rule(
    "tdx.populate.mapped",
    EIO,
    "the page may not be in the secure EPT already: anything but a fresh mapping is refused",
    "arch/x86/kvm/mmu/mmu.c: kvm_tdp_mmu_map_private_pfn()",
)
ADD_BUSY = rule(
    "tdx.populate.busy", EBUSY, "nobody else may be at the secure EPT entry", _TDX + "tdx_gmem_post_populate()", when=_locked
)
ADD_FAILED = rule(
    "tdx.populate.seamcall", EIO, "the TDX module must accept the page", _TDX + "tdx_gmem_post_populate()", when=_locked
)

FINALIZE_STATE = rule(
    "tdx.finalize.state", EINVAL, "KVM_TDX_FINALIZE_VM comes after KVM_TDX_INIT_VM, and once", _TDX + "tdx_td_finalize()"
)
FINALIZE_BUSY = rule("tdx.finalize.busy", EBUSY, "nobody else may be at the TD", _TDX + "tdx_td_finalize()")

CPUID_ROOM = rule(
    "tdx.get-cpuid.nent",
    E2BIG,
    "nent must leave room for every leaf; it comes back with how many",
    _TDX + "tdx_vcpu_get_cpuid()",
)
CPUID_READ = rule(
    "tdx.get-cpuid.read", EIO, "the TDX module must tell its highest CPUID leaves", _TDX + "tdx_vcpu_get_cpuid()"
)

RUN_NOT_INITIALIZED = rule(
    "tdx.run.not-initialized",
    EINVAL,
    "KVM_RUN comes after KVM_TDX_INIT_VCPU and KVM_TDX_FINALIZE_VM",
    _TDX + "tdx_vcpu_needs_initialization()",
)
NOT_ACCEPTED = rule(
    "tdx.run.not-accepted",
    EIO,
    "a guest with SEPT_VE_DISABLE must accept memory before it touches it; it has no way to go on",
    _TDX + "tdx_handle_ept_violation()",
)
GFN_ALIAS = rule(
    "tdx.slot.shared-bit",
    EINVAL,
    "a memslot must end below the shared bit",
    "arch/x86/kvm/x86.c: kvm_arch_prepare_memory_region()",
)
PREFAULT_ALIAS = rule(
    "tdx.prefault.shared-bit",
    EINVAL,
    "gpa must come without the shared bit",
    "arch/x86/kvm/mmu/mmu.c: kvm_arch_vcpu_pre_fault_memory()",
)
