# SPDX-License-Identifier: GPL-2.0-or-later
"""The TDX module: SEAMCALL leaves for the host, one method each, and TDCALL leaves for guests (module 1.5, its ABI).

A leaf checks in this order: the TDR and the TD's state, its operands, the pages it is given, the secure EPT.  What it
answers is in `Seamcall`.  Everything is simulated; nothing was compared with TDX hardware.
"""

from __future__ import annotations

from .build import BuildLeaves
from .core import Inject, ModuleInfo, Seamcall, TdLog
from .guest import GuestLeaves
from .manage import ManagementLeaves
from .mrtd import Mrtd, Row
from .pamt import PageType
from .physmem import PhysmemLeaves
from .remove import RemoveLeaves
from .sept import SeptState
from .td import Lifecycle, OpState, Td, Vp

__all__ = [
    "Inject",
    "Lifecycle",
    "ModuleInfo",
    "Mrtd",
    "OpState",
    "PageType",
    "Row",
    "Seamcall",
    "SeptState",
    "Td",
    "TdLog",
    "TdxModule",
    "Vp",
]


class TdxModule(ManagementLeaves, BuildLeaves, RemoveLeaves, PhysmemLeaves, GuestLeaves):
    """The module with all its leaves."""
