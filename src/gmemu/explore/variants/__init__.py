# SPDX-License-Identifier: GPL-2.0-or-later
"""Variants: one design decision made otherwise, each a component in place of the default one.

Some were proposed on the lists, some are bugs that were fixed; put back, they must be found.
"""

from __future__ import annotations

from ...kvm.design import Design
from ..user_space import UserSpace
from . import batch, conversion, folios, memslots, mmu, populate, references, tdx, user_space, vcpu_run
from .variant import Variant

__all__ = ["VARIANTS", "Variant", "apply", "apply_to_user_space"]

_MODULES = (populate, batch, conversion, folios, references, vcpu_run, mmu, memslots, tdx, user_space)

VARIANTS: dict[str, Variant] = {variant.name: variant for module in _MODULES for variant in module.VARIANTS}
"""name -> variant, by the part of the kernel that is different; what concerns the VMM comes last"""


def apply(design: Design, names: tuple[str, ...]) -> Design:
    """`design` with the named variants in it.  Raises `KeyError` for a name that isn't one."""
    for name in names:
        design = VARIANTS[name].change(design)
    return design


def apply_to_user_space(user_space: UserSpace, names: tuple[str, ...]) -> UserSpace:
    """The program's part of the named variants.  Raises `KeyError` for a name that isn't one."""
    for name in names:
        user_space = VARIANTS[name].change_user_space(user_space)
    return user_space
