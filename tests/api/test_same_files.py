# SPDX-License-Identifier: GPL-2.0-or-later
"""The API's objects do the same on the emulated Linux 6.18 and on a real one: what a guest_memfd's descriptor can do."""

from __future__ import annotations

import stat
from errno import EBADF, EFBIG, EINVAL, ENODEV, EOPNOTSUPP, ESPIPE

import pytest

from gmemu import GuestMemfd, Kvm, Mapping, Vm
from gmemu.uapi import mman
from gmemu.uapi.mman import FALLOC_FL_KEEP_SIZE as KEEP_SIZE
from gmemu.uapi.mman import FALLOC_FL_PUNCH_HOLE as PUNCH_HOLE

from .conftest import SIZE
from .refusals import refused

PAGE = 0x1000
PUNCH = PUNCH_HOLE | KEEP_SIZE
VFS_KINDS = (
    0,
    PUNCH_HOLE,
    mman.FALLOC_FL_COLLAPSE_RANGE,
    mman.FALLOC_FL_ZERO_RANGE,
    mman.FALLOC_FL_INSERT_RANGE,
    mman.FALLOC_FL_UNSHARE_RANGE,
)


# fallocate: which check comes first


@pytest.mark.parametrize("mode", range(256))
def test_every_mode(gmem: GuestMemfd, mode: int) -> None:
    if mode in (KEEP_SIZE, PUNCH):
        gmem.fallocate(mode, 0, SIZE)
        return
    if mode in VFS_KINDS and mode != PUNCH_HOLE:
        rule = "gmem.fallocate.keep-size"
    elif mode & KEEP_SIZE and mode & ~KEEP_SIZE in (mman.FALLOC_FL_ZERO_RANGE, mman.FALLOC_FL_UNSHARE_RANGE):
        rule = "gmem.fallocate.mode"
    else:
        rule = "gmem.fallocate.keep-size" if mode == mman.FALLOC_FL_WRITE_ZEROES else "fs.fallocate.mode"
    with refused(EOPNOTSUPP, rule):
        gmem.fallocate(mode, 1, 1)


@pytest.mark.parametrize("mode", [256, 1 << 30, -1])
def test_unknown_modes(gmem: GuestMemfd, mode: int) -> None:
    with refused(EOPNOTSUPP, "fs.fallocate.mode"):
        gmem.fallocate(mode, 0, SIZE)


@pytest.mark.parametrize("mode", [KEEP_SIZE, PUNCH, 0, 0xFF])
@pytest.mark.parametrize(("offset", "length"), [(0, 0), (0, -1), (-1, PAGE), (1 << 63, PAGE), (PAGE, 1 << 63)])
def test_range_comes_before_the_mode(gmem: GuestMemfd, mode: int, offset: int, length: int) -> None:
    with refused(EINVAL, "fs.fallocate.range"):
        gmem.fallocate(mode, offset, length)


