# SPDX-License-Identifier: GPL-2.0-or-later
"""Memslots: which guest frames exist, and what backs them (virt/kvm/kvm_main.c)."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..hw.memory import PAGE_SHIFT, PAGE_SIZE
from ..invariants import UseAfterFree
from ..mm.uaccess import access_ok
from ..profiles.table import KVM_USER_MEM_SLOTS
from ..rangemap import RangeMap
from ..rules import kvm as rules
from ..uapi.kvm import KVM_MEM_GUEST_MEMFD, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, kvm_userspace_memory_region2
from .dirty import DirtyBitmap, initially_set
from .guest_memfd.binding import kvm_gmem_bind, kvm_gmem_unbind
from .guest_memfd.invalidate import Filter

if TYPE_CHECKING:
    from .guest_memfd.file import GmemFile
    from .vm import Vm

__all__ = ["KVM_MEMSLOT_GMEM_ONLY", "KVM_MEMSLOT_INVALID", "Memslot", "Memslots", "set_memory_region"]

KVM_MEMSLOT_INVALID = 1 << 16
KVM_MEMSLOT_GMEM_ONLY = 1 << 17
KVM_MEM_MAX_NR_PAGES = (1 << 31) - 1
_U64 = (1 << 64) - 1


class Memslot:
    """struct kvm_memory_slot.  `gmem_file` and `gmem_pgoff` (pages) say where in which guest_memfd it is bound."""

    __slots__ = (
        "as_id",
        "base_gfn",
        "dirty_bitmap",
        "flags",
        "freed",
        "gmem_file",
        "gmem_pgoff",
        "id",
        "npages",
        "userspace_addr",
    )

    def __init__(self, as_id: int, id: int, base_gfn: int, npages: int, flags: int, userspace_addr: int) -> None:
        self.as_id, self.id, self.base_gfn, self.npages = as_id, id, base_gfn, npages
        self.flags, self.userspace_addr = flags, userspace_addr
        self.gmem_file: GmemFile | None = None
        self.gmem_pgoff = 0
        self.dirty_bitmap: DirtyBitmap | None = None
        self.freed = False

    def live(self) -> Memslot:
        """The slot, which must not have been freed."""
        if self.freed:
            raise UseAfterFree(f"{self} is used after it was freed")
        return self

    @property
    def end_gfn(self) -> int:
        """One past the last guest frame."""
        return self.base_gfn + self.npages

    @property
    def has_gmem(self) -> bool:
        """kvm_slot_has_gmem()."""
        return bool(self.flags & KVM_MEM_GUEST_MEMFD)

    @property
    def gmem_only(self) -> bool:
        """kvm_memslot_is_gmem_only(): guest_memfd serves shared accesses too."""
        return bool(self.flags & KVM_MEMSLOT_GMEM_ONLY)

    def gmem_index(self, gfn: int) -> int:
        """kvm_gmem_get_index(): the file page that backs `gfn`."""
        return gfn - self.base_gfn + self.gmem_pgoff

    def copy(self) -> Memslot:
        """kvm_copy_memslot(): all but the binding, so a slot that is going away has no guest_memfd."""
        other = Memslot(self.as_id, self.id, self.base_gfn, self.npages, self.flags, self.userspace_addr)
        other.dirty_bitmap = self.dirty_bitmap
        return other

    def __lt__(self, other: Memslot) -> bool:
        return self.base_gfn < other.base_gfn

    def __repr__(self) -> str:
        return f"<Memslot {self.id} gfn {self.base_gfn:#x}-{self.end_gfn:#x} flags {self.flags:#x}>"


class _SlotSet(dict[Memslot, None]):
    """Slots in order of their coming.  Two sets are never one, even if they hold the same, as they change on their own."""

    __slots__ = ()
    __eq__ = object.__eq__
    __ne__ = object.__ne__
    __hash__ = None


class Memslots:
    """The slots of one address space, by id, by guest frame, and by user page."""

    def __init__(self) -> None:
        self.by_id: dict[int, Memslot] = {}
        self._sorted: list[Memslot] = []
        self._by_vpn: RangeMap[_SlotSet] = RangeMap()

    def find(self, gfn: int) -> Memslot | None:
        """gfn_to_memslot()."""
        i = bisect_right(self._sorted, gfn, key=lambda slot: slot.base_gfn)
        if i and gfn < self._sorted[i - 1].end_gfn:
            return self._sorted[i - 1]
        return None

    def overlapping(self, start: int, end: int) -> list[Memslot]:
        """The slots that meet guest frames [start, end), in order."""
        i = bisect_right(self._sorted, start, key=lambda slot: slot.base_gfn)
        i -= bool(i and self._sorted[i - 1].end_gfn > start)
        found = []
        while i < len(self._sorted) and self._sorted[i].base_gfn < end:
            found.append(self._sorted[i])
            i += 1
        return found

    def backed_by(self, start_vpn: int, end_vpn: int) -> Iterator[tuple[Memslot, int, int]]:
        """kvm_for_each_memslot_in_hva_range(): where user pages [start, end) are guest memory, as slot and guest frames.

        A slot may be told in several parts.
        """
        for start, end, slots in self._by_vpn.runs(start_vpn, end_vpn):
            for slot in slots:
                delta = slot.base_gfn - (slot.userspace_addr >> PAGE_SHIFT)
                yield slot, start + delta, end + delta

    def replace(self, old: Memslot | None, new: Memslot | None) -> None:
        """kvm_replace_memslot(): one goes, one comes; either may be none."""
        if old is not None:
            del self.by_id[old.id]
            i = bisect_right(self._sorted, old.base_gfn, key=lambda slot: slot.base_gfn)
            del self._sorted[i - 1]
            for start, end, slots in self._vpns(old):
                del slots[old]
                if not slots:
                    self._by_vpn.clear(start, end)
        if new is not None:
            self.by_id[new.id] = new
            insort(self._sorted, new)
            for _, _, slots in self._vpns(new):
                slots[new] = None

    def _vpns(self, slot: Memslot) -> Iterator[tuple[int, int, _SlotSet]]:
        """The slot's user pages, in runs that have a set of slots of their own, to be changed by the caller."""
        at, last = slot.userspace_addr >> PAGE_SHIFT, (slot.userspace_addr >> PAGE_SHIFT) + slot.npages
        while at < last:
            start, end, slots = self._by_vpn.run(at)
            stop = min(end, last)
            if slots is None or (start, end) != (at, stop):
                if slots is not None and stop < end:  # what is left on the two sides must not be one set
                    self._by_vpn.set(stop, end, _SlotSet(slots))
                slots = _SlotSet(slots or {slot: None})
                self._by_vpn.set(at, stop, slots)
            yield at, stop, slots
            at = stop

    def __len__(self) -> int:
        return len(self.by_id)


