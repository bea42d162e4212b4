# SPDX-License-Identifier: GPL-2.0-or-later
"""mmap() of a guest_memfd, and what may be done to the mapping."""

from __future__ import annotations

from itertools import product

from ...uapi.mman import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_LOCKED,
    MAP_NORESERVE,
    MAP_POPULATE,
    MAP_PRIVATE,
    MAP_SHARED,
    MAP_SHARED_VALIDATE,
)
from ..bench import PAGE, Bench
from ..case import case

PROTS = {0: "none", 1: "r", 2: "w", 3: "rw", 4: "x", 5: "rx", 7: "rwx", 8: "8", 1 << 24: "growsdown"}
TYPES = {
    0: "none",
    MAP_SHARED: "shared",
    MAP_PRIVATE: "private",
    MAP_SHARED_VALIDATE: "shared-validate",
    4: "type 4",
    15: "type 15",
}


@case("mmap", "gmem")
def types(b: Bench) -> None:
    vm = b.vm()
    for flags in range(b.usable_flags(vm) + 1):
        gmem = b.gmem(vm, flags=flags)
        for (kind, what), (prot, rights) in product(TYPES.items(), PROTS.items()):
            b.probe(
                f"{what} {rights}, created with {flags}",
                lambda gmem=gmem, prot=prot, kind=kind: gmem.mmap(prot=prot, flags=kind),
            )


@case("mmap", "mmap")
def flags(b: Bench) -> None:
    vm = b.vm()
    gmem = b.gmem(vm, flags=b.usable_flags(vm))
    for bit in range(5, 32):
        if 1 << bit in (MAP_FIXED_NOREPLACE, MAP_ANONYMOUS, 0x40, 0x80):
            continue
        b.probe(f"shared and bit {bit}", lambda bit=bit: gmem.mmap(flags=MAP_SHARED | 1 << bit))
        b.probe(f"validate and bit {bit}", lambda bit=bit: gmem.mmap(flags=MAP_SHARED_VALIDATE | 1 << bit))
    b.probe("populate", lambda: gmem.mmap(flags=MAP_SHARED | MAP_POPULATE))
    b.probe("locked", lambda: gmem.mmap(flags=MAP_SHARED | MAP_LOCKED | MAP_NORESERVE))


@case("mmap", "mmap")
def ranges(b: Bench) -> None:
    vm = b.vm()
    gmem = b.gmem(vm, 4 * PAGE, b.usable_flags(vm))
    for length in (
        0,
        1,
        4095,
        4096,
        4097,
        4 * PAGE,
        5 * PAGE,
        64 * PAGE,
        1 << 46,
        1 << 47,
        1 << 63,
        (1 << 64) - PAGE,
        (1 << 64) - 1,
    ):
        b.probe(f"length {length:#x}", lambda length=length: gmem.mmap(length))
    for offset in (1, 512, 4095, PAGE, 3 * PAGE, 4 * PAGE, 5 * PAGE, 1 << 40, 1 << 62, (1 << 63) - PAGE):
        b.probe(f"offset {offset:#x}", lambda offset=offset: gmem.mmap(PAGE, offset))
    b.probe("length and offset that wrap", lambda: gmem.mmap(2 * PAGE, (1 << 63) - PAGE))


@case("mmap", "mmap")
def addresses(b: Bench) -> None:
    vm = b.vm()
    gmem, there = b.gmem(vm, 4 * PAGE, b.usable_flags(vm)), b.anonymous(4 * PAGE)
    for name, address in {
        "unaligned": there.address + 1,
        "past the end": 1 << 47,
        "the last page": (1 << 47) - PAGE,
        "not canonical": 1 << 48,
        "kernel half": 0xFFFF800000000000,
    }.items():
        for kind, flag in (("fixed", MAP_FIXED), ("noreplace", MAP_FIXED_NOREPLACE)):
            b.probe(
                f"{kind} {name}",
                lambda address=address, flag=flag: gmem.mmap(PAGE, flags=MAP_SHARED | flag, address=address),
            )
    b.probe("noreplace on a mapping", lambda: gmem.mmap(PAGE, flags=MAP_SHARED | MAP_FIXED_NOREPLACE, address=there.address))
    there[:4] = b"here"
    b.probe("fixed on a mapping", lambda: gmem.mmap(PAGE, flags=MAP_SHARED | MAP_FIXED, address=there.address))
    b.probe(
        "fixed MAP_PRIVATE on a mapping",
        lambda: gmem.mmap(PAGE, flags=MAP_PRIVATE | MAP_FIXED, address=there.address + PAGE),
    )
    there[2 * PAGE] = 7
    b.probe("what a refused one left", lambda: there[PAGE : 2 * PAGE])
    b.probe("an unaligned hint", lambda: gmem.mmap(PAGE, address=there.address + 1))


