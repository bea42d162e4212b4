# SPDX-License-Identifier: GPL-2.0-or-later
"""The rule catalogue: what is checked, by whom, and where that stands."""

from __future__ import annotations

from importlib import import_module

from .base import BusError, KernelError, MemoryFault, Rule, SegmentationFault, catalogue, rule

__all__ = [
    "BusError",
    "KernelError",
    "MemoryFault",
    "Rule",
    "SegmentationFault",
    "catalogue",
    "load_all",
    "rule",
]

AREAS = ("mm", "gmem", "kvm", "snp", "tdx", "arm64", "cca", "pkvm", "gmemu")


def load_all() -> None:
    """Import every area, so that its rules are in the catalogue."""
    for area in AREAS:
        import_module(f"{__name__}.{area}")
