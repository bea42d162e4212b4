# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_CREATE_VM, KVM_CREATE_GUEST_MEMFD, KVM_CREATE_VCPU."""

from __future__ import annotations

from ...uapi.ioctl import IO, IOR, IOW, IOWR
from ...uapi.kvm import (
    KVM_CHECK_EXTENSION,
    KVM_CREATE_GUEST_MEMFD,
    KVM_CREATE_VCPU,
    KVM_CREATE_VM,
    KVM_GET_API_VERSION,
    KVM_GET_VCPU_MMAP_SIZE,
    KVM_SET_USER_MEMORY_REGION2,
    KVMIO,
    kvm_create_guest_memfd,
)
from ..bench import PAGE, Bench
from ..case import case

SIZES = (
    0, 1, 8, 511, 512, 4095, 4096, 4097, 6144, 8192, 1 << 21, (1 << 21) + 1, 1 << 30, 1 << 40, 1 << 52, 1 << 62,
    (1 << 63) - PAGE, (1 << 63) - 1, 1 << 63, (1 << 63) + PAGE, (1 << 64) - PAGE, (1 << 64) - 1,
)  # fmt: skip


@case("creation", "gmem")
def flags(b: Bench) -> None:
    vm = b.vm()
    for bit in range(64):
        b.probe(f"bit {bit}", vm.create_guest_memfd, PAGE, 1 << bit)
    for flags in (0, 3, 5, 6, 7, 0xFFFFFFFF, (1 << 64) - 1, (1 << 64) - 4):
        b.probe(f"flags {flags:#x}", vm.create_guest_memfd, PAGE, flags)


@case("creation", "gmem")
def sizes(b: Bench) -> None:
    vm = b.vm()
    for size in SIZES:
        b.probe(f"size {size:#x}", vm.create_guest_memfd, size)
        b.probe(f"size {size:#x}, all flags", vm.create_guest_memfd, size, b.usable_flags(vm))
    b.probe("bad size and bad flags", vm.create_guest_memfd, 1, 1 << 40)


@case("creation", "gmem")
def reserved(b: Bench) -> None:
    vm = b.vm()
    for i in range(6):
        words = tuple((1 << 64) - 1 if i == j else 0 for j in range(6))
        args = bytearray(kvm_create_guest_memfd(size=PAGE, reserved=words).pack())
        b.probe(f"reserved[{i}]", lambda args=args: vm.ioctl(KVM_CREATE_GUEST_MEMFD, args) >= 0)
        b.record(f"reserved[{i}] afterwards", bytes(args[16 + 8 * i : 24 + 8 * i]))


@case("creation", "gmem")
def pointers(b: Bench) -> None:
    vm = b.vm()
    for name, address in b.pointers(kvm_create_guest_memfd(size=PAGE).pack()).items():
        b.probe(name, lambda address=address: vm.ioctl(KVM_CREATE_GUEST_MEMFD, address) >= 0)


@case("creation", "gmem")
def descriptors(b: Bench) -> None:
    vm = b.vm()
    args = bytearray(kvm_create_guest_memfd(size=PAGE).pack())
    others = {
        "/dev/kvm": b.kvm.fd,
        "a guest_memfd": b.gmem(vm).fd,
        "a vCPU": b.vcpu(vm).fd,
        "a memfd": b.memfd().fd,
        "-1": -1,
        "a number not open": 9999,
    }
    for name, fd in others.items():
        b.probe(f"on {name}", b.door.ioctl, fd, KVM_CREATE_GUEST_MEMFD, args)


@case("creation", "gmem")
def request_numbers(b: Bench) -> None:
    vm = b.vm()
    memory = b.pointer(kvm_create_guest_memfd(size=PAGE).pack())
    for name, make in (("IOW", IOW), ("IOR", IOR), ("IOWR", IOWR)):
        for size in (8, 32, 56, 72, 128):
            b.probe(f"{name} of {size} bytes", vm.ioctl, make(KVMIO, 0xD4, size), memory)
    b.probe("no structure", vm.ioctl, IO(KVMIO, 0xD4), memory)
    for nr in (0xFD, 0xFE, 0xFF):
        b.probe(f"request {nr:#x}", vm.ioctl, IO(KVMIO, nr), 0)


@case("creation", "gmem")
def several(b: Bench) -> None:
    vm, other = b.vm(), b.vm()
    files = [b.gmem(vm, PAGE), b.gmem(vm, 8 * PAGE), b.gmem(other, PAGE), b.gmem(other, 1 << 40)]
    for i, file in enumerate(files):
        stat = file.stat()
        b.record(f"file {i}: size, block size, blocks", (stat.size, stat.blksize, stat.blocks))
        b.record(f"file {i}: mode", f"{stat.mode:o}")
    b.record("distinct inodes", len({file.stat().ino for file in files}))
    again = b.door.dup(files[0].fd)
    b.record("a dup has the same inode", b.door.fstat(again).ino == files[0].stat().ino)
    b.door.close(again)


@case("creation", "gmem")
def descriptor_numbers(b: Bench) -> None:
    vm = b.vm()
    first, second = b.gmem(vm), b.gmem(vm)
    number = first.fd
    b.record("numbers go up", second.fd > first.fd)
    first.close()
    third = b.gmem(vm)
    b.record("the lowest free number is taken again", third.fd == number)


@case("creation", each_vm=False)
def vms(b: Bench) -> None:
    for vm_type in (6, 7, 8, 9, 31, 32, 63, 64, 1 << 32, (1 << 64) - 1):
        b.probe(f"type {vm_type:#x}", b.kvm.ioctl, KVM_CREATE_VM, vm_type)
    vm = b.vm(0)
    for name, fd in {"a VM": vm.fd, "a guest_memfd's neighbour, a memfd": b.memfd().fd, "-1": -1}.items():
        b.probe(f"on {name}", b.door.ioctl, fd, KVM_CREATE_VM, 0)


@case("creation", each_vm=False)
def device(b: Bench) -> None:
    for arg in (0, 1, (1 << 64) - 1):
        b.probe(f"KVM_GET_API_VERSION({arg:#x})", b.kvm.ioctl, KVM_GET_API_VERSION, arg)
        b.probe(f"KVM_GET_VCPU_MMAP_SIZE({arg:#x})", lambda arg=arg: b.kvm.ioctl(KVM_GET_VCPU_MMAP_SIZE, arg) >= 2 * PAGE)
    for arg in (0x7FFF, 1 << 31, (1 << 64) - 1):
        b.probe(f"KVM_CHECK_EXTENSION({arg:#x})", b.kvm.ioctl, KVM_CHECK_EXTENSION, arg)
    for nr in (0xD2, 0xD4, 0xFF):
        b.probe(f"IO request {nr:#x}", b.kvm.ioctl, IO(KVMIO, nr), 0)
    b.probe("KVM_SET_USER_MEMORY_REGION2", b.kvm.ioctl, KVM_SET_USER_MEMORY_REGION2, bytearray(160))
    b.probe("a missing path", b.door.open, "/dev/no-such-device")


@case("creation", "gmem")
def vcpus(b: Bench) -> None:
    vm = b.vm()
    for number in (0, 1, 0, 4095, 4096, 1 << 31, (1 << 64) - 1):
        name = f"id {number:#x}"
        b.probe(name if name not in b.probes else f"{name} again", lambda number=number: b.vcpu(vm, number) is not None)
    b.probe("on /dev/kvm", b.kvm.ioctl, KVM_CREATE_VCPU, 0)
