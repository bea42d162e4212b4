# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM's MMU with two-dimensional paging: the nested page table, invalidation, and the guest's page faults.

Mirrors arch/x86/kvm/mmu/mmu.c and the mmu_notifier half of virt/kvm/kvm_main.c.  Everything is mapped by 4 KiB, as
guest_memfd has it; a run of like entries is kept as one.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple

from ..hw.memory import PAGE_SHIFT
from ..hw.tlb import Translation
from ..invariants import InvariantViolation
from ..mm.gup import get_user_pages_fast
from ..rangemap import RangeMap
from ..rules import BusError, KernelError
from ..rules import kvm as rules
from ..rules import mm as mm_rules
from ..uapi.kvm import KVM_MEM_READONLY, Cap
from ..uapi.kvm_x86 import PFERR_PRIVATE_ACCESS, PFERR_WRITE_MASK
from ..uapi.mman import FOLL_HWPOISON, FOLL_WRITE
from .guest_memfd.fault import kvm_gmem_get_pfn
from .guest_memfd.invalidate import Filter
from .memslots import KVM_MEMSLOT_INVALID, Memslot

if TYPE_CHECKING:
    from .arch.base import VmArch
    from .vcpu import Vcpu
    from .vm import Vm

__all__ = ["Mmu", "PageFault", "RetPf", "Spte", "may_prefault", "prefault_page"]


class Spte(NamedTuple):
    """A run of nested page table entries: pfn - gfn, whether writable, and which of the guest's views it serves."""

    delta: int
    writable: bool
    private: bool


class RetPf(Enum):
    """What became of a fault (RET_PF_*)."""

    CONTINUE = auto()
    RETRY = auto()
    EMULATE = auto()
    FIXED = auto()
    SPURIOUS = auto()


class PageFault:
    """struct kvm_page_fault: one fault of the guest at `gfn`, with what its error code says."""

    __slots__ = ("gfn", "map_writable", "mmu_seq", "pfn", "prefetch", "private", "slot", "vcpu", "write")

    def __init__(self, vcpu: Vcpu, gfn: int, error_code: int, prefetch: bool) -> None:
        self.vcpu, self.gfn, self.prefetch = vcpu, gfn, prefetch
        self.write = bool(error_code & PFERR_WRITE_MASK)
        self.private = bool(error_code & PFERR_PRIVATE_ACCESS)
        self.slot: Memslot | None = vcpu.vm.find_slot(gfn)
        self.mmu_seq = 0
        self.pfn = -1
        self.map_writable = True


