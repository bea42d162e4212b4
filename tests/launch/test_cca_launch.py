# SPDX-License-Identifier: GPL-2.0-or-later
"""Launching realms: plans, the RIM in three ways, the demonstration guest."""

from __future__ import annotations

import hashlib
import struct

import pytest

from gmemu import Kvm
from gmemu.check import check_host
from gmemu.hw.memory import PhysicalMemory
from gmemu.hw.rmm.rmm import Rmm, RmmInfo
from gmemu.hw.rmm.rtt import entry_pages, root_tables, start_level
from gmemu.launch.cca import CcaImage, CcaLaunch, CcaPlan, compute_rim, measure_cca, plan_cca, ripas_entries
from gmemu.launch.cca_synth import make_kernel
from gmemu.launch.errors import LaunchError
from gmemu.launch.realm_demo import run_realm_demo
from gmemu.sync import DirectRuntime
from gmemu.uapi.rmi import RmiStatus, rmi_index, rmi_realm_params

PAGE, GIB, MIB = 4096, 1 << 30, 1 << 20
KERNEL = make_kernel(9 * PAGE + 100)
FIRMWARE = CcaImage("firmware", firmware=b"F" * (5 * PAGE + 1))
WHOLE = CcaImage("kernel", kernel=KERNEL, initrd=b"I" * PAGE, dtb=b"D" * 77)


def oracle(plan: CcaPlan) -> bytes:
    """The RIM worked out by hand, by the rules of 2.0."""

    def h(data: bytes) -> bytes:
        return hashlib.sha256(data).digest()

    def descriptor(kind: int, rim: bytes, rest: bytes) -> bytes:
        return (struct.pack("<QQ", kind, 0x100) + rim.ljust(64, b"\0") + rest).ljust(0x100, b"\0")

    params = struct.pack("<7Q", 0, plan.ipa_bits, 0, 5, 3, 0, 0)
    rim = h(params.ljust(PAGE, b"\0"))
    for step in plan.steps:
        contents = bytes(step.contents).ljust(step.size, b"\0")
        for at in range(0, step.size, PAGE):
            rim = h(descriptor(0, rim, struct.pack("<QQ", step.gpa + at, 1) + h(contents[at : at + PAGE])))
    rec = bytearray(PAGE)
    struct.pack_into("<Q", rec, 0, 1)
    struct.pack_into("<Q", rec, 0x200, plan.pc)
    struct.pack_into("<Q", rec, 0x300, plan.x0)
    return h(descriptor(1, rim, h(bytes(rec))))


# Plans


def test_plan_of_a_firmware() -> None:
    plan = plan_cca(FIRMWARE)
    assert [(s.name, s.gpa, s.pages) for s in plan.steps] == [("firmware", 0, 6)]
    assert (plan.pc, plan.x0, plan.pages) == (0, 0, 6)
    assert [(r.gpa, r.size) for r in plan.regions] == [(0, 6 * PAGE), (GIB, 2 * MIB)]


def test_plan_of_a_kernel() -> None:
    plan = plan_cca(WHOLE)
    places = [(s.name, s.gpa) for s in plan.steps]
    assert places == [("kernel", GIB + 2 * MIB), ("initrd", GIB + 128 * MIB), ("dtb", GIB + 130 * MIB)]
    assert (plan.pc, plan.x0) == (GIB + 2 * MIB, GIB + 130 * MIB)
    assert [(r.gpa, r.size) for r in plan.regions] == [(GIB, 134 * MIB)]
    assert plan_cca(WHOLE, ipa_bits=32).steps == plan.steps


