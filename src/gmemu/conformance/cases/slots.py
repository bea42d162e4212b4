# SPDX-License-Identifier: GPL-2.0-or-later
"""Memslots of ordinary memory: every field, every change, both ioctls."""

from __future__ import annotations

from typing import Any

from ...api import Mapping, Vm
from ...uapi.kvm import (
    KVM_CLEAR_DIRTY_LOG,
    KVM_GET_DIRTY_LOG,
    KVM_SET_USER_MEMORY_REGION,
    KVM_SET_USER_MEMORY_REGION2,
    Cap,
    kvm_clear_dirty_log,
    kvm_dirty_log,
    kvm_userspace_memory_region,
)
from ...uapi.kvm import kvm_userspace_memory_region2 as region2
from ..bench import PAGE, Bench
from ..case import case
from .binding import unbind

GPA = 1 << 30
NUMBERS = (
    0,
    1,
    509,
    32763,
    32764,
    32767,
    0xFFFF,
    0x10000,
    0x10001,
    0x17FFB,
    0x17FFC,
    0x20000,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
)
SIZES = (
    0, 1, 512, 4095, 4097, 8192, 3 * PAGE, (1 << 31) * PAGE, 1 << 47, 1 << 62, 1 << 63, (1 << 64) - PAGE,
    (1 << 64) - 1,
)  # fmt: skip
ADDRESSES = (
    0, 1, 512, 4095, PAGE, 1 << 32, (1 << 36) - PAGE, 1 << 52, (1 << 52) + PAGE, 1 << 62, (1 << 63) - PAGE, 1 << 63,
    (1 << 64) - PAGE, (1 << 64) - 1,
)  # fmt: skip


def set_slot(vm: Vm, **fields: int) -> None:
    """KVM_SET_USER_MEMORY_REGION2 of any fields."""
    args: dict[str, Any] = {"slot": 1, "guest_phys_addr": GPA, "memory_size": PAGE, **fields}
    vm.ioctl(KVM_SET_USER_MEMORY_REGION2, bytearray(region2(**args).pack()))


@case("slots", each_vm=False)
def flags(b: Bench) -> None:
    vm, memory = b.vm(0), b.anonymous()
    for bit in range(32):
        if bit == 2:
            continue
        b.probe(f"bit {bit}", lambda bit=bit: set_slot(vm, flags=1 << bit, userspace_addr=memory.address))
        unbind(vm)
        b.probe(f"bit {bit}, first ioctl", vm.set_user_memory_region, 1, GPA, PAGE, memory.address, 1 << bit)
        unbind(vm)
    b.probe("LOG_DIRTY and READONLY", lambda: set_slot(vm, flags=3, userspace_addr=memory.address))


@case("slots", each_vm=False)
def numbers(b: Bench) -> None:
    vm, memory = b.vm(0), b.anonymous()
    for number in NUMBERS:
        b.probe(f"slot {number:#x}", lambda number=number: set_slot(vm, slot=number, userspace_addr=memory.address))
        b.probe(f"delete {number:#x}", lambda number=number: set_slot(vm, slot=number, memory_size=0))


@case("slots")
def sizes(b: Bench) -> None:
    vm, memory = b.vm(), b.anonymous(4 * PAGE)
    for size in SIZES:
        b.probe(f"size {size:#x}", lambda size=size: set_slot(vm, memory_size=size, userspace_addr=memory.address))
        unbind(vm)
        b.probe(f"size {size:#x} from 0", lambda size=size: set_slot(vm, memory_size=size, guest_phys_addr=0))
        unbind(vm)


@case("slots")
def guest_addresses(b: Bench) -> None:
    vm, memory = b.vm(), b.anonymous(2 * PAGE)
    end = 1 << b.gpa_bits
    places = {f"{gpa:#x}": gpa for gpa in ADDRESSES}
    places |= {
        "before MAXPHYADDR": end - PAGE,
        "at MAXPHYADDR": end,
        "below half of it": (end >> 1) - PAGE,
        "half of it": end >> 1,
    }
    for name, gpa in places.items():
        for pages in (1, 2):
            b.probe(
                f"gpa {name}, {pages} pages",
                lambda gpa=gpa, pages=pages: set_slot(
                    vm, guest_phys_addr=gpa, memory_size=pages * PAGE, userspace_addr=memory.address
                ),
            )
            unbind(vm)


