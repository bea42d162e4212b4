# SPDX-License-Identifier: GPL-2.0-or-later
"""`gmemu rules`: the catalogue, and each rule explained."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from ..profiles import PROFILES
from ..report.rules import rule_text, rules_text
from ..rules import Rule, catalogue
from .guest import profile_named
from .outcome import Outcome, UsageError

if TYPE_CHECKING:
    from argparse import Namespace

__all__ = ["rules"]


def rules(args: Namespace) -> Outcome:
    """`gmemu rules`."""
    found = catalogue()
    if args.profile is not None:
        profile = profile_named(args.profile)
        found = {name: rule for name, rule in found.items() if rule.applies(profile)}
    if args.id is None:
        return _many(list(found.values()))
    if args.id in found:
        rule = found[args.id]
        return Outcome(_data(rule), lambda style: rule_text(rule, list(PROFILES.values()), style))
    prefix = args.id.rstrip(".") + "."
    chosen = [rule for name, rule in found.items() if name.startswith(prefix)]
    if not chosen:
        raise UsageError(_nothing(args.id, args.profile, found))
    return _many(chosen)


def _many(found: list[Rule]) -> Outcome:
    return Outcome([_data(rule) for rule in found], lambda style: rules_text(found, style))


def _data(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.id,
        "outcome": rule.outcome,
        "errno": rule.errno,
        "signal": rule.signal or None,
        "text": rule.text,
        "source": rule.source,
        "advice": rule.advice or None,
        "profiles": [p.name for p in PROFILES.values() if rule.applies(p)],
    }


def _nothing(id: str, profile: str | None, found: dict[str, Rule]) -> str:
    where = f" in profile {profile}" if profile else ""
    if profile and id in catalogue():
        return f"rule {id} doesn't exist{where}; gmemu rules {id} says where it does"
    near = get_close_matches(id, found, 1)
    hint = f"did you mean {near[0]}?" if near else "gmemu rules lists all"
    return f"no rule{where} is called {id!r} or starts with it; {hint}"
