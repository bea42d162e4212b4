# SPDX-License-Identifier: GPL-2.0-or-later
"""VMs under pKVM (arch/arm64/kvm/pkvm.c, mmu.c), Linux 7.3: protected ones, and ordinary ones, which the host only shares
pages with.

A protected VM's memory is ordinary memory of the process, pinned for as long as the VM lives; no guest_memfd takes part
(`pkvm_gmem` has what was proposed).
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EAGAIN, ENOMEM
from typing import TYPE_CHECKING

from ...hw.cpu import Cpu, Exit, NestedPageFault
from ...hw.el2.cpu import PkvmCpu
from ...hw.el2.hypervisor import El2Vcpu, El2Vm, Hypervisor
from ...hw.memory import PAGE_SHIFT
from ...mm.gup import get_user_pages_fast
from ...rules import BusError, KernelError
from ...rules import kvm as kvm_rules
from ...rules import mm as mm_rules
from ...rules import pkvm as rules
from ...uapi.errno import errno_name
from ...uapi.kvm import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, VmType
from ...uapi.mman import FOLL_HWPOISON, FOLL_LONGTERM, FOLL_PIN, FOLL_WRITE
from ..guest_memfd.invalidate import Filter
from .arm64 import ArmVm

if TYPE_CHECKING:
    from ...hw.tlb import Translation
    from ..memslots import Memslot
    from ..mmu import PageFault, RetPf
    from ..pkvm_platform import PkvmPlatform
    from ..vcpu import Vcpu
    from ..vm import Vm

__all__ = ["PkvmSharedVm", "PkvmVm"]

HYP_VM_PAGES, HYP_VCPU_PAGES = 2, 2
"""What the hypervisor takes for a VM (root table and struct pkvm_hyp_vm) and for a vCPU; sizes depend on the build."""


class _HypVm(ArmVm):
    """What both kinds have: a handle, and a VM at EL2 from the first run on."""

    def __init__(self, vm: Vm) -> None:
        super().__init__(vm)
        self.platform: PkvmPlatform = vm.host.pkvm
        self.hypervisor: Hypervisor = self.platform.hypervisor
        self.hyp_vcpus: dict[Vcpu, El2Vcpu] = {}
        self.handle = self.hypervisor.reserve_vm(vm.ipa_bits)
        if self.handle < 0:
            raise rules.NO_HANDLE(f"{len(self.hypervisor.vms)} VMs")

    @property
    def hyp_vm(self) -> El2Vm:
        """The hypervisor's side."""
        return self.hypervisor.vms[self.handle]

    @property
    def is_created(self) -> bool:
        """pkvm_hyp_vm_is_created()."""
        return self.hyp_vm.created

    def new_cpu(self, vcpu: Vcpu) -> Cpu:
        return PkvmCpu(self.vm.rt, self.hypervisor, self.hyp_vm)

    def first_run(self, vcpu: Vcpu) -> None:
        """pkvm_create_hyp_vm() and pkvm_create_hyp_vcpu().  Raises ENOMEM, or what the hypervisor said."""
        with self.vm.slots_lock, self.config_lock:
            if not self.is_created:
                self.vm.host.allocate("pkvm-vm")
                self._donated("VM", HYP_VM_PAGES, lambda pages: self.hypervisor.init_vm(self.handle, pages))
        with self.config_lock:
            self.vm.host.allocate("pkvm-vcpu")
            made = self._donated("vCPU", HYP_VCPU_PAGES, lambda pages: self.hypervisor.init_vcpu(self.handle, pages))
            assert isinstance(made, El2Vcpu)
            self.hyp_vcpus[vcpu] = made

    def _donated(self, what: str, count: int, call: Callable[[list[int]], El2Vcpu | int]) -> El2Vcpu | int:
        """Make a call that takes pages; they go back if it fails."""
        pages = self.platform.alloc_pages(count)
        result = call(pages)
        if isinstance(result, int) and result:
            self.platform.free_pages(pages)
            raise rules.INIT_VM(f"a {what}: {errno_name(-result)}")
        return result

    def topup(self, vcpu: Vcpu) -> None:
        """topup_mmu_memcache().  Raises ENOMEM."""
        hyp_vcpu = self.hyp_vcpus[vcpu]
        while len(hyp_vcpu.memcache) < self.hyp_vm.min_pages:
            self.vm.host.allocate("pkvm-memcache")
            [pfn] = self.platform.alloc_pages(1)
            self.hypervisor.topup(hyp_vcpu, pfn)

    def vm_destroy(self) -> None:
        """pkvm_pgtable_stage2_destroy_range() and pkvm_destroy_hyp_vm()."""
        if not self.is_created:
            self.hypervisor.unreserve_vm(self.handle)
            return
        self.hypervisor.start_teardown_vm(self.handle)
        self.release_mappings()
        back = self.hypervisor.finalize_teardown_vm(self.handle, list(self.hyp_vcpus.values()))
        assert isinstance(back, list)
        self.platform.free_pages(back)

    def release_mappings(self) -> None:
        """Take the guest's pages back."""
        raise NotImplementedError

    def donated_pages(self, pfn: int, count: int) -> int:
        return sum(not self.hypervisor.host_may_access(page, 1) for page in range(pfn, pfn + count))

    def firmware_pages(self) -> int:
        """What was donated to the hypervisor: for the VM and its vCPUs, their memcaches, and the stage 2 tables."""
        caches = sum(len(vcpu.memcache) for vcpu in self.hyp_vcpus.values())
        return len(self.hyp_vm.metadata) + len(self.hyp_vm.tables) + caches

    def check(self) -> None:
        self.hypervisor.check()


