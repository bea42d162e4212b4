# SPDX-License-Identifier: GPL-2.0-or-later
"""`gmemu launch cca` and `gmemu measure cca`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .guest import launched, measured, open_log, profile_named
from .outcome import Outcome

if TYPE_CHECKING:
    from argparse import Namespace

    from ..launch.cca import CcaImage, CcaPlan
    from ..profiles import Profile

__all__ = ["launch", "measure"]

_VERSIONS = {"1.0": (1, 0), "2.0": (2, 0)}
_LIMIT = 1 << 30


def measure(args: Namespace) -> Outcome:
    """`gmemu measure cca`."""
    from ..launch.cca import measure_cca, plan_cca
    from ..launch.errors import LaunchError
    from ..report.progress import Progress

    if args.firmware is None and args.kernel is None:
        raise LaunchError("there is nothing to measure; give --firmware or --kernel")
    profile = profile_named(args.profile)
    plan = plan_cca(_image(args)[0], args.vcpus, args.ipa_bits)
    with open_log(args.log, plan, "cca") as log, Progress("measuring") as progress:
        rim = measure_cca(plan, version=_VERSIONS[args.rmm], log=log, progress=progress, profile=profile).hex()
    return measured(rim, {**_about(plan, profile), "rmm": args.rmm}, plan)


def launch(args: Namespace) -> Outcome:
    """`gmemu launch cca`."""
    from ..launch.cca import CcaLaunch, plan_cca
    from ..launch.realm_demo import run_realm_demo

    profile = profile_named(args.profile)
    image, origin = _image(args)
    plan = plan_cca(image, args.vcpus, args.ipa_bits)
    return launched(
        args,
        CcaLaunch,
        run_realm_demo,
        plan,
        platform=("arm", "cca"),
        title=lambda launch: f"A realm launched on an emulated host, {profile.name}, from {image.name} ({origin})",
        measurement="RIM",
        states="HIPAS, RIPAS",
        data={**_about(plan, profile), "firmware_origin": origin},
    )


def _image(args: Namespace) -> tuple[CcaImage, str]:
    """What to launch, and where it comes from: what was given, or an image that gmemu makes."""
    from ..launch.cca import CcaImage
    from ..launch.cca_synth import make_kernel
    from ..launch.errors import LaunchError
    from ..launch.readfile import read_file

    if args.firmware is not None and args.kernel is not None:
        raise LaunchError("a realm starts with a firmware or with a kernel; give --firmware or --kernel")
    if args.kernel is None and (args.initrd or args.dtb):
        raise LaunchError("--initrd and --dtb go with --kernel")
    if args.firmware is not None:
        return CcaImage(args.firmware, firmware=read_file(args.firmware, "firmware", _LIMIT)), "given"
    if args.kernel is None:
        return CcaImage("a synthetic image", kernel=make_kernel(seed=args.seed)), "synthetic"
    rest = {
        name: read_file(getattr(args, name), name, _LIMIT) for name in ("initrd", "dtb") if getattr(args, name) is not None
    }
    return CcaImage(args.kernel, kernel=read_file(args.kernel, "kernel", _LIMIT), **rest), "given"


def _about(plan: CcaPlan, profile: Profile) -> dict[str, Any]:
    """What every JSON about a launch says of it."""
    return {
        "simulated": True,
        "platform": "cca",
        "profile": profile.name,
        "image": plan.image.name,
        "parameters": plan.parameters,
        "pages": plan.pages,
        "steps": [{"name": step.name, "gpa": f"{step.gpa:#x}", "pages": step.pages} for step in plan.steps],
        "notes": list(plan.notes),
    }
