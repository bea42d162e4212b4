# SPDX-License-Identifier: GPL-2.0-or-later
"""What VMs and vCPUs have on arm64."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..uapi.kvm_arm64 import (
    KVM_ARM_PREFERRED_TARGET,
    KVM_ARM_VCPU_INIT,
    KVM_ARM_VCPU_POWER_OFF,
    KVM_ARM_VCPU_PSCI_0_2,
    KVM_CREATE_DEVICE,
    KVM_DEV_ARM_VGIC_CTRL_INIT,
    KVM_DEV_ARM_VGIC_GRP_CTRL,
    KVM_DEV_TYPE_ARM_VGIC_V3,
    KVM_GET_ONE_REG,
    KVM_SET_DEVICE_ATTR,
    KVM_SET_ONE_REG,
    kvm_create_device,
    kvm_device_attr,
    kvm_one_reg,
    kvm_vcpu_init,
)
from ..uapi.mman import MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE
from .descriptor import Descriptor

if TYPE_CHECKING:
    from .vcpu import Vcpu
    from .vm import Vm

__all__ = ["create_vgic", "get_reg", "init_vcpu", "set_reg"]


def init_vcpu(vm: Vm, vcpu: Vcpu, *, power_off: bool = False) -> None:
    """KVM_ARM_VCPU_INIT with the target that KVM prefers, and PSCI.  `power_off`: it waits for CPU_ON."""
    init = bytearray(kvm_vcpu_init.SIZE)
    vm.ioctl(KVM_ARM_PREFERRED_TARGET, init)
    target = kvm_vcpu_init.unpack_from(init).target
    features = 1 << KVM_ARM_VCPU_PSCI_0_2 | power_off << KVM_ARM_VCPU_POWER_OFF
    init[:] = kvm_vcpu_init(target=target, features=(features, 0, 0, 0, 0, 0, 0)).pack()
    vcpu.ioctl(KVM_ARM_VCPU_INIT, init)


def create_vgic(vm: Vm) -> Descriptor:
    """KVM_CREATE_DEVICE of a GICv3, and its initialisation.  Close it with the VM."""
    device = bytearray(kvm_create_device(type=KVM_DEV_TYPE_ARM_VGIC_V3).pack())
    vm.ioctl(KVM_CREATE_DEVICE, device)
    vgic = Descriptor(vm.door, kvm_create_device.unpack_from(device).fd)
    attr = kvm_device_attr(group=KVM_DEV_ARM_VGIC_GRP_CTRL, attr=KVM_DEV_ARM_VGIC_CTRL_INIT)
    vgic.ioctl(KVM_SET_DEVICE_ATTR, bytearray(attr.pack()))
    return vgic


def set_reg(vcpu: Vcpu, reg: int, value: int) -> None:
    """KVM_SET_ONE_REG of a 64-bit register (`core_reg`)."""
    door = vcpu.door
    at = door.mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | MAP_PRIVATE)
    try:
        door.store(at, value.to_bytes(8, "little"))
        vcpu.ioctl(KVM_SET_ONE_REG, bytearray(kvm_one_reg(id=reg, addr=at).pack()))
    finally:
        door.munmap(at, 4096)


def get_reg(vcpu: Vcpu, reg: int) -> int:
    """KVM_GET_ONE_REG of a 64-bit register (`core_reg`)."""
    door = vcpu.door
    at = door.mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | MAP_PRIVATE)
    try:
        vcpu.ioctl(KVM_GET_ONE_REG, bytearray(kvm_one_reg(id=reg, addr=at).pack()))
        return int.from_bytes(door.load(at, 8), "little")
    finally:
        door.munmap(at, 4096)
