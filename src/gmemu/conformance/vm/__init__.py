# SPDX-License-Identifier: GPL-2.0-or-later
"""A real kernel to compare with: built from a distribution's sources, booted in QEMU, reached through an agent.

``with boot("6.12") as door:`` gives a `gmemu.syscalls` door whose system calls that kernel carries out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .build import Unavailable
    from .machine import MachineDoor, boot

__all__ = ["MachineDoor", "Unavailable", "boot"]

_HOMES = {"MachineDoor": "machine", "Unavailable": "build", "boot": "machine"}


def __getattr__(name: str) -> Any:
    """Modules are loaded when first used, so that ``python -m gmemu.conformance.vm.build`` loads that one once."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
