# SPDX-License-Identifier: GPL-2.0-or-later
"""An image that looks like an arm64 kernel from the outside.  It isn't one: nothing boots from it."""

from __future__ import annotations

import struct
from hashlib import shake_128

__all__ = ["make_kernel"]


def make_kernel(size: int = 64 << 10, *, seed: int = 0, text_offset: int = 0) -> bytes:
    """`size` bytes with the header of an arm64 Image; contents depend on `seed`."""
    header = struct.pack("<IIQQQQQQ4sI", 0x91005A4D, 0x14000010, text_offset, size, 0xA, 0, 0, 0, b"ARM\x64", 0)
    body = shake_128(b"gmemu arm64 image" + seed.to_bytes(8, "little")).digest(size - len(header))
    return header + body
