# SPDX-License-Identifier: GPL-2.0-or-later
"""How a page that is being populated gets into a TD's secure EPT: not by the guest's fault path, which would take the
invalidate lock again, but by its page frame (kvm_tdp_mmu_map_private_pfn; S02)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...rules import kvm as kvm_rules
from ...rules import tdx as rules
from ..mmu import RetPf

if TYPE_CHECKING:
    from .tdx import TdxVm

__all__ = ["map_private_pfn"]


def map_private_pfn(td: TdxVm, gfn: int, pfn: int) -> None:
    """kvm_tdp_mmu_map_private_pfn(): anything but a fresh mapping is EIO (`tdx.populate.mapped`), so that no page is added,
    and measured, twice.  Raises EINTR, EIO, and for kernels that don't try again EBUSY."""
    from .tdx_sept import BUSY_LIMIT, livelock

    vm = td.vm
    for _ in range(BUSY_LIMIT):
        if vm.rt.current.pending_signals:
            raise rules.REGION_SIGNAL(f"gfn {gfn:#x} still to map")
        if vm.vm_dead:
            raise kvm_rules.VM_BUGGED(td.platform.warnings[-1] if td.platform.warnings else "the VM is dead")
        vm.rt.resched()
        with vm.mmu_lock.shared:
            result = td.sept.map(gfn, pfn)
        if result is RetPf.FIXED:
            return
        if result is RetPf.SPURIOUS:
            raise rules.DOUBLE_ADD(f"gfn {gfn:#x}")
        if vm.profile.populate != "gup-first" and not vm.vm_dead:
            raise rules.ADD_BUSY(f"gfn {gfn:#x}")
    raise livelock(f"the secure EPT entry of gfn {gfn:#x}")
