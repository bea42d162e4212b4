# SPDX-License-Identifier: GPL-2.0-or-later
"""gup_test: pages that stay pinned, and the list of who has them."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from gmemu import Kvm
from gmemu.mm.address_space import AddressSpace
from gmemu.mm.gup_test import GUP_TEST, GupTestFile
from gmemu.mm.holder import PageHolder
from gmemu.rules import KernelError
from gmemu.uapi.gup_test import (
    PIN_LONGTERM_TEST_FLAG_USE_FAST,
    PIN_LONGTERM_TEST_FLAG_USE_WRITE,
    PIN_LONGTERM_TEST_READ,
    PIN_LONGTERM_TEST_START,
    PIN_LONGTERM_TEST_STOP,
    pin_longterm_test,
)
from gmemu.uapi.kvm import GUEST_MEMFD_FLAG_INIT_SHARED, GUEST_MEMFD_FLAG_MMAP, VmType
from gmemu.uapi.mman import FOLL_PIN, GUP_PIN_COUNTING_BIAS, PROT_WRITE

from .machine import PAGE, RW, Machine, refusal

BASE = 0x100 * PAGE


@pytest.fixture
def mm(machine: Machine) -> Iterator[AddressSpace]:
    process = machine.process()
    previous = machine.rt.enter(process.task)
    process.mm.map_region(BASE // PAGE, 4, RW, False, None, 0)
    for page in range(4):
        process.mm.write(BASE + page * PAGE, bytes([page + 1]) * PAGE)
    yield process.mm
    machine.rt.leave(previous)


def start(file: GupTestFile, addr: int = BASE, size: int = 2 * PAGE, flags: int = PIN_LONGTERM_TEST_FLAG_USE_WRITE) -> int:
    return file.ioctl(PIN_LONGTERM_TEST_START, bytearray(pin_longterm_test(addr=addr, size=size, flags=flags).pack()))


@pytest.mark.parametrize("flags", [0, PIN_LONGTERM_TEST_FLAG_USE_WRITE, PIN_LONGTERM_TEST_FLAG_USE_FAST])
def test_pinned_until_it_is_stopped_or_closed(machine: Machine, mm: AddressSpace, flags: int) -> None:
    entry = mm.pte(BASE // PAGE)
    assert entry is not None
    for let_go in (lambda file: file.ioctl(PIN_LONGTERM_TEST_STOP, 0), lambda file: None):
        file = GupTestFile(machine.memmap)
        assert start(file, flags=flags) == 0
        assert machine.memmap.refcount(entry[0]) == 1 + GUP_PIN_COUNTING_BIAS
        assert [holder.name for holder in machine.memmap.holders if holder.holds(entry[0])] != []
        let_go(file)
        file.put()
        assert machine.memmap.refcount(entry[0]) == 1


def test_what_is_pinned_can_be_read_by_whoever_has_the_file(machine: Machine, mm: AddressSpace) -> None:
    file = GupTestFile(machine.memmap)
    start(file)
    mm.unmap_region(BASE // PAGE, BASE // PAGE + 1)
    assert file.ioctl(PIN_LONGTERM_TEST_READ, bytearray(struct.pack("<Q", BASE + 2 * PAGE))) == 0
    assert mm.read(BASE + 2 * PAGE, 2 * PAGE) == b"\1" * PAGE + b"\2" * PAGE
    file.put()


def test_refusals(machine: Machine, mm: AddressSpace) -> None:
    file, other = GupTestFile(machine.memmap), GupTestFile(machine.memmap)
    where = bytearray(struct.pack("<Q", BASE))
    assert refusal(lambda: file.ioctl(PIN_LONGTERM_TEST_READ, where)) == "mm.gup-test.not-started"
    assert refusal(lambda: start(file, flags=4)) == "mm.gup-test.flags"
    for addr, size in ((BASE + 1, PAGE), (BASE, PAGE - 1), (BASE, 0), (BASE, 1 << 63)):
        assert refusal(lambda addr=addr, size=size: start(file, addr, size)) == "mm.gup-test.range"  # type: ignore[misc]
    assert refusal(lambda: start(file, BASE + 3 * PAGE)) == "mm.gup.fault"
    assert refusal(lambda: file.ioctl(0x6799, 0)) == "mm.gup-test.request"
    assert start(file) == 0
    assert refusal(lambda: start(file)) == "mm.gup-test.started"
    assert start(other) == 0
    mm.map_region(BASE // PAGE + 8, 1, PROT_WRITE, False, None, 0)
    assert refusal(lambda: file.ioctl(PIN_LONGTERM_TEST_READ, bytearray(8))) == "mm.uaccess"
    file.put()
    other.put()


def test_a_holder_lets_go_from_either_end(machine: Machine, mm: AddressSpace) -> None:
    holder = PageHolder(machine.memmap, "somebody", FOLL_PIN)
    assert holder.hold_what_can_be(mm, BASE, 4)
    pages = list(dict.fromkeys(holder.references()))
    assert (len(holder), len(pages)) == (4, 4)
    holder.release(3)
    holder.release_before(1)
    assert [holder.holds(pfn) for pfn in pages] == [False, True, True, False]
    assert holder.contents() == [b"\2" * PAGE, b"\3" * PAGE]
    holder.release()
    assert (len(holder), list(holder.references())) == (0, [])
    assert not holder.hold_what_can_be(mm, BASE + 3 * PAGE, 2)
    assert len(holder) == 1
    holder.release()


def test_a_holder_whose_page_frames_become_other_pages(machine: Machine, mm: AddressSpace) -> None:
    """As `gmemu exec` has it: a page that was truncated is another to the real kernel."""

    class Reader(PageHolder):
        readable = True

    holder = Reader(machine.memmap, "somebody")
    holder.hold(mm, BASE, 4)
    first = min(holder.references())
    holder.lose(first + 1, first + 3)
    assert [machine.memmap.refcount(first + page) for page in range(4)] == [2, 1, 1, 2]
    mm.write(BASE + PAGE, bytes(2 * PAGE))
    assert holder.contents() == [bytes([page + 1]) * PAGE for page in range(4)]
    assert len(holder) == 4
    holder.release_before(2)
    assert holder.contents() == [b"\3" * PAGE, b"\4" * PAGE]
    holder.release()


def test_a_pinned_page_cant_become_private() -> None:
    with Kvm.open() as kvm:
        vm = kvm.create_vm(VmType.SW_PROTECTED)
        gmem = vm.create_guest_memfd(4 * PAGE, GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED)
        memory = gmem.mmap()
        memory[PAGE : PAGE + 1] = b"x"
        door = kvm.door
        fd = door.open(GUP_TEST)
        args = pin_longterm_test(addr=memory.address + PAGE, size=PAGE)
        door.ioctl(fd, PIN_LONGTERM_TEST_START, bytearray(args.pack()))
        with pytest.raises(KernelError) as busy:
            gmem.make_private(0, 4 * PAGE)
        assert busy.value.rule.id == "gmem.attributes.busy"
        assert getattr(busy.value, "error_offset", None) == PAGE
        door.close(fd)
        gmem.make_private(0, 4 * PAGE)
