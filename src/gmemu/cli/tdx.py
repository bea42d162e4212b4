# SPDX-License-Identifier: GPL-2.0-or-later
"""`gmemu launch tdx` and `gmemu measure tdx`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .guest import launched, measured, open_log, profile_named
from .outcome import Outcome

if TYPE_CHECKING:
    from argparse import Namespace

    from ..launch.tdx import TdxPlan
    from ..profiles import Profile

__all__ = ["launch", "measure"]


def measure(args: Namespace) -> Outcome:
    """`gmemu measure tdx`."""
    from ..launch.ovmf import Firmware
    from ..launch.tdx import measure_tdx, plan_tdx
    from ..report.progress import Progress

    profile = profile_named(args.profile)
    plan = plan_tdx(Firmware.load(args.firmware), args.vcpus)
    with open_log(args.log, plan, "tdx") as log, Progress("measuring") as progress:
        mrtd = measure_tdx(plan, two_pass=args.two_pass, log=log, progress=progress, profile=profile).hex()
    return measured(mrtd, _about(plan, profile, args.two_pass), plan)


def launch(args: Namespace) -> Outcome:
    """`gmemu launch tdx`."""
    from ..launch.td_demo import run_td_demo
    from ..launch.tdx import TdxLaunch, plan_tdx

    profile = profile_named(args.profile)
    firmware, origin = _firmware(args.firmware, args.seed)
    plan = plan_tdx(firmware, args.vcpus)
    return launched(
        args,
        TdxLaunch,
        run_td_demo,
        plan,
        platform=("intel", "tdx"),
        title=lambda launch: (
            f"A TD launched {launch.flow} on an emulated host, {profile.name}, from {firmware.name} ({origin})"
        ),
        measurement="MRTD",
        states="S-EPT state",
        data={**_about(plan, profile, False), "firmware_origin": origin},
    )


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
