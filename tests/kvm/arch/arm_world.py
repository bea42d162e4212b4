# SPDX-License-Identifier: GPL-2.0-or-later
"""An Arm machine, and VMs on it."""

from __future__ import annotations

from gmemu import Host, Kvm, Vcpu, Vm, VmType
from gmemu.api.arm64 import init_vcpu
from gmemu.sync import DirectRuntime, Lockdep
from gmemu.syscalls.emulated import EmulatedDoor

from ..world import World

__all__ = ["ArmWorld"]


class ArmWorld(World):
    """One Arm host.  `dirty`: the test breaks what must hold, so nothing is looked over at the end."""

    platform = "arm"

    def __init__(self, profile: str) -> None:
        self.lockdep = Lockdep()
        self.host = Host(profile, memory=1 << 40, runtime=DirectRuntime(self.lockdep), platform=self.platform)
        self.profile = self.host.profile
        self.door = EmulatedDoor(self.host)
        self.kvm = Kvm(self.door)
        self.children: list[EmulatedDoor] = []
        self.dirty = False

    def finish(self) -> None:
        if self.dirty:
            self.host.close()
        else:
            super().finish()

    def vcpu(self, vm: Vm, id: int = 0, *, power_off: bool = False) -> Vcpu:
        """A vCPU, initialised."""
        vcpu = vm.create_vcpu(id)
        init_vcpu(vm, vcpu, power_off=power_off)
        return vcpu

    def vm(self, vm_type: VmType = VmType.DEFAULT) -> Vm:
        return self.kvm.create_vm(vm_type)
