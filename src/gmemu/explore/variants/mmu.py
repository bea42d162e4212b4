# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's faults handled otherwise."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from ...kvm.arch.snp_rmp_fault import handle_rmp_fault_unchecked
from ...kvm.mmu import is_page_fault_stale
from .variant import Variant

if TYPE_CHECKING:
    from ...kvm.arch import VmArch
    from ...kvm.guest_memfd.inode import GmemInode
    from ...kvm.memslots import Memslot
    from ...kvm.mmu import PageFault
    from ...kvm.vm import Vm

__all__ = ["VARIANTS"]


def _never_stale(vm: Vm, fault: PageFault) -> bool:
    """Map what was found, whatever happened since."""
    return False


def _look_again_locked(vm: Vm, fault: PageFault) -> bool:
    """Under mmu_lock, look the attribute up again as the host's fault does: under the invalidate lock."""
    file = fault.slot.gmem_file if fault.slot is not None else None
    if file is None:
        return is_page_fault_stale(vm, fault)
    with file.gmem_inode.mapping.invalidate_lock.shared:
        return vm.attributes.is_private(fault.gfn) != fault.private


def _unlocked(inode: GmemInode, index: int) -> AbstractContextManager[None]:
    """Nothing is held."""
    return nullcontext()


def _shared_too(vm: Vm, inode: GmemInode, slot: Memslot, gfn: int, pfn: int) -> None:
    """Tell the trusted entity of whatever a guest is about to get."""
    vm.arch.make_private(gfn, pfn, 1)


def _always(arch: VmArch) -> bool:
    """Map whatever is asked for, launch or no launch."""
    return True


VARIANTS = (
    Variant(
        "no-seq-retry",
        "a guest fault doesn't look again, under mmu_lock, whether an invalidation went by",
        "S11; arch/x86/kvm/mmu/mmu.c: is_page_fault_stale()",
        lambda d: d._replace(is_page_fault_stale=_never_stale),
    ),
    Variant(
        "attribute-lookup-locked",
        "a guest fault looks the attribute up under mmu_lock, by a lookup that takes the invalidate lock",
        "S03; seen in RFC v4 where dirty logging ends, which holds mmu_lock too; lookups go by RCU since",
        lambda d: d._replace(is_page_fault_stale=_look_again_locked),
    ),
    Variant(
        "guest-lookup-unlocked",
        "a guest fault looks its page up without the invalidate lock",
        "guest-memfd 3.1; what storing the attribute too early takes to do harm",
        lambda d: d._replace(guest_lookup=_unlocked),
    ),
    Variant(
        "rmp-fault-stale-attribute",
        "the handler of RMP faults acts on an attribute that may have changed since it was read",
        "S05; svm/sev.c: sev_handle_rmp_fault() of two-pool kernels",
        lambda d: d._replace(handle_rmp_fault=handle_rmp_fault_unchecked),
    ),
    Variant(
        "make-private-shared-too",
        "a guest's fault makes the page that it finds private for the trusted entity, even if it's shared",
        "S25; fixed in the in-place conversion series",
        lambda d: d._replace(make_private=_shared_too),
    ),
    Variant(
        "prefault-before-final",
        "KVM_PRE_FAULT_MEMORY maps pages while the launch goes on",
        "discussion D; kvm->arch.pre_fault_allowed was added against it",
        lambda d: d._replace(may_prefault=_always),
    ),
)
