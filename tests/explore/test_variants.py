# SPDX-License-Identifier: GPL-2.0-or-later
"""Variants: each changes something, says where it's from, and can be combined."""

from __future__ import annotations

import pytest

from gmemu.explore.user_space import UserSpace
from gmemu.explore.variants import VARIANTS, apply, apply_to_user_space
from gmemu.kvm.design import Design
from gmemu.profiles import get

DESIGN = Design.of(get("inplace-v13"))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_changes_something_and_says_where_it_is_from(name: str) -> None:
    variant = VARIANTS[name]
    changed = apply(DESIGN, (name,)) != DESIGN or apply_to_user_space(UserSpace(), (name,)) != UserSpace()
    assert changed
    assert variant.text
    assert variant.source
    assert not variant.text.endswith(".")


def test_variants_combine() -> None:
    both = apply(DESIGN, ("no-seq-retry", "no-lru-drain"))
    assert both.drain is apply(DESIGN, ("no-lru-drain",)).drain
    assert both.is_page_fault_stale is apply(DESIGN, ("no-seq-retry",)).is_page_fault_stale
    assert both.populate is DESIGN.populate


def test_a_name_that_is_none() -> None:
    with pytest.raises(KeyError):
        apply(DESIGN, ("no-such-variant",))
    with pytest.raises(KeyError):
        apply_to_user_space(UserSpace(), ("no-such-variant",))
