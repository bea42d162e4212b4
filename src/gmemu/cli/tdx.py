# SPDX-License-Identifier: GPL-2.0-or-later
"""`gmemu launch tdx` and `gmemu measure tdx`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from .guest import open_log, profile_named
from .outcome import Outcome
from .sweep import faults_of, unmet

if TYPE_CHECKING:
    from argparse import Namespace

    from ..launch.tdx import TdxPlan
    from ..profiles import Profile
    from ..report.style import Style

__all__ = ["launch", "measure"]


def measure(args: Namespace) -> Outcome:
    """`gmemu measure tdx`."""
    from ..launch.ovmf import Firmware
    from ..launch.tdx import measure_tdx, plan_tdx
    from ..report.progress import Progress
    from ..report.style import is_terminal

    profile = profile_named(args.profile)
    plan = plan_tdx(Firmware.load(args.firmware), args.vcpus)
    with open_log(args.log, plan, "tdx") as log, Progress("measuring") as progress:
        mrtd = measure_tdx(plan, two_pass=args.two_pass, log=log, progress=progress, profile=profile).hex()
    data = {"measurement": mrtd, **_about(plan, profile, args.two_pass)} if args.json else {}
    remarks = plan.notes
    if is_terminal(sys.stderr):
        remarks = (*remarks, "this measurement is simulated: no hardware has vouched for it")
    return Outcome(data, lambda style: mrtd + "\n", remarks=remarks)


def launch(args: Namespace) -> Outcome:
    """`gmemu launch tdx`."""
    from ..api.kvm import Kvm
    from ..launch.td_demo import run_td_demo
    from ..launch.tdx import TdxLaunch, plan_tdx
    from ..report.progress import Progress

    profile = profile_named(args.profile)
    firmware, origin = _firmware(args.firmware, args.seed)
    plan = plan_tdx(firmware, args.vcpus)
    faults = faults_of(args)
    with (
        Kvm.open(profile, seed=args.seed, platform="intel", faults=faults) as kvm,
        open_log(args.log, plan, "tdx") as log,
        Progress("launching") as progress,
        TdxLaunch(kvm, plan, flow=args.flow, log=log, progress=progress) as started,
    ):
        mrtd = started.run().hex()
        launched = started.pages_by_state()
        events = run_td_demo(started)
        after = started.pages_by_state()
    data = {
        "measurement": mrtd,
        **_about(plan, profile, False),
        "flow": started.flow,
        "firmware_origin": origin,
        "calls": [call._asdict() for call in started.calls],
        "launched": launched,
        "guest": [event._asdict() for event in events],
        "after": after,
    }

    def text(style: Style) -> str:
        from ..report.table import paragraph, table

        head = f"A TD launched {started.flow} on an emulated host, {profile.name}, from {firmware.name} ({origin})"
        parts = [
            paragraph(style.bold(head), style),
            table(started.calls, ("call", "effect"), style=style),
            "\n" + style.bold("MRTD (simulated: no hardware has vouched for it)") + "\n" + style.green(mrtd) + "\n\n",
            table([(state, str(n)) for state, n in launched.items()], ("S-EPT state", "pages"), style=style),
            "\n" + table([tuple(event) for event in events], ("who", "does", "result"), style=style),
            *(paragraph(f"note: {note}", style) for note in plan.notes),
        ]
        return "".join(parts)

    return Outcome(data, text, remarks=unmet(faults))


def _firmware(path: str | None, seed: int) -> tuple[Any, str]:
    """The image to launch, and where it comes from: one given, one of this machine that has TDX metadata, or a made one."""
    import os

    from ..launch.errors import LaunchError
    from ..launch.find import FIRMWARE_PATHS
    from ..launch.ovmf import Firmware
    from ..launch.td_synth import make_tdvf
    from ..launch.tdvf import read_tdvf

    if path is not None:
        return Firmware.load(path), "given"
    for candidate in filter(os.path.isfile, FIRMWARE_PATHS):
        try:
            firmware = Firmware.load(candidate)
            read_tdvf(firmware)
        except LaunchError:
            continue
        return firmware, "found"
    return Firmware.from_bytes(make_tdvf(seed=seed), "a synthetic image"), "synthetic"


def _about(plan: TdxPlan, profile: Profile, two_pass: bool) -> dict[str, Any]:
    """What every JSON about a launch says of it."""
    from hashlib import sha256

    firmware = plan.firmware
    return {
        "simulated": True,
        "platform": "tdx",
        "profile": profile.name,
        "firmware": {"name": firmware.name, "size": firmware.size, "sha256": sha256(firmware.data).hexdigest()},
        "parameters": {**plan.parameters, "two_pass": two_pass},
        "pages": plan.pages,
        "steps": [
            {"name": step.name, "gpa": f"{step.gpa:#x}", "pages": step.pages, "measured": step.measured}
            for step in plan.steps
        ],
        "notes": list(plan.notes),
    }
