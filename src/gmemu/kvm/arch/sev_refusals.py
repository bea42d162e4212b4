# SPDX-License-Identifier: GPL-2.0-or-later
"""What sev_mem_enc_ioctl() says to commands of guests that aren't there: SEV's and SEV-ES's, and SNP's on other VMs.

SEV and SEV-ES aren't emulated.  The machine is one whose firmware set-up leaves every ASID to SNP, where KVM_SEV_INIT finds
none (sev_asid_new).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...rules import KernelError, Rule
from ...rules import gmemu as own_rules
from ...rules import snp as rules
from ...uapi.kvm import VmType
from ...uapi.sev import SevCmd

if TYPE_CHECKING:
    from ..vm import Vm

__all__ = ["refused_command"]

_SEV_COMMANDS = frozenset(
    (
        *range(SevCmd.LAUNCH_START, SevCmd.SEND_UPDATE_DATA + 1),
        SevCmd.SEND_FINISH,
        *(SevCmd.RECEIVE_START, SevCmd.RECEIVE_UPDATE_DATA, SevCmd.RECEIVE_FINISH),
        *(SevCmd.GUEST_STATUS, SevCmd.DBG_DECRYPT, SevCmd.DBG_ENCRYPT),
        *(SevCmd.GET_ATTESTATION_REPORT, SevCmd.SEND_CANCEL),
    )
)
"""What sev_mem_enc_ioctl() knows of SEV; SEND_UPDATE_VMSA, RECEIVE_UPDATE_VMSA and CERT_EXPORT have only a number."""

_SNP_COMMANDS: dict[int, Rule] = {
    SevCmd.INIT2: rules.INIT_TYPE,
    SevCmd.SNP_LAUNCH_START: rules.START_TYPE,
    SevCmd.SNP_LAUNCH_UPDATE: rules.UPDATE_CONTEXT,
    SevCmd.SNP_LAUNCH_FINISH: rules.FINISH_TYPE,
}


def refused_command(vm: Vm, id: int) -> KernelError:
    """The error of a command that the VM can't do: each fails by a check of its own."""
    asked = f"command {id}, VM type {vm.vm_type.name}"
    if id in (SevCmd.INIT, SevCmd.ES_INIT):
        if vm.vm_type is not VmType.DEFAULT:
            return rules.SEV_INIT(asked)
        return rules.INIT_VCPUS(f"{vm.created_vcpus} exist") if vm.created_vcpus else rules.SEV_ASID(asked)
    if id in _SEV_COMMANDS:
        return rules.SEV_COMMAND(asked)
    if id == SevCmd.SNP_ENABLE_REQ_CERTS and vm.profile.snp_req_certs:
        return own_rules.SNP_REQ_CERTS()
    return _SNP_COMMANDS.get(id, rules.UNKNOWN_COMMAND)(asked)