def set_memory_region(vm: Vm, mem: kvm_userspace_memory_region2) -> None:
    """kvm_vm_ioctl_set_memory_region() and kvm_set_memory_region(): create, move, change flags of, or delete a slot."""
    if mem.slot & 0xFFFF >= KVM_USER_MEM_SLOTS:
        raise rules.SLOT_ID_USER(f"slot {mem.slot & 0xFFFF}, limit {KVM_USER_MEM_SLOTS}")
    with vm.slots_lock:
        _set_memory_region(vm, mem)


def _check_region(vm: Vm, mem: kvm_userspace_memory_region2) -> None:
    """check_memory_region_flags() and the general sanity checks of kvm_set_memory_region()."""
    gmem = mem.flags & KVM_MEM_GUEST_MEMFD
    valid = KVM_MEM_LOG_DIRTY_PAGES
    if vm.profile.gmem_for_default_vm or vm.arch.has_private_mem:
        valid |= KVM_MEM_GUEST_MEMFD
    if gmem:
        valid &= ~KVM_MEM_LOG_DIRTY_PAGES
    elif not vm.arch.has_protected_state:
        valid |= KVM_MEM_READONLY
    if mem.flags & ~valid:
        raise rules.SLOT_FLAGS(f"flags {mem.flags:#x}, allowed {valid:#x}")
    if mem.memory_size & (PAGE_SIZE - 1):
        raise rules.SLOT_SIZE(f"size {mem.memory_size:#x}")
    if mem.guest_phys_addr & (PAGE_SIZE - 1):
        raise rules.SLOT_GPA(f"gpa {mem.guest_phys_addr:#x}")
    if mem.userspace_addr & (PAGE_SIZE - 1) or not access_ok(mem.userspace_addr, mem.memory_size):
        raise rules.SLOT_HVA(f"userspace_addr {mem.userspace_addr:#x}, size {mem.memory_size:#x}")
    if gmem and (mem.guest_memfd_offset & (PAGE_SIZE - 1) or mem.guest_memfd_offset + mem.memory_size > _U64):
        raise rules.SLOT_GMEM_OFFSET(f"offset {mem.guest_memfd_offset:#x}, size {mem.memory_size:#x}")
    if mem.slot >> 16 >= vm.arch.nr_memslot_as_ids:
        raise rules.SLOT_AS(f"address space {mem.slot >> 16}, the VM has {vm.arch.nr_memslot_as_ids}")
    if mem.guest_phys_addr + mem.memory_size > _U64:
        raise rules.SLOT_GPA_WRAP(f"gpa {mem.guest_phys_addr:#x}, size {mem.memory_size:#x}")
    if mem.memory_size >> PAGE_SHIFT > KVM_MEM_MAX_NR_PAGES:
        raise rules.SLOT_PAGES(f"{mem.memory_size >> PAGE_SHIFT} pages")


