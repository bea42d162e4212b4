# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a search stands, so that it can be gone on with: in another process, on another machine, tomorrow.

Between two runs a search is nothing but the path that it is about to take, with what was tried at each choice on it and
what is left to try there, and its counts.  Who can run where, and what sleeps, comes back when the path is taken again.
"""

from __future__ import annotations

import ast
from typing import Any, NamedTuple

from .locks import Edge

__all__ = ["Choice", "Frontier", "Orders", "Saved"]


class Choice(NamedTuple):
    """At one point: the task chosen, those that were tried before it, and those that are left to try, in order."""

    chosen: int
    done: tuple[int, ...] = ()
    todo: tuple[int, ...] = ()


Frontier = tuple[Choice, ...]
"""The path that is next."""


class Orders(NamedTuple):
    """In what order locks were taken: by (lock held, lock taken) the task and the positions of both acquisitions, and the
    choices of a run that shows it."""

    edges: dict[Edge, tuple[int, int, int]]
    runs: dict[Edge, tuple[int, ...]]


class Saved(NamedTuple):
    """An unfinished search."""

    frontier: Frontier = ()
    schedules: int = 0
    steps: int = 0
    seconds: float = 0.0
    states: frozenset[object] = frozenset()
    bound: str = ""
    orders: Orders = Orders({}, {})

    def data(self) -> dict[str, Any]:
        """For JSON.  States are written as Python has them: they are made of tuples, texts and numbers."""
        return {
            "frontier": [[c.chosen, list(c.done), list(c.todo)] for c in self.frontier],
            "schedules": self.schedules,
            "steps": self.steps,
            "seconds": self.seconds,
            "states": sorted(map(repr, self.states)),
            "bound": self.bound,
            "orders": [[*edge, list(at), list(self.orders.runs[edge])] for edge, at in self.orders.edges.items()],
        }

    @classmethod
    def of_data(cls, data: dict[str, Any]) -> Saved:
        """What `data` gave.  Raises `ValueError`, `KeyError` or `TypeError` for anything else."""
        edges = {(held, taken): (task, outer, inner) for held, taken, (task, outer, inner), _ in data["orders"]}
        runs = {(held, taken): tuple(run) for held, taken, _, run in data["orders"]}
        return cls(
            tuple(Choice(chosen, tuple(done), tuple(todo)) for chosen, done, todo in data["frontier"]),
            int(data["schedules"]),
            int(data["steps"]),
            float(data["seconds"]),
            frozenset(ast.literal_eval(state) for state in data["states"]),
            str(data["bound"]),
            Orders(edges, runs),
        )
