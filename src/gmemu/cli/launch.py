# SPDX-License-Identifier: GPL-2.0-or-later
"""`gmemu launch`: launch on an emulated host, and run a short guest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..api.kvm import Kvm
from ..launch.demo_guest import RAM, DemoGuest
from ..launch.find import find_firmware
from ..launch.ovmf import Firmware
from ..launch.page_states import page_runs
from ..launch.snp import SnpLaunch
from ..launch.synth import make_firmware
from ..report.launch import Snapshot, SnpReport
from ..report.progress import Progress
from .guest import open_log, plan_data, plan_from, profile_named
from .outcome import Outcome, UsageError
from .sweep import faults_of, unmet

if TYPE_CHECKING:
    from argparse import Namespace

    from ..launch.plan import MemoryRegion

__all__ = ["sev", "snp"]


def snp(args: Namespace) -> Outcome:
    """`gmemu launch snp`."""
    profile = profile_named(args.profile)
    firmware, origin = _firmware(args.firmware, args.seed)
    plan = plan_from(args, firmware)
    faults = faults_of(args)
    with Kvm.open(profile, seed=args.seed, faults=faults) as kvm:
        with open_log(args.log, plan) as log, Progress("launching") as progress:
            launch = SnpLaunch(kvm, plan, flow=args.flow, policy=args.policy, log=log, progress=progress)
            launch.run()
        with launch:
            launched = _snapshot(launch, plan.memory_regions())
            with DemoGuest(launch) as demo:
                events = demo.run()
                after = _snapshot(launch, [*plan.memory_regions(), RAM])
    report = SnpReport(plan, profile, launch.flow, origin, launch.calls, launch.measurement.hex(), launched, events, after)
    data = report.data(plan_data(plan, profile)) if args.json else {}
    return Outcome(data, report.text, remarks=unmet(faults))


def sev(args: Namespace) -> Outcome:
    """`gmemu launch sev` and `gmemu launch sev-es`."""
    name = {"sev": "SEV", "sev-es": "SEV-ES"}[args.platform]
    raise UsageError(f"{name} guests aren't emulated, as their memory is never a guest_memfd's; use gmemu launch snp")


def _firmware(path: str | None, seed: int) -> tuple[Firmware, str]:
    """The image to launch, and where it comes from."""
    if path is not None:
        return Firmware.load(path), "given"
    found = find_firmware()
    if found is not None:
        return Firmware.load(found), "found"
    return Firmware.from_bytes(make_firmware(seed=seed), "a synthetic image"), "synthetic"


def _snapshot(launch: SnpLaunch, regions: list[MemoryRegion]) -> Snapshot:
    return Snapshot(launch.pages_by_state(), page_runs(launch.kvm.host, regions))
