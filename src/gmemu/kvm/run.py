# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_RUN: enter the guest, handle its exits, come back when user space has something to do (arch/x86/kvm/x86.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..hw.cpu import (
    Access,
    DeviceAccess,
    Exit,
    ExternalInterrupt,
    GuestException,
    Hlt,
    NestedPageFault,
    PortIo,
    Shutdown,
    Vmmcall,
)
from ..hw.memory import PAGE_SHIFT, PAGE_SIZE
from ..mm.uaccess import UserPointer
from ..rules import KernelError, MemoryFault
from ..rules import gmemu as own_rules
from ..rules import kvm as rules
from ..uapi.kvm import (
    KVM_ENOSYS,
    KVM_HC_MAP_GPA_RANGE,
    KVM_INTERNAL_ERROR_EMULATION,
    ExitReason,
    MpState,
    kvm_exit_hypercall,
    kvm_exit_internal_error,
    kvm_exit_io,
    kvm_exit_mmio,
)
from ..uapi.kvm_x86 import KVM_EXIT_HYPERCALL_LONG_MODE
from .devices import mmio, pio
from .interrupts import block, inject
from .mmu import RetPf
from .msr import guest_pv_has
from .pvclock import record_steal_time, update_guest_time
from .sync_regs import finish_run, start_run
from .vapic import sync_from_vapic, sync_to_vapic

if TYPE_CHECKING:
    from .vcpu import Vcpu

__all__ = ["map_gpa_range_exit", "vcpu_ioctl_run"]

_U64 = (1 << 64) - 1
_QUIRK_FIX_HYPERCALL = 1 << 5
_YIELDS = {5: 7, 11: 13}
"""KVM_HC_KICK_CPU and _SCHED_YIELD, hints that nothing here depends on -> the KVM_FEATURE_* bit that goes with each"""
_FAULT_STATS = {RetPf.EMULATE: "pf_emulate", RetPf.SPURIOUS: "pf_spurious"}
RESET_VECTOR_GFN = 0xFFFFFFF0 >> PAGE_SHIFT


def vcpu_ioctl_run(vcpu: Vcpu, arg: UserPointer) -> int:
    """kvm_arch_vcpu_ioctl_run(): 0 with an exit reason, or an error; EFAULT may come with KVM_EXIT_MEMORY_FAULT."""
    if arg != 0:
        raise rules.RUN_ARG(f"{arg!r}")
    if vcpu.machine is None:
        return _run(vcpu)
    if vcpu.signal_mask is not None:
        vcpu.vm.rt.set_signal_mask(vcpu.signal_mask)
    try:
        start_run(vcpu)
        try:
            return _run(vcpu)
        finally:
            finish_run(vcpu)
    finally:
        if vcpu.signal_mask is not None:
            vcpu.vm.rt.set_signal_mask(None)


def _run(vcpu: Vcpu) -> int:
    """kvm_arch_vcpu_ioctl_run() between loading and storing registers, and vcpu_run()."""
    vm, task = vcpu.vm, vcpu.vm.rt.current
    vm.arch.run_pid_change(vcpu)
    immediate = vcpu.immediate_exit
    with vm.srcu.read:
        complete, vcpu.complete_userspace_io = vcpu.complete_userspace_io, None
        if complete is not None and complete() <= 0:
            return 0
        if immediate:
            _finish_instruction(vcpu)
            raise rules.RUN_IMMEDIATE()
        if vm.arch.pre_run(vcpu) <= 0:
            return 0
        vcpu.set_exit(ExitReason.UNKNOWN)
        vcpu.steal_update = True
    while True:
        vm.rt.task_work_run()
        if task.pending_signals:
            vcpu.set_exit(ExitReason.INTR)
            vcpu.stat["signal_exits"] += 1
            raise rules.RUN_SIGNAL()
        if vm.vm_dead:
            raise rules.VM_DEAD()
        if vcpu.triple_fault:
            vcpu.triple_fault = False
            vcpu.set_exit(ExitReason.SHUTDOWN)
            return 0
        if vcpu.mp_state is not MpState.RUNNABLE and not vcpu.guest_state_protected and vcpu.machine is not None:
            _wait_for_start(vcpu)
        if _enter_guest(vcpu) <= 0:
            return 0


def _finish_instruction(vcpu: Vcpu) -> None:
    """The instruction that went to user space is done, though the guest won't go on."""
    if vcpu.machine is not None and vcpu.machine.runs_code and vcpu.machine.in_instruction:
        completion, vcpu.completion = vcpu.completion, None
        vcpu.pending_exit = vcpu.machine.finish_instruction(completion)