class PkvmVm(_HypVm):
    """A protected VM.  `mappings` is struct pkvm_mapping by gfn: the pinned page frame."""

    vm_type = VmType.ARM_PROTECTED

    def __init__(self, vm: Vm) -> None:
        super().__init__(vm)
        self.mappings: dict[int, int] = {}

    def prepare_memory_region(self, old: Memslot | None, new: Memslot | None) -> None:
        """kvm_arch_prepare_memory_region()."""
        moved = old is not None and new is not None and old.base_gfn != new.base_gfn
        if self.is_created and (new is None or moved):
            raise rules.SLOT_FIXED(f"{old}")
        if new is not None and new.flags & (KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY):
            raise rules.SLOT_FLAGS(f"flags {new.flags:#x}")

    def translation(self, frame: int) -> Translation | None:
        return self.hypervisor.walk(self.hyp_vm, frame)

    def unmap_range(self, start: int, end: int, filter: Filter) -> bool:
        """kvm_unmap_gfn_range(): what the guest has it keeps, whatever becomes of the host's mappings: it's pinned."""
        return False

    def handle_exit(self, vcpu: Vcpu, exit_: Exit) -> int | None:
        """handle_exit(): a stage 2 abort on a memslot is `mem_abort`; outside of one it's a device's."""
        if isinstance(exit_, NestedPageFault):
            gfn = exit_.gpa >> PAGE_SHIFT
            slot = self.vm.find_slot(gfn)
            if slot is None:
                return None
            self.mem_abort(vcpu, slot, gfn)
            return 1
        return super().handle_exit(vcpu, exit_)

    def mem_abort(self, vcpu: Vcpu, slot: Memslot, gfn: int) -> None:
        """pkvm_mem_abort(): pin the page behind the slot and donate it.  Raises ENOMEM, EFAULT, EIO, EPERM, or SIGBUS for
        memory that went bad."""
        mm = self.vm.rt.current.mm
        self.topup(vcpu)
        if not mm.account_locked_vm(1):
            raise rules.MEMLOCK(f"{mm.locked_vm} pages, limit {mm.memlock_limit}")
        try:
            pfn = self._pin(slot, gfn)
            try:
                with self.vm.mmu_lock.exclusive:
                    mapped = self._map(vcpu, gfn, pfn)
            except BaseException:
                self.vm.host.memmap.unpin(pfn)
                raise
            if not mapped:
                self.vm.host.memmap.unpin(pfn)
                mm.account_locked_vm(-1)
        except BaseException:
            mm.account_locked_vm(-1)
            raise

    def _pin(self, slot: Memslot, gfn: int) -> int:
        """pin_user_pages(), and the kind of page that is wanted."""
        mm = self.vm.rt.current.mm
        address = slot.userspace_addr + (gfn - slot.base_gfn << PAGE_SHIFT)
        try:
            [(pfn, _)] = get_user_pages_fast(mm, address, 1, FOLL_PIN | FOLL_HWPOISON | FOLL_LONGTERM | FOLL_WRITE)
        except KernelError as error:
            if error.rule is mm_rules.GUP_POISON:
                raise BusError(kvm_rules.FAULT_HVA_POISON, address, f"gfn {gfn:#x}") from error
            raise rules.PIN(f"gfn {gfn:#x} at user address {address:#x}: {error}") from error
        if not mm.swap_backed(address >> PAGE_SHIFT, pfn):
            self.vm.host.memmap.unpin(pfn)
            raise rules.NOT_SWAP_BACKED(f"gfn {gfn:#x} at user address {address:#x}")
        return pfn

    def _map(self, vcpu: Vcpu, gfn: int, pfn: int) -> bool:
        """pkvm_pgtable_stage2_map(): False where another vCPU was faster.  mmu_lock is held."""
        hyp_vcpu = self.hyp_vcpus[vcpu]
        if gfn in self.mappings:
            if self.hypervisor.vcpu_in_poison_fault(hyp_vcpu, gfn):
                raise rules.POISONED(f"gfn {gfn:#x}")
            return False
        if not self.donate(hyp_vcpu, gfn, pfn):
            return False
        self.mappings[gfn] = pfn
        return True

    def donate(self, hyp_vcpu: El2Vcpu, gfn: int, pfn: int) -> bool:
        """Have the hypervisor give the page to the guest: False where that is done already.  Raises ENOMEM, EPERM."""
        status = self.hypervisor.host_donate_guest(pfn, gfn, hyp_vcpu)
        if status == -EAGAIN:
            return False
        if status:
            rule = rules.MEMCACHE if status == -ENOMEM else rules.DONATE
            raise rule(f"pfn {pfn:#x} ({self.hypervisor.owner(pfn)}) for gfn {gfn:#x}: {errno_name(-status)}")
        return True

    def release_mappings(self) -> None:
        """__pkvm_pgtable_stage2_reclaim(): pages come back and are unpinned; one that doesn't stays pinned for ever."""
        for gfn, pfn in list(self.mappings.items()):
            if self.hypervisor.reclaim_dying_guest_page(self.handle, gfn):
                self.vm.host.memmap.leaked.set(pfn, pfn + 1, True)
                continue
            del self.mappings[gfn]
            self.vm.host.memmap.unpin(pfn)
            self.vm.mm.account_locked_vm(-1)


