# SPDX-License-Identifier: GPL-2.0-or-later
"""Lock order over all runs of a search, as lockdep has it over the life of a kernel: by name, whether or not it hung."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .token import schedule_text

__all__ = ["Circle", "Edge", "lock_order"]

Edge = tuple[str, str]
"""(lock held, lock taken)"""


class Circle(NamedTuple):
    """Locks that are taken in a circle: a text for people, the links from the one seen last, and the choices of a run that
    shows that one."""

    links: tuple[Edge, ...]
    text: str
    choices: tuple[int, ...]


def lock_order(
    runs: Mapping[Edge, tuple[int, ...]], edges: Mapping[Edge, tuple[int, int, int]], tasks: Sequence[str]
) -> Circle | None:
    """The shortest circle among `edges`, (lock held, lock taken) -> (task, where it took the one, where the other).

    `runs` tells the choices of a run that shows each.  None if there is an order that all runs kept to.
    """
    after: dict[str, list[str]] = {}
    for outer, inner in edges:
        after.setdefault(outer, []).append(inner)
    best: tuple[str, ...] | None = None
    for start in after:
        circle = _shortest(start, after)
        if circle is not None and (best is None or len(circle) < len(best)):
            best = circle
    if best is None:
        return None
    links = [(a, best[(i + 1) % len(best)]) for i, a in enumerate(best)]
    newest = max(links, key=list(edges).index)
    at = links.index(newest)
    links = links[at:] + links[:at]
    task, outer_at, inner_at = edges[newest]
    lines = [
        "possible circular locking dependency",
        f"{tasks[task]} takes {newest[1]} (step {inner_at}) while it holds {newest[0]} (step {outer_at}),",
        f"which already depends on {newest[1]}; the chain, in reverse order:",
    ]
    shown = runs.get(newest, ())
    for number, link in reversed(list(enumerate(links))):
        by, held_at, taken_at = edges[link]
        text = f"-> #{number} {link[1]}: taken by {tasks[by]} (step {taken_at}), holding {link[0]} (step {held_at})"
        if runs.get(link, shown) != shown:
            text += f"; in another run: {schedule_text(runs[link])}"
        lines.append(text)
    lines.append("chain: " + " --> ".join([link[0] for link in links] + [links[0][0]]))
    return Circle(tuple(links), "\n".join(lines), shown)


def _shortest(start: str, after: Mapping[str, list[str]]) -> tuple[str, ...] | None:
    """The shortest way from `start` back to it."""
    paths: list[tuple[str, ...]] = [(start,)]
    seen: set[str] = set()
    while paths:
        longer = []
        for path in paths:
            for name in after.get(path[-1], ()):
                if name == start:
                    return path
                if name not in seen:
                    seen.add(name)
                    longer.append((*path, name))
        paths = longer
    return None
