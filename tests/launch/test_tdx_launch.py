# SPDX-License-Identifier: GPL-2.0-or-later
"""Launching a TD: the same measurement by every way, against a computation that shares nothing with ours."""

from __future__ import annotations

import os
import struct
from hashlib import sha384

import pytest

from gmemu import Kvm
from gmemu.hw.tdx.module import Row
from gmemu.launch.errors import LaunchError
from gmemu.launch.ovmf import Firmware
from gmemu.launch.td_synth import make_tdvf, tdvf_sections
from gmemu.launch.tdvf import TdvfSectionType
from gmemu.launch.tdx import TdxLaunch, TdxPlan, compute_mrtd, measure_tdx, plan_tdx

SIZE = 64 << 10
OVMF = "/usr/share/ovmf/OVMF.fd"


def oracle(image: bytes, two_pass: bool) -> str:
    """MRTD straight from the image's bytes."""
    start = (
        len(image) - struct.unpack_from("<I", image, image.rindex(bytes.fromhex("35657ae44a989847865e4685a7bf8ec2")) - 6)[0]
    )
    assert image[start : start + 4] == b"TDVF"
    digest = sha384()

    def add(gpa: int) -> None:
        digest.update(b"MEM.PAGE.ADD\0\0\0\0" + struct.pack("<Q", gpa) + bytes(104))

    def extend(gpa: int, page: bytes) -> None:
        for at in range(0, 4096, 256):
            digest.update(b"MR.EXTEND\0\0\0\0\0\0\0" + struct.pack("<Q", gpa + at) + bytes(104) + page[at : at + 256])

    for i in range(struct.unpack_from("<I", image, start + 12)[0]):
        offset, raw, gpa, size, _, attributes = struct.unpack_from("<IIQQII", image, start + 16 + 32 * i)
        if attributes & 2:
            continue
        data = image[offset : offset + raw].ljust(size, b"\0")
        pages = [(gpa + at, data[at : at + 4096]) for at in range(0, size, 4096)]
        if two_pass:
            for at, _page in pages:
                add(at)
        for at, page in pages:
            if not two_pass:
                add(at)
            if attributes & 1:
                extend(at, page)
    return digest.hexdigest()


@pytest.fixture(scope="module")
def image() -> bytes:
    return make_tdvf(SIZE)


@pytest.fixture
def plan(image: bytes) -> TdxPlan:
    return plan_tdx(Firmware.from_bytes(image, "a synthetic image"))


def test_the_plan(plan: TdxPlan) -> None:
    assert [step.name for step in plan.steps] == ["bfv", "cfv", "temp-mem", "temp-mem", "td-hob", "temp-mem"]
    assert (plan.hob_gpa, plan.pages, plan.measured_pages) == (0x809000, 16 + 16 + 2 + 2 + 6, 15)
    assert [(r.gpa, r.size) for r in plan.memory_regions()] == [
        (0x800000, 0x6000),
        (0x809000, 0x4000),
        (0x810000, 0x10000),
        ((4 << 30) - SIZE, SIZE),
    ]
    assert not plan.notes


def test_oddities_are_told() -> None:
    section = (0, 0x1000, (4 << 30) - SIZE, 0x2000, TdvfSectionType.CFV, 0)
    later = (0, 0, 0x100000, 0x1000, TdvfSectionType.PERM_MEM, 2)
    plan = plan_tdx(Firmware.from_bytes(make_tdvf(SIZE, [section, later]), "odd"))
    assert [step.name for step in plan.steps] == ["cfv"]
    assert [note.split()[0] for note in plan.notes] == ["section", "odd", "odd"]
    assert plan.steps[0].contents is not None
    assert bytes(plan.steps[0].contents[0x1000:]) == bytes(0x1000)


