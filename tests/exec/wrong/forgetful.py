# SPDX-License-Identifier: GPL-2.0-or-later
"""A page that becomes private loses what it held."""

from __future__ import annotations

from gmemu.kvm.guest_memfd import conversion
from gmemu.kvm.guest_memfd.inode import GmemInode

_publish = conversion.publish


def _publish_and_forget(inode: GmemInode, start: int, end: int, attributes: int) -> None:
    _publish(inode, start, end, attributes)
    if attributes:
        inode.mapping.truncate_range(start, end)


conversion.publish = _publish_and_forget
