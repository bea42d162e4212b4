# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules of pKVM: KVM's half, and what the hypervisor's refusals come to."""

from __future__ import annotations

from errno import EFAULT, EINVAL, EIO, ENOMEM, ENOTTY, EPERM
from typing import TYPE_CHECKING

from .base import rule

if TYPE_CHECKING:
    from ..profiles import Profile

_MMU = "arch/arm64/kvm/mmu.c: "
_PKVM = "arch/arm64/kvm/pkvm.c: "
_PROPOSED = "[RFC v2 04/51] of 2025-05, discussion of pKVM's proof of concept"


def _in_guest_memfd(profile: Profile) -> bool:
    return profile.protected_memory == "guest_memfd"


NO_HANDLE = rule(
    "pkvm.create-vm.handle",
    ENOMEM,
    "the hypervisor has handles for 255 VMs",
    _PKVM + "pkvm_init_host_vm(), __pkvm_reserve_vm()",
)
SLOT_FLAGS = rule(
    "pkvm.slot.flags",
    EPERM,
    "a protected VM's memslot can be neither read-only nor logged",
    _MMU + "kvm_arch_prepare_memory_region()",
)
SLOT_FIXED = rule(
    "pkvm.slot.fixed",
    EPERM,
    "a protected VM's memslots stay where they are once it has run",
    _MMU + "kvm_arch_prepare_memory_region()",
)
INIT_VM = rule(
    "pkvm.init-vm",
    EINVAL,
    "the hypervisor must take the VM and its vCPUs when one is first run",
    _PKVM + "pkvm_create_hyp_vm(), pkvm_create_hyp_vcpu()",
)
MEMLOCK = rule(
    "pkvm.fault.memlock",
    ENOMEM,
    "each page of a protected VM counts as locked memory of the process that runs it (RLIMIT_MEMLOCK)",
    _MMU + "pkvm_mem_abort(), account_locked_vm()",
    advice="Raise the limit, or give the process CAP_IPC_LOCK.",
)
PIN = rule(
    "pkvm.fault.pin",
    EFAULT,
    "the page behind a protected guest's fault must be one that can be pinned for long",
    _MMU + "pkvm_mem_abort(), pin_user_pages()",
)
NOT_SWAP_BACKED = rule(
    "pkvm.fault.swap-backed",
    EIO,
    "a protected guest's page must be anonymous or of shmem: a file's page may be written back",
    _MMU + "pkvm_mem_abort()",
)
POISONED = rule(
    "pkvm.fault.poisoned",
    EFAULT,
    "a guest's page that the host took back by force is lost to the guest for good",
    _PKVM + "pkvm_pgtable_stage2_map(), __pkvm_vcpu_in_poison_fault()",
    advice="The host's kernel touched it through a mapping of its own, as for the copy that fork() makes of a pinned page.",
)
DONATE = rule(
    "pkvm.donate",
    EPERM,
    "a page that is donated to a guest must be the host's alone, and the guest have none there",
    "arch/arm64/kvm/hyp/nvhe/mem_protect.c: __pkvm_host_donate_guest()",
)
MEMCACHE = rule(
    "pkvm.donate.memcache",
    ENOMEM,
    "the vCPU's cache of table pages must hold what a mapping may need",
    "arch/arm64/kvm/hyp/nvhe/mem_protect.c: __guest_check_pgtable_memcache()",
    advice="The next KVM_RUN fills it up and meets the same fault.",
)
SHARE = rule(
    "pkvm.share",
    EPERM,
    "a page that is shared with an ordinary guest must be the host's, or be shared with such guests already",
    "arch/arm64/kvm/hyp/nvhe/mem_protect.c: __pkvm_host_share_guest()",
)
HOST_STAGE2 = rule(
    "pkvm.host-stage2",
    EFAULT,
    "a page that was donated to a guest isn't mapped for the host",
    "arch/arm64/mm/fault.c: do_page_fault(); mem_protect.c: host_inject_mem_abort()",
    signal="SIGSEGV",
)
HELD = rule(
    "pkvm.fault.held",
    EFAULT,
    "a guest gets a page of guest_memfd once nobody on the host's side holds it",
    _PROPOSED + ", continuation 2b",
    advice="Drop what you hold of the page at memory_fault.gpa (pins, mappings for devices), and run the vCPU again.",
    when=_in_guest_memfd,
)
GUEST_CONVERTS = rule(
    "pkvm.attributes.guest-converts",
    ENOTTY,
    "a protected VM's memory is converted inside KVM_RUN when its guest asks; user space has no call for it",
    _PROPOSED,
    advice="On KVM_EXIT_UNSHARE drop what you hold of the page, and run the vCPU again.",
    when=_in_guest_memfd,
)
GUEST_SHARES = rule(
    "pkvm.attributes.guest-shares",
    EPERM,
    "user space can make a protected VM's memory private when its guest asks; only the guest can share it",
    _PROPOSED,
    when=_in_guest_memfd,
)
