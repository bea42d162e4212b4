# SPDX-License-Identifier: GPL-2.0-or-later
"""What a conversion costs in memory: a guest whose whole memory goes from shared to private, measured on the way.

The VMM writes the memory as shared, converts it, and has the guest use it as private: a software-protected one faults it in,
one of SNP, TDX or CCA is populated with what was written, a protected one of pKVM touches it.  Then what isn't needed is
given back.  With two pools the shared half stays until then, which doubles the memory; in place there is but one page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..accounting import MemoryReport
from ..api.arm64 import init_vcpu
from ..api.kvm import Kvm
from ..api.mapping import Mapping
from ..api.vcpu import Vcpu
from ..api.vm import Vm
from ..profiles import Profile
from ..uapi.kvm import VmType
from ..uapi.mman import MADV_DONTNEED
from ..uapi.sev import SnpPageType
from ..vmm import Backoff, Vmm
from ..vmm.populate import populate_cca, populate_snp, populate_tdx
from .errors import LaunchError

if TYPE_CHECKING:
    from ..hw.guest_cpu import GuestCpu

__all__ = ["PLATFORMS", "Stage", "footprint"]

PLATFORMS = {
    "sw-protected": VmType.SW_PROTECTED,
    "snp": VmType.SNP,
    "tdx": VmType.TDX,
    "cca": VmType.ARM_REALM,
    "pkvm": VmType.ARM_PROTECTED,
}
"""What a guest may be, by name."""
_MACHINES = {VmType.TDX: "intel", VmType.ARM_REALM: "arm", VmType.ARM_PROTECTED: "pkvm"}

PAGE_SIZE = 4096
_GPA = 0
_POPULATED = (VmType.SNP, VmType.TDX)


class Stage(NamedTuple):
    """A moment of the run, and where the memory was then."""

    name: str
    report: MemoryReport


def footprint(profile: Profile, platform: str, size: int) -> list[Stage]:
    """Run it with a guest of `size` bytes on a machine of its own.  Raises `LaunchError` for what the profile can't do."""
    vm_type = PLATFORMS[platform]
    if vm_type not in profile.vm_types:
        raise LaunchError(f"profile {profile.name} has no VMs of type {vm_type.name}")
    if size <= 0 or size % PAGE_SIZE:
        raise LaunchError(f"a guest of {size} bytes was asked for; give a multiple of {PAGE_SIZE}")
    with Kvm.open(profile, platform=_MACHINES.get(vm_type, "amd")) as kvm:
        return _Run(kvm, vm_type, size).stages()


class _Run:
    def __init__(self, kvm: Kvm, vm_type: VmType, size: int) -> None:
        self.kvm, self.size = kvm, size
        self.vm: Vm = kvm.create_vm(vm_type)
        if vm_type is VmType.SNP:
            self.vm.snp.init2()
        elif vm_type is VmType.TDX:
            self.vm.tdx.init_vm()
        self.vcpu: Vcpu = self._new_vcpu()
        self.vmm = Vmm(kvm, self.vm, Backoff.none())
        profile = kvm.host.profile
        self.pinned = vm_type is VmType.ARM_PROTECTED and profile.protected_memory == "pinned"
        self.from_elsewhere = vm_type is VmType.ARM_REALM or (vm_type in _POPULATED and not profile.null_source)

    def _new_vcpu(self) -> Vcpu:
        vm_type = self.vm.vm_type
        if vm_type is VmType.ARM_REALM:
            vcpu = self.vm.cca.create_vcpu()
            self.vm.cca.create_vgic()
            return vcpu
        vcpu = self.vm.create_vcpu()
        if vm_type is VmType.TDX:
            vcpu.tdx_init()
        elif vm_type is VmType.ARM_PROTECTED:
            init_vcpu(self.vm, vcpu)
        return vcpu

    def _add_memory(self) -> tuple[Mapping, bool]:
        """The guest's memory: where it's written to, and whether that's the guest_memfd itself."""
        if self.pinned:
            memory = self.kvm.anonymous(self.size)
            self.vm.set_user_memory_region2(0, _GPA, self.size, userspace_addr=memory.address)
            return memory, False
        block = self.vmm.add_memory(_GPA, self.size)
        return block.buffer, self.vmm.in_place

    def stages(self) -> list[Stage]:
        source, in_place = self._add_memory()
        self.kvm.host.memmap.peak_allocated = self.kvm.host.memmap.nr_allocated
        stages = [self._stage("created")]
        if in_place and self.from_elsewhere:
            source, in_place = self.kvm.anonymous(self.size), False  # one pool, but contents must come from elsewhere
        for at in range(0, self.size, 1 << 20):
            length = min(1 << 20, self.size - at)
            source[at : at + length] = b"\x5a" * length
        stages.append(self._stage("written"))
        if not self.pinned:
            self.vmm.convert(_GPA, self.size, private=True)
        stages.append(self._stage("converted"))
        self._use(0 if in_place else source.address)
        stages.append(self._stage("used"))
        if not in_place and not self.pinned:
            source.madvise(MADV_DONTNEED)
        stages.append(self._stage("given back"))
        return stages

    def _use(self, source: int) -> None:
        """The guest has its memory as private: by faults, or as part of its launch."""
        if self.vm.vm_type is VmType.SNP:
            self.vm.snp.launch_start()
            populate_snp(self.vm.snp, _GPA, self.size, SnpPageType.NORMAL, source)
        elif self.vm.vm_type is VmType.TDX:
            populate_tdx(self.vm.tdx, self.vcpu, _GPA, self.size, source, measure=True, backoff=self.vmm.backoff)
        elif self.vm.vm_type is VmType.ARM_REALM:
            populate_cca(self.vm.cca, _GPA, self.size, source, backoff=self.vmm.backoff)
        elif self.vm.vm_type is VmType.ARM_PROTECTED:
            self.vcpu.run(self._touch)
        else:
            self.vcpu.pre_fault(_GPA, self.size)

    def _touch(self, cpu: GuestCpu) -> None:
        for gpa in range(_GPA, _GPA + self.size, PAGE_SIZE):
            cpu.load(gpa, 1)

    def _stage(self, name: str) -> Stage:
        return Stage(name, self.vm.memory_report())
