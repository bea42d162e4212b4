# SPDX-License-Identifier: GPL-2.0-or-later
"""From options to a launch plan, for the commands that launch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..launch.ovmf import Firmware
from ..launch.pagelog import LogWriter, log_header
from ..launch.plan import LaunchPlan, plan_snp
from ..rules import KernelError
from .outcome import UsageError

if TYPE_CHECKING:
    from argparse import Namespace

    from ..launch.cca import CcaPlan
    from ..launch.tdx import TdxPlan
    from ..profiles import Profile

__all__ = ["open_log", "plan_data", "plan_from", "profile_named"]


def plan_from(args: Namespace, firmware: Firmware) -> LaunchPlan:
    """The plan that the options of `gmemu launch` and `gmemu measure` ask for.  Raises `LaunchError`."""
    return plan_snp(
        firmware,
        args.vcpus,
        args.vcpu_type,
        args.guest_features,
        args.kernel,
        args.initrd,
        args.append,
        args.vmm,
    )


def plan_data(plan: LaunchPlan, profile: Profile) -> dict[str, Any]:
    """What every JSON about a launch says of it."""
    header = log_header(plan)
    return {
        "simulated": True,
        "platform": header["platform"],
        "profile": profile.name,
        "firmware": header["firmware"],
        "parameters": header["parameters"],
        "pages": plan.pages,
        "steps": [
            {"name": step.name, "gpa": f"{step.gpa:#x}", "type": step.page_type.name.lower(), "pages": step.pages}
            for step in plan.steps
        ],
        "notes": list(plan.notes),
    }


def profile_named(name: str | None) -> Profile:
    """The profile called `name`, or the default.  Raises `UsageError`."""
    from ..profiles import DEFAULT, get

    try:
        return get(DEFAULT if name is None else name)
    except ValueError as error:
        raise UsageError(str(error)) from None


@contextmanager
def open_log(
    path: str | None, plan: LaunchPlan | TdxPlan | CcaPlan, platform: str = "sev-snp"
) -> Iterator[LogWriter | None]:
    """The page log that --log asks for.  Raises `UsageError` if it can't be written."""
    if path is None:
        yield None
        return
    try:
        with open(path, "w", encoding="ascii", buffering=1 << 20) as file:
            yield LogWriter(file, log_header(plan, platform))
    except KernelError:
        raise
    except OSError as error:
        raise UsageError(f"the page log {path} can't be written: {error.strerror or error}") from error
