# SPDX-License-Identifier: GPL-2.0-or-later
"""gmemu: KVM's guest_memfd in user space.

An executable host that follows KVM's ABI to the errno and the firmware's rules to the byte.  Everything here is
simulated: no digest, report or state comes from hardware.

Names are loaded when first used, so that importing gmemu costs little.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import ConversionRefused, Exit, GuestMemfd, Kvm, Mapping, Vcpu, Vm
    from .hw.cpu import ExternalAbort, VirtualizationException, VmmCommunication
    from .hw.guest_cpu import GuestCpu
    from .invariants import InvariantViolation
    from .kvm.host import Host
    from .profiles import PROFILES, Profile
    from .rules import BusError, KernelError, MemoryFault, Rule, SegmentationFault
    from .uapi.kvm import Cap, ExitReason, VmType

__version__ = "0.1.0"

_HOMES = {
    "BusError": "rules",
    "Cap": "uapi.kvm",
    "ConversionRefused": "api",
    "Exit": "api",
    "ExitReason": "uapi.kvm",
    "ExternalAbort": "hw.cpu",
    "GuestCpu": "hw.guest_cpu",
    "GuestMemfd": "api",
    "Host": "kvm.host",
    "InvariantViolation": "invariants",
    "KernelError": "rules",
    "Kvm": "api",
    "Mapping": "api",
    "MemoryReport": "accounting",
    "MemoryFault": "rules",
    "PROFILES": "profiles",
    "Profile": "profiles",
    "Rule": "rules",
    "SegmentationFault": "rules",
    "Vcpu": "api",
    "VirtualizationException": "hw.cpu",
    "Vm": "api",
    "VmType": "uapi.kvm",
    "VmmCommunication": "hw.cpu",
}

__all__ = [
    "BusError",
    "Cap",
    "ConversionRefused",
    "Exit",
    "ExitReason",
    "ExternalAbort",
    "GuestCpu",
    "GuestMemfd",
    "Host",
    "InvariantViolation",
    "KernelError",
    "Kvm",
    "Mapping",
    "MemoryReport",
    "MemoryFault",
    "PROFILES",
    "Profile",
    "Rule",
    "SegmentationFault",
    "Vcpu",
    "VirtualizationException",
    "Vm",
    "VmType",
    "VmmCommunication",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "explore":  # a package that can be called
        return import_module("gmemu.explore")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'gmemu' has no attribute {name!r}")
    value = getattr(import_module(f"gmemu.{home}"), name)
    globals()[name] = value
    return value
