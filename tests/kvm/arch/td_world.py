# SPDX-License-Identifier: GPL-2.0-or-later
"""An Intel machine, and a TD that is ready for whatever the test is about."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gmemu import Exit, ExitReason, GuestMemfd, Host, Kvm, Mapping, Vcpu, Vm, VmType
from gmemu.hw.tdx.guest_cpu import TdGuestCpu
from gmemu.hw.tdx.module import TdxModule
from gmemu.hw.tdx.td import Td
from gmemu.kvm.arch.tdx import TdxVm
from gmemu.sync import DirectRuntime, Lockdep
from gmemu.syscalls.emulated import EmulatedDoor
from gmemu.uapi.tdx import TdxLeaf, TdxOperand, TdxStatus

from ..world import PAGE, World

GPA = 1 << 30
GFN = GPA >> 12
PAGES = 1024
BUSY = TdxStatus.OPERAND_BUSY | TdxOperand.SEPT

TDX_PROFILES = ("linux-6.18", "linux-7.3", "inplace-v13")
every_tdx_profile = pytest.mark.parametrize("world", TDX_PROFILES, indirect=True)


class TdxWorld(World):
    """One Intel host.  `dirty`: the test breaks what must hold, so nothing is looked over at the end."""

    def __init__(self, profile: str) -> None:
        self.lockdep = Lockdep()
        self.host = Host(profile, memory=1 << 40, runtime=DirectRuntime(self.lockdep), platform="intel")
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

    @property
    def module(self) -> TdxModule:
        return self.host.tdx.module

    def td(self, vcpus: int = 1, **init: object) -> TdVm:
        """A TD with a vCPU and memory, not finalized."""
        return TdVm(self, vcpus, **init)

    def answers(self, *answers: tuple[TdxLeaf, int], repeat: int = 1) -> list[tuple[TdxLeaf, int]]:
        """Have the module answer the next calls of these leaves so, each `repeat` times.  What was asked of it so far."""
        left = {leaf: [status] * repeat for leaf, status in answers}
        asked: list[tuple[TdxLeaf, int]] = []

        def inject(leaf: TdxLeaf, what: int) -> int | None:
            asked.append((leaf, what))
            return left[leaf].pop() if left.get(leaf) else None

        self.module.inject = inject
        return asked


class TdVm:
    """A TDX VM with one vCPU and PAGES pages at GPA.  In place they are shared; with two pools private from the start."""

    def __init__(self, world: TdxWorld, vcpus: int, **init: object) -> None:
        self.world, self.in_place = world, world.profile.in_place
        self.vm: Vm = world.kvm.create_vm(VmType.TDX)
        self.vm.tdx.init_vm(**init)  # type: ignore[arg-type]
        self.vm.enable_map_gpa_range()
        self.vcpus: list[Vcpu] = [self.vm.create_vcpu(i) for i in range(vcpus)]
        for vcpu in self.vcpus:
            vcpu.tdx_init()
        self.gmem: GuestMemfd = world.gmem(self.vm, PAGES, None if self.in_place else 0)
        self.anonymous: Mapping = world.kvm.anonymous(PAGES * PAGE)
        self.shared: Mapping = self.gmem.mmap() if self.in_place else self.anonymous
        self.vm.set_user_memory_region2(0, GPA, PAGES * PAGE, gmem=self.gmem, userspace_addr=self.shared.address)

    @property
    def vcpu(self) -> Vcpu:
        return self.vcpus[0]

    @property
    def arch(self) -> TdxVm:
        """struct kvm_tdx."""
        arch = self.world.kvm_vm(self.vm).arch
        assert isinstance(arch, TdxVm)
        return arch

    @property
    def td(self) -> Td:
        """What the module knows."""
        return self.world.module.tds[self.arch.tdr]

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

    def load(self, contents: bytes, page: int = 0, *, measure: bool = True) -> None:
        """Contents, conversion, INIT_MEM_REGION."""
        size = -(-len(contents) // PAGE) * PAGE
        self.shared[page * PAGE : page * PAGE + len(contents)] = contents
        self.make_private(page, size // PAGE)
        source = 0 if self.in_place else self.shared.address + page * PAGE
        self.vm.tdx.init_mem_region(self.vcpu, GPA + page * PAGE, size, source, measure=measure)

    def start(self, contents: bytes = b"boot") -> TdVm:
        """Load one page, make the rest of the first 2 MiB private, finalize."""
        self.load(contents)
        self.make_private(1, 511)
        self.vm.tdx.finalize_vm()
        return self

    def run(self, guest: Callable[[TdGuestCpu], object] | None = None, vcpu: Vcpu | None = None) -> Exit:
        """KVM_RUN, converting what the guest asks for, until something else comes out."""
        vcpu = vcpu or self.vcpu
        exit_ = vcpu.run(guest)
        while exit_.reason is ExitReason.HYPERCALL:
            gpa, npages, flags = exit_.hypercall.args[:3]
            (self.make_private if flags else self.make_shared)((gpa - GPA) // PAGE, npages)
            exit_.answer_hypercall(0)
            exit_ = vcpu.run()
        return exit_

    def pfn(self, page: int) -> int:
        return self.world.pfn(self.gmem, page)
