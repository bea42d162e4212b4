# SPDX-License-Identifier: GPL-2.0-or-later
"""A conversion scenario here and in Promela, side by side: verdict, size, time, and the shortest trace.

`fault_in_flight.pml` has the steps of the scenario fault-in-flight that touch what two tasks share.  SPIN counts states and
stores each; gmemu counts executions of the emulated kernel, those that differ, and stores none.  SPIN's time is that of the
verifier it generates, beside which stands what generating and compiling took.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from gmemu.explore import Kind, Outcome, Result, explore
from gmemu.scenarios import CATALOGUE

from .figures import Figure
from .spin import Pan, check, is_here

MODEL = Path(__file__).with_name("fault_in_flight.pml").read_text()

ALIKE = {Kind.INVARIANT: "assertion violated", Kind.ASSERTION: "assertion violated", Kind.LIVELOCK: "invalid end state"}
"""What SPIN says of the same: a VMM that waits by trying again is one that waits, there."""


def _agree(ours: Result, theirs: Pan) -> bool:
    if ours.kind is None:
        return ours.outcome is Outcome.EXHAUSTED and not theirs.error
    return theirs.error.startswith(ALIKE[ours.kind])


def figures() -> Iterator[Figure]:
    """The default, and each variant that breaks it."""
    if not is_here():
        return
    scenario = CATALOGUE["fault-in-flight"]
    for variants in ((), ("no-reference-check",), ("refcount-wait",)):
        ours = explore(partial(scenario, variants))
        theirs = check(MODEL, *(name.upper().replace("-", "_") for name in variants))
        note = (
            f"gmemu: {ours.kind or ours.outcome}, {ours.schedules} executions, {ours.steps} steps, {ours.seconds:.3f} s"
            f"{f', simplest trace {len(ours.choices)} steps' if ours.kind else ''}; "
            f"SPIN: {theirs.error or 'no error'}, {theirs.states} states, {theirs.transitions} transitions, "
            f"{theirs.seconds:.3f} s and {theirs.compiling:.1f} s before"
            f"{f', shortest trail {theirs.shortest} steps' if theirs.error else ''}"
        )
        agree = _agree(ours, theirs)
        name = "+".join(("fault-in-flight", *variants))
        yield Figure(f"{name}: verdict as SPIN's", float(agree), "", "the same", agree, note)