def _set_memory_region(vm: Vm, mem: kvm_userspace_memory_region2) -> None:
    _check_region(vm, mem)
    as_id, slot_id = mem.slot >> 16, mem.slot & 0xFFFF
    slots = vm.memslots[as_id]
    old = slots.by_id.get(slot_id)
    if not mem.memory_size:
        if old is None:
            raise rules.SLOT_DELETE_NONE(f"slot {slot_id}")
        _delete(vm, slots, old)
        return
    base_gfn, npages = mem.guest_phys_addr >> PAGE_SHIFT, mem.memory_size >> PAGE_SHIFT
    moved = old is not None and base_gfn != old.base_gfn
    if old is not None:
        if mem.flags & KVM_MEM_GUEST_MEMFD:
            raise rules.SLOT_IMMUTABLE(f"slot {slot_id}")
        fixed = vm.host.design.fixed_slot_flags
        if mem.userspace_addr != old.userspace_addr or npages != old.npages or (mem.flags ^ old.flags) & fixed:
            raise rules.SLOT_MODIFY(f"{old} against {mem!r}")
        if not moved and mem.flags == old.flags:
            return
    if old is None or moved:
        others = [slot for slot in slots.overlapping(base_gfn, base_gfn + npages) if slot.id != slot_id]
        if others:
            raise rules.SLOT_OVERLAP(f"gfn {base_gfn:#x}-{base_gfn + npages:#x} meets {others[0]}")
    new = Memslot(as_id, slot_id, base_gfn, npages, mem.flags, mem.userspace_addr)
    if mem.flags & KVM_MEM_GUEST_MEMFD:
        kvm_gmem_bind(vm, new, mem.guest_memfd, mem.guest_memfd_offset)
    try:
        _set_memslot(vm, slots, old, new, moved)
    except BaseException:
        if mem.flags & KVM_MEM_GUEST_MEMFD:
            kvm_gmem_unbind(vm, new)
        raise


def _set_memslot(vm: Vm, slots: Memslots, old: Memslot | None, new: Memslot, moved: bool) -> None:
    """kvm_set_memslot() for CREATE, MOVE and FLAGS_ONLY."""
    invalid = _invalidate_memslot(vm, slots, old) if moved and old is not None else None
    try:
        _prepare_memory_region(vm, old, new)
    except BaseException:
        if invalid is not None and old is not None:
            _swap(vm, slots, invalid, old)
        raise
    _swap(vm, slots, invalid or old, new)
    if old is not None:
        old.freed = True
        if not moved and new.flags & ~old.flags & KVM_MEM_LOG_DIRTY_PAGES and not initially_set(vm):
            with vm.mmu_lock.exclusive:
                vm.mmu.write_protect(new.base_gfn, new.end_gfn)
            vm.flush_remote_tlbs()


def _prepare_memory_region(vm: Vm, old: Memslot | None, new: Memslot) -> None:
    """kvm_prepare_memory_region(): the dirty bitmap; then kvm_arch_prepare_memory_region()."""
    if new.flags & KVM_MEM_LOG_DIRTY_PAGES:
        if old is not None and old.dirty_bitmap is not None:
            new.dirty_bitmap = old.dirty_bitmap
        else:
            new.dirty_bitmap = DirtyBitmap(new.npages, initially_set(vm))
    bits = vm.host.maxphyaddr
    if new.end_gfn - 1 >> bits - PAGE_SHIFT:
        raise rules.SLOT_MAX_GFN(f"slot {new.id} ends at gfn {new.end_gfn:#x}, of {bits} bits' worth of bytes")
    vm.arch.check_gfn(new.end_gfn - 1)
    vm.arch.prepare_memory_region(old, new)


def _delete(vm: Vm, slots: Memslots, old: Memslot) -> None:
    """kvm_set_memslot(KVM_MR_DELETE): zap while the slot is INVALID, then take it away, then unbind it."""
    invalid = _invalidate_memslot(vm, slots, old)
    try:
        vm.arch.prepare_memory_region(old, None)
    except BaseException:
        _swap(vm, slots, invalid, old)
        raise
    _swap(vm, slots, invalid, None)
    if old.has_gmem:
        vm.host.design.unbind(vm, old)
    old.freed = invalid.freed = True


def _invalidate_memslot(vm: Vm, slots: Memslots, old: Memslot) -> Memslot:
    """kvm_invalidate_memslot(): nobody may map the slot any more; then zap what is mapped (kvm_arch_flush_shadow_memslot).

    No invalidation is counted for that: who saw the slot valid has left SRCU by now, and its entries are there to be zapped.
    """
    invalid = old.copy()
    invalid.flags |= KVM_MEMSLOT_INVALID
    _swap(vm, slots, old, invalid)
    with vm.mmu_lock.exclusive:
        if old.gmem_file is not None:
            vm.arch.invalidate_range(old.base_gfn, old.end_gfn)
        if vm.arch.unmap_range(old.base_gfn, old.end_gfn, Filter.SHARED | Filter.PRIVATE):
            vm.flush_remote_tlbs()
    return invalid


def _swap(vm: Vm, slots: Memslots, old: Memslot | None, new: Memslot | None) -> None:
    """kvm_swap_active_memslots(): publish while no invalidation by user address is under way, which has to find the same
    slots when it ends; then wait until no reader can have seen what was."""
    with vm.slots_arch_lock, vm.mn_active_invalidate.exclusive:
        vm.rt.writes(("memslots", vm))
        slots.replace(old, new)
        vm.had_memslots = True
    vm.srcu.synchronize()
