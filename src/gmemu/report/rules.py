# SPDX-License-Identifier: GPL-2.0-or-later
"""The rule catalogue for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .table import table

if TYPE_CHECKING:
    from ..profiles import Profile
    from ..rules import Rule
    from .style import Style

__all__ = ["rule_text", "rules_text"]


def rules_text(rules: Sequence[Rule], style: Style) -> str:
    """One line a rule."""
    rows = [(rule.id, rule.outcome, rule.text) for rule in rules]
    return table(rows, ("rule", "result", "what must hold"), style=style, paint={1: style.yellow})


def rule_text(rule: Rule, profiles: Sequence[Profile], style: Style) -> str:
    """Everything that is known of one rule."""
    where = [p.name for p in profiles if rule.applies(p)]
    rows = [
        ("rule", rule.id),
        ("result", rule.outcome),
        ("demands", rule.text),
        ("source", rule.source),
        ("profiles", "all" if len(where) == len(profiles) else ", ".join(where) or "none"),
    ]
    if rule.advice:
        rows.append(("advice", rule.advice))
    return table(rows, style=style, paint={0: style.bold})
