# SPDX-License-Identifier: GPL-2.0-or-later
"""From options to a launch plan, for the commands that launch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ..launch.ovmf import Firmware
from ..launch.pagelog import LogWriter, log_header
from ..launch.plan import LaunchPlan, plan_snp
from ..rules import KernelError
from .outcome import Outcome, UsageError
from .sweep import faults_of, unmet

if TYPE_CHECKING:
    from argparse import Namespace

    from ..launch.cca import CcaLaunch, CcaPlan
    from ..launch.tdx import TdxLaunch, TdxPlan
    from ..profiles import Profile
    from ..report.style import Style

__all__ = ["launched", "measured", "open_log", "plan_data", "plan_from", "profile_named"]

L = TypeVar("L", "CcaLaunch", "TdxLaunch")


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


def measured(digest: str, data: dict[str, Any], plan: TdxPlan | CcaPlan) -> Outcome:
    """What `gmemu measure` says: the digest alone, so that it can be piped; on a terminal also that it's simulated."""
    from ..report.style import is_terminal

    remarks = plan.notes
    if is_terminal(sys.stderr):
        remarks = (*remarks, "this measurement is simulated: no hardware has vouched for it")
    return Outcome({"measurement": digest, **data}, lambda style: digest + "\n", remarks=remarks)


def launched(
    args: Namespace,
    start: Callable[..., L],
    demo: Callable[[L], Sequence[NamedTuple]],
    plan: TdxPlan | CcaPlan,
    *,
    platform: tuple[str, str],
    title: Callable[[L], str],
    measurement: str,
    states: str,
    data: dict[str, Any],
) -> Outcome:
    """`gmemu launch`: launch `plan` as `start` does, run `demo` in it, tell what was done and what became of the pages.

    `platform` is the machine's and the page log's; `measurement` and `states` are the field's words for the digest and for
    what a page is to the trusted entity.
    """
    from ..api.kvm import Kvm
    from ..report.progress import Progress

    machine, log_platform = platform
    faults = faults_of(args)
    with (
        Kvm.open(profile_named(args.profile), seed=args.seed, platform=machine, faults=faults) as kvm,
        open_log(args.log, plan, log_platform) as log,
        Progress("launching") as progress,
        start(kvm, plan, flow=args.flow, log=log, progress=progress) as launch,
    ):
        digest = launch.run().hex()
        before = launch.pages_by_state()
        events = demo(launch)
        after = launch.pages_by_state()
    told = {
        "measurement": digest,
        **data,
        "flow": launch.flow,
        "calls": [call._asdict() for call in launch.calls],
        "launched": before,
        "guest": [event._asdict() for event in events],
        "after": after,
    }

    def text(style: Style) -> str:
        from ..report.table import paragraph, table

        parts = [
            paragraph(style.bold(title(launch)), style),
            table(launch.calls, ("call", "effect"), style=style),
            "\n" + style.bold(f"{measurement} (simulated: no hardware has vouched for it)") + "\n",
            style.green(digest) + "\n\n",
            table([(state, str(n)) for state, n in before.items()], (states, "pages"), style=style),
            "\n" + table([tuple(event) for event in events], ("who", "does", "result"), style=style),
            *(paragraph(f"note: {note}", style) for note in plan.notes),
        ]
        return "".join(parts)

    return Outcome(told, text, remarks=unmet(faults))
