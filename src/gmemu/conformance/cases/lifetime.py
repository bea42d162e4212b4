# SPDX-License-Identifier: GPL-2.0-or-later
"""What goes on living when something is closed, in every order."""

from __future__ import annotations

from itertools import permutations

from ...api import Mapping
from ...api.descriptor import Descriptor
from ...uapi.kvm import KVM_CREATE_VCPU, KVM_SET_USER_MEMORY_REGION2, kvm_userspace_memory_region2
from ..bench import PAGE, Bench
from ..case import case


@case("lifetime", "init-shared")
def every_order(b: Bench) -> None:
    """A VM, its file, a mapping of it and a vCPU, closed in each order; after each step, what can still be done."""
    for order in permutations(("vm", "gmem", "map", "vcpu")):
        vm = b.vm()
        gmem = b.shared_gmem(vm, 2 * PAGE)
        vm.set_user_memory_region2(1, 1 << 30, 2 * PAGE, gmem=gmem)
        m = b.map(gmem)
        things: dict[str, Descriptor | Mapping] = {"vm": vm, "gmem": gmem, "map": m, "vcpu": b.vcpu(vm)}
        m[0] = 0x42
        for i, name in enumerate(order):
            things[name].close()
            done, left = f"{' '.join(order)}: after {name}", order[i + 1 :]
            if "map" in left:
                b.probe(f"{done}, load", lambda m=m: m[:2])
                b.probe(f"{done}, store to a new page", m.__setitem__, PAGE, 1)
            if "gmem" in left:
                b.probe(f"{done}, punch", gmem.punch_hole, PAGE, PAGE)
            if "vcpu" in left:
                b.probe(f"{done}, vCPU registers", lambda v=things["vcpu"]: v.regs is not None)
            if "vm" in left:
                fd = gmem.fd
                b.probe(
                    f"{done}, bind again", lambda vm=vm, fd=fd: vm.set_user_memory_region2(1, 1 << 30, 2 * PAGE, gmem=fd)
                )


@case("lifetime", "gmem")
def slots_and_files(b: Bench) -> None:
    vm = b.vm()
    gmem = b.gmem(vm, 4 * PAGE)
    vm.set_user_memory_region2(1, 1 << 30, 4 * PAGE, gmem=gmem)
    gmem.close()
    second = b.gmem(vm, 4 * PAGE)
    b.probe("another file at the gpa of a closed one", lambda: vm.set_user_memory_region2(2, 1 << 30, PAGE, gmem=second))
    b.probe("change the slot of a closed file", lambda: vm.set_user_memory_region2(1, 1 << 30, 4 * PAGE, gmem=second))
    b.probe("log it", lambda: vm.set_user_memory_region2(1, 1 << 30, 4 * PAGE, flags=1))
    b.probe("delete it", vm.delete_slot, 1)
    b.probe("then the gpa is free", lambda: vm.set_user_memory_region2(2, 1 << 30, PAGE, gmem=second))
    vm.delete_slot(2)
    b.probe("the slot deleted, the file used", second.allocate, 0, PAGE)
    b.probe("bind again elsewhere", lambda: vm.set_user_memory_region2(2, 5 << 30, PAGE, gmem=second))


@case("lifetime", "init-shared")
def contents(b: Bench) -> None:
    vm = b.vm()
    gmem = b.shared_gmem(vm, 2 * PAGE)
    m = b.map(gmem)
    m[:4] = b"kept"
    vm.set_user_memory_region2(1, 1 << 30, PAGE, gmem=gmem)
    vm.delete_slot(1)
    b.probe("kept when the slot goes", lambda: m[:4])
    m.close()
    b.probe("kept when the mapping goes", lambda: b.map(gmem)[:4])
    dup = b.door.dup(gmem.fd)
    gmem.close()
    b.probe("kept when one of two descriptors goes", lambda: b.door.load(b.door.mmap(0, PAGE, 1, 1, dup), 4))
    b.door.close(dup)
    fresh = b.shared_gmem(vm, 2 * PAGE)
    b.probe("a new file is zero", lambda: b.map(fresh)[:])


@case("lifetime", "gmem")
def many(b: Bench) -> None:
    vm = b.vm()
    gmem = b.gmem(vm, 64 * PAGE)
    for i in range(32):
        vm.set_user_memory_region2(i, (i + 1) << 20, PAGE, gmem=gmem, offset=2 * i * PAGE)
    b.probe("a page between two bindings", lambda: vm.set_user_memory_region2(40, 1 << 30, PAGE, gmem=gmem, offset=3 * PAGE))
    for i in range(0, 32, 2):
        vm.delete_slot(i)
    b.probe("a page that was bound", lambda: vm.set_user_memory_region2(41, 2 << 30, PAGE, gmem=gmem, offset=4 * PAGE))
    b.probe(
        "three pages around a bound one", lambda: vm.set_user_memory_region2(42, 3 << 30, 3 * PAGE, gmem=gmem, offset=PAGE)
    )
    b.probe(
        "three pages that are free", lambda: vm.set_user_memory_region2(42, 3 << 30, 3 * PAGE, gmem=gmem, offset=7 * PAGE)
    )


@case("lifetime", "gmem")
def a_vm_held_by_its_file(b: Bench) -> None:
    vm = b.vm()
    gmem = b.gmem(vm)
    number = vm.fd
    dup = b.door.dup(vm.fd)
    vm.close()
    args = bytearray(
        kvm_userspace_memory_region2(slot=1, flags=4, guest_phys_addr=1 << 30, memory_size=PAGE, guest_memfd=gmem.fd).pack()
    )
    b.probe("the VM by a dup", b.door.ioctl, dup, KVM_SET_USER_MEMORY_REGION2, args)
    b.probe("the VM by its number", b.door.ioctl, number, KVM_SET_USER_MEMORY_REGION2, args)
    b.door.close(dup)
    b.probe("the file lives on", gmem.allocate, 0, PAGE)
    b.probe("a vCPU of a VM that nobody has", b.door.ioctl, number, KVM_CREATE_VCPU, 0)
