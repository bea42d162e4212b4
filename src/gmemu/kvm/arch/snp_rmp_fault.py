# SPDX-License-Identifier: GPL-2.0-or-later
"""Nested page faults of an SNP guest that the RMP caused (sev_handle_rmp_fault): a 2 MiB entry is split for a guest that
uses its memory by 4 KiB; anything else is spurious.

Two-pool kernels act on the attribute that they read first.  Where conversion is in place it may have changed by then, and
the page be the hypervisor's (S05); so the entry is split under mmu_lock, if no invalidation went by.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...rules import KernelError
from ..guest_memfd.fault import kvm_gmem_get_pfn

if TYPE_CHECKING:
    from .snp import SnpVm

__all__ = ["handle_rmp_fault", "handle_rmp_fault_unchecked"]

PAGES_PER_2M = 512


def handle_rmp_fault_unchecked(sev: SnpVm, gfn: int) -> None:
    """The entry is split whatever became of the page since its attribute was read."""
    pfn = _private_pfn(sev, gfn)
    if pfn is None:
        return
    if _is_2m(sev, pfn):
        sev.platform.psmash(pfn)
        with sev.vm.mmu_lock.exclusive:
            _zap(sev, gfn)
    sev.vm.host.memmap.put(pfn)


def handle_rmp_fault(sev: SnpVm, gfn: int) -> None:
    """The entry is split under mmu_lock, unless the attribute may have changed; then the guest faults again."""
    vm = sev.vm
    seq = vm.mmu.invalidate_seq.read()
    pfn = _private_pfn(sev, gfn)
    if pfn is None:
        return
    with vm.mmu_lock.exclusive:
        if not vm.mmu.invalidate_retry_gfn(seq, gfn) and _is_2m(sev, pfn):
            sev.platform.psmash(pfn)
            _zap(sev, gfn)
    vm.host.memmap.put(pfn)


def _private_pfn(sev: SnpVm, gfn: int) -> int | None:
    """The page frame behind a private `gfn`, with a reference."""
    vm = sev.vm
    if not vm.attributes.is_private(gfn):
        return None
    slot = vm.find_slot(gfn)
    if slot is None or not slot.has_gmem:
        return None
    try:
        return kvm_gmem_get_pfn(vm, slot, gfn)
    except KernelError:
        return None


def _is_2m(sev: SnpVm, pfn: int) -> bool:
    entry = sev.platform.rmp.lookup(pfn)
    return entry is not None and entry.assigned and bool(entry.pagesize)


def _zap(sev: SnpVm, gfn: int) -> None:
    """kvm_zap_gfn_range() of 2 MiB from `gfn`; mmu_lock is held for writing."""
    mmu = sev.vm.mmu
    mmu.invalidate_begin()
    mmu.invalidate_range_add(gfn, gfn + PAGES_PER_2M)
    if mmu.unmap_range(gfn, gfn + PAGES_PER_2M):
        sev.vm.flush_remote_tlbs()
    mmu.invalidate_end()
