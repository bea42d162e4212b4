# SPDX-License-Identifier: GPL-2.0-or-later
"""A memslot is deleted while its guest_memfd is closed."""

from __future__ import annotations

from ..explore.verdict import Kind
from .worlds import OnePage

__all__ = ["SlotDeleteAgainstRelease"]


class SlotDeleteAgainstRelease(OnePage):
    """The last reference to the file goes, and the slot with it; each has a pointer to the other."""

    number = 26
    name = "slot-release"
    question = "Can a closing guest_memfd use a memslot that was freed?"
    source = "guest-memfd S32; virt/kvm/guest_memfd.c: kvm_gmem_release()"
    broken_by = {"unbind-skips-dying-file": Kind.USE_AFTER_FREE}

    def tasks(self) -> None:
        self.memory.close()
        self.task("delete", lambda: self.vm.delete_slot(0))
        self.task("close", self.gmem.close)

    def holds(self) -> None:
        assert self.seen == {"delete": None, "close": None}
        assert not self.host.gmem_inodes or not self.inode.files, "the file is still there"
