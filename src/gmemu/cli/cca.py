# SPDX-License-Identifier: GPL-2.0-or-later
"""`gmemu launch cca` and `gmemu measure cca`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from .guest import open_log, profile_named
from .outcome import Outcome
from .sweep import faults_of, unmet

if TYPE_CHECKING:
    from argparse import Namespace

    from ..launch.cca import CcaImage, CcaPlan
    from ..profiles import Profile
    from ..report.style import Style

__all__ = ["launch", "measure"]

_VERSIONS = {"1.0": (1, 0), "2.0": (2, 0)}
_LIMIT = 1 << 30


def measure(args: Namespace) -> Outcome:
    """`gmemu measure cca`."""
    from ..launch.cca import measure_cca, plan_cca
    from ..launch.errors import LaunchError
    from ..report.progress import Progress
    from ..report.style import is_terminal

    if args.firmware is None and args.kernel is None:
        raise LaunchError("there is nothing to measure; give --firmware or --kernel")
    profile = profile_named(args.profile)
    plan = plan_cca(_image(args)[0], args.vcpus, args.ipa_bits)
    with open_log(args.log, plan, "cca") as log, Progress("measuring") as progress:
        rim = measure_cca(plan, version=_VERSIONS[args.rmm], log=log, progress=progress, profile=profile).hex()
    data = {"measurement": rim, **_about(plan, profile), "rmm": args.rmm} if args.json else {}
    remarks = plan.notes
    if is_terminal(sys.stderr):
        remarks = (*remarks, "this measurement is simulated: no hardware has vouched for it")
    return Outcome(data, lambda style: rim + "\n", remarks=remarks)


def launch(args: Namespace) -> Outcome:
    """`gmemu launch cca`."""
    from ..api.kvm import Kvm
    from ..launch.cca import CcaLaunch, plan_cca
    from ..launch.realm_demo import run_realm_demo
    from ..report.progress import Progress

    profile = profile_named(args.profile)
    image, origin = _image(args)
    plan = plan_cca(image, args.vcpus, args.ipa_bits)
    faults = faults_of(args)
    with (
        Kvm.open(profile, seed=args.seed, platform="arm", faults=faults) as kvm,
        open_log(args.log, plan, "cca") as log,
        Progress("launching") as progress,
        CcaLaunch(kvm, plan, flow=args.flow, log=log, progress=progress) as started,
    ):
        rim = started.run().hex()
        launched = started.pages_by_state()
        events = run_realm_demo(started)
        after = started.pages_by_state()
    data = {
        "measurement": rim,
        **_about(plan, profile),
        "flow": started.flow,
        "firmware_origin": origin,
        "calls": [call._asdict() for call in started.calls],
        "launched": launched,
        "guest": [event._asdict() for event in events],
        "after": after,
    }

    def text(style: Style) -> str:
        from ..report.table import paragraph, table

        head = f"A realm launched on an emulated host, {profile.name}, from {image.name} ({origin})"
        parts = [
            paragraph(style.bold(head), style),
            table(started.calls, ("call", "effect"), style=style),
            "\n" + style.bold("RIM (simulated: no hardware has vouched for it)") + "\n" + style.green(rim) + "\n\n",
            table([(state, str(n)) for state, n in launched.items()], ("HIPAS, RIPAS", "pages"), style=style),
            "\n" + table([tuple(event) for event in events], ("who", "does", "result"), style=style),
            *(paragraph(f"note: {note}", style) for note in plan.notes),
        ]
        return "".join(parts)

    return Outcome(data, text, remarks=unmet(faults))


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
