# SPDX-License-Identifier: GPL-2.0-or-later
"""What RFC v5's conversions can promise of the contents of memory that is encrypted for its guest."""

from __future__ import annotations

from ...uapi.kvm import KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE, KVM_SET_MEMORY_ATTRIBUTES2_ZERO

__all__ = ["encrypted_content_modes"]


def encrypted_content_modes(private: bool, final: bool) -> int:
    """SNP and TDX: pages that come back can be zeroed; those that go keep their contents only until the launch is `final`,
    as firmware then takes them in as they are."""
    if private:
        return 0 if final else KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE
    return KVM_SET_MEMORY_ATTRIBUTES2_ZERO
