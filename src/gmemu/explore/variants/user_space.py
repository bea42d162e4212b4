# SPDX-License-Identifier: GPL-2.0-or-later
"""VMMs that don't keep their half of the contract."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .variant import Variant

if TYPE_CHECKING:
    from ...api.sev import Snp
    from ...uapi.sev import SnpPageType

__all__ = ["VARIANTS"]


def _load_once(snp: Snp, gpa: int, length: int, page_type: SnpPageType, source: int) -> None:
    """One call, which returned 0: done, it seems."""
    snp.launch_update_once(gpa, length, page_type, source)


def _nothing(action: Callable[[], None]) -> None:
    """Leave things as they are."""


VARIANTS = (
    Variant(
        "vmm-ignores-len",
        "the VMM takes 0 from KVM_SEV_SNP_LAUNCH_UPDATE for all done, whatever `len` says",
        "S20; sev.c: snp_launch_update()",
        change_user_space=lambda u: u._replace(load=_load_once),
    ),
    Variant(
        "vmm-retries-blindly",
        "the VMM tries a refused conversion again and again, and asks nobody to let go of the page",
        "S10; discussion A",
        change_user_space=lambda u: u._replace(on_busy=_nothing),
    ),
    Variant(
        "vfio-map-kept",
        "the VMM discards memory that a device still has mapped",
        "discussion A; QEMU's RamDiscardManager is there for it",
        change_user_space=lambda u: u._replace(before_discard=_nothing),
    ),
)
