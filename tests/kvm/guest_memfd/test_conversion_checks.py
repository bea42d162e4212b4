# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_SET_MEMORY_ATTRIBUTES2: what is refused, in which order, and what is written back."""

from __future__ import annotations

from collections.abc import Callable
from errno import EAGAIN, EFAULT, EINVAL, ENOMEM, ENOTTY
from itertools import combinations

import pytest

from gmemu import GuestMemfd
from gmemu.uapi.kvm import KVM_SET_MEMORY_ATTRIBUTES, KVM_SET_MEMORY_ATTRIBUTES2, kvm_memory_attributes2
from gmemu.uapi.mman import PROT_NONE, PROT_READ

from ..world import BOTH, DEFAULT, PAGE, PRIVATE, SW_PROTECTED, World, errno_of, every_profile, refusal, two_pools

Attributes2 = kvm_memory_attributes2
UNTOUCHED = 0x1234567890ABCDEF


def set_attributes2(gmem: GuestMemfd, attrs: Attributes2) -> tuple[str, Attributes2]:
    """The rule that the call broke, if any, and the structure afterwards."""
    buffer = bytearray(attrs.pack())
    rule = refusal(lambda: gmem.ioctl(KVM_SET_MEMORY_ATTRIBUTES2, buffer))
    return rule, Attributes2.unpack_from(buffer)


def _flags(attrs: Attributes2) -> None:
    attrs.flags = 1 << 63


def _reserved(attrs: Attributes2) -> None:
    attrs.reserved = (0,) * 10 + (1,)


def _unknown(attrs: Attributes2) -> None:
    attrs.attributes |= 1 << 62


def _range(attrs: Attributes2) -> None:
    attrs.size |= (1 << 64) - PAGE
    attrs.offset |= PAGE


def _unaligned(attrs: Attributes2) -> None:
    attrs.offset |= 1


def _eof(attrs: Attributes2) -> None:
    attrs.size |= 64 * PAGE


CHECKS: dict[str, Callable[[Attributes2], None]] = {
    "gmem.attributes.flags": _flags,
    "gmem.attributes.reserved": _reserved,
    "gmem.attributes.vm-type": lambda attrs: None,
    "gmem.attributes.unknown": _unknown,
    "gmem.attributes.range": _range,
    "gmem.attributes.unaligned": _unaligned,
    "gmem.attributes.eof": _eof,
}


@pytest.mark.parametrize(("first", "second"), [(rule, rule) for rule in CHECKS] + list(combinations(CHECKS, 2)))
def test_checks_in_order_and_nothing_is_written_back(world: World, first: str, second: str) -> None:
    plain = "gmem.attributes.vm-type" in (first, second)
    gmem = world.vm(DEFAULT if plain else SW_PROTECTED).create_guest_memfd(4 * PAGE, BOTH)
    attrs = Attributes2(offset=PAGE, size=PAGE, attributes=PRIVATE, error_offset=UNTOUCHED)
    for rule in dict.fromkeys((second, first)):
        CHECKS[rule](attrs)
    rule, after = set_attributes2(gmem, attrs)
    assert rule == first
    assert after == attrs
    assert errno_of(lambda: gmem.ioctl(KVM_SET_MEMORY_ATTRIBUTES2, bytearray(attrs.pack()))) == EINVAL


@two_pools
def test_where_conversion_is_off(world: World) -> None:
    """ENOTTY, whatever the structure holds or wherever it is."""
    gmem = world.gmem(world.vm(), 1, 0)
    assert set_attributes2(gmem, Attributes2(size=1, flags=9))[0] == "gmem.attributes.disabled"
    assert errno_of(lambda: gmem.ioctl(KVM_SET_MEMORY_ATTRIBUTES2, 0x1000)) == ENOTTY


@every_profile
def test_unknown_ioctls_come_first(world: World) -> None:
    gmem = world.gmem(world.vm(), 1, 0)
    for request in (KVM_SET_MEMORY_ATTRIBUTES, 0x5401, 0xC080AFD2):
        assert refusal(lambda request=request: gmem.ioctl(request, 0x1000)) == "gmem.ioctl.unknown"  # type: ignore[misc]
        assert errno_of(lambda request=request: gmem.ioctl(request)) == ENOTTY  # type: ignore[misc]


