# SPDX-License-Identifier: GPL-2.0-or-later
"""An arm64 vCPU: KVM_ARM_VCPU_INIT, its core registers (arch/arm64/kvm/arm.c, guest.c, reset.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...mm.uaccess import UserPointer, copy_from_user, read_user, write_user
from ...rules import arm64 as rules
from ...uapi.kvm import MpState
from ...uapi.kvm_arm64 import (
    KVM_ARM_TARGET_GENERIC_V8,
    KVM_ARM_VCPU_POWER_OFF,
    KVM_ARM_VCPU_PSCI_0_2,
    core_reg,
    kvm_one_reg,
    kvm_vcpu_init,
)

if TYPE_CHECKING:
    from ..vcpu import Vcpu
    from .arm64 import ArmVm

__all__ = ["ArmVcpu", "get_one_reg", "set_one_reg", "vcpu_init"]

SP, PC, PSTATE = 31, 32, 33
_INDEX = {core_reg(index): index for index in range(PSTATE + 1)}
PSTATE_EL1_RESET = 0x3C5
"""EL1h, with D, A, I and F masked."""
_SUPPORTED = 1 << KVM_ARM_VCPU_POWER_OFF | 1 << KVM_ARM_VCPU_PSCI_0_2


class ArmVcpu:
    """struct kvm_vcpu_arch.  `core` has X0 to X30, SP, PC and PSTATE."""

    def __init__(self, id: int) -> None:
        self.mpidr = id & 0xF | (id >> 4 & 0xFF) << 8 | (id >> 12 & 0xFF) << 16
        self.initialized = False
        self.has_run_once = False
        self.core: list[int] = []
        self.reset()

    def reset(self) -> None:
        """kvm_reset_vcpu()."""
        self.core = [0] * PSTATE + [PSTATE_EL1_RESET]


def vcpu_init(arm: ArmVm, vcpu: Vcpu, arg: UserPointer) -> int:
    """KVM_ARM_VCPU_INIT: features are the same for all vCPUs; a second call resets the vCPU."""
    init = copy_from_user(arm.vm.rt.current.mm, kvm_vcpu_init, arg)
    features = sum(word << 32 * i for i, word in enumerate(init.features))
    if init.target != KVM_ARM_TARGET_GENERIC_V8:
        raise rules.INIT_TARGET(f"target {init.target}")
    if features & ~_SUPPORTED:
        raise rules.INIT_FEATURES(f"features {features:#x}, the processor has {_SUPPORTED:#x}")
    power_off, features = features & 1 << KVM_ARM_VCPU_POWER_OFF, features & ~(1 << KVM_ARM_VCPU_POWER_OFF)
    with arm.config_lock:
        if arm.vcpu_features not in (None, features):
            raise rules.INIT_CHANGED(f"features {features:#x}, before {arm.vcpu_features:#x}")
        arm.vcpu_features = features
    state = arm.vcpus[vcpu]
    state.reset()
    state.initialized = True
    vcpu.mp_state = MpState.STOPPED if power_off else MpState.RUNNABLE
    return 0


def _find(arm: ArmVm, vcpu: Vcpu, arg: UserPointer) -> tuple[kvm_one_reg, int]:
    if not arm.vcpus[vcpu].initialized:
        raise rules.NOT_INITIALIZED(f"{vcpu}")
    reg = copy_from_user(arm.vm.rt.current.mm, kvm_one_reg, arg)
    index = _INDEX.get(reg.id)
    if index is None:
        raise rules.REG_UNKNOWN(f"id {reg.id:#x}")
    return reg, index


def get_one_reg(arm: ArmVm, vcpu: Vcpu, arg: UserPointer) -> int:
    """kvm_arm_get_reg()."""
    reg, index = _find(arm, vcpu, arg)
    write_user(arm.vm.rt.current.mm, reg.addr, arm.vcpus[vcpu].core[index].to_bytes(8, "little"))
    return 0


def set_one_reg(arm: ArmVm, vcpu: Vcpu, arg: UserPointer) -> int:
    """kvm_arm_set_reg()."""
    reg, index = _find(arm, vcpu, arg)
    arm.vcpus[vcpu].core[index] = int.from_bytes(read_user(arm.vm.rt.current.mm, reg.addr, 8), "little")
    return 0