@case("slots")
def user_addresses(b: Bench) -> None:
    vm = b.vm()
    gone = b.anonymous()
    gone.close()
    for name, address in {
        "0": 0,
        "1": 1,
        "2048": 2048,
        "unmapped": gone.address,
        "PROT_NONE": b.anonymous(prot=0).address,
        "read-only": b.anonymous(prot=1).address,
        "the last page but one": (1 << 47) - 2 * PAGE,
        "the last page": (1 << 47) - PAGE,
        "not canonical": 1 << 47,
        "kernel half": 0xFFFF800000000000,
        "the top": (1 << 64) - PAGE,
        "-1": (1 << 64) - 1,
    }.items():
        b.probe(name, lambda address=address: set_slot(vm, userspace_addr=address))
        unbind(vm)


@case("slots")
def changes(b: Bench) -> None:
    vm, memory = b.vm(), b.anonymous(4 * PAGE)
    old = {"memory_size": 2 * PAGE, "userspace_addr": memory.address}
    other: dict[str, dict[str, int]] = {
        "nothing": {},
        "gpa": {"guest_phys_addr": 2 * GPA},
        "gpa by a page": {"guest_phys_addr": GPA + PAGE},
        "smaller": {"memory_size": PAGE},
        "larger": {"memory_size": 3 * PAGE},
        "userspace_addr": {"userspace_addr": memory.address + PAGE},
        "LOG_DIRTY": {"flags": 1},
        "READONLY": {"flags": 2},
        "LOG_DIRTY and gpa": {"flags": 1, "guest_phys_addr": 3 * GPA},
        "gpa and size": {"guest_phys_addr": 2 * GPA, "memory_size": PAGE},
        "gpa onto another slot": {"guest_phys_addr": 5 * GPA},
        "gpa too high": {"guest_phys_addr": 1 << 52},
        "GUEST_MEMFD, no file": {"flags": 4, "guest_memfd": 0xFFFFFFFF},
    }
    set_slot(vm, slot=2, guest_phys_addr=5 * GPA, **old)
    for name, fields in other.items():
        set_slot(vm, **old)
        b.probe(name, lambda fields=fields: set_slot(vm, **{**old, **fields}))
        b.probe(f"{name}: at the old gpa now", lambda: set_slot(vm, slot=3))
        unbind(vm, 3)
        unbind(vm)


@case("slots")
def overlaps(b: Bench) -> None:
    vm, memory = b.vm(), b.anonymous(16 * PAGE)
    set_slot(vm, memory_size=4 * PAGE, userspace_addr=memory.address)
    for first, count in ((0, 4), (0, 1), (3, 1), (1, 2), (-1, 2), (3, 2), (-4, 12), (-1, 1), (4, 1)):
        gpa = GPA + first * PAGE
        b.probe(
            f"{count} pages at {first}",
            lambda gpa=gpa, count=count: set_slot(
                vm, slot=2, guest_phys_addr=gpa, memory_size=count * PAGE, userspace_addr=memory.address
            ),
        )
        unbind(vm, 2)
    b.probe("the same user memory twice", lambda: set_slot(vm, slot=2, guest_phys_addr=0, userspace_addr=memory.address))


@case("slots", each_vm=False)
def address_spaces(b: Bench) -> None:
    vm, memory = b.vm(0), b.anonymous()
    set_slot(vm, userspace_addr=memory.address)
    b.probe("the same gpa in the second space", lambda: set_slot(vm, slot=0x10001, userspace_addr=memory.address))
    b.probe("delete in the second", lambda: set_slot(vm, slot=0x10001, memory_size=0))
    b.probe("delete in the second again", lambda: set_slot(vm, slot=0x10001, memory_size=0))
    b.probe("delete in the first", lambda: set_slot(vm, memory_size=0))
    b.probe("a third", lambda: set_slot(vm, slot=0x20001, userspace_addr=memory.address))


@case("slots", "private-memory", each_vm=False)
def address_spaces_of_a_private_vm(b: Bench) -> None:
    vm, memory = b.vm(1), b.anonymous()
    b.probe("a second address space", lambda: set_slot(vm, slot=0x10001, userspace_addr=memory.address))


@case("slots")
def pointers(b: Bench) -> None:
    vm, memory = b.vm(), b.anonymous()
    data = region2(slot=1, guest_phys_addr=GPA, memory_size=PAGE, userspace_addr=memory.address).pack()
    for name, address in b.pointers(data).items():
        b.probe(name, vm.ioctl, KVM_SET_USER_MEMORY_REGION2, address)
        unbind(vm)
    old = kvm_userspace_memory_region(slot=1, guest_phys_addr=GPA, memory_size=PAGE, userspace_addr=memory.address).pack()
    for name, address in b.pointers(old).items():
        b.probe(f"{name}, first ioctl", vm.ioctl, KVM_SET_USER_MEMORY_REGION, address)
        unbind(vm)


