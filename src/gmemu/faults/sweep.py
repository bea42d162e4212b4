# SPDX-License-Identifier: GPL-2.0-or-later
"""A VMM program, run once for each point at which something could fail, with that one failing.

A run is in order if the program succeeded and came to what it comes to when nothing fails, or if it failed and said so; if
no invariant was broken, nothing was left when everybody had exited, and it came to an end.  Anything else is a finding.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import NamedTuple

from .judge import Achieved, Verdict
from .language import Order
from .pool import Died, run_jobs
from .program import Run, record, try_program

__all__ = ["Finding", "Sweep", "SweepError", "sweep"]

SECONDS = 60
"""Of processor time for one run."""
_SLACK = 20_000


class SweepError(Exception):
    """The program can't be swept; one sentence."""


class Finding(NamedTuple):
    """A run that wasn't in order: which failure was ordered, what kind of thing was found, and why in words."""

    order: str
    kind: str
    why: str


class Sweep(NamedTuple):
    """The result: how many points there are, how many runs succeeded all the same, and what was found."""

    points: int
    succeeded: int
    unmet: int
    findings: tuple[Finding, ...]


def sweep(
    path: str,
    arguments: list[str] | None = None,
    *,
    every: bool = False,
    jobs: int | None = None,
    only: Callable[[Order], bool] = lambda order: True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Sweep:
    """Sweep the program.  `every`: also points of which there are many alike; `only`: those that are wanted.

    Raises `SweepError` if it doesn't succeed with nothing failing.
    """
    arguments = arguments or []
    [base] = run_jobs([partial(record, path, arguments, every)], 1, SECONDS)
    if isinstance(base, Died):
        raise SweepError(f"{path} doesn't come to an end with nothing failing: {base.why}")
    if base.verdicts or base.status:
        why = base.verdicts[0].why if base.verdicts else f"it ends with status {base.status}: {base.said}"
        raise SweepError(f"{path} has to succeed with nothing failing first; {why}")
    for module in base.modules:  # so that the processes to come needn't
        import_module(module)
    orders = [order for order in map(Order.parse, base.orders) if only(order)]
    limit = 20 * base.steps + _SLACK
    runs = [partial(try_program, path, arguments, order, limit) for order in orders]
    findings: list[Finding] = []
    succeeded = unmet = 0
    at_once = jobs or len(os.sched_getaffinity(0))
    for done, (order, run) in enumerate(zip(orders, run_jobs(runs, at_once, SECONDS), strict=True), 1):
        findings += [Finding(str(order), *verdict) for verdict in _verdicts(run, base.achieved)]
        if isinstance(run, Run):
            succeeded += run.status == 0
            unmet += not run.fired
        progress(done, len(orders))
    return Sweep(len(orders), succeeded, unmet, tuple(findings))


def _verdicts(run: Run | Died, wanted: Achieved) -> Iterator[Verdict]:
    if isinstance(run, Died):
        yield Verdict("hung" if "no end" in run.why else "killed", run.why)
        return
    yield from run.verdicts
    if run.status == 0 and not run.verdicts and run.achieved != wanted:
        yield Verdict("untrue", f"it ended as if all had gone well, but {_difference(run.achieved, wanted)}")


def _difference(got: Achieved, wanted: Achieved) -> str:
    """The first thing in which a run falls short."""
    if len(got.launches) != len(wanted.launches):
        return f"{len(got.launches)} launches of {len(wanted.launches)} were finished"
    for (digest, pages), (want, want_pages) in zip(got.launches, wanted.launches, strict=True):
        if pages != want_pages:
            return f"the guest has {pages} pages after its launch, and {want_pages} when nothing fails"
        if digest != want:
            return f"the launch measurement is {digest[:16]}..., and is {want[:16]}... when nothing fails (simulated)"
    have, want_private = _pages(got), _pages(wanted)
    if have != want_private:
        return f"{have} pages are private in the end, and {want_private} when nothing fails"
    return "other pages are private in the end than when nothing fails"


def _pages(achieved: Achieved) -> int:
    return sum(end - start for runs in achieved.private for start, end in runs)
