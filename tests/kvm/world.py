# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests of KVM stand on: a machine with lock order recorded, and words for what a call came to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest

from gmemu import PROFILES, Exit, ExitReason, GuestCpu, GuestMemfd, Host, Kvm, Mapping, Vcpu, Vm, VmType
from gmemu.check import check_host
from gmemu.kvm.guest_memfd.file import GmemFile
from gmemu.kvm.guest_memfd.inode import GmemInode
from gmemu.kvm.memslots import Memslot
from gmemu.kvm.vcpu import Vcpu as KvmVcpu
from gmemu.kvm.vcpu import VcpuFile
from gmemu.kvm.vm import Vm as KvmVm
from gmemu.kvm.vm import VmFile
from gmemu.rules import KernelError, MemoryFault
from gmemu.sync import DirectRuntime, Lockdep
from gmemu.syscalls.emulated import EmulatedDoor

PAGE = 4096
MMAP, INIT_SHARED = 1, 2
BOTH = MMAP | INIT_SHARED
PRIVATE = 8
DEFAULT, SW_PROTECTED = VmType.DEFAULT, VmType.SW_PROTECTED

T = TypeVar("T")

every_profile = pytest.mark.parametrize(
    "world", [p.name for p in PROFILES.values() if p.conversion != "convert"], indirect=True
)
"""Each kernel but that of the RFC of May 2025, whose calls and flags are others: see guest_memfd/test_convert.py."""
with_vm_ioctl = pytest.mark.parametrize("world", [p.name for p in PROFILES.values() if p.vm_attributes_ioctl], indirect=True)
two_pools = pytest.mark.parametrize("world", [p.name for p in PROFILES.values() if not p.in_place], indirect=True)


def in_profiles(*names: str) -> pytest.MarkDecorator:
    """Run the test in each of these profiles."""
    return pytest.mark.parametrize("world", names, indirect=True)


class World:
    """One host, its first process, and /dev/kvm open."""

    def __init__(self, profile: str) -> None:
        self.lockdep = Lockdep()
        self.host = Host(profile, memory=1 << 42, runtime=DirectRuntime(self.lockdep))
        self.profile = self.host.profile
        self.door = EmulatedDoor(self.host)
        self.kvm = Kvm(self.door)
        self.children: list[EmulatedDoor] = []

    def vm(self, vm_type: VmType = SW_PROTECTED) -> Vm:
        """KVM_CREATE_VM."""
        return self.kvm.create_vm(vm_type)

    def gmem(self, vm: Vm, pages: int = 8, flags: int | None = None) -> GuestMemfd:
        """A guest_memfd; mapped and shared from the beginning where the VM may have that."""
        if flags is None:
            has_private = vm.vm_type != DEFAULT
            flags = self.profile.gmem_flags_for(has_private)
        return vm.create_guest_memfd(pages * PAGE, flags)

    def fork(self) -> EmulatedDoor:
        """A child of the first process."""
        self.children.append(self.door.fork())
        return self.children[-1]

    def finish(self) -> None:
        """Everybody exits: nothing may be left, and no lock may have been taken in two orders."""
        check_host(self.host)
        for door in (*self.children, self.door):
            door.exit()
        self.host.check_quiet()
        assert self.lockdep.cycles() == [], self.lockdep.report()
        self.host.close()

    # Behind the descriptors

    def kvm_vm(self, vm: Vm) -> KvmVm:
        """struct kvm behind the descriptor."""
        file = self.host.init.file(vm.fd)
        assert isinstance(file, VmFile)
        return file.vm

    def kvm_vcpu(self, vcpu: Vcpu) -> KvmVcpu:
        """struct kvm_vcpu behind the descriptor."""
        file = self.host.init.file(vcpu.fd)
        assert isinstance(file, VcpuFile)
        return file.vcpu

    def gmem_file(self, gmem: GuestMemfd) -> GmemFile:
        """struct gmem_file behind the descriptor."""
        file = self.host.init.file(gmem.fd)
        assert isinstance(file, GmemFile)
        return file

    def inode(self, gmem: GuestMemfd) -> GmemInode:
        """The inode behind the descriptor."""
        return self.gmem_file(gmem).gmem_inode

    def slot(self, vm: Vm, slot: int = 0, as_id: int = 0) -> Memslot:
        """A memslot by its number."""
        return self.kvm_vm(vm).memslots[as_id].by_id[slot]

    def syscall(self, body: Callable[[], T]) -> T:
        """Run kernel code as a system call of the first process."""
        rt = self.host.rt
        previous = rt.enter(self.door.task)
        try:
            return body()
        finally:
            rt.leave(previous)

    def pfn(self, gmem: GuestMemfd, page: int) -> int:
        """The page frame of a page of the file, which exists."""
        pfn = self.inode(gmem).mapping.pfn(page)
        assert pfn is not None
        return pfn

    def drain(self) -> None:
        """lru_add_drain_all()."""
        self.host.lru.lru_add_drain_all()


def refusal(call: Callable[[], object]) -> str:
    """The id of the rule that the call broke; empty if it broke none."""
    try:
        call()
    except (KernelError, MemoryFault) as error:
        return error.rule.id
    return ""


def errno_of(call: Callable[[], object]) -> int:
    """The errno that the call came back with; 0 for none."""
    try:
        call()
    except KernelError as error:
        return error.rule.errno
    return 0


def load(vcpu: Vcpu, gpa: int, length: int = 8) -> bytes:
    """What a guest reads at `gpa`; the access must not leave the guest."""
    seen: list[bytes] = []

    def guest(cpu: GuestCpu) -> None:
        seen.append(cpu.load(gpa, length))

    assert vcpu.run(guest).reason is ExitReason.HLT
    return seen[0]


def store(vcpu: Vcpu, gpa: int, data: bytes) -> None:
    """A guest writes at `gpa`; the access must not leave the guest."""

    def guest(cpu: GuestCpu) -> None:
        cpu.store(gpa, data)

    assert vcpu.run(guest).reason is ExitReason.HLT


def touch(vcpu: Vcpu, gpa: int, length: int = 8) -> Exit:
    """The exit that a guest's read at `gpa` ends in."""

    def guest(cpu: GuestCpu) -> None:
        cpu.load(gpa, length)

    return vcpu.run(guest)


def fill(mapping: Mapping, pattern: bytes) -> None:
    """Fill the mapping with the pattern, over and over."""
    mapping[:] = (pattern * (len(mapping) // len(pattern) + 1))[: len(mapping)]
