# SPDX-License-Identifier: GPL-2.0-or-later
"""What a VM type adds to KVM, and what it is when it adds nothing (a default VM)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...hw.cpu import Exit, GuestMemory, PlainMemory
from ...mm.uaccess import UserPointer
from ...rules import kvm as rules
from ...uapi.kvm import VmType
from ..guest_memfd.invalidate import Filter

if TYPE_CHECKING:
    from ..vcpu import Vcpu
    from ..vm import Vm

__all__ = ["VmArch"]


class VmArch:
    """kvm_arch and kvm_x86_ops of one VM."""

    vm_type = VmType.DEFAULT
    has_private_mem = False
    has_protected_state = False

    def __init__(self, vm: Vm) -> None:
        self.vm = vm
        self.pre_fault_allowed = True

    @property
    def nr_memslot_as_ids(self) -> int:
        """Address spaces of memslots: SMM has its own, but not with private memory."""
        return 1 if self.has_private_mem else 2

    # Life

    def vcpu_precreate(self) -> None:
        """May refuse a new vCPU."""

    def vcpu_create(self, vcpu: Vcpu) -> None:
        """A vCPU was made."""

    def vm_destroy(self) -> None:
        """The last reference to the VM is gone; its memory is still there."""

    def mem_enc_op(self, arg: UserPointer) -> int:
        """KVM_MEMORY_ENCRYPT_OP on the VM fd.  As the machine has SNP, an empty request succeeds on any VM."""
        if arg == 0:
            return 0
        raise rules.MEM_ENC_UNSUPPORTED(f"VM type {self.vm_type.name}")

    # Memory

    def synthesize_error_code(self, gfn: int, error_code: int) -> int:
        """Add what KVM knows and the processor doesn't, such as PFERR_PRIVATE_ACCESS."""
        return error_code

    def make_private(self, gfn: int, pfn: int, count: int) -> None:
        """kvm_arch_gmem_make_private(): a private page is about to be given to the guest."""

    def unmap_range(self, start: int, end: int, filter: Filter) -> bool:
        """kvm_unmap_gfn_range(): one nested page table serves both views, so the filter selects nothing."""
        return self.vm.mmu.unmap_range(start, end)

    def invalidate_range(self, start: int, end: int) -> None:
        """kvm_arch_gmem_invalidate_range(): guest frames [start, end) are going away; mmu_lock is held."""

    # Running

    def protection(self, vcpu: Vcpu) -> GuestMemory:
        """How the vCPU's accesses are checked."""
        return PlainMemory()

    @property
    def encrypted_default(self) -> bool:
        """Whether the guest's ordinary accesses set the C-bit."""
        return False

    def pre_run(self, vcpu: Vcpu) -> int:
        """May refuse to run (raise), or report an exit (0); 1 to go on."""
        return 1

    def handle_exit(self, vcpu: Vcpu, exit_: Exit) -> int | None:
        """An exit that only this VM type has: 1 to resume, 0 to go to user space, None if it isn't one of ours."""
        return None

    def after_page_fault(self, vcpu: Vcpu, gpa: int, error_code: int) -> None:
        """The page fault handler is done and the guest will be resumed."""
