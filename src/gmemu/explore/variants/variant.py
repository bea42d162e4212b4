# SPDX-License-Identifier: GPL-2.0-or-later
"""What a variant is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from ..user_space import UserSpace

if TYPE_CHECKING:
    from ...kvm.design import Design

__all__ = ["Variant"]


def _kernel_as_it_is(design: Design) -> Design:
    return design


def _user_space_as_it_is(user_space: UserSpace) -> UserSpace:
    return user_space


class Variant(NamedTuple):
    """What is different, in a sentence, and where it was discussed or fixed.

    `change` replaces components of the kernel's design, `change_user_space` those of the program that uses it.
    """

    name: str
    text: str
    source: str
    change: Callable[[Design], Design] = _kernel_as_it_is
    change_user_space: Callable[[UserSpace], UserSpace] = _user_space_as_it_is
