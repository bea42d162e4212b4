# SPDX-License-Identifier: GPL-2.0-or-later
"""VM types: what each adds to KVM.  What the firmware or the processor does is in `hw`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...uapi.kvm import VmType
from .base import VmArch

if TYPE_CHECKING:
    from ...profiles import Profile

__all__ = ["VmArch", "arch_class"]


def arch_class(profile: Profile, platform: str, vm_type: VmType) -> type[VmArch]:
    """The class for a VM type that the kernel has on this platform."""
    if vm_type is VmType.ARM_REALM:
        from .cca import CcaVm

        return CcaVm
    if vm_type is VmType.ARM_PROTECTED and profile.protected_memory == "guest_memfd":
        from .pkvm_gmem import PkvmGmemVm

        return PkvmGmemVm
    if platform == "pkvm":
        from .pkvm import PkvmSharedVm, PkvmVm

        return PkvmVm if vm_type is VmType.ARM_PROTECTED else PkvmSharedVm
    if platform == "arm":
        from .arm64 import ArmVm

        return ArmVm
    if vm_type is VmType.SW_PROTECTED:
        from .sw_protected import SwProtectedVm

        return SwProtectedVm
    if vm_type is VmType.SNP:
        from .snp import SnpVm

        return SnpVm
    if vm_type is VmType.TDX:
        from .tdx import TdxVm

        return TdxVm
    return VmArch
