# SPDX-License-Identifier: GPL-2.0-or-later
"""The API's objects do the same on the emulated Linux 6.18 and on a real one: mapping, contents, protection, advice."""

from __future__ import annotations

from errno import EACCES, EBADF, EEXIST, EFAULT, EINVAL, ENODEV, ENOMEM, EOPNOTSUPP, EOVERFLOW, EPERM

import pytest

from gmemu import GuestMemfd, Kvm, Mapping, Vm
from gmemu.uapi import mman
from gmemu.uapi.mman import MAP_FIXED, MAP_PRIVATE, MAP_SHARED, MAP_SHARED_VALIDATE, PROT_NONE, PROT_READ, PROT_WRITE

from .conftest import SIZE
from .refusals import bus_error, refused, segmentation_fault

PAGE = 0x1000
MMAP, INIT_SHARED, BOTH = 1, 2, 3


# mmap


def test_mmap_needs_the_flag(vm: Vm) -> None:
    for flags in (0, INIT_SHARED):
        with vm.create_guest_memfd(SIZE, flags) as gmem:
            for kind in (MAP_SHARED, MAP_PRIVATE):
                with refused(ENODEV, "gmem.mmap.flag"):
                    gmem.mmap(flags=kind)


@pytest.mark.parametrize(
    ("errno", "rule", "call"),
    [
        (EINVAL, "gmem.mmap.private", {"flags": MAP_PRIVATE}),
        (EINVAL, "mm.mmap.flags", {"flags": 0}),
        (EINVAL, "mm.mmap.flags", {"flags": 4}),
        (EINVAL, "mm.mmap.length", {"length": 0}),
        (ENOMEM, "mm.mmap.space", {"length": -1}),
        (ENOMEM, "mm.mmap.space", {"length": 1 << 47}),
        (EINVAL, "mm.mmap.offset", {"length": PAGE, "offset": 1}),
        (EOVERFLOW, "mm.mmap.file-limit", {"length": PAGE, "offset": (1 << 63) - PAGE}),
        (EOVERFLOW, "mm.mmap.file-limit", {"length": PAGE, "offset": -PAGE}),
        (EPERM, "mm.mmap.noexec", {"prot": mman.PROT_READ | mman.PROT_EXEC}),
        (EPERM, "mm.mmap.noexec", {"prot": mman.PROT_EXEC, "flags": MAP_PRIVATE}),
        (EINVAL, "mm.mmap.grows", {"flags": MAP_SHARED | mman.MAP_GROWSDOWN}),
        (EINVAL, "mm.mmap.hugetlb", {"flags": MAP_SHARED | mman.MAP_HUGETLB}),
        (EOPNOTSUPP, "mm.mmap.validate", {"flags": MAP_SHARED_VALIDATE | mman.MAP_SYNC}),
        (EOPNOTSUPP, "mm.mmap.validate", {"flags": MAP_SHARED_VALIDATE | 0x200, "prot": mman.PROT_EXEC}),
        (EINVAL, "mm.mmap.address", {"flags": MAP_SHARED | MAP_FIXED, "address": 1}),
        (ENOMEM, "mm.mmap.space", {"flags": MAP_SHARED | MAP_FIXED, "address": (1 << 47) - PAGE + 1}),
        (ENOMEM, "mm.mmap.space", {"flags": MAP_SHARED | MAP_FIXED, "address": -PAGE}),
    ],
)
def test_mmap_refused(gmem: GuestMemfd, errno: int, rule: str, call: dict[str, int]) -> None:
    with refused(errno, rule):
        gmem.mmap(**call)


def test_mmap_of_what_is_no_guest_memfd(kvm: Kvm, vm: Vm) -> None:
    for fd in (kvm.fd, vm.fd):
        with refused(ENODEV, "mm.mmap.unsupported"):
            kvm.door.mmap(0, PAGE, PROT_READ, MAP_SHARED, fd)
    with refused(EBADF, "fs.fd"):
        kvm.door.mmap(0, PAGE, PROT_READ, MAP_SHARED, 1 << 30)
    with refused(EINVAL, "mm.mmap.flags"):
        kvm.door.mmap(0, PAGE, PROT_READ, MAP_SHARED_VALIDATE | mman.MAP_ANONYMOUS)


