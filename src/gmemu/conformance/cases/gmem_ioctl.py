# SPDX-License-Identifier: GPL-2.0-or-later
"""ioctl() on the guest_memfd itself."""

from __future__ import annotations

from ...uapi.ioctl import IO, IOW, IOWR
from ...uapi.kvm import (
    KVM_CHECK_EXTENSION,
    KVM_GMEM_CONVERT_PRIVATE,
    KVM_GMEM_CONVERT_SHARED,
    KVM_SET_MEMORY_ATTRIBUTES,
    KVM_SET_MEMORY_ATTRIBUTES2,
    KVMIO,
    kvm_memory_attributes2,
)
from ..bench import PAGE, Bench
from ..case import case


@case("gmem-ioctl", "gmem")
def requests(b: Bench) -> None:
    vm = b.vm()
    for flags in {0, b.usable_flags(vm)}:
        gmem = b.gmem(vm, flags=flags)
        for name, request in {
            "KVM_CHECK_EXTENSION": KVM_CHECK_EXTENSION,
            "KVM_SET_MEMORY_ATTRIBUTES": KVM_SET_MEMORY_ATTRIBUTES,
            "KVM_GMEM_CONVERT_SHARED": KVM_GMEM_CONVERT_SHARED,
            "KVM_GMEM_CONVERT_PRIVATE": KVM_GMEM_CONVERT_PRIVATE,
            "0xd2 with 8 bytes": IOWR(KVMIO, 0xD2, 8),
            "0xd2 write only": IOW(KVMIO, 0xD2, 128),
            "0xd6": IOWR(KVMIO, 0xD6, 128),
            "0": 0,
            "0xffffffff": 0xFFFFFFFF,
            "another type": IO(0x55, 0xD2),
        }.items():
            b.probe(f"{name}, flags {flags}", gmem.ioctl, request, b.pointer(bytes(128)))


@case("gmem-ioctl", "gmem")
def attributes2_where_there_is_none(b: Bench) -> None:
    vm = b.vm()
    args = kvm_memory_attributes2(size=PAGE, attributes=8).pack()
    b.probe("on the VM", vm.ioctl, KVM_SET_MEMORY_ATTRIBUTES2, bytearray(args))
    b.probe("on the VM, unmapped", vm.ioctl, KVM_SET_MEMORY_ATTRIBUTES2, 0)
    b.probe("on /dev/kvm", b.kvm.ioctl, KVM_SET_MEMORY_ATTRIBUTES2, bytearray(args))


@case("gmem-ioctl", "gmem")
def attributes2(b: Bench) -> None:
    vm = b.vm()
    gmem = b.gmem(vm, 4 * PAGE)

    def convert(**fields: int) -> None:
        reserved = tuple(fields.pop(f"reserved{i}", 0) for i in range(11))
        args = kvm_memory_attributes2(**{"size": PAGE, **fields}, reserved=reserved)
        gmem.ioctl(KVM_SET_MEMORY_ATTRIBUTES2, bytearray(args.pack()))

    for bit in range(64):
        b.probe(f"flag bit {bit}", lambda bit=bit: convert(flags=1 << bit))
        b.probe(f"attribute bit {bit}", lambda bit=bit: convert(attributes=1 << bit))
    for i in range(11):
        b.probe(f"reserved[{i}]", lambda i=i: convert(**{f"reserved{i}": 1}))
    b.probe("error_offset set", lambda: convert(error_offset=1))
    for offset, size in (
        (0, 0),
        (0, 1),
        (1, PAGE),
        (0, 4 * PAGE),
        (0, 5 * PAGE),
        (4 * PAGE, PAGE),
        (1 << 63, PAGE),
        ((1 << 64) - PAGE, PAGE),
    ):
        for attributes in (0, 8):
            b.probe(
                f"offset {offset:#x} size {size:#x} to {attributes}",
                lambda offset=offset, size=size, attributes=attributes: convert(
                    offset=offset, size=size, attributes=attributes
                ),
            )
    for name, address in b.pointers(kvm_memory_attributes2(size=PAGE, attributes=8).pack()).items():
        b.probe(name, gmem.ioctl, KVM_SET_MEMORY_ATTRIBUTES2, address)
