# SPDX-License-Identifier: GPL-2.0-or-later
"""A pin on a program's memory, as a driver takes one for its device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from ..mm.gup import get_user_pages_fast, put_pages
from ..uapi.mman import FOLL_LONGTERM, FOLL_PIN, FOLL_WRITE

if TYPE_CHECKING:
    from types import TracebackType

    from ..syscalls.door import Door

__all__ = ["Pin"]

PAGE_SIZE = 4096
_FLAGS = FOLL_PIN | FOLL_LONGTERM


class Pin:
    """`length` bytes at user address `address`, pinned for DMA (pin_user_pages) until `release`, or the end of a ``with``.

    A program gets there by way of a driver, such as VFIO or io_uring; here it asks for it.  The emulated kernel alone can
    do that.  Raises EFAULT, as for a page that is private.
    """

    def __init__(self, door: Door, address: int, length: int, *, write: bool = True) -> None:
        from ..syscalls.emulated import EmulatedDoor

        if not isinstance(door, EmulatedDoor):
            raise AttributeError("pinning takes a driver on a real kernel: VFIO, io_uring, or CONFIG_GUP_TEST")
        first, last = address // PAGE_SIZE, -(-(address + length) // PAGE_SIZE)
        self._door, self.pages = door, last - first
        with door.syscall():
            flags = _FLAGS | (FOLL_WRITE if write else 0)
            self._runs = get_user_pages_fast(door.mm, first * PAGE_SIZE, self.pages, flags)

    def release(self) -> None:
        """unpin_user_pages().  Further calls do nothing."""
        runs, self._runs = self._runs, []
        if runs:
            with self._door.syscall():
                put_pages(self._door.mm, runs, _FLAGS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<Pin of {self.pages} pages>" if self._runs else "<Pin, released>"
