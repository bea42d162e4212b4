# SPDX-License-Identifier: GPL-2.0-or-later
"""Failures on order: what hardware, firmware and an allocator never do when one would like to see it.

An `Order` says what is to fail, where, when, and how it fails; `Faults` carries orders out on the hosts that it's given to:

    faults = Faults("psp LAUNCH_UPDATE nth=3 -> RESOURCE_LIMIT", "ref offset=0x2000 during=KVM_SET_MEMORY_ATTRIBUTES2")
    kvm = Kvm.open("inplace-v13", faults=faults)

Everything that follows from an order is what the emulated kernel does about it; nothing else is changed.
"""

from .engine import Faults, Fired
from .language import Order, OrderError, What

__all__ = ["Faults", "Fired", "Order", "OrderError", "What"]
