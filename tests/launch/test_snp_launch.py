# SPDX-License-Identifier: GPL-2.0-or-later
"""Launches carried out on the emulated host: the same digest by every way, and what the guest finds there.

`test_plan` compares plans with sev-snp-measure; here the digest is what the emulated firmware made of LAUNCH_UPDATEs.
"""

from __future__ import annotations

from hashlib import sha384
from pathlib import Path

import pytest
from sevsnpmeasure.vcpu_types import CPU_SIGS

from gmemu import ExitReason, GuestCpu, Kvm
from gmemu.api.sev import SnpError
from gmemu.check import check_host
from gmemu.launch.base import FLOWS
from gmemu.launch.errors import LaunchError
from gmemu.launch.ovmf import Firmware
from gmemu.launch.pagelog import LogWriter, PageRecord, log_header, read_log
from gmemu.launch.plan import LaunchPlan, plan_snp
from gmemu.launch.snp import SnpLaunch, measure_snp
from gmemu.launch.synth import make_firmware
from gmemu.launch.vmm import VMMS
from gmemu.profiles import PROFILES
from gmemu.uapi.sev import PspCommand, PspStatus, SnpPageType

from .oracle import IMAGES, PAGE, extend, installed_image, peer_digest, plan_digest

EPYC_V4 = CPU_SIGS["EPYC-v4"]
WAYS = [(name, flow) for name, profile in PROFILES.items() for flow in FLOWS if profile.null_source or flow == "copy"]


def make_plan(vcpus: int = 2, features: int = 0x21, vmm: str = "qemu") -> LaunchPlan:
    image = Firmware.from_bytes(make_firmware(), "synthetic")
    return plan_snp(image, vcpus, "EPYC-v4" if vmm != "ec2" else None, features, vmm=vmm)


def logged(launch: SnpLaunch, directory: Path) -> list[PageRecord]:
    """Run the launch with a log: its pages."""
    path = directory / "log.jsonl"
    with path.open("w") as file:
        launch._log = LogWriter(file, log_header(launch.plan))
        launch.run()
    return read_log(path).pages


def peek(launch: SnpLaunch, gpas: list[int]) -> list[bytes]:
    """Pages as the guest reads them."""
    seen: list[bytes] = []

    def guest(cpu: GuestCpu) -> None:
        seen.extend(cpu.load(gpa, PAGE) for gpa in gpas)

    assert launch.vcpus[0].run(guest).reason is ExitReason.HLT
    return seen


@pytest.mark.parametrize(("profile", "flow"), WAYS, ids="-".join)
@pytest.mark.parametrize("vmm", VMMS)
def test_every_way_gives_the_same_digest(profile: str, flow: str, vmm: str) -> None:
    plan = make_plan(vmm=vmm)
    with Kvm.open(profile) as kvm, SnpLaunch(kvm, plan, flow=flow) as launch:
        assert launch.run() == launch.measurement
        assert launch.measurement.hex() == plan_digest(plan)
        check_host(kvm.host)


@pytest.mark.parametrize(("profile", "flow"), WAYS, ids="-".join)
def test_what_was_measured_is_what_the_guest_sees(profile: str, flow: str, tmp_path: Path) -> None:
    """Every NORMAL page, by its hash; ZERO pages are zero; nothing but VMSAs is measured besides the plan."""
    plan = make_plan()
    with Kvm.open(profile) as kvm, SnpLaunch(kvm, plan, flow=flow) as launch:
        pages = logged(launch, tmp_path)
        normal = [page for page in pages if page.page_type is SnpPageType.NORMAL]
        assert [page.gpa for page in normal] == list(range(plan.firmware.gpa, plan.firmware.gpa + plan.firmware.size, PAGE))
        for page, contents in zip(normal, peek(launch, [page.gpa for page in normal]), strict=True):
            assert sha384(contents).hexdigest() == page.contents
        zero = [page.gpa for page in pages if page.page_type is SnpPageType.ZERO]
        assert zero
        assert set(peek(launch, zero)) == {bytes(PAGE)}
        assert [page.page_type for page in pages[-2:]] == [SnpPageType.VMSA] * 2


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("features", [0x1, 0x21])
@pytest.mark.parametrize("vcpus", [1, 4])
def test_real_firmware_measures_as_the_peer_says(name: str, vcpus: int, features: int) -> None:
    path = installed_image(name)
    plan = plan_snp(Firmware.load(path), vcpus, "EPYC-v4", features)
    assert measure_snp(plan).hex() == peer_digest(path, vcpus, EPYC_V4, features)