@pytest.mark.parametrize(
    ("image", "options", "words"),
    [
        (CcaImage("nothing"), {}, "needs a firmware or a kernel"),
        (CcaImage("text", kernel=b"x" * 100), {}, "isn't an arm64 kernel"),
        (CcaImage("short", kernel=b"x"), {}, "isn't an arm64 kernel"),
        (CcaImage("large", firmware=b"x" * (64 * MIB + 1)), {}, "a firmware has"),
        (CcaImage("empty", firmware=b""), {}, "a firmware has"),
        (CcaImage("odd", kernel=make_kernel(text_offset=5)), {}, "whole number of pages"),
        (CcaImage("far", kernel=make_kernel(text_offset=126 * MIB)), {}, "the initrd is in the way"),
        (FIRMWARE, {"vcpus": 0}, "a realm of 0 vCPUs"),
        (FIRMWARE, {"ipa_bits": 31}, "addresses of 31 bits"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_cant_be_launched(image: CcaImage, options: dict[str, int], words: str) -> None:
    with pytest.raises(LaunchError, match=words):
        plan_cca(image, **options)


# The RIM


@pytest.mark.parametrize("profile", ["inplace-v13", "linux-7.3-cca"])
@pytest.mark.parametrize("image", [FIRMWARE, WHOLE], ids=["firmware", "kernel"])
def test_launch_computation_and_oracle_agree(image: CcaImage, profile: str) -> None:
    plan = plan_cca(image, 3, 44)
    assert measure_cca(plan, profile=profile) == compute_rim(plan) == oracle(plan)


def test_what_is_measured_and_what_isnt() -> None:
    plan = plan_cca(WHOLE)
    rim = measure_cca(plan)
    assert measure_cca(plan_cca(WHOLE, 4)) == rim
    assert measure_cca(plan_cca(WHOLE, ipa_bits=41)) != rim
    assert measure_cca(plan_cca(WHOLE._replace(dtb=b"E" * 77))) != rim


def test_the_rules_of_1_0_against_an_rmm_of_1_0() -> None:
    """The entries that INIT_RIPAS measures are those that an RMM has, where its host makes tables as they are missed."""
    plan = plan_cca(WHOLE)
    rmm = Rmm(DirectRuntime(), PhysicalMemory(1 << 30), info=RmmInfo(version=(1, 0)))
    assert rmm.granule_range_delegate(0x100, 0x1000).status == 0
    level = start_level(40)
    params = rmi_realm_params(
        s2sz=40,
        num_bps=5,
        num_wps=3,
        vmid=1,
        rtt_base=0x200 * PAGE,
        rtt_level_start=level,
        rtt_num_start=root_tables(40, level),
    )
    rmm.memory.write(0x10 * PAGE, params.pack())
    assert rmm.realm_create(0x100, 0x10).status == 0
    spare = iter(range(0x300, 0x1000))
    for region in plan.regions:
        at, top = region.gpa, region.gpa + region.size
        while at < top:
            result = rmm.rtt_init_ripas(0x100, at, top)
            if result.status & 0xFF == RmiStatus.ERROR_RTT:
                deeper = rmi_index(result.status) + 1
                reach = entry_pages(deeper - 1) * PAGE
                assert rmm.rtt_create(0x100, next(spare), at // reach * reach, deeper).status == 0
            else:
                at = result.out[0]
    realm = rmm.realms[0x100]
    for step in plan.steps:
        realm.rim.data(step.gpa, bytes(step.contents).ljust(step.size, b"\0"), measure=True)
    before = realm.measurement
    assert compute_rim(plan, version=(1, 0)) != compute_rim(plan)
    rec = bytearray(PAGE)
    struct.pack_into("<Q", rec, 0, 1)
    struct.pack_into("<Q", rec, 0x200, plan.pc)
    struct.pack_into("<Q", rec, 0x300, plan.x0)
    head = struct.pack("<QQ", 1, 0x100) + before.ljust(64, b"\0") + hashlib.sha256(bytes(rec)).digest()
    assert compute_rim(plan, version=(1, 0)) == hashlib.sha256(head.ljust(0x100, b"\0")).digest()
    rmm.memory.close()


def test_table_entries_are_as_large_as_they_can_be() -> None:
    sizes = [top - base for base, top in ripas_entries(GIB - 2 * MIB - PAGE, 3 * GIB + PAGE, 1)]
    assert sizes == [PAGE, 2 * MIB, GIB, GIB, PAGE]


# Launches


@pytest.mark.parametrize("profile", ["inplace-v13", "inplace-v8", "rfc-v5", "linux-7.3-cca"])
def test_launch_guest_and_teardown(profile: str) -> None:
    with Kvm.open(profile, platform="arm") as kvm:
        done: list[tuple[int, int]] = []
        with CcaLaunch(kvm, plan_cca(WHOLE, 2), progress=lambda *at: done.append(at)) as launch:
            assert launch.run() == oracle(launch.plan)
            assert launch.pages_by_state() == {"ASSIGNED RAM": 12}
            check_host(kvm.host)
            results = {event.what.split(" at ")[0]: event.result for event in run_realm_demo(launch)}
            check_host(kvm.host)
        assert results["reads its kernel"] == "as launched"
        assert results["RSI_MEASUREMENT_READ of the RIM"] == "the same"
        assert results["reads the shared page, and answers"] == "'hello, host'"
        assert results["reads the shared page"] == "'hello, guest'"
        assert results["takes the page back, finds"] == "zeroes"
        assert done[-1] == (12, 12)
        assert [call.name for call in launch.calls][-1] == "KVM_RUN"
        assert kvm.host.rmm.rmm.realms == {}


def test_flows_and_platforms() -> None:
    plan = plan_cca(FIRMWARE)
    with Kvm.open(platform="arm") as kvm:
        with pytest.raises(LaunchError, match="never from the page itself"):
            CcaLaunch(kvm, plan, flow="in-place")
        with pytest.raises(LaunchError, match="there is no flow"):
            CcaLaunch(kvm, plan, flow="sideways")
    with Kvm.open("linux-7.3", platform="arm") as kvm, pytest.raises(LaunchError, match="has no realms"):
        CcaLaunch(kvm, plan)
    with Kvm.open() as kvm, pytest.raises(LaunchError, match="a realm takes arm"):
        CcaLaunch(kvm, plan)
