# SPDX-License-Identifier: GPL-2.0-or-later
"""`gmemu run` and `gmemu sweep`: Python VMM programs on the emulated host, with failures on order."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from ..faults import Faults, Order, OrderError
from .outcome import ExitCode, Outcome, UsageError

if TYPE_CHECKING:
    from argparse import Namespace

    from ..faults.sweep import Sweep
    from ..report.style import Style

__all__ = ["faults_of", "run", "sweep", "unmet"]


def faults_of(args: Namespace) -> Faults | None:
    """What --inject orders; None without it.  Raises `UsageError`."""
    if not args.inject:
        return None
    try:
        return Faults(*args.inject)
    except OrderError as error:
        raise UsageError(str(error)) from None


def unmet(faults: Faults | None) -> tuple[str, ...]:
    """Remarks about orders that nothing came of."""
    return tuple(f"nothing came of the order '{order}'" for order in faults.unmet()) if faults is not None else ()


def run(args: Namespace) -> Outcome:
    """`gmemu run`: exits with 0 if the program did, else with 1."""
    from ..explore.variants import apply
    from ..faults.program import run_program
    from ..kvm.design import Design
    from .explore import variant_named

    faults = faults_of(args) or Faults()
    _script(args.script)
    variants = tuple(variant_named(name) for name in args.variant)
    status = run_program(args.script, args.arguments, faults, lambda profile: apply(Design.of(profile), variants))
    sys.stdout.flush()
    fired = [f"{done.order} in {done.call or 'no call'}{f', {done.where}' if done.where else ''}" for done in faults.fired]
    data = {"simulated": True, "status": status, "carried_out": fired, "unmet": [str(order) for order in faults.unmet()]}
    remarks = (*(f"carried out: {what}" for what in fired), *unmet(faults))
    return Outcome(data, lambda style: "", ExitCode.MISMATCH if status else ExitCode.PASS, remarks)


def sweep(args: Namespace) -> Outcome:
    """`gmemu sweep`: exits with 0 if nothing was found, else with 1."""
    from ..faults.sweep import SweepError
    from ..faults.sweep import sweep as sweep_program
    from ..report.progress import Progress

    _script(args.script)
    wanted = set(args.only)

    def only(order: Order) -> bool:
        return not wanted or order.what in wanted

    try:
        with Progress("sweeping") as progress:
            result = sweep_program(
                args.script, args.arguments, every=args.every, jobs=args.jobs, only=only, progress=progress
            )
    except SweepError as error:
        raise UsageError(str(error)) from None
    data = {
        "simulated": True,
        "program": [args.script, *args.arguments],
        "points": result.points,
        "succeeded": result.succeeded,
        "findings": [finding._asdict() for finding in result.findings],
    }
    code = ExitCode.MISMATCH if result.findings else ExitCode.PASS
    return Outcome(data, lambda style: _text(args.script, result, style), code)


def _script(path: str) -> None:
    if not os.path.isfile(path):
        raise UsageError(f"there is no program {path}")


def _text(script: str, result: Sweep, style: Style) -> str:
    from ..report.table import paragraph

    failed = result.points - result.succeeded
    head = (
        f"{result.points} failures were ordered one at a time (simulated): {script} succeeded all the same with "
        f"{result.succeeded} of them, and failed with {failed}"
    )
    parts = [paragraph(head, style)]
    if not result.findings:
        parts.append(style.green("nothing found") + ": no invariant broken, nothing left behind, nothing untrue said\n")
    for finding in result.findings:
        parts.append("\n" + style.bold(finding.order) + "\n")
        parts.append(paragraph(f"{finding.kind}: {finding.why}", style))
    if result.findings:
        parts.append(paragraph(f"\nTo see one again: gmemu run --inject ORDER {script}", style))
    return "".join(parts)
