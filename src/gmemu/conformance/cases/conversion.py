# SPDX-License-Identifier: GPL-2.0-or-later
"""Two pools: what a guest sees of the private and of the shared page at one gpa, as the attribute changes."""

from __future__ import annotations

from ...api import Exit, GuestMemfd, Mapping, Vcpu, Vm
from ...uapi.kvm import KVM_HC_MAP_GPA_RANGE, KVM_MAP_GPA_RANGE_ENCRYPTED
from ..bench import PAGE, Bench
from ..case import case
from ..guests import Hypercall, Load, Op, Store

GPA = 0x1000_0000
SIZE = 8 * PAGE


def two_pools(b: Bench) -> tuple[Vm, Vcpu, GuestMemfd, Mapping]:
    """A software-protected VM with SIZE bytes at GPA that have both backings."""
    vm = b.vm(1)
    gmem, memory = b.gmem(vm, SIZE), b.anonymous(SIZE, shared=True)
    vm.set_user_memory_region2(1, GPA, SIZE, userspace_addr=memory.address, gmem=gmem)
    return vm, b.vcpu(vm), gmem, memory


@case("conversion", "guest-code", "private-memory", "vm-attributes", each_vm=False)
def contents(b: Bench) -> None:
    vm, vcpu, _, memory = two_pools(b)
    memory[:4] = b"host"
    b.guest(vm, vcpu, "shared at first", [Load(GPA), Store(GPA + 8, b"gues")])
    b.probe("host sees the guest's store", lambda: memory[8:12])
    vm.make_private(GPA, PAGE)
    b.guest(vm, vcpu, "private is another page, zero", [Load(GPA), Store(GPA, b"priv"), Load(GPA)])
    b.probe("host still sees its own", lambda: memory[:12])
    b.guest(vm, vcpu, "the next page is shared", [Store(GPA + PAGE, b"next")])
    b.probe("and the host sees it", lambda: memory[PAGE : PAGE + 4])
    memory[:4] = b"HOST"
    vm.make_shared(GPA, PAGE)
    b.guest(vm, vcpu, "shared again", [Load(GPA), Load(GPA + 8)])
    vm.make_private(GPA, SIZE)
    b.guest(vm, vcpu, "private contents survived", [Load(GPA), Load(GPA + PAGE)])


@case("conversion", "guest-code", "private-memory", "vm-attributes", each_vm=False)
def punching(b: Bench) -> None:
    vm, vcpu, gmem, memory = two_pools(b)
    vm.make_private(GPA, SIZE)
    b.guest(vm, vcpu, "fill", [Store(GPA + page * PAGE, bytes((page + 1,)) * 4) for page in range(8)])
    gmem.punch_hole(PAGE, 2 * PAGE)
    b.guest(vm, vcpu, "after a hole", [Load(GPA + page * PAGE) for page in range(8)])
    gmem.punch_hole(0, SIZE)
    gmem.allocate(0, SIZE)
    b.guest(vm, vcpu, "all gone", [Load(GPA + page * PAGE) for page in range(8)])
    b.probe("the shared pages were never touched", lambda: memory[:])
    b.record("blocks", gmem.stat().blocks)


@case("conversion", "guest-code", "private-memory", "vm-attributes", each_vm=False)
def by_hypercall(b: Bench) -> None:
    vm, vcpu, _, memory = two_pools(b)
    vm.enable_map_gpa_range()
    memory[:4] = b"host"

    def convert(exit_: Exit) -> int:
        gpa, pages, attributes = exit_.hypercall.args[:3]
        vm.set_memory_attributes(gpa, pages * PAGE, 8 if attributes & KVM_MAP_GPA_RANGE_ENCRYPTED else 0)
        return 0

    def ask(pages: int, private: bool) -> Op:
        return Hypercall(KVM_HC_MAP_GPA_RANGE, (GPA, pages, KVM_MAP_GPA_RANGE_ENCRYPTED if private else 0))

    ops = [Load(GPA), ask(2, True), Load(GPA), Store(GPA, b"priv"), ask(1, False), Load(GPA), ask(1, True), Load(GPA)]
    b.guest(vm, vcpu, "there and back", ops, on_hypercall=convert)
    b.probe("the shared page", lambda: memory[:4])


@case("conversion", "guest-code", "private-memory", "vm-attributes", each_vm=False)
def by_fault(b: Bench) -> None:
    """A private attribute where there's no guest_memfd: each access comes out, and a VMM can mend it."""
    vm = b.vm(1)
    memory = b.anonymous(2 * PAGE, shared=True)
    vm.set_user_memory_region2(1, GPA, 2 * PAGE, userspace_addr=memory.address)
    vcpu = b.vcpu(vm)
    memory[:4] = b"host"
    vm.make_private(GPA, 2 * PAGE)
    b.guest(vm, vcpu, "load", [Load(GPA)])
    b.guest(vm, vcpu, "store", [Store(GPA + PAGE, b"x")])

    def mend(exit_: Exit) -> bool:
        vm.make_shared(exit_.memory_fault.gpa, exit_.memory_fault.size)
        return True

    b.guest(vm, vcpu, "mended", [Load(GPA), Store(GPA + PAGE, b"mend")], on_fault=mend)
    b.probe("its store", lambda: memory[PAGE : PAGE + 4])


@case("conversion", "guest-code", "private-memory", "vm-attributes", each_vm=False)
def patterns(b: Bench) -> None:
    """Every other page private, then ranges over them."""
    vm, vcpu, _, memory = two_pools(b)
    memory[:] = b"".join(bytes((0xA0 + page,)) * PAGE for page in range(8))
    for page in range(0, 8, 2):
        vm.make_private(GPA + page * PAGE, PAGE)
    loads: list[Op] = [Load(GPA + page * PAGE) for page in range(8)]
    stores: list[Op] = [Store(GPA + page * PAGE, bytes((0x10 + page,)) * 4) for page in range(8)]
    b.guest(vm, vcpu, "every other page", [*loads, *stores, *loads])
    vm.make_private(GPA, SIZE)
    b.guest(vm, vcpu, "all private", loads)
    vm.make_shared(GPA + PAGE, 6 * PAGE)
    b.guest(vm, vcpu, "the middle shared", loads)
    b.probe("shared pages", lambda: b"".join(memory[page * PAGE : page * PAGE + 2] for page in range(8)))


@case("conversion", "guest-code", "private-memory", "vm-attributes", each_vm=False)
def slots_come_and_go(b: Bench) -> None:
    vm, vcpu, gmem, memory = two_pools(b)
    vm.make_private(GPA, SIZE)
    b.guest(vm, vcpu, "a private store", [Store(GPA, b"kept")])
    vm.delete_slot(1)
    b.guest(vm, vcpu, "the slot gone", [Load(GPA)])
    vm.set_user_memory_region2(2, GPA, PAGE, userspace_addr=memory.address, gmem=gmem)
    b.guest(vm, vcpu, "bound again", [Load(GPA)])
    vm.delete_slot(2)
    vm.set_user_memory_region2(2, GPA, PAGE, userspace_addr=memory.address, gmem=gmem, offset=PAGE)
    b.guest(vm, vcpu, "bound to another page", [Load(GPA)])
    gmem.close()
    b.guest(vm, vcpu, "the file closed", [Load(GPA)])
    vm.make_shared(GPA, PAGE)
    b.guest(vm, vcpu, "shared, the file closed", [Load(GPA)])
