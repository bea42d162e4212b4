# SPDX-License-Identifier: GPL-2.0-or-later
"""A vCPU (struct kvm_vcpu): its registers as KVM keeps them, its kvm_run page, and its file descriptor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from threading import Event
from typing import TYPE_CHECKING

from ..hw.cpu import Exit
from ..hw.memory import PAGE_SHIFT, PAGE_SIZE
from ..hw.registers import Registers
from ..mm.address_space import Vma
from ..mm.file import File, Inode
from ..mm.filemap import Folio, PageCache
from ..mm.uaccess import UserPointer, copy_from_user, copy_to_user
from ..rules import BusError, KernelError
from ..rules import kvm as rules
from ..uapi.ioctl import ioctl_type
from ..uapi.kvm import (
    KVM_GET_STATS_FD,
    KVM_MEMORY_ENCRYPT_OP,
    KVM_MEMORY_EXIT_FLAG_PRIVATE,
    KVM_RUN,
    KVM_RUN_EXIT_OFFSET,
    KVMIO,
    ExitReason,
    MpState,
    kvm_exit_memory_fault,
    kvm_pre_fault_memory,
    kvm_run,
)
from ..uapi.kvm_x86 import kvm_debugregs, kvm_fpu, kvm_regs, kvm_sregs
from ..uapi.layout import Struct
from .clock import Clock
from .lapic import LocalApic
from .mce import MachineCheck
from .mmu import prefault_page
from .stats import vcpu_get_stats_fd

if TYPE_CHECKING:
    from ..mm.process import Process
    from .mmu import PageFault
    from .vm import Vm

__all__ = ["Vcpu", "VcpuFile", "create_vcpu", "pre_fault_memory"]

_U64 = (1 << 64) - 1
_EXIT_REASON = kvm_run.OFFSETS["exit_reason"]
_IMMEDIATE_EXIT = kvm_run.OFFSETS["immediate_exit"]


def create_vcpu(vm: Vm, id: int) -> int:
    """kvm_vm_ioctl_create_vcpu(): a vCPU and its descriptor (close-on-exec)."""
    with vm.lock:
        limit = vm.max_vcpu_id or vm.profile.caps[128].device
        if not 0 <= id < limit:
            raise rules.VCPU_ID(f"id {id}, limit {limit}")
        if vm.created_vcpus >= vm.profile.caps[66].device:
            raise rules.VCPU_MANY(f"{vm.created_vcpus} exist")
        vm.max_vcpu_id = limit
        if any(vcpu.id == id for vcpu in vm.vcpus):
            raise rules.VCPU_EXISTS(f"id {id}")
        vm.arch.vcpu_precreate()
        vm.host.allocate("vcpu")
        vcpu = Vcpu(vm, id)
        process: Process = vm.rt.current.process
        try:
            vm.arch.vcpu_create(vcpu)
            fd = process.get_unused_fd()
        except KernelError:
            vcpu.destroy()
            raise
        vm.created_vcpus += 1
        vm.vcpus.append(vcpu)
        vm.get()
        process.fd_install(fd, VcpuFile(vcpu))
        return fd


class Vcpu:
    """struct kvm_vcpu, after kvm_vcpu_reset()."""

    def __init__(self, vm: Vm, id: int) -> None:
        self.vm, self.id = vm, id
        self.mutex = vm.rt.mutex("vcpu->mutex")
        self.pages = PageCache(vm.host.memmap, vm.host.lru, "kvm_run")
        self.registers = Registers(bootstrap=id == vm.bsp_vcpu_id)
        self.cpuid: list[bytes] = []
        self.mp_state = MpState.RUNNABLE
        self.has_run = False
        self.stat: Counter[str] = Counter()
        self.interrupt = -1
        """vector that KVM_INTERRUPT queued, or -1"""
        self.nmi_pending = 0
        self.triple_fault = False
        self.pv_enforced = False
        self.pvclock_gpa: int | None = None
        self.vapic_gpa: int | None = None
        self.pvclock_version = 0
        self.clock_update = False
        self.guest_debug = 0
        self.signal_mask: int | None = None
        self.wakeup = Event()
        self.guest_debug_dr7 = 0
        self.clock = Clock(vm)
        self.mce = MachineCheck(self)
        self.steal_update = False
        self.last_steal = 0
        self.cpu = vm.arch.create_cpu(self)
        self.cpu.is_free = vm.host.memmap.is_free
        self.machine = self.cpu.machine
        if self.machine is not None:
            self.machine.read_tsc = self.clock.guest_tsc
        self.apic = LocalApic(self) if vm.irqchip is not None else None
        if self.apic is not None and id != vm.bsp_vcpu_id:
            self.mp_state = MpState.UNINITIALIZED
        self.complete_userspace_io: Callable[[], int] | None = None
        self.completion: object = None
        self.pending_exit: Exit | None = None
        self.guest_state_protected = False
        memmap = vm.host.memmap
        own = 2 if vm.vcpus else 3  # the ring of coalesced MMIO is the VM's
        pfns = [pfn for start, count in memmap.alloc(own) for pfn in range(start, start + count)]
        for pfn in pfns:
            vm.host.memory.clear(pfn, 1)
        if vm.vcpus:
            pfns.append(vm.vcpus[0].coalesced_pfn)
            memmap.get(pfns[2])
        self.run_pfn, self.pio_pfn = pfns[:2]
        self.coalesced_pfn: int = pfns[2]
        for index, pfn in enumerate(pfns):
            self.pages.pages.set(index, index + 1, pfn - index)
        self.pages.uptodate.set(0, 3, True)
        self.pages.nrpages = 3
        self._run = self.run_pfn << PAGE_SHIFT

    @property
    def regs(self) -> kvm_regs:
        """General registers."""
        return self.registers.regs

    @regs.setter
    def regs(self, value: kvm_regs) -> None:
        self.registers.regs = value

    @property
    def sregs(self) -> kvm_sregs:
        """Segments, tables and control registers."""
        return self.registers.sregs

    @sregs.setter
    def sregs(self, value: kvm_sregs) -> None:
        self.registers.sregs = value

    @property
    def fpu(self) -> kvm_fpu:
        """x87 and SSE."""
        return self.registers.fpu

    @fpu.setter
    def fpu(self, value: kvm_fpu) -> None:
        self.registers.fpu = value

    @property
    def debugregs(self) -> kvm_debugregs:
        """DR0 to DR7."""
        return self.registers.debugregs

    @debugregs.setter
    def debugregs(self, value: kvm_debugregs) -> None:
        self.registers.debugregs = value

    @property
    def xcr0(self) -> int:
        """XCR0."""
        return self.registers.xcr0

    @property
    def msrs(self) -> dict[int, int]:
        """Model-specific registers by index, to be read."""
        return self.registers.msrs

    # What other vCPUs and timers do to it

    def kick(self) -> None:
        """kvm_vcpu_kick(): have its guest left, or its halt looked at again."""
        self.wakeup.set()
        self.cpu.kick()

    @property
    def wants_window(self) -> bool:
        """dm_request_for_irq_injection(): user space has an interrupt, and wants to know when the guest can take it."""
        return self.apic is None and self.vm.host.memory.read(self._run, 1) != b"\0"

    def init_received(self) -> None:
        """INIT: back to reset, waiting for a startup message; the boot processor starts over at once."""
        self.registers.reset(bootstrap=self.id == self.vm.bsp_vcpu_id)
        self.mp_state = MpState.RUNNABLE if self.id == self.vm.bsp_vcpu_id else MpState.INIT_RECEIVED
        self.kick()

    def sipi_received(self, vector: int) -> None:
        """kvm_vcpu_deliver_sipi_vector(): start at the page that the message names."""
        sregs, regs = self.sregs, self.regs
        sregs.cs.selector, sregs.cs.base = vector << 8, vector << 12
        regs.rip = 0
        self.sregs, self.regs = sregs, regs
        self.mp_state = MpState.RUNNABLE
        self.kick()

    # kvm_run

    @property
    def exit_reason(self) -> int:
        """kvm_run->exit_reason."""
        return int.from_bytes(self.vm.host.memory.read(self._run + _EXIT_REASON, 4), "little")

    @property
    def immediate_exit(self) -> bool:
        """kvm_run->immediate_exit."""
        return self.vm.host.memory.read(self._run + _IMMEDIATE_EXIT, 1) != b"\0"

    def read_run(self, offset: int, length: int) -> bytes:
        """What stands in kvm_run."""
        return self.vm.host.memory.read(self._run + offset, length)

    def write_run(self, offset: int, data: bytes) -> None:
        """Write there."""
        self.vm.host.memory.write(self._run + offset, data)

    def set_exit(self, reason: ExitReason, details: Struct | None = None) -> None:
        """Fill in kvm_run: the reason, and its member of the union."""
        memory = self.vm.host.memory
        memory.write(self._run + _EXIT_REASON, int(reason).to_bytes(4, "little"))
        if details is not None:
            memory.write(self._run + KVM_RUN_EXIT_OFFSET, details.pack())

    def exit_details(self, layout: type[Struct]) -> Struct:
        """The union as user space left it."""
        return layout.unpack_from(self.vm.host.memory.read(self._run + KVM_RUN_EXIT_OFFSET, layout.SIZE))

    def prepare_memory_fault_exit(self, fault: PageFault) -> None:
        """kvm_prepare_memory_fault_exit(): where, and which view the guest wanted."""
        flags = KVM_MEMORY_EXIT_FLAG_PRIVATE if fault.private else 0
        details = kvm_exit_memory_fault(flags=flags, gpa=fault.gfn << PAGE_SHIFT, size=PAGE_SIZE)
        self.set_exit(ExitReason.MEMORY_FAULT, details)

    def destroy(self) -> None:
        """kvm_vcpu_destroy()."""
        self.cpu.close()
        if self.apic is not None:
            self.apic.destroy()
        self.pages.truncate_range(0, 3)

    def __repr__(self) -> str:
        return f"<Vcpu {self.id}>"


class VcpuFile(File):
    """A vCPU's descriptor."""

    def __init__(self, vcpu: Vcpu) -> None:
        super().__init__(Inode(0o600))
        self.vcpu = vcpu
        self.name = f"anon_inode:kvm-vcpu:{vcpu.id}"
        self.noexec = vcpu.vm.profile.anon_inodes_noexec

    def release(self) -> None:
        self.vcpu.vm.put()

    def mmap(self, vma: Vma) -> None:
        """kvm_vcpu_mmap(): what lies outside is found out at the fault."""
        vma.mapping = self.vcpu.pages

    def fault(self, vma: Vma, index: int, count: int, write: bool, address: int) -> Folio:
        """kvm_vcpu_fault()."""
        if index >= 3:
            raise BusError(rules.VCPU_MMAP, address, f"page {index}")
        return self.vcpu.pages.grab_folio(index, min(count, 3 - index))

    def ioctl(self, request: int, arg: UserPointer) -> int:
        """kvm_vcpu_ioctl()."""
        vcpu, vm = self.vcpu, self.vcpu.vm
        if vm.mm is not vm.rt.current.mm:
            raise rules.FOREIGN_MM()
        if vm.vm_dead:
            raise rules.VM_DEAD()
        if ioctl_type(request) != KVMIO:
            raise rules.VCPU_IOCTL(f"{request:#x}")
        if request == KVM_MEMORY_ENCRYPT_OP:
            handled = vm.arch.vcpu_mem_enc_unlocked_op(vcpu, arg)
            if handled is not None:
                return handled
        with vcpu.mutex:
            if request == KVM_RUN:
                from .run import vcpu_ioctl_run

                return vcpu_ioctl_run(vcpu, arg)
            if request == KVM_GET_STATS_FD:
                return vcpu_get_stats_fd(vcpu, arg)
            handler = vm.arch.vcpu_ioctl(request)
            if handler is None:
                raise rules.VCPU_IOCTL(f"{request:#x}")
            return handler(vcpu, arg)


def pre_fault_memory(vcpu: Vcpu, arg: UserPointer) -> int:
    """kvm_vcpu_pre_fault_memory(): 0 if anything was mapped, with the rest written back, even if a later page failed."""
    vm = vcpu.vm
    mm = vm.rt.current.mm
    want = copy_from_user(mm, kvm_pre_fault_memory, arg)
    error: OSError | None = None
    if want.flags:
        error = rules.PREFAULT_FLAGS(f"flags {want.flags:#x}")
    elif (want.gpa | want.size) & (PAGE_SIZE - 1) or not want.size or want.gpa + want.size > _U64:
        error = rules.PREFAULT_RANGE(f"gpa {want.gpa:#x}, size {want.size:#x}")
    full = want.size
    if error is None:
        with vm.srcu.read:
            while want.size:
                try:
                    prefault_page(vm, vcpu, want.gpa)
                except OSError as failed:
                    error = failed
                    break
                want.size -= PAGE_SIZE
                want.gpa += PAGE_SIZE
                vm.rt.resched()
    if want.size != full or error is None:
        copy_to_user(mm, arg, want)
        return 0
    copy_to_user(mm, arg, want)
    raise error