class PkvmSharedVm(_HypVm):
    """An ordinary VM under pKVM: the host shares its pages with the guest, and keeps them."""

    def new_cpu(self, vcpu: Vcpu) -> Cpu:
        """Its stage 2 is what KVM asked for: the hypervisor only keeps account of the shares."""
        return ArmVm.new_cpu(self, vcpu)

    def handle_exit(self, vcpu: Vcpu, exit_: Exit) -> int | None:
        """Before a fault is handled the vCPU's memcache is filled up."""
        if isinstance(exit_, NestedPageFault):
            self.topup(vcpu)
        return super().handle_exit(vcpu, exit_)

    def map(self, fault: PageFault) -> RetPf:
        """pkvm_pgtable_stage2_map(): each new entry of KVM's is a share.  Raises EPERM, ENOMEM."""
        if self.vm.mmu.sptes[fault.gfn] is None:
            status = self.hypervisor.host_share_guest(fault.pfn, fault.gfn, self.hyp_vcpus[fault.vcpu])
            if status:
                rule = rules.MEMCACHE if status == -ENOMEM else rules.SHARE
                owner = self.hypervisor.owner(fault.pfn)
                raise rule(f"pfn {fault.pfn:#x} ({owner}) for gfn {fault.gfn:#x}: {errno_name(-status)}")
        return self.vm.mmu.map(fault)

    def unmap_range(self, start: int, end: int, filter: Filter) -> bool:
        """__pkvm_pgtable_stage2_unshare()."""
        mapped = [gfn for s, e, _ in self.vm.mmu.sptes.runs(start, end) for gfn in range(s, e)]
        for gfn in mapped:
            self.hypervisor.host_unshare_guest(gfn, self.hyp_vm)
        return super().unmap_range(start, end, filter)

    def release_mappings(self) -> None:
        for gfn in list(self.hyp_vm.entries):
            self.hypervisor.host_unshare_guest(gfn, self.hyp_vm)
