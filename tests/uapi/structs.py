# SPDX-License-Identifier: GPL-2.0-or-later
"""Every structure that gmemu.uapi declares, for the tests that hold for all of them."""

from __future__ import annotations

from types import ModuleType

from gmemu.uapi import ghcb, kvm, kvm_arm64, kvm_x86, mman, rmi, sev
from gmemu.uapi.layout import Struct

MODULES = (ghcb, kvm, kvm_arm64, kvm_x86, mman, rmi, sev)


def structs_of(module: ModuleType) -> list[type[Struct]]:
    """The structures declared in `module`, in the order they stand there."""
    return [
        v for v in vars(module).values() if isinstance(v, type) and issubclass(v, Struct) and v.__module__ == module.__name__
    ]


ALL = [cls for module in MODULES for cls in structs_of(module)]
