# SPDX-License-Identifier: GPL-2.0-or-later
"""A Host: one emulated machine, with its memory, its trusted entities, its kernel and its processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar
from weakref import WeakSet

from ..hw.memory import PhysicalMemory
from ..invariants import Leak
from ..mm.address_space import AddressSpace
from ..mm.filemap import PageCache
from ..mm.memory_failure import memory_failure
from ..mm.page import Memmap
from ..mm.process import Process
from ..mm.swap import LruBatches
from ..profiles import DEFAULT, Profile, get, on_arm64
from ..sync import DirectRuntime, Runtime
from ..uapi.kvm import VmType
from .clock import Tsc
from .design import Design

if TYPE_CHECKING:
    from .fault_points import FaultPoints
    from .guest_memfd.inode import GmemInode
    from .pkvm_platform import PkvmPlatform
    from .rmm_platform import RmmPlatform
    from .snp_platform import SnpPlatform
    from .tdx_platform import TdxPlatform
    from .vm import Vm

__all__ = ["DEFAULT_MEMORY", "PLATFORMS", "Host"]

PLATFORMS: dict[str, frozenset[VmType]] = {
    "amd": frozenset({VmType.DEFAULT, VmType.SW_PROTECTED, VmType.SNP}),
    "intel": frozenset({VmType.DEFAULT, VmType.SW_PROTECTED, VmType.TDX}),
    "arm": frozenset({VmType.DEFAULT, VmType.ARM_REALM}),
    "pkvm": frozenset({VmType.DEFAULT, VmType.ARM_PROTECTED}),
}
"""Platform -> the VM types that it can run.  "pkvm" is an Arm machine with kvm-arm.mode=protected."""

DEFAULT_MEMORY = 4 << 40


class Host:
    """One machine.  `memory` is how much RAM it has (bytes; only what is touched costs anything), `platform` whose
    processors it has (`PLATFORMS`): a VM type takes both a kernel and a platform.  `faults` orders failures.

    Every host is a world of its own: its processes, files, VMs and counters aren't seen by another.
    """

    default_faults: ClassVar[Callable[[], FaultPoints] | None] = None
    """Set by whoever runs a program as it is (`gmemu run`, `gmemu sweep`): the faults of hosts that are given none."""

    default_design: ClassVar[Callable[[Profile], Design]] = Design.of
    """Set in the same way (`gmemu run --variant`): how hosts are built that are given no design."""

    def __init__(
        self,
        profile: str | Profile = DEFAULT,
        *,
        memory: int = DEFAULT_MEMORY,
        runtime: Runtime | None = None,
        design: Design | None = None,
        seed: int = 0,
        platform: str = "amd",
        faults: FaultPoints | None = None,
    ) -> None:
        self.profile = get(profile) if isinstance(profile, str) else profile
        if platform not in PLATFORMS:
            raise ValueError(f"there is no platform {platform!r}; there are {', '.join(PLATFORMS)}")
        self.platform = platform
        if self.is_arm64:
            self.profile = on_arm64(self.profile)
        if faults is None and runtime is None and Host.default_faults is not None:
            faults = Host.default_faults()
        self.faults = faults
        self.rt = runtime or (faults.runtime() if faults is not None else DirectRuntime())
        self.design = design or Host.default_design(self.profile)
        self.seed = seed
        self.tsc = self.new_tsc()
        self.memory, self.memmap = self.new_memory(memory)
        self.lru = LruBatches(self.memmap)
        self.vms: list[Vm] = []
        self.vms_created = 0
        self.gmem_inodes: WeakSet[GmemInode] = WeakSet()
        self.failing_allocations: dict[str, int] = {}
        """allocation site -> how many more of its allocations fail"""
        self._snp: SnpPlatform | None = None
        self._tdx: TdxPlatform | None = None
        self._rmm: RmmPlatform | None = None
        self._pkvm: PkvmPlatform | None = None
        self.init = self.new_process()
        if faults is not None:
            faults.attach(self)

    def new_tsc(self) -> Tsc:
        """The time stamp counter of the machine."""
        return Tsc()

    def new_memory(self, size: int) -> tuple[PhysicalMemory, Memmap]:
        """The machine's memory, `size` bytes, and the kernel's account of it."""
        memory = PhysicalMemory(size)
        return memory, Memmap(self.rt, memory)

    def new_page_cache(self, name: str, pages: int) -> PageCache:
        """The page cache of an inode that has at most `pages` pages."""
        return PageCache(self.memmap, self.lru, name)

    def new_process(self) -> Process:
        """A process with nothing in it."""
        return Process(AddressSpace(self.memmap))

    @property
    def snp(self) -> SnpPlatform:
        """The machine's SNP half (RMP, PSP, ASIDs), made when first used: nobody pays for it who has no SNP VM."""
        if self._snp is None:
            from .snp_platform import SnpPlatform

            self._snp = SnpPlatform(self)
            self._made(self._snp)
        return self._snp

    @property
    def tdx(self) -> TdxPlatform:
        """The machine's TDX half (module, private key ids), made when first used."""
        if self._tdx is None:
            from .tdx_platform import TdxPlatform

            self._tdx = TdxPlatform(self)
            self._made(self._tdx)
        return self._tdx

    @property
    def rmm(self) -> RmmPlatform:
        """The machine's realm half (RMM, VMIDs), made when first used."""
        if self._rmm is None:
            from .rmm_platform import RmmPlatform

            self._rmm = RmmPlatform(self)
            self._made(self._rmm)
        return self._rmm

    @property
    def pkvm(self) -> PkvmPlatform:
        """The hypervisor above the machine's kernel, made when first used."""
        if self._pkvm is None:
            from .pkvm_platform import PkvmPlatform

            self._pkvm = PkvmPlatform(self)
            self._made(self._pkvm)
        return self._pkvm

    def _made(self, entity: object) -> None:
        """A trusted entity was made; whoever orders failures wants to know."""
        if self.faults is not None:
            self.faults.entity(entity)

    @property
    def is_arm64(self) -> bool:
        """Whether the processors are Arm's."""
        return self.platform in ("arm", "pkvm")

    @property
    def maxphyaddr(self) -> int:
        """MAXPHYADDR in bits (CPUID 0x80000008): where guest-physical addresses end too."""
        return 48 if self.platform == "amd" else 52

    @property
    def vm_types(self) -> tuple[VmType, ...]:
        """What KVM_CREATE_VM takes: what the kernel has, of what the platform can."""
        return tuple(t for t in self.profile.vm_types if t in PLATFORMS[self.platform])

    @property
    def vm_types_mask(self) -> int:
        """KVM_CAP_VM_TYPES, which only x86 has."""
        if self.is_arm64:
            return 0
        return sum(1 << t for t in self.vm_types)

    def allocate(self, site: str) -> None:
        """A kernel allocation at `site` takes place.  Raises ENOMEM if it was ordered to fail."""
        ordered = self.faults is not None and self.faults.allocate(site)
        if not ordered and self.failing_allocations.get(site):
            self.failing_allocations[site] -= 1
            ordered = True
        if ordered:
            from ..rules import mm as rules

            raise rules.OUT_OF_MEMORY(f"an allocation ordered to fail: {site}")

    def memory_failure(self, pfn: int) -> None:
        """The hardware reports that the memory of page frame `pfn`, which is in use, went bad.

        Raises EHWPOISON or EBUSY, as memory_failure() does; that the page is bad is known from then on in either case.
        """
        self.memmap.get(pfn)
        memory_failure(self.memmap, pfn)

    def gmem_reclaim(self, pfn: int, count: int) -> None:
        """kvm_arch_gmem_reclaim(): guest_memfd pages leave the page cache; whoever owns them gives them back."""
        self.gmem_make_shared(pfn, count)
        if self._pkvm is not None:
            self._pkvm.gmem_reclaim(pfn, count)

    def gmem_make_shared(self, pfn: int, count: int) -> None:
        """kvm_arch_gmem_make_shared(): pages become shared where they are.  SNP does the same for both."""
        if self._snp is not None:
            self._snp.make_shared(pfn, count)

    def owner(self, pfn: int) -> str:
        """Whose page frame `pfn` is by what the trusted entity keeps (RMP, PAMT, granules), in its words; empty without."""
        platforms = (self._snp, self._tdx, self._rmm, self._pkvm)
        return ", ".join(platform.owner(pfn) for platform in platforms if platform is not None)

    def check_quiet(self) -> None:
        """With every VM and process gone, nothing may be left: no page but the zero page and what was leaked on purpose."""
        self.lru.lru_add_drain_all()
        zero, leaked = self.memmap.zero_pfn, self.memmap.leaked
        for start, end, refs in self.memmap.refs.runs():
            start += start == zero
            if start < end and not leaked.covers(start, end, True):
                raise Leak(f"pfn {start:#x}-{end:#x} still has {refs} references after everything was closed")
        if self.vms:
            raise Leak(f"{self.vms[0]} was never destroyed")
        if self._snp is not None:
            self._snp.check_quiet()
        if self._tdx is not None:
            self._tdx.check_quiet()
        if self._rmm is not None:
            self._rmm.check_quiet()
        if self._pkvm is not None:
            self._pkvm.check_quiet()

    def close(self) -> None:
        """Switch the machine off, whatever state it's in."""
        if self.faults is not None:
            self.faults.detach(self)
        self.memory.close()

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
