# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_SET_MEMORY_ATTRIBUTES on the VM: two-pool kernels, and what the others say to it."""

from __future__ import annotations

from ...api import Vm
from ...uapi.kvm import KVM_SET_MEMORY_ATTRIBUTES, kvm_memory_attributes
from ..bench import PAGE, Bench
from ..case import case

GPA = 1 << 30
# Nothing larger that's valid: a kernel keeps an entry for each page.
RANGES = (
    (GPA, 0), (GPA, 1), (GPA, 4095), (GPA, PAGE), (GPA + 1, PAGE), (GPA, PAGE + 1), (GPA, 1 << 28), (0, PAGE),
    (1 << 52, PAGE), (1 << 63, PAGE), ((1 << 64) - PAGE, PAGE), ((1 << 64) - 2 * PAGE, PAGE), ((1 << 64) - PAGE, 2 * PAGE),
    ((1 << 64) - 1, 1), (PAGE, (1 << 64) - PAGE),
)  # fmt: skip


def set_attributes(vm: Vm, **fields: int) -> None:
    """The ioctl with any fields."""
    vm.ioctl(KVM_SET_MEMORY_ATTRIBUTES, bytearray(kvm_memory_attributes(**{"address": GPA, "size": PAGE, **fields}).pack()))


@case("attributes")
def bits(b: Bench) -> None:
    vm = b.vm()
    for bit in range(64):
        b.probe(f"attribute bit {bit}", lambda bit=bit: set_attributes(vm, attributes=1 << bit))
        b.probe(f"flag bit {bit}", lambda bit=bit: set_attributes(vm, flags=1 << bit))
    for attributes in (0, 8, 9, 15, 24, (1 << 64) - 1):
        b.probe(f"attributes {attributes:#x}", lambda attributes=attributes: set_attributes(vm, attributes=attributes))


@case("attributes")
def ranges(b: Bench) -> None:
    vm = b.vm()
    for address, size in RANGES:
        for attributes in (0, 8):
            b.probe(
                f"address {address:#x} size {size:#x} to {attributes}",
                lambda address=address, size=size, attributes=attributes: set_attributes(
                    vm, address=address, size=size, attributes=attributes
                ),
            )


@case("attributes")
def pointers(b: Bench) -> None:
    vm = b.vm()
    for name, address in b.pointers(kvm_memory_attributes(address=GPA, size=PAGE).pack()).items():
        b.probe(name, vm.ioctl, KVM_SET_MEMORY_ATTRIBUTES, address)


@case("attributes", "private-memory", each_vm=False)
def default_vm(b: Bench) -> None:
    """A default VM beside one that has private memory."""
    vm = b.vm(0)
    for attributes in (0, 1, 8):
        b.probe(f"attributes {attributes}", lambda attributes=attributes: set_attributes(vm, attributes=attributes))


@case("attributes", "private-memory", "vm-attributes", each_vm=False)
def slots_and_attributes(b: Bench) -> None:
    """Attributes don't need slots, nor stand in their way."""
    vm = b.vm(1)
    gmem, memory = b.gmem(vm, 4 * PAGE), b.anonymous(4 * PAGE)
    b.probe("without a slot", lambda: set_attributes(vm, size=4 * PAGE, attributes=8))
    b.probe(
        "a slot without guest_memfd there", lambda: vm.set_user_memory_region2(1, GPA, PAGE, userspace_addr=memory.address)
    )
    b.probe("private there again", lambda: set_attributes(vm, attributes=8))
    b.probe("a slot with guest_memfd there", lambda: vm.set_user_memory_region2(2, GPA + PAGE, PAGE, gmem=gmem))
    b.probe("shared", lambda: set_attributes(vm, address=GPA, size=4 * PAGE))
    b.probe("private", lambda: set_attributes(vm, address=GPA, size=4 * PAGE, attributes=8))
    gmem.close()
    b.probe("with the file closed", lambda: set_attributes(vm, address=GPA, size=4 * PAGE))
    b.probe("delete the slot", vm.delete_slot, 2)
    b.probe("private after it", lambda: set_attributes(vm, address=GPA, size=4 * PAGE, attributes=8))
