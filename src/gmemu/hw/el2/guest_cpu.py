# SPDX-License-Identifier: GPL-2.0-or-later
"""What a scripted guest of pKVM has in its hands."""

from __future__ import annotations

from ...uapi.kvm_arm64 import VendorHyp
from ..arm.guest_cpu import ArmGuestCpu
from ..memory import PAGE_SIZE

__all__ = ["PkvmGuestCpu"]


class PkvmGuestCpu(ArmGuestCpu):
    """The guest's view of its processor.  Addresses are bytes."""

    def meminfo(self) -> int:
        """HYP_MEMINFO: by how many bytes memory is protected."""
        return self.hypercall(VendorHyp.HYP_MEMINFO)

    def mem_share(self, ipa: int) -> int:
        """MEM_SHARE of the page at `ipa`: 0, or -3 (INVALID_PARAMETER)."""
        return self.hypercall(VendorHyp.MEM_SHARE, ipa)

    def mem_unshare(self, ipa: int) -> int:
        """MEM_UNSHARE of the page at `ipa`: 0, or -3 (INVALID_PARAMETER)."""
        return self.hypercall(VendorHyp.MEM_UNSHARE, ipa)

    def convert(self, gpa: int, size: int, *, private: bool) -> None:
        """Change `size` bytes at `gpa`, page by page.  An answer other than 0 ends the guest."""
        call = self.mem_unshare if private else self.mem_share
        for page in range(gpa, gpa + size, PAGE_SIZE):
            if call(page):
                self.terminate()
