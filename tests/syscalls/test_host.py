# SPDX-License-Identifier: GPL-2.0-or-later
"""The door to this machine's kernel: calls, rules, and loads and stores that never end the interpreter.

Most of it needs no /dev/kvm: plain memory and memfds show the same faults.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from errno import EAGAIN, EBADF, EEXIST, EFAULT, EINVAL, ENODEV, ENOENT, ENOMEM, EOPNOTSUPP, ESPIPE, ESRCH

import pytest

from gmemu import BusError, KernelError, Kvm, MemoryFault, SegmentationFault
from gmemu.rules import catalogue
from gmemu.syscalls import host
from gmemu.syscalls.door import Door
from gmemu.syscalls.host import HostDoor
from gmemu.uapi.kvm import KVM_CREATE_GUEST_MEMFD, KVM_CREATE_VCPU, KVM_GET_REGS
from gmemu.uapi.kvm_x86 import kvm_regs
from gmemu.uapi.mman import (
    MAP_ANONYMOUS,
    MAP_PRIVATE,
    MAP_SHARED,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
    SPLICE_F_NONBLOCK,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a Linux kernel is what this talks to")

PAGE = os.sysconf("SC_PAGE_SIZE")
FIONREAD = 0x541B
MEMFD_SECRET = 447
BAD_FD = 1 << 30


@pytest.fixture
def door() -> HostDoor:
    return HostDoor()


@pytest.fixture
def memory(door: HostDoor) -> Iterator[int]:
    """Four pages; the third is taken out, so that nothing is mapped there."""
    address = door.mmap(0, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
    door.munmap(address + 2 * PAGE, PAGE)
    yield address
    door.munmap(address, 2 * PAGE)
    door.munmap(address + 3 * PAGE, PAGE)


@pytest.fixture
def memfd(door: HostDoor) -> Iterator[int]:
    """An ordinary file of a page and a half."""
    fd = door.memfd_create("gmemu-test")
    door.ftruncate(fd, PAGE + PAGE // 2)
    yield fd
    door.close(fd)


@pytest.fixture
def pipe() -> Iterator[int]:
    """The end to read from, with three bytes in it."""
    out, in_ = os.pipe()
    os.write(in_, b"abc")
    yield out
    os.close(out)
    os.close(in_)


def fault(door: HostDoor, address: int, length: int = 1) -> MemoryFault:
    with pytest.raises(MemoryFault) as caught:
        door.load(address, length)
    return caught.value


# What it is


def test_it_is_a_door() -> None:
    door: Door = HostDoor()
    assert door.name == "host"
    assert [name for name in vars(Door) if not name.startswith("_") and not hasattr(door, name)] == []


def test_gmemu_does_without_ctypes() -> None:
    program = "import sys, gmemu, gmemu.api, gmemu.syscalls; gmemu.Kvm; gmemu.Host; sys.exit('ctypes' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_failure_says_what_is_known(door: HostDoor) -> None:
    with pytest.raises(KernelError) as caught:
        door.close(BAD_FD)
    error = caught.value
    assert (error.errno, error.rule.id, error.rule.errno) == (EBADF, "host.close.EBADF", EBADF)
    assert "doesn't say which check" in error.why
    assert f"close(fd {BAD_FD})" in str(error)
    assert error.rule.id not in catalogue()


def test_a_failure_can_be_pickled(door: HostDoor) -> None:
    with pytest.raises(KernelError) as caught:
        door.close(BAD_FD)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert copy.rule is caught.value.rule
    assert str(copy) == str(caught.value)


# Files


def test_open(door: HostDoor) -> None:
    fd = door.open("/dev/null")
    assert not os.get_inheritable(fd)
    assert door.write(fd, b"gone") == 4
    door.close(fd)
    with pytest.raises(KernelError) as caught:
        door.open("/dev/gmemu-no-such-device")
    assert (caught.value.errno, caught.value.rule.id) == (ENOENT, "host.open.ENOENT")


def test_files(door: HostDoor, memfd: int) -> None:
    assert door.pwrite(memfd, b"written", 10) == 7
    assert door.pread(memfd, 20, 10) == b"written" + bytes(13)
    assert door.write(memfd, b"start") == 5
    assert door.read(memfd, 5) == bytes(5)
    door.fsync(memfd)
    other = door.dup(memfd)
    assert door.fstat(other) == door.fstat(memfd)
    door.close(other)
    assert door.fstat(memfd).size == PAGE + PAGE // 2
    door.fallocate(memfd, 0, 0, 2 * PAGE)
    assert door.fstat(memfd)[2:] == (2 * PAGE, PAGE, 2 * PAGE // 512)


def test_files_refuse(door: HostDoor, memfd: int, pipe: int) -> None:
    for name, call, errno in (
        ("close", lambda: door.close(-1), EBADF),
        ("dup", lambda: door.dup(1 << 31), EBADF),
        ("fstat", lambda: door.fstat(BAD_FD), EBADF),
        ("fsync", lambda: door.fsync(BAD_FD), EBADF),
        ("read", lambda: door.read(BAD_FD, 3), EBADF),
        ("write", lambda: door.write(BAD_FD, b"abc"), EBADF),
        ("pread", lambda: door.pread(pipe, 1, 0), ESPIPE),
        ("pwrite", lambda: door.pwrite(memfd, b"abc", -1), EINVAL),
        ("ftruncate", lambda: door.ftruncate(memfd, -1), EINVAL),
        ("fallocate", lambda: door.fallocate(memfd, 0, 0, 0), EINVAL),
        ("fallocate", lambda: door.fallocate(memfd, 2, 0, PAGE), EOPNOTSUPP),
        ("ioctl", lambda: door.ioctl(BAD_FD, FIONREAD, 0), EBADF),
        ("mmap", lambda: door.mmap(0, PAGE, PROT_READ, MAP_SHARED, pipe), ENODEV),
        ("mmap", lambda: door.mmap(0, 0, PROT_READ, MAP_SHARED, memfd), EINVAL),
        ("munmap", lambda: door.munmap(1, PAGE), EINVAL),
        ("mprotect", lambda: door.mprotect(1, PAGE, PROT_READ), EINVAL),
        ("madvise", lambda: door.madvise(0, PAGE, -1), EINVAL),
    ):
        with pytest.raises(KernelError) as caught:
            call()
        assert caught.value.errno == errno, name
        assert caught.value.rule.id.startswith(f"host.{name}."), name


# ioctl


@pytest.mark.parametrize("kind", [bytearray, lambda size: memoryview(bytearray(size))])
def test_a_buffer_is_used_where_it_is(door: HostDoor, pipe: int, kind: type[bytearray]) -> None:
    buffer = kind(4)
    assert door.ioctl(pipe, FIONREAD, buffer) == 0
    assert bytes(buffer) == b"\3\0\0\0"


def test_part_of_a_buffer(door: HostDoor, pipe: int) -> None:
    buffer = bytearray(12)
    door.ioctl(pipe, FIONREAD, memoryview(buffer)[4:8])
    assert buffer == b"\0\0\0\0\3\0\0\0\0\0\0\0"


def test_an_address(door: HostDoor, pipe: int, memory: int) -> None:
    door.ioctl(pipe, FIONREAD, memory)
    assert door.load(memory, 4) == b"\3\0\0\0"
    for address in (0, memory + 2 * PAGE, -PAGE, 1 << 63, (1 << 70) + PAGE):
        with pytest.raises(KernelError) as caught:
            door.ioctl(pipe, FIONREAD, address)
        assert (caught.value.errno, caught.value.rule.id) == (EFAULT, "host.ioctl.EFAULT")


def test_a_buffer_that_is_too_short(door: HostDoor, pipe: int) -> None:
    """The kernel would read on behind it."""
    with pytest.raises(KernelError) as caught:
        door.ioctl(pipe, KVM_CREATE_GUEST_MEMFD, bytearray(63))
    assert (caught.value.errno, caught.value.rule.id) == (EFAULT, "mm.uaccess")


def test_a_buffer_that_cannot_be_written(door: HostDoor, pipe: int) -> None:
    with pytest.raises(TypeError):
        door.ioctl(pipe, FIONREAD, memoryview(bytes(4)))


def test_kvm_ioctls(real_kvm: Kvm) -> None:
    door = real_kvm.door
    with real_kvm.create_vm() as vm:
        for number in (-1, (1 << 64) - 1, 1 << 32):
            with pytest.raises(KernelError) as caught:
                vm.ioctl(KVM_CREATE_VCPU, number)
            assert (caught.value.errno, caught.value.rule.id) == (EINVAL, "host.ioctl.EINVAL")
        with pytest.raises(KernelError, match="KVM_CREATE_VCPU"):
            vm.ioctl(KVM_CREATE_VCPU, -1)
        with vm.create_vcpu() as vcpu:
            buffer = bytearray(kvm_regs.SIZE)
            door.ioctl(vcpu.fd, KVM_GET_REGS, buffer)
            assert kvm_regs.unpack_from(buffer) == vcpu.regs
            with pytest.raises(KernelError) as caught:
                vcpu.run(lambda cpu: None)
            assert (caught.value.errno, caught.value.rule.id) == (EOPNOTSUPP, "gmemu.run.no-engine")


# Loads and stores


def test_loads_and_stores(door: HostDoor, memory: int) -> None:
    assert door.load(memory, 2 * PAGE) == bytes(2 * PAGE)
    for at, data in ((0, b"bytes"), (10, bytearray(b"array")), (20, memoryview(b"view"))):
        door.store(memory + at, data)
        assert door.load(memory + at, len(data)) == bytes(data)
    door.store(memory, memoryview(bytearray(b"\1\2\3\4")).cast("I"))
    assert door.load(memory, 4) == b"\1\2\3\4"
    door.store(memory + PAGE - 2, b"span")
    assert door.load(memory + PAGE - 2, 4) == b"span"


def test_nothing_at_all(door: HostDoor) -> None:
    assert door.load(0, 0) == b""
    door.store(0, b"")


def test_much_at_once(door: HostDoor) -> None:
    size = 5 << 20
    address = door.mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
    data = os.urandom(1 << 20) * 5
    door.store(address + 1, data[:-1])
    assert door.load(address, size) == b"\0" + data[:-1]
    door.munmap(address, size)


@pytest.mark.parametrize("address", [0, 1, PAGE, 1 << 47, 1 << 63, (1 << 64) - 1, 1 << 64, -1])
def test_where_nothing_can_be_mapped(door: HostDoor, address: int) -> None:
    seen = fault(door, address)
    assert (type(seen), seen.address, seen.rule.id) == (SegmentationFault, address, "host.load.SIGSEGV")
    with pytest.raises(SegmentationFault) as caught:
        door.store(address, b"!")
    assert caught.value.rule.id == "host.store.SIGSEGV"


def test_the_first_byte_that_is_not_there(door: HostDoor, memory: int) -> None:
    gap = memory + 2 * PAGE
    for start, length in ((memory, 4 * PAGE), (gap - 1, 2), (gap, 1), (gap - PAGE + 5, 2 * PAGE)):
        assert fault(door, start, length).address == gap
    assert fault(door, gap + 17, PAGE).address == gap + 17
    with pytest.raises(SegmentationFault) as caught:
        door.store(gap - 3, b"abcdef")
    assert caught.value.address == gap
    assert door.load(gap - 3, 3) == b"abc"
    assert door.load(memory + 3 * PAGE, 1) == b"\0"


def test_protection(door: HostDoor, memory: int) -> None:
    door.store(memory, b"kept")
    door.mprotect(memory, PAGE, PROT_NONE)
    assert isinstance(fault(door, memory + 1), SegmentationFault)
    door.mprotect(memory, PAGE, PROT_READ)
    with pytest.raises(SegmentationFault) as caught:
        door.store(memory + 2, b"!")
    assert caught.value.address == memory + 2
    assert "r--p" in caught.value.why
    assert door.load(memory, 4) == b"kept"


def test_beyond_the_end_of_a_file(door: HostDoor, memfd: int) -> None:
    address = door.mmap(0, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memfd)
    end = address + 2 * PAGE  # the page that the file ends in can be touched to its own end
    door.store(end - 1, b"!")
    assert (fault(door, address, 4 * PAGE).address, type(fault(door, end))) == (end, BusError)
    with pytest.raises(BusError) as caught:
        door.store(end - 1, b"ab")
    assert (caught.value.address, caught.value.rule.id, caught.value.rule.errno) == (end, "host.store.SIGBUS", EFAULT)
    door.munmap(address, 4 * PAGE)


def test_what_get_user_pages_refuses(door: HostDoor, memory: int) -> None:
    """The CPU reads a write-only mapping; process_vm_readv doesn't.  Then it goes through a pipe."""
    data = os.urandom(2 * PAGE)
    door.store(memory, data)
    door.mprotect(memory, 2 * PAGE, PROT_WRITE)
    assert door.load(memory + 3, PAGE) == data[3 : PAGE + 3]
    assert fault(door, memory + 1, 3 * PAGE).address == memory + 2 * PAGE


