# SPDX-License-Identifier: GPL-2.0-or-later
"""A reference VMM: what user space must do so that a guest with private memory launches, runs and converts.

Read `loop` for the exits of a vCPU, `memory` for a conversion that meets a page in use, `populate` for a launch that stops
part-way.  It works over any door, and is written to be read by people who write their own.
"""

from .backoff import Backoff
from .errors import ConversionTimeout, GuestStuck, NoMemoryThere, Poisoned, VmmError
from .loop import Observer, Vmm
from .memory import Block, Holder, left_to_kvm
from .populate import populate_cca, populate_snp, populate_tdx

__all__ = [
    "Backoff",
    "Block",
    "ConversionTimeout",
    "GuestStuck",
    "Holder",
    "NoMemoryThere",
    "Observer",
    "Poisoned",
    "Vmm",
    "VmmError",
    "left_to_kvm",
    "populate_cca",
    "populate_snp",
    "populate_tdx",
]