@pytest.mark.parametrize(("profile", "flow"), WAYS, ids="-".join)
def test_real_firmware_by_every_way(profile: str, flow: str) -> None:
    path = installed_image("OVMF.fd")
    with Kvm.open(profile) as kvm, SnpLaunch(kvm, plan_snp(Firmware.load(path), 2, "EPYC-v4", 1), flow=flow) as launch:
        assert launch.run().hex() == peer_digest(path, 2, EPYC_V4, 1)


@pytest.mark.parametrize("profile", PROFILES)
def test_the_log_is_the_chain(profile: str, tmp_path: Path) -> None:
    """Each line follows from the one before; the last is the measurement."""
    plan, steps = make_plan(), []
    with Kvm.open(profile) as kvm:
        launch = SnpLaunch(kvm, plan, progress=lambda done, total: steps.append((done, total)))
        pages = logged(launch, tmp_path)
        launch.close()
    digest = bytes(48)
    for page in pages:
        assert isinstance(page.page_type, SnpPageType)
        digest = extend(digest, page.page_type, page.gpa, bytes.fromhex(page.contents))
        assert page.digest == digest.hex()
    assert digest == launch.measurement
    assert len(pages) == plan.pages
    assert steps[-1] == (plan.pages, plan.pages)
    assert [page.name for page in pages[-2:]] == ["vmsa 0", "vmsa 1"]


@pytest.mark.parametrize("profile", PROFILES)
def test_several_launches_on_one_host(profile: str) -> None:
    """Each has its own digest and its own memory; the log of one has nothing of the other."""
    small, large = make_plan(1), make_plan(4)
    with Kvm.open(profile) as kvm:
        seen: list[int] = []
        first = SnpLaunch(kvm, small, progress=lambda done, total: seen.append(done))
        first.run()
        measured = len(seen)
        with SnpLaunch(kvm, large) as second:
            assert second.run().hex() == plan_digest(large)
            assert first.measurement.hex() == plan_digest(small)
            assert len(seen) == measured
            gpa = small.firmware.gpa
            assert peek(first, [gpa]) == peek(second, [gpa]) == [bytes(small.firmware.data[:PAGE])]
            check_host(kvm.host)
        assert peek(first, [gpa]) == [bytes(small.firmware.data[:PAGE])]
        first.close()
        kvm.host.lru.lru_add_drain_all()
        assert not kvm.host.snp.rmp.owned(0, kvm.host.memmap.nr_pages)
        assert not kvm.host.vms


@pytest.mark.parametrize("profile", PROFILES)
def test_a_cpuid_page_that_is_refused_fails_the_launch(profile: str) -> None:
    plan = make_plan()
    steps = list(plan.steps)
    [index] = [i for i, step in enumerate(steps) if step.page_type == SnpPageType.CPUID]
    page = bytearray(steps[index].contents or b"")
    page[16 + 24 : 16 + 28] = b"\xff\xff\xff\xff"  # leaf 0: more leaves than there are
    steps[index] = steps[index]._replace(contents=bytes(page))
    with (
        Kvm.open(profile) as kvm,
        SnpLaunch(kvm, plan._replace(steps=tuple(steps))) as launch,
        pytest.raises(LaunchError, match="INVALID_PARAM"),
    ):
        launch.run()


def test_a_firmware_that_refuses_says_so() -> None:
    with Kvm.open() as kvm, SnpLaunch(kvm, make_plan()) as launch:
        kvm.host.snp.psp.inject = lambda command, pfn: (
            PspStatus.HWERROR_PLATFORM if command == PspCommand.LAUNCH_FINISH else None
        )
        with pytest.raises(SnpError) as refused:
            launch.run()
        assert refused.value.fw_error is PspStatus.HWERROR_PLATFORM
        assert refused.value.rule.id == "snp.firmware"


def test_flows_that_arent_there() -> None:
    with Kvm.open("linux-7.3") as kvm, pytest.raises(LaunchError, match="populate memory with what is in it"):
        SnpLaunch(kvm, make_plan(), flow="in-place")
    with Kvm.open() as kvm, pytest.raises(LaunchError, match="'sideways'"):
        SnpLaunch(kvm, make_plan(), flow="sideways")


def test_a_launch_that_never_began_closes() -> None:
    with Kvm.open() as kvm, SnpLaunch(kvm, make_plan()):
        pass
