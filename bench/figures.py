# SPDX-License-Identifier: GPL-2.0-or-later
"""What a benchmark says: a figure, its goal, and how it was measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from statistics import median
from typing import NamedTuple

__all__ = ["Figure", "against", "fresh_process", "run_here"]


class Figure(NamedTuple):
    """One line of the report.  `met` is None where there is no goal."""

    what: str
    value: float
    unit: str
    goal: str
    met: bool | None
    note: str = ""


def fresh_process(code: str, *args: str) -> float:
    """Run Python `code` in a process of its own; it prints one number last, which is returned."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run([sys.executable, "-c", code, *args], env=env, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.strip().splitlines()[-1]))


def run_here(times: int, work: Callable[[], float]) -> float:
    """The median of `times` measurements."""
    return median(work() for _ in range(times))


def against(what: str, size: int, computed: float, launched: float, bare: float, copied: float) -> Iterator[Figure]:
    """A measurement of `size` bytes, computed and by a launch, beside the bare hashing of it and the copying (seconds)."""
    pages = size >> 12
    for name, took, limit, goal in (
        (f"{what}, 256 MiB, computed, against bare hashing", computed, bare, 0.8),
        (f"{what}, 256 MiB, by a launch, against bare hashing", launched, bare, 0.8),
        (f"{what}, 256 MiB, by a launch, against bare hashing and one copy to new memory", launched, bare + copied, 0.0),
    ):
        note = f"{took:.3f} s ({pages / took:,.0f} pages/s) against {limit:.3f} s"
        met = limit / took >= goal if goal else None
        yield Figure(name, limit / took, "x", f">= {goal} x" if goal else "", met, note)
