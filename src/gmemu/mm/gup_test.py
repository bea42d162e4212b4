# SPDX-License-Identifier: GPL-2.0-or-later
"""/sys/kernel/debug/gup_test (mm/gup_test.c): pins user pages and keeps them, for who wants to see what that does."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from ..hw.memory import PAGE_SHIFT, PAGE_SIZE
from ..rules import mm as rules
from ..uapi.gup_test import (
    PIN_LONGTERM_TEST_FLAG_USE_FAST,
    PIN_LONGTERM_TEST_FLAG_USE_WRITE,
    PIN_LONGTERM_TEST_READ,
    PIN_LONGTERM_TEST_START,
    PIN_LONGTERM_TEST_STOP,
    pin_longterm_test,
)
from ..uapi.mman import FOLL_LONGTERM, FOLL_PIN, FOLL_WRITE
from .file import File, Inode
from .holder import PageHolder
from .page import Memmap
from .uaccess import copy_from_user, read_user, write_user

if TYPE_CHECKING:
    from .address_space import AddressSpace
    from .uaccess import UserPointer

__all__ = ["GUP_TEST", "GupTestFile"]

GUP_TEST = "/sys/kernel/debug/gup_test"
_FLAGS = PIN_LONGTERM_TEST_FLAG_USE_WRITE | PIN_LONGTERM_TEST_FLAG_USE_FAST
_LONG_MAX = (1 << 63) - 1


class _Pinned(PageHolder):
    readable = True


class GupTestFile(File):
    """An open gup_test: struct gup_test_data.  Each open file has pins of its own, as in Linux 7.3; 6.12 has them once
    for all files."""

    name = "gup_test"

    def __init__(self, memmap: Memmap) -> None:
        super().__init__(Inode(0o100600))
        self._memmap = memmap
        self._pinned: PageHolder | None = None

    def ioctl(self, request: int, arg: UserPointer) -> int:
        """pin_longterm_test_ioctl().  Raises EINVAL (`mm.gup-test.*`), EFAULT (`mm.uaccess`, `mm.gup.fault`), ENOMEM.

        The benchmarks among gup_test's calls measure a kernel's speed, which isn't to be had here.
        """
        mm = self._memmap.rt.current.mm
        if request == PIN_LONGTERM_TEST_START:
            self._start(mm, copy_from_user(mm, pin_longterm_test, arg) if self._pinned is None else None)
        elif request == PIN_LONGTERM_TEST_STOP:
            self._stop()
        elif request == PIN_LONGTERM_TEST_READ:
            self._read(mm, arg)
        else:
            raise rules.GUP_TEST_REQUEST(f"{request:#x}")
        return 0

    def _start(self, mm: AddressSpace, args: pin_longterm_test | None) -> None:
        """pin_longterm_test_start()."""
        if args is None:
            raise rules.GUP_TEST_STARTED(f"{len(self._pinned or ())} pages")
        if args.flags & ~_FLAGS:
            raise rules.GUP_TEST_FLAGS(f"flags {args.flags:#x}")
        if (args.addr | args.size) & (PAGE_SIZE - 1) or args.size > _LONG_MAX or not args.size:
            raise rules.GUP_TEST_RANGE(f"address {args.addr:#x}, size {args.size:#x}")
        flags = FOLL_PIN | FOLL_LONGTERM
        if args.flags & PIN_LONGTERM_TEST_FLAG_USE_WRITE:
            flags |= FOLL_WRITE
        task = self._memmap.rt.current
        holder = _Pinned(self._memmap, f"gup_test, PIN_LONGTERM_TEST_START of {args.addr:#x} by {task.name}", flags)
        holder.hold(mm, args.addr, args.size >> PAGE_SHIFT)
        self._pinned = holder

    def _read(self, mm: AddressSpace, arg: UserPointer) -> None:
        """pin_longterm_test_read(): the pages' contents, to the user address that `arg` leads to."""
        if self._pinned is None:
            raise rules.GUP_TEST_NOT_STARTED("no page is pinned")
        data = read_user(mm, arg, 8) if isinstance(arg, int) else bytes(arg[:8])
        [address] = struct.unpack("<Q", data)
        for page in self._pinned.contents():
            write_user(mm, address, page)
            address += PAGE_SIZE

    def _stop(self) -> None:
        """pin_longterm_test_stop()."""
        if self._pinned is not None:
            self._pinned.release()
            self._pinned = None

    def release(self) -> None:
        """gup_test_release(): closing the file lets go, too."""
        self._stop()
