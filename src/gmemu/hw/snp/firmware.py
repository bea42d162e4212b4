# SPDX-License-Identifier: GPL-2.0-or-later
"""What every command of the SNP firmware works on: memory, the RMP, the platform's state and the guests' contexts."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, IntEnum, auto
from random import Random

from ...sync import Runtime
from ...uapi.sev import PspCommand, PspStatus
from ..memory import PhysicalMemory
from .cpu import GENOA, CpuModel
from .digest import Row
from .guest_context import GuestContext
from .rmp import Rmp
from .rmp_entry import RmpState

__all__ = ["FIRMWARE_KEY", "Firmware", "Inject", "LaunchLog", "PlatformState"]

FIRMWARE_KEY = 1 << 16
"""The key of context pages: no guest's, so that no one but the firmware reads sense there."""

GUEST_KEYS = 1 << 17
"""Guests' keys are numbered from here on; none is ever used twice, so a guest can't read what another left."""

Inject = Callable[[PspCommand, int], PspStatus | None]
"""Asked before each command with its page (of the context, where the command names no other): the status to return instead
of running it, or `None`."""

LaunchLog = Callable[[int, int, list[Row]], None]
"""Told of measured pages: the context page, the page type, and a row for each page in order."""


class PlatformState(IntEnum):
    """PSTATE of the firmware ABI, for SNP."""

    UNINIT = 0
    INIT = 1


class AsidState(Enum):
    """An ASID's way through the caches: OWNED by a guest, DIRTY after it, CLEAN once the caches were flushed."""

    CLEAN = auto()
    OWNED = auto()
    DIRTY = auto()


class Firmware:
    """State of the AMD secure processor's SNP firmware.

    `cpu` is the processor it serves; `seed` makes what it draws at random the same in each run; `abi` the version of the
    firmware ABI that it implements.  With `booted` the platform is as Linux's ccp driver leaves it at boot: initialised, and
    all ASIDs clean.
    """

    def __init__(
        self,
        rt: Runtime,
        memory: PhysicalMemory,
        rmp: Rmp,
        *,
        cpu: CpuModel = GENOA,
        seed: int = 0,
        abi: tuple[int, int] = (1, 58),
        booted: bool = True,
    ) -> None:
        self.rt, self.memory, self.rmp = rt, memory, rmp
        self.cpu, self.abi, self.rng = cpu, abi, Random(seed)
        self.state = PlatformState.INIT if booted else PlatformState.UNINIT
        self.contexts: dict[int, GuestContext] = {}
        """Guest contexts by the page that holds them."""
        self.inject: Inject | None = None
        self.log: LaunchLog | None = None
        self._asids: dict[int, AsidState] = {}
        self.keys: dict[int, int] = {}
        """The key of each ASID that is bound to a guest."""
        self._next_key = GUEST_KEYS
        self._other_asids = AsidState.CLEAN if booted else AsidState.DIRTY
        self._wbinvd_done = booted

    def _injected(self, command: PspCommand, pfn: int) -> PspStatus | None:
        return self.inject(command, pfn) if self.inject else None

    def _guest(self, gctx_pfn: int) -> GuestContext | None:
        """The guest whose context the page holds: it must be in the CONTEXT state."""
        if self.rmp.own_state(gctx_pfn) != RmpState.CONTEXT:
            return None
        self.rt.reads(("gctx", gctx_pfn))
        return self.contexts.get(gctx_pfn)

    def _asid(self, asid: int) -> AsidState:
        return self._asids.get(asid, self._other_asids)
