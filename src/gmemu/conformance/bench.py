# SPDX-License-Identifier: GPL-2.0-or-later
"""`Bench`: what a case has in its hands.  It makes VMs, files and mappings, records probes, and clears up."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from ..api import GuestMemfd, Kvm, Mapping, Vcpu, Vm
from ..api.descriptor import Descriptor
from ..rules import KernelError
from ..uapi.kvm import GUEST_MEMFD_FLAG_INIT_SHARED, GUEST_MEMFD_FLAG_MMAP, KVM_GET_SUPPORTED_CPUID, Cap, VmType
from ..uapi.kvm_x86 import kvm_cpuid_entry2
from ..uapi.mman import (
    MAP_ANONYMOUS,
    MAP_FIXED_NOREPLACE,
    MAP_PRIVATE,
    MAP_SHARED,
    MREMAP_FIXED,
    PROT_READ,
    PROT_WRITE,
)
from .fork import Child, DoorChild, ForkedChild, Script
from .guests import CODE_GPA, CODE_SLOT, GuestRun, Op
from .outcome import Outcome, describe, observe

if TYPE_CHECKING:
    from ..syscalls.door import Door

__all__ = ["PAGE", "Bench"]

PAGE = 4096
_ROOMS, _GAP = 0x1000_0000_0000, 1 << 30
"""Where no program has anything, and how far mappings are kept apart."""
T = TypeVar("T")
K = TypeVar("K", bound=Descriptor | Mapping)


class Bench:
    """One run of one case: `vm_type` is the type that the case is about.  `probes` collects name -> outcome."""

    def __init__(self, door: Door, vm_type: VmType = VmType.DEFAULT) -> None:
        self.door, self.vm_type = door, vm_type
        self.probes: dict[str, Outcome] = {}
        self._regions: list[tuple[int, int]] = []
        self._open: list[Descriptor | Mapping] = []
        self._children: list[Child] = []
        self._code: dict[int, Mapping] = {}
        self._next_room = _ROOMS
        self.kvm = self._keep(Kvm(door))

    # Probes

    def probe(self, name: str, call: Callable[..., T], *args: Any) -> T | None:
        """Make the call and record what came of it under `name`; a value is returned also to the case."""
        outcome, value = observe(call, *args, locate=self.locate)
        self.record(name, outcome)
        if isinstance(value, Descriptor | Mapping):
            self._keep(value)
        return value if outcome.rule == "" else None

    def record(self, name: str, outcome: Outcome | object) -> None:
        """Enter a value that the case made itself."""
        if name in self.probes:
            raise ValueError(f"two probes are called {name!r}")
        self.probes[name] = outcome if isinstance(outcome, Outcome) else Outcome(describe(outcome))

    def locate(self, address: int) -> str:
        """A faulting address as a distance from the start of the mapping it's in, or was in."""
        for start, end in reversed(self._regions):
            if start <= address < end:
                return f"+{address - start:#x}"
        return "elsewhere"

    # Things to probe

    def vm(self, vm_type: VmType | int | None = None) -> Vm:
        """A new VM, of the case's type unless another is given."""
        return self._keep(self.kvm.create_vm(self.vm_type if vm_type is None else vm_type))

    def gmem(self, vm: Vm, size: int = 4 * PAGE, flags: int = 0) -> GuestMemfd:
        """A new guest_memfd."""
        return self._keep(vm.create_guest_memfd(size, flags))

    def shared_gmem(self, vm: Vm, size: int = 4 * PAGE) -> GuestMemfd:
        """A guest_memfd that the host may map and touch."""
        return self.gmem(vm, size, GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED)

    def vcpu(self, vm: Vm, id: int = 0) -> Vcpu:
        """A new vCPU."""
        vcpu = self._keep(vm.create_vcpu(id))
        self._region(vcpu.kvm_run)
        return vcpu

    def map(self, gmem: GuestMemfd, length: int | None = None, offset: int = 0, prot: int = 3) -> Mapping:
        """A shared mapping of a guest_memfd."""
        room = self.room(gmem.size - offset if length is None else length)
        return self._keep(gmem.mmap(length, offset, prot=prot, flags=MAP_SHARED | MAP_FIXED_NOREPLACE, address=room))

    def anonymous(self, size: int = PAGE, *, shared: bool = False, prot: int = PROT_READ | PROT_WRITE) -> Mapping:
        """Ordinary memory."""
        flags = MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | (MAP_SHARED if shared else MAP_PRIVATE)
        return self._keep(Mapping(self.door, self.door.mmap(self.room(size), size, prot, flags), size))

    def mremap(self, address: int, old: int, new: int, flags: int) -> Mapping:
        """mremap(), with MREMAP_FIXED to a place of its own: the mapping that came of it."""
        target = self.room(new) if flags & MREMAP_FIXED else 0
        return self._keep(Mapping(self.door, self.door.mremap(address, old, new, flags, target), new))

    def pipe(self) -> tuple[Descriptor, Descriptor]:
        """A new pipe: the end to read from, and the end to write to."""
        reads, writes = self.door.pipe()
        return self._keep(Descriptor(self.door, reads)), self._keep(Descriptor(self.door, writes))

    def room(self, size: int) -> int:
        """An address of the case's own with nothing near it, so that a call that goes too far hits nothing else."""
        address = self._next_room
        self._next_room += (size // _GAP + 2) * _GAP
        return address

    def memfd(self, size: int = PAGE) -> Descriptor:
        """An ordinary file in memory."""
        file = self._keep(Descriptor(self.door, self.door.memfd_create("conform")))
        self.door.ftruncate(file.fd, size)
        return file

    def map_file(self, file: Descriptor, length: int) -> Mapping:
        """A shared mapping of an ordinary file."""
        address = self.door.mmap(self.room(length), length, 3, MAP_SHARED | MAP_FIXED_NOREPLACE, file.fd)
        return self._keep(Mapping(self.door, address, length))

    def pointer(self, data: bytes, *, prot: int = PROT_READ | PROT_WRITE) -> int:
        """The address of user memory that holds `data`, at the start of a page."""
        memory = self.anonymous(max(PAGE, -(-len(data) // PAGE) * PAGE))
        memory[: len(data)] = data
        if prot != PROT_READ | PROT_WRITE:
            memory.protect(prot)
        return memory.address

    def pointers(self, data: bytes) -> dict[str, int]:
        """Addresses that hold `data` where they can, good and bad, by a name that tells what is the matter."""
        half = len(data) // 2
        straddling = self.anonymous(2 * PAGE)
        straddling[PAGE - half : PAGE] = data[:half]
        self.door.munmap(straddling.address + PAGE, PAGE)
        across = self.anonymous(2 * PAGE)
        across[PAGE - half : PAGE - half + len(data)] = data
        gone = self.anonymous()
        gone.close()
        return {
            "null": 0,
            "1": 1,
            "last page of user space": (1 << 47) - PAGE,
            "end of user space": (1 << 47) - len(data),
            "not canonical": 1 << 47,
            "kernel half": 0xFFFF800000000000,
            "-1": (1 << 64) - 1,
            "unmapped": gone.address,
            "PROT_NONE": self.pointer(data, prot=0),
            "read-only": self.pointer(data, prot=PROT_READ),
            "straddling into nothing": straddling.address + PAGE - half,
            "straddling two pages": across.address + PAGE - half,
            "unaligned": self.pointer(b"\0" + data) + 1,
        }

    # What the kernel has

    def flags_of(self, vm: Vm) -> int:
        """Creation flags that the VM may use."""
        return vm.check_extension(Cap.GUEST_MEMFD_FLAGS)

    def usable_flags(self, vm: Vm) -> int:
        """The most that a guest_memfd of this VM can be made with."""
        return self.flags_of(vm) & (GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED)

    @property
    def gpa_bits(self) -> int:
        """How many bits guest-physical addresses have: MAXPHYADDR's, or with shadow paging (which CPUID tells) all 52."""
        memory = bytearray((256).to_bytes(8, "little") + bytes(256 * kvm_cpuid_entry2.SIZE))
        self.kvm.ioctl(KVM_GET_SUPPORTED_CPUID, memory)
        count = int.from_bytes(memory[:4], "little")
        leaves = (kvm_cpuid_entry2.unpack_from(memory, 8 + i * kvm_cpuid_entry2.SIZE) for i in range(count))
        sizes = next(leaf.eax for leaf in leaves if leaf.function == 0x80000008)
        return sizes & 0xFF if sizes >> 16 & 0xFF else 52

    # Guests and other processes

    def guest(self, vm: Vm, vcpu: Vcpu, name: str, ops: list[Op], **answers: Any) -> GuestRun:
        """Run a guest to its HLT or to an exit that stops it, and record its exits and what it loaded."""
        run = GuestRun(self, vm, vcpu, **answers)
        self.record(name, run.run(ops))
        return run

    def code_of(self, vm: Vm) -> Mapping:
        """Where a VM's guests have their machine code: ordinary memory, in a slot of its own."""
        if vm.fd not in self._code:
            code = self._code[vm.fd] = self.anonymous(4 * PAGE)
            code[:] = bytes(4 * PAGE)
            vm.set_user_memory_region(CODE_SLOT, CODE_GPA, code.length, code.address)
        return self._code[vm.fd]

    def fork(self, script: Script) -> Child:
        """fork(): the child goes on with `script`, a generator function of the child's door; see `Child`."""
        child: Child
        child = DoorChild(self.door, script) if hasattr(self.door, "fork") else ForkedChild(self.door, script)
        child.locate = self.locate
        self._children.append(child)
        return child

    # Clearing up

    def keep(self, thing: K) -> K:
        """Close `thing` when the case is over."""
        return self._keep(thing)

    def _keep(self, thing: K) -> K:
        self._open.append(thing)
        if isinstance(thing, Mapping):
            self._region(thing)
        return thing

    def _region(self, mapping: Mapping) -> None:
        self._regions.append((mapping.address, mapping.address + mapping.length))

    def close(self) -> None:
        """Close what is still open, the newest first."""
        for child in reversed(self._children):
            child.exit()
        for thing in reversed(self._open):
            with suppress(KernelError):
                thing.close()
        self._open.clear()

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
