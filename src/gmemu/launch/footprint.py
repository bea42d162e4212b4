# SPDX-License-Identifier: GPL-2.0-or-later
"""What a conversion costs in memory: a guest whose whole memory goes from shared to private, measured on the way.

The VMM writes the memory as shared, converts it, and has the guest use it as private: a software-protected one faults it in,
an SNP or TDX one is populated with what was written.  Then it gives back what it may.  With two pools the shared half is
still there until then, which doubles the memory; in place there is but one page.
"""

from __future__ import annotations

from typing import NamedTuple

from ..accounting import MemoryReport
from ..api.kvm import Kvm
from ..api.vcpu import Vcpu
from ..api.vm import Vm
from ..profiles import Profile
from ..uapi.kvm import VmType
from ..uapi.mman import MADV_DONTNEED
from ..uapi.sev import SnpPageType
from ..vmm import Backoff, Vmm
from ..vmm.populate import populate_snp, populate_tdx
from .errors import LaunchError

__all__ = ["PLATFORMS", "Stage", "footprint"]

PLATFORMS = {"sw-protected": VmType.SW_PROTECTED, "snp": VmType.SNP, "tdx": VmType.TDX}
"""What a guest may be, by name."""

PAGE_SIZE = 4096
_GPA = 0


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
    with Kvm.open(profile, platform="intel" if vm_type is VmType.TDX else "amd") as kvm:
        return _Run(kvm, vm_type, size).stages()


class _Run:
    def __init__(self, kvm: Kvm, vm_type: VmType, size: int) -> None:
        self.kvm, self.size = kvm, size
        self.vm: Vm = kvm.create_vm(vm_type)
        if vm_type is VmType.SNP:
            self.vm.snp.init2()
        elif vm_type is VmType.TDX:
            self.vm.tdx.init_vm()
        self.vcpu: Vcpu = self.vm.create_vcpu()
        if vm_type is VmType.TDX:
            self.vcpu.tdx_init()
        self.vmm = Vmm(kvm, self.vm, Backoff.none())
        self.null_source = kvm.host.profile.null_source

    def stages(self) -> list[Stage]:
        block = self.vmm.add_memory(_GPA, self.size)
        self.kvm.host.memmap.peak_allocated = self.kvm.host.memmap.nr_allocated
        stages = [self._stage("created")]
        source = block.buffer
        if self.vmm.in_place and self.vm.vm_type is not VmType.SW_PROTECTED and not self.null_source:
            source = self.kvm.anonymous(self.size)  # one pool, but contents must come from elsewhere
        for at in range(0, self.size, 1 << 20):
            length = min(1 << 20, self.size - at)
            source[at : at + length] = b"\x5a" * length
        stages.append(self._stage("written"))
        self.vmm.convert(_GPA, self.size, private=True)
        stages.append(self._stage("converted"))
        self._use(0 if self.vmm.in_place and self.null_source else source.address)
        stages.append(self._stage("used"))
        if source is not block.buffer or not self.vmm.in_place:
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
        else:
            self.vcpu.pre_fault(_GPA, self.size)

    def _stage(self, name: str) -> Stage:
        return Stage(name, self.vm.memory_report())
