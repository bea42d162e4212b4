# SPDX-License-Identifier: GPL-2.0-or-later
"""`gmemu profiles`: the kernels that can be emulated, and what differs between two."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..profiles import DEFAULT, PROFILES
from ..report.profiles import capabilities, differences, profiles_text
from .guest import profile_named
from .outcome import Outcome

if TYPE_CHECKING:
    from argparse import Namespace

__all__ = ["diff", "show"]


def show(args: Namespace) -> Outcome:
    """`gmemu profiles`."""
    data = [
        {
            "name": p.name,
            "title": p.title,
            "source": p.source,
            "default": p.name == DEFAULT,
            "capabilities": capabilities(p),
        }
        for p in PROFILES.values()
    ]
    return Outcome(data, lambda style: profiles_text(PROFILES.values(), DEFAULT, style))


def diff(args: Namespace) -> Outcome:
    """`gmemu profiles diff`."""
    found = differences(profile_named(args.a), profile_named(args.b))
    return Outcome(found.data(), found.text)
