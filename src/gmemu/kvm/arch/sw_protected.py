# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_X86_SW_PROTECTED_VM: private memory without a trusted entity, for development.

The guest can't say which view it wants, so the attribute itself says what every access is.
"""

from __future__ import annotations

from ...hw.memory import PAGE_SHIFT, noise
from ...uapi.kvm import KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE, KVM_SET_MEMORY_ATTRIBUTES2_ZERO, VmType
from ...uapi.kvm_x86 import PFERR_PRIVATE_ACCESS
from .base import VmArch

__all__ = ["SwProtectedVm"]

_SCRAMBLE = -1 & (1 << 64) - 1
"""No key has this number, so what it makes of a page is like nobody's ciphertext."""


class SwProtectedVm(VmArch):
    """VM type 1."""

    vm_type = VmType.SW_PROTECTED
    has_private_mem = True

    def synthesize_error_code(self, gfn: int, error_code: int) -> int:
        """kvm_mmu_page_fault(): a private page is accessed privately."""
        return error_code | PFERR_PRIVATE_ACCESS if self.vm.attributes.is_private(gfn) else error_code

    def content_modes(self, private: bool) -> int:
        """Nothing touches the pages, so KVM can do either; ZERO towards private was refused to all."""
        preserve = KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE
        return preserve if private else preserve | KVM_SET_MEMORY_ATTRIBUTES2_ZERO

    def content_unspecified(self, pfn: int, count: int) -> None:
        """Scramble the pages on purpose, as an encrypting platform would by its nature."""
        host = self.vm.host
        host.rt.writes_each(("contents",), pfn, pfn + count)
        for page in range(pfn, pfn + count):
            host.memory.write(page << PAGE_SHIFT, noise(page, _SCRAMBLE))
