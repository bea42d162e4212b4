# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_SET_USER_MEMORY_REGION2 with KVM_MEM_GUEST_MEMFD: which file, which part of it, and for which guest frames."""

from __future__ import annotations

from typing import Any

from ...api import Vm
from ...uapi.kvm import KVM_MEM_GUEST_MEMFD, KVM_SET_USER_MEMORY_REGION, KVM_SET_USER_MEMORY_REGION2
from ...uapi.kvm import kvm_userspace_memory_region2 as region2
from ..bench import PAGE, Bench
from ..case import case

GPA = 1 << 32
OFFSETS = (
    0, 1, 8, 512, 4095, 4096, 3 * PAGE, 4 * PAGE - 1, 4 * PAGE, 5 * PAGE, 1 << 32, 1 << 62, (1 << 63) - 2 * PAGE,
    (1 << 63) - PAGE, 1 << 63, (1 << 63) + PAGE, (1 << 64) - 2 * PAGE, (1 << 64) - PAGE, (1 << 64) - 1,
)  # fmt: skip


def bind(vm: Vm, fd: int, **fields: int) -> None:
    """KVM_SET_USER_MEMORY_REGION2 with a guest_memfd; every field may be given."""
    args: dict[str, Any] = {"slot": 1, "flags": KVM_MEM_GUEST_MEMFD, "guest_phys_addr": GPA, "memory_size": PAGE, **fields}
    vm.ioctl(KVM_SET_USER_MEMORY_REGION2, bytearray(region2(guest_memfd=fd & 0xFFFFFFFF, **args).pack()))


def unbind(vm: Vm, slot: int = 1) -> None:
    """Delete the slot if it's there: a probe may have made it or not."""
    try:
        vm.delete_slot(slot)
    except OSError:
        return


@case("binding", "gmem")
def descriptors(b: Bench) -> None:
    vm, other = b.vm(), b.vm()
    gmem, closed = b.gmem(vm), b.gmem(vm)
    dup = b.door.dup(gmem.fd)
    fds = {
        "its own file": gmem.fd,
        "a dup": dup,
        "/dev/kvm": b.kvm.fd,
        "the VM": vm.fd,
        "another VM": other.fd,
        "a vCPU": b.vcpu(vm).fd,
        "a memfd": b.memfd().fd,
        "another VM's file": b.gmem(other).fd,
        "-1": -1,
        "-2": -2,
        "a number not open": 9999,
        "the largest number": 0x7FFFFFFF,
    }
    for name, fd in fds.items():
        b.probe(name, bind, vm, fd)
        unbind(vm)
    number = closed.fd
    closed.close()
    b.probe("a closed file", bind, vm, number)
    b.door.close(dup)
    b.probe("a good one after all these", bind, vm, gmem.fd)


@case("binding", "gmem")
def offsets(b: Bench) -> None:
    vm = b.vm()
    gmem = b.gmem(vm, 4 * PAGE)
    for offset in OFFSETS:
        for pages in (1, 2, 4):
            b.probe(
                f"offset {offset:#x}, {pages} pages",
                lambda offset=offset, pages=pages: bind(vm, gmem.fd, guest_memfd_offset=offset, memory_size=pages * PAGE),
            )
            unbind(vm)


@case("binding", "gmem")
def file_ranges(b: Bench) -> None:
    vm = b.vm()
    gmem = b.gmem(vm, 16 * PAGE)
    bind(vm, gmem.fd, slot=1, guest_memfd_offset=4 * PAGE, memory_size=4 * PAGE)
    for first, count in ((4, 4), (4, 1), (7, 1), (5, 2), (3, 2), (7, 2), (0, 16), (0, 5), (3, 1), (8, 1), (0, 4), (8, 8)):
        b.probe(
            f"pages {first} to {first + count} beside 4 to 8",
            lambda first=first, count=count: bind(
                vm, gmem.fd, slot=2, guest_phys_addr=2 * GPA, guest_memfd_offset=first * PAGE, memory_size=count * PAGE
            ),
        )
        unbind(vm, 2)
    dup = b.door.dup(gmem.fd)
    b.probe("by a dup", lambda: bind(vm, dup, slot=2, guest_phys_addr=2 * GPA, guest_memfd_offset=4 * PAGE))
    b.door.close(dup)
    second = b.gmem(vm, 16 * PAGE)
    b.probe("another file", lambda: bind(vm, second.fd, slot=2, guest_phys_addr=2 * GPA, guest_memfd_offset=4 * PAGE))
    vm.delete_slot(1)
    b.probe(
        "once the first slot is gone",
        lambda: bind(vm, gmem.fd, slot=3, guest_phys_addr=3 * GPA, guest_memfd_offset=5 * PAGE),
    )


