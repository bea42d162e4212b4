# SPDX-License-Identifier: GPL-2.0-or-later
"""Page ownership at EL2 (arch/arm64/kvm/hyp/nvhe/mem_protect.c, pkvm.c), Linux 7.3.

The host is one component, each guest another, the hypervisor a third; a page's state is kept for each.  A page that the
host gives away is gone from the host's own stage 2, where its owner's id and gfn are kept instead.  Calls return 0 or a
negative errno, as the hypercalls do.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from errno import EAGAIN, EBUSY, EEXIST, EINVAL, ENOENT, ENOMEM, EPERM
from typing import NamedTuple

from ...invariants import InvariantViolation
from ...rangemap import RangeMap
from ...sync import Runtime
from ...uapi.errno import EHWPOISON
from ..memory import PAGE_SHIFT, PhysicalMemory
from ..tlb import Tlb, Translation

__all__ = ["El2Call", "El2Vcpu", "El2Vm", "GuestEntry", "HostEntry", "Hypervisor", "Owner", "PageState"]

BITS_PER_LEVEL = 9
LAST_LEVEL = 3
KVM_MAX_PVMS = 255
HANDLE_OFFSET = 0x1000
MAX_SHARES = 0xFFFFFFFF


class PageState(IntEnum):
    """enum pkvm_page_state."""

    OWNED = 0
    SHARED_OWNED = 1
    SHARED_BORROWED = 2
    NOPAGE = 3


class Owner(IntEnum):
    """Who has a page that the host hasn't (enum pkvm_component_id)."""

    HOST = 0
    HYP = 1
    GUEST = 2


class El2Call(IntEnum):
    """What can be ordered to fail: the host's hypercalls, and the guest's.  The numbers are ours; the kernel's shift from
    release to release."""

    DONATE_GUEST = 1
    SHARE_GUEST = 2
    UNSHARE_GUEST = 3
    RESERVE_VM = 4
    INIT_VM = 5
    INIT_VCPU = 6
    FORCE_RECLAIM_GUEST_PAGE = 7
    RECLAIM_DYING_GUEST_PAGE = 8
    MEM_SHARE = 9
    MEM_UNSHARE = 10
    COMPLETE_UNSHARE = 11
    RECLAIM_GUEST_PAGE = 12


class HostEntry(NamedTuple):
    """What the hypervisor keeps of a page that isn't simply the host's: the host's state, and the guest page that it is."""

    state: PageState
    owner: Owner
    handle: int = 0
    gfn: int = 0
    shares: int = 0
    """with how many ordinary guests' pages the host shares it"""


class GuestEntry(NamedTuple):
    """A leaf of a guest's stage 2: poisoned, or a page frame with the guest's state of it."""

    pfn: int
    state: PageState
    poisoned: bool = False
    unsharing: bool = False
    """the guest wants it back, and doesn't reach it until the host has let go of it (proposed, with guest_memfd)"""

    @property
    def mapped(self) -> bool:
        """Whether the guest's accesses get there."""
        return not self.poisoned and not self.unsharing


class El2Vcpu:
    """A vCPU that the hypervisor knows; `memcache` is how many pages the host has topped it up with."""

    def __init__(self, vm: El2Vm) -> None:
        self.vm = vm
        self.memcache: list[int] = []