def test_mmap_does_not_ask_how_long_the_file_is(gmem: GuestMemfd) -> None:
    for length, offset in ((4 * SIZE, 0), (PAGE, SIZE), (PAGE, 1 << 40)):
        gmem.mmap(length, offset).close()


def test_fixed_mappings(kvm: Kvm, gmem: GuestMemfd) -> None:
    with kvm.anonymous(4 * PAGE) as area:
        area[0:4] = b"here"
        with refused(EEXIST, "mm.mmap.taken"):
            gmem.mmap(PAGE, address=area.address, flags=MAP_SHARED | mman.MAP_FIXED_NOREPLACE)
        gmem.mmap(PAGE, address=area.address + PAGE, flags=MAP_SHARED | MAP_FIXED)
        area[PAGE] = 7
        with gmem.mmap() as elsewhere:
            assert elsewhere[0] == 7
        assert area[0:4] == b"here"


def test_a_file_that_refuses_a_fixed_mapping_leaves_a_gap(kvm: Kvm, vm: Vm) -> None:
    """By the time that f_op->mmap() is asked, what was mapped there is gone; what is refused before leaves it alone."""
    with kvm.anonymous(3 * PAGE) as area, vm.create_guest_memfd(SIZE) as unmappable:
        area[:] = b"x" * 3 * PAGE
        middle = area.address + PAGE
        with refused(EPERM, "mm.mmap.noexec"):
            unmappable.mmap(PAGE, address=middle, flags=MAP_SHARED | MAP_FIXED, prot=mman.PROT_EXEC)
        assert area[PAGE] == ord("x")
        with refused(ENODEV, "gmem.mmap.flag"):
            unmappable.mmap(PAGE, address=middle, flags=MAP_SHARED | MAP_FIXED)
        with segmentation_fault(middle, "mm.fault.unmapped"):
            area[:]
        assert area[0] == area[2 * PAGE] == ord("x")


# Contents and faults


def test_memory_starts_as_zeroes_and_is_shared_by_mappings(gmem: GuestMemfd, mapping: Mapping) -> None:
    assert mapping[:] == bytes(SIZE)
    data = bytes(i % 251 for i in range(SIZE))
    mapping[:] = data
    with gmem.mmap(2 * PAGE, PAGE) as other:
        assert other[:] == data[PAGE : 3 * PAGE]
        other[PAGE - 2 : PAGE + 2] = b"span"
    assert mapping[2 * PAGE - 2 : 2 * PAGE + 2] == b"span"


def test_contents_stay_without_a_mapping(gmem: GuestMemfd) -> None:
    with gmem.mmap() as first:
        first[5:9] = b"stay"
    with gmem.mmap() as second:
        assert second[5:9] == b"stay"


def test_beyond_the_end_of_the_file(gmem: GuestMemfd) -> None:
    with gmem.mmap(2 * SIZE) as long, gmem.mmap(PAGE, 1 << 40) as far:
        end = long.address + SIZE
        for first in (end, end + 1, end + SIZE - 1):
            with bus_error(first, "gmem.fault.eof"):
                gmem.door.load(first, 1)
            with bus_error(first, "gmem.fault.eof"):
                gmem.door.store(first, b"!")
        with bus_error(end, "gmem.fault.eof"):
            long[SIZE - 2 : SIZE + 2]
        with bus_error(end, "gmem.fault.eof"):
            long[SIZE - 2 : SIZE + 2] = b"abcd"
        assert long[SIZE - 2 : SIZE] == b"ab"
        with bus_error(far.address, "gmem.fault.eof"):
            far[0]


def test_private_memory(vm: Vm) -> None:
    with vm.create_guest_memfd(SIZE, MMAP) as gmem, gmem.mmap(2 * SIZE) as mapping:
        gmem.allocate(0, PAGE)
        for at in (0, PAGE + 7, SIZE - 1):
            with bus_error(mapping.address + at, "gmem.fault.private"):
                mapping[at]
            with bus_error(mapping.address + at, "gmem.fault.private"):
                mapping[at] = 1
        with bus_error(mapping.address + SIZE, "gmem.fault.eof"):
            mapping[SIZE]


