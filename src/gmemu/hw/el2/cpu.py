# SPDX-License-Identifier: GPL-2.0-or-later
"""A protected guest's processor: some of its hypercalls end at EL2, and the host never sees them
(arch/arm64/kvm/hyp/nvhe/pkvm.c: kvm_handle_pvm_hvc64)."""

from __future__ import annotations

from errno import ENOENT
from typing import TYPE_CHECKING

from ...uapi.kvm_arm64 import SMCCC_RET_INVALID_PARAMETER, SMCCC_RET_SUCCESS, VendorHyp
from ...uapi.kvm_x86 import PFERR_WRITE_MASK
from ..arm.cpu import ArmCpu
from ..cpu import Access, MemShared, MemUnshare, NestedPageFault
from ..memory import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from ...sync import Runtime
    from ..guest_cpu import GuestCpu
    from .hypervisor import El2Vm, Hypervisor

__all__ = ["GmemPkvmCpu", "PkvmCpu"]

_FEATURES = sum(
    1 << (function & 0xFF)
    for function in (VendorHyp.FEATURES, VendorHyp.HYP_MEMINFO, VendorHyp.MEM_SHARE, VendorHyp.MEM_UNSHARE)
)


class PkvmCpu(ArmCpu):
    """A processor of the guest that the hypervisor knows as `vm`."""

    def __init__(self, rt: Runtime, hypervisor: Hypervisor, vm: El2Vm) -> None:
        super().__init__(rt, hypervisor.memory, lambda gfn: hypervisor.walk(vm, gfn))
        self._hypervisor, self._vm = hypervisor, vm
        vm.tlbs.append(self.tlb)

    def interface(self) -> GuestCpu:
        from .guest_cpu import PkvmGuestCpu

        return PkvmGuestCpu(self)

    def smc(self, function: int, *args: int) -> tuple[int, ...]:
        arg1, arg2, arg3 = (*args, 0, 0, 0)[:3]
        if function == VendorHyp.FEATURES:
            return _FEATURES, 0, 0, 0
        if function == VendorHyp.HYP_MEMINFO:
            return (SMCCC_RET_INVALID_PARAMETER if arg1 or arg2 or arg3 else PAGE_SIZE), 0, 0, 0
        if function in (VendorHyp.MEM_SHARE, VendorHyp.MEM_UNSHARE):
            if arg2 or arg3 or arg1 & (PAGE_SIZE - 1):
                return SMCCC_RET_INVALID_PARAMETER, 0, 0, 0
            return self._share(arg1) if function == VendorHyp.MEM_SHARE else self._unshare(arg1)
        return super().smc(function, *args)

    def _share(self, ipa: int) -> tuple[int, ...]:
        """pkvm_memshare_call(): what isn't mapped becomes a stage 2 abort for the host, and the instruction is run again."""
        while True:
            previous = self.rt.enter(self.task)
            try:
                status = self._hypervisor.guest_share_host(self._vm, ipa >> PAGE_SHIFT)
            finally:
                self.rt.leave(previous)
            if status != -ENOENT:
                return (SMCCC_RET_INVALID_PARAMETER if status else SMCCC_RET_SUCCESS), 0, 0, 0
            self.leave(NestedPageFault(ipa, PFERR_WRITE_MASK, Access(ipa, True, b"")))

    def _unshare(self, ipa: int) -> tuple[int, ...]:
        """pkvm_memunshare_call()."""
        previous = self.rt.enter(self.task)
        try:
            status = self._hypervisor.guest_unshare_host(self._vm, ipa >> PAGE_SHIFT)
        finally:
            self.rt.leave(previous)
        return (SMCCC_RET_INVALID_PARAMETER if status else SMCCC_RET_SUCCESS), 0, 0, 0


class GmemPkvmCpu(PkvmCpu):
    """A processor of a guest whose memory is guest_memfd's, as proposed: the host hears of MEM_SHARE, and MEM_UNSHARE is
    done only when it has let go of the page."""

    def _share(self, ipa: int) -> tuple[int, ...]:
        answer = super()._share(ipa)
        if answer[0] == SMCCC_RET_SUCCESS:
            self.leave(MemShared(ipa))
        return answer

    def _unshare(self, ipa: int) -> tuple[int, ...]:
        previous = self.rt.enter(self.task)
        try:
            status = self._hypervisor.guest_request_unshare(self._vm, ipa >> PAGE_SHIFT)
        finally:
            self.rt.leave(previous)
        if status:
            return SMCCC_RET_INVALID_PARAMETER, 0, 0, 0
        answer = self.leave(MemUnshare(ipa))
        assert isinstance(answer, tuple)
        return answer
