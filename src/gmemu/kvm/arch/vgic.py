# SPDX-License-Identifier: GPL-2.0-or-later
"""The in-kernel GICv3, as far as launching a VM needs it: it exists, and it's initialised (arch/arm64/kvm/vgic)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...mm.file import File, Inode
from ...mm.uaccess import UserPointer, copy_from_user, copy_to_user
from ...rules import arm64 as rules
from ...uapi.kvm_arm64 import (
    KVM_DEV_ARM_VGIC_CTRL_INIT,
    KVM_DEV_ARM_VGIC_GRP_CTRL,
    KVM_DEV_TYPE_ARM_VGIC_V3,
    KVM_HAS_DEVICE_ATTR,
    KVM_SET_DEVICE_ATTR,
    kvm_create_device,
    kvm_device_attr,
)

if TYPE_CHECKING:
    from .arm64 import ArmVm

__all__ = ["Vgic", "VgicFile", "create_device"]


class Vgic:
    """struct vgic_dist."""

    def __init__(self) -> None:
        self.initialized = False


def create_device(arm: ArmVm, arg: UserPointer) -> int:
    """kvm_ioctl_create_device() and kvm_vgic_create(); the descriptor is close-on-exec."""
    vm = arm.vm
    device = copy_from_user(vm.rt.current.mm, kvm_create_device, arg)
    if device.type != KVM_DEV_TYPE_ARM_VGIC_V3:
        raise rules.DEVICE_TYPE(f"type {device.type}")
    with vm.lock:
        if arm.vgic is not None:
            raise rules.VGIC_EXISTS()
        if arm.has_ran_once:
            raise rules.VGIC_VCPU_RAN()
        process = vm.rt.current.process
        fd = process.get_unused_fd()
        arm.vgic = Vgic()
    vm.get()
    process.fd_install(fd, VgicFile(arm))
    device.fd = fd
    copy_to_user(vm.rt.current.mm, arg, device)
    return 0


class VgicFile(File):
    """The device's descriptor."""

    name = "anon_inode:kvm-vgic-v3"

    def __init__(self, arm: ArmVm) -> None:
        super().__init__(Inode(0o600))
        self.arm = arm
        self.noexec = arm.vm.profile.anon_inodes_noexec

    def release(self) -> None:
        self.arm.vm.put()

    def ioctl(self, request: int, arg: UserPointer) -> int:
        """kvm_device_ioctl()."""
        vm = self.arm.vm
        if request not in (KVM_SET_DEVICE_ATTR, KVM_HAS_DEVICE_ATTR):
            return super().ioctl(request, arg)
        attr = copy_from_user(vm.rt.current.mm, kvm_device_attr, arg)
        if (attr.group, attr.attr) != (KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT):
            raise rules.VGIC_ATTR(f"group {attr.group}, attribute {attr.attr:#x}")
        if request == KVM_SET_DEVICE_ATTR:
            with vm.lock, self.arm.config_lock:
                assert self.arm.vgic is not None
                self.arm.vgic.initialized = True
        return 0