def _wait_for_start(vcpu: Vcpu) -> None:
    """A vCPU that is halted, or that nobody has started, waits.  Raises EAGAIN when the latter is started (vcpu_run)."""
    waited_for_startup = vcpu.mp_state is not MpState.HALTED
    block(vcpu)
    if waited_for_startup:
        vcpu.set_exit(ExitReason.INTR)
        raise rules.RUN_STARTED(f"{vcpu}")


def _enter_guest(vcpu: Vcpu) -> int:
    """vcpu_enter_guest(): run until an exit, and handle it: 1 to resume, 0 to go to user space.

    No lock but the vCPU's own is held while the guest runs.  An exit whose handling failed is met again by the next run,
    as its instruction didn't retire.
    """
    exit_, vcpu.pending_exit = vcpu.pending_exit, None
    if exit_ is None:
        if vcpu.vm.arch.before_entry(vcpu) <= 0:
            return 0
        if not vcpu.cpu.has_guest:
            return _no_guest(vcpu)
        update_guest_time(vcpu)
        record_steal_time(vcpu)
        inject(vcpu)
        completion, vcpu.completion = vcpu.completion, None
        vcpu.has_run = True
        sync_to_vapic(vcpu)
        exit_ = vcpu.cpu.enter(completion)
        vcpu.stat["exits"] += 1
        sync_from_vapic(vcpu)
    try:
        with vcpu.vm.srcu.read:
            return _handle_exit(vcpu, exit_)
    except (KernelError, MemoryFault):
        vcpu.pending_exit = None if vcpu.cpu.runs_code else exit_  # code meets it again by itself
        raise


def _no_guest(vcpu: Vcpu) -> int:
    """Nothing was loaded: the processor would fetch at the reset vector, and KVM can't emulate what isn't there."""
    if vcpu.vm.find_slot(RESET_VECTOR_GFN) is None:
        error = kvm_exit_internal_error(suberror=KVM_INTERNAL_ERROR_EMULATION)
        vcpu.set_exit(ExitReason.INTERNAL_ERROR, error)
        return 0
    raise own_rules.NO_ENGINE(f"{vcpu} has machine code only")


def _handle_exit(vcpu: Vcpu, exit_: Exit) -> int:
    """svm_handle_exit()."""
    handled = vcpu.vm.arch.handle_exit(vcpu, exit_)
    if handled is not None:
        return handled
    if isinstance(exit_, NestedPageFault):
        return _handle_page_fault(vcpu, exit_)
    if isinstance(exit_, Vmmcall):
        return _emulate_hypercall(vcpu, exit_)
    if isinstance(exit_, PortIo):
        return _emulate_io(vcpu, exit_)
    if isinstance(exit_, Hlt):
        vcpu.stat["halt_exits"] += 1
        if vcpu.apic is not None and vcpu.cpu.runs_code:
            vcpu.mp_state = MpState.HALTED
            return 1
        vcpu.set_exit(ExitReason.HLT)
        return 0
    if isinstance(exit_, DeviceAccess):
        return _emulate_mmio(vcpu, exit_.access)
    if isinstance(exit_, Shutdown):
        vcpu.set_exit(ExitReason.SHUTDOWN)
        return 0
    if isinstance(exit_, ExternalInterrupt):
        return _window(vcpu)
    from .intercepts import handle_intercept

    return handle_intercept(vcpu, exit_)


def _window(vcpu: Vcpu) -> int:
    """The guest was left without a reason of its own; perhaps as it can now take the interrupt that user space has."""
    vcpu.stat["irq_exits"] += 1
    if vcpu.wants_window and vcpu.machine is not None and vcpu.machine.interruptible and vcpu.interrupt < 0:
        vcpu.set_exit(ExitReason.IRQ_WINDOW_OPEN)
        vcpu.stat["request_irq_exits"] += 1
        return 0
    return 1


def _handle_page_fault(vcpu: Vcpu, exit_: NestedPageFault) -> int:
    """npf_interception() and kvm_mmu_page_fault()."""
    vm = vcpu.vm
    gfn = exit_.gpa >> PAGE_SHIFT
    error_code = vm.arch.synthesize_error_code(gfn, exit_.error_code)
    vcpu.stat["pf_taken"] += 1
    result = vm.mmu.page_fault(vcpu, gfn, error_code)
    vcpu.stat[_FAULT_STATS.get(result, "pf_fixed")] += 1
    if result is RetPf.EMULATE:
        if vcpu.cpu.runs_code:
            vcpu.cpu.emulate(exit_.gpa)
            return 1
        return _emulate_mmio(vcpu, exit_.access)
    vm.arch.after_page_fault(vcpu, exit_.gpa, error_code)
    (vm.rt.retry if result is RetPf.RETRY else vm.rt.resched)()
    return 1


