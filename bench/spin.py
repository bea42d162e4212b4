# SPDX-License-Identifier: GPL-2.0-or-later
"""Running SPIN (Debian's `spin`, and a C compiler) on a model."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

__all__ = ["Pan", "check", "is_here"]


class Pan(NamedTuple):
    """What SPIN's verifier says of a model, unreduced.  `seconds` of wall time without the compiler's, which is `compiling`.

    For an error: what it is, and the steps of a shortest trail to it (found breadth first; -1 without an error).
    """

    error: str
    states: int
    transitions: int
    seconds: float
    compiling: float
    shortest: int = -1


def is_here() -> bool:
    """Whether SPIN and a compiler are installed."""
    return shutil.which("spin") is not None and shutil.which("gcc") is not None


def check(model: str, *defines: str, deadlocks: bool = True, depth: int = 1_000_000) -> Pan:
    """Verify `model`.  Without `deadlocks` a state that nobody can leave is no error, so that all states are counted."""
    with TemporaryDirectory() as where:
        Path(where, "m.pml").write_text(model)
        start = time.monotonic()
        _run(where, "spin", *(f"-D{name}" for name in defines), "-a", "m.pml")
        _run(where, "gcc", "-O2", "-w", "-DNOREDUCE", "-o", "pan", "pan.c")
        if deadlocks:
            _run(where, "gcc", "-O2", "-w", "-DNOREDUCE", "-DBFS", "-o", "pan-bfs", "pan.c")
        compiled = time.monotonic()
        told = _run(where, "./pan", *(() if deadlocks else ("-E",)), "-n", f"-m{depth}")
        seconds = time.monotonic() - compiled
        error = re.search(r"^pan:1: (.+?) \(at depth (\d+)\)", told, re.M)
        shortest = -1
        if error is not None:
            found = re.search(r"\(at depth (\d+)\)", _run(where, "./pan-bfs", "-n"))
            shortest = int(found[1]) if found else -1
    if "max search depth too small" in told:
        raise ValueError("SPIN went no deeper than it was told to; its counts are too small")
    states, transitions = (int(_found(rf"(\d+) {what}", told)) for what in ("states, stored", "transitions"))
    return Pan(error[1] if error else "", states, transitions, seconds, compiled - start, shortest)


def _found(pattern: str, told: str) -> str:
    found = re.search(pattern, told)
    if found is None:
        raise ValueError(f"SPIN said nothing like {pattern!r}:\n{told}")
    return found[1]


def _run(where: str, *command: str) -> str:
    return subprocess.run(command, cwd=where, check=True, capture_output=True, text=True).stdout
