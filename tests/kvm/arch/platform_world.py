# SPDX-License-Identifier: GPL-2.0-or-later
"""What the worlds of TDX, CCA and pKVM share: a machine of some platform, and a VM with private memory on it."""

from __future__ import annotations

from typing import ClassVar

from gmemu import GuestMemfd, Host, Kvm, Mapping, Vcpu, Vm
from gmemu.sync import DirectRuntime, Lockdep
from gmemu.syscalls.emulated import EmulatedDoor

from ..world import PAGE, World

__all__ = ["GPA", "PAGES", "PlatformWorld", "PrivateVm"]

GPA = 1 << 30
PAGES = 1024


class PlatformWorld(World):
    """One host.  `dirty`: the test breaks what must hold, so nothing is looked over at the end."""

    platform: ClassVar[str]

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


class PrivateVm:
    """A VM with PAGES pages at GPA.  In place they are shared; with two pools the shared half is other memory."""

    vcpus: list[Vcpu]

    def __init__(self, world: PlatformWorld, vm: Vm) -> None:
        self.in_place, self.vm = world.profile.in_place, vm
        self._world = world

    def add_memory(self) -> None:
        """guest_memfd, the VMM's view of the shared half, and slot 0."""
        self.gmem: GuestMemfd = self._world.gmem(self.vm, PAGES, None if self.in_place else 0)
        self.anonymous: Mapping = self._world.kvm.anonymous(PAGES * PAGE)
        self.shared: Mapping = self.gmem.mmap() if self.in_place else self.anonymous
        self.vm.set_user_memory_region2(0, GPA, PAGES * PAGE, gmem=self.gmem, userspace_addr=self.shared.address)

    @property
    def vcpu(self) -> Vcpu:
        return self.vcpus[0]

    def make_private(self, page: int = 0, pages: int = PAGES) -> None:
        if self.in_place:
            self.gmem.make_private(page * PAGE, pages * PAGE)
        else:
            self.vm.make_private(GPA + page * PAGE, pages * PAGE)

    def make_shared(self, page: int = 0, pages: int = PAGES) -> None:
        if self.in_place:
            self.gmem.make_shared(page * PAGE, pages * PAGE)
        else:
            self.vm.make_shared(GPA + page * PAGE, pages * PAGE)

    def pfn(self, page: int) -> int:
        return self._world.pfn(self.gmem, page)
