# SPDX-License-Identifier: GPL-2.0-or-later
"""The same kernels built for arm64."""

from __future__ import annotations

from typing import Any

from ..uapi.kvm import Cap, VmType
from .profile import CapValues, Profile

__all__ = ["on_arm64"]

KVM_USER_MEM_SLOTS = 32767
"""SHRT_MAX: arm64 keeps none for itself."""
VGIC_V3_MAX_CPUS = 512
IPA_BITS = 48


def _same(value: int) -> CapValues:
    return CapValues(value, value, value)


_ARM_RMI_V12 = 247
"""The number that the CCA series' v12 had; rfc-v5 gives v14's to something else."""
_X86_ONLY = (
    Cap.VM_TYPES,
    Cap.EXIT_HYPERCALL,
    Cap.X86_APIC_BUS_CYCLES_NS,
    Cap.X86_GUEST_MODE,
)


def on_arm64(profile: Profile) -> Profile:
    """`profile` as the kernel of an Arm machine: capabilities differ.

    There is neither pre-faulting nor a second address space, and memory attributes only where some VM type has private
    memory.
    """
    private_vms = VmType.ARM_REALM in profile.vm_types or profile.protected_memory == "guest_memfd"
    caps = {number: values for number, values in profile.caps.items() if number not in _X86_ONLY}
    caps |= {
        Cap.NR_MEMSLOTS: _same(KVM_USER_MEM_SLOTS),
        Cap.MAX_VCPUS: _same(VGIC_V3_MAX_CPUS),
        Cap.MAX_VCPU_ID: _same(VGIC_V3_MAX_CPUS),
        Cap.MULTI_ADDRESS_SPACE: _same(0),
        Cap.PRE_FAULT_MEMORY: _same(0),
        Cap.ONE_REG: _same(1),
        Cap.ARM_VM_IPA_SIZE: _same(IPA_BITS),
    }
    changes: dict[str, Any] = {}
    if not private_vms:
        changes = {"vm_attributes": False, "vm_attributes_ioctl": False}
        caps[Cap.MEMORY_ATTRIBUTES] = _same(0)
        caps.pop(Cap.GUEST_MEMFD_MEMORY_ATTRIBUTES, None)
    if VmType.ARM_REALM in profile.vm_types:
        caps[Cap.ARM_RMI if Cap.ARM_RMI not in caps else _ARM_RMI_V12] = _same(1)
    return profile._replace(caps=caps, **changes)