def test_without_process_vm(door: HostDoor, memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a sandbox forbids process_vm_readv and _writev, everything goes through the pipe."""
    for name in ("_process_vm_readv", "_process_vm_writev"):
        monkeypatch.setattr(host, name, lambda *args: -1)
    data = os.urandom(2 * PAGE - 7)
    door.store(memory + 5, data)
    assert door.load(memory + 5, len(data)) == data
    assert fault(door, memory + 9, 3 * PAGE).address == memory + 2 * PAGE


def test_memory_without_a_direct_map(door: HostDoor) -> None:
    """memfd_secret, as some day guest_memfd: get_user_pages refuses it, both ways."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(MEMFD_SECRET, 0)
    if fd < 0:
        pytest.skip(f"this kernel has no memfd_secret: {os.strerror(ctypes.get_errno())}")
    door.ftruncate(fd, PAGE)
    address = door.mmap(0, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd)
    door.store(address, b"secret")
    assert door.load(address, PAGE) == b"secret" + bytes(PAGE - 6)
    seen = fault(door, address + PAGE - 1, 2)
    assert (type(seen), seen.address) == (BusError, address + PAGE)
    door.munmap(address, 2 * PAGE)
    door.close(fd)


def test_guest_memfd(real_kvm: Kvm) -> None:
    with real_kvm.create_vm() as vm, vm.create_guest_memfd(2 * PAGE, 1) as private, private.mmap() as hidden:
        with pytest.raises(BusError) as caught:
            hidden[PAGE + 5]
        assert caught.value.address == hidden.address + PAGE + 5
        with pytest.raises(KernelError) as refused:
            private.door.mmap(hidden.address, PAGE, PROT_READ, MAP_SHARED | 0x100000, private.fd)
        assert refused.value.errno == EEXIST
        with vm.create_guest_memfd(2 * PAGE, 3) as shared, shared.mmap(3 * PAGE) as seen:
            seen[2 * PAGE - 4 : 2 * PAGE] = b"real"
            assert seen[2 * PAGE - 4 : 2 * PAGE] == b"real"
            assert isinstance(fault(HostDoor(), seen.address + 2 * PAGE), BusError)


def test_madvise_and_mprotect(door: HostDoor, memory: int) -> None:
    door.store(memory, b"dropped")
    door.madvise(memory, PAGE, 4)
    assert door.load(memory, 7) == bytes(7)
    with pytest.raises(KernelError) as caught:
        door.madvise(memory, 4 * PAGE, 4)
    assert caught.value.errno == ENOMEM


def test_moving_and_locking(door: HostDoor, memory: int) -> None:
    door.store(memory, b"moved")
    there = door.mmap(0, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS)
    assert door.mremap(memory, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, there) == there
    assert door.load(there, 5) == b"moved"
    assert door.mremap(there, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, memory) == memory
    door.mlock(memory, PAGE)
    with pytest.raises(KernelError) as caught:
        door.madvise(memory, PAGE, 4)
    assert caught.value.errno == EINVAL
    door.munlock(memory, PAGE)
    door.madvise(memory, PAGE, 4)
    for call in (door.mlock, door.munlock):
        with pytest.raises(KernelError) as caught:
            call(memory, 4 * PAGE)
        assert caught.value.errno == ENOMEM


def test_pipes_and_splices(door: HostDoor, memory: int, memfd: int) -> None:
    reads, writes = door.pipe()
    try:
        door.store(memory, b"by reference")
        assert door.vmsplice(writes, [(memory, 3), (memory + 3, 9)], SPLICE_F_NONBLOCK) == 12
        where = bytearray((5).to_bytes(8, "little"))
        assert door.splice(reads, 0, memfd, where, 100) == 12
        assert int.from_bytes(where, "little") == 17
        assert door.pread(memfd, 12, 5) == b"by reference"
        with pytest.raises(KernelError) as caught:
            door.read(reads, 1)
        assert caught.value.errno == EAGAIN
    finally:
        door.close(reads)
        door.close(writes)


def test_a_process_by_its_number(door: HostDoor, memory: int) -> None:
    door.store(memory, b"own")
    assert door.process_vm_readv(door.getpid(), [(memory + PAGE, 3)], [(memory, 3)]) == 3
    assert door.process_vm_writev(door.getpid(), [(memory + PAGE, 2)], [(memory + 10, 2)]) == 2
    assert door.load(memory, 12) == b"own" + bytes(7) + b"ow"
    with pytest.raises(KernelError) as caught:
        door.process_vm_readv(-1, [(memory, 3)], [(memory, 3)])
    assert caught.value.errno == ESRCH
