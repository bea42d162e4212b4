# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_X86_SW_PROTECTED_VM: private memory without a trusted entity, for development.

The guest can't say which view it wants, so the attribute itself says what every access is.
"""

from __future__ import annotations

from ...uapi.kvm import VmType
from ...uapi.kvm_x86 import PFERR_PRIVATE_ACCESS
from .base import VmArch

__all__ = ["SwProtectedVm"]


class SwProtectedVm(VmArch):
    """VM type 1."""

    vm_type = VmType.SW_PROTECTED
    has_private_mem = True

    def synthesize_error_code(self, gfn: int, error_code: int) -> int:
        """kvm_mmu_page_fault(): a private page is accessed privately."""
        return error_code | PFERR_PRIVATE_ACCESS if self.vm.attributes.is_private(gfn) else error_code
