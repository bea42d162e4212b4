# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_CREATE_GUEST_MEMFD and what it makes: order of checks, attributes at the beginning, what fstat() tells."""

from __future__ import annotations

from errno import EFAULT, EINVAL, EMFILE, ENOMEM

import pytest

from gmemu import Vm
from gmemu.uapi.kvm import KVM_CREATE_GUEST_MEMFD, Cap, kvm_create_guest_memfd
from gmemu.uapi.mman import MAP_SHARED, PROT_EXEC

from ..world import BOTH, DEFAULT, INIT_SHARED, MMAP, PAGE, PRIVATE, SW_PROTECTED, World, errno_of, every_profile, refusal

Create = kvm_create_guest_memfd


def create(vm: Vm, size: int, flags: int = 0) -> str:
    """What came of the ioctl."""
    return refusal(lambda: vm.ioctl(KVM_CREATE_GUEST_MEMFD, bytearray(Create(size=size, flags=flags).pack())))


@pytest.mark.parametrize("vm_type", [DEFAULT, SW_PROTECTED])
@every_profile
def test_flags_are_those_that_the_capability_reports(world: World, vm_type: int) -> None:
    vm = world.vm(vm_type)  # type: ignore[arg-type]
    supported = vm.check_extension(Cap.GUEST_MEMFD_FLAGS)
    for flags in range(16):
        assert create(vm, PAGE, flags) == ("gmem.create.flags" if flags & ~supported else "")
    for bit in range(4, 64):
        assert create(vm, PAGE, 1 << bit) == "gmem.create.flags"


@pytest.mark.parametrize("size", [0, 1, PAGE - 1, PAGE + 1, 1 << 63, (1 << 64) - PAGE])
@every_profile
def test_sizes(world: World, size: int) -> None:
    vm = world.vm()
    assert create(vm, size) == "gmem.create.size"
    assert errno_of(lambda: vm.create_guest_memfd(size)) == EINVAL


def test_the_largest(world: World) -> None:
    """Nothing is allocated, so any size will do that is positive as a signed number."""
    gmem = world.vm().create_guest_memfd((1 << 63) - PAGE)
    assert gmem.stat().size == (1 << 63) - PAGE


@every_profile
def test_checks_in_order(world: World) -> None:
    """The structure, flags, size, a descriptor, memory."""
    vm = world.vm()
    world.host.init.nofile = vm.fd + 1
    world.host.failing_allocations["gmem-inode"] = 10
    assert errno_of(lambda: vm.ioctl(KVM_CREATE_GUEST_MEMFD, 0x1000)) == EFAULT
    assert create(vm, 1, 1 << 40) == "gmem.create.flags"
    assert create(vm, 1) == "gmem.create.size"
    assert errno_of(lambda: vm.create_guest_memfd(PAGE)) == EMFILE
    world.host.init.nofile = 1 << 20
    assert errno_of(lambda: vm.create_guest_memfd(PAGE)) == ENOMEM
    world.host.failing_allocations.clear()
    assert vm.create_guest_memfd(PAGE).fd == vm.fd + 1


def test_a_failure_holds_nothing(world: World) -> None:
    vm = world.vm()
    kvm = world.kvm_vm(vm)
    world.host.failing_allocations["gmem-inode"] = 1
    create(vm, PAGE)
    world.host.init.nofile = vm.fd + 1
    create(vm, PAGE)
    assert kvm.users == 1


def test_reserved_words_arent_looked_at(world: World) -> None:
    vm = world.vm()
    args = Create(size=PAGE, reserved=(1, 2, 3, 4, 5, 6))
    assert vm.ioctl(KVM_CREATE_GUEST_MEMFD, bytearray(args.pack())) > 0


@pytest.mark.parametrize(("flags", "attribute"), [(0, PRIVATE), (MMAP, PRIVATE), (INIT_SHARED, 0), (BOTH, 0)])
def test_one_attribute_covers_the_whole_file(world: World, flags: int, attribute: int) -> None:
    inode = world.inode(world.vm().create_guest_memfd(1 << 40, flags))
    assert list(inode.attributes.runs()) == [(0, 1 << 28, attribute)]
    assert inode.private_run(5, 100) == (100 if attribute else 0)
    assert inode.shared_run(5, 100) == (0 if attribute else 100)
    assert inode.private_run((1 << 28) - 1, 100) == (1 if attribute else 0)
    assert inode.init_shared == (attribute == 0)


@every_profile
def test_what_stat_tells(world: World) -> None:
    vm = world.vm()
    one, two = world.gmem(vm, 4, 0), world.gmem(vm, 7, 0)
    assert one.stat().ino != two.stat().ino
    assert (one.stat().size, two.stat().size) == (4 * PAGE, 7 * PAGE)
    assert (one.stat().mode, one.stat().blksize, one.stat().blocks) == (0o100600, PAGE, 0)
    one.allocate(PAGE, 2 * PAGE)
    assert one.stat().blocks == (16 if world.profile.fallocate_counts_blocks else 0)
    one.punch_hole(PAGE, PAGE)
    assert one.stat().blocks == (8 if world.profile.fallocate_counts_blocks else 0)


@every_profile
def test_what_the_file_refuses(world: World) -> None:
    gmem, door = world.gmem(world.vm(), 1, 0), world.door
    refused = [
        refusal(lambda: door.read(gmem.fd, 1)),
        refusal(lambda: door.write(gmem.fd, b"x")),
        refusal(lambda: door.pread(gmem.fd, 1, 0)),
        refusal(lambda: door.pwrite(gmem.fd, b"x", 0)),
        refusal(lambda: door.ftruncate(gmem.fd, PAGE)),
        refusal(lambda: door.fsync(gmem.fd)),
        refusal(lambda: door.open(f"/proc/self/fd/{gmem.fd}")),
    ]
    assert refused == [
        "fs.read.unsupported",
        "fs.read.unsupported",
        "fs.seek.unsupported",
        "fs.seek.unsupported",
        "fs.truncate.unsupported",
        "fs.fsync.unsupported",
        "fs.open.no-device",
    ]
    expected = "mm.mmap.noexec" if world.gmem_file(gmem).noexec else "mm.mmap.unsupported"
    assert refusal(lambda: door.mmap(0, PAGE, PROT_EXEC, MAP_SHARED, gmem.fd)) == expected


@every_profile
def test_the_name(world: World) -> None:
    gmem = world.gmem(world.vm(), 1, 0)
    assert world.gmem_file(gmem).name == world.profile.file_name
