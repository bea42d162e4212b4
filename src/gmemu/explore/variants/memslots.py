# SPDX-License-Identifier: GPL-2.0-or-later
"""Memslots and their bindings handled otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...kvm.guest_memfd.binding import kvm_gmem_unbind
from ...uapi.kvm import KVM_MEM_READONLY
from .variant import Variant

if TYPE_CHECKING:
    from ...kvm.memslots import Memslot
    from ...kvm.vm import Vm

__all__ = ["VARIANTS"]


def _skip_dying(vm: Vm, slot: Memslot) -> None:
    """A file whose last reference is gone will forget its bindings by itself; so it's left alone."""
    file = slot.gmem_file
    if file is not None:
        vm.rt.reads(("file-count", file))
        if file.count:
            kvm_gmem_unbind(vm, slot)


VARIANTS = (
    Variant(
        "unbind-skips-dying-file",
        "deleting a memslot leaves its binding in a guest_memfd that is being closed",
        "virt/kvm/guest_memfd.c: kvm_gmem_unbind() until its fix of late 2025",
        lambda d: d._replace(unbind=_skip_dying),
    ),
    Variant(
        "gmem-flag-toggled",
        "KVM_MEM_GUEST_MEMFD of a memslot can be taken away by a change of flags, which leaves the binding",
        "virt/kvm/kvm_main.c: kvm_set_memory_region() until its fix of late 2025",
        lambda d: d._replace(fixed_slot_flags=KVM_MEM_READONLY),
    ),
)
