# SPDX-License-Identifier: GPL-2.0-or-later
"""`gmemu exec`: run an unmodified program on the emulated host."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ..exec.log import PERFETTO
from ..exec.program import ProgramError
from ..exec.run import host_platform, run
from ..exec.settings import Settings
from ..faults import Faults, OrderError
from ..kvm.host import PLATFORMS
from ..profiles import DEFAULT, get
from .outcome import ExitCode, Outcome, UsageError

if TYPE_CHECKING:
    from argparse import Namespace

__all__ = ["program"]


def _settings(args: Namespace) -> Settings:
    platform = args.platform or host_platform()
    if platform not in PLATFORMS:
        raise UsageError(f"there is no platform {platform!r}; there are {', '.join(PLATFORMS)}")
    try:
        profile = get(args.profile or DEFAULT).name
    except ValueError as error:
        raise UsageError(str(error)) from error
    try:
        Faults(*args.inject)
    except OrderError as error:
        raise UsageError(str(error)) from error
    if args.log and args.log.endswith(PERFETTO) and find_spec("perfetto") is None:
        raise UsageError("a Perfetto trace needs the package perfetto: pip install 'gmemu[perfetto]'")
    return Settings(
        profile=profile,
        platform=platform,
        log=os.path.abspath(args.log) if args.log else "",
        explain="yes" if args.explain else "",
        inject="\n".join(args.inject),
    )


def program(args: Namespace) -> Outcome:
    """`gmemu exec -- PROGRAM`: this process becomes the program, whose exit status is the command's."""
    if args.program[:2] == ["sweep", "--"]:
        return _sweep(args, args.program[2:])
    command = args.program[1:] if args.program[:1] == ["--"] else args.program
    if not command:
        raise UsageError("which program? gmemu exec -- PROGRAM ARGUMENTS")
    try:
        run(_settings(args), command)
    except ProgramError as error:
        raise UsageError(str(error)) from error
    raise AssertionError("a program that was started doesn't come back")


def _sweep(args: Namespace, command: list[str]) -> Outcome:
    """`gmemu exec sweep -- PROGRAM`: exits with 0 if nothing was found, else with 1."""
    from ..exec.sweep import sweep
    from ..report.progress import Progress

    if not command:
        raise UsageError("which program? gmemu exec sweep -- PROGRAM ARGUMENTS")
    try:
        with Progress("sweeping") as progress:
            result = sweep(_settings(args), command, progress)
    except ProgramError as error:
        raise UsageError(str(error)) from error
    data = {
        "simulated": True,
        "program": command,
        "points": result.points,
        "succeeded": result.succeeded,
        "findings": [finding._asdict() for finding in result.findings],
    }
    lines = [f"{finding.order}: it {finding.why}" for finding in result.findings]
    lines.append(f"{result.points} points, {result.succeeded} runs succeeded all the same, {len(result.findings)} findings")
    text = "".join(f"{line}\n" for line in lines)
    return Outcome(data, lambda style: text, ExitCode.MISMATCH if result.findings else ExitCode.PASS)
