# SPDX-License-Identifier: GPL-2.0-or-later
"""The flags of a memslot are changed."""

from __future__ import annotations

from ..explore.verdict import Kind
from .worlds import PAGE, OnePage

__all__ = ["SlotFlags"]


class SlotFlags(OnePage):
    """User space takes KVM_MEM_GUEST_MEMFD away from a slot that has it; then the file is closed."""

    number = 26
    name = "slot-flags"
    question = "Can a change of a slot's flags leave a binding behind?"
    source = "virt/kvm/kvm_main.c: kvm_set_memory_region(); its fix of late 2025"
    broken_by = {"gmem-flag-toggled": Kind.USE_AFTER_FREE}

    def tasks(self) -> None:
        address = self.memory.address
        self.task("change", lambda: self.vm.set_user_memory_region2(0, 0, PAGE, userspace_addr=address))
        self.task("punch", lambda: self.gmem.punch_hole(0, PAGE))

    def holds(self) -> None:
        assert self.seen == {"change": "kvm.slot.modify", "punch": None}
