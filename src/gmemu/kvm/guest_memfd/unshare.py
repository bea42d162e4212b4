# SPDX-License-Identifier: GPL-2.0-or-later
"""A protected guest of pKVM wants a shared page back, inside KVM_RUN (discussion A): what guest_memfd does for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...uapi.kvm import KVM_MEMORY_ATTRIBUTE_PRIVATE
from .conversion import ConversionError, convert_locked

if TYPE_CHECKING:
    from .inode import GmemInode

__all__ = ["Unshare"]


class Unshare:
    """What a protected guest's page goes through on its way back to the guest.

    As long as somebody on the host's side holds it, the vCPU exits again (continuation 2a)."""

    user_space_converts = False

    def may_enter(self, inode: GmemInode, index: int) -> bool:
        """User space ran the vCPU again: whether the guest may go on, with its page or without."""
        return self.take(inode, index)

    def take(self, inode: GmemInode, index: int) -> bool:
        """Make the page private, if nobody holds it.  The invalidate lock is held for writing."""
        try:
            convert_locked(inode, index, index + 1, KVM_MEMORY_ATTRIBUTE_PRIVATE)
        except ConversionError:
            return False
        return True