@case("binding", "gmem")
def guest_ranges(b: Bench) -> None:
    vm = b.vm()
    gmem, second = b.gmem(vm, 16 * PAGE), b.gmem(vm, 16 * PAGE)
    bind(vm, gmem.fd, slot=1, guest_phys_addr=GPA, memory_size=4 * PAGE)
    for first, count in ((0, 4), (0, 1), (3, 1), (1, 2), (-1, 2), (3, 2), (-4, 12), (-1, 1), (4, 1)):
        gpa = GPA + first * PAGE
        for name, file in (("same file", gmem), ("another file", second)):
            b.probe(
                f"{count} pages at {first}, {name}",
                lambda gpa=gpa, count=count, file=file: bind(
                    vm, file.fd, slot=2, guest_phys_addr=gpa, guest_memfd_offset=4 * PAGE, memory_size=count * PAGE
                ),
            )
            unbind(vm, 2)
    b.probe("gpa and file both taken", lambda: bind(vm, gmem.fd, slot=2))
    b.probe("gpa taken, file descriptor bad", lambda: bind(vm, -1, slot=2))
    b.probe("gpa taken, offset bad", lambda: bind(vm, gmem.fd, slot=2, guest_memfd_offset=1))
    wrapping = {"guest_phys_addr": (1 << 64) - PAGE, "memory_size": 2 * PAGE}
    b.probe("gpa wraps, file descriptor bad", lambda: bind(vm, -1, slot=2, **wrapping))


@case("binding", "gmem")
def flags(b: Bench) -> None:
    vm = b.vm()
    gmem, memory = b.gmem(vm), b.anonymous()
    for bit in range(32):
        flags = 1 << bit | KVM_MEM_GUEST_MEMFD
        b.probe(
            f"GUEST_MEMFD and bit {bit}",
            lambda flags=flags: bind(vm, gmem.fd, flags=flags, userspace_addr=memory.address),
        )
        unbind(vm)
    b.probe("GUEST_MEMFD, READONLY and LOG_DIRTY", lambda: bind(vm, gmem.fd, flags=7))
    b.probe("a file without the flag", lambda: bind(vm, gmem.fd, flags=0, userspace_addr=memory.address))
    unbind(vm)
    b.probe("a bad file without the flag", lambda: bind(vm, -1, flags=0, userspace_addr=memory.address))
    unbind(vm)
    b.probe("an unaligned offset without the flag", lambda: bind(vm, -1, flags=0, guest_memfd_offset=1))
    unbind(vm)
    b.probe("pads set", lambda: bind(vm, gmem.fd, pad1=0xFFFFFFFF))


@case("binding", "gmem")
def pads(b: Bench) -> None:
    vm = b.vm()
    gmem = b.gmem(vm)
    for i in range(14):
        pad2 = tuple((1 << 64) - 1 if i == j else 0 for j in range(14))
        args = bytearray(
            region2(slot=1, flags=4, guest_phys_addr=GPA, memory_size=PAGE, guest_memfd=gmem.fd, pad2=pad2).pack()
        )
        b.probe(f"pad2[{i}]", vm.ioctl, KVM_SET_USER_MEMORY_REGION2, args)
        unbind(vm)


@case("binding", "gmem")
def user_addresses(b: Bench) -> None:
    vm = b.vm()
    gmem = b.gmem(vm)
    gone = b.anonymous()
    gone.close()
    for name, address in {
        "0": 0,
        "1": 1,
        "unmapped": gone.address,
        "half a page": b.anonymous().address + 2048,
        "the last page": (1 << 47) - 2 * PAGE,
        "across the end": (1 << 47) - PAGE,
        "kernel half": 0xFFFF800000000000,
        "the top": (1 << 64) - PAGE,
    }.items():
        b.probe(name, lambda address=address: bind(vm, gmem.fd, userspace_addr=address))
        unbind(vm)


