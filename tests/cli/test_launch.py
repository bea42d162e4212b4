# SPDX-License-Identifier: GPL-2.0-or-later
"""`gmemu launch snp`: the launch, and the guest that converts a page both ways."""

from __future__ import annotations

from pathlib import Path

import pytest

from gmemu.cli import launch as launch_module
from gmemu.launch.find import find_firmware
from gmemu.launch.pagelog import read_log
from gmemu.profiles import PROFILES

from .conftest import Gmemu


def test_what_a_person_sees(gmemu: Gmemu, image: Path) -> None:
    done = gmemu("launch", "snp", "--firmware", image, "--vcpus", "2")
    assert (done.code, done.err) == (0, "")
    for part in (
        "on an emulated host",
        "simulated",
        "SNP_LAUNCH_UPDATE firmware",
        "2 VMSAs measured",
        "Measurement (simulated",
        "GUEST_VALID",
        "KVM_EXIT_HYPERCALL, MAP_GPA_RANGE",
        "KVM_SET_MEMORY_ATTRIBUTES2",
        "gmem.fault.private",
        "'hello, host'",
        "KVM_EXIT_HLT",
        "shared",
    ):
        assert part in done.out, part
    assert max(map(len, done.out.splitlines())) <= 100


@pytest.mark.parametrize("width", ["30", "60", "80"])
def test_it_fits_a_narrow_terminal(gmemu: Gmemu, image: Path, monkeypatch: pytest.MonkeyPatch, width: str) -> None:
    monkeypatch.setenv("COLUMNS", width)
    done = gmemu("launch", "snp", "--firmware", image)
    digest = gmemu("launch", "snp", "--firmware", image, "--json").json["measurement"]
    assert digest in done.out.splitlines()
    if int(width) >= 60:
        long = [line for line in done.out.splitlines() if len(line) > int(width) and line != digest]
        assert long == [], long


@pytest.mark.parametrize("profile", PROFILES)
def test_json_in_every_profile(gmemu: Gmemu, image: Path, profile: str) -> None:
    data = gmemu("launch", "snp", "--firmware", image, "--profile", profile, "--json").json
    in_place = PROFILES[profile].in_place
    assert data["simulated"] is True
    assert (data["profile"], data["flow"]) == (profile, "in-place" if PROFILES[profile].null_source else "copy")
    assert data["firmware_origin"] == "given"
    assert data["launched"]["pages_by_state"]["GUEST_VALID"] == data["pages"]
    assert data["after"]["pages_by_state"]["GUEST_VALID"] == data["pages"] + 1
    assert all(run["attribute"] == "private" for run in data["launched"]["memory"])
    assert data["after"]["memory"][-1]["attribute"] == "shared"
    words = ("measure", "snp", "--firmware", image, "--vcpu-type", "EPYC-v4")
    assert gmemu(*words).out.strip() == data["measurement"]
    _check_story(data["guest"], in_place)


def _check_story(events: list[dict[str, str]], in_place: bool) -> None:
    exits = [e["what"] for e in events if e["who"] == "exit" and "KVM_EXIT_IO" not in e["what"]]
    hypercall = "KVM_EXIT_HYPERCALL, MAP_GPA_RANGE"
    assert exits == ["KVM_EXIT_MEMORY_FAULT", hypercall, hypercall, "KVM_EXIT_HLT"]
    conversions = [e["result"] for e in events if e["who"] == "vmm"]
    assert conversions == ["1 page made private", "1 page made shared", "1 page made private"]
    seen = [e["result"] for e in events if e["who"] == "host"]
    assert not any("known to the guest only" in result for result in seen)
    assert "'hello, host'" in seen
    assert any("ciphertext" in result for result in seen)
    assert any("gmem.fault.private" in result for result in seen) == in_place
    assert {"who": "guest", "what": "reads the shared page", "result": "'hello, guest'"} in events


def test_copying_under_an_in_place_kernel(gmemu: Gmemu, image: Path) -> None:
    words = ("launch", "snp", "--firmware", image, "--json")
    copied, in_place = gmemu(*words, "--flow", "copy").json, gmemu(*words).json
    assert copied["flow"] == "copy"
    assert copied["measurement"] == in_place["measurement"]
    assert any("from 0x" in call["effect"] for call in copied["calls"])


def test_in_place_needs_a_kernel_that_has_it(gmemu: Gmemu, image: Path) -> None:
    done = gmemu("launch", "snp", "--firmware", image, "--profile", "linux-7.3", "--flow", "in-place")
    assert (done.code, done.out) == (2, "")
    assert done.err == "gmemu: profile linux-7.3 can't populate memory with what is in it; use --flow copy\n"


def test_firmware_is_found_or_made(gmemu: Gmemu, monkeypatch: pytest.MonkeyPatch) -> None:
    data = gmemu("launch", "snp", "--json").json
    assert data["firmware_origin"] == ("synthetic" if find_firmware() is None else "found")
    monkeypatch.setattr(launch_module, "find_firmware", lambda: None)
    data = gmemu("launch", "snp", "--json").json
    assert data["firmware_origin"] == "synthetic"
    assert "made by gmemu as no OVMF was found" in gmemu("launch", "snp").out


def test_the_seed_makes_another_synthetic_image(gmemu: Gmemu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_module, "find_firmware", lambda: None)
    digests = [gmemu("launch", "snp", "--seed", seed, "--json").json["measurement"] for seed in ("0", "1", "1")]
    assert digests[0] != digests[1] == digests[2]


def test_the_log_is_that_of_measure(gmemu: Gmemu, image: Path, tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    done = gmemu("launch", "snp", "--firmware", image, "--log", a, "--json")
    gmemu("measure", "snp", "--firmware", image, "--vcpu-type", "EPYC-v4", "--log", b)
    assert read_log(a).measurement == done.json["measurement"]
    assert gmemu("measure", "diff", a, b).code == 0


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (("--policy", "0"), "snp.start.policy"),
        (("--vcpus", "1025"), "kvm.create-vcpu.many"),
        (("--profile", ""), "there is no profile ''"),
        (("--firmware", ""), "can't be read"),
    ],
)
def test_bad_input_is_one_sentence(gmemu: Gmemu, image: Path, more: tuple[str, ...], sentence: str) -> None:
    done = gmemu("launch", "snp", "--firmware", image, *more)
    assert (done.code, done.out) == (2, "")
    assert done.err.count("\n") == 1
    assert sentence in done.err


@pytest.mark.parametrize(("platform", "name"), [("sev", "SEV"), ("sev-es", "SEV-ES")])
def test_what_isnt_emulated_is_refused_in_one_sentence(gmemu: Gmemu, platform: str, name: str) -> None:
    done = gmemu("launch", platform)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"gmemu: {name} guests aren't emulated")
    assert done.err.count("\n") == 1
