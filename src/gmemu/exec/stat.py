# SPDX-License-Identifier: GPL-2.0-or-later
"""struct stat of x86-64, as fstat() fills it in (arch/x86/include/uapi/asm/stat.h)."""

from __future__ import annotations

from ..uapi.layout import Struct, u32, u64

__all__ = ["stat"]


class stat(Struct):
    """struct stat, up to the times."""

    st_dev: int = u64()
    st_ino: int = u64()
    st_nlink: int = u64()
    st_mode: int = u32()
    st_uid: int = u32()
    st_gid: int = u32()
    pad0: int = u32()
    st_rdev: int = u64()
    st_size: int = u64()
    st_blksize: int = u64()
    st_blocks: int = u64()
