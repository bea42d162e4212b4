# SPDX-License-Identifier: GPL-2.0-or-later
"""What a realm has beside what every arm64 VM has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..uapi.kvm_arm64 import KVM_ARM_RMI_POPULATE, KVM_ARM_RMI_POPULATE_FLAGS_MEASURE, kvm_arm_rmi_populate
from .arm64 import create_vgic, init_vcpu

if TYPE_CHECKING:
    from .descriptor import Descriptor
    from .vcpu import Vcpu
    from .vm import Vm

__all__ = ["Cca"]


class Cca:
    """A realm's calls, in the order of a launch.  Addresses are bytes; `source` is a user address."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._vgic: Descriptor | None = None

    def create_vcpu(self, id: int = 0, *, power_off: bool = False) -> Vcpu:
        """KVM_CREATE_VCPU and KVM_ARM_VCPU_INIT.  `power_off`: the vCPU waits for PSCI CPU_ON."""
        vcpu = self._vm.create_vcpu(id)
        init_vcpu(self._vm, vcpu, power_off=power_off)
        return vcpu

    def create_vgic(self) -> None:
        """The in-kernel GIC, which a realm must have."""
        self._vgic = create_vgic(self._vm)

    def populate(
        self, gpa: int, size: int, source: int, *, measure: bool = True, flags: int | None = None, reserved: int = 0
    ) -> kvm_arm_rmi_populate:
        """KVM_ARM_RMI_POPULATE, once: `size` bytes at `gpa` from user address `source`, measured with their contents or not.

        Returns what is left: call again until its `size` is 0.  Raises EINVAL, ENODEV, EOPNOTSUPP, EBUSY, ENXIO, EIO,
        EFAULT.
        """
        if flags is None:
            flags = KVM_ARM_RMI_POPULATE_FLAGS_MEASURE if measure else 0
        args = kvm_arm_rmi_populate(base=gpa, size=size, source_uaddr=source, flags=flags, reserved=reserved)
        buffer = bytearray(args.pack())
        self._vm.ioctl(KVM_ARM_RMI_POPULATE, buffer)
        return kvm_arm_rmi_populate.unpack_from(buffer)

    def close(self) -> None:
        """Close the GIC's descriptor."""
        if self._vgic is not None:
            self._vgic.close()
            self._vgic = None
