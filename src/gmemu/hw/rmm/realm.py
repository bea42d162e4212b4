# SPDX-License-Identifier: GPL-2.0-or-later
"""What the RMM keeps of a realm (its RD) and of a realm execution context (REC)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ...uapi.rmi import HashAlgorithm, RealmState, Ripas, rmi_rec_params
from .measurement import Rem, Rim
from .rtt import Rtt

if TYPE_CHECKING:
    from ..tlb import Tlb

__all__ = ["Realm", "Rec", "RipasChange"]


@dataclass
class RipasChange:
    """An RSI_IPA_STATE_SET that waits for the host: bytes [base, top); `base` moves on as the host serves it."""

    base: int
    top: int
    ripas: Ripas
    change_destroyed: bool


@dataclass(eq=False)
class Rec:
    """A virtual processor of a realm, known by its granule."""

    pfn: int
    realm: Realm
    index: int
    params: rmi_rec_params
    runnable: bool
    aux: list[int] = field(default_factory=list)
    running: bool = False
    ripas_change: RipasChange | None = None
    psci_pending: tuple[int, int] | None = None
    """(function, target MPIDR) of a PSCI call that waits for RMI_PSCI_COMPLETE."""
    psci_status: int = 0
    """What that call is answered."""
    tlb: Tlb | None = None


@dataclass(eq=False)
class Realm:
    """A realm, known by its RD.  `key`: what its memory is encrypted with."""

    rd: int
    vmid: int
    rtt: Rtt
    rim: Rim
    algorithm: HashAlgorithm
    rpv: bytes
    rems: list[Rem]
    state: RealmState = RealmState.NEW
    recs: dict[int, Rec] = field(default_factory=dict)
    next_rec: int = 0

    @property
    def key(self) -> int:
        """The encryption context of its memory."""
        return self.vmid

    @property
    def protected_end(self) -> int:
        """The first address (bytes) of the shared half."""
        return self.rtt.shared_bit << 12

    @property
    def measurement(self) -> bytes:
        """The RIM (simulated)."""
        return self.rim.value
