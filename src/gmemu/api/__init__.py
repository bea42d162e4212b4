# SPDX-License-Identifier: GPL-2.0-or-later
"""Python objects over the door: `Kvm`, `Vm`, `Vcpu`, `GuestMemfd`, `Mapping`."""

from __future__ import annotations

from .guest_memfd import ConversionRefused, GuestMemfd
from .kvm import Kvm
from .mapping import Mapping
from .pin import Pin
from .vcpu import Exit, Vcpu
from .vm import Vm

__all__ = ["ConversionRefused", "Exit", "GuestMemfd", "Kvm", "Mapping", "Pin", "Vcpu", "Vm"]
