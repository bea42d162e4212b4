# SPDX-License-Identifier: GPL-2.0-or-later
"""What makes a REC exit, and what KVM does about it: RIPAS changes, PSCI, host calls, failed entries (rmi-exit.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...hw.cpu import Exit, ExternalInterrupt, RecEnterFailed, RecExit
from ...hw.memory import PAGE_SHIFT
from ...hw.rmm.cpu import RecCpu
from ...rules import cca as rules
from ...rules import kvm as kvm_rules
from ...uapi.kvm import KVM_MEMORY_EXIT_FLAG_PRIVATE, ExitReason, MpState, SystemEvent, kvm_exit_memory_fault
from ...uapi.kvm_arm64 import Psci, PsciReturn
from ...uapi.rmi import RMI_ERROR_STATUS_MASK, RecEnterFlags, RecExitReason, Ripas, RmiStatus, rmi_text
from .psci import find_vcpu, system_event

if TYPE_CHECKING:
    from ..vcpu import Vcpu
    from .cca import CcaVm

__all__ = ["handle_exit"]

_SYSTEM = {Psci.SYSTEM_OFF: SystemEvent.SHUTDOWN, Psci.SYSTEM_RESET: SystemEvent.RESET}
_NOT_SUPPORTED = PsciReturn.NOT_SUPPORTED & (1 << 64) - 1


def handle_exit(cca: CcaVm, vcpu: Vcpu, exit_: Exit) -> int | None:
    """handle_rec_exit(): 1 to resume, 0 to go to user space, None for what every VM has."""
    if isinstance(exit_, RecEnterFailed):
        return _failed_entry(cca, vcpu, exit_)
    if isinstance(exit_, ExternalInterrupt):
        return 1
    if not isinstance(exit_, RecExit):
        return None
    if exit_.reason == RecExitReason.RIPAS_CHANGE:
        return _ripas_change(cca, vcpu, exit_)
    if exit_.reason == RecExitReason.PSCI:
        return _psci(cca, vcpu, exit_)
    vcpu.completion = (_NOT_SUPPORTED, *exit_.values[1:])
    return 1


def _failed_entry(cca: CcaVm, vcpu: Vcpu, exit_: RecEnterFailed) -> int:
    """The realm didn't run.  A busy RMM is asked again; one whose realm is over ends the vCPU."""
    vcpu.completion = exit_.completion
    code = exit_.status & RMI_ERROR_STATUS_MASK
    if code == RmiStatus.BUSY:
        cca.vm.rt.resched()
        return 1
    raise rules.ENTER(rmi_text(exit_.status))


def _ripas_change(cca: CcaVm, vcpu: Vcpu, exit_: RecExit) -> int:
    """rec_exit_ripas_change(): if user space has converted the memory to what the realm wants, so does the RMM; else user
    space is asked to, by an exit that is met again by the next KVM_RUN."""
    base, top, wanted = exit_.values
    cpu, private = vcpu.cpu, wanted == Ripas.RAM
    assert isinstance(cpu, RecCpu)
    rejects = cca.platform.reject_ripas_change
    if rejects is not None and rejects(base, top):
        cpu.enter_flags |= RecEnterFlags.RIPAS_RESPONSE
        return 1
    mmu = cca.vm.mmu
    seq = mmu.invalidate_seq.read()
    if not _agrees(cca, base >> PAGE_SHIFT, top >> PAGE_SHIFT, private):
        flags = KVM_MEMORY_EXIT_FLAG_PRIVATE if private else 0
        vcpu.set_exit(ExitReason.MEMORY_FAULT, kvm_exit_memory_fault(flags=flags, gpa=base, size=top - base))
        asked, found = ("private", "shared") if private else ("shared", "private")
        raise kvm_rules.FAULT_MISMATCH(f"a realm wants [{base:#x}, {top:#x}) {asked}, of which some is {found}")
    rec, _ = cca.recs[vcpu]
    with cca.vm.mmu_lock.exclusive:
        stale = bool(mmu.invalidate_in_progress.read()) or mmu.invalidate_seq.read() != seq
        if not stale:
            if not private and cca.rtt.unmap_protected(base >> PAGE_SHIFT, top >> PAGE_SHIFT):
                cca.vm.flush_remote_tlbs()
            cca.rtt.set_ripas(rec, base, top)
    if stale:  # the attributes may have changed meanwhile: look again
        vcpu.pending_exit = exit_
        cca.vm.rt.resched()
    return 1


def _agrees(cca: CcaVm, start: int, end: int, private: bool) -> bool:
    """Whether all of the frames [start, end) have the attribute that goes with the RIPAS that is wanted."""
    attributes, gfn = cca.vm.attributes, start
    while gfn < end:
        run = attributes.private_run(gfn, end - gfn)
        if private and not run:
            return False
        if not private:
            if run:
                return False
            run = 1
        gfn += run
    return True


def _psci(cca: CcaVm, vcpu: Vcpu, exit_: RecExit) -> int:
    """rec_exit_psci(): the RMM has done its part; KVM keeps its own account, and names the vCPU that is meant."""
    function, args = Psci(exit_.values[0]), exit_.values[1:]
    if function in _SYSTEM:
        return system_event(cca, vcpu, _SYSTEM[function])
    if function is Psci.CPU_OFF:
        vcpu.mp_state = MpState.STOPPED
        vcpu.set_exit(ExitReason.HLT)
        return 0
    target = find_vcpu(cca, args[0])
    assert target is not None  # the RMM knows only RECs that KVM made
    platform, rmm = cca.platform, cca.platform.rmm
    result = platform.call(lambda: rmm.psci_complete(cca.recs[vcpu][0], cca.recs[target][0], PsciReturn.SUCCESS))
    platform.check(result, "RMI_PSCI_COMPLETE")
    if function is Psci.CPU_ON and rmm.recs[cca.recs[target][0]].runnable:
        target.mp_state = MpState.RUNNABLE
    return 1
