# SPDX-License-Identifier: GPL-2.0-or-later
"""Python knows some of these for the machine it runs on; where that is x86-64 Linux the two must agree."""

from __future__ import annotations

import fcntl
import mmap
import os
import platform
import sys

import pytest

from gmemu.uapi import mman


def test_fallocate_modes() -> None:
    names = ("KEEP_SIZE", "PUNCH_HOLE", "NO_HIDE_STALE", "COLLAPSE_RANGE", "ZERO_RANGE", "INSERT_RANGE", "UNSHARE_RANGE")
    assert [getattr(mman, f"FALLOC_FL_{name}") for name in names] == [1 << i for i in range(7)]
    assert mman.FALLOC_FL_ALLOCATE_RANGE == 0
    assert mman.FALLOC_FL_WRITE_ZEROES == 0x80


def test_gup() -> None:
    assert mman.FOLL_WRITE == 1
    assert mman.FOLL_LONGTERM == 0x100
    assert mman.FOLL_PIN == 0x80000
    assert mman.GUP_PIN_COUNTING_BIAS == 1024


def test_memory_failure_advice() -> None:
    assert (mman.MADV_HWPOISON, mman.MADV_SOFT_OFFLINE) == (100, 101)
    assert (mman.MADV_POPULATE_READ, mman.MADV_POPULATE_WRITE, mman.MADV_COLLAPSE) == (22, 23, 25)


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="Python's constants are x86-64 Linux's only there"
)
def test_agrees_with_python() -> None:
    names = [name for name in mman.__all__ if name not in {"O_LARGEFILE"}]  # 0 in a 64-bit C library
    found = {name: getattr(m, name) for m in (fcntl, mmap, os) for name in names if hasattr(m, name)}
    assert len(found) > 40
    assert found == {name: getattr(mman, name) for name in found}
