# SPDX-License-Identifier: GPL-2.0-or-later
"""Counting the states of dining philosophers, beside SPIN on the same model.

Eight take seconds, ten two minutes; `states_12` takes twenty and more.  Without SPIN the counts are held against those
that it gave before.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from runpy import run_path

from gmemu.explore.states import reach

from . import spin
from .figures import Figure

Table = run_path(str(Path(__file__).parents[1] / "tests/explore/forks.py"))["Table"]

SPIN = {8: 14_158, 10: 154_450, 12: 1_684_801}
"""What SPIN 6.5.2 counts without reduction."""

_MODEL = """
#define N %d
byte fork[N];
active [N] proctype P() {
  byte i = _pid;
  do
  :: atomic { fork[i] == 0 -> fork[i] = 1 };
     atomic { fork[(i+1)%%N] == 0 -> fork[(i+1)%%N] = 1 };
     fork[(i+1)%%N] = 0;
     fork[i] = 0
  od
}
"""


def _spin(count: int) -> tuple[int, str]:
    """SPIN's count, and how it was come by."""
    if not spin.is_here():
        return SPIN[count], "SPIN isn't here: its count of before"
    found = spin.check(_MODEL % count, deadlocks=False, depth=count**7)
    deadlock = spin.check(_MODEL % count)
    told = f"{found.transitions} transitions, {found.seconds:.2f} s and {found.compiling:.1f} s before"
    return found.states, f"SPIN: {told}; {deadlock.error}, shortest trail {deadlock.shortest} steps"


def counted(count: int) -> Figure:
    """All states of a table of `count`."""
    start = time.process_time()
    found = reach(lambda: Table(count), 1 << 22)
    spent = time.process_time() - start
    theirs, how = _spin(count)
    note = (
        f"{found.transitions} transitions, {spent:.0f} s of CPU; deadlock, shortest way {len(found.deadlock or ())}; {how}"
    )
    same = found.complete and found.states == theirs
    return Figure(f"states of {count} philosophers", found.states, "states", f"SPIN's {theirs}", same, note)


def figures() -> Iterator[Figure]:
    """Eight, then ten."""
    yield counted(8)
    yield counted(10)
