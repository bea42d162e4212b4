# SPDX-License-Identifier: GPL-2.0-or-later
"""`gmemu exec sweep`: run a program once for each point at which something could fail, with that one failing.

A run is in order if the program succeeded, or failed and said something.  A program that is killed by a signal, doesn't come
to an end, or fails without a word is a finding.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from signal import Signals
from typing import NamedTuple

from .program import ProgramError, find_program
from .run import environment
from .settings import Settings

__all__ = ["Finding", "Sweep", "sweep"]

SECONDS = 60


class Finding(NamedTuple):
    """A run that wasn't in order: which failure was ordered, and what the program did."""

    order: str
    why: str


class Sweep(NamedTuple):
    """How many points there are, how many runs succeeded all the same, and what was found."""

    points: int
    succeeded: int
    findings: tuple[Finding, ...]


def sweep(
    settings: Settings, command: Sequence[str], progress: Callable[[int, int], None] = lambda done, total: None
) -> Sweep:
    """Sweep `command`.  Raises `ProgramError` if it doesn't succeed with nothing failing."""
    program = find_program(command[0])
    with tempfile.TemporaryDirectory() as directory:
        points = Path(directory) / "points"
        status, said = _run(settings._replace(points=str(points)), program, command)
        if status != 0:
            raise ProgramError(f"{program} has to succeed with nothing failing first; it {said}")
        orders = points.read_text().splitlines() if points.exists() else []
    findings, succeeded = [], 0
    for done, order in enumerate(orders, 1):
        status, said = _run(settings._replace(inject=order), program, command)
        if status == 0:
            succeeded += 1
        elif said:
            findings.append(Finding(order, said))
        progress(done, len(orders))
    return Sweep(len(orders), succeeded, tuple(findings))


def _run(settings: Settings, program: Path, command: Sequence[str]) -> tuple[int, str]:
    """One run: its status, and what is wrong with that, if anything."""
    prepared = environment(settings, os.environ)
    try:
        done = subprocess.run(
            list(command), executable=program, env=prepared, capture_output=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return 1, f"isn't done after {SECONDS} s"
    if done.returncode < 0:
        return done.returncode, f"is killed by {Signals(-done.returncode).name}"
    if settings.inject and done.returncode and (done.stderr or done.stdout):
        return done.returncode, ""
    return done.returncode, f"exits with {done.returncode}{'' if done.stderr or done.stdout else ' and says nothing'}"