class Mmu:
    """A VM's nested page table, and the record of invalidations that faults in flight must respect."""

    def __init__(self, vm: Vm) -> None:
        self._vm, self.rt = vm, vm.rt
        self.sptes: RangeMap[Spte] = RangeMap()
        self.invalidate_seq = self.rt.atomic("mmu_invalidate_seq")
        self.invalidate_in_progress = self.rt.atomic("mmu_invalidate_in_progress")
        self.range_start = self.range_end = -1

    # The nested page table

    def walk(self, gfn: int) -> Translation | None:
        """What the processor's nested walk finds at `gfn`."""
        self.rt.reads(("spte", self, gfn))
        spte = self.sptes[gfn]
        return None if spte is None else Translation(gfn + spte.delta, spte.writable)

    def map(self, fault: PageFault) -> RetPf:
        """kvm_tdp_mmu_map() and make_spte(): install the entry, or find that it's there already.  mmu_lock is held.

        An entry through which the guest may write counts as dirty from the start, even if it came by a read.
        """
        spte = Spte(fault.pfn - fault.gfn, fault.map_writable, fault.private)
        start, end = self._vm.host.design.mapping_range(self._vm, fault)
        self.rt.writes(("spte", self, start, end) if end - start > 1 else ("spte", self, start))
        old = self.sptes[fault.gfn]
        if old is not None and (fault.prefetch or old.writable or not fault.write):
            if old.delta != spte.delta:
                raise InvariantViolation(f"gfn {fault.gfn:#x} is mapped to {old}, and the page there is {spte}")
            return RetPf.SPURIOUS
        if not self.sptes.empty(start, end):
            start, end = fault.gfn, fault.gfn + 1
        self.sptes.set(start, end, spte)
        if spte.writable and fault.slot is not None and fault.slot.dirty_bitmap is not None:
            fault.slot.dirty_bitmap.mark(fault.gfn - fault.slot.base_gfn)
        return RetPf.FIXED

    def unmap_range(self, start: int, end: int) -> bool:
        """kvm_unmap_gfn_range(): clear the entries of frames [start, end).  True if TLBs must be flushed."""
        self._vm.mmu_lock.assert_exclusive()
        if self.sptes.empty(start, end):
            return False
        self.rt.writes_each(("spte", self), start, end)
        self.sptes.clear(start, end)
        return True

    def write_protect(self, start: int, end: int) -> None:
        """kvm_mmu_slot_remove_write_access(): writes to frames [start, end) fault from now on.  TLBs must be flushed.

        mmu_lock is held for writing.
        """
        self._vm.mmu_lock.assert_exclusive()
        self.rt.writes_each(("spte", self), start, end)
        for s, e, spte in list(self.sptes.runs(start, end)):
            self.sptes.set(s, e, spte._replace(writable=False))

    # Invalidation

    def invalidate_begin(self) -> None:
        """kvm_mmu_invalidate_start(): from here on, faults that began before must be retried."""
        self._vm.mmu_lock.assert_exclusive()
        if self.invalidate_in_progress.add(1) == 1:
            self.range_start = self.range_end = -1

    def invalidate_range_add(self, start: int, end: int) -> None:
        """kvm_mmu_invalidate_range_add(): these frames are being invalidated."""
        if self.range_start < 0:
            self.range_start, self.range_end = start, end
        else:
            self.range_start, self.range_end = min(self.range_start, start), max(self.range_end, end)

    def invalidate_end(self) -> None:
        """kvm_mmu_invalidate_end()."""
        self._vm.mmu_lock.assert_exclusive()
        self.invalidate_seq.add(1)
        if self.invalidate_in_progress.add(-1) < 0:
            raise InvariantViolation("mmu_invalidate_in_progress went below zero")

    def invalidate_retry_gfn(self, seq: int, gfn: int) -> bool:
        """mmu_invalidate_retry_gfn(): whether a fault on `gfn` that saw `seq` may be stale."""
        if self.invalidate_in_progress.read() and (self.range_start < 0 or self.range_start <= gfn < self.range_end):
            return True
        return self.invalidate_seq.read() != seq

    # The guest's faults

    def page_fault(self, vcpu: Vcpu, gfn: int, error_code: int, prefetch: bool = False) -> RetPf:
        """kvm_tdp_mmu_page_fault() for the access that `error_code` (PFERR_*) describes.

        Raises EFAULT or EHWPOISON after filling in KVM_EXIT_MEMORY_FAULT where KVM does.
        """
        vm = self._vm
        fault = PageFault(vcpu, gfn, error_code, prefetch)
        result = self._faultin_pfn(vcpu, fault, error_code)
        if result is not RetPf.CONTINUE:
            return result
        try:
            with vm.mmu_lock.shared:
                if vm.host.design.is_page_fault_stale(vm, fault):
                    return RetPf.RETRY
                return vm.arch.map(fault)
        finally:
            vm.host.memmap.put(fault.pfn)

    def _faultin_pfn(self, vcpu: Vcpu, fault: PageFault, error_code: int) -> RetPf:
        """kvm_mmu_faultin_pfn(): find the page.  On CONTINUE the fault holds a reference to it."""
        vm = self._vm
        fault.mmu_seq = self.invalidate_seq.read()
        private = vm.attributes.is_private(fault.gfn)
        if fault.private != private:
            vcpu.prepare_memory_fault_exit(fault)
            asked, found = ("private", "shared") if fault.private else ("shared", "private")
            raise rules.FAULT_MISMATCH(f"a {asked} access to gfn {fault.gfn:#x}, which is {found}")
        slot = fault.slot
        if slot is None:
            if fault.private:
                vcpu.prepare_memory_fault_exit(fault)
                raise rules.FAULT_PRIVATE_NO_SLOT(f"gfn {fault.gfn:#x}")
            return RetPf.EMULATE
        if slot.flags & KVM_MEMSLOT_INVALID:
            if fault.prefetch:
                raise rules.PREFAULT_DELETING(f"slot {slot.id}")
            return RetPf.RETRY
        if self.invalidate_retry_gfn(fault.mmu_seq, fault.gfn):
            return RetPf.RETRY
        if fault.private or slot.gmem_only:
            self._faultin_gmem(vcpu, fault, slot)
        else:
            result = self._faultin_hva(fault, slot)
            if result is not RetPf.CONTINUE:
                return result
        if self.invalidate_retry_gfn(fault.mmu_seq, fault.gfn):
            vm.host.memmap.put(fault.pfn)
            return RetPf.RETRY
        return RetPf.CONTINUE

    def _faultin_gmem(self, vcpu: Vcpu, fault: PageFault, slot: Memslot) -> None:
        """kvm_mmu_faultin_pfn_gmem()."""
        if not slot.has_gmem:
            vcpu.prepare_memory_fault_exit(fault)
            raise rules.FAULT_NO_GMEM(f"slot {slot.id}, gfn {fault.gfn:#x}")
        try:
            fault.pfn = kvm_gmem_get_pfn(self._vm, slot, fault.gfn)
        except KernelError:
            vcpu.prepare_memory_fault_exit(fault)
            raise
        fault.map_writable = not slot.flags & KVM_MEM_READONLY

    def _faultin_hva(self, fault: PageFault, slot: Memslot) -> RetPf:
        """__kvm_faultin_pfn(): the page behind the slot's user mapping, of the process that owns the VM.

        For a page with a memory error the thread gets SIGBUS (kvm_send_hwpoison_signal), and retries if it survives that.
        """
        if slot.flags & KVM_MEM_READONLY and fault.write:
            return RetPf.EMULATE
        address = slot.userspace_addr + (fault.gfn - slot.base_gfn << PAGE_SHIFT)
        mm = self._vm.mm
        try:
            [(fault.pfn, _)] = get_user_pages_fast(mm, address, 1, FOLL_HWPOISON | (FOLL_WRITE if fault.write else 0))
        except KernelError as error:
            if error.rule is mm_rules.GUP_POISON:
                raise BusError(rules.FAULT_HVA_POISON, address, f"gfn {fault.gfn:#x}") from error
            raise rules.FAULT_HVA(f"gfn {fault.gfn:#x} at user address {address:#x}: {error}") from error
        entry = mm.pte(address >> PAGE_SHIFT)
        may_write = not slot.flags & KVM_MEM_READONLY
        fault.map_writable = fault.write or (may_write and entry is not None and entry == (fault.pfn, True))
        return RetPf.CONTINUE


