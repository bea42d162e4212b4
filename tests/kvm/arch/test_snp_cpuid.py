# SPDX-License-Identifier: GPL-2.0-or-later
"""A CPUID page that the firmware won't have: where the corrected table goes, and how the VMM gets it."""

from __future__ import annotations

import pytest

from gmemu import Mapping
from gmemu.hw.memory import PAGE_SIZE
from gmemu.hw.snp.rmp_entry import RmpState
from gmemu.uapi.mman import PROT_READ
from gmemu.uapi.sev import PspStatus, SnpPageType, snp_cpuid_entry, snp_cpuid_table

from .snp_world import World

CPUID = SnpPageType.CPUID


def table(*entries: snp_cpuid_entry, count: int | None = None, reserved: int = 0) -> bytes:
    """A CPUID page."""
    head = snp_cpuid_table(count=len(entries) if count is None else count, reserved1=reserved)
    return (head.pack() + b"".join(entry.pack() for entry in entries)).ljust(PAGE_SIZE, b"\0")


GOOD = table(snp_cpuid_entry(eax_in=0x80000002, eax=0x12345678))
TOO_MUCH = table(snp_cpuid_entry(eax_in=7, ebx=0xFFFFFFFF), snp_cpuid_entry(eax_in=0x40000000, eax=7))
BAD_COUNT = table(snp_cpuid_entry(eax_in=7, ebx=0xFFFFFFFF), count=65)
BAD_HEAD = table(snp_cpuid_entry(eax_in=7, ebx=0xFFFFFFFF), reserved=1)


def entries(page: bytes) -> list[snp_cpuid_entry]:
    """What a CPUID page says."""
    count = snp_cpuid_table.unpack_from(page).count
    return [snp_cpuid_entry.unpack_from(page, snp_cpuid_table.SIZE + i * snp_cpuid_entry.SIZE) for i in range(count)]


def source(world: World, page: bytes) -> Mapping:
    mapping = world.kvm.anonymous(len(page))
    mapping[:] = page
    return mapping


def test_accepted(world: World) -> None:
    world.started()
    world.convert(0, private=True)
    pages = source(world, GOOD)
    assert world.update(type=CPUID, uaddr=pages.address, error=7)[:2] == ("", 7)
    assert pages[:] == GOOD
    seen = world.host.memory.read(world.gmem_pfn(0) * PAGE_SIZE, PAGE_SIZE, world.key)
    assert seen == GOOD


def test_rejected_and_corrected(world: World) -> None:
    """The user buffer holds what the firmware would take; that is then taken."""
    world.started()
    world.convert(0, private=True)
    pages, digest = source(world, TOO_MUCH), world.context.ld.value
    rule, error, after = world.update(type=CPUID, uaddr=pages.address)
    assert (rule, error) == ("snp.update.failed", PspStatus.INVALID_PARAM)
    assert (after.uaddr, after.len) == (pages.address, PAGE_SIZE)
    assert world.state(0) is RmpState.HYPERVISOR
    assert world.context.ld.value == digest
    corrected, free = entries(pages[:])
    assert 0 < corrected.ebx < 0xFFFFFFFF
    assert free.eax == 7, "not an architectural leaf"
    assert world.update(type=CPUID, uaddr=pages.address)[:2] == ("", 0)
    assert world.context.ld.value != digest


@pytest.mark.parametrize("page", [BAD_COUNT, BAD_HEAD], ids=["count", "reserved"])
def test_bad_head(world: World, page: bytes) -> None:
    """Refused, and nothing corrected."""
    world.started()
    world.convert(0, private=True)
    pages = source(world, page)
    assert world.update(type=CPUID, uaddr=pages.address)[:2] == ("snp.update.failed", PspStatus.INVALID_PARAM)
    assert pages[:] == page


