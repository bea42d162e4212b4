# SPDX-License-Identifier: GPL-2.0-or-later
"""Which pages of a slot the guest has written (virt/kvm/kvm_main.c: KVM_GET_DIRTY_LOG and KVM_CLEAR_DIRTY_LOG)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..mm.uaccess import UserPointer, copy_from_user, read_user, write_user
from ..profiles.table import KVM_USER_MEM_SLOTS
from ..rules import kvm as rules
from ..uapi.kvm import (
    KVM_DIRTY_LOG_INITIALLY_SET,
    KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
    kvm_clear_dirty_log,
    kvm_dirty_log,
)

if TYPE_CHECKING:
    from .memslots import Memslot
    from .vm import Vm

__all__ = ["DirtyBitmap", "clear_dirty_log", "get_dirty_log", "initially_set"]

_LONG = 64
_SET = re.compile(rb"[^\0]+")


class DirtyBitmap:
    """memslot->dirty_bitmap: a bit for each page of a slot, in whole longs as user space gets it."""

    __slots__ = ("bits",)

    def __init__(self, npages: int, dirty: bool = False) -> None:
        self.bits = bytearray(-(-npages // _LONG) * (_LONG // 8))
        if dirty:
            self.bits[: npages // 8] = b"\xff" * (npages // 8)
            for page in range(npages & ~7, npages):
                self.mark(page)

    def mark(self, page: int) -> None:
        """mark_page_dirty_in_slot()."""
        self.bits[page >> 3] |= 1 << (page & 7)

    def __contains__(self, page: int) -> bool:
        return bool(self.bits[page >> 3] >> (page & 7) & 1)

    def clear(self, first: int, mask: bytes) -> bytes:
        """Clear from page `first`, a multiple of 8, what is set in `mask`; those of them that were set."""
        start, end = first >> 3, (first >> 3) + len(mask)
        old, clear = int.from_bytes(self.bits[start:end], "little"), int.from_bytes(mask, "little")
        self.bits[start:end] = (old & ~clear).to_bytes(end - start, "little")
        return (old & clear).to_bytes(end - start, "little")


def initially_set(vm: Vm) -> bool:
    """kvm_dirty_log_manual_protect_and_init_set(): a log begins with every page dirty, and nothing write-protected."""
    both = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET
    return vm.manual_dirty_log_protect & both == both


def _slot(vm: Vm, number: int, first_page: int = 0) -> Memslot:
    """The slot that `number` names, which must exist and have a log; `first_page` is looked at between the two checks."""
    as_id, slot_id = number >> 16, number & 0xFFFF
    if as_id >= vm.arch.nr_memslot_as_ids or slot_id >= KVM_USER_MEM_SLOTS:
        raise rules.DIRTY_SLOT(f"slot {number:#x}")
    if first_page % _LONG:
        raise rules.CLEAR_LOG_RANGE(f"first page {first_page:#x}")
    slot = vm.memslots[as_id].by_id.get(slot_id)
    if slot is None or slot.dirty_bitmap is None:
        raise rules.DIRTY_NONE(f"slot {slot_id}")
    return slot


def _bitmap(slot: Memslot) -> DirtyBitmap:
    assert slot.dirty_bitmap is not None
    return slot.dirty_bitmap


def _runs(bits: bytes) -> Iterator[tuple[int, int]]:
    """The runs of set bits, as [start, end)."""
    start = end = 0
    for found in _SET.finditer(bits):
        for at, byte in enumerate(found.group(), found.start()):
            for bit in range(8 * at, 8 * at + 8):
                if not byte >> (bit & 7) & 1:
                    continue
                if bit != end:
                    if end > start:
                        yield start, end
                    start = bit
                end = bit + 1
    if end > start:
        yield start, end


def _clear(vm: Vm, slot: Memslot, first: int, mask: bytes) -> None:
    """Clear what is set in `mask`, and have the next write to each page that was dirty fault.  slots_lock is held."""
    with vm.mmu_lock.exclusive:
        cleared = _bitmap(slot).clear(first, mask)
        base = slot.base_gfn + first
        for start, end in _runs(cleared):
            vm.mmu.write_protect(base + start, base + end)
    if any(cleared):
        vm.flush_remote_tlbs()


def get_dirty_log(vm: Vm, arg: UserPointer) -> int:
    """kvm_get_dirty_log_protect(): copy the bitmap out; clear it and protect what was dirty, unless that's left to
    KVM_CLEAR_DIRTY_LOG.  Raises EINVAL, ENOENT, and EFAULT after it was cleared."""
    mm = vm.rt.current.mm
    log = copy_from_user(mm, kvm_dirty_log, arg)
    with vm.slots_lock:
        slot = _slot(vm, log.slot)
        bits = bytes(_bitmap(slot).bits)
        if not vm.manual_dirty_log_protect:
            _clear(vm, slot, 0, bits)
        write_user(mm, log.dirty_bitmap, bits)
    return 0


def clear_dirty_log(vm: Vm, arg: UserPointer) -> int:
    """kvm_clear_dirty_log_protect(): pages that user space has dealt with are clean, and protected again.

    Whole longs, but for the slot's last.  Raises EINVAL, ENOENT, EFAULT.
    """
    mm = vm.rt.current.mm
    log = copy_from_user(mm, kvm_clear_dirty_log, arg)
    with vm.slots_lock:
        slot = _slot(vm, log.slot, log.first_page)
        left = slot.npages - log.first_page
        if left < 0 or log.num_pages > left or (log.num_pages < left and log.num_pages % _LONG):
            raise rules.CLEAR_LOG_RANGE(f"pages {log.first_page:#x} and {log.num_pages:#x} more, {slot}")
        mask = read_user(mm, log.dirty_bitmap, -(-log.num_pages // _LONG) * (_LONG // 8))
        _clear(vm, slot, log.first_page, mask)
    return 0
