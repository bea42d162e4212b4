# SPDX-License-Identifier: GPL-2.0-or-later
"""Counting the states of dining philosophers, beside SPIN on the same model (Debian's `spin`, and a C compiler).

Eight take half a minute, ten some six minutes.  Without SPIN the counts are held against those that it gave before.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from runpy import run_path
from tempfile import TemporaryDirectory

from gmemu.explore.states import reach

from .figures import Figure

Table = run_path(str(Path(__file__).parents[1] / "tests/explore/forks.py"))["Table"]

SPIN = {8: 14_158, 10: 154_450}
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
    compiler = shutil.which("gcc")
    if shutil.which("spin") is None or compiler is None:
        return SPIN[count], "SPIN isn't here: its count of before"
    with TemporaryDirectory() as where:
        Path(where, "m.pml").write_text(_MODEL % count)
        subprocess.run(["spin", "-a", "m.pml"], cwd=where, check=True, capture_output=True)
        subprocess.run([compiler, "-O2", "-w", "-DNOREDUCE", "-o", "pan", "pan.c"], cwd=where, check=True)
        start = time.monotonic()
        done = subprocess.run(["./pan", "-E", "-n", "-m1000000"], cwd=where, check=True, capture_output=True, text=True)
    found = re.search(r"(\d+) states, stored", done.stdout)
    return int(found[1]) if found else -1, f"SPIN: {time.monotonic() - start:.2f} s"


def figures() -> Iterator[Figure]:
    """Eight, then ten."""
    for count in SPIN:
        start = time.process_time()
        found = reach(lambda count=count: Table(count))  # type: ignore[misc]
        spent = time.process_time() - start
        theirs, how = _spin(count)
        note = f"{found.transitions} transitions, {spent:.0f} s of CPU; {how}; shortest deadlock {len(found.deadlock or ())}"
        same = found.states == theirs
        yield Figure(f"states of {count} philosophers", found.states, "states", f"SPIN's {theirs}", same, note)
