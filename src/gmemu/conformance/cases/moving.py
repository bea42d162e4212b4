# SPDX-License-Identifier: GPL-2.0-or-later
"""mremap() and mlock(): of a guest_memfd's mapping, and of ordinary memory beside it."""

from __future__ import annotations

from collections.abc import Callable

from ...api import Mapping
from ...uapi.mman import (
    MADV_DODUMP,
    MADV_DOFORK,
    MADV_DONTDUMP,
    MADV_DONTFORK,
    MADV_DONTNEED,
    MADV_DONTNEED_LOCKED,
    MADV_NORMAL,
    MADV_RANDOM,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_READ,
    PROT_WRITE,
)
from ..bench import PAGE, Bench
from ..case import case
from ..guests import Load, Store

TO = MREMAP_MAYMOVE | MREMAP_FIXED
KEEP = TO | MREMAP_DONTUNMAP


def _ordinary(b: Bench) -> dict[str, Mapping]:
    """Four pages each of what isn't guest_memfd, filled."""
    memory = {"private": b.anonymous(4 * PAGE), "shared": b.anonymous(4 * PAGE, shared=True)}
    for mapping in memory.values():
        _fill(mapping)
    return memory


def _fill(mapping: Mapping) -> None:
    for page in range(mapping.length // PAGE):
        mapping[page * PAGE : (page + 1) * PAGE] = bytes((0x61 + page,)) * PAGE


def _pages(b: Bench, what: str, mapping: Mapping, count: int = 4) -> None:
    """The first bytes of each page, or the signal."""
    for page in range(count):
        b.probe(f"{what}, page {page}", b.door.load, mapping.address + page * PAGE, 2)


def _refusals(b: Bench, what: str, m: Mapping) -> None:
    """Everything that's wrong with a call, on four pages."""
    room = b.room(8 * PAGE)
    for bit in range(3, 32):
        b.probe(f"{what}: flag {bit}", b.door.mremap, m.address, PAGE, PAGE, 1 << bit)
    for flags in range(8):
        for name, old, new in (("shorter", 2, 1), ("as long", 4, 4), ("longer", 4, 6)):
            if flags != MREMAP_MAYMOVE or name != "longer":
                b.probe(
                    f"{what}: flags {flags}, {name}, onto itself",
                    lambda flags=flags, old=old, new=new: (
                        b.door.mremap(m.address, old * PAGE, new * PAGE, flags, m.address) == m.address
                    ),
                )
    for name, address in {
        "unaligned": m.address + 1,
        "null": 0,
        "unmapped": m.address - PAGE,
        "not canonical": 1 << 47,
        "kernel half": 0xFFFF800000000000,
    }.items():
        for flags in (0, MREMAP_MAYMOVE, TO):
            b.probe(f"{what}: from {name}, flags {flags}", b.door.mremap, address, PAGE, 2 * PAGE, flags, room)
        b.probe(f"{what}: from {name}, the same length", b.door.mremap, address, PAGE, PAGE, 0)
        b.probe(f"{what}: only moved from {name}", b.door.mremap, address, PAGE, PAGE, TO, room)
    for flags in (MREMAP_FIXED, MREMAP_DONTUNMAP, MREMAP_FIXED | MREMAP_DONTUNMAP):
        b.probe(f"{what}: flags {flags}, elsewhere", b.door.mremap, m.address, PAGE, PAGE, flags, room)
    for old, new in ((1, PAGE), (PAGE, 1), (PAGE - 1, PAGE + 1)):
        for flags in (KEEP, MREMAP_MAYMOVE | MREMAP_DONTUNMAP):
            lengths = f"{old} to {new} bytes"
            b.probe(f"{what}: keep no {lengths}, flags {flags}", b.door.mremap, m.address - PAGE, old, new, flags, room)
    for length in (0, 1 << 47, 1 << 62, 1 << 63, (1 << 64) - PAGE, (1 << 64) - 1):
        b.probe(f"{what}: new length {length:#x}", b.door.mremap, m.address, PAGE, length, 0)
        b.probe(f"{what}: new length {length:#x}, fixed", b.door.mremap, m.address, PAGE, length, TO, room)
    for length in (5 * PAGE, 1 << 47, 1 << 63, (1 << 64) - 2 * PAGE):
        b.probe(f"{what}: old length {length:#x}, longer", b.door.mremap, m.address, length, length + PAGE, MREMAP_MAYMOVE)
    for name, target in {
        "unaligned": room + 1,
        "at the end": (1 << 47) - PAGE,
        "not canonical": 1 << 47,
        "kernel half": 0xFFFF800000000000,
        "overlapping": m.address + PAGE,
        "overlapping from below": m.address - PAGE,
    }.items():
        for flags in (TO, KEEP, MREMAP_MAYMOVE | MREMAP_DONTUNMAP):
            b.probe(f"{what}: to {name}, flags {flags}", b.door.mremap, m.address, 2 * PAGE, 2 * PAGE, flags, target)


@case("mremap", each_vm=False)
def ordinary_refusals(b: Bench) -> None:
    for what, m in _ordinary(b).items():
        _refusals(b, what, m)
        _pages(b, f"{what} afterwards", m)


@case("mremap", "init-shared")
def refusals(b: Bench) -> None:
    m = b.map(b.shared_gmem(b.vm()))
    _fill(m)
    _refusals(b, "guest_memfd", m)
    _pages(b, "afterwards", m)


def _moves(b: Bench, what: str, m: Mapping) -> None:
    """Four filled pages, moved, shrunk and grown."""
    b.probe(f"{what}: shrink", lambda: b.door.mremap(m.address, 4 * PAGE, 3 * PAGE, 0) == m.address)
    _pages(b, f"{what}: shrunk", m)
    b.probe(f"{what}: grow in place", lambda: b.door.mremap(m.address, 3 * PAGE, 4 * PAGE, 0) == m.address)
    _pages(b, f"{what}: grown", m)
    b.probe(f"{what}: grow what doesn't end there", b.door.mremap, m.address, PAGE, 2 * PAGE, 0)
    moved = b.probe(f"{what}: move all", b.mremap, m.address, 4 * PAGE, 4 * PAGE, TO)
    assert moved is not None
    _pages(b, f"{what}: moved", moved)
    _pages(b, f"{what}: where it was", m)
    part = b.probe(f"{what}: move the second page", b.mremap, moved.address + PAGE, PAGE, PAGE, TO)
    assert part is not None
    _pages(b, f"{what}: the rest", moved)
    _pages(b, f"{what}: the part", part, 1)
    b.probe(f"{what}: across the gap", b.mremap, moved.address, 4 * PAGE, 4 * PAGE, TO)
    b.probe(f"{what}: shorter, across the gap", b.mremap, moved.address, 3 * PAGE, PAGE, TO)
    b.probe(f"{what}: longer, across the gap", b.mremap, moved.address, 3 * PAGE, 4 * PAGE, TO)
    _pages(b, f"{what}: left in the end", moved)


@case("mremap", each_vm=False)
def moves_of_ordinary_memory(b: Bench) -> None:
    for what, m in _ordinary(b).items():
        _moves(b, what, m)


@case("mremap", "init-shared")
def moves(b: Bench) -> None:
    gmem = b.shared_gmem(b.vm())
    m = b.map(gmem)
    _fill(m)
    _moves(b, "guest_memfd", m)
    _pages(b, "the file", b.map(gmem))


@case("mremap", "init-shared")
def what_follows_the_move(b: Bench) -> None:
    gmem = b.shared_gmem(b.vm())
    m = b.map(gmem)
    _fill(m)
    moved = b.mremap(m.address, 4 * PAGE, 4 * PAGE, TO)
    b.probe("store", moved.__setitem__, PAGE, 1)
    b.probe("punch", gmem.punch_hole, 0, PAGE)
    _pages(b, "after punching", moved)
    grown = b.probe("grow beyond the file", b.mremap, moved.address, 4 * PAGE, 6 * PAGE, TO)
    assert grown is not None
    _pages(b, "grown", grown, 6)
    again = b.probe("a second view", b.mremap, grown.address, 0, 2 * PAGE, TO)
    assert again is not None
    again[PAGE : PAGE + 4] = b"both"
    _pages(b, "second view", again, 2)
    _pages(b, "first view", grown, 2)
    kept = b.probe("move and keep", b.mremap, grown.address, 4 * PAGE, 4 * PAGE, KEEP)
    assert kept is not None
    _pages(b, "kept", grown, 6)
    _pages(b, "copied to", kept)
    b.probe("close the file", gmem.close)
    b.probe("move without the file", b.mremap, kept.address, PAGE, PAGE, TO)


@case("mremap", each_vm=False)
def what_follows_in_ordinary_memory(b: Bench) -> None:
    for what, m in _ordinary(b).items():
        b.probe(f"{what}: a second view, not movable", b.door.mremap, m.address, 0, PAGE, 0)
        b.probe(f"{what}: a second view", b.mremap, m.address, 0, 2 * PAGE, TO)
        kept = b.probe(f"{what}: move and keep", b.mremap, m.address, 2 * PAGE, 2 * PAGE, KEEP)
        assert kept is not None
        _pages(b, f"{what}: kept", m)
        _pages(b, f"{what}: copied to", kept, 2)


@case("mremap", each_vm=False)
def neighbours(b: Bench) -> None:
    """What is one mapping may be grown or moved as one; what differs in anything may not, before 6.17."""
    m = b.anonymous(4 * PAGE)
    _fill(m)
    door, page = b.door, m.address + PAGE
    changes: tuple[tuple[str, Callable[[], None], Callable[[], None]], ...] = (
        (
            "protected",
            lambda: door.mprotect(page, PAGE, PROT_READ),
            lambda: door.mprotect(page, PAGE, PROT_READ | PROT_WRITE),
        ),
        ("locked", lambda: door.mlock(page, PAGE), lambda: door.munlock(page, PAGE)),
        ("advised", lambda: door.madvise(page, PAGE, MADV_RANDOM), lambda: door.madvise(page, PAGE, MADV_NORMAL)),
        ("not forked", lambda: door.madvise(page, PAGE, MADV_DONTFORK), lambda: door.madvise(page, PAGE, MADV_DOFORK)),
        ("not dumped", lambda: door.madvise(page, PAGE, MADV_DONTDUMP), lambda: door.madvise(page, PAGE, MADV_DODUMP)),
    )
    for what, call, back in changes:
        call()
        b.probe(f"{what} in the middle: grow", b.mremap, m.address, 3 * PAGE, 4 * PAGE, TO)
        b.probe(f"{what} in the middle: grow the first", b.door.mremap, m.address, PAGE, 2 * PAGE, 0)
        b.probe(f"{what} in the middle: pages", b.door.load, m.address, 2)
        back()
        moved = b.probe(f"{what}, and back: move", b.mremap, m.address, 4 * PAGE, 4 * PAGE, TO)
        assert moved is not None
        b.door.mremap(moved.address, 4 * PAGE, 4 * PAGE, TO, m.address)
        _pages(b, f"{what}, moved there and back", m)


@case("mremap", "guest-code", "gmem")
def under_a_guest(b: Bench) -> None:
    vm = b.vm()
    vcpu, m = b.vcpu(vm), b.anonymous(2 * PAGE)
    _fill(m)
    vm.set_user_memory_region(1, 0, 2 * PAGE, m.address)
    b.guest(vm, vcpu, "before", [Load(0, 1), Store(PAGE, b"g")])
    moved = b.mremap(m.address, 2 * PAGE, 2 * PAGE, TO)
    b.probe("what the guest stored", lambda: moved[PAGE : PAGE + 2])
    b.guest(vm, vcpu, "moved away", [Load(0, 1)])
    b.door.mremap(moved.address, 2 * PAGE, 2 * PAGE, TO, m.address)
    m[0] = 0x7A
    b.guest(vm, vcpu, "moved back", [Load(0, 1), Load(PAGE, 1)])
    b.probe("move and keep", b.mremap, m.address, 2 * PAGE, 2 * PAGE, KEEP)
    b.guest(vm, vcpu, "what is kept", [Load(0, 1), Load(PAGE, 1)])


# mlock


def _locking(b: Bench, what: str, m: Mapping, gap: Mapping) -> None:
    """`m`: four pages; `gap`: four of which the third is missing."""
    for name, address, length in (
        ("a page", m.address, PAGE),
        ("a byte", m.address + PAGE + 7, 1),
        ("nothing", m.address, 0),
        ("nothing, unaligned", m.address + 9, 0),
        ("all", m.address, 4 * PAGE),
        ("beyond", m.address, 5 * PAGE),
        ("unmapped", m.address - PAGE, PAGE),
        ("from a gap", gap.address + 2 * PAGE, PAGE),
        ("across a gap", gap.address, 4 * PAGE),
        ("wrapping", m.address, (1 << 64) - 2 * PAGE),
        ("negative", m.address, (1 << 64) - 1),
        ("kernel half", 0xFFFF800000000000, PAGE),
        ("null", 0, PAGE),
    ):
        b.probe(f"{what}: lock {name}", b.door.mlock, address, length)
        b.probe(f"{what}: drop after locking {name}", b.door.madvise, m.address, PAGE, MADV_DONTNEED)
        b.probe(f"{what}: unlock {name}", b.door.munlock, address, length)
        b.probe(f"{what}: drop after unlocking {name}", b.door.madvise, m.address, PAGE, MADV_DONTNEED)
    b.probe(f"{what}: before the gap", b.door.madvise, gap.address, PAGE, MADV_DONTNEED)
    for prot, rights in ((0, "none"), (PROT_READ, "r"), (PROT_WRITE, "w")):
        b.door.mprotect(m.address + PAGE, PAGE, prot)
        b.probe(f"{what}: lock under {rights}", b.door.mlock, m.address, 2 * PAGE)
        b.probe(f"{what}: drop locked under {rights}", b.door.madvise, m.address + PAGE, PAGE, MADV_DONTNEED_LOCKED)
        b.door.munlock(m.address, 4 * PAGE)
    b.door.mprotect(m.address, 4 * PAGE, 3)
    b.door.mlock(m.address, 4 * PAGE)
    moved = b.probe(f"{what}: move locked pages and keep", b.mremap, m.address, 2 * PAGE, 2 * PAGE, KEEP)
    assert moved is not None
    b.probe(f"{what}: drop what was kept", b.door.madvise, m.address, 2 * PAGE, MADV_DONTNEED)
    b.probe(f"{what}: drop what wasn't moved", b.door.madvise, m.address + 2 * PAGE, PAGE, MADV_DONTNEED)
    b.probe(f"{what}: drop what was moved", b.door.madvise, moved.address, PAGE, MADV_DONTNEED)
    b.probe(f"{what}: grow what is locked", b.mremap, moved.address, 2 * PAGE, 5 * PAGE, TO)


@case("mlock", each_vm=False)
def ordinary(b: Bench) -> None:
    for (what, m), gap in zip(_ordinary(b).items(), _ordinary(b).values(), strict=True):
        b.door.munmap(gap.address + 2 * PAGE, PAGE)
        _locking(b, what, m, gap)


@case("mlock", "init-shared")
def shared_pages(b: Bench) -> None:
    gmem = b.shared_gmem(b.vm())
    m, gap, end = b.map(gmem), b.map(gmem), b.map(gmem, 6 * PAGE)
    _fill(m)
    b.door.munmap(gap.address + 2 * PAGE, PAGE)
    b.probe("lock beyond the file", b.door.mlock, end.address, 6 * PAGE)
    b.probe("drop after that", b.door.madvise, end.address + 5 * PAGE, PAGE, MADV_DONTNEED)
    b.probe("unlock it", b.door.munlock, end.address, 6 * PAGE)
    b.door.mlock(end.address, PAGE)
    b.probe("punch what's locked", gmem.punch_hole, 0, PAGE)
    _pages(b, "punched", end, 2)
    _locking(b, "guest_memfd", m, gap)


@case("mlock", "mmap")
def private_pages(b: Bench) -> None:
    gmem = b.gmem(b.vm(), 4 * PAGE, 1)
    m = b.map(gmem)
    b.probe("lock", b.door.mlock, m.address, 4 * PAGE)
    b.probe("drop", b.door.madvise, m.address, PAGE, MADV_DONTNEED)
    b.probe("unlock", b.door.munlock, m.address, 4 * PAGE)
    moved = b.probe("move", b.mremap, m.address, 4 * PAGE, 4 * PAGE, TO)
    assert moved is not None
    b.probe("load", b.door.load, moved.address, 1)
