# SPDX-License-Identifier: GPL-2.0-or-later
"""What the firmware knows of a guest: the contents of its context page (SEV-SNP firmware ABI, "Guest Context", GCTX)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from random import Random

from ...uapi.layout import Struct, u8, u32, u64
from .digest import BLANK, LaunchDigest

__all__ = ["GuestContext", "GuestState", "snp_guest_status"]


class GuestState(IntEnum):
    """GSTATE of the firmware ABI."""

    INIT = 0
    LAUNCH = 1
    RUNNING = 2


@dataclass
class GuestContext:
    """GCTX.  `asid` 0: the guest isn't activated.  Random fields are filled by LAUNCH_START."""

    state: GuestState = GuestState.INIT
    asid: int = 0
    key: int = 0
    """The memory encryption key, as `PhysicalMemory` numbers them: new with each activation."""
    policy: int = 0
    ld: LaunchDigest = field(default_factory=LaunchDigest)
    imd: LaunchDigest = field(default_factory=LaunchDigest)
    """The digest of the initial migration image alone."""
    imi_en: bool = False
    ma_gctx_pfn: int | None = None
    """Context page of the migration agent, if there is one."""
    gosvw: bytes = bytes(16)
    desired_tsc_khz: int = 0
    vmpck: tuple[bytes, bytes, bytes, bytes] = (bytes(32),) * 4
    oek: bytes = bytes(32)
    vmrk: bytes = bytes(32)
    report_id: bytes = bytes(32)
    report_id_ma: bytes = b"\xff" * 32
    id_block_en: bool = False
    auth_key_en: bool = False
    vcek_dis: bool = False
    id_block: bytes = bytes(96)
    id_key_digest: bytes = BLANK
    author_key_digest: bytes = BLANK
    host_data: bytes = bytes(32)

    def draw(self, rng: Random) -> None:
        """New keys and identifiers, in the firmware's order."""
        self.oek = rng.randbytes(32)
        self.vmpck = (rng.randbytes(32), rng.randbytes(32), rng.randbytes(32), rng.randbytes(32))
        self.vmrk = rng.randbytes(32)
        self.report_id = rng.randbytes(32)


class snp_guest_status(Struct):
    """What GUEST_STATUS writes; `flags` bit 0 is VCEK_DIS."""

    policy: int = u64()
    asid: int = u32()
    state: int = u8()
    reserved: tuple[int, ...] = u8(3)
    flags: int = u32()
    reserved2: int = u32()
    reserved3: int = u64()
