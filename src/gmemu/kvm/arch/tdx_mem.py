# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_TDX_INIT_MEM_REGION: the TD's initial memory, added and measured page by page (arch/x86/kvm/vmx/tdx.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...hw.memory import PAGE_SHIFT, PAGE_SIZE
from ...mm.gup import get_user_pages_fast, put_pages
from ...mm.uaccess import copy_from_user, copy_to_user
from ...rules import KernelError
from ...rules import gmem as gmem_rules
from ...rules import tdx as rules
from ...uapi.tdx import (
    KVM_TDX_MEASURE_MEMORY_REGION,
    TDX_EXTENDMR_CHUNKSIZE,
    kvm_tdx_cmd,
    kvm_tdx_init_mem_region,
    status_text,
)
from ..guest_memfd.populate import Source

if TYPE_CHECKING:
    from ..vcpu import Vcpu
    from .tdx import TdxVm

__all__ = ["vcpu_init_mem_region"]

_U64 = (1 << 64) - 1


def vcpu_init_mem_region(td: TdxVm, vcpu: Vcpu, cmd: kvm_tdx_cmd) -> None:
    """tdx_vcpu_init_mem_region(): what is left to do is written back, whatever came of it.

    Slots_lock is held, as are the VM's mutex and every vCPU's.
    """
    vm, mm = td.vm, td.vm.rt.current.mm
    if not td.vcpus[vcpu].initialized:
        raise rules.REGION_VCPU(f"{vcpu}")
    if cmd.flags & ~KVM_TDX_MEASURE_MEMORY_REGION:
        raise rules.REGION_FLAGS(f"flags {cmd.flags:#x}")
    region = copy_from_user(mm, kvm_tdx_init_mem_region, cmd.data)
    _check_region(td, region)
    populate = _Populate(td, bool(cmd.flags & KVM_TDX_MEASURE_MEMORY_REGION))
    try:
        while region.nr_pages:
            if vm.rt.current.pending_signals:
                raise rules.REGION_SIGNAL(f"{region.nr_pages} pages still to add")
            gfn, source = region.gpa >> PAGE_SHIFT, region.source_addr
            pages = vm.rt.batch(region.nr_pages)
            done = vm.host.design.populate(vm, gfn, source, pages, False, populate.post_populate)
            if source:
                region.source_addr += done << PAGE_SHIFT
            region.gpa += done << PAGE_SHIFT
            region.nr_pages -= done
            vm.rt.resched()
    finally:
        copy_to_user(mm, cmd.data, region)


def _check_region(td: TdxVm, region: kvm_tdx_init_mem_region) -> None:
    source, gpa, size = region.source_addr, region.gpa, (region.nr_pages << PAGE_SHIFT) & _U64
    profile = td.vm.profile
    if not source and profile.populate == "gup-first" and not td.vm.host.design.target_is_source:
        raise rules.REGION_NO_SOURCE("source_addr 0")
    last = gpa + size - 1
    wraps = gpa + size > _U64 or not size
    if (
        (source | gpa) & (PAGE_SIZE - 1)
        or wraps
        or td.is_gfn_alias(gpa >> PAGE_SHIFT)
        or td.is_gfn_alias(last >> PAGE_SHIFT)
    ):
        raise rules.REGION_RANGE(f"source {source:#x}, gpa {gpa:#x}, {region.nr_pages:#x} pages")


class _Populate:
    """tdx_gmem_post_populate() and what it's told."""

    def __init__(self, td: TdxVm, measure: bool) -> None:
        self.td, self.measure = td, measure
        self.retries_busy = td.vm.profile.populate == "gup-first"

    def post_populate(self, gfn: int, pfn: int, count: int, source: Source | None) -> tuple[int, KernelError | None]:
        """Add and measure `count` pages in turn."""
        if source is None and not self.td.vm.host.design.target_is_source:
            return 0, rules.POPULATE_NO_SOURCE(f"gfn {gfn:#x}")
        done = 0
        while done < count:
            at = source and Source(source.pfn + done if source.pfn >= 0 else -1, source.address + done * PAGE_SIZE)
            try:
                done += self._load(gfn + done, pfn + done, count - done, at)
            except KernelError as error:
                return done, error
        return done, None

    def _load(self, gfn: int, pfn: int, count: int, source: Source | None) -> int:
        """The pages as far as they can be done at once; at least one, or what went wrong with it."""
        if source is None:
            return self._add(gfn, pfn, pfn, count)
        if source.pfn >= 0:
            return self._add(gfn, pfn, source.pfn, count)
        mm = self.td.vm.rt.current.mm
        try:
            pinned = get_user_pages_fast(mm, source.address, 1, 0)
        except KernelError as error:
            raise gmem_rules.POPULATE_SOURCE(str(error)) from error
        try:
            return self._add(gfn, pfn, pinned[0][0], 1)
        finally:
            put_pages(mm, pinned)

    def _add(self, gfn: int, pfn: int, source: int, count: int) -> int:
        td = self.td
        count = td.vm.rt.batch(count)
        if td.vm.rt.batch(2) > 1 and td.module.inject is None:
            done = td.sept.add_run(gfn, pfn, source, count, self.measure)
            if done:
                return done
        td.sept.page_add_source = source
        log, td.module.log = td.module.log, None  # one row for the page, when all of it is in
        try:
            td.vm.host.design.map_private_pfn(td, gfn, pfn)
            if self.measure:
                self._extend(gfn)
        finally:
            td.sept.page_add_source = None
            td.module.log = log
        td.module.log_page(td.tdr, gfn << PAGE_SHIFT, pfn if self.measure else None)
        return 1

    def _extend(self, gfn: int) -> None:
        """Sixteen TDH.MR.EXTEND."""
        td, gpa = self.td, gfn << PAGE_SHIFT
        for chunk in range(gpa, gpa + PAGE_SIZE, TDX_EXTENDMR_CHUNKSIZE):
            status = td.module.mr_extend(td.tdr, chunk).status
            if status and self.retries_busy:
                raise td.bug(status, "TDH_MR_EXTEND")
            if status:
                raise rules.ADD_FAILED(f"TDH.MR.EXTEND of gpa {chunk:#x}: {status_text(status)}")
