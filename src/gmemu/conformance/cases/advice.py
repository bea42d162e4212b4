# SPDX-License-Identifier: GPL-2.0-or-later
"""madvise() on a mapping of a guest_memfd."""

from __future__ import annotations

from ...api import Mapping
from ...uapi.mman import (
    MADV_COLLAPSE,
    MADV_DONTNEED,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MADV_REMOVE,
    MAP_ANONYMOUS,
    MAP_LOCKED,
    MAP_SHARED,
)
from ..bench import PAGE, Bench
from ..case import case

# 100 and 101 poison pages; 102 and 103 install guards, which not every version has.
ADVICE = (*range(100), 104, -1, 1 << 31)


@case("madvise", "init-shared")
def shared_pages(b: Bench) -> None:
    vm = b.vm()
    for advice in ADVICE:
        gmem = b.shared_gmem(vm, 4 * PAGE)
        m = b.map(gmem)
        m[:] = b"\x77" * len(m)
        b.probe(f"advice {advice}", m.madvise, advice, PAGE, PAGE)
        if advice < 26:
            b.probe(f"contents after {advice}", lambda m=m: m[:])
        m.close()
        gmem.close()


@case("madvise", "mmap")
def private_pages(b: Bench) -> None:
    vm = b.vm()
    gmem = b.gmem(vm, 4 * PAGE, 1)
    gmem.allocate(0, PAGE)
    m = b.map(gmem)
    for advice in range(26):
        b.probe(f"advice {advice}", m.madvise, advice, 0, 2 * PAGE)


@case("madvise", "init-shared")
def ranges(b: Bench) -> None:
    vm = b.vm()
    gmem = b.shared_gmem(vm, 4 * PAGE)
    m = b.map(gmem, 8 * PAGE)
    gap = b.map(gmem, 4 * PAGE)
    b.door.munmap(gap.address + PAGE, PAGE)
    for advice, name in (
        (MADV_DONTNEED, "DONTNEED"),
        (MADV_POPULATE_READ, "POPULATE_READ"),
        (MADV_POPULATE_WRITE, "POPULATE_WRITE"),
        (MADV_REMOVE, "REMOVE"),
    ):
        for what, address, length in (
            ("unaligned", m.address + 1, PAGE),
            ("nothing", m.address, 0),
            ("nothing, unaligned", m.address + 8, 0),
            ("a byte", m.address, 1),
            ("to the end of the file", m.address, 4 * PAGE),
            ("past the end of the file", m.address, 5 * PAGE),
            ("wholly past the end", m.address + 6 * PAGE, PAGE),
            ("across a gap", gap.address, 3 * PAGE),
            ("in a gap", gap.address + PAGE, PAGE),
            ("wrapping", m.address, (1 << 64) - PAGE),
            ("negative", m.address, (1 << 64) - 1),
            ("kernel half", 0xFFFF800000000000, PAGE),
        ):
            b.probe(f"{name}: {what}", b.door.madvise, address, length, advice)


@case("madvise", "init-shared")
def protections(b: Bench) -> None:
    vm = b.vm()
    gmem = b.shared_gmem(vm, PAGE)
    for prot in (0, 1, 2, 3):
        m = b.map(gmem, prot=prot)
        for advice in (MADV_DONTNEED, MADV_REMOVE, MADV_POPULATE_READ, MADV_POPULATE_WRITE):
            b.probe(f"protection {prot}, advice {advice}", m.madvise, advice)


@case("madvise", "init-shared")
def locked_pages(b: Bench) -> None:
    gmem = b.shared_gmem(b.vm(), 4 * PAGE)
    memory = b.anonymous(4 * PAGE)
    for name, m in {
        "guest_memfd": gmem.mmap(flags=MAP_SHARED | MAP_LOCKED),
        "own": Mapping(b.door, b.door.mmap(memory.address, 4 * PAGE, 3, 0x12 | MAP_ANONYMOUS | MAP_LOCKED), 4 * PAGE),
    }.items():
        for advice in range(26):
            if advice != MADV_COLLAPSE:
                b.probe(f"{name}, advice {advice}", m.madvise, advice, 0, PAGE)


@case("madvise", "init-shared")
def removing(b: Bench) -> None:
    vm = b.vm()
    gmem = b.shared_gmem(vm, 4 * PAGE)
    m, second = b.map(gmem), b.map(gmem)
    m[:] = b"\x99" * len(m)
    b.probe("MADV_REMOVE", m.madvise, MADV_REMOVE, PAGE, 2 * PAGE)
    b.probe("is a hole for all", lambda: second[:])
    b.record("blocks", gmem.stat().blocks)
    m.madvise(MADV_DONTNEED)
    b.probe("DONTNEED keeps the page cache", lambda: m[:PAGE])


@case("madvise", each_vm=False)
def ordinary_memory(b: Bench) -> None:
    memory, memfd = b.anonymous(2 * PAGE), b.memfd(2 * PAGE)
    b.probe("REMOVE of anonymous memory", memory.madvise, MADV_REMOVE)
    copy = b.door.mmap(0, 2 * PAGE, 3, 2, memfd.fd)
    b.probe("REMOVE through a private mapping", b.door.madvise, copy, PAGE, MADV_REMOVE)
    b.door.munmap(copy, 2 * PAGE)
    memory[:] = b"\x11" * len(memory)
    for advice in (0, 1, 2, 3, 8, 10, 11, 16, 17, 18, 19, 20, 22, 23, 24, 4):
        b.probe(f"anonymous, advice {advice}", memory.madvise, advice)
    b.probe("zero after DONTNEED", lambda: memory[:])