@pytest.mark.parametrize(("arguments", "message"), [({"vcpus": 0}, "TD of 0 vCPUs"), ({"gpaw": 50}, "width of 50")])
def test_what_cant_be_planned(image: bytes, arguments: dict[str, int], message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        plan_tdx(Firmware.from_bytes(image, "an image"), **arguments)


@pytest.mark.parametrize("two_pass", [False, True])
def test_measurement(plan: TdxPlan, image: bytes, two_pass: bool) -> None:
    assert compute_mrtd(plan, two_pass=two_pass).hex() == oracle(image, two_pass)
    assert measure_tdx(plan, two_pass=two_pass).hex() == oracle(image, two_pass)


@pytest.mark.parametrize(
    ("profile", "flow"),
    [("inplace-v13", "in-place"), ("inplace-v13", "copy"), ("linux-7.3", "copy"), ("linux-6.18", "copy")],
)
def test_every_flow_measures_the_same_and_leaves_nothing(plan: TdxPlan, image: bytes, profile: str, flow: str) -> None:
    kvm = Kvm.open(profile, platform="intel")
    with TdxLaunch(kvm, plan, flow=flow) as launch:
        assert launch.run().hex() == oracle(image, False)
        assert launch.pages_by_state() == {"MAPPED": plan.pages}
        assert launch.calls[0].name == "KVM_CREATE_VM"
        assert launch.calls[-1].name == "KVM_TDX_FINALIZE_VM"
        [vp] = launch.td.vps.values()
        assert vp.rcx == plan.hob_gpa
    host = kvm.host
    kvm.door.close(kvm.fd)
    host.check_quiet()
    host.close()


def test_neither_vcpus_nor_attributes_are_measured(image: bytes, plan: TdxPlan) -> None:
    other = plan_tdx(Firmware.from_bytes(image, "an image"), vcpus=3, attributes=0, gpaw=52)
    assert measure_tdx(other) == measure_tdx(plan)


def test_progress_and_log(plan: TdxPlan) -> None:
    told: list[tuple[int, int]] = []
    rows: list[Row] = []
    with Kvm.open(platform="intel") as kvm, TdxLaunch(kvm, plan, progress=lambda *p: told.append(p)) as launch:
        launch.log_pages(rows.extend)
        measured = launch.run()
    assert told[-1] == (plan.pages, plan.pages)
    assert len(rows) == plan.pages
    assert rows[-1].mrtd == measured
    assert sum(row.contents is not None for row in rows) == plan.measured_pages


@pytest.mark.parametrize(
    ("options", "flow", "message"),
    [
        ({"profile": "linux-6.12", "platform": "intel"}, None, "profile linux-6.12 has no TDX"),
        ({"platform": "amd"}, None, "is of platform amd"),
        ({"profile": "linux-7.3", "platform": "intel"}, "in-place", "populate memory with what is in it"),
        ({"platform": "intel"}, "sideways", "there is no flow 'sideways'"),
    ],
)
def test_where_it_cant_be_launched(plan: TdxPlan, options: dict[str, str], flow: str | None, message: str) -> None:
    with Kvm.open(**options) as kvm, pytest.raises(LaunchError, match=message):
        TdxLaunch(kvm, plan, flow=flow)


def test_attributes_that_kvm_hasnt(image: bytes) -> None:
    plan = plan_tdx(Firmware.from_bytes(image, "an image"), attributes=1)
    with Kvm.open(platform="intel") as kvm, TdxLaunch(kvm, plan) as launch, pytest.raises(LaunchError, match="KVM supports"):
        launch.run()


def test_a_page_that_is_added_twice_is_no_launch(plan: TdxPlan) -> None:
    with Kvm.open(platform="intel") as kvm, TdxLaunch(kvm, plan) as launch:
        launch.run()
        with pytest.raises(LaunchError, match="INIT_MEM_REGION of bfv"):
            launch.populate(plan.steps[0]._replace(contents=None))


def test_real_ovmf() -> None:
    if not os.path.exists(OVMF):
        pytest.skip(f"{OVMF} isn't installed (Debian: apt install ovmf)")
    firmware = Firmware.load(OVMF)
    try:
        plan = plan_tdx(firmware)
    except LaunchError as error:
        pytest.skip(str(error))
    data = bytes(firmware.data)
    assert measure_tdx(plan).hex() == oracle(data, False)
    assert measure_tdx(plan, two_pass=True).hex() == oracle(data, True)


def test_sections_of_the_synthetic_image_are_edk2s() -> None:
    assert [section[2] for section in tdvf_sections(2 << 20, 0x20000)][:2] == [0xFFE20000, 0xFFE00000]
