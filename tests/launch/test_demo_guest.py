# SPDX-License-Identifier: GPL-2.0-or-later
"""The demonstration guest, and the runs of guest memory, in every profile and flow."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gmemu import Kvm
from gmemu.check import check_host
from gmemu.launch.demo_guest import RAM, DemoGuest
from gmemu.launch.errors import LaunchError
from gmemu.launch.ovmf import Firmware
from gmemu.launch.page_states import PageRun, frame_of, page_runs
from gmemu.launch.plan import plan_snp
from gmemu.launch.snp import SnpLaunch
from gmemu.launch.synth import OVMF_SECTIONS, make_firmware
from gmemu.profiles import PROFILES

PAGE = 4096
CASES = [*((name, None) for name in PROFILES), ("inplace-v13", "copy")]


@pytest.fixture(params=CASES, ids=str)
def launch(request: pytest.FixtureRequest) -> Iterator[SnpLaunch]:
    profile, flow = request.param
    plan = plan_snp(Firmware.from_bytes(make_firmware(sections=OVMF_SECTIONS), "synthetic"), 2, "EPYC-v4", 1)
    with Kvm.open(profile) as kvm:
        with SnpLaunch(kvm, plan, flow=flow) as launch:
            launch.run()
            yield launch
        kvm.host.check_quiet()


def test_it_runs_to_its_end(launch: SnpLaunch) -> None:
    with DemoGuest(launch) as demo:
        events = demo.run()
        check_host(launch.kvm.host)
    assert events[-1] == ("exit", "KVM_EXIT_HLT", "the guest is done")
    assert ("guest", "reads its reset vector at 0xfffffff0", "as launched") in events
    assert ("guest", "works on launched memory at 0x800000", "'known to the guest only'") in events
    check_host(launch.kvm.host)


def test_memory_before_and_after(launch: SnpLaunch) -> None:
    host, regions = launch.kvm.host, launch.plan.memory_regions()
    assert page_runs(host, regions) == [PageRun(gpa, size, True, "GUEST_VALID") for gpa, size in regions]
    with DemoGuest(launch) as demo:
        assert page_runs(host, [RAM]) == [PageRun(*RAM, private=False, state="HYPERVISOR")]
        assert frame_of(launch.platform.rmp, RAM.gpa) is None
        demo.run()
        assert frame_of(launch.platform.rmp, RAM.gpa) is not None
        assert page_runs(host, [RAM]) == [
            PageRun(RAM.gpa, PAGE, private=True, state="GUEST_VALID"),
            PageRun(RAM.gpa + PAGE, RAM.size - PAGE, private=False, state="HYPERVISOR"),
        ]
        assert sum(run.pages for run in page_runs(host, [RAM])) == RAM.size // PAGE
    assert frame_of(launch.platform.rmp, RAM.gpa) is None


def test_the_host_never_sees_the_secret(launch: SnpLaunch) -> None:
    with DemoGuest(launch) as demo:
        events = demo.run()
        assert not any("known to the guest" in e.result for e in events if e.who == "host")
        pfn = frame_of(launch.platform.rmp, RAM.gpa)
        assert pfn is not None
        seen = launch.kvm.host.memory.host_read(pfn * PAGE, PAGE)
    assert b"known" not in seen


def test_a_guest_that_does_something_else_is_refused(launch: SnpLaunch) -> None:
    with DemoGuest(launch) as demo:
        demo.guest = lambda cpu: cpu.triple_fault()  # type: ignore[method-assign]
        with pytest.raises(LaunchError, match="SHUTDOWN"):
            demo.run()
