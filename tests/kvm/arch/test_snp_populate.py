# SPDX-License-Identifier: GPL-2.0-or-later
"""What LAUNCH_UPDATE does with many pages and with different sources: how far it gets, and what it tells of that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gmemu.hw.memory import PAGE_SIZE
from gmemu.hw.snp.rmp_entry import RmpState
from gmemu.sync import DirectRuntime
from gmemu.uapi.mman import PROT_NONE
from gmemu.uapi.sev import PspCommand, PspStatus, SevCmd, SnpPageType, kvm_sev_snp_launch_update

from .snp_world import BASE, GFN, PROFILES, Stepwise, World, inject, noise

IN_PLACE = "inplace-v13"


def way(param: tuple[str, type[DirectRuntime]]) -> str:
    return f"{param[0]}-{param[1].__name__}"


@pytest.fixture(params=[(profile, runtime) for profile in PROFILES for runtime in (DirectRuntime, Stepwise)], ids=way)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """A launch that was started, with pages done in runs and one by one: nobody may see a difference."""
    profile, runtime = request.param
    world = World(profile, runtime=runtime)
    yield world.started()
    world.close()


def pages_in(world: World) -> list[int]:
    """Which pages of the memory the guest owns."""
    entries = world.platform.rmp.entries
    return sorted(entry.gfn(pfn) - GFN for s, e, entry in entries.runs() if entry.asid for pfn in range(s, e))


def update(world: World, pages: int, uaddr: int, **options: Any) -> tuple[int, int, int]:
    """A successful call: frames, bytes and source address that it has left."""
    rule, error, after = world.update(pages=pages, uaddr=uaddr, error=0xABCD, **options)
    assert (rule, error) == ("", 0xABCD)
    return after.gfn_start - GFN, after.len // PAGE_SIZE, after.uaddr - uaddr


def repeat(world: World, page: int, pages: int, uaddr: int, error: int = 0) -> None:
    """The rest of a call, which meets the error that stopped it."""
    rule, reported, after = world.update(page=page, pages=pages, uaddr=uaddr, error=0xABCD)
    assert (rule, reported) == ("snp.update.failed", error)
    assert (after.gfn_start - GFN, after.len // PAGE_SIZE, after.uaddr) == (page, pages, uaddr)


def test_all_at_once(world: World) -> None:
    world.convert(0, 8, private=True)
    source = world.source(8)
    assert update(world, 8, source.address) == (8, 0, 8 * PAGE_SIZE)
    assert pages_in(world) == list(range(8))
    assert all(world.state(page) is RmpState.GUEST_VALID for page in range(8))


def test_stops_at_the_end_of_the_slot(world: World) -> None:
    """S21.  The next slot is for the next call."""
    world.add_memory(1, BASE + 8 * PAGE_SIZE, 2)
    world.convert(0, 8, private=True)
    source = world.source(10)
    assert update(world, 10, source.address) == (8, 2, 8 * PAGE_SIZE)
    if world.profile.in_place:
        repeat(world, 8, 2, source.address + 8 * PAGE_SIZE)  # nobody made it private yet
    else:
        assert update(world, 2, source.address + 8 * PAGE_SIZE, page=8) == (10, 0, 2 * PAGE_SIZE)


def shared_page(world: World) -> None:
    world.convert(3, private=False)


def added_page(world: World) -> None:
    assert world.update(page=3, uaddr=world.source().address)[0] == ""


def no_page(world: World) -> None:
    """Not a byte more of memory than three pages."""
    world.host.memmap.nr_pages = world.host.memmap.nr_allocated + 4


def refused_by_the_processor(world: World) -> None:
    world.gmem.allocate(3 * PAGE_SIZE, PAGE_SIZE)
    world.platform.rmp.set_in_use(world.gmem_pfn(3), True)


def poisoned_page(world: World) -> None:
    world.gmem.allocate(0, 5 * PAGE_SIZE)
    world.host.memmap.poisoned.add(world.gmem_pfn(3))


@pytest.mark.parametrize(
    "obstacle", [shared_page, added_page, no_page, refused_by_the_processor, poisoned_page], ids=lambda f: f.__name__
)
def test_an_error_in_the_middle_waits_for_the_next_call(world: World, obstacle: Callable[[World], None]) -> None:
    """S20.  Three pages are in, the call succeeds, and only who looks at `len` knows."""
    world.convert(0, 5, private=True)
    source = world.source(5)
    memory = world.host.memmap.nr_pages
    obstacle(world)
    before = [page for page in pages_in(world) if page == 3]
    assert update(world, 5, source.address) == (3, 2, 3 * PAGE_SIZE)
    assert pages_in(world) == [0, 1, 2, *before]
    repeat(world, 3, 2, source.address + 3 * PAGE_SIZE)
    assert pages_in(world) == [0, 1, 2, *before]
    world.host.memmap.nr_pages = memory
    world.platform.rmp.in_use.clear()
    if obstacle is not poisoned_page:
        assert world.update(page=4, uaddr=world.source().address)[0] == ""
    world.gmem.punch_hole(3 * PAGE_SIZE, PAGE_SIZE)
    world.convert(3, private=True)
    assert world.update(page=3, uaddr=world.source().address)[0] == "", "what stopped it is gone"


def test_what_was_allocated_is_what_was_tried(world: World) -> None:
    """The page that isn't private has memory now, those after it haven't."""
    world.convert(0, 5, private=True)
    world.convert(2, 3, private=False)
    source = world.source(5)
    before = world.host.memmap.nr_allocated
    update(world, 5, source.address)
    assert world.host.memmap.nr_allocated == before + 3


def test_firmware_error_in_the_middle(world: World) -> None:
    """The status is told only with the error, on the next call."""
    world.convert(0, 5, private=True)
    source = world.source(5)
    inject(world, PspCommand.LAUNCH_UPDATE, PspStatus.RESOURCE_LIMIT, nth=4)
    assert update(world, 5, source.address) == (3, 2, 3 * PAGE_SIZE)
    inject(world, PspCommand.LAUNCH_UPDATE, PspStatus.RESOURCE_LIMIT)
    repeat(world, 3, 2, source.address + 3 * PAGE_SIZE, PspStatus.RESOURCE_LIMIT)
    assert pages_in(world) == [0, 1, 2]


def test_signal_before_the_first_page(world: World) -> None:
    """EINTR inside, EIO outside."""
    world.convert(0, 2, private=True)
    source = world.source(2)
    world.signal()
    repeat(world, 0, 2, source.address)
    world.signal(0)
    assert update(world, 2, source.address) == (2, 0, 2 * PAGE_SIZE)


@pytest.mark.parametrize("profile", PROFILES)
def test_signal_in_the_middle(profile: str) -> None:
    """Pages in flight are finished; the call tells how far it came, and can be repeated."""
    world = World(profile, runtime=Stepwise).started()
    world.convert(0, 5, private=True)
    source = world.source(5)

    def hook(command: int, pfn: int) -> None:
        if command == PspCommand.LAUNCH_UPDATE and len(pages_in(world)) == 3:
            world.signal()

    world.platform.psp.inject = hook
    assert update(world, 5, source.address) == (3, 2, 3 * PAGE_SIZE)
    repeat(world, 3, 2, source.address + 3 * PAGE_SIZE)
    world.signal(0)
    assert update(world, 2, source.address + 3 * PAGE_SIZE, page=3) == (5, 0, 2 * PAGE_SIZE)
    world.close()


def test_source_ends_in_the_middle(world: World) -> None:
    world.convert(0, 5, private=True)
    source = world.source(5)
    world.door.mprotect(source.address + 3 * PAGE_SIZE, 2 * PAGE_SIZE, PROT_NONE)
    assert update(world, 5, source.address) == (3, 2, 3 * PAGE_SIZE)
    repeat(world, 3, 2, source.address + 3 * PAGE_SIZE)
    assert pages_in(world) == [0, 1, 2]


def test_scattered_source(world: World) -> None:
    """Pages that follow each other in user space and nowhere else."""
    world.convert(0, 4, private=True)
    source, contents = world.kvm.anonymous(4 * PAGE_SIZE), noise(4)
    for page in (2, 0, 3, 1):
        source[page * PAGE_SIZE : (page + 1) * PAGE_SIZE] = contents[page * PAGE_SIZE : (page + 1) * PAGE_SIZE]
    assert update(world, 4, source.address) == (4, 0, 4 * PAGE_SIZE)
    measured = world.context.ld.value
    other = World(world.profile.name).started()
    other.load(0, contents)
    assert other.context.ld.value == measured
    other.close()


def test_unaligned_source(world: World) -> None:
    """Kernels before 7.2 copy across the page boundary; since then it's refused."""
    world.convert(0, 2, private=True)
    source, contents = world.source(3, seed=1), noise(3, seed=1)[100 : 100 + 2 * PAGE_SIZE]
    if world.profile.populate == "gup-first":
        assert world.update(pages=2, uaddr=source.address + 100)[0] == "snp.update.source-unaligned"
        return
    assert update(world, 2, source.address + 100) == (2, 0, 2 * PAGE_SIZE)
    measured = world.context.ld.value
    other = World(world.profile.name).started()
    other.load(0, contents)
    assert other.context.ld.value == measured
    other.close()


