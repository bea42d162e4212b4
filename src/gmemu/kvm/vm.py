# SPDX-License-Identifier: GPL-2.0-or-later
"""A VM (struct kvm) and its file descriptor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from time import monotonic_ns
from typing import TYPE_CHECKING

from ..mm.file import File, Inode
from ..mm.uaccess import UserPointer, copy_from_user
from ..rules import KernelError
from ..rules import kvm as rules
from ..uapi.kvm import (
    KVM_CHECK_EXTENSION,
    KVM_CLEAR_DIRTY_LOG,
    KVM_CREATE_GUEST_MEMFD,
    KVM_CREATE_VCPU,
    KVM_ENABLE_CAP,
    KVM_GET_DIRTY_LOG,
    KVM_GET_STATS_FD,
    KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEM_READONLY,
    KVM_MEMORY_ENCRYPT_OP,
    KVM_SET_MEMORY_ATTRIBUTES,
    KVM_SET_USER_MEMORY_REGION,
    KVM_SET_USER_MEMORY_REGION2,
    KVM_X86_SET_MSR_FILTER,
    Cap,
    VmType,
    kvm_create_guest_memfd,
    kvm_enable_cap,
    kvm_memory_attributes,
    kvm_userspace_memory_region,
    kvm_userspace_memory_region2,
)
from .arch import arch_class
from .attributes import Attributes, GmemAttributes, VmAttributes, vm_ioctl_set_mem_attributes
from .dirty import clear_dirty_log, get_dirty_log
from .eventfd import IoBus
from .guest_memfd.binding import kvm_gmem_unbind
from .guest_memfd.file import GmemFile, kvm_gmem_create
from .memslots import Memslot, Memslots, set_memory_region
from .mmu import KvmMmuNotifier, Mmu
from .msr_filter import MsrFilter, set_msr_filter
from .stats import vm_get_stats_fd

if TYPE_CHECKING:
    from .host import Host
    from .irqchip import IrqChip
    from .vcpu import Vcpu

__all__ = ["Vm", "VmFile"]

DEFAULT_IPA_BITS = 40
"""KVM_PHYS_SHIFT: an arm64 guest's address space, unless KVM_CREATE_VM was asked for another."""


class Vm:
    """struct kvm.  Held by its own descriptor, its vCPUs' and its guest_memfds'; destroyed when the last is closed."""

    def __init__(self, host: Host, vm_type: VmType, ipa_bits: int = 0) -> None:
        self.host, self.profile, self.rt = host, host.profile, host.rt
        self.vm_type, self.ipa_bits = vm_type, ipa_bits or DEFAULT_IPA_BITS
        self.number, host.vms_created = host.vms_created, host.vms_created + 1
        self.users = 1
        self.mm = host.rt.current.mm
        self.lock = self.rt.mutex("kvm->lock")
        self.slots_lock = self.rt.mutex("slots_lock")
        self.slots_arch_lock = self.rt.mutex("slots_arch_lock")
        self.mmu_lock = self.rt.rwlock("mmu_lock")
        self.srcu = self.rt.srcu("kvm->srcu")
        self.mn_active_invalidate = self.rt.rwsem("mn_active_invalidate_count", fair=False)
        """held shared by invalidations by user address; who waits for their count to be 0 holds it for writing"""
        self.vcpus: list[Vcpu] = []
        self.created_vcpus = 0
        self.hypercall_exits = 0
        self.quirks_disabled = 0
        self.max_vcpu_id = self.disabled_exits = 0
        self.manual_dirty_log_protect = 0
        self.exit_on_emulation_error = False
        self.bsp_vcpu_id = 0
        self.irqchip: IrqChip | None = None
        self.io = IoBus(self)
        self.x2apic_format = False
        self.exception_payload = self.triple_fault_event = False
        self.n_max_mmu_pages = 0
        self.clock_offset = -monotonic_ns()
        self.user_space_msr_mask = 0
        self.msr_filter: MsrFilter | None = None
        self.guest_can_read_platform_info = True
        self.default_tsc_khz = host.tsc.khz
        self.last_tsc_write: tuple[int, int] | None = None
        self.apic_bus_cycle_ns = 1
        self.vm_dead = self.vm_bugged = False
        self.stat: Counter[str] = Counter()
        self.memslots = (Memslots(), Memslots())
        self.had_memslots = False
        self.mmu = Mmu(self)
        self.attributes: Attributes = GmemAttributes(self) if self.profile.in_place else VmAttributes(self)
        self.arch = arch_class(self.profile, host.platform, vm_type)(self)
        self._notifier = KvmMmuNotifier(self)
        self.mm.notifiers.append(self._notifier)
        host.vms.append(self)

    def get(self) -> None:
        """kvm_get_kvm()."""
        self.users += 1

    def put(self) -> None:
        """kvm_put_kvm(): the last one destroys the VM."""
        self.users -= 1
        if self.users == 0:
            self._destroy()

    def _destroy(self) -> None:
        """kvm_destroy_vm()."""
        self.mm.notifiers.remove(self._notifier)
        for slots in self.memslots:
            for slot in list(slots.by_id.values()):
                slots.replace(slot, None)
                kvm_gmem_unbind(self, slot)
                slot.freed = True
        with self.mmu_lock.exclusive:
            self.mmu.sptes.clear()
        for vcpu in self.vcpus:
            vcpu.destroy()
        self.io.destroy()
        if self.irqchip is not None:
            self.irqchip.destroy()
        self.arch.vm_destroy()
        self.host.vms.remove(self)

    def bug(self, why: str) -> KernelError:
        """KVM_BUG(): the VM is dead from here on.  Returns EIO to raise."""
        self.vm_bugged = self.vm_dead = True
        return rules.VM_BUGGED(why)

    def find_slot(self, gfn: int) -> Memslot | None:
        """gfn_to_memslot()."""
        self.rt.reads(("memslots", self))
        return self.memslots[0].find(gfn)

    def gmem_file_of(self, slot: Memslot) -> GmemFile | None:
        """kvm_gmem_get_file(): the slot's guest_memfd with a reference, unless it was or is being closed."""
        self.rt.reads(("slot-file", slot))
        file = slot.gmem_file
        if file is None:
            return None
        self.rt.writes(("file-count", file))
        return file if slot.gmem_file is file and file.get_active() else None

    def flush_remote_tlbs(self) -> None:
        """kvm_flush_remote_tlbs(): no vCPU uses a translation that it had before."""
        self.stat["remote_tlb_flush_requests"] += 1
        self.stat["remote_tlb_flush"] += 1
        for vcpu in self.vcpus:
            self.rt.writes(("tlb", vcpu.cpu.tlb))
            vcpu.stat["tlb_flush"] += 1
            vcpu.cpu.tlb.flush()

    def exits_on_hypercall(self, nr: int) -> bool:
        """user_exit_on_hypercall()."""
        return bool(self.hypercall_exits >> nr & 1)

    def __repr__(self) -> str:
        return f"<Vm {self.vm_type.name}>"


