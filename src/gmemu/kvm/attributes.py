# SPDX-License-Identifier: GPL-2.0-or-later
"""What is private: asked of the VM in two-pool kernels, of the guest_memfd's inode where conversion is in place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ..hw.memory import PAGE_SHIFT, PAGE_SIZE
from ..rangemap import RangeMap
from ..rules import kvm as rules
from ..uapi.kvm import KVM_MEMORY_ATTRIBUTE_PRIVATE, kvm_memory_attributes
from .guest_memfd.invalidate import Filter

if TYPE_CHECKING:
    from .vm import Vm

__all__ = ["Attributes", "GmemAttributes", "VmAttributes", "vm_ioctl_set_mem_attributes"]

_U64 = (1 << 64) - 1


class Attributes(Protocol):
    """kvm_mem_is_private() and what goes with it."""

    def is_private(self, gfn: int) -> bool:
        """Whether the guest's private view is the valid one of `gfn`.  May be stale unless locked or re-checked."""

    def private_run(self, gfn: int, count: int) -> int:
        """How many of the `count` frames from `gfn` are private in a row."""


class VmAttributes:
    """kvm->mem_attr_array: attributes by guest frame, whether or not a slot is there."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self.array: RangeMap[int] = RangeMap()

    def is_private(self, gfn: int) -> bool:
        self._vm.rt.reads(("attribute", self, gfn))
        return bool((self.array[gfn] or 0) & KVM_MEMORY_ATTRIBUTE_PRIVATE)

    def private_run(self, gfn: int, count: int) -> int:
        self._vm.rt.reads(("attribute", self, gfn))
        _, end, value = self.array.run(gfn)
        return min(end - gfn, count) if (value or 0) & KVM_MEMORY_ATTRIBUTE_PRIVATE else 0


class GmemAttributes:
    """Attributes by page of the guest_memfd; a gfn without one, or whose file was closed, is shared."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm

    def is_private(self, gfn: int) -> bool:
        return self.private_run(gfn, 1) == 1

    def private_run(self, gfn: int, count: int) -> int:
        slot = self._vm.find_slot(gfn)
        if slot is None or not slot.has_gmem:
            return 0
        self._vm.rt.reads(("slot-file", slot))
        file = slot.gmem_file
        if file is None or not file.count:
            return 0
        inode, index = file.gmem_inode, slot.gmem_index(gfn)
        self._vm.rt.reads(("attribute", inode, index))
        _, end, value = inode.attributes.run(index)
        return min(end - index, slot.end_gfn - gfn, count) if value == KVM_MEMORY_ATTRIBUTE_PRIVATE else 0


def vm_ioctl_set_mem_attributes(vm: Vm, attrs: kvm_memory_attributes) -> None:
    """kvm_vm_ioctl_set_mem_attributes(): the VM-wide ioctl of two-pool kernels."""
    if attrs.flags:
        raise rules.ATTR_FLAGS(f"flags {attrs.flags:#x}")
    supported = vm.profile.caps[233].private_vm if vm.arch.has_private_mem else 0
    if attrs.attributes & ~supported:
        raise rules.ATTR_UNSUPPORTED(f"attributes {attrs.attributes:#x}, supported {supported:#x}")
    if attrs.size == 0 or attrs.address + attrs.size > _U64:
        raise rules.ATTR_RANGE(f"address {attrs.address:#x}, size {attrs.size:#x}")
    if (attrs.address | attrs.size) & (PAGE_SIZE - 1):
        raise rules.ATTR_UNALIGNED(f"address {attrs.address:#x}, size {attrs.size:#x}")
    if isinstance(vm.attributes, VmAttributes):
        _vm_set_mem_attributes(
            vm, vm.attributes, attrs.address >> PAGE_SHIFT, attrs.address + attrs.size >> PAGE_SHIFT, attrs.attributes
        )


def _vm_set_mem_attributes(vm: Vm, attributes: VmAttributes, start: int, end: int, value: int) -> None:
    """kvm_vm_set_mem_attributes(): zap what is mapped, store, and let faults in again; frames [start, end).

    Raises ENOMEM, before anything changed; clearing needs no memory.
    """
    array = attributes.array
    with vm.slots_lock:
        if array.covers(start, end, value or None):
            return
        if value:
            vm.host.allocate("vm-attributes")
        ranges = [(max(s.base_gfn, start), min(s.end_gfn, end)) for m in vm.memslots for s in m.overlapping(start, end)]
        if ranges:
            with vm.mmu_lock.exclusive:
                vm.mmu.invalidate_begin()
                flush = False
                for s, e in ranges:
                    vm.mmu.invalidate_range_add(s, e)
                    flush |= vm.arch.unmap_range(s, e, Filter.SHARED if value else Filter.PRIVATE)
                if flush:
                    vm.flush_remote_tlbs()
        vm.rt.writes_each(("attribute", attributes), start, end)
        array.set(start, end, value or None)
        if ranges:
            with vm.mmu_lock.exclusive:
                vm.mmu.invalidate_end()
