# SPDX-License-Identifier: GPL-2.0-or-later
"""SMCCC calls of arm64 guests that KVM answers: PSCI; all else isn't supported (arch/arm64/kvm/psci.c, hypercalls.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...hw.cpu import Smccc
from ...uapi.kvm import ExitReason, MpState, SystemEvent, kvm_exit_system_event
from ...uapi.kvm_arm64 import KVM_ARM_VCPU_PSCI_0_2, Psci, PsciReturn
from .arm64_vcpu import PC

if TYPE_CHECKING:
    from ..vcpu import Vcpu
    from .arm64 import ArmVm

__all__ = ["answer", "find_vcpu", "smccc_call", "system_event"]

PSCI_1_1 = 1 << 16 | 1
AFFINITY_ON, AFFINITY_OFF = 0, 1
_FUNCTIONS = frozenset(map(int, Psci))
_U64 = (1 << 64) - 1
_SYSTEM = {Psci.SYSTEM_OFF: SystemEvent.SHUTDOWN, Psci.SYSTEM_RESET: SystemEvent.RESET}


def answer(vcpu: Vcpu, x0: int, *more: int) -> int:
    """smccc_set_retval(): the guest goes on with these in X0 to X3.  1, as for every exit that is done with."""
    vcpu.completion = tuple(value & _U64 for value in (x0, *more, 0, 0, 0)[:4])
    return 1


def smccc_call(arm: ArmVm, vcpu: Vcpu, call: Smccc) -> int:
    """kvm_smccc_call_handler(): 1 to resume, 0 to go to user space."""
    has_psci = (arm.vcpu_features or 0) >> KVM_ARM_VCPU_PSCI_0_2 & 1
    if not has_psci or call.function not in _FUNCTIONS:
        return answer(vcpu, PsciReturn.NOT_SUPPORTED)
    function = Psci(call.function)
    args = (*call.args, 0, 0, 0)
    if function in _SYSTEM:
        return system_event(arm, vcpu, _SYSTEM[function])
    if function is Psci.VERSION:
        return answer(vcpu, PSCI_1_1)
    if function is Psci.FEATURES:
        return answer(vcpu, PsciReturn.SUCCESS if args[0] in _FUNCTIONS else PsciReturn.NOT_SUPPORTED)
    if function is Psci.CPU_OFF:
        vcpu.mp_state = MpState.STOPPED
        answer(vcpu, PsciReturn.SUCCESS)
        vcpu.set_exit(ExitReason.HLT)
        return 0
    target = find_vcpu(arm, args[0])
    if target is None:
        return answer(vcpu, PsciReturn.INVALID_PARAMETERS)
    if function is Psci.AFFINITY_INFO:
        return answer(vcpu, AFFINITY_OFF if target.mp_state is MpState.STOPPED else AFFINITY_ON)
    return answer(vcpu, _cpu_on(arm, target, args[1], args[2]))


def find_vcpu(arm: ArmVm, mpidr: int) -> Vcpu | None:
    """kvm_mpidr_to_vcpu()."""
    return next((vcpu for vcpu in arm.vm.vcpus if arm.vcpus[vcpu].mpidr == mpidr), None)


def _cpu_on(arm: ArmVm, target: Vcpu, entry: int, context: int) -> PsciReturn:
    """kvm_psci_vcpu_on()."""
    if target.mp_state is not MpState.STOPPED:
        return PsciReturn.ALREADY_ON
    state = arm.vcpus[target]
    state.reset()
    state.core[PC], state.core[0] = entry, context
    target.mp_state = MpState.RUNNABLE
    return PsciReturn.SUCCESS


def system_event(arm: ArmVm, vcpu: Vcpu, event: SystemEvent) -> int:
    """kvm_prepare_system_event(): no vCPU runs until it's initialised again; one that is finds that the call failed."""
    for each in arm.vm.vcpus:
        each.mp_state = MpState.STOPPED
    answer(vcpu, PsciReturn.INTERNAL_FAILURE)
    vcpu.set_exit(ExitReason.SYSTEM_EVENT, kvm_exit_system_event(type=event, ndata=1))
    return 0
