# SPDX-License-Identifier: GPL-2.0-or-later
"""An Intel machine, and a TD that is ready for whatever the test is about."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gmemu import Exit, ExitReason, Vcpu, VmType
from gmemu.hw.tdx.guest_cpu import TdGuestCpu
from gmemu.hw.tdx.module import TdxModule
from gmemu.hw.tdx.td import Td
from gmemu.kvm.arch.tdx import TdxVm
from gmemu.uapi.tdx import TdxLeaf, TdxOperand, TdxStatus

from ..world import PAGE
from .platform_world import GPA, PlatformWorld, PrivateVm

GFN = GPA >> 12
BUSY = TdxStatus.OPERAND_BUSY | TdxOperand.SEPT

TDX_PROFILES = ("linux-6.18", "linux-7.3", "inplace-v13")
every_tdx_profile = pytest.mark.parametrize("world", TDX_PROFILES, indirect=True)


class TdxWorld(PlatformWorld):
    """One Intel host."""

    platform = "intel"

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


class TdVm(PrivateVm):
    """A TDX VM with one vCPU."""

    def __init__(self, world: TdxWorld, vcpus: int, **init: object) -> None:
        super().__init__(world, world.kvm.create_vm(VmType.TDX))
        self.world = world
        self.vm.tdx.init_vm(**init)  # type: ignore[arg-type]
        self.vm.enable_map_gpa_range()
        self.vcpus = [self.vm.create_vcpu(i) for i in range(vcpus)]
        for vcpu in self.vcpus:
            vcpu.tdx_init()
        self.add_memory()

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
