# SPDX-License-Identifier: GPL-2.0-or-later
"""Cases: small programs over the Python API, registered by group, each saying what it needs of a kernel."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules
from typing import NamedTuple

from .bench import Bench

__all__ = ["Case", "all_cases", "case", "groups"]

_CASES: list[Case] = []


class Case(NamedTuple):
    """`needs` are features (see `features`); `each_vm`: once for each VM type that can have guest_memfd."""

    group: str
    name: str
    run: Callable[[Bench], None]
    needs: tuple[str, ...]
    each_vm: bool

    @property
    def id(self) -> str:
        """group/name."""
        return f"{self.group}/{self.name}"


def case(group: str, *needs: str, each_vm: bool = True) -> Callable[[Callable[[Bench], None]], Callable[[Bench], None]]:
    """Register the function as a case of `group`."""

    def register(run: Callable[[Bench], None]) -> Callable[[Bench], None]:
        _CASES.append(Case(group, run.__name__.replace("_", "-"), run, needs, each_vm))
        return run

    return register


def all_cases() -> list[Case]:
    """Every case, by group and then in the order of the source."""
    from . import cases

    for module in iter_modules(cases.__path__):
        import_module(f"{cases.__name__}.{module.name}")
    ids = [c.id for c in _CASES]
    assert len(set(ids)) == len(ids), "two cases have one name"
    return sorted(_CASES, key=lambda c: c.group)


def groups() -> list[str]:
    """The names of the groups."""
    return sorted({c.group for c in all_cases()})