@pytest.mark.parametrize("mode", [KEEP_SIZE, PUNCH])
@pytest.mark.parametrize(
    ("offset", "length"), [(1, PAGE), (PAGE - 1, PAGE), (0, 1), (0, PAGE + 1), (PAGE // 2, PAGE // 2), (SIZE + 1, PAGE)]
)
def test_unaligned(gmem: GuestMemfd, mode: int, offset: int, length: int) -> None:
    with refused(EINVAL, "gmem.fallocate.unaligned"):
        gmem.fallocate(mode, offset, length)


@pytest.mark.parametrize("mode", [KEEP_SIZE, PUNCH])
def test_largest_file(gmem: GuestMemfd, mode: int) -> None:
    with refused(EFBIG, "fs.fallocate.limit"):
        gmem.fallocate(mode, (1 << 63) - PAGE, PAGE)


@pytest.mark.parametrize(("offset", "length"), [(SIZE, PAGE), (0, SIZE + PAGE), (SIZE - PAGE, 2 * PAGE), (1 << 62, PAGE)])
def test_end_of_the_file(gmem: GuestMemfd, offset: int, length: int) -> None:
    with refused(EINVAL, "gmem.fallocate.eof"):
        gmem.allocate(offset, length)
    gmem.punch_hole(offset, length)
    assert gmem.stat().size == SIZE


def test_of_what_is_no_regular_file(kvm: Kvm, vm: Vm) -> None:
    for fd in (kvm.fd, vm.fd):
        with refused(ENODEV, "fs.fallocate.type"):
            kvm.door.fallocate(fd, KEEP_SIZE, 0, PAGE)
    with refused(EBADF, "fs.fd"):
        kvm.door.fallocate(1 << 30, KEEP_SIZE, 0, PAGE)


# fallocate: what it does


def test_allocate_keeps_what_is_there(gmem: GuestMemfd, mapping: Mapping) -> None:
    mapping[PAGE : 2 * PAGE] = b"a" * PAGE
    gmem.allocate(0, SIZE)
    assert mapping[:] == bytes(PAGE) + b"a" * PAGE + bytes(2 * PAGE)


def test_punched_memory_is_zero_again(gmem: GuestMemfd, mapping: Mapping) -> None:
    mapping[:] = b"p" * SIZE
    gmem.punch_hole(PAGE, 2 * PAGE)
    assert mapping[:] == b"p" * PAGE + bytes(2 * PAGE) + b"p" * PAGE
    mapping[PAGE] = 1
    gmem.punch_hole(0, 1 << 40)
    assert mapping[:] == bytes(SIZE)


def test_punch_while_bound(vm: Vm, gmem: GuestMemfd, mapping: Mapping) -> None:
    vm.set_user_memory_region2(0, 0, SIZE, gmem=gmem, userspace_addr=mapping.address)
    mapping[:] = b"b" * SIZE
    gmem.punch_hole(0, SIZE)
    assert mapping[:] == bytes(SIZE)


def test_private_memory_is_allocated_and_punched(vm: Vm) -> None:
    with vm.create_guest_memfd(SIZE) as gmem:
        gmem.allocate(0, SIZE)
        gmem.punch_hole(PAGE, PAGE)
        assert gmem.stat().size == SIZE


# The rest


def test_fstat(gmem: GuestMemfd) -> None:
    about = gmem.stat()
    assert (stat.S_IFMT(about.mode), stat.S_IMODE(about.mode)) == (stat.S_IFREG, 0o600)
    assert (about.size, about.blksize) == (SIZE, PAGE)


@pytest.mark.usefixtures("only_6_18")
def test_blocks_are_not_counted(gmem: GuestMemfd, mapping: Mapping) -> None:
    mapping[0] = 1
    gmem.allocate(PAGE, PAGE)
    assert gmem.stat().blocks == 0


def test_no_reading_nor_writing(gmem: GuestMemfd) -> None:
    door, fd = gmem.door, gmem.fd
    for length in (0, 10):
        with refused(EINVAL, "fs.read.unsupported"):
            door.read(fd, length)
        with refused(ESPIPE, "fs.seek.unsupported"):
            door.pread(fd, length, 0)
    for data in (b"", b"data"):
        with refused(EINVAL, "fs.read.unsupported"):
            door.write(fd, data)
        with refused(ESPIPE, "fs.seek.unsupported"):
            door.pwrite(fd, data, PAGE)
    with refused(EINVAL, "fs.fsync.unsupported"):
        door.fsync(fd)


@pytest.mark.parametrize("size", [0, PAGE, SIZE, SIZE + 1, 1 << 62])
def test_the_size_is_fixed(gmem: GuestMemfd, size: int) -> None:
    with refused(EINVAL, "fs.truncate.unsupported"):
        gmem.door.ftruncate(gmem.fd, size)
    assert gmem.stat().size == SIZE


def test_negative_positions_come_before_the_descriptor(kvm: Kvm, gmem: GuestMemfd) -> None:
    for fd in (gmem.fd, 1 << 30):
        with refused(EINVAL, "fs.seek.negative"):
            kvm.door.pread(fd, 1, -1)
        with refused(EINVAL, "fs.seek.negative"):
            kvm.door.pwrite(fd, b"!", 1 << 63)
        with refused(EINVAL, "fs.truncate.negative"):
            kvm.door.ftruncate(fd, -1)


def test_the_device_and_the_vm(kvm: Kvm, vm: Vm) -> None:
    with refused(EINVAL, "fs.read.unsupported"):
        kvm.door.pread(kvm.fd, 1, 0)
    with refused(ESPIPE, "fs.seek.unsupported"):
        kvm.door.pread(vm.fd, 1, 0)
    for fd in (kvm.fd, vm.fd):
        with refused(EINVAL, "fs.read.unsupported"):
            kvm.door.read(fd, 1)
        with refused(EINVAL, "fs.truncate.unsupported"):
            kvm.door.ftruncate(fd, 0)


def test_closed_descriptors(kvm: Kvm, vm: Vm) -> None:
    gmem = vm.create_guest_memfd(SIZE, 3)
    fd = gmem.fd
    gmem.close()
    gmem.close()
    assert gmem.closed
    door = kvm.door
    for call in (
        lambda: door.close(fd),
        lambda: door.dup(fd),
        lambda: door.fstat(fd),
        lambda: door.fsync(fd),
        lambda: door.read(fd, 1),
        lambda: door.write(fd, b"!"),
        lambda: door.pread(fd, 1, 0),
        lambda: door.pwrite(fd, b"!", 0),
        lambda: door.ftruncate(fd, 0),
        lambda: door.fallocate(fd, KEEP_SIZE, 0, PAGE),
        lambda: door.ioctl(fd, 0xAE00),
        lambda: door.mmap(0, PAGE, 3, 1, fd),
    ):
        with refused(EBADF, "fs.fd"):
            call()
