# SPDX-License-Identifier: GPL-2.0-or-later
"""The catalogue: one scenario for each known bug or dispute about guest_memfd's locks and lifetimes.

Each stands in a module of its own, which is all that's needed to add one.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from ..explore.scenario import Scenario

__all__ = ["CATALOGUE"]


def _found() -> list[type[Scenario]]:
    modules = (import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__))
    named = (getattr(module, name) for module in modules for name in module.__all__)
    return [thing for thing in named if isinstance(thing, type) and issubclass(thing, Scenario) and "number" in vars(thing)]


CATALOGUE = {scenario.name: scenario for scenario in sorted(_found(), key=lambda found: (found.number, found.name))}
"""name -> scenario, in the catalogue's order"""
