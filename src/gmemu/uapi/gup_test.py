# SPDX-License-Identifier: GPL-2.0-or-later
"""What /sys/kernel/debug/gup_test is asked for (mm/gup_test.h), as far as it holds pages between calls."""

from __future__ import annotations

from .ioctl import IO, IOW
from .layout import Struct, u32, u64

__all__ = [
    "PIN_LONGTERM_TEST_FLAG_USE_FAST",
    "PIN_LONGTERM_TEST_FLAG_USE_WRITE",
    "PIN_LONGTERM_TEST_READ",
    "PIN_LONGTERM_TEST_START",
    "PIN_LONGTERM_TEST_STOP",
    "pin_longterm_test",
]

PIN_LONGTERM_TEST_FLAG_USE_WRITE = 1
PIN_LONGTERM_TEST_FLAG_USE_FAST = 2


class pin_longterm_test(Struct):
    """struct pin_longterm_test: user memory to pin, address and size in bytes."""

    addr: int = u64()
    size: int = u64()
    flags: int = u32()


PIN_LONGTERM_TEST_START = IOW(ord("g"), 7, pin_longterm_test)
PIN_LONGTERM_TEST_STOP = IO(ord("g"), 8)
PIN_LONGTERM_TEST_READ = IOW(ord("g"), 9, 8)
