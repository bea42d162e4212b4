# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules of KVM on arm64 that hold for every VM there."""

from __future__ import annotations

from errno import EBUSY, EEXIST, EFAULT, EINVAL, ENODEV, ENOENT, ENOEXEC, ENXIO

from .base import rule

_ARM = "arch/arm64/kvm/arm.c: "
_GUEST = "arch/arm64/kvm/guest.c: "
_MMU = "arch/arm64/kvm/mmu.c: "
_VGIC = "arch/arm64/kvm/vgic/vgic-init.c: "

VM_IOCTL = rule("arm64.vm.ioctl", EINVAL, "a VM must know the ioctl", _ARM + "kvm_arch_vm_ioctl()")
SLOT_IPA = rule(
    "arm64.slot.ipa",
    EFAULT,
    "a memslot must lie in the guest's address space, a realm's in its protected half",
    _MMU + "kvm_arch_prepare_memory_region()",
    advice="KVM_CREATE_VM's argument says how large that is (40 bits if it's silent).",
)
INIT_TARGET = rule(
    "arm64.vcpu-init.target",
    EINVAL,
    "the target must be KVM_ARM_TARGET_GENERIC_V8, as KVM_ARM_PREFERRED_TARGET says",
    _ARM + "kvm_vcpu_set_target()",
)
INIT_FEATURES = rule(
    "arm64.vcpu-init.features",
    EINVAL,
    "a vCPU's features must be ones that the processor has: here POWER_OFF and PSCI_0_2",
    _ARM + "kvm_vcpu_init_check_features()",
)
INIT_CHANGED = rule(
    "arm64.vcpu-init.changed",
    EINVAL,
    "all vCPUs of a VM have the same features, and keep them",
    _ARM + "kvm_vcpu_set_target(), __kvm_vcpu_set_target()",
)
NOT_INITIALIZED = rule(
    "arm64.vcpu.not-initialized",
    ENOEXEC,
    "KVM_ARM_VCPU_INIT comes before a vCPU's registers are touched or it's run",
    _ARM + "kvm_arch_vcpu_ioctl(), kvm_arch_vcpu_run_pid_change()",
)
REG_UNKNOWN = rule(
    "arm64.one-reg.unknown",
    ENOENT,
    "the register must be one of the emulated ones: X0 to X30, SP, PC, PSTATE",
    _GUEST + "kvm_arm_get_reg(), kvm_arm_set_reg()",
)
MP_STATE = rule(
    "arm64.mp-state",
    EINVAL,
    "a vCPU's state can be set to RUNNABLE, STOPPED or SUSPENDED",
    _ARM + "kvm_arch_vcpu_ioctl_set_mpstate()",
)
DEVICE_TYPE = rule(
    "arm64.create-device.type",
    ENODEV,
    "of KVM's devices only the GICv3 is emulated, as far as launching a VM needs it",
    "virt/kvm/kvm_main.c: kvm_ioctl_create_device()",
)
VGIC_EXISTS = rule("arm64.vgic.exists", EEXIST, "a VM has one GIC", _VGIC + "kvm_vgic_create()")
VGIC_VCPU_RAN = rule("arm64.vgic.vcpu-ran", EBUSY, "the GIC comes before any vCPU has run", _VGIC + "kvm_vgic_create()")
VGIC_ATTR = rule(
    "arm64.vgic.attribute",
    ENXIO,
    "of the GIC's attributes only KVM_DEV_ARM_VGIC_CTRL_INIT is emulated",
    "arch/arm64/kvm/vgic/vgic-kvm-device.c: vgic_set_common_attr()",
)
