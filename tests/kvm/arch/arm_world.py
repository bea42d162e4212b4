# SPDX-License-Identifier: GPL-2.0-or-later
"""An Arm machine, and VMs on it."""

from __future__ import annotations

from gmemu import Vcpu, Vm, VmType
from gmemu.api.arm64 import init_vcpu

from .platform_world import PlatformWorld

__all__ = ["ArmWorld"]


class ArmWorld(PlatformWorld):
    """One Arm host."""

    platform = "arm"

    def vcpu(self, vm: Vm, id: int = 0, *, power_off: bool = False) -> Vcpu:
        """A vCPU, initialised."""
        vcpu = vm.create_vcpu(id)
        init_vcpu(vm, vcpu, power_off=power_off)
        return vcpu

    def vm(self, vm_type: VmType = VmType.DEFAULT) -> Vm:
        return self.kvm.create_vm(vm_type)