def test_a_bad_pointer_to_a_call(vm: Vm, mapping: Mapping) -> None:
    mapping.protect(PROT_READ)
    for address in (0, 1 << 47, 1 << 63, -1):
        with refused(EFAULT, "mm.uaccess"):
            vm.ioctl(0xC040AED4, address)
    with refused(EFAULT, "mm.uaccess"):
        vm.ioctl(0xC040AED4, bytearray(63))


# munmap and mprotect


def test_munmap(gmem: GuestMemfd) -> None:
    with gmem.mmap() as mapping:
        mapping[:] = b"m" * SIZE
        gmem.door.munmap(mapping.address + PAGE, PAGE)
        gmem.door.munmap(mapping.address + PAGE, PAGE)
        with segmentation_fault(mapping.address + PAGE, "mm.fault.unmapped"):
            mapping[:]
        assert mapping[2 * PAGE] == ord("m")
        for address, length in ((1, PAGE), (mapping.address, 0), (-PAGE, PAGE), (1 << 47, PAGE)):
            with refused(EINVAL, "mm.munmap.range"):
                gmem.door.munmap(address, length)


def test_mprotect(gmem: GuestMemfd, mapping: Mapping) -> None:
    mapping[:] = b"p" * SIZE
    door, at = gmem.door, mapping.address + PAGE
    door.mprotect(at, PAGE, PROT_READ)
    with segmentation_fault(at, "mm.fault.protection"):
        mapping[PAGE - 1 : PAGE + 1] = b"ab"
    assert mapping[PAGE - 1 : PAGE + 1] == b"ap"
    door.mprotect(at, 1, PROT_NONE)
    with segmentation_fault(at + 3, "mm.fault.protection"):
        mapping[PAGE + 3]
    door.mprotect(at, PAGE, PROT_WRITE)
    assert mapping[PAGE] == ord("p")  # x86 can't make memory that is written and not read
    door.mprotect(at, 0, PROT_NONE)
    mapping[PAGE] = 1


def test_protected_anonymous_memory_keeps_its_contents(kvm: Kvm) -> None:
    with kvm.anonymous(2 * PAGE) as memory:
        memory[:] = b"k" * 2 * PAGE
        memory.protect(PROT_NONE)
        with segmentation_fault(memory.address, "mm.fault.protection"):
            memory[0]
        memory.protect(PROT_READ | PROT_WRITE)
        assert memory[:] == b"k" * 2 * PAGE


def test_mprotect_refused(gmem: GuestMemfd, mapping: Mapping) -> None:
    door, at = gmem.door, mapping.address
    grows = mman.PROT_GROWSDOWN | mman.PROT_GROWSUP
    for errno, rule, address, length, prot in (
        (EINVAL, "mm.mprotect.range", at + 1, PAGE, PROT_READ),
        (EINVAL, "mm.mprotect.prot", at, PAGE, 0x10),
        (EINVAL, "mm.mprotect.grows", at, PAGE, PROT_READ | mman.PROT_GROWSDOWN),
        (EINVAL, "mm.mprotect.grows", at, 0, PROT_READ | grows),
        (ENOMEM, "mm.mprotect.wrap", at, -PAGE, 0x10),
        (ENOMEM, "mm.mprotect.unmapped", 1 << 47, PAGE, PROT_READ),
        (EACCES, "mm.mprotect.access", at, PAGE, PROT_READ | mman.PROT_EXEC),
    ):
        with refused(errno, rule):
            door.mprotect(address, length, prot)


def test_mprotect_stops_at_a_gap(kvm: Kvm) -> None:
    with kvm.anonymous(3 * PAGE) as memory:
        kvm.door.munmap(memory.address + PAGE, PAGE)
        with refused(ENOMEM, "mm.mprotect.unmapped"):
            memory.protect(PROT_READ)
        with segmentation_fault(memory.address, "mm.fault.protection"):
            memory[0] = 1
        memory[2 * PAGE] = 1


