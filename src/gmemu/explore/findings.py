# SPDX-License-Identifier: GPL-2.0-or-later
"""From what a search came by to what is reported: as simple as can be had, and replayed ten times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice, permutations
from typing import TYPE_CHECKING

from .dependence import Analysis
from .locks import Circle, Edge, lock_order
from .minimise import Attempt, attempt, confirm, minimise
from .runs import DEPTH, shows
from .verdict import Kind, Outcome

if TYPE_CHECKING:
    from ..sync.explored import Taken
    from .options import Options, Result
    from .runs import World
    from .saved import Orders

__all__ = ["reported"]

_SEQUENTIAL = 24
"""Orders of whole tasks that are tried when a circle of locks is to be shown by one run."""


def reported(
    build: Callable[[], World],
    options: Options,
    result: Result,
    orders: Orders,
    names: Sequence[str],
    search: Callable[[Options], Result],
) -> Result:
    """What to say of a search that came to `result`: its violation, or locks taken in a circle by all its runs.

    A violation is looked for again with few preemptions by `search`, made simpler by trying, and replayed ten times.
    """
    if not options.stop_at_violation:
        return result
    if result.kind is not None:
        return _simplest(build, options, result, search) if options.minimise else result
    circle = lock_order(orders.runs, orders.edges, names)
    if circle is None:
        return result
    result = result._replace(
        outcome=Outcome.VIOLATED, kind=Kind.LOCK_ORDER, detail=circle.text, choices=circle.choices, trace=()
    )
    return _circle(build, result, circle, orders, names) if options.minimise else result


def _simplest(build: Callable[[], World], options: Options, result: Result, search: Callable[[Options], Result]) -> Result:
    found = attempt(build, result.choices)
    if found.kind is not result.kind:
        return _not_deterministic(result, f"not deterministic: replayed, it ended with {found.kind or 'nothing'}")
    for preemptions in range(found.preemptions):
        few = options._replace(strategy="exhaustive", max_preemptions=preemptions, max_schedules=300, max_seconds=0.3)
        simpler = search(few)
        if simpler.kind is result.kind:
            again = attempt(build, simpler.choices)
            found = again if again.kind is result.kind else found
            break
    best = minimise(build, found)
    return _told(result, best, confirm(build, best))


def _circle(build: Callable[[], World], result: Result, circle: Circle, orders: Orders, names: Sequence[str]) -> Result:
    """One run that shows all of the circle, if one is easily come by; else a run for each of its links."""
    tasks = islice(permutations(range(len(names))), _SEQUENTIAL)
    whole = (tuple(task for task in order for _ in range(DEPTH)) for order in tasks)
    tried = [attempt(build, choices) for choices in (*(orders.runs[link] for link in circle.links), *whole)]
    shown = [one for one in tried if one.kind is Kind.LOCK_ORDER]
    if shown:
        best = minimise(build, min(shown, key=lambda one: one.cost))
        return _told(result, best, confirm(build, best))
    edges: dict[Edge, tuple[int, int, int]] = {}
    simple: dict[Edge, Attempt] = {}
    for link in reversed(circle.links):
        found = attempt(build, orders.runs[link], shows(link))
        if found.kind is not Kind.LOCK_ORDER:
            return _not_deterministic(result, f"not deterministic: replayed, {link[1]} wasn't taken under {link[0]}")
        simple[link] = minimise(build, found, judge=shows(link))
        fault = confirm(build, simple[link], shows(link))
        if fault:
            return _not_deterministic(result, fault)
        edges[link] = _order_in(simple[link].trace, len(names))[link]
    best = simple[circle.links[0]]
    again = lock_order({link: one.choices for link, one in simple.items()}, edges, names)
    return _told(result, best._replace(detail=again.text if again is not None else result.detail), "")


def _order_in(trace: Sequence[Taken], tasks: int) -> dict[Edge, tuple[int, int, int]]:
    analysis = Analysis(tasks)
    analysis.extend([taken.task for taken in trace], [taken.step for taken in trace], ())
    return analysis.order


def _told(result: Result, best: Attempt, fault: str) -> Result:
    if fault:
        return _not_deterministic(result, fault)
    return result._replace(detail=best.detail, choices=best.choices, trace=best.trace, preemptions=best.preemptions)


def _not_deterministic(result: Result, fault: str) -> Result:
    return result._replace(kind=Kind.NOT_DETERMINISTIC, detail=f"{fault} (it was found as {result.kind}: {result.detail})")
