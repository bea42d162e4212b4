# SPDX-License-Identifier: GPL-2.0-or-later
"""Running a Python program as it is, on hosts with orders."""

from __future__ import annotations

import builtins
import runpy
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from typing import NamedTuple

from ..invariants import InvariantViolation
from ..kvm.design import Design
from ..kvm.host import Host
from ..profiles import Profile
from ..rules import MemoryFault
from ..rules import mm as mm_rules
from .engine import Faults
from .judge import Achieved, Judge, Verdict
from .language import Order
from .points import Points
from .runtime import Hung

__all__ = ["Run", "record", "run_program", "try_program"]


class Run(NamedTuple):
    """How a program ended: its exit status, what it said last, what it achieved, what was found, which orders were met."""

    status: int
    said: str
    achieved: Achieved
    verdicts: tuple[Verdict, ...]
    fired: int
    steps: int
    orders: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    """of gmemu's own, those that it came to use"""


def run_program(path: str, arguments: list[str], faults: Faults, design: Callable[[Profile], Design] = Design.of) -> int:
    """Run the file as ``python path arguments...`` would, each of its hosts with `faults`, and built by `design`: its exit
    status.

    What it raises comes out, but for SystemExit.
    """
    argv, default, built = sys.argv, Host.default_faults, Host.default_design
    sys.argv, Host.default_faults, Host.default_design = [path, *arguments], lambda: faults, design
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as exit_:
        if exit_.code is None or isinstance(exit_.code, int):
            return exit_.code or 0
        print(exit_.code, file=sys.stderr)  # as Python does
        return 1
    finally:
        sys.argv, Host.default_faults, Host.default_design = argv, default, built
    return 0


def try_program(path: str, arguments: list[str], order: Order, step_limit: int) -> Run:
    """Run it once with this order, and judge.  For a process of its own."""
    judge = Judge()
    return _judged(path, arguments, Faults(order, check=False, step_limit=step_limit, observer=judge), judge)


def record(path: str, arguments: list[str], every: bool) -> Run:
    """Run it with nothing failing: what it achieves, and an order for each point at which something could fail."""
    points = Points(every)
    noted = _judged(path, arguments, Faults(check=False, observer=points), _Alone())
    if noted.status:
        return noted
    judge = Judge()
    run = _judged(path, arguments, Faults(check=False, observer=judge), judge)
    used = tuple(name for name in sys.modules if name.startswith("gmemu.") and not name.startswith("gmemu.faults"))
    return run._replace(orders=tuple(str(order) for order in points.orders()), modules=used)


class _Alone(Judge):
    """Judges only the end."""


def _judged(path: str, arguments: list[str], faults: Faults, judge: Judge) -> Run:
    judge.faults = faults
    faults.at_end = judge.host_ends
    output = StringIO()
    status, said = 1, ""
    try:
        with redirect_stdout(output), redirect_stderr(output):
            status = run_program(path, arguments, faults)
    except Hung:
        judge.found("hung", f"it goes on for ever: {judge.last_calls()}")
    except InvariantViolation as violation:
        judge.found("invariant", str(violation))
    except MemoryFault as fault:
        said = f"killed by {fault}"
        if fault.rule is not mm_rules.FAULT_OOM:  # a store that no memory is left for: no program can do anything about it
            judge.found("crashed", f"the program was killed by {fault}")
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"
        if not isinstance(error, OSError) and type(error).__name__ in vars(builtins):
            judge.found("crashed", f"{said}, which no failed call explains")
    for host in list(faults.hosts):
        faults.detach(host)
    lines = output.getvalue().strip().splitlines()
    said = said or (lines[-1] if lines else "")
    return Run(status, said, judge.achieved, tuple(judge.verdicts), len(faults.fired), faults.steps)
