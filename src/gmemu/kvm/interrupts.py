# SPDX-License-Identifier: GPL-2.0-or-later
"""What is injected into a guest before it's entered, and a vCPU that waits for something to be (x86.c, irq.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..hw.x86.events import Event
from ..rules import kvm as rules
from ..uapi.kvm import ExitReason, MpState
from ..uapi.kvm_x86 import KVM_GUESTDBG_BLOCKIRQ

if TYPE_CHECKING:
    from .vcpu import Vcpu

__all__ = ["block", "has_events", "inject", "pending_vector"]

_NMI = 2
_WAIT_SECONDS = 0.002


def pending_vector(vcpu: Vcpu) -> int:
    """kvm_cpu_has_injectable_intr(): the vector that the guest would get now, or -1."""
    if vcpu.interrupt >= 0:
        return vcpu.interrupt
    pic = vcpu.vm.irqchip
    if pic is not None and pic.pit is not None:
        pic.pit.poll()
    if pic is not None and pic.output and (vcpu.apic is None or vcpu.apic.takes_pic):
        return pic.peek()
    return vcpu.apic.pending() if vcpu.apic is not None else -1


def _take(vcpu: Vcpu) -> int:
    """kvm_cpu_get_interrupt()."""
    if vcpu.interrupt >= 0:
        vector, vcpu.interrupt = vcpu.interrupt, -1
        return vector
    pic = vcpu.vm.irqchip
    if pic is not None and pic.output and (vcpu.apic is None or vcpu.apic.takes_pic):
        return pic.acknowledge()
    return vcpu.apic.take() if vcpu.apic is not None else -1


def inject(vcpu: Vcpu) -> None:
    """kvm_check_and_inject_events(): NMIs before interrupts, and neither into an instruction that is half done."""
    cpu = vcpu.machine
    if cpu is None or not cpu.runs_code:
        return
    nmi, vector = vcpu.nmi_pending, pending_vector(vcpu)
    cpu.window_wanted = vcpu.wants_window
    if vcpu.guest_debug & KVM_GUESTDBG_BLOCKIRQ:
        return
    if not nmi and vector < 0:
        return
    if cpu.in_instruction or (not nmi and not cpu.interruptible):
        cpu.window_wanted = True
        return
    if nmi:
        vcpu.nmi_pending -= 1
        vcpu.stat["nmi_injections"] += 1
        cpu.event = Event(_NMI, external=True)
        cpu.window_wanted = vector >= 0
        return
    vector = _take(vcpu)
    if vector >= 0:
        vcpu.stat["irq_injections"] += 1
        cpu.event = Event(vector, external=True)


def has_events(vcpu: Vcpu) -> bool:
    """kvm_vcpu_has_events(): whether a halted vCPU has something to wake up for."""
    if vcpu.nmi_pending:
        return True
    interruptible = vcpu.machine is None or vcpu.machine.interruptible
    return interruptible and pending_vector(vcpu) >= 0


def block(vcpu: Vcpu) -> int:
    """vcpu_block(): wait until there's an event or a signal.  1 to go on; 0 to go to user space.

    Raises EAGAIN for a vCPU that was started by nobody yet and got woken, EINTR for a signal.
    """
    task = vcpu.vm.rt.current
    while True:
        vcpu.wakeup.clear()
        if vcpu.mp_state is MpState.HALTED and has_events(vcpu):
            vcpu.mp_state = MpState.RUNNABLE
            vcpu.stat["halt_wakeup"] += 1
        if vcpu.mp_state is MpState.RUNNABLE:
            return 1
        if task.pending_signals or vcpu.immediate_exit:
            vcpu.set_exit(ExitReason.INTR)
            raise rules.RUN_SIGNAL()
        if vcpu.vm.vm_dead:
            raise rules.VM_DEAD()
        with vcpu.vm.rt.guest_mode():
            vcpu.wakeup.wait(_WAIT_SECONDS)