class VmFile(File):
    """A VM's descriptor."""

    name = "anon_inode:kvm-vm"

    def __init__(self, vm: Vm) -> None:
        super().__init__(Inode(0o600))
        self.vm = vm
        self.noexec = vm.profile.anon_inodes_noexec

    def release(self) -> None:
        self.vm.put()

    def ioctl(self, request: int, arg: UserPointer) -> int:
        """kvm_vm_ioctl()."""
        vm = self.vm
        if vm.mm is not vm.rt.current.mm:
            raise rules.FOREIGN_MM()
        if vm.vm_dead:
            raise rules.VM_DEAD()
        handler = _IOCTLS.get(request)
        if handler is None:
            return vm.arch.vm_ioctl(request, arg)
        return handler(vm, arg)


def _check_extension(vm: Vm, arg: UserPointer) -> int:
    caps = vm.profile.caps.get(int(arg)) if isinstance(arg, int) else None
    if caps is None:
        return 0
    if arg == Cap.READONLY_MEM:
        return int(not vm.arch.has_protected_state)
    if arg == Cap.VM_TYPES:
        return vm.host.vm_types_mask
    if arg == Cap.GUEST_MEMFD_MEMORY_ATTRIBUTES and not vm.arch.user_space_converts:
        return 0
    return caps.private_vm if vm.arch.has_private_mem else caps.default_vm


def _create_vcpu(vm: Vm, arg: UserPointer) -> int:
    from .vcpu import create_vcpu

    return create_vcpu(vm, int(arg) if isinstance(arg, int) else -1)


def _set_region(vm: Vm, arg: UserPointer) -> int:
    """KVM_SET_USER_MEMORY_REGION: the first half of the structure, and fewer flags."""
    old = copy_from_user(vm.rt.current.mm, kvm_userspace_memory_region, arg)
    if old.flags & ~(KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY):
        raise rules.SLOT_V1_FLAGS(f"flags {old.flags:#x}")
    set_memory_region(vm, kvm_userspace_memory_region2(**vars(old)))
    return 0


def _set_region2(vm: Vm, arg: UserPointer) -> int:
    set_memory_region(vm, copy_from_user(vm.rt.current.mm, kvm_userspace_memory_region2, arg))
    return 0


def _set_attributes(vm: Vm, arg: UserPointer) -> int:
    """KVM_SET_MEMORY_ATTRIBUTES exists if the kernel was built with attributes, whether or not they can be set."""
    if not vm.profile.vm_attributes_ioctl:
        return vm.arch.vm_ioctl(KVM_SET_MEMORY_ATTRIBUTES, arg)
    vm_ioctl_set_mem_attributes(vm, copy_from_user(vm.rt.current.mm, kvm_memory_attributes, arg))
    return 0


def _create_guest_memfd(vm: Vm, arg: UserPointer) -> int:
    return kvm_gmem_create(vm, copy_from_user(vm.rt.current.mm, kvm_create_guest_memfd, arg))


def _enable_cap(vm: Vm, arg: UserPointer) -> int:
    from .vm_caps import enable_cap

    return enable_cap(vm, copy_from_user(vm.rt.current.mm, kvm_enable_cap, arg))


def _mem_enc_op(vm: Vm, arg: UserPointer) -> int:
    return vm.arch.mem_enc_op(arg)


_IOCTLS: dict[int, Callable[[Vm, UserPointer], int]] = {
    KVM_CHECK_EXTENSION: _check_extension,
    KVM_CREATE_VCPU: _create_vcpu,
    KVM_SET_USER_MEMORY_REGION: _set_region,
    KVM_SET_USER_MEMORY_REGION2: _set_region2,
    KVM_SET_MEMORY_ATTRIBUTES: _set_attributes,
    KVM_CREATE_GUEST_MEMFD: _create_guest_memfd,
    KVM_ENABLE_CAP: _enable_cap,
    KVM_MEMORY_ENCRYPT_OP: _mem_enc_op,
    KVM_GET_DIRTY_LOG: get_dirty_log,
    KVM_CLEAR_DIRTY_LOG: clear_dirty_log,
    KVM_GET_STATS_FD: vm_get_stats_fd,
    KVM_X86_SET_MSR_FILTER: set_msr_filter,
}
