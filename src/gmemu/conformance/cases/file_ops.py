# SPDX-License-Identifier: GPL-2.0-or-later
"""Every other system call on a guest_memfd, a VM and a vCPU as files."""

from __future__ import annotations

from ..bench import PAGE, Bench
from ..case import case


@case("file-ops", "gmem")
def reading_and_writing(b: Bench) -> None:
    vm = b.vm()
    door = b.door
    fds = {
        "gmem": b.gmem(vm).fd,
        "gmem with all flags": b.gmem(vm, flags=b.usable_flags(vm)).fd,
        "VM": vm.fd,
        "vCPU": b.vcpu(vm).fd,
    }
    for name, fd in fds.items():
        for length in (0, 8, PAGE):
            b.probe(f"{name}: read {length}", door.read, fd, length)
            b.probe(f"{name}: write {length}", door.write, fd, bytes(length))
            b.probe(f"{name}: pread {length}", door.pread, fd, length, 0)
            b.probe(f"{name}: pwrite {length}", door.pwrite, fd, bytes(length), 0)
        b.probe(f"{name}: pread at -1", door.pread, fd, 8, -1)
        b.probe(f"{name}: pwrite at -1", door.pwrite, fd, b"x", -1)
        b.probe(f"{name}: fsync", door.fsync, fd)


@case("file-ops", "gmem")
def truncation(b: Bench) -> None:
    vm = b.vm()
    gmem = b.gmem(vm, 2 * PAGE)
    for length in (0, PAGE, 2 * PAGE, 4 * PAGE, 1, 1 << 62, -1):
        b.probe(f"to {length:#x}", b.door.ftruncate, gmem.fd, length)
    b.record("size after these", gmem.stat().size)
    for name, fd in {"a VM": vm.fd, "a vCPU": b.vcpu(vm).fd, "/dev/kvm": b.kvm.fd, "-1": -1}.items():
        b.probe(f"{name} to 0", b.door.ftruncate, fd, 0)


@case("file-ops", "gmem")
def reopening(b: Bench) -> None:
    vm = b.vm()
    for name, fd in {"a guest_memfd": b.gmem(vm).fd, "a VM": vm.fd, "a number not open": 9999}.items():
        b.probe(f"{name} through /proc", b.door.open, f"/proc/self/fd/{fd}")


@case("file-ops", "gmem")
def closing(b: Bench) -> None:
    vm = b.vm()
    gmem = b.gmem(vm)
    number = gmem.fd
    gmem.close()
    door = b.door
    b.probe("close twice", door.close, number)
    for name, call in {
        "fstat": lambda: door.fstat(number),
        "fallocate": lambda: door.fallocate(number, 1, 0, PAGE),
        "mmap": lambda: door.mmap(0, PAGE, 3, 1, number),
        "ioctl": lambda: door.ioctl(number, 0xAE00, 0),
        "dup": lambda: door.dup(number),
        "read": lambda: door.read(number, 1),
        "ftruncate": lambda: door.ftruncate(number, 0),
    }.items():
        b.probe(f"{name} of a closed one", call)
    for fd in (-1, 9999):
        b.probe(f"close {fd}", door.close, fd)
        b.probe(f"dup {fd}", door.dup, fd)


@case("file-ops", "gmem")
def status(b: Bench) -> None:
    vm = b.vm()
    for name, fd in {"gmem": b.gmem(vm, 3 * PAGE).fd, "VM": vm.fd, "vCPU": b.vcpu(vm).fd}.items():
        stat = b.door.fstat(fd)
        b.record(f"{name}: size, block size, blocks", (stat.size, stat.blksize, stat.blocks))
        b.record(f"{name}: mode", f"{stat.mode:o}")


@case("file-ops", "gmem")
def kvm_run(b: Bench) -> None:
    """mmap() of a vCPU, and its pages."""
    vm = b.vm()
    vcpu = b.vcpu(vm)
    for offset in (0, PAGE, 2 * PAGE, 3 * PAGE, 64 * PAGE, 65 * PAGE):
        for flags, what in ((1, "shared"), (2, "private")):
            b.probe(
                f"map page {offset // PAGE} {what}, and load",
                lambda offset=offset, flags=flags: len(b.door.load(b.door.mmap(0, PAGE, 3, flags, vcpu.fd, offset), 1)),
            )
    for fd, name in ((vm.fd, "a VM"), (b.kvm.fd, "/dev/kvm")):
        b.probe(f"map {name}", b.door.mmap, 0, PAGE, 1, 1, fd, 0)
