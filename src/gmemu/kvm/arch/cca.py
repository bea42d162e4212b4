# SPDX-License-Identifier: GPL-2.0-or-later
"""A realm (VM type 1 << 8): what the Arm CCA series (v14) adds to KVM on arm64.

A realm is created by the first KVM_ARM_RMI_POPULATE, or by the first KVM_RUN, which also makes its RECs, tells the RMM
what is RAM, and activates it.  One stage 2 of the RMM's has both halves of the guest's address space.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING

from ...hw.cpu import Cpu, Exit, ExternalAbort
from ...hw.memory import PAGE_SHIFT
from ...hw.rmm.cpu import RecCpu
from ...mm.uaccess import UserPointer
from ...rules import cca as rules
from ...uapi.kvm import KVM_MEM_LOG_DIRTY_PAGES, KVM_SET_MEMORY_ATTRIBUTES2_ZERO, VmType
from ...uapi.kvm_arm64 import KVM_ARM_RMI_POPULATE
from ...uapi.kvm_x86 import PFERR_GUEST_ENC_MASK, PFERR_PRIVATE_ACCESS
from ...uapi.rmi import GranuleState, Hipas
from ..guest_memfd.invalidate import Filter
from .arm64 import ArmVm
from .cca_exits import handle_exit
from .cca_populate import rmi_populate
from .cca_realm import activate_realm, destroy_realm
from .cca_rtt import RealmRtt

if TYPE_CHECKING:
    from ...hw.tlb import Translation
    from ..memslots import Memslot
    from ..mmu import PageFault, RetPf
    from ..rmm_platform import RmmPlatform
    from ..vcpu import Vcpu
    from ..vm import Vm

__all__ = ["CcaState", "CcaVm"]


class CcaState(Enum):
    """enum realm_state, as the host has it."""

    NONE = auto()
    NEW = auto()
    ACTIVE = auto()
    DYING = auto()
    DEAD = auto()


class CcaVm(ArmVm):
    """struct realm.  `rd` is the page frame of the RD; `recs` each vCPU's REC with the granules that it needs besides."""

    vm_type = VmType.ARM_REALM
    has_private_mem = True
    has_protected_state = True

    def __init__(self, vm: Vm) -> None:
        super().__init__(vm)
        self.platform: RmmPlatform = vm.host.rmm
        self.state = CcaState.NONE
        self.rd = self.root = -1
        self.roots = self.vmid = 0
        self.recs: dict[Vcpu, tuple[int, list[int]]] = {}
        self.rtt = RealmRtt(self)
        self.protected_end = 1 << vm.ipa_bits - 1
        """The first address (bytes) of the shared half; as a bit, what makes an address shared."""

    # Life

    def vcpu_precreate(self) -> None:
        if self.state not in (CcaState.NONE, CcaState.NEW):
            raise rules.VCPU_LATE(f"realm state {self.state.name}")

    def new_cpu(self, vcpu: Vcpu) -> Cpu:
        return RecCpu(self.vm.rt, self.platform.rmm)

    def vm_destroy(self) -> None:
        """kvm_destroy_realm()."""
        destroy_realm(self)

    @property
    def slot_bits(self) -> int:
        return self.vm.ipa_bits - 1

    def prepare_memory_region(self, old: Memslot | None, new: Memslot | None) -> None:
        if new is not None and new.flags & KVM_MEM_LOG_DIRTY_PAGES:
            raise rules.DIRTY_LOG(f"slot {new.id}")

    # ioctls

    def vm_ioctl(self, request: int, arg: UserPointer) -> int:
        if request == KVM_ARM_RMI_POPULATE:
            return rmi_populate(self, arg)
        return super().vm_ioctl(request, arg)

    # Memory

    def synthesize_error_code(self, gfn: int, error_code: int) -> int:
        """An address of the protected half is accessed privately."""
        return error_code | PFERR_PRIVATE_ACCESS if error_code & PFERR_GUEST_ENC_MASK else error_code

    def map(self, fault: PageFault) -> RetPf:
        """realm_map_ipa()."""
        return self.rtt.map_protected(fault.gfn, fault.pfn) if fault.private else self.rtt.map_shared(fault)

    def content_modes(self, private: bool) -> int:
        """Undelegation wipes, so pages come back zeroed; a realm never takes contents as they are (RFC v5)."""
        return 0 if private else KVM_SET_MEMORY_ATTRIBUTES2_ZERO

    def unmap_range(self, start: int, end: int, filter: Filter) -> bool:
        """kvm_realm_unmap_range(): each filter bit has a half of the address space of its own."""
        if self.state in (CcaState.NONE, CcaState.DEAD):
            return False
        flush = Filter.SHARED in filter and self.rtt.unmap_shared(start, end)
        if Filter.PRIVATE in filter:
            flush |= self.rtt.unmap_protected(start, end)
        return flush

    def translation(self, frame: int) -> Translation | None:
        rmm = self.platform.rmm
        realm = rmm.realms[self.rd]
        bit = realm.rtt.shared_bit
        if frame & bit:
            return rmm.walk_shared(realm, frame & ~bit)
        try:
            return rmm.walk_protected(realm, frame)
        except ExternalAbort:
            return None

    def check(self) -> None:
        """Tables, granules, the GPT and the attributes agree."""
        if self.rd in self.platform.rmm.realms and not self.vm.vm_bugged:
            self.rtt.check()

    def firmware_pages(self) -> int:
        """RD, tables, RECs with what they need besides: every granule of the realm's that isn't its memory."""
        runs = self.platform.rmm.granules.entries.runs()
        return sum(e - s for s, e, entry in runs if entry.rd == self.rd and entry.state is not GranuleState.DATA)

    # Running

    @property
    def encrypted_default(self) -> bool:
        return True

    def first_run(self, vcpu: Vcpu) -> None:
        """kvm_activate_realm(), by whichever vCPU comes first."""
        if self.state in (CcaState.NONE, CcaState.NEW):
            activate_realm(self)

    def run_pid_change(self, vcpu: Vcpu) -> None:
        if self.state in (CcaState.DYING, CcaState.DEAD):
            raise rules.REALM_DEAD(f"realm state {self.state.name}")
        super().run_pid_change(vcpu)

    def handle_exit(self, vcpu: Vcpu, exit_: Exit) -> int | None:
        """handle_rec_exit()."""
        handled = handle_exit(self, vcpu, exit_)
        return super().handle_exit(vcpu, exit_) if handled is None else handled

    def pages_by_state(self) -> dict[str, int]:
        """How many 4 KiB pages of the protected half the realm has in each state, as "ASSIGNED RAM"."""
        counts: dict[str, int] = {}
        for start, end, entry in self.platform.rmm.realms[self.rd].rtt.entries.runs(0, self.protected_end >> PAGE_SHIFT):
            if entry.hipas is Hipas.ASSIGNED:
                name = f"{entry.hipas.name} {entry.ripas.name}"
                counts[name] = counts.get(name, 0) + end - start
        return counts