def map_one_page(vm: Vm, fault: PageFault) -> tuple[int, int]:
    """kvm_mmu_hugepage_adjust() where no page is huge: the guest frames that a fault maps are the one that it met."""
    return fault.gfn, fault.gfn + 1


def is_page_fault_stale(vm: Vm, fault: PageFault) -> bool:
    """is_page_fault_stale(): with mmu_lock held, whether an invalidation went by since the fault looked."""
    return vm.mmu.invalidate_retry_gfn(fault.mmu_seq, fault.gfn)


def may_prefault(arch: VmArch) -> bool:
    """kvm->arch.pre_fault_allowed: not before the launch is final, lest something run that wasn't measured."""
    return arch.pre_fault_allowed


def prefault_page(vm: Vm, vcpu: Vcpu, gpa: int) -> None:
    """kvm_arch_vcpu_pre_fault_memory() and kvm_tdp_page_prefault() for the page at `gpa`."""
    if vm.rt.current.pending_signals:
        raise rules.PREFAULT_SIGNAL()
    if not vm.host.design.may_prefault(vm.arch):
        raise rules.PREFAULT_EARLY("a launch that isn't finished")
    if not vm.profile.caps[Cap.PRE_FAULT_MEMORY].device:
        raise (
            rules.PREFAULT_NO_TDP("a shadow MMU") if vm.had_memslots else rules.PREFAULT_NO_PAGES("a VM that never had one")
        )
    gfn = gpa >> PAGE_SHIFT
    vm.arch.check_prefault(gfn)
    error_code = PFERR_PRIVATE_ACCESS if vm.arch.has_private_mem and vm.attributes.is_private(gfn) else 0
    while True:
        if vm.rt.current.pending_signals:
            raise rules.PREFAULT_SIGNAL()
        if vm.vm_dead:
            raise rules.VM_DEAD()
        vm.rt.resched()
        result = vm.mmu.page_fault(vcpu, gfn, error_code, prefetch=True)
        if result is not RetPf.RETRY:
            break
        vm.rt.retry()
    if result is RetPf.EMULATE:
        raise rules.PREFAULT_NO_SLOT(f"gpa {gpa:#x}")


class KvmMmuNotifier:
    """What KVM registers with the address space of the process that created the VM."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm

    def invalidate_range(self, start_vpn: int, end_vpn: int) -> AbstractContextManager[None]:
        return _HvaInvalidation(self._vm, start_vpn, end_vpn)


class _HvaInvalidation(AbstractContextManager[None]):
    """kvm_mmu_notifier_invalidate_range_start() and _end(): what is mapped of these user pages is unmapped.

    Until the end no memslot changes (mn_active_invalidate_count), so that both see the same slots.
    """

    def __init__(self, vm: Vm, start_vpn: int, end_vpn: int) -> None:
        self._vm, self._start, self._end = vm, start_vpn, end_vpn
        self._counted = False

    def __enter__(self) -> None:
        self._vm.mn_active_invalidate.shared.__enter__()
        try:
            with self._vm.srcu.read:
                self._unmap()
        except BaseException:
            self._vm.mn_active_invalidate.shared.__exit__(None, None, None)
            raise

    def _unmap(self) -> None:
        """kvm_handle_hva_range(): nothing is counted where no memslot is found."""
        vm = self._vm
        vm.rt.reads(("memslots", vm))
        ranges = [part for slots in vm.memslots for part in slots.backed_by(self._start, self._end)]
        if not ranges:
            return
        self._counted = True
        with vm.mmu_lock.exclusive:
            vm.mmu.invalidate_begin()
            flush = False
            for _, start, end in ranges:
                vm.mmu.invalidate_range_add(start, end)
                flush |= vm.arch.unmap_range(start, end, Filter.SHARED)
            if flush:
                vm.flush_remote_tlbs()

    def __exit__(self, *exc: object) -> None:
        if self._counted:
            with self._vm.mmu_lock.exclusive:
                self._vm.mmu.invalidate_end()
        self._vm.mn_active_invalidate.shared.__exit__(None, None, None)
