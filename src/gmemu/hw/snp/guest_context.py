# SPDX-License-Identifier: GPL-2.0-or-later
"""What the firmware knows of a guest: the contents of its context page (SEV-SNP firmware ABI, "Guest Context", GCTX)."""

from __future__ import annotations

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


class GuestContext:
    """GCTX.  `asid` 0: the guest isn't activated.  Random fields are filled by LAUNCH_START.

    `imd` is the digest of the initial migration image alone; `key` the memory encryption key, as `PhysicalMemory` numbers
    them, new with each activation; `ma_gctx_pfn` the context page of the migration agent, if there is one.
    """

    def __init__(self) -> None:
        self.state = GuestState.INIT
        self.asid = 0
        self.key = 0
        self.policy = 0
        self.ld = LaunchDigest()
        self.imd = LaunchDigest()
        self.imi_en = False
        self.ma_gctx_pfn: int | None = None
        self.gosvw = bytes(16)
        self.desired_tsc_khz = 0
        self.vmpck: tuple[bytes, bytes, bytes, bytes] = (bytes(32),) * 4
        self.oek = bytes(32)
        self.vmrk = bytes(32)
        self.report_id = bytes(32)
        self.report_id_ma = b"\xff" * 32
        self.id_block_en = False
        self.auth_key_en = False
        self.vcek_dis = False
        self.id_block = bytes(96)
        self.id_key_digest = BLANK
        self.author_key_digest = BLANK
        self.host_data = bytes(32)

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
