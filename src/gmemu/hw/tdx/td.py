# SPDX-License-Identifier: GPL-2.0-or-later
"""What the TDX module keeps of a TD (TDR and TDCS) and of a virtual processor (TDVPS)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, IntEnum, auto
from typing import TYPE_CHECKING

from ...uapi.tdx import TdAttributes, TdxLeaf
from .mrtd import Mrtd, Rtmrs
from .sept import SecureEpt

if TYPE_CHECKING:
    from ...sync import Lock
    from ..tlb import Tlb

__all__ = ["ALLOWED_STATES", "Lifecycle", "OpState", "Td", "Vp", "VpState"]

SHARED_GFN_4_LEVEL = 1 << 47 - 12
SHARED_GFN_5_LEVEL = 1 << 51 - 12


class OpState(IntEnum):
    """TDCS.OP_STATE.  From LIVE_EXPORT on they are migration's, which isn't emulated; they stand here for the table."""

    UNINITIALIZED = 0
    INITIALIZED = 1
    RUNNABLE = 2
    LIVE_EXPORT = 3
    PAUSED_EXPORT = 4
    POST_EXPORT = 5
    MEMORY_IMPORT = 6
    STATE_IMPORT = 7
    POST_IMPORT = 8
    LIVE_IMPORT = 9
    FAILED_IMPORT = 10


class Lifecycle(IntEnum):
    """TDR.LIFECYCLE_STATE."""

    HKID_ASSIGNED = 0
    KEYS_CONFIGURED = 1
    BLOCKED = 2
    TEARDOWN = 3


def _states(*numbers: int) -> frozenset[OpState]:
    return frozenset(map(OpState, numbers))


ALLOWED_STATES: dict[TdxLeaf, frozenset[OpState]] = {
    TdxLeaf.MNG_ADDCX: _states(0),
    TdxLeaf.MNG_INIT: _states(0),
    TdxLeaf.VP_CREATE: _states(1, 7),
    TdxLeaf.VP_ADDCX: _states(1, 7),
    TdxLeaf.VP_INIT: _states(1),
    TdxLeaf.VP_ENTER: _states(2, 3, 9),
    TdxLeaf.MEM_SEPT_ADD: _states(1, 2, 3, 6, 7, 8, 9),
    TdxLeaf.MEM_PAGE_ADD: _states(1),
    TdxLeaf.MR_EXTEND: _states(1),
    TdxLeaf.MR_FINALIZE: _states(1),
    TdxLeaf.MEM_PAGE_AUG: _states(1, 2, 3, 9),
    TdxLeaf.MEM_RANGE_BLOCK: _states(1, 2, 3, 4, 5, 8, 9),
    TdxLeaf.MEM_RANGE_UNBLOCK: _states(1, 2, 3, 4, 5, 8, 9),
    TdxLeaf.MEM_TRACK: _states(*range(1, 10)),
    TdxLeaf.MEM_PAGE_REMOVE: _states(1, 2, 3, 4, 5, 8, 9, 10),
    TdxLeaf.MEM_SEPT_REMOVE: _states(*range(1, 11)),
    TdxLeaf.MEM_PAGE_PROMOTE: _states(1, 2, 3, 4, 5, 8, 9),
    TdxLeaf.MEM_PAGE_DEMOTE: _states(1, 2, 3, 4, 5, 8, 9),
}
"""In which operation states a leaf may be called; elsewhere it answers OP_STATE_INCORRECT."""


class VpState(Enum):
    """TDVPS.STATE."""

    UNINITIALIZED = auto()
    READY = auto()
    DISABLED = auto()


@dataclass(eq=False)
class Vp:
    """A virtual processor of a TD.  `in_td`: it executes now, with `epoch` as its TLB epoch.

    `lp` is the logical processor that it's associated with.  `tdcall` is held during a TDCALL, which no interrupt ends.
    """

    tdvpr: int
    td: Td
    tdcall: Lock
    tdcx: list[int] = field(default_factory=list)
    state: VpState = VpState.UNINITIALIZED
    index: int = -1
    epoch: int = 0
    in_td: bool = False
    lp: int | None = None
    rcx: int = 0
    """What VP.INIT was given: RCX when the guest starts."""
    tlb: Tlb | None = None


@dataclass(eq=False)
class Td:
    """A TD, known by its TDR page.  `epoch` is TD_EPOCH; `children` TDR.CHLDCNT, the pages that it owns but for the TDR."""

    tdr: int
    hkid: int
    lifecycle: Lifecycle = Lifecycle.HKID_ASSIGNED
    op_state: OpState = OpState.UNINITIALIZED
    fatal: bool = False
    children: int = 0
    tdcx: list[int] = field(default_factory=list)
    attributes: int = 0
    """Of `TdAttributes`."""
    xfam: int = 0
    max_vcpus: int = 0
    cpuid_values: tuple[int, ...] = ()
    mrconfigid: bytes = bytes(48)
    mrowner: bytes = bytes(48)
    mrownerconfig: bytes = bytes(48)
    epoch: int = 1
    sept: SecureEpt = field(default_factory=lambda: SecureEpt(4))
    mrtd: Mrtd = field(default_factory=Mrtd)
    measurement: bytes | None = None
    """MRTD once it's final."""
    rtmrs: Rtmrs = field(default_factory=Rtmrs)
    vps: dict[int, Vp] = field(default_factory=dict)
    """Virtual processors by their TDVPR page."""

    @property
    def shared_gfn_bit(self) -> int:
        """The bit of a guest frame number that makes an address shared."""
        return SHARED_GFN_5_LEVEL if self.sept.levels == 5 else SHARED_GFN_4_LEVEL

    @property
    def pending_ve_disable(self) -> bool:
        """A touch of memory that isn't accepted ends in a TD exit, not in a #VE."""
        return bool(self.attributes & TdAttributes.SEPT_VE_DISABLE)

    @property
    def tracked(self) -> bool:
        """Whether TLB tracking is enforced: only once processors can run."""
        return self.op_state is not OpState.INITIALIZED

    @property
    def runs(self) -> bool:
        """Whether some processor runs the TD."""
        return any(vp.in_td for vp in self.vps.values())

    def runs_in(self, epoch: int) -> bool:
        """Whether a virtual processor executes with the TLB epoch `epoch` or an older one."""
        return any(vp.in_td and vp.epoch <= epoch for vp in self.vps.values())
