# SPDX-License-Identifier: GPL-2.0-or-later
"""`gmemu exec`: run an unmodified program on the emulated host."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ..exec.program import ProgramError
from ..exec.run import host_platform, run
from ..exec.settings import Settings
from ..faults import Faults, OrderError
from ..kvm.host import PLATFORMS
from ..profiles import DEFAULT, get
from .outcome import Outcome, UsageError

if TYPE_CHECKING:
    from argparse import Namespace

__all__ = ["program"]


def _settings(args: Namespace, profile: str, platform: str) -> Settings:
    try:
        Faults(*args.inject)
    except OrderError as error:
        raise UsageError(str(error)) from error
    return Settings(
        profile=profile,
        platform=platform,
        log=os.path.abspath(args.log) if args.log else "",
        explain="yes" if args.explain else "",
        inject="\n".join(args.inject),
    )


def program(args: Namespace) -> Outcome:
    """`gmemu exec -- PROGRAM`: this process becomes the program, whose exit status is the command's."""
    command = args.program[1:] if args.program[:1] == ["--"] else args.program
    if not command:
        raise UsageError("which program? gmemu exec -- PROGRAM ARGUMENTS")
    platform = args.platform or host_platform()
    if platform not in PLATFORMS:
        raise UsageError(f"there is no platform {platform!r}; there are {', '.join(PLATFORMS)}")
    try:
        profile = get(args.profile or DEFAULT).name
    except ValueError as error:
        raise UsageError(str(error)) from error
    try:
        run(_settings(args, profile, platform), command)
    except ProgramError as error:
        raise UsageError(str(error)) from error
    raise AssertionError("a program that was started doesn't come back")
