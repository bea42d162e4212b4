# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a host can be told to fail: what it says to whoever orders failures (`gmemu.faults`), if there is somebody."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ..mm.file import File
    from ..mm.uaccess import UserPointer
    from ..sync import Runtime
    from .host import Host

__all__ = ["FaultPoints"]


class FaultPoints(Protocol):
    """Given to a `Host` when it's made; a host without one doesn't ask."""

    def runtime(self) -> Runtime:
        """The runtime that the host is to have, if it's given none: one by which things can happen in between."""

    def attach(self, host: Host) -> None:
        """The host is being made; its memory is there."""

    def detach(self, host: Host) -> None:
        """The host is about to be switched off."""

    def entity(self, entity: object) -> None:
        """One of its trusted entities was made (SnpPlatform, TdxPlatform, RmmPlatform): what has an `inject` may be given
        one."""

    def allocate(self, site: str) -> bool:
        """Whether this kernel allocation fails."""

    def ioctl(self, host: Host, file: File, request: int, arg: UserPointer) -> AbstractContextManager[None]:
        """Around an ioctl."""

    def call(self, host: Host, name: str, file: File, arg: UserPointer = 0) -> AbstractContextManager[None]:
        """Around another system call."""