class El2Vm:
    """struct pkvm_hyp_vm: `entries` is the stage 2 by gfn, `tables` the table pages below its root."""

    def __init__(self, rt: Runtime, handle: int, ipa_bits: int) -> None:
        self.handle, self.ipa_bits = handle, ipa_bits
        self.lock = rt.spinlock("hyp_vm->lock")
        self.entries: dict[int, GuestEntry] = {}
        self.tables: dict[tuple[int, int], int] = {}
        """(level, index) -> page frame of the table"""
        self.tlbs: list[Tlb] = []
        self.created = self.dying = False
        self.metadata: list[int] = []
        """pages that the host donated for the VM itself"""

    @property
    def start_level(self) -> int:
        """Where a walk begins: up to 16 tables stand side by side there, which saves a level."""
        bits = self.ipa_bits - PAGE_SHIFT - 4
        return LAST_LEVEL + 1 - max(-(-bits // BITS_PER_LEVEL), 1)

    @property
    def min_pages(self) -> int:
        """kvm_mmu_cache_min_pages(): what mapping one page may take."""
        return LAST_LEVEL - self.start_level

    def missing_tables(self, gfn: int) -> list[tuple[int, int]]:
        """The tables that a leaf at `gfn` still needs."""
        levels = range(self.start_level + 1, LAST_LEVEL + 1)
        wanted = [(level, gfn >> BITS_PER_LEVEL * (LAST_LEVEL + 1 - level)) for level in levels]
        return [table for table in wanted if table not in self.tables]


class Hypervisor:
    """The hypervisor of one machine.  `inject(call, gfn)` may order a call to fail: an errno, or None (a page frame
    for FORCE_RECLAIM_GUEST_PAGE, a handle where there is no page)."""

    def __init__(self, rt: Runtime, memory: PhysicalMemory) -> None:
        self.rt, self.memory = rt, memory
        self.host_lock = rt.spinlock("host_mmu.lock")
        self.vm_table_lock = rt.spinlock("vm_table_lock")
        self.pages: RangeMap[HostEntry] = RangeMap()
        """what isn't here is the host's own: OWNED, and nobody else's"""
        self.vms: dict[int, El2Vm] = {}
        self.inject: Callable[[El2Call, int], int | None] | None = None

    def _ordered(self, call: El2Call, what: int) -> int:
        return -(self.inject(call, what) or 0) if self.inject is not None else 0

    # State

    def host_state(self, pfn: int) -> PageState:
        """get_host_state()."""
        self.rt.reads(("el2-host", pfn))
        entry = self.pages[pfn]
        return PageState.OWNED if entry is None else entry.state

    def _set_host(self, pfn: int, entry: HostEntry | None) -> None:
        self.rt.writes(("el2-host", pfn))
        self.pages.set(pfn, pfn + 1, entry)

    def _set_guest(self, vm: El2Vm, gfn: int, entry: GuestEntry | None) -> None:
        self.rt.writes(("spte", vm, gfn))
        if entry is None:
            vm.entries.pop(gfn, None)
        else:
            vm.entries[gfn] = entry
        if entry is None or not entry.mapped:
            for tlb in vm.tlbs:
                self.rt.writes(("tlb", tlb))
                tlb.flush()

    def host_may_access(self, pfn: int, count: int) -> bool:
        """Whether the host's stage 2 has these pages, or will have when it faults on them."""
        return not any(entry.state is PageState.NOPAGE for _, _, entry in self.pages.runs(pfn, pfn + count))

    def walk(self, vm: El2Vm, gfn: int) -> Translation | None:
        """What a guest's access finds in its stage 2."""
        self.rt.reads(("spte", vm, gfn))
        entry = vm.entries.get(gfn)
        return Translation(entry.pfn, True) if entry is not None and entry.mapped else None

    def _give(self, vm: El2Vm, gfn: int, pfn: int) -> None:
        """The page is the guest's alone, and mapped there."""
        self._set_host(pfn, HostEntry(PageState.NOPAGE, Owner.GUEST, vm.handle, gfn))
        self._set_guest(vm, gfn, GuestEntry(pfn, PageState.OWNED))

    @staticmethod
    def _valid(vm: El2Vm, gfn: int) -> GuestEntry | int:
        """get_valid_guest_pte(): the entry, -EHWPOISON or -ENOENT.  Everything is mapped by pages, so never -E2BIG."""
        entry = vm.entries.get(gfn)
        if entry is None:
            return -ENOENT
        return -EHWPOISON if entry.poisoned else entry

    def _valid_in(self, vm: El2Vm, gfn: int, guest: PageState, host: PageState) -> GuestEntry | int:
        """The guest's entry, if the page is in these states on either side; otherwise as `_valid`, or -EPERM."""
        found = self._valid(vm, gfn)
        if isinstance(found, int):
            return found
        return found if found.state is guest and self.host_state(found.pfn) is host else -EPERM

    # VMs

    def reserve_vm(self, ipa_bits: int) -> int:
        """__pkvm_reserve_vm: a handle, or -ENOMEM."""
        if error := self._ordered(El2Call.RESERVE_VM, 0):
            return error
        with self.vm_table_lock:
            free = (HANDLE_OFFSET + n for n in range(KVM_MAX_PVMS))
            handle = next((handle for handle in free if handle not in self.vms), None)
            if handle is None:
                return -ENOMEM
            self.vms[handle] = El2Vm(self.rt, handle, ipa_bits)
            return handle

    def unreserve_vm(self, handle: int) -> None:
        """__pkvm_unreserve_vm: for a VM that was never made."""
        with self.vm_table_lock:
            del self.vms[handle]

    def init_vm(self, handle: int, donated: list[int]) -> int:
        """__pkvm_init_vm: the host gives pages for the root table and the VM's own state."""
        if error := self._ordered(El2Call.INIT_VM, handle):
            return error
        vm = self.vms.get(handle)
        if vm is None or vm.created:
            return -EINVAL if vm is None else -EEXIST
        with self.host_lock:
            if any(self.host_state(pfn) is not PageState.OWNED for pfn in donated):
                return -EPERM
            self._take(donated)
        vm.metadata += donated
        vm.created = True
        return 0

    def init_vcpu(self, handle: int, donated: list[int]) -> El2Vcpu | int:
        """__pkvm_init_vcpu."""
        if error := self._ordered(El2Call.INIT_VCPU, handle):
            return error
        vm = self.vms.get(handle)
        if vm is None or not vm.created or vm.dying:
            return -EINVAL
        with self.host_lock:
            if any(self.host_state(pfn) is not PageState.OWNED for pfn in donated):
                return -EPERM
            self._take(donated)
        vm.metadata += donated
        return El2Vcpu(vm)

    def topup(self, vcpu: El2Vcpu, pfn: int) -> None:
        """A page joins a vCPU's memcache; the hypervisor takes it when the vCPU is loaded."""
        with self.host_lock:
            self._take([pfn])
        vcpu.memcache.append(pfn)

    def _take(self, pfns: list[int]) -> None:
        for pfn in pfns:
            self._set_host(pfn, HostEntry(PageState.NOPAGE, Owner.HYP))

    def start_teardown_vm(self, handle: int) -> int:
        """__pkvm_start_teardown_vm: from here on the guest can't run, and its pages can be had back."""
        vm = self.vms.get(handle)
        if vm is None or vm.dying:
            return -EINVAL
        vm.dying = True
        return 0

    def finalize_teardown_vm(self, handle: int, vcpus: list[El2Vcpu]) -> list[int] | int:
        """__pkvm_finalize_teardown_vm: the VM is gone.  The pages that it took come back, cleared."""
        vm = self.vms.get(handle)
        if vm is None or not vm.dying:
            return -EINVAL
        left = [gfn for gfn, entry in vm.entries.items() if not entry.poisoned]
        if left:
            raise InvariantViolation(f"gfn {left[0]:#x} of a pKVM guest wasn't reclaimed before its VM is gone")
        del self.vms[handle]
        back = [*vm.metadata, *vm.tables.values(), *(pfn for vcpu in vcpus for pfn in vcpu.memcache)]
        with self.host_lock:
            for pfn in back:
                self.memory.clear(pfn, 1)
                self._set_host(pfn, None)
        return back

    # The host's calls

    def host_donate_guest(self, pfn: int, gfn: int, vcpu: El2Vcpu) -> int:
        """__pkvm_host_donate_guest: the page is the guest's from here on, its bytes as they are.

        -EPERM if the host doesn't own it alone or the guest has a page there; -ENOMEM if the vCPU's memcache is short.
        """
        if error := self._ordered(El2Call.DONATE_GUEST, gfn):
            return error
        vm = vcpu.vm
        with self.host_lock, vm.lock:
            if self.host_state(pfn) is not PageState.OWNED or gfn in vm.entries:
                return -EPERM
            if len(vcpu.memcache) < vm.min_pages:
                return -ENOMEM
            for table in vm.missing_tables(gfn):
                vm.tables[table] = vcpu.memcache.pop()
            self._give(vm, gfn, pfn)
        return 0

    def host_share_guest(self, pfn: int, gfn: int, vcpu: El2Vcpu) -> int:
        """__pkvm_host_share_guest: an ordinary guest may access the host's page.  Errors as `host_donate_guest`, and -EBUSY
        for a page that is shared as often as can be counted."""
        if error := self._ordered(El2Call.SHARE_GUEST, gfn):
            return error
        vm = vcpu.vm
        with self.host_lock, vm.lock:
            if gfn in vm.entries:
                return -EPERM
            entry = self.pages[pfn]
            if self.host_state(pfn) is not PageState.OWNED and not (entry is not None and entry.shares):
                return -EPERM
            if entry is not None and entry.shares == MAX_SHARES:
                return -EBUSY
            if len(vcpu.memcache) < vm.min_pages:
                return -ENOMEM
            for table in vm.missing_tables(gfn):
                vm.tables[table] = vcpu.memcache.pop()
            shares = entry.shares + 1 if entry is not None else 1
            self._set_host(pfn, HostEntry(PageState.SHARED_OWNED, Owner.HOST, shares=shares))
            self._set_guest(vm, gfn, GuestEntry(pfn, PageState.SHARED_BORROWED))
        return 0

    def host_unshare_guest(self, gfn: int, vm: El2Vm) -> int:
        """__pkvm_host_unshare_guest: -ENOENT if the guest has no page there, -EPERM if it isn't a borrowed one."""
        if error := self._ordered(El2Call.UNSHARE_GUEST, gfn):
            return error
        with self.host_lock, vm.lock:
            found = self._valid(vm, gfn)
            if isinstance(found, int):
                return found
            entry = self.pages[found.pfn]
            if found.state is not PageState.SHARED_BORROWED or entry is None or not entry.shares:
                return -EPERM
            self._set_guest(vm, gfn, None)
            self._set_host(found.pfn, entry._replace(shares=entry.shares - 1) if entry.shares > 1 else None)
        return 0

    def vcpu_in_poison_fault(self, vcpu: El2Vcpu, gfn: int) -> int:
        """__pkvm_vcpu_in_poison_fault: 1 if what the guest faulted on was reclaimed from it by force."""
        with vcpu.vm.lock:
            entry = vcpu.vm.entries.get(gfn)
            return int(entry is not None and entry.poisoned)

    def force_reclaim_guest_page(self, pfn: int) -> int:
        """__pkvm_host_force_reclaim_page_guest: the host touched a guest's page in kernel mode and gets it back, zeroed; the
        guest finds its entry poisoned.

        -EAGAIN if the host may access it already, -EPERM if it's no guest's alone.
        """
        if error := self._ordered(El2Call.FORCE_RECLAIM_GUEST_PAGE, pfn):
            return error
        with self.vm_table_lock, self.host_lock:
            entry = self.pages[pfn]
            if entry is None or entry.state is not PageState.NOPAGE:
                return -EAGAIN
            vm = self.vms.get(entry.handle) if entry.owner is Owner.GUEST else None
            if vm is None:
                return -EPERM
            with vm.lock:
                found = self._valid(vm, entry.gfn)
                if isinstance(found, int):
                    return found
                if found.state is not PageState.OWNED:
                    return -EPERM
                self._set_guest(vm, entry.gfn, found._replace(poisoned=True))
                self.memory.clear(pfn, 1)
                self._set_host(pfn, None)
        return 0

    def reclaim_dying_guest_page(self, handle: int, gfn: int) -> int:
        """__pkvm_reclaim_dying_guest_page: what the guest owned alone comes back zeroed, what it shared as it is."""
        if error := self._ordered(El2Call.RECLAIM_DYING_GUEST_PAGE, gfn):
            return error
        vm = self.vms.get(handle)
        if vm is None or not vm.dying:
            return -EINVAL
        with self.host_lock, vm.lock:
            found = self._valid(vm, gfn)
            if isinstance(found, int):
                return 0 if found == -EHWPOISON else found
            if found.state is PageState.OWNED:
                self.memory.clear(found.pfn, 1)
            elif found.state is not PageState.SHARED_OWNED:
                return -EPERM
            self._set_guest(vm, gfn, None)
            self._set_host(found.pfn, None)
        return 0

    def reclaim_guest_page(self, pfn: int) -> int:
        """A page of guest_memfd leaves its file, so a live guest must lose it: poisoned as by `force_reclaim_guest_page`,
        and zeroed unless the guest had shared it.  Ours, for the proposal: released kernels have no such call.

        -EAGAIN if it's no guest's.
        """
        if error := self._ordered(El2Call.RECLAIM_GUEST_PAGE, pfn):
            return error
        with self.vm_table_lock, self.host_lock:
            entry = self.pages[pfn]
            vm = self.vms.get(entry.handle) if entry is not None and entry.owner is Owner.GUEST else None
            if entry is None or vm is None:
                return -EAGAIN
            with vm.lock:
                self._set_guest(vm, entry.gfn, vm.entries[entry.gfn]._replace(poisoned=True))
                if entry.state is PageState.NOPAGE:
                    self.memory.clear(pfn, 1)
                self._set_host(pfn, None)
        return 0

    def complete_unshare(self, vm: El2Vm, gfn: int) -> int:
        """The host has let go of a page that the guest wants back: it's the guest's alone, with its bytes.  Part of the
        proposal: a released hypervisor does it without asking the host.

        -ENOENT, -EHWPOISON, or -EPERM if the guest doesn't want it; 0 also where that has been done.
        """
        if error := self._ordered(El2Call.COMPLETE_UNSHARE, gfn):
            return error
        with self.host_lock, vm.lock:
            found = self._valid(vm, gfn)
            if isinstance(found, int):
                return found
            if found.state is PageState.OWNED:
                return 0
            if not found.unsharing:
                return -EPERM
            self._give(vm, gfn, found.pfn)
        return 0

    def is_unsharing(self, vm: El2Vm, gfn: int) -> bool:
        """Whether the guest waits for the host to let go of this page."""
        with vm.lock:
            self.rt.reads(("spte", vm, gfn))
            entry = vm.entries.get(gfn)
            return entry is not None and entry.unsharing and not entry.poisoned

    # The guest's calls

    def guest_request_unshare(self, vm: El2Vm, gfn: int) -> int:
        """MEM_UNSHARE where the host is asked to let go first: from here on the guest doesn't reach the page, until
        `complete_unshare`.  Who owns what is as it was.  Errors as `guest_unshare_host`, also for a page that is asked for
        already."""
        if error := self._ordered(El2Call.MEM_UNSHARE, gfn):
            return error
        with self.host_lock, vm.lock:
            found = self._valid_in(vm, gfn, PageState.SHARED_OWNED, PageState.SHARED_BORROWED)
            if isinstance(found, int):
                return found
            if found.unsharing:
                return -EPERM
            self._set_guest(vm, gfn, found._replace(unsharing=True))
        return 0

    def guest_share_host(self, vm: El2Vm, gfn: int) -> int:
        """__pkvm_guest_share_host: the host may access the page too; its bytes stay.

        -ENOENT if there is no page, -EHWPOISON if it was reclaimed by force, -EPERM if it isn't the guest's alone.
        """
        if error := self._ordered(El2Call.MEM_SHARE, gfn):
            return error
        with self.host_lock, vm.lock:
            found = self._valid_in(vm, gfn, PageState.OWNED, PageState.NOPAGE)
            if isinstance(found, int):
                return found
            self._set_guest(vm, gfn, found._replace(state=PageState.SHARED_OWNED))
            self._set_host(found.pfn, HostEntry(PageState.SHARED_BORROWED, Owner.GUEST, vm.handle, gfn))
        return 0

    def guest_unshare_host(self, vm: El2Vm, gfn: int) -> int:
        """__pkvm_guest_unshare_host: the page is the guest's alone again, with its bytes.  Errors as `guest_share_host`."""
        if error := self._ordered(El2Call.MEM_UNSHARE, gfn):
            return error
        with self.host_lock, vm.lock:
            found = self._valid_in(vm, gfn, PageState.SHARED_OWNED, PageState.SHARED_BORROWED)
            if isinstance(found, int):
                return found
            self._give(vm, gfn, found.pfn)
        return 0

    # What must hold

    def owner(self, pfn: int) -> str:
        """The host's state of the page, and who has it."""
        entry = self.pages[pfn]
        if entry is None:
            return "OWNED by HOST"
        whose = f"GUEST {entry.handle:#x} gfn {entry.gfn:#x}" if entry.owner is Owner.GUEST else entry.owner.name
        whose += f" shared {entry.shares} times" if entry.shares else ""
        return f"{entry.state.name}, {whose}"

    def check(self) -> None:
        """Raise `InvariantViolation` unless both sides of every page agree."""
        for vm in self.vms.values():
            for gfn, found in vm.entries.items():
                entry = self.pages[found.pfn]
                if found.poisoned:
                    continue
                if found.state is PageState.SHARED_BORROWED:
                    if entry is None or not entry.shares:
                        raise InvariantViolation(f"gfn {gfn:#x} borrows pfn {found.pfn:#x}: {self.owner(found.pfn)}")
                    continue
                wanted = PageState.NOPAGE if found.state is PageState.OWNED else PageState.SHARED_BORROWED
                if entry != HostEntry(wanted, Owner.GUEST, vm.handle, gfn):
                    raise InvariantViolation(f"gfn {gfn:#x} is {found}, and the host's state is {self.owner(found.pfn)}")
        for start, end, entry in self.pages.runs():
            for pfn in range(start, end):
                if entry.owner is not Owner.GUEST:
                    continue
                owner = self.vms.get(entry.handle)
                leaf = owner.entries.get(entry.gfn) if owner is not None else None
                if leaf is None or leaf.pfn != pfn or leaf.poisoned:
                    raise InvariantViolation(f"pfn {pfn:#x} is {self.owner(pfn)}, and that guest has {leaf}")