# madvise


def test_advice_that_changes_nothing(mapping: Mapping) -> None:
    mapping[0:4] = b"same"
    for advice in (0, 1, 2, 3, mman.MADV_DONTNEED, 10, 11, mman.MADV_HUGEPAGE, 15, 16, 17, 19, 20, 21, 22, 23, 24):
        mapping.madvise(advice)
        assert mapping[0:4] == b"same", advice


def test_advice_refused(gmem: GuestMemfd, mapping: Mapping) -> None:
    madvise, at = gmem.door.madvise, mapping.address
    for errno, rule, address, length, advice in (
        (EINVAL, "mm.madvise.advice", at, SIZE, 5),
        (EINVAL, "mm.madvise.advice", at, 0, -1),
        (EINVAL, "mm.madvise.range", at + 1, PAGE, mman.MADV_DONTNEED),
        (EINVAL, "mm.madvise.range", at, -1, mman.MADV_DONTNEED),
        (EINVAL, "mm.madvise.range", at, -PAGE, mman.MADV_DONTNEED),
        (EINVAL, "mm.madvise.collapse", at, SIZE, mman.MADV_COLLAPSE),
        (EINVAL, "mm.madvise.anonymous", at, SIZE, mman.MADV_FREE),
        (EINVAL, "mm.madvise.anonymous", at, SIZE, mman.MADV_WIPEONFORK),
        (ENOMEM, "mm.madvise.unmapped", 1 << 47, PAGE, mman.MADV_DONTNEED),
    ):
        with refused(errno, rule):
            madvise(address, length, advice)
    madvise(at, 0, mman.MADV_COLLAPSE)


def test_remove_punches_a_hole(kvm: Kvm, mapping: Mapping) -> None:
    mapping[:] = b"r" * SIZE
    mapping.madvise(mman.MADV_REMOVE, PAGE, 2 * PAGE)
    assert mapping[:] == b"r" * PAGE + bytes(2 * PAGE) + b"r" * PAGE
    with kvm.anonymous(PAGE) as memory, refused(EINVAL, "mm.madvise.file"):
        memory.madvise(mman.MADV_REMOVE)


def test_advice_goes_on_behind_a_gap(gmem: GuestMemfd) -> None:
    with gmem.mmap() as mapping:
        mapping[:] = b"g" * SIZE
        gmem.door.munmap(mapping.address + PAGE, PAGE)
        with refused(ENOMEM, "mm.madvise.unmapped"):
            mapping.madvise(mman.MADV_REMOVE)
        assert (mapping[0], mapping[2 * PAGE], mapping[3 * PAGE]) == (0, 0, 0)


def test_populate(kvm: Kvm, vm: Vm, gmem: GuestMemfd) -> None:
    read, write = mman.MADV_POPULATE_READ, mman.MADV_POPULATE_WRITE
    with gmem.mmap(SIZE + PAGE, prot=PROT_READ) as mapping:
        mapping.madvise(read, 0, SIZE)
        with refused(EFAULT, "mm.madvise.fault"):
            mapping.madvise(read)
        with refused(EINVAL, "mm.madvise.populate"):
            mapping.madvise(write)
    with vm.create_guest_memfd(SIZE, MMAP) as private, private.mmap() as mapping:
        for advice in (read, write):
            with refused(EFAULT, "mm.madvise.fault"):
                mapping.madvise(advice)
    with kvm.anonymous(PAGE) as gone:
        gone.madvise(write)
        kvm.door.munmap(gone.address, PAGE)
        with refused(ENOMEM, "mm.madvise.unmapped"):
            gone.madvise(read)


# Memory of several slots


def test_slots_over_the_same_user_memory(kvm: Kvm, vm: Vm) -> None:
    with kvm.anonymous(8 * PAGE) as memory:
        for slot, first, pages in ((0, 0, 8), (1, 2, 2), (2, 3, 4), (3, 0, 8)):
            vm.set_user_memory_region(slot, slot << 32, pages * PAGE, memory.address + first * PAGE)
        for slot in (0, 2, 1, 3):
            vm.delete_slot(slot)
        memory[0] = 1
