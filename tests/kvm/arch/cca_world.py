# SPDX-License-Identifier: GPL-2.0-or-later
"""An Arm machine, and a realm that is ready for whatever the test is about."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gmemu import Exit, ExitReason, Mapping, Vcpu, VmType
from gmemu.hw.rmm.guest_cpu import RealmGuestCpu
from gmemu.hw.rmm.realm import Realm
from gmemu.hw.rmm.rmm import Rmm
from gmemu.kvm.arch.cca import CcaVm
from gmemu.uapi.rmi import Ripas, Rmi

from ..world import PAGE
from .arm_world import ArmWorld
from .platform_world import GPA, PrivateVm

GFN = GPA >> 12

CCA_PROFILES = ("linux-7.3-cca", "inplace-v8", "inplace-v13")
every_cca_profile = pytest.mark.parametrize("world", CCA_PROFILES, indirect=True)


class CcaWorld(ArmWorld):
    """One Arm host with an RMM."""

    @property
    def rmm(self) -> Rmm:
        return self.host.rmm.rmm

    def realm(self, vcpus: int = 1, *, vgic: bool = True, ipa_bits: int = 0) -> RealmVm:
        """A realm with vCPUs (all but the first are off) and memory, not created yet."""
        return RealmVm(self, vcpus, vgic, ipa_bits)

    def answers(self, *answers: tuple[Rmi, int], repeat: int = 1) -> list[tuple[Rmi, int]]:
        """Have the RMM answer the next calls of these commands so, each `repeat` times.  What was asked of it so far."""
        left = {fid: [status] * repeat for fid, status in answers}
        asked: list[tuple[Rmi, int]] = []

        def inject(fid: Rmi, what: int) -> int | None:
            asked.append((fid, what))
            return left[fid].pop() if left.get(fid) else None

        self.rmm.inject = inject
        return asked


class RealmVm(PrivateVm):
    """A realm VM, with other memory for contents to be populated from."""

    def __init__(self, world: CcaWorld, vcpus: int, vgic: bool, ipa_bits: int) -> None:
        super().__init__(world, world.kvm.create_vm(VmType.ARM_REALM, ipa_bits))
        self.world = world
        self.vcpus = [self.vm.cca.create_vcpu(i, power_off=i > 0) for i in range(vcpus)]
        if vgic:
            self.vm.cca.create_vgic()
        self.add_memory()
        self.source: Mapping = world.kvm.anonymous(16 * PAGE)

    @property
    def arch(self) -> CcaVm:
        """struct realm."""
        arch = self.world.kvm_vm(self.vm).arch
        assert isinstance(arch, CcaVm)
        return arch

    @property
    def realm(self) -> Realm:
        """What the RMM knows."""
        return self.world.rmm.realms[self.arch.rd]

    def ripas(self, page: int) -> Ripas:
        return self.realm.rtt.entry(GFN + page).ripas

    def load(self, contents: bytes, page: int = 0, *, measure: bool = True) -> None:
        """Contents elsewhere, conversion, POPULATE from there."""
        size = -(-len(contents) // PAGE) * PAGE
        self.source[: len(contents)] = contents
        self.make_private(page, size // PAGE)
        assert self.vm.cca.populate(GPA + page * PAGE, size, self.source.address, measure=measure).size == 0

    def start(self, contents: bytes = b"boot") -> RealmVm:
        """Load one page, make the rest of the first 2 MiB private, activate."""
        self.load(contents)
        self.make_private(1, 511)
        assert self.vcpu.run(lambda cpu: None).reason is ExitReason.HLT
        return self

    def run(self, guest: Callable[[RealmGuestCpu], object] | None = None, vcpu: Vcpu | None = None) -> Exit:
        """KVM_RUN, converting what the guest asks for, until something else comes out."""
        vcpu = vcpu or self.vcpu
        exit_ = vcpu.run(guest)
        while exit_.reason is ExitReason.MEMORY_FAULT:
            fault = exit_.memory_fault
            convert = self.make_private if exit_.wants_private else self.make_shared
            convert((fault.gpa - GPA) // PAGE, fault.size // PAGE)
            exit_ = vcpu.run()
        return exit_