def test_a_structure_that_isnt_there_comes_before_what_it_holds(world: World) -> None:
    gmem = world.gmem(world.vm(DEFAULT), 1, BOTH)
    assert errno_of(lambda: gmem.ioctl(KVM_SET_MEMORY_ATTRIBUTES2, 0x1000)) == EFAULT


@pytest.mark.parametrize("word", range(11))
def test_every_reserved_word_counts(world: World, word: int) -> None:
    gmem = world.gmem(world.vm(), 1)
    reserved = tuple(int(i == word) for i in range(11))
    assert set_attributes2(gmem, Attributes2(size=PAGE, reserved=reserved))[0] == "gmem.attributes.reserved"


@pytest.mark.parametrize("attributes", [1, 2, 4, 16, 9, 1 << 63])
def test_attributes_that_dont_exist(world: World, attributes: int) -> None:
    gmem = world.gmem(world.vm(), 1)
    assert set_attributes2(gmem, Attributes2(size=PAGE, attributes=attributes))[0] == "gmem.attributes.unknown"


@pytest.mark.parametrize(
    ("offset", "size", "rule"),
    [
        (0, 0, "range"),
        (PAGE, 0, "range"),
        ((1 << 64) - PAGE, PAGE, "range"),
        ((1 << 64) - PAGE, 2 * PAGE, "range"),
        (1, (1 << 64) - 1, "range"),
        (1, PAGE, "unaligned"),
        (0, 1, "unaligned"),
        (0, PAGE + 8, "unaligned"),
        (4 * PAGE, PAGE, "eof"),
        (3 * PAGE, 2 * PAGE, "eof"),
        (0, 5 * PAGE, "eof"),
        (1 << 62, PAGE, "eof"),
        (0, 4 * PAGE, ""),
        (3 * PAGE, PAGE, ""),
    ],
)
@pytest.mark.parametrize("attributes", [0, PRIVATE])
def test_ranges(world: World, offset: int, size: int, rule: str, attributes: int) -> None:
    gmem = world.gmem(world.vm(), 4)
    attrs = Attributes2(offset=offset, size=size, attributes=attributes, error_offset=UNTOUCHED)
    found, after = set_attributes2(gmem, attrs)
    assert found == (rule and f"gmem.attributes.{rule}")
    assert after.error_offset == UNTOUCHED


class TestErrorOffset:
    def test_isnt_looked_at(self, world: World) -> None:
        gmem = world.gmem(world.vm(), 1)
        attrs = Attributes2(size=PAGE, attributes=PRIVATE, error_offset=UNTOUCHED)
        assert set_attributes2(gmem, attrs) == ("", attrs)

    @pytest.mark.parametrize(("start", "pinned", "told"), [(0, 2, 2), (2, 2, 2), (1, 3, 3)])
    def test_is_the_page_from_the_start_of_the_file(self, world: World, start: int, pinned: int, told: int) -> None:
        gmem = world.gmem(world.vm(), 4)
        gmem.allocate(0, 4 * PAGE)
        world.drain()
        world.host.memmap.get(world.pfn(gmem, pinned))
        attrs = Attributes2(offset=start * PAGE, size=(4 - start) * PAGE, attributes=PRIVATE, error_offset=UNTOUCHED)
        rule, after = set_attributes2(gmem, attrs)
        assert rule == "gmem.attributes.busy"
        attrs.error_offset = told * PAGE
        assert after == attrs
        world.host.memmap.put(world.pfn(gmem, pinned))

    def test_is_the_first_of_several(self, world: World) -> None:
        gmem = world.gmem(world.vm(), 8)
        gmem.allocate(0, 8 * PAGE)
        world.drain()
        for page in (6, 3, 5):
            world.host.memmap.pin(world.pfn(gmem, page))
        whole = Attributes2(size=8 * PAGE, attributes=PRIVATE)
        seen = []
        for page in (3, 5, 6):
            rule, after = set_attributes2(gmem, whole)
            seen.append((rule, after.error_offset))
            world.host.memmap.unpin(world.pfn(gmem, page))
        assert seen == [("gmem.attributes.busy", page * PAGE) for page in (3, 5, 6)]
        assert set_attributes2(gmem, whole) == ("", whole)

    def test_is_the_range_when_memory_is_short(self, world: World) -> None:
        gmem = world.gmem(world.vm(), 4)
        world.host.failing_allocations["gmem-attributes"] = 2
        attrs = Attributes2(offset=2 * PAGE, size=PAGE, attributes=PRIVATE, error_offset=UNTOUCHED)
        assert errno_of(lambda: gmem.ioctl(KVM_SET_MEMORY_ATTRIBUTES2, bytearray(attrs.pack()))) == ENOMEM
        rule, after = set_attributes2(gmem, attrs)
        assert (rule, after.error_offset) == ("mm.page.oom", 2 * PAGE)
        gmem.make_private(0, 4 * PAGE)
        world.host.failing_allocations["gmem-attributes"] = 1
        attrs.attributes = 0
        rule, after = set_attributes2(gmem, attrs)
        assert (rule, after.error_offset) == ("mm.page.oom", 2 * PAGE)
        assert world.inode(gmem).private_run(0, 4) == 4

    def test_nothing_is_allocated_where_nothing_changes(self, world: World) -> None:
        gmem = world.gmem(world.vm(), 4)
        world.host.failing_allocations["gmem-attributes"] = 1
        assert set_attributes2(gmem, Attributes2(size=4 * PAGE))[0] == ""


