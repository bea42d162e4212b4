# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel that gets it wrong on purpose: a guest's private view shows the shared memory.

Imported into the emulated kernel by GMEMU_EXEC_PLUGIN.  Tests of private memory must fail under it, or they test nothing.
"""

from __future__ import annotations

from gmemu.kvm.memslots import Memslot
from gmemu.kvm.mmu import Mmu, PageFault
from gmemu.kvm.vcpu import Vcpu


def _shared_instead(self: Mmu, vcpu: Vcpu, fault: PageFault, slot: Memslot) -> None:
    self._faultin_hva(fault, slot)


Mmu._faultin_gmem = _shared_instead  # type: ignore[method-assign]
