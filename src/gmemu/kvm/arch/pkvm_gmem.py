# SPDX-License-Identifier: GPL-2.0-or-later
"""A protected VM whose memory is guest_memfd, as pKVM's proof of concept was discussed in May 2025 (discussion A).

A page is the guest's from its first touch on, with the bytes that the VMM left there.  MEM_SHARE makes it shared.
MEM_UNSHARE takes three steps: the hypervisor keeps the guest from the page, KVM unmaps it from the host and exits
(KVM_EXIT_UNSHARE), and the next KVM_RUN has the hypervisor give it back, if nobody on the host's side holds it any more.  If
somebody does, `Design.unshare` decides.  No code of this was posted; what the discussion leaves open is marked "ours".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...hw.cpu import Cpu, Exit, MemShared, MemUnshare
from ...hw.el2.cpu import GmemPkvmCpu
from ...hw.memory import PAGE_SHIFT, PAGE_SIZE
from ...invariants import InvariantViolation
from ...rules import pkvm as rules
from ...uapi.kvm import (
    KVM_MEMORY_EXIT_FLAG_PRIVATE,
    KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE,
    ExitReason,
    kvm_exit_memory_fault,
    kvm_exit_unshare,
)
from ...uapi.kvm_arm64 import SMCCC_RET_INVALID_PARAMETER, SMCCC_RET_SUCCESS
from ..guest_memfd.conversion import ConversionError, convert_locked
from ..guest_memfd.fault import kvm_gmem_get_pfn
from .pkvm import PkvmVm

if TYPE_CHECKING:
    from ..guest_memfd.inode import GmemInode
    from ..memslots import Memslot
    from ..vcpu import Vcpu

__all__ = ["PkvmGmemVm"]


class PkvmGmemVm(PkvmVm):
    """A protected VM.  A slot without a guest_memfd has pinned memory as everywhere."""

    has_private_mem = True

    # Conversion

    @property
    def user_space_converts(self) -> bool:  # type: ignore[override]
        return self.vm.host.design.unshare.user_space_converts

    def check_conversion(self, attributes: int) -> None:
        """User space's ioctl.  Raises ENOTTY, or EPERM towards shared: that is the guest's to say."""
        if not self.user_space_converts:
            raise rules.GUEST_CONVERTS(f"attributes {attributes:#x}")
        if not attributes:
            raise rules.GUEST_SHARES("no attributes asked for, which is shared")

    def content_modes(self, private: bool) -> int:
        """Neither donation nor sharing touches the bytes (RFC v5)."""
        return KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE

    # Running

    def new_cpu(self, vcpu: Vcpu) -> Cpu:
        return GmemPkvmCpu(self.vm.rt, self.hypervisor, self.hyp_vm)

    def handle_exit(self, vcpu: Vcpu, exit_: Exit) -> int | None:
        """handle_exit(): the guest's calls that concern who has a page."""
        if isinstance(exit_, MemShared):
            return self._shared(exit_.ipa >> PAGE_SHIFT)
        if isinstance(exit_, MemUnshare):
            return self._unshare(vcpu, exit_.ipa >> PAGE_SHIFT)
        return super().handle_exit(vcpu, exit_)

    def _gmem(self, gfn: int) -> tuple[GmemInode, int] | None:
        """The file page behind a guest frame, if it's guest_memfd's."""
        slot = self.vm.find_slot(gfn)
        if slot is None or slot.gmem_file is None:
            return None
        return slot.gmem_file.gmem_inode, slot.gmem_index(gfn)

    def _shared(self, gfn: int) -> int:
        """The hypervisor lets the host at the page; now the host's own page faults find it.  Raises ENOMEM: the next KVM_RUN
        tries again."""
        if (page := self._gmem(gfn)) is not None:
            inode, index = page
            with inode.mapping.invalidate_lock.exclusive:
                try:
                    convert_locked(inode, index, index + 1, 0)
                except ConversionError as failed:
                    raise failed.error from None
        return 1

    def _unshare(self, vcpu: Vcpu, gfn: int) -> int:
        """The guest wants its page back: unmap it from the host, and tell user space."""
        page = self._gmem(gfn)
        if page is None:
            return self._give_back(vcpu, gfn)
        inode, index = page
        with inode.mapping.invalidate_lock.exclusive:
            inode.mapping.unmap_pages(index, index + 1)
        return self._exit_unshare(vcpu, gfn)

    def _exit_unshare(self, vcpu: Vcpu, gfn: int) -> int:
        """KVM_EXIT_UNSHARE, and what the next KVM_RUN begins with: exit once more, or answer the guest."""
        vcpu.set_exit(ExitReason.UNSHARE, kvm_exit_unshare(gpa=gfn << PAGE_SHIFT, size=PAGE_SIZE))

        def resumed() -> int:
            page = self._gmem(gfn)
            if page is None:
                return self._give_back(vcpu, gfn)  # the file was closed meanwhile: the hypervisor will say so
            inode, index = page
            with inode.mapping.invalidate_lock.exclusive:
                if not self.vm.host.design.unshare.may_enter(inode, index):
                    return self._exit_unshare(vcpu, gfn)
                if not inode.private_run(index, 1):
                    vcpu.completion = (SMCCC_RET_SUCCESS, 0, 0, 0)  # without its page, for which it will fault
                    return 1
                return self._give_back(vcpu, gfn)

        vcpu.complete_userspace_io = resumed
        return 0

    def _give_back(self, vcpu: Vcpu, gfn: int) -> int:
        """The hypervisor gives the page to the guest, and the guest has its answer."""
        status = self._complete(gfn)
        vcpu.completion = (SMCCC_RET_INVALID_PARAMETER if status else SMCCC_RET_SUCCESS, 0, 0, 0)
        return 1

    def _complete(self, gfn: int) -> int:
        """The hypervisor's part.  If it refuses, the page stays the host's too (ours)."""
        status = self.hypervisor.complete_unshare(self.hyp_vm, gfn)
        page = self._gmem(gfn)
        if status and page is not None and self.hypervisor.is_unsharing(self.hyp_vm, gfn):
            inode, index = page
            self.vm.host.design.publish(inode, index, index + 1, 0)
        return status

    # Faults

    def mem_abort(self, vcpu: Vcpu, slot: Memslot, gfn: int) -> None:
        """A stage 2 abort: the guest has no page there yet, or waits for one, or lost it by force.

        Nothing is pinned: guest_memfd keeps a page until the guest has lost it (discussion B).  Raises ENOMEM, EFAULT (with
        KVM_EXIT_MEMORY_FAULT where somebody holds the page), EPERM.
        """
        if not slot.has_gmem:
            return super().mem_abort(vcpu, slot, gfn)
        hyp_vcpu, mmu = self.hyp_vcpus[vcpu], self.vm.mmu
        self.topup(vcpu)
        if self.hypervisor.vcpu_in_poison_fault(hyp_vcpu, gfn):
            raise rules.POISONED(f"gfn {gfn:#x}")
        self._take(vcpu, gfn)
        seq = mmu.invalidate_seq.read()
        if not self.vm.attributes.is_private(gfn) and self._gmem(gfn) is not None:
            return None  # the guest's other vCPU gave it away again: look once more
        if self.hypervisor.walk(self.hyp_vm, gfn) is not None:
            return None  # it waited for that one, or another vCPU was faster
        pfn = kvm_gmem_get_pfn(self.vm, slot, gfn)
        try:
            with self.vm.mmu_lock.exclusive:
                stale = mmu.invalidate_retry_gfn(seq, gfn) or self.hypervisor.walk(self.hyp_vm, gfn) is not None
                if not stale:
                    self.donate(hyp_vcpu, gfn, pfn)
        finally:
            self.vm.host.memmap.put(pfn)
        return None

    def _take(self, vcpu: Vcpu, gfn: int) -> None:
        """The guest touches memory that is shared with the host, and not by the guest: it takes it."""
        page = self._gmem(gfn)
        if page is None:
            return  # the file was closed; looking the page up will say so
        inode, index = page
        with inode.mapping.invalidate_lock.exclusive:
            if self.vm.host.design.unshare.take(inode, index):
                if self.hypervisor.is_unsharing(self.hyp_vm, gfn):
                    self._complete(gfn)
                return
        flags, size = KVM_MEMORY_EXIT_FLAG_PRIVATE, PAGE_SIZE
        vcpu.set_exit(ExitReason.MEMORY_FAULT, kvm_exit_memory_fault(flags=flags, gpa=gfn << PAGE_SHIFT, size=size))
        raise rules.HELD(f"gfn {gfn:#x}, file page {index:#x}")

    # For those who check what must hold

    def check(self) -> None:
        """Besides what the hypervisor has: the host may access what is shared."""
        super().check()
        for slot in self.vm.memslots[0].by_id.values():
            if slot.gmem_file is None:
                continue
            inode = slot.gmem_file.gmem_inode
            for start, end, delta in inode.mapping.pages.runs(slot.gmem_pgoff, slot.gmem_pgoff + slot.npages):
                for index in range(start, end):
                    if not inode.attributes[index] and not self.hypervisor.host_may_access(index + delta, 1):
                        raise InvariantViolation(
                            f"file page {index:#x} is shared, and {self.hypervisor.owner(index + delta)} at EL2"
                        )