class TestReadOnlyStructure:
    """S40: what can't be written back turns the result into EFAULT; on success nothing is written."""

    def arrange(self, world: World, pinned: bool) -> tuple[GuestMemfd, int]:
        vm = world.vm()
        gmem = world.gmem(vm, 2)
        gmem.mmap()[:] = b"x" * 2 * PAGE
        world.drain()
        if pinned:
            world.host.memmap.pin(world.pfn(gmem, 0))
        memory = world.kvm.anonymous(PAGE)
        memory[: Attributes2.SIZE] = Attributes2(size=2 * PAGE, attributes=PRIVATE).pack()
        memory.protect(PROT_READ)
        return gmem, memory.address

    def test_a_conversion_that_works_doesnt_mind(self, world: World) -> None:
        gmem, address = self.arrange(world, pinned=False)
        assert gmem.ioctl(KVM_SET_MEMORY_ATTRIBUTES2, address) == 0
        assert world.inode(gmem).private_run(0, 2) == 2

    def test_eagain_becomes_efault(self, world: World) -> None:
        gmem, address = self.arrange(world, pinned=True)
        assert refusal(lambda: gmem.ioctl(KVM_SET_MEMORY_ATTRIBUTES2, address)) == "mm.uaccess"
        assert world.inode(gmem).shared_run(0, 2) == 2
        assert not world.inode(gmem).mapping.is_mapped(0, 2)  # the host's entries are gone all the same
        world.host.memmap.unpin(world.pfn(gmem, 0))

    def test_a_refused_argument_isnt_written_back_either(self, world: World) -> None:
        gmem, _ = self.arrange(world, pinned=False)
        memory = world.kvm.anonymous(PAGE)
        memory[: Attributes2.SIZE] = Attributes2(size=1).pack()
        memory.protect(PROT_READ)
        assert refusal(lambda: gmem.ioctl(KVM_SET_MEMORY_ATTRIBUTES2, memory.address)) == "gmem.attributes.unaligned"
        memory.protect(PROT_NONE)
        assert errno_of(lambda: gmem.ioctl(KVM_SET_MEMORY_ATTRIBUTES2, memory.address)) == EFAULT

    def test_a_structure_across_two_pages(self, world: World) -> None:
        """The first half can be written and was; the second can't: EFAULT."""
        gmem, _ = self.arrange(world, pinned=True)
        memory = world.kvm.anonymous(2 * PAGE)
        at = PAGE - 40
        memory[at : at + Attributes2.SIZE] = Attributes2(offset=0, size=PAGE, attributes=PRIVATE).pack()
        world.door.mprotect(memory.address + PAGE, PAGE, PROT_READ)
        assert errno_of(lambda: gmem.ioctl(KVM_SET_MEMORY_ATTRIBUTES2, memory.address + at)) == EFAULT
        world.door.mprotect(memory.address + PAGE, PAGE, 3)
        assert errno_of(lambda: gmem.ioctl(KVM_SET_MEMORY_ATTRIBUTES2, memory.address + at)) == EAGAIN
        world.host.memmap.unpin(world.pfn(gmem, 0))
