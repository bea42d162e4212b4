# SPDX-License-Identifier: GPL-2.0-or-later
"""The part of KVM's uAPI that only arm64 has: <asm/kvm.h>, and the arm64 requests of <linux/kvm.h>.

KVM_ARM_RMI_POPULATE is the Arm CCA series' (v14), which isn't merged; the rest is Linux 7.3-rc7's.
"""

from __future__ import annotations

from enum import IntEnum

from .ioctl import IOR, IOW, IOWR
from .kvm import KVMIO as _KVMIO
from .layout import Struct, u32, u64

__all__ = [
    "KVM_ARM_PREFERRED_TARGET",
    "KVM_ARM_RMI_POPULATE",
    "KVM_ARM_RMI_POPULATE_FLAGS_MEASURE",
    "KVM_ARM_TARGET_GENERIC_V8",
    "KVM_ARM_VCPU_INIT",
    "KVM_ARM_VCPU_POWER_OFF",
    "KVM_ARM_VCPU_PSCI_0_2",
    "KVM_CREATE_DEVICE",
    "KVM_DEV_ARM_VGIC_CTRL_INIT",
    "KVM_DEV_ARM_VGIC_GRP_CTRL",
    "KVM_DEV_TYPE_ARM_VGIC_V3",
    "KVM_GET_ONE_REG",
    "KVM_HAS_DEVICE_ATTR",
    "KVM_NR_VCPU_FEATURES",
    "KVM_SET_DEVICE_ATTR",
    "KVM_SET_ONE_REG",
    "KVM_VM_TYPE_ARM_IPA_SIZE_MASK",
    "Psci",
    "PsciReturn",
    "SMCCC_RET_INVALID_PARAMETER",
    "SMCCC_RET_SUCCESS",
    "VendorHyp",
    "core_reg",
    "kvm_arm_rmi_populate",
    "kvm_create_device",
    "kvm_device_attr",
    "kvm_one_reg",
    "kvm_vcpu_init",
]

KVM_VM_TYPE_ARM_IPA_SIZE_MASK = 0xFF
"""Bits of KVM_CREATE_VM's argument that give the guest's address space (bits of an IPA); 0 stands for 40."""

# vCPUs

KVM_ARM_TARGET_GENERIC_V8 = 5
KVM_ARM_VCPU_POWER_OFF = 0
KVM_ARM_VCPU_PSCI_0_2 = 2
KVM_NR_VCPU_FEATURES = 9
"""Bits of `kvm_vcpu_init.features` that 7.3 knows."""


class kvm_vcpu_init(Struct):
    """KVM_ARM_VCPU_INIT and KVM_ARM_PREFERRED_TARGET.  `features` is a bitmap of KVM_ARM_VCPU_*."""

    target: int = u32()
    features: tuple[int, ...] = u32(7)


class kvm_one_reg(Struct):
    """KVM_GET_ONE_REG and KVM_SET_ONE_REG: which register, and the user address of its value."""

    id: int = u64()
    addr: int = u64()


_CORE = 0x6030_0000_0010_0000  # KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE


def core_reg(index: int) -> int:
    """The id of a 64-bit core register: 0 to 30 are X0 to X30, 31 SP, 32 PC, 33 PSTATE (KVM_REG_ARM_CORE_REG())."""
    return _CORE | 2 * index


# Devices

KVM_DEV_TYPE_ARM_VGIC_V3 = 7
KVM_DEV_ARM_VGIC_GRP_CTRL = 4
KVM_DEV_ARM_VGIC_CTRL_INIT = 0


class kvm_create_device(Struct):
    """KVM_CREATE_DEVICE: `fd` is the answer."""

    type: int = u32()
    fd: int = u32()
    flags: int = u32()


class kvm_device_attr(Struct):
    """KVM_SET_DEVICE_ATTR and its like, on a device's descriptor."""

    flags: int = u32()
    group: int = u32()
    attr: int = u64()
    addr: int = u64()


# Realms

KVM_ARM_RMI_POPULATE_FLAGS_MEASURE = 1 << 0


class kvm_arm_rmi_populate(Struct):
    """KVM_ARM_RMI_POPULATE: `base` and `size` (bytes) of the guest, the source's user address.  What was done is written
    back: call again until `size` is 0."""

    base: int = u64()
    size: int = u64()
    source_uaddr: int = u64()
    flags: int = u32()
    reserved: int = u32()


class Psci(IntEnum):
    """Functions of the Power State Coordination Interface, as a 64-bit guest calls them (Arm DEN0022)."""

    VERSION = 0x84000000
    CPU_OFF = 0x84000002
    CPU_ON = 0xC4000003
    AFFINITY_INFO = 0xC4000004
    SYSTEM_OFF = 0x84000008
    SYSTEM_RESET = 0x84000009
    FEATURES = 0x8400000A


SMCCC_RET_SUCCESS = 0
SMCCC_RET_INVALID_PARAMETER = -3 & (1 << 64) - 1
"""As X0 has them."""


class VendorHyp(IntEnum):
    """Vendor-specific hypervisor service calls that a protected VM of pKVM makes (include/linux/arm-smccc.h)."""

    FEATURES = 0x86000000
    HYP_MEMINFO = 0xC6000002
    MEM_SHARE = 0xC6000003
    MEM_UNSHARE = 0xC6000004


class PsciReturn(IntEnum):
    """What PSCI answers."""

    SUCCESS = 0
    NOT_SUPPORTED = -1
    INVALID_PARAMETERS = -2
    DENIED = -3
    ALREADY_ON = -4
    ON_PENDING = -5
    INTERNAL_FAILURE = -6


KVM_GET_ONE_REG = IOW(_KVMIO, 0xAB, kvm_one_reg)
KVM_SET_ONE_REG = IOW(_KVMIO, 0xAC, kvm_one_reg)
KVM_ARM_VCPU_INIT = IOW(_KVMIO, 0xAE, kvm_vcpu_init)
KVM_ARM_PREFERRED_TARGET = IOR(_KVMIO, 0xAF, kvm_vcpu_init)
KVM_ARM_RMI_POPULATE = IOWR(_KVMIO, 0xD7, kvm_arm_rmi_populate)
KVM_CREATE_DEVICE = IOWR(_KVMIO, 0xE0, kvm_create_device)
KVM_SET_DEVICE_ATTR = IOW(_KVMIO, 0xE1, kvm_device_attr)
KVM_HAS_DEVICE_ATTR = IOW(_KVMIO, 0xE3, kvm_device_attr)
