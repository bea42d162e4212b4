# SPDX-License-Identifier: GPL-2.0-or-later
"""Conversion with pages in use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from errno import EINVAL

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmemu.api.guest_memfd import ConversionRefused
from gmemu.rules import gmem as rules
from gmemu.vmm import Backoff, Block, ConversionTimeout, NoMemoryThere, Vmm
from gmemu.vmm.memory import convert

from .world import PAGE, World


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


def test_a_page_that_is_let_go_meanwhile(world: World) -> None:
    world.at_wait = world.pin(2)
    world.vmm.convert(0, 5 * PAGE, private=True)
    assert world.private_pages() == [0, 1, 2, 3, 4]
    assert world.waits == [0.001]


def test_a_page_that_is_never_let_go(world: World) -> None:
    let_go = world.pin(2)
    with pytest.raises(ConversionTimeout, match="0x2000 couldn't be converted in 4 attempts") as caught:
        world.vmm.convert(0, 5 * PAGE, private=True)
    assert caught.value.gpa == 2 * PAGE
    assert isinstance(caught.value.last, ConversionRefused)
    assert world.private_pages() == [0, 1], "what comes before the page was done, nothing after it"
    assert world.waits == [0.001, 0.002, 0.004]
    let_go()
    world.vmm.convert(0, 5 * PAGE, private=True)
    assert world.private_pages() == [0, 1, 2, 3, 4]


def test_own_pins_are_dropped_first(world: World) -> None:
    class Device:
        def __init__(self) -> None:
            self.pins: dict[int, Callable[[], None]] = {}

        def let_go(self, gpa: int, size: int) -> None:
            for page in range(gpa // PAGE, (gpa + size) // PAGE):
                self.pins.pop(page, lambda: None)()

        def take(self, gpa: int, size: int) -> None:
            for page in range(gpa // PAGE, (gpa + size) // PAGE):
                if page not in self.pins:
                    self.pins[page] = world.pin(page)

    device = Device()
    world.vmm.holders.append(device)
    device.take(0, 8 * PAGE)
    world.vmm.convert(PAGE, 3 * PAGE, private=True)
    assert world.private_pages() == [1, 2, 3]
    assert world.waits == []
    assert sorted(device.pins) == [0, 4, 5, 6, 7]
    world.vmm.convert(0, 8 * PAGE, private=False)
    assert sorted(device.pins) == [0, 1, 2, 3, 4, 5, 6, 7]
    device.let_go(0, 8 * PAGE)


def test_memory_that_is_not_there_is_refused_before_anything_is_done(world: World) -> None:
    with pytest.raises(NoMemoryThere):
        world.vmm.convert(6 * PAGE, 4 * PAGE, private=True)
    assert world.private_pages() == []


def test_a_range_over_two_blocks(world: World) -> None:
    world.vmm.add_memory(8 * PAGE, 4 * PAGE)
    world.vmm.convert(6 * PAGE, 4 * PAGE, private=True)
    [vm] = world.host.vms
    assert [gfn for gfn in range(12) if vm.attributes.is_private(gfn)] == [6, 7, 8, 9]


def test_blocks_come_and_go(world: World) -> None:
    more = world.vmm.add_memory(1 << 30, PAGE)
    assert more.slot == 1
    world.vmm.remove_memory(more)
    assert world.vmm.add_memory(1 << 30, PAGE).slot == 1


def test_failing_to_add_memory_leaves_nothing(world: World) -> None:
    with pytest.raises(OSError, match="overlap"):
        world.vmm.add_memory(0, PAGE)
    assert sum(bool(inode.files) for inode in world.host.gmem_inodes) == 1
    assert len(world.host.init.files) == 4, "device, VM, vCPU and the memory there was"


def test_allocation_failure_is_tried_again(world: World) -> None:
    world.host.failing_allocations["gmem-attributes"] = 2
    world.vmm.convert(0, PAGE, private=True)
    assert world.private_pages() == [0]
    assert len(world.waits) == 2


def test_what_cannot_be_mended_is_raised_at_once(world: World) -> None:
    with pytest.raises(OSError) as caught:
        world.vmm.convert(0, 100, private=True)
    assert caught.value.errno == EINVAL
    assert world.waits == []


def test_two_pools_convert_on_the_vm() -> None:
    world = World("linux-7.3")
    assert not world.vmm.in_place
    world.vmm.convert(PAGE, 2 * PAGE, private=True)
    assert world.private_pages() == [1, 2]
    world.close()


@given(st.lists(st.integers(0, 4), min_size=12, max_size=12), st.integers(0, 11), st.integers(1, 12))
def test_against_a_model(busy: list[int], first: int, count: int) -> None:
    """Each page is refused as often as `busy` says.  Whatever the order: all is done, or it stops at the first page that was
    refused too often, with everything before it done; no page is asked for after it was done."""
    count = min(count, 12 - first)
    left, done = list(busy), [False] * 12

    def once(block: Block, offset: int, size: int, private: bool) -> None:
        pages = range(offset // PAGE, (offset + size) // PAGE)
        assert not done[pages[0]]
        for page in pages:
            if left[page]:
                left[page] -= 1
                raise ConversionRefused(rules.ATTR_BUSY(), page * PAGE)
        for page in pages:
            done[page] = True

    block = Block(0, 12 * PAGE, None, None, 0)  # type: ignore[arg-type]
    try:
        convert(once, block, first * PAGE, count * PAGE, True, Backoff.none(4))
    except ConversionTimeout as timeout:
        stuck = timeout.gpa // PAGE
        assert busy[stuck] >= 4
        assert done == [first <= page < stuck for page in range(12)]
    else:
        assert done == [first <= page < first + count for page in range(12)]


def test_a_vmm_is_in_place_where_the_kernel_is(world: World) -> None:
    assert world.vmm.in_place
    assert isinstance(world.vmm, Vmm)
