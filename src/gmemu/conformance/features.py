# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel behind a door can do, asked of the kernel itself: it decides which cases run on it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import NamedTuple

from ..api import Kvm
from ..rules import KernelError
from ..syscalls.door import Door
from ..uapi.kvm import GUEST_MEMFD_FLAG_INIT_SHARED, GUEST_MEMFD_FLAG_MMAP, Cap, VmType

__all__ = ["Features", "missing"]

_TYPES = (VmType.DEFAULT, VmType.SW_PROTECTED)


class Features(NamedTuple):
    """`gmem_flags`: for each VM type that may have a guest_memfd, the creation flags it may use.  `fork`: a case can have
    a second process.  `guest_code`: guests can be run."""

    gmem_flags: dict[VmType, int]
    private_memory: bool
    vm_attributes: bool
    in_place: bool
    pre_fault: bool
    fork: bool
    guest_code: bool

    @classmethod
    def of(cls, door: Door, *, fork: bool, guest_code: bool) -> Features:
        """Ask the kernel."""
        with ExitStack() as stack:
            kvm = stack.enter_context(Kvm(door))
            flags = {}
            for vm_type in _TYPES:
                if not kvm.check_extension(Cap.VM_TYPES) >> vm_type & 1:
                    continue
                vm = stack.enter_context(kvm.create_vm(vm_type))
                if vm.check_extension(Cap.GUEST_MEMFD):
                    flags[vm_type] = vm.check_extension(Cap.GUEST_MEMFD_FLAGS)
            return cls(
                gmem_flags=flags,
                private_memory=bool(kvm.check_extension(Cap.VM_TYPES) >> VmType.SW_PROTECTED & 1),
                vm_attributes=bool(kvm.check_extension(Cap.MEMORY_ATTRIBUTES)),
                in_place=bool(kvm.check_extension(Cap.GUEST_MEMFD_MEMORY_ATTRIBUTES) & 8),
                pre_fault=bool(kvm.check_extension(Cap.PRE_FAULT_MEMORY)),
                fork=fork,
                guest_code=guest_code,
            )

    def lacks(self, needs: tuple[str, ...], vm_type: VmType) -> str:
        """The first of `needs` that isn't there, as a sentence; empty if all are."""
        for need in needs:
            has, why = _NEEDS[need]
            if not has(self, vm_type):
                return f"needs {need}: {why}"
        return ""


def missing(door: Door) -> str:
    """Why the kernel can't be compared at all; empty if it can."""
    try:
        with Kvm(door) as kvm:
            if not kvm.check_extension(Cap.GUEST_MEMFD):
                return "its KVM has no guest_memfd (KVM_CAP_GUEST_MEMFD is 0)"
    except KernelError as error:
        return f"/dev/kvm can't be opened: {error}"
    return ""


_NEEDS: dict[str, tuple[Callable[[Features, VmType], bool], str]] = {
    "private-memory": (lambda f, t: f.private_memory, "KVM_CAP_VM_TYPES has no KVM_X86_SW_PROTECTED_VM"),
    "vm-attributes": (lambda f, t: f.vm_attributes, "KVM_CAP_MEMORY_ATTRIBUTES is 0"),
    "in-place": (lambda f, t: f.in_place, "KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES has no PRIVATE"),
    "pre-fault": (lambda f, t: f.pre_fault, "KVM_CAP_PRE_FAULT_MEMORY is 0"),
    "fork": (lambda f, t: f.fork, "the backend can't fork the process that it makes system calls for"),
    "guest-code": (lambda f, t: f.guest_code, "the backend doesn't run guests"),
    "mmap": (
        lambda f, t: bool(f.gmem_flags.get(t, 0) & GUEST_MEMFD_FLAG_MMAP),
        "KVM_CAP_GUEST_MEMFD_FLAGS has no MMAP",
    ),
    "init-shared": (
        lambda f, t: bool(f.gmem_flags.get(t, 0) & GUEST_MEMFD_FLAG_INIT_SHARED),
        "KVM_CAP_GUEST_MEMFD_FLAGS has no INIT_SHARED",
    ),
    "gmem": (lambda f, t: t in f.gmem_flags, "the VM type may have no guest_memfd"),
}