def test_unaligned_source_that_ends_too_early(world: World) -> None:
    if world.profile.populate == "gup-first":
        return
    world.convert(0, 2, private=True)
    source = world.source(3)
    world.door.mprotect(source.address + 2 * PAGE_SIZE, PAGE_SIZE, PROT_NONE)
    assert update(world, 2, source.address + 1) == (1, 1, PAGE_SIZE)


@pytest.mark.parametrize("uaddr", [0, 8, 0x7000])
def test_zero_pages_have_no_source(world: World, uaddr: int) -> None:
    """Whatever `uaddr` says, it's neither read nor moved on."""
    world.convert(0, 3, private=True)
    if world.profile.in_place:
        world.convert(0, 3, private=False)
        world.buffer[: 3 * PAGE_SIZE] = noise(3)
        world.convert(0, 3, private=True)
    assert update(world, 3, uaddr, type=SnpPageType.ZERO) == (3, 0, 0)
    pfn, key = world.gmem_pfn(0), world.key
    assert world.host.memory.read(pfn * PAGE_SIZE, 3 * PAGE_SIZE, key) == bytes(3 * PAGE_SIZE)


# In place


@pytest.fixture(params=[DirectRuntime, Stepwise])
def inplace(request: pytest.FixtureRequest) -> Iterator[World]:
    world = World(IN_PLACE, runtime=request.param)
    yield world.started()
    world.close()