@case("mmap", "gmem")
def descriptors(b: Bench) -> None:
    vm = b.vm()
    for name, fd in {"/dev/kvm": b.kvm.fd, "a VM": vm.fd, "-1": -1, "not open": 9999}.items():
        for kind in ("shared", "private"):
            flags = MAP_SHARED if kind == "shared" else MAP_PRIVATE
            b.probe(f"{name}, {kind}", lambda fd=fd, flags=flags: b.door.mmap(0, PAGE, 3, flags, fd) > 0)


@case("mmap", "init-shared")
def unmapping(b: Bench) -> None:
    vm = b.vm()
    gmem = b.shared_gmem(vm)
    m = b.map(gmem)
    m[:] = b"\xa5" * len(m)
    for name, address, length in (
        ("an unaligned address", m.address + 1, PAGE),
        ("length 0", m.address, 0),
        ("beyond user space", m.address, 1 << 47),
        ("kernel half", 0xFFFF800000000000, PAGE),
        ("a length that wraps", m.address, (1 << 64) - 1),
        ("the second page", m.address + PAGE, 1),
        ("the second page again", m.address + PAGE, PAGE),
    ):
        b.probe(name, b.door.munmap, address, length)
    for page in range(4):
        b.probe(f"page {page} then", lambda page=page: m[page * PAGE : page * PAGE + 8])
    b.probe("a load across the hole", lambda: m[:])
    b.probe("another mapping has it all", lambda: b.map(gmem)[:])


@case("mmap", "init-shared")
def protection(b: Bench) -> None:
    vm = b.vm()
    gmem = b.shared_gmem(vm)
    m = b.map(gmem)
    m[:] = b"\x5a" * len(m)
    for prot, rights in PROTS.items():
        b.probe(f"mprotect {rights}", b.door.mprotect, m.address + PAGE, PAGE, prot)
        b.probe(f"load under {rights}", lambda: m[PAGE : PAGE + 4])
        b.probe(f"store under {rights}", m.__setitem__, PAGE, 0x5B)
    for prot in (0x10, 0x40, 1 << 25, 3 << 24, 0x80000000):
        b.probe(f"mprotect {prot:#x}", b.door.mprotect, m.address + PAGE, PAGE, prot)
    b.probe("mprotect unaligned", b.door.mprotect, m.address + 1, PAGE, 3)
    b.probe("mprotect of nothing", b.door.mprotect, m.address, 0, 3)
    b.probe("mprotect beyond the mapping", b.door.mprotect, m.address, 1 << 40, 1)
    b.probe("store after that", m.__setitem__, 0, 1)
    b.probe("mprotect that wraps", b.door.mprotect, m.address, (1 << 64) - 1, 3)
    b.probe("mprotect of an unmapped page", b.door.mprotect, 1 << 40, PAGE, 3)
    read_only = b.map(gmem, prot=1)
    b.probe("load from a read-only mapping", lambda: read_only[:])
    b.probe("store to a read-only mapping", read_only.__setitem__, PAGE, 1)
    write_only = b.map(gmem, prot=2)
    b.probe("load from a write-only mapping", lambda: write_only[2 * PAGE : 2 * PAGE + 2])
    b.probe("nothing allowed", lambda: b.map(gmem, prot=0)[0])