def test_each_of_several_pages_may_be_refused(world: World) -> None:
    """What came before is in, what comes after is untouched, and the error is met again."""
    world.started()
    world.convert(0, 4, private=True)
    pages = source(world, GOOD + GOOD + TOO_MUCH + GOOD)
    rule, _, after = world.update(pages=4, type=CPUID, uaddr=pages.address)
    assert (rule, after.len, after.uaddr) == ("", 2 * PAGE_SIZE, pages.address + 2 * PAGE_SIZE)
    assert [world.state(page) for page in (0, 1)] == [RmpState.GUEST_VALID] * 2
    assert world.platform.rmp.assigned_to(1) == 2
    assert pages[2 * PAGE_SIZE : 3 * PAGE_SIZE] != TOO_MUCH, "it was corrected already"
    assert world.update(page=2, pages=2, type=CPUID, uaddr=after.uaddr)[:2] == ("", 0)
    assert world.platform.rmp.assigned_to(1) == 4


def test_a_read_only_source_is_not_enough(world: World) -> None:
    """S13.  Since 7.2 it's pinned for writing; before, KVM found out when it wrote back, and said nothing."""
    world.started()
    world.convert(0, private=True)
    for page, status in ((TOO_MUCH, PspStatus.INVALID_PARAM), (GOOD, PspStatus.SUCCESS)):
        pages = source(world, page)
        pages.protect(PROT_READ)
        rule, error, _ = world.update(type=CPUID, uaddr=pages.address)
        if world.profile.populate == "gup-first":
            assert (rule, error) == ("snp.update.failed", 0)
        else:
            assert (rule, error) == ("snp.update.failed" if status else "", status)
        assert pages[:] == page


def test_the_zero_page_is_not_written_back_to(world: World) -> None:
    """Memory that was never touched gets a page of its own before the firmware's correction could reach it."""
    world.started()
    world.convert(0, private=True)
    pages, other = world.kvm.anonymous(PAGE_SIZE), world.kvm.anonymous(PAGE_SIZE)
    assert world.update(type=CPUID, uaddr=pages.address)[:2] == ("", 0), "an empty table is in order"
    assert other[:] == bytes(PAGE_SIZE)


def test_source_in_a_file_is_corrected_for_every_mapping(world: World) -> None:
    world.started()
    world.convert(0, private=True)
    pages = world.kvm.anonymous(PAGE_SIZE, shared=True)
    pages[:] = TOO_MUCH
    child = world.door.fork()  # type: ignore[attr-defined]
    assert world.update(type=CPUID, uaddr=pages.address)[1] == PspStatus.INVALID_PARAM
    assert child.load(pages.address, PAGE_SIZE) == pages[:] != TOO_MUCH
    child.exit()


def test_in_place_the_table_is_read_after_conversion(inplace: World) -> None:
    """The seven steps: write, convert, load, convert back, read, convert, load."""
    inplace.started()
    inplace.buffer[:PAGE_SIZE] = TOO_MUCH
    inplace.convert(0, private=True)
    assert inplace.update(type=CPUID)[:2] == ("snp.update.failed", PspStatus.INVALID_PARAM)
    inplace.convert(0, private=False)
    corrected = inplace.buffer[:PAGE_SIZE]
    assert entries(corrected)[0].ebx != 0xFFFFFFFF
    inplace.convert(0, private=True)
    assert inplace.update(type=CPUID)[:2] == ("", 0)
    seen = inplace.host.memory.read(inplace.gmem_pfn(0) * PAGE_SIZE, PAGE_SIZE, inplace.key)
    assert seen == corrected


def test_in_place_without_reading_the_next_try_succeeds(inplace: World) -> None:
    """The firmware left the table corrected and in plain, so loading it again loads what it wanted."""
    inplace.started()
    inplace.buffer[:PAGE_SIZE] = TOO_MUCH
    inplace.convert(0, private=True)
    assert inplace.update(type=CPUID)[1] == PspStatus.INVALID_PARAM
    assert inplace.update(type=CPUID)[:2] == ("", 0)


def test_in_place_with_a_source_of_the_same_file(inplace: World) -> None:
    inplace.started()
    inplace.buffer[PAGE_SIZE : 2 * PAGE_SIZE] = TOO_MUCH
    inplace.convert(0, private=True)
    assert inplace.update(type=CPUID, uaddr=inplace.buffer.address + PAGE_SIZE)[1] == PspStatus.INVALID_PARAM
    assert entries(inplace.buffer[PAGE_SIZE : 2 * PAGE_SIZE])[0].ebx != 0xFFFFFFFF