def _emulate_mmio(vcpu: Vcpu, access: Access) -> int:
    """The instruction emulator: KVM_EXIT_MMIO in pieces of at most 8 bytes, then the instruction is done."""
    vcpu.stat["insn_emulation"] += 1
    loaded = bytearray()

    def piece(at: int) -> int:
        if at >= len(access.data):
            vcpu.completion = bytes(loaded) if not access.write else b""
            return 1
        n = min(8, len(access.data) - at)
        done = mmio(vcpu, access.gpa + at, access.data[at : at + n], access.write)
        if done is not None:
            loaded.extend(done)
            return piece(at + n)
        data = access.data[at : at + n].ljust(8, b"\0")
        details = kvm_exit_mmio(phys_addr=access.gpa + at, data=data, len=n, is_write=int(access.write))
        vcpu.set_exit(ExitReason.MMIO, details)
        vcpu.stat["mmio_exits"] += 1

        def complete() -> int:
            answer = vcpu.exit_details(kvm_exit_mmio)
            assert isinstance(answer, kvm_exit_mmio)
            loaded.extend(answer.data[:n])
            return piece(at + n)

        vcpu.complete_userspace_io = complete
        return 0

    return piece(0)


def _emulate_io(vcpu: Vcpu, exit_: PortIo) -> int:
    """KVM_EXIT_IO: the data is on the page behind kvm_run."""
    vcpu.stat["io_exits"] += 1
    memory, page = vcpu.vm.host.memory, vcpu.pio_pfn << PAGE_SHIFT
    length = len(exit_.data)
    size = exit_.size or length
    done = pio(vcpu, exit_.port, exit_.data, size, exit_.write)
    if done is not None:
        vcpu.completion = done
        return 1
    if exit_.write:
        memory.write(page, exit_.data)
    count = length // size
    details = kvm_exit_io(direction=int(exit_.write), size=size, port=exit_.port, count=count, data_offset=PAGE_SIZE)
    vcpu.set_exit(ExitReason.IO, details)

    def complete() -> int:
        vcpu.completion = memory.read(page, length)
        return 1

    vcpu.complete_userspace_io = complete
    return 0


def _emulate_hypercall(vcpu: Vcpu, exit_: Vmmcall) -> int:
    """____kvm_emulate_hypercall(): of the calls that concern memory there is one, and it needs user space's consent."""
    vcpu.stat["hypercalls"] += 1
    if exit_.cpl:
        vcpu.completion = -1  # KVM_EPERM
        return 1
    if exit_.vendor and exit_.vendor != vcpu.vm.host.platform:
        return _fix_hypercall(vcpu, exit_)
    if exit_.nr in _YIELDS and guest_pv_has(vcpu, _YIELDS[exit_.nr]):
        vcpu.completion = 0
        return 1
    if exit_.nr != KVM_HC_MAP_GPA_RANGE or not vcpu.vm.exits_on_hypercall(exit_.nr):
        vcpu.completion = -KVM_ENOSYS
        return 1
    gpa, npages, attributes = (*exit_.args, 0, 0, 0)[:3]
    if gpa & (PAGE_SIZE - 1) or not npages or (gpa >> PAGE_SHIFT) + npages > _U64:
        vcpu.completion = -22
        return 1

    def complete(ret: int) -> int:
        vcpu.completion = ret
        return 1

    flags = KVM_EXIT_HYPERCALL_LONG_MODE if exit_.long_mode else 0
    return vcpu.vm.host.design.map_gpa_range(vcpu, gpa, npages, attributes, complete, flags)


def _fix_hypercall(vcpu: Vcpu, exit_: Vmmcall) -> int:
    """em_hypercall(): the other vendor's instruction is #UD; KVM puts the right one there, unless told not to."""
    if vcpu.vm.quirks_disabled & _QUIRK_FIX_HYPERCALL or vcpu.machine is None:
        vcpu.completion = GuestException(6)
        return 1
    vcpu.machine.patch(b"\x0f\x01\xd9" if vcpu.vm.host.platform == "amd" else b"\x0f\x01\xc1")
    return 1


def map_gpa_range_exit(vcpu: Vcpu, gpa: int, npages: int, attributes: int, complete: object, flags: int = 0) -> int:
    """KVM_EXIT_HYPERCALL for KVM_HC_MAP_GPA_RANGE; `complete(ret)` is called with user space's answer on the next run."""
    assert callable(complete)
    details = kvm_exit_hypercall(nr=KVM_HC_MAP_GPA_RANGE, args=(gpa, npages, attributes, 0, 0, 0), flags=flags)
    vcpu.set_exit(ExitReason.HYPERCALL, details)

    def resume() -> int:
        answer = vcpu.exit_details(kvm_exit_hypercall)
        assert isinstance(answer, kvm_exit_hypercall)
        result = complete(answer.ret)
        assert isinstance(result, int)
        return result

    vcpu.complete_userspace_io = resume
    return 0
