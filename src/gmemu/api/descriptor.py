# SPDX-License-Identifier: GPL-2.0-or-later
"""An owned file descriptor behind a door."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from ..mm.file import Stat
from ..mm.uaccess import UserPointer
from ..syscalls.door import Door

__all__ = ["Descriptor"]


class Descriptor:
    """A file descriptor that is closed with its object: use it in a ``with`` statement, or call `close`."""

    def __init__(self, door: Door, fd: int) -> None:
        self.door, self.fd = door, fd
        self._ioctl = door.ioctl

    def ioctl(self, request: int, arg: UserPointer = 0) -> int:
        """Any ioctl, for what has no method.  `arg` is a number, a user address, or a buffer."""
        return self._ioctl(self.fd, request, arg)

    def fileno(self) -> int:
        """The descriptor's number, in the process behind the door."""
        return self.fd

    def stat(self) -> Stat:
        """fstat()."""
        return self.door.fstat(self.fd)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self.fd < 0

    def close(self) -> None:
        """Close the descriptor.  Further calls do nothing."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            self.door.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} fd {self.fd} ({self.door.name})>"
