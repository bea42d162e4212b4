# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM on arm64: what every VM there has, and all that an ordinary one has (arch/arm64/kvm/arm.c, mmu.c).

Realms and protected VMs derive from it.  What a guest does that KVM would wait for, WFI or being switched off, here ends
KVM_RUN with KVM_EXIT_HLT, which real arm64 never gives: nobody sends interrupts, so nothing would ever wake the thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ...hw.arm.cpu import ArmCpu
from ...hw.cpu import Cpu, Exit, Smccc
from ...hw.memory import PAGE_SHIFT
from ...mm.uaccess import UserPointer, copy_from_user, copy_to_user
from ...rules import KernelError
from ...rules import arm64 as rules
from ...rules import kvm as kvm_rules
from ...uapi.kvm import KVM_GET_MP_STATE, KVM_SET_MP_STATE, ExitReason, MpState, kvm_mp_state
from ...uapi.kvm_arm64 import (
    KVM_ARM_PREFERRED_TARGET,
    KVM_ARM_TARGET_GENERIC_V8,
    KVM_ARM_VCPU_INIT,
    KVM_CREATE_DEVICE,
    KVM_GET_ONE_REG,
    KVM_SET_ONE_REG,
    kvm_vcpu_init,
)
from .arm64_vcpu import ArmVcpu, get_one_reg, set_one_reg, vcpu_init
from .base import VmArch
from .psci import smccc_call
from .vgic import Vgic, create_device

if TYPE_CHECKING:
    from ..vcpu import Vcpu
    from ..vm import Vm
    from .base import VcpuIoctl

__all__ = ["ArmVm"]


class ArmVm(VmArch):
    """struct kvm_arch of an arm64 VM.  `config_lock` guards what may be set up until the first vCPU has run."""

    def __init__(self, vm: Vm) -> None:
        super().__init__(vm)
        self.config_lock = vm.rt.mutex("config_lock")
        self.vcpus: dict[Vcpu, ArmVcpu] = {}
        self.vcpu_features: int | None = None
        self.vgic: Vgic | None = None
        self.has_ran_once = False

    # Life

    def create_cpu(self, vcpu: Vcpu) -> Cpu:
        self.vcpus[vcpu] = ArmVcpu(vcpu.id)
        return self.new_cpu(vcpu)

    def new_cpu(self, vcpu: Vcpu) -> Cpu:
        """The virtual processor for a new vCPU."""
        return ArmCpu(self.vm.rt, self.vm.host.memory, self.vm.mmu.walk)

    def check_gfn(self, gfn: int) -> None:
        """kvm_arch_prepare_memory_region()."""
        if gfn >= 1 << self.slot_bits - PAGE_SHIFT:
            raise rules.SLOT_IPA(f"gfn {gfn:#x}, {self.slot_bits} bits")

    @property
    def slot_bits(self) -> int:
        """How many bits of an address memslots may use."""
        return self.vm.ipa_bits

    # ioctls

    def vm_ioctl(self, request: int, arg: UserPointer) -> int:
        """kvm_arch_vm_ioctl(), and KVM_CREATE_DEVICE."""
        if request == KVM_ARM_PREFERRED_TARGET:
            copy_to_user(self.vm.rt.current.mm, arg, kvm_vcpu_init(target=KVM_ARM_TARGET_GENERIC_V8))
            return 0
        if request == KVM_CREATE_DEVICE:
            return create_device(self, arg)
        raise rules.VM_IOCTL(f"{request:#x}")

    def vcpu_ioctl(self, request: int) -> VcpuIoctl | None:
        handler = _VCPU_IOCTLS.get(request)
        if handler is None:
            return None
        return lambda vcpu, arg: handler(self, vcpu, arg)

    def mem_enc_op(self, arg: UserPointer) -> int:
        raise rules.VM_IOCTL("KVM_MEMORY_ENCRYPT_OP")

    def vcpu_mem_enc_unlocked_op(self, vcpu: Vcpu, arg: UserPointer) -> int | None:
        raise kvm_rules.VCPU_IOCTL("KVM_MEMORY_ENCRYPT_OP")

    # Running

    def run_pid_change(self, vcpu: Vcpu) -> None:
        arm = self.vcpus[vcpu]
        if not arm.initialized:
            raise rules.NOT_INITIALIZED(f"{vcpu}")
        if not arm.has_run_once:
            self.first_run(vcpu)
            arm.has_run_once = self.has_ran_once = True

    def pre_run(self, vcpu: Vcpu) -> int:
        """The wait for a vCPU that is off to be switched on."""
        if vcpu.mp_state is not MpState.RUNNABLE:
            vcpu.set_exit(ExitReason.HLT)
            return 0
        return 1

    def first_run(self, vcpu: Vcpu) -> None:
        """The rest of kvm_arch_vcpu_run_pid_change(), which comes once for each vCPU."""

    def handle_exit(self, vcpu: Vcpu, exit_: Exit) -> int | None:
        """handle_exit(): calls are KVM's own affair."""
        if isinstance(exit_, Smccc):
            return smccc_call(self, vcpu, exit_)
        return None

    def fatal(self, why: str) -> KernelError:
        """KVM_BUG(): EIO to raise."""
        return self.vm.bug(why)


def _get_mp_state(arm: ArmVm, vcpu: Vcpu, arg: UserPointer) -> int:
    copy_to_user(arm.vm.rt.current.mm, arg, kvm_mp_state(mp_state=vcpu.mp_state))
    return 0


def _set_mp_state(arm: ArmVm, vcpu: Vcpu, arg: UserPointer) -> int:
    """kvm_arch_vcpu_ioctl_set_mpstate()."""
    state = copy_from_user(arm.vm.rt.current.mm, kvm_mp_state, arg).mp_state
    if state not in (MpState.RUNNABLE, MpState.STOPPED, MpState.SUSPENDED):
        raise rules.MP_STATE(f"{state}")
    vcpu.mp_state = MpState(state)
    return 0


_VCPU_IOCTLS: dict[int, Callable[[ArmVm, Vcpu, UserPointer], int]] = {
    KVM_ARM_VCPU_INIT: vcpu_init,
    KVM_GET_ONE_REG: get_one_reg,
    KVM_SET_ONE_REG: set_one_reg,
    KVM_GET_MP_STATE: _get_mp_state,
    KVM_SET_MP_STATE: _set_mp_state,
}