@case("binding", "gmem")
def first_ioctl(b: Bench) -> None:
    vm = b.vm()
    gmem, memory = b.gmem(vm), b.anonymous()
    for flags in (4, 5, 6, 7, 8):
        b.probe(f"flags {flags}", vm.set_user_memory_region, 1, GPA, PAGE, memory.address, flags)
    bind(vm, gmem.fd)
    b.probe("replace a bound slot", vm.set_user_memory_region, 1, GPA, PAGE, memory.address, 0)
    b.probe("move a bound slot", vm.set_user_memory_region, 1, 2 * GPA, PAGE, 0, 0)
    b.probe("log a bound slot", vm.set_user_memory_region, 1, GPA, PAGE, 0, 1)
    b.probe("delete a bound slot", vm.set_user_memory_region, 1, GPA, 0, 0, 0)
    b.probe("delete it again", vm.set_user_memory_region, 1, GPA, 0, 0, 0)
    args = bytearray(region2(slot=1, flags=4, guest_phys_addr=GPA, memory_size=PAGE, guest_memfd=gmem.fd).pack())
    b.probe("the longer structure by the shorter ioctl", vm.ioctl, KVM_SET_USER_MEMORY_REGION, args)


@case("binding", "gmem")
def changes(b: Bench) -> None:
    """A bound slot can't be changed, whatever the change."""
    vm = b.vm()
    gmem, second, memory = b.gmem(vm, 8 * PAGE), b.gmem(vm), b.anonymous(2 * PAGE)
    bind(vm, gmem.fd, memory_size=2 * PAGE)
    changed: dict[str, dict[str, int]] = {
        "nothing": {},
        "gpa": {"guest_phys_addr": 2 * GPA},
        "gpa by a page": {"guest_phys_addr": GPA + PAGE},
        "smaller": {"memory_size": PAGE},
        "larger": {"memory_size": 4 * PAGE},
        "userspace_addr": {"userspace_addr": memory.address},
        "offset": {"guest_memfd_offset": 4 * PAGE},
        "file": {"guest_memfd": second.fd},
        "bad file": {"guest_memfd": 0xFFFFFFFF},
        "no GUEST_MEMFD": {"flags": 0},
        "LOG_DIRTY": {"flags": 5},
        "LOG_DIRTY alone": {"flags": 1},
        "READONLY": {"flags": 6},
        "READONLY alone": {"flags": 2},
    }
    for name, fields in changed.items():
        fields = {"memory_size": 2 * PAGE, **fields}
        fd = fields.pop("guest_memfd", gmem.fd)
        b.probe(name, lambda fd=fd, fields=fields: bind(vm, fd, **fields))
    for name, fields in {"flags 0": {"flags": 0}, "GUEST_MEMFD": {"flags": 4}, "LOG_DIRTY": {"flags": 1}}.items():
        b.probe(f"delete with {name}", lambda fields=fields: bind(vm, -1, memory_size=0, **fields))
        b.probe(f"bind again after {name}", lambda: bind(vm, gmem.fd, memory_size=2 * PAGE))
    for name, fields in {
        "READONLY": {"flags": 2},
        "all three": {"flags": 7},
        "an unknown flag": {"flags": 8},
        "an unaligned gpa": {"guest_phys_addr": 1},
        "an unaligned address": {"userspace_addr": 1},
        "an unaligned offset": {"guest_memfd_offset": 1, "flags": 4},
    }.items():
        b.probe(f"delete with {name}", lambda fields=fields: bind(vm, -1, memory_size=0, **fields))
        unbind(vm)
        bind(vm, gmem.fd, memory_size=2 * PAGE)


@case("binding", "gmem")
def failures_leave_nothing(b: Bench) -> None:
    vm = b.vm()
    gmem = b.gmem(vm, 4 * PAGE)
    b.probe("too far", lambda: bind(vm, gmem.fd, slot=1, memory_size=8 * PAGE))
    b.probe("the slot isn't there", vm.delete_slot, 1)
    b.probe("the gpa is free", lambda: bind(vm, gmem.fd, slot=2, memory_size=4 * PAGE))
    b.probe("the file is taken", lambda: bind(vm, gmem.fd, slot=3, guest_phys_addr=2 * GPA))
    vm.delete_slot(2)
    b.probe("beyond the largest gfn", lambda: bind(vm, gmem.fd, slot=4, guest_phys_addr=1 << 52))
    b.probe("the file is free again", lambda: bind(vm, gmem.fd, slot=4, memory_size=4 * PAGE))
