# SPDX-License-Identifier: GPL-2.0-or-later
"""fallocate() on a guest_memfd: modes, ranges, and what it leaves."""

from __future__ import annotations

from itertools import product

from ...uapi.mman import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
from ..bench import PAGE, Bench
from ..case import case

KEEP = FALLOC_FL_KEEP_SIZE
PUNCH = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
LARGE = (1 << 63) - PAGE
RANGES = (
    (0, PAGE), (0, 4 * PAGE), (3 * PAGE, PAGE), (0, 0), (PAGE, 0), (0, 1), (1, PAGE), (PAGE, 4095), (2048, 2048),
    (PAGE - 1, 1), (4 * PAGE, PAGE), (3 * PAGE, 2 * PAGE), (0, 5 * PAGE), (4 * PAGE, 1), (5 * PAGE, 4 * PAGE),
    (LARGE - PAGE, PAGE), (LARGE, PAGE), (LARGE, 1), (PAGE, LARGE), (0, LARGE), (1 << 62, 1 << 62), (-PAGE, PAGE), (-1,
    1), (0, -PAGE), (PAGE, -PAGE), (-PAGE, -PAGE),
)  # fmt: skip


@case("fallocate", "gmem")
def modes(b: Bench) -> None:
    gmem = b.gmem(b.vm())
    for mode in range(256):
        if mode & (mode - 1) and mode not in (3, 5, 6, 7, 9, 11, 17, 19, 33, 65, 67, 129, 131):
            continue
        b.probe(f"mode {mode:#x}", gmem.fallocate, mode, 0, PAGE)
        b.probe(f"mode {mode:#x}, unaligned", gmem.fallocate, mode, 1, PAGE)
        b.probe(f"mode {mode:#x}, nothing", gmem.fallocate, mode, 0, 0)
    for bit in range(8, 32):
        b.probe(f"bit {bit}", gmem.fallocate, (1 << bit) - (1 << 32 if bit == 31 else 0), 0, PAGE)
        b.probe(f"bit {bit} and KEEP_SIZE", gmem.fallocate, (1 << bit | 1) - (1 << 32 if bit == 31 else 0), 0, PAGE)


@case("fallocate", "gmem")
def ranges(b: Bench) -> None:
    gmem = b.gmem(b.vm(), 4 * PAGE)
    for (offset, length), (mode, what) in product(RANGES, ((KEEP, "allocate"), (PUNCH, "punch"))):
        b.probe(f"{what} {offset:#x} {length:#x}", gmem.fallocate, mode, offset, length)


@case("fallocate", "gmem")
def blocks(b: Bench) -> None:
    gmem = b.gmem(b.vm(), 8 * PAGE)
    for what, call, start, pages in (
        ("nothing", gmem.punch_hole, 0, 1),
        ("two pages", gmem.allocate, 0, 2),
        ("the same again", gmem.allocate, 0, 2),
        ("four more", gmem.allocate, 4, 4),
        ("a hole", gmem.punch_hole, 1, 4),
        ("a hole in a hole", gmem.punch_hole, 2, 1),
        ("all", gmem.allocate, 0, 8),
        ("beyond the end", gmem.punch_hole, 7, 4),
        ("nothing left", gmem.punch_hole, 0, 8),
    ):
        b.probe(what, call, start * PAGE, pages * PAGE)
        b.record(f"blocks after {what}", gmem.stat().blocks)
        b.record(f"size after {what}", gmem.stat().size)


@case("fallocate", "gmem")
def descriptors(b: Bench) -> None:
    vm = b.vm()
    for name, fd in {"/dev/kvm": b.kvm.fd, "a VM": vm.fd, "a vCPU": b.vcpu(vm).fd, "-1": -1, "not open": 9999}.items():
        b.probe(f"{name}, allocate", b.door.fallocate, fd, KEEP, 0, PAGE)
        b.probe(f"{name}, bad range", b.door.fallocate, fd, KEEP, 0, 0)
        b.probe(f"{name}, bad mode", b.door.fallocate, fd, 0x100, 0, PAGE)
    memfd = b.memfd().fd
    b.probe("a memfd, allocate", b.door.fallocate, memfd, KEEP, 0, PAGE)
    for mode in (0, 2, 4, 8, 9, 16, 17, 32, 64, 65, 128):
        b.probe(f"a memfd, mode {mode:#x}", b.door.fallocate, memfd, mode, 0, PAGE)
    b.probe("a memfd, punch", b.door.fallocate, memfd, PUNCH, 1, 100)


@case("fallocate", "gmem")
def bound_files(b: Bench) -> None:
    vm = b.vm()
    gmem = b.gmem(vm, 4 * PAGE)
    vm.set_user_memory_region2(1, 1 << 30, 4 * PAGE, gmem=gmem)
    for name, mode in (("allocate", KEEP), ("punch", PUNCH), ("allocate again", KEEP)):
        b.probe(f"{name} while bound", gmem.fallocate, mode, 0, 4 * PAGE)
    vm.delete_slot(1)
    b.probe("punch when unbound", gmem.fallocate, PUNCH, 0, 4 * PAGE)
    dup = b.door.dup(gmem.fd)
    gmem.close()
    b.probe("by a dup", b.door.fallocate, dup, KEEP, 0, PAGE)
    vm.close()
    b.probe("once the VM is closed", b.door.fallocate, dup, PUNCH, 0, PAGE)
    b.door.close(dup)


@case("fallocate", "gmem")
def large_files(b: Bench) -> None:
    gmem = b.gmem(b.vm(), (1 << 63) - PAGE)
    b.probe("allocate the last page", gmem.allocate, (1 << 63) - 2 * PAGE, PAGE)
    b.probe("allocate in the middle", gmem.allocate, 1 << 62, PAGE)
    b.probe("punch everything", gmem.punch_hole, 0, (1 << 63) - PAGE)
    b.probe("allocate past everything", gmem.allocate, (1 << 63) - PAGE, PAGE)


@case("fallocate", "gmem")
def what_is_no_regular_file(b: Bench) -> None:
    """The mode is judged before the file."""
    vm = b.vm()
    for what, fd in {"/dev/kvm": b.kvm.fd, "VM": vm.fd, "vCPU": b.vcpu(vm).fd}.items():
        for mode in (0, KEEP, PUNCH, *(1 << bit for bit in range(2, 31))):
            b.probe(f"{what}, mode {mode:#x}", b.door.fallocate, fd, mode, 0, PAGE)
        b.probe(f"{what}, nothing", b.door.fallocate, fd, 0, 0, 0)
        b.probe(f"{what}, too far", b.door.fallocate, fd, 0, LARGE, 2 * PAGE)
