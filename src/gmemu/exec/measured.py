# SPDX-License-Identifier: GPL-2.0-or-later
"""The measurement of a launch that a program has finished, for the log."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..kvm.vm import VmFile
from ..uapi.kvm import VmType
from ..uapi.sev import SevCmd
from ..uapi.tdx import TdxCmd

if TYPE_CHECKING:
    from ..mm.file import File

__all__ = ["Measurement", "measurement"]


class Measurement(NamedTuple):
    """What the trusted entity of `platform` would report: SNP's launch digest, or MRTD.  Simulated."""

    platform: str
    digest: bytes


def measurement(file: File | None, command: int) -> Measurement | None:
    """After KVM_MEMORY_ENCRYPT_OP `command` on `file`: the measurement, if this was what made it final."""
    if not isinstance(file, VmFile):
        return None
    vm = file.vm
    if vm.vm_type is VmType.SNP and command == SevCmd.SNP_LAUNCH_FINISH:
        from ..kvm.arch.snp import SnpVm

        assert isinstance(vm.arch, SnpVm)
        assert vm.arch.snp_context is not None
        return Measurement("snp", vm.arch.platform.psp.contexts[vm.arch.snp_context].ld.value)
    if vm.vm_type is VmType.TDX and command == TdxCmd.FINALIZE_VM:
        from ..kvm.arch.tdx import TdxVm

        assert isinstance(vm.arch, TdxVm)
        digest = vm.arch.module.tds[vm.arch.tdr].measurement
        assert digest is not None
        return Measurement("tdx", digest)
    return None
