# SPDX-License-Identifier: GPL-2.0-or-later
"""The model's VMs, slots, guest_memfds and vCPUs; what the kernels differ in; what guests do and how they exit."""

from __future__ import annotations

from collections.abc import Generator
from errno import EEXIST, EINVAL, ENODEV
from typing import NamedTuple

from .pages import PAGE, Errno, File, Page, Process

PRIVATE = 8
LOG_DIRTY, READONLY, GUEST_MEMFD = 1, 2, 4
MMAP, INIT_SHARED = 1, 2
SW_PROTECTED, SNP = 1, 4
U64 = 1 << 64
USER_SLOTS = 32767 - 3
TASK_SIZE = (1 << 47) - PAGE
LAST_GFN = (1 << 40) - 1


class Kernel(NamedTuple):
    """What the kernels that are modelled don't have in common."""

    in_place: bool
    flags_default: int
    flags_private: int
    default_vm_binds: bool
    gmem_only: str
    overlap: int
    signed_offset: bool
    blocks: bool
    locked_populate: bool
    fallocate_modes: int
    """what fallocate() knows for any file: FALLOC_FL_WRITE_ZEROES (0x80) came with 6.17"""


KERNELS = {
    "linux-6.12": Kernel(False, 0, 0, False, "never", EINVAL, False, False, True, 0x7B),
    "linux-6.18": Kernel(False, 3, 1, True, "mmap", EINVAL, True, False, True, 0xFB),
    "linux-7.3": Kernel(False, 3, 1, True, "mmap", EEXIST, False, False, False, 0xFB),
    "inplace-v13": Kernel(True, 3, 3, True, "always", EEXIST, False, True, False, 0xFB),
}


class MemoryFaultExit(NamedTuple):
    """KVM_EXIT_MEMORY_FAULT, with the errno that KVM_RUN fails with."""

    flags: int
    gpa: int
    errno: int


class MmioExit(NamedTuple):
    gpa: int
    write: bool
    data: bytes


class HypercallExit(NamedTuple):
    args: tuple[int, int, int]


class BadAddressExit(NamedTuple):
    """KVM_RUN fails with EFAULT and says no more."""


class FailedEntry(NamedTuple):
    """KVM_EXIT_FAIL_ENTRY: the processor won't run this."""


class Halted(NamedTuple):
    """The guest has nothing left to do."""


Exit = MemoryFaultExit | MmioExit | HypercallExit | BadAddressExit | FailedEntry | Halted
Guest = Generator[Exit | None, bytes | int | None, None]
"""A guest as it runs: yields its exits, and None where an instruction that user space completed has retired."""


class Load(NamedTuple):
    gpa: int
    length: int
    shared: bool = False


class Store(NamedTuple):
    gpa: int
    data: bytes
    shared: bool = False


class Hypercall(NamedTuple):
    gpa: int
    npages: int
    private: bool


class PageStateChange(NamedTuple):
    """An SNP guest asks for a conversion by the GHCB MSR."""

    gpa: int
    private: bool


class Validate(NamedTuple):
    """PVALIDATE."""

    gpa: int
    on: bool


Op = Load | Store | Hypercall | PageStateChange | Validate
Heard = bytes | int | str | None
"""What a guest got for an operation: None if that can't be told."""


class GuestFault(Exception):
    def __init__(self, exit_: MemoryFaultExit | BadAddressExit) -> None:
        self.exit = exit_


class Region(NamedTuple):
    """The arguments of KVM_SET_USER_MEMORY_REGION2."""

    slot: int
    flags: int
    gpa: int
    size: int
    address: int = 0
    fd: int = 0
    offset: int = 0


class Slot:
    def __init__(self, region: Region) -> None:
        self.region = region
        self.gfn, self.npages, self.flags = region.gpa // PAGE, region.size // PAGE, region.flags
        self.file: Gmem | None = None
        self.first = region.offset // PAGE
        self.gmem_only = False
        self.written: set[int] = set()
        self.accessed: set[int] = set()

    def has(self, gfn: int) -> bool:
        return self.gfn <= gfn < self.gfn + self.npages


class Vm:
    def __init__(self, owner: Process, kind: int) -> None:
        self.owner, self.kind = owner, kind
        self.private_memory = kind in (SW_PROTECTED, SNP)
        self.slots: dict[int, Slot] = {}
        self.attributes: dict[int, bool] = {}
        self.vcpus: dict[int, VcpuFile] = {}
        self.map_gpa_range_exits = False
        self.started = self.finished = False
        self.digest: bytes | None = bytes(48)
        """An SNP VM's launch digest, as far as it can be told."""

    def slot_at(self, gfn: int) -> Slot | None:
        return next((s for n, s in self.slots.items() if n < 1 << 16 and s.has(gfn)), None)


class Device(File):
    """/dev/kvm."""


class SevDevice(File):
    """/dev/sev."""


class VmFile(File):
    def __init__(self, vm: Vm) -> None:
        super().__init__()
        self.vm = vm


class VcpuFile(File):
    """A vCPU: three pages to map, of which the last (the ring of coalesced MMIO) is the VM's, and what it runs."""

    def __init__(self, vm: Vm) -> None:
        super().__init__(3)
        self.vm = vm
        first = next(iter(vm.vcpus.values()), None)
        self.pages = {0: Page(), 1: Page(), 2: first.pages[2] if first else Page()}
        for page in self.pages.values():
            page.unknown = True
            page.fresh = False
        self.guest: Guest | None = None
        self.ops: list[Op] = []
        self.results: list[Heard] = []
        self.protected = False
        self.pending: Exit | None = None

    def may_map(self, shared: bool) -> None:
        pass

    def closed(self) -> None:
        """The vCPU lives as long as its VM."""


class Gmem(File):
    """A guest_memfd: which pages are private, and what else it may do."""

    def __init__(self, vm: Vm, npages: int, flags: int) -> None:
        super().__init__(npages)
        self.vm, self.flags = vm, flags
        self.private = dict.fromkeys(range(npages), not flags & INIT_SHARED)

    def may_map(self, shared: bool) -> None:
        if not self.flags & MMAP:
            raise Errno(ENODEV)
        if not shared:
            raise Errno(EINVAL)

    def may_touch(self, index: int) -> bool:
        return index < self.npages and not self.private[index]

    def closed(self) -> None:
        super().closed()
        for slot in self.vm.slots.values():
            if slot.file is self:
                slot.file = None
