# SPDX-License-Identifier: GPL-2.0-or-later
"""Loads, stores and system calls on a mapping of a guest_memfd."""

from __future__ import annotations

from ...uapi.kvm import GUEST_MEMFD_FLAG_MMAP, KVM_CREATE_GUEST_MEMFD, kvm_create_guest_memfd
from ..bench import PAGE, Bench
from ..case import case


@case("faults", "init-shared")
def contents(b: Bench) -> None:
    vm = b.vm()
    gmem = b.shared_gmem(vm, 4 * PAGE)
    m, second = b.map(gmem), b.map(gmem)
    b.probe("zero at first", lambda: m[:])
    m[:] = b"\xaa" * len(m)
    b.probe("seen by another mapping", lambda: second[:])
    second[PAGE - 2 : PAGE + 2] = b"abcd"
    b.probe("across pages", lambda: m[PAGE - 4 : PAGE + 4])
    gmem.punch_hole(0, PAGE)
    b.probe("zero after a hole", lambda: m[:PAGE])
    b.probe("the rest stays", lambda: m[PAGE:])
    m[:PAGE] = b"\xbb" * PAGE
    b.probe("filled again", lambda: second[: PAGE + 8])
    part = b.map(gmem, PAGE, 2 * PAGE)
    part[0] = 1
    b.probe("an offset maps what it says", lambda: m[2 * PAGE : 2 * PAGE + 2])


@case("faults", "init-shared")
def end_of_file(b: Bench) -> None:
    vm = b.vm()
    gmem = b.shared_gmem(vm, 2 * PAGE)
    m = b.map(gmem, 8 * PAGE)
    for at in (0, 2 * PAGE - 1, 2 * PAGE, 2 * PAGE + 1, 3 * PAGE, 8 * PAGE - 1):
        b.probe(f"load at {at:#x}", lambda at=at: m[at])
        b.probe(f"store at {at:#x}", m.__setitem__, at, 7)
    b.probe("a load across the end", lambda: m[2 * PAGE - 4 : 2 * PAGE + 4])
    b.probe("a store across the end", lambda: m.__setitem__(slice(2 * PAGE - 4, 2 * PAGE + 4), b"stuvwxyz"))
    b.probe("what it left", lambda: m[2 * PAGE - 8 : 2 * PAGE])
    beyond = b.map(gmem, PAGE, 4 * PAGE)
    b.probe("a mapping wholly beyond", lambda: beyond[0])
    b.probe("past the mapping", lambda: b.door.load(m.address + (1 << 40), 1) and None)


@case("faults", "mmap")
def private(b: Bench) -> None:
    vm = b.vm()
    gmem = b.gmem(vm, 2 * PAGE, GUEST_MEMFD_FLAG_MMAP)
    m = b.map(gmem, 4 * PAGE)
    for at in (0, PAGE - 1, PAGE, 2 * PAGE):
        b.probe(f"load at {at:#x}", lambda at=at: m[at])
        b.probe(f"store at {at:#x}", m.__setitem__, at, 7)
    gmem.allocate(0, 2 * PAGE)
    b.probe("load once allocated", lambda: m[0])
    b.probe("a system call that reads there", vm.ioctl, KVM_CREATE_GUEST_MEMFD, m.address)
    memfd = b.memfd()
    b.door.mmap(m.address, PAGE, 3, 0x11, memfd.fd)
    b.probe("load where something else was mapped over it", lambda: m[0])


@case("faults", "init-shared")
def system_calls(b: Bench) -> None:
    vm = b.vm()
    gmem = b.shared_gmem(vm, 2 * PAGE)
    m = b.map(gmem, 4 * PAGE)
    args = kvm_create_guest_memfd(size=PAGE).pack()
    for at in (0, PAGE - 32, 2 * PAGE - 64):
        m[at : at + 64] = args
        b.probe(f"arguments at {at:#x}", lambda at=at: vm.ioctl(KVM_CREATE_GUEST_MEMFD, m.address + at) >= 0)
    for at in (2 * PAGE - 32, 2 * PAGE, 3 * PAGE):
        b.probe(f"arguments at {at:#x}", lambda at=at: vm.ioctl(KVM_CREATE_GUEST_MEMFD, m.address + at) >= 0)
    gmem.punch_hole(0, PAGE)
    b.probe("arguments in a hole", lambda: vm.ioctl(KVM_CREATE_GUEST_MEMFD, m.address) >= 0)


@case("faults", "init-shared")
def holes(b: Bench) -> None:
    vm = b.vm()
    gmem = b.shared_gmem(vm, 8 * PAGE)
    first, second = b.map(gmem), b.map(gmem, prot=1)
    first[:] = bytes(range(256)) * (8 * 16)
    second.tobytes()
    for start, pages in ((1, 1), (3, 2), (7, 1)):
        gmem.punch_hole(start * PAGE, pages * PAGE)
        b.probe(
            f"holes to {start + pages}, by the first", lambda: b"".join(first[p * PAGE + 1 : p * PAGE + 2] for p in range(8))
        )
        b.probe(
            f"holes to {start + pages}, by the second",
            lambda: b"".join(second[p * PAGE + 1 : p * PAGE + 2] for p in range(8)),
        )
    gmem.allocate(0, 8 * PAGE)
    b.probe("allocated again", lambda: second[PAGE : 2 * PAGE])
    gmem.punch_hole(0, 1 << 40)
    b.probe("all gone", lambda: first[:])


@case("faults", each_vm=False)
def ordinary_memory(b: Bench) -> None:
    """The same on memfd and anonymous memory, so that what's guest_memfd's own can be told."""
    memfd = b.memfd(2 * PAGE)
    m = b.door.mmap(0, 4 * PAGE, 3, 1, memfd.fd)
    b._regions.append((m, m + 4 * PAGE))
    b.probe("memfd: load", lambda: b.door.load(m, 8))
    b.probe("memfd: store beyond the end", b.door.store, m + 2 * PAGE, b"x")
    b.door.ftruncate(memfd.fd, 3 * PAGE)
    b.probe("memfd: store where it grew", b.door.store, m + 2 * PAGE, b"x")
    b.door.ftruncate(memfd.fd, PAGE)
    b.probe("memfd: load where it shrank", b.door.load, m + 2 * PAGE, 1)
    b.door.munmap(m, 4 * PAGE)
    a = b.anonymous(2 * PAGE)
    b.probe("anonymous: load", lambda: a[:])
    a.protect(1)
    b.probe("anonymous: store to read-only", a.__setitem__, 0, 1)
    a.protect(0)
    b.probe("anonymous: load from PROT_NONE", lambda: a[0])
    b.probe("address 0", b.door.load, 0, 1)
    b.probe("kernel half", b.door.load, 0xFFFF800000000000, 1)
    b.probe("not canonical", b.door.store, 1 << 48, b"x")
