# SPDX-License-Identifier: GPL-2.0-or-later
"""The launch digest: SHA-384 over a chain of PAGE_INFO structures (SEV-SNP firmware ABI, SNP_LAUNCH_UPDATE).

Each measured 4 KiB page turns the digest LD into SHA-384(LD | CONTENTS | what, where and with which rights).  PAGE_INFO is
112 bytes; the reserved byte comes before the VMPL masks, as in the firmware (some measurement tools have the order
reversed, which shows only with masks that aren't zero).
"""

from __future__ import annotations

import struct
from hashlib import sha384

from .hashing import PAGE_SIZE, page_digests

__all__ = ["BLANK", "DIGEST_SIZE", "PAGE_INFO_SIZE", "LaunchDigest", "Row", "vmsa_contents"]

DIGEST_SIZE = 48
PAGE_INFO_SIZE = 112
BLANK = bytes(DIGEST_SIZE)
"""CONTENTS of a page whose bytes aren't measured, and the digest of a guest of which nothing was."""

Row = tuple[int, bytes, bytes]
"""One measured page: its guest physical address (bytes), CONTENTS, and the launch digest after it."""

_KIND = struct.Struct("<H6B")
_VMSA_UNMEASURED = 0x2F0  # GUEST_TSC_SCALE and GUEST_TSC_OFFSET, 8 bytes each


def vmsa_contents(page: bytes | bytearray | memoryview) -> bytes:
    """CONTENTS of a VMSA page: the TSC scale and offset, which the firmware may replace, are measured as zero."""
    page = bytes(page)
    return sha384(page[:_VMSA_UNMEASURED] + bytes(16) + page[_VMSA_UNMEASURED + 16 :]).digest()


class LaunchDigest:
    """A digest being extended.  `value` is LD; a new one is all zeros."""

    __slots__ = ("value",)

    def __init__(self, value: bytes = BLANK) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"<LaunchDigest {self.value.hex()} (simulated)>"

    def extend(
        self,
        page_type: int,
        gpa: int,
        contents: bytes,
        *,
        imi: bool = False,
        vmpl_masks: tuple[int, int, int] = (0, 0, 0),
    ) -> bytes:
        """Measure one page at guest physical address `gpa` (bytes) whose CONTENTS are given.  Returns the new digest."""
        kind = _KIND.pack(PAGE_INFO_SIZE, page_type, imi, 0, *vmpl_masks)
        self.value = sha384(self.value + contents + kind + gpa.to_bytes(8, "little")).digest()
        return self.value

    def extend_pages(
        self,
        page_type: int,
        gpa: int,
        view: memoryview,
        *,
        imi: bool = False,
        vmpl_masks: tuple[int, int, int] = (0, 0, 0),
    ) -> list[Row]:
        """Measure the consecutive pages in `view` with their contents; `gpa` (bytes) is that of the first."""
        kind = _KIND.pack(PAGE_INFO_SIZE, page_type, imi, 0, *vmpl_masks)
        rows: list[Row] = []
        for block in page_digests(view):
            self._chain(kind, gpa, block, rows)
            gpa += len(block) * PAGE_SIZE
        return rows

    def extend_blank(
        self,
        page_type: int,
        gpa: int,
        count: int,
        *,
        imi: bool = False,
        vmpl_masks: tuple[int, int, int] = (0, 0, 0),
    ) -> list[Row]:
        """Measure `count` consecutive pages without their contents."""
        rows: list[Row] = []
        self._chain(_KIND.pack(PAGE_INFO_SIZE, page_type, imi, 0, *vmpl_masks), gpa, [BLANK] * count, rows)
        return rows

    def _chain(self, kind: bytes, gpa: int, contents: list[bytes], rows: list[Row]) -> None:
        ld, sha, add = self.value, sha384, rows.append
        for digest in contents:
            ld = sha(ld + digest + kind + gpa.to_bytes(8, "little")).digest()
            add((gpa, digest, ld))
            gpa += PAGE_SIZE
        self.value = ld