def test_without_a_source_the_page_itself_is_loaded(inplace: World) -> None:
    contents = noise(3)
    inplace.buffer[: 3 * PAGE_SIZE] = contents
    inplace.convert(0, 3, private=True)
    assert update(inplace, 3, 0) == (3, 0, 0), "uaddr isn't moved on"
    measured = inplace.context.ld.value
    other = World("linux-7.3").started()
    other.load(0, contents)
    assert other.context.ld.value == measured
    other.close()


def test_a_page_that_was_never_touched_is_loaded_as_zeroes(inplace: World) -> None:
    """S12."""
    pfns = inplace.host.memmap.alloc(16)
    for pfn, count in pfns:
        inplace.host.memory.write(pfn * PAGE_SIZE, noise(count))  # what the host leaves behind
        inplace.host.memmap.put(pfn, count)
    inplace.convert(0, 2, private=True)
    assert update(inplace, 2, 0) == (2, 0, 0)
    seen = inplace.host.memory.read(inplace.gmem_pfn(0) * PAGE_SIZE, PAGE_SIZE, inplace.key)
    assert seen == bytes(PAGE_SIZE)


def test_the_source_may_be_a_shared_page_of_the_same_file(inplace: World) -> None:
    """What the lock order was changed for (S01): the source is pinned before the file's lock is taken."""
    contents = noise(2)
    inplace.buffer[4 * PAGE_SIZE : 6 * PAGE_SIZE] = contents
    inplace.convert(0, 2, private=True)
    assert update(inplace, 2, inplace.buffer.address + 4 * PAGE_SIZE) == (2, 0, 2 * PAGE_SIZE)
    assert inplace.buffer[4 * PAGE_SIZE : 6 * PAGE_SIZE] == contents
    key = inplace.key
    assert inplace.host.memory.read(inplace.gmem_pfn(0) * PAGE_SIZE, PAGE_SIZE, key) == contents[:PAGE_SIZE]


def test_the_source_may_not_be_a_private_page(inplace: World) -> None:
    """Not even the page itself by its own address: in place means no address."""
    inplace.buffer[: 2 * PAGE_SIZE] = noise(2)
    inplace.convert(0, 2, private=True)
    repeat(inplace, 0, 2, inplace.buffer.address)
    repeat(inplace, 0, 1, inplace.buffer.address + PAGE_SIZE)
    assert update(inplace, 2, 0) == (2, 0, 0)


def test_a_source_that_becomes_private_in_the_middle(inplace: World) -> None:
    """Shared and private alternate in the source; the target is elsewhere in the file."""
    inplace.buffer[4 * PAGE_SIZE :] = noise(4)
    inplace.convert(0, 4, private=True)
    inplace.convert(6, private=True)
    assert update(inplace, 4, inplace.buffer.address + 4 * PAGE_SIZE) == (2, 2, 2 * PAGE_SIZE)
    repeat(inplace, 2, 2, inplace.buffer.address + 6 * PAGE_SIZE)


def test_the_pin_on_the_source_is_gone_afterwards(inplace: World) -> None:
    """Else the source couldn't be converted next."""
    inplace.buffer[4 * PAGE_SIZE :] = noise(4)
    inplace.convert(0, 4, private=True)
    update(inplace, 4, inplace.buffer.address + 4 * PAGE_SIZE)
    inplace.convert(4, 4, private=True)
    assert update(inplace, 4, 0, page=4) == (8, 0, 0)


def test_a_source_at_address_zero_is_no_source(inplace: World) -> None:
    data = kvm_sev_snp_launch_update(gfn_start=GFN, len=PAGE_SIZE, type=SnpPageType.NORMAL)
    inplace.convert(0, private=True)
    assert inplace.command(SevCmd.SNP_LAUNCH_UPDATE, data).rule == ""
