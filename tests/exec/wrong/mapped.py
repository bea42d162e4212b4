# SPDX-License-Identifier: GPL-2.0-or-later
"""The host keeps its mapping of what becomes private."""

from __future__ import annotations

from gmemu.mm.address_space import Vma
from gmemu.mm.real import RealAddressSpace


def _deny_nothing(self: RealAddressSpace, vma: Vma, start: int, end: int) -> None:
    pass


RealAddressSpace._deny = _deny_nothing  # type: ignore[method-assign]