@case("slots")
def deletion(b: Bench) -> None:
    vm, memory = b.vm(), b.anonymous()
    b.probe("what never was", vm.delete_slot, 1)
    set_slot(vm, userspace_addr=memory.address)
    b.probe("what is", vm.delete_slot, 1)
    b.probe("what was", vm.delete_slot, 1)
    set_slot(vm, userspace_addr=memory.address)
    b.probe(
        "with another gpa and address", lambda: set_slot(vm, memory_size=0, guest_phys_addr=7 * GPA, userspace_addr=PAGE)
    )
    b.probe("a slot of the same number after", lambda: set_slot(vm, guest_phys_addr=7 * GPA, userspace_addr=memory.address))
    b.probe("by a VM closed", lambda: set_slot(b.vm(), memory_size=0))


def _get_log(vm: Vm, bitmap: Mapping, slot: int, address: int | None = None) -> None:
    log = kvm_dirty_log(slot=slot, dirty_bitmap=bitmap.address if address is None else address)
    vm.ioctl(KVM_GET_DIRTY_LOG, bytearray(log.pack()))


@case("slots")
def dirty_logs(b: Bench) -> None:
    vm, memory = b.vm(), b.anonymous(2 * PAGE)
    bitmap = b.anonymous()
    set_slot(vm, slot=1, memory_size=2 * PAGE, userspace_addr=memory.address, flags=1)
    set_slot(vm, slot=2, guest_phys_addr=2 * GPA, userspace_addr=memory.address)
    b.probe("a slot that's logged", _get_log, vm, bitmap, 1)
    b.record("its bitmap", bitmap[:8])
    for name, slot in {"not logged": 2, "missing": 3, "too high": 32764, "of another space": 0x30001}.items():
        b.probe(f"a slot {name}", _get_log, vm, bitmap, slot)
    b.probe("an unmapped bitmap", _get_log, vm, bitmap, 1, 0)
    set_slot(vm, slot=1, memory_size=2 * PAGE, userspace_addr=memory.address)
    b.probe("no longer logged", _get_log, vm, bitmap, 1)


@case("slots")
def clearing_dirty_logs(b: Bench) -> None:
    vm, memory = b.vm(), b.anonymous(2 * PAGE)
    bitmap = b.anonymous()
    bitmap[0] = 0
    set_slot(vm, slot=1, memory_size=2 * PAGE, userspace_addr=memory.address, flags=1)
    set_slot(vm, slot=2, guest_phys_addr=2 * GPA, userspace_addr=memory.address)

    def clear_log(slot: int, first: int, count: int, address: int | None = None) -> None:
        log = kvm_clear_dirty_log(
            slot=slot, num_pages=count, first_page=first, dirty_bitmap=bitmap.address if address is None else address
        )
        vm.ioctl(KVM_CLEAR_DIRTY_LOG, bytearray(log.pack()))

    for name, slot in {"not logged": 2, "missing": 3, "too high": 32764, "of another space": 0x30001}.items():
        b.probe(f"clear a slot {name}", clear_log, slot, 0, 2)
        b.probe(f"clear from page 1 of a slot {name}", clear_log, slot, 1, 1)
    for first, count in ((0, 2), (0, 0), (0, 1), (0, 64), (1, 1), (64, 0), (64, 1), (1 << 62, 0)):
        b.probe(f"clear {count} pages from {first:#x}", clear_log, 1, first, count)
    b.probe("clear by an unmapped bitmap", clear_log, 1, 0, 2, 0)
    b.probe("clear by an unmapped bitmap of no bits", clear_log, 1, 0, 0, 0)
    for name, value in {"both": 3, "the second alone": 2, "unknown": 5, "nothing": 0}.items():
        b.probe(f"manual protection: {name}", vm.enable_cap, Cap.MANUAL_DIRTY_LOG_PROTECT2, value)
    vm.enable_cap(Cap.MANUAL_DIRTY_LOG_PROTECT2, 3)
    many = b.anonymous(67 * PAGE)
    set_slot(vm, slot=4, memory_size=67 * PAGE, guest_phys_addr=4 * GPA, userspace_addr=many.address, flags=1)
    for name in ("all dirty at first", "and not cleared by that"):
        b.probe(name, _get_log, vm, bitmap, 4)
        b.record(f"{name}: the bitmap", bitmap[:24])
    bitmap[:16] = bytes.fromhex("0f00000000000000 0300000000000000")
    b.probe("clear some", clear_log, 4, 0, 67)
    bitmap[:8] = bytes.fromhex("0400000000000000")
    b.probe("clear the last", clear_log, 4, 64, 3)
    _get_log(vm, bitmap, 4)
    b.record("what is left", bitmap[:16])
