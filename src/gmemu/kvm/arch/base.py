# SPDX-License-Identifier: GPL-2.0-or-later
"""What a VM type adds to KVM, and what it is when it adds nothing (a default VM)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ...hw.cpu import Cpu, Exit, GuestMemory, PlainMemory
from ...mm.uaccess import UserPointer, copy_from_user
from ...rules import kvm as rules
from ...uapi.kvm import KVM_MEMORY_ENCRYPT_OP, KVM_PRE_FAULT_MEMORY, Cap, VmType
from ...uapi.sev import kvm_sev_cmd
from ..guest_memfd.invalidate import Filter

if TYPE_CHECKING:
    from ...hw.tlb import Translation
    from ..memslots import Memslot
    from ..mmu import PageFault, RetPf
    from ..vcpu import Vcpu
    from ..vm import Vm

    VcpuIoctl = Callable[[Vcpu, UserPointer], int]

__all__ = ["VmArch"]


class VmArch:
    """kvm_arch and kvm_x86_ops of one VM."""

    vm_type = VmType.DEFAULT
    has_private_mem = False
    has_protected_state = False
    user_space_converts = True
    """private and shared are changed by a call of user space's (where anything changes them)"""

    def __init__(self, vm: Vm) -> None:
        self.vm = vm
        self.pre_fault_allowed = True

    @property
    def nr_memslot_as_ids(self) -> int:
        """Address spaces of memslots: SMM has its own where the kernel has SMM, but not with private memory."""
        spaces = self.vm.profile.caps[Cap.MULTI_ADDRESS_SPACE]
        return max(spaces.private_vm if self.has_private_mem else spaces.default_vm, 1)

    # Life

    def vcpu_precreate(self) -> None:
        """May refuse a new vCPU."""

    def vcpu_create(self, vcpu: Vcpu) -> None:
        """A vCPU was made."""

    def vm_destroy(self) -> None:
        """The last reference to the VM is gone; its memory is still there."""

    def vm_ioctl(self, request: int, arg: UserPointer) -> int:
        """kvm_arch_vm_ioctl(): what only this architecture has."""
        from ..vm_x86 import IOCTLS

        handler = IOCTLS.get(request) if self.vm.host.platform != "arm" else None
        if handler is None:
            raise rules.VM_IOCTL(f"{request:#x}")
        return handler(self.vm, arg)

    def vcpu_ioctl(self, request: int) -> VcpuIoctl | None:
        """kvm_arch_vcpu_ioctl(): who handles it, with the vCPU's mutex held."""
        from ..regs import IOCTLS
        from ..vcpu import pre_fault_memory

        if request == KVM_PRE_FAULT_MEMORY:
            return pre_fault_memory
        if request == KVM_MEMORY_ENCRYPT_OP and self.vm.profile.vcpu_encrypt_op:
            return self.vcpu_mem_enc_op
        handler = IOCTLS.get(request)
        if handler is None and self.vm.host.platform != "arm":
            from ..vcpu_x86 import IOCTLS as X86_IOCTLS

            handler = X86_IOCTLS.get(request)
        return handler

    def mem_enc_op(self, arg: UserPointer) -> int:
        """KVM_MEMORY_ENCRYPT_OP on the VM fd.  Where the machine has SNP, an empty request succeeds on any VM, and each
        command fails by a check of its own (sev_mem_enc_ioctl)."""
        if VmType.SNP not in self.vm.host.vm_types:
            raise rules.MEM_ENC_UNSUPPORTED(f"VM type {self.vm_type.name}")
        if arg == 0:
            return 0
        from .sev_refusals import refused_command

        cmd = copy_from_user(self.vm.rt.current.mm, kvm_sev_cmd, arg)
        with self.vm.lock:
            raise refused_command(self.vm, cmd.id)

    def vcpu_mem_enc_unlocked_op(self, vcpu: Vcpu, arg: UserPointer) -> int | None:
        """KVM_MEMORY_ENCRYPT_OP on a vCPU fd, before the vCPU's mutex is taken.  `None`: try `vcpu_mem_enc_op`."""
        if self.vm.host.platform == "intel":
            from ...rules import tdx as tdx_rules

            raise tdx_rules.VCPU_NOT_TD(f"VM type {self.vm_type.name}")
        return None

    def vcpu_mem_enc_op(self, vcpu: Vcpu, arg: UserPointer) -> int:
        """KVM_MEMORY_ENCRYPT_OP on a vCPU fd."""
        raise rules.MEM_ENC_UNSUPPORTED("a vCPU; only TDX has commands for one")

    # Memory

    def check_gfn(self, gfn: int) -> None:
        """May refuse a memslot that ends with this frame (kvm_is_gfn_alias)."""

    def prepare_memory_region(self, old: Memslot | None, new: Memslot | None) -> None:
        """kvm_arch_prepare_memory_region(): may refuse to make, change or (without `new`) delete a memslot."""

    def check_prefault(self, gfn: int) -> None:
        """May refuse to map this frame ahead of use (kvm_is_gfn_alias)."""

    def synthesize_error_code(self, gfn: int, error_code: int) -> int:
        """Add what KVM knows and the processor doesn't, such as PFERR_PRIVATE_ACCESS."""
        return error_code

    def make_private(self, gfn: int, pfn: int, count: int) -> None:
        """kvm_arch_gmem_make_private(): a private page is about to be given to the guest."""

    def check_conversion(self, attributes: int) -> None:
        """May refuse user space's call that gives memory other attributes, whatever memory that is."""

    def content_modes(self, private: bool) -> int:
        """Which of KVM_SET_MEMORY_ATTRIBUTES2_ZERO and _PRESERVE a conversion in that direction can have (RFC v5)."""
        return 0

    def content_unspecified(self, pfn: int, count: int) -> None:
        """Pages were converted and nothing was promised of their contents (RFC v5)."""

    def map(self, fault: PageFault) -> RetPf:
        """kvm_tdp_mmu_map() for a fault whose page was found; mmu_lock is held."""
        return self.vm.mmu.map(fault)

    def unmap_range(self, start: int, end: int, filter: Filter) -> bool:
        """kvm_unmap_gfn_range(): one nested page table serves both views, so the filter selects nothing."""
        return self.vm.mmu.unmap_range(start, end)

    def invalidate_range(self, start: int, end: int) -> None:
        """kvm_arch_gmem_invalidate_range(): guest frames [start, end) are going away; mmu_lock is held."""

    # For those who check what must hold

    def translation(self, frame: int) -> Translation | None:
        """Where a processor's walk would lead for a frame that stands in its TLB."""
        return self.vm.mmu.walk(frame)

    def check(self) -> None:
        """Raise `InvariantViolation` if what the VM type keeps besides the nested page table is out of order."""

    def donated_pages(self, pfn: int, count: int) -> int:
        """How many of these pages, which are behind a slot's user mapping, the host gave away (pKVM)."""
        return 0

    def firmware_pages(self) -> int:
        """How many pages the trusted entity has for the VM, besides the guest's memory."""
        return 0

    # Running

    def create_cpu(self, vcpu: Vcpu) -> Cpu:
        """The virtual processor that runs the vCPU's guest.  Machine code can be run where no page is encrypted."""
        vm = self.vm
        if not self.has_protected_state and not self.encrypted_default:
            from ...hw.x86.cpu import MachineCpu

            return MachineCpu(vm.rt, vm.host.memory, vm.mmu.walk, self.protection(vcpu), vcpu.registers)
        return Cpu(vm.rt, vm.host.memory, vm.mmu.walk, self.protection(vcpu), self.encrypted_default)

    def protection(self, vcpu: Vcpu) -> GuestMemory:
        """How the vCPU's accesses are checked."""
        return PlainMemory()

    @property
    def encrypted_default(self) -> bool:
        """Whether the guest's ordinary accesses set the C-bit."""
        return False

    def run_pid_change(self, vcpu: Vcpu) -> None:
        """kvm_arch_vcpu_run_pid_change(): may refuse to run, or do what comes before the first time.  The vCPU's mutex is
        held, and no other lock."""

    def pre_run(self, vcpu: Vcpu) -> int:
        """May refuse to run (raise), or report an exit (0); 1 to go on."""
        return 1

    def before_entry(self, vcpu: Vcpu) -> int:
        """vcpu_enter_guest(), before the guest is entered: requests to the vCPU.  0 to go to user space, else 1."""
        return 1

    def handle_exit(self, vcpu: Vcpu, exit_: Exit) -> int | None:
        """An exit that only this VM type has: 1 to resume, 0 to go to user space, None if it isn't one of ours."""
        return None

    def after_page_fault(self, vcpu: Vcpu, gpa: int, error_code: int) -> None:
        """The page fault handler is done and the guest will be resumed."""
