# SPDX-License-Identifier: GPL-2.0-or-later
"""The calls that a sequence is made of, carried out behind one door."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ...syscalls.door import Door
from ...uapi import kvm
from ...uapi.mman import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, MAP_SHARED, SPLICE_F_NONBLOCK
from ..fork import DoorChild, ForkedChild
from ..outcome import Outcome, observe

__all__ = ["ARENA", "ARENA_PAGES", "KINDS", "PAGE", "Ref", "Step", "World"]

KINDS = ("kvm", "vm", "gmem", "vcpu", "memfd", "reads", "writes")
"""What descriptors there are; the last two are the ends of pipes."""

PAGE = 4096
ARENA, ARENA_PAGES = 0x1000_0000_0000, 48
_ARENA_END = ARENA + ARENA_PAGES * PAGE + (2 << 30)


class Ref(NamedTuple):
    """The n-th descriptor made of its kind (modulo how many there are), or -1."""

    kind: str
    number: int


class Step(NamedTuple):
    """A method of `World` and its arguments."""

    call: str
    args: dict[str, Any]

    def __repr__(self) -> str:
        shown = ", ".join(f"{k}={v:#x}" if isinstance(v, int) and v > 9 else f"{k}={v!r}" for k, v in self.args.items())
        return f"Step({self.call!r}, dict({shown}))"


class World:
    """One process that makes the calls: its descriptors by kind.  Every method returns what the call returned."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self.fds: dict[str, list[int]] = {kind: [] for kind in KINDS} | {"kvm": [door.open("/dev/kvm")]}

    def do(self, step: Step) -> Outcome:
        """Carry out one step."""
        return observe(getattr(self, step.call), *step.args.values(), locate=_locate)[0]

    def fd(self, ref: Ref) -> int:
        """The descriptor meant: -1 if there is none, or it was closed."""
        fds = self.fds.get(ref.kind)
        return fds[ref.number % len(fds)] if fds else -1

    def close_all(self) -> None:
        """Close and unmap whatever the sequence left."""
        self.door.munmap(ARENA, _ARENA_END - ARENA)
        for fds in self.fds.values():
            for fd in fds:
                if fd >= 0:
                    self.door.close(fd)

    def _made(self, kind: str, fd: int) -> str:
        self.fds[kind].append(fd)
        return f"a {kind}"

    # Making and closing

    def create_vm(self, vm_type: int) -> str:
        return self._made("vm", self.door.ioctl(self.fds["kvm"][0], kvm.KVM_CREATE_VM, vm_type))

    def create_gmem(self, vm: Ref, size: int, flags: int) -> str:
        args = bytearray(kvm.kvm_create_guest_memfd(size=size, flags=flags).pack())
        return self._made("gmem", self.door.ioctl(self.fd(vm), kvm.KVM_CREATE_GUEST_MEMFD, args))

    def create_vcpu(self, vm: Ref, id: int) -> str:
        return self._made("vcpu", self.door.ioctl(self.fd(vm), kvm.KVM_CREATE_VCPU, id))

    def create_memfd(self, size: int) -> str:
        fd = self.door.memfd_create("fuzz")
        self.door.ftruncate(fd, size)
        return self._made("memfd", fd)

    def create_pipe(self) -> str:
        reads, writes = self.door.pipe()
        self._made("reads", reads)
        return self._made("writes", writes)

    def close(self, fd: Ref) -> None:
        """Close it; /dev/kvm stays, as nothing could go on without it."""
        number = self.fd(fd)
        if fd.kind != "kvm":
            self.door.close(number)
            fds = self.fds.get(fd.kind, [])
            if fds:
                fds[fd.number % len(fds)] = -1

    def dup(self, fd: Ref) -> str:
        return self._made(fd.kind if fd.kind in self.fds else "gmem", self.door.dup(self.fd(fd)))

    # VMs

    def set_region2(self, vm: Ref, slot: int, flags: int, gpa: int, size: int, hva: int, gmem: Ref, offset: int) -> int:
        region = kvm.kvm_userspace_memory_region2(
            slot=slot,
            flags=flags,
            guest_phys_addr=gpa,
            memory_size=size,
            userspace_addr=hva,
            guest_memfd_offset=offset,
            guest_memfd=self.fd(gmem) & 0xFFFFFFFF,
        )
        return self.door.ioctl(self.fd(vm), kvm.KVM_SET_USER_MEMORY_REGION2, bytearray(region.pack()))

    def set_region(self, vm: Ref, slot: int, flags: int, gpa: int, size: int, hva: int) -> int:
        region = kvm.kvm_userspace_memory_region(
            slot=slot, flags=flags, guest_phys_addr=gpa, memory_size=size, userspace_addr=hva
        )
        return self.door.ioctl(self.fd(vm), kvm.KVM_SET_USER_MEMORY_REGION, bytearray(region.pack()))

    def set_attributes(self, vm: Ref, gpa: int, size: int, attributes: int, flags: int) -> int:
        args = kvm.kvm_memory_attributes(address=gpa, size=size, attributes=attributes, flags=flags)
        return self.door.ioctl(self.fd(vm), kvm.KVM_SET_MEMORY_ATTRIBUTES, bytearray(args.pack()))

    def dirty_log(self, vm: Ref, slot: int, bitmap: int) -> int:
        args = kvm.kvm_dirty_log(slot=slot, dirty_bitmap=bitmap)
        return self.door.ioctl(self.fd(vm), kvm.KVM_GET_DIRTY_LOG, bytearray(args.pack()))

    def pre_fault(self, vcpu: Ref, gpa: int, size: int, flags: int) -> int:
        args = kvm.kvm_pre_fault_memory(gpa=gpa, size=size, flags=flags)
        return self.door.ioctl(self.fd(vcpu), kvm.KVM_PRE_FAULT_MEMORY, bytearray(args.pack()))

    def check_extension(self, fd: Ref, cap: int) -> int:
        return self.door.ioctl(self.fd(fd), kvm.KVM_CHECK_EXTENSION, cap)

    def ioctl(self, fd: Ref, request: int, arg: int) -> str:
        """Whatever is in memory at `arg`.  A descriptor that it makes is closed at once."""
        result = self.door.ioctl(self.fd(fd), request, arg)
        if request == kvm.KVM_CREATE_GUEST_MEMFD:
            self.door.close(result)
            return "a gmem"
        return str(result)

    # Memory

    def mmap(self, address: int, length: int, prot: int, flags: int, fd: Ref, offset: int) -> int:
        return self.door.mmap(address, length, prot, flags, self.fd(fd), offset)

    def anonymous(self, address: int, length: int, shared: bool) -> int:
        kind = MAP_SHARED if shared else MAP_PRIVATE
        return self.door.mmap(address, length, 3, MAP_ANONYMOUS | MAP_FIXED | kind)

    def munmap(self, address: int, length: int) -> None:
        self.door.munmap(address, length)

    def mprotect(self, address: int, length: int, prot: int) -> None:
        self.door.mprotect(address, length, prot)

    def madvise(self, address: int, length: int, advice: int) -> None:
        self.door.madvise(address, length, advice)

    def mremap(self, address: int, old: int, new: int, flags: int, to: int) -> int | str:
        """What goes where the kernel chooses is unmapped at once: the two wouldn't choose alike."""
        result = self.door.mremap(address, old, new, flags, to)
        if ARENA <= result < _ARENA_END:
            return result
        self.door.munmap(result, new)
        return "moved elsewhere"

    def mlock(self, address: int, length: int) -> None:
        self.door.mlock(address, length)

    def munlock(self, address: int, length: int) -> None:
        self.door.munlock(address, length)

    def process_vm(self, local: int, remote: int, length: int, write: bool) -> int:
        call = self.door.process_vm_writev if write else self.door.process_vm_readv
        return call(self.door.getpid(), [(local, length)], [(remote, length)])

    def load(self, address: int, length: int) -> bytes:
        return self.door.load(address, length)

    def store(self, address: int, byte: int, length: int) -> None:
        self.door.store(address, bytes((byte,)) * length)

    # Files

    def fallocate(self, fd: Ref, mode: int, offset: int, length: int) -> None:
        self.door.fallocate(self.fd(fd), mode, offset, length)

    def ftruncate(self, fd: Ref, length: int) -> None:
        self.door.ftruncate(self.fd(fd), length)

    def resize_memfd(self, fd: Ref, length: int) -> None:
        self.door.ftruncate(self.fd(fd), length)

    def fstat(self, fd: Ref) -> tuple[int, ...]:
        stat = self.door.fstat(self.fd(fd))
        return (stat.mode, stat.size, stat.blksize, stat.blocks) if fd.kind != "kvm" else ()

    def read(self, fd: Ref, length: int, positioned: bool) -> bytes:
        number = self.fd(fd)
        return self.door.pread(number, length, 0) if positioned else self.door.read(number, length)

    # Pipes

    def pipe_write(self, fd: Ref, byte: int, length: int) -> int:
        return self.door.write(self.fd(fd), bytes((byte,)) * length if fd.kind == "writes" else b"")

    def splice(self, fd_in: Ref, fd_out: Ref, length: int, flags: int) -> int:
        return self.door.splice(self.fd(fd_in), 0, self.fd(fd_out), 0, length, flags | SPLICE_F_NONBLOCK)

    def vmsplice(self, fd: Ref, address: int, length: int, flags: int) -> int:
        return self.door.vmsplice(self.fd(fd), [(address, length)], flags | SPLICE_F_NONBLOCK)

    # Another process

    def in_child(self, vm: Ref, gmem: Ref, address: int) -> str:
        """fork(); the child loads, stores, asks the VM, punches a hole, and is gone."""
        vm_fd, gmem_fd = self.fd(vm), self.fd(gmem)

        def script(door: Any) -> Iterator[Callable[[], Any]]:
            yield lambda: door.load(address, 8)
            yield lambda: door.store(address, b"child")
            yield lambda: door.ioctl(vm_fd, kvm.KVM_CHECK_EXTENSION, 234)
            yield lambda: door.fallocate(gmem_fd, 3, 0, PAGE)
            yield lambda: door.load(address, 8)

        child = DoorChild(self.door, script) if hasattr(self.door, "fork") else ForkedChild(self.door, script)
        child.locate = _locate
        try:
            return "; ".join(child.step().result for _ in range(5))
        finally:
            child.exit()


def _locate(address: int) -> str:
    return f"{address:#x}"
